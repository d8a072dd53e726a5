# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which frames of a film are read, from every kind of container; frame i of the test films is a grey of level 10 + 8
i.
"""

import gc
import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from media_files import frame_numbers, grey_frames, sine, turn_mp4, write_video, write_wav
from PIL import Image

from xllm.processing import media_sources
from xllm.processing.frame_sampling import frame_indices
from xllm.processing.media_sources import MediaError
from xllm.processing.video_decoding import _marked, load_video


def test_the_default_rule_takes_the_middle_of_equal_parts():
    assert frame_indices(10, num_frames=5) == [1, 3, 5, 7, 9]
    assert frame_indices(100, num_frames=5) == [10, 30, 50, 70, 90]
    assert frame_indices(5, num_frames=5) == [0, 1, 2, 3, 4]
    assert frame_indices(9, num_frames=1) == [4]
    assert frame_indices(3, num_frames=5) == [0, 1, 2]  # never more than there are
    assert frame_indices(3) == [0, 1, 2]


def test_the_rule_by_time():
    assert frame_indices(25, fps=1, source_fps=10) == [0, 10, 20]
    assert frame_indices(70, fps=1, max_frames=5, source_fps=10) == [0, 10, 20, 30, 40]  # the authors' rule
    assert frame_indices(4, fps=1, times=[0.0, 0.9, 1.1, 3.0]) == [0, 1, 2, 3]  # shown at 0, 1, 2, 3 s
    assert frame_indices(3, fps=100, times=[0.0, 0.1, 0.2]) == [0, 1, 2]  # faster than the film: each frame once


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"num_frames": 2, "fps": 1}, "exclude each other"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"fps": -1}, "fps=-1"),
        ({"fps": 1}, "times of the frames"),
    ],
)
def test_impossible_rules(rule, reason):
    with pytest.raises(ValueError, match=reason):
        frame_indices(10, **rule)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("b.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
    ],
)
def test_containers(tmp_path, name, codec):
    frames, metadata = load_video(write_video(tmp_path / name, grey_frames(20), codec=codec), num_frames=5)
    assert frames.shape == (5, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert frame_numbers(frames) == [2, 6, 10, 14, 18]
    assert (metadata.total_num_frames, metadata.frames_indices) == (20, [2, 6, 10, 14, 18])
    assert metadata.fps == pytest.approx(10, abs=0.1)


def test_all_frames_and_frames_by_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(20))
    assert frame_numbers(load_video(path)[0]) == list(range(20))
    assert frame_numbers(load_video(path, fps=5, max_frames=3)[0]) == [0, 2, 4]


def test_uneven_frame_times(tmp_path):
    stamps = [0, 100, 200, 2_000, 2_100]
    path = write_video(tmp_path / "a.mkv", grey_frames(5), stamps=stamps)
    frames, metadata = load_video(path, fps=1)
    assert frame_numbers(frames) == [0, 2, 3]  # on the screen at 0, 1 and 2 s
    assert metadata.total_num_frames == 5


def test_frames_stand_in_equal_spans_of_time_where_the_rate_varies(tmp_path):
    """A tenth of a second of movement, then a still of 8 s, then movement again."""
    stamps = [*range(0, 100, 10), *range(8_100, 10_100, 200)]  # 10 frames in 0.1 s, 10 in 2 s
    path = write_video(tmp_path / "a.mkv", grey_frames(20), stamps=stamps)
    frames, metadata = load_video(path, num_frames=5)
    # The middles of the fifths of 10.1 s are 1.01, 3.03, 5.05, 7.07 and 9.09 s.
    assert frame_numbers(frames) == [9, 14]
    assert metadata.frames_indices == [9, 14]
    assert frame_numbers(load_video(path, num_frames=50)[0]) == list(range(20))
    # Stamps in whole thousandths of 30 frames a second are no other rate.
    even = [round(i * 1000 / 30) for i in range(20)]
    path = write_video(tmp_path / "b.mkv", grey_frames(20), stamps=even)
    assert frame_numbers(load_video(path, num_frames=5)[0]) == [2, 6, 10, 14, 18]


class _Pipe(io.RawIOBase):
    """A target that cannot seek back, as a live stream: the writer never learns the length."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, chunk):
        self.data += chunk
        return len(chunk)


def test_a_file_without_duration_and_frame_count():
    pipe = write_video(_Pipe(), grey_frames(20), codec="libvpx", format="webm", options={"live": "1"})
    frames, metadata = load_video(bytes(pipe.data), num_frames=2)
    assert frame_numbers(frames) == [5, 15]
    assert metadata.total_num_frames == 20


