# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One rank of `test_two_ranks_equal_one_process_with_the_whole_batch`: qformer_two_ranks.py RANK FOLDER MODALITY."""

import sys
from pathlib import Path

import torch
from torch import distributed


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from test_qformer_pretraining import CLS, SEP, batch, texts, tiny_model  # noqa: E402


def main(rank: int, folder: Path, modality: str) -> None:
    """Losses and gradients of two of four pairs; ranks pad texts and media to different lengths."""
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(1)
    inputs = texts([CLS, 5, 6, SEP], [CLS, 7, SEP], [CLS, 8, SEP], [CLS, 5, 6, SEP])  # as many targets on each rank
    media = batch(modality)
    if modality == "video":
        media["video_frame_mask"] = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])
    first, mask = (name for name in media if name not in inputs)
    inputs |= {first: media[first], mask: media[mask]}
    if rank == 0:
        torch.save(inputs, folder / "inputs.pt")
    mine = {key: value[2 * rank : 2 * rank + 2] for key, value in inputs.items()}
    if rank == 0:
        length = {"video": 2, "sound": 104}[modality]
        mine |= {name: mine[name][:, :length] for name in (first, mask)}
    model = tiny_model(modality)
    output = model(**mine)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    losses = {name: output[name].detach() for name in ("itc_loss", "itm_loss", "itg_loss", "similarities")}
    torch.save({**losses, "gradients": gradients}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
