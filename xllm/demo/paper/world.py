# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The world of `xllm ablate --paper`: the demo's scans and voices, and a language model that reads Chinese alone.

| file                 | one line is                                                                                |
|----------------------|--------------------------------------------------------------------------------------------|
| pairs_en, pairs_zh   | a picture and its caption                                                                  |
| few, many, many_poor | a fifth of the pictures of pairs_zh; all; all, but four fifths of them with poor captions |
| instruct_image       | a few questions about pictures                                                             |
| transcripts          | a recording and what is said                                                               |
| single               | questions about a picture, or a recording                                                  |
| cross, cross_few     | as many with questions about both in their place, and as many with few of these           |
| test_<task>          | questions about unseen scans, unseen voices, and pairs of digits that no training file has |

Everything follows from the seed. The language model never reads a word of English, nor a numeral.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from xllm.assembly.processors import save
from xllm.demo.corpus import TextSample, Turn, build_vocabulary, encode_sample
from xllm.demo.dataset import Item, conversation, held_out_pairs, write_jsonl, write_pictures, write_speech
from xllm.demo.questions import NUMBER_WORDS, Facts
from xllm.demo.settings import DemoScale, Optimisation, build_config, build_model_processor
from xllm.demo.towers import make_image_encoder, make_speech_encoder, train_language_model
from xllm.modeling_xllm.conversion.output import new_folder
from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.evaluation.metrics import METRICS


SCALE = DemoScale(
    num_images=2000, num_videos=0, num_recordings=2400, num_tests=200, num_pairs=1600,
    vision=Optimisation(1000, 64, 2e-3, muon_rate=10.0),
    speech=Optimisation(500, 40, 1e-3),
    language=Optimisation(700, 64, 1e-3),
)  # fmt: skip
_WORDS = NUMBER_WORDS["zh"]
_FILLERS = ("深", "浅", "粗", "细", "墨", "纸", "大", "小", "的", "图")
# task -> media it is asked about, wordings. What is asked for without words is the caption.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "caption": (("image",), ("",)),
    "digit": (("image",), ("这是几？", "图中的数字是几？", "读出图中的数字。")),
    "parity": (("image",), ("图中的数字是奇数还是偶数？", "这是奇数还是偶数？")),
    "next": (("image",), ("图中的数字加一是多少？", "下一个数是几？")),
    "transcript": (("speech",), ("请忠实地识别该语音", "请将这段语音转化为文字")),
    "count": (("speech",), ("语音里有几个数字？",)),
    "sum": (("image", "speech"), ("两个数的和是多少？", "请把图片和语音里的数字相加。")),
    "larger": (("image", "speech"), ("图片和语音，哪个数更大？", "哪个数字更大？")),
}
# Evaluation -> the tasks that its file asks, and how it is scored.
TESTS = {
    "digit": (("digit",), "qa"),
    "reasoning": (("parity", "next"), "qa"),
    "transcript": (("transcript",), "asr"),
    "cross": (("sum", "larger"), "qa"),
}
# Of a poor caption: it is that of another picture, it says nothing of the picture, or (the rest) it is right.
_OF_ANOTHER, _SAYS_NOTHING = 0.3, 0.3
_FEW_CROSS = 40


def number_word(number: int) -> str:
    """0 to 18 in Chinese."""
    tens, ones = divmod(number, 10)
    return _WORDS[number] if not tens else "十" + (_WORDS[ones] if ones else "")


def right_answer(task: str, facts: Facts) -> str:
    """What the language model should say."""
    seen = facts.image or 0
    if task == "transcript":
        return "".join(_WORDS[digit] for digit in facts.speech)
    if task == "parity":
        return "奇数" if seen % 2 else "偶数"
    if task == "caption":
        return f"数字{_WORDS[seen]}"
    heard = facts.speech[0] if facts.speech else 0
    numbers = {
        "digit": seen, "next": seen + 1, "count": len(facts.speech), "sum": seen + heard, "larger": max(seen, heard)
    }  # fmt: skip
    return number_word(numbers[task])


# ---- the language model ---------------------------------------------------------------------------------------------


def in_words(facts: Facts, rng: np.random.Generator | None = None) -> tuple[tuple[str, str], ...]:
    """What stands in place of the media in a text: the words alone, or, with `rng`, among others and repeated."""
    media = []
    if facts.image is not None:
        words = [_WORDS[facts.image]]
        while rng is not None and len(words) < 5 and rng.random() < 0.7:
            words.append(words[0] if rng.random() < 0.5 else str(rng.choice(_FILLERS)))
        media.append(("image", " ".join(words if rng is None else [str(word) for word in rng.permutation(words)])))
    if facts.speech:
        media.append(("speech", " ".join(_WORDS[digit] for digit in facts.speech)))
    return tuple(media)


