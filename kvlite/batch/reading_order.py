"""The order in which a long file is read: lines that begin alike follow one another, however far apart they stand.

Of each line a sample of its text is taken while the file is read for the first time, then samples are sorted. Samples
only choose an order: what prompts share is found later, in their ids.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BOM = b"\xef\xbb\xbf"
WORTH_IT = 0.1  # of the samples of all lines: so much more must be shared than in the order of the file

_TEXT = re.compile(rb'"(?:messages|prompt|system)"\s*:')  # where the text of a JSON line begins, near enough
_NEAR, _FAR = slice(0, 512, 32), slice(512, 512 + 16 * 256, 256)  # bytes of the text: 16 and 16
_SIZE = 32


@dataclass(frozen=True, slots=True)
class Place:
    """A line in its file: records count from 0, lines from 1, bytes from 0."""

    index: int
    line: int
    offset: int


class ReadingOrder:
    """The places of the lines of a file, noted one by one; they take 44 bytes each, and 16 once they are in order."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json
        self._samples = bytearray()
        self._offsets, self._lines = array("Q"), array("I")
        self._indexes: array[int] | None = None  # in the order to read, the first line first
        self._offset = self._line = 0

    def add(self, line: bytes) -> None:
        """Note the next line of the file."""
        self._line += 1
        line, size = line.removeprefix(BOM) if self._line == 1 else line, len(line)
        if line.strip():
            found = _TEXT.search(line) if self._is_json else None
            text = line[found.end() :] if found else line
            self._samples += (text[_NEAR] + text[_FAR]).ljust(_SIZE, b"\0")
            self._offsets.append(self._offset)
            self._lines.append(self._line)
        self._offset += size

    def sort(self, window: int) -> bool:
        """Put lines that begin alike together, where more is shared then than among `window` lines at once.

        False where it is not, and the file is read as it is.
        """
        if len(self._lines) <= window:
            return False
        import numpy as np

        samples = np.frombuffer(self._samples, dtype=f"S{_SIZE}")
        self._samples = bytearray()
        near = sum(_shared(np.sort(samples[start : start + window])) for start in range(0, len(samples), window))
        order = np.argsort(samples, kind="stable")
        parts = range(0, len(samples), window)
        far = sum(_shared(samples[order[start : start + window + 1]]) for start in parts)  # neighbours over all parts
        if far - near < WORTH_IT * _SIZE * len(samples):
            return False
        self._indexes = array("I", np.concatenate([[0], order[order != 0]]).astype("I").tobytes())
        return True

    def places(self) -> Iterator[Place]:
        """The places in the order to read. `sort` must have put them there."""
        assert self._indexes is not None
        for index in self._indexes:
            yield Place(index, self._lines[index], self._offsets[index])


def _shared(samples: NDArray[np.bytes_]) -> int:
    """Count the bytes that samples, which are sorted, have in common with the one before, from the start on."""
    import numpy as np

    each = samples.view(np.uint8).reshape(len(samples), _SIZE)
    return int(np.logical_and.accumulate(each[1:] == each[:-1], axis=1).sum())
