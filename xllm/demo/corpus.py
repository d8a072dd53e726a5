# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Text alone, on which the demo's language model is pretrained: descriptions in place of media, questions and answers.

    <Image> thin 7 dark</Image><Speech> five</Speech>What is the sum?[gMASK]<sop> 12<eop>

The language model learns to read a description, to count, add and compare, and never meets an image or a sound. Later
an X2L interface has to write "7" in its language (paper, section 1: media as foreign languages), and then the same
skill answers about what is seen and heard. Descriptions are as loose as an interface will be: words repeat, come in
any order and stand among words that mean nothing.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from torch.nn.utils.rnn import pad_sequence

from xllm.assembly.tiny import WRAPPER_PIECES, train_text_pieces
from xllm.demo.questions import NUMBER_WORDS, TASKS, Facts, answer, random_question
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer, append_pieces


# Words of a description that say nothing about the answer.
FILLERS = (
    "a", "the", "thin", "thick", "dark", "light", "ink", "paper", "soft", "sharp", "small", "big", "on", "digit",
)  # fmt: skip
# Where a moving digit is, from the first frame to the last.
_PLACES = {
    "right": ("left", "middle", "right"),
    "left": ("right", "middle", "left"),
    "down": ("top", "middle", "bottom"),
    "up": ("bottom", "middle", "top"),
}
PLACES = ("left", "right", "top", "bottom", "middle")
_WEIGHTS = {"cross_sum": 3.0, "cross_larger": 5.0, "speech_text": 3.0, "speech_digits": 2.0, "video_text": 2.0}
_TASK_SHARES = np.array([_WEIGHTS.get(task, 1.0) for task in TASKS]) / sum(_WEIGHTS.get(task, 1.0) for task in TASKS)
IGNORE = -100


class TextSample(NamedTuple):
    """One question about described media, each a modality and its description, and the right answer."""

    media: tuple[tuple[str, str], ...]
    question: str
    answer: str


def describe_image(digit: int, rng: np.random.Generator, place: str | None = None) -> str:
    """A digit, perhaps its place, among words that mean nothing: "thin 7 dark", "7 left 7", "7"."""
    forms = (str(digit), NUMBER_WORDS["en"][digit], NUMBER_WORDS["zh"][digit])
    name = forms[int(rng.choice(3, p=(0.8, 0.1, 0.1)))]
    words = (name,) if place is None else (name, place)
    return " ".join(_loosely(words, int(rng.integers(len(words), 7)), rng))


def describe_video(digit: int, motion: str, rng: np.random.Generator) -> str:
    """Digit and place of each frame: "3 left 3 middle 3 right"."""
    num_frames = int(rng.integers(3, 7))
    steps = np.sort(np.clip(np.linspace(0.0, 1.0, num_frames) + rng.uniform(-0.12, 0.12, size=num_frames), 0.0, 0.999))
    steps[0], steps[-1] = 0.0, 0.999
    length = int(rng.integers(2, 6))
    words = []
    for step in steps:
        place = _PLACES[motion][int(step * 3)]
        words.extend(_loosely((str(digit), place), max(2, length + int(rng.integers(-1, 2))), rng))
    return " ".join(words)


def _loosely(words: tuple[str, ...], length: int, rng: np.random.Generator) -> list[str]:
    """`length` words in any order: each of `words` at least once, the rest repeats or fillers."""
    chosen = list(words)
    while len(chosen) < length:
        source = words if rng.random() < 0.5 else FILLERS
        chosen.append(source[int(rng.integers(len(source)))])
    return [chosen[index] for index in rng.permutation(len(chosen))]


def random_facts(task: str, rng: np.random.Generator) -> Facts:
    """Facts that a task can be asked about, all digits equally likely."""
    media = TASKS[task][0]
    length = 1 if "image" in media else int(rng.integers(1, 4))
    has_place = task == "image_place" or ("image" in media and rng.random() < 0.3)
    return Facts(
        image=int(rng.integers(10)) if "image" in media else None,
        place=str(rng.choice(PLACES)) if has_place else None,
        video=int(rng.integers(10)) if "video" in media else None,
        motion=str(rng.choice(tuple(_PLACES))) if "video" in media else None,
        speech=tuple(int(digit) for digit in rng.integers(10, size=length)) if "speech" in media else (),
        language=str(rng.choice(("en", "zh"))),
    )


