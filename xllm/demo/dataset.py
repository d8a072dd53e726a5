# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo's data as anybody's data would be: PNG, mp4 and wav files, and JSONL files of chat messages that name them.

| file                 | one line is                                        | read by |
|----------------------|----------------------------------------------------|---------|
| convert_image.jsonl  | an image and its caption                           | stage 1 |
| convert_speech.jsonl | a recording and its transcript                     | stage 1 |
| align_<m>.jsonl      | a conversation about one medium of one kind        | stage 2 |
| integrate.jsonl      | all those, and questions about an image + a speech | stage 3 |
| test_<task>.jsonl    | questions about unseen scans and voices            | the end |

A quarter of the conversations has two or three turns, of which the last answer is learnt; some questions cannot be
answered from their media; in some recordings nobody speaks, and their transcript is empty.
Image + speech: of the 100 ordered pairs (digit seen, digit heard) `held_out_pairs` chooses 20 for the test, which no
training file holds. Everything follows from the seed.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xllm.demo import digits
from xllm.demo.corpus import PLACES, random_turn
from xllm.demo.questions import (
    CANNOT_TELL,
    NUMBER_WORDS,
    Facts,
    answer,
    random_question,
    random_unanswerable,
    transcript,
)
from xllm.demo.settings import DemoScale
from xllm.demo.waveforms import SAMPLING_RATE, augment_waveform, quiet_waveform, write_wave
from xllm.processing.audio_decoding import resample
from xllm.training.instructions.speech_synthesis import Utterance, random_speaker, split_voices, synthesise
from xllm.training.progress import ProgressLine, SharedLines


FRAMES_PER_SECOND = 2
PART_TYPES = {"image": "image", "video": "video", "speech": "audio"}
DISTURBANCE = 0.15  # of the questions of training
CONVERSATIONS = 0.25  # of the training samples, those of two or three turns
# What the questions that cannot be answered have beside them.
_BESIDE = (("image",), ("speech",), ("video",), ("image", "speech"), ())


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


