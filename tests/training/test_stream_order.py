# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The order of a stream, simulated: each row once per epoch for any numbers of files, ranks and workers."""

import json
import weakref
from collections import Counter

import numpy as np
import pytest

from xllm.training.streams import stream_order
from xllm.training.streams.stream_order import (
    LANES,
    Lane,
    Mark,
    SourceOrder,
    Strand,
    StreamError,
    Work,
    cut_shares,
    fit_workers,
    fits,
)


def rows_of(sizes):
    """A reader of imaginary files of so many rows: a row is its place, which alone is its token too."""

    def read(work: Work):
        for row in range(work.low + work.first if work.token is None else work.token, work.high):
            yield row, (work.shard, row)

    return read


class Run:
    """A run as its ranks would do it: each reader opens its own lanes, every batch moves the lane's marks."""

    def __init__(self, sizes, ranks, workers, batch, window, seed=0, lanes=None):
        self.sizes, self.batch, self.window, self.seed, self.position = sizes, batch, window, seed, 0
        self.orders = [SourceOrder(own, lanes or LANES * ranks, (seed, n)) for n, own in enumerate(sizes)]
        self.marks: dict[int, tuple[int, list[Mark]]] = {}
        self.start(ranks, workers)

    @property
    def lanes(self):
        return self.orders[0].lanes

    def start(self, ranks, workers):
        """Begin, or go on from the marks in new processes."""
        self.marks = {
            lane: (draws, [Mark.of(json.loads(json.dumps(mark))) for mark in marks])
            for lane, (draws, marks) in self.marks.items()
        }
        if not fits(self.lanes, ranks, workers):
            for n, order in enumerate(self.orders):
                self.orders[n] = order.deal_anew(
                    {lane: marks[n] for lane, (_, marks) in self.marks.items()}, LANES * ranks
                )
            self.marks = {}
        self.ranks, self.workers = ranks, fit_workers(self.lanes, ranks, workers)
        self.began, self.open = self.position, {}

    def step(self, rank):
        """The next batch of a rank, and who read it."""
        microbatch = self.position + rank
        lane, worker = microbatch % self.lanes, (microbatch - self.began) // self.ranks % self.workers
        if lane not in self.open:
            draws, marks = self.marks.get(lane, (0, [None] * len(self.sizes)))
            strands = [
                Strand(order, lane, self.window, rows_of(own), mark)
                for order, own, mark in zip(self.orders, self.sizes, marks)
            ]
            self.open[lane] = (rank, worker), Lane(strands, [1.0] * len(strands), (self.seed,), draws)
        owner, reader = self.open[lane]
        assert owner == (rank, worker), "a lane belongs to one worker"
        rows = [(source, work.epoch, *value) for source, work, _, value in (next(reader) for _ in range(self.batch))]
        self.marks[lane] = reader.mark
        return rows

    def steps(self, count):
        """`count` steps of all ranks: a list of batches, in the order of the run."""
        batches = []
        for _ in range(count):
            batches += [self.step(rank) for rank in range(self.ranks)]
            self.position += self.ranks
        return batches

    def epoch_done(self, epoch):
        begun = [mark.segment for _, marks in self.marks.values() for mark in marks]
        behind = max(epoch + 1, self.orders[0].first_epoch)  # a rest may hold any epoch before it
        return len(self.marks) == self.lanes and min(begun) >= behind


def read_by(works):
    return [(work.shard, row) for work in works for row in range(work.low, work.high)]


@pytest.mark.parametrize("lanes", [1, 3, 48])
@pytest.mark.parametrize("sizes", [[97], [3, 0, 20], [2] * 400], ids=["one", "uneven", "many"])
def test_a_share_is_a_run_of_the_shuffled_files(sizes, lanes):
    """Laid end to end here, byte by byte: checkpoints of other versions go on with the same shares."""
    for epoch in (0, 1):
        rng = np.random.default_rng([5, 1, epoch])
        laid = [(shard, byte) for shard in rng.permutation(len(sizes)).tolist() for byte in range(sizes[shard] or 1)]
        turn = int(rng.integers(lanes))
        order = SourceOrder(sizes, lanes, (5, 1))
        for share in range(lanes):
            low, high = len(laid) * share // lanes, len(laid) * (share + 1) // lanes
            assert read_by(order.work((share + turn) % lanes, epoch)) == laid[low:high]


