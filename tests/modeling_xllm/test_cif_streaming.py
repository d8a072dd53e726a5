# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""CIF as a stream: whatever the chunks, the tokens, their times and their gradients are those of the whole."""

import random

import pytest
import torch

from xllm.modeling_xllm.cformer import ContinuousIntegrateAndFire
from xllm.modeling_xllm.cif import integrate_and_fire
from xllm.modeling_xllm.configuration_cformer import CFormerConfig


def cuts(T: int, seed: int) -> list[slice]:
    """Random chunks of T frames, empty ones and single frames among them; the last one may be empty too."""
    rng = random.Random(seed)
    sizes = [0, 1]
    while sum(sizes) < T:
        sizes.append(min(rng.choice([0, 1, 1, 2, 3, 7, 19]), T - sum(sizes)))
    sizes += [0] * rng.randint(0, 1)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


def run(step, chunks):
    """All chunks through `step(chunk, state, is_last)`."""
    outputs, state = [], None
    for number, chunk in enumerate(chunks, start=1):
        outputs.append(step(chunk, state, number == len(chunks)))
        state = outputs[-1].state
        assert (state is None) == (number == len(chunks))
    return outputs


def joined(outputs, name: str) -> list[torch.Tensor]:
    """Row by row, what the chunks fired."""
    rows = range(len(outputs[0].lengths))
    return [torch.cat([output[name][b, : output.lengths[b]] for output in outputs]) for b in rows]


def assert_same(outputs, whole, tolerance):
    assert sum(output.lengths for output in outputs).tolist() == whole.lengths.tolist()
    for name in ("embeddings", "fire_frames"):
        for b, tokens in enumerate(joined(outputs, name)):
            torch.testing.assert_close(tokens, whole[name][b, : whole.lengths[b]], atol=tolerance, rtol=tolerance)
    for output in outputs:
        assert output.mask.sum(1).tolist() == output.lengths.tolist()
        assert not output.embeddings[~output.mask].any()
        assert not output.fire_frames[~output.mask].any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("one_token_per_frame", [True, False])
@pytest.mark.parametrize(("tail", "scale"), [(0.5, 1.0), (0.0, 0.2), (1.0, 2.5)])
def test_the_function_equals_the_whole(seed, dtype, tolerance, one_token_per_frame, tail, scale):
    torch.manual_seed(seed)
    lengths = torch.tensor([61, 1, 0, 40, 61])
    hidden = torch.randn(5, 61, 3, dtype=dtype, requires_grad=True)
    alphas = (torch.rand(5, 61, dtype=dtype) * scale).requires_grad_()
    mask = torch.arange(61) < lengths[:, None]
    mask[4, 20:33] = False  # a gap
    rule = {"tail_threshold": tail, "one_token_per_frame": one_token_per_frame}
    whole = integrate_and_fire(hidden, alphas, mask, **rule)
    outputs = run(
        lambda chunk, state, is_last: integrate_and_fire(
            hidden[:, chunk], alphas[:, chunk], mask[:, chunk], **rule, state=state, is_last=is_last
        ),
        cuts(61, seed),
    )
    assert whole.lengths.max() > 5
    assert_same(outputs, whole, tolerance)
    weights = torch.randn(int(whole.lengths.sum()), 3, dtype=dtype)
    ours = torch.autograd.grad((torch.cat(joined(outputs, "embeddings")) * weights).sum(), (hidden, alphas))
    expected = torch.autograd.grad((torch.cat(joined([whole], "embeddings")) * weights).sum(), (hidden, alphas))
    torch.testing.assert_close(ours, expected, atol=100 * tolerance, rtol=100 * tolerance)


