# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Media whose headers lie, small files that would be large, and other things under the names of media."""

import json
import random
import struct
import zlib
from pathlib import Path

import av
import numpy as np
from media_faults import Damage
from PIL import Image


# Sound file, what is changed, bytes that stand before the field (None: the file's beginning), distance, form, values.
FIELDS = [
    ("a.wav", "channels-0", None, 22, "<H", 0),
    ("a.wav", "channels-2", None, 22, "<H", 2),
    ("a.wav", "channels-65535", None, 22, "<H", 65535),
    ("a.wav", "rate-0", None, 24, "<I", 0),
    ("a.wav", "rate-8000", None, 24, "<I", 8000),
    ("a.wav", "rate-1e9", None, 24, "<I", 10**9),
    ("a.wav", "bits-8", None, 34, "<H", 8),
    ("a.wav", "bits-24", None, 34, "<H", 24),
    ("a.wav", "bits-53", None, 34, "<H", 53),
    ("a.wav", "codec-unknown", None, 20, "<H", 0x7777),
    ("a.wav", "codec-mp3", None, 20, "<H", 0x55),
    ("a.wav", "size-more", b"data", 4, "<I", 200_000),
    ("a.wav", "size-less", b"data", 4, "<I", 50_000),
    ("a.wav", "size-4G", b"data", 4, "<I", 0xFFFFFFF0),
    ("a.flac", "rate", None, 18, ">I", 0x2EE00070),
    ("a.flac", "channels", None, 20, "B", 0x0E),
    ("a.flac", "total-more", None, 22, ">I", 480_000),
    ("a.flac", "total-less", None, 22, ">I", 4_800),
    ("a.flac", "total-huge", None, 21, "B", 0xFF),
    ("a.flac", "block-huge", None, 8, ">HH", 65535, 65535),
    ("a.gif", "bomb", None, 6, "<HH", 65535, 65535),
    ("a.gif", "no-pixels", None, 6, "<HH", 0, 0),
    ("film.gif", "bomb", None, 6, "<HH", 65535, 65535),
    ("a.bmp", "bomb", None, 18, "<ii", 2**30, 2**30),
    ("a.bmp", "wide", None, 18, "<i", 256),
    ("a.bmp", "negative", None, 18, "<i", -128),
    ("a.bmp", "bits-30000", None, 28, "<H", 30000),
    ("a.bmp", "offset", None, 10, "<I", 2**31),
    ("a.tif", "bomb", b"\0\1\4\0\1\0\0\0", 8, "<I", 2**31 - 1),
    ("a.tif", "directory", None, 4, "<I", 2**32 - 8),
    ("a.tif", "loop", None, 4, "<I", 4),
    ("a.jpg", "bomb", b"\xff\xc0", 5, ">HH", 65500, 65500),
    ("a.jpg", "wide", b"\xff\xc0", 7, ">H", 4096),
    ("a.jpg", "no-pixels", b"\xff\xc0", 5, ">H", 0),
    ("b.webp", "size-more", None, 4, "<I", 2**31),
    ("b.webp", "size-less", None, 4, "<I", 3000),
    ("f.mp4", "samples-many", b"stsz", 12, ">I", 2**30),
    ("f.mp4", "samples-few", b"stsz", 12, ">I", 10),
    ("f.mp4", "samples-all-alike", b"stsz", 8, ">II", 1, 2**31 - 1),
    ("f.mp4", "times-many", b"stts", 12, ">I", 2**30),
    ("f.mp4", "chunks-many", b"stco", 8, ">I", 2**28),
    ("f.mp4", "timescale-0", b"mdhd", 16, ">I", 0),
    ("f.mp4", "box-huge", b"mdat", -4, ">I", 2**31),
    ("f.mp4", "no-index", b"moov", 0, "4s", b"moof"),
    ("f.mp4", "wide", b"avc1", 28, ">HH", 65535, 65535),
    ("a.avi", "frames-many", b"avih", 24, "<I", 2**31),
    ("a.avi", "rate-0", b"strh", 28, "<II", 0, 0),
    ("a.avi", "wide", b"strf", 12, "<ii", 2**16, 2**16),
    ("a.avi", "list-huge", b"movi", -4, "<I", 2**32 - 1),
]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG file with right checksums, whatever it claims; `more` stands before its pixels."""
    head = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = _png_chunk(b"IDAT", zlib.compress(data)) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + more + pixels


def liars(seeds: dict[str, tuple[str, Path]]) -> dict[tuple[str, str], bytes]:
    """Files that are made, rather than changed in one field: (sound file, what) -> bytes."""
    floats, wav, film = (seeds[name][1].read_bytes() for name in ("b.wav", "a.wav", "film.gif"))
    packed = b"a\0\0" + zlib.compress(bytes(1 << 26))
    return {
        ("b.wav", "nan"): floats[:-4000] + struct.pack("<f", float("nan")) * 1000,
        ("a.wav", "no-data"): wav[: wav.index(b"data") + 4] + bytes(4),
        ("a.wav", "one-percent-short"): wav[: len(wav) - len(wav) // 100],
        ("film.gif", "endless"): film[:-1] + 3000 * film[film.index(b"\x21\xf9") : -1],
        ("a.png", "bomb"): png(60_000, 60_000),
        ("a.png", "no-pixels"): png(0, 0),
        ("a.png", "one-line-of-many"): png(100, 100, data=bytes(101)),
        ("a.png", "long-line"): png(10**6, 1, data=bytes(10**6 + 1)),
        ("a.png", "text-bomb"): png(8, 8, data=bytes(72), more=_png_chunk(b"zTXt", packed)),
        ("a.png", "profile-bomb"): png(8, 8, data=bytes(72), more=_png_chunk(b"iCCP", packed)),
        ("a.png", "too-much-data"): png(8, 8, data=bytes(1 << 26)),
        ("a.png", "depth-7"): png(8, 8, 7, data=bytes(72)),
        ("a.png", "no-palette"): png(8, 8, 8, 3, data=bytes(72)),
        ("a.png", "memory"): png(13_000, 13_000, 8, 6, bytes(1 << 20)),
        ("a.png", "wide"): png(20_000, 8_000, 1, 0, bytes(1 << 20)),
    }


def change_heads(seeds: dict[str, tuple[str, Path]], folder: Path) -> list[Damage]:
    """Fields of headers changed to other values, lies and bombs among them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = liars(seeds)
    for name, what, mark, distance, form, *values in FIELDS:
        data = seeds[name][1].read_bytes()
        start = distance if mark is None else data.index(mark) + distance
        new = struct.pack(form, *values)
        made[name, what] = data[:start] + new + data[start + len(new) :]
    found = []
    for (name, what), content in made.items():
        target = folder / f"{what}-{name}"
        target.write_bytes(content)
        found.append(Damage(name, f"head {what}", seeds[name][0], target))
    return found


