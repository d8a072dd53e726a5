# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm push MODEL REPO [--stage N]`: publish a stage: one commit with weights, code, processor and card, and a tag.

Towers that came from the Hub are named by id and commit, not stored; those from local folders are. What is no part of
a checkpoint stays here, and is named. A push that was interrupted can be repeated.
"""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder of a checkpoint, or of a run with several stages")
    parser.add_argument("repo", help="user/name on the Hub; made if it does not exist")
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), help="which one (default: the checkpoint's)")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--tag", help="name of the tag on the commit (default: stageN)")
    parser.add_argument("--replace", action="store_true", help="move the tag if it exists")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--license", help="licence of what is stored, for the card, e.g. apache-2.0")
    parser.add_argument("--results", metavar="FILE", help="measured results for the card (default: results.json)")


def run(args: argparse.Namespace) -> None:
    """Push, and say how to load it."""
    from xllm.hub_cards.publish import publish

    options = ("stage", "revision", "tag", "replace", "private", "license", "results")
    commit = publish(args.model, args.repo, **{name: getattr(args, name) for name in options})
    if args.json:
        report = {"repo": args.repo, "commit": commit.oid, "url": commit.commit_url}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(f"pushed {commit.commit_url}\nask it: xllm chat {args.repo}@{commit.oid[:12]}\n")
