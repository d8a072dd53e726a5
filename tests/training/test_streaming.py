# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Data that are never read as a whole: shares of files, batches of a stream, and a run that goes on in epoch 2."""

import gzip
import hashlib
import io
import json
import tarfile
from collections import Counter
from itertools import islice

import pyarrow
import pytest
import torch
from datasets import Dataset
from pyarrow import parquet
from torch.utils.data import DataLoader

from xllm.training.data.augmentation import Augmentation, Gain
from xllm.training.data.long_media import LongMedia
from xllm.training.data.media_rows import DataError
from xllm.training.preparing import prepare
from xllm.training.recipes.recipe import RecipeError, SourceSpec, StageSpec, load_recipe
from xllm.training.recipes.strict import build
from xllm.training.streams import stream_files
from xllm.training.streams.stream_files import StreamSource
from xllm.training.streams.stream_order import Mark, Work, cut_shares
from xllm.training.streams.streaming import StreamBatch, StreamingDataset


def write(path, rows):
    """Rows as the file that `path` names."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(lines)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as file:
            for number, row in enumerate(rows):
                data = json.dumps(row).encode()
                member = tarfile.TarInfo(f"{number:05}.json")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    elif path.suffix == ".saved":
        Dataset.from_list(rows).save_to_disk(path)
    elif path.suffix == ".csv":
        path.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    else:
        path.write_text(lines)
    return path


def texts(count, name="t", start=0):
    return [{"text": f"{name}{number}"} for number in range(start, start + count)]


FILES = ["a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.csv", "a.tar", "a.saved"]


def source_of(path, **fields):
    return StreamSource(SourceSpec(path=str(path), modality="text", prompts=["?"], **fields))


def answers(samples):
    return [sample["messages"][-1]["content"][0]["text"] for sample in samples]


def read_share(source, work):
    return [source.sample(value).answers[0] for _, value in source.read(work)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("lanes", [1, 3, 24, 100])
def test_the_shares_of_a_file_hold_each_row_once(tmp_path, name, lanes):
    source = source_of(write(tmp_path / name, texts(50)))
    _, shard, low, high = cut_shares(torch.tensor(source.sizes).numpy(), lanes, [0])
    shares = [read_share(source, Work(0, *map(int, row))) for row in zip(shard, low, high)]
    assert Counter(sum(shares, [])) == Counter(row["text"] for row in texts(50))
    assert max(map(len, shares)) <= 50 // lanes + 3


@pytest.mark.parametrize("kind", ["list", "Dataset", "IterableDataset", "Kaldi"])
def test_the_shares_of_what_is_no_file_hold_each_row_once(tmp_path, media, kind):
    rows = texts(50)
    spec = {"modality": "text", "prompts": ["?"]}
    if kind == "Kaldi":
        (tmp_path / "wav.scp").write_text("".join(f"u{n} {media / 'low.wav'}\n" for n in range(50)))
        (tmp_path / "text").write_text("".join(f"u{n} t{n}\n" for n in range(50)))
        source = StreamSource(SourceSpec(path=str(tmp_path)))
    else:
        data = {"list": rows, "Dataset": Dataset.from_list(rows), "IterableDataset": Dataset.from_list(rows)}[kind]
        data = data.to_iterable_dataset() if kind == "IterableDataset" else data
        source = StreamSource(SourceSpec(dataset=data, **spec))
    _, shard, low, high = cut_shares(torch.tensor(source.sizes).numpy(), 7, [0])
    shares = [read_share(source, Work(0, *map(int, row))) for row in zip(shard, low, high)]
    assert Counter(sum(shares, [])) == Counter(row["text"] for row in rows)
    assert max(map(len, shares)) <= 9
    work = Work(0, 0, int(low[3]), int(high[3]))
    assert read_share(source, work._replace(first=3)) == read_share(source, work)[3:]


@pytest.mark.parametrize("name", FILES)
def test_a_share_is_read_from_the_middle(tmp_path, name):
    path = write(tmp_path / name, texts(60))
    if name == "a.jsonl":
        path.write_text("\n\n" + path.read_text().replace('t5"}\n', 't5"}\n\n \n'))  # empty lines are no rows
    source = source_of(path)
    share = Work(0, 0, source.sizes[0] // 4, source.sizes[0])
    rows = list(source.read(share))
    for first in (0, 1, 20, len(rows) - 1):
        assert list(source.read(share._replace(first=first))) == rows[first:]
        assert list(source.read(share._replace(first=first, token=rows[first][0]))) == rows[first:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_empty_lines_are_no_rows(tmp_path, name):
    path = tmp_path / name
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write('\n{"text": "t0"}\n \n\n{"text": "t1"}\n\n')
    source = source_of(path)
    whole = Work(0, 0, 0, source.sizes[0])
    assert read_share(source, whole) == ["t0", "t1"]
    assert [source.named(where) for _, (where, _) in source.read(whole)] == [f"{path}:2", f"{path}:5"]


def test_the_last_line_may_lack_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t0"}\n{"text": "t1"}')
    source = source_of(path)
    for cut in range(path.stat().st_size + 1):
        shares = [Work(0, 0, 0, cut), Work(0, 0, cut, path.stat().st_size)]
        assert sum((read_share(source, share) for share in shares), []) == ["t0", "t1"]


def test_rows_of_files_without_places_are_spread_by_the_golden_ratio(tmp_path):
    """Checkpoints of other versions go on with the same rows; a row at a border is in the share behind it."""
    source = source_of(write(tmp_path / "a.csv", texts(50)))
    low, size = 100, source.sizes[0]
    spread = [row * 2654435769 % 2**32 / 2**32 for row in range(50)]
    expected = [f"t{row}" for row in range(50) if low / size <= spread[row]]
    assert read_share(source, Work(0, 0, low, size)) == expected
    source = StreamSource(
        SourceSpec(dataset=Dataset.from_list(texts(9)).to_iterable_dataset(), modality="text", prompts=["?"])
    )
    assert source.sizes == [2**40]
    border = 2654435769 * 2**8  # of row 1
    shares = [read_share(source, Work(0, 0, *share)) for share in ((0, border), (border, 2**40))]
    assert ["t1" in share for share in shares] == [False, True]
    assert "t1" in read_share(source, Work(0, 0, border, border + 2**8))
    assert sorted(sum(shares, [])) == [row["text"] for row in texts(9)]


def test_rows_of_a_data_set_are_sought(tmp_path):
    source = StreamSource(SourceSpec(dataset=Dataset.from_list(texts(50)), modality="text", prompts=["?"]))
    assert read_share(source, Work(0, 0, 10, 15, first=2)) == ["t12", "t13", "t14"]


def test_only_what_holds_a_share_is_read_of_a_parquet_file(tmp_path, monkeypatch):
    class Counted(parquet.ParquetFile):
        def iter_batches(self, size, row_groups):
            for batch in super().iter_batches(size, row_groups=row_groups):
                read.append((row_groups, batch.num_rows))
                yield batch

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(texts(500)), path, row_group_size=200)
    source, read = source_of(path), []
    source.sizes = [500]  # a byte of each row
    monkeypatch.setattr(parquet, "ParquetFile", Counted)
    for first, last, batches in ((200, 230, [([1], 64)]), (150, 263, [([0], 64)] * 3 + [([0], 8), ([1], 64)])):
        assert read_share(source, Work(0, 0, first, last)) == [f"t{row}" for row in range(first, last)]
        assert read == batches
        read.clear()
    assert read_share(source, Work(0, 0, 0, 500, first=300)) == [f"t{row}" for row in range(300, 500)]


def test_places_are_named_by_lines_unless_the_file_is_long(tmp_path):
    (path := tmp_path / "a.jsonl").write_text("x\n" * 3_000_000)
    found = [StreamSource.named(f"{path}, byte {byte}") for byte in (0, 2, 4_000_000, 1 << 30, (1 << 30) + 1)]
    assert found == [f"{path}:{line}" for line in (1, 2, 2_000_001, 3_000_001)] + [f"{path}, byte {(1 << 30) + 1}"]
    assert [StreamSource.named(where) for where in ("a[3]", "a, byte x", "a:3")] == ["a[3]", "a, byte x", "a:3"]


def test_a_large_file_is_not_read_as_a_whole(tmp_path, tiny_processor, monkeypatch):
    """20 batches of 4 of a million rows: 24 windows of 10 rows, whatever the file's size."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for block in range(100):
            file.write("".join(f'{{"text": "{block * 10_000 + row}"}}\n' for row in range(10_000)))
    taken = Counter()
    original = stream_files._lines

    def counted(*args):
        for row in original(*args):
            taken["rows"] += 1
            yield row

    monkeypatch.setattr(stream_files, "_lines", counted)
    data = StreamingDataset([source_of(path)], tiny_processor, shuffle_buffer=240)
    data.place(batch_size=4)
    batches = list(islice(data, 20))
    assert len({answer for batch in batches for answer in answers(batch.batch)}) == 80
    assert taken["rows"] <= 240