def test_rotation(tmp_path):
    film = np.zeros((2, 32, 64, 3), np.uint8)
    film[:, :, :32] = 255  # the left half is white
    path = turn_mp4(write_video(tmp_path / "a.mp4", film))
    frames, metadata = load_video(path)
    assert frames.shape == (2, 64, 32, 3)
    assert (metadata.height, metadata.width) == (64, 32)
    assert frames[0, :28].mean() > 230  # turned clockwise, left is on top
    assert frames[0, -28:].mean() < 25


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (0, 0)), ((-1, 0, 0, 1), (0, -1)), ((1, 0, 0, -1), (-1, 0)), ((-1, 0, 0, -1), (-1, -1)),
        ((0, 1, 1, 0), (0, 0)), ((0, 1, -1, 0), (0, -1)), ((0, -1, 1, 0), (-1, 0)), ((0, -1, -1, 0), (-1, -1)),
    ],
)  # fmt: skip
def test_display_matrix(tmp_path, matrix, corner):
    """The eight ways to turn and mirror: where the white corner at the top left ends up."""
    film = np.zeros((2, 32, 64, 3), np.uint8)
    film[:, :16, :16] = 255
    frames, _ = load_video(turn_mp4(write_video(tmp_path / "a.mp4", film), matrix))
    assert frames.shape == ((2, 32, 64, 3) if matrix[0] else (2, 64, 32, 3))
    bright = {at: bool(frames[0][at].mean() > 128) for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert bright == {at: at == corner for at in bright}


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_animated_pictures_are_videos(tmp_path, name):
    first, *others = (Image.fromarray(frame) for frame in grey_frames(12))
    first.save(
        tmp_path / name,
        save_all=True,
        append_images=others,
        duration=100,
        **({"lossless": True} if "w" in name else {}),
    )
    frames, metadata = load_video(tmp_path / name, num_frames=5)
    assert frame_numbers(frames) == [1, 3, 6, 8, 10]
    assert (metadata.total_num_frames, metadata.fps) == (12, pytest.approx(10))
    assert frame_numbers(load_video(tmp_path / name, fps=5, max_frames=3)[0]) == [0, 2, 4]


def test_a_damaged_animation_says_so(tmp_path):
    first, *others = (Image.fromarray(frame) for frame in grey_frames(12, 64, 64))
    first.save(tmp_path / "a.webp", save_all=True, append_images=others)
    (tmp_path / "a.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:-40])
    with pytest.raises(MediaError, match=r"a\.webp: damaged video"):
        load_video(tmp_path / "a.webp")


def test_frames_in_memory():
    film = grey_frames(4)
    expected = film[[0, 2]]
    images = [Image.fromarray(frame) for frame in film]
    for source in (film, film.transpose(0, 3, 1, 2), film / 255.0, images, list(film)):
        frames, metadata = load_video(source, num_frames=4)
        np.testing.assert_array_equal(frames[[0, 2]], expected)
        assert metadata.total_num_frames == 4
    assert len(load_video(images[0])[0]) == 1
    np.testing.assert_array_equal(load_video(film[..., :1])[0], film)  # grey


def test_a_wrong_rule_of_ones_own_is_caught(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(3))
    with pytest.raises(ValueError, match=r"chose frames \[7\] of a clip with 3"):
        load_video(path, sample_indices_fn=lambda metadata, times: [7])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cut_file_is_an_error_and_not_a_shorter_film(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    options = {"options": {"movflags": "faststart"}} if name == "a.mp4" else {}
    path = write_video(tmp_path / name, noise, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match="cut off|damaged"):
        load_video(path, num_frames=5)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing.mp4", "no such file"),
        (b"", "empty"),
        (b"<html></html>", "an HTML page"),
        (b"no film at all" * 20, "not an audio or video file"),
        ([], "no video frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one frame"),
        (np.zeros((2, 5, 5, 9), np.uint8), "has the shape"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], "different sizes"),
    ],
)
def test_bad_sources(source, reason):
    with pytest.raises(MediaError, match=reason):
        load_video(source)


