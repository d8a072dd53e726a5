# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The throw-away heads of a stage-1 model (paper section 3.2): in a file beside the checkpoint, never inside it.

The file holds the heads and, in its metadata, the fields of the stage-1 config. With the X-LLM beside it, it is the
trained stage-1 model: `XLLMForSpeechRecognition.from_pretrained(folder)` transcribes, `xllm train` continues from it.
"""

import json
import os
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.weight_files import (
    HUB_ARGUMENTS,
    StageCheckpointError,
    copy_tensors,
    resolve_source,
    save_tensors,
    verify_weights,
)


def stage_one_config(config: XLLMConfig, config_class: Any, modality: str, **own) -> XLLMConfig:
    """The config of the stage-1 model of one row of `config`, with the fields `own` of its class."""
    names = ("text_config", "vision_config", "audio_config", "extra_encoders", "modalities", "initializer_range")
    return config_class(**{name: deepcopy(getattr(config, name)) for name in names}, modality=modality, **own)


class StageOneConfigMixin:
    """For an `XLLMConfig` that is cut down to the row `modality` (and the row whose converter that one shares)."""

    modality: str
    modalities: dict[str, X2LConfig] | None

    def _keep_row(self) -> X2LConfig:
        """The row that is trained, an error if there is none; the table loses the others."""
        rows = default_modalities() if self.modalities is None else self.modalities
        if self.modality not in rows:
            raise ValueError(f"modality is {self.modality!r}; the table has {', '.join(rows)}")
        row = XLLMConfig._row(self.modality, rows[self.modality])
        kept = {self.modality, row.shares_converter_with or self.modality}
        self.modalities = {name: other for name, other in rows.items() if name in kept}
        return row

    @property
    def row(self) -> X2LConfig:
        """The row of the modality table that is trained."""
        return (self.modalities or {})[self.modality]


def own_fields(config: XLLMConfig) -> dict:
    """The fields of a stage-1 config that an `XLLMConfig` has not."""
    names = {item.name for item in fields(type(config))} - {item.name for item in fields(XLLMConfig)}
    return {name: getattr(config, name) for name in sorted(names)}


class StageOneHeadsMixin(PreTrainedModel if TYPE_CHECKING else object):
    """For models whose `model` is the composite's encoder model: everything beside it is thrown away after stage 1."""

    heads_name: str  # file of the heads

    def interface_state_dict(self) -> dict[str, torch.Tensor]:
        """The interface (and the one whose converter it shares), under the keys the composite model has."""
        return {key: value for key, value in self.state_dict().items() if key.startswith("model.interfaces.")}

    def heads_state_dict(self) -> dict[str, torch.Tensor]:
        """What stage 1 throws away."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("model.")}

    def save_heads(self, folder: str | os.PathLike) -> Path:
        """Writes heads and stage-1 config to a file beside the interface's checkpoint; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder, self.heads_name)
        save_tensors(self.heads_state_dict(), path, {"config": json.dumps(own_fields(self.config))})
        return path

    @classmethod
    def read_heads(cls, source: str, revision: str | None = None, **hub) -> tuple[dict, dict] | None:
        """Fields of the stage-1 config and tensors that `save_heads` wrote to a folder or Hub repository, or `None`. A
        damaged file, or one without its config, is a `StageCheckpointError`."""
        quiet = {"_raise_exceptions_for_missing_entries": False}
        path = cached_file(source, cls.heads_name, revision=revision, **quiet, **hub)
        if path is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                settings = json.loads((file.metadata() or {})["config"])
                return settings, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except KeyError as error:
            raise StageCheckpointError(f"{path}: does not say which stage-1 config its heads belong to") from error
        except (SafetensorError, ValueError) as error:
            raise StageCheckpointError(f"{path}: damaged: {error}") from error

    def load_heads(self, folder: str | os.PathLike) -> None:
        """Reads what `save_heads` wrote into this model; none, or those of another config, are a
        `StageCheckpointError`."""
        found = self.read_heads(str(folder))
        if found is None:
            raise StageCheckpointError(f"{folder}: has no {self.heads_name}")
        copy_tensors(found[1], self.heads_state_dict(), str(Path(folder, self.heads_name)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, revision=None, **kwargs):
        """`PreTrainedModel.from_pretrained`; of an X-LLM whose last stage was stage 1, tower, interface and heads.
        Without that stage, or with a tensor missing, too many, misshapen or altered, a `StageCheckpointError`."""
        source = pretrained_model_name_or_path
        if config is None and source is not None and not args:
            source = str(source)
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            values = PreTrainedConfig.get_config_dict(source, revision=revision, **hub)[0]
            if values.get("model_type") == XLLMConfig.model_type:
                found = cls.read_heads(source, revision, **hub)
                if found is None:
                    raise StageCheckpointError(
                        f"{source}: has no {cls.heads_name}, so it was not trained in stage 1; `xllm train` does that"
                    )
                composite = XLLMConfig.from_dict(values)
                config = stage_one_config(composite, cls.config_class, **found[0])
                config.towers = {
                    part: {**tower, "name_or_path": resolve_source(tower["name_or_path"], source)}
                    for part, tower in (composite.towers or {}).items()
                    if part != "language_model"
                }
                verify_weights(source, revision, **hub)
                kwargs["state_dict"] = cls._gather_weights(config, source, revision, hub, True, found[1])
                source = revision = None  # all of it is there
        return super().from_pretrained(source, *args, config=config, revision=revision, **kwargs)
