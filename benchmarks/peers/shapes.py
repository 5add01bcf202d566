"""The shapes of real models, with random weights; `demo` and `tiny` for a CPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kvlite.memory.shape import ModelShape
from kvlite.models.fusing import fuse
from kvlite.models.loaded import LoadedModel
from kvlite.models.verify import admit

WINDOW = 131072
"""Positions of every shape, so that the longest context fits whatever the model was made for."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that decide how fast a model can be."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    family: str = "llama"

    def config(self) -> dict[str, int | bool]:
        """The fields as transformers names them."""
        return {name: value for name, value in vars(self).items() if name != "family"}


SHAPES = {
    "tiny": Shape(64, 96, 2, 4, 2, 16, 256, False),
    "demo": Shape(160, 432, 4, 4, 2, 32, 1024, True),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 64, 151936, True, "qwen2"),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 128, 32000, False),
    "llama-3.1-8b-layer": Shape(4096, 14336, 1, 32, 8, 128, 1024, False),  # one of its layers, for a CPU
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256, False),
}


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Transformers' own model of a shape; the same weights each time."""
    wanted = SHAPES[shape]
    config = AutoConfig.for_model(
        wanted.family, **wanted.config(), max_position_embeddings=WINDOW, pad_token_id=0, eos_token_id=None
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    model.set_attn_implementation("sdpa")
    return model


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules over the same parameters, which take their bytes once."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def behind_the_gate(model: PreTrainedModel, dtype: torch.dtype, quant: str = "none") -> LoadedModel:
    """A model behind kvlite's attention, with its fused modules."""
    facts = ModelShape.from_config({**model.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")})
    loaded = LoadedModel(model, None, facts, dtype, model.device, quant)  # type: ignore[arg-type]
    return fuse(admit(loaded))
