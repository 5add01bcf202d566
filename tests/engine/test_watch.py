"""What a CUDA graph cannot hold is found before there is one, inside inference mode and outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvlite.engine.watch import AsksTheHost, Watch

CPU, META = torch.device("cpu"), torch.device("meta")
X = torch.arange(6).view(2, 3)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("work", "what"),
    [
        (lambda: X.sum().item(), "reads the device"),
        (lambda: bool(X.any()), "reads the device"),
        (lambda: 3 in X, "reads the device"),
        (lambda: torch.equal(X, X), "reads the device"),
        (lambda: X.nonzero(), "takes its shape"),
        (lambda: X[X > 2], "takes its shape"),
        (lambda: X[0].repeat_interleave(X[1]), "takes its shape"),
    ],
)
def test_reading_and_shapes_from_values_are_found(work: Callable[[], object], what: str, inference: bool) -> None:
    with pytest.raises(AsksTheHost, match=what), torch.inference_mode(inference), Watch(CPU):
        work()


@pytest.mark.parametrize("work", [lambda: X.to(META), lambda: torch.tensor(5, device=META)])
def test_what_comes_from_the_host_is_found(work: Callable[[], Tensor]) -> None:
    with pytest.raises(AsksTheHost, match="copies between host and device"), torch.inference_mode(), Watch(META):
        work()


def test_work_that_stays_on_the_device_passes() -> None:
    with torch.inference_mode(), Watch(CPU):
        y = torch.where(X > 2, X, -1).cumsum(-1).sort(-1).values
        y = y.float().softmax(-1).masked_fill(X > 4, 0.0) @ torch.ones(3, 1)
        assert y.shape == (2, 1)
