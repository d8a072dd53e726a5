# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A file, a folder, a glob or a Hub id as rows: (place, columns), one after the other.

| ending                          | holds                                                                         |
|---------------------------------|-------------------------------------------------------------------------------|
| .jsonl, .ndjson                 | an object per line                                                            |
| .json                           | a list, `{"data": [...]}`, COCO, VisDial, or an object per line               |
| .csv, .tsv                      | a line of column names, and cells between `,` `;` `|` or tabs                 |
| .parquet, .arrow                | columns; media as structs of bytes and path stay in their file                |
| .tar                            | WebDataset: members of one key are a row; media stay in their file            |

Text files may be compressed (`.gz`) and begin with a byte order mark. What else a folder may be is in
`corpus_layouts`.
"""

import csv
import glob
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xllm.training.data import corpus_layouts, llama_factory
from xllm.training.data.arrow_rows import dataset_rows, open_hub, parquet_rows
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import FileSlice
from xllm.training.data.spoken_rows import spoken_rows
from xllm.training.recipes.recipe import SourceSpec


csv.field_size_limit(1 << 30)  # base64 in a cell
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB = "hf://"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_TEXT = 1 << 26  # bytes of a text or JSON member of a tar


@dataclass
class Opened:
    """A source: its name, its rows as (place, columns), the folders that relative paths may start from, and, where the
    rows are those of data files or of a data set, these; `renamed` gives the columns their common names.
    """

    name: str
    rows: Iterable[tuple[str, Any]]
    roots: tuple[Path, ...]
    files: Sequence[Path] = ()
    dataset: Any = None
    renamed: Callable[[Any], Any] = lambda columns: columns


def open_source(spec: SourceSpec) -> Opened:
    """What a source names, opened; its rows are read when they are asked for.

    Raises:
        DataError: nothing there, or nothing that can be told; also on reading, with the place.
    """
    if sum(given is not None for given in (spec.path, spec.dataset, spec.speak)) != 1:
        raise DataError("a data source has either a `path` or `speak` or, from Python, a `dataset`")
    if spec.speak is not None:
        name = spec.name or "speak"
        return Opened(name, spoken_rows(name, spec.speak), (Path("."),))
    if spec.path is None:
        return _of_dataset(spec.dataset, spec.name or "dataset", Path(spec.media_root or ".").expanduser())
    path = Path(spec.path).expanduser()
    if spec.path.startswith(_HUB) or (_HUB_ID.fullmatch(spec.path) and not path.exists() and not is_data_file(path)):
        name = spec.path.removeprefix(_HUB).removeprefix("datasets/")
        opened = _of_dataset(*open_hub(name, spec.config, spec.split), Path("."))
    else:
        opened = _open_local(path, spec)
    opened.name = spec.name or _stem(path)
    if spec.media_root is not None:
        opened.roots = (Path(spec.media_root).expanduser(),)
    return opened


def _of_dataset(dataset: Any, name: str, root: Path) -> Opened:
    return Opened(name, dataset_rows(dataset, name), (root,), dataset=dataset)


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _open_local(path: Path, spec: SourceSpec) -> Opened:
    if path.name in corpus_layouts.INDEX_FILES and corpus_layouts.is_kaldi(path.parent):
        path = path.parent
    if (entry := llama_factory.find(path, spec.config)) is not None:
        path = entry.file
    if path.is_dir():
        layout = next((layout for layout in corpus_layouts.FOLDERS.values() if layout.is_folder(path)), None)
        if layout is not None and layout.rows is not None:
            return Opened("", layout.rows(path, spec.split), tuple(path / up for up in layout.media))
        if layout is not None and layout.dataset is not None:
            return _of_dataset(*layout.dataset(path, spec.split), path)
        if layout is not None and layout.files is not None:
            files = layout.files(path, spec.split)
            roots = (*(file.parent for file in files), *(path / name for name in layout.media))
        else:
            files = corpus_layouts.data_files(path, spec.split, [*READERS])
            roots = (path, *(root for file in files[:1] for root in corpus_layouts.media_folders(file)))
            roots += tuple(file.parent for file in files)
    elif path.exists() or not re.search(r"[*?\[{]", str(path)):
        files, roots = [path], (path.parent, path.resolve().parent, *corpus_layouts.media_folders(path))
    else:
        files = _matching(str(path))
        roots = tuple(file.parent for file in files)
    opened = Opened("", _rows_of_files(files), tuple(dict.fromkeys(roots)), files)
    if entry is not None:
        opened.renamed = entry.renamed
    return opened


def _matching(pattern: str) -> list[Path]:
    """Files of a glob, or of a numbered range in braces, as WebDataset writes it."""
    if found := _BRACES.search(pattern):
        first, last = found.groups()
        if int(last) - int(first) >= 1_000_000:
            raise DataError(f"{pattern}: a range of more than a million files")
        names = [pattern.replace(found[0], f"{n:0{len(first)}}") for n in range(int(first), int(last) + 1)]
        return [file for name in names for file in (_matching(name) if re.search(r"[*?\[{]", name) else [Path(name)])]
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not files:
        raise DataError(f"{pattern}: no file matches")
    return files


def _rows_of_files(files: Iterable[Path]) -> Iterator[tuple[str, dict]]:
    for file in files:
        yield from read_rows(file)


def _kind_of_file(path: Path) -> tuple[str, bool]:
    """Ending of a data file in lower case, and whether it is compressed."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    return PurePosixPath(plain).suffix, plain != name


