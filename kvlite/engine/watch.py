"""Finds out whether a piece of work asks the device anything, before a CUDA graph is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_SHAPED_BY_VALUES = (_aten.nonzero, _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten.bincount)
_READ = (_aten._local_scalar_dense, _aten.equal, *_SHAPED_BY_VALUES)
_MOVED = (_aten._to_copy, _aten.copy_, _aten.lift_fresh)


class AsksTheHost(RuntimeError):
    """An operation needs the host in the middle of the work; the message names it."""


class Watch(TorchDispatchMode):
    """Raises AsksTheHost in the block where a value of `device` is read, or a tensor comes to it or leaves it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func.overloadpacket in _READ and self._is_here((args, kwargs)):
            raise AsksTheHost(f"{func.name()} reads the device")
        result: object = func(*args, **kwargs)
        if func.overloadpacket in _MOVED:
            devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
            # torch.tensor(.., device=) is built on the host and shows only its last operation
            came = func.overloadpacket is _aten.lift_fresh and self._device.type != "cpu" and self._is_here(result)
            if len(devices) > 1 or came:
                raise AsksTheHost(f"{func.name()} copies between host and device")
        return result

    def _is_here(self, values: object) -> bool:
        return any(isinstance(x, Tensor) and x.device.type == self._device.type for x in tree_leaves(values))
