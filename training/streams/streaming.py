# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Training data that are never read as a whole: an endless stream of batches in the order of `stream_order`.

A worker makes a batch of one lane, and sends with it how far the lane has come. The process that trains keeps the
marks of what it has consumed, not of what its workers have fetched ahead: `state_dict` of them, merged over all ranks,
lets any number of ranks and workers go on (see `stream_order` for what exactly stays the same).

Memory: `shuffle_buffer` rows of each rank; media are decoded when their turn has come. Of Parquet files with media
inside, a row holds their bytes. Everything random in a sample follows from (seed, epoch, file, row).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from xllm.training.data.dataset import ChatDataset, SampleError, describe
from xllm.training.data.media_rows import DataError, media_rows
from xllm.training.data.samples import Sample
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.streams.stream_files import StreamSource
from xllm.training.streams.stream_order import (
    LANES,
    MOST_EMPTY,
    Lane,
    Mark,
    SourceOrder,
    Strand,
    StreamError,
    Work,
    fit_workers,
    fits,
)


logger = logging.get_logger(__name__)

MOST_SKIPPED = 1000  # broken rows, one after the other, before a run stops


def _plain(samples: list[dict]) -> list[dict]:
    return [{name: value for name, value in sample.items() if name != "data"} for sample in samples]


class StreamBatch(NamedTuple):
    """What `collate` makes of samples; their lane and its marks behind them; what was left out on the way."""

    batch: Any
    lane: int
    mark: tuple[int, list[Mark]]
    skipped: list[str]


