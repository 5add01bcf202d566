"""Keys or values as kernels take them: numbers with their strides, or codes with their scales, by slots."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvlite_kernels.slots import Vectors


@dataclass(frozen=True, slots=True)
class Operand:
    """`data` and, where `bits` is not 0, `scale`; `strides` of each dimension but channels, in slots where coded.

    `group` channels share a scale; of half a vector of 4 bits, `run` do wherever they begin.
    """

    data: Tensor
    scale: Tensor
    strides: tuple[int, ...]
    bits: int = 0
    group: int = 1
    run: int = 1


def operand(x: Vectors) -> Operand:
    """`x` [..., n, H_KV, N, D] as kernels take it, without a copy."""
    if isinstance(x, Tensor):
        assert x.stride(-1) == 1, "keys and values are read a row at a time"
        return Operand(x, x, x.stride()[:-1])
    strides = _in_slots(x.codes)
    assert strides == _in_slots(x.scale), "scales lie as their codes do"
    return Operand(x.codes, x.scale, strides, x.bits, x.group, x.run)


def _in_slots(x: Tensor) -> tuple[int, ...]:
    """Strides counted in slots."""
    width = x.shape[-1]
    assert x.stride(-1) == 1 and x.stride(-2) == width, "codes lie slot by slot"
    assert all(stride % width == 0 for stride in x.stride()[:-1])
    return tuple(stride // width for stride in x.stride()[:-1])
