# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Towers and X2L interfaces without a language model (paper section 3.1): from media to quasi-linguistic embeddings.

Deviations from the authors' code: frozen modules stay in eval mode (there, their dropout is active), and missing video
frames are neither encoded nor shown to the language model.

Legend: N items, F frames of a video, R real frames of all videos, T encoder frames, E, D widths.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.utils import can_return_tuple

from .configuration_xllm import ATTENTION_OF_ALL_PARTS, XLLMConfig
from .converters import X2LConverter, converter_class
from .host_reads import Asked, true_places
from .speech_encoders import blank_sequence, encode_sequences
from .stage_checkpoints import StageCheckpointMixin
from .tower_sources import TOWER_CLASSES
from .vision_encoders import blank_picture, encode_pictures, reads_pictures
from .x2l_interfaces import X2LInterface, X2LOutput, place_frames


# LAVIS's ln_vision has PyTorch's default eps, unlike the norms inside ViT-g (1e-6).
LN_VISION_EPS = 1e-5


def is_trainable(module: nn.Module) -> bool:
    """Whether any parameter of `module` is being trained."""
    # `module.parameters()` builds names and a set of what it has seen: five times slower at every training step.
    own = (parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)
    return any(own) or any(is_trainable(child) for child in module._modules.values() if child is not None)


def train_unless_frozen(module: nn.Module, mode: bool) -> None:
    """`module.train(mode)`, or eval mode if none of its parameters is being trained."""
    if _rests(module):  # most calls find what is frozen as it was, and end there
        return
    mode = mode and is_trainable(module)
    if not _is_in_mode(module, mode):  # to look costs a tenth of setting it
        module.train(mode)


def _rests(module: nn.Module) -> bool:
    """Whether nothing of `module` is being trained and all of it is in eval mode."""
    parts: list[nn.Module | None] = [module]
    for part in parts:  # one list, to which each adds its children: half the time of a recursion
        if part is None:
            continue
        if part.training:
            return False
        for parameter in part._parameters.values():
            if parameter is not None and parameter.requires_grad:
                return False
        parts.extend(part._modules.values())
    return True


def _is_in_mode(module: nn.Module, mode: bool) -> bool:
    children = module._modules.values()
    return module.training is mode and all(_is_in_mode(child, mode) for child in children if child is not None)


def is_sharded(module: nn.Module) -> bool:
    """Whether the processes hold parameters of `module` in parts (FSDP, ZeRO-3), so that they must run it together."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # takes long; few need it

    kinds = (FSDPModule, FullyShardedDataParallel)
    return any(isinstance(part, kinds) for part in module.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in module.parameters()
    )


@contextmanager
def _without_traces(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """What `modules` compute here draws no random number that others would, and leaves batch norms as they are."""
    parts = [part for module in modules for part in module.modules()]
    norms = {part: part._buffers for part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    for norm, buffers in norms.items():  # other tensors, not other values: autograd may have saved them
        norm._buffers = {name: None if value is None else value.clone() for name, value in buffers.items()}
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            yield
    finally:
        for norm, buffers in norms.items():
            norm._buffers = buffers


class XLLMPreTrainedModel(StageCheckpointMixin, PreTrainedModel):
    """Weight initialisation, loading and saving shared by all X-LLM models."""

    config: XLLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values"]
    # What is trained keeps its precision over towers and a language model of half of it.
    _keep_in_fp32_modules_strict = ["interfaces"]

    def post_init(self) -> None:
        """As in any model; one without values yet lets an automatic `device_map` cut beside interfaces, not in them.
        FSDP, which would shard by the same list, never sees that: an interface may use the converter of another."""
        super().post_init()
        if any(parameter.is_meta for parameter in self.parameters()):  # there may be none
            self._no_split_modules = {*(self._no_split_modules or ()), X2LInterface.__name__}

    @classmethod
    def is_custom_code(cls) -> bool:
        # Outside transformers, missing weights of towers that transformers owns would be left uninitialised.
        return cls.is_remote_code()

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """As in any model, but flash and flex attention, asked for by name, become the language model's alone."""
        name = attn_implementation
        if isinstance(name, str) and name not in ATTENTION_OF_ALL_PARTS:
            name = self._check_and_adjust_attn_implementation(name, allow_all_kernels=allow_all_kernels)
            attn_implementation = {"": "sdpa", "text_config": name}
        super().set_attn_implementation(attn_implementation, allow_all_kernels)
        if isinstance(name, str):
            self.config._attn_implementation_internal = name  # where `generate` looks

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, X2LConverter):
            module.init_weights_of_its_own(self.config.initializer_range)


