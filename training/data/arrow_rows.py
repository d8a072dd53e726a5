# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Rows of the `datasets` library's files: Parquet, Arrow, saved data sets, data sets of the Hub.

Media are not decoded (torchcodec is not needed) and stay in their file: a sample holds an `ArrowCell`.
Parquet cannot be read row by row, so a file with media is written once as Arrow into the cache of `datasets`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import ArrowCell


_BATCH = 1000  # rows
SPLIT = "train"


def choose_split(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The split that is asked for, by default the training split, or the only one.

    Raises:
        DataError: there is no such split; the message lists them.
    """
    wanted = wanted or (names[0] if len(names) == 1 else SPLIT)
    if wanted not in names:
        raise DataError(f"{where}: no split {wanted!r}; set `split` to one of {', '.join(names) or 'none'}")
    return wanted


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError('this source needs the library datasets: pip install "xllm-transformers[train]"') from error
    return datasets


def _quietly(load: Callable[[], Any], where: str) -> Any:
    """What `datasets` loads, without progress bars; errors in one line."""
    library = _library()
    was_silent = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        return load()
    except (OSError, ValueError, TypeError, RuntimeError, library.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: cannot be opened: {reason:.500}") from error
    finally:
        if not was_silent:
            library.enable_progress_bars()


def open_hub(name: str, config: str | None, split: str | None) -> tuple[Any, str]:
    """A data set of the Hub, `user/name` or `user/name@revision`, and its name for messages; it is fetched once."""
    repository, _, revision = name.partition("@")
    keywords = {"name": config, "revision": revision or None}
    splits = _quietly(lambda: _library().load_dataset(repository, **keywords), name)
    chosen = choose_split(list(splits), split, name)
    return splits[chosen], f"{name}:{chosen}"


def is_saved(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def open_saved(path: Path, split: str | None) -> tuple[Any, str]:
    """What `save_to_disk` has written, and its name for messages."""
    library = _library()
    saved = _quietly(lambda: library.load_from_disk(str(path)), str(path))
    if isinstance(saved, library.DatasetDict):
        chosen = choose_split(list(saved), split, str(path))
        return saved[chosen], f"{path}/{chosen}"
    return saved, str(path)


def dataset_rows(dataset: Any, name: str, begin: int = 0, end: int | None = None) -> Iterator[tuple[str, dict]]:
    """Rows of a `datasets.Dataset`, or of anything with rows; a format or transform that the user set is kept.

    `begin` and `end` choose rows of a data set or list by number.
    """
    if end is not None and (not hasattr(dataset, "format") or dataset.format["type"] is not None):
        yield from ((f"{name}[{index}]", dataset[index]) for index in range(begin, min(end, len(dataset))))
        return
    if not type(dataset).__module__.startswith("datasets."):
        yield from ((f"{name}[{index}]", row) for index, row in enumerate(dataset))
        return
    library = _library()
    if isinstance(dataset, library.IterableDataset):
        dataset = dataset.decode(False)
    if not isinstance(dataset, library.Dataset) or dataset.format["type"] is not None:
        yield from ((f"{name}[{index}]", row) for index, row in enumerate(dataset))
        return
    arrow = dataset.with_format("arrow")
    end = len(arrow) if end is None else min(end, len(arrow))
    for start in range(begin, end, _BATCH):
        table = arrow[start : min(start + _BATCH, end)]
        columns = {column: _values(dataset, start, table, column, name) for column in table.column_names}
        for index in range(table.num_rows):
            yield f"{name}[{start + index}]", {column: values[index] for column, values in columns.items()}


def _media_type(kind: Any) -> bool:
    """Whether an Arrow type is encoded media: bytes, or a struct that holds them."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind[index].name == "bytes" for index in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _values(dataset: Any, start: int, table: Any, column: str, name: str) -> list:
    """Values of a column; of media what is outside the table, and cells for what is inside."""
    from pyarrow import types

    values = table.column(column).combine_chunks()
    if _media_type(values.type):
        media = _without_bytes(values)
        places: list[list] = [[None] for _ in media]
    elif types.is_list(values.type) and _media_type(values.type.value_type):
        flat = iter(_without_bytes(values.flatten()))
        lengths = [length or 0 for length in values.value_lengths().to_pylist()]
        media = [[next(flat) for _ in range(length)] for length in lengths]
        places = [list(range(length)) for length in lengths]
    else:
        return values.to_pylist()

    def cell(index: int, place: int | None, medium: Any) -> Any:
        if not isinstance(medium, _Inside):
            return medium
        label = medium.path or f"{name}[{start + index}].{column}"
        return ArrowCell(dataset, start + index, column, place, label)

    return [
        cell(index, None, held) if places[index] == [None] else [cell(index, n, item) for n, item in enumerate(held)]
        for index, held in enumerate(media)
    ]


class _Inside:
    """A medium whose bytes are in the table; `path` says where they came from."""

    def __init__(self, path: str | None):
        self.path = path


def _without_bytes(values: Any) -> list:
    """For each medium of an array: an `_Inside`, a struct without bytes, or None."""
    from pyarrow import compute, types

    if not types.is_struct(values.type):
        return [_Inside(None) if valid else None for valid in values.is_valid().to_pylist()]
    inside = compute.is_valid(compute.struct_field(values, "bytes")).to_pylist()
    names = [values.type[index].name for index in range(values.type.num_fields) if values.type[index].name != "bytes"]
    others = {name: compute.struct_field(values, name).to_pylist() for name in names}
    found = []
    for index, is_inside in enumerate(inside):
        rest = {name: column[index] for name, column in others.items() if column[index] is not None}
        found.append(_Inside(rest.get("path")) if is_inside else rest or None)
    return found


def parquet_rows(path: Path, place: list[str]) -> Iterator[tuple[str, dict]]:
    """Rows of a Parquet or Arrow file."""
    from pyarrow import parquet

    if not path.exists():
        raise FileNotFoundError
    if path.suffix.lower() == ".arrow":
        yield from dataset_rows(_quietly(lambda: _library().Dataset.from_file(str(path)), str(path)), str(path))
        return
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        inner = [getattr(field.type, "value_type", field.type) for field in schema]
        if not any(map(_media_type, inner)):
            index = 0
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    place[0] = f"{path}[{index}]"
                    yield place[0], row
                    index += 1
            return
    yield from dataset_rows(_quietly(lambda: _library().Dataset.from_parquet(str(path)), str(path)), str(path))


__all__ = ["choose_split", "dataset_rows", "is_saved", "open_hub", "open_saved", "parquet_rows"]
