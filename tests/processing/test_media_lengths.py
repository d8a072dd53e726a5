# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What files say of their own length, byte by byte; damaged files of every codec: `test_damaged_media.py`."""

import io
import struct
import zlib
from fractions import Fraction
from types import SimpleNamespace

import pytest

from xllm.processing import media_lengths
from xllm.processing.media_lengths import (
    LastEnd,
    _read_number,
    check_end,
    check_file,
    check_promise,
    promised_seconds,
)
from xllm.processing.media_sources import MediaError


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(media_lengths, "warn_of", lambda name, reason: lines.append(reason))
    return lines


def outcome(data: bytes, said: list) -> str:
    """What is said of a file: an error, a warning, or nothing; it is left at its start."""
    said.clear()
    file = io.BytesIO(data)
    try:
        check_file(file, "x")
    except MediaError as error:
        return f"error: {error.reason}"
    assert file.tell() == 0
    assert len(said) < 2
    return f"warning: {said[0]}" if said else ""


@pytest.mark.parametrize(
    ("found", "kind"), [(101, ""), (100, ""), (99.9, "warning"), (98, "warning"), (97.9, "error"), (0, "error")]
)
def test_a_promise_is_held_to_a_fiftieth(found, kind, said):
    if kind == "error":
        with pytest.raises(MediaError, match=f"cut off or damaged: {found:.6g} of 100 s are there"):
            check_promise("x", found, 100, "s")
    else:
        check_promise("x", found, 100, "s")
    assert said == ([f"{found:.6g} of 100 s are there: its end may be missing"] if kind == "warning" else [])


def test_slack_is_allowed_on_both_limits(said):
    check_promise("x", 95, 100, "s", least=0.9, slack=5)
    assert not said
    check_promise("x", 85, 100, "s", least=0.9, slack=5)
    assert len(said) == 1
    with pytest.raises(MediaError):
        check_promise("x", 84.9, 100, "s", least=0.9, slack=5)


def packet(pts, dts, duration):
    return SimpleNamespace(pts=pts, dts=dts, duration=duration)


def test_the_last_end_is_the_latest_of_all_streams():
    streams = [SimpleNamespace(time_base=Fraction(1, 10)), SimpleNamespace(time_base=Fraction(1, 1000))]
    end = LastEnd(SimpleNamespace(streams=[*streams, SimpleNamespace(time_base=None)]))
    assert end.seconds() == 0
    for one in (packet(20, 1, 5), packet(7, 2, 3), packet(None, 22, None), packet(None, None, 99)):
        end.add(one, 0)
    assert end.seconds() == 2.5
    end.add(packet(0, 9000, 2600), 1)
    assert end.seconds() == 2.6
    end.add(packet(10**9, 0, 0), 2)
    assert end.seconds() == 2.6, "a stream without a unit of time"


def test_matroska_alone_states_its_length(said):
    def container(name, start, duration):
        return SimpleNamespace(format=SimpleNamespace(name=name), start_time=start, duration=duration)

    check_end(container("mov,mp4", 0, 10_000_000), 1.0, "x")
    check_end(container("matroska,webm", None, None), 0.0, "x")
    check_end(container("matroska,webm", 2_000_000, 10_000_000), 11.8, "x")
    check_end(container("matroska,webm", -2_000_000, 10_000_000), 9.8, "x")
    assert not said
    check_end(container("matroska,webm", 2_000_000, 10_000_000), 10.8, "x")
    assert len(said) == 1
    with pytest.raises(MediaError, match="8.7 of 10 s"):
        check_end(container("matroska,webm", 2_000_000, 10_000_000), 10.7, "x")


