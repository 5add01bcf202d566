"""The types of GGUF blocks that are multiplied as they are, and the bytes that takes. No tensor is read."""

from __future__ import annotations

from collections.abc import Callable

from kvlite.gguf.families import family_of, parts_of, weight_names
from kvlite.gguf.header import Header, TensorInfo

FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")
"""Types whose 32 neighbours share a scale and an offset, in codes of 4 bits: nothing is rounded but these two."""

EIGHT_BITS = ("Q8_0", "Q5_0", "Q5_1", "Q5_K", "Q6_K")
"""Types with more bits, which are held in two halves of 4; those of Q6_K, whose scales are of 16 neighbours, anew."""

GROUP, COLUMNS = 32, 64
_EIGHTHS = dict.fromkeys(FOUR_BITS, 5) | dict.fromkeys(EIGHT_BITS, 10)  # of a byte for a weight, scales and all


def is_packed(header: Header, name: str) -> bool:
    """True for a matrix that can stay packed: linear maps, output head and embedding, in whole blocks."""
    tensor, (_, part, _) = header.tensors[name], parts_of(name)
    if part in family_of(header).transposed or part in ("per_layer_token_embd", "position_embd"):
        return False  # the latter are looked up and never multiplied
    is_matrix = len(tensor.shape) == 2 and tensor.shape[0] % COLUMNS == 0 and tensor.shape[1] % GROUP == 0
    return is_matrix and tensor.type in _EIGHTHS and not part.startswith("ffn_gate_inp")


def packed_types(header: Header) -> tuple[str, ...]:
    """The types of the matrices that can stay packed, of which the file has most bytes first."""
    sizes: dict[str, int] = {}
    for name in weight_names(header):
        tensor = header.tensors[name]
        if is_packed(header, name):
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.num_bytes
    return tuple(sorted(sizes, key=lambda kind: -sizes[kind]))


def block_bytes(header: Header, element_bytes: int) -> int:
    """Bytes of the weights where what can be packed stays as in the file, and the rest takes `element_bytes` each."""
    return _held_bytes(header, element_bytes, lambda tensor: tensor.num_bytes)


def packed_bytes(header: Header, element_bytes: int) -> int:
    """Bytes of the weights where what can be stays packed, and the rest takes `element_bytes` each."""
    return _held_bytes(header, element_bytes, lambda tensor: tensor.parameters * _EIGHTHS[tensor.type] // 8)


def parameters(header: Header) -> int:
    """Numbers of the weights that a model holds."""
    return sum(header.tensors[name].parameters for name in weight_names(header))


def _held_bytes(header: Header, element_bytes: int, of_packed: Callable[[TensorInfo], int]) -> int:
    return sum(
        of_packed(tensor) if is_packed(header, name) else tensor.parameters * element_bytes
        for name in weight_names(header)
        for tensor in (header.tensors[name],)
    )
