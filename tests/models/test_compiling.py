"""Compiled decode steps give the logits of the others, or are left out and say why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch

from kvlite.models import compiling
from kvlite.models.compiling import CompiledDecoder, compiled
from kvlite.models.eightbit import with_coded_head
from kvlite.models.fusing import fuse, probe_logits
from kvlite.models.gate import relative_error
from kvlite.models.loaded import LoadedModel
from kvlite_kernels.int8 import HostProducts
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself


@pytest.fixture
def loaded() -> LoadedModel:
    return fuse(admitted(tiny_model("llama", {})))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Compile into a folder that goes away, and forget what was compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield
    torch.compiler.reset()


@pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler, g++")
@pytest.mark.parametrize("codes_head", [False, True], ids=["", "int8 head"])
def test_a_compiled_step_gives_the_same_logits(loaded: LoadedModel, codes_head: bool) -> None:
    if codes_head:
        loaded, _ = with_coded_head(loaded, HostProducts())
    expected = probe_logits(loaded)
    found, obstacle = compiled(loaded)
    assert obstacle is None and found.fused == (*loaded.fused, "compiled")
    assert relative_error(probe_logits(found), expected) < 5e-6


def test_without_a_compiler_the_model_stays_and_the_reason_is_said(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    found, obstacle = compiled(loaded)
    assert (found, obstacle) == (loaded, "no C++ compiler works here; install one, or name it in the variable CXX")


def test_other_logits_are_not_taken(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(function: Any, **_: Any) -> Any:
        return lambda ids, positions, last: 2.0 * function(ids, positions, last)

    monkeypatch.setattr(compiling.torch, "compile", twice)
    found, obstacle = compiled(loaded)
    assert found is loaded and obstacle is not None and obstacle.startswith("compiled logits differ by ")


def test_a_model_that_is_no_single_function_is_not_compiled(loaded: LoadedModel) -> None:
    pieces = replace(loaded, decoder=None)
    assert compiled(pieces) == (pieces, "llama models, or what is not fused, do not run as one function")


def test_chunks_run_as_they_are(loaded: LoadedModel) -> None:
    seen = []

    def run(name: str) -> Any:
        return lambda ids, positions, last: seen.append((name, ids.shape[1], last))

    decoder = CompiledDecoder(run("plain"), run("step"))
    for tokens in (1, 7):
        decoder(torch.zeros(1, tokens, dtype=torch.int64), torch.zeros(1, tokens, dtype=torch.int64), 1)
    assert seen == [("step", 1, 1), ("plain", 7, 1)]
