"""The trial of a Backend: attention, its statistic, coding and eviction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvlite_kernels import lowbit
from kvlite_kernels.backend import TORCH, Backend, LayerSizes
from kvlite_kernels.echo import heard
from kvlite_kernels.eviction import Protection
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.lowbit import Packed, hadamard
from kvlite_kernels.reference import Geometry, Segment, attend_segments
from kvlite_kernels.slots import Slots, Vectors
from kvlite_kernels.statistic import Observation
from kvlite_kernels.trial.judge import Fault, gain, poisoned, require_close, require_equal, require_repeatable
from kvlite_kernels.trial.problem import CHUNK, ROWS, Problem, before_nan, group_of, stored
from kvlite_kernels.trial.task import SlotsPart, Task

BackendOf = Callable[[Sequence[LayerSizes], int, Sequence[torch.dtype], torch.device], Backend]

PLAIN = "plain"
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
                _try_hearing(problem, backend, geometry, tell)
            if part.k_bits:
                tell(f"coding, {layer.k_dim} channels")
                _try_coding(task, part, backend, layer)
            for name, protection in _protections(task).items():
                tell(f"eviction, {name}")
                _try_eviction(task, part, backend, layer, protection)
        tell(f"speed, {layer.k_dim} channels")
        gains.append(_gain(task, part, backend, layer, clock))
    return min(gains)


def _try_attention(problem: Problem, backend: Backend, geometry: Geometry, tell: Callable[[str], None]) -> None:
    """One query, a chunk whose keys are in the slots, and one whose keys are not."""
    what = _words(geometry)
    poisoned = problem.poisoned[what != PLAIN]
    for name, queries, beside in (
        ("attention of one query", 1, False),
        ("attention of a chunk", CHUNK, False),
        ("attention of a chunk beside slots", CHUNK, True),
    ):
        tell(f"{name}, {what}, {problem.q.shape[-1]} channels")
        q, q_pos = problem.q[:, :, -queries:], problem.q_pos[:, -queries:]
        observation = problem.observation(queries, forgets=what != PLAIN)
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
                held = replace(held, statistic=before_nan(problem.known))
            out, received = backend.attend(q, q_pos, [held, *news], geometry, observation)
            return [out, *(x for x in (held.statistic, received) if x is not None)]

        got, twin = run(backend, poisoned), run(TORCH, problem.held)
        exact = _exact(q, q_pos, [problem.held, *news], geometry, observation)
        if observation is not None:
            known = problem.known.double()
            observation.add_to(known, exact[1])
            exact[1] = known
        if len(got) != len(twin):
            raise Fault(f"{name}, {what}: a statistic is missing")
        for label, ours, theirs, wanted in zip(("", " (statistic)", " (statistic)"), got, twin, exact, strict=False):
            if label and problem.part.statistic is Statistic.BELOW:
                _require_few_flips(f"{name}, {what}{label}", ours, wanted)
            else:
                require_close(f"{name}, {what}{label}", ours, theirs, wanted, problem.task.number)
        again = partial(run, backend, poisoned)
        require_repeatable(f"{name}, {what}", again, problem.task.repeats)


def _try_hearing(problem: Problem, backend: Backend, geometry: Geometry, tell: Callable[[str], None]) -> None:
    """The mass that keys receive from queries that come once more, of slots and of a chunk beside them."""
    observation, q, after = problem.heard(), problem.q, problem.q_pos + CHUNK
    if observation is None:
        return
    what = _words(geometry)
    poisoned = problem.poisoned[what != PLAIN]
    tell(f"hearing, {what}, {q.shape[-1]} channels")
    for news in ([], [problem.new]):
        got, twin = (
            one.heard(q, after, [held, *news], geometry, observation)
            for one, held in ((backend, poisoned), (TORCH, problem.held))
        )
        wide = [_widened(one) for one in (problem.held, *news)]
        query = hadamard(q.double()) if problem.part.k_bits else q.double()
        exact = heard(query, after, wide, geometry, observation)
        require_close(f"hearing, {what}", got, twin, exact, problem.task.number)


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
        ours, wanted = backend.quantise(x, bits, group_of(dim)), lowbit.quantise(x, bits, group_of(dim))
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
    keys, values = stored(part, k, v)
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


def _words(geometry: Geometry) -> str:
    return PLAIN if geometry.softcap is None else "window, soft cap and sink"


def _protections(task: Task) -> dict[str, Protection]:
    pins = torch.tensor([[[3, 30], [0, 0]], [[0, 33], [35, 60]]], dtype=torch.int32, device=task.place)
    recent = max(1, task.keys // 8)
    return {
        "sinks and recent": Protection(recent, 4),
        "pins": Protection(recent, 0, pins=pins),
        "more pins than are kept": Protection(recent, 2, pins=pins, most_pinned=task.keys // 4),
        "window": Protection(recent, 4, window=task.keys // 2),
    }


def _copied(slots: Slots) -> Slots:
    def copied(x: Vectors) -> Vectors:
        return Packed(x.codes.clone(), x.scale.clone(), x.dim) if isinstance(x, Packed) else x.clone()

    statistic, bias = (None if x is None else x.clone() for x in (slots.statistic, slots.bias))
    return Slots(copied(slots.k), copied(slots.v), slots.pos.clone(), slots.rot.clone(), statistic, slots.starts, bias)
