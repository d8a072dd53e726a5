# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm serve MODEL`: an OpenAI-compatible server for text and the media that a model reads (docs/serving.md).

POST /v1/chat/completions takes parts of the type text and of the kinds that the model reads (OpenAI's image_url and
input_audio, video_url, ...), as data: URLs, base64 text or http(s) URLs; also /v1/responses, /v1/audio/transcriptions,
/v1/models, /health and /metrics. No file of this machine and no private address is opened unless --allow-media-from
allows it.
"""

import argparse
import os
import socket
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", help="what requests call the model (default: MODEL)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    types = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="auto", choices=types, help="auto (default): as stored")
    what = "what clients must send as bearer token (default: the environment's XLLM_API_KEY, else nothing is asked)"
    parser.add_argument("--api-key", default=os.environ.get("XLLM_API_KEY"), help=what)
    what = "folder whose files, or private host whose URLs, clients may name (repeatable)"
    parser.add_argument("--allow-media-from", action="append", default=[], metavar="DIR|HOST", help=what)
    what = "name that the server may be called by, besides localhost and addresses (repeatable)"
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=what)
    what = "site whose pages may send requests (repeatable)"
    parser.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help=what)
    parser.add_argument("--rows", type=int, default=32, help="answers that are written at the same time")
    parser.add_argument("--queue", type=int, default=128, help="answers that wait before requests are refused (429)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds until an answer must be complete")
    parser.add_argument("--drain", type=int, default=30, help="seconds that answers have left after SIGTERM")


def run(args: argparse.Namespace) -> None:
    """Check everything that can be checked before the model is loaded, then serve until interrupted."""
    try:
        import llguidance  # noqa: F401
        import uvicorn

        from xllm.serving import Limits, MediaAccess, Service, create_app
        from xllm.serving.draining import DrainingServer
    except ImportError as error:
        wanted = "pip install 'xllm-transformers[serve]'"
        raise ImportError(f"the server needs fastapi, uvicorn and llguidance: {wanted}") from error
    from xllm.assembly.opening import default_device, load_checkpoint, open_config

    open_config(args.model, args.trust_remote_code)
    if args.drain < 0:
        raise ValueError(f"--drain {args.drain}: expected 0 or more seconds")
    limits = Limits(rows=args.rows, queue=args.queue, request_seconds=args.timeout)
    access = MediaAccess(args.allow_media_from, limits)
    check_port(args.host, args.port)
    place = default_device() if args.device == "auto" else args.device
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    service = Service(model, processor, args.name or args.model, access, limits)
    app = create_app(service, args.api_key, [args.host, *args.allow_host], args.allow_origin)
    if args.api_key is None and args.host not in ("localhost", "127.0.0.1", "::1"):
        sys.stderr.write(f"--host {args.host}: anybody who reaches it may ask (--api-key KEY)\n")
    sys.stderr.write(f"serving {service.name} on http://{args.host}:{args.port}/v1\n")
    config = uvicorn.Config(app, host=args.host, port=args.port, log_level="warning", ws="none")
    DrainingServer(config, service, args.drain).run()


def check_port(host: str, port: int) -> None:
    """A `ValueError` where nothing can listen."""
    try:
        if not 0 < port < 1 << 16:  # getaddrinfo would take it modulo 2**16
            raise OverflowError("ports are 1 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        where = f"{host}, port {port} ({getattr(error, 'strerror', None) or error})"
        raise ValueError(f"cannot listen on {where}: choose another --port or --host") from error
