# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Chat messages with media: cleaning of content parts, where their media are, and how a template writes them.

A message's `content` is a string or a list of parts, `{"type": "text", ...}` or of a kind in `media_kinds`. A kind's
other names and its types in OpenAI's API (`image_url`, `input_audio`, ...) are understood, keys whose value is None (a
`datasets` table adds them) are dropped.
The wrappers around the placeholders are the paper's (sec. 3.4 and the authors' prompts): `<Image>`, `<Video>`,
`<Speech>`.
"""

from typing import Any

from .media_kinds import MEDIA_KINDS, MediaKind, is_values, media_kind


# Besides the key named as the type; the first one present counts.
SOURCE_KEYS = ("bytes", "array", "base64", "url", "path")


def _clean_openai(part: dict[str, Any], kind: MediaKind) -> dict[str, Any]:
    """An OpenAI part to one of ours: `{"type": "image", "url": ...}`, or "base64" for data that is sent along."""
    content = part.get(part["type"])
    if not isinstance(content, dict):
        return {"type": kind.type, "url": content}
    return {"type": kind.type, "url": content.get("url"), "base64": content.get("data")}


def clean_part(part: Any) -> dict[str, Any]:
    """One content part in our form, without keys whose value is None.

    Raises:
        ValueError: neither a string nor a dict with a known `type`.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"content part {part!r:.80}: expected a dict with a 'type', or a string")
    if part["type"] != "text":
        try:
            kind = media_kind(part["type"])
        except ValueError as error:
            known = ", ".join(repr(name) for known in MEDIA_KINDS.values() for name in (known.type, *known.aliases))
            raise ValueError(
                f"content part of type {part['type']!r}: expected one of 'text', {known}; "
                "a kind of your own must be registered first (--module FILE)"
            ) from error
        if part["type"] in kind.openai_types:
            part = _clean_openai(part, kind)
        else:
            part = {kind.type if key in kind.aliases else key: value for key, value in part.items()}
            part["type"] = kind.type
    part = {key: value for key, value in part.items() if value is not None}
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
    if part.get("sampling_rate") is not None and is_values(source):
        return {"array": source, "sampling_rate": part["sampling_rate"]}
    return source


def media_of(messages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The media of cleaned messages, by part type, in order of appearance.

    Raises:
        ValueError: a part without its medium; names the message.
    """
    media: dict[str, list[Any]] = {kind: [] for kind in MEDIA_KINDS}
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


# Messages whose parts of `media_parts` are text parts; then, for templates of text alone, whose parts are one string.
_MEDIA_TO_TEXT = (
    "{%- set ns = namespace(messages=[], parts=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is none or message['content'] is undefined or message['content'] is string -%}"
    "{%- set ns.messages = ns.messages + [message] -%}"
    "{%- else -%}"
    "{%- set ns.parts = [] -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in media_parts -%}{%- set part = {'type': 'text', 'text': media_parts[part['type']]} "
    "-%}{%- endif -%}"
    "{%- set ns.parts = ns.parts + [part] -%}"
    "{%- endfor -%}"
    "{%- set ns.messages = ns.messages + [dict(message, content=CONTENT)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = ns.messages -%}"
)
_PARTS = _MEDIA_TO_TEXT.replace("CONTENT", "ns.parts")
_ONE_STRING = _MEDIA_TO_TEXT.replace(
    "CONTENT", "ns.parts | selectattr('text', 'defined') | map(attribute='text') | join"
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


def with_media_parts(template: str | dict | None, parts: dict[str, tuple[str, str]]) -> str | dict:
    """A chat template that can write media parts.

    Args:
        template (`str` or `dict`, *optional*): a tokenizer's template. One that reads `media_parts` (part type ->
            text) is given it; in one that writes some of our placeholders, the other kinds come as text; any other is
            given messages whose
            parts are joined to one string. Without one, a plain "role: text" template is made.
        parts (`dict[str, tuple[str, str]]`): part type -> its placeholder token, and what stands for it in a text.

    Returns:
        the template, or the dict of templates, to render.
    """
    if isinstance(template, dict):
        return {name: with_media_parts(one, parts) for name, one in template.items()}
    template = template or _PLAIN_TEMPLATE
    texts = {kind: text for kind, (_, text) in parts.items()}
    if "media_parts" in template:
        return f"{{%- set media_parts = {texts!r} -%}}{template}"
    unwritten = {
        kind: texts[kind]
        for kind, (token, _) in parts.items()
        if not (token in template or f"{kind}_token" in template)
    }
    if not unwritten:
        return template
    convert = _ONE_STRING if len(unwritten) == len(parts) else _PARTS
    return f"{{%- set media_parts = {unwritten!r} -%}}{convert}{template}"
