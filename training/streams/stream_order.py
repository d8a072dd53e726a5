# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Who reads which part of which file of a stream, and in which order: arithmetic alone, nothing is opened here.

1. The stream has `lanes`, `LANES` for each rank that the run begins with; checkpoints keep their number.
2. In each epoch the files of a source are laid end to end in a shuffled order and cut, by bytes, into one equal share
   per lane. A share is whole files and parts of at most two; with few files, a part of one.
3. A lane reads its share in windows of rows, each shuffled, then its share of the next epoch. So no rank waits, and
   nothing is padded, dropped or repeated: near the end of an epoch some lanes are already in the next one.
4. Batch q of the run comes from lane `q % lanes`. Rank r of W takes q = r, r + W, ..., worker k of w every w-th of
   these. Where W * w divides `lanes`, a lane belongs to one worker, which opens the lane's files and no others.
5. Each lane chooses the source of its next row by a seeded draw, by the sources' weights.

Guarantee: every epoch holds each row of a source once. What batch q holds follows from (files, seed, lanes, window,
batch size, q): it does not depend on workers or ranks, and a run that goes on from a checkpoint (a `Mark` of every
lane) sees what an uninterrupted one would. At a number of ranks that does not fit the lanes, what they have not read
yet of their epochs is dealt anew (`deal_anew`): still each row once per epoch, in another order from there on.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np


LANES = 24  # per rank; its divisors are the numbers of workers that fit
WORKS = 4  # pieces per lane, at least, when what is left is dealt anew
MOST_EMPTY = 100  # epochs without a row, one after the other, before a lane gives up


class StreamError(ValueError):
    """A stream that cannot go on."""


class Work(NamedTuple):
    """Rows that a lane reads from a file: of the share from byte `low` to `high`, those that `takes` allows.

    `token` tells the reader where row `first` of the share begins, if it knows.
    """

    epoch: int
    shard: int
    low: int
    high: int
    first: int = 0
    token: Any = None
    left_out: tuple[int, ...] = ()
    part: int = 0
    parts: int = 1

    def takes(self, row: int) -> bool:
        """Whether row number `row` of the share, counted from 0, is to be read."""
        return row >= self.first and row % self.parts == self.part and row not in self.left_out


class Mark(NamedTuple):
    """How far a lane has got in a source: its segment (an epoch, or the rest before it), the rows of its window as
    spans (work, first row, behind the last row), how many of the shuffled window are taken, and the `token` of its
    first row.
    """

    segment: int
    spans: tuple[tuple[int, int, int], ...]
    taken: int
    token: Any = None

    @classmethod
    def of(cls, values: Sequence) -> "Mark":
        """From JSON."""
        segment, spans, taken, token = values
        return cls(segment, tuple(map(tuple, spans)), taken, token)


Read = Callable[[Work], Iterator[tuple[Any, Any]]]  # (token, value) of the rows of a share from row `first` on


