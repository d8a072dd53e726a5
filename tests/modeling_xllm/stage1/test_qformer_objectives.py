# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What ranks tell each other in a Q-Former's stage 1, by hand; runs on two ranks: `test_qformer_pretraining.py`."""

import pytest
import torch
from tiny import made_by_default

from xllm.modeling_xllm.stage1 import qformer_objectives
from xllm.modeling_xllm.stage1.qformer_objectives import common_sizes, gather_ranks, mean_over_ranks, world_rank


@pytest.fixture
def other(monkeypatch):
    """This is the first of two ranks; the second gives the tensors that are put into the list."""
    theirs: list[torch.Tensor] = []

    # Both read memory as it lies.
    def all_gather(parts, mine):
        parts[0].view(-1).copy_(mine.view(-1))
        parts[1].view(-1).copy_(theirs.pop(0).view(-1))

    def all_reduce(mine):
        mine.view(-1).add_(theirs.pop(0).view(-1))

    monkeypatch.setattr(qformer_objectives, "world_size", lambda: 2)
    monkeypatch.setattr(qformer_objectives.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(qformer_objectives.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(qformer_objectives.distributed, "all_gather", all_gather)
    return theirs


def test_parts_of_a_mean_over_unequal_ranks(other):
    """3 items of 6 here and 1 of 10 there: 4 on average, of which this rank's part is 2 * 6 / 4."""
    count = torch.tensor(3)
    other.append(torch.tensor(1))
    assert mean_over_ranks(torch.tensor(6.0), count) == 3
    assert count == 3, "the caller's own"
    other.append(torch.tensor(0))
    assert mean_over_ranks(torch.tensor(0.0), torch.tensor(0)) == 0


def test_alone_there_is_nothing_to_tell():
    assert mean_over_ranks(torch.tensor(6.0), torch.tensor(3)) == 2
    assert mean_over_ranks(torch.tensor(6.0), torch.tensor(1)) == 6
    assert mean_over_ranks(torch.tensor(0.0), torch.tensor(0)) == 0
    assert common_sizes(2, 5, 7, device=torch.device("cpu")) == [5, 7]
    assert world_rank() == 0
    tensor = torch.ones(2, 3)
    assert gather_ranks(tensor, (9,)) is tensor


def test_the_largest_sizes_of_equal_batches(other):
    other.append(torch.tensor([4, 9, 2]))
    with made_by_default("meta"):
        assert common_sizes(4, 5, 7, device=torch.device("cpu")) == [9, 7]
    other.append(torch.tensor([3, 9, 2]))
    with pytest.raises(ValueError, match=r"ranks hold batches of \[4, 3\] pairs, not of one size"):
        common_sizes(4, 5, 7, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.long, torch.bool])
def test_tensors_of_all_ranks_in_order(other, dtype):
    mine = torch.tensor([[[1, 0], [1, 1]]]).to(dtype)
    other.append(torch.tensor([[[1, 1], [1, 1], [0, 1]]]))
    found = gather_ranks(mine, (3,), value=1)
    assert found.dtype == dtype
    assert found.int().tolist() == [[[1, 0], [1, 1], [1, 1]], [[1, 1], [1, 1], [0, 1]]]


def test_the_gradient_of_a_gathered_tensor_is_that_of_all_who_used_it(other):
    mine = torch.tensor([[1.0, 2.0]], requires_grad=True)
    other += [torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])]  # their values, their gradient
    (gather_ranks(mine).T * torch.tensor([[1.0, 3.0], [2.0, 4.0]])).sum().backward()  # which comes in another order
    assert mine.grad.tolist() == [[11.0, 22.0]]
    assert world_rank() == 0


def test_tensors_in_any_order_are_gathered(other):
    other.append(torch.tensor([[5, 6], [7, 8]]))
    assert gather_ranks(torch.tensor([[1, 3], [2, 4]]).T).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