def form(kind=1, channels=2, rate=8000, bits=16, block=None, byte_rate=None):
    block = channels * ((bits + 7) // 8) if block is None else block
    return struct.pack("<HHIIHH", kind, channels, rate, rate * block if byte_rate is None else byte_rate, block, bits)


def wav(
    data: bytes, length: int | None = None, fmt: bytes = form(), behind: bytes = b"", before: bytes = b""
) -> bytes:
    chunk = struct.pack("<4sI", b"data", len(data) if length is None else length) + data
    body = b"WAVE" + before + struct.pack("<4sI", b"fmt ", len(fmt)) + fmt + b"\0" * (len(fmt) % 2) + chunk + behind
    return b"RIFF" + struct.pack("<I", len(body)) + body


SOUND = bytes(1000)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (wav(SOUND), ""),
        (wav(SOUND, behind=struct.pack("<4sI", b"LIST", 4) + b"INFO"), ""),
        (wav(SOUND[:-1], behind=b"\0" + struct.pack("<4sI", b"LIST", 4) + b"INFO"), ""),  # chunks begin at even bytes
        (wav(SOUND, behind=b"\0\0\0\0"), ""),
        (wav(SOUND, behind=b"\x90\x91\x92\x93"), "warning: what lies behind 1000 bytes of sound is no part of a WAV"),
        (wav(SOUND, behind=b"\x01\x02\x03\x04"), "warning: what lies behind 1000 bytes of sound is no part of a WAV"),
        (wav(SOUND, before=struct.pack("<4sI", b"JUNK", 3) + b"abc\0"), ""),
        (wav(SOUND, before=struct.pack("<4sI", b"JUNK", 20) + b"data\xff\xff\0\0" + bytes(12)), ""),
        (wav(SOUND[:990], length=1000), "warning: 990 of 1000 bytes of sound are there: its end may be missing"),
        (wav(SOUND[:979], length=1000), "error: cut off or damaged: 979 of 1000 bytes of sound are there"),
        *[(wav(b"\x90" * 1000, length=size), "") for size in (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)],
        (wav(b"\x90" * 1000, length=2), "warning: what lies behind 2 bytes of sound is no part of a WAV"),
        (wav(SOUND, length=0x7FFFFFFE), "error: cut off or damaged"),
        (wav(SOUND, fmt=form(block=2)), "error: its header contradicts itself: 2 channels of 16 bits in blocks of 2"),
        (wav(SOUND, fmt=form(bits=12)), ""),  # in two bytes
        (wav(SOUND, fmt=form(kind=3, bits=32)), ""),
        (wav(SOUND, fmt=form(kind=0x11, block=256)), ""),  # ADPCM counts otherwise
        (wav(SOUND, fmt=form(byte_rate=8000)), "warning: its header contradicts itself: 8000 Hz in blocks of 4 bytes"),
        (wav(SOUND, fmt=form() + b"\0\0"), ""),
        (wav(SOUND, fmt=form()[:14]), ""),
        (wav(b"")[:30], ""),  # no chunk of sound is left: the decoder says so
    ],
)
def test_wav(data, found, said):
    got = outcome(data, said)
    assert got == "" if found == "" else got.startswith(found)


def test_avi_counts_its_bytes(said):
    whole = b"RIFF" + struct.pack("<I", 1000) + b"AVI " + bytes(996)
    assert outcome(whole, said) == ""
    assert outcome(whole[:-1], said).startswith("warning: 999 of 1000 bytes are there")
    assert outcome(whole[:908], said).startswith("warning: 900 of 1000 bytes are there")
    assert outcome(whole[:907], said).startswith("error: cut off or damaged: 899 of 1000 bytes")
    assert outcome(b"RIFF" + bytes(4) + b"AVI " + bytes(99), said) == "", "its length was never written"
    assert outcome(b"RIFF" + struct.pack("<I", 1000) + b"WEBP" + bytes(10), said) == ""


