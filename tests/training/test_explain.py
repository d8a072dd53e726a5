# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm explain`: what it shows is what the collator gives, and its page is safe and whole."""

import base64
import io
import json
import re
import wave
from dataclasses import replace
from html.parser import HTMLParser

import av
import numpy as np
import pytest
import tiny
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image

from xllm.cli import main
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.plan import plan_data
from xllm.training.inspection.explain import Span, explain, terminal_lines, visible
from xllm.training.inspection.explain_page import page
from xllm.training.recipes.recipe import SourceSpec


HOSTILE = '</pre><script>alert("1")</script>\u202eevil\x07\x1b[31m & <img src=http://evil/x.png>'


@pytest.fixture
def data(tmp_path):
    """Two samples: two pictures, a film and a recording in two turns; and a plain table row's text."""
    for name, level in (("dark", 20), ("light", 220)):
        Image.new("RGB", (64, 48), (level, 10, 10)).save(tmp_path / f"{name}.png")
    write_video(tmp_path / "clip.mp4", grey_frames(20))
    write_wav(tmp_path / "tone.wav", [sine(1.5, rate=8000)], rate=8000)
    turns = ["<image>What is this?", "3", "<video><audio><image>What do you see and hear?", f"5 {HOSTILE}"]
    roles = ("user", "assistant") * 2
    row = {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns)]}
    row |= {"images": ["dark.png", "light.png"], "videos": ["clip.mp4"], "audios": ["tone.wav"]}
    other = {"messages": [{"role": "user", "content": "1 2"}, {"role": "assistant", "content": "3"}]}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    return str(path)


@pytest.fixture
def plan(data, tiny_checkpoint):
    return plan_data([data], model=str(tiny_checkpoint))


def test_it_shows_the_batch_of_training(plan, data, tiny_processor):
    found = explain(plan, 0)
    item = ChatDataset.from_specs([SourceSpec(path=data)], tiny_processor)[0]
    batch = XLLMDataCollator(tiny_processor)([item])
    (row,) = found.rows
    assert [token.id for token in row.tokens] == batch["input_ids"][0].tolist()
    assert [token.learnt for token in row.tokens] == (batch["labels"][0] != -100).tolist()
    # ChatGLM: up to [gMASK] both directions and no second position, which then counts the answer
    answer = next(token for token in row.tokens if token.learnt)
    assert answer.piece == "<sop>"
    assert [token.in_prefix for token in row.tokens] == [token.place < answer.place for token in row.tokens]
    assert (answer.positions, row.tokens[-1].positions) == (
        (answer.place - 1, 1),
        (answer.place - 1, len(row.tokens) - answer.place),
    )
    assert [(span.row, span.medium.number, span.length) for span in row.spans] == [
        ("image", 1, 4), ("video", 3, 20), ("speech", 4, 19), ("image", 2, 4),
    ]  # fmt: skip
    assert [medium.size for medium in found.media] == [
        "64 x 48", "64 x 48", "5 of 20 frames, 48 x 32, 2.00 s", "1.50 s at 16000 Hz",
    ]  # fmt: skip
    assert found.media[2].inputs == "pixel_values_videos (5, 3, 32, 32)"
    # pixels that the model gets, made visible again
    assert np.abs(found.media[1].pictures[0].astype(int) - (220, 10, 10)).max() <= 1
    assert row.prompt.count("[image 1: 4]") == row.prompt.count("[speech") + 1 == 1
    assert "[audio 4: 19]" in row.prompt
    assert row.answer.startswith("<sop>5 </pre>")


def test_every_answer_a_row_where_all_carry_loss(data, tiny_checkpoint):
    found = explain(plan_data([data, "data.loss_on=all"], model=str(tiny_checkpoint)), 0)
    assert [[(span.row, span.medium.number) for span in row.spans] for row in found.rows] == [
        [("image", 1)],
        [("image", 1), ("video", 3), ("speech", 4), ("image", 2)],
    ]
    assert "2 rows of the batch" in found.notes[0]


