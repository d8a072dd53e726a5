# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What is said, as the page shows it; and the texts of the page."""

from types import SimpleNamespace

import pytest

from xllm import X2LConfig
from xllm.page.chat_page import ChatPage
from xllm.page.talk import Talk, Turn, Upload, literal, without_html
from xllm.page.texts import all_texts, language_of
from xllm.processing.media_kinds import AUDIO, SOUND
from xllm.training.evaluation.looking import NOTES


def test_languages_say_the_same_things():
    english, *others = all_texts().values()
    assert len(others) == 1
    for texts in others:
        assert [*texts] == [*english]
        for name in english:
            assert sorted(_holes(texts[name])) == sorted(_holes(english[name])), name


@pytest.mark.parametrize("name", NOTES)
def test_what_a_look_lacks_is_said_in_each_language(name):
    for texts in all_texts().values():
        assert sorted(_holes(texts[f"note {name}"])) == sorted(_holes(NOTES[name]))


def _holes(text: str) -> list[str]:
    return [piece.partition("}")[0].partition(":")[0] for piece in text.split("{")[1:]]


@pytest.mark.parametrize(
    ("accepted", "language"), [("zh-TW", "zh"), ("de, zh;q=0.5, en;q=0.4", "zh"), ("*;q=x, en", "en"), ("fr", "en")]
)
def test_language_of_a_browser(accepted, language):
    assert language_of(accepted) == language


def test_markdown_of_texts():
    assert literal("a*b* <i>\n  c_d") == "a\\*b\\* \\<i\\>\n\u00a0\u00a0c\\_d"
    assert without_html("**a** <b> `<c>` <d>") == "**a** \\<b> `<c>` \\<d>"
    assert without_html("```\n<a>\n``` <b>\n```\n<c>") == "```\n<a>\n``` \\<b>\n```\n<c>"


def test_messages_of_a_talk():
    talk = Talk([Turn("one", [], "1"), Turn("", [Upload("image", "/x/a.png", "a.png")])])
    assert talk.messages() == [
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": [{"type": "image", "path": "/x/a.png"}]},
    ]
    assert [talk.turns.index(talk.turn_of(place)) for place in range(3)] == [0, 0, 1]
    assert talk.turn_of(3) is None


def test_a_recording_is_speech_where_nothing_else_is_said():
    rows = {kind.type: X2LConfig(**kind.row, part=kind.type) for kind in (SOUND, AUDIO)}
    page = ChatPage(SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(modalities=rows))), None, "en")
    assert page.heard == [AUDIO, SOUND]
