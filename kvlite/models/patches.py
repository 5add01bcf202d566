"""The patches: the code of transformers that each was written from, and the fused module that replaces it.

Code is recognised by a hash of its source: transformers makes most families by copying a few classes. A patch stores
the hash of the forward method that it was written from, so it does not depend on what is installed.

Together they save 15 % of the processor time of SmolLM2-135M's decode step in bfloat16, and on CUDA 23 of 37 launches a
layer, 28 with Triton; docs/performance.md has the share of each.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from hashlib import sha256
from textwrap import dedent
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from kvlite.models.fused import FusedAttention, FusedLayer, FusedMLP, FusedRMSNorm, join
from kvlite_kernels.fused_ops import ACTIVATIONS, FusedOps

KINDS = {"norm": "Norm", "mlp": "MLP", "attention": "Attention", "layer": "DecoderLayer"}
"""Kinds of patches in the order in which they are made, and the end of the names of the classes that they are for."""


class Patch(NamedTuple):
    """A replacement for modules whose forward has the hash `code`, of which `source` was the first.

    `makes` gives the fused module, or None where a part of the module does not fit.
    """

    kind: str
    source: str
    code: str
    makes: Callable[[Any, FusedOps], nn.Module | None]


@cache
def code_hash(function: Any) -> str | None:
    """12 hex digits for the code of `function` and of the functions of its module that it calls.

    Its name, decorators, annotations, comments and docstring do not count. None where there is no Python source.
    """
    found: dict[FunctionType, str] = {}
    waiting = [function]
    while waiting:
        here = inspect.unwrap(waiting.pop())
        if here in found:
            continue
        try:
            found[here] = _normalised(here)
        except (OSError, TypeError, SyntaxError):
            return None
        beside = here.__globals__
        called = [beside[name] for name in sorted(here.__code__.co_names) if isinstance(beside.get(name), FunctionType)]
        waiting += [other for other in called if other.__module__ == here.__module__]
    return sha256("\n".join(found.values()).encode()).hexdigest()[:12]


def _normalised(function: FunctionType) -> str:
    (tree,) = ast.parse(dedent(inspect.getsource(function))).body
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError("not a plain function")
    tree.name, tree.decorator_list, tree.returns = "f", [], None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if ast.get_docstring(tree, clean=False) is not None:
        del tree.body[0]
    return ast.unparse(tree)


def fused_form(kind: str, module: nn.Module, ops: FusedOps) -> nn.Module | None:
    """The fused module that replaces `module`; None where there is none of this `kind`."""
    code = code_hash(type(module).forward)
    made = next((patch.makes(module, ops) for patch in PATCHES if (patch.kind, patch.code) == (kind, code)), None)
    return made if made is None else made.eval()


def decodes(model: nn.Module) -> bool:
    """True if a causal language model does no more than a FusedDecoder."""
    body: Any = model._modules.get("model")
    if body is None or code_hash(type(body).forward) not in BODIES.values():
        return False
    is_whole = len(body.layers) == body.config.num_hidden_layers
    return is_whole and any(code_hash(type(model).forward) in codes for codes in HEADS.values())


def activation_of(act_fn: nn.Module) -> str | None:
    """The name in `ACTIVATIONS` of what computes the same numbers; None where nothing does."""
    if next(act_fn.parameters(), None) is not None:
        return None
    x = torch.linspace(-8.0, 8.0, 257, dtype=torch.float64)
    names = (name for name, function in ACTIVATIONS.items() if torch.allclose(function(x), act_fn(x), 0.0, 1e-7))
    return next(names, None)


def _norm(norm: Any, ops: FusedOps, eps: str = "variance_epsilon", offset: float = 0.0) -> nn.Module:
    return FusedRMSNorm(norm.weight, getattr(norm, eps), ops, offset)


def _mlp(mlp: Any, ops: FusedOps, act_fn: str = "act_fn") -> nn.Module | None:
    activation = activation_of(getattr(mlp, act_fn))
    if activation is None:
        return None
    gate_up = getattr(mlp, "gate_up_proj", None) or join(mlp.gate_proj, mlp.up_proj)
    return None if gate_up is None else FusedMLP(gate_up, activation, mlp.down_proj, ops)


def _attention(module: Any, ops: FusedOps, softcap: str | None = None) -> nn.Module | None:
    norms = [norm for norm in (getattr(module, "q_norm", None), getattr(module, "k_norm", None)) if norm is not None]
    if not all(isinstance(norm, FusedRMSNorm) for norm in norms):
        return None
    joined = getattr(module, "qkv_proj", None) or join(module.q_proj, module.k_proj, module.v_proj)
    cap = None if softcap is None else getattr(module, softcap)
    return None if joined is None else FusedAttention(module, joined, ops, cap)


_PLAIN = ("input_layernorm", None, "post_attention_layernorm", None)
_SANDWICH = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
"""The norms before and after the attention, before and after the MLP."""


def _layer(layer: Any, ops: FusedOps, norms: Sequence[str | None] = _PLAIN) -> nn.Module | None:
    found = [None if name is None else getattr(layer, name) for name in norms]
    fit = all(norm is None or isinstance(norm, FusedRMSNorm) for norm in found[1:])
    return FusedLayer(layer, found, ops) if fit else None


PATCHES = (
    Patch("norm", "llama.LlamaRMSNorm", "5cf66a5b73d6", _norm),
    Patch("norm", "olmo2.Olmo2RMSNorm", "6f6c68e4a6b2", _norm),
    Patch("norm", "gemma2.Gemma2RMSNorm", "d99cb336a934", partial(_norm, eps="eps", offset=1.0)),
    Patch("mlp", "llama.LlamaMLP", "4a9e0f851f1a", _mlp),
    Patch("mlp", "phi3.Phi3MLP", "4fcc0ee7ccb0", partial(_mlp, act_fn="activation_fn")),
    Patch("attention", "llama.LlamaAttention", "c54993e61e7b", _attention),
    Patch("attention", "qwen2.Qwen2Attention", "bf3ed6c05df7", _attention),
    Patch("attention", "qwen3.Qwen3Attention", "67a16b0e465a", _attention),
    Patch("attention", "mistral.MistralAttention", "ad0afe19104b", _attention),
    Patch("attention", "phi3.Phi3Attention", "aa3b233cf4b9", _attention),
    Patch("attention", "gemma2.Gemma2Attention", "e067ae7ba1c6", partial(_attention, softcap="attn_logit_softcapping")),
    Patch("attention", "gemma3.Gemma3Attention", "efc38c2a432f", _attention),
    Patch("layer", "llama.LlamaDecoderLayer", "81d96d2d9d08", _layer),
    Patch("layer", "mixtral.MixtralDecoderLayer", "beedea11a992", _layer),
    Patch("layer", "phi3.Phi3DecoderLayer", "52783398742e", _layer),
    Patch("layer", "gemma2.Gemma2DecoderLayer", "5b7eb81fdda2", partial(_layer, norms=_SANDWICH)),
)
"""With the same hashes in transformers 5.17 and 5.23."""

BODIES = {
    "llama.LlamaModel": "89dcea6790ce",
    "qwen2.Qwen2Model": "44fdcc537115",
    "mistral.MistralModel": "0f46b370c127",
}
HEADS = {"llama.LlamaForCausalLM": ("4ea82b23a0eb", "2b0549668327")}
"""The code that FusedDecoder was written from; that of heads in transformers 5.17 and 5.23."""
