# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Builders of tiny random models, shared by the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch
from transformers import LlamaConfig, ParakeetEncoderConfig, Qwen3Config
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm import ChatGLMConfig, X2LConfig, XLLMConfig, XLLMForConditionalGeneration
from xllm.assembly.tiny import sized_rows


VOCAB = 120
GMASK, SOP, EOP, PAD = 101, 102, 103, 3
IMAGE, VIDEO, SPEECH, STATUS = 110, 111, 112, 113
QUERIES, FRAMES, FACTOR, MELS, PIXELS = 2, 3, 8, 80, 28
TEXT = [11, 12, 13, 14]


def tiny_text_config(kind: str = "chatglm"):
    """A causal LM of two layers: ChatGLM, or Llama or Qwen3 as LLMs of other families."""
    if kind == "qwen3":
        return Qwen3Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=256, pad_token_id=PAD, bos_token_id=SOP,
            eos_token_id=EOP,
        )  # fmt: skip
    if kind == "llama":
        return LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=PAD, bos_token_id=SOP, eos_token_id=EOP,
        )  # fmt: skip
    return ChatGLMConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=PAD, bos_token_id=SOP, eos_token_id=EOP, gmask_token_id=GMASK,
        mask_token_id=100,
    )  # fmt: skip


def tiny_rows(**changes) -> dict[str, X2LConfig]:
    """The paper's three rows at tiny sizes; `changes` replaces or adds rows."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    cformer = {"cif_hidden_size": 16, "max_position_embeddings": 64, **sizes}
    rows = sized_rows(
        {
            "image": {"num_query_tokens": QUERIES, "qformer_config": sizes, "token_id": IMAGE},
            "video": {"num_query_tokens": QUERIES, "num_frames": FRAMES, "token_id": VIDEO},
            "speech": {"cformer_config": cformer, "token_id": SPEECH, "subsampling_factor": FACTOR},
        }
    )
    return {**rows, **changes}


def tiny_config(text: str = "chatglm", rows: dict | None = None, **fields) -> XLLMConfig:
    """An `XLLMConfig` of some ten thousand parameters."""
    fields.setdefault(
        "audio_config",
        ParakeetEncoderConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            subsampling_conv_channels=4, layerdrop=0.0,
        ),
    )  # fmt: skip
    fields.setdefault(
        "vision_config",
        Blip2VisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=PIXELS,
            patch_size=14, initializer_range=0.02,
        ),
    )  # fmt: skip
    fields.setdefault("text_config", tiny_text_config(text))
    return XLLMConfig(modalities=tiny_rows() if rows is None else rows, **fields)


def tiny_model(text: str = "chatglm", seed: int = 0, **kwargs) -> XLLMForConditionalGeneration:
    """A random model in eval mode whose modules all matter (no near-zero weights)."""
    torch.manual_seed(seed)
    model = XLLMForConditionalGeneration(tiny_config(text, **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model


def speech(*frames: int) -> dict[str, torch.Tensor]:
    """Random log-mel clips of the given numbers of frames, padded, with their mask."""
    longest = max(frames)
    features = torch.randn(len(frames), longest, MELS)
    mask = (torch.arange(longest) < torch.tensor(frames)[:, None]).long()
    return {"input_features": features * mask[..., None], "input_features_mask": mask}


def prompt(*parts: int | list[int]) -> list[int]:
    """Token ids of a prompt, `[gMASK] <sop>` at its end."""
    ids = []
    for part in parts:
        ids.extend(part if isinstance(part, list) else [part])
    return [*ids, GMASK, SOP]


def left_pad(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows of different lengths, padded on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def mixed_rows() -> list[tuple[list[int], dict]]:
    """Rows of every kind: text only, image, video and speech, two images, speech alone."""
    torch.manual_seed(7)
    pictures = torch.randn(3, 3, PIXELS, PIXELS)
    videos = torch.randn(1, FRAMES, 3, PIXELS, PIXELS)
    long, short = speech(50), speech(23)
    image, video = [IMAGE] * QUERIES, [VIDEO] * QUERIES * FRAMES
    return [
        (prompt(TEXT), {}),
        (prompt(image, 20, TEXT), {"pixel_values": pictures[:1]}),
        (
            prompt(video, 21, [SPEECH] * 7, TEXT),
            {"pixel_values_videos": videos, "video_frame_mask": torch.ones(1, FRAMES), **long},
        ),
        (prompt(image, 22, image, 23), {"pixel_values": pictures[1:]}),
        (prompt([SPEECH] * 3, 24), short),
    ]


def batch_of(rows) -> dict:
    """The rows as one left-padded batch, media flat in order of appearance."""
    batch = left_pad([ids for ids, _ in rows])
    media = [media for _, media in rows]
    for name in ("pixel_values", "pixel_values_videos", "video_frame_mask"):
        if tensors := [item[name] for item in media if name in item]:
            batch[name] = torch.cat(tensors)
    for name in ("input_features", "input_features_mask"):
        clips = [clip for item in media if name in item for clip in item[name]]
        if clips:
            batch[name] = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return batch


def gradients(model, **batch):
    """Loss and gradients of a step in train mode; the same dropout each time."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def made_by_default(kind: str) -> Iterator[None]:
    """A process whose tensors, where a maker names neither device nor type, are float64, or have no values."""
    before = torch.get_default_dtype()
    if kind == "float64":
        torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta" if kind == "meta" else "cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def assert_equal_whatever_is_made_by_default(numbers) -> None:
    """`numbers()` gives tensors by name; each keeps its device, type and values, whatever tensors are by default."""
    expected = numbers()
    for kind in ("meta", "float64"):
        with made_by_default(kind):
            found = numbers()
        torch.testing.assert_close(found, expected, msg=f"tensors made by default as {kind}: {{}}".format)


def default_numbers(config_class) -> dict:
    """The numbers that a config class adds, as a config.json without them has them: what was saved counts on those."""
    own = {field.name: field.default for field in fields(config_class) if field.name in config_class.__annotations__}
    return {name: value for name, value in own.items() if isinstance(value, (int, float))}
