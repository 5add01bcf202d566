"""Replaces modules of a loaded model with fused ones. Nothing of transformers is changed, only this instance.

No family is trusted by its name: a patch fits where the code is the code it was written from, and stays where it
computes the same. What does not stay is said.

Fused modules are judged against float32, with the rounding error of the modules they replace as the yardstick. The
model reads a sentence on transformers' own attention. Each module that is to be replaced computes its output three
times from the same inputs: as it is, fused, and as it is but in float32, one matrix at a time. In bfloat16 two honest
orders of the same operations differ by more than a fixed tolerance that still catches a mistake; that both are equally
near to float32 says more. A module at a time, because over a whole model the rounding of all hides the fault of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kvlite.errors import is_of_kernels
from kvlite.models.attention_interface import ATTENTION
from kvlite.models.block_linear import block_form
from kvlite.models.fused import FusedDecoder
from kvlite.models.loaded import LoadedModel
from kvlite.models.patches import KINDS, decodes, fused_form
from kvlite.models.probe import PROBE_TOKENS, dry_cache, feed, probe_ids, text_ids
from kvlite.models.quantised import our_form
from kvlite.models.verify import relative_error
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps

MISWIRED = 0.3
"""Relative RMSE of the logits over slots from which fused modules are wrongly put together: no rounding comes near."""

FACTOR = 1.5
FLOOR = 1e-5
"""A fused module may be off by FACTOR times the error of what it replaces, and FLOOR, both relative."""

_HALF = (torch.bfloat16, torch.float16)

_PRODUCTS: dict[str, Callable[[Any, FusedOps], nn.Module | None]] = {"four-bit": our_form, "blocks": block_form}
"""Maps over packed weights as those that multiply with kernels: of bitsandbytes, and in GGUF blocks."""

Swap = tuple[nn.Module, str, nn.Module, nn.Module]  # a parent, its child's name, the child and what replaces it


def fuse(loaded: LoadedModel, ops: FusedOps = TORCH_OPS) -> LoadedModel:
    """Patch an admitted model in place wherever a patch fits and computes the same. Fused modules run on `ops`."""
    expected, plain = probe_logits(loaded), loaded
    swaps: list[Swap] = []
    for kind, ending in KINDS.items():
        made: list[Swap] = []
        unknown: set[str] = set()
        for parent, name, module in _children(loaded.model):
            fused = fused_form(kind, module, ops)
            if fused is not None:
                made.append((parent, name, module, fused))
            elif type(module).__name__.endswith(ending):
                unknown.add(type(module).__name__)
        if unknown:
            loaded = _refusing(loaded, f"{kind}: no patch fits {', '.join(sorted(unknown))}")
        loaded = _swap(loaded, kind, made)
        swaps += made if kind in loaded.fused else []
    logits = probe_logits(loaded)
    off = relative_error(logits, expected)
    if not off <= MISWIRED:
        for parent, name, module, _ in reversed(swaps):
            setattr(parent, name, module)
        return _refusing(plain, f"all patches: together they change the logits by {off:.1%}")
    if loaded.state is not None or not decodes(loaded.model):
        return _refusing(loaded, f"decoder: no patch fits {type(loaded.model).__name__}")
    shorter = replace(loaded, decoder=FusedDecoder(loaded.model), fused=(*loaded.fused, "decoder"))
    off = relative_error(probe_logits(shorter), logits)
    return shorter if off <= FLOOR else _refusing(loaded, f"decoder: it changes the logits by {off:.2g}")


def fuse_as_before(loaded: LoadedModel, fused: Sequence[str], refused: Sequence[str], ops: FusedOps) -> LoadedModel:
    """Patch a model as `fuse` and `multiply_packed` did when they found `fused` to compute the same."""
    for kind in (*_PRODUCTS, *KINDS):
        if kind not in fused:
            continue
        for parent, name, module in _children(loaded.model):
            made = _PRODUCTS[kind](module, ops) if kind in _PRODUCTS else fused_form(kind, module, ops)
            if made is not None:
                setattr(parent, name, made)
    decoder = FusedDecoder(loaded.model) if "decoder" in fused and decodes(loaded.model) else None
    return replace(loaded, decoder=decoder, fused=tuple(fused), refused=tuple(refused))


def multiply_packed(loaded: LoadedModel, ops: FusedOps) -> LoadedModel:
    """Let `ops` multiply with the packed weights of an admitted model, where it can and computes the same."""
    for kind, form in _PRODUCTS.items():
        forms = ((*child, form(child[2], ops)) for child in _children(loaded.model))
        loaded = _swap(loaded, kind, [(parent, name, child, made) for parent, name, child, made in forms if made])
    return loaded


def probe_logits(loaded: LoadedModel) -> Tensor:
    """The logits [1, T, V] of a few tokens, fed in chunks."""
    return feed(loaded, dry_cache(loaded, PROBE_TOKENS), probe_ids(loaded, PROBE_TOKENS))


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every module below `model` with its parent and its name there, parents first."""
    return [(parent, name, module) for parent in model.modules() for name, module in parent.named_children()]


