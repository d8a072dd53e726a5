# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Ratios over rows, and how sure they are."""

from collections.abc import Sequence

import numpy as np


Pairs = Sequence[tuple[float, float]]


def ratio(rows: Sequence[tuple[float, float]]) -> float:
    """sum(a) / sum(b) over rows (a, b), 0 where there is nothing to divide by."""
    above, below = (sum(side) for side in zip(*rows)) if rows else (0, 0)
    return above / below if below else 0.0


def bootstrap_interval(
    rows: Pairs, without: Pairs | None = None, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval (percentiles) of sum(a) / sum(b) over rows (a, b): as many are drawn anew, `draws` times; with
    `without`, other figures for the same rows, of the difference from theirs (paired)."""
    columns = np.asarray([rows] if without is None else [rows, without], np.float64)  # (1 or 2, rows, 2)
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        sums = columns[:, rng.integers(columns.shape[1], size=columns.shape[1])].sum(1)
        if sums[:, 1].all():
            values = sums[:, 0] / sums[:, 1]
            found.append(values[0] - (values[1] if without is not None else 0.0))
    low, high = np.percentile(found or [0.0], (2.5, 97.5))
    return float(low), float(high)


__all__ = ["Pairs", "bootstrap_interval", "ratio"]
