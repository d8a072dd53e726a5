# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The authors' published JSON files: the one place of training that names the media of their columns.

captions: `{"image", "caption": [...]}` and `{"image_id", "caption_zh"}`
features: `{"speech_feats_path", "target_text"}`, also with "image", and
          `{"speech_feats_path", "image_path", "question_text", "answer_text"}`

The speech files name pre-extracted features of an encoder that was never published: `.npy` files, for a model whose
speech row is `token_level`. Deviation: nothing is cut to 20 characters and 20 vectors.
"""

from collections.abc import Mapping
from typing import Any


# Part type -> ending of the file that an `image_id` stands for; captions are of these parts, by default of the first.
CAPTIONED = {"image": ".jpg", "video": ".mp4"}
SPEECH, SPEECH_COLUMN = "audio", "speech_feats_path"
PICTURE, PICTURE_COLUMNS = "image", ("image", "image_path")
# What is asked of speech with a picture beside it: to transcribe, and to answer the spoken question.
PICTURED_PROMPTS = {
    "target_text": ["根据图片请忠实地识别该语音"],
    "answer_text": [f"请{verb}回答语音中的问题" for verb in ("根据图像", "利用图像", "根据图像直接", "利用图片")],
}


def tell_layout(row: Mapping) -> str | None:
    """The format of a row by its columns: "features", "captions" or None."""
    if SPEECH_COLUMN in row:
        return "features"
    if ("image" in row and "caption" in row) or ("image_id" in row and "caption_zh" in row):
        return "captions"
    return None


def read_captions(row: Mapping, part: str) -> tuple[str, Any, Any]:
    """The column of the medium, of type `part`, the medium or media, and the caption or captions of a row."""
    if "image_id" in row and "caption_zh" in row:
        return "image_id", f"{row['image_id']}{CAPTIONED[part]}", row["caption_zh"]
    return PICTURE, row[PICTURE], row["caption"]


def read_features(row: Mapping) -> tuple[list[dict], str, list[str] | None]:
    """Content parts, the column of the answer, and the prompts that go with a picture, of a row.

    Raises:
        ValueError: the row has turns before this one.
    """
    if row.get("history_text"):
        raise ValueError("history_text is not read; write the conversation as messages")
    column = next((name for name in PICTURED_PROMPTS if name in row), "answer_text")
    media = [{"type": SPEECH, SPEECH: row[SPEECH_COLUMN]}]
    picture = next((row[name] for name in PICTURE_COLUMNS if row.get(name)), None)
    if picture is None:
        return media, column, None
    return [{"type": PICTURE, PICTURE: picture}, *media], column, PICTURED_PROMPTS[column]


__all__ = ["CAPTIONED", "SPEECH", "read_captions", "read_features", "tell_layout"]
