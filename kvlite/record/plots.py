"""The cache of a run, drawn: bytes as it went on, and the share of the tokens that is kept, by layer and by turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from kvlite.memory.format import human_bytes
from kvlite.record.page import ON_LIGHT, WIDTH, Curve, Mark, Plot, round_ticks, x_at, y_at
from kvlite.record.schema import KVReport, TimelinePoint

MOST_HEADS = len(ON_LIGHT)  # of a layer, of which each has a curve
_SHARES = (0.0, 1.0)
_MOST_SPANS = 60  # of which each is a value of the tokens per second


def record_plots(kv: KVReport, timeline: Sequence[TimelinePoint]) -> tuple[Plot, ...]:
    """The course of the run; where tokens were evicted and one conversation was held, what is kept of them."""
    plots = [timeline_plot(timeline, kv.budget_bytes)] if timeline else []
    plots += batch_plots([point for point in timeline if point.tokens_generated is not None])
    if kv.tokens_evicted and kv.full_cache_bytes is not None and len(kv.per_layer) > 1:
        layers = [(layer.layer, min(1.0, layer.kept / kv.tokens_seen)) for layer in kv.per_layer]
        plots.append(_shares_plot("Tokens kept by each layer", "layer", ("share kept", layers)))
        plots += _heads_plot(kv)
    if kv.tokens_evicted and len(kv.per_turn) > 1:
        turns = [(turn.turn, turn.kept) for turn in kv.per_turn]
        plots.append(_shares_plot("Kept of each turn", "turn", ("share kept", turns)))
    return tuple(plots)


def timeline_plot(points: Sequence[TimelinePoint], budget_bytes: int) -> Plot:
    """Live KV bytes against tokens seen, those of a batch against time, under the budget; dots mark events."""
    is_batch = any(point.tokens_generated is not None for point in points)
    seen = [point.tokens_seen for point in points]
    goes_back = any(after < before for before, after in pairwise(seen))
    steps = [point.t_s for point in points] if is_batch else _summed(seen)
    budgets = in_force(points, budget_bytes)[:-1]
    x_ends = (0.0, max(steps) or 1.0)
    y_ends = (0.0, max(*budgets, *(point.kv_bytes for point in points)) or 1.0)
    held = tuple(
        Mark(x_at(step, x_ends, WIDTH), y_at(point.kv_bytes, y_ends), dot=point.event is not None)
        for step, point in zip(steps, points, strict=True)
    )
    budget = [Mark(0.0, y_at(budgets[0], y_ends), dot=False)]
    for step, (before, after) in zip(steps[1:], pairwise(budgets), strict=True):
        if before != after:
            x = x_at(step, x_ends, WIDTH)
            budget += [Mark(x, y_at(before, y_ends), dot=False), Mark(x, y_at(after, y_ends), dot=False)]
    budget.append(Mark(float(WIDTH), y_at(budgets[-1], y_ends), dot=False))
    dashed = len(ON_LIGHT) + 1
    return Plot(
        title="KV cache over the run",
        x_title="seconds" if is_batch else "tokens seen" + (", with those taken back" if goes_back else ""),
        y_title="bytes held",
        x_ticks=tuple((x_at(at, x_ends, WIDTH), f"{at:,g}") for at in round_ticks(*x_ends) if at <= x_ends[1]),
        y_ticks=tuple((y_at(at, y_ends), human_bytes(int(at))) for at in round_ticks(*y_ends) if at <= y_ends[1]),
        curves=(Curve("KV cache", 0, held), Curve(f"budget {human_bytes(budget_bytes)}", dashed, tuple(budget))),
    )


def in_force(points: Sequence[TimelinePoint], budget_bytes: int) -> list[int]:
    """The budget at each of the points and at the end, when it was `budget_bytes`."""
    return [*(budget_bytes if point.budget_bytes is None else point.budget_bytes for point in points), budget_bytes]


def _summed(seen: Sequence[int]) -> list[float]:
    """The tokens seen by each point, where those that were taken back count, too."""
    return [*accumulate((max(0, after - before) for before, after in pairwise((0, *seen))), initial=0.0)][1:]


def batch_plots(points: Sequence[TimelinePoint]) -> list[Plot]:
    """Tokens per second and rows in use over the time of a batch; nothing where it was looked at once only."""
    step = max(1, len(points) // _MOST_SPANS)
    spans = [*pairwise([*points[:-1:step], *points[-1:]])]
    rates = [
        (late.t_s, ((late.tokens_generated or 0) - (early.tokens_generated or 0)) / (late.t_s - early.t_s))
        for early, late in spans
        if late.t_s > early.t_s
    ]
    if not rates:
        return []
    used, there = (
        [(point.t_s, float(rows or 0)) for point, rows in of]
        for of in ([(point, point.rows_used) for point in points], [(point, point.rows) for point in points])
    )
    return [
        _over_time("Tokens per second", "tok/s", (("tokens per second", 3, rates),)),
        _over_time("Rows in use", "rows", (("rows in use", 4, used), ("rows there are", len(ON_LIGHT) + 5, there))),
    ]


def _over_time(title: str, y_title: str, curves: Sequence[tuple[str, int, Sequence[tuple[float, float]]]]) -> Plot:
    """Values by the seconds of the run, from zero; each curve with its name and its number."""
    x_ends = (0.0, max(at for _, _, values in curves for at, _ in values) or 1.0)
    y_ends = (0.0, max(value for _, _, values in curves for _, value in values) or 1.0)
    return Plot(
        title=title,
        x_title="seconds",
        y_title=y_title,
        x_ticks=tuple((x_at(at, x_ends, WIDTH), f"{at:,g}") for at in round_ticks(*x_ends) if at <= x_ends[1]),
        y_ticks=tuple((y_at(at, y_ends), f"{at:,g}") for at in round_ticks(*y_ends) if at <= y_ends[1]),
        curves=tuple(
            Curve(
                name, number, tuple(Mark(x_at(at, x_ends, WIDTH), y_at(value, y_ends), dot=False) for at, value in of)
            )
            for name, number, of in curves
        ),
    )


def _heads_plot(kv: KVReport) -> list[Plot]:
    """The share that each KV head of a layer keeps, where there are few of them, else the least and the most."""
    layers = [
        (layer.layer, sorted(layer.heads) if len(layer.heads) > MOST_HEADS else layer.heads) for layer in kv.per_layer
    ]
    counts = {len(heads) for _, heads in layers}
    if len(counts) != 1 or counts <= {0, 1}:
        return []
    number = counts.pop()
    shown = {f"KV head {at}": at for at in range(number)}
    if number > MOST_HEADS:
        shown = {"KV head that keeps least": 0, "KV head that keeps most": -1}
    curves = [
        (name, [(layer, min(1.0, heads[at] / kv.tokens_seen)) for layer, heads in layers]) for name, at in shown.items()
    ]
    return [_shares_plot("Tokens kept by each KV head", "layer", *curves)]


def _shares_plot(title: str, x_title: str, *curves: tuple[str, Sequence[tuple[int, float]]]) -> Plot:
    """Shares of the tokens, each curve with its name, for each of the numbers, which follow each other."""
    (_, first), *_ = curves
    ends = (first[0][0], first[-1][0])
    ticks = [at for at in round_ticks(*ends) if at == int(at) and ends[0] <= at <= ends[1]]
    is_alone = len(curves) == 1
    return Plot(
        title=title,
        x_title=x_title,
        y_title="tokens kept",
        x_ticks=tuple((x_at(at, ends, WIDTH), f"{at:g}") for at in ticks),
        y_ticks=tuple((y_at(at, _SHARES), f"{at:.0%}") for at in (0.0, 0.25, 0.5, 0.75, 1.0)),
        curves=tuple(
            Curve(
                name,
                2 if is_alone else 2 * len(ON_LIGHT) + at,
                tuple(Mark(x_at(number, ends, WIDTH), y_at(share, _SHARES)) for number, share in shares),
            )
            for at, (name, shares) in enumerate(curves)
        ),
    )
