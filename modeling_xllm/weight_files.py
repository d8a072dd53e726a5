# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Weight files of a checkpoint: reading named tensors, and checking that they are complete and unchanged.

`config.json` holds the SHA-256 of each weight file beside it. Only saving a model writes this record, and only opening
the same folder reads it; a config in memory has none. Whoever changes a weight file by hand removes its entry.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import extract_commit_hash


# Arguments of `from_pretrained` that say how to reach the Hub; they apply to towers too.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
RECORD = "weight_files"  # key of config.json
FLOAT_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # safetensors'


class StageCheckpointError(ValueError, RuntimeError):
    """Weights cannot be read, are not those of the model, or are damaged. (RuntimeError: what transformers raises.)"""


def split_source(source: str) -> tuple[str, str | None]:
    """ "repo@revision" as repository and revision; a path that exists is a path, whatever is in its name."""
    name, _, revision = source.rpartition("@")
    return (source, None) if not name or os.path.exists(source) else (name, revision)


def pinned_revision(source: str, revision: str | None = None, **hub) -> str | None:
    """The commit that `revision` of a Hub repository points to now; for a folder, `revision` itself."""
    if Path(source).is_dir():
        return revision
    return extract_commit_hash(cached_file(source, CONFIG_NAME, revision=revision, **hub), None) or revision


def resolve_source(name_or_path: str, checkpoint: str | os.PathLike) -> str:
    """A source may be given relative to the stage checkpoint's own folder ("../base"), so that both can be moved."""
    if name_or_path.startswith("."):
        return str(Path(checkpoint, name_or_path).resolve())
    return name_or_path


def sub_folder(source: str, name: str, revision: str | None = None, **hub) -> str:
    """A sub-folder of a folder or Hub repository as a local folder, with its adapter and its record of weights."""
    if not os.path.isdir(source):
        source = snapshot_download(source, revision=revision, allow_patterns=f"{name}/*", **hub)
    if not os.path.isdir(folder := os.path.join(source, name)):
        raise StageCheckpointError(f"{source} has no folder {name!r}; leave subfolder out, or name one of its folders")
    return folder


def weight_files(source: str, revision: str | None = None, **hub) -> list[str]:
    """Local paths of the safetensors files of a folder or Hub repository. A damaged index of the shards, or one that
    names files of another folder, is a `StageCheckpointError`; a file that cannot be had an `OSError`."""
    hub["revision"] = revision
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        return [cached_file(source, SAFE_WEIGHTS_NAME, **hub)]
    try:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageCheckpointError(f"{index}: not an index of weight files; save the checkpoint again") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise StageCheckpointError(f"{index}: names {name!r}, which is not a file in the checkpoint's folder")
    return [cached_file(source, name, **hub) for name in names]


