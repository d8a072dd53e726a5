# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Reads the media of a list one by one, in a process that dies of too much memory, time or a crash.

Usage: media_fault_worker.py JOBS.json RESULTS.jsonl; a job is [number, reader, path].
"""

import ctypes
import hashlib
import json
import logging
import resource
import signal
import sys
import time
import traceback

import numpy as np


SECONDS = 60  # for one file
LIMIT = 1 << 30  # of memory for one medium, as is stated


def readers() -> dict:
    """The readers of media."""
    from xllm.processing import media_sources
    from xllm.processing.audio_decoding import load_audio
    from xllm.processing.image_decoding import load_image
    from xllm.processing.video_decoding import load_video

    assert media_sources.MAX_BYTES == LIMIT
    return {
        "image": lambda path: np.asarray(load_image(path)),
        "audio": load_audio,
        "video": lambda path: load_video(path)[0],
    }


def _hang(path: str) -> None:
    while True:
        time.sleep(1)


# Faults of a reader, for the test of the tests.
FAULTS = {
    "fine": lambda path: np.zeros(3),
    "crash": lambda path: ctypes.string_at(0),
    "hang": _hang,
    "memory": lambda path: np.ones(LIMIT, np.float32),
}


def status(name: str) -> int:
    """A number of /proc/self/status, in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith(name))


def main() -> None:
    """Writes a line per file, at once."""
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("xllm").addHandler(handler)
    logging.getLogger("xllm").propagate = False
    known = FAULTS if all(reader in FAULTS for _, reader, _ in jobs) else readers()
    limit = (status("VmSize") << 20) + LIMIT + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with open(sys.argv[2], "a", encoding="utf-8") as results:
        for number, reader, path in jobs:
            said.clear()
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # the peak begins anew
            before, start = status("VmRSS"), time.monotonic()
            signal.alarm(1 if reader == "hang" else SECONDS)
            one = {"number": number}
            try:
                values = known[reader](path)
                one |= {
                    "outcome": "decoded",
                    "shape": values.shape,
                    "digest": hashlib.sha1(np.ascontiguousarray(values)).hexdigest(),
                    "finite": bool(np.isfinite(values).all()),
                }
                del values
            except BaseException as error:
                is_ours = type(error).__name__ == "MediaError"
                message = str(error) if is_ours else traceback.format_exc()[-1500:]
                one |= {"outcome": "refused" if is_ours else "raised", "message": message}
            signal.alarm(0)
            peak = status("VmHWM") - before
            one |= {"seconds": round(time.monotonic() - start, 3), "mib": peak, "said": list(said)}
            results.write(json.dumps(one) + "\n")
            results.flush()


main()
