# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""CIF against hand-computed firings, a per-frame loop, and the tensors of the published code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xllm.modeling_xllm.cformer import ContinuousIntegrateAndFire
from xllm.modeling_xllm.cif import integrate_and_fire
from xllm.modeling_xllm.configuration_cformer import CFormerConfig


PARITY = Path(__file__).parents[3] / "shared" / "parity" / "cif" / "reference.safetensors"


def fire_slowly(hidden, alphas, target=None, threshold=0.99, tail=0.5, one_token_per_frame=True):
    """One row, frame by frame, as the papers tell it: accumulate, fire, keep the rest. Returns tokens and frames."""
    if target is not None:
        alphas = alphas * target / alphas.sum()
    tokens, frames = [], []
    weight, state = torch.zeros((), dtype=hidden.dtype), torch.zeros_like(hidden[0])
    for frame, (h, a) in enumerate(zip(hidden, alphas)):
        left, fired_here = a, 0
        while target is None or len(tokens) < target:
            at_end = target is not None and frame == len(hidden) - 1
            may_fire = at_end or not (one_token_per_frame and fired_here)
            if not may_fire or (weight + left < threshold and not at_end):
                break
            tokens.append(state + (1 - weight) * h)
            frames.append(frame)
            left, weight, state, fired_here = left - (1 - weight), torch.zeros_like(weight), torch.zeros_like(h), 1
        weight, state = weight + left, state + left * h
    if target is None and weight > tail:
        tokens.append(state / (weight + 1e-10))
        frames.append(len(hidden) - 1)
    return tokens, frames


def batch(lengths, D=3, scale=1.0, dtype=torch.float64):
    T = max(lengths)
    hidden = torch.randn(len(lengths), T, D, dtype=dtype, requires_grad=True)
    alphas = (torch.rand(len(lengths), T, dtype=dtype) * scale).requires_grad_()
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    return hidden, alphas, mask


def test_the_picture_in_the_docstring():
    hidden = torch.eye(6)[None]
    out = integrate_and_fire(hidden, torch.tensor([[0.4, 0.5, 0.6, 0.3, 0.7, 0.1]]))
    expected = torch.tensor([[0.4, 0.5, 0.1, 0, 0, 0], [0, 0, 0.5, 0.3, 0.2, 0], [0, 0, 0, 0, 0.5 / 0.6, 0.1 / 0.6]])
    torch.testing.assert_close(out.embeddings[0], expected)
    # Token 0 is complete one sixth into frame 2, token 1 two sevenths into frame 4, the tail at the end.
    torch.testing.assert_close(out.fire_frames, torch.tensor([[2 + 1 / 6, 4 + 2 / 7, 6.0]]))
    assert out.lengths.tolist() == [3]
    assert out.mask.tolist() == [[True, True, True]]


