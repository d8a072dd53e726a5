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
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageSequence
from transformers.video_utils import VideoMetadata

from .audio_decoding import PYAV_ERRORS, best_stream, open_container
from .frame_sampling import choose_frames, default_rule
from .image_decoding import PILLOW_ERRORS, array_to_uint8, has_channels_first, load_image
from .media_lengths import LastEnd, check_end, check_file, check_promise
from .media_sources import MediaError, check_memory, describe_source, in_time, media_errors, open_media, warn_of


_NEVER_MENDED = ("hevc", "vp8", "vp9", "av1", "libdav1d")  # decoders that mend no frames
_MOST_BETWEEN = 8  # pictures that wait for the one behind them; x264 writes 3 in a row unless told otherwise
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
    end, trusted, numbered, step = LastEnd(container), True, False, float(stream.time_base or 0)
    with media_errors(name, "damaged video", PYAV_ERRORS):
        for packet in in_time(container.demux(), name):
            if packet.size == 0 or packet.is_discard:
                continue
            end.add(packet, number := packet.stream.index)
            if number == stream.index:
                stamp = packet.dts if packet.pts is None else packet.pts
                numbered = numbered or stamp is None
                stamps.append(len(stamps) if stamp is None else stamp)
                trusted = trusted and packet.pts is not None and not packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None:
                    keyframes.append(packet.pts)
    if not stamps:
        raise MediaError(name, "holds no video frames")
    if stream.frames:
        check_promise(name, len(stamps), stream.frames, "frames", least=0.9, slack=1)
    if numbered:
        return FrameIndex(list(range(len(stamps))), [])
    stamps.sort()
    # A packet may not say how long it lasts: the last one is taken to last as long as the others.
    mean = (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)
    check_end(container, max(end.seconds(), (stamps[-1] + mean) * step), name)
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
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: FrameIndex,
    wanted: list[int],
    name: str = "film",
) -> Iterator[av.VideoFrame]:
    """For each of the ascending timestamps `wanted`, the frame shown at that moment.

    Raises:
        UntrustedIndex: from its keyframes, the decoder does not give these frames, whole and in order. Call again with
            an index without keyframes, on a fresh container.
        MediaError: with such an index, one of the frames is not whole.
    """
    if not index.keyframes:
        yield from _shown(in_time(container.decode(stream), name), wanted, index.numbered, name)
        return
    for keyframe, stamps in runs(index, wanted):
        try:
            if keyframe is not None:
                container.seek(keyframe, stream=stream, backward=True)
            yield from _exactly(in_time(_decoded(container, stream, stamps), name), keyframe, stamps)
        except MediaError:
            raise
        except PYAV_ERRORS as error:
            raise UntrustedIndex(str(error)) from error


def _decoded(container, stream, wanted: list[int]) -> Iterator[av.VideoFrame]:
    """All frames from where the container stands, of H.264 without pictures that no other refers to: it marks them."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if context.name == "h264":
            context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _marked(frames: Iterator[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Each frame, and whether it is damaged: the decoder had to mend it, or one that it may be made from, which are
    those since the last keyframe, and of a picture between two others (B) the next one, for which it waits."""
    waiting: deque[tuple[av.VideoFrame, bool]] = deque()
    damaged = False
    for frame in frames:
        is_between = frame.pict_type == PictureType.B
        if not is_between or len(waiting) == _MOST_BETWEEN:
            yield from ((one, hurt or frame.is_corrupt) for one, hurt in waiting)
            waiting.clear()
        damaged = frame.is_corrupt or (damaged and not frame.key_frame)
        if is_between:
            waiting.append((frame, damaged))
        else:
            yield frame, damaged
    yield from waiting


def _exactly(frames: Iterator[av.VideoFrame], keyframe: int | None, wanted: list[int]) -> Iterator[av.VideoFrame]:
    """The frames with exactly these timestamps, from a keyframe on; whatever is decoded is checked."""
    last, left = None, deque(wanted)
    for frame, is_damaged in _marked(frames):
        if frame.pts is None:
            raise UntrustedIndex("a frame without a timestamp")
        if keyframe is not None and frame.pts < keyframe:
            continue  # the seek went further back, or frames that the keyframe's successors need not
        begins = keyframe is None or (frame.pts == keyframe and frame.pict_type == PictureType.I)
        if is_damaged or (not begins if last is None else frame.pts <= last):
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


