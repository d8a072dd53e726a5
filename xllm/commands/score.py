# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm score asr|times REF HYP`, `judge REVIEWS`, `table DIR ...`: figures from files, without a model.

asr: error rates of two files of transcripts, Kaldi's `text` or tables, in characters and words (as jiwer) and in the
mixed units of WeNet's scoring. times: when each word was said, by CTM files or tables with time stamps. judge:
relative scores from the reviews of a judge, by each rule for reviews that do not begin with two numbers. table: the
evaluations in the folders of `xllm evaluate` and `xllm judge`, in one table.
"""

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("what", choices=("asr", "times", "judge", "table"))
    parser.add_argument("files", nargs="+", metavar="FILE", help="REF and HYP; REVIEWS (.json or .jsonl); folders")
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
    expected = {"asr": 2, "times": 2, "judge": 1}.get(args.what, len(args.files))
    if len(args.files) != expected:
        args.wrong_usage(f"score {args.what} takes {expected} file{'s'[: expected - 1]}, got {len(args.files)}")
    found, lines = {"asr": _asr, "times": _times, "judge": _judge, "table": _table}[args.what](args)
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


def _times(args: argparse.Namespace) -> tuple[dict, list[str]]:
    from xllm.training.evaluation.token_times import read_times, score_times

    found = score_times(*map(read_times, args.files))
    low, high = (1000 * bound for bound in found["interval"])
    within = ", ".join(f"{100 * share:.1f} % within {limit} s" for limit, share in found["within"].items())
    start, end, shift = (1000 * found[name] for name in ("start", "end", "shift"))
    lines = [
        f"times {1000 * found['value']:.0f} ms off [{low:.0f}, {high:.0f}] on average (starts {start:.0f}, "
        f"ends {end:.0f}, shifted by {shift:+.0f}); {within}",
        f"n = {found['n']} of {found['tokens']} tokens in {found['utterances']} utterances; the others were not heard",
    ]
    for what in ("missing", "surplus"):
        if keys := found[what]:
            lines.append(f"{len(keys)} {what} utterances: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}")
    return {"task": "times", **found}, lines


def _judge(args: argparse.Namespace) -> tuple[dict, list[str]]:
    from xllm.training.evaluation.reviews import check_rule, headline, read_reviews, score_reviews, summary_lines

    check_rule(args.rule)
    found = score_reviews(read_reviews(args.files[0]))
    return {"task": "judge", **headline(found, args.rule), **found}, summary_lines(found, args.rule)


def _table(args: argparse.Namespace) -> tuple[dict, list[str]]:
    from xllm.training.evaluation.results import table_lines

    rows, lines = table_lines(args.files)
    return {"task": "table", "rows": rows}, lines
