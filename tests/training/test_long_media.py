# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Recordings of any length: where they are cut, what is silent, and that each window is heard as if it were alone."""

import copy
import json
import subprocess
import sys
import tracemalloc
import wave

import numpy as np
import pytest
from media_files import sine, write_sound, write_wav

import xllm
from xllm.cli import main
from xllm.processing.audio_decoding import Waveform, load_audio
from xllm.processing.media_sources import logger
from xllm.training.data.sound_windows import Windowing, plan_windows, powers, sound_windows
from xllm.training.evaluation.answers import answer_rows
from xllm.training.evaluation.transcription import Segment
from xllm.training.stage_one import build_stage_one


RATE = 16_000
PROMPT = "请忠实地识别该语音"


def quiet(seconds: float) -> np.ndarray:
    """Noise 60 dB below `sine`."""
    return (3.5e-4 * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


def plan(samples: np.ndarray, **how) -> list[tuple]:
    """The windows of a sound in hundredths of a second, with their marks."""
    windows = plan_windows(*powers([samples], RATE), RATE, Windowing(**how))
    assert windows[0].start == 0
    assert windows[-1].stop == len(samples)
    assert all(one.stop == two.start for one, two in zip(windows, windows[1:]))
    return [(*(round(100 * moment) for moment in one.seconds), one.silent, one.divides) for one in windows]


def test_long_pauses_are_windows_of_their_own():
    sound = np.concatenate([quiet(3), sine(5), quiet(10), sine(4), quiet(1)])
    expected = [(0, 280), (280, 820), (820, 1780), (1780, 2300)]  # margins of 0.2 s; the last second is too short
    assert plan(sound) == [(*span, place % 2 == 0, False) for place, span in enumerate(expected)]


def test_a_long_stretch_is_cut_where_it_is_quietest():
    sound = np.concatenate([part for _ in range(8) for part in (sine(7), quiet(0.3))])  # 58.4 s, a breath every 7.3 s
    cuts = plan(sound)
    assert len(cuts) == 4
    for _, end, silent, divides in cuts[:-1]:
        assert not silent
        assert not divides
        assert 700 < end % 730 < 730
    # Half as loud from 16 to 16.5 s, and never silent: that is where a word may be divided, and it is said.
    sound = sine(30)
    sound[16 * RATE : 16 * RATE + RATE // 2] /= 2
    (first, second) = plan(sound)
    assert 1600 < first[1] < 1650
    assert (first[3], second[3]) == (True, False)
    # Nothing tells one place from another: windows between a third of the limit and all of it.
    assert all(end - start <= 2000 for start, end, _, _ in plan(sine(70.1)))
    assert all(end - start >= 666 for start, end, _, _ in plan(sine(20.1)))


def test_silence_is_relative_to_the_recording_and_digital_silence_is_silence():
    everything = [(0, 500, True, False)]
    assert plan(np.zeros(5 * RATE, np.float32)) == everything
    assert plan(np.full(5 * RATE, 0.3, np.float32)) == everything  # an offset is no sound
    assert plan(2e-4 * np.float32(1) * sine(5)) == everything  # below -70 dB of full scale
    soft = 0.02 * sine(5)  # alone it is all there is; 34 dB below a shout it is heard, 46 dB below it is not
    assert plan(soft) == [(0, 500, False, False)]
    assert [one[2] for one in plan(np.concatenate([sine(5), quiet(5), soft]))] == [False, True, False]
    assert [one[2] for one in plan(np.concatenate([sine(5), quiet(5), soft / 4]))] == [False, True]
    with pytest.raises(ValueError, match="pause=0.3: expected seconds, more than two margins"):
        Windowing(pause=0.3)


@pytest.mark.parametrize(("name", "rate"), [("a.wav", 16_000), ("a.flac", 44_100)])
def test_windows_hold_what_the_whole_holds(tmp_path, name, rate):
    sound = np.concatenate([sine(3, rate), np.zeros(4 * rate, np.float32), sine(5, rate, 300.0)])
    path = write_sound(tmp_path / name, sound, "pcm_s16le" if name.endswith("wav") else "flac", rate)
    whole = load_audio(path)
    for source in (str(path), whole, Waveform(whole, RATE), path.read_bytes()):
        found = list(sound_windows(source, RATE, Windowing(seconds=2)))
        assert [window.silent for window, _ in found].count(True) == 1
        for window, samples in found:
            expected = whole[:0] if window.silent else whole[window.start : window.stop]
            np.testing.assert_array_equal(samples, expected)
        assert found[-1][0].stop == len(whole)


def test_a_file_is_never_held_as_a_whole(tmp_path):
    path = write_wav(tmp_path / "long.wav", [np.tile(np.concatenate([sine(9), quiet(1)]), 10)])  # 100 s: 6.4 MB
    list(sound_windows(path, RATE, Windowing()))
    tracemalloc.start()
    seconds = sum(len(samples) for _, samples in sound_windows(path, RATE, Windowing())) / RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == 100
    assert peak < 5e6  # a window is 1.3 MB, and twice there while it is put together


def test_damage_in_the_middle_is_an_error_before_anything_is_heard(tmp_path):
    path = write_sound(tmp_path / "a.flac", sine(30), "flac")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(xllm.MediaError, match=r"a\.flac: damaged"):
        next(sound_windows(path, RATE, Windowing()))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """13 s: two words, a pause, one word."""
    sound = np.concatenate([sine(2), quiet(0.4), sine(2, frequency=900), quiet(6), sine(2.6, frequency=300)])
    return write_wav(tmp_path_factory.mktemp("sounds") / "talk.wav", [sound])


def test_each_window_is_answered_as_if_it_were_alone(tiny, recording):
    model, processor = tiny
    found = list(xllm.transcribe(model, processor, str(recording), window=3, max_new_tokens=3))
    assert [segment.silent for segment in found] == [False, False, True, False]
    assert [segment.end for segment in found[:-1]] == [segment.start for segment in found[1:]]
    assert (found[0].start, found[-1].end) == (0, 13)
    assert 2 < found[0].end < 2.4
    whole = load_audio(recording)
    for segment in found:
        if segment.silent:
            assert segment.text == ""
            continue
        wave = Waveform(whole[round(segment.start * RATE) : round(segment.end * RATE)], RATE)
        asked = [{"role": "user", "content": [{"type": "audio", "audio": wave}, {"type": "text", "text": PROMPT}]}]
        assert [segment.text] == answer_rows(model, processor, [asked], 3)
        assert segment.is_cut  # random weights do not stop


def test_silence_is_not_asked_about(tiny, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(type(model), "generate", lambda *args, **kwargs: pytest.fail("silence was asked about"))
    found = list(xllm.transcribe(model, processor, np.zeros(20 * RATE, np.float32)))
    assert found == [Segment(0.0, 20.0, silent=True)]
    assert str(found[0]) == "[0:00:00.0 - 0:00:20.0] (silence)"
    assert xllm.join_segments(found) == ""


def test_an_answer_that_ends_is_not_cut(tiny, recording, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda ids, **_: [str(row.tolist()) for row in ids])
    stops = model.generation_config.eos_token_id
    stop = stops[0] if isinstance(stops, list) else stops
    model.register_forward_hook(lambda module, args, output: [output.logits[..., stop].fill_(1e9), None][1])
    (segment, *_) = xllm.transcribe(model, processor, str(recording), max_new_tokens=1)
    assert segment.text == f"[{stop}]"
    assert not segment.is_cut


def test_the_recogniser_tells_when_each_token_was_said_in_the_whole(tiny, recording):
    processor, recogniser = tiny[1], build_stage_one(*tiny, "speech").eval()
    found = list(xllm.transcribe(recogniser, processor, str(recording), window=3, decode="cif"))
    whole, stamps = load_audio(recording), []
    for segment in found:
        if segment.silent:
            assert segment.tokens is None
            continue
        wave = Waveform(whole[round(segment.start * RATE) : round(segment.end * RATE)], RATE)
        inputs = processor(audio=[wave], return_tensors="pt")
        ids, frames = recogniser.transcribe(**inputs, return_fire_frames=True)
        texts, (alone,) = processor.batch_decode(ids, fire_frames=frames, skip_special_tokens=True)
        assert segment.text == texts[0].strip()
        assert [one["token"] for one in segment.tokens] == [one["token"] for one in alone]
        for ours, theirs in zip(segment.tokens, alone):
            assert ours["start"] == pytest.approx(segment.start + theirs["start"], abs=0.02)
            assert ours["end"] == pytest.approx(segment.start + theirs["end"], abs=0.02)
        stamps += segment.tokens
    assert stamps
    assert stamps[-1]["end"] > found[-1].start > 9


def test_texts_are_joined_as_their_script_is_written():
    texts = ["good", "", "morning", "你好", "世界，", "fine"]
    assert xllm.join_segments(Segment(0, 1, text) for text in texts) == "good morning你好世界，fine"


def test_evaluate_hears_long_rows_by_windows_and_short_ones_as_ever(
    tiny_checkpoint, media, recording, tmp_path, capsys
):
    rows = [{"audio": str(path), "text": "a"} for path in (media / "low.wav", recording, media / "high.wav")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for window in ([], ["--window", "3"], ["--window", "60"]):
        out = tmp_path / "-".join(["out", *window])
        arguments = ["--data", str(tmp_path / "rows.jsonl"), "--output", str(out), "--max-new-tokens", "3", *window]
        assert main(["evaluate", str(tiny_checkpoint), "--task", "asr", "--file-column", "audio", *arguments]) == 0
        lines = (out / "samples_asr.jsonl").read_text().splitlines()
        found[window[-1] if window else None] = [json.loads(line) for line in lines]
    whole, cut, long = (found[key] for key in (None, "3", "60"))
    assert [row["where"] for row in whole] == [row["where"] for row in cut]
    assert (whole[0], whole[2]) == (cut[0], cut[2])
    assert "segments" not in whole[1]
    segments = cut[1]["segments"]
    assert [segment["silent"] for segment in segments] == [False, False, True, False]
    assert cut[1]["answer"] == xllm.join_segments(Segment(**segment) for segment in segments)
    assert len(long[1]["segments"]) == 3  # the pause is left out all the same
    capsys.readouterr()


def test_a_sound_too_long_to_be_heard_as_a_whole_is_one_line(tiny, tiny_checkpoint, tmp_path, capsys):
    encoder = tiny[0].config.audio_config
    most = encoder.max_position_embeddings * encoder.subsampling_factor // 100  # frames of 10 ms
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * (most + 1) * RATE)
    (tmp_path / "rows.csv").write_text("file,text\nlong.wav,a\n")
    evaluate = ["evaluate", str(tiny_checkpoint), "--task", "asr", "--data", str(tmp_path / "rows.csv")]
    chat = ["chat", str(tiny_checkpoint), "--speech", str(tmp_path / "long.wav")]
    whole = f"the most that is heard as a whole is {most} s, for which its encoder has positions"
    limit = f"a sound of {most + 1}.0 s: {whole}"
    for arguments in (evaluate, [*chat, "Why?"]):
        assert main(arguments) == 1
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert limit in line
        assert "xllm.transcribe(model, processor, file), or --window 20 of xllm chat" in line
        assert "rows.csv:2" in line or arguments[0] == "chat"
        assert not said.out
    with pytest.raises(xllm.MediaError, match=limit):
        tiny[1](text="<SpeechHere> what", audio=[str(tmp_path / "long.wav")])
    assert main([*chat, "--window", "20"]) == 0
    said = capsys.readouterr()
    assert said.out == f"[0:00:00.0 - 0:{(most + 1) // 60:02d}:{(most + 1) % 60:04.1f}] (silence)\n"
    assert said.err.startswith("1 windows: 1 of silence")


def test_an_encoder_without_a_limit_hears_five_minutes(tiny):
    processor = copy.deepcopy(tiny[1])
    (row,) = (row for row in processor.rows.values() if row.part == "audio")
    row.most_positions = None  # as in a processor_config.json of before
    with pytest.raises(
        xllm.MediaError, match=r"^a sound of 301\.0 s: the most that is heard as a whole is 300 s; hear it"
    ):
        processor(text="<SpeechHere>", audio=[np.zeros(301 * RATE, np.float32)])
    processor.check_length("audio", Waveform(np.zeros(300 * RATE, np.float32), RATE))


def test_silence_that_is_asked_about_as_a_whole_is_said_to_be_silence(tiny, tiny_checkpoint, tmp_path, caplog, capsys):
    """With a window nothing is asked; without one it is for the model to answer, and the line names the file."""
    path = write_wav(tmp_path / "nothing.wav", [np.zeros(2 * RATE)])
    (tmp_path / "rows.csv").write_text("file,text\nnothing.wav,a\n")
    line = f"{path}: silence: nothing in it is louder than -70 dB of full scale"
    short = ["--max-new-tokens", "2"]
    evaluate = ["evaluate", str(tiny_checkpoint), "--task", "asr", "--data", str(tmp_path / "rows.csv"), *short]
    for arguments in (["chat", str(tiny_checkpoint), "--speech", str(path), "What?", *short], evaluate):
        logger.warning_once.cache_clear()
        caplog.clear()
        assert main(arguments) == 0
        assert [record.getMessage() for record in caplog.records].count(line) == 1
        assert main([*arguments, "--window", "5"]) == 0
    said = capsys.readouterr().out
    assert "[0:00:00.0 - 0:00:02.0] (silence)" in said
    assert list(xllm.transcribe(*tiny, str(path)))[0].silent


def test_chat_asks_about_each_window(tiny_checkpoint, recording, media, capsys):
    chat = ["chat", str(tiny_checkpoint), "--speech", str(recording), "--window", "3", "--max-new-tokens", "2"]
    assert main([*chat, "--json"]) == 0
    transcript = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*chat, PROMPT]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(Segment(**segment)) for segment in transcript]
    assert [segment["silent"] for segment in transcript] == [False, False, True, False]
    assert said.err == (
        "4 windows: 1 of silence, 0 that end in the midst of sound, 3 whose answer was cut after 2 tokens\n"
    )
    for arguments in (["--window", "3"], [*chat[2:], "--image", str(media / "red.png")]):
        with pytest.raises(SystemExit):
            main(["chat", str(tiny_checkpoint), "What?", *arguments])
        assert "argument --window: it takes one recording" in capsys.readouterr().err
    assert main(["chat", str(tiny_checkpoint), "--image", str(media / "red.png"), "--window", "3"]) == 1
    assert "only sounds are cut into windows" in capsys.readouterr().err
    assert main([*chat[:4], "--window", "0.5"]) == 1
    assert "expected a window of at least 1 s" in capsys.readouterr().err


HOUR = """
import json, resource, sys
from pathlib import Path
import torch
from xllm.assembly.opening import load_checkpoint
from xllm.cli import main

def peak():  # MiB
    if sys.platform == "linux":  # getrusage counts what the parent held before it began this process
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

torch.set_num_threads(1)
folder, data, sound = sys.argv[1:]
load_checkpoint(folder)
peaks = [peak()]
status = main(["chat", folder, "--speech", sound, "--window", "20", "--max-new-tokens", "1", "--json"])
peaks.append(peak())
status |= main(["evaluate", folder, "--task", "asr", "--data", data, "--window", "20", "--max-new-tokens", "1"])
print(json.dumps({"status": status, "peaks": [*peaks, peak()]}), file=sys.stderr)
"""


@pytest.mark.slow
def test_an_hour_is_heard_in_a_few_hundred_megabytes(tiny_checkpoint, tmp_path):
    minute = np.concatenate([part for _ in range(6) for part in (sine(7, frequency=300), quiet(3))])
    pcm = np.rint(32767 * minute).astype("<i2").tobytes()
    with wave.open(str(tmp_path / "hour.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        for _ in range(60):
            file.writeframes(pcm)
    (tmp_path / "hour.csv").write_text("file,text\nhour.wav,a\n")
    paths = [str(path) for path in (tiny_checkpoint, tmp_path / "hour.csv", tmp_path / "hour.wav")]
    done = subprocess.run([sys.executable, "-c", HOUR, *paths], capture_output=True, text=True, check=True)
    told = json.loads(done.stderr.splitlines()[-1])
    segments = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert told["status"] == 0
    assert (segments[0]["start"], segments[-1]["end"]) == (0, 3600)
    assert sum(segment["silent"] for segment in segments) == 360
    base, *peaks = told["peaks"]
    assert max(peaks) < 2048
    assert max(peaks) - base < 300  # the recording as a whole is 220 MiB, and was held three times over