def test_shares_of_petabytes_are_equal_too():
    sizes, lanes = [2**55 + 5, 2**54, 2**53 - 1], LANES * 1024
    lane, _, low, high = cut_shares(np.array(sizes), lanes, (0,))
    read = [0] * lanes
    for owner, length in zip(lane.tolist(), (high - low).tolist()):
        read[owner] += length
    assert sum(read) == sum(sizes)
    assert max(read) - min(read) == 1


def test_the_shares_of_two_epochs_are_kept(monkeypatch):
    made, shares = [], []

    def cut(sizes, lanes, seed):
        found = cut_shares(sizes, lanes, seed)
        made.append(seed[-1])
        shares.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(stream_order, "cut_shares", cut)
    order = SourceOrder([40], 2, (0,))
    for epoch in (0, 1, 0, 1, 2, 1, 2, 3):
        order.work(0, epoch)
    assert made == [0, 1, 2, 3]
    assert [each() is None for each in shares] == [True, True, False, False]


def test_draws_and_windows_are_those_of_other_versions():
    order = SourceOrder([90], 6, (7, 0))
    expected = np.random.default_rng([7, 0, 6, 4, 2, 3, 11]).permutation(9)
    assert order.shuffled(4, 2, [(3, 11, 18), (4, 0, 2)], 9).tolist() == expected.tolist()
    lane = Lane([Strand(SourceOrder([90], 6, (7, n)), 4, 8, rows_of(None)) for n in (0, 1)], [3, 1], (7, 2))
    blocks = [np.random.default_rng([7, 2, 4, block]).choice(2, 256, p=[0.75, 0.25]) for block in (0, 1, 2)]
    assert [next(lane)[0] for _ in range(3 * 256)] == np.concatenate(blocks).tolist()


def test_what_a_lane_has_left_is_sought_by_its_token():
    """A window of 15 over two files of 10 rows, and one over the last 5."""
    order, opened = SourceOrder([10, 10], 1, (0,)), []

    def read(work):
        opened.append(work)
        return rows_of(None)(work)

    def gone(work, begin=0):
        return tuple(sorted(row for other, row, _ in taken[begin:] if other == work))

    one, two = order.work(0, 0)
    later = order.work(0, 1) + order.work(0, 2)
    strand = Strand(order, 0, 15, read)
    assert strand.mark == Mark(0, (), 0, None)
    assert order.left(0, strand.mark, 2) == order.left(0, None, 2) == [one, two, *later]
    taken = [next(strand) for _ in range(7)]
    both = [one._replace(token=0, left_out=gone(one)), two._replace(left_out=gone(two))]
    assert order.left(0, strand.mark, 2) == [*both, *later]
    taken += [next(strand) for _ in range(10)]
    rest = two._replace(first=5, token=5)
    assert order.left(0, strand.mark, 2) == [rest._replace(left_out=gone(two, 15)), *later]
    again = Strand(order, 0, 15, read, strand.mark)
    assert opened[-1] == rest
    assert again.mark == strand.mark
    assert [next(again) for _ in range(9)] == [next(strand) for _ in range(9)]


def test_nothing_read_is_dealt_in_four_pieces_for_each_lane_at_least():
    anew = SourceOrder([8], 1, (0,)).deal_anew({}, 2)
    assert (anew.first_epoch, anew.lanes) == (1, 2)
    assert [len(works) for works in anew.rest] == [4, 4]
    pieces = sum(anew.rest, [])
    assert sorted(work.part for work in pieces) == list(range(8))
    assert {work._replace(part=0) for work in pieces} == {Work(0, 0, 0, 8, parts=8)}
    assert anew.rest != [sorted(works) for works in anew.rest], "in any order"
    assert anew.work(1, 0) == anew.rest[1]
    assert anew.work(1, 1) == SourceOrder([8], 2, (0,)).work(1, 1)
    again = anew.deal_anew({}, 1).rest[0]  # before anything of it is read
    assert sorted(again) == sorted(pieces)


