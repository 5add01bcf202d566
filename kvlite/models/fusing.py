"""Which modules of a loaded model give way to fused ones. Nothing of transformers is changed, only this instance.

transformers generates most of its families from a few classes, so a patch is written from one class's forward method
and stands for every module whose forward is that one, instruction for instruction, the functions it rotates with
included. No family is trusted by its name. A patch stays where the logits stay what they were, else it is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kvlite.memory.format import slot_format
from kvlite.models.decoder import FusedDecoder, decodes
from kvlite.models.fourbit import fits, taken_over
from kvlite.models.loaded import LoadedModel
from kvlite.models.patches import PATCHES
from kvlite.models.probe import dry_cache, feed, probe_ids
from kvlite.models.verify import PROBE_TOKENS, relative_error
from kvlite_kernels.dense import TORCH_DENSE, DenseKernels
from kvlite_kernels.nf4 import Products

Kernels = TypeVar("Kernels")
Child = tuple[nn.Module, str, nn.Module]  # a parent, its child's name and the child

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.005}
"""Largest relative RMSE of the logits against the unfused model, per dtype of computation."""


def fuse(loaded: LoadedModel, kernels: DenseKernels = TORCH_DENSE) -> LoadedModel:
    """Patch an admitted model in place wherever a patch fits and leaves the logits of a few tokens as they were.

    What is fused computes with `kernels`.
    """
    in_force, expected, tolerance = [], probe_logits(loaded), TOLERANCE[loaded.compute_dtype]
    for patch in PATCHES:
        replaced = [child for child in children(loaded.model) if patch.fits(child[2])]
        if replaced and swap(loaded, replaced, patch.makes, kernels, expected, tolerance) <= tolerance:
            in_force.append(patch.name)
    if loaded.state is None and decodes(loaded.model):
        shorter = replace(loaded, decoder=FusedDecoder(loaded.model))
        if relative_error(probe_logits(shorter), expected) <= tolerance:
            loaded = shorter
            in_force.append("decoder")
    return replace(loaded, fused=tuple(dict.fromkeys((*loaded.fused, *in_force))))


def multiply_four_bit(loaded: LoadedModel, products: Products | None) -> LoadedModel:
    """Let `products` multiply with the 4-bit weights of an admitted model, if the logits stay what they were."""
    if products is None:
        return loaded
    replaced = [child for child in children(loaded.model) if fits(child[2], products)]
    tolerance = TOLERANCE[loaded.compute_dtype]
    if not replaced or swap(loaded, replaced, taken_over, products, probe_logits(loaded), tolerance) > tolerance:
        return loaded
    return replace(loaded, fused=(*loaded.fused, "four-bit"))


def swap(
    loaded: LoadedModel,
    replaced: Sequence[Child],
    makes: Callable[[Any, Kernels], nn.Module],
    kernels: Kernels,
    expected: Tensor,
    tolerance: float,
) -> float:
    """Replace modules by what `makes` of each, and say how far the logits are from `expected`, as relative RMSE.

    Beyond `tolerance` it is taken back; infinite says that what was made does not run here.
    """
    off = math.inf
    try:
        for parent, name, module in replaced:
            setattr(parent, name, makes(module, kernels).eval())
        off = relative_error(probe_logits(loaded), expected)
    except Exception as error:
        if not _is_of_the_code(error):
            raise
    finally:
        if not off <= tolerance:
            for parent, name, module in replaced:
                setattr(parent, name, module)
    return math.inf if math.isnan(off) else off


def _is_of_the_code(error: Exception) -> bool:
    """Whether a module's code or its kernels failed: Triton's compiler and launcher raise errors of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    is_of_triton = any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)
    return is_of_triton or isinstance(error, RuntimeError | AttributeError | TypeError | ValueError | LookupError)


def probe_logits(loaded: LoadedModel) -> Tensor:
    """The logits [1, T, V] of a few tokens, fed in chunks."""
    cache = dry_cache(loaded, slot_format("auto", loaded.dtype_name), PROBE_TOKENS)
    return feed(loaded, cache, probe_ids(loaded, PROBE_TOKENS))


def children(model: nn.Module) -> list[Child]:
    """Every module below `model` with its parent and its name there."""
    return [(parent, name, module) for parent in model.modules() for name, module in parent.named_children()]
