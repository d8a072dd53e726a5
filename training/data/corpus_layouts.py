# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Folders and files of corpora as they are published, as rows with the columns of a table.

| layout       | told by                                         | read                                               |
|--------------|-------------------------------------------------|----------------------------------------------------|
| saved        | `dataset_dict.json` or `state.json`             | what `datasets` saved; `split`                     |
| aishell      | `transcript/`, `wav/`                           | AISHELL-1; `split` is train, dev or test           |
| kaldi        | `wav.scp` with `text` (`segments`)              | Kaldi                                              |
| aishell2     | `wav.scp` with `trans.txt`                      | AISHELL-2                                          |
| commonvoice  | `clips/` and tables                             | `<split>.tsv`                                      |
| imagefolder  | `metadata.csv`, `.jsonl`, `.parquet`            | `file_name` and other columns; `split`: a folder   |
| (others)     | data files of one ending                        | those whose names tell the split, or all           |
| COCO         | a .json with `images` and `annotations`         | the captions of each image                         |
| VisDial      | a .json with `dialogs` in `data`                | v1.0: dialogues about images of COCO               |

Commands in wav.scp are never run. A transcript without its recording is an error; recordings without a transcript are
left out, and counted in a warning.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from xllm.processing.media_kinds import AUDIO, IMAGE
from xllm.training.data.arrow_rows import choose_split, is_saved, open_saved
from xllm.training.data.media_rows import DataError


logger = logging.get_logger(__name__)

Rows = Iterator[tuple[str, Any]]
INDEX_FILES = ("wav.scp", "text", "trans.txt", "segments")  # naming one names its folder
_ABOVE = ("", "..", "../..")  # the paths of Kaldi's folders begin where its scripts are run
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("dev", "val", "valid", "validation", "eval", "evaluation"), "validation")
_IN_NAME = re.compile(rf"(?:^|[-._/=\s])({'|'.join(_SPLITS)})(?=[-._/\s\d]|$)", re.IGNORECASE)
_OTHER_FILES = ("dataset_infos.json", "dataset_info.json", "config.json", "state.json")
_NUMBERED = re.compile(r"\d{12}\.jpg")
_COCO_SPLITS = ("COCO_train2014", "COCO_val2014", "VisualDialog_val2018", "VisualDialog_test2018")
_CHINESE = r"[\u3400-\u9fff\uf900-\ufaff]"
_BETWEEN_CHINESE = re.compile(rf"(?<={_CHINESE})\s+(?={_CHINESE})")


@dataclass(frozen=True)
class Layout:
    """A kind of folder: what it is told by; its rows, or the data files or the data set (with a name) that have them;
    where its media are, from the folder.
    """

    is_folder: Callable[[Path], bool]
    rows: Callable[[Path, str | None], Rows] | None = None
    files: Callable[[Path, str | None], list[Path]] | None = None
    dataset: Callable[[Path, str | None], tuple[Any, str]] | None = None
    media: tuple[str, ...] = ("",)


# ---- Kaldi, AISHELL -------------------------------------------------------------------------------------------------


def keyed_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, key, rest) of a file of Kaldi's."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such data file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8: {error}") from error
    seen = set()
    for number, line in enumerate(text.splitlines(), start=1):
        key, *rest = line.split(maxsplit=1)[:2] or [""]
        if not key:
            continue
        if key in seen:
            raise DataError(f"{path}:{number}: a second line of {key}")
        seen.add(key)
        yield number, key, rest[0].strip() if rest else ""


def _transcribed(path: Path, transcripts: Path, places: dict[str, dict], what: str) -> Rows:
    left = set(places)
    for number, key, text in keyed_lines(transcripts):
        where = f"{transcripts}:{number}"
        if key not in places:
            raise DataError(f"{where}: {key} is not in {what}")
        left.discard(key)
        yield where, {**places[key], "text": text, "key": key}
    _warn_untold(path, what, left)


def _kaldi_recordings(path: Path) -> dict[str, dict]:
    found = {}
    for number, key, file in keyed_lines(path / "wav.scp"):
        where = f"{path / 'wav.scp'}:{number}"
        if file.endswith("|") or file == "-":
            raise DataError(
                f"{where}: a command ({file:.60}); commands are never run: write the sounds to files first"
            )
        if re.search(r"\.ark(:\d+)?$", file) or not file:
            raise DataError(f"{where}: {file or 'nothing'!r}: expected a sound file; archives are not read")
        found[key] = {AUDIO.type: file}
    return found


