# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Adapters of the language model (PEFT's LoRA and DoRA), trained beside the interfaces in stages 2 and 3.

The adapter is part of the model, not a wrapper around it: `save_pretrained` writes it beside the interfaces, in the
sub-folder `adapter/`, and `from_pretrained` brings it back, frozen. It is kept rather than merged, because a
checkpoint stores what was trained and names its towers: a merged language model is no longer the one that its source
holds, and would have to be stored whole (of ChatGLM-6B 13 GB instead of 15 MB). `merge_lora` does it on demand.

Deviation: the paper's language model is frozen in every stage.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xllm.modeling_xllm.stage_checkpoints import adapted_layers
from xllm.training.stages import StageError, adapter_parameters, resolve_stage


PART = "language_model"  # of the model, under `model.`
# Attention projections of language models that PEFT's table does not list.
ATTENTION = ("query_key_value", "qkv_proj", "c_attn", "Wqkv", "q_proj", "v_proj")
# How a recipe's fields are called in PEFT's config.
PEFT_FIELDS = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "dora": "use_dora"}


@dataclass(kw_only=True)
class LoraSpec:
    """The adapter that a stage trains: a new one, or that of the stage before. A stage without it keeps one frozen.

    Args:
        r (`int`), alpha (`int`), dropout (`float`): rank, scale (by alpha / r), dropout before it; 8, 16 and 0, or
            those of the adapter that is continued.
        dora (`bool`): weight-decomposed adaptation (DoRA).
        target (`str`): the part of the model; "language_model" is the only one.
        modules (`str` or `list[str]`): names of its linear layers; "default" are the attention's projections that PEFT
            lists for this kind of language model, "all-linear" all of them.
        merge (`bool`): put the adapter into the language model's weights after the stage; the checkpoint then holds
            the language model.
    """

    r: int | None = None
    alpha: int | None = None
    dropout: float | None = None
    dora: bool | None = None
    target: str = PART
    modules: str | list[str] = "default"
    merge: bool = False


DEFAULTS = {"r": 8, "alpha": 16, "dropout": 0.0, "dora": False}


def _linear_layers(model: Any) -> list[str]:
    """Paths of the language model's linear layers; an adapted one by the name that it has without."""
    layers = model.get_submodule(f"model.{PART}").named_modules(prefix=f"model.{PART}")
    linear = [path for path, layer in layers if isinstance(getattr(layer, "base_layer", layer), nn.Linear)]
    return [path for path in linear if not re.search(r"\.(base_layer|lora_[AB])(\.|$)", path)]


def target_modules(model: Any, modules: str | Iterable[str] = "default") -> str:
    """The layers to adapt, as PEFT's pattern over names of modules: those of the language model alone.

    Raises:
        StageError: a name that no linear layer of the language model has; the message lists them.
    """
    found = sorted({path.rpartition(".")[2] for path in _linear_layers(model)})
    names: list[str]
    if modules == "all-linear":
        names = found
    elif modules == "default":
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LISTED

        names = list(LISTED.get(model.config.get_text_config().model_type, ()))
        names = names or [name for name in ATTENTION if name in found]
    else:
        names = [modules] if isinstance(modules, str) else list(modules)
    if not names or (unknown := [name for name in names if name not in found]):
        wrong = ", ".join(map(repr, unknown)) if names else repr(modules)
        raise StageError(f"lora.modules: {wrong}: the linear layers of the language model are {', '.join(found)}")
    return rf"(model\.)?{PART}\..*\.({'|'.join(map(re.escape, names))})"


def check_adapters(model: Any, stages: Iterable[Any]) -> None:
    """Check the adapters of `StageSpec`s that follow each other, before anything is trained.

    Raises:
        StageError: a stage that has no language model, fields that are not those of the adapter to be continued.
    """
    adapter = adapter_of(model)
    for stage in stages:
        adapter = _check_lora(model, int(resolve_stage(stage.stage)), stage.lora, adapter)


