# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Kinds of media: one entry per type of content part, for everything that handles media from the file to the answer.

Processor, chat templates, collator, data sources, commands, server and cards loop over this table and over the model's rows;
nothing else knows the names. A kind of one's own is one more entry (`register_media_kind`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .audio_decoding import load_audio
from .image_decoding import load_image
from .video_decoding import load_video


@dataclass(frozen=True)
class MediaKind:
    """One type of content part.

    Args:
        type (`str`): of the part, `{"type": "image", "image": ...}`.
        inputs (`str`): argument of `XLLMProcessor.__call__` that carries such media.
        reader (`str`): part of the processor that turns decoded media into tensors.
        input_name (`str`): the reader's main output, the model's argument for rows of this kind.
        load (`Callable`): source and reader to a decoded medium.
        wrapper (`str`): name of the tags around its placeholders in a prompt (paper, section 3.4).
        placeholder (`str`): default token that stands for one embedding.
        row (`str`): name of the row that reads this kind in the paper's table.
        aliases, openai_types (`tuple[str, ...]`): other names of the type, and the types of OpenAI's content parts.
        extensions (`tuple[str, ...]`): of its files, in lower case.
        prompts (`tuple[str, ...]`): what a table of files and texts asks where it names no prompt.
        option (`str`): option of the command line, `--option FILE`.
        example (`str`): file name in examples of model cards.
        augmented_as (`tuple[str, ...]`): what training may augment of it: "picture" or "waveform" of the decoded medium,
            "features" of the reader's output.
    """

    type: str
    inputs: str
    reader: str
    input_name: str
    load: Callable[..., Any]
    wrapper: str
    placeholder: str
    row: str
    aliases: tuple[str, ...] = ()
    openai_types: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ("",)
    option: str = ""
    example: str = ""
    augmented_as: tuple[str, ...] = ()
    other_names: frozenset[str] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "other_names", frozenset((*self.aliases, *self.openai_types)))


MEDIA_KINDS: dict[str, MediaKind] = {}


def register_media_kind(kind: MediaKind) -> MediaKind:
    """Adds an entry; the same type again replaces it.

    Raises:
        ValueError: another kind has its type, one of its other names, its argument, placeholder or option.
    """
    for other in MEDIA_KINDS.values():
        if other.type == kind.type:
            continue
        names, taken = {kind.type, *kind.other_names}, {other.type, *other.other_names}
        for what, mine, theirs in (
            ("type", names, taken),
            ("inputs", {kind.inputs}, {other.inputs}),
            ("placeholder", {kind.placeholder}, {other.placeholder}),
            ("option", {kind.option or kind.type}, {other.option or other.type}),
        ):
            if both := mine & theirs:
                raise ValueError(f"media kind {kind.type!r}: {what} {min(both)!r} belongs to {other.type!r} already")
    MEDIA_KINDS[kind.type] = kind
    return kind


def media_kind(name: str) -> MediaKind:
    """The kind called `name`: by its type, an alias or OpenAI's type.

    Raises:
        ValueError: there is none; the message lists the types.
    """
    found = MEDIA_KINDS.get(name) or next((k for k in MEDIA_KINDS.values() if name in k.other_names), None)
    if found is None:
        raise ValueError(f"no kind of media is called {name!r}; the kinds are {', '.join(MEDIA_KINDS)}")
    return found


def part_of_row(name: str, input_name: str | None = None, part: str | None = None) -> str:
    """The type of content part that row `name` of a model reads: its `part`; else the kind of its input; else its own name."""
    of_input = (kind.type for kind in MEDIA_KINDS.values() if kind.input_name == input_name)
    return part or next(of_input, name)


register_media_kind(
    MediaKind(
        type="image",
        inputs="images",
        reader="image_processor",
        input_name="pixel_values",
        load=lambda source, reader: load_image(source),
        wrapper="Image",
        placeholder="<ImageHere>",
        row="image",
        openai_types=("image_url",),
        extensions=(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        example="image.jpg",
        augmented_as=("picture",),
    )
)
register_media_kind(
    MediaKind(
        type="video",
        inputs="videos",
        reader="video_processor",
        input_name="pixel_values_videos",
        load=lambda source, reader: load_video(
            source, num_frames=reader.num_frames, fps=reader.fps, max_frames=reader.max_frames
        )[0],
        wrapper="Video",
        placeholder="<VideoHere>",
        row="video",
        openai_types=("video_url",),
        extensions=(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"),
        example="clip.mp4",
        augmented_as=("picture",),
    )
)
register_media_kind(
    MediaKind(
        type="audio",
        inputs="audio",
        reader="feature_extractor",
        input_name="input_features",
        load=lambda source, reader: load_audio(source, reader.sampling_rate),
        wrapper="Speech",
        placeholder="<SpeechHere>",
        row="speech",
        aliases=("speech",),
        openai_types=("audio_url", "input_audio"),
        extensions=(".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus", ".aac", ".npy"),
        prompts=("请忠实地识别该语音",),
        option="speech",
        example="speech.wav",
        augmented_as=("waveform", "features"),
    )
)


__all__ = ["MEDIA_KINDS", "MediaKind", "media_kind", "part_of_row", "register_media_kind"]
