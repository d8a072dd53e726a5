# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Damaged media of every container and codec that is claimed: each is refused in one line, or read as if nothing were
wrong, or read with a warning that names it, or is among those that no decoder can know to be damaged, with the reason.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from media_faults import Damage, run_decoder, spoil, write_seeds
from media_lies import bombs, change_heads, strangers


SHARED = Path(__file__).parents[3] / "shared" / "data" / "public"
MOST_MIB = 1024 + 128  # of memory for one medium, and what the process keeps for itself
MOST_SECONDS = 30.0


def judge(damages: list[Damage], found: list[dict], clean: dict[str, dict]) -> list[tuple[Damage, dict, str]]:
    """(damage, result, verdict): refused, whole (nothing of it was hurt), warned, unknown (read, and nobody knew), or
    what is wrong with what became of it."""

    def verdict(damage: Damage, one: dict) -> str:
        if one["outcome"] in ("died", "raised"):
            return f"WRONG: {one['outcome']} {one['message']}"
        if one["seconds"] > MOST_SECONDS or one["mib"] > MOST_MIB:
            return f"WRONG: {one['seconds']} s, {one['mib']} MiB"
        lines = [one["message"]] if one["outcome"] == "refused" else one["said"]
        for line in lines:
            if not line.startswith(str(damage.path)) or "\n" in line or "Traceback" in line or len(line) > 500:
                return f"WRONG: not one line about the file: {line}"
        if one["outcome"] == "refused":
            return "refused"
        if not one["finite"]:
            return "WRONG: numbers that are not finite"
        if damage.seed is not None and one["digest"] == clean[damage.seed]["digest"]:
            return "whole"
        return "warned" if one["said"] else "unknown"

    return [(damage, one, verdict(damage, one)) for damage, one in zip(damages, found)]


def is_shorter(one: dict, clean: dict) -> bool:
    """Whether there are fewer samples or frames than in the sound file."""
    return one["shape"][0] < clean["shape"][0]


def report(judged: list[tuple[Damage, dict, str]]) -> str:
    """Format by verdict, and the most that one file took."""
    table: dict[str, Counter] = {}
    for damage, _, verdict in judged:
        table.setdefault(damage.path.suffix[1:] if damage.seed is None else damage.seed, Counter())[
            verdict.split(":")[0]
        ] += 1
    names = ("refused", "whole", "warned", "unknown", "WRONG")
    lines = [f"{'':12}" + "".join(f"{name:>9}" for name in names)]
    lines += [f"{seed:12}" + "".join(f"{counts[name]:9}" for name in names) for seed, counts in sorted(table.items())]
    total = sum(table.values(), Counter())
    lines.append(f"{'all':12}" + "".join(f"{total[name]:9}" for name in names))
    most = {key: max(one.get(key, 0) for _, one, _ in judged) for key in ("seconds", "mib")}
    return "\n".join([*lines, f"{len(judged)} files; the most for one: {most['seconds']:.1f} s, {most['mib']} MiB"])


# What no decoder can know, and why: formats, what was done to them, reason.
PIXELS = ["flip", "flip_head", "zero", "leave_out", "double"]
UNKNOWABLE = {
    "a.wav b.wav a.bmp a.tif": (PIXELS, "plain values without a checksum"),
    "a.jpg a.webp b.webp film.webp b.tif a.gif film.gif": (
        PIXELS,
        "compressed pixels without a checksum: others come out",
    ),
    "a.mp3 a.aac a.m4a a.mka o.webm": (["flip", "flip_head"], "compressed sound without a checksum"),
    "a.mp4 f.mp4 a.mkv a.mov a.avi a.webm b.webm": (["flip", "flip_head"], "compressed pixels without a checksum"),
}
UNKNOWABLE_HEADS = {
    "one-line-of-many-a.png": "its checksums are right, and Pillow fills up what is missing",
    "too-much-data-a.png": "what follows the last line is not looked at",
    "long-line-a.png": "a picture of an odd shape, which is whole",
    "wide-a.jpg": "lines of another length are still lines",
    "as-video-a.jpg": "a picture is a film of one frame",
}


def reason(damage: Damage) -> str | None:
    """Why nobody can know of it."""
    if damage.path.name in UNKNOWABLE_HEADS:
        return UNKNOWABLE_HEADS[damage.path.name]
    of_format = (
        why for names, (ways, why) in UNKNOWABLE.items() if damage.seed in names.split() and damage.what in ways
    )
    return next(of_format, None)


