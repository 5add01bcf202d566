"""A decode step waits for nothing: on tensors without data it runs through, where any read of a value would raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import load_policy
from kvlite.memory.format import FORMATS
from kvlite.models.fusing import fuse
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.cache.driving import make_plan
from tests.engine_for_tests import admitted
from tests.matrix import but_few

META = torch.device("meta")
SLOTS = 16
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3"]
POLICIES = ["h2o", "scissorhands", "keyformer", "tova", "snapkv", "pyramid", "keydiff", "window"]
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}


@contextmanager
def no_data_from_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tensor made of the host's numbers is copied, which a captured step would do only once."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a copy from the host")

    with monkeypatch.context() as patched:
        for name in ("tensor", "as_tensor", "from_numpy"):
            patched.setattr(torch, name, refuse)
        yield


def decode(loaded: LoadedModel, policy_name: str, monkeypatch: pytest.MonkeyPatch, stored: str = "float32") -> None:
    """Feed one row without data: a chunk into free slots, a chunk for which others go, and single tokens."""
    nn.Module.to(loaded.model, META)
    loaded, policy = replace(loaded, device=META), load_policy(policy_name)
    plan = make_plan(loaded.shape, f"{SLOTS}tok", policy, dtype=stored)
    cache = SlotCache(loaded.shape, plan, policy, FORMATS[stored], META)
    for tokens in (SLOTS // 4, 1, SLOTS // 4, *[1] * SLOTS, SLOTS // 4, 1):
        ids = torch.zeros(1, tokens, dtype=torch.int64, device=META)
        pos = torch.zeros(1, tokens, dtype=torch.int32, device=META)
        step = cache.begin(slice(0, 1), pos, pos, (tokens,), None)
        with no_data_from_the_host(monkeypatch):
            logits = loaded.forward(ids, cache, step)
    assert logits.shape == (1, 1, loaded.shape.vocab)
    assert all(cache.live(0, part.num_slots) == part.num_slots for part in cache.parts)


@pytest.mark.parametrize("family", but_few(FAMILIES, "llama", "gemma2"))
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_decode_step_reads_no_value(family: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    decode(fuse(loaded) if fused else loaded, "heavy-hitter", monkeypatch)


@pytest.mark.parametrize("policy", but_few(POLICIES, "keyformer", "snapkv"))
def test_no_policy_reads_a_value(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode(fuse(admitted(tiny_model("llama", {}))), policy, monkeypatch)


@pytest.mark.parametrize("stored", ["int8", "k6v4", "int4"])
def test_no_slot_format_reads_a_value(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode(fuse(admitted(tiny_model("llama", {}))), "heavy-hitter", monkeypatch, stored)


def test_a_rope_that_asks_how_far_it_is_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("llama", DYNAMIC))
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        decode(loaded, "heavy-hitter", monkeypatch)


def test_a_copy_from_the_host_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("llama", {}))
    norm = loaded.model.model.norm
    monkeypatch.setattr(norm, "forward", lambda x: x * torch.tensor(2.0))
    with pytest.raises(AssertionError, match="a copy from the host"):
        decode(loaded, "heavy-hitter", monkeypatch)
