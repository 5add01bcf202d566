"""The number of slots that a KV budget buys, to the byte. Pure arithmetic: the cache allocates what is planned here.

Per attention layer the cache holds rows * KV heads * (slots + 1) slots; the one more per head takes what is discarded
("staging"). A slot is its key and value, what the policy keeps of it and 8 bytes of positions. Layers with constant
state add it per row. Nothing else counts against the budget.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from kvlite.errors import BudgetTooSmall, DoesNotFit, UsageError
from kvlite.memory.allotment import HeadShares, LayerRule, Weights, allotted, equally, fewest, weights_of
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import SlotFormat, human_bytes, short_size
from kvlite.memory.shape import LayerShape, ModelShape

POSITION_BYTES = 8  # pos and rot, int32 each
MOST_CHUNK = 512
AT_ONCE = 0.25
"""Tokens of a prompt that come at once, per slot: few, so that a prompt sees little more than the slots hold."""
FREE = 8
"""The model's window divided by this stays free where keys are re-rotated to stay inside it."""
AUTO_SHARE = Fraction(9, 10)  # `auto` leaves a tenth of the free memory for activations and scratch

_UNBOUNDED = 2**31 - 1  # positions are int32


def chunk_tokens(slots: int, limit: int = MOST_CHUNK, at_once: float = AT_ONCE) -> int:
    """Tokens T prefilled at once with S slots: so many `at_once` per slot."""
    return min(limit, MOST_CHUNK, max(1, int(slots * at_once)))


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The properties of a cache, whatever its size.

    `state_bytes_per_slot` is what the policy keeps about a slot, `protected_slots` are never evicted, `evicts` says
    whether a full cache makes room, `chunk_limit` is the most prompt tokens fed at once, and `at_once` how many per
    slot. `layer_rule` shares the slots out between the layers that see everything and `head_shares` between their KV
    heads (None: equally); `lowerable` are the settings that protect more than their defaults.
    """

    slot_format: SlotFormat
    state_bytes_per_slot: int
    protected_slots: int
    evicts: bool = True
    chunk_limit: int = MOST_CHUNK
    layer_rule: LayerRule = equally
    lowerable: str = ""
    head_shares: HeadShares | None = None
    at_once: float = AT_ONCE

    def key_value_bytes(self, layer: LayerShape) -> int:
        return self.slot_format.bytes_per_slot(layer.k_dim, layer.v_dim)

    def slot_bytes(self, layer: LayerShape) -> int:
        """All of one slot: key, value, policy state, positions."""
        return self.key_value_bytes(layer) + self.state_bytes_per_slot + POSITION_BYTES

    def least_slots(self, shape: ModelShape) -> int:
        """The smallest S with which every full layer holds what is protected."""
        return slots_with(shape.layers, max(1, self.protected_slots), self.most_slots(shape), self.layer_rule)

    def chunk(self, shape: ModelShape, slots: int) -> int:
        """Tokens T prefilled at once with S slots: no more than an eighth of the window, unless a quarter of S is."""
        free = MOST_CHUNK if shape.max_positions is None else shape.max_positions // FREE
        quarter = chunk_tokens(slots, self.chunk_limit)
        return max(quarter, min(free, chunk_tokens(slots, self.chunk_limit, self.at_once)))

    def most_slots(self, shape: ModelShape) -> int:
        """The largest S the model allows: its window, less what stays free where keys are re-rotated to stay inside it.

        Each re-rotation rounds the keys once more. An eighth of the window, and at least a chunk, makes them rare.
        """
        window = shape.max_positions
        if window is None:
            windows = [layer.window or _UNBOUNDED for layer in shape.layers if layer.kv_heads]
            return max(windows, default=_UNBOUNDED)
        if shape.positions == "rotary" and self.evicts:
            eighth = window // FREE
            return largest(lambda slots: slots + max(eighth, chunk_tokens(slots, self.chunk_limit)) <= window, window)
        return window


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The cache a budget buys: `slots` (S) per KV head of a full layer, for `rows` rows, prefilled `chunk` (T) at once.

    `head_slots[i]` are those of each KV head of layer i, at most its window where it slides. Where the heads of full
    layers differ, `slots` is their average, each rounded up; where the policy tells layers apart, `fewest` is the least
    average of a layer, else `slots`. `capped_by` says what stopped S below what the bytes would buy: "window", or None.
    `most_slots` is what the model's window allows whatever the bytes. A row that will not evict is prefilled
    `most_chunk` at once. `row_budget_bytes` is what one row must stay within; everything else is bytes over all rows.
    A row that has a cache to itself has these slots `until` so many tokens, and `then` others of no more bytes.
    """

    slots: int
    fewest: int
    most_slots: int
    rows: int
    chunk: int
    head_slots: tuple[tuple[int, ...], ...]
    k_v_bytes: int
    policy_state_bytes: int
    position_bytes: int
    staging_bytes: int
    state_bytes: int
    budget_bytes: int = 0
    row_budget_bytes: int = 0
    capped_by: str | None = None
    most_chunk: int = MOST_CHUNK
    until: int | None = None
    then: CachePlan | None = None

    @property
    def reserved_bytes(self) -> int:
        """All that the cache allocates."""
        slots = self.k_v_bytes + self.policy_state_bytes + self.position_bytes
        return slots + self.staging_bytes + self.state_bytes


