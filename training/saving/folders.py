# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A stage's folder belongs to one run: what was asked of it (`stage.json`), and a lock while it is being written.

`--resume` goes on only with the recipe, the data and the model that the folder was begun with; `stage.json` says what
came of a stage that is finished, so that it is not run again. For those who look on, `stages.json` of the output
folder lists the stages of its recipes, and `stopped.json` of a stage says what has ended it before it was done.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, logging

from xllm.modeling_xllm.weight_files import read_json, write_json
from xllm.training.preparing import Prepared


try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

STAGE_FILE = "stage.json"
STAGES_FILE = "stages.json"
STOPPED_FILE = "stopped.json"
ACCUMULATED = "trainer.gradient_accumulation_steps"
OTHER_FOLDER = "choose another output_dir"
# Keys that do not change what is learnt: where data lie (their content has a fingerprint), how a run is watched.
FREE = re.compile(
    r"(.*\.)?data(\.\w+)?\.\d+\.(path|dataset|media_root|name)|data\.cache_(media|features)|"
    r"trainer\.(dataloader_(num_workers|prefetch_factor|pin_memory|persistent_workers|multiprocessing_context)|"
    r"save_\w+|logging_\w+|log_level\w*|report_to|run_name|project|ddp_timeout|disable_tqdm)"
)


class ResumeError(ValueError):
    """A folder that a run cannot go on in: in use, of another recipe, other data or another model."""


def stage_record(prepared: Prepared, seed: int) -> dict[str, Any]:
    """What a stage is asked to do, and by how many: `{"recipe": {dotted key: value}, "data": {"train", "eval"},
    "processes"}`.
    """
    keys = {"seed": seed, **dict(_flat(prepared.spec))}
    data = {"train": prepared.train, "eval": prepared.eval}
    return {
        "recipe": {key: value for key, value in keys.items() if not FREE.fullmatch(key)},
        "data": {name: one.fingerprint() for name, one in data.items() if one is not None},
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(one, f"{at}.{key}" if at else str(key))
    elif value is None or isinstance(value, (str, int, float)):
        yield at, value
    else:
        yield at, type(value).__name__


def read_record(folder: Path) -> dict[str, Any]:
    """What `stage.json` says; empty if the folder is yet to be used.

    Raises:
        ResumeError: the folder is in use, but not by a run that can go on.
    """
    try:
        record = read_json(folder / STAGE_FILE)
    except ValueError as error:
        raise ResumeError(f"{folder / STAGE_FILE}: damaged ({error}); {OTHER_FOLDER}") from error
    is_new = not folder.exists() or (folder.is_dir() and all(path.name[0] == "." for path in folder.iterdir()))
    if not record and not is_new:
        raise ResumeError(f"{folder}: holds no {STAGE_FILE}, so there is no run to go on with; {OTHER_FOLDER}")
    return record


def is_finished(folder: Path) -> bool:
    """Whether a stage was trained and its checkpoint is in place (config.json comes last)."""
    return "result" in read_record(folder) and (folder / CONFIG_NAME).is_file()


def check_same(folder: Path, record: Mapping, now: Mapping) -> None:
    """Raises a `ResumeError` that names the first key that differs between the run of `folder` and this one."""
    old, new = dict(record["recipe"]), dict(now["recipe"])
    if "processes" in record:  # not in folders of older versions
        _check_batches(folder, record, now)
        old.pop(ACCUMULATED, None)
        new.pop(ACCUMULATED, None)
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            raise ResumeError(
                f"{folder}: {key} is {new.get(key)!r}, but the run to go on with has {old.get(key)!r}; give it that "
                f"value, or {OTHER_FOLDER}"
            )
    for name in {**now["data"], **record["data"]}:
        before, after = (one["data"].get(name) or {"samples": 0, "sha256": ""} for one in (record, now))
        if before["sha256"] != after["sha256"]:
            raise ResumeError(
                f"{folder}: data.{name} has changed since the run began: {_counted(after)}, it had "
                f"{_counted(before)} of which some are others; bring the old data back, or {OTHER_FOLDER}"
            )
    if "start" in now and now["start"] != record["start"]:
        raise ResumeError(
            f"{folder}: the model that this stage starts from is not the one it was begun with; bring that back, or "
            f"{OTHER_FOLDER}"
        )


def _check_batches(folder: Path, record: Mapping, now: Mapping) -> None:
    """A step must take as many batches as before: processes and accumulation may change against each other. A stream
    knows its place with another number of processes too, and of a finished stage nothing is trained.
    """
    (taken, before), (takes, after) = (
        (each * one["processes"], each) for one in (record, now) for each in (one["recipe"].get(ACCUMULATED) or 1,)
    )
    is_free = "result" in record or now["recipe"].get("data.streaming")
    if takes != taken and not (is_free and before == after):
        raise ResumeError(
            f"{folder}: a step takes {takes} batches ({ACCUMULATED} {after} x {now['processes']} processes), but in "
            f"the run to go on with {taken} ({before} x {record['processes']}): the data would not go on where they "
            f"stopped; make the product the same, or {OTHER_FOLDER}"
        )


def _counted(data: Mapping) -> str:
    samples = data["samples"]  # of a stream, nobody has counted them
    return f"{samples:,} samples" if isinstance(samples, int) else samples


def check_free(folder: Path) -> None:
    """Raises a `ResumeError` unless `folder` is yet to be made, or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _holder(folder) is not None:
            raise _in_use(folder)
        raise ResumeError(f"{folder}: exists and is not an empty folder; go on there with --resume, or {OTHER_FOLDER}")


def begin(folder: Path, record: Mapping) -> None:
    """The first thing that a run writes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STAGE_FILE, dict(record))


