# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The code beside a checkpoint, so that a machine without this package opens it with `trust_remote_code=True`.

What is copied is what the folders say: the flat files of `modeling_xllm/` and `processing/`, and the user's modules that
the checkpoint needs.

Deviation from transformers' `register_for_auto_class`: that marks the classes for the whole process (every later save
writes code), keeps one Auto class per model, and cannot bring modules of two folders together.
"""

import json
import shutil
import sys
from pathlib import Path

from xllm.assembly.module_copies import ModuleCopyError, copy_module, flat_files, modules_of
from xllm.modeling_xllm.converters import CONVERTERS
from xllm.processing.media_kinds import MEDIA_KINDS


# Auto class -> "module.Class". The config comes from the model's module: of each module that a local folder names,
# transformers makes a package of its own, and the classes of two packages are strangers to one another.
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
# Modules from which the rest is imported, a user's modules included.
ENTRY_MODULES = ("modeling_xllm", "processing_xllm")


def export_code(folder: str | Path) -> list[str]:
    """Write the code beside the checkpoint in `folder` and name it in the checkpoint's configs.

    Args:
        folder: a folder with a model's `config.json` and its processor's files.

    Returns:
        `list[str]`: names of the files written.

    Raises:
        ValueError: the folder holds no X-LLM, or uses a module of the user's that cannot be had or copied.
    """
    folder = Path(folder)
    config = _read(folder / "config.json")
    if config.get("model_type") != "xllm":
        raise ValueError(f"{folder}: config.json is of model_type {config.get('model_type')!r}, expected 'xllm'")
    processor = _read(folder / "processor_config.json")
    files = user_modules(folder, config, processor)
    modules = {"modules": [copy_module(file, folder) for file in files]} if files else {}
    _write(folder / "config.json", {**config, **modules, "auto_map": MODEL_MAP})
    if processor:
        for part in processor.values():
            kind = (
                part.get("feature_extractor_type") or part.get("video_processor_type")
                if isinstance(part, dict)
                else None
            )
            if kind in PART_MAPS:
                part["auto_map"] = PART_MAPS[kind]
        _write(folder / "processor_config.json", {**processor, **modules, "auto_map": PROCESSOR_MAP})
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "ChatGLMTokenizer":
        _write(folder / "tokenizer_config.json", {**tokenizer, "auto_map": TOKENIZER_MAP})
    for name, file in flat_files().items():
        (folder / file.name).unlink(missing_ok=True)
        shutil.copyfile(file, folder / file.name)
        if name in ENTRY_MODULES:  # importing the user's modules registers what is in them
            with (folder / file.name).open("a", encoding="utf-8") as copy:
                copy.writelines(
                    f"\nfrom .{module.stem} import __name__ as _{module.stem}  # noqa: E402\n" for module in files
                )
    return [file.name for file in (*flat_files().values(), *files)]


def user_modules(folder: Path, config: dict, processor: dict) -> list[Path]:
    """Files of the user's modules that a checkpoint needs: named in its configs, or the home of its converters and kinds.

    Raises:
        ValueError: a module that is named is neither imported nor beside the checkpoint.
    """
    rows = (config.get("modalities") or {}).values()
    inputs = {row.get("input_name") for row in rows}
    kinds = [kind for kind in MEDIA_KINDS.values() if kind.input_name in inputs]
    classes = [CONVERTERS[row["converter"]] for row in rows if row.get("converter") in CONVERTERS]
    classes += [
        item for kind in kinds for item in (getattr(kind, "reader_class", None), kind.load) if item is not None
    ]
    found = {Path(module.__file__).stem: Path(module.__file__) for module in modules_of(classes)}
    for name in dict.fromkeys([*config.get("modules", ()), *processor.get("modules", ())]):
        if name not in found:
            imported = getattr(sys.modules.get(name), "__file__", None)
            found[name] = folder / f"{name}.py" if (folder / f"{name}.py").is_file() else imported and Path(imported)
        if not found[name]:
            raise ModuleCopyError(
                f"{folder}: uses the module {name}, which is not there; give it with --module {name}.py"
            )
    return list(found.values())


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, settings: dict) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["export_code", "user_modules"]