@pytest.fixture
def folder(tmp_path):
    """Three files of two kinds of rows: 40 `a`, 7 `b`, 13 `c`."""
    for name, count in (("a", 40), ("b", 7), ("c", 13)):
        write(tmp_path / f"{name}.jsonl", texts(count, name))
    return tmp_path


def stream(processor, path, ranks=1, rank=0, workers=0, batch_size=2, state=None, **settings):
    data = StreamingDataset([source_of(path)], processor, **{"shuffle_buffer": 72, **settings})
    if state is not None:
        data.load_state_dict(json.loads(json.dumps(state)))
    data.place(rank, ranks, batch_size, workers)
    return data


def take(data, count):
    """Batches of answers, consumed, by real workers where the data set has some."""
    loader = DataLoader(data, batch_size=None, num_workers=data.workers, generator=torch.Generator())
    found = []
    for batch in islice(loader, count):
        data.consume(batch)
        found.append(answers(batch.batch))
    return found


def test_two_workers_give_what_none_gives_and_each_row_comes_once_per_epoch(tiny_processor, folder):
    alone = take(stream(tiny_processor, folder), 120)
    assert take(stream(tiny_processor, folder, workers=2), 120) == alone
    whole = {f"a{n}" for n in range(40)} | {f"b{n}" for n in range(7)} | {f"c{n}" for n in range(13)}
    counts = Counter(answer for batch in alone for answer in batch)
    assert set(counts) == whole
    assert 2 <= min(counts.values()) <= max(counts.values()) <= 6  # 240 draws of 60; lanes of 2 or 3 rows drift


