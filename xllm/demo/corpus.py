# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Text alone, on which the demo's language model is pretrained: descriptions in place of media, questions and answers.

    <Image>thin 7 dark</Image><Speech>five</Speech>What is the sum?[gMASK]<sop> 12<eop>

The language model learns to read a description, to count, add and compare, and never meets an image or a sound. Later
an X2L interface has to write "7" in its language (paper, section 1: media as foreign languages), and then the same
skill answers about what is seen and heard. Descriptions are as loose as an interface will be: words repeat, come in
any order and stand among words that mean nothing. A fifth of the samples are conversations of two or three turns
about the same media; a part of the questions asks about what is not there, and is answered by `CANNOT_TELL`.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import torch
from torch.nn.utils.rnn import pad_sequence

from xllm.assembly.tiny import WRAPPER_PIECES, train_text_pieces
from xllm.demo.questions import (
    CANNOT_TELL,
    NUMBER_WORDS,
    TASKS,
    Facts,
    answer,
    random_question,
    random_unanswerable,
)
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
_WEIGHTS = {
    "image_place": 5.0, "speech_text": 3.0, "speech_digits": 2.0, "video_text": 2.0, "cross_sum": 8.0,
    "cross_larger": 12.0,
}  # fmt: skip
IGNORE = -100
# Of all samples: sums of plain numbers, conversations; of all turns: questions that cannot be answered; of recordings:
# those in which nobody speaks.
_SUMS, _CONVERSATIONS, _UNANSWERABLE, _SILENT = 0.04, 0.2, 0.1, 0.06
# Of a conversation: how ChatGLM's template opens a turn, and what goes before its answer.
_ROUND, _REPLY = "[Round {}]\n问：", "\n答："


class Turn(NamedTuple):
    """A question, what is described right before it (modality, description), and the right answer."""

    media: tuple[tuple[str, str], ...]
    question: str
    answer: str


TextSample = tuple[Turn, ...]  # a conversation, often of a single turn; its last answer is what is learnt
EncodedSample = tuple[list[int], list[int], list[bool]]


def describe_image(digit: int, rng: np.random.Generator, place: str | None = None) -> str:
    """A digit, perhaps its place, among words that mean nothing: "thin 7 dark", "7 left 7", "7"."""
    forms = (str(digit), NUMBER_WORDS["en"][digit], NUMBER_WORDS["zh"][digit])
    name = forms[int(rng.choice(3, p=(0.8, 0.1, 0.1)))]
    words = (name,) if place is None else (name, place)
    return " ".join(_loosely(words, int(rng.integers(len(words), 6)), rng))


def describe_video(digit: int, motion: str, rng: np.random.Generator) -> str:
    """Digit and place of each frame: "3 left 3 middle 3 right"."""
    num_frames = int(rng.integers(3, 6))
    steps = np.sort(np.clip(np.linspace(0.0, 1.0, num_frames) + rng.uniform(-0.12, 0.12, size=num_frames), 0.0, 0.999))
    steps[0], steps[-1] = 0.0, 0.999
    length = int(rng.integers(2, 5))
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


def random_facts(media: tuple[str, ...], rng: np.random.Generator) -> Facts:
    """Facts of media of these modalities, all digits equally likely."""
    silent = "speech" in media and rng.random() < _SILENT
    length = 0
    if "speech" in media and not silent:
        length = 1 if len(media) > 1 else (1, 2, 2, 3, 3, 3)[int(rng.integers(6))]
    has_place = "image" in media and rng.random() < 0.3
    return Facts(
        image=int(rng.integers(10)) if "image" in media else None,
        place=str(rng.choice(PLACES)) if has_place else None,
        video=int(rng.integers(10)) if "video" in media else None,
        motion=str(rng.choice(tuple(_PLACES))) if "video" in media else None,
        speech=tuple(int(digit) for digit in rng.integers(10, size=length)),
        language=str(rng.choice(("en", "zh"))),
        silent=silent,
    )


def random_task(facts: Facts, rng: np.random.Generator) -> str:
    """A task that can be asked about media that say this."""
    tasks = [task for task, (media, _) in TASKS.items() if facts.media.issuperset(media)]
    tasks = [task for task in tasks if task != "image_place" or facts.place is not None]
    shares = np.array([_WEIGHTS.get(task, 1.0) for task in tasks])
    return tasks[int(rng.choice(len(tasks), p=shares / shares.sum()))]


