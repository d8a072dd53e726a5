# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What streaming costs: rows per second of a stream of text, and memory, against reading the same file once, in order.

    python benchmarks/streaming.py [--rows 200000]    one line of JSON per kind of file

`ratio` is seconds of the stream (24 lanes, one process, shuffled, samples made, nothing to decode) over seconds of
reading the rows once and making the same samples. `first_batch` is the time to it, `peak_mb` what the stream adds to
the process.
"""

import argparse
import gzip
import json
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny
from xllm.training.data.sources import iterate_source
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.streams.stream_files import StreamSource
from xllm.training.streams.streaming import StreamingDataset


def peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(folder: Path, kind: str, rows: int) -> Path:
    """A file of `rows` texts of about 200 letters."""
    path = folder / f"rows.{kind}"
    texts = ({"text": f"{number} " + "word " * 40} for number in range(rows))
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(texts)), path, row_group_size=2000)
        return path
    with gzip.open(path, "wt") if kind.endswith("gz") else path.open("w", encoding="utf-8") as file:
        file.write("text\n" * (kind == "csv"))
        file.writelines(row["text"] + "\n" if kind == "csv" else json.dumps(row) + "\n" for row in texts)
    return path


def measure(processor, path: Path, rows: int) -> dict:
    """Seconds of a stream and of one reading in order."""
    source = {"path": str(path), "modality": "text", "prompts": ["?"]}
    before, start = peak(), time.perf_counter()
    data = StreamingDataset([StreamSource(SourceSpec(**source))], processor)
    data.place(batch_size=8)
    batches = iter(data)
    next(batches)
    first = time.perf_counter() - start
    for _ in islice(batches, rows // 8 - 1):
        pass
    streamed = time.perf_counter() - start
    held = peak() - before
    start = time.perf_counter()
    count = sum(1 for _ in iterate_source(SourceSpec(**source)))
    read = time.perf_counter() - start
    assert count == rows
    ratio = round(streamed / read, 2)
    figures = {"rows": rows, "mb": round(path.stat().st_size / 1e6), "rows_per_s": round(rows / streamed)}
    return {**figures, "ratio": ratio, "first_batch_s": round(first, 2), "peak_mb": round(held)}


def main() -> None:
    """One line per kind of file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        processor = load_checkpoint(str(build_tiny(Path(name, "model"))))[1]
        for kind in ("jsonl", "parquet", "jsonl.gz", "csv"):
            print(json.dumps({"kind": kind, **measure(processor, write(Path(name), kind, rows), rows)}))


if __name__ == "__main__":
    main()
