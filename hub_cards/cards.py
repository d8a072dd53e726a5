# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Model cards made of facts: what the checkpoint's files say, and nothing else."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.data.media_rows import parts_of_rows
from xllm.training.evaluation.tasks import TASKS
from xllm.training.stages import Stage


TEMPLATES = Path(__file__).parent


def read_results(path: str | Path) -> list[dict]:
    """Measured figures of a run: `results.json` of a stage, of the demo, or what `xllm evaluate --json` prints.

    Each has `name`, `task`, `metric`, `value` (a share of 1) and `n`; there are none if there is no such file, and a
    `ValueError` if it has another form.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "metric" in found:
            found = {found["task"]: found}
        cells = found.get("tasks", found)
        figures = []
        for name, cell in cells.items():
            task = cell.get("task", "asr" if cell["metric"] == "cer" else "qa")
            figures.append({"name": name, "task": task, **{key: cell[key] for key in ("metric", "value", "n")}})
        return figures
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        wanted = "{name: {task, metric, value, n}}"
        raise ValueError(f"{path}: not a file of results: expected {wanted} ({error})") from error


def model_card(
    folder: str | Path,
    repo_id: str,
    revision: str = "main",
    license: str | None = None,
    licenses: dict[str, str] | None = None,
    results: str | Path | None = None,
) -> ModelCard:
    """The card of the checkpoint in `folder`, which will be found as `repo_id` at `revision`.

    Args:
        license: of what is stored here, e.g. "apache-2.0"; without it the card states none.
        licenses: of the towers, by Hub id.
        results: a file for `read_results` instead of the folder's `results.json`.
    """
    folder, name = Path(folder), repo_id.split("/")[-1]
    config = XLLMConfig.from_pretrained(folder)
    figures = read_results(results or folder / "results.json")
    parts = parts_of_rows(config.modalities)
    kinds = [MEDIA_KINDS[part] for part in parts.values() if part in MEDIA_KINDS]
    hub_tasks = {kind.hub_task for kind in kinds}
    towers = config.towers or {}
    data = ModelCardData(
        base_model=sorted({tower["name_or_path"] for tower in towers.values()}) or None,
        library_name="transformers",
        license=license,
        pipeline_tag=hub_tasks.pop() if len(hub_tasks) == 1 else "any-to-any",
        tags=["xllm", "x2l-interface", "custom_code", *([f"stage{config.stage['stage']}"] if config.stage else [])],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=TASKS[figure["task"]].hub_task if figure["task"] in TASKS else figure["task"],
                dataset_type=figure["name"],
                dataset_name=f"{figure['name']} (n = {figure['n']})",
                metric_type=figure["metric"],
                metric_value=figure["value"],
            )
            for figure in figures
        ]
        or None,
        metrics=sorted({figure["metric"] for figure in figures}) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        name=name,
        repo_id=repo_id,
        revision=revision,
        license=license,
        licenses=licenses or {},
        config=config,
        towers=towers,
        stage_name=Stage(config.stage["stage"]).name.lower() if config.stage else None,
        rows=[(name, row, parts[name]) for name, row in config.modalities.items()],
        example=kinds[0] if kinds else None,
        results=figures,
        curves=(folder / "losses.png").is_file(),
    )
