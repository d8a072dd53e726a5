# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The code beside a checkpoint, so that a machine without this package opens it with `trust_remote_code=True`.

What is copied are the flat files of `modeling_xllm/` and `processing/`, and the user's modules that the checkpoint
needs.

Deviation from transformers' `register_for_auto_class`: that marks the classes for the whole process (every later save
writes code), keeps one Auto class per model, and cannot bring modules of two folders together.
"""

import shutil
from pathlib import Path

from xllm import public_names
from xllm.assembly.module_copies import copy_module, flat_files, user_modules
from xllm.modeling_xllm.weight_files import read_json, write_json


# Auto class -> "module.Class". The config comes from the model's module: of each module that a local folder names,
# transformers makes a package of its own, and the classes of two packages are strangers to one another.
MODEL_AUTO = ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForImageTextToText")
MODEL_MAP = dict.fromkeys(MODEL_AUTO, "modeling_xllm.XLLMForConditionalGeneration")
MODEL_MAP["AutoConfig"] = "modeling_xllm.XLLMConfig"
PROCESSOR_MAP = {"AutoProcessor": "processing_xllm.XLLMProcessor"}
PART_AUTO = {"feature_extractor": "AutoFeatureExtractor", "video_processor": "AutoVideoProcessor"}
TOKENIZER_MAP = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
# Modules from which the rest is imported, a user's modules included.
ENTRY_MODULES = ("modeling_xllm", "processing_xllm")


def export_code(folder: str | Path) -> list[str]:
    """Write the code beside the checkpoint in `folder` and name it in its configs; returns the names of the files.

    Raises:
        ValueError: the folder holds no X-LLM, or uses a user's module that cannot be found or copied.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "xllm":
        raise ValueError(f"{folder}: config.json is of model_type {config.get('model_type')!r}, expected 'xllm'")
    processor = read_json(folder / "processor_config.json")
    files = user_modules(folder, config, processor)
    modules = {"modules": [copy_module(file, folder) for file in files]} if files else {}
    write_json(folder / "config.json", {**config, **modules, "auto_map": MODEL_MAP})
    if processor:
        for name, auto in PART_AUTO.items():
            part = processor.get(name) or {}
            if home := public_names().get(part.get(f"{name}_type", "")):  # classes of transformers need no code
                part["auto_map"] = {auto: f"{home.split('.')[1]}.{part[f'{name}_type']}"}
        write_json(folder / "processor_config.json", {**processor, **modules, "auto_map": PROCESSOR_MAP})
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "ChatGLMTokenizer":
        write_json(folder / "tokenizer_config.json", {**tokenizer, "auto_map": TOKENIZER_MAP})
    for name, file in flat_files().items():
        (folder / file.name).unlink(missing_ok=True)
        shutil.copyfile(file, folder / file.name)
        if name in ENTRY_MODULES:  # importing the user's modules registers what is in them
            imports = [f"\nfrom .{user.stem} import __name__ as _{user.stem}  # noqa: E402\n" for user in files]
            with (folder / file.name).open("a", encoding="utf-8") as copy:
                copy.writelines(imports)
    return [file.name for file in (*flat_files().values(), *files)]