def text_sample(rng: np.random.Generator) -> TextSample:
    """One of the texts that the language model is made of."""
    task = str(rng.choice(list(TASKS), p=np.array([2, 2, 2, 3, 3, 1, 6, 6]) / 25))
    media, wordings = TASKS[task]
    length = 0 if "speech" not in media else 1 if len(media) > 1 else int(rng.integers(1, 4))
    spoken = tuple(int(digit) for digit in rng.integers(10, size=length))
    facts = Facts(image=int(rng.integers(10)) if "image" in media else None, speech=spoken, language="zh")
    return (Turn(in_words(facts, rng), str(rng.choice(wordings)), right_answer(task, facts)),)


def _tokenizer(folder: Path, seed: int) -> ChatGLMTokenizer:
    """Its vocabulary has the English captions' words too: those of the Q-Former's text side."""
    rng = np.random.default_rng([seed, 3])
    samples = [text_sample(rng)[0] for _ in range(400)]
    text = [part for turn in samples for part in (turn.question, turn.answer) if part]
    english = ("the", "digit", *NUMBER_WORDS["en"])
    words = (*_WORDS, "十", *_FILLERS)
    return build_vocabulary(folder, [*text, *english, *_FILLERS], [*words, *english], (), words, 200)


def _make_language_model(folder: Path, scale: DemoScale, seed: int) -> None:
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(folder, seed)
    config = build_config(tokenizer, scale).text_config
    train_language_model(folder, tokenizer, config, scale.language, seed, text_sample)


# ---- data -----------------------------------------------------------------------------------------------------------


def _row(task: str, media: dict[str, Item], rng: np.random.Generator, reply: str | None = None) -> dict:
    seen = media["image"].facts.image if "image" in media else None
    heard = media["speech"].facts.speech if "speech" in media else ()
    question = str(rng.choice(TASKS[task][1]))
    facts = Facts(image=seen, speech=heard, language="zh")
    row = conversation([(media, question, right_answer(task, facts) if reply is None else reply)])
    return {**row, "task": task, "id": f"{'' if seen is None else seen}+{''.join(map(str, heard))}"}


def facts_of(row: dict) -> Facts:
    """What the media of a row show and say: its `id` is the digit seen, "+", the digits heard."""
    seen, _, heard = row["id"].partition("+")
    return Facts(image=int(seen) if seen else None, speech=tuple(map(int, heard)), language="zh")


