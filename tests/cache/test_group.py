"""What layers do together, as many as are ranked at once, is what each would do alone."""

from __future__ import annotations

import pytest
import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import load_policy
from tests.cache.driving import Driver, attention_layer, make_cache, model_shape, random_streams

SHAPE = model_shape(*[attention_layer(2, 4)] * 5, attention_layer(2, 4, window=9))
FEEDS = ((6, 6), (1, 1), (9, 4), (1, 1), (1, 0), (1, 1), (3, 8), (1, 1), (1, 1))


def driven(policy: str, stored: str) -> SlotCache:
    cache = make_cache(SHAPE, 14, load_policy(policy), rows=2, dtype=stored)
    driver = Driver(cache, [random_streams(SHAPE, 2, 60, seed) for seed in (0, 1)])
    for counts in FEEDS:
        driver.feed(counts)
    return cache


@pytest.mark.parametrize("stored", ["float32", "int4"])
@pytest.mark.parametrize("policy", ["heavy-hitter", "h2o", "keydiff", "window"])
@pytest.mark.parametrize("together", [1, 2 * 2 * 2 * 15])
def test_layers_ranked_apart_keep_what_they_keep_together(
    monkeypatch: pytest.MonkeyPatch, policy: str, stored: str, together: int
) -> None:
    at_once = driven(policy, stored)
    monkeypatch.setattr("kvlite.cache.group.SCORED_TOGETHER", together)
    for one, other in zip(at_once.tensors(), driven(policy, stored).tensors(), strict=True):
        assert torch.equal(one, other)
