"""Shell completion: one table of answers, asked by three short scripts.

The scripts know nothing of the verbs. At each press of the key they run `statepipe completion --words`, with the
words of the line behind it, the last of them being the one to complete, and offer what it prints: so they are right
for whatever version is installed, and what is to be offered is told by the verbs' own tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from statepipe.cli.filtertable import FILTERS
from statepipe.cli.messages import clean, show
from statepipe.cli.verb import Param, Verb
from statepipe.cli.verbs import VERBS
from statepipe.errors import StatepipeError, UsageError

Values = dict[str, Any]

FILES = ":files"
"""The answer that stands for the names of files: the shell knows them best. No verb, option or value is so called."""

PATHS = ("FILE", "DIR", "CA", "SOCKET", "IDENTITY", "PATH")
"""What a parameter is called whose value is a path."""

BASH = r"""# bash completion for statepipe; made by: statepipe completion bash
_statepipe() {
    local line cur=${COMP_LINE:0:COMP_POINT} words
    COMPREPLY=()
    # Readline breaks words at : and =, which belong to ours: so the line is taken apart at blanks.
    read -ra words <<<"$cur"
    case $cur in *[[:blank:]]) words+=("") ;; esac
    cur=${words[-1]}
    local broken=${cur%"${cur##*[:=]}"}
    while IFS= read -r line; do
        case $line in
        :files) compopt -o filenames 2>/dev/null
            while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "${cur##*[:=]}") ;;
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
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] completion --words -- $words[2..-1] 2>/dev/null)
        if test "$line" = ":files"
            set -l cur (commandline -ct)
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
    """A shell's script, or what may stand at the end of a line."""
    if values["words"]:
        if found := sorted(set(candidates(values["command"]))):
            show("\n".join(found))
        return 0
    if values["shell"] is None:
        raise UsageError("completion of which shell?", hint=f"write one of {', '.join(SCRIPTS)}")
    show(SCRIPTS[values["shell"]])
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of the words behind `statepipe` may become; FILES stands for the names of files."""
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
    if before and (param := options.get(before[-1])) is not None and param.metavar is not None:
        return _values(param)
    option, equals, _ = last.partition("=")
    if equals and option in options:
        return (value if value == FILES else f"{option}={value}" for value in _values(options[option]))
    if last.startswith("-"):
        return iter(["--help", *options])
    if equals and ":" in option:
        return _in_word(last)
    return _arguments(verb, _plain(before, options))


def _in_word(last: str) -> Iterator[str]:
    """The values of a word's last option, as in `checksum:sha256,to=`."""
    head, _, _ = last.rpartition("=")
    row = next((row for row in FILTERS if row.name == last.partition(":")[0]), None)
    key = head.partition(":")[2].rpartition(",")[2]
    for param in row.params if row else ():
        if f"--{key}" == param.name:
            yield from (value if value == FILES else f"{head}={value}" for value in _values(param))


def _plain(before: Sequence[str], options: dict[str, Param]) -> int:
    """How many arguments, not options or values of theirs, stand there."""
    count = 0
    words = iter(before)
    for word in words:
        if word in options and options[word].metavar is not None:
            next(words, None)
        elif not word.startswith("-") or word == "-":
            count += 1
    return count


def _arguments(verb: Verb, position: int) -> Iterator[str]:
    """The values of the argument at a position, and of the next where that one may be left out.

    One that may be many takes all behind it, beside those that follow.
    """
    arguments = [param for param in verb.params if not param.name.startswith("--")]
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
    elif param.metavar == "WORD":
        yield from _words()
    elif param.metavar == "ID":
        yield from _running()
    elif param.metavar == "ALGORITHM":
        from statepipe.stages.checksum import ALGORITHMS

        yield from ALGORITHMS
    elif param.metavar == "CODEC[:LEVEL]":
        from statepipe.stages.codec import CODECS

        yield from (codec.name for codec in CODECS)


def _words() -> Iterator[str]:
    """Filters as words: with a colon where something may follow, and each option of theirs."""
    for row in FILTERS:
        yield f"{row.name}:" if row.params else row.name
        for param in row.params:
            if param.name.startswith("--"):
                yield f"{row.name}:{param.name.removeprefix('--')}{'=' if param.metavar else ''}"


def _running() -> Iterator[str]:
    from statepipe.pipeline.jobs import find_jobs

    with suppress(StatepipeError):  # a press of a key is no place for an error
        yield from (clean(job.id) for job in find_jobs())
