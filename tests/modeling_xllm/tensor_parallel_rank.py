# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One rank of `test_tensor_parallel.py`, started by torchrun: python tensor_parallel_rank.py FOLDER OUTPUT."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from xllm import XLLMForConditionalGeneration


def main(folder: Path, output: Path) -> None:
    """Logits and an answer of the model in `folder`, its layers cut over the ranks."""
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    cls = XLLMForConditionalGeneration if "pixel_values" in inputs else AutoModelForCausalLM
    model = cls.from_pretrained(folder, tp_plan="auto").eval()
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.attention"))
    weight = layer.query_key_value.weight
    rows = (weight.to_local() if isinstance(weight, DTensor) else weight).shape[0]
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    torch.save({"logits": logits, "said": said, "rows": rows}, output / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
