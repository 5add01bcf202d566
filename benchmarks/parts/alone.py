"""What kvlite is measured on alone: drift over a conversation, and its kernels against the bytes they touch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from kvlite.speed.ceilings import Ceilings, synchronize
from kvlite.speed.decoding import first_token_s, random_ids, step_times
from kvlite.speed.spread import Spread
from kvlite_kernels.choice import KERNELS
from kvlite_kernels.reference import Geometry
from parts.rounds import Run
from peers.ours import Kvlite
from peers.peer import NotAvailable
from peers.shapes import SHAPES

Rows = list[dict[str, Any]]
_MORE_THAN_CACHES = 2**28  # bytes that works take turns over, so that a processor's caches hold none of them
_MOST_COPIES = 16


def drift(
    ours: Kvlite, slots: int, points: Sequence[int], *, steps: int, rounds: int, run: Run, by_processor: bool
) -> Rows:
    """Steps with all slots full after so many tokens, put there, by one of two clocks; the points take turns."""
    clock = time.process_time if by_processor else time.perf_counter
    try:
        engine = ours.engine(slots)
    except NotAvailable as error:
        run.failed[f"drift: {ours.name}"] = str(error)
        return []
    first_token_s(engine, random_ids(64, engine.loaded.shape.vocab, 0))
    held = engine.snapshot(0)
    found: dict[int, list[list[float]]] = {max(seen, slots): [] for seen in points}
    for number in range(rounds + 1):
        for seen, timings in found.items():
            if run.has_time():
                times, _ = step_times(engine, held, seen, steps, number, clock)
                timings += [times] if number else []
    run.left_out += [f"drift at {seen}: {ours.name}" for seen, timings in found.items() if not timings]
    spreads = {seen: Spread.of(timings) for seen, timings in found.items() if timings}
    first_s = next((spread.median_s for spread in spreads.values()), 1.0)
    return [
        {"peer": ours.name, "slots": slots, "tokens_seen": seen, "by_processor": by_processor,
         "tokens_s": 1 / spread.median_s, "drift": spread.median_s / first_s - 1, **asdict(spread)}
        for seen, spread in spreads.items()
    ]  # fmt: skip


def kernels(ours: Kvlite, slots: int, ceilings: Ceilings, run: Run) -> Rows:
    """Microseconds and bytes per second of what a decode step is made of, each over memory no cache holds."""
    rows: Rows = []
    for name in KERNELS[1:]:
        peer = replace(ours, kernels=name)
        try:
            step, num_bytes = _attention(peer, slots)
        except NotAvailable as error:
            run.failed[f"kernels: attention by {name}"] = str(error)
            continue
        what = f"attend, count and evict in all layers, {slots} slots, {name}"
        rows.append(_row(what, [step], num_bytes, ours, ceilings))
    for name, works, num_bytes in (*_products(ours), _norm(ours)):
        rows.append(_row(name, works, num_bytes, ours, ceilings))
    return rows


def _attention(peer: Kvlite, slots: int) -> tuple[Callable[[], object], int]:
    """One decoded token in all layers of a full cache, from where it is placed to what is evicted, and what is read."""
    engine = peer.engine(slots)
    cache, shape, device, dtype = engine.cache, peer.loaded.shape, peer.loaded.device, peer.loaded.dtype
    first_token_s(engine, random_ids(slots + 1, shape.vocab, 0))
    pos = torch.full((1, 1), slots + 1, dtype=torch.int32, device=device)
    q, k, v = {}, {}, {}
    for index, layer in cache.layers.items():
        sizes = layer.shape
        q[index] = torch.randn(1, shape.query_heads, 1, sizes.k_dim, device=device, dtype=dtype)
        k[index] = torch.randn(1, sizes.kv_heads, 1, sizes.k_dim, device=device, dtype=dtype)
        v[index] = torch.randn(1, sizes.kv_heads, 1, sizes.v_dim, device=device, dtype=dtype)

    def step() -> None:
        fed = cache.begin(slice(0, 1), pos, pos, (1,), None)
        for index, layer in cache.layers.items():
            layer.attend(q[index], k[index], v[index], fed, Geometry(scaling=layer.shape.k_dim**-0.5))
        cache.end(fed)

    return step, sum(layer.slot_bytes * layer.slots for layer in cache.layers.values())


def _products(ours: Kvlite) -> list[tuple[str, list[Callable[[], object]], int]]:
    """One row of activations through each shape of linear layer, and through the head."""
    wanted = SHAPES[ours.shape]
    head_dim, hidden = wanted.head_dim, wanted.hidden_size
    heads = wanted.num_attention_heads + 2 * wanted.num_key_value_heads
    shapes = {
        "queries, keys, values": (heads * head_dim, hidden),
        "attention's output": (hidden, wanted.num_attention_heads * head_dim),
        "gate and up": (2 * wanted.intermediate_size, hidden),
        "down": (hidden, wanted.intermediate_size),
        "head": (wanted.vocab_size, hidden),
    }
    device, dtype = ours.loaded.device, ours.loaded.dtype
    found = []
    for name, (out, into) in shapes.items():
        num_bytes = out * into * torch.finfo(dtype).bits // 8
        weights = [torch.randn(out, into, device=device, dtype=dtype) for _ in range(_copies(num_bytes, device))]
        x = torch.randn(1, into, device=device, dtype=dtype)
        works: list[Callable[[], object]] = [lambda x=x, w=weight: functional.linear(x, w) for weight in weights]
        found.append((f"{name} [{out}, {into}] by 1 row", works, num_bytes))
    return found


def _norm(ours: Kvlite) -> tuple[str, list[Callable[[], object]], int]:
    """The norm that the model runs with under kvlite, over a chunk of 512 tokens, read and written."""
    device, dtype = ours.loaded.device, ours.loaded.dtype
    hidden = SHAPES[ours.shape].hidden_size
    norm: Any = ours.loaded.model.get_decoder().norm
    num_bytes = 2 * 512 * hidden * torch.finfo(dtype).bits // 8
    inputs = [torch.randn(1, 512, hidden, device=device, dtype=dtype) for _ in range(_copies(num_bytes, device))]
    return f"RMSNorm of 512 tokens of {hidden}", [lambda x=x: norm(x) for x in inputs], num_bytes


def _copies(num_bytes: int, device: torch.device) -> int:
    return min(_MOST_COPIES, -(-_MORE_THAN_CACHES // num_bytes)) if device.type == "cuda" else 1


@torch.inference_mode()
def _row(
    name: str, works: list[Callable[[], object]], num_bytes: int, ours: Kvlite, ceilings: Ceilings
) -> dict[str, Any]:
    device = ours.loaded.device
    timings = []
    for number in range(7):
        start = time.perf_counter()
        for work in works:
            work()
        synchronize(device)
        if number > 1:
            timings.append((time.perf_counter() - start) / len(works))
    call_s = median(timings)
    return {"kernel": name, "call_s": call_s, "bytes": num_bytes, "bytes_s": num_bytes / call_s,
            "share_of_copy": num_bytes / call_s / ceilings.copy_bytes_s}  # fmt: skip
