# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Writing converted weights: a folder of their own, or a copy of an X-LLM folder with them in it.

A folder is written beside its place under another name and then moved there, so it is whole or absent. Tensors go from
the memory-mapped source to the new file; only what has to be put together (a bias of two) is copied on the way.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.conversion.convert import Conversion, ConversionError
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.tower_sources import part_of, read_tower
from xllm.modeling_xllm.weight_files import read_tensors, record_weights, resolve_source, save_tensors


def check_unused(folder: str | os.PathLike, advice: str = "") -> None:
    """Raises a `ConversionError`, which ends with `advice`, unless `folder` is yet to be made, or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(f"{folder}: exists and is not an empty folder{advice}")


@contextmanager
def new_folder(output: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `output` (see `check_unused`) when the block ends and vanishes if it fails."""
    check_unused(output)
    output = Path(output)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_parts(conversion: Conversion, output: str | os.PathLike) -> None:
    """A folder with towers and interfaces, without a language model: a source for `from_towers` and `xllm init`, for
    `XLLMEncoderModel.from_pretrained` and, with the text side of stage 1,
    `XLLMForQFormerPreTraining.from_pretrained`."""
    config = deepcopy(conversion.config)
    config.architectures = ["XLLMForQFormerPreTraining" if conversion.heads else "XLLMEncoderModel"]
    with new_folder(output) as folder:
        config.save_pretrained(folder)
        save_torch_state_dict({**conversion.tensors, **conversion.heads}, folder)
        record_weights(folder)


def write_over(conversion: Conversion, model: str | os.PathLike, output: str | os.PathLike) -> None:
    """A copy of the X-LLM folder `model`, other files included, in which the converted weights replace its own. A
    tower that it names instead of storing, and that changes, is stored; the text side of stage 1 goes to a file of its
    own, as after stage 1."""
    model, output = Path(model), Path(output)
    config = XLLMConfig.from_pretrained(model)
    tensors = read_tensors(str(model), None, lambda key: True)
    towers = config.towers or {}
    for part in {part_of(key) for key in conversion.tensors} & towers.keys():
        name_or_path, revision = towers[part]["name_or_path"], towers[part].get("revision")
        tower = read_tower(part, resolve_source(name_or_path, model), revision)
        changed = (key for key in tower.keys() & conversion.tensors.keys())
        if any(not torch.equal(tower[key], conversion.tensors[key].to(tower[key])) for key in changed):
            tensors.update(tower)
            del towers[part]
    for source in towers.values():
        if source["name_or_path"].startswith("."):
            source["name_or_path"] = os.path.join(".", os.path.relpath(model / source["name_or_path"], output))
    tensors.update({key: value for key, value in conversion.tensors.items() if part_of(key) not in towers})
    with new_folder(output) as folder:
        for file in model.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != SAFE_WEIGHTS_INDEX_NAME:
                shutil.copy(file, folder)
        config.save_pretrained(folder)
        save_torch_state_dict(tensors, folder)
        record_weights(folder)
        if conversion.heads:
            fields = {"config": json.dumps(conversion.head_fields)}
            save_tensors(conversion.heads, folder / XLLMForQFormerPreTraining.heads_name, fields)


def summarize(conversion: Conversion) -> dict[str, dict]:
    """Per part that was converted: its parameters and the files they are from."""
    parts = {}
    for key, value in {**conversion.tensors, **conversion.heads}.items():
        names = key.removeprefix("model.").split(".")
        part = ".".join(names[:2]) if names[0] == "interfaces" else names[0] if key in conversion.tensors else "stage1"
        row = parts.setdefault(part, {"parameters": 0, "from": []})
        row["parameters"] += value.numel()
        if conversion.origin[key] not in row["from"]:
            row["from"].append(conversion.origin[key])
    return parts
