# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm chat --stream` and `--microphone`, and where their sound comes from."""

import io
import json
import os
import signal
import sys
import threading
import time
import types
import wave

import numpy as np
import pytest
from live_talk import RATE, in_chunks, quiet
from media_files import sine, write_wav

from xllm.cli import main
from xllm.training.data import live_sound
from xllm.training.evaluation.streaming import StreamTranscriber


SHORT = np.concatenate([sine(1), quiet(1.5), sine(1)])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return str(write_wav(tmp_path_factory.mktemp("sounds") / "talk.wav", [SHORT]))


def test_chat_prints_what_is_said_as_it_is_spoken(tiny_checkpoint, recording, capsys, monkeypatch):
    chat = ["chat", str(tiny_checkpoint), "--stream", recording, "--chunk", "0.5", "--max-new-tokens", "2"]
    assert main([*chat, "--json"]) == 0
    said = capsys.readouterr()
    segments = [json.loads(line) for line in said.out.splitlines()]
    assert [one["silent"] for one in segments if one["is_final"]] == [False, True, False]
    assert segments[-1]["end"] == 3.5
    assert sum(one["new"] for one in segments) == sum(len(one["delays"]) for one in segments) > 3
    assert said.err.startswith("3.5 s of sound; ")
    assert "tokens, fired" in said.err
    assert main(chat) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(segments)
    assert [line.endswith(" ...") for line in lines] == [not one["is_final"] for one in segments]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(chat) == 0
    shown = capsys.readouterr().out
    assert shown.count("\r\x1b[K") == len(segments)
    assert len(shown.splitlines()) == 3 + len(segments)  # each \r counts as one
    assert max(map(len, shown.replace("\x1b[K", "").split("\r"))) <= 60


def test_chat_reads_a_pipe_of_wav_or_samples(tiny_checkpoint, recording, capsys, monkeypatch):
    chat = ["chat", str(tiny_checkpoint), "--stream", "-", "--max-new-tokens", "2", "--chunk", "2"]
    pcm = np.rint(32767 * SHORT).astype("<i2").tobytes()
    file = open(recording, "rb").read()  # noqa: SIM115
    stereo = io.BytesIO()
    with wave.open(stereo, "wb") as out:
        out.setparams((2, 2, RATE, 0, "NONE", ""))
        out.writeframes(np.repeat(np.frombuffer(pcm, "<i2"), 2).tobytes())
    endless = file[:40] + b"\xff\xff\xff\xff" + file[44:]  # as a recorder writes a pipe
    texts = []
    for data in (pcm, file, stereo.getvalue(), endless):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
        assert main(chat) == 0
        texts.append([line for line in capsys.readouterr().out.splitlines() if not line.endswith("...")])
    assert len(texts[0]) == 3
    assert all(text == texts[0] for text in texts)
    for data, message in (
        (b"", "the stream: holds no sound"),
        (pcm[:1001], "standard input: ends in the midst of a sample"),
        (file[:30], "standard input: no WAV file of integers"),
    ):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
        assert main(chat) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def fake_sounddevice(monkeypatch, blocks, **fields):
    """A microphone that gives blocks from a thread of its own, then Ctrl-C."""
    given = {}

    class Device:
        def __init__(self, callback, **how):
            given.update(how)
            self.thread = threading.Thread(target=self.run, args=(callback,), daemon=True)

        def run(self, callback):
            for block, status in blocks:
                callback(block[:, None], len(block), None, status)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

        def __enter__(self):
            self.thread.start()

        def __exit__(self, *_):
            self.thread.join()

    module = types.ModuleType("sounddevice")
    module.PortAudioError, module.InputStream = type("PortAudioError", (Exception,), {}), Device
    for name, value in fields.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return given


