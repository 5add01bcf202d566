"""config.json files as they are in the wild, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.memory.format import FORMATS
from kvlite.memory.shape import LayerShape, ModelShape
from tests.memory.class_defaults import FILE, class_defaults

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def shape_of(name: str) -> ModelShape:
    return ModelShape.from_config(json.loads((CONFIGS / f"{name}.json").read_text()))


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("llama-2-7b", 524_288),
        ("llama-3.1-8b", 131_072),
        ("qwen2.5-0.5b", 12_288),
        ("gemma-2-2b", 106_496),
        ("mistral-7b-v0.1", 131_072),
        ("mistral-7b-v0.3", 131_072),
        ("phi-3.5-mini", 393_216),
        ("gemma-3-4b", 139_264),
        ("gpt2", 36_864),
        ("starcoder", 20_480),
        ("opt-125m", 36_864),
        ("deepseek-v2-lite", 276_480),
        ("qwen3-next-80b", 24_576),
        ("lfm2-1.2b", 12_288),
        ("gpt-oss-20b", 49_152),
    ],
)
def test_bytes_of_one_token_in_sixteen_bits(name: str, per_token: int) -> None:
    assert shape_of(name).kv_bytes_per_token(FORMATS["float16"]) == per_token


def test_what_config_json_leaves_out_is_the_default_of_its_class() -> None:
    published = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    shape = ModelShape.from_config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **published}})
    assert (shape.query_heads, shape.vocab, shape.max_positions) == (8, 262_208, 131_072)
    assert shape.layers[0] == LayerShape("sliding", 4, 256, 256, 1024, 0)
    assert json.loads(FILE.read_text("utf-8")) == class_defaults(), "run: python -m tests.memory.class_defaults"


SCALED = {"max_position_embeddings": 4096, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 4096}}, 16384),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 10240),
        ({"rope_scaling": {"type": "yarn"}}, 4096),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 4096),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 4096),
        ({"max_position_embeddings": ...}, 2048),
        ({"max_position_embeddings": ..., "rope_scaling": {"type": "linear", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": ..., "model_type": "qwen2"}, 32768),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 4096),
    ],
)
def test_the_window_is_the_one_that_scaling_makes_or_the_class_has(fields: dict[str, Any], window: int) -> None:
    merged = {name: value for name, value in (LLAMA | SCALED | fields).items() if value is not ...}
    assert ModelShape.from_config(merged).max_positions == window


def test_every_config_of_the_test_data_is_read() -> None:
    for path in CONFIGS.glob("*.json"):
        assert shape_of(path.stem).layers


def test_gemma_2_slides_in_every_other_layer() -> None:
    shape = shape_of("gemma-2-2b")
    assert [layer.window for layer in shape.layers] == [4096, None] * 13
    assert shape.full_cache_bytes(8192) == 13 * (4096 + 8192) * 4 * 512 * 2


def test_a_composite_config_is_read_through_its_text_model() -> None:
    shape = shape_of("gemma-3-4b")
    assert shape.family == "gemma3_text"
    assert shape.dtype == "bfloat16"
    assert [layer.kind for layer in shape.layers[:6]] == ["sliding"] * 5 + ["full"]
    assert shape.layers[0].window == 1024


def test_an_old_composite_config_names_its_text_model_only_outside() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "model_type"}
    shape = ModelShape.from_config({"model_type": "gemma3", "text_config": {**text, "num_key_value_heads": 2}})
    assert shape.layers[0] == LayerShape("sliding", 2, 256, 256, 4096)


def test_one_window_for_all_layers_or_none() -> None:
    assert {layer.window for layer in shape_of("mistral-7b-v0.1").layers} == {4096}
    assert {layer.kind for layer in shape_of("mistral-7b-v0.3").layers} == {"full"}


def test_a_window_that_is_switched_off_is_no_window() -> None:
    assert {layer.window for layer in shape_of("qwen2.5-0.5b").layers} == {None}


def test_latent_attention_is_held_expanded_per_head() -> None:
    assert set(shape_of("deepseek-v2-lite").layers) == {LayerShape("full", 16, 192, 128)}


def test_layers_of_constant_state_have_no_slots() -> None:
    shape = shape_of("lfm2-1.2b")
    assert [i for i, layer in enumerate(shape.layers) if layer.kv_heads] == [2, 5, 8, 10, 12, 14]
    assert shape.layers[0] == LayerShape("state", 0, 0, 0, None, 2048 * 3 * 2)
    assert shape.full_cache_bytes(1000) == 1000 * 12_288 + 10 * 2048 * 3 * 2


def test_a_wider_dtype_widens_the_convolution_but_not_the_fp32_state() -> None:
    config = json.loads((CONFIGS / "qwen3-next-80b.json").read_text())
    narrow, wide = (ModelShape.from_config(config, dtype=dtype).layers[0] for dtype in ("float16", "float32"))
    assert wide.state_bytes - narrow.state_bytes == (2 * 16 * 128 + 32 * 128) * 4 * 2


def test_learned_positions_end_where_their_table_ends() -> None:
    assert (shape_of("gpt2").positions, shape_of("gpt2").max_positions, shape_of("gpt2").rope_type) == (
        "learned",
        1024,
        None,
    )


@pytest.mark.parametrize(
    ("fields", "rope_type"),
    [
        ({}, "default"),
        ({"rope_scaling": None, "rope_theta": 1e6}, "default"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}, "sliding_attention": {"rope_theta": 1e4}}},
            "linear",
        ),
    ],
)
def test_rope_type_is_read_in_every_spelling(fields: dict[str, Any], rope_type: str) -> None:
    assert ModelShape.from_config({**LLAMA, **fields}).rope_type == rope_type


def test_phi_3_calls_longrope_by_old_names() -> None:
    assert (
        ModelShape.from_config({**LLAMA, "model_type": "phi3", "rope_scaling": {"type": "su"}}).rope_type == "longrope"
    )


@pytest.mark.parametrize(
    ("fields", "kwargs", "dtype"),
    [
        ({"torch_dtype": "float16"}, {}, "float16"),
        ({"dtype": "float32"}, {}, "float32"),
        ({"torch_dtype": "torch.bfloat16"}, {}, "bfloat16"),
        ({"dtype": "float32"}, {"stored_dtype": "float16"}, "float32"),
        ({}, {"stored_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, {"dtype": "float16"}, "float16"),
        ({}, {}, "bfloat16"),
    ],
)
def test_dtype_is_the_callers_then_the_configs_then_the_weights(
    fields: dict[str, Any], kwargs: dict[str, str], dtype: str
) -> None:
    assert ModelShape.from_config({**LLAMA, **fields}, **kwargs).dtype == dtype


def test_an_absent_field_means_the_class_default_and_null_means_none() -> None:
    mistral = {**LLAMA, "model_type": "mistral", "num_attention_heads": 8, "head_dim": None}
    assert ModelShape.from_config(mistral).layers[0] == LayerShape("sliding", 8, 8, 8, 4096)
    mistral |= {"sliding_window": None, "num_key_value_heads": None}
    assert ModelShape.from_config(mistral).layers[0] == LayerShape("full", 8, 8, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": "32"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 1.5},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": None},
        {"hidden_size": []},
        {"hidden_size": 10**30},
        {"hidden_size": 2},
        {"num_attention_heads": {"a": 1}},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 0},
        {"head_dim": "wide"},
        {"vocab_size": None},
        {"max_position_embeddings": -5},
        {"model_type": 7},
        {"model_type": None},
        {"model_type": "gemma2", "sliding_window": "4096"},
        {"model_type": "gemma2", "layer_types": "full_attention"},
        {"model_type": "gemma2", "layer_types": ["full_attention"]},
        {"model_type": "gemma2", "layer_types": [1, 2]},
        {"model_type": "lfm2", "full_attn_idxs": [0, "1"]},
        {"model_type": "bamba", "attn_layer_indices": [0], "mamba_n_heads": 7},
        {"model_type": "qwen2", "use_sliding_window": "yes"},
        {"rope_scaling": [1]},
        {"text_config": []},
        {"torch_dtype": 16},
        {"intermediate_size": "big"},
    ],
)
def test_a_malformed_value_is_one_line_that_names_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises(BrokenModel, match=r"config\.json") as refused:
        ModelShape.from_config({**LLAMA, **fields})
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "model_type"])
def test_a_missing_size_is_named(missing: str) -> None:
    with pytest.raises(BrokenModel, match=missing):
        ModelShape.from_config({key: value for key, value in LLAMA.items() if key != missing})


def test_a_config_that_is_no_object_is_broken() -> None:
    with pytest.raises(BrokenModel, match="expected an object"):
        ModelShape.from_config([LLAMA])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        *(({"model_type": name}, name) for name in ("bloom", "falcon", "gptj", "mpt", "minimax", "jamba", "mamba")),
        ({"model_type": "llama4_text"}, "chunked attention"),
        ({"model_type": "llama4", "text_config": {}}, "chunked attention"),
        ({"model_type": "t5"}, "an encoder and a decoder"),
        ({"model_type": "none_such"}, "unknown attention layout"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 2}, "unknown attention layout"),
        ({"model_type": "gemma2", "layer_types": ["linear_attention"] * 2}, "unknown attention layout"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "both directions"),
        ({"model_type": "granitemoehybrid", "mamba_n_heads": 8}, "no attention layer"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        ModelShape.from_config({**LLAMA, **fields})


@pytest.mark.parametrize(
    ("config", "is_tied"),
    [
        (LLAMA, True),
        ({**LLAMA, "tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": False, "text_config": LLAMA}, False),
        ({"tie_word_embeddings": False, "text_config": {**LLAMA, "tie_word_embeddings": True}}, True),
    ],
)
def test_embedding_and_head_are_one_where_the_text_model_or_the_whole_says_so(
    config: dict[str, Any], is_tied: bool
) -> None:
    assert ModelShape.from_config(config).is_tied is is_tied


def test_quantised_weights_are_told_by_the_config() -> None:
    assert not ModelShape.from_config(LLAMA).is_quantised
    assert ModelShape.from_config({**LLAMA, "quantization_config": {}}).is_quantised
