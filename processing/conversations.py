# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""From conversations to model inputs: one path for training, evaluation, chat and server.

A rendered conversation is complete: no tokenizer adds tokens of its own around it, as in the tokenizers'
`apply_chat_template`. Templates of models that think aloud (`enable_thinking`) are asked for the answer alone, which
is what X-LLM is trained on.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

from jinja2 import TemplateError
from transformers import BatchFeature, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .media_kinds import AUDIO, IMAGE, MEDIA_KINDS, VIDEO, is_values, media_kind


_MARK = "\ue000answer\ue001"  # stands for an answer, to see what a template writes around it
# Besides the key named as the type; the first one present counts.
SOURCE_KEYS = ("bytes", "array", "base64", "url", "path")


def clean_part(part: Any) -> dict[str, Any]:
    """One content part in our form, without keys whose value is None; a `ValueError` if it is of no known type."""
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
        if part["type"] in kind.openai_types:  # holds a URL, or data that is sent along
            content = part.get(part["type"])
            content = content if isinstance(content, dict) else {"url": content}
            part = {"url": content.get("url"), "base64": content.get("data"), "track": part.get("track")}
        part = {kind.type if key in kind.aliases else key: value for key, value in part.items()} | {"type": kind.type}
    part = {key: value for key, value in part.items() if value is not None}
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ValueError(f"content part of type 'text' with the keys {sorted(part)}: expected a string under 'text'")
    return part


def with_track(part: dict[str, Any]) -> list[dict[str, Any]]:
    """A cleaned part, and behind it the sound of its file where `track` names what that is heard as (a type, or a list
    of them): `{"type": "video", "path": F, "track": "speech"}`. A file without sound is an error when it is read."""
    names = part.get("track") or []
    part = {key: value for key, value in part.items() if key != "track"}
    kinds = [media_kind(name) for name in ([names] if isinstance(names, str) else names)]
    return [part, *({"type": kind.type, kind.type: part_source(part)} for kind in kinds)]


def clean_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with cleaned content parts; the caller's are not changed."""
    cleaned = [dict(message) for message in messages]
    for message in cleaned:
        if isinstance(message.get("content"), (list, tuple)):
            parts = [clean_part(part) for part in message["content"]]
            message["content"] = [one for part in parts for one in with_track(part)]
    return cleaned


def part_source(part: dict[str, Any]) -> Any:
    """The medium of a cleaned part, for the loaders; a `ValueError` if it holds none."""
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
    """The media of cleaned messages, by part type, in order; a `ValueError` names the message that lacks one."""
    media: dict[str, list[Any]] = {kind: [] for kind in MEDIA_KINDS}
    for index, message in enumerate(messages):
        parts = message["content"] if isinstance(message.get("content"), list) else ()
        try:
            for part in parts:
                if part["type"] in media:
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
# For templates that write lists of parts alone.
_LISTS = _PARTS.replace(
    "ns.messages + [message]",
    "ns.messages + [dict(message, content=[{'type': 'text', 'text': message['content']}]) "
    "if message['content'] is string else message]",
)
_OLD_PARTS = re.compile(r"\A\{%- set media_parts = \{[^{}]*\} -%\}")
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


def _reads_strings(template: str) -> bool:
    """Whether a template writes messages whose content is a string: some (LLaVA's) lose them, and write lists of parts
    alone."""
    contents: tuple[Any, ...] = (_MARK, [{"type": "text", "text": _MARK}])
    written = []
    for content in contents:
        try:
            rendered = render_jinja_template([[{"role": "user", "content": content}]], chat_template=template)[0]
            written.append(_MARK in rendered[0])
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            written.append(False)
    return written[0] or not written[1]


def with_media_parts(template: str | dict | None, parts: dict[str, tuple[str, str]]) -> str | dict:
    """A chat template that can write media parts.

    Args:
        template: a tokenizer's. One that reads `media_parts` (part type -> text) is given it; in one that writes some
            of our placeholders, the other kinds come as text; any other is given messages whose parts are joined to
            one string. Without one, a plain "role: text" template is made.
        parts: part type -> its placeholder token, and what stands for it in a text.

    Returns:
        the template, or the dict of templates, to render.
    """
    if isinstance(template, dict):
        return {name: with_media_parts(one, parts) for name, one in template.items()}
    template = template or _PLAIN_TEMPLATE
    texts = {kind: text for kind, (_, text) in parts.items()}
    if "media_parts" in template:
        template = _OLD_PARTS.sub("", template)  # of an X-LLM with other rows
        return f"{{%- set media_parts = {texts!r} -%}}{template}"
    written = {kind for kind, (token, _) in parts.items() if token in template or f"{kind}_token" in template}
    unwritten = {kind: text for kind, text in texts.items() if kind not in written}
    if not unwritten:
        return template
    convert = _ONE_STRING if len(unwritten) == len(parts) else _PARTS
    convert = convert if _reads_strings(template) else _LISTS
    return f"{{%- set media_parts = {unwritten!r} -%}}{convert}{template}"


