"""The command line: `main` runs a command and turns what went wrong into one line and an exit code.

Loads typer and the standard library only; a command's own module is loaded when the command runs.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import typer
import typer.main

from kvlite.cli.commands import CommandGroup
from kvlite.cli.invocation import Invocation, ProgramOptions
from kvlite.cli.process import drop_stdout, leave, signals_raise, write_utf8
from kvlite.cli.signature import from_flags
from kvlite.console import Console
from kvlite.errors import Interrupted, KvliteError, OutOfMemory, OutputError, is_out_of_memory

PROGRAM = "kvlite"
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,  # `kvlite completion` prints the scripts; typer's installer would edit the user's dotfiles
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each option can also be set as KVLITE_<OPTION>, in ./kvlite.toml or in the user's config.toml.",
)


def program(given: ProgramOptions, console: Console, ctx: typer.Context, call: Invocation) -> None:
    """Chat with and batch-generate from Hugging Face models inside a fixed KV-cache byte budget."""
    from kvlite.cli.settings import PROGRAM_ITSELF, load_settings

    call.console, call.default_model = console, given.default_model
    if given.version:
        _show_version(console)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)
    settings = load_settings(ctx, given.config)
    weaker = {name: value for name, value in settings.pop(PROGRAM_ITSELF).items() if not call.is_given(name)}
    call.default_model = weaker.pop("default_model", given.default_model)
    call.console = replace(console, **weaker)
    ctx.default_map = settings


app.callback(invoke_without_command=True)(from_flags(program))


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (the process's own by default) and return its exit code."""
    write_utf8()
    call = Invocation()
    try:
        with signals_raise():
            code = _run(list(sys.argv[1:] if args is None else args), call)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has what it wanted
        code = 0
        drop_stdout()
    except BaseException as error:  # the last frame of the program: nobody else can turn it into a line
        code = _explain(error, call)
        drop_stdout()
    return code


def run_as_process() -> NoReturn:
    """Run the program with the process's own arguments and end the process."""
    leave(main())


def _run(args: list[str], call: Invocation) -> int:
    command = typer.main.get_command(app)
    instruction = os.environ.get(f"_{PROGRAM.upper()}_COMPLETE")
    if instruction:
        from typer._completion_classes import completion_init
        from typer.completion import shell_complete

        completion_init()
        return shell_complete(command, {"obj": call}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE", instruction)
    try:
        with command.make_context(PROGRAM, args, obj=call) as ctx:
            command.invoke(ctx)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _show_version(out: Console) -> NoReturn:
    from kvlite.record.measure import DISTRIBUTIONS, versions

    found = versions()
    if out.as_json:
        out.json({"python": None, **dict.fromkeys(DISTRIBUTIONS), **found})
    else:
        out.line(f"{PROGRAM} {found.get('kvlite', 'unknown (not installed)')}")
    raise typer.Exit


def _explain(error: BaseException, call: Invocation) -> int:
    """Say in one line what went wrong and return the exit code."""
    if isinstance(error, typer.TyperException):
        call.console.error(_usage_line(error))
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        error = Interrupted("interrupted")
    elif is_out_of_memory(error):
        reason = str(error).split(". GPU ")[0].splitlines() or [type(error).__name__]
        advice = "try a smaller --kv-budget or --prefill-chunk, or --4bit"
        error = OutOfMemory(f"out of memory ({reason[0]}); {advice}").with_traceback(error.__traceback__)
    elif isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        where = f"{error.filename}: " if error.filename else ""
        error = OutputError(f"cannot write: {where}{error.strerror}").with_traceback(error.__traceback__)
    call.console.detail("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KvliteError):
        call.console.error(error)
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    hint = "" if call.console.verbose else "; run with -v for the traceback"
    call.console.error(f"unexpected {type(error).__name__}: {error}{hint}")
    return 1


def _usage_line(error: typer.TyperException) -> str:
    message = error.format_message().rstrip(".").replace(": Value error, ", ": ")  # pydantic's own words
    ctx = getattr(error, "ctx", None)  # of errors of usage
    if ctx is None:
        return message
    if isinstance(error, typer.BadParameter) and error.param is not None and error.param.envvar:
        source = ctx.get_parameter_source(error.param.name)
        if source is not None and source.name == "ENVIRONMENT":
            message += f" (from {next(name for name in error.param.envvar if os.environ.get(name))})"
    return f"{message}; see '{ctx.command_path} --help'"
