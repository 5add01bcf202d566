"""kvlite's engine as a peer: the same weights in slots of a fixed number of bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from kvlite.cache.policy import DEFAULT_POLICY, load_policy
from kvlite.engine.decode_graphs import CudaGraphs, wants_graphs
from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, Request
from kvlite.errors import KvliteError
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import plan_cache
from kvlite.models.loaded import LoadedModel
from kvlite.speed.roofline import weights_read_bytes
from peers.peer import Case, NotAvailable, Took


@dataclass
class Kvlite:
    """One policy, slot format, set of kernels and kind of steps; one engine for each number of slots."""

    loaded: LoadedModel
    policy: str = DEFAULT_POLICY
    kv_dtype: str = "auto"
    kernels: str = "auto"
    captures: bool = False
    name: str = "kvlite"
    note: str = field(default="", init=False)
    _built: tuple[int, Engine] | None = field(default=None, init=False)

    def engine(self, slots: int) -> Engine:
        """An engine of one row of `slots` slots; the last one asked for is kept. Raises NotAvailable."""
        if self._built is None or self._built[0] != slots:
            self._built = None  # its slots are free before the next are taken
            policy, stored = load_policy(self.policy), slot_format(self.kv_dtype, self.loaded.shape.dtype)
            spec = policy.cache_spec(stored)
            plan = plan_cache(self.loaded.shape, Budget.parse(f"{slots}tok"), spec, free_bytes=None)
            try:
                recorder = CudaGraphs(self.loaded.device) if wants_graphs(self.captures, self.loaded.device) else None
                engine = Engine(self.loaded, plan, policy, stored, None, self.kernels, recorder)
            except KvliteError as error:
                raise NotAvailable(str(error)) from error
            self.note = (
                f"{self.policy}, {engine.cache.backend.name} kernels, {engine.step} steps, slots in {stored.name}"
            )
            self._built = (slots, engine)
        return self._built[1]

    def answer(self, prompt: list[int], tokens: int, case: Case) -> Took:
        """As `Peer.answer`."""
        engine = self.engine(case.slots)
        start, used, first_s = time.perf_counter(), time.process_time(), 0.0
        for event in engine.run([Request("answer", tuple(prompt), max_tokens=tokens)]):
            if isinstance(event, Completion):
                done = event
            elif event.index == 0:
                first_s = time.perf_counter() - start
        total_s, used = time.perf_counter() - start, time.process_time() - used
        if done.error is not None:
            raise NotAvailable(str(done.error))
        return Took(first_s, total_s, tokens, list(done.ids), used, done.kv.peak_bytes)

    def read_bytes(self, case: Case) -> int | None:
        """Weights once, and the live slots with what the policy keeps."""
        parts = self.engine(case.slots).cache.parts
        weights = weights_read_bytes(self.loaded)
        live = sum(part.slot_bytes * min(part.num_slots, case.context) for part in parts)
        return None if weights is None else weights + live

    def close(self) -> None:
        """Let go of the slots."""
        self._built = None
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