def check(damages: list[Damage], found: list[dict], seeds: dict) -> None:
    """Judges what became of the sound files and of the damaged ones behind them."""
    clean = dict(zip(seeds, found))
    for name, one in clean.items():
        assert (one["outcome"], one["said"]) == ("decoded", []), (name, one)
    judged = judge(damages, found[len(seeds) :], clean)
    print(report(judged))
    wrong = [f"{damage.path.name}: {verdict}" for damage, _, verdict in judged if verdict.startswith("WRONG")]
    for damage, one, verdict in judged:
        if verdict == "unknown":
            if reason(damage) is None:
                wrong.append(f"{damage.path.name} ({damage.what}) is read as {one['shape']}, and nothing is said")
            elif damage.seed and damage.path.name not in UNKNOWABLE_HEADS and is_shorter(one, clean[damage.seed]):
                wrong.append(f"{damage.path.name} is cut to {one['shape']}, and nothing is said")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("sound"))


@pytest.mark.slow
def test_the_campaign(seeds, tmp_path):
    damages = spoil(seeds, tmp_path / "spoilt") + change_heads(seeds, tmp_path / "heads")
    damages += bombs(tmp_path / "bombs") + strangers(seeds, tmp_path / "strangers")
    assert len(damages) >= 500
    jobs = [*seeds.values(), *((damage.reader, damage.path) for damage in damages)]
    check(damages, run_decoder(jobs, tmp_path / "runs"), seeds)


def test_a_few_of_each(seeds, tmp_path):
    some = {name: seeds[name] for name in ("a.png", "a.flac", "a.ogg", "f.mp4", "a.webm", "film.gif")}
    damages = spoil(some, tmp_path / "spoilt", times=0.2)
    damages += [
        one for one in change_heads(seeds, tmp_path / "heads") if one.seed in some and "endless" not in one.what
    ]
    jobs = [*some.values(), *((damage.reader, damage.path) for damage in damages)]
    check(damages, run_decoder(jobs, tmp_path / "runs", processes=1), some)


def test_a_crash_a_hang_and_a_leak_are_seen(tmp_path):
    """The judge itself: files at which the reader's process dies, waits for ever, or takes too much memory."""
    jobs = [(fault, tmp_path / fault) for fault in ("fine", "crash", "hang", "memory", "fine")]
    found = run_decoder(jobs, tmp_path / "runs", processes=1)
    assert [one["outcome"] for one in found] == ["decoded", "died", "died", "raised", "decoded"]
    verdicts = [verdict for _, _, verdict in judge([Damage(None, "", *job) for job in jobs], found, {})]
    assert [verdict.split(":")[0] for verdict in verdicts] == ["unknown", "WRONG", "WRONG", "WRONG", "unknown"]
    assert "MemoryError" in verdicts[3]


# Sound files at which there is a warning: 16-bit pixels of which few bits are used.
DARK = {"16bit.cropped.tif"}
FINE = re.compile("fine|UTF-8|smallest")
# Damaged ones that are read in silence.
UNKNOWN = {
    "bmp_b_badrle.bmp": "Pillow stops at the end of the bitmap",
    "sugarshack_bad_mpo_header.jpg": "the first picture of several is whole",
    "test-8000Hz-le-5ch-9S-5bit.wav": "5 bits in a byte, as the format allows",
    "small_webm.webm": "185 bytes, and one frame",
    "moviepy_failing_audio.mp4": "its pictures are whole",
    "made_mp3_flips.mp3": "compressed sound without a checksum",
    "made_jpg_flips.jpg": "compressed pixels without a checksum",
}
READERS = dict.fromkeys(("wav", "mp3", "flac", "aac", "m4a", "ogg", "opus"), "audio")
READERS |= dict.fromkeys(("mp4", "webm", "mkv", "mov", "avi"), "video")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real files is not beside this checkout")
def test_real_files(tmp_path):
    damages, sound = [], []
    for line in (SHARED / "malformed.jsonl").read_text().splitlines():
        path = SHARED / json.loads(line)["file"]
        damages.append(Damage(None, json.loads(line)["why"], READERS.get(path.suffix[1:], "image"), path))
    by_group = Counter()
    for line in (SHARED / "manifest.jsonl").read_text().splitlines():
        one = json.loads(line)
        by_group[one["group"]] += 1
        if by_group[one["group"]] <= 60:
            sound.append((READERS.get(Path(one["file"]).suffix[1:], "image"), SHARED / one["file"]))
    found = run_decoder([*sound, *((damage.reader, damage.path) for damage in damages)], tmp_path)
    judged = judge(damages, found[len(sound) :], {})
    print(report(judged))
    said = {path.name: one["said"] or one.get("message") for (_, path), one in zip(sound, found)}
    doubted = {name: line for name, line in said.items() if line and "several frames or pages" not in str(line)}
    assert doubted.keys() <= DARK, doubted
    wrong = [f"{damage.path.name}: {verdict}" for damage, _, verdict in judged if verdict.startswith("WRONG")]
    wrong += [
        f"{damage.path.name} ({damage.what}) is read, and nothing is said"
        for damage, _, verdict in judged
        if verdict == "unknown" and not FINE.search(damage.what) and damage.path.name not in UNKNOWN
    ]
    assert not wrong, "\n".join(wrong)
