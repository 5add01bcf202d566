"""Configs and sampling from metadata alone; tests/models/test_gguf_weights.py compares what they compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from kvlite.errors import ModelError
from kvlite.gguf.families import Config, config_of
from kvlite.gguf.folder import generation_of
from kvlite.gguf.header import Header, TensorInfo, parse_header, read_header
from tests.architectures import SUPPORTED, tiny_model
from tests.gguf.gguf_file import write_model

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}


def header_of(folder: Path, family: str = "llama", **about: Any) -> Header:
    """The header of a tiny model's file that says `about` of its architecture."""
    architecture = family.removesuffix("_text")
    changed = {f"{architecture}.{key}": value for key, value in about.items()}
    return read_header(write_model(folder / "model.gguf", tiny_model(family, SUPPORTED[family]), **changed))


def rope_of(folder: Path, **about: Any) -> Config:
    rope: Config = config_of(header_of(folder, **about))["rope_parameters"]
    return rope


@pytest.mark.parametrize(
    ("bytes_by_type", "dtype"),
    [
        ({"F32": 2000}, "float32"),
        ({"F16": 1000, "F32": 100}, "bfloat16"),
        ({"BF16": 1000, "F32": 100}, "bfloat16"),
        ({"Q8_0": 1088, "F32": 100}, "bfloat16"),
        ({"F16": 100, "F32": 1000}, "float32"),
    ],
)
def test_a_file_computes_in_float32_only_where_most_of_it_is(
    bytes_by_type: dict[str, int], dtype: str, tmp_path: Path
) -> None:
    metadata = header_of(tmp_path).metadata
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 34 / 32}
    tensors = {
        name: TensorInfo(tmp_path, (1, int(held / sizes[name])), name, 0) for name, held in bytes_by_type.items()
    }
    tensors["token_embd.weight"] = tensors.pop(next(iter(tensors)))
    assert config_of(Header(tmp_path, metadata, tensors))["dtype"] == dtype


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_kind_scales_linearly(key: str, tmp_path: Path) -> None:
    assert rope_of(tmp_path, **{key: 4.0}) == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    "about", [{"rope.scaling.factor": 1.0}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}]
)
def test_a_factor_of_one_or_of_no_kind_scales_nothing(about: dict[str, Any], tmp_path: Path) -> None:
    assert rope_of(tmp_path, **about) == {"rope_type": "default", "rope_theta": 10000.0}


