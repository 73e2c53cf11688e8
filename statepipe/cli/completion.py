"""Shell completion: three short scripts that ask statepipe itself.

At each press of the key a script runs `statepipe completion --words -- WORD…` with the words of the line, the last one
to be completed, and offers what it prints. So the answers come from the tables of the verbs that are installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain

from statepipe.cli.filtertable import CODECS, FILTERS
from statepipe.cli.messages import clean, show
from statepipe.cli.verb import Param, Values, Verb
from statepipe.cli.verbs import VERBS
from statepipe.errors import StatepipeError, UsageError

FILES = ":files"
"""Stands for the names of files, which the shell completes itself. No verb, option or value has this name."""

PATHS = ("FILE", "NEW", "DIR", "CA", "SOCKET", "IDENTITY", "PATH")
"""The metavars of paths."""

BASH = r"""# bash completion for statepipe; made by: statepipe completion bash
_statepipe() {
    local line rest=${COMP_LINE:0:COMP_POINT} blanks file at words=()
    COMPREPLY=()
    # Bash takes a line apart at blanks outside quotes, but also at : and =, which belong to our words.
    for ((at = 0; at <= COMP_CWORD; at++)); do
        blanks=${rest%%[![:blank:]]*}
        rest=${rest#"$blanks"}
        if [[ -n $blanks || $at == 0 ]]; then words+=(""); fi
        if ((at < COMP_CWORD)); then
            words[-1]+=${COMP_WORDS[at]}
            rest=${rest#"${COMP_WORDS[at]}"}
        fi
    done
    words[-1]+=$rest
    case $rest in
    [\"\']*) file=${rest:1} ;;
    *) file=${rest##*[:=]} file=${file//\\/} ;;
    esac
    local cur=${words[-1]}
    local broken=${cur%"${cur##*[:=]}"}
    while IFS= read -r line; do
        case $line in
        :files) compopt -o filenames 2>/dev/null
            while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$file") ;;
        *) COMPREPLY+=("${line#"$broken"}") ;;
        esac
    done < <("${words[0]}" completion --words -- "${words[@]:1}" 2>/dev/null)
    case ${COMPREPLY[0]} in *[:=,]) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _statepipe statepipe
"""

ZSH = r"""#compdef statepipe
# zsh completion for statepipe; made by: statepipe completion zsh
_statepipe() {
    local -a found
    local line
    found=("${(@f)$("${words[1]}" completion --words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    for line in "${found[@]}"; do
        case $line in
        "") ;;
        :files) compset -P '*='; _files ;;
        *[:=]) compadd -S "" -- "$line" ;;
        *) compadd -- "$line" ;;
        esac
    done
}
if [ "$funcstack[1]" = "_statepipe" ]; then _statepipe "$@"; else compdef _statepipe statepipe; fi
"""

FISH = r"""# fish completion for statepipe; made by: statepipe completion fish
function __statepipe_complete
    set -l raw (commandline -ct)
    # A quote in it may still be open.
    set -l cur (string unescape -- $raw; or string unescape -- $raw\'; or string unescape -- $raw\")
    set -l words (commandline -opc) "$cur"
    for line in ($words[1] completion --words -- $words[2..-1] 2>/dev/null)
        if test "$line" = ":files"
            set -l head (string match -r '^.*=' -- $cur)
            for path in (__fish_complete_path (string replace -r '^.*=' '' -- $cur))
                echo "$head$path"
            end
        else
            echo $line
        end
    end
end
complete -c statepipe -f -a '(__statepipe_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def run_completion(name: str, values: Values) -> int:
    """Print a shell's script, or what the end of a line can become."""
    if values["words"]:
        if found := sorted(set(candidates(values["command"]))):
            show("\n".join(found))
        return 0
    if values["shell"] is None:
        raise UsageError("completion needs the name of a shell", hint=f"give one of {', '.join(SCRIPTS)}")
    show(SCRIPTS[values["shell"]])
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """Return what the last of the words after `statepipe` can become. FILES stands for the names of files."""
    *before, last = words or [""]
    verb = next((verb for verb in VERBS if before and verb.name == before[0]), None)
    if verb is None:
        offered: Iterator[str] = iter([*(verb.name for verb in VERBS), "--help", "--version"] if not before else [])
    else:
        offered = _of_verb(verb, before[1:], last)
    return [each for each in offered if each.startswith(last) or each == FILES]


def _of_verb(verb: Verb, before: Sequence[str], last: str) -> Iterator[str]:
    options = {name: param for param in verb.params for name in param.names}
    if "--" in before:
        return iter([FILES])
    if before and (param := options.get(before[-1])) is not None and param.takes_next:
        return _values(param)
    option, equals, _ = last.partition("=")
    if equals and option in options:
        return _prefixed(option, options[option])
    if last.startswith("-"):
        return iter(["--help", *options])
    if equals and ":" in option:  # a word's last option, as in checksum:sha256,to=
        head, _, _ = last.rpartition("=")
        row = next((row for row in FILTERS if row.name == last.partition(":")[0]), None)
        key = head.partition(":")[2].rpartition(",")[2]
        return chain.from_iterable(
            _prefixed(head, param) for param in (row.params if row else ()) if param.name == f"--{key}"
        )
    position = 0
    words = iter(before)
    for word in words:
        if word in options and options[word].takes_next:
            next(words, None)
        elif not word.startswith("-") or word == "-":
            position += 1
    return _arguments(verb, position)


def _prefixed(head: str, param: Param) -> Iterator[str]:
    return (value if value == FILES else f"{head}={value}" for value in _values(param))


def _arguments(verb: Verb, position: int) -> Iterator[str]:
    """Yield the values of the argument at a position, and of the next ones if it can be left out.

    An argument that can be many takes every later position, beside those that follow it.
    """
    arguments = [param for param in verb.params if not param.names]
    many = next((at for at, param in enumerate(arguments) if param.many == "any"), len(arguments))
    for param in arguments[min(position, many) :]:
        yield from _values(param)
        if position < many and param.many == "one":
            return


def _values(param: Param) -> Iterator[str]:
    if param.choices:
        yield from param.choices
    elif param.metavar in PATHS:
        yield FILES
    elif param.metavar == "WORD":  # filters: with a colon if something can follow, and with each option
        for row in FILTERS:
            yield f"{row.name}:" if row.params else row.name
            for option in row.params:
                if option.names:
                    yield f"{row.name}:{option.name.removeprefix('--')}{'=' if option.metavar else ''}"
    elif param.metavar == "ID":
        from statepipe.pipeline.jobs import find_jobs

        with suppress(StatepipeError):  # completion shows no errors
            yield from (clean(job.id) for job in find_jobs())
    elif param.metavar == "ALGORITHM":
        from statepipe.stages.checksum import ALGORITHMS

        yield from ALGORITHMS
    elif param.metavar == "CODEC[:LEVEL]":
        yield from CODECS
