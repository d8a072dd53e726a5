# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm ablate --arm NAME=RECIPE --arm NAME=RECIPE ... --output DIR [key=value ...]`: what a difference is worth.

With --paper the arms are those of the paper's five questions, in a small world that is made first; the page about them
is in DIR/docs.

Trains every arm with every seed, and compares the evaluations of their stages: means over the seeds with intervals,
and differences from the first arm. `key=value` holds for all arms, and behind a recipe for that arm alone. The same
command goes on after a kill.
"""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    what = 'a recipe, as "NAME=RECIPE key=value ..." (repeatable; the others are compared with the first)'
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--arm", action="append", metavar="ARM", help=what)
    what = "the paper's five questions in the demo's world (extra `demo`; docs/ablations.md)"
    asked.add_argument("--paper", action="store_true", help=what)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="runs, ablation.json, ablation.md, ablation.png"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model=DIR trainer.max_steps=100")


def run(args: argparse.Namespace) -> None:
    """Train, compare and print."""
    from xllm.training.evaluation.ablation import read_arm, run_ablation, table_lines

    if args.seeds < 1:
        args.wrong_usage("--seeds must be at least 1")
    if args.paper:
        _ask_the_papers_questions(args)
        return
    arms = [read_arm(text) for text in args.arm]
    found = run_ablation(
        arms, range(args.seeds), args.output, args.overrides, trust_remote_code=args.trust_remote_code
    )
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if args.json else "\n".join(table_lines(found)) + "\n")


def _ask_the_papers_questions(args: argparse.Namespace) -> None:
    from xllm.demo.paper.page import page_text
    from xllm.demo.paper.run import run_paper

    if args.overrides:
        args.wrong_usage("--paper has recipes of its own, and takes no key=value")
    found = run_paper(args.output, args.seeds)
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if args.json else page_text(found))
