"""Pages of weight files that were copied are given back, and none that was written to."""

from __future__ import annotations

import resource
import sys
from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kvlite.models.file_pages import FilePages, give_back_freed, unwritten

SMAPS = """\
7f1000000000-7f1000100000 rw-p 00000000 fe:00 11                         /models/a b/model.safetensors
Rss:                 256 kB
Anonymous:             {anonymous} kB
Swap:                  {swap} kB
7f2000000000-7f2000100000 rw-p 00000000 fe:00 12                         /models/other.safetensors
Anonymous:             0 kB
Swap:                  0 kB
7f3000000000-7f3000100000 rw-p 00000000 00:00 0
Anonymous:            64 kB
Swap:                  0 kB
"""


@pytest.mark.parametrize(("anonymous", "swap", "is_found"), [(0, 0, True), (4, 0, False), (0, 8, False)])
def test_only_mappings_of_the_files_that_nobody_wrote_to_are_found(anonymous: int, swap: int, is_found: bool) -> None:
    smaps = SMAPS.format(anonymous=anonymous, swap=swap)
    assert [*unwritten(smaps, {"/models/a b/model.safetensors"})] == [(0x7F1000000000, 0x7F1000100000)] * is_found


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_pages_are_given_back_and_hold_what_they_held(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(1 << 20), "b": torch.ones(5)}, path)
    link = tmp_path / "folder" / "model.safetensors"
    link.parent.mkdir()
    link.symlink_to(path)
    with safe_open(link, "pt") as file:
        a, b = file.get_tensor("a"), file.get_tensor("b")
    pages = FilePages(link.parent)
    assert int(a.sum()) == sum(range(1 << 20)) and _resident(path) > 4 * 1024
    pages.copied(a.nbytes)  # too few to look for
    assert _resident(path) > 4 * 1024
    pages.let_go()
    assert _resident(path) == 0
    assert int(a.sum()) == sum(range(1 << 20)) and b.tolist() == [1.0] * 5
    a[7] = 70
    pages.let_go()
    assert a[7] == 70 and _resident(path) > 4 * 1024


def _resident(path: Path) -> int:
    """Kilobytes of `path` in this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    places = [number for number, line in enumerate(lines) if line.endswith(str(path))]
    return sum(int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]) for at in places)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(CDLL(None), "malloc_trim"), reason="asks glibc")
def test_memory_that_was_freed_below_what_is_in_use_is_given_back() -> None:
    held = [bytearray(2000) for _ in range(30_000)]
    last = held[-1]
    held.clear()
    before = resident_bytes()
    give_back_freed()
    assert len(last) == 2000 and resident_bytes() < before - 20_000_000
