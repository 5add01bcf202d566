"""Finds out whether a piece of work asks the device anything, before a CUDA graph is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_READS = (_aten._local_scalar_dense, _aten.equal)
_SHAPED_BY_VALUES = (_aten.nonzero, _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten.bincount)
_MAKES = (_aten.lift_fresh, _aten.detach_)  # all that shows of torch.tensor(.., device=), which the host makes
_MOVES = (_aten._to_copy, _aten.copy_, *_MAKES)


class AsksTheHost(RuntimeError):
    """An operation needs the host in the middle of the work; the message names it."""


class Watch(TorchDispatchMode):
    """Raises AsksTheHost in the block where a value of `device` is read, or a tensor comes to it or leaves it.

    On the CPU, where everything is on the host, it sees what reads and what takes its shape from values.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        with self:  # inference mode hands over operations that are made of others
            result: object = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        operation = func.overloadpacket
        if operation in _READS and self._are_here((args, kwargs)):
            raise AsksTheHost(f"{func.name()} reads the device")
        if operation in _SHAPED_BY_VALUES or _is_masked(func, args, kwargs):
            raise AsksTheHost(f"{func.name()} takes its shape from the device")
        result = func(*args, **kwargs)
        if operation in _MOVES:
            devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
            comes = operation in _MAKES and self._device.type != "cpu" and self._are_here(result)
            if len(devices) > 1 or comes:
                raise AsksTheHost(f"{func.name()} copies between host and device")
        return result

    def _are_here(self, values: object) -> bool:
        return any(isinstance(x, Tensor) and x.device.type == self._device.type for x in tree_leaves(values))


def _is_masked(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that may know its shape does not: indexing by a mask, repeating by counts."""
    if func is _aten.index.Tensor:
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
