"""`kvlite completion`: the scripts with which shells complete kvlite's command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvlite.cli.invocation import Invocation
from kvlite.flags import argument

# What typer's scripts lack. bash splits words at colons, so that `org:name` arrives in pieces: bash-completion, where
# it is installed, joins them again. zsh, loading the script from $fpath, wants it to complete this very first time too.
_CHANGES = {
    "bash": (
        (
            "    local IFS=$'\n'\n",
            """\
    local cur=${COMP_WORDS[COMP_CWORD]} cword=$COMP_CWORD
    local -a words=("${COMP_WORDS[@]}")
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref -n : cur words cword
    fi
    local IFS=$'\\n'
""",
        ),
        ("${COMP_WORDS[*]}", "${words[*]}"),
        ("COMP_CWORD=$COMP_CWORD", "COMP_CWORD=$cword"),
        (
            "    return 0\n",
            """\
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$cur"
    fi
    return 0
""",
        ),
    ),
    "zsh": (
        (
            "compdef _kvlite_completion kvlite",
            """\
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _kvlite_completion "$@"
else
  compdef _kvlite_completion kvlite
fi""",
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """The shell to complete in."""

    shell: Literal["bash", "zsh", "fish", "pwsh"] = argument(metavar="SHELL", help="bash, zsh, fish or pwsh.")


def completion(given: CompletionOptions, call: Invocation) -> None:
    """Print the completion script of a shell; it asks kvlite itself, so it never goes stale."""
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="kvlite", complete_var="_KVLITE_COMPLETE", shell=given.shell)
    for typers, ours in _CHANGES.get(given.shell, ()):
        script = script.replace(typers, ours)
    call.console.line(script)
