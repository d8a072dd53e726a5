# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Video from anywhere to a few RGB frames, with PyAV.

Two passes over the file. The packets are listed without decoding: their timestamps give the number of frames and the
length, which containers often do not state, and their flags the keyframes, at which a decoder can begin. Then each
wanted frame is decoded from the last keyframe before it, and converted; rotation is applied. Frames are the same as of
a decoder that reads everything: where timestamps or keyframes cannot be relied upon (`UntrustedIndex`), all is read.
Deviation from the authors' code (original: the first five whole seconds): by default the frames stand in the middle of
`num_frames` equal parts of the clip, so that a long clip is seen to its end; `fps=1, max_frames=5` gives the authors'
rule.
Legend: T frames, H height, W width.
"""

import bisect
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import PictureType
from PIL import Image, ImageSequence
from transformers.video_utils import VideoMetadata

from .audio_decoding import PYAV_ERRORS, best_stream, check_end, open_container, packet_end
from .image_decoding import PILLOW_ERRORS, array_to_uint8, has_channels_first, load_image
from .media_sources import MediaError, check_memory, describe_source, media_errors, open_media


_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: a cover, not a film
_LEAST_PART = 0.9  # a file that ends before this part of the length in its header counts as cut off
_LEAST_SKIP = 10  # frames; a seek costs about as much as decoding these


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a video, chosen already: `frames` `(T, H, W, 3)`, uint8, and what is known of the whole clip."""

    frames: np.ndarray
    metadata: VideoMetadata | None = None


class UntrustedIndex(Exception):
    """Decoding from a keyframe would not, or did not, give what decoding everything gives."""


@dataclass
class FrameIndex:
    """Timestamps of all frames in order of showing (plain numbers where the file has none) and of the keyframes.

    `keyframes` is empty where they cannot be relied upon: missing, doubled or unordered timestamps, damaged packets.
    """

    stamps: list[int]
    keyframes: list[int]

    @property
    def numbered(self) -> bool:
        """Whether the stamps are plain numbers."""
        return self.stamps == list(range(len(self.stamps)))


