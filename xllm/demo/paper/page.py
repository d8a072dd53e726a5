# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""docs/ablations.md and its plot, written from the results alone: what is said of a difference follows from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xllm.demo.paper.arms import QUESTIONS, Question
from xllm.demo.paper.world import TESTS
from xllm.modeling_xllm.weight_files import replacing, write_json


PAGE, PLOT, RESULTS = "ablations.md", "pictures/ablations.png", "ablations.json"
_HEAD = """# The paper's questions, by experiment

`make ablations` (`xllm ablate --paper --output DIR --seeds {n}`) makes {n} small worlds from nothing, one for each
seed, trains {runs} runs in each, and writes this page, the plot and `ablations.json` from what it finds; nothing
here is written by hand.

A world is that of `xllm demo`, in Chinese: scanned digits, spoken digits, and stand-ins for the published towers,
pretrained in minutes and then frozen. The language model is a small ChatGLM that has read Chinese alone, no word of
English and no numeral: it knows what to answer about a digit that is *described* to it. Each test has {tests}
questions about unseen scans, unseen voices and, of `cross`, pairs of digits (seen, heard) that no training file
has:

| evaluation | asks | metric | floor | ceiling |
|---|---|---|---|---|
{bounds}

The floor is the best answer that is always the same, to each question its own. The ceiling is the language model's
when it reads the right words in place of the media: no interface can be relied on to do better.

Figures are means over seeds 0 to {last} with their 95 % interval (Student's t); a difference is taken seed by seed,
from the first arm. **No difference shown** means that its interval holds 0, not that there is none: with {n} seeds
only large ones are seen. Intervals are not corrected for their number ({differences} on this page): by chance alone
one in twenty leaves 0 out.

![Each seed as a dot, each mean with its interval; dotted: floor and ceiling](pictures/ablations.png)
"""
_TAIL = """
## What is not shown

- Nothing about models of the published size, about photographs, or about speech that is not digits. A direction
  found here is a hint where to look, not a forecast.
- A seed is a world of its own: other scans, voices and pairs of digits are held out, other questions drawn, the
  towers trained anew, and the interfaces begun from other weights. All of it is in the intervals; other towers, other
  kinds of questions and other sizes are not.
- The runs are short, and the interfaces of all arms share one learning rate. Where two arms differ in steps,
  that is said, and a third has as many.
- The language model's adapter (`all`) has a rate of its own, 2e-4, taken after 1e-3 had failed for one seed of two.
  Where the seeds of that arm lie far apart, this training failed, and nothing is said about a better one.
- The paper's figures are a judge's scores of long answers, in percent of GPT-4's; these are shares of right short
  answers and character error rates.
- "Poor" captions are poor at random. Those of the web may be poor in ways that teach something wrong.
"""
_ASKS = {
    "digit": "which digit is on the picture",
    "reasoning": "is it even or odd, and which number is next",
    "transcript": "what is said, through the language model",
    "recogniser": "what is said, by the recogniser of stage 1",
    "cross": "sum and larger one of a digit seen and a digit heard",
}


_FAR_APART = 30.0  # points between the seeds of an arm, which an interval alone does not tell


def verdict(change: dict[str, Any], claim: int) -> str:
    """What a difference with its interval says, and whether the paper does; `claim`: 1 higher, -1 lower, 0 nothing."""
    low, high = change["interval"] or (float("-inf"), float("inf"))
    found = 1 if low > 0 else -1 if high < 0 else 0
    if not found:
        return "no difference shown" + ("; the paper: " + ("higher" if claim > 0 else "lower") if claim else "")
    said = "higher" if found > 0 else "lower"
    return said + ("" if not claim else ", as in the paper" if claim == found else "; **not as in the paper**")


def _percent(one: dict[str, Any], sign: str = "") -> str:
    text = f"{100 * one['mean']:{sign}.1f}"
    return text if one["interval"] is None else "{} [{:.1f}, {:.1f}]".format(text, *(100 * x for x in one["interval"]))


def _bound(summary: dict[str, Any], name: str) -> dict[str, float]:
    return summary["bounds"]["transcript" if name == "recogniser" else name]


