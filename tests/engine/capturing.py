"""Engines that capture without a graph: a recorded step is run again (`Rerun`), one ahead of the host all the same."""

from __future__ import annotations

from dataclasses import replace

import torch

from kvlite.engine.engine import Engine
from kvlite.engine.graphs import Rerun
from kvlite.engine.request import Completion, Request, Sampling
from kvlite.models.loaded import LoadedModel
from tests.engine_for_tests import make_engine


def capturing(loaded: LoadedModel, budget: str = "24tok", policy: str = "heavy-hitter", **options: object) -> Engine:
    engine = make_engine(loaded, budget, policy, **options)
    engine.capture(Rerun())
    assert str(engine.step) == "captured"
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


def outcome(done: Completion) -> tuple[object, ...]:
    return done.ids, done.finish_reason, done.evicted, done.kv, done.cut_short, type(done.error)


def assert_same(eager: dict[str, Completion], captured: dict[str, Completion]) -> None:
    assert {key: outcome(done) for key, done in captured.items()} == {key: outcome(done) for key, done in eager.items()}


def assert_same_cache(captured: Engine, eager: Engine) -> None:
    """The same tokens in the same slots of every row; numbers as far as the order of sums lets them be."""
    for row in range(eager.rows):
        held, expected = captured.snapshot(row), eager.snapshot(row)
        assert held.cache.live == expected.cache.live
        assert replace(held.row, peak_bytes=0) == replace(expected.row, peak_bytes=0)
        for index, layer in expected.cache.layers.items():
            for name, tensor in layer.items():
                torch.testing.assert_close(held.cache.layers[index][name], tensor, rtol=1e-4, atol=1e-5)
