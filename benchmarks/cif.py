# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""CIF without a loop over frames against a plain per-frame loop: `python benchmarks/cif.py [--device cuda]`.

Each row: milliseconds of both for the forward pass alone and with the backward pass, in one process (best of several
runs, so that other work on the machine counts little), and how many times faster ours is. The results of the two are
compared first. The loop is batched and does what the papers say, nothing else: one weight and one state per row, one
`where` per quantity and frame. Its backward pass takes time in T squared (each frame's slice gets a gradient of full
size), so the largest ones are left out. The last columns: what each keeps for the backward pass, as a multiple of
`hidden`.
"""

import argparse
import time

import torch

from xllm.modeling_xllm.cif import integrate_and_fire


def loop_integrate_and_fire(hidden: torch.Tensor, alphas: torch.Tensor, threshold: float = 0.99) -> torch.Tensor:
    """Every frame's emission, `(B, T, D)`, zero where nothing fires; inference rule without the tail."""
    weight, state, emitted = torch.zeros_like(alphas[:, 0]), torch.zeros_like(hidden[:, 0]), []
    for frame in range(hidden.shape[1]):
        h, a = hidden[:, frame], alphas[:, frame]
        fires = weight + a >= threshold
        missing = 1 - weight
        emitted.append(torch.where(fires[:, None], state + missing[:, None] * h, 0))
        state = torch.where(fires[:, None], (a - missing)[:, None] * h, state + a[:, None] * h)
        weight = torch.where(fires, a - missing, weight + a)
    return torch.stack(emitted, 1)


def loop_tokens(hidden: torch.Tensor, alphas: torch.Tensor) -> list[torch.Tensor]:
    """The loop's tokens, one tensor `(U, D)` per row."""
    emitted = loop_integrate_and_fire(hidden, alphas)
    return [row[row.abs().sum(-1) > 0] for row in emitted]


def milliseconds(function, device: torch.device, repeats: int) -> float:
    """Shortest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def saved_ratio(function, hidden: torch.Tensor) -> float:
    """Bytes that autograd saves in `function`, each storage once, over those of `hidden`."""
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, or its address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in storages.values()) / hidden.nbytes


def compare(B: int, T: int, D: int, device: torch.device) -> list[float]:
    """Milliseconds of ours and of the loop, forward, then with backward; saved ratios of both (nan: left out)."""
    torch.manual_seed(0)
    hidden = torch.randn(B, T, D, device=device, requires_grad=True)
    alphas = (torch.rand(B, T, device=device) * 0.5).requires_grad_()

    def ours():
        return integrate_and_fire(hidden, alphas, tail_threshold=1.0).embeddings

    def loop():
        return torch.cat(loop_tokens(hidden, alphas))

    def train(function, gradient):
        hidden.grad = alphas.grad = None
        function().backward(gradient)

    fired = integrate_and_fire(hidden, alphas, tail_threshold=1.0)
    gradient = torch.randn_like(fired.embeddings)
    times = [milliseconds(lambda: train(ours, gradient), device, 15)]
    with torch.no_grad():
        times.insert(0, milliseconds(ours, device, 15))
        torch.testing.assert_close(fired.embeddings[fired.mask], loop(), atol=1e-4, rtol=1e-4)
        times.insert(1, milliseconds(loop, device, 3))
    gradient = gradient[fired.mask]
    repeats = 0 if B * T > 8 * 2000 else 1 if B * T > 4000 else 3
    times.append(milliseconds(lambda: train(loop, gradient), device, repeats) if repeats else float("nan"))
    return [*times, saved_ratio(ours, hidden), saved_ratio(loop, hidden) if repeats else float("nan")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 500, 2000])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    columns = f"{'ours':>10} {'loop':>9} {'ratio':>6}"
    print(
        f"{'':>9} | {'forward':^27} | {'forward and backward':^27} | {'saved':^10}\n"
        f"{'B':>3} {'T':>5} | {columns} | {columns} | ours  loop"
    )
    for B in arguments.batches:
        for T in arguments.frames:
            ours, loop, ours_train, loop_train, saved, loop_saved = compare(B, T, arguments.width, device)
            pairs = ((ours, loop), (ours_train, loop_train))
            cells = [f"{fast:>7.2f} ms {slow:>6.0f} ms {slow / fast:>5.0f}x" for fast, slow in pairs]
            print(f"{B:>3} {T:>5} | {cells[0]} | {cells[1]} | {saved:.2f} {loop_saved:>5.1f}", flush=True)


if __name__ == "__main__":
    main()
