# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Answers of the running batch are those of each row alone, whoever joins and leaves meanwhile."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import EOP, PAD, TEXT, mixed_rows, prompt, tiny_model

from xllm.serving import engine as engine_module
from xllm.serving.engine import PAUSE, Engine, Job
from xllm.serving.limits import Limits, RequestError
from xllm.serving.media_features import MediaFeatures, items_of
from xllm.serving.rows import Rows
from xllm.serving.sampling import Answer, IncrementalText, Sampling


class Letters:
    """A tokenizer whose tokens are characters."""

    eos_token_id, pad_token_id = EOP, PAD

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(0x4E00 + token) for token in ids if token != EOP or not skip_special_tokens)


PROCESSOR = SimpleNamespace(tokenizer=Letters())


def lively(text: str):
    """A tiny model whose answers depend on what it reads."""
    model = tiny_model(text).eval()
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    return model


def inputs_of(ids: list[int], media: dict) -> dict:
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media}


def rows() -> list[dict]:
    """Prompts of many lengths, with media of all kinds and without."""
    texts = [inputs_of(prompt(TEXT * times), {}) for times in (1, 2, 3, 7, 15, 30)]
    return [inputs_of(*row) for row in mixed_rows()] + texts


def alone(model, inputs: dict, new: int) -> str:
    """What `generate` answers to one row."""
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=new, do_sample=False)[0, length:]
    return Letters().decode(output.tolist())


class Asked(Job):
    """A job that remembers what it was told."""

    def __init__(self, inputs, sampling, deadline=None):
        self.text, self.error, self.reason, self.ended = "", None, None, threading.Event()
        super().__init__(inputs, sampling, self._hear, deadline or time.monotonic() + 60)

    def _hear(self, told):
        if isinstance(told, RequestError):
            self.error = told
        else:
            self.text, self.reason = self.text + told.text, told.finish_reason
        if self.error or self.reason:
            self.ended.set()


@pytest.fixture
def engine(request):
    engine = Engine(lively(getattr(request, "param", "llama")), PROCESSOR, Limits(rows=6, prefill_tokens=200))
    yield engine
    engine.close()


@pytest.mark.parametrize("engine", ["chatglm", "llama", "qwen3"], indirect=True)
def test_whoever_joins_and_leaves_each_answer_is_as_alone(engine):
    asked = []
    for place, inputs in enumerate(rows() * 2):
        asked.append(Asked(inputs, Sampling(max_tokens=3 + 5 * place % 17)))
        engine.submit([asked[-1]])
        time.sleep(0.01)
    for job in asked:
        assert job.ended.wait(60)
        assert (job.text, job.error) == (alone(engine.model, job.inputs, job.sampling.max_tokens), None)
    assert len({job.text[:3] for job in asked}) > 4  # they do differ
    assert engine.running == engine.waiting == 0
    # Each medium was encoded once, the second time it was asked about.
    assert engine.features.hits >= engine.features.misses > 0


def test_a_cache_that_cannot_be_joined_answers_one_batch_after_the_other():
    from tiny import tiny_config
    from transformers import MistralConfig

    from xllm import XLLMForConditionalGeneration

    torch.manual_seed(0)
    config = tiny_config("llama")
    sizes = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8, "pad_token_id": PAD}
    config.text_config = MistralConfig(**sizes, **heads, max_position_embeddings=256, eos_token_id=EOP)
    model = XLLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    engine = Engine(model, PROCESSOR, Limits())
    try:
        asked = [Asked(inputs, Sampling(max_tokens=12)) for inputs in rows()]
        for job in asked:
            engine.submit([job])
            time.sleep(0.01)
        for job in asked:
            assert job.ended.wait(60)
            assert (job.text, job.error) == (alone(model, job.inputs, 12), None)
    finally:
        engine.close()


def test_the_model_s_own_settings_hold(engine):
    engine.model.generation_config.repetition_penalty = 1.9
    inputs = rows()
    asked = [Asked(one, Sampling(max_tokens=15)) for one in inputs]
    engine.submit(asked)
    texts = []
    for job in asked:
        assert job.ended.wait(60)
        texts.append(job.text)
    assert texts == [alone(engine.model, one, 15) for one in inputs]
    engine.model.generation_config.repetition_penalty = 1.0
    assert texts != [alone(engine.model, one, 15) for one in inputs]


