# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a file of sound or film says of its own length, held against what is there: FFmpeg takes a file that was cut
off for a shorter one.

Clearly less than is promised is a `MediaError`; a little less, which many a good program writes too, is a warning.
"""

import os
import struct
import zlib
from typing import BinaryIO

import av

from .media_sources import MediaError, warn_of


# Written in WAV headers by programs that do not know the length yet.
_STREAMED_SIZES = (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)
_PLAIN_WAV = (1, 3)  # format tags: integers, floats
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_promise(name: str, found: float, promised: float, unit: str, least: float = 0.98, slack: float = 0) -> None:
    """Holds what was found against what the header says.

    Raises:
        MediaError: less than the part `least` of it, by more than `slack`.
    """
    if found >= promised - slack:
        return
    there = f"{found:.6g} of {promised:.6g} {unit} are there"
    if found < least * promised - slack:
        raise MediaError(name, f"cut off or damaged: {there}")
    warn_of(name, f"{there}: its end may be missing")


class LastEnd:
    """Where the last packet of a container ends, of those that were shown to it; in integers while they are read."""

    def __init__(self, container: av.container.InputContainer):
        self.container = container
        self.ends = [0] * len(container.streams)

    def add(self, packet: av.Packet, number: int) -> None:
        """One more packet of the stream `number`; nothing if it has no time."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            self.ends[number] = max(self.ends[number], stamp + (packet.duration or 0))

    def seconds(self) -> float:
        """0 where no packet has a time."""
        return max(float(end * (stream.time_base or 0)) for end, stream in zip(self.ends, self.container.streams))


def check_end(container: av.container.InputContainer, end: float, name: str) -> None:
    """Holds the end of the last packet, in seconds, against the length in the header, which Matroska and WebM state.
    Packets do not always say how long they last."""
    if "matroska" in container.format.name:
        start = max(container.start_time or 0, 0) / av.time_base
        check_promise(name, end - start, (container.duration or 0) / av.time_base, "s", least=0.9, slack=0.2)


def check_file(file: BinaryIO, name: str) -> None:
    """Refuses a file whose own marks say that some of it is missing or damaged: sizes of RIFF files (WAV, AVI),
    checksums and ends of Ogg's pages and Matroska's (WebM's) clusters, and the blocks of a GIF film."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        _check_wav(file, size, name)
    elif head[:4] == b"RIFF" and head[8:] == b"AVI " and (length := struct.unpack("<I", head[4:8])[0]):
        check_promise(name, size - 8, length, "bytes", least=0.9)
    elif head[:4] == b"OggS":
        _check_ogg(file, size, name)
    elif head[:4] == b"\x1aE\xdf\xa3":
        _check_matroska(file, size, name)
    elif head[:4] == b"GIF8":
        _check_gif(file, name)
    file.seek(0)


def _check_wav(file: BinaryIO, size: int, name: str) -> None:
    while len(chunk := file.read(8)) == 8:
        tag, length = struct.unpack("<4sI", chunk)
        if tag == b"data":
            if length not in _STREAMED_SIZES:
                check_promise(name, size - file.tell(), length, "bytes of sound")
                file.seek(length + length % 2, os.SEEK_CUR)
                if not (behind := file.read(4)).isascii() or behind.strip(b"\0") and not behind.decode().isprintable():
                    warn_of(name, f"what lies behind {length} bytes of sound is no part of a WAV file: is there more?")
            return
        form = file.read(16) if tag == b"fmt " and length >= 16 else b""
        if len(form) == 16:
            _check_format(form, name)
        file.seek(length + length % 2 - len(form), os.SEEK_CUR)


def _check_format(form: bytes, name: str) -> None:
    """The numbers of a WAV header contain each other."""
    kind, channels, rate, byte_rate, block, bits = struct.unpack("<HHIIHH", form)
    if kind not in _PLAIN_WAV:
        return
    if block != channels * -(-bits // 8):
        said = f"{channels} channels of {bits} bits in blocks of {block} bytes"
        raise MediaError(name, f"its header contradicts itself: {said}")
    if byte_rate != rate * block:
        said = f"{rate} Hz in blocks of {block} bytes, but {byte_rate} bytes per second"
        warn_of(name, f"its header contradicts itself: {said}; it may sound too fast or too slow")


def _check_ogg(file: BinaryIO, size: int, name: str) -> None:
    """Every page has a checksum and a number, and the last one of a stream says that it is."""
    open_streams: set[int] = set()
    numbers: dict[int, int] = {}
    start = 0
    while start < size and (open_streams or not numbers or file.read(4) == b"OggS"):
        file.seek(start)
        head = file.read(27)
        sizes = file.read(head[26]) if len(head) == 27 else b""
        body = file.read(sum(sizes))
        if len(head) < 27 or len(sizes) < head[26] or len(body) < sum(sizes):
            raise MediaError(name, f"cut off: its last page begins at byte {start} and is not whole")
        stream, number, checksum = struct.unpack("<III", head[14:26])
        page = (head[:22] + bytes(4) + head[26:] + sizes + body).translate(_REVERSED)
        found = int(f"{zlib.crc32(page, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)
        if head[:4] != b"OggS" or found != checksum:
            raise MediaError(name, f"damaged: the checksum of the page at byte {start} is wrong")
        if not head[5] & 2 and number != numbers.get(stream, -1) + 1:
            raise MediaError(name, f"damaged: a page is missing before byte {start}")
        numbers[stream] = number
        (open_streams.discard if head[5] & 4 else open_streams.add)(stream)
        start = file.tell()
    if open_streams:
        warn_of(name, "it has no end mark: it may be cut off, or its recording never ended")


def _check_gif(file: BinaryIO, name: str) -> None:
    """A chain of blocks up to an end mark; FFmpeg stops at what is none as if the film ended there."""

    def skip(size: int) -> None:
        if len(file.read(size)) < size:
            raise MediaError(name, f"cut off: it ends inside a block, at byte {file.tell()}")

    def skip_colours(flags: int) -> None:
        skip(3 << (flags & 7) + 1 if flags & 0x80 else 0)

    file.seek(10)
    flags = file.read(3)  # then a background colour and an aspect ratio
    skip_colours(flags[0] if flags else 0)
    while (kind := file.read(1)) not in (b";", b""):
        if kind == b",":
            skip(8)
            skip_colours((file.read(1) or b"\0")[0])
        elif kind != b"!":
            raise MediaError(name, f"damaged: no block of a GIF begins at byte {file.tell() - 1}")
        skip(1)  # what kind of extension, or the size of the first code
        while size := (file.read(1) or b"\0")[0]:
            skip(size)
    if not kind:
        warn_of(name, "it has no end mark: it may be cut off")


# Elements of Matroska: of the file, of its segment and of a cluster.
_SEGMENT, _CLUSTER, _CHECKSUM, _VOID = 0x18538067, 0x1F43B675, 0xBF, 0xEC
_ELEMENTS = (
    {0x1A45DFA3, _SEGMENT, _VOID},
    {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _CLUSTER, _CHECKSUM, _VOID},
    {0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, _CHECKSUM, _VOID},
)


def _read_number(file: BinaryIO, keep_mark: bool) -> int | None:
    """One of EBML's numbers: its first bit that is set tells its length; `None` if all behind that are, which says
    that a length is unknown. An element's kind keeps this mark."""
    first = (file.read(1) or b"\0")[0]
    more = 8 - first.bit_length()
    value = int.from_bytes(bytes([first]) + file.read(more), "big")
    mark = 1 << 7 * (more + 1)
    return value if keep_mark else None if value == 2 * mark - 1 else value % mark


