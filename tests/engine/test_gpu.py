"""What only a CUDA device can show: the same tokens, fixed addresses, an allocator that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kvlite.engine.decode_graphs import CudaGraphs
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request, Sampling, Token
from kvlite.models.loaded import LoadedModel
from kvlite.models.verify import admit
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is there"),
]
PROMPT = tuple(range(5, 45))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "cohere", "lfm2"])
def test_cuda_gives_the_tokens_of_the_cpu(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    expected = answers(make_engine(loaded, "32tok"), [Request("a", PROMPT, max_tokens=60)])["a"]
    device = torch.device("cuda", 0)
    loaded.model.to(device)
    moved = admit(replace(loaded, device=device, rotations=None))
    done = answers(make_engine(moved, "32tok"), [Request("a", PROMPT, max_tokens=60)])["a"]
    assert (done.ids, done.kv) == (expected.ids, expected.kv)


def test_decoding_allocates_no_cache_memory() -> None:
    loaded = admitted(tiny_model("llama", {}))
    device = torch.device("cuda", 0)
    loaded.model.to(device)
    engine = make_engine(admit(replace(loaded, device=device)), "64tok")
    addresses = [tensor.data_ptr() for tensor in engine.cache.tensors()]
    answers(engine, [Request("warm", PROMPT, max_tokens=100, row=0)])
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    answers(engine, [Request("long", PROMPT, max_tokens=2000, row=0)])
    assert torch.cuda.memory_allocated(device) <= before
    assert addresses == [tensor.data_ptr() for tensor in engine.cache.tensors()]
    assert engine.peak_memory.peaks["decode"] >= engine.plan.reserved_bytes


def on_cuda(family: str) -> LoadedModel:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    device = torch.device("cuda", 0)
    loaded.model.to(device)
    return admit(replace(loaded, device=device, rotations=None))


def capturing(loaded: LoadedModel, budget: str, rows: int = 1, kernels: str = "torch") -> Engine:
    engine = make_engine(loaded, budget, rows=rows, kernels=kernels, recorder=CudaGraphs(loaded.device))
    assert engine.step == "captured"
    return engine


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("budget", ["32tok", "600tok"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_graphs_give_the_tokens_of_eager_steps(family: str, budget: str, kernels: str) -> None:
    loaded = on_cuda(family)
    requests = [
        Request(
            str(i),
            PROMPT[: 5 + 6 * i],
            Sampling(temperature=0.8 * (i % 2), top_p=0.9, repetition_penalty=(1.0, 1.2)[i % 3 == 2], seed=i),
            max_tokens=20 + 60 * i,
            stop_ids=frozenset({7, 70 + i}),
        )
        for i in range(6)
    ]
    eager = make_engine(loaded, budget, rows=5, kernels=kernels)
    expected = {key: (done.ids, done.kv) for key, done in answers(eager, requests).items()}
    engine = capturing(loaded, budget, rows=5, kernels=kernels)
    assert {key: (done.ids, done.kv) for key, done in answers(engine, requests).items()} == expected
    assert engine.graphs is not None
    assert len({key.rows for key in engine.graphs._graphs}) > 1


def test_replaying_graphs_allocates_nothing() -> None:
    engine = capturing(on_cuda("llama"), "32tok")
    stream = engine.run([Request("a", PROMPT, max_tokens=200)])
    for _ in range(20):
        next(stream)
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    assert all(isinstance(next(stream), Token) for _ in range(100))
    assert (torch.cuda.memory_reserved(), torch.cuda.memory_allocated()) == before
    stream.close()  # type: ignore[attr-defined]
    assert engine.graphs is not None and engine.graphs.recorder.num_bytes > 0


def test_a_cache_that_takes_the_place_of_another_is_captured_too() -> None:
    loaded, told = on_cuda("llama"), list[str]()
    recorder = CudaGraphs(loaded.device)
    plans = [make_engine(loaded, budget).plan for budget in ("64tok", "300tok")]
    engine = make_engine(loaded, "32tok", recorder=recorder, warn=told.append)
    expected = answers(make_engine(loaded, "32tok"), [Request("a", PROMPT, max_tokens=40)])["a"].ids
    assert answers(engine, [Request("a", PROMPT, max_tokens=40)])["a"].ids == expected
    for plan in plans:
        engine.rows.resize(plan)
        answers(engine, [Request("a", PROMPT, max_tokens=40)])
        assert engine.step == "captured" and told == []
    second = make_engine(loaded, "48tok", recorder=recorder, warn=told.append)
    answers(second, [Request("a", PROMPT, max_tokens=40)])
    assert second.step == "captured" and told == []


@pytest.mark.skipif(torch.__version__ < "2.13", reason="the allocator of torch before 2.13 stays in a failed capture")
def test_a_graph_that_cannot_be_captured_says_why_and_leaves_a_device_that_works() -> None:
    loaded = on_cuda("llama")
    stream = torch.cuda.current_stream()

    class FailsLater(CudaGraphs):
        def record(self, body: Callable[[], None]) -> Callable[[], None]:
            if len(recorded) == 3:
                return super().record(lambda: torch.cuda.synchronize())
            recorded.append(body)
            return super().record(body)

    recorded: list[Callable[[], None]] = []
    told: list[str] = []
    requests = [Request("a", PROMPT, max_tokens=60), Request("b", PROMPT[5:], max_tokens=60)]
    expected = {
        key: (done.ids, done.kv) for key, done in answers(make_engine(loaded, "32tok", rows=2), requests).items()
    }
    engine = make_engine(loaded, "32tok", rows=2, recorder=FailsLater(loaded.device), warn=told.append)
    assert engine.step == "captured"
    assert {key: (done.ids, done.kv) for key, done in answers(engine, requests).items()} == expected
    assert engine.graphs is None and len(told) == 1 and "captur" in told[0]
    assert torch.cuda.current_stream() == stream
