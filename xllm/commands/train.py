# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm train RECIPE [key=value ...]`: run the stages of a recipe."""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. output_dir=runs/a trainer.max_steps=100"
    )
    parser.add_argument("--check", action="store_true", help="only check recipe, model and data; train nothing")
    parser.add_argument("--resume", action="store_true", help="go on where a run in this output_dir has stopped")


def run(args: argparse.Namespace) -> None:
    """Check everything, then train."""
    from xllm.training.train import check, train, write_summary
    from xllm.training.trainers.processes import is_first

    how = {"trust_remote_code": args.trust_remote_code, "resume": args.resume}
    if args.check:
        stages = check(args.recipe, args.overrides, **how)
        if is_first():
            sys.stdout.write("".join(f"{line}\n" for line in stages))
        return
    result = train(args.recipe, args.overrides, **how)
    if not is_first():
        return
    if not args.json:
        write_summary(result, sys.stdout)
        return
    report = [
        {"checkpoint": str(stage.folder), "log": stage.log, "evaluations": stage.evaluations, "skipped": stage.skipped}
        for stage in result.stages
    ]
    sys.stdout.write(json.dumps({"stages": report}, indent=2, ensure_ascii=False) + "\n")
