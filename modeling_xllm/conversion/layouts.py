# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Declared names of the published files: which of our parameters they hold, and what they call them.

A table goes from our name to theirs, so the names a file must have follow from the model itself.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field


VISION = r"model\.vision_tower\."
BLOCK = VISION + r"encoder\.layers\.(\d+)\."
IMAGE = r"model\.interfaces\.image\."
LAYER = IMAGE + r"converter\.qformer\.encoder\.layer\.(\d+)\."
VIDEO = r"model\.interfaces\.video\."
SPEECH = r"model\.interfaces\.speech\."

# EVA-CLIP ViT-g. Its attention has no bias for the keys: two tensors, q_bias and v_bias, make our one.
VIT = {
    VISION + r"embeddings\.class_embedding": "visual_encoder.cls_token",
    VISION + r"embeddings\.position_embedding": "visual_encoder.pos_embed",
    VISION + r"embeddings\.patch_embedding\.(\w+)": r"visual_encoder.patch_embed.proj.\1",
    BLOCK + r"layer_norm([12])\.(\w+)": r"visual_encoder.blocks.\1.norm\2.\3",
    BLOCK + r"self_attn\.qkv\.weight": r"visual_encoder.blocks.\1.attn.qkv.weight",
    BLOCK + r"self_attn\.qkv\.bias": r"visual_encoder.blocks.\1.attn.q_bias visual_encoder.blocks.\1.attn.v_bias",
    BLOCK + r"self_attn\.projection\.(\w+)": r"visual_encoder.blocks.\1.attn.proj.\2",
    BLOCK + r"mlp\.(.+)": r"visual_encoder.blocks.\1.mlp.\2",
}
LN_VISION = {VISION + r"post_layernorm\.(\w+)": r"ln_vision.\1"}
QUERIES = {IMAGE + r"converter\.query_tokens": "query_tokens"}
QFORMER = {
    IMAGE + r"converter\.qformer\.layernorm\.(\w+)": r"Qformer.bert.embeddings.LayerNorm.\1",
    LAYER + r"(attention|crossattention)\.attention\.(.+)": r"Qformer.bert.encoder.layer.\1.\2.self.\3",
    LAYER + r"(.+)": r"Qformer.bert.encoder.layer.\1.\2",
}
IMAGE_ADAPTER = {IMAGE + r"adapter\.(\w+)": r"opt_proj.\1"}
# What stage 1 has beside the interface; `decoder` repeats the word embeddings and the bias.
TEXT = {
    r"text_branch\.embeddings\.(.+)": r"Qformer.bert.embeddings.\1",
    r"text_branch\.layers\.(\d+)\.(.+)": r"Qformer.bert.encoder.layer.\1.\2",
    r"text_branch\.lm_transform\.(.+)": r"Qformer.cls.predictions.transform.\1",
    r"text_branch\.lm_bias": "Qformer.cls.predictions.bias",
    r"media_proj\.(\w+)": r"vision_proj.\1",
    r"(text_proj|itm_head)\.(\w+)": r"\1.\2",
    r"temperature": "temp",
}
VIDEO_OWN = {VIDEO + r"converter\.query_tokens": "video_query_tokens", VIDEO + r"adapter\.(\w+)": r"video_proj.\1"}
SPEECH_BERT = {
    SPEECH + r"converter\.pre_proj\.(\w+)": r"pre_bert_proj.\1",
    SPEECH + r"converter\.bert\.(.+)": r"speech_bert_adaptor.\1",
}
SPEECH_ADAPTER = {SPEECH + r"adapter\.(\w+)": r"post_bert_proj.\1"}
SPEECH_FC = {SPEECH + r"adapter\.(\w+)": r"speech_feat_proj.\1"}

