# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sources that are read as a stream: files by shares, never as a whole.

| source                           | a share from byte `low` to `high` is               | going on in the middle |
|----------------------------------|----------------------------------------------------|------------------------|
| lines of JSON                    | the lines that begin between these bytes           | seeks the byte         |
| .parquet                         | the rows in the same part of their number          | seeks the row group    |
| data sets, saved or of the Hub   | the same                                           | seeks the row          |
| .gz, .csv, .tar, corpora, others | rows spread evenly over all, the same part of them | reads, decodes nothing |

A list of JSON has to be read as a whole: it is refused.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xllm.training.data.arrow_rows import dataset_rows
from xllm.training.data.media_rows import DataError, MediaRows
from xllm.training.data.row_files import is_lines, open_source, read_rows
from xllm.training.data.row_forms import FORMS
from xllm.training.data.samples import Sample
from xllm.training.data.sources import report_unread, sample_of
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.streams.stream_order import Work


_GOLDEN, _BITS = 2654435769, 32  # multiples of the golden ratio fill an interval evenly
_BATCH = 64  # rows of a Parquet file in memory
_COUNTED = 1 << 30  # bytes of a file in which lines are counted to name one
_UNKNOWN = 1 << 40  # size of a source that is no file
Value = tuple[str, Any]  # place and columns; a line of JSON is parsed when its sample is asked for


