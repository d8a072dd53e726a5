# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm test-interface MODULE:CLASS`: whether a converter keeps what training, saving and sharing need.

Shapes, padding, batches, gradients, frozen parts, saving, precision, beams, two processes of which one lacks the
modality, remote code. Exit status 1 if one fails.
"""

import argparse
import json
import sys
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    what = "FILE.py:Class or module:Class, a subclass of X2LConverter; or the name of a converter, such as linear"
    parser.add_argument("target", metavar="MODULE:CLASS", help=what)
    what = "of the converter's row (X2LConfig), such as num_query_tokens=4"
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help=what)


def run(args: argparse.Namespace) -> int:
    """Print a line per check as it ends."""
    from xllm.interface_checks import check_interface
    from xllm.training.recipes.recipe_values import apply_overrides

    fields: dict[str, Any] = {}
    apply_overrides(fields, {}, args.fields, "the row")
    problems = {}
    for check, problem in check_interface(args.target, fields):
        problems[check] = problem
        if not args.json:
            sys.stdout.write(f"{check:<14} {'FAILS   ' + problem if problem else 'ok'}\n")
            sys.stdout.flush()
    if args.json:
        sys.stdout.write(json.dumps(problems) + "\n")
    return int(any(problems.values()))