def test_the_longest_is_dealt_first_and_the_older_epoch_before():
    """Of lengths 6, 5, 4, 3, 2, 2, 1, 1: to whom has the least."""
    older = [(0, 6), (0, 5), (0, 4), (8, 20), (0, 2), (0, 2), (0, 1), (0, 1)]
    works = [Work(0, shard, low, high, parts=4 if low else 1) for shard, (low, high) in enumerate(older)][::-1]
    newer = [Work(1, shard, 0, 20) for shard in (8, 9)]
    anew = SourceOrder([20] * 10, 1, (0,), 2, [newer + works]).deal_anew({}, 2)
    assert anew.first_epoch == 2
    assert [{work.shard for work in own} for own in anew.rest] == [{0, 3, 5, 7, 8}, {1, 2, 4, 6, 9}]
    assert [[work.epoch for work in own] for own in anew.rest] == [[0, 0, 0, 0, 1]] * 2
    assert sorted(sum(anew.rest, [])) == sorted(works + newer)


def test_workers_that_share_lanes_evenly():
    assert [fit_workers(24, 1, workers) for workers in range(14)] == [1, 1, 2, 3, 4, 4, 6, 6, 8, 8, 8, 8, 12, 12]
    assert [fit_workers(LANES * 10, 2, workers) for workers in (5, 7, 500)] == [5, 6, 120]
    assert [fit_workers(24, 8, workers) for workers in (2, 3)] == [1, 3]


@pytest.mark.parametrize(
    ("lanes", "ranks", "workers", "fit"),
    [
        (24, 1, 0, True),
        (24, 1, 100, True),  # a rank that begins has no more lanes
        (48, 1, 100, True),
        (24, 5, 1, False),
        (25, 24, 1, False),
        (24, 12, 2, True),
        (24, 24, 1, True),
        (24, 24, 2, False),
    ],
)
def test_lanes_are_kept_where_each_worker_has_one(lanes, ranks, workers, fit):
    assert fits(lanes, ranks, workers) is fit


def until_epoch_2(run, seen, steps=1):
    for _ in range(10_000):
        seen += [row for batch in run.steps(steps) for row in batch]
        if run.epoch_done(1):
            return
    raise AssertionError("epoch 1 does not end")


def assert_each_row_once(seen, sizes, epochs=(0, 1)):
    counts = Counter(seen)
    for epoch in epochs:
        wanted = {
            (n, epoch, shard, row)
            for n, own in enumerate(sizes)
            for shard in range(len(own))
            for row in range(own[shard])
        }
        found = {row: count for row, count in counts.items() if row[1] == epoch}
        assert set(found) == wanted
        assert set(found.values()) == {1}


SHAPES = {
    "one file": [97],
    "uneven": [1, 200, 3, 3, 50, 0, 7],
    "many": list(range(1, 60)),
    "few rows": [5],
}


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (3, 2), (2, 5)])
def test_each_row_comes_once_per_epoch(sizes, ranks, workers):
    run, seen = Run([sizes], ranks, workers, batch=3, window=5), []
    until_epoch_2(run, seen)
    real = [[max(size, 1) for size in sizes]]  # an empty file is laid out as one row, and this reader invents it
    assert_each_row_once(seen, real)


