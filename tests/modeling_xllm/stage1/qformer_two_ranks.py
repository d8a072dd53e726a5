# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One rank of `test_two_ranks_equal_one_process_with_the_whole_batch`: python qformer_two_ranks.py RANK FOLDER."""

import sys
from pathlib import Path

import torch
from torch import distributed


sys.path.insert(0, str(Path(__file__).parent))
from test_qformer_pretraining import CLS, SEP, texts, tiny_model  # noqa: E402


def main(rank: int, folder: Path) -> None:
    """Losses and gradients of two of four pairs; ranks pad texts and videos to different lengths."""
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(1)
    inputs = texts([CLS, 5, 6, SEP], [CLS, 7, SEP], [CLS, 8, SEP], [CLS, 5, 6, SEP])  # as many targets on each rank
    inputs["pixel_values_videos"] = torch.randn(4, 3, 3, 16, 16)
    inputs["video_frame_mask"] = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])
    if rank == 0:
        torch.save(inputs, folder / "inputs.pt")
    mine = {key: value[2 * rank : 2 * rank + 2] for key, value in inputs.items()}
    if rank == 0:
        mine["pixel_values_videos"] = mine["pixel_values_videos"][:, :2]
        mine["video_frame_mask"] = mine["video_frame_mask"][:, :2]
    model = tiny_model("video")
    output = model(**mine)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    losses = {name: output[name].detach() for name in ("itc_loss", "itm_loss", "itg_loss", "similarities")}
    torch.save({**losses, "gradients": gradients}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
