# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The code beside a checkpoint, so that a machine without this package opens it with `trust_remote_code=True`.

Deviation from transformers' `register_for_auto_class`: that marks the classes for the whole process (every later save writes
code), keeps one Auto class per model, and cannot bring modules of two folders together.
"""

import json
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

import xllm.modeling_xllm
import xllm.processing


# Auto class -> "module.Class". The config comes from the model's module: transformers makes a package of its own of each module
# that a local folder names, and the classes of two packages are strangers to one another.
_MODEL = "modeling_xllm.XLLMForConditionalGeneration"
MODEL_MAP = {"AutoConfig": "modeling_xllm.XLLMConfig"} | dict.fromkeys(
    ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForImageTextToText"), _MODEL
)
PROCESSOR_MAP = {"AutoProcessor": "processing_xllm.XLLMProcessor"}
# Our classes among a processor's parts; those of transformers need no code.
PART_MAPS = {
    "XLLMFeatureExtractor": {"AutoFeatureExtractor": "feature_extraction_xllm.XLLMFeatureExtractor"},
    "XLLMCIFFeatureExtractor": {"AutoFeatureExtractor": "feature_extraction_cif.XLLMCIFFeatureExtractor"},
    "XLLMVideoProcessor": {"AutoVideoProcessor": "video_processing_xllm.XLLMVideoProcessor"},
}
TOKENIZER_MAP = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
ENTRY_MODULES = {
    xllm.modeling_xllm: ("modeling_xllm",),
    xllm.processing: ("processing_xllm", "tokenization_chatglm"),
}


def code_files() -> list[Path]:
    """The modules that a checkpoint needs: those of model, processor and tokenizer, and what they import."""
    files = set()
    for package, names in ENTRY_MODULES.items():
        for name in names:
            module = Path(package.__file__).parent / f"{name}.py"
            files |= {module, *map(Path, get_relative_import_files(module))}
    return sorted(files)


def export_code(folder: str | Path) -> list[str]:
    """Write the code beside the checkpoint in `folder` and name it in the checkpoint's configs.

    Args:
        folder: a folder with a model's `config.json` and its processor's files.

    Returns:
        `list[str]`: names of the files written.

    Raises:
        ValueError: the folder holds no X-LLM.
    """
    folder = Path(folder)
    settings = _read(folder / "config.json")
    if settings.get("model_type") != "xllm":
        raise ValueError(f"{folder}: config.json is of model_type {settings.get('model_type')!r}, expected 'xllm'")
    _write(folder / "config.json", {**settings, "auto_map": MODEL_MAP})
    if settings := _read(folder / "processor_config.json"):
        for part in ("feature_extractor", "video_processor"):
            if auto_map := PART_MAPS.get(settings.get(part, {}).get(f"{part}_type")):
                settings[part]["auto_map"] = auto_map
        _write(folder / "processor_config.json", {**settings, "auto_map": PROCESSOR_MAP})
    settings = _read(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "ChatGLMTokenizer":
        _write(folder / "tokenizer_config.json", {**settings, "auto_map": TOKENIZER_MAP})
    files = code_files()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, settings: dict) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["code_files", "export_code"]
