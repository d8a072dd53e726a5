# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""States of a phone, what is asked about them and told to it, and what is right: an answer, a command or a refusal.

Everything is drawn from a generator of random numbers. With `held_out` it is what the test has: wordings, song titles
and impossible wishes that training never meets.
"""

import json
import math
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from xllm.demo.device import phrases
from xllm.demo.device.phrases import CANNOT_DO, NAMES, QUESTIONS, REQUESTS, TEENS, TENS
from xllm.demo.questions import CANNOT_TELL
from xllm.device.commands import Refused
from xllm.device.device_status import SUMMARY, fields_of
from xllm.device.phone import APPS, LEVELS, NAME, RADIOS, RINGERS, STATUS, Phone


UNITS = {"%": "%", "°C": "degrees", "bpm": "bpm", "bars": "bars"}
LOW_BATTERY, STEP = 20, 10
UNKNOWN = "unknown"
DESCRIBE = "Describe the phone."
# Of all: whole descriptions (training alone), requests, of these impossible ones; of questions: those about what the
# phone does not know.
_DESCRIPTIONS, _REQUESTS, _IMPOSSIBLE, _UNKNOWN = 0.15, 0.5, 0.12, 0.08
# Kinds of questions, as often as the test has them; training asks more for what is told in words of its own.
_TESTED = ("value",) * 8 + tuple(QUESTIONS)
_TAUGHT = (*_TESTED, *("alarm",) * 4, *("app", "song") * 2)


class Task(NamedTuple):
    """Something said to the phone: its kind, the words, the right reply, the fields that this depends on, and the
    command in it, if any."""

    kind: str
    words: str
    reply: str
    needs: tuple[str, ...] = ()
    command: dict | None = None


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of them."""
    return choices[int(rng.integers(len(choices)))]


def held_out_pairs(first: int, second: int) -> set[tuple[int, int]]:
    """About a fifth of the pairs of two lists of this length: each member of the lists is in others too."""
    return {(one, two) for one in range(first) for two in range(second) if (2 * one + two) % 5 == 0}


def _pair(rng: np.random.Generator, lists: tuple, held_out: bool) -> str:
    """A pair of words, of those for training or for the test."""
    test = held_out_pairs(*map(len, lists))
    while True:
        places = tuple(int(rng.integers(len(words))) for words in lists)
        if (places in test) == held_out:
            return " ".join(words[place] for words, place in zip(lists, places))


def random_state(rng: np.random.Generator, held_out: bool = False) -> dict[str, Any]:
    """A state of the phone, by its schema."""
    airplane = bool(rng.random() < 0.3)
    state = {
        "battery": int(rng.integers(1, LOW_BATTERY if rng.random() < 0.3 else 101)),
        "charging": bool(rng.random() < 0.5),
        "airplane": airplane,
        **{name: not airplane and bool(rng.random() < 0.6) for name in RADIOS},
        "signal": 0 if airplane else int(rng.integers(5)),
        **{name: int(rng.integers(101)) for name in LEVELS},
        "ringer": pick(rng, RINGERS),
        "app": pick(rng, APPS),
    }
    if rng.random() < 0.6:
        state["alarm"] = {"hour": int(rng.integers(24)), "minute": 15 * int(rng.integers(4))}
    state["temperature"] = round(float(rng.uniform(-10, 50)), 1)
    if rng.random() < 0.7:
        state["song"] = _pair(rng, phrases.TITLES, held_out)
    start, end = rng.uniform(45, 150, size=2)
    wave = np.linspace(start, end, int(rng.integers(5, 30))) + rng.uniform(-8, 8, size=1)
    state["pulse"] = [int(value) for value in np.clip(wave + rng.uniform(-6, 6, size=wave.size), 40, 160)]
    return state