class ConversationsMixin(ProcessorMixin):
    """For a processor with a tokenizer, `load` and a token per kind of media."""

    load: Callable[..., Any]

    def encode_conversations(
        self,
        conversations: list[list[dict]],
        add_generation_prompt: bool = True,
        sanitize_control_tokens: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Conversations to model inputs: `apply_chat_template` with everything switched on.

        Args:
            conversations: lists of chat messages; their media are sources or what `load` gave.
            add_generation_prompt: end each row where the assistant's answer begins.
            sanitize_control_tokens: take what looks like a special token or placeholder as text, for users' messages.

        Returns:
            `BatchFeature`, as `XLLMProcessor.__call__` gives it; rows are padded on the left.

        Raises:
            MediaError: a medium that cannot be read. ValueError: a conversation that cannot be written.
        """
        return self.apply_chat_template(
            [list(messages) for messages in conversations],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=add_generation_prompt,
            sanitize_control_tokens=sanitize_control_tokens,
            return_tensors=return_tensors,
            **kwargs,
        )

    def encode_answers(self, conversations: list[list[dict]], stop_ids: Collection[int] = ()) -> list[list[int]]:
        """Ids of each conversation's last message, the assistant's, as the model is to say it after the prompt: the
        text, and what ends a turn. `encode_conversations([messages[:-1] for messages in conversations])` gives what
        stands before them, and all media.

        Args:
            stop_ids: tokens that generation stops at besides the tokenizer's end token.

        Raises:
            ValueError: the tokenizer has no end token, and the template writes none.
        """
        texts = [self.answer_text(messages, stop_ids) for messages in conversations]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def answer_text(self, messages: list[dict], stop_ids: Collection[int] = ()) -> str:
        """The last message as `encode_answers` takes it.

        What a template puts between prompt and text (`<think></think>`) is left out: generation does not begin with
        it. What it puts behind the text is kept up to the end token; where there is none, the tokenizer's is added.
        """
        prompt = self.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = self.apply_chat_template(messages, tokenize=False)
        marked = self.apply_chat_template([*messages[:-1], {**messages[-1], "content": _MARK}], tokenize=False)
        head, _, tail = marked.partition(_MARK)
        content = clean_messages(messages[-1:])[0]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        if whole.startswith(head) and whole.endswith(tail) and len(head) + len(tail) <= len(whole):
            text = whole[len(head) : len(whole) - len(tail)]  # as the template writes it, e.g. without space around it
        between = head.rpartition(prompt[-8:] or head)[2]  # its end: Mistral's prompt is another before an answer
        return (between if between.isspace() else "") + text + self._turn_end(tail, stop_ids)

    def _turn_end(self, tail: str, stop_ids: Collection[int]) -> str:
        tokenizer = self.tokenizer
        special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
        stops = [token for token, id in special.items() if token == tokenizer.eos_token or id in stop_ids]
        found = [tail.find(token) + len(token) for token in stops if token in tail]
        if found:
            return tail[: min(found)]
        written = max((tail.rfind(token) + len(token) for token in special if token in tail), default=0)
        if tokenizer.eos_token is None and not written:
            raise ValueError(
                "nothing ends an answer: the tokenizer has no end token and the chat template writes none, so the "
                "model would never stop; set `eos_token` in tokenizer_config.json"
            )
        return tail[:written] + (tokenizer.eos_token or "")

    # ---- the base class's apply_chat_template -----------------------------------------------------------------------

    def apply_chat_template(  # type: ignore[override]  # everything else goes to the base class by name
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """As the base class, and without thinking aloud unless `enable_thinking=True` asks for it."""
        if "enable_thinking" in self._resolve_chat_template(chat_template):
            kwargs.setdefault("enable_thinking", False)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _prepare_processor_kwargs(self, chat_template: str, processor_kwargs: dict, *args: Any, **kwargs: Any) -> dict:
        given = {**processor_kwargs.get("text_kwargs", {}), **processor_kwargs}
        if "add_special_tokens" not in given:
            processor_kwargs = {**processor_kwargs, "add_special_tokens": False}
        return super()._prepare_processor_kwargs(chat_template, processor_kwargs, *args, **kwargs)

    def _normalize_conversations(self, conversation: Any) -> tuple[list, bool]:
        if not conversation:
            raise ValueError("conversation: got nothing, expected a list of messages")
        conversations, is_batched = super()._normalize_conversations(conversation)
        conversations = [clean_messages(messages) for messages in conversations]
        unread = {kind.type for kind in MEDIA_KINDS.values() if getattr(self, kind.token_name, None) is None}
        contents = [message.get("content") or () for messages in conversations for message in messages]
        for part in (part for content in contents for part in content if isinstance(part, dict)):
            if part["type"] in unread:
                raise ValueError(f"a content part of type {part['type']!r}: this processor has no row that reads it")
        return conversations, is_batched

    def _resolve_audio_loading_params(self, processor_kwargs: dict) -> dict:
        """The caller's `sampling_rate` is that of the conversation's waveforms; what goes on has the extractor's."""
        nested = processor_kwargs.get("audio_kwargs", {})
        own = getattr(self.feature_extractor, "sampling_rate", None)
        given = processor_kwargs.get("sampling_rate", nested.get("sampling_rate"))
        return {"sampling_rate": own, "source_rate": given or own}

    def _multimodal_inputs_from_conversations(
        self, conversations: list[list[dict]], audio_loading_params: dict, load_audio_from_video: bool = False
    ) -> tuple[list, list, list, dict]:
        """The media of cleaned conversations; `load_audio_from_video` is ignored: a video gives frames only."""
        media = [media_of(messages) for messages in conversations]
        rows = {kind.inputs: [row[kind.type] for row in media] for kind in MEDIA_KINDS.values()}
        sounds = [source for row in rows.pop(AUDIO.inputs) for source in row]
        sounds = [self.load(AUDIO, source, source_rate=audio_loading_params["source_rate"]) for source in sounds]
        images, videos = rows.pop(IMAGE.inputs), rows.pop(VIDEO.inputs)
        return images, videos, sounds, {name: found for name, found in rows.items() if any(found)}
