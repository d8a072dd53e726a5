# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""CTC prefix beam search against all paths there are, and against torch's CTC loss."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from xllm.modeling_xllm.stage1.ctc_beam_search import ctc_prefix_beam_search


def spelled(path, blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def exhaustive(log_probs: torch.Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Probability of every transcript, by summing every path."""
    sums: dict[tuple[int, ...], float] = {}
    T, V = log_probs.shape
    for path in itertools.product(range(V), repeat=T):
        weight = math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        sums[spelled(path, blank)] = sums.get(spelled(path, blank), 0.0) + weight
    return sums


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("T", "V", "blank"), [(1, 3, 0), (4, 3, 2), (6, 3, 0), (5, 4, 1)])
def test_a_wide_beam_is_exact(seed, T, V, blank):
    torch.manual_seed(seed)
    log_probs = (2 * torch.randn(T, V, dtype=torch.float64)).log_softmax(-1)
    expected = exhaustive(log_probs, blank)
    beams = ctc_prefix_beam_search(log_probs, blank, num_beams=10_000)
    assert {tuple(ids) for ids, _ in beams} == set(expected)
    for ids, score in beams:
        assert math.exp(score) == pytest.approx(expected[tuple(ids)], rel=1e-9)
    assert [score for _, score in beams] == sorted((score for _, score in beams), reverse=True)


def test_the_best_transcript_need_not_be_the_best_path():
    """Two frames, blank 0.6 and an id 0.4: the best path is silence (0.36), the best transcript is the id (0.64)."""
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    (best, score), (silence, other) = ctc_prefix_beam_search(log_probs, blank=0, num_beams=2)
    assert (best, silence) == ([1], [])
    assert math.exp(score) == pytest.approx(0.64)
    assert math.exp(other) == pytest.approx(0.36)


def test_a_repeat_needs_a_blank_between():
    path = torch.tensor([1, 1, 0, 1, 2, 2])
    log_probs = torch.where(F.one_hot(path, 3).bool(), 0.0, -50.0)
    assert ctc_prefix_beam_search(log_probs, 0, 4)[0][0] == [1, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_a_narrow_beam_keeps_right_sums(seed):
    """What a beam of 8 finds in 12 frames of 30 classes scores no more than CTC says, and the best as much."""
    torch.manual_seed(seed)
    log_probs = (4 * torch.randn(12, 30, dtype=torch.float64)).log_softmax(-1)
    beams = ctc_prefix_beam_search(log_probs, 29)
    assert len(beams) == 8
    exact = [
        -float(F.ctc_loss(log_probs[:, None], torch.tensor([ids]), [12], [len(ids)], blank=29, reduction="sum"))
        for ids, _ in beams
    ]
    for (_, score), bound in zip(beams, exact):
        assert score <= bound + 1e-9
    assert beams[0][1] == pytest.approx(exact[0], abs=0.5)


@pytest.mark.parametrize("num_beams", [1, 2, 3])
@pytest.mark.parametrize(("V", "scale"), [(40, 1), (4, 3)])
def test_fewer_candidates_than_classes_change_nothing(num_beams, V, scale):
    """The pruned extensions could never have been among the best: a plain search over all classes agrees."""
    for seed in range(8):
        torch.manual_seed(seed)
        log_probs = (scale * torch.randn(9, V, dtype=torch.float64)).log_softmax(-1)
        found = ctc_prefix_beam_search(log_probs, V - 1, num_beams)
        expected = plain_search(log_probs, num_beams)
        assert [tuple(ids) for ids, _ in found] == list(expected)
        assert [score for _, score in found] == pytest.approx(list(expected.values()))


def plain_search(log_probs: torch.Tensor, num_beams: int) -> dict[tuple[int, ...], float]:
    """Every class after every prefix; the last class is the blank."""
    blank, logsumexp = log_probs.shape[1] - 1, np.logaddexp.reduce
    beams = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        grown: dict[tuple, list[list[float]]] = {}
        for prefix, (in_blank, in_id) in beams.items():
            both = logsumexp([in_blank, in_id])
            grown.setdefault(prefix, [[], []])[0].append(both + frame[blank])
            if prefix:
                grown[prefix][1].append(in_id + frame[prefix[-1]])
            for token in range(blank):
                start = in_blank if prefix and token == prefix[-1] else both
                grown.setdefault((*prefix, token), [[], []])[1].append(start + frame[token])
        sums = {prefix: tuple(logsumexp(part or [-math.inf]) for part in parts) for prefix, parts in grown.items()}
        best = sorted(sums, key=lambda prefix: -logsumexp(sums[prefix]))
        beams = {prefix: sums[prefix] for prefix in best[:num_beams] if logsumexp(sums[prefix]) > -math.inf}
    return {prefix: logsumexp(parts) for prefix, parts in beams.items()}


def test_no_frames_and_bad_input():
    assert ctc_prefix_beam_search(torch.zeros(0, 3), 0) == [([], 0.0)]
    with pytest.raises(ValueError, match="NaN"):
        ctc_prefix_beam_search(torch.tensor([[0.5, float("nan")]]), 0)
    for shape, blank in (((2, 3), 3), ((2, 3), -1), ((3,), 0), ((1, 2, 3), 0)):
        with pytest.raises(ValueError, match=re.escape(f"got {shape} and {blank}")):
            ctc_prefix_beam_search(torch.zeros(shape), blank)
