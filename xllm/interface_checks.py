# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an X2L interface must keep to be trained, saved and shared: checks of any converter, ours or a user's.

A tiny Llama with random weights has one row, whose two items are vectors of different number. `CHECKS` is the table of
checks; each raises an error that says in one line what is wrong.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, set_seed

from xllm.assembly.composing import transformer_sizes
from xllm.assembly.modules import import_modules
from xllm.hub_cards.remote_code import export_code
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.converters import CONVERTERS, X2LConverter, register_converter
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.media_kinds import MEDIA_KINDS, OWN_KINDS
from xllm.training.stages import freeze_for_stage


ROW, VALUES, MASK = "checked", "checked_values", "checked_mask"
PLACEHOLDER, WORDS = 5, [6, 7, 8, 9]
LENGTHS = (12, 7)  # vectors of the two items
WIDTH = 16
SECONDS = 120  # for other processes


class Violation(ValueError):
    """What an interface does not keep, in one line."""


def require(condition: Any, problem: str) -> None:
    """A `Violation` that says `problem` unless the condition holds."""
    if not condition:
        raise Violation(problem)


@dataclass
class Case:
    """A converter under test: its class and name, the fields of its row, and a folder to write to."""

    kind: type[X2LConverter]
    name: str
    fields: dict[str, Any]
    folder: Path

    def __post_init__(self):
        text = LlamaConfig(vocab_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, **transformer_sizes(32, 2))
        self.config = XLLMConfig(text_config=text, modalities={ROW: self.fields})
        self.row = self.config.modalities[ROW]

    def model(self, stage: int | None = None) -> Any:
        """A model, the same each time, as a stage trains it, or as it is used."""
        set_seed(0)
        model = XLLMForConditionalGeneration(self.config).eval()
        if stage is not None:
            freeze_for_stage(model, stage, [ROW])
            model.train()
        return model

    def inputs(self, *items: int) -> dict[str, torch.Tensor]:
        """A line of text for each of the items, by default both."""
        draw = torch.Generator().manual_seed(1)
        every = [torch.randn(length, self.row.encoder_hidden_size, generator=draw) for length in LENGTHS]
        values = [every[item] for item in items or range(len(every))]
        owned = [self.row.tokens_per_item or -(-len(value) // self.row.subsampling_factor) for value in values]
        lines = [torch.tensor([PLACEHOLDER] * count + WORDS) for count in owned]
        ids = pad_sequence(lines, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones(len(value), dtype=torch.long) for value in values], batch_first=True)
        given = {VALUES: pad_sequence(values, batch_first=True), MASK: mask}
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), **given}

    def backward(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        """The gradients of a step of training; what is drawn in it, such as dropout, is the same each time."""
        ids = inputs["input_ids"]
        torch.manual_seed(0)
        model(**inputs, labels=ids.masked_fill(ids <= PLACEHOLDER, -100)).loss.backward()


def tokens(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the language model would read of each item."""
    with torch.no_grad():
        return model.get_features(ROW, inputs[VALUES], inputs[MASK]).pooler_output


def trained(model: Any) -> dict[str, Any]:
    """What is trained of the interface, by name."""
    return {name: one for name, one in model.model.interfaces[ROW].named_parameters() if one.requires_grad}


def require_same(ours: list[torch.Tensor], theirs: list[torch.Tensor], problem: str) -> None:
    """A `Violation` unless the tokens of each item are the same."""
    for number, (one, other) in enumerate(zip(ours, theirs)):
        require(one.shape == other.shape, f"{problem}: item {number} has {len(other)} tokens instead of {len(one)}")
        close = torch.allclose(one, other, atol=1e-4, rtol=1e-3)
        require(close, f"{problem}: item {number} differs by {(one - other).abs().max():.2g}")


def check_shapes(case: Case) -> None:
    """Tokens (N, K, C) of the width that it declares, real ones first, finite, and no more than placeholders."""
    model, inputs = case.model(), case.inputs()
    fixed, width = case.kind.tokens_per_item(case.row), case.kind.output_size(case.row)
    given, real = inputs[VALUES].clone(), inputs[MASK].bool()
    with torch.no_grad():
        converter = model.model.interfaces[ROW].converter
        output = converter(given, real, **case.kind.forward_options(case.row))
    kept = given.equal(inputs[VALUES]) and real.equal(inputs[MASK].bool())
    require(kept, "it changes what it is given in place: make new tensors (x = x * 2, not x.mul_(2))")
    shape = tuple(output.embeddings.shape)
    require(len(shape) == 3 and shape[0] == len(LENGTHS), f"embeddings of {len(LENGTHS)} items have shape {shape}")
    require(shape[2] == width, f"tokens are {shape[2]} wide, output_size says {width}")
    require(output.embeddings.isfinite().all(), "tokens hold NaN or Inf")
    require(fixed in (None, shape[1]), f"tokens_per_item says {fixed}, an item has {shape[1]}")
    mask = torch.ones(shape[:2]) if output.mask is None else output.mask
    require(tuple(mask.shape) == shape[:2], f"mask has shape {tuple(mask.shape)}, expected {shape[:2]}")
    require((mask.long().diff(dim=1) <= 0).all(), "the real tokens of an item do not come first in its mask")
    require(mask.any(), "no item has a token")
    if fixed is None:
        over = int((mask.long().sum(1) - (inputs["input_ids"] == PLACEHOLDER).sum(1)).max())
        require(over <= 0, f"an item has {over} tokens more than it has placeholders")


def check_padding(case: Case) -> None:
    """What stands in the padding, and how much of it there is, changes no token."""
    model, inputs = case.model(), case.inputs()
    filled = inputs[VALUES].masked_fill(inputs[MASK][..., None] == 0, 7.0)
    padded = {VALUES: torch.nn.functional.pad(filled, (0, 0, 0, 5), value=7.0)}
    padded[MASK] = torch.nn.functional.pad(inputs[MASK], (0, 5))
    require_same(tokens(model, inputs), tokens(model, padded), "padding changes tokens")


def check_batch(case: Case) -> None:
    """An item is the same alone and in a batch."""
    model = case.model()
    alone = [tokens(model, case.inputs(number))[0] for number in range(len(LENGTHS))]
    require_same(alone, tokens(model, case.inputs()), "a batch changes tokens")


def check_gradients(case: Case) -> None:
    """In stage 2 finite gradients reach all of converter and adapter; not all of the converter's are 0."""
    model = case.model(stage=2)
    case.backward(model, case.inputs())
    gradients = {name: parameter.grad for name, parameter in trained(model).items()}
    for name, gradient in gradients.items():
        require(gradient is not None, f"{name} gets no gradient")
        require(gradient.isfinite().all(), f"the gradient of {name} holds NaN or Inf")
    own = [gradient.any() for name, gradient in gradients.items() if name.startswith("converter.")]
    require(not own or any(own), "all gradients of the converter are 0")


def check_frozen_parts(case: Case) -> None:
    """A step of stage 3 moves the adapter and nothing else, buffers included."""
    model = case.model(stage=3)
    interface, names = model.model.interfaces[ROW], trained(model)
    before = {name: value.clone() for name, value in interface.state_dict().items()}
    case.backward(model, case.inputs())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    moved = [name for name, value in interface.state_dict().items() if not torch.equal(value, before[name])]
    strays = [name for name in moved if name not in names]
    require(not strays, f"{', '.join(strays[:3])} moved although frozen")


def check_saving(case: Case) -> None:
    """A checkpoint opened again gives the same tokens, bit by bit."""
    model, inputs = case.model(), case.inputs()
    model.save_pretrained(case.folder / "saved")
    set_seed(99)
    again = XLLMForConditionalGeneration.from_pretrained(case.folder / "saved").eval()
    same = all(map(torch.equal, tokens(model, inputs), tokens(again, inputs)))
    require(same, "after saving and loading its tokens differ: is something neither a parameter nor a saved buffer?")


def check_dtypes(case: Case) -> None:
    """In bfloat16, by autocast and by its weights, its tokens are close to those in float32."""
    model, inputs = case.model(), case.inputs()
    wide = torch.cat(tokens(model, inputs))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = torch.cat(tokens(model, inputs))
    half = torch.cat(tokens(model.to(torch.bfloat16), inputs | {VALUES: inputs[VALUES].bfloat16()}))
    for what, other in {"under autocast": mixed, "with weights in bfloat16": half}.items():
        if other.shape == wide.shape:  # rounding may fire another number of tokens
            gap = (other.float() - wide).abs().mean() / wide.abs().mean()
            require(gap < 0.1, f"{what} its tokens differ from float32's by {100 * gap:.0f} % on average")


def check_beams(case: Case) -> None:
    """Two beams of two prompts together answer as those of each prompt alone."""
    model = case.model()

    def answers(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False, eos_token_id=None)
        return ids[:, inputs["input_ids"].shape[1] :]

    for number, together in enumerate(answers(case.inputs())):
        alone = answers(case.inputs(number))[0]
        require(torch.equal(alone, together), f"the beams of prompt {number} answer otherwise beside others")


def check_two_processes(case: Case) -> None:
    """On two processes, one without the modality, gradients are the mean of both."""
    try:
        multiprocessing.spawn(_rank, (case,), nprocs=2)
    except multiprocessing.ProcessRaisedException as error:
        raise Violation(last_line(error).removeprefix(f"{__name__}.Violation: ")) from error
    model, together = case.model(stage=2), torch.load(case.folder / "gradients.pt")
    case.backward(model, case.inputs())
    for name, parameter in trained(model).items():
        close = torch.allclose(together[name], parameter.grad / 2, atol=1e-5, rtol=1e-3)
        require(close, f"the gradient of {name} on two processes is not the mean of both")


def _rank(rank: int, case: Case) -> None:
    """One of two processes: the first has the modality in its batch, the second text alone."""
    torch.set_num_threads(1)
    register_converter(case.name, case.kind)
    meeting, patience = f"file://{case.folder}/meeting", timedelta(seconds=SECONDS)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    try:
        model, ids = case.model(stage=2), torch.tensor([WORDS])
        parameters = trained(model)
        reached = torch.autograd.grad(model.model.stand_in(ROW), [*parameters.values()], allow_unused=True)
        for name, gradient in zip(parameters, reached):
            text = "gets no gradient from a stand-in of zeros for a batch without the modality: processes would wait"
            require(gradient is not None, f"{name} {text}")
        parallel = DistributedDataParallel(model)
        case.backward(parallel, {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if rank else case.inputs())
        if rank == 0:
            torch.save({name: one.grad for name, one in parameters.items()}, case.folder / "gradients.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


REMOTE = """
import sys, torch
folder, *hidden = sys.argv[1:]
sys.modules.update(dict.fromkeys(hidden))  # as where they are not installed
from transformers import AutoModel
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load(folder + "/inputs.pt")).logits, folder + "/logits.pt")
"""


def check_remote_code(case: Case) -> None:
    """Where neither this package nor its module is, the code beside the checkpoint gives the same logits."""
    model, inputs, folder = case.model(), case.inputs(), case.folder / "remote"
    model.save_pretrained(folder)
    export_code(folder)
    torch.save(inputs, folder / "inputs.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(case.folder / "cache")}
    command = [sys.executable, "-c", REMOTE, str(folder), "xllm", case.kind.__module__]
    options: dict[str, Any] = {"env": environment, "cwd": folder, "timeout": SECONDS, "check": False}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    require(done.returncode == 0, f"the code beside the checkpoint does not open it: {last_line(done.stderr)}")
    with torch.no_grad():
        expected = model(**inputs).logits
    require(torch.equal(torch.load(folder / "logits.pt"), expected), "as remote code it gives other logits")


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__.removeprefix("check_").replace("_", " "): check
    for check in (
        check_shapes, check_padding, check_batch, check_gradients, check_frozen_parts, check_saving, check_dtypes,
        check_beams, check_two_processes, check_remote_code,
    )
}  # fmt: skip


def last_line(error: Exception | str) -> str:
    """The last line of a message or a traceback that says anything."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no message")


def find_converter(target: str) -> str:
    """The name under which `FILE.py:Class`, `module:Class`, or a kind of converter by its name, is registered.

    Raises:
        ValueError: no such module or class, or one that no row can name.
    """
    if target in CONVERTERS:
        return target
    module, _, name = target.rpartition(":")
    if not (module and name):
        raise ValueError(f"{target}: expected FILE.py:Class, module:Class, or one of {', '.join(CONVERTERS)}")
    (found,) = import_modules([module])
    if not hasattr(found, name):
        raise ValueError(f"{module}: there is no class {name} in it")
    kind = getattr(found, name)
    for key, known in CONVERTERS.items():
        if known is kind:
            return key
    what = f"call register_converter({name.lower()!r}, {name}) in its module"
    is_converter = isinstance(kind, type) and issubclass(kind, X2LConverter)
    raise ValueError(f"{target}: {f'no row can name it: {what}' if is_converter else 'no subclass of X2LConverter'}")


def fields_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The row for a converter: that of the user's kind of media that names it, or a small one; and what is given."""
    own = (kind.row for kind in MEDIA_KINDS.values() if kind not in OWN_KINDS and kind.row.get("converter") == name)
    fields: dict[str, Any] = {"encoder_hidden_size": WIDTH, **next(own, {})}
    if CONVERTERS[name].config_class is not None:
        small = {**transformer_sizes(32, 1), "cif_hidden_size": WIDTH}  # for those that know such sizes
        fields = {"converter_config": small, **fields}
    names = {"input_name": VALUES, "mask_name": MASK, "placeholder_token": "<Checked>", "token_id": PLACEHOLDER}
    fixed = {**names, "encoder": None, "converter": name, "shares_converter_with": None, "num_frames": None}
    if taken := sorted(fixed.keys() & given.keys()):
        raise ValueError(f"{taken[0]} is not yours to give: the checks set {', '.join(fixed)}")
    return {**fields, **given, **fixed}


def check_interface(target: str, fields: dict[str, Any] | None = None) -> Iterator[tuple[str, str]]:
    """Each check, and what is wrong, or "" where it is kept.

    Args:
        target: `FILE.py:Class`, `module:Class`, or a kind of converter by its name.
        fields: of the converter's row, see `X2LConfig`.

    Raises:
        ValueError: there is no such converter, or it does not take this row.
    """
    name = find_converter(target)
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = Case(CONVERTERS[name], name, fields_of(name, fields or {}), Path(folder))
        except Exception as error:  # whatever the user's code raises
            what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"{target}: no row can be made: {what}{last_line(error)}") from error
        for what, check in CHECKS.items():
            try:
                check(case)
                yield what, ""
            except Violation as problem:
                yield what, str(problem)
            except Exception as error:  # noqa: BLE001  # whatever the user's code raises
                yield what, f"{type(error).__name__}: {last_line(error)}"