def test_older_turns_that_are_left_out_are_said(data, tiny_checkpoint, tmp_path):
    turns = [("user", "1 1 1 1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps(row))
    found = explain(plan_data([str(path), "data.max_length=20"], model=str(tiny_checkpoint)), 0)
    assert len(found.rows[0].tokens) <= 20
    assert re.fullmatch(r"older turns are left out to keep max_length: \d+ tokens", found.notes[0])


def test_a_causal_language_model_has_one_position_and_no_prefix(plan):
    found = explain(replace(plan, config=tiny.tiny_config("llama")), 1)
    (row,) = found.rows
    assert [token.positions for token in row.tokens] == [(place,) for place in range(len(row.tokens))]
    assert not any(token.in_prefix for token in row.tokens)


def test_stage_1_says_what_its_task_sees(data, tmp_path, tiny_checkpoint, tiny_processor):
    (tmp_path / "speech.csv").write_text("file,text\ntone.wav,1 2\n")
    (tmp_path / "images.csv").write_text("file,text\ndark.png,a dark one\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_checkpoint}\noutput_dir: out\nstages:\n"
        f"- {{stage: 1, modalities: [speech], data: {{train: {tmp_path / 'speech.csv'}}}}}\n"
        f"- {{stage: 1, modalities: [image], data: {{train: {tmp_path / 'images.csv'}}}}}\n"
    )
    plan = plan_data([str(recipe)])
    heard, seen = (explain(plan, 0, stage=f"stage1-{name}") for name in ("speech", "image"))
    assert (heard.task, heard.rows[0].answer, heard.rows[0].prompt) == ("transcribe", "1 2", "")
    assert all(token.learnt for token in heard.rows[0].tokens)
    assert heard.media[0].inputs == "input_features (148, 80)"
    assert (seen.task, seen.rows[0].answer) == ("contrast", "a dark one")
    assert [token.learnt for token in seen.rows[0].tokens][:1] == [False]  # opens the text
    assert "no prompt is read" in "\n".join(terminal_lines(seen, colours=False))


def test_terminal(data, tiny_checkpoint, capsys):
    assert main(["explain", data, "0", "--model", str(tiny_checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "4 x <ImageHere> = image 1, row image" in out
    assert "[<sop>]" in out  # no colours: brackets
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\u{202e}evil\\u{7}\\u{1b}[31m" in out


def test_colours_where_the_terminal_has_them(plan):
    lines = list(terminal_lines(explain(plan, 1), colours=True))
    assert any("\033[1;32m<sop>\033[0m" in line for line in lines)


class Reader(HTMLParser):
    """Tags, attributes and texts of a page; its tags must close as they open."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_whole_and_asks_nothing_of_anybody(data, tiny_checkpoint, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["explain", data, "0", "--model", str(tiny_checkpoint), "--html", str(file)]) == 0
    assert f"wrote {file}" in capsys.readouterr().err
    text = file.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert not {"script", "iframe", "link", "object", "form"} & set(reader.tags)
    assert all(link.startswith(("data:", "#m")) for link in reader.links)
    assert "http" not in text.replace(HOSTILE, "").replace("http-equiv", "").replace("http://evil", "")
    assert "default-src &#x27;none&#x27;" in text
    for sign in ("\u202e", "\x07", "\x1b"):
        assert sign not in text
    assert '</pre><script>alert("1")</script>' in "".join(reader.texts)  # as words
    assert reader.tags.count("audio") == reader.tags.count("video") == 1
    assert reader.tags.count("img") == 2 + 5
    content = {link.split(";")[0]: base64.b64decode(link.split(",")[1]) for link in reader.links if "," in link}
    with wave.open(io.BytesIO(content["data:audio/wav"])) as sound:
        assert (sound.getframerate(), sound.getnframes(), sound.getnchannels()) == (16_000, 24_000, 1)
    with av.open(io.BytesIO(content["data:video/webm"])) as film:
        assert sum(1 for _ in film.decode(video=0)) == 5
    assert Image.open(io.BytesIO(content["data:image/png"])).size == (32, 32)


def test_a_page_without_media(plan):
    reader = Reader()
    reader.feed(page(explain(plan, 1)))
    assert reader.open == []
    assert "figure" not in reader.tags


def test_spans_and_tokens_make_the_whole(plan):
    (row,) = explain(plan, 0).rows
    pieces = list(row.pieces())
    assert sum(piece.length if isinstance(piece, Span) else 1 for piece in pieces) == len(row.tokens)


def test_visible():
    assert visible("a\tb\u200d\ud800\n\x00") == "a\\u{9}b\\u{200d}\\u{d800}\n\\u{0}"
    assert visible("你好 שלום") == "你好 שלום"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA", "2", "--model", "MODEL"], "there is no sample 2: DATA holds 2, counted from 0"),
        (["DATA", "0"], "give --model: which tokens a sample becomes"),
        (["DATA", "0", "--model", "MODEL", "--stage", "9"], "--stage: no stage is called '9'; the stages are stage2"),
    ],
)
def test_one_line_for_what_is_wrong(data, tiny_checkpoint, capsys, arguments, message):
    names = {"DATA": data, "MODEL": str(tiny_checkpoint)}
    assert main(["explain", *(names.get(argument, argument) for argument in arguments)]) == 1
    err = capsys.readouterr().err
    assert message.replace("DATA", data) in err
    assert len(err.splitlines()) == 1


def test_without_a_number_the_usage_is_wrong(data, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["explain", data])
    assert "give the number of one sample" in capsys.readouterr().err