def _check_lora(model: Any, stage: int, spec: LoraSpec | None, present: dict | None) -> dict | None:
    """What the adapter is like that a stage ends with; `present` is the one that it begins with."""
    if stage == 0 and present is not None:
        raise StageError("stage 0 trains the language model, but that has an adapter: merge it (lora.merge: true)")
    if spec is None:
        return present
    if stage in (0, 1):
        raise StageError(f"lora belongs to stages 2 and 3; stage {stage} trains no frozen language model")
    if spec.target != PART:
        raise StageError(f"lora.target is {spec.target!r}; only {PART} can have an adapter")
    _need_peft()
    given = {name: getattr(spec, name) for name in DEFAULTS if getattr(spec, name) is not None}
    if min(given.get("r", 1), given.get("alpha", 1)) < 1 or not 0 <= given.get("dropout", 0) < 1:
        raise StageError(f"lora: r and alpha are at least 1, dropout at least 0 and less than 1; got {given}")
    pattern = target_modules(model, spec.modules)
    wanted = {**DEFAULTS, **(present or {}), **given}
    if present is None or spec.modules != "default":
        wanted["modules"] = pattern
    if present is not None and wanted != present:
        other = next(name for name in wanted if wanted[name] != present[name])
        raise StageError(
            f"lora.{other} is {wanted[other]!r}, but the model has an adapter with {present[other]!r}: leave it out "
            "to train that one on, or merge it in the stage before (lora.merge: true)"
        )
    if spec.merge and getattr(model, "hf_quantizer", None) is not None:
        raise StageError("lora.merge: the language model is quantised; open it in full precision to merge an adapter")
    return None if spec.merge else wanted


def _need_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise StageError("lora needs PEFT: pip install peft") from error


def adapter_of(model: Any) -> dict[str, Any] | None:
    """What the adapter of a model is like, or `None`: the fields of `LoraSpec`, `modules` as a pattern.

    Raises:
        StageError: it is not one LoRA of the language model.
    """
    if not adapted_layers(model):
        return None
    configs = list(model.peft_config.values())
    if len(configs) != 1 or str(getattr(configs[0].peft_type, "value", "")) != "LORA":
        raise StageError(f"the model has adapters that a recipe cannot train: {', '.join(model.peft_config)}")
    values = {name: getattr(configs[0], own) for name, own in PEFT_FIELDS.items()}
    return {**values, "modules": configs[0].target_modules}


def add_lora(
    model: Any,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    dora: bool = False,
    modules: str | Iterable[str] = "default",
) -> list[str]:
    """Give the language model of an X-LLM a new adapter, in place, to be trained beside the interfaces.

    ```python
    xllm.add_lora(model, r=8)
    xllm.freeze_for_stage(model, "align", "image")  # interfaces and adapter are trained
    Trainer(model, args, data_collator=XLLMDataCollator(processor), train_dataset=data).train()
    model.save_pretrained("out")  # both; AutoModel.from_pretrained("out") opens both
    ```

    The arguments are those of `LoraSpec`. Behind it, adapter and interfaces are trainable, the language model is not.

    Returns:
        names of the adapter's parameters.

    Raises:
        StageError: PEFT is not installed, there is an adapter already, or no such layers.
    """
    _need_peft()
    from peft import LoraConfig

    if adapted_layers(model):
        raise StageError("the model has an adapter already: train that one on, or merge it (merge_lora)")
    pattern = target_modules(model, modules)
    values: dict[str, Any] = dict(zip(PEFT_FIELDS.values(), (r, alpha, dropout, dora)))
    for parameter in [*model.get_submodule(f"model.{PART}").parameters(), *model.lm_head.parameters()]:
        parameter.requires_grad_(False)
    model.attach_adapter(LoraConfig(target_modules=pattern, **values))
    return adapter_parameters(model)


@torch.no_grad()
def merge_lora(model: Any) -> list[str]:
    """Put the adapter into the weights of the language model, which is no longer the one that its source holds.

    Returns:
        names of the tensors that changed.

    Raises:
        StageError: the model has no adapter. ValueError: merged weights would hold NaN or Inf.
    """
    layers = adapted_layers(model)
    if not layers:
        raise StageError("the model has no adapter to merge")
    for path, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded, model.config.adapter = False, None
    (model.config.towers or {}).pop(PART, None)
    return [f"{path}.weight" for path in layers]


def begin_lora(model: Any, spec: LoraSpec | None) -> None:
    """Give the model the adapter of a stage, unless it has one to be trained on; see `check_adapters`."""
    if spec is not None and not adapted_layers(model):
        given = {name: getattr(spec, name) for name in DEFAULTS if getattr(spec, name) is not None}
        add_lora(model, **{**DEFAULTS, **given}, modules=spec.modules)


__all__ = ["LoraSpec", "adapter_of", "add_lora", "begin_lora", "check_adapters", "merge_lora", "target_modules"]
