# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm explain DATA ... N --model DIR [--html FILE]`: sample N as the model gets it, token by token.

N counts from 0. DATA is as for `xllm check`. What carries loss is green on a terminal, else in brackets; the page also
shows pictures, frames and players, and asks nothing of the network.
"""

import argparse
import os
import sys
from pathlib import Path

from xllm.commands.check import add_data_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_data_options(parser, nargs="+")
    parser.add_argument("--stage", help="of a recipe: its folder or number (default: the first)")
    parser.add_argument("--html", metavar="FILE", help="write a page with the pictures and players")


def run(args: argparse.Namespace) -> None:
    """Show the sample."""
    from xllm.training.data.plan import plan_data
    from xllm.training.inspection.explain import explain, terminal_lines
    from xllm.training.inspection.explain_page import page
    from xllm.training.inspection.html_page import write_page

    numbers = [item for item in args.data if item.isdecimal() and not os.path.exists(item)]
    if len(numbers) != 1:
        args.wrong_usage("give the number of one sample, counted from 0, behind the data")
    data = [item for item in args.data if item != numbers[0]]
    plan = plan_data(data, args.model, args.modality, args.recipe, trust_remote_code=args.trust_remote_code)
    found = explain(plan, int(numbers[0]), args.stage)
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sys.stdout.write("".join(f"{line}\n" for line in terminal_lines(found, colours)))
    if args.html is not None:
        write_page(Path(args.html), page(found))
        sys.stderr.write(f"wrote {args.html}\n")
