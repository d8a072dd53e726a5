# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What frozen encoders give for a picture or a clip, kept on disk (`data.cache_features: DIR` of a stage).

    DIR/3f/3fa9....safetensors    {"value": (T, E)}, checksum in its metadata, written aside and renamed

A file is named by the SHA-256 of all that its value follows from: the medium as the encoder reads it, the encoder's
weights and config, precision, libraries and processor. Two writers therefore write the same, a kill leaves at most a
file in `DIR/.parts`, and neither another encoder nor another preprocessing finds a file. A damaged file is made again.

Matrix products of another size may round differently. For each number of pictures that an encoder reads at once, the
first such batch is encoded three times: where each picture gives the same bits alone, its file is good for any such
number; where it does not, for this number only; where its place in the batch changes bits, none is kept.

Pictures, frames of videos and windows of sound have one size, and what is kept of them is what their batch gave, bit
for bit. Clips differ in length, and padding changes their last bits: with a cache each clip is encoded alone, so that
every epoch and every run gives the same bits, which are those of a padded batch but for rounding. The first batch of
clips of unequal lengths is encoded together too; of an encoder whose frames padding changes by more, none is kept.
"""

import inspect
import json
import os
import time
import zlib
from collections.abc import Mapping
from functools import partial, update_wrapper
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from xllm.modeling_xllm.modeling_encoders import is_sharded, is_trainable
from xllm.modeling_xllm.speech_encoders import speech_input
from xllm.modeling_xllm.tower_sources import tower_of
from xllm.modeling_xllm.vision_encoders import PATCH_READERS, reads_pictures
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.data.augmentation import Augmentation
from xllm.training.data.media_rows import parts_of_rows
from xllm.training.recipes.strict import RecipeError
from xllm.training.saving.lineage import tensor_digest


logger = logging.get_logger(__name__)

PARTS = ".parts"  # files are written here and then moved to their place
OLD_PARTS = 3600  # seconds after which nobody is writing one any more
ALONE, NEVER = 0, -1  # in place of a number of pictures
MASKS = ("attention_mask", "input_features_mask")  # what an encoder may call the mask of its clips


def tower_of_row(model: Any, name: str) -> Any:
    """The encoder of a row of the table, or None."""
    encoder = model.config.modalities[name].encoder
    return None if encoder is None else model.model.tower(encoder)


def keeping_problem(tower: Any) -> str:
    """Why what an encoder gives cannot be kept, in a few words; empty where it can."""
    if reads_pictures(tower):
        of_any_shape = tower.config.model_type in PATCH_READERS
        return f"a {tower.config.model_type} reads pictures of any shape by several inputs" if of_any_shape else ""
    kind, rule = tower.config.model_type, speech_input(tower.config)
    if rule is None:
        return f"how many frames a {kind} makes of a clip is not known"
    reads_alone = rule.window is not None or rule.one_by_one
    if not reads_alone and not set(MASKS).intersection(inspect.signature(tower.forward).parameters):
        return f"a {kind} takes no mask, so that a clip depends on what it is padded to"
    return ""


def check_cached_rows(model: Any, modalities: list[str], folder: str, augmentation: Augmentation, where: str) -> None:
    """See that `cache_features` of a stage can have an effect; say what is encoded in every epoch all the same.

    Raises:
        RecipeError: no row of the stage has an encoder whose output can be kept, and that reads the same in every
            epoch, or `folder` is a file.
    """
    towers = {name: tower_of_row(model, name) for name in modalities}
    problems = {name: keeping_problem(tower) for name, tower in towers.items() if tower is not None}
    for name in problems:
        kind = MEDIA_KINDS[parts_of_rows(model.config.modalities)[name]]
        if any(map(augmentation.handles, kind.augmented_as)):
            problems[name] = f"augment changes {kind.inputs} in every epoch, and none of them would be found again"
    lost = {name: problem for name, problem in problems.items() if problem}
    said = "; ".join(f"{name} cannot be kept, for {problem}" for name, problem in lost.items())
    if len(lost) == len(problems):
        raise RecipeError(f"{where}.data.cache_features: {said or 'this stage runs no encoder'}; leave it out")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise RecipeError(
            f"{where}.data.cache_features: {folder} is a file; name a folder, it is made if there is none"
        )
    if lost:
        logger.warning(f"{where}.data.cache_features: {said}; they are encoded in every epoch")


class FeatureCache:
    """While it is entered, the frozen encoders of `model` answer from files where they can.

    Args:
        folder: see the module's first lines; made where there is none, and shared by any number of runs and ranks.
        model: an X-LLM, or a stage-1 model.
        frozen (`Mapping`): name -> digest of the model's frozen tensors (`FreezeReceipt.before`).

    `counts` says of how many pictures and clips the features were read (`features_read`), computed
    (`features_computed`), found damaged (`features_damaged`) and could not be written (`features_unwritten`).

    Raises:
        ValueError: `folder` cannot be made.
    """

    def __init__(self, folder: str | Path, model: Any, frozen: Mapping[str, str]):
        self.folder = Path(folder)
        self.counts = {"features_read": 0, "features_computed": 0}
        self._towers: dict[str, Any] = {}
        self._fingerprints: dict[str, str] = {}
        self._own_forwards: dict[str, Any] = {}
        self._companies: dict[tuple, int] = {}
        for row, settings in model.config.modalities.items():
            tower = tower_of_row(model, row)
            if tower is None or keeping_problem(tower) or is_trainable(tower):
                continue
            name = tower_of(settings.encoder)
            weights = {key: value for key, value in frozen.items() if key.startswith(f"model.{name}.")}
            config = {key: value for key, value in tower.config.to_dict().items() if key != "_name_or_path"}
            about = [type(tower).__name__, tower.config._attn_implementation, config, weights]
            self._towers[name] = tower
            self._fingerprints[name] = _digest(about)
        try:
            (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache_features: {self.folder} cannot be made a folder ({error})") from error
        for part in (self.folder / PARTS).iterdir():
            try:
                if part.stat().st_mtime < time.time() - OLD_PARTS:
                    part.unlink()
            except FileNotFoundError:  # another run has moved or removed it
                pass

    def __enter__(self) -> "FeatureCache":
        for name, tower in self._towers.items():
            self._own_forwards[name] = vars(tower).get("forward")  # a hook of accelerate's, say
            tower.forward = update_wrapper(partial(self._forward, name, tower.forward), tower.forward)
        return self

    def __exit__(self, *_) -> None:
        for name, tower in self._towers.items():
            del tower.forward  # what its class says holds again
            if self._own_forwards[name] is not None:
                tower.forward = self._own_forwards[name]

    def _forward(self, name: str, encode: Any, pictures: torch.Tensor, **kwargs) -> Any:
        """The encoder's `forward` for `(R, 3, H, W)`, or clips `(N, L, ...)` with their mask."""
        if self._towers[name].training or not len(pictures) or kwargs.keys() - set(MASKS) or len(kwargs) > 1:
            return encode(pictures, **kwargs)
        about = [self._fingerprints[name], circumstances(pictures)]
        for mask_name, mask in kwargs.items():
            return self._clips(name, partial(_encode_clip, encode, mask_name), pictures, mask, about)
        company = self._company(name, encode, pictures, about)
        files = [self._file([*about, company, tensor_digest(picture)]) for picture in pictures.cpu()]
        kept = [None if company == NEVER else self._read(file) for file in files]
        found = [value for value in kept if value is not None]
        if len(found) == len(kept):
            self.counts["features_read"] += len(found)
            return BaseModelOutput(last_hidden_state=torch.stack(found).to(pictures.device))
        # All of them, since a smaller batch may round differently.
        output = encode(pictures)
        self.counts["features_computed"] += len(kept)
        for file, value, hidden in zip(files, kept, output.last_hidden_state.cpu()):
            if value is None and company != NEVER and output.last_hidden_state.is_contiguous():
                self._write(file, hidden)
        return output

    def _clips(self, name: str, encode: Any, clips: torch.Tensor, mask: torch.Tensor, about: list[str]) -> Any:
        """The encoder's frames of `(N, L, ...)`, of which `mask (N, L)` tells the real positions, which come first."""
        if self._verdict(name, about) == NEVER:
            return encode(clips, mask)
        lengths = mask.long().sum(-1).tolist()
        single = [clip[:length] for clip, length in zip(clips, lengths)]
        files = [self._file([*about, "alone", tensor_digest(clip)]) for clip in single]
        kept = [self._read(file) for file in files]
        frames = [encode(clip[None]).last_hidden_state[0] if own is None else own for clip, own in zip(single, kept)]
        if self._verdict(name, about) is None and min(lengths) < clips.shape[1]:
            together = encode(clips, mask)
            if self._judge(name, together.last_hidden_state, frames, about) == NEVER:
                return together
        for file, own, value in zip(files, kept, frames):
            self.counts["features_computed" if own is None else "features_read"] += 1
            if own is None:
                self._write(file, value.cpu())
        rule: Any = speech_input(self._towers[name].config)
        T = max(rule.num_frames(clips.shape[1]), *(len(value) for value in frames))
        placed = frames[0].new_zeros(len(frames), T, frames[0].shape[-1], device=clips.device)
        for row, value in zip(placed, frames):
            row[: len(value)] = value
        return BaseModelOutput(last_hidden_state=placed)

    def _verdict(self, name: str, about: list[str]) -> int | None:
        """Whether padding changes what the encoder gives for a clip: `NEVER` keep it, `ALONE`, or not yet known."""
        key = ("padding", *about)
        if key not in self._companies:
            self._refuse_parts(name)
            if (known := self._read(self._file([*key]))) is not None:
                self._decide(name, key, int(known))
        return self._companies.get(key)

    def _decide(self, name: str, key: tuple, verdict: int) -> None:
        self._companies[key] = verdict
        if verdict == NEVER:
            logger.warning(
                f"data.cache_features: padding changes what {name} gives for a clip by more than rounding; its "
                "features are not kept"
            )

    def _judge(self, name: str, together: torch.Tensor, frames: list[torch.Tensor], about: list[str]) -> int:
        """The verdict by a batch of clips of unequal lengths: its frames, and those of each clip alone."""
        rests = [(own[: len(value)] - value.to(own)).abs().max() for own, value in zip(together, frames)]
        same = bool(torch.stack(rests).max() < rounding(together.dtype) * together.abs().max())
        self._write(self._file(["padding", *about]), torch.tensor(ALONE if same else NEVER))
        self._decide(name, ("padding", *about), ALONE if same else NEVER)
        return ALONE if same else NEVER

    def _refuse_parts(self, name: str) -> None:
        if is_sharded(self._towers[name]):
            raise ValueError(
                "data.cache_features: the processes hold parts of the encoder and must run it together; leave it "
                "out, or let each hold all of it (DDP, ZeRO-2)"
            )

    def _company(self, name: str, encode: Any, pictures: torch.Tensor, about: list[str]) -> int:
        """With how many others a picture must be encoded for the same bits: this number, `ALONE` or `NEVER`."""
        key = (*about, *pictures.shape)
        if key not in self._companies:
            self._refuse_parts(name)
            if len(pictures) == 1:
                return self._companies.setdefault(key, ALONE)
            file = self._file(["company", *key])
            known = self._read(file)
            if known is None:
                known = torch.tensor(_compare(encode, pictures))
                self._write(file, known)
            self._companies[key] = int(known)
            if int(known) == NEVER:
                logger.warning(
                    f"data.cache_features: in batches of {len(pictures)} pictures, a picture's place changes what its "
                    "encoder gives; none of them is kept"
                )
        return self._companies[key]

    def _file(self, about: list) -> Path:
        name = _digest(about)
        return self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, path: Path) -> torch.Tensor | None:
        try:
            with safe_open(path, framework="pt") as file:
                value, checksum = file.get_tensor("value"), (file.metadata() or {}).get("crc32")
            if checksum == _checksum(value):
                return value
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            pass
        self._count("damaged", path, "is damaged and is made again")
        return None

    def _write(self, path: Path, value: torch.Tensor) -> None:
        part = self.folder / PARTS / uuid4().hex
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({"value": value.contiguous()}, part, metadata={"crc32": _checksum(value)})
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            part.unlink(missing_ok=True)
            self._count("unwritten", path, f"cannot be written ({error}); the run goes on without it")

    def _count(self, what: str, path: Path, problem: str) -> None:
        name = f"features_{what}"
        if name not in self.counts:
            logger.warning(f"data.cache_features: {path} {problem}; the log counts such files")
        self.counts[name] = self.counts.get(name, 0) + 1


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _checksum(value: torch.Tensor) -> str:
    content: Any = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(content):08x}"


