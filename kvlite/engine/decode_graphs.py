"""Decode steps recorded as CUDA graphs: one per power of two of rows and per extent that doubles.

A graph feeds the ids in static buffers and leaves logits in another; the host fills the first, replays, and samples.
Few graphs serve a conversation of any length: attention reads slots up to the next of 256, 512, ..., and once the slots
are full all steps are alike. A row that is not fed stands in a graph as padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache, waiting
from kvlite.cache.step import SlotMapping
from kvlite.engine.inputs import on_host, pinned
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed
from kvlite.errors import UsageError
from kvlite.models.loaded import LoadedModel

FIRST_EXTENT = 256
_EAGER_RUNS = 2
"""Runs before a recording, in which kernels compile and libraries allocate what a graph must not."""


TIMED_STEPS = 16
WORTH_IT = 1.03
"""The least gain in speed for graphs that nobody asked for: they take memory, and time at each start."""


class NotCapturable(Exception):
    """A step that cannot be recorded, or that does not repeat what eager steps do; the message says why."""


class GraphRecorder:
    """Makes a function that does again, on the same tensors, what `body` does: here the body itself, run eagerly."""

    num_bytes = 0
    """Bytes that its recordings hold on the device."""

    failed = ""
    """The reason why nothing more must be recorded, empty where it may."""

    found: Mapping[tuple[str, ...], str] = {}
    """The obstacle to replayed steps, empty where they proved right and worth it.

    By policy, slots, heads that have as many of these or not, and kernels.
    """

    def wait(self) -> None:
        """Return once the device has done all it was given."""

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """The function; `body` has run before, and need not run now."""
        return body


class CudaGraphs(GraphRecorder):
    """The GraphRecorder of CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._first: torch.cuda.CUDAGraph | None = None
        """A graph that does nothing. It keeps the pool, which cannot be taken again once its last graph is gone."""

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """See GraphRecorder. Waits for the device. Raises RuntimeError, after which nothing more must be recorded."""
        self.wait()
        torch.cuda.empty_cache()  # as each capture does: what it frees was no graph's
        before = torch.cuda.memory_reserved(self._device)
        if self._first is None:
            self._first = self._captured(lambda: torch.zeros(1, device=self._device))
        graph = self._captured(body)
        self.num_bytes += torch.cuda.memory_reserved(self._device) - before
        return graph.replay

    def _captured(self, body: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
            body()
        return graph


@dataclass(frozen=True, slots=True)
class GraphKey:
    """The shapes of one graph: rows, pinned spans a row, and how far heads of each number of slots read.

    An extent of None is a step that evicts; those of `full` slots have no free one in any row, so that all is seen.
    """

    rows: int
    pins: int
    extents: tuple[tuple[int, int | None], ...]
    full: frozenset[int] = frozenset()


class DecodeGraphs:
    """Decode steps of `loaded` over `cache`, recorded by `recorder` as they are first met."""

    def __init__(self, loaded: LoadedModel, cache: SlotCache, recorder: GraphRecorder) -> None:
        if loaded.state is not None:
            raise NotCapturable(f"{loaded.shape.family} models carry state that a graph does not count")
        self.loaded, self.cache, self.recorder = loaded, cache, recorder
        self._slots = tuple(sorted({part.num_slots for part in cache.parts}))
        rows, device = cache.plan.rows, cache.device
        self._inputs = torch.zeros(3 + len(self._slots), rows, dtype=torch.int64, device=device)  # ids, pos, rot, slots
        self._logits = torch.zeros(rows, loaded.shape.vocab, dtype=torch.float32, device=device)
        self._pins: dict[int, Tensor] = {}
        self._graphs: dict[GraphKey, Callable[[], None]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of the static buffers."""
        return self._inputs.nbytes + self._logits.nbytes + sum(pins.nbytes for pins in self._pins.values())

    def step(self, feed: Feed, rows: Sequence[Row]) -> Tensor:
        """Feed `rows`, those of `feed`, and give their logits fp32 [n, V], which the next step overwrites.

        Raises NotCapturable, and then nothing was fed.
        """
        key = self._key(feed, rows)
        columns = [(0, -1, -1, *self._slots)] * key.rows  # padding goes to the discard slot
        for row, ids in zip(rows, feed.ids, strict=True):
            if ids:
                live = (self.cache.live(row.index, slots) for slots in self._slots)
                columns[row.index] = (ids[0], row.seen, row.rot, *live)
        numbers = on_host(list(zip(*columns, strict=True)), torch.int64, self.cache.device)
        self._inputs[:, : key.rows].copy_(numbers, non_blocking=True)
        if key.pins and (spans := pinned(rows, self.cache.device)) is not None:
            self._pins[key.pins][feed.rows].copy_(spans)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(lambda: self._run(key))
        self._graphs[key]()
        self.cache.grow(feed.rows, feed.counts)
        return self._logits[feed.rows]

    def _key(self, feed: Feed, rows: Sequence[Row]) -> GraphKey:
        going = [row.index for row, ids in zip(rows, feed.ids, strict=True) if ids]
        extents: list[tuple[int, int | None]] = []
        for slots in self._slots:
            longest = 1 + max(self.cache.live(row, slots) for row in going)
            extents.append((slots, None if longest > slots else min(slots, _doubled(longest, FIRST_EXTENT))))
        num_pins = max(len(row.pins) for row in rows)
        if num_pins and num_pins not in self._pins:
            shape = (self.cache.plan.rows, num_pins, 2)
            self._pins[num_pins] = torch.zeros(shape, dtype=torch.int32, device=self.cache.device)
        count = min(self.cache.plan.rows, _doubled(feed.rows.stop, 1))
        full: frozenset[int] = frozenset()
        if len(going) == count and self._is_unobserved:
            full = frozenset(
                slots for slots in self._slots if all(self.cache.live(row, slots) == slots for row in going)
            )
        return GraphKey(count, num_pins, tuple(extents), full)

    @property
    def _is_unobserved(self) -> bool:
        """True where attention leaves no statistic: else that of padding, in which a graph is recorded, would count."""
        policy = self.cache.policy
        return policy.statistic is None or policy.echoes

    def _recorded(self, body: Callable[[], None]) -> Callable[[], None]:
        """Run `body` on padding alone, which leaves the cache as it is, then record it."""
        held = self._inputs.clone()
        padding = torch.tensor([0, -1, -1, *self._slots], device=held.device)[:, None]
        try:
            if self.recorder.failed:
                raise NotCapturable(self.recorder.failed)
            self._inputs.copy_(padding.expand_as(held))
            for _ in range(_EAGER_RUNS):
                body()
            try:
                return self.recorder.record(body)
            except Exception as error:
                self.recorder.failed = _in_a_line(error)
                raise
        except NotCapturable:
            raise
        except Exception as error:  # whatever a driver or a compiler raises, eager steps go on
            raise NotCapturable(_in_a_line(error)) from error
        finally:
            self._inputs.copy_(held)

    @torch.inference_mode()
    def _run(self, key: GraphKey) -> None:
        """The recorded work: it reads and writes static buffers and slots, and asks nothing of the host."""
        ids, pos, rot, *places = self._inputs[:, : key.rows]
        mappings = {
            slots: waiting(slots, slots in key.full) if extent is None else SlotMapping(extent, place[:, None, None])
            for (slots, extent), place in zip(key.extents, places, strict=True)
        }
        pins = self._pins[key.pins][: key.rows] if key.pins else None
        pos, rot, counts = pos.int()[:, None], rot.int()[:, None], (0,) * key.rows
        step = self.cache.mapped(slice(0, key.rows), pos, rot, counts, pins, mappings)
        self._logits[: key.rows].copy_(self.loaded.forward(ids[:, None], self.cache, step)[:, -1])


def wants_graphs(asked: bool | None, device: torch.device) -> bool:
    """True where steps on `device` are to be captured: as asked, None for what a GPU can show to pay.

    Raises UsageError where they cannot be.
    """
    if asked and device.type != "cuda":
        raise UsageError(f"--capture: CUDA graphs need a CUDA device, and this is {device}; leave it out")
    return device.type == "cuda" and asked is not False


def try_replay(loaded: LoadedModel, caches: Sequence[SlotCache], recorder: GraphRecorder) -> float:
    """The time of an eager decode step divided by that of a replayed one, medians of steps in turns.

    Raises NotCapturable unless replayed steps equal eager ones to the bit: logits and every cache tensor. `caches` are
    two small ones of one row: their slots are filled, and then some are evicted.
    """
    recorders = (GraphRecorder(), recorder)
    eager, replayed = (DecodeGraphs(loaded, *pair) for pair in zip(caches, recorders, strict=True))
    row = Row(0)
    slots = max(part.num_slots for part in eager.cache.parts)
    for at in range(slots + 8 if eager.cache.policy.evicts else eager.cache.plan.fewest):
        feed = Feed(slice(0, 1), (((7919 * at + 11) % loaded.shape.vocab,),))
        if not torch.equal(eager.step(feed, [row]), replayed.step(feed, [row])):
            raise NotCapturable(f"the logits of step {at + 1}, replayed, are not those of the eager step")
        row.feed(1)
    for one, other in zip(eager.cache.tensors(), replayed.cache.tensors(), strict=True):
        if not torch.equal(one, other):
            raise NotCapturable("the slots after replayed steps are not those after eager ones")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_STEPS):
        feed = Feed(slice(0, 1), ((11,),))
        for graphs, spent in zip((eager, replayed), times, strict=True):
            recorder.wait()
            start = time.perf_counter()
            graphs.step(feed, [row])
            recorder.wait()
            spent.append(time.perf_counter() - start)
        row.feed(1)
    return median(times[0]) / median(times[1])


def _in_a_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _doubled(least: int, start: int) -> int:
    """The first of `start`, 2 `start`, ... that is at least `least`."""
    while start < least:
        start *= 2
    return start
