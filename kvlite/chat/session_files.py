"""Saved sessions: one JSONL file each, a header line and then one message a line; no name leads out of the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from kvlite.errors import OutputError, UsageError
from kvlite.record.store import write_whole

ROLES = ("system", "user", "assistant")
FORMAT = "kvlite.session/1"
SUFFIX = ".jsonl"
CACHE_SUFFIX = ".kv.safetensors"
KEPT_CACHES = 8
"""Sessions whose row of the cache is kept, the latest; the others are read again when they go on."""
MAX_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # names Windows keeps for itself


def readable(text: str) -> str:
    """Replace each lone surrogate, a byte typed or stored that is not UTF-8, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


ChatMessage = dict[str, str]
"""One message: `role`, `content` and, for answers, `finish_reason`; just as templates and session files hold it."""


class SessionFolder:
    """The folder of saved sessions, in the user's data directory unless given."""

    def __init__(self, folder: Path | None = None) -> None:
        from platformdirs import user_data_path

        self.folder = folder or user_data_path("kvlite", appauthor=False) / "sessions"

    def file(self, name: str) -> SessionFile:
        """Return the session of this name, which need not exist yet.

        Raises UsageError where the name is no safe file name, or is a link that leads elsewhere.
        """
        is_safe = _NAME.fullmatch(name) and ".." not in name and not name.endswith(".") and not _DEVICE.fullmatch(name)
        if not is_safe or len(name) > MAX_NAME:
            raise UsageError(
                f"{name[:MAX_NAME]!r} is no session name; use letters, digits, '.', '_' and '-', at most {MAX_NAME}, "
                "not starting or ending with a dot"
            )
        path = self.folder / f"{name}{SUFFIX}"
        if path.resolve().parent != self.folder.resolve():
            raise UsageError(f"session {name} is a link out of {self.folder}; remove the link or choose another name")
        return SessionFile(name, path)

    def new_file(self) -> SessionFile:
        """Make a session named after the present time, with a name that is not taken."""
        stamp = datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S")
        files = (self.file(stamp if n == 1 else f"{stamp}-{n}") for n in count(1))
        file = next(file for file in files if not file.exists())
        file.is_new = True
        return file

    def drop_old_caches(self, keep: int) -> None:
        """Delete the saved rows of all sessions but the latest; what cannot be deleted now is the next time."""
        for file in [file for file in self.saved() if file.cache_bytes][keep:]:
            with suppress(OSError):
                file.cache_path.unlink()

    def found(self, words: Sequence[str]) -> list[Summary]:
        """Sum up every saved session that holds all of `words`, the latest first."""
        wanted = [word.casefold() for word in words]
        every = (file.summary() for file in self.saved())
        return [found for found in every if all(word in found.text.casefold() for word in wanted)]

    def saved(self) -> list[SessionFile]:
        """List every saved session, the latest first."""
        paths = [path for path in self.folder.glob(f"*{SUFFIX}") if _NAME.fullmatch(path.stem) and path.is_file()]
        paths.sort(key=lambda path: (path.stat().st_mtime, path.stem), reverse=True)
        return [SessionFile(path.stem, path) for path in paths]


@dataclass(frozen=True, slots=True)
class Summary:
    """A session in a line: when it was saved, its model and turns, what it began with, its bytes on disk.

    `text` is all that was said; `problem` says why a file cannot be read.
    """

    name: str
    saved: datetime
    model: str
    turns: int
    first: str
    num_bytes: int
    cache_bytes: int
    text: str
    problem: str | None = None


