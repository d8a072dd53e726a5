# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm env`: versions of this package and of what it uses, and the machine, for a report of a problem."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys


PACKAGES = (
    "xllm-transformers", "transformers", "torch", "torchaudio", "torchvision", "huggingface_hub", "safetensors",
    "tokenizers", "accelerate", "peft", "datasets", "av", "pillow", "numpy", "deepspeed", "fastapi",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def found() -> dict[str, str]:
    """What is installed, and where it runs."""
    import torch

    place = torch.accelerator.current_accelerator(check_available=True)
    number = torch.accelerator.device_count() if place is not None else 0
    names = (
        ", ".join(torch.cuda.get_device_name(index) for index in range(number)) if torch.cuda.is_available() else ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0.0
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "accelerator": f"{number} x {place} {names}".strip() if number else "none",
        "CUDA of torch": str(torch.version.cuda),
    }


def run(args: argparse.Namespace) -> None:
    """Print it."""
    values = found()
    if args.json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{name}: {value}\n" for name, value in values.items())
