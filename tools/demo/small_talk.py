"""The moves of a dialogue that ask for nothing told before: small talk, remarks, definitions, what was just said."""

import re
import tomllib
from functools import cache
from pathlib import Path

from tools.demo.phrases import DEFINITION_ASKS, ECHO_ANSWER, ECHO_ASKS, ECHO_UNKNOWN
from tools.demo.vocabulary import draw
from tools.demo.writer import BRACE, Writer

_LONGEST_ECHO = 60  # characters


@cache
def _talk() -> dict[str, list[dict[str, list[str]]]]:
    return tomllib.loads(Path(__file__).with_name("small_talk.toml").read_text("utf-8"))


@cache
def _definitions() -> dict[str, str]:
    return dict(tomllib.loads(Path(__file__).with_name("small_talk.toml").read_text("utf-8"))["definitions"])


def greet(writer: Writer) -> None:
    """A greeting and the offer of help."""
    greeting = _talk()["fixed"][0]
    writer.say(writer.user_line(greeting["says"]), greeting["answers"][0])


def chat(writer: Writer) -> None:
    """A line that always has the same answer."""
    entry = writer.rng.choice(_talk()["fixed"])
    writer.say(writer.user_line(entry["says"]), writer.one_of(entry["answers"]))


def remark(writer: Writer) -> None:
    """A remark or a wish with words of its own, which the answer takes up in the same order."""
    entry = writer.rng.choice(_talk()["filled"])
    drawn: list[tuple[str, str]] = []

    def draw_new(brace: re.Match[str]) -> str:
        drawn.append((brace[1], draw(brace[1], writer.rng, writer.split)))
        return drawn[-1][1]

    user = BRACE.sub(draw_new, writer.user_line(entry["says"]))
    seen: dict[str, list[str]] = {}
    for kind, word in drawn:
        seen.setdefault(kind, []).append(word)

    def take(brace: re.Match[str]) -> str:
        words = seen[brace[1]]
        return words.pop(0) if len(words) > 1 else words[0]

    writer.say(user, BRACE.sub(take, writer.one_of(entry["answers"])))


def define(writer: Writer) -> None:
    """A question for what a thing is, answered in one sentence."""
    thing, text = writer.rng.choice(list(_definitions().items()))
    writer.say(writer.fill(writer.user_line(DEFINITION_ASKS), {"d": thing}), text)


def echo(writer: Writer) -> None:
    """A question for what the user just said, where that is short."""
    said = writer.turns[-1].user if writer.turns else ""
    if len(said) > _LONGEST_ECHO or '"' in said:
        return chat(writer)
    answer = ECHO_ANSWER.replace("{said}", said) if said else ECHO_UNKNOWN
    return writer.say(writer.user_line(ECHO_ASKS), answer)
