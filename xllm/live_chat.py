# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm chat --stream` and `--microphone`: what is said is printed as it is spoken."""

import argparse
import json
import shutil
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any


def add_arguments(parser: Any) -> None:
    """Declare what `xllm chat` takes for a stream."""
    what = 'transcribe a sound as it comes: a file, or "-" for WAV or 16-bit PCM from standard input'
    parser.add_argument("--stream", metavar="FILE", help=what)
    what = "transcribe what is said now, until Ctrl-C (extra microphone)"
    parser.add_argument("--microphone", action="store_true", help=what)
    parser.add_argument("--realtime", action="store_true", help="--stream FILE: no faster than it is spoken")
    what = "of a stream: seconds that are heard together (default: 0.32)"
    parser.add_argument("--chunk", type=float, metavar="SECONDS", help=what)
    what = "of a stream: seconds that a token waits for what follows it (default: 0.64)"
    parser.add_argument("--lookahead", type=float, metavar="SECONDS", help=what)
    what = "of a stream: hear all of a window again at its end, for its final text"
    parser.add_argument("--second-pass", action="store_true", help=what)


def is_asked(args: argparse.Namespace) -> bool:
    """Whether a stream is to be transcribed; wrong usage if with other things, or if only its settings are given."""
    wanted = args.microphone + (args.stream is not None)
    others = args.media or args.track or args.commands or args.execute or args.sample
    if wanted > 1 or (wanted and others):
        args.wrong_usage("arguments --stream, --microphone: one of them, without other media, --commands and --sample")
    settings = args.realtime or args.second_pass or args.chunk is not None or args.lookahead is not None
    if settings and not wanted:
        args.wrong_usage(
            "arguments --realtime, --chunk, --lookahead, --second-pass: they need --stream or --microphone"
        )
    return bool(wanted)


def run_stream(model: Any, processor: Any, args: argparse.Namespace) -> None:
    """Print texts as they come, and at the end how long they took. Ctrl-C ends the sound, not what has been heard."""
    from xllm.processing.media_kinds import AUDIO
    from xllm.training.data.live_sound import file_chunks, microphone, paced, piped_chunks
    from xllm.training.evaluation.streaming import StreamTranscriber

    given = {"chunk": args.chunk, "lookahead": args.lookahead, "window": args.window}
    how: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    how |= {"prompt": args.question, "second_pass": args.second_pass, "max_new_tokens": args.max_new_tokens}
    rate, seconds = processor.reader(AUDIO).sampling_rate, args.chunk or 0.32
    chunks: Iterable[Any]
    if args.microphone:
        chunks = microphone(rate, seconds)
    elif args.stream == "-":
        rate, chunks = piped_chunks(sys.stdin.buffer, rate, seconds, "standard input")
    else:
        chunks = file_chunks(args.stream, rate, seconds)
    stream = StreamTranscriber(model, processor, sampling_rate=rate, **how)
    delays: list[float] = [0, 0.0, 0.0]  # number, sum, longest
    with _until_interrupted(paced(chunks, rate) if args.realtime else chunks) as heard:
        for chunk in heard:
            _show(stream.feed(chunk), args.json, delays)
    if stream.received or args.stream is not None:
        _show(stream.finish(), args.json, delays)
    mean = delays[1] / max(1, delays[0])
    told = f"{delays[0]:.0f} tokens, fired {mean:.2f} s behind their ends on average, {delays[2]:.2f} s at most"
    told = told if stream.latency is not None else "no CIF fires here: each chunk was heard with all of its window"
    speed = stream.compute / max(stream.received, 1e-9)
    sys.stderr.write(f"{stream.received:.1f} s of sound; {told}; computing took {speed:.2f} of that time\n")


@contextmanager
def _until_interrupted(chunks: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Chunks until Ctrl-C, which waits for what is being computed; the second one does not."""
    is_waiting, is_over = False, False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal is_over
        was_over, is_over = is_over, True
        if is_waiting or was_over:
            raise KeyboardInterrupt

    def heard() -> Iterator[Any]:
        nonlocal is_waiting, is_over
        source = iter(chunks)
        while not is_over:
            is_waiting = True
            try:
                chunk = next(source)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                is_waiting = False
            yield chunk

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt) if is_main else None
    try:
        yield heard()
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)


def _show(segments: list, as_json: bool, delays: list[float]) -> None:
    """Partial texts overwrite each other on a terminal; elsewhere each is a line, with dots behind it."""
    for segment in segments:
        for delay in segment.delays:
            delays[:] = delays[0] + 1, delays[1] + delay, max(delays[2], delay)
        line = str(segment) if segment.is_final else f"{segment} ..."
        if as_json:
            fields = {name: value for name, value in asdict(segment).items() if value is not None}
            line = json.dumps({**fields, "delays": segment.delays}, ensure_ascii=False)
        elif sys.stdout.isatty():
            room = shutil.get_terminal_size().columns - 1
            while not segment.is_final and sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line) > room:
                line = line[1:]
            line = f"\r\x1b[K{line}"
        sys.stdout.write(line if not as_json and sys.stdout.isatty() and not segment.is_final else f"{line}\n")
    sys.stdout.flush()
