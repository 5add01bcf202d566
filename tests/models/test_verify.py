"""A model is trusted for what it does, not for its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvlite.errors import UnsupportedModel, UsageError
from tests.architectures import REFUSED, SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, shape_of


def test_a_model_that_bypasses_the_attention_interface_is_refused() -> None:
    bloom = tiny_model("bloom", REFUSED["bloom"])
    looks_right = shape_of(tiny_model("llama", {"num_key_value_heads": 4}))
    with pytest.raises(UnsupportedModel, match="4 of 4 attention layers bypass"):
        admitted(bloom, replace(looks_right, family="bloom"))


def test_a_shape_that_does_not_match_the_keys_is_refused() -> None:
    model = tiny_model("llama", {})
    shape = shape_of(model)
    narrow = tuple(replace(layer, k_dim=8) for layer in shape.layers)
    with pytest.raises(UnsupportedModel, match="llama models cannot run"):
        admitted(model, replace(shape, layers=narrow))


def test_a_window_that_config_does_not_know_is_refused() -> None:
    model = tiny_model("mistral", SUPPORTED["mistral"])
    shape = shape_of(model)
    wide = tuple(replace(layer, kind="full", window=None) for layer in shape.layers)
    with pytest.raises(UnsupportedModel, match="12 positions back"):
        admitted(model, replace(shape, layers=wide))


def test_a_model_that_does_not_run_by_itself_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError  # as a quantised layer does whose weights are plain

    model = tiny_model("llama", SUPPORTED["llama"])
    monkeypatch.setattr(model.model.layers[0].mlp, "forward", fails)
    with pytest.raises(UnsupportedModel, match="the dry run failed: AssertionError; choose another"):
        admitted(model)


def test_float16_that_is_too_narrow_for_a_model_is_named() -> None:
    model = tiny_model("llama", {}).half()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(6e4)
    with pytest.raises(UsageError, match="not finite in float16; give --dtype float32"):
        admitted(model)


def test_logits_that_differ_from_eager_attention_are_refused() -> None:
    model = tiny_model("qwen2", {})
    layer = model.model.layers[1].self_attn
    forward, calls = layer.forward, []

    def forward_differently(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        out, weights = forward(*args, **kwargs)
        return (out if len(calls) == 1 else out * 1.5), weights  # the first call is the eager reference

    layer.forward = forward_differently
    with pytest.raises(UnsupportedModel, match="logits differ from eager attention"):
        admitted(model)


@pytest.mark.parametrize(
    ("family", "start", "half", "interleaved"),
    [
        ("llama", 0, 8, False),
        ("phi", 0, 4, False),
        ("cohere", 0, 8, True),
        ("glm", 0, 4, True),
        ("deepseek_v3", 8, 4, False),
        ("deepseek_v2", 8, 4, True),
        ("nanochat", 0, 8, False),
    ],
)
def test_rotations_are_learned_from_the_keys(family: str, start: int, half: int, interleaved: bool) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    assert loaded.rotations is not None
    for rotation in loaded.rotations.values():
        assert rotation is not None
        assert (rotation.start, len(rotation.inv_freq), rotation.interleaved) == (start, half, interleaved)


def test_a_layer_without_positions_has_no_rotation() -> None:
    loaded = admitted(tiny_model("smollm3", {}))
    assert loaded.rotations is not None
    assert [rotation is None for rotation in loaded.rotations.values()] == [False, False, False, True]


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_bigcode"])
def test_learned_positions_cannot_be_rotated(family: str) -> None:
    assert admitted(tiny_model(family, SUPPORTED[family])).rotations is None


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ],
    ids=["dynamic", "yarn", "llama3"],
)
def test_scaled_rotations_are_learned(rope: dict[str, float | str]) -> None:
    loaded = admitted(tiny_model("llama", {"rope_parameters": rope}))
    assert loaded.rotations is not None
    assert all(rotation is not None for rotation in loaded.rotations.values())


def test_the_gate_leaves_a_hybrids_state_blank() -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    assert loaded.state is not None
    assert all(not torch.any(value) for value in loaded.state.tensors())