def list_stages(output: Path, stages: Iterable[tuple[Path, Prepared]]) -> None:
    """Write down which stages a recipe has, beside those of other recipes in the same output folder."""
    listed = [{"folder": path.relative_to(output).as_posix(), **_length(stage)} for path, stage in stages]
    names = {one["folder"] for one in listed}
    with locked(output / STAGES_FILE, waits=True):  # of runs that begin together, none loses another's stages
        try:
            before = read_json(output / STAGES_FILE).get("stages", [])
        except ValueError:
            before = []  # damaged; it only lists
        if (now := [*(one for one in before if one["folder"] not in names), *listed]) != before:
            write_json(output / STAGES_FILE, {"stages": now})


def _length(stage: Prepared) -> dict[str, Any]:
    lengths = {f"trainer.{name}": stage.arguments.get(name) for name in ("max_steps", "num_train_epochs")}
    return {"title": stage.title, **{name: value for name, value in lengths.items() if value is not None}}


@contextmanager
def noted_end(folder: Path, is_first: bool) -> Iterator[None]:
    """What ends a stage that has begun, before it is done, is written into its folder, until it is done.

    Args:
        is_first: whether this process is the one that writes.
    """
    stopped = folder / STOPPED_FILE
    try:
        yield
    except ResumeError:
        raise  # nothing was begun
    except BaseException as error:
        if is_first and (folder / STAGE_FILE).is_file():
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # the disk may be full: what ended the stage is said all the same
                note = f"{type(error).__name__}: {error}".removesuffix(": ")
                write_json(stopped, {"state": state, "error": note, "time": round(time.time(), 3)})
        raise
    if is_first:
        stopped.unlink(missing_ok=True)


def lock_name(folder: str) -> str:
    """The name of the lock of a folder, which lies beside it."""
    return f".{folder}.lock"


def _lock_file(folder: Path) -> Path:
    return folder.with_name(lock_name(folder.name))


def _in_use(folder: Path) -> ResumeError:
    return ResumeError(
        f"{folder}: another run (process {_holder(folder) or 'unknown'}) is writing there; wait for it, or "
        f"{OTHER_FOLDER}"
    )


def _holder(folder: Path) -> str | None:
    """The process that holds the lock of a folder, if any."""
    try:
        handle = os.open(_lock_file(folder), os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except OSError:
        return os.read(handle, 32).decode() or "unknown"
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path, waits: bool = False) -> Iterator[None]:
    """The lock of a folder or file. It is the process's own: a killed one leaves none, nor do its loader's workers.

    Raises:
        ResumeError: another process has it, and it is not to wait for that.
    """
    path = _lock_file(folder)
    handle: int | None = None
    path.parent.mkdir(parents=True, exist_ok=True)
    while fcntl is not None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            os.close(handle)
            raise _in_use(folder) from None
        except OSError as error:
            logger.warning(f"{path.parent}: this file system has no locks ({error}); start no second run there")
            break
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)  # its owner has just removed it
    try:
        if handle is not None:
            os.ftruncate(handle, os.write(handle, str(os.getpid()).encode()))
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


__all__ = ["OTHER_FOLDER", "STAGES_FILE", "STAGE_FILE", "STOPPED_FILE", "ResumeError", "begin", "check_free"]
__all__ += ["check_same", "is_finished", "list_stages", "lock_name", "locked", "noted_end", "read_record"]
__all__ += ["stage_record"]