def test_the_picture_in_two_halves():
    """0.4 0.5 0.6 | 0.3 0.7 0.1: the second half gets 0.5 of token 1, and the tail comes with the end."""
    hidden, alphas = torch.eye(6)[None], torch.tensor([[0.4, 0.5, 0.6, 0.3, 0.7, 0.1]])
    first = integrate_and_fire(hidden[:, :3], alphas[:, :3], is_last=False)
    assert first.lengths.tolist() == [1]
    torch.testing.assert_close(first.state.total - first.state.fired, torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(first.state.embedding, 0.5 * hidden[:, 2])
    assert (first.state.frames, first.state.integrated) == (3, 0)
    second = integrate_and_fire(hidden[:, 3:], alphas[:, 3:], state=first.state)
    torch.testing.assert_close(second.embeddings[0, 0], torch.tensor([0, 0, 0.5, 0.3, 0.2, 0]))
    torch.testing.assert_close(second.fire_frames, torch.tensor([[4 + 2 / 7, 6.0]]))
    ended = integrate_and_fire(hidden[:, :0], alphas[:, :0], state=first.state, tail_threshold=0.6)
    assert ended.lengths.tolist() == [0]
    ended = integrate_and_fire(hidden[:, :0], alphas[:, :0], state=first.state, tail_threshold=0.4)
    torch.testing.assert_close(ended.embeddings[0], hidden[0, 2:3])
    assert ended.fire_frames.tolist() == [[3.0]]


@pytest.mark.parametrize(("kind", "kernel"), [("conv", 3), ("conv", 7), ("conv", 1), ("dense", 3), ("linear", 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_module_equals_the_whole(kind, kernel, seed):
    torch.manual_seed(seed)
    config = CFormerConfig(encoder_hidden_size=4, cif_hidden_size=6, cif_predictor=kind, cif_conv_kernel=kernel)
    cif = ContinuousIntegrateAndFire(config).eval()
    hidden = torch.randn(4, 50, 4)
    mask = torch.arange(50) < torch.tensor([50, 31, 0, 2])[:, None]
    hidden = torch.where(mask[..., None], hidden, float("nan"))  # padding is never read, across chunks either
    whole = cif(hidden, mask)
    outputs = run(
        lambda chunk, state, is_last: cif(hidden[:, chunk], mask[:, chunk], state=state, is_last=is_last),
        cuts(50, seed),
    )
    assert_same(outputs, whole, 5e-6)
    torch.testing.assert_close(torch.cat([output.alphas for output in outputs], 1), whole.alphas)
    torch.testing.assert_close(sum(output.quantity for output in outputs), whole.quantity)
    assert outputs[-1].embeddings.shape[-1] == 6


def test_the_module_waits_for_its_right_context_and_keeps_no_more():
    cif = ContinuousIntegrateAndFire(CFormerConfig(encoder_hidden_size=4, cif_hidden_size=4, cif_conv_kernel=5)).eval()
    output = cif(torch.randn(1, 10, 4), is_last=False)
    assert output.alphas.shape == (1, 8)
    assert output.state.frames == 8
    assert output.state.context.shape == (1, 4, 4)  # two frames that wait, two on their left
    assert cif(torch.randn(1, 0, 4), state=output.state).alphas.shape == (1, 2)
    assert cif(torch.randn(1, 0, 4)).lengths.tolist() == [0]  # zero-length speech, not streamed


@pytest.mark.parametrize("kind", ["dense", "linear"])
def test_a_predictor_that_sees_one_frame_waits_for_none(kind):
    output = ContinuousIntegrateAndFire(CFormerConfig(encoder_hidden_size=4, cif_predictor=kind))(
        torch.randn(1, 10, 4), is_last=False
    )
    assert output.alphas.shape == (1, 10)
    assert output.state.context.shape == (1, 0, 4)


def test_a_state_can_be_used_twice():
    hidden, alphas = torch.randn(1, 9, 2), torch.rand(1, 9)
    first = integrate_and_fire(hidden[:, :4], alphas[:, :4], is_last=False)
    once, again = (integrate_and_fire(hidden[:, 4:], alphas[:, 4:], state=first.state) for _ in range(2))
    assert torch.equal(once.embeddings, again.embeddings)


def test_a_million_frames_do_not_drift():
    """Weights of 1/8 are exact: every eighth frame closes a token, in the last chunk as in the first."""
    alphas, hidden, state, fired = torch.full((1, 50_000), 0.125), torch.ones(1, 50_000, 1), None, 0
    for _ in range(20):
        output = integrate_and_fire(hidden, alphas, state=state, is_last=False, fire_threshold=1.0)
        state, fired = output.state, fired + int(output.lengths)
    assert fired == 20 * 50_000 // 8
    assert output.fire_frames[0, -1] == state.frames == 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_lengths": torch.tensor([2])}, "a stream takes no target_lengths"),
        ({"max_tokens": 3}, "a stream takes no target_lengths and no max_tokens"),
        ({"hidden": torch.zeros(1, 4, 5)}, r"the state is of a stream with \(B, D\) = \(1, 2\), not \(1, 5\)"),
        ({"alphas": torch.full((1, 4), float("nan"))}, "finite and not negative"),
    ],
)
def test_bad_input_is_named(arguments, message):
    hidden, alphas = torch.zeros(1, 4, 2), torch.full((1, 4), 0.3)
    state = integrate_and_fire(hidden, alphas, is_last=False).state
    with pytest.raises(ValueError, match=message):
        integrate_and_fire(**{"hidden": hidden, "alphas": alphas, "state": state, "is_last": False, **arguments})