# Of no use where present. Buffers are rebuilt. OPT's head is tied to its frozen embeddings; by LAVIS's saving rule
# (all but frozen *parameters*, a tied one counted once) a file may hold it.
BUFFERS = (
    r"(Qformer\.bert|speech_bert_adaptor)\.embeddings\.(position_ids|token_type_ids)",
    r"opt_model\.transformer\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
    r"opt_model\.lm_head\.weight",
)
IDLE_BERT = (r"speech_bert_adaptor\.(embeddings\.word_embeddings\.weight|pooler\.dense\.(weight|bias))",)
# The speech run never loaded BLIP-2: these are its random initial values. The video run left the image's as they were.
UNTRAINED_IN_SPEECH = (r"query_tokens", r"ln_vision\.(weight|bias)")
UNTRAINED_IN_VIDEO = (r"query_tokens", r"opt_proj\.(weight|bias)")
# BLIP-2 reads the output of block 38, without the final norm.
EVA_UNUSED = (
    r"visual_encoder\.(norm|fc_norm|head)\.(weight|bias)",
    r"visual_encoder\.blocks\.(39|[4-9]\d|\d{3,})\..+",
)


@dataclass(frozen=True)
class Layout:
    """One kind of published file.

    Args:
        title, is_like: for messages; whether a file with these first parts of names ("Qformer", ...) is of this kind.
        tables, optional: what it always holds; what it holds wholly or not at all.
        dropped: patterns of what it may hold beside, and is left out.
    """

    title: str
    is_like: Callable[[set[str]], bool]
    tables: tuple[dict[str, str], ...]
    optional: tuple[dict[str, str], ...] = ()
    dropped: tuple[str, ...] = field(default=BUFFERS)


# In the order in which several files are laid over each other.
LAYOUTS = {
    "eva": Layout("EVA-CLIP ViT-g", lambda heads: {"cls_token", "blocks"} <= heads, (VIT,), dropped=EVA_UNUSED),
    "blip2-stage1": Layout("BLIP-2 stage 1 of LAVIS", lambda heads: "text_proj" in heads,
        (LN_VISION, QUERIES, QFORMER, TEXT), (VIT,), (*BUFFERS, r"Qformer\.cls\.predictions\.decoder\.(weight|bias)")),
    "xllm-speech": Layout("X-LLM speech stage 2", lambda heads: "pre_bert_proj" in heads and "Qformer" not in heads,
        (SPEECH_BERT, SPEECH_ADAPTER), dropped=(*BUFFERS, *IDLE_BERT, *UNTRAINED_IN_SPEECH)),
    "xllm-speech-fc": Layout("X-LLM speech stage 2 (fc)",
        lambda heads: "speech_feat_proj" in heads and "Qformer" not in heads,
        (SPEECH_FC,), dropped=(*BUFFERS, *UNTRAINED_IN_SPEECH)),
    "blip2-stage2": Layout("BLIP-2 stage 2 of LAVIS, or X-LLM image stage 2",
        lambda heads: {"Qformer", "opt_proj"} <= heads
        and not heads & {"video_query_tokens", "pre_bert_proj", "speech_feat_proj"},
        (LN_VISION, QUERIES, QFORMER, IMAGE_ADAPTER), (VIT,)),
    "xllm-merged": Layout("X-LLM stage 2, merged", lambda heads: {"Qformer", "opt_proj"} <= heads,
        (LN_VISION, QUERIES, QFORMER, IMAGE_ADAPTER),
        (VIT, VIDEO_OWN, {**SPEECH_BERT, **SPEECH_ADAPTER}, SPEECH_FC), (*BUFFERS, *IDLE_BERT)),
    "xllm-video": Layout("X-LLM video stage 2",
        lambda heads: "video_query_tokens" in heads and "post_bert_proj" not in heads,
        (VIDEO_OWN,), dropped=(*BUFFERS, *UNTRAINED_IN_VIDEO)),
    "xllm-stage3": Layout("X-LLM stage 3", lambda heads: {"video_query_tokens", "post_bert_proj"} <= heads,
        (QUERIES, IMAGE_ADAPTER, VIDEO_OWN, SPEECH_ADAPTER)),
}  # fmt: skip


def published_name(table: dict[str, str], key: str) -> str | None:
    """Their name (or two, with a blank between) of our parameter `key`, or None if the table has none."""
    for pattern, name in table.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return None