@pytest.mark.parametrize("consumed", [1, 17, 75])
def test_going_on_is_exact_also_in_later_epochs_with_any_workers_and_ranks(tiny_processor, folder, consumed):
    whole = take(stream(tiny_processor, folder), consumed + 24)
    first = stream(tiny_processor, folder, workers=2)  # which fetches ahead of what is consumed
    assert take(first, consumed) == whole[:consumed]
    state = first.state_dict()
    assert take(stream(tiny_processor, folder, workers=3, state=state), 24) == whole[consumed:]
    ranks = [stream(tiny_processor, folder, ranks=2, rank=rank, state=state) for rank in (0, 1)]
    assert [take(data, 12) for data in ranks] == [whole[consumed::2], whole[consumed + 1 :: 2]]
    merged = ranks[0].state_dict([data.progress() for data in ranks])
    assert merged["position"] == consumed + 24
    later = take(stream(tiny_processor, folder), consumed + 30)[-6:]
    assert take(stream(tiny_processor, folder, state=merged), 6) == later


def test_ranks_that_do_not_fit_go_on_with_what_is_left(tiny_processor, folder):
    """What one rank has read, and what five ranks of 24 lanes each then read before a new epoch: each row once."""
    first = stream(tiny_processor, folder, batch_size=1)
    seen = sum(take(first, 20), [])
    ranks = [stream(tiny_processor, folder, 5, n, batch_size=1, state=first.state_dict()) for n in range(5)]
    order, source = ranks[0].orders[0], ranks[0].sources[0]
    assert order.lanes == 120
    for work in (work for lane in range(120) for work in order.work(lane, order.begin)):
        rows = enumerate(source.read(work), start=work.first)
        seen += [source.sample(value).answers[0] for row, (_, value) in rows if work.takes(row)]
    assert len(set(seen)) == 60
    assert set(Counter(seen).values()) == {order.first_epoch}
    dealt = {answer for data in ranks for batch in take(data, 24) for answer in batch}
    assert len(dealt) > 50


