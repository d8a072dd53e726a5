# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm build-instructions OUT --kind KIND ...`: instruction data from captions, transcripts and dialogues.

KIND is image-text (from --captions), speech-text (--transcripts), video-text (--videos), image-text-speech
(--dialogues, with questions spoken by --synthesiser or taken from --recordings), or all that there are sources for.
Sources are read in any form that `xllm train` reads; `captions.text_column=title` sets a field of one. The same
arguments give the same bytes; a build that was stopped goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path


SOURCES = {
    "captions": "pictures and what they show",
    "transcripts": "recordings and what is said",
    "videos": "videos and what they show",
    "dialogues": "conversations about one picture each",
    "recordings": "recordings and the question that is asked in each",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("output", metavar="OUT", help="folder to write")
    parser.add_argument("fields", nargs="*", metavar="SOURCE.KEY=VALUE", help="e.g. captions.text_column=title")
    parser.add_argument("--kind", action="append", required=True, help="one of the kinds, or all (repeatable)")
    for name, meaning in SOURCES.items():
        parser.add_argument(f"--{name}", action="append", default=[], metavar="FILE", help=f"{meaning} (repeatable)")
    parser.add_argument(
        "--synthesiser",
        metavar="COMMAND",
        help='espeak-ng (default, extra demo), or a command: "say -o {file} {text}", {language} is en or zh',
    )
    parser.add_argument("--held-out", type=float, default=0.05, help="share of the media of the test split (0.05)")
    parser.add_argument("--limit", type=int, help="samples of each task at most, drawn")
    parser.add_argument("--language", choices=("auto", "en", "zh"), default="auto", help="of the requests")
    parser.add_argument("--templates", metavar="FILE", help="requests of your own (YAML, as ours)")
    parser.add_argument("--refer", action="store_true", help="name media where they are instead of copying them")
    parser.add_argument(
        "--licence", action="append", default=[], metavar="[SOURCE=]ID", help="of a source, or of all (repeatable)"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Build, and say what there is."""
    from xllm.training.instructions.building import KINDS, SPOKEN, TEMPLATES, Settings, read_templates
    from xllm.training.instructions.files import ESPEAK, Output, build_instructions

    given = {name: getattr(args, name) for name in SOURCES if getattr(args, name)}
    kinds = [
        kind for kind, (source, _) in KINDS.items() if kind in args.kind or ("all" in args.kind and source in given)
    ]
    if unknown := [kind for kind in args.kind if kind not in (*KINDS, "all")]:
        raise ValueError(f"--kind {unknown[0]}: expected one of {', '.join(KINDS)}, all")
    read = {KINDS[kind][0] for kind in kinds} | ({"recordings"} if SPOKEN in kinds else set())
    if unread := [name for name in given if name not in read]:
        raise ValueError(f"--{unread[0]} is not read for {', '.join(kinds) or args.kind[0]}; add its --kind")
    if not kinds:
        raise ValueError(f"--kind all: give one of {', '.join(f'--{source}' for source, _ in KINDS.values())}")
    if args.recordings and args.synthesiser:
        raise ValueError("--recordings or --synthesiser: questions are recorded or synthesised, give one of the two")
    if not 0 <= args.held_out < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--held-out is a share of 1 and below it, --limit a number of samples, at least 1")
    templates = read_templates(Path(args.templates) if args.templates else TEMPLATES)
    settings = Settings(
        kinds, _sources(given, args.fields), args.seed, args.held_out, args.limit, args.language, templates
    )
    licences = {source: licence for source, _, licence in (pair.rpartition("=") for pair in args.licence)}
    if unknown := [name for name in licences if name and name not in given]:
        raise ValueError(f"--licence {unknown[0]}=...: no such source was given; there are {', '.join(given)}")
    found = build_instructions(args.output, settings, Output(args.synthesiser or ESPEAK, args.refer, licences))
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for kind, splits in found["samples"].items():
        sys.stdout.write(f"{kind}: " + ", ".join(f"{count:,} {split}" for split, count in splits.items()) + "\n")
    sys.stdout.write(f"wrote {args.output} ({found['media']:,} media, SHA-256 {found['sha256'][:16]})\n")


def _sources(given: dict[str, list[str]], fields: list[str]) -> dict:
    """Sources by name, with the fields that are set for them."""
    import yaml

    from xllm.training.recipes.recipe import SourceSpec
    from xllm.training.recipes.strict import build

    values: dict[str, dict] = {name: {} for name in given}
    for text in fields:
        key, equals, value = text.partition("=")
        name, dot, field = key.partition(".")
        if not (equals and dot) or name not in values:
            raise ValueError(f"{text}: expected SOURCE.KEY=VALUE of one of {', '.join(given) or 'no source'}")
        values[name][field] = yaml.safe_load(value)
    return {
        name: [build(SourceSpec, {"path": path, **values[name]}, name, "") for path in paths]
        for name, paths in given.items()
    }
