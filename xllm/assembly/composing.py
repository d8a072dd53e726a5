# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What `xllm init` composes: published towers, named by a preset or by Hub id or folder, with new interfaces."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.assembly.modules import SHIPPED, import_modules
from xllm.assembly.processors import add_tokens, build_processor, save
from xllm.modeling_xllm.composition.towers import by_tower, text_config
from xllm.modeling_xllm.configuration_xllm import X2LConfig, default_modalities
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import split_source
from xllm.processing.media_kinds import AUDIO, IMAGE, MEDIA_KINDS, OWN_KINDS


@dataclass
class Towers:
    """Published parts of a model: Hub ids or folders, each with an optional "@revision"."""

    language_model: str
    encoders: dict[str, str] = field(default_factory=dict)
    interfaces: dict[str, str] = field(default_factory=dict)


def _preset(language_model: str, pictures: str, sounds: str) -> Towers:
    """BLIP-2's encoder and Q-Former, a speech encoder, and the C-Former's start from BERT."""
    return Towers(
        language_model=language_model,
        encoders={IMAGE.row_name: pictures, AUDIO.row_name: sounds},
        interfaces={IMAGE.row_name: pictures, AUDIO.row_name: "bert-base-chinese"},
    )


# The paper's speech encoder was never published; Parakeet's is a Conformer over the same 80-d log-mel.
PRESETS = {
    # The paper's: BLIP-2's OPT-6.7B file holds ViT-g, Q-Former and an adapter of ChatGLM's width.
    "chatglm-6b": _preset("THUDM/chatglm-6b", "Salesforce/blip2-opt-6.7b", "nvidia/parakeet-ctc-1.1b"),
    "base": _preset("Qwen/Qwen3-0.6B", "Salesforce/blip2-opt-2.7b", "nvidia/parakeet-ctc-0.6b"),
}


def compose(
    towers: Towers,
    output_dir: str | Path,
    kinds: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    reserved: dict[str, str] | None = None,
) -> Path:
    """Compose published towers into a checkpoint folder (interfaces stored, towers named by id and revision).

    Its modalities are those whose encoder or interface is named, or, where none is, the paper's three; each of `kinds`
    adds a row, and so does an encoder or interface named for a kind that declares one.

    Args:
        size: width and layers of what starts from no source; default those of BERT base, or of the language model if
            that is smaller.
        reserved: row -> token of the vocabulary that becomes its placeholder.
    """
    text = text_config(towers.language_model)
    width, layers = size or (min(768, text.hidden_size), min(12, text.num_hidden_layers))
    sizes = transformer_sizes(width, layers) if size is not None or width < 768 else {}
    rows = sized_modalities(sizes) if sizes else default_modalities()
    asked = {*towers.encoders, *towers.interfaces}
    declared = {kind.row_name for kind in MEDIA_KINDS.values() if kind.row} - rows.keys()
    added = added_rows([*kinds, *sorted(asked & declared)], sizes)
    named = {rows[key].encoder if key in rows else key for key in towers.encoders}
    read = {name: row for name, row in rows.items() if row.encoder in named or name in towers.interfaces}
    encoders: dict[str, Any] = {}  # those of that size, where no source is named for one
    if sizes:
        encoders["vision_config"] = Blip2VisionConfig(initializer_range=0.02, **sizes)
        encoders["audio_config"] = ParakeetEncoderConfig(layerdrop=0.0, **sizes)
    model = XLLMForConditionalGeneration.from_towers(
        language_model=towers.language_model,
        encoders=towers.encoders,
        interfaces=towers.interfaces,
        modalities={**(read or ({} if asked and asked <= added.keys() else rows)), **added},
        **encoders,
    )
    name, revision = split_source(towers.language_model)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # Llama has none; padding is masked
    add_tokens(model.config, tokenizer, reserved)
    sources = by_tower(towers.encoders, model.config.modalities)
    pixels = model.config.vision_config.image_size
    processor = build_processor(model.config, tokenizer, pixels, sources, read_from(kinds))
    save(model, processor, output_dir)
    return Path(output_dir)


def added_rows(kinds: Iterable[str], sizes: dict[str, Any] | None = None) -> dict[str, X2LConfig]:
    """The rows that kinds, given by type or row name (and a file, see `read_from`), declare for a new model;
    converters of ours get its `sizes`.

    Raises:
        ValueError: there is no such kind, or it declares no row.
    """
    rows = {}
    for name in (given.partition("=")[0] for given in kinds):
        import_modules(home for home, kind in SHIPPED.values() if kind == name and kind not in MEDIA_KINDS)
        kind = next((kind for kind in MEDIA_KINDS.values() if name in (kind.type, kind.row_name)), None)
        if kind is None or not kind.row:
            known = [kind.type for kind in MEDIA_KINDS.values() if kind.row]
            raise ValueError(
                f"--modality {name}: no kind of this name declares a row; those that do are "
                f"{', '.join(known) or 'none'} (--module FILE registers more)"
            )
        named = {"input_name": kind.input_name, "mask_name": kind.mask_name, "placeholder_token": kind.placeholder}
        own = {"converter_config": sizes} if sizes and kind in OWN_KINDS else {}
        rows[kind.row_name] = X2LConfig(**{**named, **own, **kind.row})
    return rows


def read_from(kinds: Iterable[str]) -> dict[str, Any]:
    """The readers of kinds that are given with the file that describes them, `status=DEVICE.json`, by type.

    Raises:
        ValueError: a kind whose reader takes no file, or a file that describes none.
    """
    readers = {}
    for name, equals, file in (given.partition("=") for given in kinds):
        kind = next((kind for kind in MEDIA_KINDS.values() if name in (kind.type, kind.row_name)), None)
        if kind is None or not equals:
            continue
        if not hasattr(kind.reader_class, "from_file"):
            raise ValueError(f"--modality {name}={file}: the reader of {name} takes no file: give --modality {name}")
        readers[kind.type] = kind.reader_class.from_file(file)
    return readers


def transformer_sizes(width: int, layers: int) -> dict[str, Any]:
    """Fields of a transformer's config: heads of about 64, a feed-forward part four times as wide."""
    heads = max(count for count in (1, 2, 4, width // 64) if count and width % count == 0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    return {**sizes, "num_attention_heads": heads}


def sized_modalities(sizes: dict[str, Any]) -> dict[str, X2LConfig]:
    """The paper's rows with converters of other sizes."""
    rows = default_modalities()
    for row in rows.values():
        if row.converter_config is not None:
            row.converter_config = sizes
            row.complete()
    return rows
