"""The whole cache and the whole engine on Triton kernels, in the interpreter: what the torch twins do, they do."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import Policy, load_policy, policy_names
from kvlite.engine.decode_graphs import GraphRecorder
from kvlite.engine.request import Completion, Request, Sampling
from kvlite.errors import UsageError
from kvlite.memory.format import FORMATS
from kvlite.memory.shape import ModelShape
from tests.architectures import tiny_model
from tests.cache.driving import (
    CPU,
    Driver,
    Needs,
    attention_layer,
    make_plan,
    model_shape,
    positions,
    random_streams,
)
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few
from tests.parity.compare import assert_parity

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

from kvlite_kernels.triton_set.backend import TritonBackend

SHAPE = model_shape(attention_layer(2, 16), attention_layer(2, 16, window=10))
GROUP, SLOTS = 2, 20
FEEDS = ([13, 9], [5, 8], [1, 1], [1, 0], [6, 5], [1, 1], [1, 1], [0, 1], [1, 1])
"""Rows that fill up at different steps, chunks and single tokens, and rows with nothing to say."""


def cache_on(
    kernels: str, policy: Policy, stored: str = "float32", shape: ModelShape = SHAPE, needs: Needs | None = None
) -> SlotCache:
    shape = replace(shape, query_heads=max(layer.kv_heads for layer in shape.layers) * GROUP)
    plan = make_plan(shape, f"{SLOTS}tok", policy, 2, stored, policy.min_slots() if needs else 0, needs)
    return SlotCache(shape, plan, policy, FORMATS[stored], CPU, kernels)


@pytest.mark.parametrize("name", but_few(["heavy-hitter", "window", "scissorhands", "keyformer"], "heavy-hitter"))
def test_triton_leaves_the_same_survivors_as_torch(name: str) -> None:
    check_survivors(load_policy(name), "float32", SHAPE)


LOW_BIT = [(name, "int4") for name in policy_names() if load_policy(name).evicts]


@pytest.mark.parametrize(
    ("name", "stored"),
    but_few(
        [*LOW_BIT, ("heavy-hitter", "int8"), ("heavy-hitter", "k6v4"), ("keydiff", "int8")], ("heavy-hitter", "int4")
    ),
)
def test_triton_leaves_the_same_survivors_in_low_bit_slots(name: str, stored: str) -> None:
    check_survivors(load_policy(name), stored, model_shape(attention_layer(2, 24, v_dim=10)))


@pytest.mark.parametrize(
    ("name", "stored"),
    but_few([("heavy-hitter", "float32"), ("keyformer", "float32"), ("snapkv", "int4")], ("keyformer", "float32")),
)
def test_triton_leaves_the_same_survivors_in_heads_with_slots_of_their_own(name: str, stored: str) -> None:
    shape = model_shape(attention_layer(3, 16), attention_layer(2, 16, window=10), attention_layer(2, 16))
    check_survivors(load_policy(name), stored, shape, ((1, 9, 1), (), (1, 9)))


def check_survivors(policy: Policy, stored: str, shape: ModelShape, needs: Needs | None = None) -> None:
    """Both sets of kernels give the same numbers and leave the same slots, codes and scales included."""
    streams = [random_streams(shape, GROUP, 40, seed) for seed in (1, 2)]
    pins = [[(4, 6)], [(0, 2), (7, 9)]]
    drivers = {
        name: Driver(cache_on(name, policy, stored, shape, needs), streams, pins) for name in ("torch", "triton")
    }
    for counts in FEEDS:
        torch_outs, triton_outs = (driver.feed(counts) for driver in drivers.values())
        for expected, actual in zip(torch_outs, triton_outs, strict=True):
            for row in range(2):
                assert_parity(f"{counts}, row {row}", actual[row], expected[row], 1e-5)
    for index, part in enumerate(drivers["torch"].cache.parts):
        other = drivers["triton"].cache.parts[index]
        for row in range(2):
            assert positions(other, row) == positions(part, row)
        for tensor_name, tensor in part.tensors.items():
            held = other.tensors[tensor_name]
            assert_parity(tensor_name, held[:, :, : part.num_slots], tensor[:, :, : part.num_slots], 1e-5)


def told(done: Completion) -> tuple[object, ...]:
    """An answer and what it left in the cache, to the byte."""
    return done.ids, done.kv


def test_decoding_in_triton_allocates_no_memory_of_the_cache_or_its_scratch() -> None:
    cache = cache_on("triton", load_policy("heavy-hitter"))
    driver = Driver(cache, [random_streams(SHAPE, GROUP, 40, seed) for seed in (1, 2)])
    assert isinstance(cache.backend, TritonBackend) and cache.backend.scratch_bytes > 0
    scratch = cache.backend.scratch.tensors
    before = [tensor.data_ptr() for tensor in (*cache.tensors(), *scratch)]
    for counts in FEEDS:
        driver.feed(counts)
    assert [tensor.data_ptr() for tensor in (*cache.tensors(), *scratch)] == before
    assert sum(tensor.nbytes for tensor in scratch) == cache.backend.scratch_bytes


@pytest.mark.parametrize("stored", but_few(["float32", "int4"], "float32"))
def test_the_engine_gives_the_same_tokens_on_triton(stored: str) -> None:
    loaded = admitted(tiny_model("llama", {}))
    done: dict[str, Completion] = {}
    for kernels in ("torch", "triton"):
        engine = make_engine(loaded, "24tok", kv_dtype=stored, kernels=kernels)
        assert engine.cache.backend.name == kernels
        done[kernels] = answers(engine, [Request("a", tuple(range(5, 36)), max_tokens=12)])["a"]
    assert told(done["triton"]) == told(done["torch"])
    assert done["torch"].evicted > 0


def test_nothing_is_drafted_on_triton_which_is_said() -> None:
    said: list[str] = []
    few = Sampling(logit_bias=((5, 100.0), (6, 100.0)))
    loaded, request = admitted(tiny_model("llama", {})), Request("a", tuple(range(5, 15)), few, max_tokens=12)
    engine = make_engine(loaded, "40tok", kernels="triton", speculate=4, warn=said.append)
    assert answers(engine, [request])["a"].drafted == 0
    assert len(said) == 1 and said[0].startswith("--speculate 4: ")


@pytest.mark.matrix
def test_captured_steps_on_triton_give_the_same_tokens() -> None:
    loaded = admitted(tiny_model("llama", {}))
    requests = [Request("a", tuple(range(5, 23)), max_tokens=12), Request("b", tuple(range(9, 40)), max_tokens=4)]
    requests.append(Request("c", tuple(range(2, 30)), max_tokens=4))  # which takes the row of the second
    eager = answers(make_engine(loaded, "24tok", rows=2), requests)
    engine = make_engine(loaded, "24tok", rows=2, kernels="triton", recorder=GraphRecorder())
    captured = answers(engine, requests)
    assert (engine.step, engine.cache.backend.name) == ("captured", "triton")
    assert {key: told(done) for key, done in captured.items()} == {key: told(done) for key, done in eager.items()}


@pytest.mark.parametrize(
    "name", but_few(["heavy-hitter", "heavy-hitter:heads=layer", "snapkv", "pyramid"], "heavy-hitter")
)
def test_survivors_are_the_same_whatever_else_wrote_slots(name: str) -> None:
    """A row that is reset, restored or copied into another, a prompt between single tokens, rows fed by themselves."""
    streams = [random_streams(SHAPE, GROUP, 90, seed) for seed in (3, 3)]
    policy = load_policy(name)
    drivers = {kernels: Driver(cache_on(kernels, policy), streams) for kernels in ("torch", "triton")}

    def feed(*feeds: tuple[list[int], int]) -> None:
        for counts, first in feeds:
            for driver in drivers.values():
                driver.feed(counts, first)
            for index, part in enumerate(drivers["torch"].cache.parts):
                for row in range(2):
                    assert positions(drivers["triton"].cache.parts[index], row) == positions(part, row)

    feed(([13, 9], 0), ([1, 1], 0), ([9, 1], 0), ([1, 1], 0), ([1], 0), ([1], 1), ([5, 1], 0), ([1, 1], 0), ([1, 1], 0))
    for driver in drivers.values():
        snapshot = driver.cache.snapshot(0)
        driver.cache.restore(1, snapshot)
        driver.seen[1], driver.rot[1] = driver.seen[0], driver.rot[0]
    feed(([1, 1], 0), ([1, 1], 0), ([7], 1), ([1, 1], 0))
    for driver in drivers.values():
        driver.cache.reset(0)
        driver.seen[0] = driver.rot[0] = 0
    feed(([19, 1], 0), ([1, 1], 0), ([1, 1], 0), ([1, 1], 0))


def test_kernels_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="--kernels triton: Triton kernels need a CUDA device, and this is cpu"):
        cache_on("triton", load_policy("h2o"))
    assert cache_on("auto", load_policy("h2o")).backend.name == "torch"