def _rows(tasks: tuple[str, ...], media: dict[str, list[Item]], rng: np.random.Generator, number: int) -> list[dict]:
    """So many questions about media of one kind, each task equally often."""
    found = []
    for count in range(number):
        task = tasks[count % len(tasks)]
        [name] = TASKS[task][0]
        found.append(_row(task, {name: media[name][count // len(tasks) % len(media[name])]}, rng))
    return found


def _cross(media: dict[str, list[Item]], pairs: list[tuple[int, int]], rng: np.random.Generator, number: int) -> list:
    seen = {digit: [item for item in media["image"] if item.facts.image == digit] for digit in range(10)}
    heard = {digit: [item for item in media["single"] if item.facts.speech == (digit,)] for digit in range(10)}
    found = []
    for count in range(number):
        image, speech = pairs[count // 2 % len(pairs)]
        both = {
            "image": seen[image][int(rng.integers(len(seen[image])))],
            "speech": heard[speech][int(rng.integers(len(heard[speech])))],
        }
        found.append(_row(TESTS["cross"][0][count % 2], both, rng))
    return found


def _poor(items: list[Item], rng: np.random.Generator) -> Iterator[dict]:
    """Captions as found beside pictures: some right, some of other pictures, some that say nothing of theirs."""
    for item in items:
        draw, other = rng.random(), items[int(rng.integers(len(items)))]
        reply = right_answer("caption", other.facts) if draw < _OF_ANOTHER else None
        if _OF_ANOTHER <= draw < _OF_ANOTHER + _SAYS_NOTHING:
            reply = "".join(rng.choice(_FILLERS, 3))
        yield _row("caption", {"image": item}, rng, reply)


def write_world(folder: Path, scale: DemoScale, seed: int) -> list[Item]:
    """All media and all files; returns the training recordings."""
    pictures, speech = write_pictures(folder, scale, seed), write_speech(folder, scale, seed, ("zh",))
    train, test = ({**pictures[side], **speech[side]} for side in ("train", "test"))
    rng = np.random.default_rng([seed, 11])
    images, held_out = train["image"], held_out_pairs(seed)
    few = len(images) // 5
    pairs = _rows(("caption",), train, rng, len(images))
    english = [f"the digit {NUMBER_WORDS['en'][item.facts.image or 0]}" for item in images]
    asked = {"image": images[:few], "speech": train["speech"]}
    files = {
        "pairs_en": [_row("caption", {"image": item}, rng, text) for item, text in zip(images, english)],
        "pairs_zh": pairs,
        "few": pairs[:few],
        "many": pairs,
        "many_poor": [*pairs[:few], *_poor(images[few:], rng)],
        "instruct_image": _rows(("digit", "parity", "next"), asked, rng, min(150, 3 * few)),
        "transcripts": _rows(("transcript",), train, rng, len(train["speech"])),
        "single": _rows(("digit", "transcript", "parity", "count", "next", "transcript"), train, rng, scale.num_pairs),
    }
    allowed = [(seen, heard) for seen in range(10) for heard in range(10) if (seen, heard) not in held_out]
    cross = _cross(train, [allowed[index] for index in rng.permutation(len(allowed))], rng, scale.num_pairs // 2)
    files["cross"] = [*files["single"][: len(cross)], *cross]
    files["cross_few"] = [*files["single"][:-_FEW_CROSS], *cross[:_FEW_CROSS]]
    for name in ("digit", "reasoning", "transcript"):
        files[f"test_{name}"] = _rows(TESTS[name][0], test, rng, scale.num_tests)
    files["test_cross"] = _cross(test, sorted(held_out), rng, scale.num_tests)
    for name, rows in files.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return [*train["speech"], *train["silence"]]


# ---- making it ------------------------------------------------------------------------------------------------------


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder, whole or not at all; one that is there stays."""
    if not folder.exists():
        with new_folder(folder) as partial:
            make(partial)


def make_heard(folder: Path, scale: DemoScale, seed: int) -> None:
    """Media and files, and the speech encoder that is trained on their recordings."""

    def make(partial: Path) -> None:
        spoken = {"speech": write_world(partial / "data", scale, seed), "silence": []}
        make_speech_encoder(partial / "audio", scale, seed, partial / "data", spoken)

    _once(folder / "heard", make)


def make_read(folder: Path, scale: DemoScale, seed: int) -> None:
    """The language model and the image encoder."""

    def make(partial: Path) -> None:
        _make_language_model(partial / "text", scale, seed)
        make_image_encoder(partial / "vision", scale, seed)

    _once(folder / "read", make)


def compose(folder: Path, scale: DemoScale, seed: int) -> None:
    """The X-LLM that every arm starts from, with interfaces of random weights."""

    def make(partial: Path) -> None:
        set_seed(seed)
        tokenizer = ChatGLMTokenizer.from_pretrained(folder / "read" / "text")
        config = build_config(tokenizer, scale)
        towers = {"vision": folder / "read" / "vision", "audio": folder / "heard" / "audio"}
        model = XLLMForConditionalGeneration.from_towers(
            language_model=str((folder / "read" / "text").resolve()),
            encoders={name: str(path.resolve()) for name, path in towers.items()},
            modalities={name: row for name, row in config.modalities.items() if name != "video"},
            initializer_range=config.initializer_range,
        )
        save(model, build_model_processor(config, tokenizer, scale), partial)

    _once(folder / "base", make)


# ---- what can be reached --------------------------------------------------------------------------------------------


def _test_rows(folder: Path, name: str) -> list[dict]:
    text = (folder / "heard" / "data" / f"test_{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _score(name: str, rows: list[dict], answers: list[str]) -> float:
    metric = {"qa": "accuracy", "asr": "cer"}[TESTS[name][1]]
    return METRICS[metric]([row["messages"][-1]["content"][0]["text"] for row in rows], answers)["value"]


@torch.no_grad()
def bounds(folder: Path) -> dict[str, dict[str, float]]:
    """Evaluation -> `floor`, by the best answer that is always the same to a question; `ceiling`, of the language
    model that reads the right words in place of the media."""
    tokenizer = ChatGLMTokenizer.from_pretrained(folder / "read" / "text")
    model = ChatGLMForConditionalGeneration.from_pretrained(folder / "read" / "text").eval()
    found = {}
    for name, (tasks, _) in TESTS.items():
        rows = _test_rows(folder, name)
        own = {
            task: [row["messages"][-1]["content"][0]["text"] for row in rows if row["task"] == task] for task in tasks
        }
        better = min if TESTS[name][1] == "asr" else max
        shares = {
            task: better((_score(name, [row for row in rows if row["task"] == task], [one] * len(texts)), one)
                         for one in sorted(set(texts)))[1]
            for task, texts in own.items()
        }  # fmt: skip
        read = []
        for row in rows:
            question = next((part["text"] for part in row["messages"][0]["content"] if part["type"] == "text"), "")
            ids, labels, _ = encode_sample(tokenizer, (Turn(in_words(facts_of(row)), question, ""),))
            start = torch.tensor([ids[: labels.index(tokenizer.bos_token_id) + 1]])
            said = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=12, do_sample=False)
            read.append(tokenizer.decode(said[0, start.shape[1] :], skip_special_tokens=True).strip())
        found[name] = {
            "floor": _score(name, rows, [shares[row["task"]] for row in rows]),
            "ceiling": _score(name, rows, read),
        }
    return found


__all__ = ["SCALE", "TESTS", "bounds", "compose", "make_heard", "make_read", "text_sample", "write_world"]
