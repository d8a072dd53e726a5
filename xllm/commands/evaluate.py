# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm evaluate MODEL --task asr|caption|qa --data FILE`: answer the samples of a data file and give one figure."""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    what = "asr or caption (character error rate), qa (accuracy), text (against the bare language model)"
    parser.add_argument("--task", required=True, help=what)
    what = "text: folder or Hub id of the bare language model (default: the one that the checkpoint names)"
    parser.add_argument("--against", metavar="LLM", help=what)
    what = "cer, wer, accuracy, or with several references a row bleu, cider, vqa (default: that of the task)"
    parser.add_argument("--metric", help=what)
    parser.add_argument("--data", required=True, metavar="FILE", help=".json, .jsonl, .csv, .tsv or .parquet")
    for option, meaning in (("--where", "only these rows"), ("--exclude", "not these rows")):
        parser.add_argument(option, action="append", default=[], metavar="COLUMN=VALUE[,VALUE]", help=meaning)
    parser.add_argument("--modality", help="of a plain table: a row of the model, or text")
    for column in ("file", "text"):
        parser.add_argument(f"--{column}-column", help="of a plain table (default: the one with a common name)")
    parser.add_argument("--media-root", metavar="DIR", help="folder of relative media paths (default: the data's)")
    parser.add_argument("--prompt", help="what to ask about each file of a plain table")
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    what = "hear recordings in windows of at most so many seconds, one after the other"
    parser.add_argument("--window", type=float, metavar="SECONDS", help=what)
    parser.add_argument("--normalizer", default="none", help="of both sides: none, basic, english or mandarin")
    what = "a sample that cannot be used ends the evaluation, or is left out, counted and listed"
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help=what)
    what = "real (the default), shuffled, blank or absent: is the figure any worse without their own? (docs/scores.md)"
    parser.add_argument("--media", default="real", help=what)
    what = "results.json, samples_TASK.jsonl, report.html, cer.txt; an evaluation that was killed goes on there"
    parser.add_argument("--output", metavar="DIR", help=what)
    parser.add_argument("--examples", type=int, default=20, help="how many samples report.html shows (default: 20)")


def _columns(pairs: list[str], option: str) -> dict[str, list[str]]:
    """`["speaker=a,b", "group=x,take=1"]` as `{"speaker": ["a", "b"], "group": ["x"], "take": ["1"]}`."""
    columns: dict[str, list[str]] = {}
    for pair in pairs:
        name = None
        for piece in pair.split(","):
            head, equals, value = piece.partition("=")
            name, value = (head, value) if equals else (name, piece)
            if not name:
                raise ValueError(f"{option} takes COLUMN=VALUE, got {pair!r}")
            columns.setdefault(name, []).append(value)
    return columns


