# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm score asr REF HYP` and `xllm score judge REVIEWS`: figures from files, without a model.

asr: error rates of two files of transcripts, Kaldi's `text` or tables, in characters and words (as jiwer) and in the
mixed units of WeNet's scoring. judge: relative scores from the reviews of a judge, by each rule for reviews that do
not begin with two numbers.
"""

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("what", choices=("asr", "judge"))
    parser.add_argument("files", nargs="+", metavar="FILE", help="REF and HYP; REVIEWS (.json or .jsonl)")
    parser.add_argument("--normalizer", default="none", help="asr, of both sides: none, basic, english or mandarin")
    what = "asr, utterances without a hypothesis: count as empty (the default), or skip them as WeNet does"
    parser.add_argument("--missing", choices=("empty", "skip"), default="empty", help=what)
    parser.add_argument(
        "--output", metavar="DIR", help="asr: write the aligned units of each utterance to DIR/cer.txt"
    )
    rules = "judge, the rule of the headline: authors, authors_1_9, dropped or parsed (the default)"
    parser.add_argument("--rule", default="parsed", help=rules)


def run(args: argparse.Namespace) -> None:
    """Score and print."""
    expected = {"asr": 2, "judge": 1}[args.what]
    if len(args.files) != expected:
        args.wrong_usage(f"score {args.what} takes {expected} file{'s'[: expected - 1]}, got {len(args.files)}")
    found, lines = (_asr if args.what == "asr" else _judge)(args)
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n" if args.json else "\n".join(lines) + "\n")


def _asr(args: argparse.Namespace) -> tuple[dict, list[str]]:
    from xllm.training.data.text_normalizers import normalizer
    from xllm.training.evaluation.transcripts import HYPOTHESES, read_transcripts, report_lines, score_transcripts

    normalize = {} if args.normalizer == "none" else {"normalize": normalizer(args.normalizer)}
    references, hypotheses = read_transcripts(args.files[0]), read_transcripts(args.files[1], HYPOTHESES)
    scored = score_transcripts(references, hypotheses, missing=args.missing, **normalize)
    if args.output is not None:
        path = Path(args.output, "cer.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(report_lines(scored)) + "\n", encoding="utf-8")
    units = {"cer": "characters", "wer": "words", "mixed": "mixed units"}
    lines = [f"n = {len(scored.alignments)} utterances, normaliser: {args.normalizer}"]
    lines += [
        f"{name:5} {100 * rate.value:6.2f} % ({rate.substitutions} substitutions, {rate.deletions} deletions, "
        f"{rate.insertions} insertions in {rate.reference} {units[name]})"
        for name, rate in scored.rates.items()
    ]
    notes = {
        f"without a hypothesis ({'left out' if args.missing == 'skip' else 'counted as empty'})": scored.missing,
        "hypotheses of no utterance (not counted)": scored.surplus,
        "with an empty reference (its insertions count)": scored.empty,
    }
    for what, keys in notes.items():
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            lines.append(f"{len(keys)} {what}: {', '.join(keys[:5])}{more}")
    return {"task": "asr", "normalizer": args.normalizer, "missing_are": args.missing, **scored.to_dict()}, lines


def _judge(args: argparse.Namespace) -> tuple[dict, list[str]]:
    from xllm.training.evaluation.reviews import RULES, read_reviews, score_reviews

    if args.rule not in RULES:
        raise ValueError(f"--rule is {args.rule!r}; choose one of {', '.join(RULES)}")
    found = score_reviews(read_reviews(args.files[0]))
    rules = found["rules"]
    columns = [name for name in rules[args.rule] if name not in ("n", "left_out")]
    rows = [["rule", "n", *columns]]
    rows += [[rule, str(row["n"]), *(f"{row[name]:.1f}" for name in columns)] for rule, row in rules.items()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    value = rules[args.rule]["all"]
    head = (
        f"relative score {value:.1f} % by the rule {args.rule!r}, n = {rules[args.rule]['n']} of {found['n']} reviews"
    )
    at = (
        f" (rows {', '.join(where.rpartition(':')[2] for where in found['unparsed_at'])})" if found["unparsed"] else ""
    )
    lines = [head, f"{found['unparsed']} do not begin with two scores{at}", "", *table]
    return {"task": "judge", "rule": args.rule, "value": value, **found}, lines
