# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What each stage trains (paper section 3.2, figure 2): one table, applied to any X-LLM model.

| stage         | trained of each row     | switches                            |
|---------------|-------------------------|-------------------------------------|
| 1 convert     | converter, heads        | `train_encoder`, `train_shared`     |
| 2 align       | converter, adapter      | `train_shared`                      |
| 3 integrate   | adapter                 | `train_query_tokens`                |

A converter's class may say otherwise (`X2LConverter.trained_parts`): one without an objective of stage 1, such as
"linear", has nothing to convert.

Heads are what a stage-1 model adds to towers and interfaces; they are thrown away afterwards. Switches:
`train_encoder` (stage 1: the speech encoder is trained with its C-Former, there being no published one),
`train_query_tokens` (stage 3: the authors' code trains them too, the paper does not), `train_shared` (a converter
that belongs to another row).

Deviation: stage 0 is not the paper's; it trains the language model on text alone, to make a stand-in.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import torch

from xllm.modeling_xllm.converters import converter_class
from xllm.modeling_xllm.stage_checkpoints import adapted_layers
from xllm.modeling_xllm.tower_sources import part_of, tower_of


class Stage(IntEnum):
    """The paper's stages, and the making of a stand-in language model before them."""

    TEXT = 0
    CONVERT = 1
    ALIGN = 2
    INTEGRATE = 3


# Stage -> module paths under `model.interfaces.<modality>`.
TRAINED_PARTS: dict[Stage, tuple[str, ...]] = {
    Stage.CONVERT: ("converter",),
    Stage.ALIGN: ("converter", "adapter"),
    Stage.INTEGRATE: ("adapter",),
}
LANGUAGE_MODEL = ("model.language_model.", "lm_head.")
# Top-level parts of any X-LLM model; what else a stage-1 model holds are its heads.
COMPOSITE_PARTS = ("model.", "lm_head.")


class StageError(ValueError):
    """A stage, modality or switch that does not fit the model."""


def resolve_stage(stage: int | str | Stage) -> Stage:
    """`2`, "2" or "align" as a `Stage`.

    Raises:
        StageError: no such stage; the message lists them.
    """
    try:
        return Stage[stage.upper()] if isinstance(stage, str) and not stage.isdigit() else Stage(int(stage))
    except (KeyError, ValueError, TypeError) as error:
        choices = ", ".join(f"{member.value} ({member.name.lower()})" for member in Stage)
        raise StageError(f"stage is {stage!r}; choose one of {choices}") from error


def resolve_modalities(config: Any, modalities: Iterable[str] | str | None) -> list[str]:
    """The rows to train, in the model's order; all of them for `None`. StageError: there is no such row."""
    rows = list(config.modalities)
    wanted = [modalities] if isinstance(modalities, str) else list(rows if modalities is None else modalities)
    if unknown := [name for name in wanted if name not in rows]:
        raise StageError(f"modalities: no row {', '.join(map(repr, unknown))}; this model has {', '.join(rows)}")
    return [name for name in rows if name in wanted]


def _declared(config: Any, stage: Stage, modalities: list[str], switches: set[str]) -> tuple[str, ...]:
    """The modules that a stage trains, heads aside: read off `TRAINED_PARTS`, each path with a dot at its end."""
    if stage is Stage.TEXT:
        return LANGUAGE_MODEL
    paths = []
    for name in modalities:
        row = config.modalities[name]
        converter = converter_class(row.converter)
        parts = list(converter.trained_parts(int(stage), TRAINED_PARTS[stage]))
        if "train_query_tokens" in switches and converter.query_parameter:
            parts.append(f"converter.{converter.query_parameter}")
        paths += [f"model.interfaces.{name}.{part}." for part in parts]
        if "train_shared" in switches and row.shares_converter_with and "converter" in parts:
            paths.append(f"model.interfaces.{row.shares_converter_with}.converter.")
        if "train_encoder" in switches and row.encoder is not None:
            paths.append(f"model.{tower_of(row.encoder)}.")
    return tuple(paths)


