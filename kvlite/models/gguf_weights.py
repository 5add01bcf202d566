"""The tensors of a GGUF file under transformers' names, each read from the file and unpacked when it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kvlite.gguf.families import family_of, parts_of, weight_names
from kvlite.gguf.header import BLOCKS, Header, TensorInfo
from kvlite.gguf.packing import is_packed
from kvlite.gguf.rope import wanted
from kvlite.models.block_linear import as_parameter
from kvlite.models.gguf_blocks import numbers, pack_blocks
from kvlite_kernels.blocks import Blocks
from kvlite_kernels.packed import Packed, rows_at_once

_ROWS_BYTES = 1 << 23
"""Most bytes of float32 that are unpacked at once, so that no large matrix is ever whole in float32."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read, unpacked to `dtype` and brought into transformers' order by `lazy[...]`.

    `expert` picks one of a stack; `pairs_of` heads have their rotary halves interleaved; `shift` is added; `unsqueeze`
    is the dimension of size 1 that the file leaves out; a matrix may be `transposed`. Where its `place` is `taken` by
    somebody who asks it to `pack`, `lazy[...]` is of that shape and holds no numbers.
    """

    info: TensorInfo
    dtype: torch.dtype
    expert: int | None = None
    pairs_of: int = 0
    shift: float = 0.0
    unsqueeze: int | None = None
    transposed: bool = False
    place: str = ""
    taken: Collection[str] = ()

    @property
    def shape(self) -> torch.Size:
        """The shape that `lazy[...]` has."""
        shape = self.info.shape if self.expert is None else self.info.shape[1:]
        if self.transposed:
            shape = shape[::-1]
        at = self.unsqueeze
        return torch.Size(shape if at is None else (*shape[:at], 1, *shape[at:]))

    def __getitem__(self, index: object) -> Tensor:
        if self.place in self.taken:
            return torch.tensor(torch.nan, dtype=self.dtype).expand(self.shape)
        return self._whole() if index is Ellipsis else self._whole()[index]  # type: ignore[index]

    def pack(self) -> Packed:
        """The blocks as they are, packed."""
        outputs, inputs = self.info.shape
        at_once = rows_at_once(inputs)
        if self.pairs_of:
            return pack_blocks(self.blocks().data.split(at_once), self.info.type, outputs)
        return pack_blocks(self._rows(at_once), self.info.type, outputs)

    def blocks(self) -> Blocks:
        """The blocks as they are, in one piece."""
        outputs = self.info.shape[0]
        (whole,) = self._rows(outputs)
        if self.pairs_of:
            whole = whole.unflatten(0, (self.pairs_of, -1, 2)).transpose(1, 2).flatten(0, 2)
        return Blocks(as_parameter(whole), self.info.type)

    def _rows(self, at_once: int) -> Iterator[Tensor]:
        """The rows in the file, uint8 [at_once, bytes], one part after another."""
        elements, size = BLOCKS[self.info.type]
        row = self.info.shape[-1] // elements * size
        count = self.info.num_bytes // row
        first = 0
        if self.expert is not None:
            count //= self.info.shape[0]
            first = self.expert * count
        with self.info.file.open("rb") as file:
            file.seek(self.info.start + first * row)
            for start in range(0, count, at_once):
                part = np.fromfile(file, np.uint8, min(at_once, count - start) * row)
                yield torch.from_numpy(part).view(-1, row)

    def read_into(self, places: Sequence[Tensor]) -> None:
        """Read a stack, each of its matrices or vectors into one of `places`."""
        for expert, place in enumerate(places):
            place.copy_(replace(self, expert=expert).unpacked().view(place.shape))

    def unpacked(self) -> Tensor:
        """The numbers as they lie in the file, in `dtype`: [rows, width]."""
        width = self.info.shape[-1]  # of the file
        whole = torch.empty(self.shape.numel() // width, width, dtype=self.dtype)
        at = 0
        for rows in self._rows(max(1, _ROWS_BYTES // (4 * width))):
            part = numbers(rows, self.info.type)
            whole[at : at + len(rows)] = part.add_(self.shift) if self.shift else part
            at += len(rows)
        return whole

    def _whole(self) -> Tensor:
        whole = self.unpacked()
        if self.pairs_of:
            whole = whole.unflatten(0, (self.pairs_of, -1, 2)).transpose(1, 2)
        return whole.T.contiguous() if self.transposed else whole.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class LazyExperts:
    """Matrices [E, N, K] or biases [E, N] of all experts; gate and up in one, one after the other along N.

    Where they `alternate` their rows take turns, and matrices are transposed: [E, K, N].
    """

    parts: tuple[LazyTensor, ...]
    alternate: bool

    @property
    def shape(self) -> torch.Size:
        """The shape that `lazy[...]` has."""
        experts, _, *inputs = self.parts[0].shape
        outputs = [sum(part.shape[1] for part in self.parts)]
        return torch.Size((experts, *(inputs + outputs if self.alternate else [*outputs, *inputs])))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `lazy[...]` has."""
        return self.parts[0].dtype

    def __getitem__(self, index: object) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.dtype)
        rows = whole.transpose(1, 2) if self.alternate and whole.ndim == 3 else whole  # [E, N, K] or [E, N]
        at = 0
        for number, part in enumerate(self.parts):
            count = part.shape[1]
            place = rows[:, number :: len(self.parts)] if self.alternate else rows[:, at : at + count]
            part.read_into(place.unbind())
            at += count
        return whole if index is Ellipsis else whole[index]  # type: ignore[index]


def state_dict(header: Header, dtype: torch.dtype, taken: Collection[str] = ()) -> dict[str, LazyTensor | LazyExperts]:
    """Lazy tensors by transformers' names; a stack of experts becomes one tensor for each where transformers has so.

    `taken` may still grow until one of them is asked for.
    """
    family = family_of(header)
    heads = wanted(header, "attention.head_count")
    permuted = {"attn_q": heads, "attn_k": wanted(header, "attention.head_count_kv", heads)} if family.pairs else {}
    found: dict[str, LazyTensor | LazyExperts] = {}
    names = weight_names(header)
    for name, place in names.items():
        info, (_, part, suffix) = header.tensors[name], parts_of(name)
        if part.endswith("_exps") and "*" not in place and suffix != "scale":
            stack = sorted((one for one in names if names[one] == place), key=lambda one: "_up_" in one)
            lazy = tuple(LazyTensor(header.tensors[one], dtype) for one in stack)
            found[place] = LazyExperts(lazy, family.alternates)
        elif "*" in place:
            found |= {place.replace("*", str(i)): LazyTensor(info, dtype, expert=i) for i in range(info.shape[0])}
        else:
            found[place] = LazyTensor(
                info,
                torch.float32 if part == "exp_probs_b" else dtype,  # added to scores that are nearly alike
                pairs_of=permuted.get(part, 0),
                shift=-1.0 if family.shifted_norms and part.endswith("norm") and suffix == "weight" else 0.0,
                unsqueeze={"ffn_gate_inp_shexp": 0, "shortconv.conv": 1}.get(part),
                transposed=part in family.transposed and suffix == "weight",
                place=place,
                taken=taken,
            )
    return found


def packed_sources(header: Header, weights: Mapping[str, LazyTensor | LazyExperts]) -> dict[str, LazyTensor]:
    """Those of a file's weights that can stay packed, by their names in transformers."""
    places = [place for name, place in weight_names(header).items() if is_packed(header, name)]
    return {place: lazy for place in places if isinstance(lazy := weights[place], LazyTensor)}