def list_frames(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> FrameIndex:
    """The index of a stream, from its packets alone.

    Raises:
        MediaError: no frames, or the file ends long before its header says.
    """
    stamps: list[int] = []
    keyframes: list[int] = []
    end, trusted, numbered, step = 0.0, True, False, float(stream.time_base or 0)
    with media_errors(name, "damaged video", PYAV_ERRORS):
        for packet in container.demux():
            if packet.size == 0 or packet.is_discard:
                continue
            end = max(end, packet_end(packet))
            if packet.stream.index == stream.index:
                stamp = packet.dts if packet.pts is None else packet.pts
                numbered = numbered or stamp is None
                stamps.append(len(stamps) if stamp is None else stamp)
                trusted = trusted and packet.pts is not None and not packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None:
                    keyframes.append(packet.pts)
    if not stamps:
        raise MediaError(name, "holds no video frames")
    if stream.frames and len(stamps) < _LEAST_PART * stream.frames - 1:
        raise MediaError(name, f"cut off: {len(stamps)} of {stream.frames} video frames are there")
    if numbered:
        return FrameIndex(list(range(len(stamps))), [])
    stamps.sort()
    if len(stamps) > 1:  # a packet may not say how long it lasts: the last one is taken to last as long as the others
        mean = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        check_end(container, max(end, (stamps[-1] + mean) * step), name)
    trusted = trusted and len(set(stamps)) == len(stamps) and keyframes == sorted(keyframes)
    return FrameIndex(stamps, keyframes if trusted else [])


def runs(index: FrameIndex, wanted: list[int]) -> list[tuple[int | None, list[int]]]:
    """Ascending timestamps in runs without a seek between: (first keyframe, `None` for the start; timestamps)."""
    found: list[tuple[int | None, list[int]]] = [(None, [])]
    place = 0  # of the frame that is decoded next
    for stamp in wanted:
        keyframe = bisect.bisect_right(index.keyframes, stamp) - 1
        start = bisect.bisect_left(index.stamps, index.keyframes[keyframe]) if keyframe >= 0 else 0
        if start - place >= _LEAST_SKIP:
            found.append((index.keyframes[keyframe], []))
        found[-1][1].append(stamp)
        place = bisect.bisect_left(index.stamps, stamp) + 1
    return [run for run in found if run[1]]


def decode_frames(
    container: av.container.InputContainer, stream: av.VideoStream, index: FrameIndex, wanted: list[int]
) -> Iterator[av.VideoFrame]:
    """For each of the ascending timestamps `wanted`, the frame shown at that moment.

    Raises:
        UntrustedIndex: from its keyframes, the decoder does not give these frames, whole and in order. Call again with
            an index without keyframes, on a fresh container.
    """
    if not index.keyframes:
        yield from _shown(container.decode(stream), wanted, index.numbered)
        return
    for keyframe, stamps in runs(index, wanted):
        try:
            if keyframe is not None:
                container.seek(keyframe, stream=stream, backward=True)
            yield from _exactly(container, stream, keyframe, stamps)
        except PYAV_ERRORS as error:
            raise UntrustedIndex(str(error)) from error


def _exactly(container, stream, keyframe: int | None, wanted: list[int]) -> Iterator[av.VideoFrame]:
    """The frames with exactly these timestamps, from where the container stands; whatever is decoded is checked."""
    context, last, left = stream.codec_context, None, deque(wanted)
    for packet in container.demux(stream):
        if context.name == "h264":  # pictures that no other refers to need not be decoded, and H.264 marks them
            context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts is None:
                raise UntrustedIndex("a frame without a timestamp")
            if keyframe is not None and frame.pts < keyframe:
                continue  # the seek went further back, or frames that the keyframe's successors need not
            begins = keyframe is None or (frame.pts == keyframe and frame.pict_type == PictureType.I)
            if frame.is_corrupt or (not begins if last is None else frame.pts <= last):
                raise UntrustedIndex(f"frame {frame.pts} after a seek to {keyframe}")
            if frame.pts > left[0]:
                raise UntrustedIndex(f"no frame at {left[0]}")
            last = frame.pts
            if frame.pts == left[0]:
                yield frame
                left.popleft()
                if not left:
                    return
    raise UntrustedIndex(f"no frame at {left[0]}")


def _shown(frames: Iterator[av.VideoFrame], wanted: list[int], numbered: bool) -> Iterator[av.VideoFrame]:
    """Of all frames in order of showing, the one on the screen at each wanted timestamp; nothing if there are none."""
    left, shown = deque(wanted), None
    for number, frame in enumerate(frames):
        stamp = number if numbered or frame.pts is None else frame.pts
        while left and stamp >= left[0]:
            is_exact = stamp == left.popleft()
            yield frame if is_exact or shown is None else shown
        if not left:
            return
        shown = frame
    if shown is not None:  # packets that show nothing (VP8's hidden reference frames) were counted at the end
        yield from [shown] * len(left)


def _on_screen(times: list[float], moments: list[float]) -> list[int]:
    """Which frames are shown so many seconds after the first began, each once; the margin is for rounded stamps."""
    return sorted({bisect.bisect_right(times, times[0] + moment + 1e-4) - 1 for moment in moments})


def _rate_varies(times: list[float]) -> bool:
    """Whether a frame lasts longer, or less, than the median by half of that and 10 ms, as where one is missing."""
    steps = np.diff(times)
    return bool((abs(steps - np.median(steps)) > 0.5 * np.median(steps) + 0.01).any())


def frame_indices(
    total: int,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    times: list[float] | None = None,
    source_fps: float | None = None,
) -> list[int]:
    """Ascending indices of some of a clip's `total` frames.

    Args:
        num_frames: that many frames, in the middle of equal parts of the clip (all of a shorter one): of time where
            the frame rate varies, and then each frame once.
        fps: one frame at 0, 1/fps, 2/fps, ... seconds, instead of `num_frames`.
        max_frames: of these, the first so many.
        times, source_fps: the start of each frame in seconds, ascending, or (for `fps`) the constant rate of the clip.

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
        times = times or [i / cast(float, source_fps) for i in range(total)]
        steps = int((times[-1] - times[0]) * fps + 1e-6) + 1
        chosen = _on_screen(times, [k / fps for k in range(steps)])
    elif num_frames is not None and num_frames < total:
        chosen = [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]
        if times is not None and _rate_varies(times):
            seconds = 2 * times[-1] - times[-2] - times[0]  # the last frame lasts as long as the one before it
            chosen = _on_screen(times, [(i + 0.5) * seconds / num_frames for i in range(num_frames)])
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
    stream = best_stream(container, "video", av.VideoStream, "moving picture", name)
    if int(stream.disposition) & _ATTACHED_PICTURE:
        raise MediaError(name, "no moving picture in it, only a cover")
    width, height = stream.codec_context.width, stream.codec_context.height
    check_memory(name, width * height * 8, f"frames of {width} x {height} pixels")
    return stream


def _metadata(total: int, fps: float | None, **known: Any) -> VideoMetadata:
    return VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps if fps else None, **known)


def _rate_and_times(stream: av.VideoStream, index: FrameIndex) -> tuple[float | None, list[float] | None]:
    """Frames per second, and the start of each frame in seconds where timestamps exist."""
    fps = float(stream.average_rate) if stream.average_rate else None
    if index.numbered or not stream.time_base:
        return fps, None
    times = [float((stamp - index.stamps[0]) * stream.time_base) for stamp in index.stamps]
    return (len(times) - 1) / times[-1] if times[-1] > 0 else fps, times


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """One frame, scaled to width and height, to upright RGB `(H, W, 3)`."""
    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    side_data = cast(Any, frame.side_data)  # PyAV declares a mapping, but iterates over the values
    matrix = next((data for data in side_data if data.type == SideDataType.DISPLAYMATRIX), None)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # (x, y) is shown at (a x + c y, b x + d y)
    if abs(a) < abs(b):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _stack(frames: Iterator[av.VideoFrame], count: int, name: str) -> np.ndarray:
    """`count` frames to one array `(count, H, W, 3)`."""
    pixels, read = None, 0
    with media_errors(name, "damaged video", PYAV_ERRORS):
        for read, frame in enumerate(frames, start=1):
            if pixels is None:
                size = frame.width, frame.height
                what = f"{count} frames of {size[0]} x {size[1]} pixels"
                check_memory(name, size[0] * size[1] * 3 * (count + 1), what)
            upright = _to_rgb(frame, size)
            pixels = np.empty((count, *upright.shape), np.uint8) if pixels is None else pixels
            pixels[read - 1] = upright
    if pixels is None:
        raise MediaError(name, "holds no video frames that can be decoded")
    return pixels[:read]


def _decode_video(
    file: BinaryIO, name: str, sample_indices_fn: Callable[..., Any]
) -> tuple[np.ndarray, VideoMetadata]:
    with open_container(file, name) as container:
        stream = _video_stream(container, name)
        index = list_frames(container, stream, name)
        fps, times = _rate_and_times(stream, index)
        size = {side: getattr(stream.codec_context, side) for side in ("width", "height")}
        metadata = _metadata(len(index.stamps), fps, video_backend="pyav", **size)
        metadata.frames_indices = _choose(sample_indices_fn, metadata, times)
    wanted = [index.stamps[i] for i in metadata.frames_indices]
    try:
        frames = _read(file, name, index, wanted)
    except UntrustedIndex:
        frames = _read(file, name, FrameIndex(index.stamps, keyframes=[]), wanted)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


def _read(file: BinaryIO, name: str, index: FrameIndex, wanted: list[int]) -> np.ndarray:
    file.seek(0)
    with open_container(file, name) as container:
        stream = _video_stream(container, name)
        stream.thread_type = "AUTO"
        return _stack(decode_frames(container, stream, index, wanted), len(wanted), name)


def _webp_frames(file: BinaryIO, name: str) -> tuple[list[Image.Image], VideoMetadata]:
    """All frames of an animated WebP, which FFmpeg cannot decode and Pillow can, and their mean rate."""
    with media_errors(name, "damaged video", PILLOW_ERRORS), Image.open(file) as film:
        count = getattr(film, "n_frames", 1)
        what = f"{count} frames of {film.width} x {film.height} pixels"
        check_memory(name, film.width * film.height * 8 * count, what)
        frames = [frame.copy() for frame in ImageSequence.Iterator(film)]
    seconds = sum(frame.info.get("duration", 0) for frame in frames) / 1000
    return frames, VideoMetadata(total_num_frames=len(frames), fps=len(frames) / seconds if seconds else None)


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
        source: anything that `open_media` takes, an array or tensor `(T, H, W, C)` or `(T, C, H, W)` (0..255, or 0..1
            for floats), a list of frames (images, arrays or files), or `Frames`, all of which are taken.
        num_frames, fps, max_frames: which frames, as in `frame_indices`; all by default.
        sample_indices_fn: another rule instead: called with `metadata=` and `times=` (start of each frame in seconds,
            or None), it returns ascending indices.
        metadata: of frames given in memory, for their rate.

    Returns:
        frames, uint8 `np.ndarray` of shape `(T, H, W, 3)`, RGB and upright, and the `VideoMetadata` of the whole clip,
        with `frames_indices` of the frames kept.

    Raises:
        MediaError: no such file, no moving picture in it, damaged or cut off, too large.
        ValueError: contradictory or impossible sampling arguments.
    """
    if isinstance(source, Frames):
        sample_indices_fn, metadata, source = _default_rule, source.metadata or metadata, source.frames
    if sample_indices_fn is None:
        sample_indices_fn = partial(_default_rule, num_frames=num_frames, fps=fps, max_frames=max_frames)
    name = describe_source(source)
    if not isinstance(source, (np.ndarray, torch.Tensor, list, tuple, Image.Image)):
        with open_media(source) as (file, name):
            head = file.read(12)
            file.seek(0)
            if head[:4] + head[8:] != b"RIFFWEBP":
                return _decode_video(file, name, sample_indices_fn)
            source, metadata = _webp_frames(file, name)
    frames = list(source) if isinstance(source, (list, tuple)) else source
    frames = [frames] if isinstance(frames, Image.Image) else frames
    frames = _list_to_frames(frames, name) if isinstance(frames, list) else _array_to_frames(frames, name)
    fps_of_frames = None if metadata is None else metadata.fps
    known = _metadata(len(frames), fps_of_frames, height=frames.shape[1], width=frames.shape[2])
    known.frames_indices = _choose(sample_indices_fn, known, None)
    return frames[known.frames_indices], known
