"""The trial of a Backend: attention, its statistic, coding and eviction.

Memory behind the slots and what nobody wrote is NaN; free slots hold large numbers, since 0 times NaN is no 0 in torch
either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvlite_kernels import lowbit
from kvlite_kernels.backend import TORCH, Backend, LayerSizes
from kvlite_kernels.echo import heard
from kvlite_kernels.eviction import Protection
from kvlite_kernels.kinds import Noise, Statistic
from kvlite_kernels.lowbit import Packed, hadamard
from kvlite_kernels.reference import Geometry, Segment, attend_segments
from kvlite_kernels.slots import Slots, Vectors
from kvlite_kernels.statistic import Observation
from kvlite_kernels.trial.judge import Fault, gain, poisoned, require_close, require_equal, require_repeatable
from kvlite_kernels.trial.task import SlotsPart, Task

BackendOf = Callable[[Sequence[LayerSizes], int, Sequence[torch.dtype], torch.device], Backend]

ROWS, CHUNK = 2, 40
MOST_GROUP = 32
LARGE = 64.0
BEHIND = 3
FEW_FLIPS = 0.01
"""Share of keys that may lie on the other side of BELOW's threshold."""


def try_slots(
    task: Task, part: SlotsPart, backend_of: BackendOf, tell: Callable[[str], None], clock: Callable[[], float]
) -> float:
    """The speed of decoding over that of torch. Raises Fault where any kernel is wrong; each is told before."""
    gains = []
    for layer in task.layers():
        with poisoned():
            backend = backend_of([layer], ROWS, [task.number], task.place)
            problem = Problem.made(task, part, layer)
            for geometry in _geometries(layer, task):
                _try_attention(problem, backend, geometry, tell)
            _try_hearing(problem, backend, tell)
            if part.k_bits:
                tell(f"coding, {layer.k_dim} channels")
                _try_coding(task, part, backend, layer)
            for name, protection in _protections(task).items():
                tell(f"eviction, {name}")
                _try_eviction(task, part, backend, layer, protection)
        tell(f"speed, {layer.k_dim} channels")
        gains.append(_gain(task, part, backend, layer, clock))
    return min(gains)


