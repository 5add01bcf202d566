# Completion of kvlite in fish.
function __kvlite_completion
    set -l found (env COLUMNS=9999 _KVLITE_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) kvlite 2>/dev/null)
    if test -z "$found[1]"
        __fish_complete_path (commandline -ct)
    else if set -l named (string match -r -- '^--[^=]*=' (commandline -ct))
        printf '%s\n' $named$found
    else
        printf '%s\n' $found
    end
end

complete --command kvlite --no-files --keep-order --arguments '(__kvlite_completion)'
