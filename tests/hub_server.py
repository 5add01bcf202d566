"""A Hugging Face Hub on the loopback interface, with just enough of its API for huggingface_hub 1.33 to 2.4.

with private_hub(monkeypatch, tmp_path) as hub:
    hub.add("org/name", {"config.json": b"{}"})
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree|auth-check)(?:/(?P<rev>[^/]+))?)?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<name>.+)")


@dataclass
class FakeRepo:
    """A repository with one commit, which `main` and every name in `branches` mean.

    `gated` asks for the server's token. `stops_after` cuts answers of files that are longer off after so many bytes;
    without `ranges` files come whole, whatever part is asked for.
    """

    name: str
    files: dict[str, bytes]
    card: dict[str, Any]
    gated: bool = False
    branches: tuple[str, ...] = ("main",)
    stops_after: int | None = None
    ranges: bool = True

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr((self.name, sorted(self.files.items()))).encode()).hexdigest()


class HubServer:
    """Serves FakeRepos from a thread while the context is open; `requests` lists `METHOD path` of all it was asked."""

    def __init__(self, token: str = "hf_right") -> None:
        self.token = token
        self.repos: dict[str, FakeRepo] = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **settings: Any) -> FakeRepo:
        """Publish a repository; `settings` are fields of FakeRepo."""
        self.repos[name] = FakeRepo(name, files, card=settings.pop("card", {}), **settings)
        return self.repos[name]

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the tests read `requests`."""

    def _answer(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        match = _API.fullmatch(path) or _FILE.fullmatch(path)
        repo = hub.repos.get(match["repo"]) if match else None
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent and sent != hub.token:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if match is None or repo is None:
            return self._refuse(404 if sent else 401, "RepoNotFound", "Repository not found")
        found = match.groupdict()
        revision = unquote(found.get("rev") or "main")
        if revision not in (*repo.branches, repo.commit):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        needs_access = "name" in found or found["what"] == "auth-check"
        if repo.gated and needs_access and sent != hub.token:
            return self._refuse(403 if sent else 401, "GatedRepo", f"Access to model {repo.name} is restricted")
        if "name" in found:
            return self._file(repo, unquote(found["name"]))
        if found["what"] == "auth-check":
            return self._json({})
        return self._json(_tree(repo) if found["what"] == "tree" else _info(repo))

    def _file(self, repo: FakeRepo, name: str) -> None:
        if name not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repo.commit})
        content = repo.files[name]
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{_blob_id(content)}"', "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None or not repo.ranges:
            return self._send(200, content, headers, stops_after=repo.stops_after)
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._send(206, content[start : end + 1], headers, stops_after=repo.stops_after)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), said | (headers or {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str], stops_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(BrokenPipeError, ConnectionResetError):  # the client may hang up
                self.wfile.write(body[:stops_after])
        if stops_after is not None and len(body) > stops_after:
            self.close_connection = True


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _info(repo: FakeRepo) -> dict[str, Any]:
    siblings = [{"rfilename": name, "size": len(content)} for name, content in repo.files.items()]
    return {
        "id": repo.name,
        "sha": repo.commit,
        "private": False,
        "gated": "manual" if repo.gated else False,
        "siblings": siblings,
        "cardData": repo.card,
        "tags": [],
    }


def _tree(repo: FakeRepo) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
        for name, content in repo.files.items()
    ]


_FOREIGN = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE", "KVLITE_OFFLINE")  # fmt: skip


@contextmanager
def private_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A HubServer that this process talks to, with an empty cache and no token, all below `home`."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in _FOREIGN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        huggingface_hub.close_session()