def test_a_sound_is_no_film(tmp_path):
    with pytest.raises(MediaError, match=r"no moving picture in it \(streams: audio\)"):
        load_video(write_wav(tmp_path / "a.wav", [sine()]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where threads can be counted")
def test_a_film_that_has_been_read_leaves_no_threads_and_no_frames(tmp_path):
    """Even before Python collects garbage: it may not for long, and frames are large."""
    path = write_video(tmp_path / "a.mp4", grey_frames(20))

    def threads():
        return next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if "Threads" in line)

    gc.collect()
    gc.disable()
    try:
        before = threads(), sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
        load_video(path)
        assert threads() == before[0]
        assert sum(isinstance(one, av.VideoFrame) for one in gc.get_objects()) - before[1] <= 1
    finally:
        gc.enable()


def mended(path):
    """The frames that the decoder says it had to mend."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        return [number for number, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]


def damaged_film(path, codec):
    """60 frames of noise, and one of them that the decoder has to mend: a packet between keyframes is overwritten."""
    blocks = np.random.default_rng(0).integers(0, 255, (60, 8, 12, 3), dtype=np.uint8)
    write_video(path, blocks.repeat(8, axis=1).repeat(8, axis=2), codec=codec, keyframe_every=15)
    whole, data = load_video(path)[0], path.read_bytes()
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size and not packet.is_keyframe]
    for packet in packets[18:25]:  # that of H.264 does not notice everything
        start, size = packet.pos + packet.size // 3, packet.size // 2
        path.write_bytes(data[:start] + np.random.default_rng(1).bytes(size) + data[start + size :])
        if found := mended(path):
            return whole, found[0]
    raise AssertionError("the decoder noticed nothing")


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_frames_that_the_decoder_cannot_read_are_an_error_and_others_are_taken(tmp_path, name, codec, caplog):
    path = tmp_path / name
    whole, number = damaged_film(path, codec)
    for hurt in ([number], [2, number, 57]):
        with pytest.raises(MediaError, match=r"damaged video"):
            load_video(path, sample_indices_fn=lambda metadata, times: hurt)  # noqa: B023
    assert [record.getMessage() for record in caplog.records] == []
    frames, _ = load_video(path, sample_indices_fn=lambda metadata, times: [2, 12, 55, 57])
    np.testing.assert_array_equal(frames, whole[[2, 12, 55, 57]])


def test_what_is_made_from_a_damaged_frame_is_damaged():
    """Up to the next keyframe, and of a B picture also what is shown behind it."""
    kinds, hurt = "IPBBPBBPIPBI", [4, 9]

    def frame(number):
        kind = kinds[number]
        fields = {"pict_type": PictureType[kind], "key_frame": kind == "I", "is_corrupt": number in hurt}
        return type("Frame", (), {"number": number, **fields})

    marked = [(one.number, is_damaged) for one, is_damaged in _marked(map(frame, range(len(kinds))))]
    assert [number for number, _ in marked] == list(range(len(kinds)))
    assert [number for number, is_damaged in marked if is_damaged] == [2, 3, 4, 5, 6, 7, 9, 10]


def test_a_film_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey_frames(20))
    monkeypatch.setattr(media_sources, "DECODE_SECONDS", 0)
    with pytest.raises(MediaError, match=r"a\.mp4: decoding it takes longer than 0 s"):
        load_video(path, num_frames=2)


def test_a_film_that_lacks_a_little_is_read_with_a_warning(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi", grey_frames(40), codec="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert len(load_video(path)[0]) == 40
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{path}: {len(data) - 28} of {len(data) - 8} bytes are there: its end may be missing"


@pytest.mark.parametrize(
    ("name", "codec", "reason"),
    [
        ("a.mkv", "libx264", "damaged: the checksum of the element at byte"),
        ("a.webm", "libvpx", "damaged: no element of Matroska or WebM begins at byte"),
        ("a.gif", None, "damaged: no block of a GIF begins at byte"),
    ],
)
def test_what_is_missing_in_the_middle_is_noticed(tmp_path, name, codec, reason):
    """FFmpeg finds the next block, or takes the film to end there."""
    blocks = np.random.default_rng(0).integers(0, 255, (30, 4, 6, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    path = tmp_path / name
    if codec is None:
        first, *others = map(Image.fromarray, blocks)
        first.save(path, save_all=True, append_images=others, duration=100)
    else:
        write_video(path, blocks, codec=codec)
    data = path.read_bytes()
    for hurt in (data[: len(data) // 2] + data[len(data) // 2 + 400 :], data[: len(data) // 2]):
        path.write_bytes(hurt)
        with pytest.raises(MediaError, match=f"{reason}|cut off"):
            load_video(path, num_frames=5)
    path.write_bytes(data)
    assert len(load_video(path)[0]) == 30


def test_a_gif_without_its_end_is_read_with_a_warning(tmp_path, caplog):
    first, *others = (Image.fromarray(frame) for frame in grey_frames(5))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
    (tmp_path / "a.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:-1])
    assert len(load_video(tmp_path / "a.gif")[0]) == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a.gif'}: it has no end mark: it may be cut off"
    ]
