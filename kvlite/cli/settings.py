"""Settings from files: every option of every command can stand in `kvlite.toml`, under its long name.

    default_model = "qwen2.5-0.5b"
    kv-budget = "2GB"            # for every command that has the option
    [batch]
    max-tokens = 256             # for one command

A flag beats a `KVLITE_*` variable, that beats `./kvlite.toml`, that the user's config.toml, that the built-in default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from kvlite.cli.commands import CommandGroup
from kvlite.errors import UsageError

PROJECT_FILE = "kvlite.toml"
PROGRAM_ITSELF = ""
_TOML_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


def load_settings(ctx: typer.Context, path: Path | None) -> dict[str, dict[str, Any]]:
    """Read the settings of commands, and under PROGRAM_ITSELF of the program, whose context `ctx` is, by parameter.

    They are in `path`, or else the user's file and then the project's, the later one winning. Raises UsageError, naming
    file and key, on what is not TOML, not an option, or of the wrong type.
    """
    from platformdirs import user_config_path

    group = ctx.command
    assert isinstance(group, CommandGroup)
    options = {PROGRAM_ITSELF: _options(group)}
    options |= {command: _options(group.load(command)) for command in group.list_commands(ctx)}
    settings: dict[str, dict[str, Any]] = {command: {} for command in options}
    project = Path(PROJECT_FILE)
    for file in [path] if path else [user_config_path("kvlite") / "config.toml", project]:
        if path is None and not os.path.lexists(file):
            continue
        found = _parse(file)
        tables = {command: found.pop(command) for command in options if isinstance(found.get(command), dict)}
        entries = [(key, key, value, options) for key, value in found.items()]
        entries += [  # after what counts for all commands
            (f"[{command}] {key}", key, value, {command: options[command]})
            for command, table in tables.items()
            for key, value in table.items()
        ]
        try:
            for label, key, value, among in entries:
                for command, option in _owners(label, key.replace("_", "-"), among).items():
                    _check(ctx, label, option, value)
                    if file is project and _names_place(option, value):
                        raise ValueError(
                            f"{label} names a file or a machine, which a file that may come with a folder cannot; give "
                            f"--{setting_name(option)}, or set it in the user's config.toml"
                        )
                    settings[command][str(option.name)] = value
        except ValueError as error:
            raise UsageError(f"{file}: {error}") from error
    return settings


def role_settings(ctx: typer.Context, name: str) -> dict[str, Any]:
    """Read the settings of a role, by parameter of the command whose context `ctx` is; `model` stays as it is.

    Raises UsageError, naming role and key, on what is none of the command's settings.
    """
    from kvlite.chat.roles import read_role

    command = ctx.command
    assert isinstance(command, TyperCommand)
    found, settings = read_role(name), {}
    model = found.pop("model", None)
    if model is not None:
        if not isinstance(model, str):
            raise UsageError(f"role {name}: model is {model!r}; give {_TOML_TYPES[str]}")
        settings["model"] = model
    try:
        for key, value in found.items():
            for option in _owners(key, key.replace("_", "-"), {"": _options(command)}).values():
                _check(ctx, key, option, value)
                settings[str(option.name)] = value
    except ValueError as error:
        raise UsageError(f"role {name}: {error}") from error
    return settings


def setting_name(option: TyperOption) -> str:
    """The option's long name without its dashes: `kv-budget`."""
    return next(opt for opt in option.opts if opt.startswith("--")).removeprefix("--")


def _options(command: TyperCommand | TyperGroup) -> dict[str, TyperOption]:
    """The options of `command` by long name, but for help and the program's flags that may follow a command's name."""
    return {
        setting_name(option): option
        for option in command.params
        if isinstance(option, TyperOption) and option.expose_value and not option.is_eager
    }


def _parse(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():
            file.stat()  # a link to nothing, or a name that no file can have
            raise UsageError(f"cannot read {file}: it is no regular file; give a file of settings")
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error


def _owners(label: str, name: str, among: Mapping[str, Mapping[str, TyperOption]]) -> dict[str, TyperOption]:
    """The options called `name`, by command. Raises ValueError where there is none."""
    owners = {command: options[name] for command, options in among.items() if name in options}
    if not owners:
        close = difflib.get_close_matches(name, {name for options in among.values() for name in options}, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see docs/cli.md for the names"
        raise ValueError(f"unknown setting {label!r}; {hint}")
    # A setting for all commands passes by those that want it typed.
    return {command: option for command, option in owners.items() if option.allow_from_autoenv} or owners


def _names_place(option: TyperOption, value: Any) -> bool:
    """True where `value` is a path or an address to an option that takes one, and none of its other words."""
    forms = (option.metavar or "").split("|")
    values = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    takes_place = not {"PATH", "FILE", "ADDRESS"}.isdisjoint(forms)
    marks = "@" * ("@FILE" in forms) + "/.~" * ("FOLDER" in forms)
    return any((takes_place and each not in forms) or each.startswith(tuple(marks)) for each in values)


def _check(ctx: typer.Context, label: str, option: TyperOption, value: Any) -> None:
    """Raise ValueError where a file cannot give `value` to `option`."""
    if not option.allow_from_autoenv:
        raise ValueError(f"{label} cannot be set in a file; give --{setting_name(option)} each time")
    wanted = option.type_descriptor.annotation
    kind = wanted if wanted in _TOML_TYPES else str
    if option.multiple and not isinstance(value, list):
        raise ValueError(f"{label} is {value!r}; give a list")
    for item in value if option.multiple else [value]:
        fits = isinstance(item, (int, float) if kind is float else kind)
        if not fits or (isinstance(item, bool) and kind is not bool):
            raise ValueError(f"{label} is {item!r}; give {_TOML_TYPES[kind]}")
    try:
        option.process_value(ctx, value)
    except typer.BadParameter as error:
        reason = error.message.removeprefix("Value error, ").rstrip(".")  # pydantic's own words
        raise ValueError(f"{label}: {reason}") from error