def run(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    from accelerate import PartialState

    from xllm.assembly.opening import default_device, load_checkpoint, open_config
    from xllm.training.data.media_rows import MediaRows, parts_of_rows
    from xllm.training.evaluation.evaluation import check_evaluation, row_of_task, run_evaluation
    from xllm.training.evaluation.tasks import TASKS
    from xllm.training.recipes.recipe import EvaluationSpec, SourceSpec

    if args.task == "text":
        _compare_texts(args)
        return
    if args.task not in TASKS:
        raise ValueError(f"task is {args.task!r}; choose one of {', '.join(TASKS)}, text")
    folder = None if args.output is None else Path(args.output)
    if folder is not None and (folder / "config.json").exists():
        raise ValueError(f"--output {folder}: a checkpoint lies there; choose another folder")
    where, exclude = _columns(args.where, "--where"), _columns(args.exclude, "--exclude")
    config = open_config(args.model, args.trust_remote_code)[2]
    rows = config.modalities
    given = {name: getattr(args, name) for name in ("file_column", "text_column", "media_root", "limit")}
    given |= {"modality": args.modality or row_of_task(args.task, rows), "where": where, "exclude": exclude}
    source = SourceSpec(path=args.data, prompts=None if args.prompt is None else [args.prompt], **given)
    how = {
        name: getattr(args, name)
        for name in ("max_new_tokens", "batch_size", "window", "normalizer", "on_error", "media", "metric")
    }
    spec = EvaluationSpec(name=_name(args), task=args.task, data=[source], **how)
    sources = check_evaluation(spec, MediaRows(parts_of_rows(rows)))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    state = PartialState(cpu=str(args.device or default_device()) == "cpu") if several else None
    share = (0, 1) if state is None else (state.process_index, state.num_processes)
    place = args.device or (default_device() if state is None else str(state.device))
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    settings = _settings(args, config, model, sources)
    begun = time.monotonic()
    found = run_evaluation(
        model, processor, spec, folder=folder, progress=share[0] == 0, sources=sources, settings=settings, share=share,
        wait=(lambda: None) if state is None else state.wait_for_everyone,
    )  # fmt: skip
    found["seconds"] = round(time.monotonic() - begun, 2)
    if share[0] == 0:
        if folder is not None:
            _write(args, folder, found, settings, processor, sources)
        _print(args, found)
    if state is not None:
        state.destroy_process_group()


def _compare_texts(args: argparse.Namespace) -> None:
    from xllm.assembly.opening import default_device, load_checkpoint, open_config
    from xllm.modeling_xllm.language_models import language_model_of
    from xllm.training.data.dataset import ChatDataset
    from xllm.training.data.sources import load_source
    from xllm.training.evaluation.text_regression import compare_with_bare
    from xllm.training.recipes.recipe import SourceSpec

    config = open_config(args.model, args.trust_remote_code)[2]
    named = ((config.towers or {}).get("language_model") or {}).get("name_or_path")
    if (against := args.against or named) is None:
        raise ValueError(f"{args.model} holds its language model itself: name the bare one by --against")
    where, exclude = _columns(args.where, "--where"), _columns(args.exclude, "--exclude")
    spec = SourceSpec(path=args.data, modality="text", limit=args.limit, where=where, exclude=exclude)
    samples = load_source(spec)
    place = args.device or default_device()
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    bare_class: Any = language_model_of(model.config).causal_lm_class
    bare = bare_class.from_pretrained(against, dtype=model.dtype).to(place).eval()
    found = compare_with_bare(model, bare, processor, ChatDataset([samples], processor), args.batch_size)
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    same = (
        "not one logit differs" if not found["largest_difference"] else f"by {found['largest_difference']:.3g} at most"
    )
    sys.stdout.write(
        f"text: loss {found['loss']:.6f} per token, of the bare language model {found['bare_loss']:.6f} ({same}); "
        f"{found['tokens']} tokens of {found['n']} answers\n"
    )


def _name(args: argparse.Namespace) -> str:
    return args.task if args.media == "real" else f"{args.task}-{args.media}"


def _settings(args: argparse.Namespace, config, model, sources) -> dict:
    """What the answers depend on: the model by what config.json says (the digests of its weights too), the data."""
    from xllm.training.saving.lineage import data_fingerprint

    written = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return {
        "model": args.model,
        "model_sha256": hashlib.sha256(written.encode()).hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "data": args.data,
        "data_sha256": data_fingerprint(sample for source in sources.sources for sample in source)["sha256"],
        "max_new_tokens": args.max_new_tokens,
        "window": args.window,
        "media": args.media,
    }


def _write(args: argparse.Namespace, folder: Path, found: dict, settings: dict, processor, sources) -> None:
    from xllm.training.data.dataset import ChatDataset
    from xllm.training.evaluation.answer_log import samples_file, samples_of
    from xllm.training.evaluation.evaluation import compare
    from xllm.training.evaluation.results import write_alignments, write_report, write_results

    name = _name(args)
    samples = samples_of(folder, name)
    if args.media != "real" and samples_file(folder, args.task).is_file():
        found["difference"] = compare(found["metric"], samples, samples_of(folder, args.task))
    run = {
        "device": args.device,
        "batch_size": args.batch_size,
        "normalizer": args.normalizer,
        "seconds": found["seconds"],
    }
    write_results(folder, name, found, settings, {"model": "xllm", "model_args": args.model, **run})
    if "substitutions" in found:
        write_alignments(folder, name, samples)
    write_report(folder, name, found, samples, ChatDataset(sources.sources, processor), args.examples)


def _print(args: argparse.Namespace, found: dict) -> None:
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    errors = ""
    if "substitutions" in found:
        units = "words" if found["metric"] == "wer" else "characters"
        kinds = ", ".join(f"{found[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        errors = f" ({kinds} in {found['reference']} {units}; {100 * found['accuracy']:.1f} % without error)"
    between = " [{:.2f}, {:.2f}]".format(*(100 * bound for bound in found["interval"])) if "interval" in found else ""
    skipped = f", {found['skipped']} skipped" if found["skipped"] else ""
    figure = f"{found['metric']} {100 * found['value']:.2f} %{between}"
    if "difference" in found:
        low, high = (100 * bound for bound in found["difference"]["interval"])
        more = f"; {100 * found['difference']['value']:+.2f} points [{low:+.2f}, {high:+.2f}] from their own media"
        figure += more
    sys.stdout.write(f"{_name(args)}: {figure}, n = {found['n']}{skipped}{errors}\n")