class SessionFile:
    """One session on disk; it remembers its size, so that no change by another process is overwritten."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.is_new = False
        """The name is that of the present time, because nobody gave one."""
        self.pinned: tuple[int, ...] = ()
        """The turns, from 1, that are pinned, as the file has it."""
        self._size: int | None = None  # bytes after our last read or write; None: no file yet

    def exists(self) -> bool:
        return self.path.exists()

    @property
    def cache_path(self) -> Path:
        """The file of the session's row of the cache."""
        return self.path.with_name(f"{self.name}{CACHE_SUFFIX}")

    @property
    def cache_bytes(self) -> int:
        """Bytes of that file; 0 where there is none."""
        try:
            return self.cache_path.stat().st_size
        except OSError:
            return 0

    def summary(self) -> Summary:
        """Sum the session up; a file that cannot be read says why."""
        model, messages, problem = "", [], None
        try:
            messages = self.load()
            header = json.loads(self.path.read_bytes().split(b"\n", 1)[0])
            model = str(header.get("model", "")) if "format" in header else ""
        except (UsageError, OSError, ValueError) as error:
            problem = str(error)
        asked = [message["content"] for message in messages if message["role"] == "user"]
        stat = self.path.stat()
        return Summary(
            name=self.name,
            saved=datetime.fromtimestamp(stat.st_mtime).astimezone(),
            model=model,
            turns=len(asked),
            first=asked[0] if asked else "",
            num_bytes=stat.st_size,
            cache_bytes=self.cache_bytes,
            text="\n".join(message["content"] for message in messages),
            problem=problem,
        )

    def remove(self, *, cache_only: bool = False) -> None:
        """Delete the session and its row of the cache, or that alone. Raises OutputError when the disk refuses."""
        try:
            self.cache_path.unlink(missing_ok=True)
            if not cache_only:
                self.path.unlink()
        except OSError as error:
            raise OutputError(f"session {self.name} cannot be deleted: {error.strerror}") from None

    def load(self) -> list[ChatMessage]:
        """Read the saved messages; raises UsageError where there are none or a line is malformed."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise UsageError(f"no session named {self.name}; /sessions lists what is saved") from None
        except OSError as error:
            raise UsageError(f"session {self.name} cannot be read: {error.strerror}") from None
        if not data:
            raise UsageError(f"{self.path} is empty; no session to load")
        lines = data.removesuffix(b"\n").split(b"\n")
        messages = [_parse(line, number, self.path) for number, line in enumerate(lines, start=1)]
        header = json.loads(lines[0])
        pinned = header.get("pinned") if "format" in header else None
        self.pinned = tuple(number for number in pinned if isinstance(number, int)) if isinstance(pinned, list) else ()
        self._size = len(data)
        return [message for message in messages if message is not None]

    def save(self, messages: Sequence[ChatMessage], model: str, pinned: Iterable[int] = ()) -> None:
        """Write the session and the numbers of its pinned turns, at once or not at all.

        Raises OutputError when the disk refuses, or when another process has changed the file in between.
        """
        saved, self.pinned = datetime.now(UTC).isoformat(timespec="seconds"), tuple(sorted(pinned))
        header = {"format": FORMAT, "model": model, "saved": saved, "pinned": self.pinned}
        text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in (header, *messages))
        try:
            if self.exists() and self.path.stat().st_size != self._size:
                raise OutputError(
                    f"session {self.name} was changed by another process; /save NAME keeps this one apart"
                )
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(text, self.path)
        except OSError as error:
            raise OutputError(f"session {self.name} cannot be saved: {error.strerror}; the chat goes on") from None
        self._size = len(text.encode())


def _parse(line: bytes, number: int, path: Path) -> ChatMessage | None:
    """Read the message on a line; None for the header."""
    try:
        record = json.loads(line)
    except ValueError:
        raise UsageError(f"{path}, line {number}: not JSON; mend or delete the line") from None
    if number == 1 and isinstance(record, dict) and "format" in record:
        if record["format"] != FORMAT:
            raise UsageError(f"{path} has format {record['format']!r}; this kvlite reads {FORMAT}")
        return None
    match record:
        case {"role": str(role), "content": str(content)} if role in ROLES:
            message = {"role": role, "content": readable(content)}
            reason = record.get("finish_reason")
            return message | {"finish_reason": reason} if isinstance(reason, str) else message
    raise UsageError(f"{path}, line {number}: no message; expected a role ({', '.join(ROLES)}) and a text as content")
