# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm demo`: the three stages on a CPU, from nothing to a model that sees, hears and watches, then questions to it.

Tiny stand-ins for the published towers are pretrained and frozen (the language model on text alone); stages 1, 2 and 3
train tiny interfaces; held-out questions about unseen scans and voices are answered. With --world device the status of
a phone is read, and commands are given to it (extra `device`); with --spoken as well, they are spoken to it.
"""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    what = "digits: images, speech and video; device: the status of a phone, and commands to it"
    parser.add_argument("--world", choices=("digits", "device"), default="digits", help=what)
    parser.add_argument("--spoken", action="store_true", help="with --world device: speak to the phone, too")
    parser.add_argument("--output", default="outputs/demo", help="folder for data, logs, results.json and checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same table")


def run(args: argparse.Namespace) -> None:
    """Run the demo; the table goes to standard output."""
    from xllm.demo.run import format_table, run_demo

    if args.spoken and args.world != "device":
        args.wrong_usage("argument --spoken: it is for --world device; the digits are spoken anyway")
    if args.world == "device":
        from xllm.demo.device.run import DEFAULT_SCALE, SPOKEN_SCALE, run_device_demo

        results = run_device_demo(args.output, args.seed, SPOKEN_SCALE if args.spoken else DEFAULT_SCALE)
    else:
        results = run_demo(args.output, seed=args.seed)
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if args.json else format_table(results) + "\n")
