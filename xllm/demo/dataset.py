# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo's data as anybody's data would be: PNG, mp4 and wav files, and JSONL files of chat messages that name them.

| file                 | one line is                                        | read by |
|----------------------|----------------------------------------------------|---------|
| convert_image.jsonl  | an image and its caption                           | stage 1 |
| convert_speech.jsonl | a recording and its transcript                     | stage 1 |
| align_<m>.jsonl      | a question about one medium of one kind            | stage 2 |
| integrate.jsonl      | all those, and questions about an image + a speech | stage 3 |
| test_<task>.jsonl    | questions about unseen scans and voices            | the end |

Image + speech: of the 100 ordered pairs (digit seen, digit heard) `held_out_pairs` chooses 20 for the test, which no
training file holds. Everything follows from the seed.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xllm.demo import digits
from xllm.demo.corpus import PLACES
from xllm.demo.questions import NUMBER_WORDS, TASKS, Facts, answer, random_question, transcript
from xllm.demo.settings import DemoScale
from xllm.demo.waveforms import SAMPLING_RATE, augment_waveform, write_wave
from xllm.processing.audio_decoding import resample
from xllm.training.instructions.speech_synthesis import random_speaker, split_voices, synthesise
from xllm.training.progress import ProgressLine, SharedLines


FRAMES_PER_SECOND = 2
PART_TYPES = {"image": "image", "video": "video", "speech": "audio"}
DISTURBANCE = 0.15  # of the questions of training


class Item(NamedTuple):
    """One file and what it shows or says."""

    path: str
    facts: Facts


def held_out_pairs(seed: int) -> frozenset[tuple[int, int]]:
    """20 ordered pairs (digit seen, digit heard) of two different digits: each digit twice on either side."""
    rng = np.random.default_rng([seed, 4])
    order = rng.permutation(10)
    offsets = rng.choice(np.arange(1, 10), size=2, replace=False)
    heard = [[order[(place + offset) % 10] for place in range(10)] for offset in offsets]
    return frozenset((int(order[place]), int(row[place])) for row in heard for place in range(10))


