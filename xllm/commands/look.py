# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm look MODEL MEDIUM [--output FILE.html]`: what a medium becomes, beside the words of the language model.

For each quasi-linguistic embedding the nearest tokens of the vocabulary, beside what a random direction finds; the
attention of a Q-Former over pictures and frames; a CIF's weights over the waveform, with the tokens and their times.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    parser.add_argument("medium", metavar="MEDIUM", help="a picture, film, sound, ...")
    parser.add_argument("--output", metavar="FILE", help=".html (a page in one file) or .png")
    parser.add_argument("--modality", metavar="ROW", help="one row of the model (default: all that read such files)")
    parser.add_argument("--top", type=int, default=5, help="tokens for each embedding (default: 5)")


def run(args: argparse.Namespace) -> None:
    """Look, print and write."""
    from xllm.assembly.opening import default_device, load_checkpoint
    from xllm.training.data.media_rows import MediaRows, parts_of_rows
    from xllm.training.evaluation.look_page import as_json, check_output, terminal_lines, write_look
    from xllm.training.evaluation.looking import look

    output = None if args.output is None else check_output(Path(args.output))
    if args.top < 1:
        args.wrong_usage("--top must be at least 1")
    model, processor = load_checkpoint(args.model, args.trust_remote_code, args.device or default_device(), args.dtype)
    parts = parts_of_rows(model.config.modalities)
    rows = MediaRows(parts, () if args.modality is None else (args.modality,))
    kind = rows.part_of_file(args.model, args.medium)
    found = look(
        model, processor, {"type": kind, "path": args.medium}, args.top,
        None if args.modality is None else [args.modality],
    )  # fmt: skip
    sys.stdout.write(as_json(found) if args.json else "".join(f"{line}\n" for line in terminal_lines(found)))
    if output is not None:
        write_look(found, output)
        sys.stderr.write(f"wrote {output}\n")