@dataclass(frozen=True, slots=True)
class Problem:
    """Queries of a chunk over slots, some of them free, and the chunk's own keys; `poisoned` are the same slots."""

    task: Task
    part: SlotsPart
    q: Tensor
    q_pos: Tensor
    held: Segment
    poisoned: Segment
    new: Segment

    @classmethod
    def made(cls, task: Task, part: SlotsPart, layer: LayerSizes) -> Problem:
        """A problem of these sizes, the same each time."""
        generator, keys = torch.Generator().manual_seed(layer.k_dim), layer.keys

        def normal(heads: int, count: int, dim: int) -> Tensor:
            return torch.randn(ROWS, heads, count, dim, generator=generator).to(task.place, task.number)

        places = torch.rand(ROWS, layer.kv_heads, keys, generator=generator).argsort(-1).int()
        for row in range(ROWS):
            places[row, :, keys - (1 + row) * keys // 8 :] = -1
        pos = places.to(task.place)
        k, v = _stored(part, normal(layer.kv_heads, keys, layer.k_dim), normal(layer.kv_heads, keys, layer.v_dim))
        free, bias = pos < 0, None
        if part.has_bias:
            bias = torch.rand(pos.shape, generator=generator).to(task.place, torch.float16)
        q_pos = torch.arange(keys, keys + CHUNK, dtype=torch.int32, device=task.place).expand(ROWS, -1).contiguous()
        chunk = (normal(layer.kv_heads, CHUNK, layer.k_dim), normal(layer.kv_heads, CHUNK, layer.v_dim))
        return cls(
            task,
            part,
            2 * normal(layer.query_heads, CHUNK, layer.k_dim),
            q_pos,
            Segment(_filled(k, free, 0.0), _filled(v, free, 0.0), pos, bias=bias),
            Segment(
                _before_nan(_filled(k, free, LARGE)),
                _before_nan(_filled(v, free, LARGE)),
                _before_nan(pos),
                bias=None if bias is None else _before_nan(bias.masked_fill(free, LARGE)),
            ),
            Segment(*_stored(part, *chunk), pos=q_pos[:, None]),
        )

    def observation(self, queries: int) -> Observation | None:
        """The statistic of that many queries, which weigh differently; None where it is no matter of attention."""
        return None if self.part.is_heard else self._observed(queries)

    def heard(self) -> Observation | None:
        """The statistic of queries that come once more; None where none do."""
        return self._observed(CHUNK) if self.part.is_heard else None

    def _observed(self, queries: int) -> Observation | None:
        if self.part.statistic is None:
            return None
        weight = torch.linspace(0.5, 1.0, queries, device=self.q.device).expand(ROWS, -1).contiguous()
        noise = Noise(7, 1.0, 2.0, 50, layer=3) if self.part.statistic is Statistic.GUMBEL else None
        return Observation(self.part.statistic, weight, None, self.part.heads, noise)


def _try_attention(problem: Problem, backend: Backend, geometry: Geometry, tell: Callable[[str], None]) -> None:
    """One query, a chunk whose keys are in the slots, and one whose keys are not."""
    what = "plain" if geometry.softcap is None else "window, soft cap and sink"
    for name, queries, beside in (
        ("attention of one query", 1, False),
        ("attention of a chunk", CHUNK, False),
        ("attention of a chunk beside slots", CHUNK, True),
    ):
        tell(f"{name}, {what}, {problem.q.shape[-1]} channels")
        q, q_pos = problem.q[:, :, -queries:], problem.q_pos[:, -queries:]
        observation = problem.observation(queries)
        news = [problem.new] * beside

        def run(
            backend: Backend,
            held: Segment,
            q: Tensor = q,
            q_pos: Tensor = q_pos,
            observation: Observation | None = observation,
            news: list[Segment] = news,
        ) -> list[Tensor]:
            if observation is not None:
                held = replace(held, statistic=_before_nan(torch.zeros(*held.k.shape[:3], device=q.device)))
            out, received = backend.attend(q, q_pos, [held, *news], geometry, observation)
            return [out, *(x for x in (held.statistic, received) if x is not None)]

        got, twin = run(backend, problem.poisoned), run(TORCH, problem.held)
        exact = _exact(q, q_pos, [problem.held, *news], geometry, observation)
        if len(got) != len(twin):
            raise Fault(f"{name}, {what}: a statistic is missing")
        for label, ours, theirs, wanted in zip(("", " (statistic)", " (statistic)"), got, twin, exact, strict=False):
            if label and problem.part.statistic is Statistic.BELOW:
                _require_few_flips(f"{name}, {what}{label}", ours, wanted)
            else:
                require_close(f"{name}, {what}{label}", ours, theirs, wanted, problem.task.number)
        again = partial(run, backend, problem.poisoned)
        require_repeatable(f"{name}, {what}", again, problem.task.repeats)


def _try_hearing(problem: Problem, backend: Backend, tell: Callable[[str], None]) -> None:
    """The mass that keys receive from queries that come once more, of slots and of a chunk beside them."""
    observation, q, after = problem.heard(), problem.q, problem.q_pos + CHUNK
    if observation is None:
        return
    geometry = Geometry(q.shape[-1] ** -0.5)
    tell(f"hearing, {q.shape[-1]} channels")
    for news in ([], [problem.new]):
        got, twin = (
            one.heard(q, after, [held, *news], geometry, observation)
            for one, held in ((backend, problem.poisoned), (TORCH, problem.held))
        )
        wide = [_widened(one) for one in (problem.held, *news)]
        query = hadamard(q.double()) if problem.part.k_bits else q.double()
        exact = heard(query, after, wide, geometry, observation)
        require_close("hearing", got, twin, exact, problem.task.number)


def _widened(segment: Segment) -> Segment:
    return replace(segment, k=segment.k.to(torch.float64), v=segment.v.to(torch.float64))


def _exact(
    q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None
) -> list[Tensor]:
    """The output and the statistics in float64, from what the slots hold."""
    is_coded = isinstance(segments[0].k, Packed)
    wide = [_widened(one) for one in segments]
    query = hadamard(q.double()) if is_coded else q.double()
    out, received = attend_segments(query, q_pos, wide, geometry, observation)
    return [hadamard(out) if is_coded else out, *received]


def _require_few_flips(name: str, got: Tensor, exact: Tensor) -> None:
    share = float(((got - exact).abs() > 1e-3).double().mean())
    if not share <= FEW_FLIPS:
        raise Fault(f"{name}: {share:.1%} of the keys have another number")


def _try_coding(task: Task, part: SlotsPart, backend: Backend, layer: LayerSizes) -> None:
    generator = torch.Generator().manual_seed(1)
    for dim, bits in {(layer.k_dim, part.k_bits), (layer.v_dim, part.v_bits)}:
        x = torch.randn(ROWS, layer.kv_heads, CHUNK, dim, generator=generator).to(task.place)
        ours, wanted = backend.quantise(x, bits, _group(dim)), lowbit.quantise(x, bits, _group(dim))
        require_equal("codes", ours.codes, wanted.codes)
        require_equal("scales", ours.scale, wanted.scale)


def _try_eviction(task: Task, part: SlotsPart, backend: Backend, layer: LayerSizes, protection: Protection) -> None:
    """The victims of the rule in torch, to the bit, in two layers at once; equal scores among them."""
    slots, score = _waiting(task, part, layer)
    next_pos = slots.pos[0, :, :1, -1:] + 1  # [n, 1, 1]
    wanted = _copied(slots)
    TORCH.evict(wanted, score, next_pos, protection)
    for _ in range(3):
        found = _copied(slots)
        backend.evict(found, score, next_pos, protection)
        for (name, ours), (_, theirs) in zip(found.tensors(), wanted.tensors(), strict=True):
            kept = slice(slots.num_slots)
            require_equal(f"eviction ({name})", ours[:, :, :, kept], theirs[:, :, :, kept])


def _waiting(task: Task, part: SlotsPart, layer: LayerSizes) -> tuple[Slots, Tensor]:
    """Full slots of two layers in which tokens wait, and scores of few different numbers."""
    generator, heads = torch.Generator().manual_seed(2), (2, ROWS, layer.kv_heads)
    pos = torch.rand(*heads, layer.keys, generator=generator).argsort(-1).int()
    newest = layer.keys + 9
    pos[..., -1] = newest
    k, v = (
        torch.randn(*heads, layer.keys, dim, generator=generator).to(task.place, task.number)
        for dim in (layer.k_dim, layer.v_dim)
    )
    statistic = torch.rand(*heads, layer.keys, generator=generator).to(task.place)
    score = (5 * torch.rand(*heads, layer.keys, generator=generator)).int().float().to(task.place)
    starts = torch.arange(0, pos.numel(), layer.keys).view(*heads, 1).to(task.place)
    pos = pos.to(task.place)
    known = None if part.statistic is None else statistic
    keys, values = _stored(part, k, v)
    bias = score.to(torch.float16) if part.has_bias else None
    if bias is not None:
        bias[..., -1] = 0.0
    return Slots(keys, values, pos, pos + 7, known, starts, bias), score


def _gain(task: Task, part: SlotsPart, backend: Backend, layer: LayerSizes, clock: Callable[[], float]) -> float:
    """The speed of a decode step on full slots, attention of one row and eviction, over that of torch."""
    problem, (slots, score) = Problem.made(task, part, layer), _waiting(task, part, layer)
    q, q_pos, next_pos = problem.q[:, :, -1:], problem.q_pos[:, -1:], slots.pos[0, :, :1, -1:] + 1
    layer_slots = slots[0]
    held = Segment(layer_slots.k, layer_slots.v, layer_slots.pos.clamp(min=0), layer_slots.statistic, before=layer.keys)
    observation, geometry = problem.observation(1), Geometry(layer.k_dim**-0.5)
    protection = _protections(task)["sinks and recent"]

    def step(backend: Backend) -> None:
        backend.attend(q, q_pos, [held], geometry, observation)
        backend.evict(slots, score, next_pos, protection)

    return gain(lambda: step(TORCH), lambda: step(backend), task.place, task.captures, clock)


def _geometries(layer: LayerSizes, task: Task) -> list[Geometry]:
    sink = torch.linspace(-2, 3, layer.query_heads).to(task.place, task.number)
    return [Geometry(layer.k_dim**-0.5), Geometry(layer.k_dim**-0.5, layer.keys // 2, 3.0, sink)]


def _protections(task: Task) -> dict[str, Protection]:
    pins = torch.tensor([[[3, 30], [0, 0]], [[0, 33], [35, 60]]], dtype=torch.int32, device=task.place)
    recent = max(1, task.keys // 8)
    return {
        "sinks and recent": Protection(recent, 4),
        "pins": Protection(recent, 0, pins=pins),
        "more pins than are kept": Protection(recent, 2, pins=pins, most_pinned=task.keys // 4),
        "window": Protection(recent, 4, window=task.keys // 2),
    }


def _stored(part: SlotsPart, k: Tensor, v: Tensor) -> tuple[Vectors, Vectors]:
    """Keys and values as slots hold them."""
    if not part.k_bits:
        return k, v
    both = ((k, part.k_bits), (v, part.v_bits))
    keys, values = (lowbit.quantise(hadamard(x), bits, _group(x.shape[-1])) for x, bits in both)
    return keys, values


def _group(dim: int) -> int:
    return min(MOST_GROUP, dim & -dim)


def _filled(vectors: Vectors, where: Tensor, value: float) -> Vectors:
    """A copy with `value`, of codes in their scales, wherever nothing is held."""
    if isinstance(vectors, Packed):
        return Packed(vectors.codes, vectors.scale.masked_fill(where[..., None], value), vectors.dim)
    return vectors.masked_fill(where[..., None], value)


def _before_nan(vectors: Any) -> Any:
    """A copy [B, H, N, ...] as a view of memory that goes on behind N with what nobody may read."""
    if isinstance(vectors, Packed):
        return Packed(_before_nan(vectors.codes), _before_nan(vectors.scale), vectors.dim)
    rows, heads, count, *tail = vectors.shape
    whole = torch.empty(rows, heads, count + BEHIND, *tail, dtype=vectors.dtype, device=vectors.device)
    view = whole[:, :, :count]
    view.copy_(vectors)
    return view


def _copied(slots: Slots) -> Slots:
    def copied(x: Vectors) -> Vectors:
        return Packed(x.codes.clone(), x.scale.clone(), x.dim) if isinstance(x, Packed) else x.clone()

    statistic, bias = (None if x is None else x.clone() for x in (slots.statistic, slots.bias))
    return Slots(copied(slots.k), copied(slots.v), slots.pos.clone(), slots.rot.clone(), statistic, slots.starts, bias)
