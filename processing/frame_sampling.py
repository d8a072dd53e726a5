# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which frames of a film are taken: in the middle of equal parts of it, or by time."""

import bisect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from transformers.video_utils import VideoMetadata


def _on_screen(times: list[float], moments: list[float]) -> list[int]:
    """Which frames are shown so many seconds after the first began, each once; the margin is for rounded stamps."""
    return sorted({bisect.bisect_right(times, times[0] + moment + 1e-4) - 1 for moment in moments})


def _rate_varies(times: list[float]) -> bool:
    """Whether a frame lasts longer, or less, than the median by half of that and 10 ms, as where one is missing."""
    steps = np.diff(times)
    return bool((abs(steps - np.median(steps)) > 0.5 * np.median(steps) + 0.01).any())


def frame_indices(
    total: int,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    times: list[float] | None = None,
    source_fps: float | None = None,
) -> list[int]:
    """Ascending indices of some of a clip's `total` frames.

    Args:
        num_frames: that many frames, in the middle of equal parts of the clip (all of a shorter one): of time where
            the frame rate varies, and then each frame once.
        fps: one frame at 0, 1/fps, 2/fps, ... seconds, instead of `num_frames`.
        max_frames: of these, the first so many.
        times, source_fps: the start of each frame in seconds, ascending, or (for `fps`) the constant rate of the clip.

    Raises:
        ValueError: both rules at once, a count or rate below 1 or 0, or `fps` for frames whose times are unknown.
    """
    if num_frames is not None and fps is not None:
        raise ValueError(f"num_frames={num_frames} and fps={fps} exclude each other: give one of them")
    for name, value in (("num_frames", num_frames), ("fps", fps), ("max_frames", max_frames)):
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value}, expected a number above 0")
    if fps is not None:
        if times is None and not source_fps:
            raise ValueError(
                f"fps={fps} needs the times of the frames: pass video_metadata with their fps, or use num_frames"
            )
        times = times or [i / cast(float, source_fps) for i in range(total)]
        steps = int((times[-1] - times[0]) * fps + 1e-6) + 1
        chosen = _on_screen(times, [k / fps for k in range(steps)])
    elif num_frames is not None and num_frames < total:
        chosen = [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]
        if times is not None and _rate_varies(times):
            seconds = 2 * times[-1] - times[-2] - times[0]  # the last frame lasts as long as the one before it
            chosen = _on_screen(times, [(i + 0.5) * seconds / num_frames for i in range(num_frames)])
    else:
        chosen = list(range(total))
    return chosen if max_frames is None else chosen[:max_frames]


def choose_frames(
    sample_indices_fn: Callable[..., Any], metadata: VideoMetadata, times: list[float] | None
) -> list[int]:
    """Runs the sampling rule and checks its answer."""
    chosen = [int(i) for i in sample_indices_fn(metadata=metadata, times=times)]
    if not chosen or min(chosen) < 0 or max(chosen) >= metadata.total_num_frames:
        raise ValueError(f"the sampling rule chose frames {chosen} of a clip with {metadata.total_num_frames}")
    return chosen


def default_rule(metadata: VideoMetadata, times: list[float] | None, **rule: Any) -> list[int]:
    """`frame_indices` of a clip that is known."""
    return frame_indices(metadata.total_num_frames, times=times, source_fps=metadata.fps, **rule)
