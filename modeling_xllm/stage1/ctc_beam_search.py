# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Prefix beam search over the frames of a CTC head (Graves 2012, sec. 7.5.3; Hannun et al. 2014, arXiv 1408.2873).

A transcript's probability is the sum over all paths that spell it. Each prefix therefore carries two sums: of its
paths that end in blank and of those that end in its last id; the same id again is a repeat after the latter, a new
token only after the former. There is no language model. (torchaudio's `ctc_decoder` needs flashlight-text, which has
no wheels for Python 3.13 and later.)
"""

import math

import torch


def _add(*terms: float) -> float:
    """log of the sum of exponentials."""
    highest = max(terms)
    return highest if highest == -math.inf else highest + math.log(sum(math.exp(term - highest) for term in terms))


def ctc_prefix_beam_search(log_probs: torch.Tensor, blank: int, num_beams: int = 8) -> list[tuple[list[int], float]]:
    """The most probable transcripts of one clip: at most `num_beams` pairs (ids, log-probability), the best first.

    After each frame the `num_beams` best prefixes stay; nothing else is approximated, so with a beam that holds every
    prefix the scores are exact. `log_probs (T, V)`: log-probabilities of the classes per frame, of which `blank` is
    CTC's; T may be 0. NaN, another shape, or a blank that is no class are a `ValueError`.
    """
    if log_probs.dim() != 2 or not 0 <= blank < log_probs.shape[1]:
        raise ValueError(f"log_probs must be (T, V) with blank < V, got {tuple(log_probs.shape)} and {blank}")
    if log_probs.isnan().any():
        raise ValueError("log_probs hold NaN: check the encoder")
    # Only the num_beams likeliest classes after a prefix can stay (a blank keeps the prefix itself), and one more, as
    # the repeat of its last id follows a part of its paths alone.
    candidates = log_probs.topk(min(num_beams + 1, log_probs.shape[1]), dim=1).indices.tolist()
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}  # prefix -> (ends in blank, in its id)
    for frame, ids in zip(log_probs.cpu().tolist(), candidates):
        # The last ids of the beam as well: such an extension may meet a prefix that is in the beam already.
        ids = {*ids, *(prefix[-1] for prefix in beams if prefix)} - {blank}
        grown: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_id) in beams.items():
            both = _add(in_blank, in_id)
            stays = grown.setdefault(prefix, [-math.inf, -math.inf])
            stays[0] = _add(stays[0], both + frame[blank])
            if prefix:
                stays[1] = _add(stays[1], in_id + frame[prefix[-1]])
            for token in ids:
                start = in_blank if prefix and token == prefix[-1] else both
                longer = grown.setdefault((*prefix, token), [-math.inf, -math.inf])
                longer[1] = _add(longer[1], start + frame[token])
        best = sorted(grown.items(), key=lambda item: _add(*item[1]), reverse=True)
        beams = {prefix: tuple(sums) for prefix, sums in best[:num_beams] if max(sums) > -math.inf}
    return [(list(prefix), _add(*sums)) for prefix, sums in beams.items()]
