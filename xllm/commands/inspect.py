# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm inspect MODEL`: modalities, parameters, what each stage trains, and where the parts come from.

Only `config.json` is read: a stage checkpoint can be inspected without its towers.
"""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM")


def describe(model) -> dict:
    """What an X-LLM is made of.

    Returns:
        `{"parameters": {part: count}, "modalities": {name: {...}}, "trainable_in_stage": {"2 image": count, ...},
        "stage", "towers", "lineage"}`.
    """
    from xllm.training.data.media_rows import parts_of_rows
    from xllm.training.stages import count_parameters, freeze_for_stage

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parameters = {part: total for part, (_, total) in count_parameters(model).items()}
    parts = parts_of_rows(model.config.modalities)
    rows = {
        name: {
            "part": parts[name],
            "encoder": row.encoder,
            "converter": row.converter,
            "shares_converter_with": row.shares_converter_with,
            "input": row.input_name,
            "placeholder": row.placeholder_token,
        }
        for name, row in model.config.modalities.items()
    }
    trained = {f"2 {name}": freeze_for_stage(model, 2, [name]) for name in rows} | {"3": freeze_for_stage(model, 3)}
    stages = {name: sum(sizes[key] for key in keys) for name, keys in trained.items()}
    facts = {name: getattr(model.config, name) for name in ("stage", "towers", "lineage")}
    return {**facts, "modalities": rows, "parameters": parameters, "trainable_in_stage": stages}


def run(args: argparse.Namespace) -> None:
    """Print the description of a model."""
    from xllm.assembly.opening import load_skeleton

    report = describe(load_skeleton(args.model, args.trust_remote_code))
    if args.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    lines = [f"{args.model}: {'stage ' + str(report['stage']) if report['stage'] else 'no stage trained yet'}"]
    lines += [
        f"  {name:<10} {row['part']:<8} {row['input']:<20} -> {row['encoder'] or 'features'} -> {row['converter']}"
        + (f" (of {row['shares_converter_with']})" if row["shares_converter_with"] else "")
        for name, row in report["modalities"].items()
    ]
    for title, key in (("parameters", "parameters"), ("trained in stage", "trainable_in_stage")):
        lines += [title, *(f"  {name:<20} {count:>15,}" for name, count in report[key].items())]
    if report["towers"]:
        lines.append("not stored here")
    for part, source in (report["towers"] or {}).items():
        lines.append(f"  {part:<20} {source['name_or_path']}@{source.get('revision') or 'unpinned'}")
    for entry in report["lineage"] or ():
        if "words" in entry:
            lines.append(f"{', '.join(entry['modalities'])}: keeps the head of stage 1, {entry['words']} words")
            continue
        samples = entry["data"]["samples"]  # of a stream, nobody has counted them
        counts = f"{samples}{' samples' * isinstance(samples, int)}, {entry['frozen']['tensors']} tensors frozen"
        lines.append(f"stage {entry['stage']} of {', '.join(entry['modalities'])}: {counts}")
    sys.stdout.write("\n".join(lines) + "\n")
