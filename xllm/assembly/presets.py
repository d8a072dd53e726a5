# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What `xllm init` composes: presets of published towers by Hub id, and a tiny model with random weights.

The paper's speech encoder was never published; the presets take Parakeet's, a Conformer over the same 80-d log-mel.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    BlipImageProcessor,
    ParakeetEncoderConfig,
    PreTrainedConfig,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.assembly.tiny_tokenizer import train_sentencepiece
from xllm.modeling_xllm.composition.towers import text_config
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.converters import converter_class
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import split_source
from xllm.processing.feature_extraction_cif import XLLMCIFFeatureExtractor
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.media_kinds import AUDIO, IMAGE, MEDIA_KINDS, VIDEO, media_kind, part_of_row
from xllm.processing.media_rows import complete_rows, token_names
from xllm.processing.processing_xllm import XLLMProcessor, add_placeholder_tokens
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.processing.video_processing_xllm import XLLMVideoProcessor


TINY_PIXELS = 32
TINY_SENTENCES = ("What is this?", "What do you see and hear?", "这是什么？", "请识别该语音", "图片里有什么")


@dataclass
class Towers:
    """Published parts of a model: Hub ids or folders, each with an optional "@revision"."""

    language_model: str
    encoders: dict[str, str] = field(default_factory=dict)
    interfaces: dict[str, str] = field(default_factory=dict)


PRESETS = {
    # The paper's: BLIP-2's OPT-6.7B file holds ViT-g, Q-Former and an adapter of ChatGLM's width.
    "chatglm-6b": Towers(
        language_model="THUDM/chatglm-6b",
        encoders={"vision": "Salesforce/blip2-opt-6.7b", "audio": "nvidia/parakeet-ctc-1.1b"},
        interfaces={"image": "Salesforce/blip2-opt-6.7b", "speech": "bert-base-chinese"},
    ),
    "base": Towers(
        language_model="Qwen/Qwen3-0.6B",
        encoders={"vision": "Salesforce/blip2-opt-2.7b", "audio": "nvidia/parakeet-ctc-0.6b"},
        interfaces={"image": "Salesforce/blip2-opt-2.7b", "speech": "bert-base-chinese"},
    ),
}


def speech_extractor(source: str | None, encoder: PreTrainedConfig):
    """What computes the inputs of a published speech encoder: its own feature extractor, from the same source.

    Raises:
        ValueError: the source has none, and the encoder is not of the kind for which ours stands in (Parakeet).
    """
    if source is not None:
        name, revision = split_source(source)
        try:
            return AutoFeatureExtractor.from_pretrained(name, revision=revision)
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


def added_rows(kinds: Iterable[str]) -> dict[str, X2LConfig]:
    """The rows that the entries of kinds (types or names of rows) declare.

    Raises:
        ValueError: there is no such kind, or its entry declares no row.
    """
    rows = {}
    for name in kinds:
        kind = next((kind for kind in MEDIA_KINDS.values() if name in (kind.type, kind.row_name)), None)
        if kind is None or not kind.row:
            known = [kind.type for kind in MEDIA_KINDS.values() if kind.row]
            raise ValueError(
                f"--modality {name}: no kind of this name declares a row; those that do are {', '.join(known) or 'none'} "
                "(--module FILE registers more)"
            )
        named = {"input_name": kind.input_name, "mask_name": kind.mask_name, "placeholder_token": kind.placeholder}
        rows[kind.row_name] = X2LConfig(**{**named, **kind.row})
    return rows


def build_processor(
    config: XLLMConfig, tokenizer, image_size: int, speech_source: str | None = None, **fields
) -> XLLMProcessor:
    """The processor whose rows are those of `config`, for `image_size` pixels.

    A token that the tokenizer has under a row's name, for instance a reserved one of its vocabulary, replaces the row's.
    """
    rows = processor_rows(config)
    for name, attribute in token_names(complete_rows(rows)).items():
        rows[name]["token"] = getattr(tokenizer, attribute, None) or rows[name]["token"]
    models: dict[str, X2LConfig] = {}
    for name, row in rows.items():
        models.setdefault(row["part"], config.modalities[name])
    size = {"height": image_size, "width": image_size}
    ours = {
        IMAGE: lambda row: BlipImageProcessor(size=size),
        VIDEO: lambda row: XLLMVideoProcessor(size=size, num_frames=row.num_frames),
        AUDIO: lambda row: _feature_extractor(config, row, speech_source),
    }
    readers = {kind.reader: make(models[kind.type]) for kind, make in ours.items() if kind.type in models}
    own = {part: media_kind(part).reader_class() for part in models if media_kind(part) not in ours}
    return XLLMProcessor(**readers, tokenizer=tokenizer, readers=own, modalities=rows, **fields)


def _feature_extractor(config: XLLMConfig, row: X2LConfig, source: str | None):
    if row.token_level:
        return XLLMCIFFeatureExtractor(row.encoder_hidden_size)
    return speech_extractor(source, config.encoder_config(row.encoder))


