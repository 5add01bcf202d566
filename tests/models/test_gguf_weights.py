"""Weights and configs read from GGUF files against the models they were written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from kvlite.gguf.families import config_of
from kvlite.gguf.header import read_header
from kvlite.models.gguf_weights import state_dict
from tests.architectures import SUPPORTED, tiny_model
from tests.gguf.gguf_file import write_model

FAMILIES = (
    "llama", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3",
    "olmo2", "granite", "smollm3",
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
    ids = torch.randint(3, 100, (1, 40))
    with torch.inference_mode():
        wanted = model(ids).logits
        got = loaded(write_model(tmp_path / "model.gguf", model))(ids).logits
    assert torch.equal(got, wanted)


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
