"""From options to an engine: what is refused before weights are loaded."""

from __future__ import annotations

import pytest

from kvlite.catalog.files import local_files
from kvlite.catalog.names import resolve_model
from kvlite.cli import loading, opening
from kvlite.cli.opening import open_model
from kvlite.cli.room import cache_spec
from kvlite.console import Console
from kvlite.errors import DoesNotFit, UsageError
from kvlite.memory.shape import ModelShape
from kvlite.options import ModelOptions


def test_the_weights_are_measured_as_they_will_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    files = local_files(resolve_model("demo"))
    assert files.parameters is not None and files.weight_bytes is not None
    assert files.weight_bytes < 3 * files.parameters  # stored in two bytes each, computed with in four
    for module in (loading, opening):
        monkeypatch.setattr(module, "free_bytes", lambda _: 3 * files.parameters)
    with pytest.raises(DoesNotFit, match=f"weights take {4 * files.parameters / 1e6:.2f} MB"):
        open_model(ModelOptions(model="demo", device="cpu"), Console(quiet=True))
    with pytest.raises(DoesNotFit, match="KV budget"):  # the weights fit, and leave nothing for the cache
        open_model(ModelOptions(model="demo", device="cpu", dtype="bf16", kv_budget="50MB"), Console(quiet=True))


def test_a_dtype_that_does_not_exist_is_refused_before_any_file_is_looked_for() -> None:
    with pytest.raises(UsageError, match="unknown dtype 'int4'"):
        open_model(ModelOptions(model="org/nowhere", offline=True, dtype="int4"), Console(quiet=True))


@pytest.mark.parametrize(
    ("policy", "kernels", "on_full", "kept"),
    [
        ("heavy-hitter", "triton", None, True),
        ("heavy-hitter", "triton", "stop", False),
        ("heavy-hitter", "torch", None, False),
        ("heavy-hitter", "auto", None, False),
        ("h2o", "triton", None, False),
    ],
)
def test_the_order_of_slots_is_planned_where_kernels_keep_one(
    policy: str, kernels: str, on_full: str | None, kept: bool
) -> None:
    shape = ModelShape.from_config(local_files(resolve_model("demo")).config)
    options = ModelOptions(model="demo", kv_policy=policy, kernels=kernels, on_full=on_full)
    assert cache_spec(options, shape).keeps_order == kept