@pytest.mark.parametrize("seed", range(20))
def test_each_row_comes_once_when_ranks_change_again_and_again(seed):
    """Within epochs 0 and 1: numbers that fit the lanes, and numbers that do not; twice before the rest is read."""
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(1, 60, rng.integers(1, 30)).tolist()]
    dealt = 0
    run, seen = Run(sizes, int(rng.integers(1, 4)), 2, batch=2, window=int(rng.integers(1, 9)), seed=seed), []
    for turn in range(8):
        seen += [row for batch in run.steps(int(rng.integers(1, 2 + sum(sizes[0]) // 8))) for row in batch]
        lanes = run.lanes
        misfit = 5 if lanes % 5 else 7
        run.start(misfit if turn in (2, 3) else int(rng.integers(1, 6)), int(rng.integers(0, 5)))
        dealt += run.lanes != lanes
    assert dealt
    until_epoch_2(run, seen)
    assert_each_row_once(seen, sizes)


def test_ranks_and_workers_do_not_change_the_order():
    sizes = [[30, 5, 90, 41, 8], [64]]
    whole = Run(sizes, 4, 1, batch=2, window=4).steps(100)
    run = Run(sizes, 4, 1, batch=2, window=4)
    parts = run.steps(20)
    for ranks, workers, steps in ((2, 4, 40), (8, 3, 10), (1, 6, 80), (4, 8, 20)):  # into the third epoch
        run.start(ranks, workers)
        assert run.lanes == 4 * LANES
        parts += run.steps(steps)
    assert parts == whole
    assert max(epoch for batch in whole for _, epoch, *_ in batch) >= 2
    assert Run(sizes, 4, 1, batch=2, window=4, seed=1).steps(100) != whole


def test_sources_are_drawn_by_their_shares():
    strands = [Strand(SourceOrder(sizes, 1, (0, n)), 0, 8, rows_of(sizes)) for n, sizes in enumerate([[500], [50]])]
    lane = Lane(strands, [3.0, 1.0], (0,))
    drawn = Counter(next(lane)[0] for _ in range(4000))
    assert drawn[1] == pytest.approx(1000, abs=4 * np.sqrt(4000 * 3 / 16))


def test_draws_go_on_from_any_number_of_them():
    """They are made in blocks: none is as the one before, and a run may go on within one."""

    def lane(draws=0, marks=(None, None)):
        strands = [Strand(SourceOrder([90], 1, (0, n)), 0, 8, rows_of([90]), mark) for n, mark in enumerate(marks)]
        return Lane(strands, [1.0, 1.0], (0,), draws)

    first, whole = lane(), lane()
    rows = [next(whole) for _ in range(4 * Lane.BLOCK)]
    blocks = np.array([source for source, *_ in rows]).reshape(4, Lane.BLOCK)
    assert len(np.unique(blocks, axis=0)) == 4
    for _ in range(Lane.BLOCK + 44):
        next(first)
    draws, marks = first.mark
    assert draws == Lane.BLOCK + 44
    again = lane(draws, marks)
    assert [next(again) for _ in range(2 * Lane.BLOCK)] == rows[draws : draws + 2 * Lane.BLOCK]


def test_rows_are_shuffled_within_windows_and_files_between_epochs():
    order = SourceOrder([10] * 20, 1, (0,))
    strand = Strand(order, 0, 50, rows_of(None))
    read = [next(strand)[2] for _ in range(400)]
    first, second = read[:200], read[200:]
    files = list(dict.fromkeys(shard for shard, _ in first[:50]))
    assert len(files) == 5  # a window of 50 rows spans five files
    assert first[:50] != sorted(first[:50], key=lambda row: (files.index(row[0]), row[1]))
    assert sorted(first) == sorted(second)
    assert {shard for shard, _ in first[:50]} != {shard for shard, _ in second[:50]}


def test_changed_files_are_noticed_when_a_run_goes_on():
    strand = Strand(SourceOrder([40], 1, (0,)), 0, 16, rows_of(None))
    for _ in range(35):
        next(strand)
    with pytest.raises(StreamError, match="files have changed"):
        Strand(SourceOrder([37], 1, (0,)), 0, 16, rows_of(None), strand.mark)
    with pytest.raises(StreamError, match="no row to train on in 100 epochs"):
        next(Strand(SourceOrder([40], 1, (0,)), 0, 16, lambda work: iter(())))


RANKS, WORKERS, FILES = 1024, 8, 100_000


@pytest.fixture(scope="module")
def large():
    """100,000 files for 1,024 ranks: the order, and the place of each file's first row among all rows."""
    sizes = np.random.default_rng(0).integers(50, 151, FILES)
    return SourceOrder(sizes, LANES * RANKS, (0, 0)), np.concatenate([[0], np.cumsum(sizes)])


@pytest.mark.parametrize("ranks", [RANKS, RANKS // 2, RANKS * 2])
def test_lanes_belong_to_readers(ranks):
    lanes, workers = LANES * RANKS, fit_workers(LANES * RANKS, ranks, WORKERS)
    assert ranks * workers >= RANKS * WORKERS // 2
    batches = np.arange(2 * lanes)
    reader = batches % ranks * workers + batches // ranks % workers
    owner = np.full(lanes, -1)
    owner[batches % lanes] = reader
    assert (owner[batches % lanes] == reader).all()
    assert (np.bincount(owner) == lanes // (ranks * workers)).all()


@pytest.mark.parametrize("epoch", [0, 1])
def test_8192_readers_of_100000_files(large, epoch):
    order, before = large
    lane, shard, low, high = cut_shares(order.sizes, order.lanes, (0, 0, epoch))
    total = before[-1]
    begun, ended = (np.bincount(before[shard] + at, minlength=total + 1) for at in (low, high))
    assert (np.cumsum(begun - ended)[:-1] == 1).all(), "each row once"
    length = np.bincount(lane, high - low, order.lanes)
    assert length.max() - length.min() <= 1
    reader = lane % RANKS * WORKERS + lane // RANKS % WORKERS
    opened = np.unique(reader * FILES + shard)
    assert len(opened) < FILES + order.lanes  # a file is opened by one reader, or by two where shares meet
    assert np.bincount(opened // FILES).max() < 30  # 15 on average


def mark_somewhere(order, lane, rng):
    """A lane in epoch 0 or 1 with half of a window of 8 taken, and what it has read: (epoch, shard, rows)."""
    epoch = int(rng.integers(2))
    works = order.work(lane, epoch)
    at = int(rng.integers(len(works)))
    work, rows = works[at], works[at].high - works[at].low
    first = int(rng.integers(rows))
    spans = ((at, first, min(first + 8, rows)),)
    count = spans[0][2] - first
    whole = works[:at] + (order.work(lane, 0) if epoch else [])
    done = [(other.epoch, other.shard, slice(other.low, other.high)) for other in whole]
    done.append((epoch, work.shard, slice(work.low, work.low + first)))
    taken = order.shuffled(lane, epoch, spans, count)[: count // 2]
    return Mark(epoch, spans, count // 2), [*done, (epoch, work.shard, work.low + first + taken)]


def test_going_on_at_1000_ranks(large):
    """They do not fit the lanes of 1,024: what is left of two epochs is dealt anew."""
    order, before = large
    rng, marks, read = np.random.default_rng(1), {}, np.zeros((2, before[-1]), dtype=np.int8)

    def tick(epoch, shard, rows, step=1):
        read[epoch, before[shard] : before[shard + 1]][rows] += step

    for lane in range(order.lanes):
        marks[lane], done = mark_somewhere(order, lane, rng)
        for reading in done:
            tick(*reading)
    assert 0.2 < read.mean() < 0.8
    anew = order.deal_anew(marks, LANES * 1000)
    assert anew.first_epoch == 2
    for work in (work for works in anew.rest for work in works):
        first = work.low + work.first + (work.part - work.first) % work.parts
        tick(work.epoch, work.shard, slice(first, work.high, work.parts))
        out = [work.low + row for row in work.left_out if row % work.parts == work.part]
        tick(work.epoch, work.shard, np.array(out, dtype=int), -1)
    assert (read == 1).all()
    loads = np.array([sum((work.high - work.low) / work.parts for work in works) for works in anew.rest])
    assert loads.max() < 1.2 * loads.mean()
