# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Instruction data as a folder: media, messages as JSON lines that peers read too, and a card.

| file                    | holds                                                                           |
|-------------------------|---------------------------------------------------------------------------------|
| KIND.train.jsonl, .test | `{"messages", "images", "videos", "audios"}`, tags in the texts, as ms-swift    |
|                         | reads, and the `task`                                                           |
| media/                  | each medium once, by its contents; questions that were synthesised              |
| dataset_info.json       | what LLaMA-Factory wants to know (`dataset_dir` is the folder)                  |
| README.md               | the card: counts, sources, licences, fingerprint                                |

The folder is filled beside its place and renamed when all of it is there and has been read back. A build that was
killed goes on where it stopped if it is started again with the same arguments; the bytes are the same either way.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xllm.modeling_xllm.conversion.output import check_unused
from xllm.processing.audio_decoding import load_audio, resample
from xllm.processing.media_kinds import PAPER_KINDS
from xllm.processing.media_sources import MediaError, open_media
from xllm.training.data.media_rows import DataError
from xllm.training.data.sources import iterate_source
from xllm.training.instructions.building import KINDS, TEST, TRAIN, Draft, Medium, Settings, Spoken, content, draft_all
from xllm.training.instructions.speech_synthesis import synthesise, wav_bytes
from xllm.training.progress import ProgressLine
from xllm.training.recipes.recipe import SourceSpec


ESPEAK = "espeak-ng"
SAMPLING_RATE = 16_000  # Hz, of synthesised speech
BATCH = 100  # utterances of one child process
STATE, LOCK = ".state", ".lock"  # of a build that has not ended
COLUMNS = {kind.type: f"{kind.type}s" for kind in PAPER_KINDS}


@dataclass
class Output:
    """How instruction data are written.

    Args:
        synthesiser (`str`): "espeak-ng", or a command with {text}, {file} (.wav), and {language} (en, zh) if needed.
        refers (`bool`): name files where they are, relative to the folder, instead of copying them.
        licences (`dict[str, str]`): name of a source, or "" for all -> licence; "unknown" where none is given.
    """

    synthesiser: str = ESPEAK
    refers: bool = False
    licences: dict[str, str] = field(default_factory=dict)


def build_instructions(folder: str | Path, settings: Settings, output: Output, stream=None) -> dict[str, Any]:
    """Write the folder.

    Returns:
        `{"samples": {kind: {split: number}}, "media": number, "sha256": fingerprint}`.

    Raises:
        ValueError: `folder` is in use, a source or setting cannot be used. OSError: the folder cannot be written.
    """
    folder = Path(folder)
    check_unused(folder, "; instruction data are built into a new one")
    drafts = draft_all(settings, stream)
    with _folder_of_work(folder, _state(settings, output, drafts), stream) as work:
        names = _write_media(work, folder, drafts, output, stream)
        counts = _write_rows(work, drafts, names, settings)
        found = {"samples": counts, "media": len(set(names.values())), "sha256": _fingerprint(work)}
        (work / "README.md").write_text(_card(folder.name, settings, output, drafts, found), encoding="utf-8")
    return found


def _state(settings: Settings, output: Output, drafts: list[Draft]) -> str:
    """Digest of all that the bytes follow from."""
    said = [[draft.task, draft.split, draft.messages, *map(_identity, draft.media)] for draft in drafts]
    return hashlib.sha256(json.dumps([said, output.synthesiser, output.refers]).encode()).hexdigest()


def _identity(medium: Medium | Spoken) -> Any:
    return medium.name if isinstance(medium, Medium) else asdict(medium.utterance)


@contextmanager
def _folder_of_work(folder: Path, state: str, stream) -> Iterator[Path]:
    """The folder to fill beside `folder`, with what a build that was stopped has left of the same state."""
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another process is building it") from error
        left = work / STATE
        if not left.is_file() or left.read_text(encoding="utf-8") != state:
            for path in work.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            left.write_text(state, encoding="utf-8")
        yield work
        left.unlink()
        (work / LOCK).unlink()
        if folder.exists():
            folder.rmdir()
        work.rename(folder)


# ---- media ----------------------------------------------------------------------------------------------------------