def checksum(page: bytes) -> int:
    """Ogg's CRC-32, bit by bit."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


def page(number: int, flags: int = 0, stream: int = 7, sizes: bytes = b"\x05\x03") -> bytes:
    body = bytes(range(sum(sizes)))
    head = b"OggS\0" + bytes([flags]) + struct.pack("<QIII", 0, stream, number, 0) + bytes([len(sizes)]) + sizes
    return head[:22] + struct.pack("<I", checksum(head + body)) + head[26:] + body


FIRST, LAST = 2, 4


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (page(0, FIRST) + page(1) + page(2, LAST), ""),
        (page(0, FIRST | LAST), ""),
        (page(0) + page(1, LAST), ""),  # without the mark of a beginning, its number tells it
        (page(5, FIRST) + page(6, LAST), ""),  # a recording that was begun in the middle
        (page(0, FIRST) + page(0, FIRST, 8) + page(1, LAST) + page(1, LAST, 8), ""),
        (page(0, FIRST | LAST) + page(0, FIRST | LAST, 9), ""),  # one recording behind another
        (page(0, FIRST | LAST) + b"TAG and more", ""),
        (page(0, FIRST) + page(1), "warning: it has no end mark"),
        (page(0, FIRST) + page(0, FIRST, 8) + page(1, LAST), "warning: it has no end mark"),
        (page(0, FIRST) + page(2, LAST), "error: damaged: a page is missing before byte 37"),
        (page(0, FIRST) + page(0), "error: damaged: a page is missing before byte 37"),
        (page(1), "error: damaged: a page is missing before byte 0"),
        (page(0, FIRST) + page(1, LAST)[:-1], "error: cut off: its last page begins at byte 37 and is not whole"),
        (page(0, FIRST) + page(1, LAST)[:28], "error: cut off: its last page begins at byte 37 and is not whole"),
        (page(0, FIRST) + page(1, LAST)[:26], "error: cut off: its last page begins at byte 37 and is not whole"),
        (page(0, FIRST) + page(1, LAST)[:-1] + b"\xff", "error: damaged: the checksum of the page at byte 37"),
        (page(0, FIRST) + b"oggS" + page(1, LAST)[4:], "error: damaged: the checksum of the page at byte 37"),
    ],
)
def test_ogg(data, found, said):
    got = outcome(data, said)
    assert got == "" if found == "" else got.startswith(found)


def gif(*blocks: bytes, colours: int = 0, end: bytes = b";") -> bytes:
    """A GIF with a table of `2 ** colours` colours, none for 0."""
    flags = 0x80 | (colours - 1) if colours else 0
    return (
        b"GIF89a" + bytes(4) + bytes([flags, 0, 0]) + bytes(3 * 2**colours if colours else 0) + b"".join(blocks) + end
    )


PICTURE = b"," + bytes(8) + b"\x00" + b"\x02" + b"\x03abc" + b"\x01d" + b"\x00"
COLOURED = b"," + bytes(8) + b"\x81" + bytes(12) + b"\x02" + b"\x03abc" + b"\x00"
EXTENSION = b"!" + b"\xf9" + b"\x04\x00\x01\x02\x03" + b"\x00"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (gif(PICTURE), ""),
        (gif(EXTENSION, PICTURE, COLOURED, PICTURE, colours=3), ""),
        (gif(PICTURE) + b"anything", ""),
        (gif(PICTURE, end=b""), "warning: it has no end mark"),
        (gif(PICTURE, b"x"), "error: damaged: no block of a GIF begins at byte 31"),
        (gif(EXTENSION, b"\0", colours=1), "error: damaged: no block of a GIF begins at byte 27"),
        (gif(PICTURE[:13], end=b""), "error: cut off: it ends inside a block, at byte 26"),
        (gif(PICTURE[:5], end=b""), "error: cut off: it ends inside a block, at byte 18"),
        (gif(COLOURED[:15], end=b""), "error: cut off: it ends inside a block, at byte 28"),
        (gif(colours=4, end=b"")[:-1], "error: cut off: it ends inside a block, at byte 60"),
        (b"GIF89a\0\0\0\0", "warning: it has no end mark"),
    ],
)
def test_gif(data, found, said):
    got = outcome(data, said)
    assert got == "" if found == "" else got.startswith(found)


@pytest.mark.parametrize(
    ("data", "kind", "length"),
    [
        (b"\x81", 0x81, 1), (b"\xfe", 0xFE, 126), (b"\xff", 0xFF, None), (b"\x40\x02", 0x4002, 2),
        (b"\x7f\xff", 0x7FFF, None), (b"\x7f\xfe", 0x7FFE, 16382), (b"\x1a\x45\xdf\xa3", 0x1A45DFA3, 0xA45DFA3),
        (b"\x01" + b"\xff" * 7, 0x01FFFFFFFFFFFFFF, None), (b"\x01" + bytes(6) + b"\x05", 1 << 56 | 5, 5),
    ],
)  # fmt: skip
def test_numbers_of_matroska(data, kind, length):
    for keep_mark, expected in ((True, kind), (False, length)):
        file = io.BytesIO(data + b"rest")
        assert _read_number(file, keep_mark) == expected
        assert file.read() == b"rest"


def element(kind: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    number = b"\xff" if size < 0 else struct.pack(">I", 0x10000000 | size)
    return kind.to_bytes((kind.bit_length() + 7) // 8, "big") + number + body


def checked(body: bytes) -> bytes:
    """The body of an element with its checksum before it."""
    return b"\xbf\x84" + struct.pack("<I", zlib.crc32(body)) + body


HEAD, BLOCK = element(0x1A45DFA3, b"webm"), element(0xA3, bytes(50))
INFO, CUES = element(0x1549A966, checked(bytes(20))), element(0x1C53BB6B, bytes(30))
CLUSTER = element(0x1F43B675, element(0xE7, b"\0") + BLOCK)
SEGMENT = 0x18538067


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (HEAD + element(SEGMENT, INFO + CLUSTER + CLUSTER + CUES), ""),
        (HEAD + element(SEGMENT, INFO + element(0x1F43B675, BLOCK, -1) + CLUSTER + CUES, -1), ""),  # a live stream
        (HEAD + element(SEGMENT, INFO + CLUSTER) + b"\x99 something else", ""),
        (HEAD + element(0xEC, bytes(9)) + element(SEGMENT, element(0xEC, bytes(3)) + CLUSTER), ""),
        (b"\x1aE\xdf\xa3\x84webm\x99", ""),
        (
            HEAD + element(SEGMENT, INFO + b"\x99" + CLUSTER),
            "error: damaged: no element of Matroska or WebM begins at",
        ),
        (HEAD + element(SEGMENT, element(0x1F43B675, b"\x99\x81x")), "error: damaged: no element of Matroska or WebM"),
        (HEAD + element(SEGMENT, element(0x1549A966, checked(b"abc")[:-1] + b"d")), "error: damaged: the checksum of"),
        (
            HEAD + element(SEGMENT, element(0x1F43B675, element(0xA3, b"x", 9)) + CUES),
            "error: damaged: the element at",
        ),
        (HEAD + element(SEGMENT, INFO + CLUSTER * 9)[:-60], "warning: it ends inside an element: it may be cut off"),
        (HEAD + element(SEGMENT, INFO + CLUSTER * 9)[:-200], "error: cut off or damaged"),
        (HEAD + element(SEGMENT, INFO + CLUSTER, -1)[:-1], "warning: it ends inside an element: it may be cut off"),
    ],
)
def test_matroska(data, found, said):
    lines = outcome_of_all(data, said)
    assert lines == [] if found == "" else lines[-1].startswith(found)


def outcome_of_all(data: bytes, said: list) -> list[str]:
    """As `outcome`, of files of which several things are said."""
    said.clear()
    try:
        check_file(io.BytesIO(data), "x")
    except MediaError as error:
        return [f"error: {error.reason}"]
    return [f"warning: {line}" for line in said]


@pytest.mark.parametrize(
    ("kind", "head", "duration", "found"),
    [
        ("flac", b"", 80, 8.0), ("mp3", bytes(65_000) + b"Xing", 80, 8.0), ("mp3", b"Info", 80, 8.0),
        ("mp3", b"", 80, None), ("mp3", bytes(65_533) + b"Xing", 80, None), ("flac", b"", None, None),
        ("wav", b"Xing", 80, None), ("mp3,flac", b"Info", 0, None),
    ],
)  # fmt: skip
def test_a_length_that_is_stated_and_not_guessed(kind, head, duration, found):
    container = SimpleNamespace(format=SimpleNamespace(name=kind))
    stream, file = SimpleNamespace(duration=duration, time_base=Fraction(1, 10)), io.BytesIO(head)
    file.seek(3)
    assert promised_seconds(container, stream, file) == found
    assert file.tell() == 3
    stream.time_base = None
    assert promised_seconds(container, stream, file) is None
