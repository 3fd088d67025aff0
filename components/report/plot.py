"""Curves as SVG, which follows the page's colours in light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 250, 52, 40, 14
POINTS = 300  # of a curve that are drawn

Curve = Sequence[tuple[float, float]]


def plot(title: str, curves: Mapping[str, Curve], across: str = "steps") -> str:
    """A chart of ``curves`` (name -> (x, y) points), with a legend; "" if none has a finite point."""
    shown = {name: _thinned([p for p in curve if all(map(math.isfinite, p))]) for name, curve in curves.items()}
    shown = {name: curve for name, curve in shown.items() if curve}
    if not shown:
        return ""
    x_low, x_high = _range([x for curve in shown.values() for x, _ in curve])
    y_low, y_high = _range([y for curve in shown.values() for _, y in curve])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - 10) * (x - x_low) / (x_high - x_low),
            TOP + (HEIGHT - TOP - BOTTOM) * (y_high - y) / (y_high - y_low),
        )

    parts = []
    for value in _ticks(y_low, y_high):
        _, at = place(x_low, value)
        parts.append(f'<line class=axis x1={LEFT} x2={WIDTH - 10} y1="{at:.1f}" y2="{at:.1f}" />')
        parts.append(f'<text x={LEFT - 6} y="{at + 4:.1f}" text-anchor=end>{value:.3g}</text>')
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        at, _ = place(value, y_low)
        parts.append(f'<text x="{at:.1f}" y={HEIGHT - BOTTOM + 16} text-anchor={anchor}>{value:,.0f}</text>')
    parts.append(f"<text x={WIDTH // 2} y={HEIGHT - BOTTOM + 16} text-anchor=middle>{html.escape(across)}</text>")
    for number, curve in enumerate(shown.values()):
        points = [place(x, y) for x, y in curve]
        colour, dashes = f"var(--s{number % 4})", ' stroke-dasharray="5 4"' if number % 8 > 3 else ""
        if len(points) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill=none stroke="{colour}" stroke-width=2{dashes} />')
        if len(points) < 15:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r=3 fill="{colour}" />' for x, y in points]
    legend = "".join(
        f'<span style="white-space:nowrap;margin-right:1rem"><span style="color:var(--s{number % 4})">'
        f"{'╌' if number % 8 > 3 else '●'}</span> {html.escape(name)} {curve[-1][1]:.4g}</span> "
        for number, (name, curve) in enumerate(shown.items())
    )
    words = html.escape(title)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width={WIDTH} height={HEIGHT} role=img aria-label="{words}">'
        f"{''.join(parts)}</svg><figcaption><b>{words}</b><br>{legend}</figcaption></figure>"
    )


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(curve) / POINTS))
    return [*curve[:-1:step], curve[-1]] if curve else []


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high > low:
        return low, high
    around = abs(low) * 0.05 or 1.0
    return low - around, high + around


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from ``low`` to ``high``."""
    rough = (high - low) / 4
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