def _swap(loaded: LoadedModel, name: str, swaps: Sequence[Swap]) -> LoadedModel:
    """Replace modules if they compute the same, under `name`; else the model as it was, which says why."""
    if not swaps:
        return loaded
    try:
        why = judge(loaded, [(module, made) for _, _, module, made in swaps])
    except Exception as error:
        if not is_of_kernels(error):
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


@torch.inference_mode()
def judge(loaded: LoadedModel, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> str | None:
    """Compare modules with their fused forms, which see the same inputs: the fault of a fused one, None if all pass.

    Raises what a fused module raises.
    """
    errors: list[tuple[float, float]] = []
    handles = [
        module.register_forward_hook(_comparison(made, loaded.compute_dtype in _HALF, errors), with_kwargs=True)
        for module, made in pairs
    ]
    try:
        loaded.model.set_attn_implementation("eager")
        loaded.model(input_ids=text_ids(loaded), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
        loaded.model.set_attn_implementation(ATTENTION)
    for fused, eager in errors:
        bound = FACTOR * eager + FLOOR
        if not fused <= bound:  # an error that is no number is a fault too
            return f"off by {fused:.2g} from float32, more than {bound:.2g}; unfused it is off by {eager:.2g}"
    return None if errors else "never ran"


def _comparison(made: nn.Module, is_rounded: bool, errors: list[tuple[float, float]]) -> Callable[..., None]:
    """A forward hook that adds the relative errors against float32 of the fused module and of the one it is on."""

    def compare(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        eager, exact = _hidden(out), _hidden(out)
        if is_rounded:
            with _torch_ops(module), _Float32():
                exact = _hidden(module.forward(*args, **kwargs))
        errors.append((_error(_hidden(made(*args, **kwargs)), exact), _error(eager, exact)))

    return compare


@contextmanager
def _torch_ops(module: nn.Module) -> Iterator[None]:
    """Let what is fused inside `module` run on plain torch: kernels take memory as it is, in any dtype."""
    fused: list[Any] = [part for part in module.modules() if hasattr(part, "ops")]
    held = [part.ops for part in fused]
    try:
        for part in fused:
            part.ops = TORCH_OPS
        yield
    finally:
        for part, ops in zip(fused, held, strict=True):
            part.ops = ops


class _Float32(TorchFunctionMode):
    """Widens half-precision tensors and dtypes to float32 in every function that is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.view and isinstance(args[-1], torch.dtype):  # bytes, in which halves lie
            return func(*args)
        return func(*_widened(args), **_widened(kwargs or {}))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if type(value) in (tuple, list):
        return type(value)([_widened(part) for part in value])
    if type(value) is dict:
        return {name: _widened(part) for name, part in value.items()}
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value


def _hidden(out: Any) -> Tensor:
    """The hidden states among what a module returns."""
    found: Tensor = out if isinstance(out, Tensor) else out[0]
    return found.float()


def _error(value: Tensor, exact: Tensor) -> float:
    """The root mean square over tokens of each one's relative error: some tokens are a thousand times larger."""
    off = (value - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-12)
    return float(off.square().mean().sqrt())
