# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Model and data cards made of facts: what the checkpoint's files say, and nothing else."""

import json
from collections import Counter
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig
from xllm.processing.media_kinds import MEDIA_KINDS, MediaKind
from xllm.training.media_rows import parts_of_rows
from xllm.training.tasks import TASKS


TEMPLATES = Path(__file__).parent
STAGES = {0: "text", 1: "convert", 2: "align", 3: "integrate"}
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def read_results(path: str | Path) -> list[dict]:
    """Measured figures of a run: `results.json` of a stage, of the demo, or what `xllm evaluate --json` prints.

    Returns:
        `list[dict]` with `name`, `task`, `metric`, `value` (a share of 1) and `n`; empty if there is no such file.

    Raises:
        ValueError: the file is not of one of these forms.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "metric" in found:
            found = {found["task"]: found}
        cells = found.get("tasks", found)
        return [
            {
                "name": name,
                "task": cell.get("task", "asr" if cell["metric"] == "cer" else "qa"),
                **{key: cell[key] for key in ("metric", "value", "n")},
            }
            for name, cell in cells.items()
        ]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a file of results: expected {{name: {{task, metric, value, n}}}} ({error})"
        ) from error


def model_card(
    folder: str | Path,
    repo_id: str,
    revision: str = "main",
    license: str | None = None,
    licenses: dict[str, str] | None = None,
    results: str | Path | None = None,
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        folder: holds `config.json`, and `losses.png` and `results.json` if there are any.
        repo_id, revision (`str`): under which it will be found.
        license (`str`, *optional*): of what is stored here, e.g. "apache-2.0"; without it the card states none.
        licenses (`dict[str, str]`, *optional*): licences of the towers by Hub id.
        results (*optional*): a file of results instead of the folder's `results.json`.

    Raises:
        ValueError: a file of results that cannot be read.
    """
    folder = Path(folder)
    config = XLLMConfig.from_pretrained(folder)
    figures = read_results(results or folder / "results.json")
    towers, stage = config.towers or {}, config.stage or {}
    parts_of = parts_of_rows(config.modalities)
    kinds = [MEDIA_KINDS[part] for part in parts_of.values() if part in MEDIA_KINDS]
    hub_tasks = {kind.hub_task for kind in kinds}
    sources = sorted({tower["name_or_path"] for tower in towers.values()})
    licenses = licenses or {}
    data = ModelCardData(
        base_model=sources or None,
        library_name="transformers",
        license=license,
        pipeline_tag=hub_tasks.pop() if len(hub_tasks) == 1 else "any-to-any",
        tags=["xllm", "x2l-interface", "custom_code", *([f"stage{stage['stage']}"] if stage else [])],
        model_name=repo_id.split("/")[-1],
        eval_results=[_eval_result(figure) for figure in figures] or None,
        metrics=sorted({figure["metric"] for figure in figures}) or None,
    )
    parts = [
        {
            "name": name,
            "source": f"[{tower['name_or_path']}](https://huggingface.co/{tower['name_or_path']})",
            "revision": tower.get("revision") or "not pinned",
            "licence": licenses.get(tower["name_or_path"], "see its page"),
        }
        for name, tower in towers.items()
    ]
    stored = {"name": "everything else" if towers else "everything", "source": "this repository"}
    parts.append({**stored, "revision": revision, "licence": license or "not stated"})
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        revision=revision,
        modalities=list(config.modalities),
        parts=parts,
        rows=[_row(name, row, parts_of[name]) for name, row in config.modalities.items()],
        stage_line=_stage_line(stage),
        contents_line=_contents_line(towers),
        example_part=_example(kinds),
        lineage=config.lineage,
        results=figures,
        curves=(folder / "losses.png").is_file(),
    )


def _eval_result(figure: dict) -> EvalResult:
    return EvalResult(
        task_type=TASKS[figure["task"]].hub_task if figure["task"] in TASKS else figure["task"],
        dataset_type=figure["name"],
        dataset_name=f"{figure['name']} (n = {figure['n']})",
        metric_type=figure["metric"],
        metric_value=figure["value"],
    )


def _stage_line(stage: dict) -> str:
    if not stage:
        return "An X-LLM that no stage has trained yet."
    number = stage["stage"]
    return f"Stage {number} ({STAGES[number]}) of {', '.join(stage['modalities']) or 'text'}."


def _contents_line(towers: dict) -> str:
    if not towers:
        return "Everything is stored here: towers, interfaces and language model."
    return f"Stored here is everything but {', '.join(towers)}; `from_pretrained` fetches that from its source."


def _example(kinds: list[MediaKind]) -> str:
    """A content part of the first kind, as a message of the card's example holds it."""
    if not kinds:
        return '{"type": "text", "text": "Hello."}'
    return f'{{"type": "{kinds[0].type}", "path": "{kinds[0].example or kinds[0].type}"}}'


def _row(name: str, row: X2LConfig, part: str) -> dict:
    count = row.tokens_per_item
    positions = "position" if row.subsampling_factor == 1 else f"{row.subsampling_factor} positions"
    shared = row.shares_converter_with
    return {
        "name": name,
        "encoder": row.encoder or "none",
        "converter": f"{row.converter} (of {shared})" if shared else row.converter,
        "tokens": f"at most one per {positions} of its input"
        if count is None
        else f"{count} per {'picture' if row.num_frames else part}",
    }


def dataset_card(path: str | Path, name: str, description: str, license: str | None = None, **source) -> DatasetCard:
    """The card of a data file that `xllm train` reads.

    Args:
        path: the file. name, description (`str`): title and first paragraph.
        license (`str`, *optional*): e.g. "cc-by-4.0".
        source: further fields of `SourceSpec`, e.g. `modality="speech"` for a plain table.

    Raises:
        DataError: the file cannot be read; see `xllm.training.sources.load_source`.
    """
    from xllm.training.lineage import data_fingerprint
    from xllm.training.recipe import SourceSpec
    from xllm.training.sources import load_source

    samples = load_source(SourceSpec(path=str(path), **source))
    kinds = Counter(
        part["type"]
        for sample in samples
        for message in sample.conversation(lambda n: 0)
        for part in message["content"]
        if part["type"] != "text"
    )
    size = next((label for limit, label in SIZE_CATEGORIES if len(samples) < limit), "n>1M")
    data = DatasetCardData(license=license, size_categories=size, pretty_name=name, tags=["xllm", *sorted(kinds)])
    return DatasetCard.from_template(
        data,
        template_path=str(TEMPLATES / "data_card.md"),
        name=name,
        description=description,
        samples=len(samples),
        media=", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none",
        sha256=data_fingerprint(samples)["sha256"],
        file=Path(path).name,
    )


__all__ = ["dataset_card", "model_card", "read_results"]