def test_workers_that_cannot_share_the_lanes_of_a_rank_are_refused(tiny_processor, folder):
    first = stream(tiny_processor, folder)
    take(first, 1)
    data = stream(tiny_processor, folder, ranks=8, workers=2, state=first.state_dict())  # 24 lanes are three each
    assert data.workers == 1
    with pytest.raises(ValueError, match="2 workers cannot share 3 lanes; ask `place` how many can"):
        next(iter(DataLoader(data, batch_size=None, num_workers=2)))


def test_state_of_other_data_or_settings_is_refused(tiny_processor, folder):
    data = stream(tiny_processor, folder)
    take(data, 3)
    state = data.state_dict()
    with pytest.raises(DataError, match="another shuffle_buffer .72, now 240.: go on with what"):
        stream(tiny_processor, folder, state=state, shuffle_buffer=240)
    with pytest.raises(DataError, match="another seed"):
        stream(tiny_processor, folder, state=state, seed=1)
    write(folder / "d.jsonl", texts(3))
    with pytest.raises(DataError, match="another data"):
        stream(tiny_processor, folder, state=state)


def test_sources_are_drawn_by_weight(tiny_processor, folder):
    sources = [source_of(folder / "a.jsonl"), source_of(folder / "b.jsonl")]
    data = StreamingDataset(sources, tiny_processor, weights=[1, 3], shuffle_buffer=24)
    data.place(batch_size=2)
    drawn = Counter(answer[0] for batch in take(data, 240) for answer in batch)
    assert drawn["b"] == pytest.approx(360, abs=40)
    for number, weights in ((1, [0]), (1, [1, 1]), (2, [1, 0]), (2, [1])):
        with pytest.raises(DataError, match=f"{number} positive numbers"):
            StreamingDataset(sources[:number], tiny_processor, weights=weights)


def damage(folder, how):
    """One of two files damaged: (message, texts that can still be read)."""
    good = write(folder / f"good{'.parquet' if how == 'parquet' else '.jsonl.gz'}", texts(9, "g"))
    bad = write(folder / f"bad{good.name[4:]}", texts(30 if how == "parquet" else 300, "b"))
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    return str(bad)


@pytest.mark.parametrize("how", ["gz", "parquet"])
def test_a_damaged_file_is_named_or_skipped_and_counted(tiny_processor, tmp_path, how):
    bad = damage(tmp_path, how)
    data = stream(tiny_processor, tmp_path)
    with pytest.raises(DataError, match=rf"{bad}: .*(damaged or cut off)"):
        take(data, 3000)
    data = stream(tiny_processor, tmp_path, on_error="skip")
    read = {answer for batch in take(data, 600) for answer in batch}
    assert {f"g{n}" for n in range(9)} <= read
    assert any(place.startswith(bad) for place in data.skipped())
    assert data.state_dict()["skipped"] == data.skipped()


def test_broken_rows_and_media_are_skipped_and_counted(tiny_processor, media, tmp_path, caplog):
    rows = [{"file": str(media / name), "text": name} for name in ("low.wav", "broken.wav", "gone.wav", "high.wav")]
    path = write(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text() + "{not JSON\n")
    source = StreamSource(SourceSpec(path=str(path)))
    for on_error in ("raise", "skip"):
        data = StreamingDataset([source], tiny_processor, on_error=on_error, shuffle_buffer=1)
        data.place(batch_size=1)
        if on_error == "raise":
            with pytest.raises(DataError, match=r"rows.jsonl:[235]: .*(broken.wav|no such file|not JSON)"):
                take(data, 20)
    assert {answer for batch in take(data, 20) for answer in batch} == {"low.wav", "high.wav"}
    found = " ".join(data.skipped())
    assert all(word in found for word in ("rows.jsonl:2", "rows.jsonl:3: no such file", "rows.jsonl:5: not JSON"))
    assert len(data.skipped()) == len(caplog.records) == 3, "each is named once"
    assert all(place.count("rows.jsonl") == 1 for place in data.skipped())
    assert data.progress()["skipped"] == data.skipped()
    data.skip_again(["an earlier one", data.skipped()[0]])
    assert data.skipped()[3:] == ["an earlier one"]


