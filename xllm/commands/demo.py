# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm demo`: the main job on an embedded default, from nothing to a model that sees, hears and watches, on a CPU.

Tiny stand-ins for the published towers are pretrained and frozen (the language model on text alone); stages 1, 2 and 3
train tiny interfaces; held-out questions about unseen scans and voices are answered.
"""

import argparse
import json
import sys


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser("demo", help="the three stages on a CPU, then questions", description=__doc__)
    parser.add_argument("--output", default="outputs/demo", help="folder for data, logs, results.json and checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same table")
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demo; the table goes to standard output."""
    from xllm.demo.run import format_table, run_demo

    results = run_demo(args.output, seed=args.seed)
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if args.json else format_table(results) + "\n")
    return 0
