# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Kinds of media: one entry per type of content part, for everything that handles media from the file to the answer.

Processor, chat templates, collator, data sources, commands, server and cards loop over this table and over the model's
rows; nothing else knows the names. Your own kind is one more entry:

```python
>>> register_media_kind(MediaKind("status", reader_class=StatusReader, row={"converter": "linear", ...}))
```
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoVideoProcessor

from .audio_decoding import Waveform, load_audio
from .feature_extraction_xllm import XLLMCIFFeatureExtractor, XLLMFeatureExtractor
from .image_decoding import load_image
from .picture_features import extract_pictures
from .speech_features import extract_speech, num_positions
from .video_decoding import Frames, load_video
from .video_processing_xllm import XLLMVideoProcessor, list_videos


def is_array(item: Any) -> bool:
    """An array or a tensor."""
    return isinstance(item, (np.ndarray, torch.Tensor))


def is_values(item: Any) -> bool:
    """An array, a tensor or a list of numbers: one item, whatever its shape."""
    return is_array(item) or (
        isinstance(item, (list, tuple)) and len(item) > 0 and isinstance(item[0], (int, float, np.number))
    )


@dataclass(frozen=True, eq=False)
class MediaKind:
    """One type of content part. For your own kind `type`, `reader_class` and `row` are enough.

    Args:
        type: of the part, `{"type": "image", "image": ...}`.
        inputs, reader: argument of `XLLMProcessor.__call__` that carries such media, and part of the processor that
            turns decoded ones into tensors; by default the type, as in `XLLMProcessor(..., readers={type: reader})`.
        reader_class: its class, with `from_pretrained(folder)`, `save_pretrained(folder)` and `__call__(items,
            return_tensors="pt")`, which returns `{input_name: (items, ...), mask_name: (items, positions)}`.
        own_readers: readers that `reader_class`, an Auto class, does not know; they are found by class name.
        input_name, mask_name: the reader's main output and its mask (1 = real), arguments of the model; by default
            what the row says, or "<type>_values" and no mask.
        load: source and reader to a decoded medium; decoded media pass unchanged. By default the reader's own
            `load(source)`; without one the reader gets the source itself.
        load_in_reader: the reader's arguments say what to load, so `XLLMProcessor.__call__` leaves loading to it.
        read: reader, decoded items and keywords to tensors; by default the reader itself.
        is_item: tells one item from a list of items; or, instead, split: nested lists of items to a flat list.
        series: an item is a series of pictures, each of which takes a row's `tokens_per_item`; the mask tells the real
            ones.
        fixed: an item (each picture of a series) takes `num_query_tokens` placeholders unless its row says otherwise.
        count: reader and size of an item to its pictures or input positions, without reading it.
        wrapper, placeholder: name of the tags in a prompt (paper, section 3.4), and default token of one embedding.
        row: fields of the `X2LConfig` row that a new model gets for it; empty for the paper's, which the model knows.
        row_name, option: of the row that reads it (by default the type), and of commands (by default the row's name).
        aliases, openai_types: other names of the type, and the types of OpenAI's content parts.
        extensions, example: endings of its files in lower case, and a file name for model cards.
        prompts: what a table of files and texts asks where it names no prompt.
        hub_task: pipeline on the Hub of a model that reads only such media.
        augmented_as: what training may augment: "picture" or "waveform" of the decoded medium, "features" of the
            reader's output.
    """

    type: str
    inputs: str = ""
    reader: str = ""
    reader_class: Any = None
    own_readers: tuple[Any, ...] = ()
    input_name: str = ""
    mask_name: str | None = None
    load: Callable[..., Any] = lambda source, reader: reader.load(source) if hasattr(reader, "load") else source
    load_in_reader: bool = False
    read: Callable[..., Any] = lambda reader, items, **kwargs: reader(items, **kwargs)
    is_item: Callable[[Any], bool] | None = is_values
    split: Callable[[Any], list[Any]] | None = None
    series: bool = False
    fixed: bool = False
    count: Callable[[Any, Any], int] | None = None
    wrapper: str = ""
    placeholder: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    row_name: str = ""
    aliases: tuple[str, ...] = ()
    openai_types: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ("",)
    option: str = ""
    example: str = ""
    hub_task: str = "any-to-any"
    augmented_as: tuple[str, ...] = ()

    def __post_init__(self):
        def complete(name: str, value: Any) -> None:
            object.__setattr__(self, name, getattr(self, name) or value)

        for name in ("inputs", "reader", "row_name"):
            complete(name, self.type)
        complete("option", self.row_name)
        complete("input_name", self.row.get("input_name", f"{self.type}_values"))
        complete("mask_name", self.row.get("mask_name"))
        complete("wrapper", self.type.title().replace("_", ""))
        complete("placeholder", self.row.get("placeholder_token", f"<{self.wrapper}Here>"))

    @property
    def names(self) -> set[str]:
        """All names of the type."""
        return {self.type, *self.aliases, *self.openai_types}

    @property
    def token_name(self) -> str:
        """Attribute of tokenizer and processor that holds the placeholder."""
        return f"{self.type}_token"

    def class_of_reader(self, name: str | None) -> Any:
        """The class of a saved reader, by its name."""
        return next((own for own in self.own_readers if own.__name__ == name), self.reader_class)

    def flatten(self, media: Any) -> list[Any]:
        """Media in nested lists (one per row of text, or not) to a flat list."""
        if media is None:
            return []
        if self.split is not None:
            return self.split(media)
        is_nested = isinstance(media, (list, tuple)) or is_array(media)
        if not is_nested or (self.is_item is not None and self.is_item(media)):
            return [media]
        return [item for entry in media for item in self.flatten(entry)]

    def num_positions(self, processed: dict[str, Any], index: int, input_name: str, mask_name: str | None) -> int:
        """Real input positions of an item among the reader's output: those that its mask counts, or all."""
        if mask_name is not None and mask_name in processed:
            return int(processed[mask_name][index].sum())
        item = processed[input_name][index]
        return len(item) if getattr(item, "ndim", 1) else 1


