"""kvlite's engine as a peer: the same weights in slots of a fixed number of bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from kvlite.cache.policy import load_policy
from kvlite.cache.spec import cache_spec
from kvlite.engine.decode_graphs import CudaGraphs, wants_graphs
from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, Request
from kvlite.errors import KvliteError
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import CacheSpec, plan_cache
from kvlite.models.loaded import LoadedModel
from kvlite.speed.roofline import weights_read_bytes
from peers.peer import Case, NotAvailable, Took


@dataclass
class Kvlite:
    """One policy, slot format, set of kernels and kind of steps; one engine for each case and number of rows."""

    loaded: LoadedModel
    shape: str
    policy: str = "heavy-hitter"
    kv_dtype: str = "auto"
    kernels: str = "auto"
    captures: bool = False
    name: str = "kvlite"
    note: str = field(default="", init=False)
    _built: tuple[tuple[int, int], Engine] | None = field(default=None, init=False)

    def spec(self) -> CacheSpec:
        """The cache, whatever its size."""
        policy = load_policy(self.policy)
        stored = slot_format(self.kv_dtype, self.loaded.dtype_name)
        return cache_spec(policy, stored)

    def engine(self, slots: int, rows: int = 1) -> Engine:
        """An engine of `rows` rows of `slots` slots; the last one asked for is kept. Raises NotAvailable."""
        if self._built is None or self._built[0] != (slots, rows):
            self._built = None  # its slots are free before the next are taken
            spec = self.spec()
            plan = plan_cache(self.loaded.shape, Budget.parse(f"{slots}tok"), spec, rows=rows, free_bytes=None)
            try:
                recorder = CudaGraphs(self.loaded.device) if wants_graphs(self.captures, self.loaded.device) else None
                policy = load_policy(self.policy)
                engine = Engine(self.loaded, plan, policy, spec.slot_format, None, self.kernels, recorder)
            except KvliteError as error:
                raise NotAvailable(str(error)) from error
            kernels, stored = engine.cache.backend.name, spec.slot_format.name
            self.note = f"{self.policy}, {kernels} kernels, {engine.step} steps, slots in {stored}"
            self._built = ((slots, rows), engine)
        return self._built[1]

    def answer(self, prompts: list[list[int]], tokens: int, case: Case) -> Took:
        """As `Peer.answer`; the engine admits all prompts and decodes them together."""
        engine = self.engine(case.slots, len(prompts))
        requests = [Request(str(row), tuple(prompt), max_tokens=tokens) for row, prompt in enumerate(prompts)]
        start, used = time.perf_counter(), time.process_time()
        first_s, waiting, kv_bytes = 0.0, len(prompts), 0
        answers: dict[str, list[int]] = {}
        for event in engine.run(requests):
            if isinstance(event, Completion) and event.error is not None:
                raise NotAvailable(str(event.error))
            if isinstance(event, Completion):
                answers[event.request_id] = list(event.ids)
                kv_bytes += event.kv.peak_bytes
            elif event.index == 0:
                waiting -= 1
                if not waiting:
                    first_s = time.perf_counter() - start
        total_s, used = time.perf_counter() - start, time.process_time() - used
        return Took(first_s, total_s, tokens, [answers[request.id] for request in requests], used, kv_bytes)

    def read_bytes(self, case: Case) -> int | None:
        """Weights once, and the live slots with what the policy keeps."""
        layers = self.engine(case.slots).cache.layers.values()
        weights = weights_read_bytes(self.loaded)
        live = sum(layer.slot_bytes * min(layer.num_slots, case.context) for layer in layers)
        return None if weights is None else weights + live

    def close(self) -> None:
        """Let go of the slots."""
        self._built = None
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
