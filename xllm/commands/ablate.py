# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm ablate --arm NAME=RECIPE --arm NAME=RECIPE ... --output DIR [key=value ...]`: what a difference is worth.

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
    parser.add_argument("--arm", action="append", required=True, metavar="ARM", help=what)
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
    arms = [read_arm(text) for text in args.arm]
    found = run_ablation(
        arms, range(args.seeds), args.output, args.overrides, trust_remote_code=args.trust_remote_code
    )
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if args.json else "\n".join(table_lines(found)) + "\n")