def random_text_sample(rng: np.random.Generator, disturbance: float = 0.15) -> TextSample:
    """A sample of the corpus; one in twenty asks about plain numbers without any medium."""
    if rng.random() < 0.05:
        first, second = (int(digit) for digit in rng.integers(10, size=2))
        form = ("{} plus {}", "{} + {}", "What is {} plus {}?", "What is the sum of {} and {}?")[int(rng.integers(4))]
        return TextSample((), form.format(first, second), str(first + second))
    task = tuple(TASKS)[int(rng.choice(len(TASKS), p=_TASK_SHARES))]
    facts = random_facts(task, rng)
    question = random_question(task, rng, disturbance)
    media = []
    if facts.image is not None:
        media.append(("image", describe_image(facts.image, rng, facts.place)))
    if facts.video is not None and facts.motion is not None:
        media.append(("video", describe_video(facts.video, facts.motion, rng)))
    if facts.speech:
        media.append(("speech", " ".join(NUMBER_WORDS[facts.language][digit] for digit in facts.speech)))
    return TextSample(tuple(media), question, answer(task, facts, question))


def build_tokenizer(folder: str | Path, seed: int = 0, vocab_size: int = 400) -> ChatGLMTokenizer:
    """Train the small sentencepiece vocabulary of the corpus and save it as `folder/ice_text.model`.

    Digits, number words and places are one token each, whatever stands around them; other words are pieces, and
    characters never met are bytes.
    """
    rng = np.random.default_rng([seed, 3])
    wordings = [wording for _, wordings in TASKS.values() for wording in wordings]
    text = wordings + [random_question(task, rng, 0.3) for task in TASKS for _ in range(20)]
    text += list(FILLERS) + [sample.answer for sample in (random_text_sample(rng) for _ in range(500))]
    trained = train_text_pieces(text, vocab_size, bos_id=-1, eos_id=-1, pad_id=1)
    known = sentencepiece.SentencePieceProcessor(model_proto=trained)
    english, mandarin = NUMBER_WORDS["en"], NUMBER_WORDS["zh"]
    words = [*map(str, range(28)), *english, *sorted(PLACES), *FILLERS, "even", "odd", "moves", "up", "down"]
    asked = (word for wording in wordings for word in re.findall(r"[A-Za-z]+", wording))
    words.extend(form for word in asked for form in (word, word.lower()))
    whole = [*dict.fromkeys(f"▁{word}" for word in (*words, *mandarin)), *mandarin]
    proto = append_pieces(
        trained,
        user_defined=(*WRAPPER_PIECES, "<n>"),
        normal=tuple(piece for piece in whole if known.id_to_piece(known.piece_to_id(piece)) != piece),
        byte_fallback=True,
        max_blank_length=0,
    )
    vocab_file = Path(folder, "ice_text.model")
    vocab_file.write_bytes(proto)
    return ChatGLMTokenizer(vocab_file=str(vocab_file))


def encode_sample(tokenizer: ChatGLMTokenizer, sample: TextSample) -> tuple[list[int], list[int], list[bool]]:
    """Ids of the whole sample, written as the processor writes it with real media.

    Returns:
        ids, labels (-100 outside `<sop>` answer `<eop>`) and whether each id belongs to a description.
    """
    encode = tokenizer.sp_model.encode
    ids, described = [], []
    for modality, description in sample.media:
        name = modality.title()
        for part, inside in ((f"<{name}>", False), (description, True), (f"</{name}>", False)):
            pieces = encode(part)
            ids += pieces
            described += [inside] * len(pieces)
    ids += [*encode(sample.question), tokenizer.gmask_token_id]
    reply = [tokenizer.bos_token_id, *encode(sample.answer), tokenizer.eos_token_id]
    labels = [IGNORE] * len(ids) + reply
    ids += reply
    return ids, labels, described + [False] * (len(ids) - len(described))


def collate_text(tokenizer: ChatGLMTokenizer, samples: list[TextSample]) -> dict[str, torch.Tensor]:
    """A batch padded on the left, `(B, L)`: ids, mask, `labels`, and `described` (1 in a description)."""

    def pad(rows, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], True, value, padding_side="left")

    ids, labels, described = zip(*(encode_sample(tokenizer, sample) for sample in samples))
    return {
        "input_ids": pad(ids, tokenizer.pad_token_id),
        "attention_mask": pad(([1] * len(row) for row in ids), 0),
        "labels": pad(labels, IGNORE),
        "described": pad(described, False),
    }
