# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The processor of a model, built from its rows; its tokenizer gets a placeholder for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    BlipImageProcessor,
    ParakeetEncoderConfig,
    PreTrainedConfig,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig
from xllm.modeling_xllm.conversion.convert import is_pth
from xllm.modeling_xllm.converters import converter_class
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.speech_encoders import most_positions
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


def picture_reader(source: str | None, encoder: Any, image_size: int):
    """What makes the inputs of a published image encoder: its own image processor, from the same source.

    Raises:
        ValueError: the source has none, and the encoder is not BLIP-2's, for which BLIP's stands in.
    """
    if source is not None and not is_pth(source):
        name, revision = split_source(source)
        try:
            return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if encoder.model_type != Blip2VisionConfig.model_type:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"{source}: no preprocessor_config.json, which says what a {encoder.model_type} reads: {reason}"
                ) from error
    return BlipImageProcessor(size={"height": image_size, "width": image_size})


def video_reader(pictures: Any, num_frames: int | None) -> XLLMVideoProcessor:
    """Frames as the image processor `pictures` makes them."""
    settings = pictures.to_dict()
    given: dict[str, Any] = {"frame_processor": settings}
    if type(pictures) is not BlipImageProcessor:
        return XLLMVideoProcessor(num_frames=num_frames, **given)
    same = ("size", "resample", "image_mean", "image_std", "do_resize", "do_rescale", "rescale_factor", "do_normalize")
    return XLLMVideoProcessor(num_frames=num_frames, **{name: settings[name] for name in same if name in settings})


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
            "most_positions": most_positions(config.encoder_config(row.encoder)),
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

    `sources` says where encoders are published, with their image processors or feature extractors; `readers`, by type
    of part, replaces what would be made of them (or, for kinds of one's own, without arguments); `fields` are of
    `XLLMProcessor`.
    """
    rows = processor_rows(config)
    for name, attribute in token_names(complete_rows(rows)).items():
        rows[name]["token"] = getattr(tokenizer, attribute, None) or rows[name]["token"]
    models: dict[str, X2LConfig] = {}
    for name, row in rows.items():
        models.setdefault(row["part"], config.modalities[name])

    def pictures(row: X2LConfig) -> Any:
        name = row.encoder or "vision"
        return picture_reader((sources or {}).get(name), config.encoder_config(name), image_size)

    def extractor(row: X2LConfig) -> Any:
        if row.encoder is None or (encoder := config.encoder_config(row.encoder)) is None:
            return XLLMFeatureExtractor(feature_size=row.encoder_hidden_size or 80)
        return speech_extractor((sources or {}).get(row.encoder), encoder)

    ours: dict[MediaKind, Callable[[X2LConfig], Any]] = {
        IMAGE: pictures,
        VIDEO: lambda row: video_reader(pictures(row), row.num_frames),
        AUDIO: lambda row: XLLMCIFFeatureExtractor(row.encoder_hidden_size) if row.token_level else extractor(row),
        SOUND: extractor,
    }
    made = dict(readers or {})
    for kind in map(media_kind, sorted(models.keys() - made)):
        made[kind.type] = ours[kind](models[kind.type]) if kind in ours else kind.reader_class()
    paper = {kind.reader: made.pop(kind.type) for kind in PAPER_KINDS if kind.type in made}
    return XLLMProcessor(**paper, tokenizer=tokenizer, readers=made, modalities=rows, **fields)


def add_tokens(config: XLLMConfig, tokenizer, reserved: dict[str, str] | None = None) -> None:
    """Gives the tokenizer a placeholder for each row of `config`, and the rows their ids.

    `reserved` names tokens of the vocabulary that become the placeholders of rows.

    Raises:
        ValueError: `reserved` names no row, or a token that the vocabulary has not.
    """
    rows = processor_rows(config)
    names, reserved = token_names(complete_rows(rows)), reserved or {}
    if unknown := reserved.keys() - rows.keys():
        raise ValueError(f"--reserve: no row {', '.join(sorted(unknown))}; the rows are {', '.join(rows)}")
    given = {names[name]: token for name, token in reserved.items()}
    ids = add_placeholder_tokens(tokenizer, config.text_config.vocab_size, given, modalities=rows, behind=True)
    config.set_token_ids(**{name: ids[attribute] for name, attribute in names.items()})


def save(model: XLLMForConditionalGeneration, processor: XLLMProcessor, output_dir: str | Path) -> None:
    """Model and processor in one folder."""
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
