# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm estimate RECIPE [key=value ...]`: memory, tokens per second and hours, from a few steps of each stage.

Nothing is kept, and the output folder is not touched.
"""

import argparse
import json
import sys
from dataclasses import asdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as `xllm train` takes them")
    parser.add_argument("--steps", type=int, default=3, help="steps of each stage; the first is not counted")
    parser.add_argument("--devices", type=int, default=1, help="how many devices like this one the run will have")


def run(args: argparse.Namespace) -> None:
    """Try the stages, and print a line for each."""
    from xllm.training.inspection.estimate import StageEstimate, estimate

    def report(stage: StageEstimate) -> None:
        if not args.json:
            sys.stdout.write(stage.line() + "\n")
            sys.stdout.flush()

    found = estimate(
        args.recipe, args.overrides, args.steps, args.devices, trust_remote_code=args.trust_remote_code, report=report
    )
    hours = sum(stage.hours for stage in found)
    if args.json:
        summary = {"devices": args.devices, "hours": hours, "stages": [asdict(stage) for stage in found]}
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    else:
        what = "this device" if args.devices == 1 else f"{args.devices} devices like this one"
        sys.stdout.write(f"in all {hours:.3g} hours on {what}\n")