def test_a_token_closes_at_the_threshold_but_weighs_one():
    out = integrate_and_fire(torch.eye(3)[None], torch.tensor([[0.6, 0.39, 0.3]]))
    # 0.99 fires; frame 1 gives the 0.4 that was missing, 0.01 more than it had. What is left of 0.29 is dropped.
    torch.testing.assert_close(out.embeddings[0], torch.tensor([[0.6, 0.4, 0.0]]))
    assert integrate_and_fire(torch.eye(3)[None], torch.tensor([[0.6, 0.38, 0.0]])).lengths.tolist() == [1]  # the tail


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("one_token_per_frame", [False, True])
@pytest.mark.parametrize(("threshold", "tail", "scale"), [(0.99, 0.5, 1.0), (1.0, 0.3, 0.4), (0.9, 0.5, 2.5)])
def test_equals_the_loop_with_its_gradients(seed, with_targets, one_token_per_frame, threshold, tail, scale):
    torch.manual_seed(seed)
    lengths = [17, 1, 9, 17]
    hidden, alphas, mask = batch(lengths, scale=scale)
    targets = [5, 1, 9, 12] if one_token_per_frame else [5, 2, 15, 12]
    targets = targets if with_targets else [None] * 4
    rule = {"one_token_per_frame": one_token_per_frame}
    rows = [
        fire_slowly(hidden[b, :length], alphas[b, :length], targets[b], threshold, tail, **rule)
        for b, length in enumerate(lengths)
    ]
    out = integrate_and_fire(
        hidden, alphas, mask, torch.tensor(targets) if with_targets else None, threshold, tail, **rule
    )
    assert out.lengths.tolist() == [len(tokens) for tokens, _ in rows]
    assert out.mask.sum(1).tolist() == out.lengths.tolist()
    expected = torch.nn.utils.rnn.pad_sequence(
        [torch.stack(tokens) if tokens else hidden[b, :0] for b, (tokens, _) in enumerate(rows)], batch_first=True
    )
    torch.testing.assert_close(out.embeddings, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((out.embeddings * weights).sum(), (hidden, alphas))
    loops = torch.autograd.grad((expected * weights).sum(), (hidden, alphas))
    torch.testing.assert_close(ours, loops, atol=1e-10, rtol=1e-10)
    for row, (_, frames) in zip(out.fire_frames, rows):
        for end, frame in zip(row.tolist(), frames):
            assert frame - 1e-5 <= end <= frame + 1 + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("T", [10, 500, 20_000])
@pytest.mark.parametrize(("one_token_per_frame", "per_frame"), [(True, 1 / 3), (True, 1.0), (False, 2.5)])
def test_exactly_the_target_comes_out(dtype, T, one_token_per_frame, per_frame):
    alphas = torch.rand(6, T).to(dtype)
    targets = torch.randint(1, int(T * per_frame), (6,))
    targets[0] = int(T * per_frame)
    out = integrate_and_fire(
        torch.ones(6, T, 1, dtype=dtype), alphas, None, targets, one_token_per_frame=one_token_per_frame
    )
    assert torch.equal(out.lengths, targets)
    assert out.embeddings.dtype == dtype
    if per_frame == 1.0:
        return  # a token from every frame: weight that waited is taken back later, which half precision rounds
    # Every token weighs one, the last one too; what is seen here is the rounding of the weights to `dtype`.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(out.embeddings[out.mask].float(), torch.ones(targets.sum(), 1), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_gradients_in_half_precision(dtype, tolerance):
    """Relative to the same values in float32, over several blocks of products."""
    hidden, alphas = torch.randn(3, 700, 257).to(dtype), (torch.rand(3, 700) * 0.6).to(dtype)
    toward = torch.randn(3, 250, 257).to(dtype)
    found = []
    for kind in (dtype, torch.float32):
        given = [value.detach().to(kind).requires_grad_() for value in (hidden, alphas)]
        out = integrate_and_fire(*given, None, torch.tensor([250, 200, 100])).embeddings
        found.append([grad.float() for grad in torch.autograd.grad(out, given, toward.to(kind)[:, : out.shape[1]])])
    for half, full in zip(*found):
        assert (half - full).norm() <= tolerance * full.norm()


def test_no_drift_over_twenty_thousand_frames():
    alphas = torch.rand(2, 20_000) * 0.6
    hidden = torch.randn(2, 20_000, 4)
    for targets in (None, torch.tensor([6000, 4321])):
        single = integrate_and_fire(hidden, alphas, None, targets)
        double = integrate_and_fire(hidden.double(), alphas.double(), None, targets)
        assert torch.equal(single.lengths, double.lengths)
        torch.testing.assert_close(single.embeddings.double(), double.embeddings, atol=5e-6, rtol=0)


def test_tail_rule_on_every_row_and_only_without_targets():
    alphas = torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.5, 0.5, 0.3, 0.1], [0.6, 0.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    hidden = torch.randn(3, 4, 2)
    out = integrate_and_fire(hidden, alphas, mask)
    assert out.lengths.tolist() == [2, 1, 1]  # rows without padding have a tail too
    torch.testing.assert_close(out.embeddings[0, 1], hidden[0, 2:].mean(0))
    torch.testing.assert_close(out.embeddings[2, 0], hidden[2, 0])
    assert integrate_and_fire(hidden, alphas, mask, tail_threshold=0.3).lengths.tolist() == [2, 2, 1]
    assert integrate_and_fire(hidden, alphas, mask, torch.tensor([1, 1, 1])).lengths.tolist() == [1, 1, 1]


def test_rows_that_fire_nothing():
    hidden = torch.randn(3, 4, 2, requires_grad=True)
    alphas = torch.tensor([[0.1] * 4, [0.9] * 4, [0.5] * 4], requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    out = integrate_and_fire(hidden, alphas, mask)
    assert out.lengths.tolist() == [0, 0, 2]
    assert not out.embeddings[:2].any()
    out.embeddings.sum().backward()
    assert not alphas.grad[:2].any()
    nothing = integrate_and_fire(hidden[:2], alphas[:2], mask[:2])
    assert nothing.embeddings.shape == (2, 0, 2)
    assert nothing.mask.shape == nothing.fire_frames.shape == (2, 0)
    assert integrate_and_fire(hidden[:2], alphas[:2], mask[:2], max_tokens=2).lengths.tolist() == [0, 0]
    one_each = torch.tensor([1, 1])  # a fixed width checks no values: a row of padding fires nothing all the same
    assert integrate_and_fire(hidden[:2], alphas[:2], mask[:2], one_each, max_tokens=2).lengths.tolist() == [1, 0]
    assert integrate_and_fire(torch.randn(1, 1, 2), torch.tensor([[0.5]])).lengths.tolist() == [0]  # no more than half
    assert integrate_and_fire(torch.randn(2, 0, 3), torch.randn(2, 0)).embeddings.shape == (2, 0, 3)
    assert integrate_and_fire(torch.randn(0, 5, 3), torch.randn(0, 5)).embeddings.shape == (0, 0, 3)
    assert integrate_and_fire(torch.randn(0, 5, 3), torch.randn(0, 5), max_tokens=2).embeddings.shape == (0, 2, 3)


def test_silent_rows_spread_their_target_evenly():
    out = integrate_and_fire(torch.eye(4)[None], torch.zeros(1, 4), torch.tensor([[1, 1, 1, 0]]), torch.tensor([3]))
    torch.testing.assert_close(out.embeddings[0], torch.eye(4)[:3])


def test_several_tokens_of_one_frame():
    hidden = torch.tensor([[[1.0], [2.0], [3.0]]])
    out = integrate_and_fire(hidden, torch.tensor([[0.5, 3.0, 0.5]]), one_token_per_frame=False)
    torch.testing.assert_close(out.embeddings, torch.tensor([[[1.5], [2.0], [2.0], [2.5]]]))
    torch.testing.assert_close(out.fire_frames, torch.tensor([[1 + 0.5 / 3, 1 + 1.5 / 3, 1 + 2.5 / 3, 3.0]]))
    more_than_frames = integrate_and_fire(hidden, torch.ones(1, 3), None, torch.tensor([6]), one_token_per_frame=False)
    torch.testing.assert_close(more_than_frames.embeddings.flatten(), torch.tensor([1.0, 1, 2, 2, 3, 3]))
    # As published, weight beyond one token waits for the next frame; the last frame closes what is missing.
    assert integrate_and_fire(hidden, torch.tensor([[0.5, 3.0, 0.0]])).lengths.tolist() == [3]
    all_in_the_end = integrate_and_fire(hidden, torch.tensor([[0.0, 0.0, 0.1]]), None, torch.tensor([3]))
    torch.testing.assert_close(all_in_the_end.embeddings.flatten(), torch.tensor([3.0, 3.0, 3.0]))


def test_padding_changes_nothing_even_if_it_is_nan():
    hidden, alphas, mask = batch([12, 7, 0])
    with torch.no_grad():
        hidden[~mask] = float("nan")
        alphas[~mask] = float("nan")
    for targets in (None, torch.tensor([5, 3, 0])):
        out = integrate_and_fire(hidden, alphas, mask, targets)
        gradients = torch.autograd.grad(out.embeddings.square().sum(), (hidden, alphas))
        assert all(gradient.isfinite().all() and not gradient[~mask].any() for gradient in gradients)
        for b, length in enumerate([12, 7]):
            alone = integrate_and_fire(
                hidden[b : b + 1, :length],
                alphas[b : b + 1, :length],
                None,
                None if targets is None else targets[b : b + 1],
            )
            assert torch.equal(alone.embeddings[0], out.embeddings[b, : out.lengths[b]])
            assert torch.equal(alone.fire_frames[0], out.fire_frames[b, : out.lengths[b]])


def test_a_batch_of_padding_alone_is_not_read():
    hidden, alphas = (torch.full(shape, float("nan"), requires_grad=True) for shape in ((2, 3, 2), (2, 3)))
    wide = integrate_and_fire(hidden, alphas, torch.zeros(2, 3), max_tokens=2).embeddings
    state = integrate_and_fire(hidden, alphas, torch.zeros(2, 3), is_last=False).state
    assert not wide.any()
    assert not state.embedding.any()
    gradients = torch.autograd.grad(wide.sum() + state.embedding.sum(), (hidden, alphas))
    assert not any(gradient.any() for gradient in gradients)


def test_masked_frames_in_the_middle_are_skipped():
    hidden, alphas, _ = batch([10])
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1, 1, 0]]).bool()
    for targets in (None, torch.tensor([3])):
        squeezed = integrate_and_fire(hidden[mask][None], alphas[mask][None], None, targets)
        torch.testing.assert_close(integrate_and_fire(hidden, alphas, mask, targets).embeddings, squeezed.embeddings)


