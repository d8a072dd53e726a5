# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Images and videos of the demo: scikit-learn's 1,797 scanned handwritten digits, drawn as PNG and mp4 files.

A scan is 8 x 8 grey levels. It is drawn on another canvas, in ink of either polarity, shifted, scaled, turned,
sharpened or blurred, so that a model trained on the drawings also reads a digit that a stranger photographs or paints.
Training and test are split by *scan*: no drawing of a test scan is seen in any stage.

Legend: N scans, H and W canvas pixels, T frames.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageFilter


MOTIONS = ("left", "right", "up", "down")
# Where the centre of the digit starts and ends along the axis it moves on, as fractions of the canvas.
_PATH_START, _PATH_END = 0.29, 0.71


class DigitScans(NamedTuple):
    """Scans of handwritten digits."""

    images: np.ndarray  # (N, 8, 8), ink in [0, 1]
    labels: np.ndarray  # (N,), the digit


@dataclass(frozen=True)
class DigitStyle:
    """How one digit is drawn: everything but where. Colours are RGB in [0, 1]."""

    paper: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ink: tuple[float, float, float] = (0.0, 0.0, 0.0)
    angle_degrees: float = 0.0  # counter-clockwise
    shear: float = 0.0  # horizontal, as the tangent of the slant
    aspect: float = 1.0  # width of the digit relative to its height
    sharpness: float = 0.0  # gain of the sigmoid that turns the soft scan into pen strokes; 0 leaves it soft
    threshold: float = 0.45  # ink level at which a stroke begins; a lower one makes thicker strokes
    blur: float = 0.0  # Gaussian radius, in hundredths of the canvas
    noise: float = 0.0  # standard deviation, on the finished picture


def load_scans(test_fraction: float, seed: int) -> tuple[DigitScans, DigitScans]:
    """The 1,797 scans that scikit-learn ships (the test set of UCI Optdigits, 13 writers), for training and for test;
    the same share of each digit in both.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng([seed, 1])
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        is_test[members[: max(1, round(test_fraction * len(members)))]] = True
    scans = (images / 16.0).astype(np.float32).reshape(-1, 8, 8)
    return DigitScans(scans[~is_test], labels[~is_test]), DigitScans(scans[is_test], labels[is_test])


def random_style(rng: np.random.Generator) -> DigitStyle:
    """A style a stranger's picture may have: either polarity, tinted paper and ink, a slant, thin or thick strokes."""
    dark, light = rng.uniform(0.0, 0.3), rng.uniform(0.65, 1.0)
    paper, ink = (light, dark) if rng.random() < 0.5 else (dark, light)

    def tint(level: float) -> tuple[float, float, float]:
        red, green, blue = np.clip(level + rng.uniform(-0.08, 0.08, size=3), 0.0, 1.0)
        return float(red), float(green), float(blue)

    return DigitStyle(
        paper=tint(paper),
        ink=tint(ink),
        angle_degrees=float(rng.uniform(-12.0, 12.0)),
        shear=float(rng.uniform(-0.2, 0.2)),
        aspect=float(rng.uniform(0.8, 1.15)),
        sharpness=float(rng.choice([0.0, rng.uniform(4.0, 20.0)])),
        threshold=float(rng.uniform(0.3, 0.55)),
        blur=float(rng.uniform(0.0, 2.0)),
        noise=float(rng.uniform(0.0, 0.05)),
    )


