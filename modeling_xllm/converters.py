# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The kinds of converter (paper section 3.1), found by name: what turns an encoder's features into tokens.

    | name    | class              | tokens                                   | stage 1     |
    |---------|--------------------|------------------------------------------|-------------|
    | qformer | `QFormerConverter` | `num_query_tokens` per picture or item,  | contrast    |
    |         |                    | or one per `frames_per_token` frames     |             |
    | cformer | `CFormerConverter` | as many as its CIF fires                 | recognition |
    | linear  | `LinearConverter`  | one per feature vector, or per           | none        |
    |         |                    | `frames_per_token` frames: their mean    |             |

Your own converter is a subclass of [`X2LConverter`] and one call of [`register_converter`]; configuration, model,
stages and checkpoints ask the class and compare no names.

Legend: N items, T encoder frames, Q query tokens, K tokens per item (padded), E, C widths.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import Blip2QFormerConfig, Blip2QFormerModel, PreTrainedConfig
from transformers import initialization as init
from transformers.utils import ModelOutput

from .cformer import CFormer
from .configuration_cformer import CFormerConfig
from .host_reads import check


@dataclass
class ConverterOutput(ModelOutput):
    """What a converter makes of a batch of items, `embeddings (N, K, C)` and `mask (N, K)`: the real tokens of each
    item first; by default all are real. Any output with these two fields will do."""

    embeddings: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None


