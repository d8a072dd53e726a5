# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm evaluate MODEL --task asr|caption|qa --data FILE`: answer the samples of a data file and give one figure."""

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    parser.add_argument("--task", required=True, help="asr or caption (character error rate), qa (accuracy)")
    parser.add_argument("--data", required=True, metavar="FILE", help=".json, .jsonl, .csv, .tsv or .parquet")
    for option, meaning in (("--where", "only these rows"), ("--exclude", "not these rows")):
        parser.add_argument(option, action="append", default=[], metavar="COLUMN=VALUE[,VALUE]", help=meaning)
    parser.add_argument("--modality", help="of a plain table: a row of the model, or text")
    for column in ("file", "text"):
        parser.add_argument(f"--{column}-column", default=column, help="of a plain table")
    parser.add_argument("--media-root", metavar="DIR", help="folder of relative media paths (default: the data's)")
    parser.add_argument("--prompt", help="what to ask about each file of a plain table")
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    what = "hear recordings in windows of at most so many seconds, one after the other"
    parser.add_argument("--window", type=float, metavar="SECONDS", help=what)
    parser.add_argument("--output", metavar="DIR", help="write every question, reference and answer there")


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
    from xllm.assembly.opening import default_device, load_checkpoint, open_config
    from xllm.training.data.media_rows import MediaRows, parts_of_rows
    from xllm.training.evaluation.evaluation import check_evaluation, row_of_task, run_evaluation
    from xllm.training.evaluation.tasks import TASKS
    from xllm.training.recipes.recipe import EvaluationSpec, SourceSpec

    if args.task not in TASKS:
        raise ValueError(f"task is {args.task!r}; choose one of {', '.join(TASKS)}")
    where, exclude = _columns(args.where, "--where"), _columns(args.exclude, "--exclude")
    rows = open_config(args.model, args.trust_remote_code)[2].modalities
    given = {name: getattr(args, name) for name in ("file_column", "text_column", "media_root", "limit")}
    given |= {"modality": args.modality or row_of_task(args.task, rows), "where": where, "exclude": exclude}
    source = SourceSpec(path=args.data, prompts=None if args.prompt is None else [args.prompt], **given)
    sizes = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "window": args.window}
    spec = EvaluationSpec(name=args.task, task=args.task, data=[source], **sizes)
    sources = check_evaluation(spec, MediaRows(parts_of_rows(rows)))
    place = args.device or default_device()
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    folder = None if args.output is None else Path(args.output)
    found = run_evaluation(model, processor, spec, folder=folder, progress=True, sources=sources)
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    errors = ""
    if found["metric"] == "cer":
        kinds = ", ".join(f"{found[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        errors = f" ({kinds} in {found['reference']} characters; {100 * found['accuracy']:.1f} % without error)"
    sys.stdout.write(f"{args.task}: {found['metric']} {100 * found['value']:.2f} %, n = {found['n']}{errors}\n")