def _shown(frames: Iterator[av.VideoFrame], wanted: list[int], numbered: bool, name: str) -> Iterator[av.VideoFrame]:
    """Of all frames in order of showing, the one on the screen at each wanted timestamp; nothing if there are none.

    To take a damaged one is an error, to pass it by a warning.
    """
    left, shown, damaged = deque(wanted), None, 0

    def whole(frame: av.VideoFrame, is_damaged: bool) -> av.VideoFrame:
        if is_damaged:
            at = "" if frame.time is None else f" at {frame.time:.2f} s"
            raise MediaError(name, f"damaged video: the decoder cannot read the frame{at}, or one it is made from")
        return frame

    for number, (frame, is_damaged) in enumerate(_marked(frames)):
        stamp = number if numbered or frame.pts is None else frame.pts
        damaged += is_damaged
        while left and stamp >= left[0]:
            is_exact = stamp == left.popleft()
            yield whole(frame, is_damaged) if is_exact or shown is None else whole(*shown)
        if not left:
            break
        shown = frame, is_damaged
    if shown is not None and left:  # packets that show nothing (VP8's hidden reference frames) were counted
        yield from [whole(*shown)] * len(left)
    if damaged:
        warn_of(name, f"{damaged} frames are damaged, none of which is taken")


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The moving picture of a file, to decode so that frames are marked when they are damaged."""
    stream = best_stream(container, "video", av.VideoStream, "moving picture", name)
    if Disposition.attached_pic in stream.disposition:
        raise MediaError(name, "no moving picture in it, only a cover")
    width, height = stream.codec_context.width, stream.codec_context.height
    check_memory(name, width * height * 8, f"frames of {width} x {height} pixels")
    # Several threads give frames before all damage to them is known.
    stream.thread_type = "AUTO" if stream.codec_context.name in _NEVER_MENDED else "NONE"
    return stream


def _metadata(total: int, fps: float | None, **known: Any) -> VideoMetadata:
    return VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps if fps else None, **known)


def _rate_and_times(stream: av.VideoStream, index: FrameIndex) -> tuple[float | None, list[float] | None]:
    """Frames per second, and the start of each frame in seconds where timestamps exist."""
    fps = float(stream.average_rate) if stream.average_rate else None
    if index.numbered or not stream.time_base:
        return fps, None
    first, over, under = index.stamps[0], stream.time_base.numerator, stream.time_base.denominator
    times = [(stamp - first) * over / under for stamp in index.stamps]  # of whole numbers: rounded once
    return (len(times) - 1) / times[-1] if times[-1] > 0 else fps, times


class _ToRgb:
    """Frames of one film, scaled to the size of the first, to upright RGB `(H, W, 3)`.

    PyAV would give each frame a scaler with threads of its own, and `side_data` ties a frame to itself, so that all of
    them stay until Python collects garbage: one scaler is used, and the first frame's display matrix is everyone's.
    """

    def __init__(self, first: av.VideoFrame):
        self.size = first.width, first.height
        self.scaler = VideoReformatter()
        matrix = cast(Any, first.side_data).get(SideDataType.DISPLAYMATRIX)  # PyAV declares no keys
        # (x, y) is shown at (a x + c y, b x + d y)
        self.matrix = (1, 0, 0, 0, 1) if matrix is None else np.frombuffer(matrix, np.int32)[:5].tolist()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        pixels = self.scaler.reformat(frame, *self.size, format="rgb24").to_ndarray()
        a, b, _, c, d = self.matrix
        if abs(a) < abs(b):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _stack(frames: Iterator[av.VideoFrame], count: int, name: str) -> np.ndarray:
    """`count` frames to one array `(count, H, W, 3)`."""
    pixels, read, to_rgb = None, 0, None
    with media_errors(name, "damaged video", PYAV_ERRORS):
        for read, frame in enumerate(frames, start=1):
            if to_rgb is None:
                what = f"{count} frames of {frame.width} x {frame.height} pixels"
                check_memory(name, frame.width * frame.height * 3 * (count + 1), what)
                to_rgb = _ToRgb(frame)
            upright = to_rgb(frame)
            pixels = np.empty((count, *upright.shape), np.uint8) if pixels is None else pixels
            pixels[read - 1] = upright
    if pixels is None:
        raise MediaError(name, "holds no video frames that can be decoded")
    return pixels[:read]


def _decode_video(
    file: BinaryIO, name: str, sample_indices_fn: Callable[..., Any]
) -> tuple[np.ndarray, VideoMetadata]:
    check_file(file, name)
    with open_container(file, name) as container:
        stream = video_stream(container, name)
        index = list_frames(container, stream, name)
        fps, times = _rate_and_times(stream, index)
        size = {side: getattr(stream.codec_context, side) for side in ("width", "height")}
        metadata = _metadata(len(index.stamps), fps, video_backend="pyav", **size)
        metadata.frames_indices = choose_frames(sample_indices_fn, metadata, times)
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
        stream = video_stream(container, name)
        return _stack(decode_frames(container, stream, index, wanted, name), len(wanted), name)


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
        sample_indices_fn, metadata, source = default_rule, source.metadata or metadata, source.frames
    if sample_indices_fn is None:
        sample_indices_fn = partial(default_rule, num_frames=num_frames, fps=fps, max_frames=max_frames)
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
    known.frames_indices = choose_frames(sample_indices_fn, known, None)
    return frames[known.frames_indices], known