def write_pictures(folder: Path, scale: DemoScale, seed: int) -> dict[str, dict[str, list[Item]]]:
    """Draw and animate everything below `folder`.

    Returns:
        items of "train" and "test", by modality ("image", "video").

    Raises:
        ImportError: scikit-learn is not installed.
    """
    scans = digits.load_scans(scale.test_fraction, seed)
    for name in ("images", "videos"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = ((scale.num_images, scale.num_videos), (scale.num_tests, scale.num_tests))
    sides = {}
    for salt, side in enumerate(("train", "test")):
        rng = np.random.default_rng([seed, 5, salt])
        images = _write_images(folder, side, scans[salt], numbers[salt][0], rng)
        videos = _write_videos(folder, side, scans[salt], numbers[salt][1], 2 * scale.num_frames, rng)
        sides[side] = {"image": images, "video": videos}
    return sides


def write_speech(
    folder: Path, scale: DemoScale, seed: int, languages: tuple[str, ...] = ("en", "zh")
) -> dict[str, dict[str, list[Item]]]:
    """Speak everything below `folder`, in any of the languages, and record silence.

    Returns:
        items of "train" and "test": "speech", "single" (recordings of one digit) and "silence".

    Raises:
        ImportError: espeakng-loader is not installed.
    """
    voices = split_voices(scale.num_test_voices, seed)
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    numbers = ((scale.num_recordings, scale.num_recordings // 16), (2 * scale.num_tests, scale.num_tests // 2))
    sides = {}
    for salt, side in enumerate(("train", "test")):
        rng = np.random.default_rng([seed, 6, salt])
        speech = _write_speech(folder, side, numbers[salt][0], voices[salt], (1.0, 0.3)[salt], rng, languages)
        silence = _write_silence(folder, side, numbers[salt][1], (2.5, 4.0)[salt], rng)
        single = [item for item in speech if len(item.facts.speech) == 1]
        sides[side] = {"speech": speech, "single": single, "silence": silence}
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
    folder: Path,
    side: str,
    number: int,
    voices: tuple[str, ...],
    strength: float,
    rng: np.random.Generator,
    languages: tuple[str, ...],
) -> list[Item]:
    """Recordings of one to three digits; half hold a single one, since the cross questions need all ten."""
    facts, utterances = [], []
    for count in range(number):
        length = int(rng.choice((1, 2, 3), p=(0.5, 0.25, 0.25)))
        spoken = (count,) if count < 10 else tuple(int(digit) for digit in rng.integers(10, size=length))
        language = languages[-1] if rng.random() < 0.5 else languages[0]
        facts.append(Facts(speech=spoken, language=language))
        pause = str(rng.choice([" ", " ", ", "]))  # the digits run together, or not
        text = pause.join(NUMBER_WORDS[language][digit] for digit in spoken)
        utterances.append(random_speaker(text, language, voices, rng))
    paths = write_recordings(folder, side, utterances, strength, rng)
    return [Item(path, fact) for path, fact in zip(paths, facts)]


def write_recordings(
    folder: Path, side: str, utterances: list[Utterance], strength: float, rng: np.random.Generator
) -> list[str]:
    """Speak and disturb everything, below `folder/speech`; the files."""
    waves, rate = synthesise(utterances)
    paths = []
    for count, wave in enumerate(_counted("recordings", waves)):
        samples = resample(wave.astype(np.float32) / 32768.0, rate, SAMPLING_RATE)
        # A third of the training clips is left nearly clean: a quiet room must not be a surprise either.
        share = strength if strength < 1.0 or rng.random() < 0.67 else 0.3
        paths.append(f"speech/{side}-{count:05d}.wav")
        write_wave(augment_waveform(samples, rng, share), folder / paths[-1])
    return paths


def _write_silence(folder: Path, side: str, number: int, seconds: float, rng: np.random.Generator) -> list[Item]:
    """Recordings of up to `seconds` in which nobody speaks."""
    items = []
    for count in range(number):
        path = f"speech/{side}-silence-{count:05d}.wav"
        write_wave(quiet_waveform(count, seconds, rng), folder / path)
        items.append(Item(path, Facts(silent=True)))
    return items


def write_data(folder: str | Path, scale: DemoScale, seed: int) -> Path:
    """Write all media and all JSONL files of the demo to `folder`, and return that."""
    folder = Path(folder)
    return write_lines(folder, write_pictures(folder, scale, seed), write_speech(folder, scale, seed), scale, seed)


def write_lines(folder: Path, pictures: dict, speech: dict, scale: DemoScale, seed: int) -> Path:
    """Write the JSONL files about what `write_pictures` and `write_speech` have given, and return `folder`."""
    train, test = ({**pictures[side], **speech[side]} for side in ("train", "test"))
    train["speech"] = [*train["speech"], *train["silence"]]
    held_out = held_out_pairs(seed)
    rng = np.random.default_rng([seed, 7])
    captions = {
        "image": lambda facts: f"the digit {facts.image}" if facts.place is None else f"{facts.image} {facts.place}",
        "speech": lambda facts: transcript(facts.speech, facts.language),
    }
    for modality, caption in captions.items():
        lines = [conversation([({modality: item}, "", caption(item.facts))]) for item in train[modality]]
        write_jsonl(folder / f"convert_{modality}.jsonl", lines)
    mixture = []
    for modality in PART_TYPES:
        lines = [_talk({modality: item}, rng) for item in train[modality]]
        write_jsonl(folder / f"align_{modality}.jsonl", lines)
        mixture += [lines[index] for index in rng.permutation(len(lines))[: scale.num_pairs // 2]]
    allowed = [(seen, heard) for seen in range(10) for heard in range(10) if (seen, heard) not in held_out]
    mixture += [
        _talk(media, rng, task) if rng.random() < 1.5 * CONVERSATIONS else _ask(task, media, rng, DISTURBANCE)
        for task, media in _pairs(train, allowed, scale.num_pairs, rng)
    ]
    write_jsonl(folder / "integrate.jsonl", [mixture[index] for index in rng.permutation(len(mixture))])
    _write_tests(folder, test, sorted(held_out), scale.num_tests, rng)
    return folder


def _write_tests(
    folder: Path, media: dict[str, list[Item]], pairs: list, number: int, rng: np.random.Generator
) -> None:
    for name, task in (("image", "image_digit"), ("speech", "speech_text"), ("video", "video_text")):
        lines = [_ask(task, {name: item}, rng) for item in media[name][:number]]
        write_jsonl(folder / f"test_{name}.jsonl", lines)
    lines = [_ask(task, pair, rng) for task, pair in _pairs(media, pairs, number, rng)]
    write_jsonl(folder / "test_cross.jsonl", lines)
    lines = [_ask("speech_text", {"speech": item}, rng) for item in media["silence"]]
    write_jsonl(folder / "test_silence.jsonl", lines)
    lines = []
    for count in range(number // 2):
        beside = {modality: media[modality][count] for modality in _BESIDE[count % len(_BESIDE)]}
        lines.append(conversation([(beside, random_unanswerable(list(beside), rng), CANNOT_TELL)]))
    write_jsonl(folder / "test_cannot_tell.jsonl", lines)
    lines = []
    for item in media["image"][: number // 2]:  # three questions about one picture
        turns = [_turn({"image": item}, rng, 0.0, 0.0) for _ in range(3)]
        lines.append(conversation([({"image": item}, *turns[0]), ({}, *turns[1]), ({}, *turns[2])]))
    write_jsonl(folder / "test_again.jsonl", lines)


def _pairs(
    media: dict[str, list[Item]], pairs: list, number: int, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Item]]]:
    """Tasks about an image and a recording of one digit, and these; all pairs and tasks equally often."""
    seen = {digit: [item for item in media["image"] if item.facts.image == digit] for digit in range(10)}
    heard = {digit: [item for item in media["single"] if item.facts.speech == (digit,)] for digit in range(10)}
    tasks = ("cross_sum", "cross_larger")
    for count in range(number):
        image_digit, spoken_digit = pairs[count // len(tasks) % len(pairs)]
        image = seen[image_digit][int(rng.integers(len(seen[image_digit])))]
        speech = heard[spoken_digit][int(rng.integers(len(heard[spoken_digit])))]
        yield tasks[count % len(tasks)], {"image": image, "speech": speech}


def _facts(media: dict[str, Item]) -> Facts:
    """All that the media say."""
    known = {  # what is said of nothing else
        name: value
        for item in media.values()
        for name, value in vars(item.facts).items()
        if value != getattr(Facts, name)
    }
    return Facts(**known)


def _turn(media: dict[str, Item], rng: np.random.Generator, disturbance: float = DISTURBANCE, *more: float):
    """Any question about the media, and its answer."""
    return random_turn(_facts(media), rng, disturbance, *more)


def _ask(task: str, media: dict[str, Item], rng: np.random.Generator, disturbance: float = 0.0) -> dict:
    """A question about the media, and its answer."""
    question = random_question(task, rng, disturbance)
    return conversation([(media, question, answer(task, _facts(media), question))])


def _talk(media: dict[str, Item], rng: np.random.Generator, task: str | None = None) -> dict:
    """A training sample about the media: one question or, in a quarter, two or three; the last is that of `task`.

    With a task, which is about two media, they come one after the other, or together.
    """
    num_turns = 1 if task is None and rng.random() >= CONVERSATIONS else (2, 2, 3)[int(rng.integers(3))]
    first = dict([*media.items()][: 1 + int(rng.integers(len(media)))])
    turns: list[tuple[dict[str, Item], str, str]] = []
    for index in range(num_turns):
        known = first if index + 1 < num_turns else media
        new = {name: item for name, item in known.items() if not any(name in turn[0] for turn in turns)}
        if task is not None and index + 1 == num_turns:
            question = random_question(task, rng, DISTURBANCE)
            turns.append((new, question, answer(task, _facts(media), question)))
        else:
            turns.append((new, *_turn(known, rng)))
    return conversation(turns)


def conversation(turns: list[tuple[dict[str, Item], str, str]]) -> dict:
    """One sample in Hugging Face's chat form; a turn is what is shown in it, the question and the answer."""
    messages = []
    for media, question, reply in turns:
        parts = [{"type": PART_TYPES[modality], "path": item.path} for modality, item in media.items()]
        parts += [{"type": "text", "text": question}] if question else []
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
    return {"messages": messages}


def write_jsonl(path: Path, lines: list[dict]) -> None:
    """One row per line."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
