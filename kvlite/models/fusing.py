"""Replaces modules of a loaded model with fused ones. Nothing of transformers is changed, only this instance.

No family is trusted by its name: a patch fits where the code is the code it was written from, and stays where it
computes the same. What does not stay is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kvlite.memory.format import slot_format
from kvlite.models.decoder import FusedDecoder, decodes
from kvlite.models.fourbit import our_form
from kvlite.models.loaded import LoadedModel
from kvlite.models.patches import KINDS, fused_form
from kvlite.models.probe import PROBE_TOKENS, dry_cache, feed, probe_ids
from kvlite.models.trial import FLOOR, judge
from kvlite.models.verify import relative_error
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps

MISWIRED = 0.3
"""Relative RMSE of the logits over slots from which fused modules are wrongly put together: no rounding comes near."""

Swap = tuple[nn.Module, str, nn.Module, nn.Module]  # a parent, its child's name, the child and what replaces it


def fuse(loaded: LoadedModel, ops: FusedOps = TORCH_OPS) -> LoadedModel:
    """Patch an admitted model in place wherever a patch fits and computes the same. Fused modules run on `ops`."""
    expected, plain = probe_logits(loaded), loaded
    swaps: list[Swap] = []
    for kind, ending in KINDS.items():
        made: list[Swap] = []
        unknown: set[str] = set()
        for parent, name, module in children(loaded.model):
            fused = fused_form(kind, module, ops)
            if fused is not None:
                made.append((parent, name, module, fused))
            elif type(module).__name__.endswith(ending):
                unknown.add(type(module).__name__)
        if unknown:
            loaded = _refusing(loaded, f"{kind}: no patch fits {', '.join(sorted(unknown))}")
        loaded = swap(loaded, kind, made)
        swaps += made if kind in loaded.fused else []
    logits = probe_logits(loaded)
    off = relative_error(logits, expected)
    if not off <= MISWIRED:
        for parent, name, module, _ in reversed(swaps):
            setattr(parent, name, module)
        return _refusing(plain, f"all patches: together they change the logits by {off:.1%}")
    return _with_decoder(loaded, logits)


def _with_decoder(loaded: LoadedModel, logits: Tensor) -> LoadedModel:
    """The model as one function from ids to logits, where it is no more than that and gives `logits` so, too."""
    if loaded.state is not None or not decodes(loaded.model):
        return _refusing(loaded, f"decoder: no patch fits {type(loaded.model).__name__}")
    shorter = replace(loaded, decoder=FusedDecoder(loaded.model), fused=(*loaded.fused, "decoder"))
    off = relative_error(probe_logits(shorter), logits)
    return shorter if off <= FLOOR else _refusing(loaded, f"decoder: it changes the logits by {off:.2g}")


def multiply_four_bit(loaded: LoadedModel, ops: FusedOps) -> LoadedModel:
    """Let `ops` multiply with the 4-bit weights of an admitted model, where it can and computes the same."""
    forms = ((*child, our_form(child[2], ops)) for child in children(loaded.model))
    return swap(loaded, "four-bit", [(parent, name, child, made) for parent, name, child, made in forms if made])


def swap(loaded: LoadedModel, name: str, swaps: Sequence[Swap]) -> LoadedModel:
    """Replace modules if they compute the same, under `name`; else the model as it was, which says why."""
    if not swaps:
        return loaded
    try:
        verdict = judge(loaded, [(module, made) for _, _, module, made in swaps])
        why = None if verdict.passes else str(verdict)
    except Exception as error:
        if not _is_of_the_code(error):
            raise
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()  # of matrices in float32
    if why is not None:
        return _refusing(loaded, f"{name}, {len(swaps)} modules: {why}")
    for parent, child, _, made in swaps:
        setattr(parent, child, made)
    return replace(loaded, fused=(*loaded.fused, name))


def _refusing(loaded: LoadedModel, why: str) -> LoadedModel:
    return replace(loaded, refused=(*loaded.refused, why))


def _is_of_the_code(error: Exception) -> bool:
    """True if a module's code or its kernels failed: Triton's compiler and launcher raise errors of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    is_of_triton = any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)
    return is_of_triton or isinstance(error, RuntimeError | AttributeError | TypeError | ValueError | LookupError)


def probe_logits(loaded: LoadedModel) -> Tensor:
    """The logits [1, T, V] of a few tokens, fed in chunks."""
    cache = dry_cache(loaded, slot_format("auto", loaded.dtype_name), PROBE_TOKENS)
    return feed(loaded, cache, probe_ids(loaded, PROBE_TOKENS))


def children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every module below `model` with its parent and its name there, parents first."""
    return [(parent, name, module) for parent in model.modules() for name, module in parent.named_children()]
