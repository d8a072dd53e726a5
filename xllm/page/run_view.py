# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The stages of a folder of training as HTML. Texts of the run come from strangers: all of them are escaped."""

import time
from collections.abc import Iterable, Iterator
from html import escape

from tqdm import tqdm

from xllm.page.curves import drawn, number_text, sparkline
from xllm.page.texts import Texts
from xllm.training.inspection.html_page import safe_text, table
from xllm.training.inspection.run_log import GROUPS
from xllm.training.inspection.run_state import RunState, StageState, table_of


SHORT = 12  # characters of a fingerprint
MOST_NAMES = 30  # of tensors, of samples left out
LOGARITHMIC = ("losses", "grad_norm")  # pictures whose axis may be, where values lie far apart
QUIET = 600.0  # seconds without an entry, after which a run is said to be silent


def duration(seconds: float) -> str:
    """Minutes and seconds, hours before them if there are any; days before those."""
    days, rest = divmod(int(seconds), 86_400)
    return (f"{days} d " if days else "") + tqdm.format_interval(rest)


def overview(run: RunState, texts: Texts, chosen: str | None = None, now: float | None = None) -> str:
    """All stages: what each does, how far it is, its loss, the time left."""
    stages = list(run.stages.values())
    if not run.files.exists():
        return f'<p class="notice">{texts["folder gone"]}</p>'
    if not stages:
        return f'<p class="notice">{texts["no stages"]}</p>'
    counts = {state: sum(stage.state == state for stage in stages) for state in dict.fromkeys(s.state for s in stages)}
    told = texts["list"].join(f"{count} {texts[f'state {state}']}" for state, count in counts.items())
    cards = "".join(_card(stage, texts, stage.name == chosen, now or time.time()) for stage in stages)
    return f'<p class="soft">{told}</p><ol class="stages">{cards}</ol>'


def _card(stage: StageState, texts: Texts, is_chosen: bool, now: float) -> str:
    steps, state = stage.steps, stage.state
    share = min(1.0, stage.step / steps) if steps else 0.0
    doing = texts[f"phase {stage.phase}"] if state == "running" else texts[f"state {state}"]
    facts = [f"{stage.step:,} / {steps:,}" if steps else f"{stage.step:,}"] if stage.step or steps else []
    if (loss := stage.log.last("loss")) is not None:
        facts.append(f"{texts['loss']} {number_text(loss)}")
    if (left := stage.seconds_left(now)) is not None and stage.phase == "training":
        facts.append(texts("left", time=duration(left)))
    elif state == "done" and stage.log.time > stage.log.began:
        facts.append(texts("took", time=duration(stage.log.time - stage.log.began)))
    notes = ""
    if state == "failed":
        notes += f'<p class="bad">{safe_text(str(stage.stopped.get("error", ""))[:2000])}</p>'
    if state in ("failed", "interrupted"):
        saved = max((one["step"] for one in stage.checkpoints), default=None)
        how = texts["resume anew"] if saved is None else texts("resume from", step=f"{saved:,}")
        notes += f'<p class="soft">{how}</p>'
    if state == "running" and stage.log.time and now - stage.log.time > QUIET:
        notes += f'<p class="bad">{texts("silent", time=duration(now - stage.log.time))}</p>'
    if count := sum(stage.warnings.values()):
        notes += f'<p class="warned">{texts("warned", count=f"{count:,}")}</p>'
    return (
        f'<li class="stage {state}{" chosen" if is_chosen else ""}"><div><b>{safe_text(stage.title)}</b>'
        f'<span class="state">{doing}</span></div>{sparkline(stage.log.curves["losses"].get("loss", ()), steps or 0)}'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div><p>{" · ".join(facts)}</p>'
        f'{notes}<small class="soft">{safe_text(stage.name or ".")}</small></li>'
    )


def curves(stage: StageState, texts: Texts) -> str:
    """All numbers of a stage's log."""
    pictures = [
        drawn(
            texts[f"curves {group}"],
            stage.log.curves[group],
            stage.steps or 0,
            texts["step"],
            may_be_logarithmic=group in LOGARITHMIC,
        )
        for group in GROUPS
    ]
    if not any(pictures):
        return f'<p class="soft">{texts["no entries"]}</p>'
    return f'<div class="pictures">{"".join(pictures)}</div>'


def receipts(stage: StageState, texts: Texts) -> str:
    """What was trained; what stayed as it was, and its proof; data, evaluations, and where the weights come from."""
    views = (_trained, _frozen, _data, _evaluations, _lineage, _recipe)
    found = "".join(part for view in views for part in view(stage, texts))
    return found or f'<p class="soft">{texts["no receipts"]}</p>'


def _trained(stage: StageState, texts: Texts) -> Iterator[str]:
    counts = stage.parameters
    if counts:
        yield f"<h3>{texts['trained']}</h3>"
        own, every = (sum(values) for values in zip(*counts.values()))
        counts = {**counts, texts["in all"]: (own, every)}
        rows = [(name, f"{a:,}", f"{b:,}", f"{a / b:.1%}" if b else "") for name, (a, b) in counts.items()]
        yield _wide(table((texts["part"], texts["trained parameters"], texts["parameters"], texts["share"]), rows))
    names = table_of(stage.record, "result").get("trained")
    if isinstance(names, list) and names:
        yield _names(texts("trained tensors", count=f"{len(names):,}"), map(str, names), texts)


