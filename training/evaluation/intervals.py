# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Ratios over rows, and how sure they are."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

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


def interval(rows: Pairs) -> list[float]:
    """The 95 % interval of sum(a) / sum(b) over rows (a, b): Wilson's score interval where each row is right or wrong
    (Wilson 1927), else `bootstrap_interval`, which would call the share of rows that are all right certain."""
    if not all(a in (0, 1) and b == 1 for a, b in rows):
        return list(bootstrap_interval(rows))
    n, share, z = len(rows), ratio(rows), NormalDist().inv_cdf(0.975)
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [min(max((middle + side) / (1 + z * z / n), 0.0), 1.0) for side in (-half, half)]


__all__ = ["Pairs", "bootstrap_interval", "interval", "ratio"]