def draw_digit(
    scan: np.ndarray,
    style: DigitStyle,
    canvas: int,
    height: float,
    centre: tuple[float, float] = (0.5, 0.5),
    rng: np.random.Generator | None = None,
) -> Image.Image:
    """Draw one scan, ink in [0, 1], on a square `canvas` of so many pixels a side.

    Height and centre (x from the left, y from the top) are fractions of it; without `rng` there is no noise.
    """
    side = scan.shape[0]
    margin = side // 4  # empty cells around the scan, so that strokes at its border fade out instead of being cut
    source = Image.fromarray(np.pad(scan.astype(np.float32), margin), mode="F")
    middle = side / 2 + margin
    cells_per_pixel = side / (height * canvas)
    angle = np.deg2rad(style.angle_degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1.0 / style.aspect, style.shear], [0.0, 1.0]])
    matrix = cells_per_pixel * slant @ turn
    offset = np.array([middle, middle]) - matrix @ (np.array(centre) * canvas)
    affine = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    drawn = source.transform((canvas, canvas), Image.Transform.AFFINE, affine, resample=Image.Resampling.BICUBIC)
    ink = np.clip(np.asarray(drawn), 0.0, 1.0)
    if style.sharpness > 0:
        ink = 1.0 / (1.0 + np.exp(-style.sharpness * (ink - style.threshold)))
        empty = 1.0 / (1.0 + np.exp(style.sharpness * style.threshold))
        ink = np.clip((ink - empty) / (1.0 - 2.0 * empty), 0.0, 1.0)
    paper, pen = np.array(style.paper), np.array(style.ink)
    picture = paper + ink[..., None] * (pen - paper)  # (H, W, 3)
    if rng is not None and style.noise > 0:
        picture = picture + rng.normal(0.0, style.noise, size=picture.shape)
    image = Image.fromarray((np.clip(picture, 0.0, 1.0) * 255.0).round().astype(np.uint8))
    radius = style.blur * canvas / 100.0
    return image.filter(ImageFilter.GaussianBlur(radius)) if radius > 0.2 else image


def draw_image(scan: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A picture of one digit in a random style, size and (nearly central) place."""
    canvas = int(rng.integers(28, 97))
    height = float(rng.uniform(0.5, 0.95))
    slack = max(0.0, (1.0 - height) / 2) * 0.8
    centre = (0.5 + float(rng.uniform(-slack, slack)), 0.5 + float(rng.uniform(-slack, slack)))
    return draw_digit(scan, random_style(rng), canvas, height, centre, rng)


def draw_plainly(scan: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A picture of one scan as it is, without the disturbances of training: any size, ink dark or light."""
    light = rng.random() < 0.5
    style = DigitStyle() if light else DigitStyle(paper=(0.0, 0.0, 0.0), ink=(1.0, 1.0, 1.0))
    return draw_digit(scan, style, int(rng.integers(28, 97)), float(rng.uniform(0.6, 0.9)))


def draw_at(scan: np.ndarray, place: str, rng: np.random.Generator) -> Image.Image:
    """A picture of one small digit at a side of the canvas or in its middle, as it may stand in a frame of a video."""
    x, y = {"left": (0, 0.5), "right": (1, 0.5), "top": (0.5, 0), "bottom": (0.5, 1), "middle": (0.5, 0.5)}[place]
    spread = _PATH_END - _PATH_START
    across, down = (_PATH_START + spread * at + float(rng.uniform(-0.06, 0.06)) for at in (x, y))
    return draw_digit(scan, random_style(rng), 64, float(rng.uniform(0.42, 0.52)), (across, down), rng)


def draw_video(
    scan: np.ndarray, motion: str, num_frames: int, rng: np.random.Generator, canvas: int = 64
) -> list[Image.Image]:
    """T frames of one digit that moves steadily across the canvas in the direction `motion`, one of `MOTIONS`."""
    style = random_style(rng)
    height = float(rng.uniform(0.48, 0.58))
    across = 0.5 + float(rng.uniform(-0.08, 0.08))  # where the digit stays on the other axis
    path = np.linspace(_PATH_START, _PATH_END, num_frames) + rng.uniform(-0.02, 0.02, size=num_frames)
    if motion in ("left", "up"):
        path = path[::-1]
    horizontal = motion in ("left", "right")
    frames = []
    for along in path:
        centre = (float(along), across) if horizontal else (across, float(along))
        frames.append(draw_digit(scan, style, canvas, height, centre, rng))
    return frames


def write_video(frames: list[Image.Image], path: str | Path, frames_per_second: int) -> None:
    """Write T frames as H.264 in an mp4 file."""
    width, height = frames[0].size
    with av.open(str(path), mode="w") as container:
        # One thread and a constant quantiser: x264's rate control does not give the same file twice.
        stream = container.add_stream("libx264", rate=frames_per_second, options={"qp": "16"})
        stream.codec_context.thread_count = 1
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, frames_per_second)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
