# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm evaluate MODEL --task asr|caption|qa --data FILE`: answer the samples of a data file and give one figure.

MODEL is an X-LLM; with --endpoint, a model's name at a server of chat completions; with --pipeline, any model that a
pipeline of transformers opens.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from xllm.commands.judge import add_endpoint_options, open_endpoint, request_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM, or another model")
    add_endpoint_options(parser)
    what = "of transformers, to open another model: image-text-to-text (the default), any-to-any"
    parser.add_argument("--pipeline", nargs="?", const="image-text-to-text", metavar="TASK", help=what)
    what = "asr by the recogniser of stage 1, whose heads lie beside the checkpoint: samples get time stamps"
    parser.add_argument("--stage-one", action="store_true", help=what)
    parser.add_argument("--name", help="of this evaluation in its folder and in tables (default: the task)")
    what = "asr or caption (character error rate), qa (accuracy), text (against the bare language model), retrieval"
    parser.add_argument("--task", required=True, help=what)
    what = "text: folder or Hub id of the bare language model (default: the one that the checkpoint names)"
    parser.add_argument("--against", metavar="LLM", help=what)
    what = "cer, wer, accuracy, or with several references a row bleu, cider, vqa (default: that of the task)"
    parser.add_argument("--metric", help=what)
    parser.add_argument("--data", required=True, metavar="FILE", help=".json, .jsonl, .csv, .tsv or .parquet")
    for option, meaning in (("--where", "only these rows"), ("--exclude", "not these rows")):
        parser.add_argument(option, action="append", default=[], metavar="COLUMN=VALUE[,VALUE]", help=meaning)
    parser.add_argument("--modality", help="of a plain table: a row of the model, or text")
    for column in ("file", "text"):
        parser.add_argument(f"--{column}-column", help="of a plain table (default: the one with a common name)")
    parser.add_argument("--media-root", metavar="DIR", help="folder of relative media paths (default: the data's)")
    parser.add_argument("--prompt", help="what to ask about each file of a plain table")
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    what = "hear recordings in windows of at most so many seconds, one after the other"
    parser.add_argument("--window", type=float, metavar="SECONDS", help=what)
    parser.add_argument("--normalizer", default="none", help="of both sides: none, basic, english or mandarin")
    what = "a sample that cannot be used ends the evaluation, or is left out, counted and listed"
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help=what)
    what = "real (the default), shuffled, blank or absent: is the figure any worse without their own? (docs/scores.md)"
    parser.add_argument("--media", default="real", help=what)
    what = "only these media are others than their own: a row of the model or a kind of media (repeatable)"
    parser.add_argument("--media-of", action="append", default=[], metavar="ROW", help=what)
    what = "results.json, samples_TASK.jsonl, report.html, cer.txt; an evaluation that was killed goes on there"
    parser.add_argument("--output", metavar="DIR", help=what)
    parser.add_argument("--examples", type=int, default=20, help="how many samples report.html shows (default: 20)")


def _columns(pairs: list[str], option: str) -> dict[str, list[str]]:
    """`["speaker=a,b", "group=x,take=1"]` as `{"speaker": ["a", "b"], "group": ["x"], "take": ["1"]}`."""
    columns: dict[str, list[str]] = {}
    for pair in pairs:
        name = None
        for piece in pair.split(","):
            head, equals, value = piece.partition("=")
            name, value = (head, value) if equals else (name, piece)
            if not name:
                raise ValueError(f"{option} takes COLUMN=VALUE, got {pair!r}")
            columns.setdefault(name, []).append(value)
    return columns


