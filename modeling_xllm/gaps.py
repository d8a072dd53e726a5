# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Placeholders that no token fills: a clip of speech may fire fewer tokens than the prompt has room for.

A mask hides them from attention. Where a language model counts columns (windows, states that pass through), they are
left out of what it reads, and its cache remembers which columns of the text it holds.

Legend: B rows of text, L tokens, M tokens with those in the cache, R columns that are read.
"""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .host_reads import Asked
from .language_models import CacheNote, language_model_of


logger = logging.get_logger(__name__)


def hide_gaps(cache: Any, attention_mask: torch.Tensor) -> torch.Tensor:
    """The attention mask `(B, M)` of a text that begins in `cache`, 0 also at the placeholders there that no token
    fills. Another number of rows than the cache's is a `ValueError`."""
    if attention_mask.dim() != 2 or (held := CacheNote.read(cache, "attended")) is None:
        return attention_mask
    if held.shape[0] not in (1, attention_mask.shape[0]):
        raise ValueError(f"past_key_values hold {held.shape[0]} rows, got a text of {attention_mask.shape[0]}")
    return attention_mask * nn.functional.pad(held, (0, attention_mask.shape[1] - held.shape[1]), value=1)


def columns_held(cache: Any) -> torch.Tensor | None:
    """Which columns of its text `(B, M)` a cache holds that left some out."""
    held = CacheNote.read(cache, "columns")
    return None if held is None or held.shape[1] == 0 else held


def in_columns(cache: Any, attention_mask: torch.Tensor) -> torch.Tensor:
    """The attention mask of a text that begins in `cache`, `(B, M)`, without the tokens that the cache left out."""
    if attention_mask.dim() != 2 or (held := columns_held(cache)) is None:
        return attention_mask
    return torch.cat([attention_mask.gather(1, held), attention_mask[:, int(held[0, -1]) + 1 :]], 1)


def remember_gaps(cache: Any, attention_mask: torch.Tensor, columns: torch.Tensor | None = None) -> None:
    """Keep with `cache`, for `hide_gaps` and `in_columns`, the mask `(B, M)` of what it holds and, where something was
    left out, which `columns (B, M)` of the text it is."""
    if cache is not None and (held := int(cache.get_seq_length())) > 0:
        keys = [layer.keys for layer in cache.layers if getattr(layer, "keys", None) is not None]
        beams = max(1, keys[0].shape[0] // attention_mask.shape[0]) if keys else 1
        cache.attended = CacheNote([attention_mask.repeat_interleave(beams, dim=0).long()])
        if columns is not None:  # of what was said, too
            said = torch.arange(1, held + 1, device=columns.device)
            columns = torch.cat([columns, columns[:, -1:] + said], 1)[:, :held]
            cache.columns = CacheNote([columns.repeat_interleave(beams, dim=0)])


def warn_of_gaps(config: Any, attention_mask: torch.Tensor) -> None:
    """Says where placeholders that no token fills take room from what a language model sees of a text `(B, M)`."""
    language, real = language_model_of(config), attention_mask.bool()
    if torch.compiler.is_compiling() or real.dim() != 2 or not language.counts_columns(real.shape[1]):
        return
    if (~real & (real.cumsum(1) > 0) & (real.flip(1).cumsum(1).flip(1) > 0)).any():
        logger.warning_once(
            f"placeholders that no token fills stand in the text, and {language.config.model_type} counts them in its "
            "windows or states, unlike in training: let generate read the whole prompt, or call the model with "
            "use_cache=False and without output_hidden_states and output_attentions"
        )


def left_padded(mask: torch.Tensor) -> torch.LongTensor | None:
    """The columns `(B, R)` of a text with its attended tokens last and no more of others than the longest row needs;
    `None` where they are last already, and no fewer. `mask (B, L)`: 1 = attended."""
    real, L = mask.bool(), mask.shape[1]
    gaps = (real[:, :-1] & ~real[:, 1:]).sum()  # which a sliding window would count
    number, *lengths = Asked(torch.cat([gaps[None], real.sum(1)])).values()
    width = max(1, *lengths)
    return None if width == L and not number else real.byte().argsort(stable=True)[:, L - width :]


def columns_read(cache: Any) -> int:
    """How many columns of its text a cache has read, those that it left out included."""
    held = columns_held(cache)
    return int(held[0, -1]) + 1 if held is not None else 0 if cache is None else int(cache.get_seq_length())


def columns_behind(config: Any, cache: Any, mask: torch.Tensor, may_drop: bool = False) -> torch.LongTensor | None:
    """The columns of a text `(B, L)` that a model reads whose beginning is in `cache`: those that the cache holds, and
    what comes behind; with `may_drop`, of one row only what is attended of it. `None`: all."""
    held, start = columns_held(cache), columns_read(cache)
    if held is None and not may_drop:
        return None
    behind = torch.arange(start, mask.shape[1], device=mask.device).expand(mask.shape[0], -1)
    if may_drop and mask.shape[0] == 1:
        behind = behind[:, mask[0, start:].bool()]
    elif may_drop:  # what lies between cached and new tokens stays there
        warn_of_gaps(config, mask[:, start:])
    if held is None:
        held = torch.arange(start, device=mask.device).expand(mask.shape[0], -1)
    return torch.cat([held, behind], 1)


def take_columns(columns, length: int, inputs, kwargs: dict, config: Any) -> torch.Tensor | None:
    """The prompt, and in `kwargs` what goes with it, with no more than the `columns (B, R)` of a text of `length`."""
    left_out = length - columns.shape[1]
    for name in ("inputs_embeds", "media_embeds"):
        if (states := kwargs.get(name)) is not None:
            own = columns[:, columns[0] >= length - states.shape[1]] - (length - states.shape[1])
            kwargs[name] = states.gather(1, own[..., None].expand(-1, -1, states.shape[2]))
    for name in ("attention_mask", "position_ids", "token_type_ids"):
        if (values := kwargs.get(name)) is not None and values.shape[-1] == length:
            kwargs[name] = values.gather(-1, columns.expand(*values.shape[:-1], -1))
    for name in ("max_length", "min_length"):  # counted with the prompt
        given = kwargs.get("generation_config") or config
        if value := kwargs.get(name, getattr(given, name, None)):
            kwargs[name] = value - left_out
    if inputs is None:
        return None
    return inputs.gather(1, columns[:, columns[0] >= length - inputs.shape[1]] - (length - inputs.shape[1]))


def with_whole_prompt(output: Any, ids: torch.Tensor, read: Any) -> Any:
    """What `generate` returns for `ids (B, L)`, of which it has read the columns `read (B, R)`."""
    sequences = output if isinstance(output, torch.Tensor) else getattr(output, "sequences", None)
    if not isinstance(sequences, torch.Tensor):  # of a decoding loop of the caller's
        return output
    whole = torch.cat([ids.repeat_interleave(len(sequences) // len(ids), 0), sequences[:, read.shape[1] :]], 1)
    if sequences is output:
        return whole
    output.sequences = whole
    return output
