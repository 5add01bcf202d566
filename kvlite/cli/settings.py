"""Settings from files: every option of every command can stand in `kvlite.toml`, under its long name.

    default_model = "qwen2.5-0.5b"
    kv-budget = "2GB"            # for every command that has the option
    [batch]
    max-tokens = 256             # for one command

A flag beats a `KVLITE_*` variable, that beats `./kvlite.toml`, that the user's config.toml, that the built-in default.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from kvlite.cli.commands import CommandGroup
from kvlite.errors import UsageError

PROJECT_FILE = "kvlite.toml"
_TOML_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


@dataclass
class Settings:
    """The values in the files: `of_command` by command and parameter, `of_program` for the global flags."""

    default_model: str | None = None
    of_program: dict[str, Any] = field(default_factory=dict)
    of_command: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_settings(ctx: typer.Context, path: Path | None) -> Settings:
    """Read the settings of the program, whose context `ctx` is, and of its commands.

    They are in `path`, or else the user's file and then the project's, the later one winning.

    Raises UsageError, naming file and key, on what is not TOML, not an option, or of the wrong type.
    """
    from platformdirs import user_config_path

    settings = Settings()
    for file in [path] if path else [user_config_path("kvlite") / "config.toml", Path(PROJECT_FILE)]:
        if path or file.is_file():
            _FileReader(file, ctx, settings).read()
    return settings


def setting_name(option: TyperOption) -> str:
    """The option's long name without its dashes: `kv-budget`."""
    return next(opt for opt in option.opts if opt.startswith("--")).removeprefix("--")


class _FileReader:
    """Reads one file into `settings`."""

    def __init__(self, file: Path, ctx: typer.Context, settings: Settings) -> None:
        group = ctx.command
        assert isinstance(group, CommandGroup)
        self._file = file
        self._ctx = ctx
        self._settings = settings
        self._of_program = _options(group)
        self._of_command = {
            name: {k: o for k, o in _options(group.load(name)).items() if o.expose_value}
            for name in group.list_commands(ctx)
        }

    def read(self) -> None:
        found = self._parse()
        tables = {key: found.pop(key) for key in self._of_command if isinstance(found.get(key), dict)}
        for key, value in found.items():
            name = key.replace("_", "-")
            if name == "default-model":
                if not isinstance(value, str) or not value:
                    raise UsageError(f"{self._file}: {key} is {value!r}; give {_TOML_TYPES[str]}")
                self._settings.default_model = value
            elif name in self._of_program:
                option = self._of_program[name]
                self._settings.of_program[option.name] = self._checked(key, option, value)
            else:
                self._take(key, name, value, self._of_command)
        for command, table in tables.items():  # after what counts for all commands
            for key, value in table.items():
                commands = {command: self._of_command[command]}
                self._take(f"[{command}] {key}", key.replace("_", "-"), value, commands)

    def _parse(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {self._file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{self._file} is not valid TOML: {error}") from error

    def _take(self, label: str, name: str, value: Any, commands: Mapping[str, dict[str, TyperOption]]) -> None:
        owners = {command: options[name] for command, options in commands.items() if name in options}
        # A setting for all commands passes by those that want it typed.
        owners = {command: option for command, option in owners.items() if option.allow_from_autoenv} or owners
        if not owners:
            known = {"default-model", *self._of_program, *(k for options in commands.values() for k in options)}
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see docs/cli.md for the names"
            raise UsageError(f"{self._file}: unknown setting {label!r}; {hint}")
        for command, option in owners.items():
            self._checked(label, option, value)
            self._settings.of_command.setdefault(command, {})[option.name] = value

    def _checked(self, label: str, option: TyperOption, value: Any) -> Any:
        if not option.allow_from_autoenv:
            raise UsageError(f"{self._file}: {label} cannot be set in a file; give --{setting_name(option)} each time")
        wanted = option.type_descriptor.annotation
        kind = wanted if wanted in _TOML_TYPES else str
        if option.multiple and not isinstance(value, list):
            raise UsageError(f"{self._file}: {label} is {value!r}; give a list")
        for item in value if option.multiple else [value]:
            fits = isinstance(item, (int, float) if kind is float else kind)
            if not fits or (isinstance(item, bool) and kind is not bool):
                raise UsageError(f"{self._file}: {label} is {item!r}; give {_TOML_TYPES[kind]}")
        try:
            return option.process_value(self._ctx, value)
        except typer.BadParameter as error:
            raise UsageError(f"{self._file}: {label}: {error.message}") from error


def _options(command: TyperCommand | TyperGroup) -> dict[str, TyperOption]:
    """The options of `command` that a file may set, by long name; help and version are not settings."""
    found = (p for p in command.params if isinstance(p, TyperOption) and any(o.startswith("--") for o in p.opts))
    return {setting_name(option): option for option in found if not option.is_eager}