def bombs(folder: Path) -> list[Damage]:
    """Small files that would be large: 2 h 30 min of silence, a film of 8,000 x 8,000 pixels a frame."""
    folder.mkdir(parents=True, exist_ok=True)
    silence = folder / "silence.flac"
    with av.open(str(silence), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_384), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        for number in range(9_000 * 16_000 // 16_384):
            frame.pts = number * 16_384
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = [Image.new("L", (8_000, 8_000), level) for level in (0, 255) * 10]
    frames[0].save(folder / "large.gif", save_all=True, append_images=frames[1:], duration=100)
    return [
        Damage(None, "long silence", "audio", silence),
        Damage(None, "large frames", "video", folder / "large.gif"),
    ]


def strangers(seeds: dict[str, tuple[str, Path]], folder: Path) -> list[Damage]:
    """Other things under the names of media: nothing, zeros, noise, text, a web page, a playlist, other formats."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, found = random.Random(0), []
    contents = {
        "empty": b"",
        "one-byte": b"\0",
        "zeros": bytes(5_000),
        "noise": draw.randbytes(5_000),
        "text": b"no medium\n" * 300,
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "json": json.dumps({"a": [1] * 900}).encode(),
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n",
        "zip": b"PK\3\4" + draw.randbytes(900),
        "pickle": b"\x80\x04\x95" + draw.randbytes(300),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>' * 40,
    }
    for what, content in contents.items():
        for reader, ending in (("image", "jpg"), ("audio", "wav"), ("video", "mp4")):
            target = folder / f"{what}.{ending}"
            target.write_bytes(content)
            found.append(Damage(None, f"stranger {what}", reader, target))
    others = {
        "image": ("a.wav", "a.mp4", "a.mp3"),
        "audio": ("a.png", "a.jpg", "a.webm"),
        "video": ("a.wav", "a.ogg", "a.jpg"),
    }
    for reader, names in others.items():
        for name in names:
            target = folder / f"as-{reader}-{name}"
            target.write_bytes(seeds[name][1].read_bytes())
            found.append(Damage(None, "stranger other kind", reader, target))
    return found
