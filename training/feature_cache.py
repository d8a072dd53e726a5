# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What frozen encoders give for a picture, kept on disk (`data.cache_features: DIR` of a stage), bit for bit.

    DIR/3f/3fa9....safetensors    {"value": (T, E)}, checksum in its metadata, written aside and renamed

A file is named by the SHA-256 of all that its value follows from: the picture as the encoder reads it, the encoder's
weights and config, precision, libraries and processor. Two writers therefore write the same, a kill leaves at most a
file in `DIR/.parts`, and neither another encoder nor another preprocessing finds a file. A damaged file is made again.

Matrix products of another size may round differently. For each number of pictures that an encoder reads at once, the
first such batch is encoded three times: where each picture gives the same bits alone, its file is good for any such
number; where it does not, for this number only; where its place in the batch changes bits, none is kept.

Sound is encoded anew in every epoch: a clip's last bits depend on what it is padded to, that is on its batch.
"""

import json
import os
import time
import zlib
from collections.abc import Mapping
from functools import partial
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
from xllm.modeling_xllm.tower_sources import tower_of
from xllm.training.data.augmentation import Augmentation
from xllm.training.recipes.strict import RecipeError
from xllm.training.saving.lineage import tensor_digest


logger = logging.get_logger(__name__)

PARTS = ".parts"  # files are written here and then moved to their place
OLD_PARTS = 3600  # seconds after which nobody is writing one any more
ALONE, NEVER = 0, -1  # in place of a number of pictures


def picture_rows(model: Any, modalities: list[str]) -> list[str]:
    """Those of the modalities whose encoder reads pictures one by one, frames of videos too."""
    encoders = {name: model.config.modalities[name].encoder for name in modalities}
    towers = {name: model.model.tower(encoder) for name, encoder in encoders.items() if encoder is not None}
    return [name for name, tower in towers.items() if tower.main_input_name == "pixel_values"]


def check_cached_rows(model: Any, modalities: list[str], folder: str, augmentation: Augmentation, where: str) -> None:
    """See that `cache_features` of a stage can have an effect; say what is encoded in every epoch all the same.

    Raises:
        RecipeError: no row of the stage reads pictures, they are changed by chance before they are encoded, or
            `folder` is a file.
    """
    cached = picture_rows(model, modalities)
    others = [name for name in modalities if name not in cached and model.config.modalities[name].encoder is not None]
    reason = "a clip's last bits depend on the clips that it is padded with"
    if not cached:
        what = f"{', '.join(others)} cannot be kept, {reason}" if others else "this stage runs no encoder"
        raise RecipeError(f"{where}.data.cache_features: {what}; leave it out")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise RecipeError(
            f"{where}.data.cache_features: {folder} is a file; name a folder, it is made if there is none"
        )
    if augmentation.handles("picture"):
        raise RecipeError(
            f"{where}.data: augment changes the pictures in every epoch, so that cache_features would find none of "
            "them again; leave one of them out"
        )
    if others:
        logger.warning(f"{where}.data.cache_features keeps nothing of {', '.join(others)}, for {reason}")


class FeatureCache:
    """While it is entered, the frozen picture encoders of `model` answer from files where they can.

    Args:
        folder: see the module's first lines; made where there is none, and shared by any number of runs and ranks.
        model: an X-LLM, or a stage-1 model.
        frozen (`Mapping`): name -> digest of the model's frozen tensors (`FreezeReceipt.before`).

    `counts` says of how many pictures the features were read (`features_read`), computed (`features_computed`), found
    damaged (`features_damaged`) and could not be written (`features_unwritten`).

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
        for row in picture_rows(model, list(model.config.modalities)):
            name = tower_of(model.config.modalities[row].encoder)
            tower = model.model.tower(model.config.modalities[row].encoder)
            if is_trainable(tower):
                continue
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
            tower.forward = partial(self._forward, name, tower.forward)
        return self

    def __exit__(self, *_) -> None:
        for name, tower in self._towers.items():
            del tower.forward  # what its class says holds again
            if self._own_forwards[name] is not None:
                tower.forward = self._own_forwards[name]

    def _forward(self, name: str, encode: Any, pictures: torch.Tensor, **kwargs) -> Any:
        """The encoder's `forward` for `(R, 3, H, W)`."""
        if kwargs or self._towers[name].training or not len(pictures):
            return encode(pictures, **kwargs)
        about = [self._fingerprints[name], circumstances(pictures)]
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
            if value is None and company != NEVER:
                self._write(file, hidden)
        return output

    def _company(self, name: str, encode: Any, pictures: torch.Tensor, about: list[str]) -> int:
        """With how many others a picture must be encoded for the same bits: this number, `ALONE` or `NEVER`."""
        key = (*about, *pictures.shape)
        if key not in self._companies:
            if is_sharded(self._towers[name]):
                raise ValueError(
                    "data.cache_features: the processes hold parts of the encoder and must run it together; leave it "
                    "out, or let each hold all of it (DDP, ZeRO-2)"
                )
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


@torch.no_grad()
def _compare(encode: Any, pictures: torch.Tensor) -> int:
    together = encode(pictures).last_hidden_state
    if not together.is_contiguous():  # read from files it would be, and what reads it might round differently
        return NEVER
    if all(torch.equal(encode(one[None]).last_hidden_state[0], own) for one, own in zip(pictures, together)):
        return ALONE
    moved = encode(pictures.roll(1, 0)).last_hidden_state.roll(-1, 0)
    return len(pictures) if torch.equal(moved, together) else NEVER


__all__ = ["FeatureCache", "check_cached_rows", "circumstances", "picture_rows"]