MEDIA_KINDS: dict[str, MediaKind] = {}


def register_media_kind(kind: MediaKind) -> MediaKind:
    """Adds an entry; the same type again, with a reader class of the same name, replaces it.

    Raises:
        ValueError: another kind has its type, one of its other names, its argument, placeholder or option.
    """
    if not kind.type.isidentifier() or "text" in {kind.inputs, *kind.names}:
        raise ValueError(f"media kind {kind.type!r}: a type is a name of letters, digits and _, and 'text' is taken")
    for other in MEDIA_KINDS.values():
        same_reader = getattr(other.reader_class, "__name__", None) == getattr(kind.reader_class, "__name__", None)
        if other.type == kind.type and same_reader:
            continue
        taken = {"type": kind.names & other.names}
        taken |= {name: {getattr(kind, name)} & {getattr(other, name)} for name in ("inputs", "placeholder", "option")}
        for what, both in taken.items():
            if both:
                raise ValueError(f"media kind {kind.type!r}: {what} {min(both)!r} belongs to {other.type!r} already")
    MEDIA_KINDS[kind.type] = kind
    return kind


def media_kind(name: str | MediaKind) -> MediaKind:
    """The kind called `name` (its type, an alias or OpenAI's type), or itself; a `ValueError` if there is none."""
    for kind in MEDIA_KINDS.values():
        if name is kind or name in kind.names:
            return kind
    raise ValueError(f"no kind of media is called {name!r}; the kinds are {', '.join(MEDIA_KINDS)}")


def part_of_row(name: str, input_name: str | None = None, part: str | None = None) -> str:
    """The type of part that row `name` of a model reads: its `part`; else the kind of its input; else its own name."""
    of_input = (kind.type for kind in MEDIA_KINDS.values() if kind.input_name == input_name)
    return part or next(of_input, name)


def _load_frames(source: Any, reader: Any) -> Frames:
    rule = {"num_frames": reader.num_frames, "fps": reader.fps, "max_frames": getattr(reader, "max_frames", None)}
    return source if isinstance(source, Frames) else Frames(*load_video(source, **rule))


def _load_sound(source: Any, reader: Any, source_rate: int | None = None) -> Any:
    if hasattr(reader, "load"):
        return reader.load(source)
    if isinstance(source, Waveform) and source.sampling_rate == reader.sampling_rate:
        return source
    return Waveform(load_audio(source, reader.sampling_rate, source_rate), reader.sampling_rate)


def _read_sound(reader: Any, clips: list[Any], **kwargs: Any) -> dict[str, Any]:
    """`extract_speech` under names of its own."""
    return {name.replace("input", "sound"): value for name, value in extract_speech(reader, clips, **kwargs).items()}


IMAGE = register_media_kind(
    MediaKind(
        type="image",
        inputs="images",
        reader="image_processor",
        reader_class=AutoImageProcessor,
        input_name="pixel_values",
        load=lambda source, reader: load_image(source),
        read=extract_pictures,
        is_item=lambda item: is_array(item) and item.ndim < 4,
        fixed=True,
        count=lambda reader, size: 1,
        openai_types=("image_url",),
        extensions=(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        example="image.jpg",
        hub_task="image-text-to-text",
        augmented_as=("picture",),
    )
)
VIDEO = register_media_kind(
    MediaKind(
        type="video",
        inputs="videos",
        reader="video_processor",
        reader_class=AutoVideoProcessor,
        own_readers=(XLLMVideoProcessor,),
        input_name="pixel_values_videos",
        mask_name="video_frame_mask",
        load=_load_frames,
        load_in_reader=True,
        is_item=None,
        split=list_videos,
        series=True,
        fixed=True,
        count=lambda reader, size: size[0],
        openai_types=("video_url",),
        extensions=(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"),
        example="clip.mp4",
        hub_task="image-text-to-text",
        augmented_as=("picture",),
    )
)
AUDIO = register_media_kind(
    MediaKind(
        type="audio",
        reader="feature_extractor",
        reader_class=AutoFeatureExtractor,
        own_readers=(XLLMFeatureExtractor, XLLMCIFFeatureExtractor),
        input_name="input_features",
        mask_name="input_features_mask",
        load=_load_sound,
        read=extract_speech,
        count=num_positions,
        wrapper="Speech",
        row_name="speech",
        aliases=("speech",),
        openai_types=("audio_url", "input_audio"),
        extensions=(".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus", ".aac", ".npy"),
        prompts=("请忠实地识别该语音",),
        example="speech.wav",
        augmented_as=("waveform", "features"),
    )
)
PAPER_KINDS = (IMAGE, VIDEO, AUDIO)
# What is heard beside speech: by default a token per five frames of an encoder of its own (half a second of AST's).
SOUND = register_media_kind(
    MediaKind(
        type="sound",
        inputs="sounds",
        reader_class=AutoFeatureExtractor,
        own_readers=(XLLMFeatureExtractor,),
        load=_load_sound,
        read=_read_sound,
        count=num_positions,
        row={
            "encoder": "sound",
            "converter": "qformer",
            "num_query_tokens": 1,
            "frames_per_token": 5,
            "input_name": "sound_features",
            "mask_name": "sound_features_mask",
        },
        extensions=AUDIO.extensions,
        prompts=("What do you hear?",),
        example="sound.wav",
        augmented_as=("waveform", "features"),
    )
)
OWN_KINDS = (*PAPER_KINDS, SOUND)
