# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The processor of a model, built from its rows; its tokenizer gets a placeholder for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, BlipImageProcessor, ParakeetEncoderConfig, PreTrainedConfig

from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig
from xllm.modeling_xllm.converters import converter_class
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import split_source
from xllm.processing.feature_extraction_xllm import XLLMCIFFeatureExtractor, XLLMFeatureExtractor
from xllm.processing.media_kinds import AUDIO, IMAGE, PAPER_KINDS, SOUND, VIDEO, MediaKind, media_kind, part_of_row
from xllm.processing.media_rows import complete_rows, token_names
from xllm.processing.processing_xllm import XLLMProcessor, add_placeholder_tokens
from xllm.processing.video_processing_xllm import XLLMVideoProcessor


def speech_extractor(source: str | None, encoder: PreTrainedConfig):
    """What computes the inputs of a published audio encoder: its own feature extractor, from the same source.

    Raises:
        ValueError: the source has none, and the encoder is not a Parakeet, for which ours stands in.
    """
    if source is not None:
        name, revision = split_source(source)
        try:
            return AutoFeatureExtractor.from_pretrained(name, revision=revision, trust_remote_code=False)
        except OSError as error:
            if encoder.model_type != ParakeetEncoderConfig.model_type:
                raise ValueError(
                    f"{source}: no preprocessor_config.json, which says what a {encoder.model_type} reads: {error}"
                ) from error
    return XLLMFeatureExtractor(feature_size=getattr(encoder, "num_mel_bins", 80))


def processor_rows(config: XLLMConfig) -> dict[str, dict]:
    """The rows of a model as its processor and `add_placeholder_tokens` take them."""
    return {
        name: {
            "part": part_of_row(name, row.input_name, getattr(row, "part", None)),
            "token": row.placeholder_token,
            "tokens_per_item": converter_class(row.converter).tokens_per_item(row),
            "subsampling_factor": row.subsampling_factor,
            "input_name": row.input_name,
            "mask_name": row.mask_name,
        }
        for name, row in config.modalities.items()
    }


def build_processor(
    config: XLLMConfig,
    tokenizer,
    image_size: int,
    sources: dict[str, str] | None = None,
    readers: dict[str, Any] | None = None,
    **fields,
) -> XLLMProcessor:
    """The processor whose rows are those of `config`, for `image_size` pixels.

    If the tokenizer already has a token under a row's name, such as a reserved one of its vocabulary, it replaces the
    row's.

    `sources` says where encoders are published, often with their feature extractors; `readers` are those of kinds of
    one's own, by type, where they are not made without arguments; `fields` are of `XLLMProcessor`.
    """
    rows = processor_rows(config)
    for name, attribute in token_names(complete_rows(rows)).items():
        rows[name]["token"] = getattr(tokenizer, attribute, None) or rows[name]["token"]
    models: dict[str, X2LConfig] = {}
    for name, row in rows.items():
        models.setdefault(row["part"], config.modalities[name])
    size = {"height": image_size, "width": image_size}

    def extractor(row: X2LConfig) -> Any:
        if row.encoder is None or (encoder := config.encoder_config(row.encoder)) is None:
            return XLLMFeatureExtractor(feature_size=row.encoder_hidden_size or 80)
        return speech_extractor((sources or {}).get(row.encoder), encoder)

    ours: dict[MediaKind, Callable[[X2LConfig], Any]] = {
        IMAGE: lambda row: BlipImageProcessor(size=size),
        VIDEO: lambda row: XLLMVideoProcessor(size=size, num_frames=row.num_frames),
        AUDIO: lambda row: XLLMCIFFeatureExtractor(row.encoder_hidden_size) if row.token_level else extractor(row),
        SOUND: extractor,
    }
    made = {kind: make(models[kind.type]) for kind, make in ours.items() if kind.type in models}
    paper = {kind.reader: made[kind] for kind in made if kind in PAPER_KINDS}
    own = dict(readers or {})
    kinds = [media_kind(part) for part in models.keys() - own]
    own |= {kind.type: made.get(kind) or kind.reader_class() for kind in kinds if kind not in PAPER_KINDS}
    return XLLMProcessor(**paper, tokenizer=tokenizer, readers=own, modalities=rows, **fields)


def add_tokens(config: XLLMConfig, tokenizer, reserved: dict[str, str] | None = None) -> None:
    """Gives the tokenizer a placeholder for each row of `config`, and the rows their ids.

    `reserved` names tokens of the vocabulary that become the placeholders of rows.

    Raises:
        ValueError: `reserved` names no row, or the embedding has no spare row for a new token.
    """
    rows = processor_rows(config)
    names, reserved = token_names(complete_rows(rows)), reserved or {}
    if unknown := reserved.keys() - rows.keys():
        raise ValueError(f"--reserve: no row {', '.join(sorted(unknown))}; the rows are {', '.join(rows)}")
    given = {names[name]: token for name, token in reserved.items()}
    try:
        ids = add_placeholder_tokens(tokenizer, config.text_config.vocab_size, given, modalities=rows)
    except ValueError as error:
        hint = "; or, in xllm init, --reserve ROW=TOKEN" if "no spare rows" in str(error) else ""
        raise ValueError(f"{error}{hint}") from error
    config.set_token_ids(**{name: ids[attribute] for name, attribute in names.items()})


def save(model: XLLMForConditionalGeneration, processor: XLLMProcessor, output_dir: str | Path) -> None:
    """Model and processor in one folder."""
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
