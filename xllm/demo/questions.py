# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Questions of the demo, in many wordings, and their right answers; the same for text, image, video and speech.

A task belongs to the media it is asked about; its answer follows from their facts. Where they say nothing of what is
asked about, the right answer is `CANNOT_TELL`; of a recording without speech nothing is transcribed.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np


NUMBER_WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
}

CANNOT_TELL = "I cannot tell."


@dataclass(frozen=True)
class Facts:
    """What the media of a sample show and say."""

    image: int | None = None  # the digit on it
    place: str | None = None  # where it stands, if that is worth a word
    video: int | None = None  # the digit in it
    motion: str | None = None  # where that moves
    speech: tuple[int, ...] = ()  # spoken digits
    language: str = "en"  # of the speech; or "zh"
    silent: bool = False  # there is a recording, and nobody speaks in it

    @property
    def media(self) -> frozenset[str]:
        """Modalities of the media that say this."""
        known = {
            "image": self.image is not None,
            "video": self.video is not None,
            "speech": self.speech or self.silent,
        }
        return frozenset(name for name, is_known in known.items() if is_known)


# task -> (media it is asked about, wordings). A wording with Chinese characters gets a Chinese answer where they
# differ.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image_digit": (("image",), (
        "Which digit is this?", "What number is in the image?", "Which digit do you see?", "Read the number.",
        "What is written here?", "What digit does the picture show?", "Name the digit in the picture.",
        "What do you see in this image?", "Describe the image.", "这是几？", "图中的数字是几？",
        "请详细描述这张图片。",
    )),
    "image_word": (("image",), (
        "Write the digit as an English word.", "Spell the number in the image.",
        "How do you write this digit in letters?", "Which word names the digit you see?",
        "Give the English name of the digit.", "用英文写出图中的数字。",
    )),
    "image_hanzi": (("image",), (
        "Write the digit in Chinese.", "What is this number in Chinese?", "Translate the digit into Chinese.",
        "Which Chinese character names the digit?", "用汉字写出图中的数字。", "图中的数字用中文怎么写？",
    )),
    "image_parity": (("image",), (
        "Is the digit in the image even or odd?", "Even or odd?", "Is this number odd or even?",
        "Tell the parity of the digit.", "Is the number you see even?", "图中的数字是奇数还是偶数？",
    )),
    "image_next": (("image",), (
        "Which number comes after the digit in the image?", "What is the next number?", "Add one to this digit.",
        "What is one more than the number in the image?", "Count one further.", "图中的数字加一是多少？",
    )),
    "image_place": (("image",), (
        "Where is the digit?", "Where does the digit stand?", "At which place is the digit?", "On which side is it?",
        "Which part of the image holds the digit?", "数字在哪边？",
    )),
    "speech_text": (("speech",), (
        "Transcribe the speech.", "What is said?", "Write down what you hear.", "What do you hear?",
        "Repeat the words.", "What does the speaker say?", "Please transcribe the recording.",
        "请忠实地识别该语音", "请将这段语音转化为文字", "请将语音转换成书面文字。", "请识别该音频的文本内容",
    )),
    "speech_digits": (("speech",), (
        "Write what you hear in digits.", "Which digits are spoken?", "Which numbers are said?",
        "Give the spoken numbers as figures.", "Note the spoken number in figures.", "用数字写出语音的内容。",
    )),
    "speech_count": (("speech",), (
        "How many digits are spoken?", "Count the spoken words.", "How many numbers do you hear?",
        "How many words are said?", "语音里有几个数字？",
    )),
    "video_motion": (("video",), (
        "Which way does the digit move?", "Where does it go?", "In which direction does it move?",
        "What is the direction of the motion?", "Does it move left, right, up or down?", "数字往哪边移动？",
    )),
    "video_digit": (("video",), (
        "Which digit moves?", "Which digit is in the video?", "What number do you see in the video?",
        "Name the moving digit.", "视频里的数字是几？",
    )),
    "video_text": (("video",), (
        "What happens in the video?", "Describe the video.", "Which digit moves, and where?",
        "Say what moves and in which direction.", "What do you see in this video?", "请描述这个视频。",
        "你能为我描述这个视频的内容吗？",
    )),
    "cross_sum": (("image", "speech"), (
        "What is the sum?", "Add the digit in the image and the spoken digit.",
        "How much is the image plus the speech?", "What do you get when you add both numbers?", "Add them.",
        "Add the number you see to the number you hear.", "What is the total of the two digits?",
        "两个数的和是多少？", "请把图片和语音里的数字相加。",
    )),
    "cross_larger": (("image", "speech"), (
        "Which digit is larger?", "What is the larger of the two digits?", "Compare them: which number is larger?",
        "Which of the two digits is greater?", "Give the larger number.",
        "Compare the image with the speech: which number is larger?",
        "Which number is larger, the one you see or the one you hear?", "图片和语音，哪个数更大？", "哪个数字更大？",
    )),
}  # fmt: skip