def test_yarn_takes_its_betas_and_what_attention_is_multiplied_by(tmp_path: Path) -> None:
    rope = rope_of(tmp_path, **YARN)
    wanted = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    assert rope == wanted
    rope = rope_of(tmp_path, **YARN, **{"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 0.1})
    assert rope == wanted | {"beta_fast": 16.0, "beta_slow": 0.1}
    rope = rope_of(tmp_path, **YARN, **{"rope.scaling.yarn_attn_factor": 1.5, "rope.scaling.attn_factor": 0.5})
    assert rope == wanted | {"attention_factor": 0.75}
    rope = rope_of(tmp_path, **YARN, **{"rope.scaling.attn_factor": 0.5})
    assert rope == wanted | {"attention_factor": pytest.approx(0.5 * (0.1 * math.log(4) + 1))}


def test_yarn_without_an_original_length_has_that_of_the_model(tmp_path: Path) -> None:
    rope = rope_of(tmp_path, **YARN | {"rope.scaling.original_context_length": None})
    assert rope["original_max_position_embeddings"] == 512


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_header_without_its_file_says_how_positions_scale(family: str, tmp_path: Path) -> None:
    original, kind = (64, "longrope") if family == "phi3" else (8192, "llama3")
    rope = {"rope_theta": 10000.0, "rope_type": kind, "original_max_position_embeddings": original}
    more = {
        "llama": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "phi3": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    }[family]
    settings = {"original_max_position_embeddings": original} if family == "phi3" else {}
    model = tiny_model(family, SUPPORTED[family], rope_parameters=rope | more, **settings)
    held = write_model(tmp_path / "model.gguf", model).read_bytes()
    header = parse_header(tmp_path / "elsewhere.gguf", held, len(held))
    assert header is not None
    found = config_of(header)["rope_parameters"]
    assert found["rope_type"] == kind and found["original_max_position_embeddings"] == original


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5},
            r"rope\.scaling\.attn_factor 0.5 beside linear",
        ),
        ({**YARN, "rope.scaling.yarn_ext_factor": 0.5}, r"rope\.scaling\.yarn_ext_factor 0.5 beside yarn"),
        ({**YARN, "rope.scaling.yarn_log_multiplier": 0.5}, r"rope\.scaling\.yarn_log_multiplier 0.5 beside yarn"),
        ({"rope.scaling.type": "longrope"}, r"has no rope_factors_long\.weight in F32"),
        ({"rope.scaling.type": "spiral"}, "scales positions by 'spiral', which kvlite does not read"),
        ({"attention.head_count_kv": [2, 2, 1, 2]}, r"attention\.head_count_kv that differ by layer"),
        ({"feed_forward_length": [96, 96, 96, 64]}, "feed_forward_length that differ by layer"),
    ],
)
def test_what_transformers_has_no_parameter_for_is_refused_by_name(
    about: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        config_of(header_of(tmp_path, **about))


def test_equal_numbers_for_each_layer_are_one_number(tmp_path: Path) -> None:
    listed = {"attention.head_count": [4] * 4, "attention.head_count_kv": [2] * 4, "feed_forward_length": [96] * 4}
    for family in ("llama", "gemma3_text", "phi3"):
        assert config_of(header_of(tmp_path, family, **listed)) == config_of(header_of(tmp_path, family))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {}),
        (
            {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.1},
            {
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
                "min_p": 0.05,
                "repetition_penalty": 1.1,
                "do_sample": True,
            },
        ),
        ({"temp": 0.0, "top_k": 1}, {"temperature": 0.0, "top_k": 1, "do_sample": False}),
        ({"top_p": 0.9}, {"top_p": 0.9, "do_sample": True}),
        ({"penalty_repeat": 1.05}, {"repetition_penalty": 1.05}),
    ],
)
def test_sampling_is_that_of_the_file_in_decimals(
    given: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    about = {f"general.sampling.{key}": value for key, value in given.items()}
    header = read_header(write_model(tmp_path / "model.gguf", tiny_model("llama", {}), **about))
    found = generation_of(header)
    assert found.pop("eos_token_id") and found == wanted


def test_olmo2_with_windows_is_an_olmo3(tmp_path: Path) -> None:
    assert config_of(header_of(tmp_path, "olmo2", **{"attention.sliding_window": 128}))["model_type"] == "olmo3"
    assert config_of(header_of(tmp_path, "olmo2"))["model_type"] == "olmo2"


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon", "its code leaves no place for a bounded cache"),
        ("bloom", "its code leaves no place for a bounded cache"),
        ("mamba", "it has no keys and values to bound"),
        ("t5", "it is no causal language model"),
        ("deci", "some of its layers have no attention, and others differ in width"),
    ],
)
def test_a_family_that_no_format_helps_is_refused_with_the_reason(family: str, reason: str, tmp_path: Path) -> None:
    header = Header(tmp_path / "model.gguf", {"general.architecture": family}, {})
    with pytest.raises(ModelError) as caught:
        config_of(header)
    wanted = f"model.gguf is of the family {family!r}, which kvlite does not run: {reason}; choose another model"
    assert str(caught.value) == wanted


def test_gemma4_reads_heads_and_widths_by_layer(tmp_path: Path) -> None:
    config = config_of(header_of(tmp_path, "gemma4_text"))
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert config["num_kv_shared_layers"] == 2 and not config["attention_k_eq_v"]
    assert config["rope_parameters"]["full_attention"]["partial_rotary_factor"] == 0.25
    with pytest.raises(ModelError, match="has positions unlike Gemma 4's, which kvlite does not read"):
        config_of(header_of(tmp_path, "gemma4_text", **{"rope.scaling.type": "yarn"}))


def test_lfm2_with_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is an LFM2 with windows, which transformers does not have"):
        config_of(header_of(tmp_path, "lfm2", **{"attention.sliding_window": 128}))
