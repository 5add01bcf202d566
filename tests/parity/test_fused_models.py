"""Whole models whose fused modules run on Triton kernels, in the interpreter: the logits stay what they were."""

from __future__ import annotations

import os

import pytest
import torch

from kvlite.engine.request import Request
from kvlite.models.fusing import fuse, probe_logits
from kvlite.models.verify import relative_error
from kvlite_kernels import choice
from kvlite_kernels.backend import KernelsUnavailable
from kvlite_kernels.choice import choose_ops
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no CUDA device
    pytest.skip("on a CUDA device these need TRITON_INTERPRET=1", allow_module_level=True)

CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "mixtral"]


@pytest.mark.parametrize("family", but_few(FAMILIES, "llama"))
def test_logits_stay_what_they_were_on_triton(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    expected = probe_logits(loaded)
    on_torch = fuse(admitted(tiny_model(family, SUPPORTED[family])))
    on_triton = fuse(loaded, choose_ops("triton", CPU))
    assert on_triton.fused == on_torch.fused
    assert relative_error(probe_logits(on_triton), expected) < 3e-6


@pytest.mark.matrix
def test_the_engine_gives_the_same_tokens_with_everything_on_triton() -> None:
    request = Request("a", tuple(range(5, 36)), max_tokens=12)
    expected = answers(make_engine(admitted(tiny_model("qwen3", {})), "24tok"), [request])["a"]
    loaded = fuse(admitted(tiny_model("qwen3", {})), choose_ops("triton", CPU))
    done = answers(make_engine(loaded, "24tok", kernels="triton"), [request])["a"]
    assert done.ids == expected.ids
    assert (done.kv.tokens_kept, done.kv.tokens_evicted) == (expected.kv.tokens_kept, expected.kv.tokens_evicted)


def test_cache_and_model_choose_by_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in choice.KERNELS:
        cache = make_engine(admitted(tiny_model("llama", {})), "24tok", kernels=wanted).cache
        assert choose_ops(wanted, CPU).name == cache.backend.name
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelsUnavailable, match="need a CUDA device"):
        choose_ops("triton", CPU)