def test_rows_are_looked_over_before_training(tmp_path):
    path = write(tmp_path / "a.jsonl", texts(3))
    path.write_text("{not JSON\n" + path.read_text())
    source = source_of(path)
    with pytest.raises(DataError, match="a.jsonl:1: not JSON"):
        source.check()
    assert [sample.answers for sample in source.check(is_strict=False)] == [["t0"], ["t1"], ["t2"]]
    path.write_text("{not JSON\n")
    with pytest.raises(DataError, match="a.jsonl:1: not JSON"):
        source_of(path).check(is_strict=False)


def test_the_largest_file_is_looked_over(tmp_path):
    for name, count in (("a", 3), ("b", 150), ("c", 5)):
        write(tmp_path / f"{name}.jsonl", texts(count, name))
    assert [sample.answers[0] for sample in source_of(tmp_path).check()] == [f"b{n}" for n in range(100)]


def test_a_collator_gets_the_next_row_for_one_that_makes_no_batch(tiny_processor, folder):
    def collate(samples):
        for place, sample in enumerate(samples):
            while "a" in answers(samples)[place]:
                samples[place] = sample["data"].instead_of(sample, ValueError("begins with a"))
        return [{**sample, "data": None} for sample in samples]

    def stream_of(on_error, state=None):
        data = stream(tiny_processor, folder, on_error=on_error, workers=2, state=state)
        data.collate = collate
        return data

    with pytest.raises(DataError, match=r"a.jsonl:\d+: begins with a"):
        take(stream_of("raise"), 5)
    whole = take(stream_of("skip"), 24)
    first = stream_of("skip")
    assert take(first, 14) == whole[:14]
    assert take(stream_of("skip", first.state_dict()), 10) == whole[14:]
    assert {answer[0] for batch in whole for answer in batch} == {"b", "c"}
    assert 10 < len(first.skipped()) <= 40


def opened_by(source):
    """The shares that are read of a source from now on, and the rows of which samples are made."""
    works, rows = [], []
    read, sample = source.read, source.sample
    source.read = lambda work: works.append(work) or read(work)
    source.sample = lambda value: rows.append(value) or sample(value)
    return works, rows


def test_a_stream_without_rows_to_use_stops(tiny_processor, folder):
    """Behind a hundred epochs, or a thousand broken rows."""
    source = source_of(folder, where={"text": "none"})
    works, _ = opened_by(source)
    with pytest.raises(DataError, match=r"no row is left that can be used \(where, exclude\)"):
        take(StreamingDataset([source], tiny_processor), 1)
    assert works[-1].epoch == 101
    (folder / "a.jsonl").write_text("{not JSON\n" * 24 * 11)
    source = source_of(folder / "a.jsonl")
    _, rows = opened_by(source)
    with pytest.raises(DataError, match=r"can be used; the last: .*a.jsonl:\d+: not JSON"):
        take(StreamingDataset([source], tiny_processor, on_error="skip"), 1)
    assert len(rows) == 1001


def test_recipes_are_told_of_what_the_first_rows_lack(tiny, tmp_path, caplog):
    model, processor = tiny
    path = write(tmp_path / "words.jsonl", [{**row, "mood": "good"} for row in texts(3)])
    source = {"path": str(path), "modality": "text", "prompts": ["?"]}
    data = {"train": [source], "streaming": True}
    spec = build(StageSpec, {"stage": 3, "data": data, "trainer": {"max_steps": 1}}, "recipe", "")
    prepare(model, processor, spec, seed=0)
    assert "none of the first samples of data.train holds image, speech, video" in caplog.text
    assert f"{path}: of 3 rows, nothing reads the columns mood (3)" in caplog.text