def describe(
    state: dict[str, Any], order: np.random.Generator | None = None, kept: Collection[str] | None = None
) -> str:
    """The state in words: two for each field, its name and its value, in the place of the interface's one token.

    Args:
        order: shuffles the fields.
        kept: fields to describe, instead of all.
    """
    words: dict[str, list[str]] = {}
    for field in fields_of(state, STATUS):
        name, value = re.split(r"[ .]", field.path), field.value
        if kept is not None and name[0] not in kept:
            continue
        if field.kind == "absent":
            shown = "none"
        elif field.kind == "number":
            shown = whole(value)
        elif field.kind == "text":
            shown = value.decode()
        else:
            shown = {"true": "on", "false": "off"}.get(value, value.strip('"'))
        called = name[1] if name[0] in ("pulse", "alarm") and len(name) > 1 else name[0]
        words.setdefault(name[0], []).append(f"{called} {shown}")
    fields = [*words.values()]
    places = range(len(fields)) if order is None else order.permutation(len(fields))
    return " ".join(" ".join(fields[place]) for place in places)


def whole(value: float) -> str:
    """A number without its decimals, rounded half up."""
    return str(math.floor(value + 0.5))


def summary(state: dict[str, Any]) -> dict[str, Any]:
    """The state's values by the names of `NAMES`; those of the series are its summary."""
    flat = {field.path: field.value for field in fields_of(state, STATUS)}
    return {**state, **{name.removeprefix("pulse."): value for name, value in flat.items() if "pulse." in name}}


def _unit(name: str) -> str:
    schema = STATUS["properties"].get(name, STATUS["properties"]["pulse"]["items"])
    return f" {UNITS[schema['x-unit']]}" if "x-unit" in schema else ""


def right_answer(kind: str, name: str, state: dict[str, Any]) -> str:
    """What is to be answered to a question of this kind about a field."""
    known = summary(state)
    yes: dict[str, Callable[[], bool]] = {
        "is_on": lambda: known[name],
        "is_charging": lambda: known["charging"],
        "is_low": lambda: known["battery"] < LOW_BATTERY,
    }
    if kind in yes:
        return "yes" if yes[kind]() else "no"
    if kind == "alarm":
        alarm = state.get("alarm")
        return "none" if alarm is None else clock(alarm)
    if kind != "value":
        return known.get(kind) or "none"
    if name == UNKNOWN:
        return CANNOT_TELL
    return known[name] if isinstance(known[name], str) else f"{whole(known[name])}{_unit(name)}"


def clock(alarm: dict[str, int]) -> str:
    """7:30"""
    return f"{alarm['hour']}:{alarm['minute']:02}"


def random_question(rng: np.random.Generator, state: dict[str, Any], held_out: bool) -> Task:
    """A question about a state, and its answer."""
    kind = pick(rng, _TESTED if held_out else _TAUGHT)
    name = UNKNOWN
    if kind == "value" and rng.random() > _UNKNOWN:
        name = pick(rng, [name for name in NAMES if name not in (UNKNOWN, "airplane", *RADIOS)])
    elif kind == "is_on":
        name = pick(rng, ("airplane", *RADIOS))
    words = pick(rng, QUESTIONS[kind][held_out]).replace("{x}", pick(rng, NAMES[name]))
    needed = {"is_charging": "charging", "is_low": "battery"}.get(kind, kind)
    needed = needed if name == UNKNOWN else name
    needs = ("pulse",) if needed in SUMMARY else (needed,) if needed in STATUS["properties"] else ()
    return Task(f"{kind} {name}", _first_large(words), right_answer(kind, name, state), needs)


def random_request(rng: np.random.Generator, state: dict[str, Any], held_out: bool) -> Task:
    """Something that the phone is told to do: the right reply is the command, or why it cannot be done."""
    possible = [kind for kind in REQUESTS if kind != "impossible"] + ["raise", "lower"] * 2
    kind = "impossible" if rng.random() < _IMPOSSIBLE else pick(rng, possible)
    name, fills, command = _wish(kind, rng, state, held_out)
    words = pick(rng, REQUESTS[kind][held_out])
    for place, text in {"x": pick(rng, NAMES.get(name, (name,))), **fills}.items():
        words = words.replace(f"{{{place}}}", str(text))
    needs: tuple[str, ...] = {"close": ("app",), "cancel_alarm": ("alarm",)}.get(kind, ())
    needs += (name, "airplane") if name in RADIOS else (name,) if name in STATUS["properties"] else ()
    if command is None:
        return Task("impossible", _first_large(words), f"{CANNOT_DO}.")
    try:
        Phone(state).execute(command)
    except Refused as refused:  # beyond its levels, or not in this state
        known = command.get("value", 0) in range(101)
        return Task("refused", _first_large(words), f"{CANNOT_DO}: {refused}." if known else f"{CANNOT_DO}.", needs)
    return Task(kind, _first_large(words), json.dumps(command), needs, command)