def test_chat_hears_a_microphone_until_it_is_interrupted(tiny_checkpoint, capsys, monkeypatch):
    blocks = [
        (chunk, "input overflow" if number == 1 else "") for number, chunk in enumerate(in_chunks(sine(3), 8000))
    ]
    given = fake_sounddevice(monkeypatch, blocks)
    before, chat = signal.getsignal(signal.SIGINT), ["chat", str(tiny_checkpoint), "--microphone", "--max-new-tokens"]
    assert main([*chat, "2", "--chunk", "0.5"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert given == {"samplerate": 16_000, "channels": 1, "dtype": "float32", "blocksize": 8000}
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("[0:00:00.0 - 0:00:03.0] ")
    assert "3.0 s of sound" in said.err
    # What is missing is said in one line.
    error = type("PortAudioError", (Exception,), {})

    def none(**_):
        raise error("Error querying device -1")

    fake_sounddevice(monkeypatch, [], InputStream=none, PortAudioError=error)
    assert main([*chat, "2"]) == 1
    expected = "xllm chat: no microphone that gives 16000 Hz: Error querying device -1\n"
    assert capsys.readouterr().err.endswith(expected)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main([*chat, "2"]) == 1
    assert 'pip install "xllm-transformers[microphone]"' in capsys.readouterr().err


def test_a_microphone_that_falls_silent_or_is_not_listened_to_ends(monkeypatch):
    monkeypatch.setattr(live_sound, "NO_SOUND", 0.05)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    fake_sounddevice(monkeypatch, [(sine(0.1), "")])
    heard = live_sound.microphone(RATE, 0.1)
    assert len(next(heard)) == 1600
    with pytest.raises(OSError, match="has given nothing for 0.15 s"):
        next(heard)
    fake_sounddevice(monkeypatch, [(sine(1), "")] * 100)
    heard = live_sound.microphone(RATE, 1.0)

    def listen():
        for _ in heard:
            threading.Event().wait(0.3)

    with pytest.raises(ValueError, match="s of sound wait to be heard: this model is too slow here"):
        listen()


def test_ctrl_c_waits_for_what_is_being_heard(tiny_checkpoint, recording, capsys, monkeypatch):
    feed, fed = StreamTranscriber.feed, []

    def interrupted(self, chunk):
        fed.append(len(chunk))
        if len(fed) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return feed(self, chunk)

    monkeypatch.setattr(StreamTranscriber, "feed", interrupted)
    chat = ["chat", str(tiny_checkpoint), "--stream", recording, "--chunk", "1", "--max-new-tokens", "2"]
    assert main(chat) == 0
    said = capsys.readouterr()
    assert fed == [RATE, RATE]
    assert said.out.splitlines()[-1] == "[0:00:01.2 - 0:00:02.0] (silence)"
    assert said.err.startswith("2.0 s of sound")


def test_a_stream_comes_as_it_is_spoken(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live_sound.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live_sound.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    moments, heard = [], []
    for chunk in live_sound.paced(in_chunks(sine(1), 4000), RATE):
        moments.append(round(now[0], 6))
        heard.append(len(chunk))
        now[0] += 0.4 if len(moments) == 2 else 0.01  # a slow one is made up for
    assert moments == [0.25, 0.5, 0.9, 1.0]
    assert heard == [4000] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stream", "a.wav", "--microphone"], "one of them"),
        (["--microphone", "--speech", "a.wav"], "without other media"),
        (["--stream", "a.wav", "--sample"], "--sample"),
        (["What?", "--realtime"], "they need --stream or --microphone"),
        (["What?", "--chunk", "1"], "they need --stream or --microphone"),
    ],
)
def test_wrong_usage(tiny_checkpoint, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["chat", str(tiny_checkpoint), *arguments])
    assert message in capsys.readouterr().err


def test_a_stream_that_cannot_be_read_is_one_line(tiny_checkpoint, media, capsys):
    chat = ["chat", str(tiny_checkpoint), "--stream"]
    for file, message in ((media / "none.wav", "none.wav"), (media / "broken.wav", "broken.wav: not an audio")):
        assert main([*chat, str(file)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert main([*chat, str(media / "low.wav"), "--chunk", "-1"]) == 1
    assert "a chunk above 0" in capsys.readouterr().err
