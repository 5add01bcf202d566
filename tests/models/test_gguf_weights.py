"""Weights and configs read from GGUF files against the models they were written from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from kvlite.gguf.families import config_of
from kvlite.gguf.folder import require_known
from kvlite.gguf.header import read_header
from kvlite.models.gguf_weights import LazyExperts, LazyTensor, state_dict
from tests.architectures import SUPPORTED, tiny_model
from tests.gguf.gguf_file import write_model

FAMILIES = (
    "llama", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3",
    "olmo2", "olmo3", "granite", "smollm3", "gemma4_text", "gpt_oss", "lfm2",
    "lfm2_moe", "gpt2", "minimax_m2", "nemotron", "stablelm", "starcoder2",
)  # fmt: skip


def loaded(path: Path) -> PreTrainedModel:
    """The model in a GGUF file, in float32."""
    header = read_header(path)
    fields = config_of(header)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, attn_implementation="eager")
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(
        None, config=config, state_dict=state_dict(header, torch.float32), dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_the_model_it_was_written_from(family: str, tmp_path: Path) -> None:
    fixed = {"norm_topk_prob": True} if family == "qwen3_moe" else {}  # as llama.cpp has it, whatever the file
    model = tiny_model(family, SUPPORTED[family], **fixed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.15)  # else they are all 0
    ids = torch.randint(3, 100, (1, 40))
    with torch.inference_mode():
        wanted = model(ids).logits
        got = loaded(write_model(tmp_path / "model.gguf", model))(ids).logits
    assert torch.equal(got, wanted)


GEMMA4 = {
    "keys that are values": {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0},
    "wide shared layers": {"use_double_wide_mlp": True, "global_head_dim": 32},
    "experts, no embeddings by layer": {
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", GEMMA4)
def test_every_size_of_gemma4_has_its_logits(case: str, tmp_path: Path) -> None:
    model = tiny_model("gemma4_text", SUPPORTED["gemma4_text"], **GEMMA4[case])
    ids = torch.randint(3, 100, (1, 40))
    with torch.inference_mode():
        assert torch.equal(loaded(write_model(tmp_path / "model.gguf", model))(ids).logits, model(ids).logits)


STABLELM = {
    "biases": {"use_qkv_bias": True},
    "norms of heads": {"qk_layernorm": True},
    "attention and MLP side by side": {"use_parallel_residual": True, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("case", STABLELM)
def test_every_kind_of_stablelm_has_its_logits(case: str, tmp_path: Path) -> None:
    model = tiny_model("stablelm", SUPPORTED["stablelm"], **STABLELM[case])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    ids = torch.randint(3, 100, (1, 40))
    with torch.inference_mode():
        assert torch.equal(loaded(write_model(tmp_path / "model.gguf", model))(ids).logits, model(ids).logits)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.0 + i for i in range(8)], "original_max_position_embeddings": 64,
}  # fmt: skip
ROPES = {
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 0.5, "attention_factor": 1.2}},
    ),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "phi3, longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
}


@pytest.mark.parametrize("case", ROPES)
def test_scaled_positions_give_the_logits_they_gave_before(case: str, tmp_path: Path) -> None:
    family, settings = ROPES[case]
    model = tiny_model(family, SUPPORTED[family], **settings)
    again = loaded(write_model(tmp_path / "model.gguf", model))
    plain = tiny_model(family, SUPPORTED[family])
    with torch.inference_mode():
        for length in (40, 200):  # longrope has other factors for each
            ids = torch.randint(3, 100, (1, length))
            assert torch.equal(again(ids).logits, model(ids).logits)
            assert not torch.equal(again(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(
    ("full", "metadata"),
    [
        ((1, 3), {"attention.sliding_window_pattern": 2}),
        ((0, 3), {"attention.sliding_window_pattern": [False, True, True, False]}),
        ((), {"attention.sliding_window_pattern": 0}),
        ((), {}),
        ((0, 1, 2, 3), {"attention.sliding_window": None}),
        ((0, 1, 2, 3), {"attention.sliding_window": 0}),
    ],
)
def test_gemma3_has_the_windows_that_the_file_says(
    full: tuple[int, ...], metadata: dict[str, object], tmp_path: Path
) -> None:
    kinds = ["full_attention" if layer in full else "sliding_attention" for layer in range(4)]
    model = tiny_model("gemma3_text", SUPPORTED["gemma3_text"], layer_types=kinds, final_logit_softcapping=5.0)
    about = {f"gemma3.{key}": value for key, value in metadata.items()}
    ids = torch.randint(3, 100, (1, 40))
    with torch.inference_mode():
        assert torch.equal(loaded(write_model(tmp_path / "model.gguf", model, **about))(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_are_unpacked_as_the_gguf_library_unpacks_them(kind: str, tmp_path: Path) -> None:
    import gguf

    path = write_model(tmp_path / "model.gguf", tiny_model("qwen3", {}), kind)
    ours = state_dict(read_header(path), torch.float32)
    names = {"output_norm.weight": "model.norm.weight", "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight"}
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, place in names.items():
        wanted = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert torch.equal(ours[place][...], torch.tensor(wanted))
        assert ours[place].shape == wanted.shape


def test_a_large_matrix_is_unpacked_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.gguf", tiny_model("qwen3", {}), "Q8_0")
    whole = {name: lazy[...] for name, lazy in state_dict(read_header(path), torch.float32).items()}
    monkeypatch.setattr("kvlite.models.gguf_weights._ROWS_BYTES", 1000)
    for name, lazy in state_dict(read_header(path), torch.float32).items():
        assert torch.equal(lazy[...], whole[name])


@pytest.mark.parametrize("family", ["gpt_oss", "lfm2_moe"])
def test_a_stack_of_experts_is_read_one_at_a_time(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.gguf", tiny_model(family, SUPPORTED[family]))
    read: list[int] = []
    unpacked = LazyTensor.unpacked
    monkeypatch.setattr(LazyTensor, "unpacked", lambda self: (held := unpacked(self), read.append(held.numel()))[0])
    for lazy in state_dict(read_header(path), torch.float32).values():
        read.clear()
        whole = lazy[...]
        if isinstance(lazy, LazyExperts):
            assert max(read) * len(whole) <= whole.numel()


def test_the_text_part_of_a_file_that_also_sees_is_read_alone(tmp_path: Path) -> None:
    model = tiny_model("gemma3_text", SUPPORTED["gemma3_text"], vocab_size=300)
    header = read_header(write_model(tmp_path / "model.gguf", model))
    seeing = dict.fromkeys(
        ("v.blk.0.attn_q.weight", "mm.input_projection.weight"), header.tensors["output_norm.weight"]
    )
    both = replace(header, tensors=header.tensors | seeing)
    require_known(both)
    assert state_dict(both, torch.float32).keys() == state_dict(header, torch.float32).keys()
