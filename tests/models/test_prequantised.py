"""Weights that others have quantised: what transformers loads runs, as transformers runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from kvlite import LLM
from kvlite.catalog.names import demo_folder
from kvlite.catalog.runnable import QUANTISERS
from tests.architectures import tiny_model

NEW = 8
PROMPT = "Hello! What is your name?"


def base(folder: Path) -> dict[str, Tensor]:
    """A tiny model's config and tokenizer in `folder`; its weights in bfloat16."""
    model = tiny_model("llama", {}, vocab_size=1024, hidden_size=128, intermediate_size=256, head_dim=32)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_folder() / name, folder)
    return {name: weight.contiguous() for name, weight in model.state_dict().items()}


def write(folder: Path, weights: dict[str, Tensor], **quantisation: object) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantisation}))


def assert_answers_like_transformers(folder: Path) -> None:
    with LLM(folder, kv_budget="256tok", profile="off") as llm:
        (answer,) = llm.generate([PROMPT], raw=True, max_tokens=NEW, greedy=True)
        ids = torch.tensor([llm.model.text.raw(PROMPT).ids])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.no_grad():
        theirs = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :].tolist()
    end = next((place for place, token in enumerate(theirs) if token in llm_stop_ids(folder)), NEW)
    assert list(answer.completion.ids) == theirs[:end]


def llm_stop_ids(folder: Path) -> set[int]:
    said = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
    return set(said) if isinstance(said, list) else {said}


def test_fp8_in_blocks(tmp_path: Path) -> None:
    weights = base(tmp_path)
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            rows, columns = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
            padded = torch.zeros(rows * 128, columns * 128)
            padded[: weight.shape[0], : weight.shape[1]] = weight.float()
            blocks = padded.view(rows, 128, columns, 128)
            scale = blocks.abs().amax((1, 3)).clamp(min=1e-6) / 448
            codes = (blocks / scale[:, None, :, None]).view(padded.shape)[: weight.shape[0], : weight.shape[1]]
            stored[name] = codes.to(torch.float8_e4m3fn).contiguous()
            stored[name.replace("weight", "weight_scale_inv")] = scale
    write(tmp_path, stored, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128])
    assert_answers_like_transformers(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_compressed_tensors(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    stored: dict[str, Tensor] = {}
    for name, weight in base(tmp_path).items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.float().abs().amax(1, keepdim=True) / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn).contiguous()
            stored[name.replace("weight", "weight_scale")] = scale.to(torch.bfloat16)
    kind = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": kind, "input_activations": None, "output_activations": None}
    write(
        tmp_path,
        stored,
        quant_method="compressed-tensors",
        format="float-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
        config_groups={"group_0": group},
    )
    assert_answers_like_transformers(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_torchao(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    base(tmp_path)
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    held = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.bfloat16)
    held.save_pretrained(tmp_path)
    assert_answers_like_transformers(tmp_path)


def _int32(words: Tensor) -> Tensor:
    """The low 32 bits of int64 words."""
    return (words - ((words >> 31) << 32)).to(torch.int32).contiguous()


def _codes(weight: Tensor, group: int = 128) -> tuple[Tensor, Tensor]:
    """Codes of 4 bits around 8 [K, N], and the scales of each group of K, float16 [K / group, N]."""
    outputs, inputs = weight.shape
    groups = weight.float().t().reshape(inputs // group, group, outputs)
    scales = (groups.abs().amax(1, keepdim=True) / 7).clamp(min=1e-8)
    codes = (torch.round(groups / scales) + 8).clamp(0, 15).to(torch.int64)
    return codes.reshape(inputs, outputs), scales[:, 0].half().contiguous()


def _in_gptq(weight: Tensor) -> dict[str, Tensor]:
    """8 codes a word down the inputs; zeros are one less than they mean."""
    codes, scales = _codes(weight)
    words = sum(codes[i::8] << (4 * i) for i in range(8))
    zeros = sum(torch.full_like(scales.t()[i::8], 7, dtype=torch.int64) << (4 * i) for i in range(8))
    assert isinstance(words, Tensor) and isinstance(zeros, Tensor)
    places = (torch.arange(weight.shape[1]) // 128).to(torch.int32)
    return {"qweight": _int32(words), "qzeros": _int32(zeros.t()), "scales": scales, "g_idx": places}


def _in_awq(weight: Tensor) -> dict[str, Tensor]:
    """8 codes a word along the outputs, in AWQ's order."""
    codes, scales = _codes(weight)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    words = sum(codes[:, place::8] << (4 * i) for i, place in enumerate(order))
    zeros = sum(torch.full_like(scales[:, place::8], 8, dtype=torch.int64) << (4 * i) for i, place in enumerate(order))
    assert isinstance(words, Tensor) and isinstance(zeros, Tensor)
    return {"qweight": _int32(words), "qzeros": _int32(zeros), "scales": scales}


GPTQ = {"sym": True, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False}
AWQ = {"zero_point": True, "version": "gemm"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "pack", "more"), [("gptq", _in_gptq, GPTQ), ("awq", _in_awq, AWQ)])
def test_gptq_and_awq(method: str, pack: Callable[[Tensor], dict[str, Tensor]], more: Any, tmp_path: Path) -> None:
    for package in QUANTISERS[method]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    stored: dict[str, Tensor] = {}
    for name, weight in base(tmp_path).items():
        parts = pack(weight) if name.endswith("proj.weight") else {"weight": weight}
        stored |= {f"{name.removesuffix('weight')}{part}": held for part, held in parts.items()}
    write(tmp_path, stored, quant_method=method, bits=4, group_size=128, **more)
    assert_answers_like_transformers(tmp_path)


def test_every_method_of_transformers_is_known() -> None:
    others = {"gguf", "metal", "kvlite_packed", "hqq", "quanto", "paroquant"}  # the last is gptqmodel's own
    assert set(AUTO_QUANTIZATION_CONFIG_MAPPING) - others <= set(QUANTISERS) | {"bitsandbytes"}
