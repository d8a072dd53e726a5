# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A few frames of a minute of video: read from the keyframes before them, against decoding all up to the last.

    python benchmarks/video_seek.py [--width 1280] [--height 720] [--json]

Makes two films of 60 s at 25 Hz (H.264 with B-frames; a keyframe every 50 and every 250 frames) and reads 4 and 8
frames of each with `load_video`, both ways in the same run; the frames must be equal. Prints medians and their ratio.
How much can be gained follows from the distance of the keyframes: a frame costs half of it on average.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from xllm.processing import video_decoding
from xllm.processing.video_decoding import FrameIndex, list_frames


SECONDS, RATE, REPEATS = 60, 25, 3


def make_film(path: Path, keyframe_every: int, width: int, height: int) -> None:
    """FFmpeg's moving test picture."""
    source = av.open(f"testsrc2=duration={SECONDS}:size={width}x{height}:rate={RATE}", format="lavfi")
    with source, av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        stream.options = {"preset": "ultrafast", "sc_threshold": "0", "bf": "2"}
        for frame in source.decode(video=0):
            frame = frame.reformat(format="yuv420p")
            frame.pict_type = 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def without_keyframes(*arguments) -> FrameIndex:
    """The index of a file whose keyframes are not relied upon: everything is decoded."""
    return FrameIndex(list_frames(*arguments).stamps, keyframes=[])


def median_seconds(path: Path, num_frames: int, index) -> tuple[float, np.ndarray]:
    """Median time of `load_video` with this way to list frames, and the frames."""
    video_decoding.list_frames = index
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        frames, _ = video_decoding.load_video(path, num_frames=num_frames)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), frames


def main() -> None:
    """Make the films, and print the table (or JSON)."""
    parser = argparse.ArgumentParser(description="Seeking by keyframes against decoding everything.")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for keyframe_every in (50, 250):
            path = Path(folder, f"{keyframe_every}.mp4")
            make_film(path, keyframe_every, arguments.width, arguments.height)
            for num_frames in (4, 8):
                everything, expected = median_seconds(path, num_frames, without_keyframes)
                sought, frames = median_seconds(path, num_frames, list_frames)
                np.testing.assert_array_equal(frames, expected)
                row = {"keyframe_every": keyframe_every, "num_frames": num_frames}
                rows.append({**row, "everything": everything, "sought": sought, "ratio": everything / sought})
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"keyframe every {row['keyframe_every']:3d}, {row['num_frames']} frames: everything "
            f"{row['everything'] * 1000:6.0f} ms, from keyframes {row['sought'] * 1000:5.0f} ms, {row['ratio']:4.1f}x"
        )


if __name__ == "__main__":
    main()