def _write_media(work: Path, folder: Path, drafts: list[Draft], output: Output, stream) -> dict[Any, str]:
    """Copies and speaks what is not there yet; medium -> the name that rows give it."""
    media = list(dict.fromkeys(medium for draft in drafts for medium in draft.media))
    files = [medium for medium in media if isinstance(medium, Medium)]
    spoken = [medium for medium in media if isinstance(medium, Spoken)]
    progress = ProgressLine("build", "medium", len(media), stream)
    names: dict[Any, str] = {}
    for medium in files:
        if output.refers and isinstance(medium.source, str) and os.path.isfile(medium.source):
            names[medium] = os.path.relpath(medium.source, folder)
        else:
            names[medium] = medium.name
            if not (work / medium.name).exists():
                with open_media(content(medium.source)) as (file, _):
                    _put(work / medium.name, file.read())
        progress.update(len(names))
    for start in range(0, len(spoken), BATCH):  # whole batches: what a voice sounds like depends on those before it
        batch = spoken[start : start + BATCH]
        paths = [f"media/speech/{start + index:06}.wav" for index in range(len(batch))]
        if not all((work / path).exists() for path in paths):
            for path, sound in zip(paths, _speak(batch, output.synthesiser, work)):
                _put(work / path, sound)
        names |= dict(zip(batch, paths))
        progress.update(len(names))
    progress.update(len(names), is_last=True)
    return names


