# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sound from every kind of source to 16 kHz mono, and one clear error for what is no sound."""

import base64
import pickle
import re
import struct

import av
import numpy as np
import pytest
import torch
from media_files import grey_frames, sine, write_sound, write_video, write_wav
from PIL import Image

from xllm.processing.audio_decoding import load_audio
from xllm.processing.media_sources import MediaError


def test_wav_comes_back_sample_for_sample(tmp_path):
    tone = sine()
    samples = load_audio(write_wav(tmp_path / "a.wav", [tone]))
    assert samples.dtype == np.float32
    assert samples.shape == tone.shape
    np.testing.assert_allclose(samples, tone, atol=1e-4)


def test_channels_are_averaged(tmp_path):
    left, right = np.full(100, 0.5), np.full(100, -0.25)
    np.testing.assert_allclose(load_audio(write_wav(tmp_path / "a.wav", [left, right])), 0.125, atol=1e-4)
    # Equal channels keep their loudness.
    np.testing.assert_allclose(load_audio(write_wav(tmp_path / "b.wav", [left, left])), 0.5, atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_other_rates_are_resampled_in_place(tmp_path, rate):
    samples = load_audio(write_wav(tmp_path / "a.wav", [sine(rate=rate)], rate))
    assert len(samples) == 8_000
    np.testing.assert_allclose(samples[200:-200], sine()[200:-200], atol=1e-3)  # same tone, not shifted by the filter


def test_a_few_samples_survive_resampling():
    assert load_audio(np.ones(9, np.float32), source_rate=8_000).shape == (18,)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.ogg", "libopus")]
)
def test_compressed_containers(tmp_path, name, codec):
    rate = 48_000 if codec == "libopus" else 16_000
    samples = load_audio(write_sound(tmp_path / name, sine(1.0, rate), codec, rate))
    assert abs(len(samples) - 16_000) < 1_600
    spectrum = np.abs(np.fft.rfft(samples[4_000:12_000]))
    assert abs(int(spectrum.argmax()) - 220) <= 1  # 440 Hz in bins of 2 Hz


def test_every_kind_of_source_gives_the_same_sound(tmp_path):
    path = write_wav(tmp_path / "a name.wav", [sine()])
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    expected = load_audio(path)
    sources = [
        str(path), path.as_uri(), data, bytearray(data), text, f"data:audio/wav;base64,{text}",
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)}, {"base64": text}, {"url": path.as_uri()},
        {"array": expected, "sampling_rate": 16_000},
        expected, torch.from_numpy(expected), expected.tolist(),
    ]  # fmt: skip
    for source in sources:
        np.testing.assert_array_equal(load_audio(source), expected)


def test_arrays_of_integers_and_of_another_rate():
    np.testing.assert_allclose(load_audio(np.array([0, 16384, -32768], np.int16)), [0, 0.5, -1])
    samples = load_audio({"array": sine(rate=8_000), "sampling_rate": 8_000})
    assert samples.shape == (8_000,)
    assert load_audio(np.zeros((2, 50))).shape == (50,)  # (channels, samples)
    assert load_audio(np.zeros((50, 2))).shape == (50,)  # (samples, channels)


def test_sound_of_a_film(tmp_path):
    with pytest.raises(MediaError, match=r"silent.mp4: no sound in it \(streams: video\)"):
        load_audio(write_video(tmp_path / "silent.mp4", grey_frames(3)))


