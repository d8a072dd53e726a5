# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Chat messages with media: cleaning of content parts, where their media are, and how a template writes them.

A message's `content` is a string or a list of parts, `{"type": "text"|"image"|"video"|"audio", ...}`. OpenAI's part types
(`image_url`, `audio_url`, `video_url`, `input_audio`) and "speech" for "audio" are understood, keys whose value is None (a
`datasets` table adds them) are dropped.
The wrappers around the placeholders are the paper's (sec. 3.4 and the authors' prompts): `<Image>`, `<Video>`, `<Speech>`.
"""

from typing import Any


MEDIA_TYPES = ("image", "video", "audio")
WRAPPERS = {"image": "Image", "video": "Video", "audio": "Speech"}
SOURCE_KEYS = (
    "bytes",
    "array",
    "base64",
    "url",
    "path",
)  # besides the key named as the type; the first one present counts

_ALIASES = {"speech": "audio"}
_OPENAI_TYPES = {"image_url": "image", "audio_url": "audio", "video_url": "video", "input_audio": "audio"}


def _clean_openai(part: dict[str, Any], kind: str) -> dict[str, Any]:
    """An OpenAI part to one of ours: `{"type": "audio", "url": ...}`."""
    content = part.get(kind)
    if kind == "input_audio" and isinstance(content, dict):
        return {"type": "audio", "base64": content.get("data")}
    return {"type": _OPENAI_TYPES[kind], "url": content.get("url") if isinstance(content, dict) else content}


def clean_part(part: Any) -> dict[str, Any]:
    """One content part in our form, without keys whose value is None.

    Raises:
        ValueError: neither a string nor a dict with a known `type`.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"content part {part!r:.80}: expected a dict with a 'type', or a string")
    kind = part["type"]
    if kind in _OPENAI_TYPES:
        part = _clean_openai(part, kind)
    elif kind in _ALIASES:
        part = {_ALIASES.get(key, key): value for key, value in part.items()} | {"type": _ALIASES[kind]}
    part = {key: value for key, value in part.items() if value is not None}
    if part["type"] not in ("text", *MEDIA_TYPES):
        raise ValueError(
            f"content part of type {kind!r}: expected one of 'text', 'image', 'video', 'audio' ('speech')"
        )
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ValueError(f"content part of type 'text' with the keys {sorted(part)}: expected a string under 'text'")
    return part


def clean_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with cleaned content parts; the caller's are not changed."""
    return [
        {**message, "content": [clean_part(part) for part in message["content"]]}
        if isinstance(message.get("content"), (list, tuple))
        else dict(message)
        for message in messages
    ]


def part_source(part: dict[str, Any]) -> Any:
    """The medium of a cleaned part, for the loaders.

    Raises:
        ValueError: the part names a medium and holds none.
    """
    kind = part["type"]
    source = part.get(kind)
    if source is None:
        held = {key: part[key] for key in SOURCE_KEYS if part.get(key) is not None}
        if not held:
            keys = ", ".join(repr(key) for key in (kind, *SOURCE_KEYS))
            raise ValueError(f"a content part of type {kind!r} holds no {kind}: give it under one of {keys}")
        first = next(iter(held))
        source = held["array"] if first == "array" else held if first in ("bytes", "base64") else held[first]
    if kind == "audio" and part.get("sampling_rate") is not None and not isinstance(source, (str, bytes, dict)):
        return {"array": source, "sampling_rate": part["sampling_rate"]}
    return source


def media_of(messages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The media of cleaned messages, by part type, in order of appearance.

    Raises:
        ValueError: a part without its medium; names the message.
    """
    media: dict[str, list[Any]] = {kind: [] for kind in MEDIA_TYPES}
    for index, message in enumerate(messages):
        if not isinstance(message.get("content"), list):
            continue
        for part in message["content"]:
            if part["type"] in media:
                try:
                    media[part["type"]].append(part_source(part))
                except ValueError as error:
                    raise ValueError(f"message {index} ({message.get('role')}): {error}") from error
    return media


def _write_parts(placeholders: dict[str, str]) -> str:
    """Jinja code that turns each message's parts into one string, with the paper's wrappers around the placeholders."""
    branches = "".join(
        f"{{%- elif part['type'] == '{kind}' -%}}"
        f"{{%- set ns.text = ns.text + '<{WRAPPERS[kind]}>{token}</{WRAPPERS[kind]}>' -%}}"
        for kind, token in placeholders.items()
    )
    return (
        "{%- set ns = namespace(messages=[], text='') -%}"
        "{%- for message in messages -%}"
        "{%- if message['content'] is none or message['content'] is undefined or message['content'] is string -%}"
        "{%- set ns.messages = ns.messages + [message] -%}"
        "{%- else -%}"
        "{%- set ns.text = '' -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{%- set ns.text = ns.text + part['text'] -%}"
        f"{branches}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- set ns.messages = ns.messages + [dict(message, content=ns.text)] -%}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- set messages = ns.messages -%}"
    )


_PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] + ': ' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + (eos_token or '') -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)


def with_media_parts(template: str | dict | None, placeholders: dict[str, str]) -> str | dict:
    """A chat template that can write media parts.

    Args:
        template (`str` or `dict`, *optional*): a tokenizer's template; one that writes our placeholders already stays as it is, any
            other is given messages whose parts are joined to one string. Without one, a plain "role: text" template is made.
        placeholders (`dict[str, str]`): part type -> placeholder token.

    Returns:
        the template, or the dict of templates, to render.
    """
    if isinstance(template, dict):
        return {name: with_media_parts(one, placeholders) for name, one in template.items()}
    if template and any(token in template or f"{kind}_token" in template for kind, token in placeholders.items()):
        return template
    return _write_parts(placeholders) + (template or _PLAIN_TEMPLATE)
