"""A profile drawn in text: a column per layer, a row per KV head, a block as high as the head's need."""

from __future__ import annotations

from collections.abc import Iterator

from kvlite.profiles.profile import Needs

_BLOCKS = "▁▂▃▄▅▆▇█"


def picture(needs: Needs, width: int | None = None) -> Iterator[str]:
    """Lines of at most `width` columns; layers without a need, which slide or hold state, are dots."""
    rows = max(map(len, needs), default=0)
    margin = len(f"head {rows - 1}  ")
    columns = len(needs) if width is None else max(1, width - margin)
    for start in range(0, len(needs), columns):
        part = needs[start : start + columns]
        if start:
            yield ""
        yield " " * margin + _ruler(start, len(part))
        for head in range(rows):
            yield f"head {head}".ljust(margin) + "".join(_cell(layer, head) for layer in part)


def _cell(layer: tuple[float, ...], head: int) -> str:
    if not layer:
        return "·"
    return _BLOCKS[min(7, int(layer[head] * 8))] if head < len(layer) else " "


def _ruler(start: int, count: int) -> str:
    """The number of every tenth layer, above its column; the first layer says what is counted."""
    marks = [" "] * (count + 12)
    for layer in range(start, start + count):
        if layer % 10 == 0:
            text = f"layer {layer}" if layer == start else str(layer)
            marks[layer - start : layer - start + len(text)] = text
    return "".join(marks).rstrip()
