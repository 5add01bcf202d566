"""Other weights in the same place are noticed, the same weights in another place are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kvlite.catalog import fingerprint as module
from kvlite.catalog.files import local_files
from kvlite.catalog.fingerprint import fingerprint
from kvlite.catalog.names import demo_folder, resolve_model


def identity(folder: Path) -> str:
    return local_files(resolve_model(str(folder))).identity()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_folder_whose_files_were_swapped_has_another_identity(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(demo_folder(), tmp_path / "mine"))
    before = identity(folder)
    assert identity(folder) == before
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    assert identity(folder) != before


def test_a_large_file_is_known_by_size_time_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(module, "_HEADER_BYTES", 100)
    path = tmp_path / "large"
    found = set()
    path.write_bytes(bytes(2**20))
    os.utime(path, ns=(1, 1))
    found.add(fingerprint([path]))
    os.utime(path, ns=(2, 2))
    found.add(fingerprint([path]))
    for place in (0, 2**19, 2**20 - 1):
        content = bytearray(2**20)
        content[place] = 1
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        found.add(fingerprint([path]))
    assert len(found) == 5
