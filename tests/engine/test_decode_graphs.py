"""Decode steps by graphs against eager ones: the same tokens and the same cache. The CUDA graph itself is left out.

A recorder stands in for it that runs the recorded work again, on the same static buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kvlite.cache.policy import policy_names
from kvlite.engine import feeding
from kvlite.engine.decode_graphs import CudaGraphs, DecodeGraphs, GraphRecorder, NotCapturable, wants_graphs
from kvlite.engine.engine import Engine
from kvlite.engine.memory_report import measured_terms
from kvlite.engine.request import Completion, FinishReason, Request, Sampling, Token
from kvlite.errors import NumericError, OutOfMemory, UsageError
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def capturing(loaded: LoadedModel, budget: str = "24tok", policy: str = "heavy-hitter", **options: object) -> Engine:
    engine = make_engine(loaded, budget, policy, recorder=GraphRecorder(), **options)
    assert engine.step == "captured"
    return engine


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple((seed * 31 + i * 7) % 117 + 3 for i in range(length))


def requests(count: int = 7) -> list[Request]:
    """Prompts and answers of many lengths, greedy and sampled by every setting, some penalised."""
    return [
        Request(
            str(i),
            prompt(i, 3 + 13 * i),
            Sampling(
                temperature=0.9 * (i % 2),
                top_k=20 * (i % 3),
                top_p=(1.0, 0.9)[i % 2],
                min_p=0.01 * (i % 4),
                repetition_penalty=(1.0, 1.3)[i % 3 == 2],
                seed=i,
            ),
            max_tokens=10 + 9 * i,
        )
        for i in range(count)
    ]


def outcomes(done: dict[str, Completion]) -> dict[str, tuple[object, ...]]:
    return {
        key: (one.ids, one.finish_reason, one.evicted, one.kv, one.cut_short, type(one.error))
        for key, one in done.items()
    }


def assert_same_cache(captured: Engine, eager: Engine) -> None:
    """The same tokens in the same slots of every row; numbers as far as the order of sums lets them be."""
    for row in range(len(eager.rows)):
        held, expected = captured.rows.snapshot(row), eager.rows.snapshot(row)
        assert held.cache.live == expected.cache.live
        assert replace(held.row, peak_bytes=0) == replace(expected.row, peak_bytes=0)
        for part, other in zip(expected.cache.parts, held.cache.parts, strict=True):
            for name, tensor in part.items():
                torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", but_few(policy_names(), "heavy-hitter", "full"))
def test_a_ragged_batch_gives_the_tokens_of_eager_steps(llama: LoadedModel, policy: str) -> None:
    budget = "200tok" if policy == "full" else "24tok"
    eager = answers(make_engine(llama, budget, policy, rows=3), requests())
    captured = capturing(llama, budget, policy, rows=3)
    assert outcomes(answers(captured, requests())) == outcomes(eager)
    assert captured.step == "captured"


@pytest.mark.parametrize("kv_dtype", ["auto", "int4"])
@pytest.mark.parametrize("family", but_few(["gemma2", "gpt_oss", "deepseek_v3"], "gemma2"))
def test_windows_sinks_and_experts_give_the_tokens_of_eager_steps(family: str, kv_dtype: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    asked = [Request("a", prompt(1, 40), max_tokens=40)]
    eager = make_engine(loaded, "24tok", kv_dtype=kv_dtype)
    captured = capturing(loaded, "24tok", kv_dtype=kv_dtype)
    assert outcomes(answers(captured, asked)) == outcomes(answers(eager, asked))


def test_there_is_one_graph_per_power_of_two_of_rows_and_per_extent_that_doubles(llama: LoadedModel) -> None:
    asked = [
        Request("a", prompt(1, 240), max_tokens=90),
        *(Request(str(i), prompt(i, 20), max_tokens=5) for i in range(4)),
    ]
    engine, eager = (make(llama, "300tok", rows=5) for make in (capturing, make_engine))
    assert outcomes(answers(engine, asked)) == outcomes(answers(eager, asked))
    assert engine.graphs is not None
    keys = set(engine.graphs._graphs)
    assert {key.extents for key in keys} == {((300, 256),), ((300, 300),), ((300, None),)}
    assert {key.rows for key in keys} == {1, 5}


def test_keys_that_are_rerotated_in_mid_answer_are_those_of_eager_steps(llama: LoadedModel) -> None:
    asked = [Request("a", prompt(1, 30), max_tokens=700, row=0)]
    eager, captured = make_engine(llama, "40tok"), capturing(llama, "40tok")
    assert outcomes(answers(captured, asked)) == outcomes(answers(eager, asked))
    assert captured.rows.snapshot(0).row.rot < captured.rows.snapshot(0).row.seen  # the window is 512 positions
    assert_same_cache(captured, eager)


def test_pinned_spans_stay(llama: LoadedModel) -> None:
    asked = [Request("1", prompt(1, 30), max_tokens=40, pins=((2, 9),), row=0)]
    asked += [Request("2", prompt(2, 9), max_tokens=40, pins=((0, 3),), row=1)]
    eager, captured = make_engine(llama, "30tok", rows=2), capturing(llama, "30tok", rows=2)
    assert outcomes(answers(captured, asked)) == outcomes(answers(eager, asked))
    assert_same_cache(captured, eager)


def test_a_cancelled_answer_leaves_the_cache_of_eager_steps(llama: LoadedModel) -> None:
    engines = make_engine(llama, "24tok"), capturing(llama, "24tok")
    for engine in engines:
        for event in engine.run([Request("a", prompt(1, 40), row=0)]):
            if isinstance(event, Token) and event.index == 14:
                engine.cancel("a")
        assert isinstance(event, Completion) and event.finish_reason == FinishReason.CANCELLED
    assert_same_cache(engines[1], engines[0])


def test_logits_that_are_no_numbers_end_the_answer() -> None:
    loaded = admitted(tiny_model("llama", {}))
    engine = capturing(loaded)
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(torch.nan)
    engine.rows[0].unfed = 5
    done = answers(engine, [Request("a", (5,), max_tokens=9, row=0)])["a"]
    assert isinstance(done.error, NumericError)


def test_requests_join_while_others_decode(llama: LoadedModel) -> None:
    def trickle() -> Iterator[Request | None]:
        for request in requests():
            yield request
            yield from [None] * 4

    done = [
        {event.request_id: event for event in engine.run(trickle()) if isinstance(event, Completion)}
        for engine in (make_engine(llama, "24tok", rows=3), capturing(llama, rows=3))
    ]
    assert outcomes(done[1]) == outcomes(done[0])


def test_buffers_stay_where_they_are_and_are_reported(llama: LoadedModel) -> None:
    engine = capturing(llama, rows=2)
    assert engine.graphs is not None
    tensors = (engine.graphs._inputs, engine.graphs._logits, *engine.cache.tensors())
    before = [tensor.data_ptr() for tensor in tensors]
    answers(engine, requests())
    assert [tensor.data_ptr() for tensor in tensors] == before
    assert measured_terms(engine)["step"] == engine.graphs.num_bytes == 2 * (4 * 8 + 128 * 4)


@pytest.mark.parametrize("family", but_few(["llama", "qwen3", "gemma2", "phi3", "olmo2"], "llama", "gemma2"))
def test_recorded_work_asks_the_host_for_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without data a value that is read raises; numbers made on the host are refused here."""

    class Watching(GraphRecorder):
        def record(self, body: Callable[[], None]) -> Callable[[], None]:
            def refuse(*_: object, **__: object) -> None:
                raise AssertionError("a copy from the host")

            with monkeypatch.context() as patched:
                for name in ("tensor", "as_tensor", "from_numpy"):
                    patched.setattr(torch, name, refuse)
                body()
            watched.append(body)
            return body

    watched: list[Callable[[], None]] = []
    loaded, meta = admitted(tiny_model(family, SUPPORTED[family])), torch.device("meta")
    nn.Module.to(loaded.model, meta)
    monkeypatch.setattr("kvlite.engine.feeding.try_replay", lambda *_: 2.0)
    engine = make_engine(replace(loaded, device=meta), recorder=Watching())
    assert engine.graphs is not None
    for live in (5, 64):  # with room, and with full slots
        engine.rows[0].unfed = 3
        engine.cache.grow(slice(0, 1), (live,))
        monkeypatch.setattr("kvlite.engine.decoding.sample", lambda logits, draws: [1] * len(draws))
        answers(engine, [Request("a", (3,), max_tokens=2, row=0)])
    assert engine.step == "captured" and len(watched) == 2


