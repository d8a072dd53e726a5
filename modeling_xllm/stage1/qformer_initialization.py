# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Starting points for stage 1 of the Q-Former: any BERT, an interface that exists already, or a published BLIP-2.

BLIP-2 starts its whole Q-Former from bert-base-uncased (cross-attention stays random) and copies the text feed-forward
blocks into the query ones. Deviation: BLIP-2 drops BERT's token-type embedding; here type 0 is added to the position
table, so that the text side computes what BERT computed, exactly.
"""

import torch
from torch import nn
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, Blip2ForImageTextRetrieval

from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining


def _copy(target: nn.Module, source: nn.Module) -> None:
    """Copy every tensor of `source`; the two have the same keys and shapes."""
    target.load_state_dict(source.state_dict(), strict=True)


def _check_sizes(pairs: dict[str, tuple], source: str) -> None:
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        listed = ", ".join(f"{name} {mine!r} (theirs {theirs!r})" for name, (mine, theirs) in differing.items())
        raise ValueError(f"this {source} does not fit the Q-Former: {listed}")


@torch.no_grad()
def initialize_from_bert(
    model: XLLMForQFormerPreTraining, bert: BertModel | BertForMaskedLM | BertForPreTraining, interface: bool = True
) -> None:
    """Start from a BERT, as BLIP-2 does.

    Args:
        model (`XLLMForQFormerPreTraining`): changed in place.
        bert (`BertModel`, or one with a masked-LM head, which then starts the ITG head too): of the Q-Former's sizes.
            Its vocabulary may be smaller than `text_vocab_size` (`[DEC]` is new); further rows stay as they are.
        interface (`bool`): also start the interface's self-attention, LayerNorm and query feed-forward blocks. False
            for an interface that is trained already: then only the text side is touched.

    Raises:
        ValueError: other sizes than the Q-Former's; the message lists them.
    """
    encoder = bert if isinstance(bert, BertModel) else bert.bert
    mine, theirs = model.qformer.config, encoder.config
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    _check_sizes({field: (getattr(mine, field), getattr(theirs, field)) for field in fields}, "BERT")
    branch, vocab_size = model.text_branch, theirs.vocab_size
    if vocab_size > model.config.text_vocab_size or theirs.max_position_embeddings < model.config.text_max_positions:
        raise ValueError(
            f"this BERT has {vocab_size} words and {theirs.max_position_embeddings} positions; text_vocab_size "
            f"{model.config.text_vocab_size} must be at least, text_max_positions {model.config.text_max_positions} at "
            "most that"
        )
    embeddings = encoder.embeddings
    positions = embeddings.position_embeddings.weight[: model.config.text_max_positions]
    branch.embeddings.word_embeddings.weight[:vocab_size] = embeddings.word_embeddings.weight
    branch.embeddings.position_embeddings.weight.copy_(positions + embeddings.token_type_embeddings.weight[0])
    if interface:
        _copy(model.qformer.layernorm, embeddings.LayerNorm)
    for text, layer, source in zip(branch.layers, model.qformer.encoder.layer, encoder.encoder.layer):
        _copy(text.intermediate, source.intermediate)
        _copy(text.output, source.output)
        if interface:
            for name in ("query", "key", "value"):
                _copy(getattr(layer.attention.attention, name), getattr(source.attention.self, name))
            _copy(layer.attention.output, source.attention.output)
            _copy(layer.intermediate_query, source.intermediate)
            _copy(layer.output_query, source.output)
    if not isinstance(bert, BertModel):
        _copy(branch.lm_transform, bert.cls.predictions.transform)
        branch.lm_bias[:vocab_size] = bert.cls.predictions.bias


def initialize_from_queries(model: XLLMForQFormerPreTraining) -> None:
    """Start the text feed-forward blocks from the interface's query blocks (no BERT at hand; BLIP-2's copy, reversed)."""
    for text, layer in zip(model.text_branch.layers, model.qformer.encoder.layer):
        _copy(text.intermediate, layer.intermediate_query)
        _copy(text.output, layer.output_query)


@torch.no_grad()
def initialize_from_blip2(model: XLLMForQFormerPreTraining, source: Blip2ForImageTextRetrieval) -> None:
    """Take over a published stage 1, e.g. `Salesforce/blip2-itm-vit-g`: tower, Q-Former, text side and heads.

    The published file has neither the captioning head nor the temperature: both stay as they are.

    Raises:
        ValueError: `source` has no text input, or other sizes.
    """
    theirs = source.config.qformer_config
    fields = ("hidden_size", "num_hidden_layers", "cross_attention_frequency", "encoder_hidden_size")
    sizes = {field: (getattr(model.qformer.config, field), getattr(theirs, field)) for field in fields}
    sizes["use_qformer_text_input"] = (True, theirs.use_qformer_text_input)
    sizes["text_vocab_size"] = (model.config.text_vocab_size, theirs.vocab_size)
    sizes["text_max_positions"] = (model.config.text_max_positions, theirs.max_position_embeddings)
    sizes["query tokens"] = (model.query_tokens.shape[1], source.query_tokens.shape[1])
    _check_sizes(sizes, "BLIP-2")
    qformer, text = {}, {}
    for key, value in source.qformer.state_dict().items():
        parts = key.split(".")  # encoder.layer.<number>.<block>. ...
        is_text = key.startswith("encoder.layer.") and parts[3] in ("intermediate", "output")
        (text if is_text else qformer)[".".join(parts[2:]) if is_text else key] = value
    model.qformer.load_state_dict(qformer, strict=True)
    model.text_branch.layers.load_state_dict(text, strict=True)
    model.query_tokens.copy_(source.query_tokens)
    _copy(model.model.vision_tower, source.vision_model)
    _copy(model.text_branch.embeddings, source.embeddings)
    _copy(model.media_proj, source.vision_projection)
    _copy(model.text_proj, source.text_projection)
    _copy(model.itm_head, source.itm_head)


__all__ = ["initialize_from_bert", "initialize_from_blip2", "initialize_from_queries"]
