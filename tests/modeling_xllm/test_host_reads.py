# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How often a step waits for the device, counted: every operation that brings a value to the host."""

import traceback
from collections import Counter

import pytest
import torch
from tiny import EOP, IMAGE, SPEECH, batch_of, mixed_rows, prompt, speech, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from xllm import freeze_for_stage
from xllm.modeling_xllm.host_reads import Asked, check, reads_together, true_places


READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "unique_consecutive", "_unique2"}
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}


class CountReads(TorchDispatchMode):
    """Counts what would wait for a GPU: reads of values, shapes that depend on them, lists sent to the device."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.places: Counter[str] = Counter()
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _note(self) -> None:
        frames = [
            frame
            for frame in traceback.extract_stack()
            if "_xllm" in frame.filename or "transformers" in frame.filename
        ]
        self.places[" < ".join(f"{frame.filename.rsplit('/')[-1]}:{frame.lineno}" for frame in frames[:-4:-1])] += 1

    def _counted(self, method):
        def counted(tensor, *args, **kwargs):
            self._note()
            return method(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [index for index in args[1] if index is not None] if name in BY_MASK else []
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or repeats or any(index.dtype in (torch.bool, torch.uint8) for index in masks):
            self._note()
        return func(*args, **(kwargs or {}))

    @property
    def number(self) -> int:
        return sum(self.places.values())


def mixtures() -> dict[str, dict]:
    """Batches with labels: each kind alone, and all kinds in one, of unequal lengths."""
    rows = mixed_rows()
    kinds = {
        "text": rows[:1] * 2,
        "image": rows[1:2] + rows[3:4],
        "speech": rows[4:] * 2,
        "video": rows[2:3],
        "all": rows,
    }
    batches = {}
    for kind, some in kinds.items():
        batch = batch_of([(ids + [30, EOP], media) for ids, media in some])
        batch["labels"] = batch["input_ids"].where(batch["input_ids"] == 30, -100)
        batches[kind] = batch
    batches["all"]["video_frame_mask"][0, -1] = 0  # a frame is missing, and its placeholders
    row = batches["all"]["input_ids"][2]
    places = (row == 111).nonzero().flatten()[-2:]
    row[places] = 15
    return batches


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("text", ["chatglm", "llama"])
@pytest.mark.parametrize("mixture", mixtures())
def test_a_training_forward_waits_twice_at_most(mixture, text, packing, monkeypatch):
    model, batch = tiny_model(text), mixtures()[mixture]
    freeze_for_stage(model, 3)
    model.train()
    with CountReads(monkeypatch) as reads:
        loss = model(**batch, packing=packing).loss
    assert loss.isfinite()
    assert 1 <= reads.number <= 2, reads.places


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_a_decoded_token_waits_once(text, monkeypatch):
    """To see whether all rows have ended; also where rows are padded and placeholders are not filled."""
    model, batch = tiny_model(text), batch_of(mixed_rows())
    counts = {}
    for steps in (3, 10):
        with monkeypatch.context() as patch, CountReads(patch) as reads:
            model.generate(**batch, max_new_tokens=steps, do_sample=False, eos_token_id=119)
        counts[steps] = reads.number
    assert counts[10] - counts[3] == 7


@pytest.mark.parametrize("text", ["chatglm", "llama"])
@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}, {"use_cache": False}], ids=str
)
def test_generation_leaves_out_the_placeholders_that_no_token_fills(text, mode):
    """A third of the prompt; the answer stands behind the whole prompt and is that of a step over all of it."""
    model = tiny_model(text)
    rows = [
        (prompt([SPEECH] * 19, 20, 21), speech(150)),
        (prompt([IMAGE] * 2, 22), {"pixel_values": torch.randn(1, 3, 28, 28)}),
    ]
    batch, widths = batch_of(rows), []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 119, **mode}
    answers = model.generate(**batch, **options)
    fired = int(model.encode_media(batch)["speech"].mask.sum())
    assert fired < 15, "the clip has to leave placeholders empty"
    assert widths[0] == batch["input_ids"].shape[1] - 19 + fired
    widths.clear()
    whole = model.generate(**batch, **options, return_dict_in_generate=True)  # it returns the whole prompt
    reads_all = mode.get("use_cache", True)  # and keeps all of it
    assert widths[0] == batch["input_ids"].shape[1] - (0 if reads_all else 19 - fired)
    hook.remove()
    assert torch.equal(answers, whole.sequences)
    prompts = batch["input_ids"].repeat_interleave(mode.get("num_return_sequences", 1), 0)
    assert torch.equal(answers[:, : prompts.shape[1]], prompts)


def test_checks_wait_for_the_first_value_that_is_needed():
    log = []

    @reads_together
    def step(ok: bool) -> int:
        check(torch.tensor([True, ok]), lambda: "not ok")
        asked = Asked(torch.tensor(5))
        log.append("computed")
        (value,) = asked.values()
        log.append("read")
        return value

    assert step(True) == 5
    log.clear()
    with pytest.raises(ValueError, match="not ok"):
        step(False)
    assert log == ["computed"]
    assert Asked(torch.tensor([3, 4])).values() == [3, 4]  # alone, at once
    with pytest.raises(ValueError, match="one is 0"):
        Asked(torch.tensor([3, 0]), lambda: "one is 0").values()
    with pytest.raises(ValueError, match="now"):
        check(torch.tensor([True, False]), lambda: "now")


def test_what_fails_is_explained_by_the_check_that_waits():
    @reads_together
    def step(ok: bool):
        check(torch.tensor(ok), lambda: "ids outside the vocabulary")
        return torch.zeros(2)[5]

    with pytest.raises(ValueError, match="outside") as found:
        step(False)
    assert isinstance(found.value.__cause__, IndexError)
    with pytest.raises(IndexError):
        step(True)

    @reads_together
    def checked_last():
        Asked(torch.tensor(1))  # which nobody reads
        check(torch.tensor(False), lambda: "at the end")

    with pytest.raises(ValueError, match="at the end"):
        checked_last()


def test_a_step_within_a_step_leaves_its_checks_to_the_outer_one():
    log = []

    @reads_together
    def inner():
        check(torch.tensor(False), lambda: "of the inner step")
        log.append("inner")

    @reads_together
    def outer():
        inner()
        log.append("outer")

    with pytest.raises(ValueError, match="of the inner step"):
        outer()
    assert log == ["inner", "outer"]


def test_what_was_asked_before_a_step_is_known_in_it():
    before = Asked(torch.tensor([7, 8]))

    @reads_together
    def step():
        within = Asked(torch.tensor(9))
        return before.values(), within.values(), before.values()

    assert step() == ([7, 8], [9], [7, 8])


def test_true_places_by_hand():
    mask = torch.tensor([[0, 1, 0], [1, 0, 1]]).bool()
    assert true_places(mask, 3).tolist() == [1, 3, 5]
    assert true_places(mask & False, 0).tolist() == []


def test_a_graph_checks_on_the_device():
    """Its own message would need a read, which breaks the graph."""

    class Checked(torch.nn.Module):
        def forward(self, numbers):
            check(numbers > 0, lambda: "not read")
            return numbers + 1

    graph = torch.export.export(Checked(), (torch.ones(2),), strict=False).module()
    assert graph(torch.tensor([1.0, 2.0])).tolist() == [2, 3]
    with pytest.raises(RuntimeError, match="an input that a check refuses"):
        graph(torch.tensor([1.0, -2.0]))
