# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Videos to padded frames and their mask; frame i of the test films is a grey of level 10 + 8 i."""

import numpy as np
import pytest
import torch
from media_files import grey_frames, write_video
from PIL import Image

from xllm.processing.media_sources import MediaError
from xllm.processing.video_processing_xllm import XLLMVideoProcessor, list_videos


@pytest.fixture
def plain():
    """A processor whose output shows the grey level: no normalisation, pixels times 1/255."""
    return XLLMVideoProcessor(size={"height": 16, "width": 16}, do_normalize=False)


def numbers(batch, video=0):
    levels = batch["pixel_values_videos"][video].mean(dim=(1, 2, 3)) * 255
    return [round((float(level) - 10) / 8) for level in levels]


def test_frames_of_different_counts_are_padded_and_masked(plain, tmp_path):
    long = write_video(tmp_path / "long.mp4", grey_frames(20))
    short = write_video(tmp_path / "short.mp4", grey_frames(3))
    batch = plain([str(long), short], return_tensors="pt")
    assert batch["pixel_values_videos"].shape == (2, 5, 3, 16, 16)
    assert batch["video_frame_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert numbers(batch) == [2, 6, 10, 14, 18]
    assert numbers(batch, 1)[:3] == [0, 1, 2]
    assert not batch["pixel_values_videos"][1, 3:].any()


def test_normalisation_is_clips():
    batch = XLLMVideoProcessor()(np.full((1, 8, 8, 3), 255, np.uint8))
    expected = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    assert batch["pixel_values_videos"].shape == (1, 1, 3, 224, 224)
    torch.testing.assert_close(batch["pixel_values_videos"][0, 0, :, 0, 0], expected, atol=1e-4, rtol=0)


def test_every_kind_of_video(plain, tmp_path):
    film = grey_frames(4)
    path = write_video(tmp_path / "a.mp4", film)
    frames = [Image.fromarray(frame) for frame in film]
    for number, image in enumerate(frames):
        image.save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    for video in (
        film,
        torch.from_numpy(film),
        film.transpose(0, 3, 1, 2),
        frames,
        list(film),
        path,
        path.read_bytes(),
        [[[*files]]],
    ):
        batch = plain(video)
        assert batch["pixel_values_videos"].shape == (1, 4, 3, 16, 16)
        assert numbers(batch) == [0, 1, 2, 3]
    mixed = plain([film, path, {"bytes": path.read_bytes(), "path": None}])
    assert [numbers(mixed, i) for i in range(3)] == [[0, 1, 2, 3]] * 3


def test_nesting():
    frame, film = Image.new("RGB", (2, 2)), np.zeros((2, 4, 4, 3))
    assert len(list_videos("a.mp4")) == 1
    assert list_videos([["a.mp4"], ["b.mp4", "c.mp4"], []]) == ["a.mp4", "b.mp4", "c.mp4"]
    assert len(list_videos([frame, frame])) == 1
    assert len(list_videos([[frame, frame], [frame]])) == 2
    assert len(list_videos([[[frame, frame], [frame]], [[frame]]])) == 3
    assert len(list_videos([film, film])) == 2
    assert len(list_videos(np.zeros((3, 2, 4, 4, 3)))) == 3
    assert list_videos([[["1.png", "2.png"]]]) == [["1.png", "2.png"]]


def test_sampling_arguments_of_a_call(plain, tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(20))
    assert numbers(plain(path, num_frames=2)) == [5, 15]
    assert numbers(plain(path, fps=1)) == [0, 10]
    assert numbers(plain(path, fps=5, max_frames=3)) == [0, 2, 4]
    assert plain(path, do_sample_frames=False)["video_frame_mask"].shape == (1, 20)
    assert plain(path, num_frames=32)["video_frame_mask"].shape == (1, 20)  # no more than it has
    with pytest.raises(ValueError, match="exclude each other"):
        plain(path, num_frames=2, fps=1)
    with pytest.raises(ValueError, match="times of the frames"):
        plain(grey_frames(4), fps=1)
    assert numbers(plain(grey_frames(20), fps=1, video_metadata=[{"total_num_frames": 20, "fps": 10}])) == [0, 10]


def test_metadata_is_returned_when_asked(plain, tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(20))
    metadata = plain(path, return_metadata=True)["video_metadata"][0]
    assert (metadata.total_num_frames, metadata.frames_indices) == (20, [2, 6, 10, 14, 18])
    assert metadata.timestamps == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8])


def test_bad_videos(plain):
    with pytest.raises(MediaError, match="gone.mp4: no such file"):
        plain(["gone.mp4"])
    with pytest.raises(ValueError, match="empty list"):
        plain([])
    with pytest.raises(ValueError, match="2 videos but 1 `video_metadata` entries"):
        plain([grey_frames(2)] * 2, video_metadata=[{"total_num_frames": 2}])
    with pytest.raises(ValueError, match="different sizes"):
        plain([grey_frames(2), grey_frames(2, height=8)], do_resize=False)


def test_save_and_load(tmp_path):
    processor = XLLMVideoProcessor(num_frames=3, size={"height": 8, "width": 8}, max_frames=2)
    processor.save_pretrained(tmp_path)
    loaded = XLLMVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded(grey_frames(9))["pixel_values_videos"].shape == (1, 2, 3, 8, 8)