def random_turn(
    facts: Facts, rng: np.random.Generator, disturbance: float, unanswerable: float = _UNANSWERABLE
) -> tuple[str, str]:
    """A question about media that say this, and the right answer; a share of the questions is `unanswerable`."""
    if not facts.media or rng.random() < unanswerable:
        return random_unanswerable(facts.media, rng, disturbance), CANNOT_TELL
    task = random_task(facts, rng)
    question = random_question(task, rng, disturbance)
    return question, answer(task, facts, question)


def _describe(facts: Facts, rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """Descriptions of the media that say this."""
    media = []
    if facts.image is not None:
        media.append(("image", describe_image(facts.image, rng, facts.place)))
    if facts.video is not None and facts.motion is not None:
        media.append(("video", describe_video(facts.video, facts.motion, rng)))
    if "speech" in facts.media:
        media.append(("speech", " ".join(NUMBER_WORDS[facts.language][digit] for digit in facts.speech)))
    return tuple(media)


# Modalities of a sample, and how often they come; () are questions about nothing at all.
_MEDIA = {("image",): 5, ("speech",): 10, ("video",): 4, ("image", "speech"): 11, (): 0.7}


def random_text_sample(rng: np.random.Generator, disturbance: float = 0.15) -> TextSample:
    """A sample of the corpus."""
    if rng.random() < _SUMS:
        first, second = (int(digit) for digit in rng.integers(10, size=2))
        form = ("{} plus {}", "{} + {}", "What is {} plus {}?", "What is the sum of {} and {}?")[int(rng.integers(4))]
        return (Turn((), form.format(first, second), str(first + second)),)
    shares = np.array([*_MEDIA.values()])
    facts = random_facts([*_MEDIA][int(rng.choice(len(shares), p=shares / shares.sum()))], rng)
    media = list(_describe(facts, rng))
    num_turns = (2, 2, 3)[int(rng.integers(3))] if media and rng.random() < _CONVERSATIONS else 1
    # One of two media may come in a later turn.
    split = int(rng.integers(1, num_turns)) if num_turns > 1 and len(media) > 1 and rng.random() < 0.5 else 0
    turns: list[Turn] = []
    for index in range(num_turns):
        shown = media[:1] if split and index < split else media
        known = facts if len(shown) == len(media) else Facts(image=facts.image, place=facts.place)
        new = tuple(medium for medium in shown if not any(medium in turn.media for turn in turns))
        turns.append(Turn(new, *random_turn(known, rng, disturbance)))
    return tuple(turns)


def build_tokenizer(folder: str | Path, seed: int = 0, vocab_size: int = 400) -> ChatGLMTokenizer:
    """Train the small sentencepiece vocabulary of the corpus and save it as `folder/ice_text.model`.

    Digits, number words and places are one token each, whatever stands around them; other words are pieces, and
    characters never met are bytes.
    """
    rng = np.random.default_rng([seed, 3])
    wordings = [wording for _, wordings in TASKS.values() for wording in wordings]
    text = wordings + [random_question(task, rng, 0.3) for task in TASKS for _ in range(20)]
    text += [*FILLERS, CANNOT_TELL, _ROUND, _REPLY]
    text += [turn.answer for _ in range(500) for turn in random_text_sample(rng)]
    english, mandarin = NUMBER_WORDS["en"], NUMBER_WORDS["zh"]
    words = [*map(str, range(28)), *english, *sorted(PLACES), *FILLERS, "even", "odd", "moves", "up", "down"]
    asked = (word for wording in wordings for word in re.findall(r"[A-Za-z]+", wording))
    words.extend(form for word in asked for form in (word, word.lower()))
    words.extend(re.findall(r"\w+", CANNOT_TELL))
    # What stands behind the mark of a turn has no space before it.
    bare = [*(wording.split(" ")[0] for wording in wordings if " " in wording), *map(str, range(19)), *english]
    bare += [word.lower() for word in bare] + ["[Round", "]", "问", "答", ":", "odd", "even", "I", *PLACES]
    return build_vocabulary(folder, text, [*words, *mandarin], bare, mandarin, vocab_size)


def build_vocabulary(
    folder: str | Path,
    text: list[str],
    words: Iterable[str],
    bare: Iterable[str],
    always: Iterable[str] = (),
    vocab_size: int = 400,
    wrappers: tuple[str, ...] = WRAPPER_PIECES,
) -> ChatGLMTokenizer:
    """Learn pieces from `text` and save them as `folder/ice_text.model`; some words are one token each.

    Args:
        words: whole where a space is before them.
        bare, always: whole where there is none. A `bare` word whose form with a space was learnt goes without: the
            space and its piece of score 0 would win over that.
    """
    trained = train_text_pieces(text, vocab_size, bos_id=-1, eos_id=-1, pad_id=1)
    known = sentencepiece.SentencePieceProcessor(model_proto=trained)
    trained_pieces = {known.id_to_piece(index) for index in range(len(known))}
    bare = [word for word in bare if f"▁{word}" not in trained_pieces]
    whole = [*dict.fromkeys([*(f"▁{word}" for word in words), *always, *bare])]
    proto = append_pieces(
        trained,
        user_defined=(*wrappers, "<n>"),
        normal=tuple(piece for piece in whole if known.id_to_piece(known.piece_to_id(piece)) != piece),
        byte_fallback=True,
        max_blank_length=0,
    )
    vocab_file = Path(folder, "ice_text.model")
    vocab_file.write_bytes(proto)
    return ChatGLMTokenizer(vocab_file=str(vocab_file))


def _rounds(sample: TextSample) -> str:
    """Questions and earlier answers, as ChatGLM's template writes them behind the media."""
    if len(sample) == 1:
        return sample[0].question
    rounds = [f"{_ROUND.format(index)}{turn.question}{_REPLY}{turn.answer}\n" for index, turn in enumerate(sample)]
    return "".join(rounds).removesuffix(f"{sample[-1].answer}\n")


def encode_sample(tokenizer: ChatGLMTokenizer, sample: TextSample) -> EncodedSample:
    """Ids of the whole sample, as the processor gives them for real media: those stand before all text, and each
    stretch between placeholders and wrappers is encoded on its own.

    Returns:
        ids, labels (-100 outside `<sop>` answer `<eop>`) and whether each id belongs to a description.
    """
    encode = tokenizer.sp_model.encode
    parts = []
    for name, description in (medium for turn in sample for medium in turn.media):
        parts += [(f"<{name.title()}>", False), (description, True), (f"</{name.title()}>", False)]
    parts.append((_rounds(sample).replace("\n", "<n>"), False))
    encoded = [(encode(text), is_described) for text, is_described in parts if text]
    ids = [*(token for tokens, _ in encoded for token in tokens), tokenizer.gmask_token_id]
    described = [*(is_described for tokens, is_described in encoded for _ in tokens), False]
    text = sample[-1].answer
    reply = [tokenizer.bos_token_id, *(encode(text) if text else ()), tokenizer.eos_token_id]
    return ids + reply, [IGNORE] * len(ids) + reply, described + [False] * len(reply)


def collate_text(
    tokenizer: ChatGLMTokenizer, encoded: list[EncodedSample], paired: str = ""
) -> dict[str, torch.Tensor]:
    """A batch padded on the left, `(B, L)`: ids, mask, `labels`, and `described` (1 in a description).

    Descriptions of the modality `paired` have two words at each place, where their embeddings are added: `partners`
    are the second ones, -1 where there is none.
    """

    def pad(rows, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], True, value, padding_side="left")

    rows: list[Any] = [*encoded]
    partners: list[list[int]] = []
    marks = [tokenizer.sp_model.piece_to_id(f"<{mark}{paired.title()}>") for mark in ("", "/")]
    for number, row in enumerate(rows if paired else ()):
        begin, end = (row[0].index(mark) if mark in row[0] else 0 for mark in marks)
        inside = [place for place in range(begin, end) if row[2][place]]
        second = dict(zip(inside[::2], inside[1::2]))
        kept = [place for place in range(len(row[0])) if place not in inside[1::2]]
        partners.append([row[0][second[place]] if place in second else -1 for place in kept])
        rows[number] = [[values[place] for place in kept] for values in row]
    ids, labels, described = zip(*rows)
    batch = {
        "input_ids": pad(ids, tokenizer.pad_token_id),
        "attention_mask": pad(([1] * len(row) for row in ids), 0),
        "labels": pad(labels, IGNORE),
        "described": pad(described, False),
    }
    return {**batch, "partners": pad(partners, -1)} if paired else batch
