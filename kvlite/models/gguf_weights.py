"""The tensors of a GGUF file under transformers' names, each read from the file and unpacked when it is asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from kvlite.gguf.families import family_of, weight_names
from kvlite.gguf.header import BLOCKS, Header, TensorInfo
from kvlite.gguf.packing import is_packed
from kvlite.models.gguf_blocks import pack_blocks
from kvlite_kernels.packed import Packed

_ROWS_BYTES = 1 << 26
"""Most bytes of float32 that are unpacked at once, so that no large matrix is ever whole in float32."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read, unpacked to `dtype` and brought into transformers' order by `lazy[...]`.

    `expert` picks one of a stack; `pairs_of` heads have their rotary halves interleaved; `shift` is added. Where
    its `place` is `taken` by somebody who asks it to `pack`, `lazy[...]` is of that shape and holds no numbers.
    """

    info: TensorInfo
    dtype: torch.dtype
    expert: int | None = None
    pairs_of: int = 0
    shift: float = 0.0
    unsqueeze: bool = False
    place: str = ""
    taken: Collection[str] = ()

    @property
    def shape(self) -> torch.Size:
        """The shape that `lazy[...]` has."""
        shape = self.info.shape if self.expert is None else self.info.shape[1:]
        return torch.Size((1, *shape) if self.unsqueeze else shape)

    def __getitem__(self, index: object) -> Tensor:
        if self.place in self.taken:
            return torch.tensor(torch.nan, dtype=self.dtype).expand(self.shape)
        return self._whole() if index is Ellipsis else self._whole()[index]  # type: ignore[index]

    def pack(self) -> Packed:
        """The blocks as they are, packed."""
        rows = torch.from_numpy(np.array(self._rows()))
        if self.pairs_of:
            rows = rows.unflatten(0, (self.pairs_of, -1, 2)).transpose(1, 2).flatten(0, 2)
        return pack_blocks(rows, self.info.type)

    def _rows(self) -> np.ndarray:
        """The rows of blocks in the file, uint8 [N, bytes]."""
        elements, size = BLOCKS[self.info.type]
        row = self.info.shape[-1] // elements * size
        packed: np.ndarray = np.memmap(
            self.info.file, np.uint8, "r", self.info.start, (self.info.num_bytes // row, row)
        )
        if self.expert is None:
            return packed
        rows = packed.shape[0] // self.info.shape[0]
        return packed[self.expert * rows : (self.expert + 1) * rows]

    def _whole(self) -> Tensor:
        packed = self._rows()
        whole = torch.empty(packed.shape[0], self.info.shape[-1], dtype=self.dtype)
        step = max(1, _ROWS_BYTES // (4 * self.info.shape[-1]))
        for start in range(0, len(packed), step):
            part = dequantize(packed[start : start + step], GGMLQuantizationType[self.info.type])
            whole[start : start + step] = torch.from_numpy(part + np.float32(self.shift))
        if self.pairs_of:
            whole = whole.unflatten(0, (self.pairs_of, -1, 2)).transpose(1, 2)
        return whole.reshape(self.shape)


def state_dict(header: Header, dtype: torch.dtype, taken: Collection[str] = ()) -> dict[str, LazyTensor]:
    """Lazy tensors by transformers' names; a stack of experts becomes one tensor for each.

    `taken` may still grow until one of them is asked for.
    """
    family = family_of(header)
    heads = header.about("attention.head_count")
    permuted = {"attn_q": heads, "attn_k": header.about("attention.head_count_kv", heads)} if family.pairs else {}
    found: dict[str, LazyTensor] = {}
    for name, place in weight_names(header).items():
        info, part = header.tensors[name], name.rpartition(".")[0].rpartition(".")[2]
        if "*" in place:
            found |= {place.replace("*", str(i)): LazyTensor(info, dtype, expert=i) for i in range(info.shape[0])}
        else:
            found[place] = LazyTensor(
                info,
                dtype,
                pairs_of=permuted.get(part, 0),
                shift=-1.0 if family.shifted_norms and part.endswith("norm") else 0.0,
                unsqueeze=part == "ffn_gate_inp_shexp",
                place=place,
                taken=taken,
            )
    return found


def packed_places(header: Header) -> list[str]:
    """The names, in transformers, of the weights that can stay packed."""
    return [place for name, place in weight_names(header).items() if is_packed(name, header.tensors[name])]