def test_long_sounds_of_a_stream_are_cut(tiny_processor, media, tmp_path):
    row = {"messages": [{"role": "user", "content": [{"type": "audio", "audio": str(media / "low.wav")}]}]}
    row["messages"].append({"role": "assistant", "content": "low"})
    source = StreamSource(SourceSpec(path=str(write(tmp_path / "a.jsonl", [row] * 30))))

    def sounds(**settings):
        data = StreamingDataset([source], tiny_processor, shuffle_buffer=24, **settings)
        data.place(batch_size=1)
        content = next(iter(data)).batch[0]["messages"][0]["content"]
        return [len(part["audio"].samples) for part in content]

    (whole,) = sounds()
    most = whole // 2 / 16_000
    assert sounds(long_media=LongMedia(most, "chunk")) == [whole // 2] * 2


def test_a_stream_that_is_not_placed_is_read_by_one_rank(tiny_processor, folder):
    alone, data = stream(tiny_processor, folder, batch_size=1), StreamingDataset([source_of(folder)], tiny_processor)
    data.window, settings = alone.window, data.state_dict()
    assert [take(data, 30), data.workers, data.position] == [take(alone, 30), 0, 30]
    assert (settings["weights"], settings["shuffle_buffer"], settings["seed"]) == ([1.0], 9984, 0)
    data = StreamingDataset([source_of(folder)], tiny_processor, shuffle_buffer=1)
    assert data.state_dict()["shuffle_buffer"] == 24, "a row of each lane"
    assert data.place() == 0
    batch = next(iter(data))
    data.consume(batch)
    assert (len(batch.batch), batch.mark[0], batch.lane, data.position) == (1, 1, 0, 1)


def test_a_stream_may_begin_with_a_later_epoch(tiny_processor, folder):
    def epochs(data):
        return {mark.segment for _, marks in data.marks.values() for mark in marks}

    data = StreamingDataset([source_of(folder)], tiny_processor, shuffle_buffer=24)
    data.set_epoch(3)
    take(data, 24)
    assert epochs(data) == {3}
    data.set_epoch(5)
    state = data.state_dict()
    assert state["orders"] == [{"first_epoch": 3, "rest": None}], "it has begun"
    again = stream(tiny_processor, folder, state=state, shuffle_buffer=24)
    again.set_epoch(7)
    take(again, 24)
    assert min(epochs(again)) == 3
    begun = StreamingDataset([source_of(folder)], tiny_processor)
    begun.consume(StreamBatch(None, 0, (1, [Mark(0, (), 0)]), []))  # of a worker, which alone has asked for the order
    begun.set_epoch(5)
    assert begun.state_dict()["orders"] == [{"first_epoch": 0, "rest": None}]


def test_what_was_dealt_anew_is_kept_until_every_lane_has_read_its_part(tiny_processor, folder):
    data = stream(tiny_processor, folder)
    state = data.state_dict()
    rest = [[Work(1, 0, 0, 9, part=lane, parts=24)] for lane in range(24)]
    data.load_state_dict({**state, "orders": [{"first_epoch": 2, "rest": rest}]})

    def is_kept(lane, segment):
        data.consume(StreamBatch(None, lane, (1, [Mark(segment, (), 0)]), []))
        (order,) = data.state_dict()["orders"]
        assert order["first_epoch"] == 2
        assert order["rest"] in (None, rest)
        return order["rest"] is not None

    assert all(is_kept(lane, 3) for lane in range(23))
    assert [is_kept(23, segment) for segment in (1, 2)] == [True, False]


def test_ranks_and_workers_that_do_not_fit_are_said(tiny_processor, folder, caplog):
    data = stream(tiny_processor, folder, workers=6)
    assert not caplog.records
    assert data.place(workers=7) == 6
    assert caplog.records[-1].getMessage() == "6 workers instead of 7: 24 lanes are shared evenly"
    data.place(ranks=5)
    assert caplog.records[-1].getMessage().startswith("5 ranks with 0 workers do not fit the 24 lanes of this run")
    assert len(caplog.records) == 2


def test_the_sources_of_a_recipe(tiny_processor, folder):
    (folder / "c.jsonl").write_text("{not JSON\n" + (folder / "c.jsonl").read_text())
    fields = {"modality": "text", "prompts": ["?"]}
    specs = [SourceSpec(path=str(folder / f"{name}.jsonl"), weight=w, **fields) for name, w in (("b", 1), ("c", 3))]
    with pytest.raises(DataError, match="c.jsonl:1: not JSON"):
        StreamingDataset.from_specs(specs, tiny_processor)
    data = StreamingDataset.from_specs(specs, tiny_processor, on_error="skip", augmentation=Augmentation([Gain()]))
    assert data.weights == [1, 3]
    assert [sample.answers[0] for sample in data.first] == [
        f"{n}{k}" for n, many in (("b", 7), ("c", 13)) for k in range(many)
    ]
    one, two = found = [source.fingerprint() for source in data.sources]
    assert data.fingerprint() == {
        "names": one["names"] + two["names"],
        "samples": "2 files, streamed",
        "bytes": sum((folder / f"{name}.jsonl").stat().st_size for name in "bc"),
        "sha256": hashlib.sha256("".join(each["sha256"] for each in found).encode()).hexdigest(),
    }
    assert data.summary() == f"2 files, streamed ({data.fingerprint()['bytes']:,} bytes)"
    data.place()
    data.collate = list
    assert "seed" in next(iter(data)).batch[0], "of its augmentation"


def test_choices_follow_from_seed_epoch_and_row(tiny_processor, folder):
    spec = SourceSpec(path=str(folder), modality="text", prompts=[str(n) for n in range(20)])

    def prompts(seed, count=60):
        data = StreamingDataset([StreamSource(spec)], tiny_processor, seed=seed, shuffle_buffer=24)
        data.place(batch_size=1)
        batches = islice(data, count)
        return [[turn["content"][0]["text"] for turn in batch.batch[0]["messages"]] for batch in batches]

    assert prompts(0) == prompts(0) != prompts(1)
    assert len({prompt for prompt, _ in prompts(0)}) > 10


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": "", "b.csv": ""}, "several kinds of data files"),
        ({"a.json": "[]"}, "a.json: a JSON list can only be read as a whole; write it as .jsonl"),
        ({"a.JSON": "[]"}, "a.JSON: a JSON list can only be read as a whole"),
        ({"a.json.gz": "[]"}, "a.json.gz: a JSON list can only be read as a whole"),
        ({"a.jsonl": "", "b.jsonl": ""}, "no row is left"),
    ],
)
def test_files_that_cannot_be_streamed(tmp_path, files, message):
    for name, text in files.items():
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wt") as file:
            file.write(text)
    with pytest.raises(DataError, match=message):
        source_of(tmp_path)
    with pytest.raises(DataError, match="gone.jsonl: no such data file"):
        source_of(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="`limit` needs the order of the file"):
        source_of(tmp_path / "gone.jsonl", limit=3)


