"""Which modules of a loaded model give way to fused ones. Nothing of transformers is changed, only this instance.

transformers generates most of its families from a few classes, so a patch is written from one class's forward method
and stands for every module whose forward is that one, instruction for instruction, the functions it rotates with
included. No family is trusted by its name. A patch stays where the logits stay what they were, else it is taken back.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from kvlite.memory.format import slot_format
from kvlite.models.fused import FusedAttention, FusedMLP, FusedRMSNorm
from kvlite.models.gate import PROBE_TOKENS, relative_error
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import dry_cache, feed, probe_ids

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.005}
"""Largest relative RMSE of the logits against the unfused model, per dtype of computation."""

_ROTATING = ("apply_rotary_pos_emb", "rotate_half")  # as Llama's module has them


@dataclass(frozen=True, slots=True)
class Patch:
    """`makes` turns a module whose forward is that of `source` into its fused form."""

    name: str
    source: type[nn.Module]
    makes: Callable[[Any], nn.Module]
    parts: tuple[str, ...] = ()  # linear maps that are joined: only plain ones can be

    def fits(self, module: nn.Module) -> bool:
        """Whether the patch stands for this module."""
        if not _behaves_as(type(module), self.source):
            return False
        parts = [getattr(module, part) for part in self.parts]
        return all(type(part) is nn.Linear for part in parts) and len({part.bias is None for part in parts}) <= 1


_QKV = ("q_proj", "k_proj", "v_proj")
PATCHES = (
    Patch("norm", LlamaRMSNorm, lambda norm: FusedRMSNorm(norm.weight, norm.variance_epsilon)),
    Patch("norm", Gemma2RMSNorm, lambda norm: FusedRMSNorm(norm.weight, norm.eps, offset=1.0)),
    Patch("mlp", LlamaMLP, FusedMLP, ("gate_proj", "up_proj")),
    Patch("attention", LlamaAttention, lambda module: FusedAttention(module, None), _QKV),
    Patch("attention", Qwen2Attention, lambda module: FusedAttention(module, module.sliding_window), _QKV),
    Patch("attention", Qwen3Attention, lambda module: FusedAttention(module, module.sliding_window), _QKV),
    Patch(
        "attention",
        MistralAttention,
        lambda module: FusedAttention(module, getattr(module.config, "sliding_window", None)),
        _QKV,
    ),
)


def fuse(loaded: LoadedModel) -> LoadedModel:
    """Patch an admitted model in place wherever a patch fits and leaves the logits of a few tokens as they were."""
    in_force, expected = [], probe_logits(loaded)
    for patch in PATCHES:
        replaced = [child for child in _children(loaded.model) if patch.fits(child[2])]
        if not replaced:
            continue
        try:
            for parent, name, module in replaced:
                setattr(parent, name, patch.makes(module).eval())
            off = relative_error(probe_logits(loaded), expected)
        except (RuntimeError, AttributeError, TypeError, ValueError, LookupError):
            off = math.inf
        if off <= TOLERANCE[loaded.compute_dtype]:
            in_force.append(patch.name)
            continue
        for parent, name, module in replaced:
            setattr(parent, name, module)
    return replace(loaded, fused=tuple(dict.fromkeys(in_force)))


def probe_logits(loaded: LoadedModel) -> Tensor:
    """The logits [1, T, V] of a few tokens, fed in chunks."""
    cache = dry_cache(loaded, slot_format("auto", loaded.dtype_name), PROBE_TOKENS)
    return feed(loaded, cache, probe_ids(loaded, PROBE_TOKENS))


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every module below `model` with its parent and its name there."""
    return [(parent, name, module) for parent in model.modules() for name, module in parent.named_children()]


def _behaves_as(kind: type[nn.Module], source: type[nn.Module]) -> bool:
    ours, theirs = inspect.unwrap(kind.forward), inspect.unwrap(source.forward)
    called = _ROTATING if _ROTATING[0] in theirs.__code__.co_names else ()
    return _same(ours, theirs) and all(
        _same(ours.__globals__.get(name), getattr(modeling_llama, name)) for name in called
    )


def _same(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    found, expected = (
        None if function is None else _instructions(inspect.unwrap(function)) for function in (ours, theirs)
    )
    return found is not None and found == expected


def _instructions(function: Any) -> tuple[object, ...] | None:
    """What a function does, without its name, its place and its docstring; None of what is no function."""
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    constants = tuple(constant for constant in code.co_consts if constant != function.__doc__)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants, function.__defaults__
