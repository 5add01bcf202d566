"""The slash commands of a chat: one table for dispatch, help and completion."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvlite.chat.command import Command, show_pairs
from kvlite.chat.conversation_commands import CONVERSATION_COMMANDS
from kvlite.chat.memory_commands import MEMORY_COMMANDS
from kvlite.chat.roles import read_role, role_folder, role_names
from kvlite.errors import UsageError
from kvlite.llm.answer import DRAWN_SEEDS, AnswerSettings
from kvlite.options import read_system

if TYPE_CHECKING:
    from kvlite.chat.loop import Chat


SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
}
"""The settings that `/set` changes between two turns."""


def find(line: str) -> tuple[Command, str]:
    """Split a line into its command and argument; raises UsageError with a suggestion for an unknown command."""
    word, _, rest = line.removeprefix("/").partition(" ")
    command, argument = BY_NAME.get(word), rest.strip()
    if command is None:
        close = difflib.get_close_matches(word.lower(), BY_NAME, n=1)
        hint = f"did you mean /{close[0]}?" if close else "/help lists the commands"
        raise UsageError(f"no command /{word}; {hint} (to send such a line, begin it with a space)")
    if argument and not command.argument:
        raise UsageError(f"/{word} takes no argument, {argument!r} was given")
    return command, argument


def changed(settings: AnswerSettings, key: str, value: str) -> AnswerSettings:
    """Change one of `settings`; raises UsageError on an unknown key or a bad value."""
    key, value = key.strip().replace("-", "_").lower(), value.strip()
    if key not in SETTINGS:
        raise UsageError(f"there is no setting {key!r}; settings are {', '.join(SETTINGS)}")
    try:
        number: Any = None if (key, value.lower()) == ("max_tokens", "none") else SETTINGS[key](value)
    except ValueError:
        expected = "a whole number" if SETTINGS[key] is int else "a number"
        raise UsageError(f"{key} is {value!r}; give {expected}") from None
    if key == "max_tokens":
        return replace(settings, max_tokens=number)
    return replace(settings, sampling=replace(settings.sampling, **{key: number}))


def listed(settings: AnswerSettings) -> list[tuple[str, str]]:
    """List the name and present value of every setting, as `/set` shows them."""
    values = [getattr(settings.sampling, key, settings.max_tokens) for key in SETTINGS]
    return [(key, "none" if value is None else str(value)) for key, value in zip(SETTINGS, values, strict=True)]


def _help(chat: Chat, _: str) -> None:
    show_pairs(chat, [*((command.usage, command.summary) for command in COMMANDS), *_KEYS])


def _exit(chat: Chat, _: str) -> None:
    chat.is_over = True


def _clear(chat: Chat, _: str) -> None:
    chat.start_over(chat.session.system)
    chat.show("started over; the model has forgotten the conversation")


def _system(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show(chat.session.system or "no system prompt; /system TEXT sets one and starts over")
        return
    chat.start_over(argument)
    chat.show("started over under the new system prompt")


def _role(chat: Chat, argument: str) -> None:
    if not argument:
        told = [(name, _first_line(name)) for name in role_names()]
        show_pairs(chat, told)
        if not told:
            chat.show(f'no roles yet; {role_folder() / "NAME.toml"} with a line  system = "…"  makes one')
        return
    role, settings, left = read_role(argument), chat.begun_with, []
    if not isinstance(role.get("system", ""), str):
        raise UsageError(f"role {argument}: system is {role['system']!r}; give text in quotes")
    system, how = role.pop("system", None), str(role.pop("think", ""))
    for key, value in role.items():
        name = key.replace("-", "_")
        if name in SETTINGS:
            settings = changed(settings, name, str(value))
        else:
            left.append(key)
    chat.start_over(None if system is None else read_system(system))
    chat.session.settings = _with_new_seed(settings, chat.begun_with)
    if how:
        _think(chat, how)
    chat.show(f"started over as {argument}")
    if left:
        chat.show(f"not taken over in mid-chat: {', '.join(left)}; kvlite chat --role {argument} begins with all of it")


def _first_line(name: str) -> str:
    """The first line of a role's system prompt, or what is wrong with its file."""
    try:
        return str(read_role(name).get("system", "")).strip().split("\n")[0]
    except UsageError as error:
        return str(error)


def _model(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show(f"{chat.model}; /model NAME goes on with another")
        return
    chat.switch(argument)
    if chat.session.num_turns:
        chat.show("the conversation is read by this model with your next message")


def _think(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show(f"think {chat.session.thinking}; /think auto, on or off changes it")
        return
    if argument not in ("auto", "on", "off"):
        raise UsageError(f"/think takes auto, on or off, not {argument!r}")
    chat.show(chat.session.think(argument) or f"think {argument} from the next message on")


def _set(chat: Chat, argument: str) -> None:
    if argument:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UsageError(f"/set takes KEY=VALUE, not {argument!r}; /set alone lists the settings")
        before = chat.session.settings
        chat.session.settings = _with_new_seed(changed(before, key, value), before)
    show_pairs(chat, listed(chat.session.settings))


def _with_new_seed(settings: AnswerSettings, before: AnswerSettings) -> AnswerSettings:
    """Settings that draw, with a seed of their own where those `before` were greedy and nobody gave one."""
    if not before.sampling.is_greedy or settings.sampling.is_greedy or settings.sampling.seed:
        return settings
    return replace(settings, sampling=replace(settings.sampling, seed=secrets.randbelow(DRAWN_SEEDS)))


_KEYS = (
    ("Alt-Enter", "start a new line"),
    ('"""', "begin and end a text of several lines"),
    ("Ctrl-C", "stop an answer; what is typed meanwhile stays"),
)
COMMANDS = (
    Command(("help",), "", "list the commands", _help),
    Command(("exit", "quit", "bye"), "", "leave (also Ctrl-D)", _exit),
    Command(("clear", "new"), "", "start over under the same system prompt", _clear),
    Command(("system",), "[TEXT]", "show the system prompt, or set it and start over", _system),
    Command(("role",), "[NAME]", "list your roles, or start over in one", _role),
    Command(("set",), "[KEY=VALUE]", "list the sampling settings, or change one", _set),
    Command(("model",), "[NAME]", "show the model, or go on with another", _model),
    Command(("think",), "[HOW]", "let the model think before it answers, where it can: auto, on or off", _think),
    *CONVERSATION_COMMANDS,
    *MEMORY_COMMANDS,
)
BY_NAME = {name: command for command in COMMANDS for name in command.names}
MEANT = {"exit": "/exit", "quit": "/exit", "help": "/help", "?": "/help"}
"""Lines that mean a command to whoever types them; begun with a space they are sent."""

LEAVING = frozenset({f"/{name}" for name, command in BY_NAME.items() if command.run is _exit} | {"exit", "quit"})
"""The lines that end a chat."""
