"""`kvlite completion`: the scripts with which shells complete kvlite's command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvlite.cli.invocation import Invocation
from kvlite.flags import argument

_TYPERS = "compdef _kvlite_completion kvlite"
# zsh, loading the script from $fpath, wants it to complete this very first time too
_AUTOLOADED = f"""\
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _kvlite_completion "$@"
else
  {_TYPERS}
fi"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """The shell to complete in."""

    shell: Literal["bash", "zsh", "fish", "pwsh"] = argument(metavar="SHELL", help="bash, zsh, fish or pwsh.")


def completion(given: CompletionOptions, call: Invocation) -> None:
    """Print the completion script of a shell; it asks kvlite itself, so it never goes stale."""
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="kvlite", complete_var="_KVLITE_COMPLETE", shell=given.shell)
    call.console.line(script.replace(_TYPERS, _AUTOLOADED))
