# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm serve MODEL`: an OpenAI-compatible server (that of `transformers serve`) for text, images, audio and video.

POST /v1/chat/completions takes parts of the type text and of the kinds that the model reads (OpenAI's image_url and
input_audio, video_url, ...), each a data:, http or file URL; "stream": true streams. The name to ask for is MODEL as
it was given. Requests may name files and URLs that the server reads: keep it to this machine or to people you trust.
"""

import argparse
import socket
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16, float16")


def run(args: argparse.Namespace) -> None:
    """Check everything that can be checked before the model is loaded, then serve until interrupted."""
    from safetensors import SafetensorError
    from transformers.utils.import_utils import is_serve_available

    from xllm.assembly.opening import CheckpointError, open_config

    if not is_serve_available():
        raise ImportError("the server needs openai, fastapi and uvicorn: pip install 'xllm-transformers[serve]'")
    open_config(args.model, args.trust_remote_code)
    _check_port(args.host, args.port)
    from xllm.serving import XLLMServe

    try:
        server = XLLMServe(args.model, host=args.host, port=args.port, device=args.device, dtype=args.dtype).server
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{args.model}: cannot open the checkpoint: {error}") from error
    sys.stderr.write(f"serving {args.model} on http://{args.host}:{args.port}/v1\n")
    server.run()


def _check_port(host: str, port: int) -> None:
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
