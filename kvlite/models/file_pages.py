"""Memory that loading no longer needs, given back to the system: pages of mapped weight files, and what was freed.

The safetensors library maps a file, and each page that is read stays with the process. Weights that are joined, packed
or put on a device are copies of such pages, so that a model would be held twice.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)")
_WRITTEN = re.compile(r"(?:Anonymous|Swap): +[1-9]")
_STEP_BYTES = 1 << 26  # to look at all mappings takes some 30 ms


class FilePages:
    """The safetensors files in a folder, as this process has them mapped."""

    def __init__(self, folder: Path) -> None:
        self._files = {str(path.resolve()): path.stat().st_size for path in folder.glob("*.safetensors")}
        self._step = max(_STEP_BYTES, sum(self._files.values()) // 8)
        self._copied = 0

    def copied(self, num_bytes: int) -> None:
        """Count bytes that were read and copied: some at a time are let go."""
        self._copied += num_bytes
        if self._copied >= self._step:
            self.let_go()

    def let_go(self) -> None:
        """Give the pages back: the system keeps them as long as it can, and gives what is read again.

        A file of which any page was written to stays as it is, and so do all where the system is not Linux.
        """
        self._copied = 0
        if not self._files or not hasattr(mmap, "MADV_DONTNEED"):
            return
        try:
            smaps = _SMAPS.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, end in unwritten(smaps, self._files):
            advise(start, end - start, mmap.MADV_DONTNEED)  # what it refuses stays


def give_back_freed() -> None:
    """Give freed memory back to the system, of which glibc keeps what lies below anything in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def unwritten(smaps: str, files: Collection[str]) -> Iterator[tuple[int, int]]:
    """The addresses where `files` are mapped and no page was written to, from the text of Linux's smaps."""
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if (mapping := _MAPPING.match(line)) is not None:
            if found is not None:
                yield found
            found = (int(mapping[1], 16), int(mapping[2], 16)) if mapping[3] in files else None
        elif _WRITTEN.match(line):
            found = None
    if found is not None:
        yield found
