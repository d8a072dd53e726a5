# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Batches that know their samples: what makes one unusable, and who is named for it."""

from types import SimpleNamespace

import pytest
import torch

from xllm.training.batches.notes import NOTES, NamedBatches
from xllm.training.data.dataset import SampleError


class Collator:
    """Joins the samples' tensors; the row "r" makes one placeholder of two frames, rounded up."""

    modality = "r"
    processor = SimpleNamespace(rows={"r": SimpleNamespace(mask_name="mask", num_placeholders=lambda n: -(-n // 2))})

    def __call__(self, samples):
        names = [name for name in samples[0] if name not in ("where", "source", "data")]
        return {name: torch.stack([sample[name] for sample in samples]) for name in names}


def sample(where="a:1", labels=(-100, 5), **fields):
    return {"where": where, "source": "s", "labels": torch.tensor(labels), **fields}


def test_a_batch_has_the_places_of_its_samples():
    batch = NamedBatches(Collator())([sample(), {"labels": torch.tensor([1, 2])}])
    assert batch[NOTES] == {"where": ["a:1", "?"], "source": ["s", "?"]}
    assert batch["labels"].tolist() == [[-100, 5], [1, 2]]
    assert NOTES in NamedBatches(Collator())([{"values": torch.ones(1)}])  # no labels: nothing to look for in them


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": (-100, -100)}, "no token of the answer carries loss"),
        ({"values": torch.tensor([1.0, float("nan")])}, "values holds NaN or Inf"),
        ({"values": torch.tensor([float("inf"), 1.0])}, "values holds NaN or Inf"),
    ],
)
def test_what_no_model_can_learn_from_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NamedBatches(Collator())([sample(**fields)])


@pytest.mark.parametrize("frames", [3, 4])
def test_a_clip_holds_a_token_for_each_of_its_frames(frames):
    """Three and four frames are two of the encoder: enough for two tokens, not for three."""
    mask = (torch.arange(6) < frames).long()
    two, three = sample(labels=(7, 8, -100), mask=mask), sample(labels=(7, 8, 9), mask=mask)
    strict = NamedBatches(Collator(), one_token_per_frame=True)
    assert strict([two])["labels"].tolist() == [[7, 8, -100]]
    with pytest.raises(ValueError, match="3 tokens of text for 2 frames of the encoder"):
        strict([three])
    assert NamedBatches(Collator())([three])["labels"].tolist() == [[7, 8, 9]]


def test_the_data_set_gives_another_for_a_broken_sample_until_one_is_good():
    asked = []

    class Data:
        def instead_of(self, broken, error):
            asked.append((broken["where"], str(error)))
            return {**sample(f"a:{len(asked) + 1}", (3, 4) if len(asked) == 2 else (-100, -100)), "data": self}

    batch = NamedBatches(Collator())([sample("good"), {**sample(labels=(-100, -100)), "data": Data()}])
    assert NOTES in batch
    assert asked == []  # the batch as a whole carries loss
    batch = NamedBatches(Collator())([{**sample(labels=(-100, -100)), "data": Data()}])
    assert asked == [(where, "no token of the answer carries loss") for where in ("a:1", "a:2")]
    assert batch[NOTES]["where"] == ["a:3"]
    assert batch["labels"].tolist() == [[3, 4]]


def test_samples_that_make_no_batch_together_are_all_named():
    with pytest.raises(SampleError, match="a:1, b:2: no batch together: RuntimeError"):
        NamedBatches(Collator())([sample(), sample("b:2", (1, 2, 3))])
