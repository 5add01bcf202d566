"""What every test starts from: no settings, no colour and no network but what the test itself asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("quick")  # before --hypothesis-profile is read

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: kernels then run as plain Python


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, so that no test reads or writes the user's configuration, sessions or reports."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("KVLITE_", "XDG_", "_KVLITE_")) and name != "KVLITE_DATA":
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    yield home


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """The folder of a model of 260,000 parameters, trained on stories; a skip where KVLITE_DATA names none."""
    folder = Path(os.environ.get("KVLITE_DATA", "")) / "models" / "stories260K"
    if "KVLITE_DATA" not in os.environ or not folder.exists():
        pytest.skip("KVLITE_DATA names no folder with models/stories260K")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A folder with SmolLM2-135M-Instruct in bfloat16; for tests marked `real`."""
    from tests.smollm2 import smollm2_folder

    return smollm2_folder()
