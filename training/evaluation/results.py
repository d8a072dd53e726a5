# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation leaves in its folder, beside the samples: figures, alignments, a page.

`results.json` has the keys of lmms-eval (`results`, `configs`, `versions`, `n-samples`, `config`), and holds every
evaluation of the folder; `cer.txt` is laid out as WeNet's scoring (see `transcripts`); `report.html` shows the figures
and the samples with the most errors, with their pictures and players. A second evaluation's are `cer_NAME.txt` and
`report_NAME.html`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xllm.modeling_xllm.weight_files import read_json, replacing, write_json
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset, describe
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample
from xllm.training.evaluation.caption_metrics import CAPTION_METRICS
from xllm.training.evaluation.transcripts import Scored, align, count_errors, mixed_units, report_lines
from xllm.training.inspection.explain import media_of_sample
from xllm.training.inspection.html_page import document, figure, safe_text, table, write_page
from xllm.training.inspection.report import environment


RESULTS = "results.json"
HIGHER = ("accuracy", *CAPTION_METRICS)  # the higher, the better
PERCENT = "relative"  # of a judge: in percent as it is
VERSION = 1  # of the tasks: how they ask and score
_FIGURES = ("value", "interval", "difference", "accuracy", "substitutions", "deletions", "insertions", "reference")


def write_results(folder: Path, name: str, result: Mapping, settings: Mapping, config: Mapping) -> None:
    """Put an evaluation into `results.json`.

    Args:
        result: what `run_evaluation` returned; its `figures`, if there are any, are others by their names.
        settings: what the answers depend on. config: of the run: the model, device, precision, batch size.
    """
    path, metric = folder / RESULTS, result["metric"]
    whole = read_json(path)
    figures = {f"{metric}{'' if key == 'value' else '_' + key},none": result[key] for key in _FIGURES if key in result}
    figures |= {f"{key},none": value for key, value in result.get("figures", {}).items()}
    entry = {
        "results": {"alias": name, **figures},
        "configs": {"task": name, "metric": metric, "output_type": "generate_until", **settings},
        "versions": VERSION,
        "n-samples": {"original": result["n"] + result["skipped"], "effective": result["n"]},
    }
    for key, value in entry.items():
        whole.setdefault(key, {})[name] = value
    whole["config"] = {**config, "environment": dict(environment())}
    whole["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, whole)


def table_lines(folders: Iterable[str | Path]) -> tuple[list[dict], list[str]]:
    """The evaluations of several folders, of whatever models, as one table.

    Raises:
        DataError: a folder holds none.
    """
    rows: list[dict] = []
    for folder in folders:
        whole = read_json(Path(folder, RESULTS))
        if not whole.get("results"):
            raise DataError(f"{folder}: holds no {RESULTS} of an evaluation")
        for name, figures in whole["results"].items():
            config, count = whole["configs"][name], whole["n-samples"][name]
            metric = config["metric"]
            times = 1 if metric == PERCENT else 100
            low, high = (times * bound for bound in figures.get(f"{metric}_interval,none") or (math.nan, math.nan))
            rows.append({
                "folder": str(folder), "evaluation": name, "model": config.get("model", config.get("judge")),
                "data": config.get("data"), "metric": metric, "value": times * figures[f"{metric},none"],
                "interval": [low, high], "n": count["effective"], "skipped": count["original"] - count["effective"],
            })  # fmt: skip
    cells = [["model", "evaluation", "data", "metric", "%", "95 %", "n", "skipped"]]
    for row in rows:
        between = "-" if math.isnan(row["interval"][0]) else "{:.2f}-{:.2f}".format(*row["interval"])
        texts = [str(row[key]) for key in ("model", "evaluation", "data", "metric")]
        cells.append([*texts, f"{row['value']:.2f}", between, str(row["n"]), str(row["skipped"])])
    widths = [max(map(len, column)) for column in zip(*cells)]
    return rows, ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]


