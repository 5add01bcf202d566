"""The command line: `main` runs a command and turns what went wrong into one line and an exit code.

Loads typer and the standard library only; a command's own module is loaded when the command runs.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import typer
import typer.main

from kvlite.cli.commands import CommandGroup
from kvlite.cli.invocation import Invocation, ProgramOptions
from kvlite.cli.signature import from_flags
from kvlite.errors import Interrupted, KvliteError, OutOfMemory, OutputError, Terminated, TimeLimit

PROGRAM = "kvlite"
_SOON_S = 0.01
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,  # `kvlite completion` prints the scripts; typer's installer would edit the user's dotfiles
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each option can also be set as KVLITE_<OPTION>, in ./kvlite.toml or in the user's config.toml.",
)


def program(given: ProgramOptions, ctx: typer.Context, call: Invocation) -> None:
    """Chat with and batch-generate from Hugging Face models inside a fixed KV-cache byte budget."""
    call.program = given
    if given.version:
        _show_version(call)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)
    _apply_settings(ctx, call)


app.callback(invoke_without_command=True)(from_flags(program))


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (the process's own by default) and return its exit code."""
    _write_utf8()
    call = Invocation()
    try:
        with _sigterm_raises(), _signals_are_heeded():
            code = _run(list(sys.argv[1:] if args is None else args), call)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has what it wanted
        code = 0
        _drop_stdout()
    except BaseException as error:  # the last frame of the program: nobody else can turn it into a line
        code = _explain(error, call)
        _drop_stdout()
    return code


def run_as_process() -> NoReturn:
    """Run the program with the process's own arguments and end the process."""
    from kvlite.cli.fast_exit import leave

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


def _show_version(call: Invocation) -> NoReturn:
    from kvlite.record.measure import versions

    found = versions()
    if call.program.as_json:
        call.console.json(found)
    else:
        call.console.line(f"{PROGRAM} {found['kvlite'] or 'unknown (not installed)'}")
    raise typer.Exit


def _apply_settings(ctx: typer.Context, call: Invocation) -> None:
    from kvlite.cli.settings import load_settings

    settings = load_settings(ctx, call.program.config)
    weaker = {name: value for name, value in settings.of_program.items() if call.sources[name] == "default"}
    call.program = replace(call.program, **weaker)
    call.default_model = os.environ.get("KVLITE_MODEL") or settings.default_model
    ctx.default_map = dict(settings.of_command)


def _explain(error: BaseException, call: Invocation) -> int:
    """Say in one line what went wrong and return the exit code."""
    if isinstance(error, typer.TyperException):
        call.console.error(_usage_line(error))
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        error = Interrupted("interrupted")
    elif _is_out_of_memory(error):
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
    hint = "" if call.program.verbose else "; run with -v for the traceback"
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
            message += f" (from {_set_variable(error.param.envvar)})"
    return f"{message}; see '{ctx.command_path} --help'"


def _set_variable(envvar: str | Sequence[str]) -> str:
    names = [envvar] if isinstance(envvar, str) else envvar
    return next(name for name in names if os.environ.get(name))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without loading torch
        return True
    return type(error) is RuntimeError and "can't allocate memory" in str(error)  # torch on a CPU


def _write_utf8() -> None:
    """Make stdout and stderr UTF-8 whatever the locale; what is no text becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the program the way Ctrl-C does, so that files are closed and journals kept."""

    def stop(_signum: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_are_heeded() -> Iterator[None]:
    """Send a signal once more where Python dropped what it raised, because it was raised in a destructor."""

    def on_dropped(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, TimeLimit):
            return  # its alarm rings again by itself
        if not isinstance(dropped.exc_value, (KeyboardInterrupt, Interrupted, Terminated)):
            before(dropped)
            return
        number = signal.SIGTERM if isinstance(dropped.exc_value, Terminated) else signal.SIGINT
        again = threading.Timer(_SOON_S, _thread.interrupt_main, (number,))
        again.daemon = True
        again.start()

    before = sys.unraisablehook
    sys.unraisablehook = on_dropped
    try:
        yield
    finally:
        sys.unraisablehook = before


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush has nothing to complain about."""
    with suppress(OSError, ValueError, AttributeError):  # no stdout, or one without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