def test_gradients_are_exact():
    hidden, alphas, mask = batch([9, 5, 0])
    for targets in (None, torch.tensor([4, 5, 0])):
        assert torch.autograd.gradcheck(
            lambda h, a, t=targets: integrate_and_fire(h, a, mask, t).embeddings, (hidden, alphas)
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_of_one_input_alone(dtype):
    """Beside a frozen encoder, or with weights that are given."""
    given = [tensor.to(dtype).detach().requires_grad_() for tensor in batch([9, 5])[:2]]
    both = torch.autograd.grad(integrate_and_fire(*given).embeddings.square().sum(), given)
    for number, expected in enumerate(both):
        inputs = [one if place == number else one.detach() for place, one in enumerate(given)]
        (alone,) = torch.autograd.grad(integrate_and_fire(*inputs).embeddings.square().sum(), inputs[number])
        assert torch.equal(alone, expected)


def test_backward_keeps_little_more_than_the_input():
    hidden = torch.randn(2, 400, 256, requires_grad=True)
    alphas = (torch.rand(2, 400) * 0.5).requires_grad_()
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = integrate_and_fire(hidden, alphas)
    assert out.embeddings.requires_grad
    assert sum(storages.values()) <= 1.1 * hidden.nbytes


def test_fixed_width():
    hidden, alphas, mask = batch([12, 7])
    free = integrate_and_fire(hidden, alphas, mask)
    wide = integrate_and_fire(hidden, alphas, mask, max_tokens=12)
    assert wide.embeddings.shape == (2, 12, 3)
    assert torch.equal(wide.lengths, free.lengths)
    torch.testing.assert_close(wide.embeddings[:, : free.embeddings.shape[1]], free.embeddings)
    cut = integrate_and_fire(hidden, alphas, mask, max_tokens=2)
    assert cut.lengths.tolist() == [2, 2]
    torch.testing.assert_close(cut.embeddings, free.embeddings[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("targets", [None, (3, 2)])
@pytest.mark.parametrize("mask", [None, torch.ones(2, 9)])
def test_fixed_width_reads_nothing_and_stays_on_its_device(dtype, targets, mask):
    """Tensors without values refuse to be read and to meet those of another device."""
    hidden, alphas = torch.ones(2, 9, 3, dtype=dtype, device="meta"), torch.ones(2, 9, device="meta")
    there = [None if one is None else torch.as_tensor(one, device="meta") for one in (mask, targets)]
    given = (hidden.requires_grad_(), alphas.requires_grad_())
    out = integrate_and_fire(*given, *there, max_tokens=4)
    assert {out[name].device.type for name in ("embeddings", "mask", "lengths", "fire_frames")} == {"meta"}
    assert [one.shape for one in torch.autograd.grad(out.embeddings.sum(), given)] == [(2, 9, 3), (2, 9)]


def test_fixed_width_is_one_graph():
    hidden, alphas, mask = batch([12, 7])
    expected = integrate_and_fire(hidden, alphas, mask, max_tokens=12).embeddings
    torch.compiler.reset()
    traced = torch.compile(
        lambda *inputs: integrate_and_fire(*inputs, max_tokens=12).embeddings, backend="eager", fullgraph=True
    )
    assert torch.equal(traced(hidden, alphas, mask), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": torch.zeros(2, 3)}, r"hidden must have shape \(B, T, D\)"),
        ({"alphas": torch.zeros(2, 4)}, r"alphas must have shape \(2, 3\).*got \(2, 4\)"),
        ({"mask": torch.ones(1, 3)}, r"mask must have shape"),
        ({"target_lengths": torch.ones(3)}, r"target_lengths must have shape \(2,\)"),
        ({"fire_threshold": 1.5}, "fire_threshold"),
        ({"fire_threshold": 0}, "fire_threshold"),
        ({"tail_threshold": -1.0}, "tail_threshold"),
        ({"tail_threshold": 1.5}, "tail_threshold"),
        ({"alphas": torch.tensor([[0.1, float("nan"), 0.1], [0.1] * 3])}, "finite and not negative"),
        ({"alphas": torch.tensor([[0.1, 0.1, float("inf")], [0.1] * 3])}, "finite and not negative"),
        ({"alphas": torch.tensor([[0.1] * 3, [0.1, -0.1, 0.1]])}, "finite and not negative"),
        ({"target_lengths": torch.tensor([2, 4])}, r"\[1\] is 4 but the row has 3 real frames: drop it or set one"),
        (
            {"target_lengths": torch.tensor([1, 1]), "mask": torch.tensor([[0, 0, 0], [1, 1, 1]])},
            r"\[0\] is 1 .* 0 real frames: drop it$",
        ),
        (
            {
                "target_lengths": torch.tensor([1, 5]),
                "mask": torch.tensor([[0, 0, 0], [1, 1, 1]]),
                "one_token_per_frame": False,
            },
            r"\[0\] is 1 .* 0 real frames: drop it$",
        ),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        integrate_and_fire(**{"hidden": torch.zeros(2, 3, 4), "alphas": torch.full((2, 3), 0.5), **arguments})


def module(kind="conv", D=4, C=4, **fields):
    config = CFormerConfig(encoder_hidden_size=D, cif_hidden_size=C, cif_predictor=kind, cif_dropout=0.0, **fields)
    return ContinuousIntegrateAndFire(config)


@pytest.mark.parametrize("kind", ["conv", "dense", "linear"])
def test_module_predicts_scales_and_projects(kind):
    cif = module(kind, C=6)
    hidden, _, mask = batch([11, 6], D=4, dtype=torch.float32)
    free, scaled = cif(hidden, mask), cif(hidden, mask, torch.tensor([5, 2]))
    assert scaled.lengths.tolist() == [5, 2]
    assert scaled.embeddings.shape == (2, 5, 6)
    assert not scaled.embeddings[1, 2:].any()
    assert cif.output_proj.bias is None  # what did not fire stays zero
    torch.testing.assert_close(scaled.quantity, free.alphas.sum(1))  # before scaling, for the quantity loss
    assert not free.alphas[~mask].any()
    assert ((free.alphas > 0) & (free.alphas < 1))[mask].all()
    alone = cif(hidden[1:, :6])
    torch.testing.assert_close(alone.alphas, free.alphas[1:, :6])
    torch.testing.assert_close(alone.embeddings, free.embeddings[1:, : alone.lengths[0]])
    (free.embeddings.sum() + free.quantity.sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in cif.parameters())


def test_module_weights_start_as_published():
    cif = module("dense", D=64, C=32)
    for linear in (cif.dense, cif.weight_proj, cif.output_proj):
        bound = (6 / sum(linear.weight.shape)) ** 0.5  # Xavier-uniform
        assert 0.8 * bound < linear.weight.abs().max() <= bound
    assert not cif.dense.bias.any()
    assert not cif.weight_proj.bias.any()


def test_module_reports_nan_features():
    hidden = torch.randn(1, 5, 4)
    hidden[0, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        module()(hidden)


@pytest.fixture(scope="module")
def reference():
    if not PARITY.is_file():
        pytest.skip(f"no reference tensors at {PARITY}")
    cases = {}
    for key, tensor in load_file(PARITY).items():
        case, name = key.split(".", 1)
        cases.setdefault(case, {})[name] = tensor
    return cases


def token_gradients(case, mask, targets, fired):
    """The reference stored gradients of an unknown loss; that at the tokens follows from those at the frames."""
    B, T = case["w"].shape
    frames = torch.eye(T, dtype=torch.float64).expand(B, T, T)
    shares = integrate_and_fire(frames, case["w"].double(), mask, targets, fire_threshold=1.0).embeddings
    gradients = torch.zeros(*shares.shape[:2], case["h"].shape[-1], dtype=torch.float64)
    for b, n in enumerate(fired.tolist()):
        gradients[b, :n] = torch.linalg.lstsq(shares[b, :n].T, case["grad_h"][b].double()).solution
    return gradients


def test_parity_of_the_function(reference):
    """Up to the published defect: training loses the last token of about every second row to rounding."""
    lost = rows = 0
    for name, case in reference.items():
        if not name.startswith("fire"):
            continue
        hidden, alphas = (case[key].clone().requires_grad_() for key in ("h", "w"))
        mask = torch.arange(hidden.shape[1]) < case["lengths"][:, None]
        targets = case["target"].long() if "target" in case else None
        out = integrate_and_fire(hidden, alphas, mask, targets, fire_threshold=1.0)
        if targets is None:
            assert torch.equal(out.lengths, case["n"])
        else:
            assert torch.equal(out.lengths, targets)
            lost, rows = lost + int((targets - case["n"]).sum()), rows + len(targets)
        tolerance = {"atol": 1e-12, "rtol": 0} if hidden.dtype == torch.float64 else {"atol": 3e-5, "rtol": 0}
        for b, n in enumerate(case["n"].tolist()):
            torch.testing.assert_close(out.embeddings[b, :n], case["out"][b, :n], **tolerance)
        gradients = token_gradients(case, mask, targets, case["n"])
        (out.embeddings * gradients.to(hidden.dtype)).sum().backward()
        torch.testing.assert_close(hidden.grad, case["grad_h"], **tolerance)
        # Gradients of the weights reach 300, and in the reference they are sums over all later frames.
        worst = (alphas.grad - case["grad_w"]).abs().max() / case["grad_w"].abs().max()
        assert worst < (1e-12 if hidden.dtype == torch.float64 else 1e-5)
    assert 0 < lost < rows


def test_parity_of_the_module(reference):
    """Up to two published defects: the conv predictor sees padding, and rows without padding have no tail rule."""
    renames = {"param.dense_proj": "dense", "param.cif_output_proj": "output_proj", "param.": ""}
    for name, case in reference.items():
        if not name.startswith("module"):
            continue
        _, kind, D, C, mode = name.split("_")
        cif = module(kind, int(D), int(C), cif_fire_threshold=1.0)
        parameters = {key: value for key, value in case.items() if key.startswith("param.")}
        for old, new in renames.items():
            parameters = {key.replace(old, new): value for key, value in parameters.items()}
        cif.load_state_dict(parameters)
        hidden, lengths = case["h"], case["lengths"]
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        targets = case["targets"].long() if mode == "train" else None
        if kind == "conv":
            alphas = cif.predict_alphas(hidden, torch.ones_like(mask)) * mask
            out = integrate_and_fire(hidden, alphas, mask, targets, fire_threshold=1.0)
            embeddings, quantity = out.embeddings, alphas.sum(1)
            if cif.output_proj is not None:
                embeddings = cif.output_proj(embeddings)
        else:
            out = cif(hidden, mask, targets)
            embeddings, quantity = out.embeddings, out.quantity
        torch.testing.assert_close(quantity, case["quantity_out"], atol=3e-6, rtol=0)
        fired = case["cif_mask"].sum(1)
        assert ((out.lengths - fired == 0) | (out.lengths - fired == 1)).all()
        assert torch.equal(out.lengths[1:], fired[1:]) or mode == "train"
        for b, n in enumerate(fired.tolist()):
            torch.testing.assert_close(embeddings[b, :n], case["cif_out"][b, :n], atol=3e-6, rtol=0)