def test_prompts_that_come_together_or_soon_are_read_together(engine, monkeypatch):
    """Every reading holds up the running answers, and a batch costs little more than a row."""
    read, step, numbers, late = engine_module.read_prompts, Rows.step, [], []

    def counted(model, **inputs):
        numbers.append(len(inputs["input_ids"]))
        return read(model, **inputs)

    def joined(*args):  # one more is asked for at each of the first steps
        if len(late) < PAUSE:
            late.append(Asked(texts[len(late) % 3], Sampling(max_tokens=20)))
            engine.submit([late[-1]])
        return step(*args)

    monkeypatch.setattr(engine_module, "read_prompts", counted)
    monkeypatch.setattr(Rows, "step", joined)
    texts = [inputs_of(prompt(TEXT * times), {}) for times in (1, 4, 2, 15)]
    first = [Asked(texts[place], Sampling(max_tokens=20)) for place in (3, 0)]  # nobody waits for what is alike
    engine.submit(first)
    for job in (*first, *late):
        assert job.ended.wait(60)
        assert (job.text, job.error) == (alone(engine.model, job.inputs, 20), None)
    assert numbers == [2, PAUSE]


def test_a_short_prompt_is_not_read_among_long_ones(engine):
    lengths = [inputs_of(prompt(TEXT * times), {}) for times in (15, 1, 1, 10)]
    jobs = [Asked(inputs, Sampling(max_tokens=1)) for inputs in lengths]
    with engine._wake:  # the engine's own thread stands still
        engine._queue.extend(jobs)
        assert engine._take_jobs() == [jobs[0], jobs[1], jobs[3]]  # more than half would be padding
        assert engine._take_jobs() == [jobs[2]]


def test_an_error_is_its_own_request_s(engine):
    ids = prompt(TEXT * 2)
    ids[3] = 110  # a placeholder of images, without an image
    good = [Asked(inputs_of(prompt(TEXT * 2), {}), Sampling(max_tokens=9)) for _ in range(3)]
    bad = Asked(inputs_of(ids, {}), Sampling(max_tokens=9))
    engine.submit([good[0], bad, *good[1:]])
    for job in (*good, bad):
        assert job.ended.wait(60)
    assert bad.error.status == 400
    assert "placeholder" in bad.error.message
    assert {job.text for job in good} == {alone(engine.model, good[0].inputs, 9)}


@pytest.mark.parametrize(
    ("sampling", "status"),
    [
        ({"temperature": 1e-42}, 500),  # scores that are not finite
        ({"grammar": "no grammar at all"}, 400),
    ],
)
def test_an_answer_that_cannot_be_chosen_ends_nobody_else_s(engine, sampling, status, monkeypatch):
    monkeypatch.setattr(Engine, "pieces", None)
    inputs = rows()[-1]
    if "grammar" in sampling:
        monkeypatch.setattr("xllm.device.commands.CommandLogitsProcessor", Unfollowable)
    good = [Asked(inputs, Sampling(max_tokens=30)) for _ in range(2)]
    bad = Asked(inputs, Sampling(max_tokens=30, **sampling))
    engine.submit([good[0], bad, good[1]])
    for job in (*good, bad):
        assert job.ended.wait(60)
    assert bad.error.status == status
    assert {(job.text, job.error) for job in good} == {(alone(engine.model, inputs, 30), None)}


class Unfollowable:
    """A schema that turns out, after three tokens, to be one that decoding cannot follow."""

    def __init__(self, grammar, pieces):
        self.steps = 0

    def __call__(self, input_ids, scores):
        self.steps += 1
        if self.steps > 3:
            raise ValueError("decoding cannot follow the schema")
        return scores


def test_a_model_that_fails_while_it_writes_ends_the_answers_but_not_the_engine(engine, monkeypatch):
    step, calls = Rows.step, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory on /secret/device")
        return step(*args)

    monkeypatch.setattr(Rows, "step", failing)
    broken = Asked(rows()[-1], Sampling(max_tokens=50))
    engine.submit([broken])
    assert broken.ended.wait(60)
    assert (broken.error.status, broken.error.message) == (500, "the model failed: RuntimeError")
    whole = Asked(rows()[-1], Sampling(max_tokens=5))
    engine.submit([whole])
    assert whole.ended.wait(60)
    assert whole.text == alone(engine.model, whole.inputs, 5)


def test_what_is_late_or_cancelled_is_written_no_further(engine):
    late = Asked(rows()[0], Sampling(max_tokens=10_000), time.monotonic() + 0.3)
    gone = Asked(rows()[1], Sampling(max_tokens=10_000))
    engine.submit([late, gone])
    while not gone.text:
        time.sleep(0.01)
    gone.is_cancelled = True
    assert late.ended.wait(20)
    assert late.error.status == 504
    deadline = time.monotonic() + 20
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.running == 0