def _put(path: Path, data: bytes) -> None:
    """A file, whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _speak(batch: list[Spoken], synthesiser: str, work: Path) -> Iterable[bytes]:
    if synthesiser == ESPEAK:
        waves, rate = synthesise([spoken.utterance for spoken in batch])
        sounds = (resample(samples.astype(np.float32) / 32768, rate, SAMPLING_RATE) for samples in waves)
    else:
        sounds = (_run_synthesiser(synthesiser, spoken, work / "spoken.wav") for spoken in batch)
    return (wav_bytes(sound, SAMPLING_RATE) for sound in sounds)


def _run_synthesiser(command: str, spoken: Spoken, file: Path) -> np.ndarray:
    values = {"{text}": spoken.utterance.text, "{file}": str(file), "{language}": spoken.language}
    arguments = shlex.split(command)
    for name, value in values.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    file.unlink(missing_ok=True)
    try:
        child = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if child.returncode != 0:
            lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
            raise DataError(f"--synthesiser: {lines[-1]} (of {arguments[0]}, for {spoken.utterance.text!r:.60})")
        return load_audio(str(file), SAMPLING_RATE)
    except OSError as error:
        raise DataError(f"--synthesiser: cannot run {arguments[0]}: {error.strerror}") from error
    except MediaError as error:
        raise DataError(f"--synthesiser: {arguments[0]} wrote no sound: {error.reason}") from error
    finally:
        file.unlink(missing_ok=True)


# ---- rows -----------------------------------------------------------------------------------------------------------


def _write_rows(
    work: Path, drafts: list[Draft], names: dict[Any, str], settings: Settings
) -> dict[str, dict[str, int]]:
    """The JSON lines, read back by the loader that training uses; numbers by kind and split."""
    counts: dict[str, dict[str, int]] = {}
    tables = {}
    for kind in settings.kinds:
        for split in (TRAIN, TEST):
            rows = [draft for draft in drafts if (draft.kind, draft.split) == (kind, split)]
            counts.setdefault(kind, {})[split] = len(rows)
            if not rows:
                continue
            file = f"{kind}.{split}.jsonl"
            columns = sorted({COLUMNS[medium.kind] for draft in rows for medium in draft.media})
            lines = []
            for number, draft in enumerate(rows):
                name = f"{kind}-{split}-{number:06}"
                row: dict[str, Any] = {"id": name, "task": draft.task, "messages": draft.messages}
                row |= {column: [] for column in columns}
                for medium in draft.media:
                    row[COLUMNS[medium.kind]].append(names[medium])
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            _put(work / file, "".join(lines).encode())
            _read_back(work / file, rows)
            tables[f"{kind}-{split}"] = _for_llama_factory(file, columns)
    _put(work / "dataset_info.json", (json.dumps(tables, indent=2) + "\n").encode())
    return counts


def _read_back(path: Path, rows: list[Draft]) -> None:
    """The same samples come out of the file as went in.

    Raises:
        DataError: not so; names the row of the source.
    """

    def report(where: str, error: DataError) -> None:
        draft = rows[int(where.rpartition(":")[2]) - 1]
        raise DataError(f"{draft.where}: {str(error).removeprefix(f'{where}: ')}") from error

    samples = iterate_source(SourceSpec(path=str(path)), on_bad=report)
    for sample, draft in zip(samples, rows, strict=True):
        found = Counter(part["type"] for part in sample.parts() if part["type"] != "text")
        if found != Counter(medium.kind for medium in draft.media):
            raise DataError(f"{draft.where}: its media are read back as {dict(found)}")


def _for_llama_factory(file: str, columns: list[str]) -> dict[str, Any]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    names = {"messages": "messages", **{column: column for column in columns}}
    return {"file_name": file, "formatting": "sharegpt", "columns": names, "tags": tags}


# ---- card -----------------------------------------------------------------------------------------------------------


def _fingerprint(work: Path) -> str:
    """SHA-256 over the names and contents of all files, the card aside."""
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name not in (STATE, LOCK, "README.md"))
    digests = {}
    for path in files:
        with path.open("rb") as file:
            digests[path.relative_to(work).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _card(name: str, settings: Settings, output: Output, drafts: list[Draft], found: dict[str, Any]) -> str:
    """The card: facts of this build, the same for the same build."""
    samples = found["samples"]
    licences = {source: output.licences.get(source, output.licences.get("", "unknown")) for source in settings.sources}
    front = ["---", f"license: {json.dumps(_one_licence(licences))}", "tags: [xllm]", "configs:"]
    for kind, splits in samples.items():
        files = [f"  - {{split: {split}, path: {kind}.{split}.jsonl}}" for split, count in splits.items() if count]
        front += [f"- config_name: {kind}", "  data_files:", *files]
    tasks = Counter((draft.task, draft.split) for draft in drafts)
    lines = [
        *front, "---", "", f"# {name}", "",
        "Instruction data for a language model that sees and hears, built by `xllm build-instructions`. Rows are chat",
        f"messages whose tags ({', '.join(f'`<{part}>`' for part in COLUMNS)}) take the files of the columns "
        f"{', '.join(COLUMNS.values())} in order.",
        "", "| samples | train | test |", "|---|---|---|",
        *(f"| {task} | {tasks[task, TRAIN]} | {tasks[task, TEST]} |" for task in dict.fromkeys(t for t, _ in tasks)),
        "", "| | |", "|---|---|",
        f"| media | {found['media']} |",
        f"| held out | {settings.held_out:g} of the media, by their contents: what they show is in one split alone |",
        f"| seed | {settings.seed} |",
        f"| requests | SHA-256 `{_sha256(json.dumps(settings.templates, sort_keys=True))}` |",
        *_voices(settings, output, drafts),
        f"| fingerprint | SHA-256 `{found['sha256']}` (names and contents of all files but this one) |",
        "", "| source | file | licence |", "|---|---|---|",
    ]  # fmt: skip
    for source, specs in settings.sources.items():
        lines += [f"| {source} | {Path(str(spec.path)).name} | {licences[source]} |" for spec in specs]
    return "\n".join([*lines, ""])


def _one_licence(licences: dict[str, str]) -> str:
    """For the head of the card: the licence of all sources, if they have one."""
    found = set(licences.values())
    return found.pop().lower() if len(found) == 1 else "other"


def _voices(settings: Settings, output: Output, drafts: list[Draft]) -> Iterator[str]:
    """How questions are spoken, and which recordings both splits hear."""
    sides = [{medium for draft in drafts if draft.split == split for medium in draft.media} for split in (TRAIN, TEST)]
    if any(isinstance(medium, Spoken) for side in sides for medium in side):
        program = output.synthesiser if output.synthesiser == ESPEAK else shlex.split(output.synthesiser)[0]
        kept = "; the voices of the test split speak nowhere else" if program == ESPEAK else ""
        yield f"| spoken questions | synthesised by {Path(program).name}{kept} |"
    elif settings.sources.get("recordings"):
        both = len(sides[0] & sides[1])
        yield f"| spoken questions | recordings, {both} of them heard in both splits |"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["ESPEAK", "KINDS", "Output", "build_instructions"]