def write_media(folder: Path, scale: DemoScale, seed: int) -> dict[str, dict[str, list[Item]]]:
    """Draw, animate and speak everything below `folder`.

    Returns:
        items of "train" and "test", by modality ("image", "video", "speech"; "single": recordings of one digit).

    Raises:
        ImportError: scikit-learn or espeakng-loader is not installed.
    """
    scans = digits.load_scans(scale.test_fraction, seed)
    voices = split_voices(scale.num_test_voices, seed)
    for name in ("images", "videos", "speech"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = (
        (scale.num_images, scale.num_videos, scale.num_recordings),
        (scale.num_tests, scale.num_tests, 2 * scale.num_tests),
    )
    sides = {}
    for salt, side in enumerate(("train", "test")):
        num_images, num_videos, num_recordings = numbers[salt]
        rng = np.random.default_rng([seed, 5, salt])
        images = _write_images(folder, side, scans[salt], num_images, rng)
        videos = _write_videos(folder, side, scans[salt], num_videos, 2 * scale.num_frames, rng)
        rng = np.random.default_rng([seed, 6, salt])
        speech = _write_speech(folder, side, num_recordings, voices[salt], (1.0, 0.3)[salt], rng)
        single = [item for item in speech if len(item.facts.speech) == 1]
        sides[side] = {"image": images, "video": videos, "speech": speech, "single": single}
    return sides


def _counted(what: str, items: Sequence[Any]) -> Iterator[Any]:
    """The items, with a line of progress now and then."""
    progress = ProgressLine(f"data, {what}", "file", len(items), SharedLines())
    for done, item in enumerate(items, start=1):
        yield item
        progress.update(done)


def _write_images(
    folder: Path, side: str, scans: digits.DigitScans, number: int, rng: np.random.Generator
) -> list[Item]:
    items = []
    for count in _counted("images", range(number)):
        scan, digit = _choose_scan(scans, count, rng)
        path = f"images/{side}-{count:05d}.png"
        place = str(rng.choice(PLACES)) if side == "train" and count % 3 == 2 else None
        if side == "test":  # the scan as it is
            picture = digits.draw_plainly(scan, rng)
        else:
            picture = digits.draw_image(scan, rng) if place is None else digits.draw_at(scan, place, rng)
        picture.save(folder / path, compress_level=1)
        items.append(Item(path, Facts(image=digit, place=place)))
    return items


def _choose_scan(scans: digits.DigitScans, count: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A scan of the digit `count` modulo 10, and that digit: all digits equally often."""
    digit = count % 10
    return scans.images[rng.choice(np.flatnonzero(scans.labels == digit))], digit


def _write_videos(
    folder: Path, side: str, scans: digits.DigitScans, number: int, frames: int, rng: np.random.Generator
) -> list[Item]:
    items = []
    for count in _counted("videos", range(number)):
        scan, digit = _choose_scan(scans, count, rng)
        motion = digits.MOTIONS[int(rng.integers(len(digits.MOTIONS)))]
        path = f"videos/{side}-{count:05d}.mp4"
        digits.write_video(digits.draw_video(scan, motion, frames, rng), folder / path, FRAMES_PER_SECOND)
        items.append(Item(path, Facts(video=digit, motion=motion)))
    return items


def _write_speech(
    folder: Path, side: str, number: int, voices: tuple[str, ...], strength: float, rng: np.random.Generator
) -> list[Item]:
    """Recordings of one to three digits; half hold a single one, since the cross questions need all ten."""
    facts, utterances = [], []
    for count in range(number):
        length = int(rng.choice((1, 2, 3), p=(0.5, 0.25, 0.25)))
        spoken = (count,) if count < 10 else tuple(int(digit) for digit in rng.integers(10, size=length))
        language = "zh" if rng.random() < 0.5 else "en"
        facts.append(Facts(speech=spoken, language=language))
        pause = str(rng.choice([" ", " ", ", "]))  # the digits run together, or not
        text = pause.join(NUMBER_WORDS[language][digit] for digit in spoken)
        utterances.append(random_speaker(text, language, voices, rng))
    waves, rate = synthesise(utterances)
    items = []
    for count, fact in enumerate(_counted("recordings", facts)):
        wave = waves[count]
        samples = resample(wave.astype(np.float32) / 32768.0, rate, SAMPLING_RATE)
        # A third of the training clips is left nearly clean: a quiet room must not be a surprise either.
        share = strength if strength < 1.0 or rng.random() < 0.67 else 0.3
        path = f"speech/{side}-{count:05d}.wav"
        write_wave(augment_waveform(samples, rng, share), folder / path)
        items.append(Item(path, fact))
    return items


def write_data(folder: str | Path, scale: DemoScale, seed: int) -> Path:
    """Write all media and all JSONL files of the demo to `folder`, and return that."""
    folder = Path(folder)
    media = write_media(folder, scale, seed)
    held_out = held_out_pairs(seed)
    rng = np.random.default_rng([seed, 7])
    captions = {
        "image": lambda facts: f"the digit {facts.image}" if facts.place is None else f"{facts.image} {facts.place}",
        "speech": lambda facts: transcript(facts.speech, facts.language),
    }
    for modality, caption in captions.items():
        lines = [_message({modality: item}, "", caption(item.facts)) for item in media["train"][modality]]
        _write_lines(folder / f"convert_{modality}.jsonl", lines)
    mixture = []
    for modality in ("image", "video", "speech"):
        tasks = [task for task in TASKS if TASKS[task][0] == (modality,)]
        lines = [_ask(_choose_task(tasks, item, rng), {modality: item}, rng) for item in media["train"][modality]]
        _write_lines(folder / f"align_{modality}.jsonl", lines)
        mixture += [lines[index] for index in rng.permutation(len(lines))[: scale.num_pairs // 2]]
    allowed = [(seen, heard) for seen in range(10) for heard in range(10) if (seen, heard) not in held_out]
    mixture += _cross_lines(media["train"], allowed, scale.num_pairs, rng, DISTURBANCE)
    _write_lines(folder / "integrate.jsonl", [mixture[index] for index in rng.permutation(len(mixture))])
    for name, task in (("image", "image_digit"), ("speech", "speech_text"), ("video", "video_text")):
        lines = [_ask(task, {name: item}, rng, 0.0) for item in media["test"][name][: scale.num_tests]]
        _write_lines(folder / f"test_{name}.jsonl", lines)
    _write_lines(folder / "test_cross.jsonl", _cross_lines(media["test"], sorted(held_out), scale.num_tests, rng, 0.0))
    return folder


def _choose_task(tasks: list[str], item: Item, rng: np.random.Generator) -> str:
    """A task that can be asked about an item; half of the digits that stand somewhere are asked where."""
    if item.facts.place is not None and rng.random() < 0.5:
        return "image_place"
    return str(rng.choice([task for task in tasks if task != "image_place"]))


def _cross_lines(
    media: dict[str, list[Item]], pairs: list, number: int, rng: np.random.Generator, disturbance: float
) -> list[dict]:
    """Questions about an image and a recording of one digit, all pairs and tasks equally often."""
    seen = {digit: [item for item in media["image"] if item.facts.image == digit] for digit in range(10)}
    heard = {digit: [item for item in media["single"] if item.facts.speech == (digit,)] for digit in range(10)}
    tasks = ("cross_sum", "cross_larger")
    lines = []
    for count in range(number):
        image_digit, spoken_digit = pairs[count // len(tasks) % len(pairs)]
        image = seen[image_digit][int(rng.integers(len(seen[image_digit])))]
        speech = heard[spoken_digit][int(rng.integers(len(heard[spoken_digit])))]
        lines.append(_ask(tasks[count % len(tasks)], {"image": image, "speech": speech}, rng, disturbance))
    return lines


def _ask(task: str, media: dict[str, Item], rng: np.random.Generator, disturbance: float = DISTURBANCE) -> dict:
    """A question about items, by modality, and its answer."""
    known = {  # what is said of nothing else
        name: value
        for item in media.values()
        for name, value in vars(item.facts).items()
        if value != getattr(Facts, name)
    }
    question = random_question(task, rng, disturbance)
    return _message(media, question, answer(task, Facts(**known), question))


def _message(media: dict[str, Item], question: str, reply: str) -> dict:
    """One sample in Hugging Face's chat form."""
    parts = [{"type": PART_TYPES[modality], "path": item.path} for modality, item in media.items()]
    if question:
        parts.append({"type": "text", "text": question})
    return {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": reply}]},
        ]
    }


def _write_lines(path: Path, lines: list[dict]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