def file_of(folder: Path, name: str, file: str) -> Path:
    """Where an evaluation's `cer.txt` or `report.html` is: the first of a folder has the name alone."""
    is_first = next(iter(read_json(folder / RESULTS).get("results", {name: None}))) == name
    stem, ending = file.split(".")
    return folder / (file if is_first else f"{stem}_{name}.{ending}")


def write_alignments(folder: Path, name: str, samples: Iterable[Mapping]) -> None:
    """`cer.txt`: the mixed units of every reference and answer, one above the other."""
    pairs = {}
    for sample in (sample for sample in samples if "skipped" not in sample):
        texts = (sample.get(f"normalized_{key}", sample[key]) for key in ("reference", "answer"))
        pairs[f"{sample['n']}:{sample['where']}"] = align(*map(mixed_units, texts))
    rate = count_errors([pair for row in pairs.values() for pair in row])
    with replacing(file_of(folder, name, "cer.txt")) as partial:
        partial.write_text("\n".join(report_lines(Scored({"mixed": rate}, pairs))) + "\n", encoding="utf-8")


def write_report(folder: Path, name: str, result: Mapping, samples: list[dict], data: ChatDataset, shown: int) -> None:
    """`report.html`: the figures, `shown` samples that went worst, those that were skipped."""
    body = "".join(_body(name, result, samples, data, shown))
    write_page(
        file_of(folder, name, "report.html"), document(f"{name}: {result['metric']} {result['value']:.2%}", body)
    )


def _body(name: str, result: Mapping, samples: list[dict], data: ChatDataset, shown: int) -> Iterator[str]:
    metric, answered = result["metric"], [sample for sample in samples if "skipped" not in sample]
    low, high = result.get("interval", (None, None))
    yield f"<h1>{safe_text(name)}: {metric} {result['value']:.2%}</h1>"
    between = f"95 % interval from {low:.2%} to {high:.2%}; " if low is not None else ""
    yield f'<p class="soft">{between}{result["n"]} samples, {result["skipped"]} skipped</p>'
    yield table(("", ""), [(key, _shown(result[key])) for key in result if key not in ("value", "interval")])
    order = sorted(answered, key=lambda sample: (-_badness(sample, metric), sample["n"]))
    yield f"<h2>The {min(shown, len(order))} samples with the most errors</h2>"
    for number, sample in enumerate(order[:shown], 1):
        yield f"<h3>{number}. {safe_text(sample['where'])}</h3>{media_figures(data, sample)}"
        rows = [(key, sample[key]) for key in ("question", "reference", "answer")]
        rows += [(key, sample[key]) for key in sample if key.startswith("normalized_")]
        if metric in sample:
            score, of = sample[metric]
            rows.append(("score" if metric in HIGHER else "errors", f"{score:.4g} of {of}"))
        yield table(("", ""), rows)
    if left := [sample for sample in samples if "skipped" in sample]:
        yield "<h2>Skipped</h2>"
        yield table(("sample", "reason"), [(sample["where"], sample["skipped"]) for sample in left])


def _badness(sample: Mapping, metric: str) -> float:
    errors, of = sample.get(metric, (0, 1))
    return -errors if metric in HIGHER else errors / max(1, of)


def media_figures(data: ChatDataset, sample: Mapping) -> str:
    """The media of a sample as the model got them; what cannot be shown is said."""
    if "segments" in sample:
        return f"<p>heard in {len(sample['segments'])} windows, not shown: {safe_text(', '.join(sample['media']))}</p>"
    try:
        one: Sample = data.samples[data.order[sample["n"]]]
        item = data[sample["n"]]
        batch = {} if data.processor.tokenizer is None else XLLMDataCollator(data.processor)([item])
        media = media_of_sample(data.processor, one, item, batch)
    except (ValueError, OSError) as error:
        return f"<p>its media cannot be shown: {safe_text(describe(error))}</p>"
    return f'<div class="media">{"".join(map(figure, media))}</div>' if media else ""


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


__all__ = [
    "PERCENT",
    "RESULTS",
    "file_of",
    "media_figures",
    "table_lines",
    "write_alignments",
    "write_report",
    "write_results",
]
