# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Data that are never read as a whole: shares of files, batches of a stream, and a run that goes on in epoch 2."""

import gzip
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

from xllm.training.data.long_media import LongMedia
from xllm.training.data.media_rows import DataError
from xllm.training.preparing import prepare
from xllm.training.recipes.recipe import RecipeError, SourceSpec, StageSpec, load_recipe
from xllm.training.recipes.strict import build
from xllm.training.streams import stream_files
from xllm.training.streams.stream_files import StreamSource
from xllm.training.streams.stream_order import Work, cut_shares
from xllm.training.streams.streaming import StreamingDataset


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
    assert read_share(source, Work(0, 0, 0, source.sizes[0])) == ["t0", "t1"]


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
    with pytest.raises(DataError, match="1 positive numbers"):
        StreamingDataset(sources[:1], tiny_processor, weights=[0])


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


def test_broken_rows_and_media_are_skipped_and_counted(tiny_processor, media, tmp_path):
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
    assert len(data.skipped()) == 3


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


def test_a_stream_without_rows_to_use_stops(tiny_processor, folder):
    data = StreamingDataset([source_of(folder, where={"text": "none"})], tiny_processor)
    with pytest.raises(DataError, match="no row is left that can be used"):
        take(data, 1)


def test_recipes_are_told_of_what_the_first_rows_lack(tiny, tmp_path, caplog):
    model, processor = tiny
    path = write(tmp_path / "words.jsonl", [{**row, "mood": "good"} for row in texts(3)])
    source = {"path": str(path), "modality": "text", "prompts": ["?"]}
    data = {"train": [source], "streaming": True}
    spec = build(StageSpec, {"stage": 3, "data": data, "trainer": {"max_steps": 1}}, "recipe", "")
    prepare(model, processor, spec, seed=0)
    assert "none of the first samples of data.train holds image, speech, video" in caplog.text
    assert "of 3 rows, nothing reads the columns mood (3)" in caplog.text


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
        ({"a.jsonl": "", "b.jsonl": ""}, "no row is left"),
    ],
)
def test_files_that_cannot_be_streamed(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
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
