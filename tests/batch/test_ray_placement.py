"""The place of workers on the machines of a Ray cluster; nothing of Ray is needed to know it."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.workers.messages import Setup
from kvlite.batch.workers.on_ray import Placement, RayActors, placement
from kvlite.errors import MissingPackage, UsageError
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions

GPUS = [{"CPU": 64, "GPU": 4}, {"CPU": 64, "GPU": 4}, {"CPU": 8}]


@pytest.mark.parametrize(
    ("asked", "nodes", "count", "expected"),
    [
        ("auto", GPUS, None, Placement("cuda", 8, 1, 1, 1)),
        ("cuda", GPUS, 3, Placement("cuda", 3, 1, 1, 1)),
        ("cpu", GPUS, None, Placement("cpu", 3, 32, 0, 2)),
        ("auto", [{"CPU": 2}], 2, Placement("cpu", 2, 1, 0, 2)),
        ("auto", [{"CPU": 3}, {"CPU": 3}], 3, Placement("cpu", 3, 1, 0, 3)),
        ("auto", [{"CPU": 2}], 3, Placement("cpu", 3, 0.5, 0, 4)),
    ],
)
def test_workers_get_a_gpu_each_or_as_many_processors_as_there_are(
    asked: str, nodes: list[dict[str, float]], count: int | None, expected: Placement
) -> None:
    assert placement(asked, nodes, count) == expected


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(1, 200))
def test_all_workers_find_room(processors: list[int], count: int) -> None:
    placed = placement("cpu", [{"CPU": number} for number in processors], count)
    fit = [int(number / placed.cpus + 1e-9) for number in processors]
    assert sum(fit) >= count
    assert max(fit) == placed.sharers


@pytest.mark.parametrize(
    ("asked", "count", "said"),
    [
        ("cuda:1", None, "--device cuda:1: Ray chooses"),
        ("mps", None, "--device mps: Ray chooses"),
        ("cuda", 9, "--workers 9 are more than the 8 GPUs"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused(asked: str, count: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        placement(asked, GPUS, count)
    with pytest.raises(UsageError, match="the cluster has no GPU"):
        placement("cuda", [{"CPU": 2}], None)


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    setup = Setup(
        options=ModelOptions(model="demo"),
        answer=AnswerOptions(),
        batch=BatchOptions(input="-"),
        batch_size="auto",
        required=None,
        version="1",
    )
    with pytest.raises(MissingPackage, match=r"--ray needs ray; `pip install \"kvlite-llm\[ray\]\"`"):
        RayActors("local", 2, setup)
