"""Find out what a chat template does by rendering conversations whose contents are known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvlite.errors import UsageError
from kvlite.text.forgery import unused_characters
from kvlite.text.messages import Message
from kvlite.text.rendering import Renderer

# Digits stay as they are whatever a template does to case and white space.
_PROBES = {"system": "70415926535", "user": "80415926535", "assistant": "90415926535"}


def has_system_role(renderer: Renderer) -> bool:
    """True where the template takes a system message and shows it."""
    try:
        return _PROBES["system"] in renderer.render(_probe("system", "user"), {})
    except UsageError:
        return False


def role_markers(renderer: Renderer, control: re.Pattern[str]) -> set[str]:
    """Collect the literals that mark roles and are no control tokens: `[/INST]`, `<<SYS>>`, `Assistant:`.

    They are found around the contents of a rendered probe: words that begin with a sign, and words that end with a
    colon right before a content.
    """
    markers: set[str] = set()
    for literal in re.split("|".join(_PROBES.values()), _rendered_probe(renderer)):
        words = [word for word in control.sub(" ", literal).split() if len(word) >= 3]
        named = [word for word in words if any(map(str.isalnum, word))] or words  # `###` alone is no marker
        markers.update(word for word in named if not word[0].isalnum())
        markers.update(word for word in named[-1:] if word.endswith(":"))
    return markers


@dataclass(frozen=True, slots=True)
class SystemSpan:
    """The place of the system prompt in the rendered text, in characters, with the literals of its turn."""

    text: str
    start: int
    end: int


def system_span(
    renderer: Renderer, turns: Sequence[Message], variables: Mapping[str, Any], control: re.Pattern[str]
) -> SystemSpan | None:
    """Find the leading system prompt in the rendered text; None if the template does not show it."""
    marks = unused_characters(3, [renderer.source, *(turn.content for turn in turns)])
    rendered = renderer.render(_with_system_marked(turns, marks), variables)
    places: dict[str, int] = {}
    for match in re.finditer(f"[{marks}]", rendered):
        places[match.group()] = match.start() - len(places)
    text = rendered.translate(dict.fromkeys(map(ord, marks)))
    begin, end, others = (places.get(mark) for mark in marks)
    if begin is None or end is None:
        return None
    start = begin if others is not None and others < begin else 0  # Mistral: earlier turns come before it
    if others is not None and others > end:
        turn_end = control.search(text, end, others)
        end = turn_end.end() if turn_end else others
    return SystemSpan(text, start, end)


def _with_system_marked(turns: Sequence[Message], marks: str) -> list[Message]:
    """Mark where the system prompt begins and ends, and where the first other content begins."""
    begin, end, others = tuple(marks)
    marked = list(turns)
    last = max(index for index, turn in enumerate(turns) if turn.system_chars)
    for index, turn in enumerate(turns[: last + 2]):
        system, rest = turn.content[: turn.system_chars], turn.content[turn.system_chars :]
        if rest:  # of a later message, or behind a system prompt in the same one
            rest = _in_front(rest, others)
            others = ""
        if index == last:
            system = system.rstrip() + end + system[len(system.rstrip()) :]
        if system:
            system = _in_front(system, begin)
            begin = ""
        marked[index] = replace(turn, content=system + rest)
    return marked


def _in_front(content: str, mark: str) -> str:
    """Put the mark behind the content's leading white space, where trimming does not matter."""
    start = len(content) - len(content.lstrip())
    return content[:start] + mark + content[start:]


def _rendered_probe(renderer: Renderer) -> str:
    roles = ("system", "user", "assistant", "user")
    for first in range(len(roles)):  # without a system role, or with one that takes no history
        try:
            return renderer.render(_probe(*roles[first:]), {})
        except UsageError:
            continue
    return ""


def _probe(*roles: str) -> list[Message]:
    return [Message(role, _PROBES[role]) for role in roles]
