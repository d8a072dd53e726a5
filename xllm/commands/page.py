# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm page MODEL`: a page in the browser to talk with a model, by text and the media that it reads (docs/page.md).

What the model heard and saw stands beside its answers. Of a folder of training (`xllm page RUNS`) it shows the stages,
their curves, samples and receipts, while they run too. The page needs no network, listens to this machine alone unless
--host says otherwise, and opens no file for a browser but what was uploaded.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xllm.commands.serve import check_port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM, or a folder of training")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860)
    what = "what a browser must be told, with any name (default: the environment's XLLM_PASSWORD, else nothing)"
    parser.add_argument("--password", default=os.environ.get("XLLM_PASSWORD"), help=what)
    what = "file that is offered to ask about, with a question behind a colon if you like (repeatable)"
    parser.add_argument("--example", action="append", default=[], metavar="FILE[:QUESTION]", help=what)
    what = "name that the page may be called by, besides localhost and addresses (repeatable)"
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=what)
    parser.add_argument("--rows", type=int, default=32, help="answers that are written at the same time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds until an answer must be complete")
    parser.add_argument("--max-upload", type=int, default=64, metavar="MIB", help="of a request (default: 64 MiB)")


def run(args: argparse.Namespace) -> None:
    """Check everything that can be checked before the model is loaded, then serve until interrupted."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    folder = Path(tempfile.mkdtemp(prefix="xllm-page-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: uploads are removed
    try:
        _serve(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(args: argparse.Namespace, folder: Path) -> None:
    try:
        import gradio  # noqa: F401
        import llguidance  # noqa: F401
        import uvicorn

        from xllm.page.page_app import create_page_app
        from xllm.serving import Limits
        from xllm.serving.draining import Server
    except ImportError as error:
        wanted = "pip install 'xllm-transformers[page]'"
        raise ImportError(f"the page needs gradio, fastapi and uvicorn: {wanted}") from error
    if args.max_upload < 1:
        raise ValueError(f"--max-upload {args.max_upload}: expected at least 1 MiB")
    check_port(args.host, args.port)
    limits = Limits(rows=args.rows, request_seconds=args.timeout, body_bytes=args.max_upload << 20)
    build, close = _training(args) or _conversation(args, folder, limits)
    hosts = [args.host, *args.allow_host]
    app = create_page_app(build, folder, args.password, hosts, limits=limits, close=close)
    if args.password is None and args.host not in ("localhost", "127.0.0.1", "::1"):
        sys.stderr.write(f"--host {args.host}: anybody who reaches it may ask (--password PASSWORD)\n")
    sys.stderr.write(f"open http://{args.host}:{args.port}/ in a browser; Ctrl-C ends\n")
    options: dict[str, Any] = {"log_level": "critical", "timeout_graceful_shutdown": 1, "ws": "none"}
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn passes on at its end
        Server(uvicorn.Config(app, host=args.host, port=args.port, **options)).run()


def _training(args: argparse.Namespace) -> tuple[Callable[[str], Any], None] | None:
    """The page of a folder of training; `None` for a model."""
    from xllm.page.training_folder import TrainingPage, is_training_folder

    if not is_training_folder(args.model):
        return None
    if args.example:
        raise ValueError(f"--example: {args.model} is a folder of training; there is no model to ask")
    return TrainingPage(args.model).build, None


def _conversation(args: argparse.Namespace, folder: Path, limits: Any) -> tuple[Callable[[str], Any], Callable]:
    """The page of a model, and what ends its threads."""
    from xllm.assembly.opening import default_device, load_checkpoint, open_config
    from xllm.page.chat_page import ChatPage, offered
    from xllm.page.looks import Looks
    from xllm.serving import MediaAccess, Service

    config = open_config(args.model, args.trust_remote_code)[2]
    if not config.modalities:
        raise ValueError(f"{args.model} reads nothing but text: it has no modalities; `xllm chat` talks with it")
    examples = offered(args.example, config.modalities, folder)
    place = args.device or default_device()
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    service = Service(model, processor, args.model, MediaAccess([str(folder)], limits), limits)
    looks = Looks(model, processor, folder, limits)

    def close() -> None:
        looks.close()
        service.close()

    def page(language: str) -> Any:
        return ChatPage(service, looks, language, examples).build()

    return page, close