def _check_matroska(file: BinaryIO, size: int, name: str) -> None:
    """Elements follow each other without a gap, and some have checksums; FFmpeg goes on at the next that it finds."""
    file.seek(0)
    ends = [size]  # of the file, the segment and the cluster
    while (place := file.tell()) < size:
        while len(ends) > 1 and place >= ends[-1]:
            ends.pop()
        kind, length = _read_number(file, keep_mark=True), _read_number(file, keep_mark=False)
        if len(ends) == 3 and kind in _ELEMENTS[1] - _ELEMENTS[2]:
            ends.pop()  # a cluster of unknown length
        if kind not in _ELEMENTS[len(ends) - 1]:
            if len(ends) == 1 and place:
                return  # behind the segment
            raise MediaError(name, f"damaged: no element of Matroska or WebM begins at byte {place}")
        start = file.tell()
        end = ends[-1] if length is None else start + length
        if kind == _SEGMENT:
            check_promise(name, size, end, "bytes", least=0.9)
        elif end > ends[-1]:
            if ends[-1] < size:
                raise MediaError(name, f"damaged: the element at byte {place} is longer than what it is part of")
            warn_of(name, "it ends inside an element: it may be cut off")
            return
        if len(ends) == 2 and length is not None and file.read(2) == b"\xbf\x84":
            told = int.from_bytes(file.read(4), "little")
            if zlib.crc32(file.read(end - file.tell())) != told:
                raise MediaError(name, f"damaged: the checksum of the element at byte {place} is wrong")
        if kind in (_SEGMENT, _CLUSTER):
            ends.append(min(end, size))
        file.seek(start if kind in (_SEGMENT, _CLUSTER) else end)


def promised_seconds(container: av.container.InputContainer, stream: av.AudioStream, file: BinaryIO) -> float | None:
    """The length that the header states, where it states one rather than guesses it from the bit rate."""
    kinds = container.format.name.split(",")
    states_length = "flac" in kinds
    if "mp3" in kinds:
        here = file.tell()
        file.seek(0)
        head = file.read(1 << 16)
        file.seek(here)
        states_length = b"Xing" in head or b"Info" in head
    if states_length and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return None
