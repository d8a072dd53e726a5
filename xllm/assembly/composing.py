# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What `xllm init` composes: published towers, named by a preset or by Hub id or folder, with new interfaces."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig
from transformers.utils import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, PROCESSOR_NAME, cached_file

from xllm.assembly.modules import SHIPPED, import_modules
from xllm.assembly.probing import check_encoders
from xllm.assembly.processors import add_tokens, build_processor, save
from xllm.modeling_xllm.composition.published import published_config, text_config
from xllm.modeling_xllm.composition.towers import by_tower
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.conversion.convert import is_pth
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import read_json, split_source
from xllm.processing.media_kinds import AUDIO, IMAGE, MEDIA_KINDS, OWN_KINDS, media_kind, part_of_row
from xllm.processing.processing_xllm import XLLMProcessor


@dataclass
class Towers:
    """Published parts of a model: Hub ids or folders, each with an optional "@revision". Where no language model is
    named, it is the one that the interfaces were trained with."""

    language_model: str | None
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
    adds a row, and so does an encoder or interface named for a kind that declares one, or an interface of an X-LLM
    that has one.

    Args:
        size: width and layers of what starts from no source; default those of BERT base, or of the language model if
            that is smaller.
        reserved: row -> token of the vocabulary that becomes its placeholder.
    """
    runs = {name: run for name, source in towers.interfaces.items() if (run := run_config(source)) is not None}
    if towers.language_model is None and not runs:
        raise ValueError(
            "give --preset, or --language-model (with --encoder and --interface), or --interface ROW=DIR of X-LLMs, "
            "whose language model is then taken"
        )
    text = text_config(towers.language_model or next(towers.interfaces[name] for name in runs))
    width, layers = size or (min(768, text.hidden_size), min(12, text.num_hidden_layers))
    sizes = transformer_sizes(width, layers) if size is not None or width < 768 else {}
    rows = sized_modalities(sizes) if sizes else default_modalities()
    asked = {*towers.encoders, *towers.interfaces}
    for name, run in runs.items():
        if name in run.modalities:
            rows[name] = run.modalities[name]
            rows[name].token_id = None  # what it was there, another run may have for another row
    import_modules(home for home, kind in SHIPPED.values() if kind in asked - rows.keys() and kind not in MEDIA_KINDS)
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
    source = (model.config.towers or {})["language_model"]
    at = {"revision": source.get("revision"), "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(source["name_or_path"], **at)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # Llama has none; padding is masked
    if tokenizer.chat_template is None:
        tokenizer.chat_template = template_beside(**source)
    add_tokens(model.config, tokenizer, reserved)
    sources = by_tower(towers.encoders, model.config.modalities)
    pixels = getattr(model.config.vision_config, "image_size", None) or 224
    readers = {**readers_of_runs(model.config, sources, towers.interfaces), **read_from(kinds)}
    processor = build_processor(
        model.config, tokenizer, pixels if isinstance(pixels, int) else pixels[0], sources, readers
    )
    check_encoders(model, processor, sources)
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


def template_beside(name_or_path: str, revision: str | None = None) -> str | None:
    """The chat template that older repositories of models that read media have in a file of its own."""
    wanted = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    path = cached_file(name_or_path, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, **wanted)
    return None if path is None else read_json(Path(path))["chat_template"]


def run_config(source: str) -> XLLMConfig | None:
    """Config of the X-LLM in a folder or repository; `None` for anything else."""
    config = None if is_pth(source) else published_config(source)
    return config if isinstance(config, XLLMConfig) else None


def readers_of_runs(config: XLLMConfig, sources: dict[str, str], interfaces: dict[str, str]) -> dict[str, Any]:
    """What X-LLMs that encoders (by tower) or interfaces come from read media with, by type of part; an encoder that
    is named anew brings its own."""
    readers: dict[str, Any] = {}
    for name, row in config.modalities.items():
        source = sources.get(row.encoder or "", interfaces.get(name))
        if source is None or run_config(source) is None:
            continue
        folder, revision = split_source(source)
        wanted = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
        if cached_file(folder, PROCESSOR_NAME, **wanted) is None:
            continue
        processor = XLLMProcessor.from_pretrained(folder, **({"revision": revision} if revision else {}))
        kind = media_kind(part_of_row(name, row.input_name, row.part))
        if (reader := processor.readers.get(kind.type, getattr(processor, kind.reader, None))) is not None:
            readers.setdefault(kind.type, reader)
    return readers


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