def freeze_for_stage(
    model: Any,
    stage: int | str | Stage,
    modalities: Iterable[str] | str | None = None,
    *,
    train_encoder: bool = False,
    train_query_tokens: bool = False,
    train_shared: bool = False,
    train_adapters: bool = True,
) -> list[str]:
    """Make exactly the declared set of parameters trainable, and everything else frozen.

    PEFT adapters, wherever they are, are trained in every stage unless `train_adapters` is False, and the weights that
    they adapt are not: call this behind `xllm.add_lora`.

    Args:
        model: an X-LLM; in stage 1 also `XLLMForQFormerPreTraining` and `XLLMForSpeechRecognition`, whose heads are
            trained too.
        stage (`int` or `str`): 1 or "convert", 2 or "align", 3 or "integrate"; 0 or "text" for a stand-in LLM.
        modalities (`list[str]`, *optional*): rows of the model; default all.
        train_encoder, train_query_tokens, train_shared (`bool`): see the module's first lines.

    Returns:
        names of the trainable parameters, in the model's order.

    Raises:
        StageError: unknown stage or modality, a switch of another stage, or nothing to train; or adapters made by
            `get_peft_model`, which would not save the interfaces that are trained.
    """
    stage = resolve_stage(stage)
    modalities = resolve_modalities(model.config, modalities)
    if train_encoder and stage is not Stage.CONVERT:
        raise StageError(f"train_encoder belongs to stage 1; in stage {stage.value} the encoders are frozen")
    if train_query_tokens and stage is not Stage.INTEGRATE:
        raise StageError("train_query_tokens belongs to stage 3; stages 1 and 2 train the query tokens anyway")
    given = {"train_encoder": train_encoder, "train_query_tokens": train_query_tokens, "train_shared": train_shared}
    declared = _declared(model.config, stage, modalities, {name for name, is_on in given.items() if is_on})
    adapters = set(adapter_parameters(model))

    def is_trained(name: str) -> bool:
        is_head = stage is Stage.CONVERT and not name.startswith(COMPOSITE_PARTS)
        is_declared = f"{name}.".startswith(declared) or is_head
        return train_adapters if name in adapters else is_declared and ".base_layer." not in name

    trained = {name: is_trained(name) for name, _ in model.named_parameters()}
    names = [name for name, is_on in trained.items() if is_on]
    if not any(f"{name}.".startswith(declared) for name in names):
        what = ", ".join(f"{name} ({model.config.modalities[name].converter})" for name in modalities)
        raise StageError(f"stage {stage.value} ({stage.name.lower()}) trains nothing of {what or 'no modality'}")
    _fail_if_interfaces_would_be_lost(model, [name for name in names if name not in adapters])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    return names


def adapter_parameters(model: Any) -> list[str]:
    """Names of the parameters that PEFT's layers (LoRA, DoRA, ...) add; the weights under them are `base_layer`s."""
    return [
        f"{path}.{kind}.{name}"
        for path, layer in adapted_layers(model).items()
        for kind in layer.adapter_layer_names
        for name, _ in getattr(layer, kind).named_parameters()
    ]


def _fail_if_interfaces_would_be_lost(model: Any, trained: Iterable[str]) -> None:
    """A wrapper by `get_peft_model` saves its adapter and the copies in `modules_to_save`, and no interface."""
    if not hasattr(model, "peft_config") or model._hf_peft_config_loaded:
        return
    if lost := [name for name in trained if name.startswith("model.interfaces.")]:
        raise StageError(
            f"a model wrapped by get_peft_model saves its adapter alone, and would lose {len(lost)} trained tensors, "
            f"e.g. {lost[0]}: give the model its adapter by xllm.add_lora(model), whose save_pretrained writes both"
        )


def part_of_parameter(name: str) -> str:
    """The part of an X-LLM or a stage-1 model that a parameter belongs to: "interfaces.image", a tower, a head."""
    path = name.removeprefix("model.").split(".")
    return ".".join(path[:2]) if path[0] == "interfaces" else part_of(name)


def count_parameters(model: Any) -> dict[str, tuple[int, int]]:
    """Part -> (trained parameters, parameters); each interface and each head is a part of its own."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of_parameter(name)
        trained, total = counts.get(part, (0, 0))
        size = parameter.numel()
        counts[part] = (trained + size * parameter.requires_grad, total + size)
    return counts


def frozen_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters that are not trained, and saved buffers of modules none of whose own parameters is trained; what an
    adapter is put around by the name that it has without.
    """
    frozen: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    saved = set(model.state_dict())
    for path, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            continue
        for name, buffer in module.named_buffers(prefix=path, recurse=False):
            if name in saved:
                frozen[name] = buffer
    return {name.replace(".base_layer.", "."): tensor for name, tensor in frozen.items()}


__all__ = ["LANGUAGE_MODEL", "Stage", "StageError", "adapter_parameters", "freeze_for_stage", "frozen_tensors"]
__all__ += ["count_parameters", "part_of_parameter", "resolve_modalities", "resolve_stage"]
