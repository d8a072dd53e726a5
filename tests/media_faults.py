# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Damaged media, made from small sound ones of every container and codec that is claimed: cuts, flipped bits, zeroed,
missing and doubled blocks (`media_lies` has headers and bombs).

The same files come out each time. `run_decoder` reads them in processes of their own with a limit on their memory and
time, so that a crash or a hang is one file's, and is seen.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from media_files import sine, write_sound, write_video
from PIL import Image


WORKER = Path(__file__).with_name("media_fault_worker.py")


@dataclass(frozen=True)
class Damage:
    """One damaged file: the sound one it was made from (None: none), what was done to it, its reader and its path."""

    seed: str | None
    what: str
    reader: str
    path: Path


# ---- sound files ----------------------------------------------------------------------------------------------------


def _picture() -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))


def _film() -> np.ndarray:
    blocks = np.random.default_rng(1).integers(0, 255, (20, 8, 12, 3), dtype=np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)


def _noisy(rate: int) -> np.ndarray:
    tone = sine(3.0, rate)
    return (tone + 0.05 * np.random.default_rng(2).standard_normal(len(tone))).astype(np.float32)


PICTURES = {
    "a.png": ("PNG", {}), "a.jpg": ("JPEG", {"quality": 90}), "a.webp": ("WEBP", {}),
    "b.webp": ("WEBP", {"lossless": True}), "a.gif": ("GIF", {}), "a.tif": ("TIFF", {}),
    "b.tif": ("TIFF", {"compression": "tiff_deflate"}), "a.bmp": ("BMP", {}),
}  # fmt: skip
SOUNDS = {
    "a.wav": ("pcm_s16le", 16_000), "b.wav": ("pcm_f32le", 8_000), "a.flac": ("flac", 16_000),
    "a.mp3": ("libmp3lame", 16_000), "a.ogg": ("libopus", 48_000), "a.opus": ("libopus", 48_000),
    "a.m4a": ("aac", 16_000), "a.aac": ("aac", 16_000), "a.mka": ("aac", 16_000), "o.webm": ("libopus", 48_000),
}  # fmt: skip
FILMS = {
    "a.mp4": ("libx264", {}), "f.mp4": ("libx264", {"options": {"movflags": "faststart"}}), "a.mkv": ("libx264", {}),
    "a.webm": ("libvpx", {}), "b.webm": ("libvpx-vp9", {}), "a.avi": ("mpeg4", {}), "a.mov": ("mpeg4", {}),
}  # fmt: skip
MOVING = {"film.gif": "GIF", "film.webp": "WEBP"}


def write_seeds(folder: Path) -> dict[str, tuple[str, Path]]:
    """Writes the sound files; name -> reader and path."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[str, Path]] = {}
    for name, (form, options) in PICTURES.items():
        _picture().save(folder / name, form, **options)
        found[name] = ("image", folder / name)
    deep = np.linspace(0, 65535, 96 * 128).astype(np.uint16).reshape(96, 128)
    Image.fromarray(deep).save(folder / "deep.png")
    found["deep.png"] = ("image", folder / "deep.png")
    for name, (codec, rate) in SOUNDS.items():
        found[name] = ("audio", write_sound(folder / name, _noisy(rate), codec, rate))
    for name, (codec, options) in FILMS.items():
        found[name] = ("video", write_video(folder / name, _film(), codec=codec, keyframe_every=6, **options))
    first, *others = map(Image.fromarray, _film())
    for name, form in MOVING.items():
        first.save(folder / name, form, save_all=True, append_images=others, duration=100)
        found[name] = ("video", folder / name)
    return found


# ---- what is done to them -------------------------------------------------------------------------------------------


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) // 20, len(data) * 98 // 100)]


def cut_end(data: bytes, draw: random.Random) -> bytes:
    return data[: -draw.randrange(1, 40)]


def flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(3):
        changed[draw.randrange(len(data) // 20, len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_head(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(4, min(200, len(data)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def zero(data: bytes, draw: random.Random) -> bytes:
    size = len(data) // 16
    start = draw.randrange(len(data) // 20, len(data) - size)
    return data[:start] + bytes(size) + data[start + size :]


def leave_out(data: bytes, draw: random.Random) -> bytes:
    size = len(data) // 8
    start = draw.randrange(len(data) // 10, len(data) - size)
    return data[:start] + data[start + size :]


def double(data: bytes, draw: random.Random) -> bytes:
    size = len(data) // 8
    start = draw.randrange(len(data) // 10, len(data) - size)
    return data[: start + size] + data[start:]


WAYS = {cut: 5, cut_end: 2, flip: 4, flip_head: 3, zero: 2, leave_out: 1, double: 1}


def spoil(seeds: dict[str, tuple[str, Path]], folder: Path, times: float = 1) -> list[Damage]:
    """Every way of damage to every sound file, as often as `WAYS` says, times `times` (at least once)."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, (reader, path) in seeds.items():
        data = path.read_bytes()
        for way, count in WAYS.items():
            for number in range(max(1, round(times * count))):
                target = folder / f"{way.__name__}-{number}-{name}"
                target.write_bytes(way(data, random.Random(f"{name} {way.__name__} {number}")))
                found.append(Damage(name, way.__name__, reader, target))
    return found


# ---- reading them ---------------------------------------------------------------------------------------------------


def run_decoder(jobs: list[tuple[str, Path]], folder: Path, processes: int = 2) -> list[dict]:
    """What became of each (reader, path), read in so many processes; one that dies goes on with the next file."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [list(range(start, len(jobs), processes)) for start in range(processes)]
    found: dict[int, dict] = {}

    def start(part: int) -> subprocess.Popen:
        listed = [[number, jobs[number][0], str(jobs[number][1])] for number in parts[part] if number not in found]
        (folder / f"{part}.json").write_text(json.dumps(listed))
        arguments = [str(folder / f"{part}.{ending}") for ending in ("json", "jsonl")]
        errors = (folder / f"{part}.err").open("w")
        # Each thread of a decoder would claim addresses of its own.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(WORKER), *arguments], stdout=errors, stderr=errors, env=environment
        )

    def take(part: int) -> None:
        path = folder / f"{part}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            one = json.loads(line)
            found[one["number"]] = one

    running = {part: start(part) for part in range(processes) if parts[part]}
    while running:
        part, process = next(iter(running.items()))
        code = process.wait(timeout=600)
        del running[part]
        take(part)
        if left := [number for number in parts[part] if number not in found]:
            assert code != 0, (folder / f"{part}.err").read_text()[-2000:]
            died = (folder / f"{part}.err").read_text()[-300:]
            assert (folder / f"{part}.jsonl").exists(), died
            found[left[0]] = {"number": left[0], "outcome": "died", "message": f"status {code}: {died}"}
            running[part] = start(part)
    return [found[number] for number in range(len(jobs))]