def compose(
    towers: Towers,
    output_dir: str | Path,
    kinds: Iterable[str] = (),
    size: tuple[int, int] | None = None,
    reserved: dict[str, str] | None = None,
) -> Path:
    """Compose published towers into a checkpoint folder (interfaces stored, towers named by id and revision).

    It has the modalities whose encoder or interface is named, or, where none is, the paper's three; and a row of each of
    `kinds`.

    Args:
        size (`tuple[int, int]`, *optional*): width and layers of what starts from no source; default those of BERT base,
            or of a language model that is smaller.
        reserved (`dict[str, str]`, *optional*): row -> token of the vocabulary that is its placeholder.
    """
    text = text_config(towers.language_model)
    width, layers = size or (min(768, text.hidden_size), min(12, text.num_hidden_layers))
    is_small = size is not None or width < 768
    rows = _sized_rows(width, layers) if is_small else default_modalities()
    named = {rows[key].encoder if key in rows else key for key in towers.encoders}
    read = {name: row for name, row in rows.items() if row.encoder in named or name in towers.interfaces}
    model = XLLMForConditionalGeneration.from_towers(
        language_model=towers.language_model,
        encoders=towers.encoders,
        interfaces=towers.interfaces,
        modalities={**(read or rows), **added_rows(kinds)},
        **(_sized_towers(width, layers) if is_small else {}),
    )
    name, revision = split_source(towers.language_model)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    _add_tokens(model.config, tokenizer, reserved)
    image_size = model.config.vision_config.image_size
    speech_source = towers.encoders.get("audio", towers.encoders.get("speech"))
    save(model, build_processor(model.config, tokenizer, image_size, speech_source), output_dir)
    return Path(output_dir)


def _heads(width: int, layers: int) -> dict[str, Any]:
    heads = max(count for count in (1, 2, 4, width // 64) if count and width % count == 0)
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * width,
    }  # fmt: skip


def _sized_rows(width: int, layers: int) -> dict[str, X2LConfig]:
    """The paper's rows with converters of another size."""
    rows, sizes = default_modalities(), _heads(width, layers)
    for row in rows.values():
        if row.converter_config is not None:
            row.converter_config = type(row.converter_config)(**sizes)
    return rows


def _sized_towers(width: int, layers: int) -> dict[str, PreTrainedConfig]:
    """Encoders of that size, for those that no source is named for."""
    sizes = _heads(width, layers)
    return {
        "vision_config": Blip2VisionConfig(initializer_range=0.02, **sizes),
        "audio_config": ParakeetEncoderConfig(layerdrop=0.0, **sizes),
    }


def rope_note(folder: str | Path) -> str:
    """A line on rotary angles for a ChatGLM of half precision, else nothing."""
    text = XLLMConfig.from_pretrained(folder).text_config
    is_half = str(getattr(text, "dtype", "")).endswith("float16")
    if not is_half or getattr(text, "rope_half_precision", True):
        return ""
    return (
        "note: rotary angles are computed in float32; for the very numbers of the published half-precision model set "
        "text_config.rope_half_precision to true in config.json\n"
    )


def _add_tokens(config: XLLMConfig, tokenizer, reserved: dict[str, str] | None = None) -> None:
    """A placeholder per row for the tokenizer, and their ids for the rows.

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


def build_tiny(output_dir: str | Path, kinds: Iterable[str] = ()) -> Path:
    """A tiny ChatGLM with tiny towers and interfaces, all weights random: every command runs on it in seconds.

    Its vocabulary is that of a few sentences; it knows nothing until it is trained. It has the paper's rows, and one of
    each of `kinds`.
    """
    rows, output_dir = added_rows(kinds), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sentences = [*TINY_SENTENCES, " ".join("0123456789"), *map(chr, range(33, 127))]
    tokenizer = ChatGLMTokenizer(str(train_sentencepiece(sentences, output_dir, vocab_size=256, byte_fallback=True)))
    config = tiny_config(tokenizer, rows)
    save(XLLMForConditionalGeneration(config), build_processor(config, tokenizer, TINY_PIXELS), output_dir)
    return output_dir


def tiny_config(tokenizer: ChatGLMTokenizer, added: dict[str, X2LConfig] | None = None) -> XLLMConfig:
    """Sizes of the tiny preset, with the ids of `tokenizer`, which gets placeholders for the rows that are added."""
    heads: dict[str, Any] = {**_heads(64, 2), "intermediate_size": 128}
    sizes = {
        "image": {"num_query_tokens": 4, "qformer_config": heads},
        "video": {"num_query_tokens": 4},
        "speech": {"cformer_config": {"cif_hidden_size": 64, **heads}},
    }
    return small_config(
        tokenizer,
        text={"max_position_embeddings": 1024, **heads},
        rows={**sizes, **(added or {})},
        vision_config=Blip2VisionConfig(image_size=TINY_PIXELS, patch_size=8, initializer_range=0.02, **heads),
        audio_config=ParakeetEncoderConfig(subsampling_conv_channels=32, layerdrop=0.0, **heads),
    )


def small_config(
    tokenizer: ChatGLMTokenizer, text: dict[str, Any], rows: dict[str, Any], multiple: int = 64, **fields: Any
) -> XLLMConfig:
    """The config of a small model around a ChatGLM that reads `tokenizer`: sizes are given, ids are filled in.

    Args:
        text: sizes of the language model; its vocabulary is rounded up to a `multiple`.
        rows: see `sized_rows`.
        fields: of `XLLMConfig`, the towers' configs among them.
    """
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "gmask", "bos", "eos", "pad")
    }
    table = sized_rows(rows)
    added = len(table.keys() - default_modalities().keys())  # rows whose placeholders the tokenizer still lacks
    size = -(-(len(tokenizer) + added) // multiple) * multiple
    config = XLLMConfig(
        text_config={"model_type": "chatglm", "vocab_size": size, **ids, **text}, modalities=table, **fields
    )
    _add_tokens(config, tokenizer)
    return config


def sized_rows(rows: dict[str, Any]) -> dict[str, X2LConfig]:
    """A table of modalities: rows of the paper of which some fields (sizes, say) are given anew, and whole rows."""
    paper = {name: {**row.to_dict(), "converter_config": None} for name, row in default_modalities().items()}
    return {
        name: row if isinstance(row, X2LConfig) else X2LConfig(**{**paper.get(name, {}), **row})
        for name, row in rows.items()
    }
