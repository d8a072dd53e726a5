# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm judge ANSWERS --judge-model NAME --endpoint URL --output DIR`: have a language model compare answers.

ANSWERS are a model's: a table of question_id and text, or the samples_*.jsonl of `xllm evaluate`, which hold questions
and references themselves. Each is held against a reference, in both orders; what the judge writes is kept in
DIR/samples_judge.jsonl as it comes, which `xllm score judge` reads too. Without --endpoint the judge is a causal
language model in this process.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("answers", metavar="ANSWERS", help=".jsonl, .json, .csv or .parquet")
    what = "its name at the endpoint; without one, folder or Hub id"
    parser.add_argument("--judge-model", required=True, metavar="NAME", help=what)
    add_endpoint_options(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="a judge that was killed goes on there")
    parser.add_argument("--questions", metavar="FILE", help="question_id, text, category, image")
    parser.add_argument("--reference", metavar="FILE", help="answers to hold these against (default: of the samples)")
    parser.add_argument("--context", metavar="FILE", help="image, captions, instances: what the judge is told of it")
    parser.add_argument("--prompts", metavar="FILE", help="of the judge, by category (default: LLaVA's)")
    parser.add_argument("--text-column", help="of questions, answers and references (default: text_en, text, ...)")
    what = "each pair as it is given, the other way round, or both (the default)"
    parser.add_argument("--orders", choices=("both", "given", "swapped"), default="both", help=what)
    parser.add_argument("--rule", default="parsed", help="of the headline, as in `xllm score judge`")
    parser.add_argument("--device", help="of a judge in this process")
    parser.add_argument("--examples", type=int, default=20, help="questions that report.html shows (default: 20)")


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """How an OpenAI-compatible server is asked."""
    parser.add_argument("--endpoint", metavar="URL", help="a server with /chat/completions: http://host:8000/v1")
    what = "environment variable that holds the endpoint's key (default: OPENAI_API_KEY)"
    parser.add_argument("--key-env", default="OPENAI_API_KEY", metavar="NAME", help=what)
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default: 4)")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="of a request (default: 120)")
    parser.add_argument("--retries", type=int, default=5, help="of a request that fails (default: 5)")
    what = "fields of the request, temperature, max_tokens and others; null leaves one out"
    parser.add_argument("--request", default="{}", metavar="JSON", help=what)


def request_options(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """`options` of a request with those of --request."""
    try:
        return {**options, **dict(json.loads(args.request))}
    except (ValueError, TypeError) as error:
        raise ValueError(f"--request {args.request!r}: expected a JSON object") from error


def open_endpoint(args: argparse.Namespace, model: str, options: dict[str, Any]) -> Any:
    """The endpoint that the arguments name."""
    from xllm.training.evaluation.endpoint import Endpoint

    if args.concurrency < 1 or args.retries < 0 or args.timeout <= 0:
        args.wrong_usage("--concurrency and --timeout must be above 0, and --retries not below")
    return Endpoint(args.endpoint, model, os.environ.get(args.key_env), args.timeout, args.retries, options)


def _judge(args: argparse.Namespace) -> tuple[Callable, dict]:
    """What answers the judge's prompts, and what its answers depend on."""
    from xllm.training.evaluation.judging import REQUEST, local_judge

    options = request_options(args, REQUEST)
    if args.endpoint is not None:
        return open_endpoint(args, args.judge_model, options), {"request": options}
    return local_judge(args.judge_model, args.device, options["max_tokens"]), {"max_tokens": options["max_tokens"]}


def run(args: argparse.Namespace) -> None:
    """Judge, score and print."""
    from xllm.training.evaluation import judging, reviews
    from xllm.training.evaluation.answer_log import AnswerLog
    from xllm.training.evaluation.judge_page import write_judge_report
    from xllm.training.evaluation.results import PERCENT, write_results

    reviews.check_rule(args.rule)
    given = (args.answers, args.questions, args.reference, args.context)
    comparisons, left = judging.read_comparisons(*given, column=args.text_column)
    rules = None if args.prompts is None else judging.read_rules(args.prompts)
    for what, keys in left.items():
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        sys.stderr.write(f"{len(keys)} {what.replace('_', ' ')}: {', '.join(keys[:5])}{more}\n")
    ask, settings = _judge(args)
    settings |= {"judge": args.judge_model, "prompts_sha256": judging.digest(comparisons, rules)}
    folder = Path(args.output)
    asked = judging.prompts_of(comparisons, reviews.ORDERS if args.orders == "both" else (args.orders,), rules)
    log = AnswerLog(folder, judging.NAME, settings)
    samples, found = judging.run_judge(ask, asked, log, 1 if args.endpoint is None else args.concurrency, True)
    skipped = [sample for sample in samples if "skipped" in sample]
    if len(skipped) == len(samples):
        raise ValueError(f"no review was given; the first reason: {skipped[0]['skipped']}")
    given_reviews = reviews.read_reviews(log.path)
    scores = reviews.score_reviews(given_reviews)
    result = {"task": judging.NAME, "judge": args.judge_model, "questions": len(comparisons), **left, "found": found}
    result |= {"skipped": len(skipped), **reviews.headline(scores, args.rule), **scores}
    run_by = {"model": args.judge_model, "endpoint": args.endpoint}
    write_results(folder, judging.NAME, {**result, "metric": PERCENT}, {**settings, "data": args.answers}, run_by)
    write_judge_report(folder, {**result, "left": [*left]}, comparisons, samples, given_reviews, args.examples)
    if args.json:
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(reviews.summary_lines(scores, args.rule)) + "\n")
    if skipped:
        raise ValueError(
            f"{len(skipped)} of {len(samples)} reviews are missing, of the questions "
            f"{', '.join(judging.questions_of(samples))}; the same command asks for them again; the first reason: "
            f"{skipped[0]['skipped']}"
        )
