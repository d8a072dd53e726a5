# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A new X-LLM from published towers: `XLLMForConditionalGeneration.from_towers` is built of these functions.

One BLIP-2 repository (e.g. Salesforce/blip2-opt-6.7b) gives the image encoder with its norm, the Q-Former, the query
tokens and, where the widths agree, the I-Adapter; a BERT gives the C-Former's transformer; a causal LM its weights and
head; a `.pth` file (`conversion`), or a folder that `xllm convert` or a stage has written, what it holds. Without a
language model, the interfaces' own is taken, with their encoders: parts of several runs in one model.
"""

import os
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModel, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from xllm.modeling_xllm.composition.published import published_config, text_config
from xllm.modeling_xllm.configuration_cformer import BERT_SIZES
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.conversion.convert import (
    LN_VISION_PREFIX,
    check_shapes,
    is_pth,
    open_published,
    reference_shapes,
)
from xllm.modeling_xllm.conversion.sizes import published_rows, vision_config
from xllm.modeling_xllm.tower_sources import (
    NAMED_TOWERS,
    TOWER_CLASSES,
    encoder_of,
    load_whole,
    read_tower,
    tower_config,
    tower_of,
)
from xllm.modeling_xllm.weight_files import (
    StageCheckpointError,
    check_fit,
    pinned_revision,
    read_tensors,
    resolve_source,
    split_source,
    verify_weights,
)


# What a BERT may hold beside its encoder.
BERT_HEADS = r"(bert\.)?(cls\..+|pooler\..+|embeddings\.position_ids)"


@dataclass(frozen=True)
class PublishedSource:
    """Names are patterns, matched at the start.

    Args:
        take_sizes: sets a row's sizes to those of the published config, `take_sizes(row, config)`.
        names: start of a published tensor's name -> start of its name under `interfaces.<row>`.
        ignored: tensors that are not used here.
        fills: names under `interfaces.<row>` that it must provide, all of them.
    """

    take_sizes: Callable[[X2LConfig, PreTrainedConfig], None]
    names: dict[str, str]
    ignored: tuple[str, ...] = ()
    fills: str = r"converter\."

    def rename(self, key: str) -> str | None:
        """What the published tensor `key` is called here; `None` if it is not used, a `ValueError` if no such model
        has it."""
        if any(re.match(pattern, key) for pattern in self.ignored):
            return None
        for pattern, name in self.names.items():
            if found := re.match(pattern, key):
                return found.expand(name) + key[found.end() :]
        raise ValueError(f"{key} is not one of its tensors")


def _take_blip2_sizes(row: Any, published: PreTrainedConfig) -> None:
    if row.shares_converter_with is None:
        row.converter_config = deepcopy(published.qformer_config)
        row.converter_config.use_qformer_text_input = False  # of a retrieval model; its text side belongs to stage 1
    row.num_query_tokens = published.num_query_tokens


def _take_bert_sizes(names: tuple[str, ...], row: X2LConfig, published: PreTrainedConfig) -> None:
    if row.shares_converter_with is not None:
        raise ValueError(f"the converter belongs to {row.shares_converter_with}: name the BERT there")
    for name in names:
        setattr(row.converter_config, name, getattr(published, name))


# Of each kind of converter, by the `model_type` of what it can start from.
SOURCES: dict[str, dict[str, PublishedSource]] = {
    "qformer": {
        # The retrieval model (Salesforce/blip2-itm-vit-g) also has a text side, but no language_projection.
        "blip-2": PublishedSource(
            _take_blip2_sizes,
            {
                r"qformer\.": "converter.qformer.",
                r"query_tokens": "converter.query_tokens",
                r"language_projection\.": "adapter.",
            },
            ignored=(
                r"(vision_model|language_model|embeddings|vision_projection|text_projection|itm_head)\.",
                r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.",
            ),
        ),
        # As for BLIP-2 itself: cross-attention and query tokens are new.
        "bert": PublishedSource(
            partial(_take_bert_sizes, (*BERT_SIZES[:5], "layer_norm_eps")),
            {
                r"embeddings\.LayerNorm\.": "converter.qformer.layernorm.",
                r"(encoder\.layer\.\d+\.attention\.)self\.": r"converter.qformer.\1attention.",
                r"(encoder\.layer\.\d+\.attention\.output\.)": r"converter.qformer.\1",
                r"(encoder\.layer\.\d+\.(?:intermediate|output))\.": r"converter.qformer.\1_query.",
            },
            ignored=(r"embeddings\.\w+_embeddings\.", r"pooler\."),
            fills=r"converter\.qformer\.(layernorm|encoder\.layer\.\d+\.(attention|intermediate_query|output_query)\.)",
        ),
    },
    "cformer": {
        "bert": PublishedSource(
            partial(_take_bert_sizes, BERT_SIZES),
            {"": "converter.bert."},
            ignored=(r"embeddings\.word_embeddings\.", r"pooler\."),
            fills=r"converter\.bert\.",
        )
    },
}


def encoder_config(source: str, name: str = "vision") -> PreTrainedConfig:
    """Config of the encoder inside `source`: the tower's own, a BLIP-2's vision part, the encoder of a speech model;
    of an X-LLM, the tower called `name`; of a `.pth` file, the sizes of the ViT in it."""
    if is_pth(source):
        return vision_config(open_published(source).shapes)
    config = published_config(source)
    if isinstance(config, XLLMConfig):
        return config.encoder_config(name)
    config = tower_config(config, name)
    if type(config) not in MODEL_MAPPING and config.model_type not in TOWER_CLASSES:
        raise ValueError(f"{source}: transformers opens no {config.model_type} without the parts around it")
    return config


def by_tower(encoders: dict[str, str], rows: dict[str, X2LConfig]) -> dict[str, str]:
    """Sources by tower, where some are given by the modality that reads the tower ("speech" for "audio"); a tower that
    no modality reads is a `ValueError`."""
    sources = {(rows[key].encoder or key) if key in rows else key: source for key, source in encoders.items()}
    if unused := set(sources) - {row.encoder for row in rows.values()}:
        raise ValueError(f"encoders: no modality reads {', '.join(sorted(unused))}; the rows are {', '.join(rows)}")
    return sources


def compose(
    language_model: str | None,
    encoders: dict[str, str] | None,
    interfaces: dict[str, str] | None,
    modalities: dict[str, X2LConfig] | None = None,
    **fields,
) -> tuple[XLLMConfig, dict[str, torch.Tensor]]:
    """Config and published weights of a composed model; see `XLLMForConditionalGeneration.from_towers`."""
    interfaces = interfaces or {}
    rows = default_modalities() if modalities is None else dict(modalities)
    runs = {key: published_config(source) for key, source in interfaces.items() if not is_pth(source)}
    runs = {key: config for key, config in runs.items() if isinstance(config, XLLMConfig)}
    if adapted := [interfaces[key] for key, config in runs.items() if config.adapter]:
        raise ValueError(f"{adapted[0]}: its language model has an adapter that would be lost; merge it (merge_lora)")
    trained = {key: _row_of_run(run, key, interfaces) for key, run in runs.items()}
    if language_model is None and modalities is None:
        rows = {key: row for key, row in {**rows, **trained}.items() if key in interfaces}
    encoders = by_tower(encoders or {}, rows)
    # The tensors of a `.pth` file are stored: no name would find them again.
    given = {tower_of(key): source for key, source in encoders.items() if not is_pth(source)}
    if language_model is not None:
        given["language_model"] = language_model
    towers = {part: dict(zip(("name_or_path", "revision"), split_source(at))) for part, at in given.items()}
    if unknown := set(interfaces) - set(rows):
        raise ValueError(f"interfaces: no modality {', '.join(sorted(unknown))}; the rows are {', '.join(rows)}")
    for key, source in interfaces.items():
        rows[key] = row_like(rows[key], key, source)
    taken = {*given, *(tower_of(key) for key in encoders)}
    towers = {**_inherited_towers(runs, rows, interfaces, taken), **towers}
    configs = {tower_of(key): encoder_config(source, key) for key, source in encoders.items()}
    for part, named in towers.items():
        at = "@".join(filter(None, (named["name_or_path"], named["revision"])))
        if part not in configs:
            configs[part] = text_config(at) if part == "language_model" else encoder_config(at, encoder_of(part))
        named["revision"] = pinned_revision(named["name_or_path"], named["revision"])
        if os.path.isdir(named["name_or_path"]):  # so that it is found from any folder
            named["name_or_path"] = os.path.abspath(named["name_or_path"])
    lineage = [entry for key, run in runs.items() for entry in run.lineage or () if key in entry["modalities"]]
    sizes = {f"{encoder_of(part)}_config": configs[part] for part in NAMED_TOWERS if part in configs}
    config = XLLMConfig(
        text_config=configs["language_model"],
        modalities=rows,
        extra_encoders={encoder_of(part): config for part, config in configs.items() if "." in part},
        towers=towers,
        lineage=lineage or None,
        **{**fields, **sizes},
    )
    return config, compose_tensors(config, encoders, interfaces)


def end_tokens(config: XLLMConfig) -> dict[str, Any]:
    """Ids of the language model's `generation_config.json` (a chat model often stops at several), if it has one."""
    source = config.towers.get("language_model", {"name_or_path": ""})
    name, revision = source["name_or_path"], source.get("revision")
    missing = {"_raise_exceptions_for_missing_entries": False}
    if not name or cached_file(name, GENERATION_CONFIG_NAME, revision=revision, **missing) is None:
        return {}
    found = GenerationConfig.from_pretrained(name, revision=revision)
    ids = {name: getattr(found, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in ids.items() if value is not None}


def _row_of_run(config: XLLMConfig, modality: str, interfaces: dict[str, str]) -> X2LConfig:
    """The row of a trained interface, with all that it needs among `interfaces`."""
    source = interfaces[modality]
    if modality not in config.modalities:
        raise ValueError(f"{source} has no {modality} interface; it has {', '.join(config.modalities)}")
    owner = config.modalities[modality].shares_converter_with
    other = None if owner is None else interfaces.get(owner)
    if owner is not None and other != source and (other is None or not _are_converters_equal(owner, source, other)):
        raise ValueError(f"{source}: {modality} has the converter of {owner}; take {owner} from there too")
    return config.modalities[modality]


def _inherited_towers(
    runs: dict[str, XLLMConfig], rows: dict[str, X2LConfig], interfaces: dict[str, str], taken: set[str]
) -> dict[str, dict]:
    """The language model, and the encoders that are not `taken`, of the X-LLMs that the interfaces come from."""
    towers = {}
    for modality, config in runs.items():
        name, revision = split_source(interfaces[modality])
        is_whole = config.model_type == XLLMConfig.model_type and config.architectures != ["XLLMEncoderModel"]
        parts = ["language_model"] if is_whole else []
        parts += [tower_of(rows[modality].encoder)] if modality in rows and rows[modality].encoder else []
        for part in set(parts) - taken:
            source = dict((config.towers or {}).get(part, {"name_or_path": name, "revision": revision}))
            source["name_or_path"] = resolve_source(source["name_or_path"], name)
            if towers.setdefault(part, source) != source and not _are_equal(part, towers[part], source):
                raise ValueError(f"interfaces: {part} of {name} is another one than {towers[part]}; name one")
    if "language_model" not in {*towers, *taken}:
        raise ValueError("language_model: got None, and no interface says which it was trained with")
    return towers


def _are_converters_equal(row: str, *sources: str) -> bool:
    """Whether two X-LLMs have the same converter in a row, bit by bit: one was made of the other."""
    if any(is_pth(source) or not isinstance(published_config(source), XLLMConfig) for source in sources):
        return False
    prefix = f"model.interfaces.{row}.converter."
    found = (read_tensors(*split_source(source), lambda key: key.startswith(prefix)) for source in sources)
    return _are_same(*found)


def _are_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def _are_equal(part: str, *sources: dict) -> bool:
    """Whether two sources hold the same tensors of a part, bit by bit: runs over one model that each has stored."""
    return _are_same(*(read_tower(part, source["name_or_path"], source.get("revision")) for source in sources))


def row_like(row: X2LConfig, modality: str, source: str) -> X2LConfig:
    """`row` with the sizes of the published converter that will be loaded into it."""
    published = None if is_pth(source) else published_config(source)
    if published is None or isinstance(published, XLLMConfig):
        rows = published_rows(open_published(source).shapes) if published is None else published.modalities
        if modality not in rows:
            raise ValueError(f"{source} has no {modality} interface; it has {', '.join(rows) or 'none'}")
        theirs = rows[modality]
        theirs.token_id, theirs.placeholder_token, theirs.part = row.token_id, row.placeholder_token, row.part
        theirs.token_level = theirs.token_level or row.token_level
        theirs.complete()
        return theirs
    row = deepcopy(row)
    known = SOURCES.get(row.converter, {})
    if published.model_type not in known:
        hint = f"; known are {', '.join(known)} and X-LLMs" if known else ""
        raise ValueError(f"{source} ({published.model_type}) cannot initialise a {row.converter} interface{hint}")
    known[published.model_type].take_sizes(row, published)
    return row


def interface_tensors(modality: str, row: X2LConfig, source: str) -> dict[str, torch.Tensor]:
    """Weights of a published converter under the names of interface `modality` (see the module's first lines).

    An adapter for another width than the language model's is left out. The ln_vision that an image interface was
    trained behind comes with it, where `source` is a `.pth` file or an X-LLM that stores it. Other weights than its
    layout says are a `ConversionError`, missing ones a `StageCheckpointError`.
    """
    name, revision = split_source(source)
    prefix = f"model.interfaces.{modality}."
    reads_pictures = row.encoder == encoder_of("vision_tower") and row.num_frames is None
    wanted = (prefix, LN_VISION_PREFIX) if reads_pictures else prefix
    if is_pth(source):
        tensors = {key: value for key, value in open_published(source).our_tensors().items() if key.startswith(wanted)}
    elif isinstance(published_config(source), XLLMConfig):
        verify_weights(name, revision)
        tensors = read_tensors(name, revision, lambda key: key.startswith(wanted))
    else:
        tensors = _published_tensors(modality, row, source)
    adapter = tensors.get(f"{prefix}adapter.weight")
    if adapter is not None and adapter.shape[0] != row.language_hidden_size:
        if f"{prefix}converter.word_head.weight" in tensors:
            raise ValueError(
                f"{source}: {modality} tells words of a language model of width {adapter.shape[0]}, this one's is "
                f"{row.language_hidden_size}: take {modality} as it was before it kept words"
            )
        del tensors[f"{prefix}adapter.weight"], tensors[f"{prefix}adapter.bias"]
    return tensors


def _published_tensors(modality: str, row: X2LConfig, source: str) -> dict[str, torch.Tensor]:
    """Of a model of another kind (BLIP-2, BERT): what the row's converter takes of it; other parts are not read."""
    name, revision = split_source(source)
    model_type = published_config(source).model_type
    known = SOURCES[row.converter][model_type]
    if model_type == "bert":  # with or without "bert." before each name
        found = load_whole(AutoModel, name, revision, BERT_HEADS, add_pooling_layer=False).state_dict()
    else:
        found = read_tensors(name, revision, lambda key: not any(re.match(start, key) for start in known.ignored))
    tensors = {}
    for key, value in found.items():
        try:
            renamed = known.rename(key)
        except ValueError as error:
            raise StageCheckpointError(f"{name}: {key} is not a tensor of a {model_type}") from error
        # A row that shares a converter has its query tokens and adapter, but no module inside the converter.
        if renamed is not None and (row.shares_converter_with is None or renamed.count(".") == 1):
            tensors[f"model.interfaces.{modality}.{renamed}"] = value
    return tensors


def compose_tensors(
    config: XLLMConfig, encoders: dict[str, str], interfaces: dict[str, str]
) -> dict[str, torch.Tensor]:
    """All published weights of a composed model (`encoders` by tower); what no source is named for is initialised.

    Where an interface brings another ln_vision than the image encoder's source, that tower is taken out of
    `config.towers`: it will be stored. An image encoder of another family has none. A source that lacks a tensor, has
    one too many or of another shape is a `StageCheckpointError` or a `ConversionError`.
    """
    shapes = reference_shapes(config)
    tensors, origin, required = {}, {}, {}

    def add(found: dict[str, torch.Tensor], source: str, prefix: str) -> None:
        tensors.update(found)
        origin.update(dict.fromkeys(found, source))
        required[prefix] = source  # every name that begins so

    for part, source in config.towers.items():
        name = source["name_or_path"]
        add(read_tower(part, name, source.get("revision")), name, rf"model\.{part}\.")
    for key, source in encoders.items():
        if is_pth(source):
            prefix = f"model.{tower_of(key)}."
            found = open_published(source).our_tensors()
            add({name: value for name, value in found.items() if name.startswith(prefix)}, source, re.escape(prefix))
    for modality, source in interfaces.items():
        found = interface_tensors(modality, config.modalities[modality], source)
        for key in [key for key in found if key.startswith(LN_VISION_PREFIX)]:
            if key not in shapes:
                del found[key]
            elif key in tensors and not torch.equal(found[key], tensors[key].to(found[key])):
                config.towers.pop("vision_tower", None)
        published = None if is_pth(source) else published_config(source).model_type
        known = SOURCES.get(config.modalities[modality].converter, {}).get(published)
        add(found, source, rf"model\.interfaces\.{modality}\.({known.fills if known else 'converter.'})")
    begin = ("model.interfaces.", "model.vision_tower.")
    check_shapes({key: value for key, value in tensors.items() if key.startswith(begin)}, shapes, origin)
    for prefix, source in required.items():
        wanted = {key: shape for key, shape in shapes.items() if re.match(prefix, key)}
        check_fit({key: tensors[key] for key in wanted.keys() & tensors.keys()}, wanted, source, "this model")
    return tensors
