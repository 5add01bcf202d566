"""The Triton kernels as a GPU runs them, against their torch twins on the same GPU: half precision, real head sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import load_policy
from kvlite.memory.format import FORMATS
from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.choice import processor_of
from kvlite_kernels.reference import Geometry
from tests.cache.driving import attention_layer, make_plan, model_shape
from tests.parity.compare import assert_parity
from tests.parity.eviction import CASES, Case, check, holding, on

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is there"),
]
DEVICE = torch.device("cuda", 0)
ROWS, SLOTS = 2, 300
FEEDS = (256, 1, 43, 1, 64, 1, 1, 1)
"""Tokens of each row: the slots fill up at the fourth, then a chunk and single tokens evict."""
HEADS = {"group of 4, D 128": (2, 4, 128), "group of 7, D 64": (2, 7, 64), "no group, D 128": (4, 1, 128)}
TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2}
"""Two roundings: of probabilities, and of the output."""


def fed(
    kernels: str, policy_name: str, heads: tuple[int, int, int], dtype: str, feeds: tuple[int, ...] = FEEDS
) -> tuple[list[Tensor], SlotCache]:
    """What each feed of the same random tokens gives [B, H_Q, T, D], and the cache afterwards."""
    kv_heads, group, dim = heads
    shape = replace(model_shape(attention_layer(kv_heads, dim)), query_heads=kv_heads * group)
    policy, number = load_policy(policy_name), getattr(torch, dtype)
    plan = make_plan(shape, f"{SLOTS}tok", policy, ROWS, dtype)
    cache = SlotCache(shape, plan, policy, FORMATS[dtype], DEVICE, kernels, number)
    generator = torch.Generator().manual_seed(0)

    def normal(num_heads: int, tokens: int) -> Tensor:
        return torch.randn(ROWS, num_heads, tokens, dim, generator=generator).to(DEVICE, number)

    outs, seen = [], 0
    for tokens in feeds:
        pos = torch.arange(seen, seen + tokens, dtype=torch.int32, device=DEVICE).expand(ROWS, -1).contiguous()
        step = cache.begin(slice(0, ROWS), pos, pos, (tokens,) * ROWS, None)
        q, k, v = normal(kv_heads * group, tokens), normal(kv_heads, tokens), normal(kv_heads, tokens)
        outs.append(cache.layers[0].attend(q, k, v, step, Geometry(dim**-0.5)))
        cache.end(step)
        seen += tokens
    return outs, cache


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_triton_attends_and_evicts_as_torch_where_survivors_follow_from_positions(
    heads: tuple[int, int, int], dtype: str
) -> None:
    expected, twin = fed("torch", "window", heads, dtype)
    actual, cache = fed("triton", "window", heads, dtype)
    for number, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert_parity(f"feed {number}", ours, theirs, TOLERANCES[dtype])
    held, wanted = (each.parts[0].slots.pos[..., :SLOTS].sort(-1).values for each in (cache, twin))
    assert_parity("positions held", held, wanted)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("policy", ["heavy-hitter", "h2o"])
def test_triton_counts_the_attention_that_torch_counts_until_something_is_evicted(policy: str, dtype: str) -> None:
    heads = HEADS["group of 4, D 128"]
    (_, twin), (_, cache) = (fed(kernels, policy, heads, dtype, FEEDS[:3]) for kernels in ("torch", "triton"))
    ours, theirs = (each.parts[0].slots.statistic for each in (cache, twin))
    assert ours is not None and theirs is not None
    assert_parity("statistic", ours[..., :SLOTS], theirs[..., :SLOTS], TOLERANCES[dtype])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_eviction_takes_the_victims_of_the_rule_in_torch_to_the_bit(case: Case) -> None:
    from kvlite_kernels.triton_set.backend import TritonBackend

    pins = case.protection.pins
    there = replace(case, protection=replace(case.protection, pins=None if pins is None else pins.to(DEVICE)))
    backend = TritonBackend(
        [LayerSizes(2, 2, case.slots + 1, 16, 16)], ROWS, [torch.float16], DEVICE, processor_of(DEVICE)
    )
    slots = on(holding(case), DEVICE)
    next_pos = torch.full((ROWS, 1, 1), case.seen + 1, dtype=torch.int32, device=DEVICE)
    score = torch.rand(slots.pos.shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    check(backend, slots, there, score, next_pos)
    slots.pos[..., -1] = case.seen + 1
    check(backend, slots, there, score.flip(-1), next_pos + 1)
