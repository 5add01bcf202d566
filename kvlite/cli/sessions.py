"""`kvlite sessions`: the saved chats and their bytes on disk; shown, searched, exported, deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from kvlite.cli.invocation import Invocation
from kvlite.errors import UsageError
from kvlite.flags import argument, option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvlite.chat.session_files import SessionFile, Summary
    from kvlite.console import Console


def complete_session(incomplete: str) -> list[str]:
    """Complete the name of a saved session, the latest first."""
    from kvlite.chat.session_files import SessionFolder

    return [file.name for file in SessionFolder().saved() if file.name.startswith(incomplete)]


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    words = ctx.params.get("words") or ()
    if words and (words[0] in ("show", "rm") or (words[0] == "export" and len(words) == 1)):
        return complete_session(incomplete)
    found = () if words else ("ls", "show", "search", "export", "rm")
    return [word for word in found if word.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsOptions:
    """The word that says what to do, and what it takes."""

    words: tuple[str, ...] = argument(
        (),
        metavar="ls|show|search|export|rm",
        complete=_complete,
        help="ls, show NAME, search WORDS, export NAME FILE (md, json, jsonl, html), rm NAME.",
    )
    yes: bool = option(False, "-y", from_settings=False, help="Do not ask.")
    kv_only: bool = option(False, from_settings=False, help="With rm: delete the saved cache and keep the session.")


def sessions(given: SessionsOptions, call: Invocation) -> None:
    """List the saved chats with their bytes on disk; show, search, export or delete them."""
    actions: dict[str, Callable[[Console, Sequence[str], SessionsOptions], None]] = {
        "ls": _list,
        "show": _show,
        "search": _list,
        "export": _export,
        "rm": _remove,
    }
    word, *rest = given.words or ("ls",)
    if word not in actions:
        raise UsageError(f"sessions knows no {word!r}; give {', '.join(actions)}")
    if word == "ls" and rest:
        raise UsageError(f"sessions ls takes no name, not {rest[0]!r}; sessions search looks for words")
    if word == "search" and not rest:
        raise UsageError("sessions search takes the words to look for")
    if (given.kv_only or given.yes) and word != "rm":
        raise UsageError(f"{'--kv-only' if given.kv_only else '--yes'} is for sessions rm")
    actions[word](call.console, rest, given)


def _list(out: Console, words: Sequence[str], _: SessionsOptions) -> None:
    from kvlite.chat.session_files import SessionFolder
    from kvlite.memory.format import counted, human_bytes

    found = SessionFolder().found(words)
    if out.as_json:
        out.json([_record(session) for session in found], indent=2)
    elif out.quiet:
        for session in found:
            out.line(session.name)
    else:
        rows = [
            (
                session.name,
                f"{session.saved:%Y-%m-%d %H:%M}",
                str(session.turns),
                human_bytes(session.num_bytes),
                human_bytes(session.cache_bytes) if session.cache_bytes else "-",
                session.model,
                _shortened(session.problem or session.first),
            )
            for session in found
        ]
        if rows or not words:
            out.table(("NAME", "SAVED", "TURNS", "TEXT", "CACHE", "MODEL", "FIRST"), rows)
        total = sum(session.num_bytes + session.cache_bytes for session in found)
        hold = f" hold{'s' * (len(found) == 1)} {' and '.join(words)}" if words else ""
        out.note(f"{counted(len(found), 'session')}{hold}, {human_bytes(total)} on disk")


def _record(session: Summary) -> dict[str, object]:
    return {
        "name": session.name,
        "saved": session.saved.isoformat(timespec="seconds"),
        "model": session.model,
        "turns": session.turns,
        "first": session.first,
        "bytes": session.num_bytes,
        "cache_bytes": session.cache_bytes,
        "problem": session.problem,
    }


def _shortened(text: str, most: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _named(words: Sequence[str], action: str) -> SessionFile:
    from kvlite.chat.session_files import SessionFolder

    if not words:
        raise UsageError(f"sessions {action} takes a name; `kvlite sessions` lists them")
    file = SessionFolder().file(words[0])
    if not file.exists():
        raise UsageError(f"no session named {words[0]}; `kvlite sessions` lists what is saved")
    return file


def _show(out: Console, words: Sequence[str], _: SessionsOptions) -> None:
    messages = _named(words, "show").load()
    if out.as_json:
        out.json({"messages": messages}, indent=2)
        return
    for number, message in enumerate(messages):
        if number:
            out.line()
        out.line(f"{message['role']}:")
        out.line(message["content"])


def _export(out: Console, words: Sequence[str], _: SessionsOptions) -> None:
    from kvlite.chat.export import exported, write

    file = _named(words, "export")
    if len(words) != 2:
        raise UsageError("sessions export takes a name and a file, or md, json, jsonl or html")
    text, path = exported(file.load(), words[1], file.name)
    write(text, path)
    out.note(f"wrote {path}")


def _remove(out: Console, words: Sequence[str], given: SessionsOptions) -> None:
    files = [_named([word], "rm") for word in words] or [_named([], "rm")]
    for file in files:
        what = f"the saved cache of {file.name}" if given.kv_only else f"session {file.name}"
        if not given.yes and not out.confirm(f"Delete {what}?"):
            continue
        file.remove(cache_only=given.kv_only)
        out.note(f"deleted {what}")
