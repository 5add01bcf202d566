"""The header of a GGUF file: metadata and where each tensor lies. No tensor is read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file split into parts repeats the metadata in
each and tells in `split.count` how many there are.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvlite.errors import BrokenModel, KvliteError, UnsupportedModel

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_BESIDE = re.compile(r"^imatrix|(^|[-._])mmproj")
"""Files beside a model."""
_MOST_DIMS = 8
_LENGTH = struct.Struct("<Q")

BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
    "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ3_XXS": (256, 98), "IQ1_S": (256, 50), "IQ3_S": (256, 110), "IQ2_S": (256, 82),
    "IQ1_M": (256, 56), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17),
}  # fmt: skip
"""Elements and bytes of a block, by the name of its type."""

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its file holds it: `shape` with rows first, type by name, place in the file in bytes."""

    file: Path
    shape: tuple[int, ...]
    type: str
    start: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        elements, size = BLOCKS[self.type]
        return self.parameters // elements * size


@dataclass(frozen=True)
class Header:
    """The metadata of a model and its tensors by name, of all parts of a split file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """The family as llama.cpp names it."""
        return str(self.metadata.get("general.architecture", ""))

    def about(self, key: str, default: Any = None) -> Any:
        """The metadata `key` of the architecture, as in `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def floats(self, name: str) -> list[float]:
        """The numbers of a small F32 tensor. Raises BrokenModel where there is none of that name and type."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.type != "F32":
            raise BrokenModel(f"{self.path.name} has no {name} in F32; download it again")
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            return list(struct.unpack(f"<{tensor.parameters}f", file.read(tensor.num_bytes)))

    @cached_property
    def by_type(self) -> dict[str, int]:
        """Bytes of tensors by type, the largest first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.num_bytes
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def read_header(path: Path) -> Header:
    """The header of a GGUF file, or of all parts where `path` is one of them.

    Raises BrokenModel where a part is missing, cut off or no GGUF, UnsupportedModel for types no release wrote yet.
    """
    paths = [path.with_name(name) for name in part_names(path.name)]
    missing = [one.name for one in paths if not one.is_file()]
    if missing:
        raise BrokenModel(f"{path} is one of {len(paths)} parts and {missing[0]} is missing; download it too")
    return joined([_read(one) for one in paths])


def part_names(name: str) -> list[str]:
    """The names of all parts of the file that `name` is one part of; only itself where it is whole."""
    part = _PART.search(name)
    if part is None or not int(part[2]):
        return [name]
    before, behind = name[: part.start(1)], name[part.end(1) :]
    return [f"{before}{number:05d}{behind}" for number in range(1, int(part[2]) + 1)]


def joined(parts: Sequence[Header]) -> Header:
    """The header of a model in one or several parts. Raises BrokenModel where parts are missing."""
    first, count = parts[0], parts[0].metadata.get("split.count", 0)
    if isinstance(count, int) and count > len(parts):
        raise BrokenModel(f"{first.path} is one of {count} parts; keep the names ...-00001-of-{count:05d}.gguf")
    return Header(first.path, first.metadata, {name: found for one in parts for name, found in one.tensors.items()})


def parse_header(path: Path, held: bytes | mmap.mmap, size: int) -> Header | None:
    """The header of one file of `size` bytes that begins with `held`; None where it is longer than that.

    Raises BrokenModel where it is cut off or no GGUF, UnsupportedModel for what is not known.
    """
    if held[: len(MAGIC)] != MAGIC:
        raise BrokenModel(f"{path} is not a GGUF file; download it again")
    try:
        with one_line(path):
            return _Reader(path, held, size).read()
    except (struct.error, OverflowError) as error:
        if len(held) < size:
            return None
        raise BrokenModel(f"{path} is damaged or cut off in its header; download it again") from error


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what metadata of another type or size leads to into BrokenModel; damaged files hold anything."""
    try:
        yield
    except (KvliteError, struct.error, OverflowError):
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
        raise BrokenModel(f"{path} has damaged metadata ({why:.200}); download it again") from error


def models_among(names: Iterable[str]) -> dict[str, list[str]]:
    """The GGUF models among names of files: all parts of each, by the name without `.gguf` and the number of a part.

    Left out are files beside a model: projectors of images, importance matrices.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        lower = name.lower()
        if lower.endswith(".gguf") and not _BESIDE.search(lower.rpartition("/")[2]):
            stem = _PART.sub("", name) if _PART.search(name) else name[: -len(".gguf")]
            found.setdefault(stem, []).append(name)
    return found


def is_gguf(path: Path) -> bool:
    """True where the file begins as a GGUF file does, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _read(path: Path) -> Header:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            header = parse_header(path, held, len(held))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise BrokenModel(f"{path} cannot be read ({error}); download it again") from error
    assert header is not None
    return header


class _Reader:
    """Reads values one after another from what a file of `size` bytes begins with."""

    def __init__(self, path: Path, held: bytes | mmap.mmap, size: int) -> None:
        self.path, self.held, self.size, self.at = path, held, size, len(MAGIC)

    def read(self) -> Header:
        (version,) = self.unpack("I")
        if version in (2 << 24, 3 << 24):
            raise UnsupportedModel(f"{self.path} is a big-endian GGUF file; convert it to little-endian")
        if version not in (2, 3):
            raise UnsupportedModel(f"{self.path} is GGUF version {version}; kvlite reads 2 and 3: convert it again")
        num_tensors, num_keys = self.unpack("QQ")
        metadata = {}
        for _ in range(num_keys):
            key = self.string()
            metadata[key] = self.value(*self.unpack("I"))
        found = [self.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        data = -(-self.at // alignment) * alignment
        tensors = {name: TensorInfo(self.path, shape, kind, data + start) for name, shape, kind, start in found}
        end = max((tensor.start + tensor.num_bytes for tensor in tensors.values()), default=0)
        if end > self.size:
            raise BrokenModel(f"{self.path} is cut off: {self.size:,} of {end:,} bytes; download it again")
        return Header(self.path, metadata, tensors)

    def unpack(self, kinds: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{kinds}", self.held, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return values

    def string(self) -> str:
        (length,) = self.unpack("Q")
        if self.at + length > len(self.held):
            raise struct.error
        self.at += length
        return self.held[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.unpack(_NUMBERS[kind])[0]
        if kind != _ARRAY:
            raise BrokenModel(f"{self.path} holds metadata of kind {kind}, which GGUF does not have; download it again")
        of, length = self.unpack("IQ")
        if of in _NUMBERS:
            if length > len(self.held):
                raise struct.error
            return self.unpack(f"{length}{_NUMBERS[of]}")
        return self.strings(length) if of == _STRING else [self.value(of) for _ in range(length)]

    def strings(self, length: int) -> list[str]:
        """So many strings, as `string` reads one: a vocabulary has 100,000."""
        held, at, size, length_of = self.held, self.at, len(self.held), _LENGTH.unpack_from
        found = []
        for _ in range(length):
            (count,) = length_of(held, at)
            at += 8 + count
            if at > size:
                raise struct.error
            found.append(str(held[at - count : at], "utf-8", "replace"))
        self.at = at
        return found

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        name = self.string()
        (dims,) = self.unpack("I")
        if dims > _MOST_DIMS:
            raise struct.error
        shape = self.unpack(f"{dims}Q")
        kind, start = self.unpack("IQ")
        if kind not in _TYPES:
            raise UnsupportedModel(
                f"{self.path}: {name} is of type {kind}, which kvlite does not know; use another file"
            )
        return name, tuple(reversed(shape)), _TYPES[kind], start