def run(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    from xllm.assembly.opening import default_device, open_config
    from xllm.training.data.media_rows import MediaRows, parts_of_rows
    from xllm.training.evaluation.evaluation import check_evaluation, row_of_task, run_evaluation
    from xllm.training.evaluation.tasks import TASKS
    from xllm.training.recipes.recipe import EvaluationSpec, SourceSpec
    from xllm.training.stage_one import open_stage_one

    if args.task in OTHER_TASKS:
        task, unused = OTHER_TASKS[args.task]
        get_default = args.wrong_usage.__self__.get_default
        if idle := [name for name in unused if getattr(args, name) != get_default(name)]:
            args.wrong_usage(f"--task {args.task} does not take {', '.join('--' + _dashed(name) for name in idle)}")
        task(args)
        return
    if args.task not in TASKS:
        raise ValueError(f"task is {args.task!r}; choose one of {', '.join((*TASKS, *OTHER_TASKS))}")
    folder = _folder(args)
    where, exclude = _columns(args.where, "--where"), _columns(args.exclude, "--exclude")
    is_other = args.endpoint is not None or args.pipeline is not None
    config = None if is_other else open_config(args.model, args.trust_remote_code)[2]
    given = {name: getattr(args, name) for name in ("file_column", "text_column", "media_root", "limit")}
    modality = args.modality or (None if config is None else row_of_task(args.task, config.modalities))
    given |= {"modality": modality, "where": where, "exclude": exclude}
    source = SourceSpec(path=args.data, prompts=None if args.prompt is None else [args.prompt], **given)
    how = {
        name: getattr(args, name)
        for name in ("max_new_tokens", "batch_size", "window", "normalizer", "on_error", "media", "media_of", "metric")
    }
    spec = EvaluationSpec(name=_name(args), task=args.task, data=[source], **how)
    sources = check_evaluation(spec, MediaRows() if config is None else MediaRows(parts_of_rows(config.modalities)))
    state = _processes(args)
    share = (0, 1) if state is None else (state.process_index, state.num_processes)
    place = args.device or (default_device() if state is None else str(state.device))
    model, processor, answer, identity = (_open_other if is_other else _open)(args, config, place)
    stage_one = open_stage_one(model, processor, modality, args.model) if args.stage_one else None
    settings = identity | _settings(args, sources)
    begun = time.monotonic()
    asked: list[int] = []
    found = run_evaluation(
        model, processor, spec, folder=folder, progress=share[0] == 0, sources=sources, settings=settings, share=share,
        wait=(lambda: None) if state is None else state.wait_for_everyone, answer=answer, asked=asked,
        stage_one=stage_one,
    )  # fmt: skip
    found["seconds"] = round(time.monotonic() - begun, 2)
    found |= _speed(sources, asked, found["seconds"], state)
    if share[0] == 0:
        if folder is not None:
            _write(args, folder, found, settings, processor, sources)
        _print(args, found)
    if state is not None:
        state.destroy_process_group()


def _speed(sources: Any, asked: list[int], seconds: float, state: Any) -> dict:
    """Seconds of sound that were heard now, by all processes, and how many times faster than real time that was."""
    from accelerate.utils import gather_object

    from xllm.training.evaluation.evaluation import sound_seconds

    samples = [sample for source in sources.sources for sample in source]
    heard = [sound_seconds(samples[number] for number in asked)]
    every = heard if state is None else gather_object(heard)
    if None in every or not (total := sum(every)):
        return {}
    return {"sound_seconds": round(total, 2), "times_real_time": round(total / max(seconds, 0.01), 2)}


def _processes(args: argparse.Namespace) -> Any:
    """The processes that share the rows, where there are several."""
    from accelerate import PartialState

    from xllm.assembly.opening import default_device

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return PartialState(cpu=str(args.device or default_device()) == "cpu")


def _open(args: argparse.Namespace, config: Any, place: str) -> tuple[Any, Any, None, dict]:
    """An X-LLM, its processor, and what says which model it is: config.json, with the digests of its weights."""
    from xllm.assembly.opening import load_checkpoint

    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    written = json.dumps(config.to_dict(), sort_keys=True, default=str)
    identity = {
        "model": args.model,
        "model_sha256": hashlib.sha256(written.encode()).hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
    } | ({"stage_one": True} if args.stage_one else {})
    return model, processor, None, identity


def _open_other(args: argparse.Namespace, config: None, place: str) -> tuple[None, Any, Any, dict]:
    """Another model: what decodes media for it, what answers, and what says which it is."""
    from xllm.training.evaluation.other_models import PlainProcessor, endpoint_answers, pipeline_answers

    if (args.endpoint is not None) + (args.pipeline is not None) + args.stage_one > 1:
        args.wrong_usage("--endpoint, --pipeline and --stage-one are ways to ask one model: give one of them")
    if args.endpoint is not None:
        options = request_options(args, {"temperature": 0, "max_tokens": args.max_new_tokens})
        answer = endpoint_answers(open_endpoint(args, args.model, options), args.concurrency)
        return None, PlainProcessor(), answer, {"model": args.model, "request": options}
    how = {"device": place, "dtype": args.dtype or "auto", "trust_remote_code": args.trust_remote_code}
    answer, processor = pipeline_answers(args.model, args.pipeline, args.max_new_tokens, **how)
    return None, processor, answer, {"model": args.model, "pipeline": args.pipeline, "dtype": how["dtype"]}


def _compare_texts(args: argparse.Namespace) -> None:
    from xllm.assembly.opening import default_device, load_checkpoint, open_config
    from xllm.modeling_xllm.language_models import language_model_of
    from xllm.training.data.dataset import ChatDataset
    from xllm.training.data.sources import load_source
    from xllm.training.evaluation.text_regression import compare_with_bare
    from xllm.training.recipes.recipe import SourceSpec

    config = open_config(args.model, args.trust_remote_code)[2]
    named = ((config.towers or {}).get("language_model") or {}).get("name_or_path")
    if (against := args.against or named) is None:
        raise ValueError(f"{args.model} holds its language model itself: name the bare one by --against")
    where, exclude = _columns(args.where, "--where"), _columns(args.exclude, "--exclude")
    spec = SourceSpec(path=args.data, modality="text", limit=args.limit, where=where, exclude=exclude)
    samples = load_source(spec)
    place = args.device or default_device()
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    bare_class: Any = language_model_of(model.config).causal_lm_class
    bare = bare_class.from_pretrained(against, dtype=model.dtype).to(place).eval()
    found = compare_with_bare(model, bare, processor, ChatDataset([samples], processor), args.batch_size)
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    same = (
        "not one logit differs" if not found["largest_difference"] else f"by {found['largest_difference']:.3g} at most"
    )
    sys.stdout.write(
        f"text: loss {found['loss']:.6f} per token, of the bare language model {found['bare_loss']:.6f} ({same}); "
        f"{found['tokens']} tokens of {found['n']} answers\n"
    )


def _retrieve(args: argparse.Namespace) -> None:
    """R@k of the Q-Former that stage 1 has trained."""
    from xllm.assembly.opening import default_device, load_checkpoint
    from xllm.training.data.dataset import ChatDataset, describe
    from xllm.training.data.media_rows import media_rows
    from xllm.training.data.sources import load_source
    from xllm.training.evaluation.retrieval import DIRECTIONS, KS, run_retrieval, write_retrieval
    from xllm.training.recipes.recipe import SourceSpec
    from xllm.training.saving.lineage import data_fingerprint
    from xllm.training.stage_one import open_stage_one

    folder, name = _folder(args), _name(args)
    model, processor = load_checkpoint(args.model, args.trust_remote_code, args.device or default_device(), args.dtype)
    learner = open_stage_one(model, processor, args.modality, args.model)
    if not hasattr(learner, "embed_media"):
        raise ValueError(f"{args.model}: stage 1 of {learner.config.modality} draws no medium and text together")
    where, exclude = _columns(args.where, "--where"), _columns(args.exclude, "--exclude")
    columns = {name: getattr(args, name) for name in ("file_column", "text_column", "media_root", "limit")}
    spec = SourceSpec(path=args.data, modality=learner.config.modality, where=where, exclude=exclude, **columns)
    lines: list[dict] = []

    def leave_out(where: str, error: Exception) -> None:
        lines.append({"where": where, "skipped": describe(error).removeprefix(f"{where}: ")})
        sys.stderr.write(f"skipped {where}: {lines[-1]['skipped']}\n")

    skip = leave_out if args.on_error == "skip" else None
    samples = load_source(spec, media_rows(processor, (learner.config.modality,)), skip)
    found = run_retrieval(learner, processor, samples, args.batch_size, skip, lines) | {"skipped": 0}
    found["skipped"] = sum("skipped" in line for line in lines)
    if folder is not None:
        settings = {"data": args.data, "data_sha256": data_fingerprint(samples)["sha256"]}
        run = {"model": "xllm", "model_args": args.model, "device": args.device, "batch_size": args.batch_size}
        shown = ChatDataset([samples], processor)
        write_retrieval(folder, name, found, lines, shown, {"model": args.model, **settings}, run, args.examples)
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for direction in DIRECTIONS:
        row = found[direction]
        shares = (
            f"R@{k} {row[f'R@{k}']:.1%} [{row[f'R@{k}_interval'][0]:.1%}, {row[f'R@{k}_interval'][1]:.1%}]" for k in KS
        )
        sys.stdout.write(f"{direction.replace('_', ' ')}: {', '.join(shares)}, n = {row['n']}\n")
    if found["skipped"]:
        sys.stdout.write(f"{found['skipped']} rows skipped\n")


# A task that asks for no answers, and the options that would change nothing.
_OF_ANSWERS = (
    "endpoint", "pipeline", "stage_one", "metric", "prompt", "max_new_tokens", "window", "normalizer", "media",
    "media_of",
)  # fmt: skip
_OF_MEDIA = ("modality", "file_column", "text_column", "media_root", "on_error", "output", "name", "examples")
OTHER_TASKS = {
    "text": (_compare_texts, (*_OF_ANSWERS, *_OF_MEDIA)),
    "retrieval": (_retrieve, (*_OF_ANSWERS, "against")),
}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _folder(args: argparse.Namespace) -> Path | None:
    folder = None if args.output is None else Path(args.output)
    if folder is not None and (folder / "config.json").exists():
        raise ValueError(f"--output {folder}: a checkpoint lies there; choose another folder")
    return folder


def _name(args: argparse.Namespace) -> str:
    name = args.name or args.task
    if not re.fullmatch(r"[\w.@-]+", name):
        raise ValueError(f"--name {name!r}: it is part of file names: letters, digits, and any of . _ - @")
    return "-".join([name, *([args.media, *args.media_of] if args.media != "real" else [])])


def _settings(args: argparse.Namespace, sources) -> dict:
    """What the answers depend on beside the model."""
    from xllm.training.saving.lineage import data_fingerprint

    return {
        "data": args.data,
        "data_sha256": data_fingerprint(sample for source in sources.sources for sample in source)["sha256"],
        "max_new_tokens": args.max_new_tokens,
        "window": args.window,
        "media": args.media,
    } | ({"media_of": args.media_of} if args.media_of else {})


def _write(args: argparse.Namespace, folder: Path, found: dict, settings: dict, processor, sources) -> None:
    from xllm.training.data.dataset import ChatDataset
    from xllm.training.evaluation.answer_log import samples_file, samples_of
    from xllm.training.evaluation.evaluation import compare
    from xllm.training.evaluation.results import write_alignments, write_report, write_results

    name = _name(args)
    samples = samples_of(folder, name)
    own = args.name or args.task
    if args.media != "real" and samples_file(folder, own).is_file():
        found["difference"] = compare(found["metric"], samples, samples_of(folder, own))
    run = {
        "device": args.device,
        "batch_size": args.batch_size,
        "normalizer": args.normalizer,
        "seconds": found["seconds"],
    }
    write_results(folder, name, found, settings, {"model": _kind(args), "model_args": args.model, **run})
    if "substitutions" in found:
        write_alignments(folder, name, samples)
    write_report(folder, name, found, samples, ChatDataset(sources.sources, processor), args.examples)


def _kind(args: argparse.Namespace) -> str:
    return "endpoint" if args.endpoint else "pipeline" if args.pipeline else "xllm"


def _print(args: argparse.Namespace, found: dict) -> None:
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    errors = ""
    if "substitutions" in found:
        units = "words" if found["metric"] == "wer" else "characters"
        kinds = ", ".join(f"{found[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        errors = f" ({kinds} in {found['reference']} {units}; {100 * found['accuracy']:.1f} % without error)"
    between = " [{:.2f}, {:.2f}]".format(*(100 * bound for bound in found["interval"])) if "interval" in found else ""
    skipped = f", {found['skipped']} skipped" if found["skipped"] else ""
    if empty := found.get("empty_references"):
        skipped += f", {len(empty)} with an empty reference"
    figure = f"{found['metric']} {100 * found['value']:.2f} %{between}"
    if "difference" in found:
        low, high = (100 * bound for bound in found["difference"]["interval"])
        more = f"; {100 * found['difference']['value']:+.2f} points [{low:+.2f}, {high:+.2f}] from their own media"
        figure += more
    sys.stdout.write(f"{_name(args)}: {figure}, n = {found['n']}{skipped}{errors}\n")
    if "sound_seconds" in found:
        sound, seconds = found["sound_seconds"], found["seconds"]
        faster = f"{found['times_real_time']:.2f} times real time (a real-time factor of {seconds / sound:.3f})"
        sys.stdout.write(f"{sound:.1f} s of sound in {seconds:.1f} s: {faster}\n")