def _kaldi_rows(path: Path, transcripts: str) -> Rows:
    recordings = _kaldi_recordings(path)
    places, segments = recordings, path / "segments"
    if segments.is_file():
        places = {}
        for number, key, rest in keyed_lines(segments):
            recording, *times = rest.split()
            try:
                begin, end = map(float, times)
            except ValueError as error:
                raise DataError(
                    f"{segments}:{number}: expected a recording, a start and an end, got {rest!r}"
                ) from error
            if recording not in recordings or not (0 <= begin < end or end == -1):
                raise DataError(f"{segments}:{number}: {rest!r}: no such recording, or an empty span")
            span = {} if end == -1 else {"duration": end - begin}  # -1 is the end of the recording
            places[key] = {**recordings[recording], "offset": begin, **span}
    yield from _transcribed(path, path / transcripts, places, "segments" if segments.is_file() else "wav.scp")


def _aishell_rows(path: Path, split: str | None) -> Rows:
    """AISHELL-1; words are joined, as in its recipes."""
    files = sorted((path / "transcript").glob("*.txt"))
    if len(files) != 1:
        raise DataError(f"{path / 'transcript'}: expected one .txt file of transcripts, found {len(files)}")
    folders = sorted(folder.name for folder in (path / "wav").iterdir() if folder.is_dir())
    chosen = choose_split(folders, split, str(path / "wav"))
    found = {file.stem: file for file in (path / "wav" / chosen).rglob("*.wav")}
    if not found:
        raise DataError(f"{path / 'wav' / chosen}: no .wav file; unpack the archives of the corpus first")
    untold = set(found)
    for number, key, text in keyed_lines(files[0]):
        if key in found:  # the file has the transcripts of all splits
            untold.discard(key)
            text = _BETWEEN_CHINESE.sub("", text)
            yield f"{files[0]}:{number}", {AUDIO.type: str(found[key].resolve()), "text": text, "key": key}
    _warn_untold(path, chosen, untold)


def _warn_untold(path: Path, where: str, untold: set[str]) -> None:
    if untold:
        logger.warning(
            f"{path}: {len(untold)} recordings of {where} have no transcript and are left out ({min(untold)} ...)"
        )


# ---- tables beside media --------------------------------------------------------------------------------------------


def _metadata(path: Path) -> list[Path]:
    return [file for ending in ("csv", "jsonl", "parquet") if (file := path / f"metadata.{ending}").is_file()]


def _has_metadata(path: Path) -> bool:
    return bool(_metadata(path)) or any(_metadata(folder) for folder in path.iterdir() if folder.is_dir())


def _metadata_files(path: Path, split: str | None) -> list[Path]:
    files = _metadata(path)
    if not files:
        folders = {folder.name: folder for folder in sorted(path.iterdir()) if folder.is_dir() and _metadata(folder)}
        files = _metadata(folders[choose_split(list(folders), split, str(path))])
    if len(files) > 1:
        raise DataError(f"{path}: {' and '.join(file.name for file in files)}: expected one of them")
    return files


def _voice_tables(path: Path, split: str | None) -> list[Path]:
    tables = {file.stem: file for file in sorted(path.glob("*.tsv"))}
    return [tables[choose_split(list(tables), split, str(path))]]


def data_files(path: Path, split: str | None, endings: Iterable[str]) -> list[Path]:
    """The data files of a folder, all of one ending, of one split if their names tell splits.

    Raises:
        DataError: none, of several endings, no such split, or a file of no split beside some of one.
    """
    found = defaultdict(list)
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        ending = Path(file.name.lower().removesuffix(".gz")).suffix
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if ending in endings and not is_hidden and file.name not in _OTHER_FILES and file.is_file():
            found[ending].append(file)
    if len(found) != 1:
        held = ", ".join(f"{len(files)} {ending}" for ending, files in found.items())
        below = [one for depth in ("*", "*/*") for one in sorted(path.glob(depth)) if one.is_dir()]
        known = [str(one) for one in below if any(layout.is_folder(one) for layout in FOLDERS.values())]
        raise DataError(
            f"{path}: {'several kinds of data files: ' + held if found else 'a folder without data files'}; "
            f"name {' or '.join(known[:5]) or f'a file, or a glob such as {path}/*.parquet'}"
        )
    (files,) = found.values()
    by_split = defaultdict(list)
    for file in files:
        told = _IN_NAME.findall(str(file.relative_to(path)))
        by_split[_SPLITS[told[-1].lower()] if told else ""].append(file)
    if set(by_split) == {""} and split is None:
        return files
    if "" in by_split:
        raise DataError(f"{by_split[''][0]}: belongs to no split, but other files do; name the files by a glob")
    return by_split[choose_split(sorted(by_split), split and _SPLITS.get(split, split), str(path))]


# ---- COCO -----------------------------------------------------------------------------------------------------------


def is_coco(value: Any) -> bool:
    """Whether a JSON value is a COCO file."""
    return isinstance(value, dict) and isinstance(value.get("images"), list) and "annotations" in value