class X2LConverter(nn.Module):
    """Base class and protocol of converters. `forward(hidden, mask, **forward_options(row))` turns `hidden (N, T, E)`
    with its `mask (N, T)`, or `None`, into a [`ConverterOutput`].

    Class attributes:
        config_class: class of the row's `converter_config`; `None` if the converter has no sizes.
        config_key: a further name under which rows may give their `converter_config`.
        stage_one: objective of stage 1, "contrast" or "recognition"; `None`: there is none.
        token_level_sizes: what `token_level` rows have in `converter_config`; empty: there are none.
        query_parameter: name of the query tokens, which `train_query_tokens` trains in stage 3.
        shares_in_part: whether a row that shares another's converter still has some parameters to itself.
        joins_frames: whether it takes rows with `frames_per_token`, or with several vectors per frame.

    Args:
        row, owner_row (`X2LConfig`): the row that this module belongs to, and the one with the sizes: the same unless
            it shares another's converter.
    """

    config_class: type[PreTrainedConfig] | None = None
    config_key: str | None = None
    stage_one: str | None = None
    token_level_sizes: ClassVar[dict] = {}
    query_parameter: str | None = None
    shares_in_part = False
    joins_frames = False

    def __init__(self, row: PreTrainedConfig, owner_row: PreTrainedConfig):
        super().__init__()

    @classmethod
    def tokens_per_item(cls, row: PreTrainedConfig) -> int | None:
        """Placeholders of one picture or item; `None`: one per `subsampling_factor` input positions."""
        return None

    @classmethod
    def output_size(cls, owner_row: PreTrainedConfig) -> int:
        """Width C of the tokens."""
        return owner_row.encoder_hidden_size

    @classmethod
    def check_row(cls, row: PreTrainedConfig) -> None:
        """Fills in a new row; raises a `ValueError` if it does not suit this converter."""
        if row.token_level and (not cls.token_level_sizes or row.encoder or row.subsampling_factor not in (None, 1)):
            raise ValueError(
                "token_level=True needs converter='cformer', encoder=None and subsampling_factor=1, got "
                f"{row.converter!r}, {row.encoder!r} and {row.subsampling_factor}"
            )
        if row.frames_per_token is not None and (not cls.joins_frames or row.frames_per_token < 1):
            raise ValueError(
                f"frames_per_token={row.frames_per_token}: expected a whole number of at least 1, and a converter "
                f"that joins frames, got {row.converter!r}"
            )

    @classmethod
    def check_table(cls, row: PreTrainedConfig, owner_row: PreTrainedConfig) -> None:
        """The same once the table is complete: `encoder_hidden_size` is known, the converter's owner too."""
        if (shared := owner_row.encoder_hidden_size) != (own := row.encoder_hidden_size):
            raise ValueError(f"encoder_hidden_size is {own}, but the converter that it shares reads {shared}")
        own, theirs = row.frames_per_token, owner_row.frames_per_token
        if not cls.shares_in_part and (own or 1) != (theirs or 1):
            raise ValueError(f"frames_per_token is {own}, but the converter that it shares joins {theirs}")
        if row.vectors_per_frame > 1 and not cls.joins_frames:
            raise ValueError(f"its encoder gives several vectors per frame, which {row.converter!r} cannot join")
        if row is owner_row and hasattr(row.converter_config, "encoder_hidden_size"):
            row.converter_config.encoder_hidden_size = row.encoder_hidden_size

    @classmethod
    def trained_parts(cls, stage: int, paper: tuple[str, ...]) -> tuple[str, ...]:
        """Modules under `interfaces.<row>` that stage 1, 2 or 3 trains; `paper` is what the paper's table says."""
        return () if stage == 1 and cls.stage_one is None else paper

    @classmethod
    def check_inputs(cls, name: str, inputs: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Raises a `ValueError` for inputs of row `name` that must not reach the encoder."""

    @classmethod
    def forward_options(cls, row: PreTrainedConfig) -> dict:
        """Arguments of `forward` that depend on the row rather than on its converter, which it may share."""
        return {}

    def share(self, interface: nn.Module) -> None:
        """Use the converter of another row's interface (only with `shares_in_part`)."""
        # In a tuple it is no sub-module, and its parameters stay the other row's.
        self._shared_interface = (interface,)

    def init_weights_of_its_own(self, std: float) -> None:
        """Initialise the parameters that are not in a sub-module."""


def in_windows(hidden: torch.Tensor, mask: torch.Tensor | None, size: int) -> tuple[torch.Tensor, torch.BoolTensor]:
    """Vectors `(N, T, E)` with their mask `(N, T)`, or `None`, as `(N, W, size, E)` and `(N, W, size)`; what the last
    window lacks is not real."""
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
    more = -hidden.shape[1] % size
    windows = pad(hidden, (0, 0, 0, more)).unflatten(1, (-1, size))
    return windows, pad(mask, (0, more)).unflatten(1, (-1, size))


class QFormerConverter(X2LConverter):
    """Query tokens that read an encoder's features through a Q-Former (BLIP-2; paper section 3.1).

    A row that shares another's converter has its own query tokens and no `qformer`. With `frames_per_token`, one query
    reads so many frames at a time: a long sound is as many tokens as it takes, in the order of time.
    """

    config_class = Blip2QFormerConfig
    config_key = "qformer_config"
    stage_one = "contrast"
    query_parameter = "query_tokens"
    shares_in_part = joins_frames = True

    def __init__(self, row: PreTrainedConfig, owner_row: PreTrainedConfig):
        super().__init__(row, owner_row)
        width = owner_row.converter_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, row.num_query_tokens, width))  # (1, Q, C)
        self.query_std = owner_row.converter_config.initializer_range
        self.window = None if row.frames_per_token is None else row.frames_per_token * row.vectors_per_frame
        if row is owner_row:
            self.qformer = Blip2QFormerModel._from_config(row.converter_config)

    @classmethod
    def tokens_per_item(cls, row: PreTrainedConfig) -> int | None:
        return row.num_query_tokens if row.frames_per_token is None else None

    @classmethod
    def check_row(cls, row: PreTrainedConfig) -> None:
        super().check_row(row)
        if row.num_query_tokens < 1:
            raise ValueError(f"num_query_tokens must be positive, got {row.num_query_tokens}")
        if row.frames_per_token is not None and (row.num_query_tokens != 1 or row.num_frames is not None):
            raise ValueError(
                f"frames_per_token={row.frames_per_token} makes one token of so many frames of a sound: it needs "
                f"num_query_tokens=1 and no num_frames, got {row.num_query_tokens} and {row.num_frames}"
            )

    @classmethod
    def output_size(cls, owner_row: PreTrainedConfig) -> int:
        return owner_row.converter_config.hidden_size

    def init_weights_of_its_own(self, std: float) -> None:
        init.normal_(self.query_tokens, std=self.query_std)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> ConverterOutput:
        """(N, T, E), mask (N, T) or None -> (N, Q, C); with `frames_per_token`, (N, W, C) and mask (N, W)."""
        if self.window is not None:
            windows, real = in_windows(hidden, mask, self.window)  # (N, W, window, E)
            read = self._read(windows.flatten(0, 1), real.flatten(0, 1))  # (N * W, 1, C)
            return ConverterOutput(embeddings=read.view(*windows.shape[:2], -1), mask=real.any(-1))
        return ConverterOutput(embeddings=self._read(hidden, mask))

    def _read(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        qformer = self.qformer if hasattr(self, "qformer") else self._shared_interface[0].converter.qformer
        output = qformer(
            query_embeds=self.query_tokens.expand(hidden.shape[0], -1, -1),  # (N, Q, C)
            encoder_hidden_states=hidden,
            encoder_attention_mask=None if mask is None else mask.to(hidden.dtype),
        )
        return output.last_hidden_state


class CFormerConverter(X2LConverter, CFormer):
    """The C-Former of a row: CIF and a transformer over the tokens that it fires."""

    config_class = CFormerConfig
    config_key = "cformer_config"
    stage_one = "recognition"
    token_level_sizes: ClassVar = {"cif_predictor": "none"}

    def __init__(self, row: PreTrainedConfig, owner_row: PreTrainedConfig):
        CFormer.__init__(self, row.converter_config)

    @classmethod
    def output_size(cls, owner_row: PreTrainedConfig) -> int:
        return owner_row.converter_config.output_size

    @classmethod
    def check_row(cls, row: PreTrainedConfig) -> None:
        super().check_row(row)
        sizes = row.converter_config
        if not row.token_level or sizes is None:
            return
        if (predictor := sizes.cif_predictor) != "none":
            raise ValueError(f"token_level=True runs no CIF, but cif_predictor is {predictor!r}: give 'none'")
        row.encoder_hidden_size = row.encoder_hidden_size or sizes.cif_hidden_size

    @classmethod
    def check_table(cls, row: PreTrainedConfig, owner_row: PreTrainedConfig) -> None:
        if not row.token_level:
            super().check_table(row, owner_row)
        elif row.encoder_hidden_size != owner_row.converter_config.cif_hidden_size:
            width = owner_row.converter_config.cif_hidden_size
            raise ValueError(f"encoder_hidden_size is {row.encoder_hidden_size}, not its cif_hidden_size ({width})")
        elif row is owner_row:
            row.converter_config.encoder_hidden_size = row.encoder_hidden_size

    @classmethod
    def check_inputs(cls, name: str, inputs: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Frames `(N, frames, features)` or waveforms `(N, samples)`; padding (`mask` is 0) may hold anything."""
        if inputs.dim() not in (2, 3):
            raise ValueError(f"{name}: inputs must have shape (clips, frames, features), got {tuple(inputs.shape)}")
        finite = inputs.isfinite() if inputs.dim() == 2 else inputs.isfinite().all(-1)
        real = torch.ones_like(finite) if mask is None else mask.bool()
        empty, broken = ~real.any(1), (real & ~finite).any(1)
        check(~empty, lambda: f"{name}: clip {int(empty.int().argmax())} has no frames, or all are masked: drop it")
        check(~broken, lambda: f"{name}: clip {int(broken.int().argmax())} holds NaN or Inf: check its features")

    @classmethod
    def forward_options(cls, row: PreTrainedConfig) -> dict:
        return {"token_level": row.token_level}


class LinearConverter(X2LConverter):
    """LayerNorm and a Linear of the same width over each feature vector (device status, pooled features), or over the
    mean of the vectors of `frames_per_token` frames."""

    joins_frames = True

    def __init__(self, row: PreTrainedConfig, owner_row: PreTrainedConfig):
        super().__init__(row, owner_row)
        self.window = (row.frames_per_token or 1) * row.vectors_per_frame
        self.layernorm = nn.LayerNorm(row.encoder_hidden_size)
        self.dense = nn.Linear(row.encoder_hidden_size, row.encoder_hidden_size)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> ConverterOutput:
        """(N, T, E), mask (N, T) -> (N, T, E) and the same mask, or one for each window of vectors."""
        if self.window > 1:
            windows, real = in_windows(hidden, mask, self.window)
            total = windows.masked_fill(~real[..., None], 0).sum(2)
            hidden, mask = total / real.sum(-1, keepdim=True).clamp(min=1), real.any(-1)
        return ConverterOutput(embeddings=self.dense(self.layernorm(hidden)), mask=mask)


CONVERTERS: dict[str, type[X2LConverter]] = {
    "qformer": QFormerConverter,
    "cformer": CFormerConverter,
    "linear": LinearConverter,
}


def register_converter(name: str, converter: type[X2LConverter], exist_ok: bool = False) -> None:
    """Make a kind of converter known under `name`, the `converter` of rows. What is no `X2LConverter`, or a name that
    another class has, is a `ValueError` (`exist_ok=True` replaces it)."""
    if not (isinstance(converter, type) and issubclass(converter, X2LConverter)):
        raise ValueError(f"register_converter({name!r}): expected a subclass of X2LConverter, got {converter!r}")
    if not exist_ok and CONVERTERS.get(name, converter) is not converter:
        raise ValueError(f"register_converter: {name!r} is {CONVERTERS[name].__name__} already; take another name")
    CONVERTERS[name] = converter


def converter_class(name: str) -> type[X2LConverter]:
    """The class registered as `name`; the `ValueError` for another name lists them."""
    if name not in CONVERTERS:
        raise ValueError(f"converter must be one of {', '.join(CONVERTERS)}, got {name!r}")
    return CONVERTERS[name]
