# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Media files that stand in for those that the suites fetch from the Hub."""

import atexit
import shutil
import tempfile
from pathlib import Path

from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image


FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
# Frames and rate of the Hub's "tiny_video", whose numbers the suite knows.
VIDEO_FRAMES, VIDEO_FPS = 11, 30


def local_media(url: str) -> str:
    """Path of a picture, film or tone with the file name of `url`.

    Raises:
        ValueError: a kind of file that no suite asked for so far.
    """
    path = FOLDER / url.rsplit("/", 1)[-1]
    if path.exists():
        return str(path)
    if path.suffix in (".png", ".jpg"):
        Image.fromarray(grey_frames(1)[0]).save(path)
    elif path.suffix == ".mp4":
        write_video(path, grey_frames(VIDEO_FRAMES), fps=VIDEO_FPS)
    elif path.suffix in (".wav", ".mp3"):
        write_wav(path, [sine()])
    else:
        raise ValueError(f"{url}: expected a picture, a video or a sound")
    return str(path)