class StreamingDataset(IterableDataset):
    """Batches of conversations with decoded media, without end, for a loader with `batch_size=None`.

    Args:
        sources (`list[StreamSource]`).
        processor, augmentation, seed, long_media: see `ChatDataset`.
        weights (`list[float]`, *optional*): a source's share of the draws; 3 and 1: three samples of four come from
            the first, whatever the sizes are. Default 1. Each source passes through its epochs by itself.
        on_error (`str`): "raise", or "skip" rows that cannot be used and what is left of a damaged file; both are
            named in a warning and counted, and the lane's next row takes their place.
        shuffle_buffer (`int`): rows that each rank keeps in memory; each lane shuffles windows of a 24th of them.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        processor,
        weights: Sequence[float] | None = None,
        augmentation=None,
        on_error: str = "raise",
        seed: int = 0,
        shuffle_buffer: int = 10_000,
        long_media=None,
    ):
        self.sources, self.on_error, self.seed = list(sources), on_error, seed
        self.weights = [1.0] * len(self.sources) if weights is None else list(map(float, weights))
        if len(self.weights) != len(self.sources) or any(weight <= 0 for weight in self.weights):
            raise DataError(f"weights must be {len(self.sources)} positive numbers; got {self.weights}")
        self.decoder = ChatDataset([[]], processor, augmentation=augmentation, long_media=long_media)
        self.first: list[Sample] = []  # of each source, as far as it was looked into
        self.collate: Callable[[list[dict]], Any] = _plain
        self.window = max(shuffle_buffer // LANES, 1)
        self.rank, self.ranks, self.batch_size, self.workers = 0, 1, 1, 0
        self.position, self.first_epoch = 0, 0  # of the next batch of all ranks; of a run that begins
        self.marks: dict[int, tuple[int, list[Mark]]] = {}
        self._orders: list[SourceOrder] | None = None
        self._consumed: set[int] = set()  # lanes of which this process has trained on a batch
        self._skipped: dict[str, None] = {}  # as a set that keeps its order
        self._known = 0  # how many of these come from a checkpoint
        self._lane: Lane | None = None  # in a worker: that of the batch that is being made,
        self._missing: list[str] = []  # and what was left out of it
        self._warned: set[str] = set()

    @classmethod
    def from_specs(cls, specs: Iterable[SourceSpec], processor, modalities: Iterable[str] = (), **kwargs):
        """The sources of a recipe, each looked into."""
        specs, media = list(specs), media_rows(processor, modalities)
        sources = [StreamSource(spec, media) for spec in specs]
        first = [source.check(is_strict=kwargs.get("on_error") != "skip") for source in sources]
        data = cls(sources, processor, weights=[spec.weight for spec in specs], **kwargs)
        data.first = [sample for samples in first for sample in samples]
        return data

    @property
    def lanes(self) -> int:
        """How many lanes the run has; see `stream_order`."""
        return self.orders[0].lanes

    @property
    def orders(self) -> list[SourceOrder]:
        """The order of each source."""
        if self._orders is None:
            self._orders = [
                SourceOrder(source.sizes, LANES * self.ranks, (self.seed, number), self.first_epoch)
                for number, source in enumerate(self.sources)
            ]
        return self._orders

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch; a run that has begun passes from epoch to epoch by itself."""
        if not self.marks and self._orders is None:
            self.first_epoch = epoch

    def place(self, rank: int = 0, ranks: int = 1, batch_size: int = 1, workers: int = 0) -> int:
        """Which part of the stream is read here, before it is iterated: returns how many workers to start.

        The lanes of the run are kept if the ranks and workers fit them, or else dealt anew.
        """
        self.rank, self.ranks, self.batch_size = rank, ranks, batch_size
        if not fits(self.lanes, ranks, workers):
            logger.warning(
                f"{ranks} ranks with {workers} workers do not fit the {self.lanes} lanes of this run: what is left "
                "of its epochs is dealt anew, each row still once"
            )
            marks = [
                {lane: mark[source] for lane, (_, mark) in self.marks.items()} for source in range(len(self.sources))
            ]
            self._orders = [order.deal_anew(own, LANES * ranks) for order, own in zip(self.orders, marks)]
            self.marks, self._consumed = {}, set()
        self.workers = workers and fit_workers(self.lanes, ranks, workers)
        if self.workers < workers:
            logger.warning(
                f"{self.workers} workers instead of {workers}: {self.lanes // ranks} lanes are shared evenly"
            )
        return self.workers

    # ---- in a worker ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[StreamBatch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if self.lanes // self.ranks % workers:
            raise ValueError(
                f"{workers} workers cannot share {self.lanes // self.ranks} lanes; ask `place` how many can"
            )
        lanes: dict[int, Lane] = {}
        first = self.position + self.rank
        for batch in count(worker, workers):
            number = (first + batch * self.ranks) % self.lanes
            if number not in lanes:
                lanes[number] = self._open(number)
            yield self._batch(number, lanes[number])

    def _open(self, number: int) -> Lane:
        draws, marks = self.marks.get(number, (0, [None] * len(self.sources)))
        strands = []
        for source, order, mark in zip(self.sources, self.orders, marks):
            try:
                strands.append(Strand(order, number, self.window, self._reader(source), mark))
            except StreamError as error:
                raise SampleError(f"{source.name}: {error}") from error
        return Lane(strands, self.weights, (self.seed, len(self.sources)), draws)

    def _reader(self, source: StreamSource):
        def read(work: Work) -> Iterator[tuple[Any, Any]]:
            try:
                yield from source.read(work)
            except DataError as error:
                self._leave_out(str(error), error)

        return read

    def _leave_out(self, what: str, error: Exception) -> None:
        """Note what cannot be used, in one line, or stop."""
        if self.on_error == "raise":
            raise SampleError(what) from error
        if what not in self._warned:
            logger.warning(f"skipped {what}")
            self._warned.add(what)
        self._missing.append(what)

    def _batch(self, number: int, lane: Lane) -> StreamBatch:
        self._lane = lane
        samples = [self._next() for _ in range(self.batch_size)]
        batch = self.collate(samples)  # which may ask for others, `instead_of` broken ones
        skipped, self._missing = self._missing, []
        return StreamBatch(batch, number, lane.mark, skipped)

    def instead_of(self, item: dict, error: Exception) -> dict:
        """The next sample of the lane, for one that no batch can be made of; an error unless such are skipped."""
        self._leave_out(f"{StreamSource.named(item['where'])}: {describe(error)}", error)
        return self._next()

    def _next(self) -> dict:
        """The next sample of the lane that can be used."""
        lane = self._lane
        assert lane is not None
        seen: dict[int, int] = {}  # source -> the epoch of its first row here
        while True:
            try:
                source, work, row, value = next(lane)
            except StreamError as error:
                raise SampleError(f"{self.sources[lane.source].name}: {error}") from error
            if work.epoch - seen.setdefault(source, work.epoch) > MOST_EMPTY or len(self._missing) > MOST_SKIPPED:
                why = f"; the last: {self._missing[-1]}" if self._missing else " (where, exclude)"
                raise SampleError(f"{self.sources[source].name}: no row is left that can be used{why}")
            if (item := self._item(source, work, row, value)) is not None:
                return item

    def _item(self, source: int, work: Work, row: int, value: tuple[str, Any]) -> dict | None:
        rng = np.random.default_rng([self.seed, source, work.epoch, work.shard, work.low, row])
        try:
            sample = self.sources[source].sample(value)
            return None if sample is None else {**self.decoder.item(sample, rng), "data": self}
        except Exception as error:  # noqa: BLE001  # of any kind: decoders are other libraries'
            where, text = value[0], describe(error)
            text = text if text.startswith(where) else f"{where}: {text}"
            self._leave_out(text.replace(where, StreamSource.named(where)), error)
        return None

    # ---- in the process that trains ---------------------------------------------------------------------------------

    def consume(self, batch: StreamBatch) -> None:
        """Note that a batch is trained on."""
        self.marks[batch.lane] = batch.mark
        self._consumed.add(batch.lane)
        self.position += self.ranks
        self._skipped.update(dict.fromkeys(batch.skipped))

    def skipped(self) -> list[str]:
        """What was left out so far, each with its place."""
        return list(self._skipped)

    def skip_again(self, places: Iterable[str]) -> None:
        """Count as left out what an interrupted run has left out; `load_state_dict` knows that of all ranks."""
        self._skipped.update(dict.fromkeys(places))

    def fingerprint(self) -> dict:
        """Of all sources, as `StreamSource.fingerprint`."""
        found = [source.fingerprint() for source in self.sources]
        if len(found) == 1:
            return found[0]
        files = sum(len(source.sizes) for source in self.sources)
        counts = {"samples": f"{files} files, streamed", "bytes": sum(one["bytes"] for one in found)}
        digest = hashlib.sha256("".join(one["sha256"] for one in found).encode()).hexdigest()
        return {"names": [name for one in found for name in one["names"]], **counts, "sha256": digest}

    def summary(self) -> str:
        """What there is, in a few words."""
        found = self.fingerprint()
        return f"{found['samples']} ({found['bytes']:,} bytes)"

    def _settings(self) -> dict:
        """What a run that goes on must have in common with the one that wrote its checkpoint."""
        data = [source.fingerprint()["sha256"] for source in self.sources]
        return {"data": data, "weights": self.weights, "seed": self.seed, "shuffle_buffer": self.window * LANES}

    def progress(self) -> dict:
        """What this rank alone knows: the marks of its lanes, and what it has left out."""
        return {
            "marks": {lane: self.marks[lane] for lane in sorted(self._consumed)},
            "skipped": self.skipped()[self._known :],
        }

    def state_dict(self, ranks: Sequence[dict] | None = None) -> dict:
        """Where the run stands, for JSON; `ranks` are the `progress` of every rank at the same step."""
        ranks = [self.progress()] if ranks is None else ranks
        marks, skipped = dict(self.marks), dict.fromkeys(self.skipped()[: self._known])
        for rank in ranks:
            marks.update(rank["marks"])
            skipped.update(dict.fromkeys(rank["skipped"]))
        orders = []
        for number, order in enumerate(self.orders):
            begun = [own[number].segment for _, own in marks.values()]
            is_read = len(begun) == self.lanes and min(begun) >= order.first_epoch
            orders.append({"first_epoch": order.first_epoch, "rest": None if is_read else order.rest})
        state = {"lanes": self.lanes, "position": self.position, "orders": orders}
        return {
            **self._settings(),
            **state,
            "marks": {str(lane): mark for lane, mark in marks.items()},
            "skipped": list(skipped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of all ranks; `place` comes behind it.

        Raises:
            DataError: the state belongs to other data, or to other settings.
        """
        for name, value in self._settings().items():
            if state[name] != value:
                raise DataError(
                    f"the checkpoint's stream has another {name} ({state[name]!r:.200}, now {value!r:.200}): go on "
                    "with what the run began with, or begin anew"
                )
        self._orders = [
            SourceOrder(
                source.sizes,
                state["lanes"],
                (self.seed, number),
                order["first_epoch"],
                None if order["rest"] is None else [[Work(*work) for work in works] for works in order["rest"]],
            )
            for number, (source, order) in enumerate(zip(self.sources, state["orders"]))
        ]
        self.marks = {
            int(lane): (draws, [Mark.of(mark) for mark in marks]) for lane, (draws, marks) in state["marks"].items()
        }
        self.position, self._skipped = state["position"], dict.fromkeys(state["skipped"])
        self._consumed, self._known = set(), len(self._skipped)


__all__ = ["StreamBatch", "StreamingDataset"]