def test_the_fingerprint_is_over_names_and_sizes(folder):
    first = source_of(folder).fingerprint()
    assert first["samples"] == "3 files, streamed"
    assert source_of(folder).fingerprint() == first
    write(folder / "a.jsonl", texts(39, "a"))
    assert source_of(folder).fingerprint()["sha256"] != first["sha256"]
    (path := folder / "né.json.csv").write_text("text\nt0\n")
    assert source_of(path).fingerprint() == {
        "names": ["né"],
        "samples": "1 file, streamed",
        "bytes": 8,
        "sha256": hashlib.sha256('[["né.json.csv", 8]]'.encode()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": {}}, "max_steps is -1; a stream has no end"),
        ({"trainer": {"max_steps": 3, "num_train_epochs": 2}}, "num_train_epochs has no effect on a stream"),
        ({"data": {"cache_media": True}}, "cache_media keeps all media in memory, streaming none"),
        ({"data": {"shuffle_buffer": 0}}, "shuffle_buffer is 0, expected a number of rows"),
    ],
)
def test_recipes_of_streams(change, message):
    recipe = {"model": "m", "output_dir": "o", "stage": 2, "trainer": {"max_steps": 3}}
    data = {"train": ["a.jsonl"], "streaming": True, **change.pop("data", {})}
    with pytest.raises(RecipeError, match=message):
        load_recipe({**recipe, "data": data, **change})
