# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Curves as HTML: lines that scale with the page, labels that do not, values where the pointer is."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from xllm.training.inspection.explain import visible
from xllm.training.inspection.html_page import safe_text


WIDTH, HEIGHT = 1000.0, 300.0  # of the drawing's own units
BINS = 60  # places at which values can be read
DECADES = 1.3  # powers of ten that values must span for a logarithmic axis
FLAT = 1e-12  # a range, relative to its values, that is none
NEAR_END = 0.96  # of the axis: a label there ends with it
COLOURS = 8  # classes c0 to c7 of the style sheet; further curves are dashed

Curves = Mapping[str, Sequence[tuple[float, float]]]


class _Axis:
    """From a value to its place, from 0 to 1, and the values that are labelled."""

    def __init__(self, low: float, high: float, is_logarithmic: bool = False):
        self.is_logarithmic = is_logarithmic
        self.low, self.high = (math.log10(low), math.log10(high)) if is_logarithmic else (low, high)
        if self.high - self.low <= FLAT * max(abs(self.low), abs(self.high), FLAT):
            pad = abs(self.low) * 0.1 or 1.0
            self.low, self.high = self.low - pad, self.high + pad

    def at(self, value: float) -> float:
        """Place of a value."""
        return ((math.log10(value) if self.is_logarithmic else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values, about four."""
        if self.is_logarithmic:
            span = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1.0,) if len(span) > 4 else (1.0, 3.0)
            found = [step * 10.0**power for power in span[:: max(1, len(span) // 5)] for step in steps]
            return [value for value in found if -1e-9 <= self.at(value) <= 1 + 1e-9]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(one for one in (1, 2, 5, 10) if (self.high - self.low) / (step * one) <= 5)
        return [number * step for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step) + 1)]


def number_text(value: float) -> str:
    """A value for reading: four digits at most."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, _, power = f"{value:.3g}".partition("e")
    return f"{float(mantissa):g}e{int(power)}" if power else f"{value:.3g}"


def drawn(title: str, curves: Curves, last_step: float, step_word: str, may_be_logarithmic: bool = True) -> str:
    """A picture of curves over steps, of which there will be `last_step` if that is known; nothing without points."""
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    values = [value for points in curves.values() for _, value in points]
    low, high = min(values), max(values)
    y = _Axis(low, high, may_be_logarithmic and low > 0 and high / low > 10**DECADES)
    x = _Axis(0.0, max(last_step, *(points[-1][0] for points in curves.values()), 1.0))
    lines = "".join(
        f'<path class="c{number % COLOURS}{" dashed" if number >= COLOURS else ""}" d="{_path(points, x, y)}"/>'
        for number, points in enumerate(curves.values())
    )
    across = [(1 - y.at(tick), tick) for tick in y.ticks()]
    grid = "".join(f'<line x2="{WIDTH:g}" y1="{at * HEIGHT:.1f}" y2="{at * HEIGHT:.1f}"/>' for at, _ in across)
    down = "".join(f'<span style="top:{at:.2%}">{number_text(tick)}</span>' for at, tick in across)
    below = "".join(_label(x.at(tick), tick) for tick in x.ticks())
    readings = "".join(_readings(curves, x, step_word))
    drawing = (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" aria-label="{title}">'
        f'<g class="grid">{grid}</g>{lines}<g class="readings">{readings}</g></svg>'
    )
    return (
        f'<figure class="curves"><figcaption>{title}</figcaption><div class="plot"><div class="down">{down}</div>'
        f'<div class="field">{drawing}<div class="below">{below}</div></div></div>{_legend(curves)}</figure>'
    )


def sparkline(points: Sequence[tuple[float, float]], last_step: float) -> str:
    """A curve without axes."""
    if not points:
        return '<svg class="spark" viewBox="0 0 1000 300"></svg>'
    low, high = (extreme(value for _, value in points) for extreme in (min, max))
    y = _Axis(low, high, low > 0 and high / low > 10**DECADES)
    x = _Axis(0.0, max(last_step, points[-1][0], 1.0))
    return (
        f'<svg class="spark" viewBox="0 -20 {WIDTH:g} {HEIGHT + 40:g}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{_path(points, x, y)}"/></svg>'
    )


def _label(at: float, value: float) -> str:
    kind = "end" if at > NEAR_END else ""
    return f'<span class="{kind}" style="left:{at:.2%}">{number_text(value)}</span>'


def _path(points: Sequence[tuple[float, float]], x: _Axis, y: _Axis) -> str:
    places = [f"{x.at(step) * WIDTH:.1f} {(1 - y.at(value)) * HEIGHT:.1f}" for step, value in points]
    return f"M{places[0]}h.1" if len(places) == 1 else f"M{'L'.join(places)}"


def _readings(curves: Curves, x: _Axis, step_word: str) -> Iterator[str]:
    """Strips that cover the drawing: each says what the curves are there."""
    steps = {name: [step for step, _ in points] for name, points in curves.items()}
    ends = sorted({step for own in steps.values() for step in own})
    chosen = ends[:: max(1, len(ends) // BINS)]
    for number, step in enumerate(chosen):
        left = (chosen[number - 1] + step) / 2 if number else 0.0
        right = (step + chosen[number + 1]) / 2 if number + 1 < len(chosen) else x.high
        found = []
        for name, points in curves.items():
            if place := bisect_right(steps[name], step):
                found.append(f"{escape(visible(name))}: {number_text(points[place - 1][1])}")
        told = "\n".join([f"{step_word} {step:g}", *found])
        start, end = (x.at(edge) * WIDTH for edge in (left, right))
        strip = f'x="{start:.1f}" width="{max(0.0, end - start):.1f}" height="{HEIGHT:g}"'
        yield f"<rect {strip}><title>{told}</title></rect>"


def _legend(curves: Curves) -> str:
    entries = (
        f'<li><i class="c{number % COLOURS}{" dashed" if number >= COLOURS else ""}"></i>{safe_text(name)} '
        f"<b>{number_text(points[-1][1])}</b></li>"
        for number, (name, points) in enumerate(curves.items())
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


__all__ = ["drawn", "number_text", "sparkline"]
