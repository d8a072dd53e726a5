# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm convert SOURCE [SOURCE ...] OUTPUT`: published weights as a folder of safetensors.

SOURCE is a .pth file of LAVIS (eva_vit_g.pth, blip2_pretrained.pth, blip2_pretrained_opt6.7b.pth) or of the authors
(checkpoint_*.pth of each stage), several at once in any order; or one folder or Hub id of a BLIP-2, BERT or ChatGLM.
OUTPUT is a source for `xllm init --encoder vision=OUTPUT --interface image=OUTPUT` (or --language-model OUTPUT), or,
with --model, a copy of that X-LLM with these weights in it.
"""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=".pth files, or one folder or Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write")
    parser.add_argument("--kind", help="layout of a .pth file, e.g. eva or xllm-stage3; default by the names in it")
    parser.add_argument("--model", metavar="DIR", help="an X-LLM folder: OUTPUT is its copy with these weights")


def run(args: argparse.Namespace) -> None:
    """Write the folder."""
    from xllm.modeling_xllm.configuration_xllm import XLLMConfig
    from xllm.modeling_xllm.conversion.convert import convert, is_pth
    from xllm.modeling_xllm.conversion.folders import convert_folder
    from xllm.modeling_xllm.conversion.layouts import LAYOUTS
    from xllm.modeling_xllm.conversion.output import summarize, write_over, write_parts

    if args.kind is not None and args.kind not in LAYOUTS:
        raise ValueError(f"--kind {args.kind}: expected one of {', '.join(LAYOUTS)}")
    base = None if args.model is None else XLLMConfig.from_pretrained(args.model)
    if len(args.sources) == 1 and not is_pth(args.sources[0]):
        if base is None and (parts := _convert_language_model(args.sources[0], args.output)):
            _report(args, parts, {})
            return
        conversion = convert_folder(args.sources[0], base)
    else:
        conversion = convert(args.sources, args.kind, base)
    if base is None:
        write_parts(conversion, args.output)
    else:
        write_over(conversion, args.model, args.output)
    _report(args, summarize(conversion), conversion.left_out)


def _convert_language_model(source: str, output: str) -> dict | None:
    """Write a ChatGLM (THUDM's shards and tokenizer) as safetensors; None if `source` is something else."""
    from transformers import AutoTokenizer

    from xllm.modeling_xllm.composition.towers import published_config, split_source
    from xllm.modeling_xllm.conversion.output import new_folder
    from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration
    from xllm.modeling_xllm.tower_sources import load_whole

    if published_config(source).model_type != "chatglm":
        return None
    name, revision = split_source(source)
    with new_folder(output) as folder:
        model = load_whole(ChatGLMForConditionalGeneration, name, revision)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False).save_pretrained(folder)
    return {"language_model": {"parameters": model.num_parameters(), "from": [source]}}


def _report(args: argparse.Namespace, parts: dict[str, dict], left_out: dict[str, list[str]]) -> None:
    if args.json:
        report = {"output": args.output, "parts": parts, "left_out": left_out}
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    for part, row in parts.items():
        sys.stdout.write(f"{part:24} {row['parameters']:>13,} parameters from {', '.join(row['from'])}\n")
    for source, names in left_out.items():
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        sys.stdout.write(f"left out of {source}: {shown} ({len(names)})\n")
    sys.stdout.write(f"wrote {args.output}\n")