# task -> its right answer, of the facts; then those that differ where the question is Chinese.
_ANSWERS: dict[str, Callable[[Any], str]] = {
    "image_digit": lambda facts: str(facts.image),
    "image_word": lambda facts: NUMBER_WORDS["en"][facts.image],
    "image_hanzi": lambda facts: NUMBER_WORDS["zh"][facts.image],
    "image_parity": lambda facts: "odd" if facts.image % 2 else "even",
    "image_next": lambda facts: str(facts.image + 1),
    "image_place": lambda facts: str(facts.place),
    "speech_text": lambda facts: transcript(facts.speech, facts.language),
    "speech_digits": lambda facts: " ".join(map(str, facts.speech)),
    "speech_count": lambda facts: str(len(facts.speech)),
    "video_motion": lambda facts: str(facts.motion),
    "video_digit": lambda facts: str(facts.video),
    "video_text": lambda facts: f"{facts.video} moves {facts.motion}",
    "cross_sum": lambda facts: str(facts.image + facts.speech[0]),
    "cross_larger": lambda facts: str(max(facts.image, facts.speech[0])),
}
_MOTIONS = {"left": "左", "right": "右", "up": "上", "down": "下"}
_CHINESE_ANSWERS: dict[str, Callable[[Any], str]] = {
    "video_motion": lambda facts: _MOTIONS[facts.motion],
    "video_text": lambda facts: f"{facts.video} 向 {_MOTIONS[facts.motion]}",
}

_OPENINGS = ("Please tell me:", "Tell me,", "Hello!", "Look and listen:", "I have a question.", "Now", "Hi,", "Well,")
_CLOSINGS = ("Please.", "please", "Thank you!", "Answer briefly.", "Just the answer.", "now")


def is_chinese(text: str) -> bool:
    """Whether a wording holds Chinese characters."""
    return any("\u4e00" <= character <= "\u9fff" for character in text)


# Words by which a question names what it asks about: "Add one to this digit." may mean a spoken digit too.
_NAMED = {
    "image": re.compile("image|picture|you see|written|图"),
    "speech": re.compile("hear|said|spoken|speech|say|recording|语音|音频"),
    "video": re.compile("video|mov|motion|go|视频|移动"),
}


def unanswerable(media: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Tasks, and their wordings, that cannot be answered from `media` alone, and do not seem to be about them."""
    found = {}
    for task, (wanted, wordings) in TASKS.items():
        if set(wanted) <= set(media) or wanted == ("image",) and "video" in media:  # a frame is a picture
            continue
        if media and len(wanted) == 1:
            wordings = tuple(wording for wording in wordings if _NAMED[wanted[0]].search(wording))
        if wordings:
            found[task] = wordings
    return found


def random_unanswerable(media: Collection[str], rng: np.random.Generator, disturbance: float = 0.0) -> str:
    """A question that cannot be answered from media of these modalities."""
    tasks = unanswerable(media)
    task = str(rng.choice(list(tasks)))
    return random_question(task, rng, disturbance, tasks[task])


def random_question(
    task: str, rng: np.random.Generator, disturbance: float = 0.0, wordings: tuple[str, ...] = ()
) -> str:
    """One wording of a task, or of the given ones.

    `disturbance` is the chance of each of: words before it, words after it, lower case, no mark at its end, an unknown
    word somewhere. A stranger's question is like none of the wordings, and is to be understood still.
    """
    wordings = wordings or TASKS[task][1]
    question = wordings[int(rng.integers(len(wordings)))]
    chances = rng.random(5) < disturbance
    if chances[4] and not is_chinese(question):
        words = question.split(" ")
        letters = rng.integers(97, 123, size=int(rng.integers(2, 9)))
        words.insert(int(rng.integers(len(words) + 1)), "".join(chr(letter) for letter in letters))
        question = " ".join(words)
    if chances[3]:
        question = question.rstrip("?.。？!")
    if chances[0]:
        question = f"{_OPENINGS[int(rng.integers(len(_OPENINGS)))]} {question}"
    if chances[1]:
        question = f"{question} {_CLOSINGS[int(rng.integers(len(_CLOSINGS)))]}"
    return question.lower() if chances[2] else question


def answer(task: str, facts: Facts, question: str = "") -> str:
    """The right answer; `CANNOT_TELL` where the facts say nothing of what the task asks about.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    wanted = TASKS[task][0]
    if not facts.media.issuperset(wanted) or (task == "image_place" and facts.place is None):
        return CANNOT_TELL
    if len(wanted) > 1 and facts.silent:
        return CANNOT_TELL
    chinese = _CHINESE_ANSWERS.get(task) if is_chinese(question) else None
    return (chinese or _ANSWERS[task])(facts)


def transcript(digits: tuple[int, ...], language: str) -> str:
    """What is said, in the writing of its language: "three five" or "三五"."""
    return ("" if language == "zh" else " ").join(NUMBER_WORDS[language][digit] for digit in digits)
