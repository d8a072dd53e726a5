# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Videos to the frames that the image encoder reads one by one (paper sec. 3.1: T = 5, uniformly sampled).

Same size and normalisation as the image processor (224 x 224, CLIP mean and deviation), or what a published encoder's
image processor does, which `frame_processor` describes. Clips of different frame counts are padded and masked, so a
clip with fewer frames takes fewer tokens.
Deviations from the authors' code: uniform over the clip instead of its first five seconds (`fps=1, max_frames=5` gives
theirs); the whole frame is resized, as for images, instead of short side and centre crop; missing frames are masked,
theirs are read as black.
Legend: T frames, C channels, H height, W width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .frame_sampling import frame_indices
from .picture_features import extract_pictures, image_processor
from .video_decoding import load_video


class XLLMVideoProcessorKwargs(VideosKwargs, total=False):
    """
    max_frames (`int`, *optional*):
        With `fps`: keep at most so many frames, the first ones.
    frame_processor (`dict`, *optional*):
        Settings of the image processor that makes pictures of frames, as its `to_dict` gives them.
    """

    max_frames: int | None
    frame_processor: dict | None


# Settings that a `frame_processor` has of its own.
_OF_FRAMES = ("size", "do_resize", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
              "do_normalize", "image_mean", "image_std", "do_convert_rgb", "default_to_square")  # fmt: skip


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim in (2, 3))


def list_videos(videos: Any, depth: int = 0) -> list[Any]:
    """Flattens a video, a list of videos or one list per text row into a list of videos.

    A list of images or of arrays of one frame is one video; so is a list of strings inside a row's list (files of
    frames). Strings, paths, bytes, dicts and 4-D arrays are videos, a 5-D array is a batch of them.
    """
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return list(videos) if videos.ndim == 5 else [videos]
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if videos and (all(map(_is_frame, videos)) or (depth > 1 and isinstance(videos[0], str))):
        return [list(videos)]
    return [video for item in videos for video in list_videos(item, depth + 1)]


class XLLMVideoProcessor(BaseVideoProcessor):
    """Videos in any form that `load_video` takes to `pixel_values_videos` and `video_frame_mask`.

    ```python
    >>> batch = XLLMVideoProcessor()(["clip.mp4", "short.webm"], return_tensors="pt")
    >>> batch["pixel_values_videos"].shape, batch["video_frame_mask"].shape  # (2, T, 3, 224, 224), (2, T)
    ```

    Args (each also per call):
        num_frames, fps, max_frames: which frames, see `frame_indices`; 5 from the middle of equal parts by default.
        do_sample_frames: `False` takes every frame.
        size, do_resize, resample, do_rescale, do_normalize, image_mean, image_std: as in any video processor.
        frame_processor: settings of an image processor that makes the pictures instead; these are then its own.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 5
    fps = None
    max_frames = None
    frame_processor: dict | None = None
    valid_kwargs = XLLMVideoProcessorKwargs  # type: ignore[assignment]  # declared for image processors
    model_input_names = ["pixel_values_videos", "video_frame_mask"]

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Reads, samples, resizes and normalises one video or a list; `kwargs` replace the settings for this call.

        Returns:
            `BatchFeature` with `pixel_values_videos` `(videos, T, 3, H, W)`, zeros after the last frame of a shorter
            video, and `video_frame_mask` `(videos, T)`, int64, 1 for real frames.

        Raises:
            MediaError: a video that cannot be read.
            ValueError: no videos, or contradictory sampling arguments.
        """
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)  # the call's rule replaces the class's
        elif kwargs.get("num_frames") is not None:
            kwargs.setdefault("fps", None)
        if (settings := kwargs.get("frame_processor", self.frame_processor)) is not None:
            given = {name: kwargs.pop(name) for name in _OF_FRAMES if name in kwargs}
            kwargs["frame_processor"] = {**settings, **given}
        return super().preprocess(videos, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings; those of pictures once, in `frame_processor` where it makes them."""
        settings = super().to_dict()
        unused = _OF_FRAMES if self.frame_processor is not None else ("frame_processor",)
        return {name: value for name, value in settings.items() if name not in unused}

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        max_frames: int | None = None,
        times: list[float] | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Indices of the frames to read; see `frame_indices`."""
        chosen = frame_indices(metadata.total_num_frames, num_frames, fps, max_frames, times, metadata.fps)
        return np.asarray(chosen, dtype=np.int64)

    def _decode_and_sample_videos(  # type: ignore[override]  # the base class returns both, and declares one
        self,
        videos: Any,
        video_metadata: Any,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable[..., Any] | None = None,
    ) -> tuple[list[np.ndarray], list[VideoMetadata]]:
        videos = list_videos(videos)
        if not videos:
            raise ValueError("videos: got an empty list, expected at least one video")
        given: list[Any] = make_batched_metadata(videos, video_metadata) if video_metadata else [None] * len(videos)
        rule = sample_indices_fn if do_sample_frames else None
        loaded = [load_video(video, sample_indices_fn=rule, metadata=entry) for video, entry in zip(videos, given)]
        return [frames for frames, _ in loaded], [metadata for _, metadata in loaded]

    def _prepare_input_videos(  # type: ignore[override]  # always called with keywords
        self, videos: list[np.ndarray], device: str | None = None, **kwargs: Any
    ) -> list[torch.Tensor]:
        # `load_video` always gives (T, H, W, 3); guessing the layout from the numbers would fail on tiny frames.
        tensors = (torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2) for video in videos)
        return [video.to(device or "cpu") for video in tensors]

    def _preprocess(  # type: ignore[override]  # always called with keywords
        self,
        videos: list[torch.Tensor],
        return_tensors: str | None = None,
        frame_processor: dict | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if frame_processor is None:
            frames = super()._preprocess(videos, **kwargs)["pixel_values_videos"]
        else:
            reader = image_processor(frame_processor)
            how: dict[str, Any] = {"input_data_format": "channels_first", "return_tensors": "pt"}
            frames = [extract_pictures(reader, list(video), **how)["pixel_values"] for video in videos]
        if len({video.shape[1:] for video in frames}) > 1:
            sizes = sorted({tuple(video.shape[2:]) for video in frames})
            raise ValueError(f"videos of different sizes {sizes} cannot share a batch: set do_resize=True")
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        pixels, mask = pad(list(frames)), pad([torch.ones(len(video), dtype=torch.long) for video in frames])
        return BatchFeature({"pixel_values_videos": pixels, "video_frame_mask": mask}, tensor_type=return_tensors)
