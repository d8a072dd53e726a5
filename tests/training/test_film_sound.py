# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The sound of a film in the prompt of its pictures: `track` of a content part, in Python, data and chat."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from media_files import grey_frames, sine, write_video

import xllm
from xllm.assembly.tiny import build_tiny
from xllm.cli import main
from xllm.processing.audio_decoding import load_audio
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset
from xllm.training.recipes.recipe import SourceSpec


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Two seconds of picture and sound."""
    path = tmp_path_factory.mktemp("films") / "film.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.height, pictures.width, pictures.pix_fmt = 32, 48, "yuv420p"
        sounds = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for pixels in grey_frames(20):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        samples = np.rint(32767 * sine(2))[None].astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux([*sounds.encode(frame), *sounds.encode(None), *pictures.encode(None)])
    return str(path)


def asked(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


def test_a_film_is_seen_and_heard_by_one_part(tiny, film):
    model, processor = tiny
    together = processor.encode_conversations([asked({"type": "video", "path": film, "track": "speech"})])
    apart = processor.encode_conversations([asked({"type": "video", "path": film}, {"type": "audio", "path": film})])
    sound = {"type": "audio", "audio": load_audio(film)}
    alone = processor.encode_conversations([asked({"type": "video", "path": film}, sound)])
    assert {"pixel_values_videos", "input_features"} < set(together)
    for other in (apart, alone):
        assert all(torch.equal(together[name], other[name]) for name in other)
    seen = processor.encode_conversations([asked({"type": "video", "path": film})])
    assert "input_features" not in seen
    with torch.no_grad():
        answers = [model.generate(**one, max_new_tokens=4, do_sample=False)[0] for one in (together, apart)]
    assert torch.equal(*answers)


def test_a_film_is_heard_as_speech_and_as_sound(film, tmp_path):
    folder = build_tiny(tmp_path / "model", kinds=("sound",))
    processor = xllm.XLLMProcessor.from_pretrained(folder)
    part = {"type": "video_url", "video_url": {"url": film}, "track": ["speech", "sound"]}
    batch = processor.encode_conversations([asked(part)])
    assert {"pixel_values_videos", "input_features", "sound_features"} < set(batch)
    with pytest.raises(ValueError, match="no kind of media is called 'smell'"):
        processor.encode_conversations([asked({"type": "video", "path": film, "track": "smell"})])


def test_rows_of_data_hear_their_films(tiny_processor, film, tmp_path):
    answer = {"role": "assistant", "content": "a"}
    part = {"type": "video", "path": film, "track": "speech"}
    rows = [
        {"messages": [*asked(part), answer]},
        {"messages": [*asked({"type": "video", "track": "speech"}), answer], "videos": [film]},
    ]
    data = ChatDataset.from_specs([SourceSpec(dataset=rows)], tiny_processor)
    batch = XLLMDataCollator(tiny_processor)([data[0], data[1]])
    assert (len(batch["pixel_values_videos"]), len(batch["input_features"])) == (2, 2)
    assert torch.equal(batch["input_features"][0], batch["input_features"][1])
    assert data.samples[0].unread == frozenset()


def test_a_silent_film_is_an_error_that_says_so(tiny_checkpoint, tiny_processor, tmp_path, caplog, capsys):
    silent = str(write_video(tmp_path / "silent.mp4", grey_frames(10)))
    part = {"type": "video", "path": silent, "track": "speech"}
    with pytest.raises(xllm.MediaError, match=r"silent\.mp4: no sound in it \(streams: video\)"):
        tiny_processor.encode_conversations([asked(part)])
    rows = [
        {"messages": [*asked(one), {"role": "assistant", "content": "a"}]} for one in (part, {**part, "track": None})
    ]
    data = ChatDataset.from_specs([SourceSpec(dataset=rows)], tiny_processor, on_error="skip")
    assert [len(data[index]["messages"][0]["content"]) for index in range(2)] == [2, 2]
    assert data.skipped() == ["dataset[0]"]
    chat = ["chat", str(tiny_checkpoint), "--video", silent, "What?", "--max-new-tokens", "2"]
    assert main(chat) == 0
    capsys.readouterr()
    assert main([*chat, "--track", "speech"]) == 1
    assert "silent.mp4: no sound in it" in capsys.readouterr().err


def test_chat_hears_the_films_that_it_sees(tiny_checkpoint, film, media, capsys, monkeypatch):
    chat = ["chat", str(tiny_checkpoint), "--json", "--max-new-tokens", "8"]

    def answer(*arguments):
        assert main([*chat, *arguments]) == 0
        return json.loads(capsys.readouterr().out)["answer"]

    heard = answer("--image", str(media / "red.png"), "--video", film, "--track", "speech", "What?")
    assert heard == answer("--image", str(media / "red.png"), "--video", film, "--speech", film, "What?")
    lines = iter([f"/video {film}\n", "What?\n", "/quit\n"])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    assert answer("--track", "speech") == answer("--video", film, "--speech", film, "What?")
    with pytest.raises(SystemExit):
        main([*chat, "--video", film, "--track", "smell", "What?"])
    assert "argument --smell: this model takes --image, --speech, --video" in capsys.readouterr().err
