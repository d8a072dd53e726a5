# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""CTC prefix beam search against all paths there are, and against torch's CTC loss."""

import itertools
import math

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
    beams = ctc_prefix_beam_search(log_probs, 29, 8)
    assert len(beams) == 8
    exact = [
        -float(F.ctc_loss(log_probs[:, None], torch.tensor([ids]), [12], [len(ids)], blank=29, reduction="sum"))
        for ids, _ in beams
    ]
    for (_, score), bound in zip(beams, exact):
        assert score <= bound + 1e-9
    assert beams[0][1] == pytest.approx(exact[0], abs=0.5)


def test_fewer_candidates_than_classes_change_nothing():
    """The pruned extensions could never have been among the best: a plain search over all classes agrees."""
    torch.manual_seed(0)
    log_probs = torch.randn(9, 40, dtype=torch.float64).log_softmax(-1)
    beams = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        grown: dict[tuple, list[list[float]]] = {}
        for prefix, (in_blank, in_id) in beams.items():
            both = torch.logaddexp(torch.tensor(in_blank), torch.tensor(in_id)).item()
            grown.setdefault(prefix, [[], []])[0].append(both + frame[39])
            if prefix:
                grown[prefix][1].append(in_id + frame[prefix[-1]])
            for token in range(39):
                start = in_blank if prefix and token == prefix[-1] else both
                grown.setdefault((*prefix, token), [[], []])[1].append(start + frame[token])
        sums = {
            key: [torch.tensor(part, dtype=torch.float64).logsumexp(0).item() if part else -math.inf for part in parts]
            for key, parts in grown.items()
        }
        best = sorted(sums, key=lambda key: -torch.tensor(sums[key], dtype=torch.float64).logsumexp(0).item())
        beams = {key: tuple(sums[key]) for key in best[:3]}
    assert [ids for ids, _ in ctc_prefix_beam_search(log_probs, 39, 3)] == [list(key) for key in beams]


def test_no_frames_and_bad_input():
    assert ctc_prefix_beam_search(torch.zeros(0, 3), 0) == [([], 0.0)]
    with pytest.raises(ValueError, match="NaN"):
        ctc_prefix_beam_search(torch.full((2, 3), float("nan")), 0)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and 3"):
        ctc_prefix_beam_search(torch.zeros(2, 3), 3)