def test_a_model_with_state_runs_eagerly_and_says_why() -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    told: list[str] = []
    engine = make_engine(loaded, recorder=GraphRecorder(), warn=told.append)
    assert engine.step.startswith("eager: lfm2 under policy heavy-hitter is not captured: lfm2 models carry state")
    assert told == ["--capture: decode steps run " + engine.step.replace("eager: ", "eagerly: ")]
    asked = [Request("a", prompt(1, 20), max_tokens=12)]
    assert outcomes(answers(engine, asked)) == outcomes(answers(make_engine(loaded), asked))


class Timed(GraphRecorder):
    """Replays on a clock of its own: an eager step takes 10 ms, a replayed one `replayed_ms`."""

    def __init__(self, replayed_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cost = 0.0, (0.010, replayed_ms / 1000)
        monkeypatch.setattr("kvlite.engine.decode_graphs.time.perf_counter", lambda: self.now)
        original = DecodeGraphs.step

        def step(graphs: DecodeGraphs, *args: Any) -> torch.Tensor:
            self.now += self.cost[graphs.recorder is self]
            return original(graphs, *args)

        monkeypatch.setattr(DecodeGraphs, "step", step)


@pytest.mark.parametrize(("replayed_ms", "is_faster"), [(5.0, True), (9.8, False), (20.0, False)])
def test_steps_are_replayed_unasked_where_that_is_faster(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, replayed_ms: float, is_faster: bool
) -> None:
    told: list[str] = []
    engine = make_engine(llama, recorder=Timed(replayed_ms, monkeypatch), warn=told.append, must_capture=False)
    why = f"a replayed step takes {replayed_ms / 10:.2f} times as long as an eager one"
    assert engine.step == "captured" if is_faster else engine.step.endswith(why)
    assert (engine.graphs is not None) == is_faster and told == []
    asked = make_engine(llama, recorder=Timed(replayed_ms, monkeypatch))
    assert asked.step == "captured"


class Allocator:
    """Torch's, as far as recordings need it: a pool whose last graph is gone is not taken again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cached, self.of_graphs, self.uses = 0, 0, dict[object, int]()
        allocator = self

        class Graph:
            def __init__(self) -> None:
                self.pool: object = None

            def __del__(self) -> None:
                if self.pool is not None:
                    allocator.uses[self.pool] -= 1

            def replay(self) -> None:
                """Do nothing."""

        @contextmanager
        def graph(one: Graph, pool: object, **_: object) -> Iterator[None]:
            self.cached = 0
            if self.uses.get(pool) == 0:
                raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
            self.uses[pool] = self.uses.get(pool, 0) + 1
            one.pool = pool
            yield

        doubles: dict[str, object] = {
            "CUDAGraph": Graph,
            "graph": graph,
            "graph_pool_handle": object,
            "synchronize": lambda device: None,
            "device": lambda device: nullcontext(),
            "memory_reserved": lambda device: self.cached + self.of_graphs,
            "empty_cache": lambda: setattr(self, "cached", 0),
        }
        for name, double in doubles.items():
            monkeypatch.setattr(torch.cuda, name, double)

    def recorded(self) -> None:
        """A body that takes 64 bytes."""
        self.of_graphs += 64


def test_a_pool_outlives_its_graphs_and_what_they_hold_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    recorder = CudaGraphs(torch.device("cpu"))
    for count in (1, 2, 3):  # no graph outlives its round
        allocator.cached = 1000
        recorder.record(allocator.recorded)()
        assert recorder.num_bytes == 64 * count
    assert len(allocator.uses) == 1


class Broken(GraphRecorder):
    """Records a number of times, then raises."""

    def __init__(self, good: int, error: Exception) -> None:
        self.good, self.error = good, error

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return body


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory\nmore"), OSError("no compiler")])
@pytest.mark.parametrize("good", but_few([0, 2, 3], 0, 3))
def test_a_recorder_that_fails_leaves_eager_steps_that_lose_no_token(
    llama: LoadedModel, good: int, error: Exception
) -> None:
    told: list[str] = []
    engine = make_engine(llama, "24tok", rows=2, recorder=Broken(good, error), warn=told.append)
    eager = make_engine(llama, "24tok", rows=2)
    assert outcomes(answers(engine, requests())) == outcomes(answers(eager, requests()))
    assert engine.graphs is None and len(told) == 1 and str(error).partition("\n")[0] in told[0]
    assert_same_cache(engine, eager)


def test_memory_that_graphs_nobody_asked_for_do_not_get_is_no_error(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    told: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(feeding, "try_replay", refused)
        engine = make_engine(llama, recorder=GraphRecorder(), must_capture=False, warn=told.append)
        assert engine.step.startswith("eager: ") and "out of memory" in engine.step and told == []
        with pytest.raises(OutOfMemory):
            make_engine(llama, recorder=GraphRecorder())
    monkeypatch.setattr(feeding, "try_replay", lambda *_: 2.0)
    engine.rows.resize(make_engine(llama, "24tok").plan)  # leaves more
    assert engine.step == "captured"


def test_what_was_found_of_replayed_steps_holds_for_the_caches_to_come(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs: list[object] = []
    prove = feeding.try_replay
    monkeypatch.setattr(feeding, "try_replay", lambda *given: proofs.append(given) or prove(*given))
    plans = [make_engine(llama, budget, rows=rows).plan for budget, rows in (("60tok", 2), ("24tok", 1))]
    engine = capturing(llama, "24tok")
    for plan in plans:
        engine.rows.resize(plan)
        assert engine.step == "captured" and answers(engine, requests(3))
    assert len(proofs) == 1
    failed = make_engine(llama, "24tok", recorder=Broken(3, OSError("no compiler")))
    answers(failed, requests(4))
    failed.rows.resize(plans[0])
    assert failed.step.endswith("no compiler") and len(proofs) == 2


def test_heads_with_slots_of_their_own_are_proved_by_themselves(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs: list[object] = []
    monkeypatch.setattr(feeding, "try_replay", lambda *given: proofs.append(given) or 2.0)
    needs = [[0.1, 0.9][: layer.kv_heads] for layer in llama.shape.layers]
    engine = capturing(llama, "24tok", "replay")
    apart, together = (
        make_engine(llama, "64tok", "replay", head_shares=shares).plan for shares in (lambda slots: needs, None)
    )
    for plan in (together, apart, together, apart):
        engine.rows.resize(plan)
    assert len(proofs) == 2


@pytest.mark.parametrize("policy", ["replay", "heavy-hitter"])
def test_a_graph_over_full_slots_looks_at_no_positions_where_attention_counts_nothing(
    llama: LoadedModel, policy: str
) -> None:
    asked = [Request("a", prompt(1, 30), max_tokens=30)]
    engine, eager = (make(llama, "24tok", policy) for make in (capturing, make_engine))
    assert outcomes(answers(engine, asked)) == outcomes(answers(eager, asked))
    assert engine.graphs is not None
    slots = {part.num_slots for part in engine.cache.parts}
    assert (frozenset(slots) in {key.full for key in engine.graphs._graphs}) == (policy == "replay")


class Wrong(GraphRecorder):
    """Replays that do something else."""

    def __init__(self, engine: Callable[[], None], after: int) -> None:
        self.harm, self.after = engine, after

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            body()
            self.after -= 1
            if self.after == 0:
                self.harm()

        return replay


@pytest.mark.parametrize(
    ("after", "said"), [(1, "the logits of step 1, replayed"), (3, "the logits of step 3, replayed")]
)
def test_replays_that_differ_from_eager_steps_are_not_used(
    monkeypatch: pytest.MonkeyPatch, llama: LoadedModel, after: int, said: str
) -> None:
    weight = llama.model.lm_head.weight
    original = weight.detach().clone()

    def harm() -> None:
        weight.data[0] *= 1.001

    class Late(Wrong):
        def record(self, body: Callable[[], None]) -> Callable[[], None]:
            def replay() -> None:
                self.after -= 1
                if self.after == 0:
                    self.harm()
                body()

            return replay

    told: list[str] = []
    try:
        engine = make_engine(llama, recorder=Late(harm, after), warn=told.append)
    finally:
        weight.data.copy_(original)
    assert engine.graphs is None and said in told[0]


def test_replays_that_leave_other_slots_are_not_used(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []
    from kvlite.engine import decode_graphs

    original = decode_graphs.DecodeGraphs.__init__

    def noted(self: decode_graphs.DecodeGraphs, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        caches.append(self.cache)

    monkeypatch.setattr(decode_graphs.DecodeGraphs, "__init__", noted)
    last = llama.shape.layers.__len__() - 1

    def harm() -> None:
        caches[-1].parts[last].tensors["rot"][0, 0, 3] += 1  # nothing reads it

    told: list[str] = []
    make_engine(llama, recorder=Wrong(harm, 9), warn=told.append)
    assert "the slots after replayed steps" in told[0]


def test_graphs_are_for_cuda_and_can_be_left_out() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert [wants_graphs(None, cpu), wants_graphs(False, cuda)] == [False, False]
    assert [wants_graphs(None, cuda), wants_graphs(True, cuda)] == [True, True]
    with pytest.raises(UsageError, match="--capture: CUDA graphs need a CUDA device, and this is cpu; leave it out"):
        wants_graphs(True, cpu)
    assert issubclass(NotCapturable, Exception)