def is_data_file(path: Path) -> bool:
    """Whether a file's ending is that of a data file."""
    return _kind_of_file(path)[0] in READERS


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, row) of each row of a data file; instead of a line that cannot be read there is the `DataError`.

    Raises:
        DataError: no such file, unknown ending, not that format, cut off; the message names file and line.
    """
    ending, is_compressed = _kind_of_file(path)
    reader = READERS.get(ending)
    if reader is None or (is_compressed and reader not in _TEXT_READERS):
        raise DataError(f"{path}: unknown kind of data file; use {', '.join(READERS)}, the text files also with .gz")
    place = [str(path)]
    try:
        if reader in _TEXT_READERS:
            with gzip.open(path) if is_compressed else path.open("rb") as binary:
                yield from reader(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), path, place)
        else:
            yield from reader(path, place)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such data file") from error
    except DataError:
        raise
    except (EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{place[0]}: damaged or cut off: {error}") from error
    except OSError as error:
        raise DataError(f"{place[0]}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place[0]}: not UTF-8, save it as UTF-8: {error}") from error
    except (ValueError, csv.Error, RecursionError) as error:  # also of json, pyarrow
        what = "JSON" if ending in (".json", ".jsonl", ".ndjson") else ending[1:]
        raise DataError(f"{place[0]}: not {what}: {error}") from error


# ---- text files -----------------------------------------------------------------------------------------------------


def _read_lines(file: io.TextIOWrapper, path: Path, place: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        place[0] = f"{path}:{number}"
        if line.strip():
            if number == 1 and line.lstrip().startswith("["):
                raise DataError(
                    f"{place[0]}: a JSON list where an object per line is expected; name such a file .json"
                )
            try:
                yield place[0], json.loads(line)
            except (ValueError, RecursionError) as error:  # of this line alone
                yield place[0], DataError(f"{place[0]}: not JSON: {error}")


def _read_json(file: io.TextIOWrapper, path: Path, place: list[str]) -> Iterator[tuple[str, dict]]:
    head = next((line for line in file if line.strip()), "")
    file.seek(0)
    if _is_whole_object(head) and not _is_container(json.loads(head)):
        yield from _read_lines(file, path, place)
        return
    rows = json.load(file)
    if corpus_layouts.is_coco(rows):
        yield from corpus_layouts.coco_rows(rows, path)
        return
    if corpus_layouts.is_visdial(rows):
        yield from corpus_layouts.visdial_rows(rows, path)
        return
    rows = rows["data"] if _is_container(rows) else rows
    if not isinstance(rows, list):
        held = f"an object with {', '.join(rows)}"[:200] if isinstance(rows, dict) else type(rows).__name__
        raise DataError(
            f'{path}: expected a JSON list of samples, {{"data": [...]}}, or an object per line (.jsonl), got {held}'
        )
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))


def is_lines(path: Path) -> bool:
    """Whether a data file holds a JSON object per line, whatever its ending is."""
    ending, is_compressed = _kind_of_file(path)
    if ending != ".json":
        return READERS.get(ending) is _read_lines
    with gzip.open(path) if is_compressed else path.open("rb") as file:
        lines = iter(lambda: file.readline(_MOST_TEXT).decode("utf-8-sig", "replace"), "")
        head = next((line for line in lines if line.strip()), "")
    return _is_whole_object(head) and not _is_container(json.loads(head))


def _is_whole_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_container(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("data"), list) or corpus_layouts.is_coco(value) or corpus_layouts.is_visdial(value)


def _read_table(file: io.TextIOWrapper, path: Path, place: list[str]) -> Iterator[tuple[str, Any]]:
    head = file.readline()
    file.seek(0)
    counts = {mark: re.sub(r'"[^"]*"', "", head).count(mark) for mark in "\t,;|"}
    mark = max(counts, key=counts.__getitem__)
    if not counts[mark]:
        mark = "\t" if _kind_of_file(path)[0] == ".tsv" else ","
    spaced = mark + " " in head
    reader = csv.reader(file, delimiter=mark, strict=True, skipinitialspace=spaced) if mark != "\t" else None
    cells = map(_split_tabs, file) if reader is None else reader
    names: list[str] | None = None
    for number, row in enumerate(cells, start=1):
        place[0] = f"{path}:{number if reader is None else reader.line_num}"
        if names is None:
            names = [name.strip() for name in row]
            names[:1] = [names[0] or "index"] if len(names) > 1 else names  # pandas writes it without a name
            if len(set(names)) < len(names) or not all(name.strip() for name in names):
                raise DataError(f"{place[0]}: expected a line of column names, all different, got {', '.join(names)}")
        elif row and row != [""]:
            wrong = DataError(f"{place[0]}: {len(row)} cells, but {len(names)} columns: {', '.join(names)}")
            yield place[0], dict(zip(names, row)) if len(row) == len(names) else wrong


def _split_tabs(line: str) -> list[str]:
    """Cells between tabs. A quote is a letter, unless it opens and closes the cell and those inside are doubled."""
    cells = line.rstrip("\r\n").split("\t")
    return [
        cell[1:-1].replace('""', '"')
        if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
        else cell
        for cell in cells
    ]


# ---- tars -----------------------------------------------------------------------------------------------------------


def _read_tar(path: Path, place: list[str]) -> Iterator[tuple[str, dict]]:
    """Members whose names are equal up to the first dot of the last part are a row."""
    row: dict[str, Any] = {}
    with tarfile.open(path, "r:") as file:
        for member in file:
            place[0] = f"{path}/{member.name}"
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(f"{place[0]}: a link or special file; a data file holds plain files only")
            folder, _, base = member.name.rpartition("/")
            if base.startswith("._"):
                continue  # what a Mac adds to a file
            stem, _, ending = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if row and row["__key__"] != key:
                yield f"{path}/{row['__key__']}", row
                row = {}
            row["__key__"] = key
            name = ending.lower()
            if name in row:
                raise DataError(f"{place[0]}: a second {name} of the same sample")
            row[name] = FileSlice(str(path), member.offset_data, member.size, f"{path}/{member.name}")
            if name.rpartition(".")[2] in ("txt", "json", "caption", "text", "transcript"):
                row[name] = _read_member(row[name])
        end = file.offset
    if FileSlice(str(path), end, tarfile.BLOCKSIZE, "").read() != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end of the archive where its members end")  # tarfile takes it for the end
    if row:
        yield f"{path}/{row['__key__']}", row


def _read_member(member: FileSlice) -> Any:
    if member.size > _MOST_TEXT:
        raise DataError(f"{member.name}: {member.size} bytes of text, expected at most {_MOST_TEXT}")
    is_json = member.name.lower().endswith(".json")
    try:
        text = member.read().decode("utf-8-sig")
        return json.loads(text) if is_json else text.strip()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{member.name}: not {'JSON' if is_json else 'UTF-8'}: {error}") from error


READERS: Mapping[str, Callable] = {
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": parquet_rows,
    ".arrow": parquet_rows,
    ".tar": _read_tar,
}
_TEXT_READERS = (_read_lines, _read_json, _read_table)

__all__ = ["READERS", "Opened", "is_lines", "open_source", "read_rows"]
