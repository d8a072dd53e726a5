# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The `xllm` command: `xllm COMMAND --help` tells what each command takes.

Exit status: 0; 1 with one line on stderr for a failure of the input or the world (`--debug` shows the traceback);
2 for wrong usage.
"""

import argparse
import importlib
import sys
import traceback

from jinja2 import TemplateError

import xllm


# Packages of the extras (pyproject.toml) by the name that is imported.
EXTRAS = {
    **dict.fromkeys(("jiwer", "matplotlib", "peft", "datasets"), "train"),
    **dict.fromkeys(("sacrebleu", "pycocoevalcap"), "captions"),
    **dict.fromkeys(("sklearn", "espeakng_loader"), "demo"),
    **dict.fromkeys(("bitsandbytes", "torchao"), "quantization"),
    **dict.fromkeys(("jsonschema", "llguidance"), "device"),
    "sounddevice": "microphone",
    **dict.fromkeys(("fastapi", "multipart", "uvicorn"), "serve"),
    "gradio": "page",
}
# Commands that make a model take a user's modules; those that open one may also run the code beside it.
MAKING = ("init",)
ANSWERING = ("chat", "evaluate", "look", "page")  # choose device and precision
OPENING = (
    "check", "explain", "estimate", "train", "ablate", "chat", "serve", "page", "evaluate", "look", "inspect",
    "convert", "push",
)  # fmt: skip
COMMANDS = (*MAKING, "test-interface", "demo", "build-instructions", "score", "judge", *OPENING, "env")
REPORTING = set(COMMANDS) - {"init", "explain", "serve", "page"}


class _StoreOnce(argparse._StoreAction):
    """argparse keeps the last value of an option that is given twice, and drops the others in silence."""

    _namespace: argparse.Namespace | None = None  # of the arguments that gave it last

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string and self._namespace is namespace:
            raise argparse.ArgumentError(self, "given twice")
        self._namespace = namespace
        super().__call__(parser, namespace, values, option_string)


class CommandParser(argparse.ArgumentParser):
    """A parser that takes options between positional arguments: `xllm chat MODEL --image F QUESTION`. None but those
    that are declared with "append" is taken twice.

    With `takes_media` it collects the options that it does not know, each with its value and in order, as
    `namespace.media`: only the model knows which there are.
    """

    takes_media = False
    _is_splitting = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(self, args=None, namespace=None):
        if self._is_splitting:
            return super().parse_known_args(args, namespace)
        self._is_splitting = True
        try:
            if not self.takes_media:
                return self.parse_known_intermixed_args(args, namespace)
            args, media = self._split_media(list(args))
            namespace, rest = self.parse_known_intermixed_args(args, namespace)
            namespace.media = media
            return namespace, rest
        finally:
            self._is_splitting = False

    def _split_media(self, args: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
        own: list[str] = []
        media: list[tuple[str, str]] = []
        while args:
            argument = args.pop(0)
            if argument == "--":
                return [*own, argument, *args], media
            option, equals, value = argument.partition("=")
            if not option.startswith("--") or any(name.startswith(option) for name in self._option_string_actions):
                own.append(argument)
                continue
            if not equals and not args:
                self.error(f"argument {option}: expected a file or URL")
            media.append((option, value if equals else args.pop(0)))
        return own, media


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each command module declares its own arguments, and says what it does first."""
    parser = argparse.ArgumentParser(prog="xllm", description="Teach a frozen language model to see, hear and watch.")
    parser.add_argument("--version", action="version", version=f"xllm {xllm.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for name in COMMANDS:
        module = importlib.import_module(f"xllm.commands.{name.replace('-', '_')}")
        brief = (module.__doc__ or "").split("\n")[0].partition("`: ")[2].rstrip(".")
        command = subparsers.add_parser(name, help=brief, description=module.__doc__)
        command.set_defaults(run=module.run, wrong_usage=command.error, module=[])
        module.add_arguments(command)
        if name in REPORTING:
            command.add_argument("--json", action="store_true", help="print JSON instead of text, for programs")
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if name in (*MAKING, *OPENING):
            what = "Python file or module that adds a kind of media or a converter; it is imported first (repeatable)"
            command.add_argument("--module", action="append", metavar="FILE_OR_NAME", help=what)
        if name in ANSWERING:
            command.add_argument("--device", help='"cpu", "cuda:1", ... (default: an accelerator, if there is one)')
            types, what = ("auto", "float32", "bfloat16", "float16"), "default: float32 on the CPU, else as saved"
            command.add_argument("--dtype", choices=types, help=what)
        if name in OPENING:
            what = "run the modules that lie beside the checkpoint"
            command.add_argument("--trust-remote-code", action="store_true", help=what)
    return parser


def one_line(error: BaseException) -> str:
    """An error as one line, without what follows its first paragraph."""
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    if isinstance(error, TemplateError):
        return f"the chat template cannot write this conversation: {text}"
    package = (getattr(error, "name", None) or "").split(".")[0]
    if isinstance(error, ImportError) and package in EXTRAS:
        return f'{text}: pip install "xllm-transformers[{EXTRAS[package]}]"'
    return text or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        importlib.import_module("xllm.auto")
        importlib.import_module("transformers").utils.logging.disable_progress_bar()
        importlib.import_module("xllm.assembly.modules").import_modules(args.module)
        return args.run(args) or 0
    except KeyboardInterrupt as error:  # or a run's `Interrupted`, which knows its status
        print(f"xllm: {str(error) or 'interrupted'}", file=sys.stderr)  # noqa: T201
        return getattr(error, "status", 130)
    except (ValueError, OSError, ImportError, TemplateError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"xllm {args.command}: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return 1
