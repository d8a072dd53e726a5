# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Decoding a few frames from the keyframes before them gives the frames that decoding everything gives."""

import av
import numpy as np
import pytest
from media_files import write_video

from xllm.processing import video_decoding
from xllm.processing.video_decoding import FrameIndex, UntrustedIndex, decode_frames, list_frames, load_video, runs


GOP, COUNT = 15, 90
WANTED = [4, 8, 40, 43, 74, 89]


def film(seed: int = 0) -> np.ndarray:
    """Blocks that change from frame to frame (x265 writes beyond its memory on films as small as other tests')."""
    blocks = np.random.default_rng(seed).integers(0, 255, (COUNT, 4, 6, 3), dtype=np.uint8)
    return blocks.repeat(32, axis=1).repeat(32, axis=2)


def take(metadata, times):
    return WANTED


class Counted:
    """Counts the packets that go into a decoder."""

    def __init__(self, container):
        self.container, self.count = container, 0

    def demux(self, stream):
        for packet in self.container.demux(stream):
            self.count += 1
            yield packet

    def seek(self, *args, **kwargs):
        self.container.seek(*args, **kwargs)


def read(path, keyframes=None):
    """Frames of `WANTED`, and how many packets were read for them; `keyframes` replaces the file's."""
    with av.open(str(path)) as container:
        index = list_frames(container, container.streams.video[0], "film")
    if keyframes is not None:
        index.keyframes = keyframes(index)
    with av.open(str(path)) as container:
        counter = Counted(container)
        wanted = [index.stamps[i] for i in WANTED]
        frames = list(decode_frames(counter, container.streams.video[0], index, wanted))
        return [frame.to_ndarray(format="rgb24") for frame in frames], counter.count


@pytest.mark.parametrize(
    ("name", "codec", "seeks"),
    [
        ("a.mp4", "libx264", True),
        ("a.mov", "mpeg4", True),
        ("a.mp4", "libx265", True),  # open groups: pictures shown before a keyframe follow it in the file
        ("a.mkv", "libx264", True),
        ("a.webm", "libvpx", True),
        ("a.webm", "libvpx-vp9", True),
        ("a.ts", "libx264", None),  # no index in the file: a seek may end anywhere
        ("a.avi", "mpeg4", None),
    ],
)
def test_frames_are_those_of_decoding_everything(tmp_path, name, codec, seeks):
    path = write_video(tmp_path / name, film(), codec=codec, keyframe_every=GOP)
    everything = load_video(path)[0]
    assert len(everything) == COUNT
    np.testing.assert_array_equal(load_video(path, sample_indices_fn=take)[0], everything[WANTED])
    if seeks:
        frames, decoded = read(path)
        np.testing.assert_array_equal(frames, everything[WANTED])
        # 9 frames up to 8, 14 from 30 up to 43, 15 from 60 up to 74 and from 75 up to 89, or a few leading pictures
        # more.
        assert decoded < 75


def test_uneven_times_and_a_film_that_never_ended(tmp_path):
    stamps = np.random.default_rng(1).integers(10, 300, COUNT).cumsum().tolist()
    path = write_video(tmp_path / "a.mkv", film(), stamps=stamps, keyframe_every=GOP)
    np.testing.assert_array_equal(load_video(path, sample_indices_fn=take)[0], load_video(path)[0][WANTED])
    assert read(path)[1] < 75
    live = {"codec": "libvpx", "format": "webm", "options": {"live": "1"}}
    path = write_video(tmp_path / "b.webm", film(), keyframe_every=GOP, **live)  # neither duration nor index
    np.testing.assert_array_equal(load_video(path, sample_indices_fn=take)[0], load_video(path)[0][WANTED])


def test_runs_by_hand():
    index = FrameIndex(list(range(0, 1000, 10)), [0, 200, 400, 800])
    assert runs(index, [50, 120, 450, 950]) == [(None, [50, 120]), (400, [450]), (800, [950])]
    assert runs(index, [150, 220]) == [(None, [150, 220])]  # 4 frames to the keyframe: not worth a seek
    assert runs(index, [100, 200]) == [(None, [100, 200])]
    assert runs(index, [90, 200]) == [(None, [90]), (200, [200])]  # 10 frames
    assert runs(index, [990]) == [(800, [990])]
    assert runs(FrameIndex(index.stamps, []), [50, 950]) == [(None, [50, 950])]
    assert runs(FrameIndex(index.stamps, [600]), [50, 550]) == [(None, [50, 550])]


def test_false_keyframes_are_noticed(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", film(), keyframe_every=COUNT)
    everything = load_video(path)[0]

    def all_stamps(index):
        return index.stamps

    with pytest.raises(UntrustedIndex, match="after a seek to"):
        read(path, keyframes=all_stamps)

    def false_index(*arguments):
        stamps = list_frames(*arguments).stamps
        return FrameIndex(stamps, stamps)

    monkeypatch.setattr(video_decoding, "list_frames", false_index)
    np.testing.assert_array_equal(load_video(path, sample_indices_fn=take)[0], everything[WANTED])


class Packet:
    """What `list_frames` reads of a packet."""

    size, is_discard, duration, time_base = 10, False, 1, 1

    def __init__(self, stream, pts, is_keyframe=False, is_corrupt=False, dts=None):
        self.stream, self.pts, self.dts, self.is_keyframe, self.is_corrupt = stream, pts, dts, is_keyframe, is_corrupt


@pytest.mark.parametrize(
    ("packets", "keyframes"),
    [
        ([(0, True), (2,), (1,), (3, True), (4,)], [0, 3]),
        ([(3, True), (4,), (0, True), (1,), (2,)], []),  # the film's order is not the file's
        ([(0, True), (1,), (1,), (3, True)], []),  # two frames at once
        ([(0, True), (1, False, True), (2, True)], []),  # damaged
        ([(0, True), (None, False, False, 1), (2, True)], []),  # no time
    ],
)
def test_when_keyframes_are_relied_upon(packets, keyframes):
    class Stream:
        index, frames, time_base = 0, 0, 1

    class Container:
        start_time, duration, streams = 0, 0, [Stream]
        format = type("Format", (), {"name": "mov"})

        def demux(self):
            return [Packet(Stream, *packet) for packet in packets]

    assert list_frames(Container(), Stream, "film").keyframes == keyframes