def _wish(kind: str, rng: np.random.Generator, state: dict[str, Any], held_out: bool) -> tuple[str, dict, Any]:
    """What it is about, what fills the places of its wordings, and the command, if there is one."""
    if kind in ("set_level", "raise", "lower"):
        name, step = pick(rng, LEVELS), STEP
        aim = int(rng.integers(101)) if rng.random() > 0.1 else int(rng.integers(101, 161))
        if kind != "set_level":
            aim = min(100, max(0, state[name] + (step if kind == "raise" else -step)))
        return name, {"n": aim, "d": step}, {NAME: f"set_{name}", "value": aim}
    if kind in ("on", "off", "toggle"):
        name = pick(rng, ("airplane", *RADIOS))
        return name, {}, {NAME: f"set_{name}", "on": kind == "on" or kind == "toggle" and not state[name]}
    if kind == "ringer":
        mode = pick(rng, RINGERS)
        return mode, {}, {NAME: "set_ringer", "mode": mode}
    if kind == "open":
        app = pick(rng, APPS[1:])
        return app, {}, {NAME: "open_app", "app": app}
    if kind == "set_alarm":
        alarm = {"hour": int(rng.integers(24)), "minute": 15 * int(rng.integers(4))}
        return "alarm", {"t": clock(alarm)}, {NAME: "set_alarm", **alarm}
    if kind == "impossible":
        return _pair(rng, (phrases.VERBS, phrases.OBJECTS), held_out), {}, None
    return "", {}, {NAME: {"close": "close_app"}.get(kind, kind)}


def _first_large(words: str) -> str:
    return words[:1].upper() + words[1:]


def random_task(rng: np.random.Generator, state: dict[str, Any], descriptions: float = _DESCRIPTIONS) -> Task:
    """Anything that training says: a question, a request, or the wish for a description (its reply is left open)."""
    if rng.random() < descriptions:
        return Task("describe", DESCRIBE, "")
    draw = random_request if rng.random() < _REQUESTS else random_question
    task = draw(rng, state, False)
    return task._replace(words=loosely(task.words, rng))


def loosely(words: str, rng: np.random.Generator, disturbance: float = 0.15) -> str:
    """The same words, perhaps politely, in small letters, or without a mark at their end."""
    before, behind, small, bare = rng.random(4) < disturbance
    if bare or behind:
        words = words.rstrip(".?")
    if before:
        words = f"{pick(rng, phrases.OPENINGS)} {words[:1].lower()}{words[1:]}"
    if behind:
        words = f"{words} {pick(rng, phrases.CLOSINGS)}"
    return words.lower() if small else words


def say(words: str) -> str:
    """As it is said: "Wake me at 7:30." becomes "wake me at seven thirty"."""

    def number(found: re.Match[str] | int) -> str:
        value = found if isinstance(found, int) else int(found[0])
        if value < len(TEENS):
            return TEENS[value]
        (high, low), name = (divmod(value, 100), "one hundred") if value >= 100 else (divmod(value, 10), "")
        return f"{name or TENS[high - 2]} {number(low) if low else ''}".rstrip()

    words = re.sub(r"(\d+):(\d+)", r"\1 \2", words.replace(":00", " o'clock")).replace("%", "percent")
    words = re.sub(r"\d+", number, words)
    return re.sub(r"[^a-z' ]", "", words.lower()).strip()


def unheard(words: str) -> set[bool]:
    """Of each number and time in `words` that is said in two parts, "forty two" or "seven thirty": whether no
    recording of training has this pair."""
    found = {(2 * int(hour) + int(minute) // 15) % 5 == 0 for hour, minute in re.findall(r"(\d+):(\d+)", words)}
    for value in (int(number) % 100 for number in re.findall(r"(?<![:\d])\d+(?![:\d])", words)):
        if value > 20 and value % 10:
            found.add((2 * (value // 10) + value % 10) % 5 == 0)
    return found
