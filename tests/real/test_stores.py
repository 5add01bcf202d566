"""SmolLM2's GGUF file where ollama and LM Studio would have it: listed, chatted with, and untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.program import finish, start
from tests.smollm2 import smollm2_file

pytestmark = pytest.mark.real

NAMES = ("ollama:smollm2:135m", "lmstudio:lmstudio-community/SmolLM2-135M-Instruct-GGUF")


@pytest.fixture
def home(own_home: Path, tmp_path: Path) -> Path:
    """A home with both stores, made from the file of the wheel."""
    file = smollm2_file()
    with file.open("rb") as held:
        digest = f"sha256:{hashlib.file_digest(held, 'sha256').hexdigest()}"
    manifest = own_home / ".ollama/models/manifests/registry.ollama.ai/library/smollm2/135m"
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": file.stat().st_size}]
    blob = own_home / ".ollama/models/blobs" / digest.replace(":", "-")
    studio = own_home / ".lmstudio/models/lmstudio-community/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_1.gguf"
    for place in (manifest, blob, studio):
        place.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    shutil.copy(file, blob)
    file.replace(studio)  # so that kvlite has nothing of its own
    return own_home


def contents(home: Path) -> dict[str, tuple[int, str]]:
    """The time of change and the sha256 of each file in the stores, and the time of each folder."""
    found = {}
    for path in (one for store in (".ollama", ".lmstudio") for one in (home / store).rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (path.stat().st_mtime_ns, hashlib.sha256(content).hexdigest())
    return found


def test_both_are_listed_chatted_with_and_left_to_the_byte(home: Path) -> None:
    before = contents(home)
    _, listed, _ = finish(start("ls", "--json"))
    assert {one["name"]: one["state"] for one in json.loads(listed)} == dict.fromkeys(("demo", *NAMES), "ready")
    for name in (*NAMES, "smollm2:135m", "lmstudio-community/SmolLM2-135M-Instruct-GGUF"):
        process = start("chat", name, stdin=subprocess.PIPE)
        out, err = process.communicate(b"What is the capital of France?", timeout=300)
        assert (process.returncode, out.decode()) == (0, "The capital of France is Paris.\n"), err
        code, _, said = finish(start("rm", name, "-y"))
        assert (code, said) == (2, f"kvlite: {name!r} is another program's; kvlite rm deletes only from the Hugging "
                                   "Face cache\n")  # fmt: skip
    assert contents(home) == before
