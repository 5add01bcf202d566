"""Draw training.svg, the built-in model's loss and recall, from its training log training.jsonl.

python -m tools.demo.curves
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Point = tuple[float, float]  # millions of tokens, value

LOG = Path(__file__).with_name("training.jsonl")
COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#1f78b4")
WIDTH, HEIGHT, LEFT, RIGHT, GAP = 760, 250, 60, 130, 50  # pixels, of one panel


def _points(log: Sequence[Line], *keys: str) -> list[Point]:
    """A series of the log; lines that lack it are left out."""
    points = []
    for line in log:
        value: Any = line
        for key in keys:
            value = value.get(key) if value is not None else None
        if value is not None:
            points.append((line["tokens"] / 1e6, float(value)))
    return points


def _panel(top: int, title: str, series: dict[str, list[Point]], upto: Point, ticks: Iterable[float]) -> Iterable[str]:
    """One set of axes with its curves; `upto` is the upper end of both axes, the lower end is zero."""

    def x(tokens: float) -> float:
        return LEFT + tokens / upto[0] * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return top + HEIGHT * (1 - min(value, upto[1]) / upto[1])

    yield f'<text x="{LEFT}" y="{top - 12}" font-weight="bold">{title}</text>'
    for tick in ticks:
        yield f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tokens in range(0, int(upto[0]) + 1, 5):
        yield f'<text x="{x(tokens):.1f}" y="{top + HEIGHT + 18}" text-anchor="middle">{tokens}</text>'
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number]
        path = "L".join(f"{x(tokens):.1f} {y(value):.1f}" for tokens, value in points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="{WIDTH - RIGHT + 10}" y="{top + 16 + 18 * number}" fill="{colour}">{name}</text>'


def curves(log: Sequence[Line]) -> str:
    """The picture as SVG."""
    last = log[-1]
    spans = sorted({int(span) for line in log for span in line["recall"]})
    losses = {
        "training batch": _points(log, "loss"),
        "held-out answers": _points(log, "held_out_loss"),
    }
    recalls = {f"up to {span:,} tok": _points(log, "recall", str(span)) for span in spans}
    tokens = last["tokens"] / 1e6
    second = 40 + HEIGHT + GAP + 20
    height = second + HEIGHT + 50
    share = [tick / 5 for tick in range(6)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        *_panel(40, "Loss, nats per token", losses, (tokens, 1.0), share),
        *_panel(second, "Recall of held-out words, by distance (10 questions a point)", recalls, (tokens, 1.0), share),
        f'<text x="{LEFT}" y="{height - 12}">millions of tokens trained on</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def picture() -> str:
    """The picture of the log in this folder."""
    return curves([json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    LOG.with_suffix(".svg").write_text(picture(), encoding="utf-8")
