# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Video from anywhere to a few RGB frames, with PyAV.

Two passes over the file: the packets are listed without decoding (their timestamps give the number of frames and the length, which
containers often do not state), then the frames are decoded and only the wanted ones are kept and converted. Rotation is applied.
Deviation from the authors' code (original: the first five whole seconds): by default the frames stand in the middle of `num_frames`
equal parts of the clip, so that a long clip is seen to its end; `fps=1, max_frames=5` gives the authors' rule.
Legend: T frames, H height, W width.
"""

import bisect
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from .audio_decoding import PYAV_ERRORS, av_reason, check_end, missing_stream, open_container, packet_end
from .image_decoding import MAX_PIXELS, array_to_uint8, has_channels_first, load_image
from .media_sources import MediaError, describe_source, open_media


MAX_BYTES = 2 << 30  # of decoded frames kept in memory

_LEAST_PART = 0.9  # a file that ends before this part of the length in its header counts as cut off
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: a cover, not a film


def frame_indices(
    total: int,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    times: list[float] | None = None,
    source_fps: float | None = None,
) -> list[int]:
    """Chooses frames of a clip; never more than it has, each at most once.

    Args:
        total (`int`): frames of the clip.
        num_frames (`int`, *optional*): that many frames, in the middle of equal parts of the clip (all of a shorter one).
        fps (`float`, *optional*): one frame at 0, 1/fps, 2/fps, ... seconds, instead of `num_frames`.
        max_frames (`int`, *optional*): of these, the first so many.
        times (`list[float]`, *optional*): start of each frame in seconds, ascending; needed for `fps`, unless `source_fps` is given.
        source_fps (`float`, *optional*): constant rate of the clip in Hz.

    Returns:
        `list[int]`: ascending indices in `range(total)`.

    Raises:
        ValueError: both rules at once, a count or rate below 1 or 0, or `fps` for frames whose times are unknown.
    """
    if num_frames is not None and fps is not None:
        raise ValueError(f"num_frames={num_frames} and fps={fps} exclude each other: give one of them")
    for name, value in (("num_frames", num_frames), ("fps", fps), ("max_frames", max_frames)):
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value}, expected a number above 0")
    if fps is not None:
        if times is None and not source_fps:
            raise ValueError(
                f"fps={fps} needs the times of the frames: pass video_metadata with their fps, or use num_frames"
            )
        if times is None:
            times = [i / source_fps for i in range(total)]
        steps = int((times[-1] - times[0]) * fps + 1e-6) + 1
        # The frame on the screen at that moment is the last that began before it; the margin is for rounded timestamps.
        chosen = [bisect.bisect_right(times, times[0] + k / fps + 1e-4) - 1 for k in range(steps)]
        chosen = sorted(set(chosen))
    elif num_frames is not None and num_frames < total:
        chosen = [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]
    else:
        chosen = list(range(total))
    return chosen if max_frames is None else chosen[:max_frames]


def _choose(sample_indices_fn: Callable[..., Any], metadata: VideoMetadata, times: list[float] | None) -> list[int]:
    """Runs the sampling rule and checks its answer."""
    chosen = [int(i) for i in sample_indices_fn(metadata=metadata, times=times)]
    if not chosen or min(chosen) < 0 or max(chosen) >= metadata.total_num_frames:
        raise ValueError(f"the sampling rule chose frames {chosen} of a clip with {metadata.total_num_frames}")
    return chosen


def _default_rule(metadata: VideoMetadata, times: list[float] | None, **rule: Any) -> list[int]:
    return frame_indices(metadata.total_num_frames, times=times, source_fps=metadata.fps, **rule)


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    stream = container.streams.best("video")
    if stream is None or int(stream.disposition) & _ATTACHED_PICTURE:
        reason = missing_stream(container, "video", "moving picture")
        raise MediaError(name, reason if stream is None else "no moving picture in it, only a cover")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise MediaError(name, f"frames of {width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    return stream


def _list_frames(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> list[int]:
    """Timestamps of the stream's frames in order of showing, from the packets alone; plain numbers where there are none.

    Raises:
        MediaError: no frames, or the file ends long before its header says.
    """
    stamps, end = [], 0.0
    try:
        for packet in container.demux():
            if packet.size == 0 or packet.is_discard:
                continue
            end = max(end, packet_end(packet))
            if packet.stream.index == stream.index:
                stamps.append(packet.pts if packet.pts is not None else packet.dts)
    except PYAV_ERRORS as error:
        raise MediaError(name, f"damaged video ({av_reason(error)})") from error
    if not stamps:
        raise MediaError(name, "holds no video frames")
    if stream.frames and len(stamps) < _LEAST_PART * stream.frames - 1:
        raise MediaError(name, f"cut off: {len(stamps)} of {stream.frames} video frames are there")
    if None in stamps:
        return list(range(len(stamps)))
    stamps.sort()
    if (
        len(stamps) > 1
    ):  # a packet may not say how long it lasts: then the last one is taken to last as long as the others
        mean = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        check_end(container, max(end, float((stamps[-1] + mean) * stream.time_base)), name)
    return stamps


def _metadata(stream: av.VideoStream, stamps: list[int]) -> tuple[VideoMetadata, list[float] | None]:
    """What is known of the clip, and the start of each frame in seconds where timestamps exist."""
    total = len(stamps)
    times = None
    fps = float(stream.average_rate) if stream.average_rate else None
    if stamps != list(range(total)) and stream.time_base:
        times = [float((stamp - stamps[0]) * stream.time_base) for stamp in stamps]
        if times[-1] > 0:
            fps = (total - 1) / times[-1]
    return VideoMetadata(
        total_num_frames=total,
        fps=fps,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        duration=total / fps if fps else None,
        video_backend="pyav",
    ), times


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    """One frame to upright RGB `(H, W, 3)`; a frame of another size than the first is scaled to it."""
    width, height = size or (frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, k=round(frame.rotation / 90) % 4)


def _decode_wanted(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: list[int], numbered: bool, name: str
) -> np.ndarray:
    """Decodes up to the last wanted timestamp and keeps, for each of them, the frame shown at that moment."""
    pixels, size, shown = [], None, None

    def keep(frame: av.VideoFrame) -> None:
        nonlocal size
        if size is None:
            if frame.width * frame.height * 3 * len(wanted) > MAX_BYTES:
                raise MediaError(
                    name, f"{len(wanted)} frames of {frame.width} x {frame.height} do not fit: sample fewer"
                )
            size = (frame.width, frame.height)
        pixels.append(_to_rgb(frame, size))

    try:
        for number, frame in enumerate(container.decode(stream)):
            stamp = number if numbered or frame.pts is None else frame.pts
            while len(pixels) < len(wanted) and stamp > wanted[len(pixels)]:
                keep(frame if shown is None else shown)
            if len(pixels) < len(wanted) and stamp == wanted[len(pixels)]:
                keep(frame)
            if len(pixels) == len(wanted):
                break
            shown = frame
    except MediaError:
        raise
    except PYAV_ERRORS as error:
        raise MediaError(name, f"damaged video ({av_reason(error)})") from error
    if shown is None and not pixels:
        raise MediaError(name, "holds no video frames that can be decoded")
    while len(pixels) < len(
        wanted
    ):  # packets that show nothing (VP8's hidden reference frames) were counted at the end
        keep(shown)
    return np.stack(pixels)


def _decode_video(
    file: BinaryIO, name: str, sample_indices_fn: Callable[..., Any]
) -> tuple[np.ndarray, VideoMetadata]:
    with open_container(file, name) as container:
        stream = _video_stream(container, name)
        stamps = _list_frames(container, stream, name)
        metadata, times = _metadata(stream, stamps)
        metadata.frames_indices = _choose(sample_indices_fn, metadata, times)
    file.seek(0)
    with open_container(file, name) as container:
        stream = _video_stream(container, name)
        stream.thread_type = "AUTO"
        wanted = [stamps[i] for i in metadata.frames_indices]
        frames = _decode_wanted(container, stream, wanted, stamps == list(range(len(stamps))), name)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


def _array_to_frames(video: Any, name: str) -> np.ndarray:
    """Array or tensor `(T, H, W, C)`, `(T, C, H, W)` or one frame to uint8 `(T, H, W, 3)`."""
    values = video.detach().cpu().numpy() if isinstance(video, torch.Tensor) else video
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or 0 in values.shape:
        raise MediaError(name, "a video array has the shape (T, H, W, C) or (T, C, H, W), with at least one frame")
    if has_channels_first(values.shape):
        values = values.transpose(0, 2, 3, 1)
    values = array_to_uint8(values, name)
    return values if values.shape[-1] == 3 else np.stack([np.asarray(load_image(frame)) for frame in values])


def _list_to_frames(frames: list[Any], name: str) -> np.ndarray:
    """Frames given one by one (images, arrays, files) to uint8 `(T, H, W, 3)`."""
    images = [np.asarray(load_image(frame)) for frame in frames]
    if not images:
        raise MediaError(name, "holds no video frames")
    if len({image.shape for image in images}) > 1:
        raise MediaError(name, f"frames of different sizes: {sorted({image.shape[:2] for image in images})}")
    return np.stack(images)


def load_video(
    source: Any,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    sample_indices_fn: Callable[..., Any] | None = None,
    metadata: VideoMetadata | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """Reads frames of one video.

    Args:
        source: path, http(s)/file/data URL, base64 text, encoded bytes, a dict with `bytes`, `path`, `url` or `base64`, an array or
            tensor `(T, H, W, C)` or `(T, C, H, W)` (0..255, or 0..1 for floats), or a list of frames (images, arrays or files).
        num_frames, fps, max_frames: which frames, as in `frame_indices`; all by default.
        sample_indices_fn (`Callable`, *optional*): a rule of one's own, called with `metadata=` and `times=` (start of each frame in
            seconds, or None), that returns ascending indices; replaces the three arguments above.
        metadata (`VideoMetadata`, *optional*): of frames given in memory, for their rate.

    Returns:
        frames, uint8 `np.ndarray` of shape `(T, H, W, 3)`, RGB and upright, and the `VideoMetadata` of the whole clip, with
        `frames_indices` of the frames kept.

    Raises:
        MediaError: no such file, no moving picture in it, damaged or cut off, too large.
        ValueError: contradictory or impossible sampling arguments.
    """
    if sample_indices_fn is None:
        sample_indices_fn = partial(_default_rule, num_frames=num_frames, fps=fps, max_frames=max_frames)
    name = describe_source(source)
    if not isinstance(source, (np.ndarray, torch.Tensor, list, tuple, Image.Image)):
        with open_media(source) as (file, name):
            return _decode_video(file, name, sample_indices_fn)
    frames = list(source) if isinstance(source, (list, tuple)) else source
    frames = [frames] if isinstance(frames, Image.Image) else frames
    frames = _list_to_frames(frames, name) if isinstance(frames, list) else _array_to_frames(frames, name)
    fps_of_frames = None if metadata is None else metadata.fps
    known = VideoMetadata(
        total_num_frames=len(frames),
        fps=fps_of_frames,
        width=frames.shape[2],
        height=frames.shape[1],
        duration=len(frames) / fps_of_frames if fps_of_frames else None,
    )
    known.frames_indices = _choose(sample_indices_fn, known, None)
    return frames[known.frames_indices], known
