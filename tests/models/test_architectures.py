"""Every supported architecture equals transformers while the budget holds everything; others are refused by name."""

from __future__ import annotations

import pytest
import torch

from kvlite.engine.request import Request
from kvlite.errors import UnsupportedModel
from kvlite.memory.shape import ModelShape
from tests.architectures import REFUSED, REPRESENTATIVES, SUPPORTED, is_here, tiny_model
from tests.engine_for_tests import admitted, answers, feed, make_engine
from tests.matrix import but_few

PROMPT, NEW = 45, 12


def test_at_least_forty_architectures_are_held() -> None:
    assert len(SUPPORTED) >= 40


@pytest.mark.parametrize("family", but_few(SUPPORTED, *REPRESENTATIVES))
def test_room_for_everything_equals_full_attention(family: str) -> None:
    if not is_here(family):
        pytest.skip(f"this transformers has no {family}")
    model = tiny_model(family, SUPPORTED[family])
    ids = torch.randint(2, 120, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    loaded = admitted(model)
    engine = make_engine(loaded, f"{PROMPT + NEW}tok")
    completion = answers(engine, [Request("a", tuple(ids[0].tolist()), max_tokens=NEW)])["a"]
    state_bytes = loaded.state.num_bytes if loaded.state else 0

    assert completion.ids == tuple(expected.sequences[0, PROMPT:].tolist())
    assert engine.cache.num_bytes + state_bytes == engine.plan.reserved_bytes

    engine.rows.reset(0)
    sequence = expected.sequences[0, :-1].tolist()
    logits = feed(loaded, engine.cache, sequence, [11, 11, 11, 11, 1, *[1] * (NEW - 1)])[PROMPT - 1 :]
    reference = torch.stack(expected.logits)[:, 0]
    assert (logits - reference).abs().max() <= 1e-4 * reference.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_bounded_is_refused_by_name(family: str) -> None:
    config = tiny_model(family, REFUSED[family]).config.to_dict()
    with pytest.raises(UnsupportedModel, match=family.removesuffix("_text")):
        ModelShape.from_config({**config, "dtype": "float32"})