def test_a_closed_engine_tells_who_waits():
    engine = Engine(lively("llama"), PROCESSOR, Limits(rows=1))
    asked = [Asked(rows()[0], Sampling(max_tokens=100_000)) for _ in range(2)]
    engine.submit(asked)
    while not asked[0].text:
        time.sleep(0.01)
    engine.close()
    assert [job.error.status for job in asked] == [503, 503]
    with pytest.raises(RequestError, match="shutting down"):
        engine.submit([Asked(rows()[0], Sampling(max_tokens=1))])


def test_kept_media_are_bounded_and_the_oldest_go_first():
    model = lively("llama")
    media = [inputs for inputs in rows() if "pixel_values" in inputs][0]
    row = model.config.modalities["image"]
    (first, *_) = items_of(media, row.input_name, row.mask_name)
    pictures = [first[0] + step for step in range(4)]
    size = model.encode_media({"pixel_values": pictures[0]})["image"].embeddings.nbytes
    features = MediaFeatures(model, 2 * size)
    for picture in pictures:
        features.of([{"pixel_values": picture}])
    assert features.held == 2 * size
    assert (features.hits, features.misses) == (0, 4)
    features.of([{"pixel_values": pictures[3]}, {"pixel_values": pictures[2]}])
    assert features.hits == 2
    features.of([{"pixel_values": pictures[0]}])
    assert features.misses == 5
    # One conversation with a picture twice, and the same in another: encoded once.
    both = features.of([{"pixel_values": torch.cat([pictures[1]] * 2)}, {"pixel_values": pictures[1]}])
    assert both["image"].embeddings.shape[0] == 3
    assert features.misses == 6
    expected = model.encode_media({"pixel_values": pictures[1]})["image"].embeddings
    torch.testing.assert_close(both["image"].embeddings, expected.expand(3, -1, -1))


def written(sampling: Sampling, tokens: list[int]) -> tuple[list[str], str | None]:
    answer = Answer(sampling, Letters(), {EOP})
    told = []
    for token in tokens:
        told.append(answer.add(token))
        if told[-1].finish_reason:
            break
    return [delta.text for delta in told], told[-1].finish_reason


def test_what_may_be_a_stop_is_held_back():
    letters = [chr(0x4E00 + n) for n in range(10)]
    stop = "".join(letters[2:5])
    assert written(Sampling(9, stop=(stop,)), [1, 2, 3, 5, 2, 3, 4]) == (
        [letters[1], "", "", "".join(letters[n] for n in (2, 3, 5)), "", "", ""],
        "stop",
    )
    # An answer that ends in the midst of a stop loses nothing.
    assert written(Sampling(9, stop=(stop,)), [1, 2, 3, EOP]) == (
        [letters[1], "", "", letters[2] + letters[3]],
        "stop",
    )
    assert written(Sampling(3, stop=(stop,)), [1, 2, 3]) == ([letters[1], "", letters[2] + letters[3]], "length")
    # Of two stops, the one that begins first.
    assert written(Sampling(9, stop=(letters[3], letters[2] + letters[3])), [1, 2, 3]) == (
        [letters[1], "", ""],
        "stop",
    )


def test_an_answer_told_as_a_whole_is_that_of_a_stream_and_read_once(monkeypatch):
    tokens, decode, calls = [1, 2, 3, 5, 2, 3, 4, 9, 8, 7, 6, 1, 2], Letters.decode, []
    monkeypatch.setattr(
        Letters, "decode", lambda self, *args, **kwargs: calls.append(1) or decode(self, *args, **kwargs)
    )
    for sampling in (Sampling(13), Sampling(99), Sampling(99, stop=("".join(map(chr, (0x4E09, 0x4E08))),))):
        answer = Answer(sampling, Letters(), {EOP}, streams=False)
        calls.clear()
        told = [answer.add(token) for token in [*tokens, EOP][: sampling.max_tokens]]
        assert len(calls) == 1 or sampling.stop
        ended = next(place for place, delta in enumerate(told) if delta.finish_reason)
        assert not any(delta.text for delta in told[:ended])
        pieces, reason = written(sampling, [*tokens, EOP])
        assert (told[ended].text, told[ended].finish_reason) == ("".join(pieces), reason)
        assert len(calls) < 2 * len(tokens)


def test_text_comes_whole_from_any_tokenizer(loaded):
    tokenizer = loaded[1].tokenizer
    text = "What is  this? 这是什么？ é🙂!" * 3
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = IncrementalText(tokenizer)
    pieces = [stream.add(one) for one in ids]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "" in pieces  # a character of several byte pieces
    assert sum(map(bool, pieces)) > 5