def plan_cache(
    shape: ModelShape,
    budget: Budget,
    spec: CacheSpec,
    *,
    rows: int = 1,
    free_bytes: int | None,
    most: int | None = None,
) -> CachePlan:
    """The largest cache of `rows` equal rows inside `budget`, of which no head has more than `most` slots by need.

    `free_bytes` is what the device has left for the cache, None when that is not to be checked; every full layer has at
    least `spec.protected_slots`, and 1. Raises DoesNotFit when the budget is more than is free,
    BudgetTooSmall when it holds fewer slots, UsageError when a share of unknown memory is asked for.
    """
    cap = spec.most_slots(shape)
    with_slots = partial(_with_slots, shape, spec, rows, cap, None)
    protected = max(1, spec.protected_slots)
    if cap < protected:
        raise BudgetTooSmall(
            f"the model's window has room for {cap} tokens, but {protected} are protected; "
            + (f"lower {spec.lowerable}" if spec.lowerable else "give --kv-policy full or another policy")
        )
    slots, budget_bytes = _grant(budget, with_slots, cap, free_bytes)
    if spec.head_shares is not None:
        weights = weights_of(shape.layers, spec.head_shares(max(1, slots)))
        with_slots = partial(_with_slots, shape, spec, rows, cap, weights, most=most)
        slots, budget_bytes = _grant(budget, with_slots, cap, free_bytes)
    found = with_slots(slots)
    if found.fewest < protected:
        smallest = with_slots(spec.least_slots(shape)).reserved_bytes
        where = f" in each of {rows} rows" if rows > 1 else ""
        where += " in the smallest layer" if found.fewest < slots else ""
        raise BudgetTooSmall(
            f"KV budget {budget} holds {found.fewest} tokens{where}, but {protected} are protected; "
            f"the smallest that works is {short_size(smallest, up=True)} ({smallest:,} bytes)"
            + (f"; or lower {spec.lowerable}" if spec.lowerable else "")
        )
    capped_by = "window" if slots == cap != _UNBOUNDED and budget.kind is not BudgetKind.FULL else None
    return replace(found, budget_bytes=budget_bytes, row_budget_bytes=budget_bytes // rows, capped_by=capped_by)


def plan_row(shape: ModelShape, budget: Budget, spec: CacheSpec, *, free_bytes: int | None) -> CachePlan:
    """The largest cache of one row inside `budget`, which is shared out anew as the row grows. Raises as `plan_cache`.

    As long as equal slots hold all of it, nothing has to go. Then heads have slots by need, and none has more than the
    tokens there can be by the time the row is twice as long, so that no slot is there in vain.
    """
    equal = plan_cache(shape, budget, replace(spec, head_shares=None), free_bytes=free_bytes)
    if spec.head_shares is None:
        return equal
    slots, cap = equal.slots, equal.most_slots
    weights = weights_of(shape.layers, spec.head_shares(max(1, slots)))
    found = [replace(equal, until=equal.fewest)]
    while (until := found[-1].until) is not None:
        most = min(cap, 2 * until)
        with_slots = partial(_with_slots, shape, spec, 1, cap, weights, most=most)
        plan = with_slots(_most(with_slots, equal.reserved_bytes, slots))
        is_last = max(map(max, filter(None, plan.head_slots)), default=0) < most or most == cap
        plan = replace(plan, budget_bytes=equal.budget_bytes, row_budget_bytes=equal.row_budget_bytes)
        found.append(replace(plan, capped_by=equal.capped_by, until=None if is_last else most))
    *earlier, then = found
    for plan in reversed(earlier):
        then = then if then.head_slots == plan.head_slots else replace(plan, then=then)
    return then


def stages(plan: CachePlan) -> tuple[CachePlan, ...]:
    """The plans that a row's slots follow as it grows, `plan` the first."""
    return (plan,) if plan.then is None else (plan, *stages(plan.then))


def plan_for(tokens: int, plans: Sequence[CachePlan]) -> CachePlan:
    """The one of `stages` for a row of so many tokens."""
    return next(plan for plan in plans if plan.until is None or tokens <= plan.until)


def _grant(budget: Budget, with_slots: Callable[[int], CachePlan], cap: int, free_bytes: int | None) -> tuple[int, int]:
    """Slots and the bytes they must stay within; with `tokens` and `full` these bytes follow from the slots."""
    if budget.kind in (BudgetKind.AUTO, BudgetKind.SHARE):
        if free_bytes is None:
            raise UsageError(f"KV budget {budget} is measured against free memory, unknown here; give a size")
        allowed = int(free_bytes * (AUTO_SHARE if budget.kind is BudgetKind.AUTO else Fraction(budget.amount)))
        slots = _most(with_slots, allowed, cap)
        is_whole_window = budget.kind is BudgetKind.AUTO and slots == cap
        return slots, with_slots(slots).reserved_bytes if is_whole_window else allowed
    if budget.kind is BudgetKind.FULL and cap == _UNBOUNDED:
        raise UsageError("KV budget full needs the model's window, and config.json names none; give a size")
    if budget.kind is BudgetKind.BYTES:
        wanted = int(budget.amount)
        slots = _most(with_slots, wanted, cap)
    else:
        slots = cap if budget.kind is BudgetKind.FULL else min(cap, int(budget.amount))
        wanted = with_slots(slots).reserved_bytes
    if free_bytes is not None and wanted > free_bytes:
        raise DoesNotFit(
            f"KV budget {budget} takes {human_bytes(wanted)}, {human_bytes(free_bytes)} are free; "
            f"what fits is {_most(with_slots, free_bytes, cap)}tok or {short_size(free_bytes, up=False)}"
        )
    return slots, wanted


def slots_with(layers: Sequence[LayerShape], wanted: int, most: int, rule: LayerRule) -> int:
    """The smallest S, the average of the full layers, with which each of them has `wanted` slots."""
    return largest(lambda slots: fewest(layers, slots, most, rule) < wanted, most) + 1


def _with_slots(
    shape: ModelShape,
    spec: CacheSpec,
    rows: int,
    cap: int,
    weights: Weights | None,
    slots: int,
    *,
    most: int | None = None,
) -> CachePlan:
    """The cache of so many slots, of which no head has more than `cap`, or `most`, before a budget is named."""
    layers = shape.layers
    head_slots = allotted(layers, slots, cap, spec.layer_rule, weights, max(1, spec.protected_slots), most)
    smallest = fewest(layers, slots, cap, spec.layer_rule)
    held = [sum(heads) * rows for heads in head_slots]
    return CachePlan(
        slots=slots,
        fewest=smallest,
        most_slots=cap,
        rows=rows,
        chunk=spec.chunk(shape, smallest),
        most_chunk=min(spec.chunk_limit, MOST_CHUNK),
        head_slots=head_slots,
        k_v_bytes=sum(count * spec.key_value_bytes(layer) for count, layer in zip(held, layers, strict=True)),
        policy_state_bytes=sum(held) * spec.state_bytes_per_slot,
        position_bytes=sum(held) * POSITION_BYTES,
        staging_bytes=rows * sum(layer.kv_heads * spec.slot_bytes(layer) for layer in layers),
        state_bytes=rows * sum(layer.state_bytes for layer in layers),
    )


def _most(with_slots: Callable[[int], CachePlan], allowed: int, cap: int) -> int:
    """The most slots whose bytes are within `allowed`; 0 when not even one is."""
    return largest(lambda slots: with_slots(slots).reserved_bytes <= allowed, cap)


def largest(holds: Callable[[int], bool], upper: int) -> int:
    """The largest count from 0 to `upper` for which `holds`, given that it holds up to there and not above."""
    return bisect(range(1, upper + 1), False, key=lambda count: not holds(count))
