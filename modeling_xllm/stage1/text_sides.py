# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Where the text side of a Q-Former's stage 1 starts: a BERT, LAVIS's stage-1 file, or a BLIP-2 with text input.

Only the text side is touched; the interface has its own source (`xllm init --interface`). BLIP-2 starts both from
bert-base-uncased. Deviation: it drops BERT's token-type embedding; here type 0 is added to the position table, so that
the text side computes what BERT computed, exactly.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, Blip2ForImageTextRetrieval

from xllm.modeling_xllm.composition.towers import BERT_HEADS, published_config
from xllm.modeling_xllm.conversion.convert import is_pth, open_published
from xllm.modeling_xllm.conversion.sizes import config_of_shapes
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.heads import own_fields
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.tower_sources import load_whole
from xllm.modeling_xllm.weight_files import StageCheckpointError, copy_tensors, read_tensors, split_source


# Fields of the stage-1 config that follow from a text side.
SIZES = ("text_vocab_size", "text_max_positions", "projection_size")


def read_text_side(source: str) -> tuple[dict, Callable[[XLLMForQFormerPreTraining], None]]:
    """A text side: the fields of the stage-1 config that it needs, and a function that copies it into such a model.
    `source`: folder or Hub id of a BERT, of a BLIP-2 with text input (Salesforce/blip2-itm-vit-g) or of what `xllm
    convert` made of LAVIS's stage-1 file; or that `.pth` file. One without a text side, or that lacks tensors, is a
    `StageCheckpointError`."""
    if is_pth(source):
        file = open_published(source)
        return _heads(config_of_shapes(file.shapes), file.our_tensors(), source)
    config = published_config(source)
    name, revision = split_source(source)
    if isinstance(config, QFormerPreTrainingConfig):
        return _heads(config, read_tensors(name, revision, lambda key: not key.startswith("model.")), source)
    if config.model_type == "bert":
        # With its masked-LM head, where the checkpoint has one.
        with_head = read_tensors(name, revision, lambda key: key.startswith("cls.predictions.transform."))
        bert = load_whole(BertForMaskedLM if with_head else BertModel, name, revision, BERT_HEADS)
        sizes = {"text_max_positions": min(512, config.max_position_embeddings)}
        return sizes, lambda model: start_from_bert(model, bert)
    if config.model_type == "blip-2" and config.qformer_config.use_qformer_text_input:
        blip2 = load_whole(Blip2ForImageTextRetrieval, name, revision)
        qformer = config.qformer_config
        sizes = (qformer.vocab_size, qformer.max_position_embeddings, config.image_text_hidden_size)
        return dict(zip(SIZES, sizes)), lambda model: start_from_blip2(model, blip2)
    raise StageCheckpointError(
        f"{source}: a {config.model_type} checkpoint has no text side for stage 1; "
        "expected a BERT, a BLIP-2 with text input, or LAVIS's stage-1 file"
    )


def _heads(config, tensors: dict[str, torch.Tensor], source: str):
    heads = {key: value for key, value in tensors.items() if not key.startswith("model.")}
    if not heads or not isinstance(config, QFormerPreTrainingConfig):
        raise StageCheckpointError(f"{source}: holds no text side: it is not of stage 1")
    sizes = {name: own_fields(config)[name] for name in SIZES}
    return sizes, lambda model: copy_tensors(heads, model.heads_state_dict(), source)


def _check_sizes(pairs: dict[str, tuple], source: str) -> None:
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        listed = ", ".join(f"{name} {mine!r} (theirs {theirs!r})" for name, (mine, theirs) in differing.items())
        raise ValueError(f"this {source} does not fit the Q-Former: {listed}")


def _copy_layers(ours: Iterable[Any], theirs: Iterable[Any]) -> None:
    """The text feed-forward blocks, layer by layer."""
    for text, layer in zip(ours, theirs):
        text.intermediate.load_state_dict(layer.intermediate.state_dict())
        text.output.load_state_dict(layer.output.state_dict())


@torch.no_grad()
def start_from_bert(model: XLLMForQFormerPreTraining, bert: BertModel | BertForMaskedLM | BertForPreTraining) -> None:
    """Start the text side from a BERT, as BLIP-2 does; one with a masked-LM head starts the ITG head too. Its
    vocabulary may be smaller than `text_vocab_size` (`[DEC]` is new); further rows stay as they are. Other sizes than
    the Q-Former's are a `ValueError` that lists them."""
    encoder: Any = bert.base_model
    mine, theirs = model.qformer.config, encoder.config
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    _check_sizes({field: (getattr(mine, field), getattr(theirs, field)) for field in fields}, "BERT")
    branch, vocab_size = model.text_branch, theirs.vocab_size
    if vocab_size > model.config.text_vocab_size or theirs.max_position_embeddings < model.config.text_max_positions:
        raise ValueError(
            f"this BERT has {vocab_size} words and {theirs.max_position_embeddings} positions; expected at most "
            f"text_vocab_size {model.config.text_vocab_size}, at least text_max_positions "
            f"{model.config.text_max_positions}"
        )
    embeddings = encoder.embeddings
    positions = embeddings.position_embeddings.weight[: model.config.text_max_positions]
    branch.embeddings.word_embeddings.weight[:vocab_size] = embeddings.word_embeddings.weight
    branch.embeddings.position_embeddings.weight.copy_(positions + embeddings.token_type_embeddings.weight[0])
    _copy_layers(branch.layers, encoder.encoder.layer)
    if not isinstance(bert, BertModel):
        branch.lm_transform.load_state_dict(bert.cls.predictions.transform.state_dict())
        branch.lm_bias[:vocab_size] = bert.cls.predictions.bias


@torch.no_grad()
def start_from_blip2(model: XLLMForQFormerPreTraining, source: Blip2ForImageTextRetrieval) -> None:
    """Take over text side and heads of a published stage 1, e.g. `Salesforce/blip2-itm-vit-g`. It has neither the
    captioning head nor the temperature: both stay as they are. No text input, or other sizes, are a `ValueError`."""
    theirs: Any = source.config.qformer_config
    fields = ("hidden_size", "num_hidden_layers", "cross_attention_frequency", "encoder_hidden_size")
    sizes = {field: (getattr(model.qformer.config, field), getattr(theirs, field)) for field in fields}
    sizes["use_qformer_text_input"] = (True, theirs.use_qformer_text_input)
    sizes["text_vocab_size"] = (model.config.text_vocab_size, theirs.vocab_size)
    sizes["text_max_positions"] = (model.config.text_max_positions, theirs.max_position_embeddings)
    _check_sizes(sizes, "BLIP-2")
    _copy_layers(model.text_branch.layers, source.qformer.encoder.layer)
    model.text_branch.embeddings.load_state_dict(source.embeddings.state_dict())
    model.media_proj.load_state_dict(source.vision_projection.state_dict())
    model.text_proj.load_state_dict(source.text_projection.state_dict())
    model.itm_head.load_state_dict(source.itm_head.state_dict())
