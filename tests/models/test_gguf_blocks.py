"""GGUF blocks that stay packed on a CPU: numbers of the gguf library, logits of the model, bytes of the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from kvlite import LLM
from kvlite.catalog.files import local_files
from kvlite.catalog.model_files import ModelFiles
from kvlite.catalog.names import ModelRef
from kvlite.cli import main
from kvlite.gguf.header import BLOCKS
from kvlite.gguf.packing import EIGHT_BITS, FOUR_BITS
from kvlite.memory.prediction import weight_term
from kvlite.models.fusing import probe_logits
from kvlite.models.gguf_blocks import pack_blocks
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load
from kvlite.models.packed import PackedEmbedding, PackedLinear
from kvlite.models.verify import relative_error
from kvlite.options import ModelOptions
from kvlite_kernels import blocks as gguf_blocks
from kvlite_kernels.packed import Packed4, PackedPair, multiply
from tests.architectures import tiny_model
from tests.gguf.gguf_file import random_blocks, write_model
from tests.matrix import but_few

CPU = torch.device("cpu")
SIZES = {"vocab_size": 320, "intermediate_size": 128, "num_key_value_heads": 4}
CASES = [
    (family, kind) for family in ("llama", "gemma3_text", "qwen2_moe", "phi3") for kind in ("Q4_0", "Q4_1", "Q8_0")
]


@pytest.mark.parametrize("kind", [*FOUR_BITS, *EIGHT_BITS])
def test_packed_blocks_are_the_numbers_of_the_gguf_library_but_for_rounded_scales(kind: str) -> None:
    blocks = random_blocks(kind, 128, 512)
    exact = torch.from_numpy(dequantize(blocks, GGMLQuantizationType[kind]))
    weights = pack_blocks(torch.from_numpy(blocks).split(64), kind, len(blocks))
    assert type(weights) is (Packed4 if kind in FOUR_BITS else PackedPair)
    most = 0.01 if kind == "Q6_K" else 0.004
    index = torch.tensor([[3, 127], [64, 40]])
    assert relative_error(weights.rows(index, torch.float32), exact[index]) < most
    assert relative_error(weights.unpack(0, 128).T.float(), exact) < most
    once = weights.rows(torch.arange(128), torch.float32).bfloat16()  # two halves are not rounded before their sum
    assert relative_error(weights.unpack(0, 128).T.float(), once.float()) < 1e-4
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert relative_error(multiply(x, weights, None), x.float() @ exact.T) < most + 0.002


@pytest.mark.parametrize("kind", list(gguf_blocks.SIZES))
def test_unpacked_blocks_are_the_numbers_of_the_gguf_library_to_the_bit(kind: str) -> None:
    held = random_blocks(kind, 3, 512)
    wanted = torch.from_numpy(dequantize(held, GGMLQuantizationType[kind]))
    assert gguf_blocks.SIZES[kind] == BLOCKS[kind]
    assert torch.equal(gguf_blocks.unpack(torch.from_numpy(held), kind), wanted)


def files_of(folder: Path, family: str, kind: str | Mapping[str, str], **changed: int) -> ModelFiles:
    path = write_model(folder / "model.gguf", tiny_model(family, SIZES | changed), kind)
    return local_files(ModelRef(path=path))


def loaded(files: ModelFiles, dtype: str = "bfloat16") -> LoadedModel:
    return load(files, ModelOptions(dtype=dtype), CPU)


@pytest.mark.parametrize(("family", "kind"), but_few(CASES, ("llama", "Q4_1"), ("gemma3_text", "Q8_0")))
def test_a_file_in_bfloat16_stays_packed_and_has_its_logits(tmp_path: Path, family: str, kind: str) -> None:
    every = (
        {"num_experts": 4, "num_experts_per_tok": 4} if family.endswith("moe") else {}
    )  # else rounding picks another expert
    files = files_of(tmp_path, family, kind, **every)
    packed, whole = loaded(files), loaded(files, "float32")
    modules = list(packed.model.modules())
    assert [type(one) for one in modules].count(PackedEmbedding) == 1
    assert not [one for one in whole.model.modules() if type(one) is PackedLinear]
    assert packed.model.get_output_embeddings().weight.dtype == torch.uint8
    assert relative_error(probe_logits(packed), probe_logits(whole)) < 0.06  # bfloat16 alone is off by 0.03


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_file_takes_the_bytes_that_are_predicted(tmp_path: Path, kind: str, tied: bool) -> None:
    files = files_of(tmp_path, "llama", kind, tie_word_embeddings=tied)
    held = loaded(files)
    buffers = sum(one.nbytes for name, one in held.model.named_buffers() if "inv_freq" in name)
    assert held.weight_bytes - buffers == weight_term(held.shape, files.weights, "none", "cpu").predicted_bytes
    on_gpu = weight_term(held.shape, files.weights, "none", "cuda").predicted_bytes
    assert on_gpu is not None and files.weights is not None and files.weights.parameters is not None
    assert on_gpu == 2 * files.weights.parameters


def test_a_file_of_mixed_types_takes_the_bytes_that_plan_says_and_is_named_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = {
        **dict.fromkeys(("attn_q", "attn_k"), "Q4_K"), "attn_v": "Q6_K", "attn_output": "Q5_K", "ffn_gate": "Q4_0",
        "ffn_up": "IQ4_NL", "ffn_down": "F16", "token_embd": "Q8_0", "output": "Q6_K",
    }  # fmt: skip
    sizes = {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "intermediate_size": 256}
    files = files_of(tmp_path, "llama", mixed, **sizes, tie_word_embeddings=False)
    with LLM(files.gguf.path, dtype="bfloat16", kv_budget="64tok") as llm:  # type: ignore[union-attr]
        held = llm.model.loaded
        identity, line = llm.model.identity(), str(llm)
    assert "attention" in held.fused  # of values in another type, too
    buffers = sum(one.nbytes for name, one in held.model.named_buffers() if "inv_freq" in name)
    named = "Q4_K with Q6_K, Q5_K, Q4_0, Q8_0"
    assert f" · {named} · " in line and (identity.quant, identity.dtype) == (named, "bfloat16")
    assert identity.params == sum(one.parameters for one in files.gguf.tensors.values())  # type: ignore[union-attr]
    assert main(["plan", str(files.gguf.path), "--dtype", "bfloat16", "--json"]) == 0  # type: ignore[union-attr]
    plan = json.loads(capsys.readouterr().out)
    assert plan["held_in"] == named
    assert plan["terms"][0]["predicted_bytes"] == held.weight_bytes - buffers
    assert main(["show", str(files.gguf.path)]) == 0  # type: ignore[union-attr]
    assert f"llama, {named}, 4 query heads" in capsys.readouterr().out
