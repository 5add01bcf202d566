"""What only a CUDA device can show: the same tokens, fixed addresses, an allocator that does not grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvlite.engine.request import Request
from kvlite.models.gate import admit
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
    assert engine.meter.peaks["decode"] >= engine.plan.reserved_bytes