def cut_shares(sizes: np.ndarray, lanes: int, seed: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The shares of an epoch: arrays lane, shard, low, high, by lane, in the order in which it reads them.

    Args:
        sizes: bytes (or rows) of each file, at least 1.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    turn = int(rng.integers(lanes))
    ends = np.cumsum(sizes[order])
    starts = ends - sizes[order]
    whole, left = divmod(int(ends[-1]), lanes)
    steps = np.arange(lanes + 1)
    cuts = whole * steps + left * steps // lanes  # bytes times lanes may be too large a number
    edges = np.union1d(starts, cuts)
    at = np.searchsorted(starts, edges[:-1], side="right") - 1
    lane = (np.searchsorted(cuts, edges[:-1], side="right") - 1 + turn) % lanes
    by_lane = np.argsort(lane, kind="stable")
    shares = lane, order[at], edges[:-1] - starts[at], edges[1:] - starts[at]
    return tuple(column[by_lane] for column in shares)


class SourceOrder:
    """What each lane reads of one source, segment by segment: first the `rest` of the epochs before `first_epoch`, if
    there is one, then epoch after epoch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        lanes: int,
        seed: Sequence[int],
        first_epoch: int = 0,
        rest: Sequence[Sequence[Work]] | None = None,
    ):
        self.sizes: Any = np.maximum(sizes, 1)
        self.lanes, self.seed, self.first_epoch, self.rest = lanes, tuple(seed), first_epoch, rest
        self.begin = first_epoch - (rest is not None)
        self._shares: dict[int, tuple[np.ndarray, ...]] = {}

    def work(self, lane: int, segment: int) -> list[Work]:
        """The work of a lane in a segment."""
        if self.rest is not None and segment < self.first_epoch:
            return list(self.rest[lane])
        if segment not in self._shares:
            if len(self._shares) > 1:  # lanes are in two epochs at most times
                self._shares.pop(min(self._shares))
            self._shares[segment] = cut_shares(self.sizes, self.lanes, (*self.seed, segment))
        lanes, *columns = self._shares[segment]
        own = slice(*np.searchsorted(lanes, (lane, lane + 1)))
        return [Work(segment, *row) for row in zip(*(column[own].tolist() for column in columns))]

    def shuffled(self, lane: int, segment: int, spans: Sequence[Sequence[int]], count: int) -> np.ndarray:
        """The order of the `count` rows of a window."""
        return np.random.default_rng([*self.seed, self.lanes, lane, segment, *spans[0][:2]]).permutation(count)

    def left(self, lane: int, mark: Mark | None, last: int) -> list[Work]:
        """What a lane has not read yet of its segments up to `last`."""
        segment = self.begin if mark is None else mark.segment
        works = self.work(lane, segment)
        if mark is not None and mark.spans:
            rows = [(index, row) for index, *span in mark.spans for row in range(*span) if works[index].takes(row)]
            gone: defaultdict[int, set[int]] = defaultdict(set)
            for place in self.shuffled(lane, segment, mark.spans, len(rows))[: mark.taken]:
                gone[rows[place][0]].add(rows[place][1])
            for index, out in gone.items():
                works[index] = works[index]._replace(left_out=tuple(sorted(out.union(works[index].left_out))))
            index, first, _ = mark.spans[0]
            works = [works[index]._replace(first=first, token=mark.token), *works[index + 1 :]]
        return works + [work for epoch in range(segment + 1, last + 1) for work in self.work(lane, epoch)]

    def deal_anew(self, marks: Mapping[int, Mark], lanes: int) -> "SourceOrder":
        """The same source in another number of lanes: what is left of the epochs begun, then the epochs after them."""
        last = max((mark.segment for mark in marks.values()), default=self.begin)
        works = [work for lane in range(self.lanes) for work in self.left(lane, marks.get(lane), last)]
        parts = math.ceil(WORKS * lanes / len(works))
        pieces = [
            work._replace(part=work.part + work.parts * part, parts=work.parts * parts)
            for work in works
            for part in range(parts)
        ]
        pieces.sort(key=lambda work: (work.epoch, (work.low - work.high) / work.parts))
        dealt: list[list[Work]] = [[] for _ in range(lanes)]
        loads = [(0.0, lane) for lane in range(lanes)]
        for work in pieces:  # the longest first, each to the lane that has the least
            load, lane = heapq.heappop(loads)
            dealt[lane].append(work)
            heapq.heappush(loads, (load + (work.high - work.low) / work.parts, lane))
        rng = np.random.default_rng([*self.seed, lanes, last])
        for works in dealt:
            rng.shuffle(works)
            works.sort(key=lambda work: work.epoch)
        return SourceOrder(self.sizes, lanes, self.seed, last + 1, dealt)


class Strand:
    """The rows of one source in one lane, without end: (work, row number in its share, value).

    Args:
        read: opens a `Work`; see `Read`.
        mark (`Mark`, *optional*): where to go on.

    Raises:
        StreamError: no row in many epochs, or, going on, not the rows that the mark was made of.
    """

    def __init__(self, order: SourceOrder, lane: int, window: int, read: Read, mark: Mark | None = None):
        self.order, self.lane, self.window, self.read = order, lane, window, read
        self._window: list[tuple[int, int, Any, Any]] = []
        self._spans: tuple[tuple[int, int, int], ...] = ()
        self._taken = 0
        self._enter(order.begin if mark is None else mark.segment)
        if mark is not None and mark.spans:
            index, first, _ = mark.spans[0]
            self._walk = self._rows(index, first, mark.token)
            self._fill()
            if self._spans != mark.spans or mark.segment != self._segment:
                raise StreamError("the rows are not those that this run has read before; the files have changed")
            self._taken = mark.taken

    def __next__(self) -> tuple[Work, int, Any]:
        if self._taken == len(self._window):
            self._fill()
        index, row, _, value = self._window[self._shuffled[self._taken]]
        self._taken += 1
        return self._works[index], row, value

    @property
    def mark(self) -> Mark:
        """Where the strand stands."""
        return Mark(self._segment, self._spans, self._taken, self._window[0][2] if self._window else None)

    def _enter(self, segment: int) -> None:
        self._segment, self._works = segment, self.order.work(self.lane, segment)
        self._walk = self._rows(0, None, None)

    def _rows(self, index: int, first: int | None, token: Any) -> Iterator[tuple[int, int, Any, Any]]:
        """(work, row, token, value) to the end of the segment."""
        for at in range(index, len(self._works)):
            work = self._works[at]
            opened = work if first is None or at > index else work._replace(first=first, token=token)
            for row, (token_of_row, value) in enumerate(self.read(opened), start=opened.first):
                if work.takes(row):
                    yield at, row, token_of_row, value

    def _fill(self) -> None:
        for _ in range(MOST_EMPTY):
            rows = list(islice(self._walk, self.window))
            if rows:
                break
            self._enter(self._segment + 1)
        else:
            raise StreamError(f"no row to train on in {MOST_EMPTY} epochs, one after the other")
        spans: dict[int, list[int]] = {}
        for index, row, *_ in rows:
            spans.setdefault(index, [index, row, row])[2] = row + 1
        self._window, self._spans, self._taken = (
            rows,
            tuple((index, low, high) for index, low, high in spans.values()),
            0,
        )
        self._shuffled = self.order.shuffled(self.lane, self._segment, self._spans, len(rows))


class Lane:
    """A lane of all sources: (source, work, row, value), the source by a seeded draw.

    Args:
        shares: of each source in the draws.
        draws: how many were made before.
    """

    BLOCK = 256

    def __init__(self, strands: Sequence[Strand], shares: Sequence[float], seed: Sequence[int], draws: int = 0):
        self.strands, self.seed, self.draws = list(strands), tuple(seed), draws
        self.shares = np.asarray(shares) / math.fsum(shares)
        self._drawn = self._draw()

    def __next__(self) -> tuple[int, Work, int, Any]:
        self.source = next(self._drawn)
        self.draws += 1
        return (self.source, *next(self.strands[self.source]))

    def _draw(self) -> Iterator[int]:
        for block in count(self.draws // self.BLOCK):
            rng = np.random.default_rng([*self.seed, self.strands[0].lane, block])
            yield from rng.choice(len(self.shares), self.BLOCK, p=self.shares)[self.draws % self.BLOCK :].tolist()

    @property
    def mark(self) -> tuple[int, list[Mark]]:
        """Draws made, and the mark of each source."""
        return self.draws, [strand.mark for strand in self.strands]


def fit_workers(lanes: int, ranks: int, workers: int) -> int:
    """The most workers of a rank, up to `workers`, that share its lanes evenly."""
    own = lanes // ranks
    return max(count for count in range(1, max(workers, 1) + 1) if own % count == 0)


def fits(lanes: int, ranks: int, workers: int) -> bool:
    """Whether a run may keep its lanes at this number of ranks and workers."""
    return lanes % ranks == 0 and lanes // ranks >= min(workers, LANES)


__all__ = [
    "LANES",
    "Lane",
    "Mark",
    "SourceOrder",
    "Strand",
    "StreamError",
    "Work",
    "cut_shares",
    "fit_workers",
    "fits",
]