def coco_rows(value: dict, path: Path) -> Rows:
    """Each image of COCO's captions with all that is said of it."""
    names, captions = {}, defaultdict(list)
    try:
        for index, image in enumerate(value["images"]):
            names[image["id"]] = (f"{path}: images[{index}]", image["file_name"])
        for index, note in enumerate(value["annotations"]):
            if note["image_id"] not in names:
                raise DataError(f"{path}: annotations[{index}]: no image has the id {note['image_id']!r:.40}")
            captions[note["image_id"]].append(note["caption"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: a COCO file without captions: an entry lacks {error}; name captions_*.json"
        ) from error
    if untold := len(names) - len(captions):
        logger.warning(f"{path}: {untold} of {len(names)} images have no caption and are left out")
    for key, texts in captions.items():
        where, name = names[key]
        yield where, {IMAGE.type: name, "text": texts}


# ---- VisDial --------------------------------------------------------------------------------------------------------


def is_visdial(value: Any) -> bool:
    """Whether a JSON value is a file of VisDial v1.0."""
    data = value.get("data") if isinstance(value, dict) else None
    return isinstance(data, dict) and isinstance(data.get("dialogs"), list)


def visdial_rows(value: dict, path: Path) -> Rows:
    """The dialogues about images; questions, which are published without it, get their question mark. Those of the
    test split end with a question that nobody has answered, which is left out. An image is named by its number: see
    `other_names`.
    """
    data, unanswered = value["data"], 0
    for index, dialogue in enumerate(data["dialogs"]):
        where = f"{path}: data.dialogs[{index}]"
        try:
            turns = dialogue["dialog"]
            if turns and "answer" not in turns[-1]:
                turns, unanswered = turns[:-1], unanswered + 1
            texts = [_listed(data, name, turn) for turn in turns for name in ("question", "answer")]
            name = f"{int(dialogue['image_id']):012d}.jpg"
        except (KeyError, IndexError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}".rstrip(": ")
            yield where, DataError(f"{where}: not a dialogue of VisDial v1.0 ({problem})")
            continue
        questions = [text if text.rstrip()[-1:] in ("?", ".", "!") else f"{text.rstrip()}?" for text in texts[::2]]
        if questions:
            questions[0] = f"<{IMAGE.type}>{questions[0]}"
        told = [one for pair in zip(questions, texts[1::2]) for one in pair]
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(turns), told)]
        yield where, {IMAGE.type: name, "messages": messages, "caption": dialogue.get("caption")}
    if unanswered:
        logger.warning(f"{path}: the last question of {unanswered} dialogues has no answer and is left out")


def _listed(data: dict, name: str, turn: dict) -> str:
    """The question or answer that a turn names by its number."""
    number = turn[name]
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{name} {number!r}")
    return str(data[f"{name}s"][number])


def other_names(name: str) -> list[str]:
    """How else an image of COCO, of which the number is known, may be named: as in 2014, in the folders of then."""
    if not _NUMBERED.fullmatch(name):
        return []
    return [f"{folder}{split}_{name}" for split in _COCO_SPLITS for folder in ("", f"{split.removeprefix('COCO_')}/")]


def media_folders(path: Path) -> tuple[Path, ...]:
    """Where the media of a data file may lie besides its own folder: Common Voice's clips, COCO's images by split."""
    split = path.name.split(".")[0].split("_")[-1]
    below = ("clips", split, f"images/{split}", "images")
    return tuple(folder / name for folder in (path.parent, path.parent.parent) for name in below)


def is_kaldi(path: Path) -> bool:
    """Whether a folder is one of Kaldi's, or AISHELL-2's."""
    return (path / "wav.scp").is_file() and any((path / name).is_file() for name in ("text", "trans.txt"))


FOLDERS: dict[str, Layout] = {
    "saved": Layout(is_saved, dataset=open_saved),
    "aishell": Layout(lambda path: (path / "transcript").is_dir() and (path / "wav").is_dir(), rows=_aishell_rows),
    "kaldi": Layout(
        lambda path: is_kaldi(path) and (path / "text").is_file(),
        rows=lambda path, _: _kaldi_rows(path, "text"),
        media=_ABOVE,
    ),
    "aishell2": Layout(is_kaldi, rows=lambda path, _: _kaldi_rows(path, "trans.txt")),
    "commonvoice": Layout(
        lambda path: (path / "clips").is_dir() and any(path.glob("*.tsv")), files=_voice_tables, media=("clips",)
    ),
    "imagefolder": Layout(_has_metadata, files=_metadata_files),
}

__all__ = ["FOLDERS", "INDEX_FILES", "Layout", "Rows", "coco_rows", "data_files", "is_coco", "is_kaldi"]
__all__ += ["is_visdial", "media_folders", "other_names", "visdial_rows"]
