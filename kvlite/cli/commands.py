"""The table of commands, and a command group that loads a command's module when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.models import CommandInfo

from kvlite.cli.signature import from_flags, program_flags

COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "chat": ("kvlite.cli.chat", "chat", "Talk with a model; the cache stays inside its budget."),
    "run": ("kvlite.cli.run", "run", "Answer one prompt, from arguments or a pipe."),
    "batch": ("kvlite.cli.batch", "batch", "Answer a file of prompts; resumes where it stopped."),
    "plan": ("kvlite.cli.plan", "plan", "What fits: weights, KV cache and context, before anything is loaded."),
    "eval": ("kvlite.cli.eval", "eval_", "Measure what a KV budget costs, and which policy to use."),
    "bench": ("kvlite.cli.bench", "bench", "Measure how fast a model runs here, beside what the device can do."),
    "report": ("kvlite.cli.report", "report", "Show what a past run took, predicted and measured."),
    "sessions": ("kvlite.cli.sessions", "sessions", "List the saved chats; show, search, export or delete them."),
    "pull": ("kvlite.cli.models", "pull", "Download a model."),
    "ls": ("kvlite.cli.models", "ls", "List the models that are here."),
    "show": ("kvlite.cli.models", "show", "Show a model's shape, licence and KV bytes per token."),
    "rm": ("kvlite.cli.models", "rm", "Delete a downloaded model."),
    "alias": ("kvlite.cli.alias", "alias", "Your own short names for models."),
    "profile": ("kvlite.cli.profile", "profile", "Measure once which heads of a model need many slots."),
    "doctor": ("kvlite.cli.doctor", "doctor", "Say what is installed, and what is known of models here."),
    "policies": ("kvlite.cli.policies", "policies", "List the eviction policies."),
    "config": ("kvlite.cli.config", "config", "Show the settings, where they are, and edit them."),
    "completion": ("kvlite.cli.completion", "completion", "Print the completion script of a shell."),
}
"""A command's module and function, and its line in the list of commands."""


class CommandGroup(TyperGroup):
    """The group of COMMANDS: listing and completing their names loads none of them."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands.update({name: TyperCommand(name, short_help=COMMANDS[name][2]) for name in COMMANDS})
        self._loaded: dict[str, TyperCommand] = {}

    def load(self, name: str) -> TyperCommand:
        """The command `name` with its flags, built from its module when first asked for."""
        if name not in self._loaded:
            module, function, summary = COMMANDS[name]
            callback = from_flags(getattr(import_module(module), function), *program_flags())
            info = CommandInfo(name=name, cls=_Command, callback=callback, short_help=summary)
            found = typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
            assert isinstance(found, TyperCommand)
            self._loaded[name] = found
        return self._loaded[name]

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, TyperCommand | None, list[str]]:
        """Find the command that `args` begin with."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else self.load(name), rest


class _Command(TyperCommand):
    """A command whose help shows arguments as their metavar says, and options under the headings they came with.

    Typer's own contexts and formatters have no public name.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line."""
        return [self.options_metavar or "", *map(_argument_name, self._arguments())]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options section by section."""
        sections = {"Arguments": [(_argument_name(argument), argument.help or "") for argument in self._arguments()]}
        for param in self.get_params(ctx):
            record = None if isinstance(param, TyperArgument) else param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def _arguments(self) -> list[TyperArgument]:
        return [param for param in self.params if isinstance(param, TyperArgument) and not param.hidden]


def _argument_name(argument: TyperArgument) -> str:
    """`NAME`, or `[NAME]` when it may be left out; a metavar with brackets says so itself."""
    name = argument.display_name_raw
    return name if argument.required or name.startswith("[") else f"[{name}]"
