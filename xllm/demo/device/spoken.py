# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Requests to the phone that are spoken: recordings, an encoder that hears their words, and stage 1.

| file                     | one line is                                                      | read by |
|--------------------------|------------------------------------------------------------------|---------|
| convert_speech.jsonl     | a recording and its transcript                                   | stage 1 |
| test_speech.jsonl        | transcripts of the recordings below                              | the end |
| test_spoken_<task>.jsonl | test_<task>.jsonl spoken, by voices that are not in those above  | the end |

The interface of speech is trained without that of the status, in a model of its own around the same language model;
`xllm init` puts both together, as it would those of two people. Instead of stage 2, whose task the language model
cannot do (it hardly writes down words that it reads), the head of stage 1 is kept.
"""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from xllm.assembly.composing import Towers, compose
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import save
from xllm.assembly.tiny import small_config
from xllm.demo import recipes
from xllm.demo.dataset import write_recordings
from xllm.demo.device.corpus import TESTS, conversation, random_spoken, write_rows
from xllm.demo.device.phrases import TEENS, TENS, WHAT_IS_SAID
from xllm.demo.device.world import random_state, say, unheard
from xllm.demo.run import Progress, read_lines, train_recipe
from xllm.demo.settings import DemoScale, build_model_processor, speech_config, speech_row
from xllm.demo.towers import mel_frames, train_speech_encoder
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.instructions.speech_synthesis import random_speaker, split_voices
from xllm.training.starts import keep_words


Rows = list[dict[str, Any]]
# Recordings of words in no order, for each request; words in one.
_LISTS, _SHORTEST, _LONGEST = 1.0, 3, 7


def write_spoken(folder: Path, scale: DemoScale, seed: int) -> Path:
    """Write recordings, and the rows about them, beside what `write_data` has written; returns `folder`."""
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    voices = split_voices(scale.num_test_voices, seed)
    rng = np.random.default_rng([seed, 11])
    words: list[str] = []
    while len(words) < scale.num_recordings:
        task = random_spoken(rng, random_state(rng))
        if True not in unheard(task.words):
            words.append(say(task.words))
    words += _lists(words, round(_LISTS * scale.num_recordings), rng)
    files = _record(folder, "train", words, voices[0], 1.0, rng)
    write_rows(folder / "convert_speech.jsonl", _transcripts(files, words))
    _write_tests(folder, scale.num_tests, voices[1], np.random.default_rng([seed, 12]))
    return folder


def _lists(said: list[str], number: int, rng: np.random.Generator) -> list[str]:
    """Words of what is said, in no order and about equally often: of 4,000 requests two had "humidity".

    No two parts of numbers are neighbours, so that no pair of the test is among them.
    """
    words = sorted({word for line in said for word in line.split()})
    numbers = {*TEENS, *TENS, "hundred"}
    lists: list[str] = []
    left: list[str] = []
    while len(lists) < number:
        if len(left) < _LONGEST:
            left += [words[place] for place in rng.permutation(len(words))]
        length = int(rng.integers(_SHORTEST, _LONGEST + 1))
        line, left = left[:length], left[length:]
        kept = [word for word, last in zip(line, ["", *line]) if not {word, last} <= numbers]
        lists.append(" ".join(kept))
    return lists


def _write_tests(folder: Path, num_transcripts: int, voices: tuple[str, ...], rng: np.random.Generator) -> None:
    """The questions and requests of the test, each with a recording in place of its words."""
    heard: Rows = []
    for task in TESTS:
        rows = read_lines(folder / f"test_{task}.jsonl")
        parts = [row["messages"][0]["content"] for row in rows]
        words = [say(text["text"]) for _, text in parts]
        files = _record(folder, f"test-{task}", words, voices, 0.3, rng)
        heard += _transcripts(files, words, WHAT_IS_SAID)
        lines = [
            {**conversation([state, {"type": "audio", "path": file}], row["messages"][1]["content"][0]["text"]),
             "kind": row["kind"], "words": text["text"]}
            for row, (state, text), file in zip(rows, parts, files)
        ]  # fmt: skip
        write_rows(folder / f"test_spoken_{task}.jsonl", lines)
    chosen = rng.permutation(len(heard))[:num_transcripts]
    write_rows(folder / "test_speech.jsonl", [heard[place] for place in chosen])


def _record(
    folder: Path, side: str, words: list[str], voices: tuple[str, ...], strength: float, rng: np.random.Generator
) -> list[str]:
    utterances = [random_speaker(said, "en", voices, rng) for said in words]
    return write_recordings(folder, side, utterances, strength, rng)


def _transcripts(files: list[str], words: list[str], question: str = "") -> Rows:
    asked = [{"type": "text", "text": question}] if question else []
    return [conversation([{"type": "audio", "path": file}, *asked], said) for file, said in zip(files, words)]


def make_encoder(folder: Path, scale: DemoScale, seed: int, data: Path) -> str:
    """A Conformer whose frames spell the words of the training recordings (CTC); a line of progress."""
    rows = [row["messages"] for row in read_lines(data / "convert_speech.jsonl")]
    said = [reply["content"][0]["text"].split() for _, reply in rows]
    numbers = {word: number for number, word in enumerate(sorted({word for words in said for word in words}))}
    clips = mel_frames([data / asked["content"][0]["path"] for asked, _ in rows])
    words = [[numbers[word] for word in line] for line in said]
    return train_speech_encoder(folder, speech_config(scale), scale.speech, seed, clips, words, len(numbers))


def compose_speech(towers: Path, text: dict[str, Any], scale: DemoScale, seed: int, folder: Path) -> None:
    """A model around the language model in `towers` that reads speech alone, its interface new."""
    set_seed(seed)
    tokenizer = ChatGLMTokenizer.from_pretrained(towers / "text")
    fields = {"audio_config": speech_config(scale), "initializer_range": scale.converter_size**-0.5}
    config = small_config(tokenizer, text, {"speech": speech_row(scale)}, **fields)
    model = XLLMForConditionalGeneration.from_towers(
        language_model=str((towers / "text").resolve()),
        encoders={"audio": str((towers / "audio").resolve())},
        modalities=config.modalities,
        initializer_range=config.initializer_range,
    )
    save(model, build_model_processor(config, tokenizer, scale), folder)


def hear(status: Path, output: Path, text: dict[str, Any], scale: DemoScale, seed: int, progress: Progress) -> Path:
    """Teach speech to a language model whose interface of the status is in the checkpoint `status`.

    Returns:
        the checkpoint that reads both.
    """
    data = write_spoken(output / "data", scale, seed)
    progress.say(f"recordings of {scale.num_recordings} requests, and of words alone", 7)
    found = make_encoder(output / "towers" / "audio", scale, seed, data)
    progress.say(f"speech encoder: {found}", 41)
    compose_speech(output / "towers", text, scale, seed, output / "base_speech")
    recipe = {**recipes.branch("speech", output, scale, seed), "model": str(output / "base_speech")}
    heard = train_recipe({**recipe, "stages": recipe["stages"][:1]}, output / "recipes" / "speech.yaml", True)
    model, processor = load_checkpoint(str(heard))
    keep_words(model, "speech", str(heard))
    speech = output / "stages" / "speech" / "words"
    save(model, processor, speech)
    progress.say("stage 1: speech, its head kept", 13)
    both = output / "stages" / "composed"
    compose(Towers(None, interfaces={"status": str(status), "speech": str(speech)}), both)
    return both
