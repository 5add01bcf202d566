"""A short name for what the files of a local model hold, so that work resumed with other weights is noticed."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

_WHOLE_BYTES = 2**25  # a file that is not larger counts with all of its bytes
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 2**12
_HEADER_BYTES = 2**20


def fingerprint(files: Iterable[Path]) -> str:
    """Hash the files' names and contents; of large ones size, time, start and samples spread over the rest.

    Reads about a megabyte of a large file. Raises OSError.
    """
    found = sha256()
    for path in sorted(files):
        stat = path.stat()
        found.update(f"{path.name}\0{stat.st_size}\0".encode())
        with path.open("rb") as file:
            if stat.st_size <= _WHOLE_BYTES:
                found.update(file.read())
                continue
            found.update(f"{stat.st_mtime_ns}\0".encode())
            found.update(file.read(_HEADER_BYTES))
            for number in range(1, _NUM_SAMPLES + 1):
                file.seek(number * (stat.st_size - _SAMPLE_BYTES) // _NUM_SAMPLES)
                found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()[:12]
