"""Writes docs/cli.md and completions/ from the program itself: `python docs/write_cli.py`; tests hold them to it."""

from __future__ import annotations

from pathlib import Path

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from kvlite.cli import PROGRAM, app
from kvlite.cli.commands import CommandGroup
from kvlite.cli.completion import script_of
from kvlite.cli.invocation import Invocation

WIDTH = 100
SCRIPTS = {"bash": "kvlite.bash", "zsh": "_kvlite", "fish": "kvlite.fish", "pwsh": "kvlite.ps1"}

INTRODUCTION = f"""\
# The command line

This page is written by `python docs/write_cli.py` from the program's own help.

stdout is the answer; progress, memory, warnings and thinking go to stderr. The flags in the first list may also stand
after the command's name, except `--version`, `--config` and `--default-model`.

## Settings

Each option can be given in four places; the first that has it wins:

1. on the command line: `--kv-budget 2GB`
2. in the environment: `KVLITE_KV_BUDGET=2GB`
3. in `{PROGRAM}.toml` in the current folder
4. in `config.toml` in the user's configuration folder (`~/.config/kvlite/` on Linux)

`--config PATH` reads that file instead of the two. A key is an option's long name; at the top of the file it counts for
every command that has the option, in a table for that command alone:

```toml
default_model = "qwen2.5-0.5b"
kv-budget = "2GB"

[batch]
max-tokens = 256
```

`default_model`, or `KVLITE_MODEL`, is the model when a command names none. What is risky, such as
`--trust-remote-code`, is taken from the command line only; `./kvlite.toml`, which may come with a folder, names no
files and no machines. A model's `generation_config.json` gives the sampling settings that are set nowhere else. The
Hub's own variables (`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`) and `NO_COLOR` count as everywhere.

## Completion

bash (from 4.4), zsh, fish and PowerShell complete commands, options and their values, models (aliases, yours and
kvlite's, what is cached, other programs' models), roles and saved chats. The scripts of [completions/](../completions)
come with the package, under `share/`, where the shells look for them when kvlite is installed for all users. For one
user, or from a virtual environment:

```text
bash  kvlite completion bash > ~/.local/share/bash-completion/completions/kvlite
zsh   kvlite completion zsh > ~/.zfunc/_kvlite        # with fpath+=~/.zfunc before compinit in ~/.zshrc
fish  kvlite completion fish > ~/.config/fish/completions/kvlite.fish
pwsh  kvlite completion pwsh >> $PROFILE
```

## Exit codes

| code | meaning |
|---|---|
| 0 | success; also when the reader closed the pipe |
| 1 | unexpected error (traceback with `-v`); the output cannot be written |
| 2 | usage: a wrong flag, setting or input |
| 3 | the model cannot be had or used |
| 4 | it does not fit, or out of memory, or `--on-full error` |
| 5 | a batch finished with failed lines |
| 6 | what `report --fail-on` names is true |
| 124 | `--max-time` passed |
| 130 | interrupted |
| 143 | terminated |
"""


def page() -> str:
    """The whole page as Markdown."""
    group = typer.main.get_command(app)
    assert isinstance(group, CommandGroup)
    root = typer.Context(group, info_name=PROGRAM, obj=Invocation(), terminal_width=WIDTH, **group.context_settings)
    sections = [INTRODUCTION, _section(group, root)]
    for name in group.list_commands(root):
        command = group.load(name)
        context = typer.Context(command, info_name=name, parent=root, **command.context_settings)
        sections.append(_section(command, context))
    return "\n".join(sections)


def _section(command: TyperCommand | TyperGroup, context: typer.Context) -> str:
    return f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "cli.md").write_text(page(), encoding="utf-8")
    for shell, file in SCRIPTS.items():
        (here.parent / "completions" / file).write_text(f"{script_of(shell)}\n", encoding="utf-8")