def circumstances(inputs: torch.Tensor) -> str:
    """What may change the bits of an encoder's output besides its weights and `inputs`."""
    device = inputs.device
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    versions = f"torch {torch.__version__} transformers {transformers.__version__}"
    return f"{versions} {processor} {autocast} {torch.get_float32_matmul_precision()}"


def rounding(dtype: torch.dtype) -> float:
    """The largest difference, as a share of the largest value, that is taken for rounding."""
    return torch.finfo(dtype).eps ** 0.5 / 4


def _encode_clip(encode: Any, mask_name: str, clips: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
    mask = torch.ones(clips.shape[:2], dtype=torch.long, device=clips.device) if mask is None else mask
    return encode(clips, **{mask_name: mask})


@torch.no_grad()
def _compare(encode: Any, pictures: torch.Tensor) -> int:
    together = encode(pictures).last_hidden_state
    if not together.is_contiguous():  # read from files it would be, and what reads it might round differently
        return NEVER
    if all(torch.equal(encode(one[None]).last_hidden_state[0], own) for one, own in zip(pictures, together)):
        return ALONE
    moved = encode(pictures.roll(1, 0)).last_hidden_state.roll(-1, 0)
    return len(pictures) if torch.equal(moved, together) else NEVER


__all__ = ["FeatureCache", "check_cached_rows", "circumstances"]