class FeatureGetters:
    """`get_features` under the names that transformers uses for images, videos and sound, whatever the rows' names."""

    def _features_of(self, input_name: str, *inputs, **kwargs) -> X2LOutput:
        if (row := self.config.row_that_reads(input_name)) is None:
            raise ValueError(f"no row of config.modalities reads {input_name}")
        return self.get_features(row, *inputs, **kwargs)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> X2LOutput:
        """`get_features` of images `(images, 3, H, W)`."""
        return self._features_of("pixel_values", pixel_values, **kwargs)

    def get_video_features(self, pixel_values_videos: torch.Tensor, video_frame_mask=None, **kwargs) -> X2LOutput:
        """`get_features` of videos `(videos, F, 3, H, W)` with their frame mask `(videos, F)`."""
        return self._features_of("pixel_values_videos", pixel_values_videos, video_frame_mask, **kwargs)

    def get_audio_features(self, input_features: torch.Tensor, input_features_mask=None, **kwargs) -> X2LOutput:
        """`get_features` of speech `(clips, frames, features)` or `(clips, samples)` with its mask."""
        return self._features_of("input_features", input_features, input_features_mask, **kwargs)


class XLLMEncoderModel(XLLMPreTrainedModel, FeatureGetters):
    """Towers and interfaces without a language model: from media to quasi-linguistic embeddings."""

    main_input_name = "pixel_values"

    def __init__(self, config: XLLMConfig):
        super().__init__(config)
        used = {row.encoder for row in config.modalities.values()}
        self.vision_tower = self._build_tower(config.vision_config) if "vision" in used else None
        self.audio_tower = self._build_tower(config.audio_config) if "audio" in used else None
        self.extra_towers = nn.ModuleDict(
            {name: self._build_tower(encoder) for name, encoder in config.extra_encoders.items() if name in used}
        )
        self.interfaces = nn.ModuleDict(
            {name: X2LInterface(row, config.row_of_converter(name)) for name, row in config.modalities.items()}
        )
        if torch.get_default_dtype().itemsize < 4:
            self.interfaces.float()  # also what no checkpoint holds: see `_keep_in_fp32_modules_strict`
        for name, row in config.modalities.items():
            if row.shares_converter_with is not None:
                self.interfaces[name].share(self.interfaces[row.shares_converter_with])
        if type(self) is XLLMEncoderModel:
            self.post_init()

    @staticmethod
    def _build_tower(config) -> PreTrainedModel:
        # CODEPATH: AutoModel does not know the towers of blip2-opt-2.7b and clap-htsat-unfused by themselves.
        if config.model_type not in TOWER_CLASSES:
            tower = AutoModel.from_config(config)
            return tower.get_encoder() if config.is_encoder_decoder else tower  # of Whisper, the half that listens
        tower = TOWER_CLASSES[config.model_type]._from_config(config)
        if isinstance(tower, Blip2VisionModel):
            tower.post_layernorm.eps = LN_VISION_EPS
        return tower

    def tower(self, name: str) -> PreTrainedModel:
        """The tower called `name` in the modality table."""
        return {"vision": self.vision_tower, "audio": self.audio_tower, **self.extra_towers}[name]

    def train(self, mode: bool = True):
        """`nn.Module.train`, except that frozen parts stay in eval mode: a tower, the language model, an interface's
        converter or adapter, and the modules right inside a converter. Their dropout must not run."""
        self.training = self.interfaces.training = self.extra_towers.training = mode
        towers = [child for child in self.children() if not isinstance(child, nn.ModuleDict)]
        for tower in [*towers, *self.extra_towers.values()]:
            train_unless_frozen(tower, mode)
        for interface in self.interfaces.values():
            interface.training = mode
            for part in interface.children():
                if not (mode and is_trainable(part)):
                    train_unless_frozen(part, mode)
                    continue
                part.training = True
                for child in part.children():
                    if next(child.parameters(), None) is None:  # it follows the part that it is in
                        child.train()
                    else:
                        train_unless_frozen(child, mode)
        return self

    def encode(self, modality: str, inputs: torch.Tensor, mask: torch.Tensor | None = None, real=None, **kwargs):
        """Run the tower of `modality`, without gradient memory where the tower is frozen.

        Args:
            inputs: `(N, 3, H, W)` pictures, `(N, F, 3, H, W)` series of pictures (or patches, see `vision_encoders`),
                `(N, frames, features)` sequences or `(N, samples)` waveforms; mask: 1 at real ones. Speech without
                any, or with NaN or Inf, is a `ValueError`.
            real ([`Asked`]): the number of real pictures in series, where it has been asked for.

        Returns:
            the tower's output, its `last_hidden_state` being `(N, T, E)`, or `(R, T, E)` for the R real pictures of
            the series; and the mask `(N, T)` of real encoder frames (of a series, `(R, T)`) or None.
        """
        row = self.config.modalities[modality]
        converter_class(row.converter).check_inputs(modality, inputs, mask)
        if row.encoder is None:
            return BaseModelOutput(last_hidden_state=inputs), None if mask is None else mask.bool()
        tower = self.tower(row.encoder)
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trainable(tower)):
            if row.num_frames is not None:
                pictures = inputs.flatten(0, 1)  # (N, F, 3, H, W) -> (N * F, 3, H, W)
                if mask is not None and not torch.compiler.is_compiling():  # a graph cannot wait for their number
                    real = Asked(mask.bool().sum()) if real is None else real
                    (count,) = real.values()
                    if count < len(pictures):
                        pictures = pictures[true_places(mask.bool(), count)]
                return encode_pictures(tower, pictures, **kwargs)
            if inputs.dim() == 4 or reads_pictures(tower):
                return encode_pictures(tower, inputs, **kwargs)
            return encode_sequences(tower, inputs.to(tower.dtype), mask, row.positions_per_frame, **kwargs)

    def _features(self, modality: str, inputs, mask=None, target_lengths=None, **kwargs) -> X2LOutput:
        if (row := self.config.modalities.get(modality)) is None:
            raise ValueError(f"modality must be one of {', '.join(self.config.modalities)}, got {modality!r}")
        outputs, encoder_mask = self.encode(modality, inputs, mask, **kwargs)
        is_series = row.num_frames is not None
        is_fixed = row.tokens_per_item is not None
        if mask is None and (is_series or not is_fixed and inputs.dim() < 4):
            mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        features = self.interfaces[modality](
            outputs.last_hidden_state,
            mask=encoder_mask,
            frame_mask=mask if is_series else None,
            num_placeholders=None if is_fixed or mask is None else -(-mask.sum(-1) // row.subsampling_factor),  # ceil
            target_lengths=target_lengths,
        )
        features.last_hidden_state = outputs.last_hidden_state  # (N, T, E), of a series (R, T, E)
        features.hidden_states = outputs.get("hidden_states")
        features.attentions = outputs.get("attentions")
        return features

    def _takes_all(self, module: nn.Module) -> bool:
        """Whether all processes must run `module` in each step: gradients of what is trained come from all of them,
        and so do the parameters of what is sharded.
        """
        return (self.training and is_trainable(module)) or is_sharded(module)

    def stand_in(self, modality: str) -> torch.Tensor | None:
        """What a process whose batch lacks a modality does for those that have it: its tower and interface, or of
        these what takes all processes, run on an empty item.

        Returns:
            0, whose gradients are 0 for all that is trained; `None` where nothing needs to be run.
        """
        row = self.config.modalities[modality]
        interface: Any = self.interfaces[modality]
        tower: Any = None if row.encoder is None else self.tower(row.encoder)
        owner = self.interfaces[row.shares_converter_with or modality]
        modules = [module for module in (tower, interface, owner) if module is not None]
        if not any(map(self._takes_all, modules)):
            return None
        device = next(interface.parameters()).device  # by name ZeRO-3 would collect a weight, here alone
        with _without_traces(modules, device):
            if tower is None or not self._takes_all(tower):
                features = interface(torch.zeros(1, 1, row.encoder_hidden_size, device=device))
            elif reads_pictures(tower):
                picture = blank_picture(tower.config).to(device)
                features = self._features(modality, picture if row.num_frames is None else picture[None])
            else:
                features = self._features(modality, blank_sequence(tower, row.positions_per_frame).to(device))
        return features.embeddings.flatten()[:0].sum()  # of no values: 0 also where a value is NaN or Inf

    @can_return_tuple
    def get_features(
        self, modality: str, inputs: torch.Tensor, mask: torch.Tensor | None = None, **kwargs
    ) -> X2LOutput:
        """What the language model would read of one modality's items (`pooler_output`: one tensor per item).

        Args:
            modality: a row of the table; inputs, mask: as its `input_name` and `mask_name` arguments of `forward`.

        Returns:
            `last_hidden_state` is the encoder's, one row per item: `(N, T, E)`, of a series `(N, F * T, E)` with
            zeros for missing pictures; `hidden_states` and `attentions` of a series are those of its real pictures.
        """
        features = self._features(modality, inputs, mask, **kwargs)
        lengths = features.mask.sum(-1).tolist()
        features.pooler_output = list(features.embeddings[features.mask].split(lengths))
        row = self.config.modalities[modality]
        if row.num_frames is not None:
            mask = inputs.new_ones(inputs.shape[:2]) if mask is None else mask
            features.last_hidden_state = place_frames(features.last_hidden_state, mask).flatten(1, 2)
        return features


__all__ = ["FeatureGetters", "XLLMEncoderModel", "XLLMPreTrainedModel", "is_trainable"]
