# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which frames a film has, and decoding a few of them without the ones between.

The packets are listed without decoding: their timestamps give the number of frames and the length, which containers
often do not state, and their flags the keyframes, at which a decoder can begin. For each wanted frame it then begins
at the last keyframe before. The frames are the same as those of a decoder that reads everything: where a file's
timestamps or keyframes cannot be relied upon (`UntrustedIndex`), everything is read.
"""

import bisect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.video.frame import PictureType

from .audio_decoding import PYAV_ERRORS, check_end, packet_end
from .media_sources import MediaError, media_errors


_LEAST_PART = 0.9  # a file that ends before this part of the length in its header counts as cut off
_LEAST_SKIP = 10  # frames; a seek costs about as much as decoding these


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
