"""The table of commands, and a command group that loads a command's module when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer.main
from typer._click import Command, Context, HelpFormatter
from typer._click.shell_completion import CompletionItem
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import CommandInfo

from kvlite.cli.invocation import invocation


class Entry(NamedTuple):
    """Where a command lives, and its line in the list of commands."""

    module: str
    function: str
    summary: str


COMMANDS: Mapping[str, Entry] = {
    "chat": Entry("kvlite.cli.chat", "chat", "Talk with a model; the cache stays inside its budget."),
    "run": Entry("kvlite.cli.run", "run", "Answer one prompt, from arguments or a pipe."),
    "batch": Entry("kvlite.cli.batch", "batch", "Answer a file of prompts; resumes where it stopped."),
    "plan": Entry("kvlite.cli.plan", "plan", "What fits: weights, KV cache and context, before anything is loaded."),
    "eval": Entry("kvlite.cli.eval", "eval_", "Measure what a KV budget costs, and which policy to use."),
    "bench": Entry("kvlite.cli.bench", "bench", "Measure how fast a model runs here, beside what the device can do."),
    "report": Entry("kvlite.cli.report", "report", "Show what a past run took, predicted and measured."),
    "pull": Entry("kvlite.cli.pull", "pull", "Download a model."),
    "ls": Entry("kvlite.cli.ls", "ls", "List the models that are here."),
    "show": Entry("kvlite.cli.show", "show", "Show a model's shape, licence and KV bytes per token."),
    "rm": Entry("kvlite.cli.rm", "rm", "Delete a downloaded model."),
    "policies": Entry("kvlite.cli.policies", "policies", "List the eviction policies."),
    "completion": Entry("kvlite.cli.completion", "completion", "Print the completion script of a shell."),
}

ALIASES = {"fit": "plan"}

_ONLY_BEFORE_COMMAND = {"version", "config"}


class CommandGroup(TyperGroup):
    """The group of COMMANDS; listing and completing their names loads none of them."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        shared = [p for p in self.params if isinstance(p, TyperOption) and p.name not in _ONLY_BEFORE_COMMAND]
        self.commands: Mapping[str, Command] = _LoadedOnDemand(shared)  # type: ignore[assignment]
        for option in self.params:
            _read_environment(option)

    def list_commands(self, ctx: Context) -> list[str]:
        """The names of the commands."""
        return list(COMMANDS)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command that `args` begin with, by its name or an alias."""
        return super().resolve_command(ctx, [ALIASES.get(args[0], args[0]), *args[1:]])

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the list of commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table, or a global option."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name].summary) for name in names]
        return items + Command.shell_complete(self, ctx, incomplete)


class _Command(TyperCommand):
    """A command whose help shows arguments as their metavar says, and options under the headings they came with."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """The words of the usage line."""
        return [self.options_metavar or "", *map(_argument_name, self._arguments())]

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
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


class _LoadedOnDemand(Mapping[str, Command]):
    """The commands by name, each built from its module when first looked up."""

    def __init__(self, shared: list[TyperOption]) -> None:
        self._shared = shared
        self._built: dict[str, Command] = {}

    def __getitem__(self, name: str) -> Command:
        if name not in self._built:
            self._built[name] = self._build(name, COMMANDS[name])
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def _build(self, name: str, entry: Entry) -> Command:
        function = getattr(import_module(entry.module), entry.function)
        info = CommandInfo(name=name, cls=_Command, callback=function, short_help=entry.summary)
        command = typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
        taken = {opt for option in command.params for opt in option.opts}
        for option in command.params:
            _read_environment(option)
        command.params += [_after_command(option) for option in self._shared if taken.isdisjoint(option.opts)]
        return command


def _read_environment(option: Any) -> None:
    """Let `KVLITE_<LONG_NAME>` set an option that is neither typed each time nor an argument."""
    if isinstance(option, TyperOption) and option.allow_from_autoenv and not option.is_eager and option.envvar is None:
        long_names = [opt.removeprefix("--") for opt in option.opts if opt.startswith("--")]
        if long_names:
            option.envvar = f"KVLITE_{long_names[0].replace('-', '_').upper()}"
            option.show_envvar = False  # one line in the program's help says it for all


def _after_command(option: TyperOption) -> TyperOption:
    """The global `option` as it may stand after a command's name too: there it only adds to what was given before."""
    again = copy.copy(option)
    again.envvar, again.default, again.expose_value, again.rich_help_panel = None, None, False, "Program"
    again.callback = lambda _ctx, param, value: invocation().accept(param.name, value)
    return again