class StreamSource:
    """A source of a recipe as a stream: files with sizes, rows of a share, samples of rows.

    Args:
        spec (`SourceSpec`): as in a recipe, without `limit`.
        media (`MediaRows`, *optional*): what the model reads.

    Raises:
        DataError: no such file, or one that can only be read as a whole.
    """

    def __init__(self, spec: SourceSpec, media: MediaRows | None = None):
        self.spec, self.media = spec, MediaRows() if media is None else media
        if spec.format not in ("auto", *FORMS):
            raise DataError(f"format is {spec.format!r}; choose one of auto, {', '.join(FORMS)}")
        if spec.limit is not None:
            raise DataError(f"{spec.path or 'dataset'}: `limit` needs the order of the file; a stream has another")
        self.opened = open_source(spec)
        self.name, self.files = self.opened.name, list(self.opened.files)
        self.is_indexed = hasattr(self.opened.dataset, "__len__") and hasattr(self.opened.dataset, "__getitem__")
        if self.files:
            self.sizes = [self._size(file) for file in self.files]
        else:
            self.sizes = [len(self.opened.dataset) if self.is_indexed else _UNKNOWN]
        if not sum(self.sizes):
            raise DataError(f"{spec.path or self.name}: no row is left (there is nothing in it)")

    @staticmethod
    def _size(file: Path) -> int:
        try:
            if file.name.lower().removesuffix(".gz").endswith(".json") and not is_lines(file):
                raise DataError(f"{file}: a JSON list can only be read as a whole; write it as .jsonl to stream it")
            return file.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{file}: no such data file") from error
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error

    def read(self, work: Work) -> Iterator[tuple[Any, Value]]:
        """(token, (place, columns)) of the rows of a share from row `first` on; see `stream_order`.

        Raises:
            DataError: a damaged file; the message names it.
        """
        if self.is_indexed:
            for value in dataset_rows(self.opened.dataset, self.name, work.low + work.first, work.high):
                yield None, value
            return
        size, path = max(self.sizes[work.shard], 1), self.files[work.shard] if self.files else Path(self.name)
        try:
            if not self.files:
                yield from _spread(open_source(self.spec).rows, work, size)
            elif path.suffix.lower() == ".parquet":
                yield from _row_groups(path, work, size)
            elif not is_lines(path):
                yield from _spread(read_rows(path), work, size)
            elif path.suffix.lower() == ".gz":
                yield from _spread(_compressed_lines(path), work, size)
            else:
                yield from _lines(path, work)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such data file") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut off: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error

    def sample(self, value: Value) -> Sample | None:
        """The sample of a row, or `None` if `where` and `exclude` leave it out.

        Raises:
            DataError: see `load_source`.
        """
        where, columns = value
        if isinstance(columns, bytes):
            try:
                columns = json.loads(columns)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {error}") from error
        return sample_of(self.spec, where, columns, self.media, self.opened)

    @staticmethod
    def named(where: str) -> str:
        """A place in a file of lines by the number of its line, unless the file would take seconds to count."""
        path, _, byte = where.rpartition(", byte ")
        if not path or not byte.isdigit() or int(byte) > _COUNTED:
            return where
        left, lines = int(byte), 1
        with open(path, "rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                left, lines = left - len(block), lines + block.count(b"\n")
        return f"{path}:{lines}"

    def check(self, is_strict: bool = True, most: int = 100) -> list[Sample]:
        """The first samples of the largest file, so that what is wrong with all rows is found before training; what
        nobody reads is named in a warning.

        Raises:
            DataError: see `load_source`; without `is_strict` only if none of `most` rows can be used.
        """
        shard = max(range(len(self.sizes)), key=self.sizes.__getitem__)
        unread: Counter[str] = Counter()
        broken: DataError | None = None
        found: list[Sample] = []
        for _, (_, value) in zip(range(most), self.read(Work(0, shard, 0, self.sizes[shard]))):
            try:
                if (sample := self.sample(value)) is not None:
                    found.append(sample)
                    unread.update(sample.unread)
            except DataError as error:
                broken = DataError(str(error).replace(value[0], self.named(value[0])))
                if is_strict:
                    raise broken from error
        if broken is not None and not found:
            raise broken
        report_unread(self.spec.path or self.name, len(found), unread)
        return found

    def fingerprint(self) -> dict:
        """`{"names", "samples", "bytes", "sha256"}`: over the files' names and sizes, not over what they hold or when
        they were written; `samples` says how many files there are, as nobody has counted their rows.
        """
        held = [[file.name, size] for file, size in zip(self.files, self.sizes)] or [["dataset", *self.sizes]]
        digest = hashlib.sha256(json.dumps(held, ensure_ascii=False).encode()).hexdigest()
        files = f"{len(held)} file{'s' * (len(held) != 1)}, streamed"
        return {"names": [self.name], "samples": files, "bytes": sum(self.sizes), "sha256": digest}


def _lines(path: Path, work: Work) -> Iterator[tuple[Any, Value]]:
    """Lines of JSON that begin in the share; the token is the byte where one begins."""
    with path.open("rb") as file:
        skipped = work.first if work.token is None else 0
        offset = work.low if work.token is None else work.token
        if work.low and work.token is None:  # the line that holds the byte before belongs to the share before
            file.seek(work.low - 1)
            offset += len(file.readline()) - 1
        file.seek(offset)
        while offset < work.high and (line := file.readline()):
            token, offset = offset, offset + len(line)
            if not line.strip():
                continue
            if skipped:
                skipped -= 1
            else:
                yield token, (f"{path}, byte {token}", line)


def _row_groups(path: Path, work: Work, size: int) -> Iterator[tuple[Any, Value]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            begin, end = rows * work.low // size + work.first, rows * work.high // size
            stop = 0
            for group in range(file.metadata.num_row_groups):
                at, stop = stop, stop + file.metadata.row_group(group).num_rows
                if stop <= begin:
                    continue
                for batch in file.iter_batches(_BATCH, row_groups=[group]):
                    first = min(max(begin - at, 0), batch.num_rows)
                    kept = batch.slice(first, max(end - at - first, 0))
                    for index, row in enumerate(kept.to_pylist(), start=at + first):
                        yield None, (f"{path}[{index}]", row)
                    at += batch.num_rows
                    if at >= end:
                        return
    except ArrowException as error:
        raise DataError(f"{path}: not parquet, damaged or cut off: {error}") from error


def _spread(rows: Any, work: Work, size: int) -> Iterator[tuple[Any, Value]]:
    low, high = ((at << _BITS) // size for at in (work.low, work.high))
    skipped = work.first
    for index, value in enumerate(rows):
        if low <= index * _GOLDEN % (1 << _BITS) < high:
            if skipped:
                skipped -= 1
            else:
                yield None, value


def _compressed_lines(path: Path) -> Iterator[Value]:
    with gzip.open(path) as file:
        yield from ((f"{path}:{number}", line) for number, line in enumerate(file, start=1) if line.strip())


__all__ = ["StreamSource"]