def _section(question: Question, result: dict[str, Any]) -> Iterator[str]:
    first = next(iter(question.arms))
    yield f"\n## {question.title}\n\nThe paper: {question.paper}\n\nHere: {question.here}\n"
    yield "| arm | what it is |\n|---|---|"
    yield from (f"| {name} | {what} |" for name, (_, what) in question.arms.items())
    yield f"\n| evaluation | arm | % [95 %] | from {first} | |\n|---|---|---|---|---|"
    for name, row in result["evaluations"].items():
        for arm, one in row["arms"].items():
            cells = ["", ""]
            if arm != first:
                change = row["difference"][arm]
                cells = [_percent(change, "+"), verdict(change, question.claims.get((arm, name), 0))]
            spread = [100 * find(one["values"]) for find in (min, max)]
            if spread[1] - spread[0] > _FAR_APART:
                cells[1] += "; its seeds lie from {:.1f} to {:.1f}".format(*spread)
            metric = f"{name}, {row['metric']} ({'lower' if row['metric'] == 'cer' else 'higher'} is better)"
            yield f"| {metric if arm == first else ''} | {arm} | {_percent(one)} | {' | '.join(cells)} |"


def _in_short(summary: dict[str, Any]) -> Iterator[str]:
    """What the paper leads one to expect, and what was found of it."""
    yield "\n## In short\n\n| question | arm | evaluation | from the first arm | |\n|---|---|---|---|---|"
    for name, question in QUESTIONS.items():
        for (arm, evaluation), claim in question.claims.items():
            change = summary["questions"][name]["evaluations"][evaluation]["difference"][arm]
            yield f"| {question.title} | {arm} | {evaluation} | {_percent(change, '+')} | {verdict(change, claim)} |"


def page_text(summary: dict[str, Any]) -> str:
    """The page."""
    rows = []
    for name, asks in _ASKS.items():
        metric = "cer" if TESTS.get(name, TESTS["transcript"])[1] == "asr" else "accuracy"
        bound = _bound(summary, name)
        rows.append(
            f"| {name} | {asks} | {metric}, % | {100 * bound['floor']:.1f} | "
            f"{'0.0' if name == 'recogniser' else format(100 * bound['ceiling'], '.1f')} |"
        )
    number = len(summary["seeds"])
    differences = sum(
        len(one["difference"]) for two in summary["questions"].values() for one in two["evaluations"].values()
    )
    known = {"n": number, "last": number - 1, "tests": summary["tests"], "runs": summary["runs"]}
    text = _HEAD.format(bounds="\n".join(rows), differences=differences, **known)
    sections = [line for name, one in QUESTIONS.items() for line in _section(one, summary["questions"][name])]
    return text + "\n".join([*_in_short(summary), *sections]) + "\n" + _TAIL


def write_page(folder: Path, summary: dict[str, Any]) -> None:
    """Page, plot and results."""
    (folder / PLOT).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, summary)
    with replacing(folder / PAGE) as partial:
        partial.write_text(page_text(summary), encoding="utf-8")
    with replacing(folder / PLOT) as partial:
        _plot(summary, partial)


def _plot(summary: dict[str, Any], path: Path) -> None:
    """A row per question, a panel per evaluation."""
    columns = max(len(question.evaluations) for question in QUESTIONS.values())
    figure = Figure(figsize=(4.2 * columns, 2.1 * len(QUESTIONS)), layout="constrained")
    panels = FigureCanvasAgg(figure).figure.subplots(len(QUESTIONS), columns, squeeze=False)
    for (name, question), line in zip(QUESTIONS.items(), panels):
        for place, axes in enumerate(line):
            if place >= len(question.evaluations):
                axes.set_axis_off()
                continue
            evaluation = question.evaluations[place]
            row, bound = summary["questions"][name]["evaluations"][evaluation], _bound(summary, evaluation)
            for height, one in enumerate(row["arms"].values()):
                axes.plot(
                    [100 * value for value in one["values"]], [height] * len(one["values"]), "o", color="0.65", ms=3
                )
                low, high = one["interval"] or (one["mean"], one["mean"])
                errors = [[100 * (one["mean"] - low)], [100 * (high - one["mean"])]]
                axes.errorbar([100 * one["mean"]], [height + 0.2], xerr=errors, fmt="s", ms=4, capsize=3, color="C0")
            for value in bound.values():
                axes.axvline(100 * value, color="C3", linestyle=":", linewidth=1)
            axes.set_yticks(range(len(row["arms"])), list(row["arms"]) if place == 0 else [""] * len(row["arms"]))
            axes.set_ylim(len(row["arms"]) - 0.5, -0.5)
            most = max(value for one in row["arms"].values() for value in (*one["values"], *(one["interval"] or ())))
            axes.set_xlim(-3, max(103.0, 100 * most + 3))
            axes.set_title(f"{name}: {evaluation}, {row['metric']} %", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110, format="png")


__all__ = ["page_text", "verdict", "write_page"]
