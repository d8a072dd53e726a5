# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm check DATA ... [--model DIR]`: open everything before training, and name every bad row.

DATA is data files, or a recipe (file or name), then `key=value` for fields of the sources (text_column=caption) or of
the recipe (data.max_length=512). With a model, tokens are counted and labels looked at. Exit status 1 if a row is bad.
"""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_data_options(parser, nargs="*")
    parser.add_argument("--workers", type=int, help="processes; default one per processor, 0: check in this process")
    parser.add_argument("--limit", type=int, help="only the first rows of each source")
    parser.add_argument("--output", metavar="FILE", help="write the bad rows there, as JSON lines")


def add_data_options(parser: argparse.ArgumentParser, nargs: str) -> None:
    """What says which data, and read as what: `plan_data`'s arguments."""
    parser.add_argument("data", nargs=nargs, metavar="DATA", help="data files, or a recipe; key=value")
    parser.add_argument("--model", metavar="DIR", help="folder or Hub id of an X-LLM; default the recipe's")
    parser.add_argument("--modality", metavar="ROW", help="row of the model that data files train")
    parser.add_argument("--recipe", help="a recipe, whatever its name looks like")


def run(args: argparse.Namespace) -> int:
    """Check and print the summary."""
    from xllm.training.data.plan import plan_data
    from xllm.training.inspection.data_summary import check_data
    from xllm.training.inspection.worker_processes import default_workers

    plan = plan_data(args.data, args.model, args.modality, args.recipe, args.limit, args.trust_remote_code)
    workers = default_workers() if args.workers is None else args.workers
    summaries, first, deaths = check_data(plan, workers, args.output)
    bad = sum(summary.bad for summary in summaries)
    if args.json:
        report = {"bad": bad, "workers_died": deaths, "groups": [summary.to_dict() for summary in summaries]}
        sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for summary in summaries for line in summary.lines()))
    for how in deaths:
        sys.stderr.write(f"a process was {how}; its rows were checked again\n")
    if bad:
        listed = f"all of them are in {args.output}" if args.output else "--output FILE lists all of them"
        shown = "".join(f"{line}\n" for line in first)
        sys.stderr.write(f"{shown}{bad:,} bad rows; {listed}\n")
    return 1 if bad else 0