def _frozen(stage: StageState, texts: Texts) -> Iterator[str]:
    receipt = stage.receipt()
    start = table_of(stage.record, "start").get("frozen")
    if receipt["file"] is None and not isinstance(start, str):
        return
    yield f"<h3>{texts['frozen']}</h3>"
    if receipt["file"] is None:
        yield f"<p>{texts('frozen at start', digest=_digest(start))}</p>"
        return
    if receipt["fault"] is None:
        told = texts("frozen proof", count=f"{receipt['tensors']:,}", file=safe_text(receipt["file"]))
        yield f'<p class="good">{told}</p>'
    else:
        yield f'<p class="bad">{texts("receipt " + receipt["fault"], file=safe_text(receipt["file"]))}</p>'
    digests = [(texts["before"], receipt["before"]), (texts["after"], receipt["after"])]
    yield _wide(table(("", "SHA-256"), [(name, digest) for name, digest in digests if digest]))
    if receipt["merged"]:
        yield _names(texts("merged", count=f"{len(receipt['merged']):,}"), map(str, receipt["merged"]), texts)


def _data(stage: StageState, texts: Texts) -> Iterator[str]:
    rows = []
    for name, one in table_of(stage.record, "data").items():
        if isinstance(one, dict):
            names = one.get("names")
            told = texts["list"].join(map(str, names)) if isinstance(names, list) else ""
            rows.append((name, told, _count(one.get("samples")), str(one.get("sha256", ""))[:SHORT]))
    if rows:
        yield f"<h3>{texts['data']}</h3>"
        yield _wide(table(("", texts["sources"], texts["samples"], "SHA-256"), rows))
    if (processes := stage.record.get("processes")) is not None and processes != 1:
        yield f"<p>{texts('processes', count=safe_text(processes))}</p>"


def _evaluations(stage: StageState, texts: Texts) -> Iterator[str]:
    rows = []
    for name, one in stage.files.json(f"{stage.name}/results.json" if stage.name else "results.json").items():
        if isinstance(one, dict) and isinstance(value := one.get("value"), (int, float)):
            ends = interval if isinstance(interval := one.get("interval"), list) else []
            within = "-".join(f"{100 * end:.1f}" for end in ends if isinstance(end, (int, float)))
            rows.append((name, one.get("metric", ""), f"{100 * value:.2f} %", within, _count(one.get("n"))))
    if rows:
        yield f"<h3>{texts['evaluations']}</h3>"
        yield _wide(table((texts["name"], texts["metric"], texts["value"], "95 %", texts["samples"]), rows))


def _lineage(stage: StageState, texts: Texts) -> Iterator[str]:
    entries = stage.lineage
    if not entries:
        return
    rows = []
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        before = seen.get(str(entry.get("parent")))
        goes_on = texts("from entry", number=before) if before else texts["from others"]
        rows_of = entry.get("modalities")
        what = f"{entry.get('stage', '?')} ({'+'.join(map(str, rows_of)) if isinstance(rows_of, list) else '?'})"
        data = table_of({"data": entry.get("data")}, "data")
        frozen = table_of(entry, "frozen")
        names = data.get("names")
        told = texts["list"].join(map(str, names)) if isinstance(names, list) else ""
        ends = (str(entry.get("weights", ""))[:SHORT], _count(frozen.get("tensors")))
        rows.append((number, what, f"{told} ({_count(data.get('samples'))})", goes_on, *ends))
        seen[str(entry.get("weights"))] = number
    yield f"<h3>{texts['lineage']}</h3><p class='soft'>{texts['lineage what']}</p>"
    head = ("", texts["stage"], texts["data"], texts["goes on"], texts["weights"], texts["frozen tensors"])
    yield _wide(table(head, rows))


def _recipe(stage: StageState, texts: Texts) -> Iterator[str]:
    keys = [(key, value) for key, value in table_of(stage.record, "recipe").items() if value is not None]
    if keys:
        yield f"<details><summary>{texts['recipe']}</summary>{_wide(table(('', ''), keys))}</details>"


def checks(stage: StageState, texts: Texts) -> str:
    """Checkpoints, and what was counted on the way."""
    parts = [f"<h3>{texts['checkpoints']}</h3>"]
    rows = [
        (one["name"] + (f" ({texts['best']})" if one["best"] else ""), f"{one['bytes'] / 1e6:,.1f} MB")
        + (texts["whole"] if one["whole"] else texts["not whole"],)
        for one in stage.checkpoints
    ]
    if stage.state == "done":
        rows.append((stage.name or ".", "", texts["final"]))
    parts.append(_wide(table((texts["name"], texts["size"], ""), rows)) if rows else f"<p>{texts['none yet']}</p>")
    parts.append(f"<h3>{texts['warnings']}</h3>")
    found = stage.warnings
    known = [(texts.get(f"warning {name}", name.replace("_", " ")), f"{count:,}") for name, count in found.items()]
    parts.append(_wide(table(("", ""), known)) if known else f"<p>{texts['no warnings']}</p>")
    if stage.log.skipped:
        parts.append(_names(texts("skipped", count=f"{len(stage.log.skipped):,}"), stage.log.skipped, texts))
    own = [(name, problem) for name, problem in stage.files.problems.items() if name.startswith(stage.name)]
    parts.append(_wide(table((texts["file"], ""), own), "text") if own else "")
    return "".join(parts)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str("" if value is None else value)


def _digest(value: object) -> str:
    return f"<code>{escape(str(value)[:SHORT])}</code>"


def _wide(inner: str, kind: str = "") -> str:
    return f'<div class="wide {kind}">{inner}</div>'


def _names(title: str, names: Iterable[str], texts: Texts) -> str:
    every = list(names)
    shown = "".join(f"<li>{safe_text(name)}</li>" for name in every[:MOST_NAMES])
    more = f"<li>{texts('more', count=f'{len(every) - MOST_NAMES:,}')}</li>" if len(every) > MOST_NAMES else ""
    return f"<details><summary>{title}</summary><ul class='names'>{shown}{more}</ul></details>"


__all__ = ["checks", "curves", "duration", "overview", "receipts"]
