# Completion of kvlite in bash, from 4.4 on.
_kvlite_completion() {
  local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} breaks=${COMP_WORDBREAKS//[^:=]/} word typed= named=
  COMPREPLY=($(COLUMNS=9999 _KVLITE_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=$line "$1" 2>/dev/null))
  COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
  word=${line##*[[:space:]]}
  [[ $word == --*=* && $breaks != *=* ]] && named=${word%%=*}=
  # bash ends words at : and = and replaces only what follows: what stands before stays as it is
  [[ $word == --*=* ]] && word=${word#*=}
  if [[ $breaks == *:* && $word == *:* ]]; then
    typed=${word%"${word##*:}"}
  fi
  COMPREPLY=("${COMPREPLY[@]#"$typed"}")
  COMPREPLY=("${COMPREPLY[@]/#/"$named"}")
}

complete -o default -F _kvlite_completion kvlite