def read_tensors(source: str, revision: str | None, wanted: Callable[[str], bool], **hub) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors checkpoint whose names satisfy `wanted`; nothing else is read. Errors are those of
    `weight_files` and `read_safetensors`."""
    tensors = {}
    for shard in weight_files(source, revision, **hub):
        tensors.update(read_safetensors(shard, wanted))
    return tensors


def unread_tensors(path: str, dtype: torch.dtype | None) -> dict[str, Any]:
    """Tensors of a safetensors file by their names, each read when it is asked for (`tensor[...]`).

    Floating-point ones of another type than `dtype` are about to be copied, and are read one by one into memory of
    their own: the pages of a mapped file would stay with the process, beside the copies, until it is closed.
    """
    mapped, read = (safe_open(path, framework="pt", backend=backend) for backend in ("mmap", "pread"))
    tensors = {name: mapped.get_slice(name) for name in mapped.keys()}  # noqa: SIM118
    is_copied = {code for code, stored in FLOAT_TYPES.items() if dtype not in (None, stored)}
    return {name: read.get_slice(name) if one.get_dtype() in is_copied else one for name, one in tensors.items()}


def read_safetensors(path: str, wanted: Callable[[str], bool] = bool) -> dict[str, torch.Tensor]:
    """Tensors of one file whose names satisfy `wanted`, by default all; a damaged file is a `StageCheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    except SafetensorError as error:
        raise StageCheckpointError(f"{path}: damaged: {error}; fetch or save it again") from error


def listed(names: Iterable[str]) -> str:
    """The first three of them, for a message."""
    names = sorted(names)
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def check_fit(
    found: Mapping[str, torch.Tensor | torch.Size],
    wanted: Mapping[str, torch.Tensor | torch.Size],
    source: str,
    target: str = "the model",
) -> None:
    """Raises a `StageCheckpointError` unless `source` holds exactly the tensors (or shapes) `wanted`: it names the
    first few that are missing in `found`, too many, or of another shape."""
    there, needed = (
        {key: list(getattr(value, "shape", value)) for key, value in one.items()} for one in (found, wanted)
    )
    misshapen = sorted(key for key in there.keys() & needed.keys() if there[key] != needed[key])
    groups = (("missing", needed.keys() - there), ("without a place", there.keys() - needed), ("misshapen", misshapen))
    problems = [f"{len(names)} {what}: {listed(names)}" for what, names in groups if names]
    if misshapen:
        problems[-1] += f" ({there[misshapen[0]]}, expected {needed[misshapen[0]]})"
    if problems:
        raise StageCheckpointError(f"{source} does not fit {target}: {'; '.join(problems)}")


@torch.no_grad()
def copy_tensors(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy `found` into the tensors of `target` that have the same names, all (see `check_fit`) or none."""
    check_fit(found, target, source)
    for key, value in target.items():
        value.copy_(found[key])


def check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises a `StageCheckpointError` that names the tensors with NaN or Inf. One pass, 0.1 to 0.2 s of CPU per GB."""
    broken = []
    for name, value in tensors.items():
        # Quantised tensors have their own class; those offloaded to disk are "meta".
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type != "meta"
        if not plain or not value.is_floating_point() or value.itemsize < 2 or not value.numel():
            continue
        if not torch.stack(torch.aminmax(value.detach())).isfinite().all():
            broken.append(name)
    if broken:
        raise StageCheckpointError(f"{source}: NaN or Inf in {len(broken)} of its tensors: {listed(broken)}")


def digests(files: Iterable[str | Path]) -> list[str]:
    """The SHA-256 of each file, in order."""

    def sha256(path: str | Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter
        return list(pool.map(sha256, files))


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A file to write beside `path`, which it replaces as a whole when the block ends; it vanishes if that fails."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def record_weights(folder: str | os.PathLike) -> None:
    """Write the digests of the weight files in `folder` to its config.json, the last step of saving a model. The files
    get the permissions of config.json: safetensors makes them readable by their owner alone."""
    config = Path(folder, CONFIG_NAME)
    if not config.is_file():
        return  # an adapter alone
    is_stored = any(Path(folder, name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    files = weight_files(str(folder)) if is_stored else []  # else in another format
    for file in files:
        shutil.copymode(config, file)
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop(RECORD, None)
    if files:
        settings[RECORD] = dict(zip(map(os.path.basename, files), digests(files)))
    write_json(config, settings)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike, metadata: dict | None = None) -> None:
    """Write a safetensors file, whole or not at all, with the permissions of any new file."""
    with replacing(path) as file:
        file.touch()
        mode = file.stat().st_mode
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, file, metadata={"format": "pt", **(metadata or {})})
        file.chmod(mode)


def read_json(path: Path) -> dict:
    """A JSON object from a file, empty if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: str | os.PathLike, settings: dict) -> None:
    """Replace a JSON file of a checkpoint as a whole: it is the new one or the old one, never half of it."""
    with replacing(path) as aside, open(aside, "w", encoding="utf-8") as file:
        file.write(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def verify_weights(source: str, revision: str | None = None, **hub) -> None:
    """Compare the weight files of a checkpoint with the record in its config.json, if any (0.7 s of CPU per GB);
    raises a `StageCheckpointError` that names the file which differs from what was saved."""
    record = PreTrainedConfig.get_config_dict(source, revision=revision, **hub)[0].get(RECORD)
    if not isinstance(record, dict) or not record:
        return
    files = weight_files(source, revision, **hub)
    if {os.path.basename(file) for file in files} != set(record):
        raise StageCheckpointError(f"{source}: config.json was saved with {listed(record)}, these are other files")
    for file, digest in zip(files, digests(files)):
        if digest != record[os.path.basename(file)]:
            raise StageCheckpointError(
                f"{file}: altered or damaged since it was saved (its SHA-256 is not that of {RECORD} in "
                "config.json); fetch or save it again, or remove the entry if you changed it on purpose"
            )
