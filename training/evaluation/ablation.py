# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""An ablation: recipes that differ in one thing, each trained with the same seeds, and what the difference is worth.

Every arm is a recipe with overrides of its own. What is compared are the evaluations of its stages (of one name that
several stages have, the last one's): means over the seeds with their 95 % interval (Student's t), and the difference
of each arm from the first, seed by seed.
"""

import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xllm.modeling_xllm.weight_files import replacing, write_json
from xllm.training.recipes.recipe import RecipeError, load_recipe
from xllm.training.train import check, train


# 97.5 % quantiles of Student's t, by degrees of freedom from 1.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
JSON, TABLE, PLOT = "ablation.json", "ablation.md", "ablation.png"


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: a recipe, and what is set in it."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


def read_arm(text: str) -> Arm:
    """`"NAME=RECIPE key=value ..."`, or a recipe alone, whose name is the arm's.

    Raises:
        RecipeError: not of that form.
    """
    words = shlex.split(text)
    head = words[0] if words else ""
    name, equals, recipe = head.partition("=")
    name, recipe = (name, recipe) if equals else (Path(head).stem, head)
    if not recipe or not name.replace("-", "").replace("_", "").isalnum() or not all("=" in one for one in words[1:]):
        raise RecipeError(f"--arm {text!r}: expected NAME=RECIPE key=value ..., a name of letters, digits, - and _")
    return Arm(name, recipe, tuple(words[1:]))


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """`{"mean", "interval", "n"}`; of one value there is no interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "interval": None, "n": len(values)}
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "interval": [mean - half, mean + half], "n": len(values)}


def run_ablation(
    arms: Sequence[Arm],
    seeds: Iterable[int],
    folder: str | Path,
    overrides: Sequence[str] = (),
    progress: Any = True,
    trust_remote_code: bool = False,
) -> dict:
    """Train every arm with every seed in `folder/ARM/seedN`, and compare; one that was stopped goes on where it was.

    Returns:
        `{"arms", "seeds", "evaluations": {name: {"metric", "arms": {arm: mean_interval and "values"}, "difference":
        {arm: mean_interval}}}}`, as in `folder/ablation.json`.

    Raises:
        RecipeError: fewer than two arms, two of one name, an arm that no stage evaluates. What else `train` raises:
            every arm is checked before one is trained.
    """
    folder, seeds = Path(folder), list(seeds)
    if len(arms) < 2 or len({arm.name for arm in arms}) < len(arms):
        raise RecipeError(f"an ablation compares at least two arms of different names, got {len(arms)}")
    settings = {
        (arm.name, seed): [
            *overrides, *arm.overrides, f"seed={seed}", f"output_dir={folder / arm.name / f'seed{seed}'}"
        ]
        for arm in arms for seed in seeds
    }  # fmt: skip
    for arm in arms:
        given = settings[arm.name, seeds[0]]
        if not any(stage.evaluate for stage in load_recipe(arm.recipe, given).stages):
            raise RecipeError(
                f"arm {arm.name}: no stage is evaluated; give evaluate: in {arm.recipe}, or as key=value"
            )
        check(arm.recipe, given, trust_remote_code=trust_remote_code, resume=True)
    found: dict[tuple[str, int], dict[str, dict]] = {}
    for seed in seeds:
        for arm in arms:
            how = {"progress": progress, "trust_remote_code": trust_remote_code, "resume": True}
            result = train(arm.recipe, settings[arm.name, seed], **how)
            evaluations: dict[str, dict] = {}
            for stage in result.stages:
                evaluations |= stage.evaluations
            found[arm.name, seed] = evaluations
    summary = compare_arms(found, [arm.name for arm in arms], seeds)
    write_json(folder / JSON, summary)
    with replacing(folder / TABLE) as partial:
        partial.write_text("\n".join(table_lines(summary)) + "\n", encoding="utf-8")
    with replacing(folder / PLOT) as partial:
        _plot(summary, partial)
    return summary


def compare_arms(found: dict[tuple[str, int], dict[str, dict]], arms: list[str], seeds: list[int]) -> dict:
    """Means and differences of the evaluations that all runs have; see `run_ablation`.

    Raises:
        RecipeError: there is none.
    """
    every = list(found.values())
    names = [name for name in every[0] if all(name in one for one in every)]
    if not names:
        raise RecipeError(
            f"the arms have no evaluation in common: {', '.join(sorted({n for one in every for n in one}))}"
        )
    evaluations = {}
    for name in names:
        values = {arm: [found[arm, seed][name]["value"] for seed in seeds] for arm in arms}
        base = values[arms[0]]
        evaluations[name] = {
            "metric": every[0][name]["metric"],
            "arms": {arm: {**mean_interval(own), "values": own} for arm, own in values.items()},
            "difference": {
                arm: mean_interval([own - other for own, other in zip(values[arm], base)]) for arm in arms[1:]
            },
        }
    return {"arms": arms, "seeds": seeds, "evaluations": evaluations}


def table_lines(summary: dict) -> list[str]:
    """A Markdown table, in percent."""

    def shown(one: dict, sign: str = "") -> str:
        text = f"{100 * one['mean']:{sign}.2f}"
        return (
            text
            if one["interval"] is None
            else "{} [{:.2f}, {:.2f}]".format(text, *(100 * b for b in one["interval"]))
        )

    lines = [f"| evaluation | arm | %, mean of {len(summary['seeds'])} seeds | from {summary['arms'][0]} |"]
    lines.append("|---|---|---|---|")
    for name, row in summary["evaluations"].items():
        for arm in summary["arms"]:
            change = shown(row["difference"][arm], "+") if arm in row["difference"] else ""
            lines.append(f"| {name} ({row['metric']}) | {arm} | {shown(row['arms'][arm])} | {change} |")
    return lines


def _plot(summary: dict, path: Path) -> None:
    """Each seed as a dot, each mean with its interval."""
    names = list(summary["evaluations"])
    figure = Figure(figsize=(1.5 + 1.3 * len(summary["arms"]) * len(names), 4), layout="constrained")
    panels = FigureCanvasAgg(figure).figure.subplots(1, len(names), squeeze=False)[0]
    for name, axes in zip(names, panels):
        row = summary["evaluations"][name]
        for place, arm in enumerate(summary["arms"]):
            one = row["arms"][arm]
            axes.plot([place] * len(one["values"]), [100 * value for value in one["values"]], "o", color="0.6")
            low, high = one["interval"] or (one["mean"], one["mean"])
            errors = [[100 * (one["mean"] - low)], [100 * (high - one["mean"])]]
            axes.errorbar([place + 0.15], [100 * one["mean"]], yerr=errors, fmt="s", capsize=4, color="tab:blue")
        axes.set_xticks(range(len(summary["arms"])), summary["arms"])
        axes.set_title(f"{name}: {row['metric']}, %", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


__all__ = ["Arm", "compare_arms", "mean_interval", "read_arm", "run_ablation", "table_lines"]
