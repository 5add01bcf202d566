"""A conversation as a file for people or programs: Markdown, a page, OpenAI's messages as JSON or line by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from kvlite.chat.session_files import ChatMessage
from kvlite.errors import OutputError, UsageError

_NAMES = {"system": "System", "user": "You", "assistant": "Model"}
_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid var(--line); padding: .5rem 0; overflow-wrap: break-word; }
h2 { font-size: .8rem; margin: .5rem 0; opacity: .6; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; } td, th { border: 1px solid var(--line); padding: .2rem .5rem; }
.user p { white-space: pre-wrap; }
"""


def as_markdown(messages: Sequence[ChatMessage], title: str) -> str:
    """A heading per message, the text as it is."""
    parts = [f"## {_NAMES[message['role']]}\n\n{message['content'].strip()}\n" for message in messages]
    return "\n".join([f"# {title}\n", *parts])


def as_json(messages: Sequence[ChatMessage], title: str) -> str:
    """OpenAI's `messages`."""
    return json.dumps({"title": title, "messages": _plain(messages)}, ensure_ascii=False, indent=2) + "\n"


def as_lines(messages: Sequence[ChatMessage], title: str) -> str:
    """One JSON object a message."""
    return "".join(f"{json.dumps(message, ensure_ascii=False)}\n" for message in _plain(messages))


def as_page(messages: Sequence[ChatMessage], title: str) -> str:
    """One page that loads nothing; answers are drawn, questions are shown as they were typed."""
    from kvlite.chat.inline import markdown

    sections = []
    for message in messages:
        role, text = message["role"], message["content"]
        body = markdown().render(text) if role == "assistant" else f"<p>{escape(text)}</p>\n"
        sections.append(f'<section class="{role}">\n<h2>{_NAMES[role]}</h2>\n{body}</section>\n')
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )


FORMATS: dict[str, Callable[[Sequence[ChatMessage], str], str]] = {
    "md": as_markdown,
    "json": as_json,
    "jsonl": as_lines,
    "html": as_page,
}


def exported(messages: Sequence[ChatMessage], wanted: str, name: str) -> tuple[str, Path]:
    """The text of a conversation and the file it goes to: `wanted` is one of FORMATS, or a file that ends in one.

    Raises UsageError on any other, and where the file is there already.
    """
    if wanted in FORMATS:
        kind, path = wanted, Path(f"{name}.{wanted}")
    else:
        path = Path(wanted).expanduser()
        kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise UsageError(f"cannot export as {wanted!r}; give {', '.join(FORMATS)}, or a file that ends in one of them")
    if path.exists():
        raise UsageError(f"{path} is there already; give another name")
    return FORMATS[kind](messages, name), path


def write(text: str, path: Path) -> None:
    """Write what was exported. Raises OutputError when the disk refuses."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _plain(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]