BAD_FILES = {
    "missing.wav": (None, "no such file"),
    "empty.wav": (lambda wav: b"", "empty"),
    "page.wav": (lambda wav: b"<!DOCTYPE html><html>404</html>", "an HTML page"),
    "text.wav": (lambda wav: b"this is no sound" * 9, "not an audio or video file"),
    "header.wav": (lambda wav: wav[:40] + bytes(4), "holds no sound"),
    "half.wav": (lambda wav: wav[: len(wav) // 2], "cut off"),
    "liar.wav": (lambda wav: wav[:40] + struct.pack("<I", 10 * len(wav)) + wav[44:], "cut off"),
    "fast.wav": (lambda wav: wav[:24] + struct.pack("<I", 10**9) + wav[28:], "sampling rate 1000000000 Hz"),
    "slow.wav": (lambda wav: wav[:24] + struct.pack("<I", 1) + wav[28:], "sampling rate 1 Hz"),
    "channels.wav": (lambda wav: wav[:22] + struct.pack("<H", 0) + wav[24:], "contradicts itself"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_line(tmp_path, name):
    damage, reason = BAD_FILES[name]
    path = tmp_path / name
    if damage is not None:
        path.write_bytes(damage(write_wav(tmp_path / "good.wav", [sine()]).read_bytes()))
    with pytest.raises(MediaError, match=reason) as caught:
        load_audio(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.mka", "pcm_s16le")]
)
def test_a_cut_file_is_an_error_and_not_a_shorter_sound(tmp_path, name, codec):
    path = write_sound(tmp_path / name, sine(4.0) + 0.1 * np.random.default_rng(0).standard_normal(64_000), codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError):
        load_audio(path)


def test_a_streamed_wav_without_a_length_is_read(tmp_path):
    data = write_wav(tmp_path / "a.wav", [sine()]).read_bytes()
    assert len(load_audio(data[:40] + struct.pack("<I", 0xFFFFFFFF) + data[44:])) == 8_000


def test_a_picture_under_a_sound_name(tmp_path):
    path = tmp_path / "a.wav"
    Image.new("RGB", (8, 8)).save(path, "PNG")
    with pytest.raises(MediaError, match="no sound in it"):
        load_audio(path)


def test_a_playlist_cannot_reach_other_files(tmp_path):
    secret = write_wav(tmp_path / "secret.wav", [sine()])
    playlist = tmp_path / "list.wav"
    playlist.write_text(f"ffconcat version 1.0\nfile '{secret}'\n", encoding="utf-8")
    with pytest.raises(MediaError):
        load_audio(playlist)
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n", encoding="utf-8")
    with pytest.raises(MediaError):
        load_audio(playlist)


@pytest.mark.parametrize(
    ("waveform", "reason"),
    [
        (np.zeros(0), "0 samples"),
        (np.array([0.0, np.nan]), "not finite"),
        (np.array([0.0, np.inf]), "not finite"),
        (np.zeros((2, 2, 2)), "of shape"),
        ([[0.0, 0.1], [0.2]], "ragged"),
        (np.array(["a"]), "array of numbers"),
        ({"array": np.zeros(9), "sampling_rate": 10**9}, "sampling rate"),
        (object(), "no media source"),
        ({"text": "hello"}, "no media in it"),
        ("ftp://host/a.wav", "URL scheme 'ftp'"),
        ("data:audio/wav;base64,###", "not valid base64"),
        ("/", "not a regular file"),
    ],
)
def test_bad_sources(waveform, reason):
    with pytest.raises(MediaError, match=reason):
        load_audio(waveform)


def test_the_error_survives_the_trip_from_a_worker():
    error = pickle.loads(pickle.dumps(MediaError("a.wav", "cut\noff")))
    assert (str(error), error.source, isinstance(error, ValueError)) == ("a.wav: cut off", "a.wav", True)
    assert str(MediaError("a.wav: cut off")) == "a.wav: cut off"  # how a data loader builds it again


def test_sound_of_eight_channels_does_not_end_the_process(tmp_path):
    """In planes, as AAC and Opus give them: PyAV looks for a ninth behind the last."""
    path = tmp_path / "surround.mka"
    levels = np.arange(8) / 80
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="7.1")
        tone = np.outer(sine(1024 / 16_000), levels).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone.reshape(1, -1), format="flt", layout="7.1")
        frame.sample_rate = 16_000
        for number in range(20):
            frame.pts = number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples = load_audio(path)
    assert len(samples) == pytest.approx(20 * 1024, abs=2048)
    assert np.abs(samples[5000:15000]).max() == pytest.approx(levels.mean() / 2, rel=0.3)


def test_a_title_that_is_not_utf8_is_no_damage(tmp_path):
    path = write_wav(tmp_path / "a.wav", [sine()])
    title = b"INFOINAM" + struct.pack("<I", 4) + b"Caf\xe9"
    content = path.read_bytes()[8:] + b"LIST" + struct.pack("<I", len(title)) + title
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    np.testing.assert_allclose(load_audio(path), sine(), atol=1e-4)


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def noisy(seconds, rate=16_000):
    tone = sine(seconds, rate)
    return tone + 0.1 * np.random.default_rng(0).standard_normal(len(tone))


def test_damage_inside_a_flac_is_noticed_by_its_checksums(tmp_path):
    data = write_sound(tmp_path / "a.flac", noisy(3.0), "flac").read_bytes()
    for place in range(9_000, len(data), len(data) // 7):
        with pytest.raises(MediaError, match="damaged"):
            load_audio(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def test_damage_inside_an_ogg_file_is_noticed(tmp_path, caplog):
    data = write_sound(tmp_path / "a.ogg", noisy(4.0, 48_000), "libopus", 48_000).read_bytes()
    pages = [match.start() for match in re.finditer(b"OggS", data)]
    assert len(pages) > 4
    third, last = pages[2] + 200, pages[-1]
    for hurt, reason in (
        (data[:third] + bytes([data[third] ^ 1]) + data[third + 1 :], "damaged: the checksum of the page at byte"),
        (data[: pages[2]] + data[pages[3] :], "damaged: a page is missing before byte"),
        (data[: last + 40], "cut off: its last page begins at byte"),
    ):
        with pytest.raises(MediaError, match=reason):
            load_audio(hurt)
    assert told(caplog) == []
    assert 0 < len(load_audio(data[:last])) < len(load_audio(data))  # as of a program that was killed
    assert told(caplog) == [
        f"<{last} bytes in memory>: it has no end mark: it may be cut off, or its recording never ended"
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda wav: wav[:-100], "15900 of 16000 bytes of sound are there: its end may be missing"),
        (lambda wav: wav[:28] + struct.pack("<I", 8_000) + wav[32:], "16000 Hz in blocks of 2 bytes, but 8000 bytes"),
        (lambda wav: wav[:44] + bytes(len(wav) - 44), "silence: nothing in it is louder than -70 dB of full scale"),
    ],
)
def test_what_is_doubtful_is_read_with_a_warning(tmp_path, damage, reason, caplog):
    path = write_wav(tmp_path / "a.wav", [sine()])
    assert len(load_audio(path)) == 8_000
    assert told(caplog) == []
    path.write_bytes(damage(path.read_bytes()))
    assert len(load_audio(path)) in (8_000, 7_950)
    (line,) = told(caplog)
    assert line.startswith(f"{path}: ")
    assert reason in line


@pytest.mark.parametrize(("place", "value"), [(22, 2), (34, 24), (32, 1)])
def test_a_header_that_contradicts_itself(tmp_path, place, value):
    wav = write_wav(tmp_path / "a.wav", [sine()]).read_bytes()
    with pytest.raises(MediaError, match="its header contradicts itself: . channels of .* bits in blocks of . bytes"):
        load_audio(wav[:place] + struct.pack("<H", value) + wav[place + 2 :])
