"""`kvlite completion`: the scripts with which shells complete kvlite's command line.

Each hands on the line up to the cursor in the way typer's fish script does, and gets a line for each word that fits:
the word, and a tab and what it is for (which is broken at COLUMNS). A shell that gets none offers files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvlite.cli.invocation import Invocation
from kvlite.flags import argument

_ASK = "COLUMNS=9999 _KVLITE_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS"

_BASH = f"""\
# Completion of kvlite in bash, from 4.4 on.
_kvlite_completion() {{
  local IFS=$'\\n' line=${{COMP_LINE:0:COMP_POINT}} breaks=${{COMP_WORDBREAKS//[^:=]/}} word typed= named=
  COMPREPLY=($({_ASK}=$line "$1" 2>/dev/null))
  COMPREPLY=("${{COMPREPLY[@]%%$'\\t'*}}")
  word=${{line##*[[:space:]]}}
  [[ $word == --*=* && $breaks != *=* ]] && named=${{word%%=*}}=
  # bash ends words at : and = and replaces only what follows: what stands before stays as it is
  [[ $word == --*=* ]] && word=${{word#*=}}
  if [[ $breaks == *:* && $word == *:* ]]; then
    typed=${{word%"${{word##*:}}"}}
  fi
  COMPREPLY=("${{COMPREPLY[@]#"$typed"}}")
  COMPREPLY=("${{COMPREPLY[@]/#/"$named"}}")
}}

complete -o default -F _kvlite_completion kvlite
"""

_ZSH = f"""\
#compdef kvlite
# Completion of kvlite in zsh.

_kvlite_completion() {{
  local line="${{(j: :)words[1,CURRENT-1]}} $PREFIX" one
  local -a found described
  found=(${{(f)"$({_ASK}=$line kvlite 2>/dev/null)"}})
  for one in $found; do
    described+=("${{${{one%%$'\\t'*}}//:/\\\\:}}${{${{(M)one%$'\\t'*}}/#$'\\t'/:}}")
  done
  [[ $PREFIX == --*=* ]] && compset -P '*='
  if (( $#described )); then
    _describe -V kvlite described
  else
    _files
  fi
}}

# as a file of $fpath the script is the function that completes
if [[ $funcstack[1] == _kvlite ]]; then
  _kvlite_completion "$@"
else
  compdef _kvlite_completion kvlite
fi
"""

_FISH = f"""\
# Completion of kvlite in fish.
function __kvlite_completion
    set -l found (env {_ASK}=(commandline -cp) kvlite 2>/dev/null)
    if test -z "$found[1]"
        __fish_complete_path (commandline -ct)
    else if set -l named (string match -r -- '^--[^=]*=' (commandline -ct))
        printf '%s\\n' $named$found
    else
        printf '%s\\n' $found
    end
end

complete --command kvlite --no-files --keep-order --arguments '(__kvlite_completion)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """The shell to complete in."""

    shell: Literal["bash", "zsh", "fish", "pwsh"] = argument(metavar="SHELL", help="bash, zsh, fish or pwsh.")


def completion(given: CompletionOptions, call: Invocation) -> None:
    """Print the completion script of a shell; it asks kvlite itself, so it never goes stale."""
    call.console.line(script_of(given.shell))


def script_of(shell: str) -> str:
    """The completion script of a shell."""
    from typer._completion_shared import get_completion_script

    own = _SCRIPTS.get(shell)
    return (own or get_completion_script(prog_name="kvlite", complete_var="_KVLITE_COMPLETE", shell=shell)).rstrip("\n")
