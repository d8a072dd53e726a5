# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which files of a checkpoint folder go to the Hub: those that a checkpoint consists of, and nothing else.

A folder may hold anything: logs that name local files, optimisers, data, keys. Whatever is not on the list stays here.
"""

import shutil
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.modeling_speech_recognition import XLLMForSpeechRecognition
from xllm.modeling_xllm.stage_checkpoints import ADAPTER_FILES
from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import (
    StageCheckpointError,
    check_finite,
    check_fit,
    read_json,
    verify_weights,
    weight_files,
)


INDEX = "model.safetensors.index.json"
FILES = {model.heads_name for model in (XLLMForQFormerPreTraining, XLLMForSpeechRecognition)} | {
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "losses.png", "results.json",
}  # fmt: skip
LICENCE_LINE = b"# Copyright 2026 The X-LLM Transformers Authors."


def check_weights(folder: Path) -> None:
    """A `ValueError` that names file and tensors if some are missing, too many, misshapen, altered since they were
    saved, or NaN. Parts that `config.towers` names are not looked at.
    """
    config = XLLMConfig.from_pretrained(folder)
    encoders_alone = config.architectures == ["XLLMEncoderModel"]
    with torch.device("meta"):
        model = (XLLMEncoderModel if encoders_alone else XLLMForConditionalGeneration)(config)
    verify_weights(str(folder))
    found = {}
    for path in weight_files(str(folder)):
        tensors = load_file(path)
        check_finite(tensors, path)
        found.update({name: value.shape for name, value in tensors.items()})
    if getattr(config, "quantization_config", None) is None:  # quantised tensors have other names
        tied, towers = set(model.all_tied_weights_keys), config.towers or {}
        wanted = {key: value.shape for key, value in model.state_dict().items() if part_of(key) not in towers}
        same = {key: shape for key, shape in wanted.items() if key not in tied or key in found}
        check_fit(found, same, str(folder), "its config.json")


def choose_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files to push, and the names of what stays here.

    Links are followed where the name is one of a checkpoint's files. In the sub-folders of readers any name may be
    used that does not begin with a dot; a link there that points outside the checkpoint is a `ValueError`.
    """
    weights = {Path(path).name for path in weight_files(str(folder))}
    tokenizer = tokenizer_class_from_name(read_json(folder / "tokenizer_config.json").get("tokenizer_class") or "")
    modules = {f"{name}.py" for name in read_json(folder / "config.json").get("modules", ())}
    allowed = {*FILES, *weights, *getattr(tokenizer, "vocab_files_names", {}).values(), *modules}
    allowed |= {INDEX} - ({INDEX} if "model.safetensors" in weights else set())
    readers = read_json(folder / "processor_config.json").get("readers", {})
    adapter = _adapter_folder(read_json(folder / "config.json"))
    chosen, left = [], []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name in allowed:
            chosen.append(path)
        elif path.is_dir() and path.name in readers:
            every = [file for file in sorted(path.rglob("*")) if not file.is_dir()]
            hidden = [name for file in every if "/." in (name := file.relative_to(folder).as_posix())]  # .env, .git/
            inside = [file for file in every if file.relative_to(folder).as_posix() not in hidden]
            left += hidden
            if outside := [file for file in inside if not file.resolve().is_relative_to(folder.resolve())]:
                raise StageCheckpointError(f"{outside[0]}: points outside the checkpoint; put the file there instead")
            chosen += inside
        elif path.is_dir() and path.name == adapter:
            chosen += [path / name for name in ADAPTER_FILES]
            left += [f"{adapter}/{file.name}" for file in sorted(path.iterdir()) if file.name not in ADAPTER_FILES]
        elif not (path.name.startswith(".") or path.name == "README.md" or is_our_code(path)):  # written by each push
            left.append(path.name + "/" * path.is_dir())
    return chosen, left


def _adapter_folder(config: dict) -> str | None:
    return (config.get("adapter") or {}).get("folder")


def is_our_code(path: Path) -> bool:
    """Whether a file is a copy of ours, of this version or another."""
    return path.suffix == ".py" and path.is_file() and path.read_bytes().startswith(LICENCE_LINE)


def gather(folder: Path, prepared: Path) -> list[str]:
    """Puts the files to push into `prepared`, small ones as copies, others as links; returns what is left out."""
    chosen, left = choose_files(folder)
    for file in chosen:
        target = prepared / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".json", ".jinja", ".py"):
            shutil.copyfile(file, target)
        else:
            target.symlink_to(file.resolve())
    return left


def stale_files(api: HfApi, repo_id: str, revision: str, names: set[str]) -> list[str]:
    """Files of an earlier push that this one does not bring; what the owner has added is not among them."""
    there = set(api.list_repo_files(repo_id, revision=revision))

    def fetch(name: str) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=revision)) if name in there else Path(name)

    config = read_json(fetch("config.json"))
    readers = read_json(fetch("processor_config.json")).get("readers", {})
    adapter = {f"{_adapter_folder(config)}/{name}" for name in ADAPTER_FILES}
    known = {*FILES, INDEX, *(f"{name}.py" for name in config.get("modules", ()))}

    def is_ours(name: str) -> bool:
        if "/" in name:
            return name.split("/")[0] in readers or name in adapter
        is_weights = name.startswith("model") and name.endswith(".safetensors")
        return is_weights or name in known or (name.endswith(".py") and is_our_code(fetch(name)))

    return sorted(filter(is_ours, there - names)) if config.get("model_type") == "xllm" else []
