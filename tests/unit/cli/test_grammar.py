"""One rule for commands and words: both say the same, whatever the values are."""

from __future__ import annotations

import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.cli.filtertable import CODECS, FILTERS, Filter
from statepipe.cli.grammar import COMMAND, parse, parse_word, plain_values
from statepipe.cli.main import main
from statepipe.cli.parser import parsed, parser_for
from statepipe.cli.verb import Param, Verb
from statepipe.cli.verbs import VERBS, find_verb
from statepipe.errors import UsageError
from tests.unit.cases import case

VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


def verb(name: str) -> Verb:
    return next(row for row in VERBS if row.name == name)


def key(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


Said = list[tuple[str, Any]]
"""What is said: how a parameter is written, and its value."""


@st.composite
def said(draw: st.DrawFn) -> tuple[Filter, Said, dict[str, Any]]:
    """A filter, what is said of some of its parameters, and what that comes to."""
    row = draw(st.sampled_from(FILTERS))
    things: Said = []
    values: dict[str, Any] = {}
    for param in row.params:
        given = draw(given_for(param, row))
        if given and (must_be_given(param) or draw(st.booleans())):
            things += [(draw(st.sampled_from(param.names or (param.name,))), each) for each in given]
            values[key(param.name)] = given if param.many == "any" else given[0]
    if values.get(COMMAND):
        things = [each for each in things if each[0] != COMMAND] + [(COMMAND, values[COMMAND])]
    return row, things, values


def given_for(param: Param, row: Filter) -> st.SearchStrategy[list[Any]]:
    """What may be said of a parameter, as often as it may be said."""
    if not param.metavar:
        return st.just([True])
    if param.type is not None:  # what the types accept is tested below
        return st.just([])
    values = st.sampled_from(param.choices) if param.choices else VALUES.filter(lambda value: value != "-")
    if not param.names and param.name != COMMAND:
        values = values.filter(lambda value: can_stand_alone(value, row))
    several = st.lists(values, min_size=must_be_given(param), max_size=3 if param.many == "any" else 1)
    return several.filter(lambda line: param.name != COMMAND or can_stand_alone(shlex.join(line), row))


def must_be_given(param: Param) -> bool:
    """An argument without which there is no such filter."""
    return not param.names and param.many == "one"


def can_stand_alone(value: str, row: Filter) -> bool:
    """Other values have to be named, or stand after `--`. The comma that begins one would double the one before it."""
    options = {name.lstrip("-") for param in row.params for name in param.names}
    return value.partition("=")[0] not in options and not value.startswith(("-", ","))


def as_word(row: Filter, things: Said) -> str:
    items = []
    for name, value in things:
        value = shlex.join(value) if name == COMMAND else value
        text, option = str(value).replace(",", ",,"), name.lstrip("-")
        items.append(text if not name.startswith("-") else f"{option}={text}" if value is not True else option)
    return f"{row.name}:{','.join(items)}"


def as_line(things: Said) -> list[str]:
    line = []
    for name, value in things:
        if name == COMMAND:
            line += ["--", *value]
        elif not name.startswith("-"):
            line.append(value)
        elif value is True:
            line.append(name)
        else:
            line += [f"{name}={value}"] if value.startswith("-") else [name, value]
    return line


@settings(deadline=None)
@given(said())
def test_a_word_and_a_command_line_say_the_same(case: tuple[Filter, Said, dict[str, Any]]) -> None:
    row, things, values = case
    found, parsed = parse_word(as_word(row, things))
    assert found is row
    assert parsed == parse(row, as_line(things))
    assert all(parsed[name] == value for name, value in values.items())


PIECES = ["a", "-", "--", "-5", "--to", "", "b=c", "--qmp=s", "-x", "--help"]


@st.composite
def any_line(draw: st.DrawFn) -> tuple[Filter | Verb, list[str]]:
    """A verb or filter, and words that may mean something to it."""
    verb = draw(st.sampled_from([*VERBS, *FILTERS]))
    names = [name for param in verb.params for name in param.names]
    given = [*names, *(f"{name}=1" for name in names), *(f"{name}x" for name in names), *PIECES]
    return verb, draw(st.lists(st.sampled_from(given) | st.sampled_from(PIECES), max_size=8))


@settings(deadline=None)
@given(any_line())
def test_what_is_read_without_argparse_means_the_same_to_it(case: tuple[Filter | Verb, list[str]]) -> None:
    verb, line = case
    if (values := plain_values(verb, line)) is not None:
        assert values == parsed(verb, line)


USUAL = {
    "compress": ["zstd:3"],
    "encrypt": ["-r", "age1x", "--armor"],
    "save": ["--qmp", "S", "--then=cont", "compress:zstd:3", "checksum", "FILE"],
    "load": ["--lazy", "--learn=5", "-i", "KEY", "FILE"],
    "recv": ["tls://:1", "decompress", "-o", "FILE"],
    "send": ["--retry", "5", "progress", "compress", "HOST"],
    "verify-state": ["A", "B"],
}


def test_the_usual_is_read_without_argparse() -> None:
    verbs = {verb.name: verb for verb in (*VERBS, *FILTERS)}
    assert [name for name, line in USUAL.items() if plain_values(verbs[name], line) is None] == []


BARE = [row for row in FILTERS if not any(map(must_be_given, row.params))]


def test_a_bare_word_is_a_bare_command() -> None:
    for row in BARE:
        with case(row.name):
            assert parse_word(row.name) == parse_word(f"{row.name}:") == (row, parse(row, []))


NO_PASSPHRASE = {"passphrase": False, "passphrase_file": None, "passphrase_fd": None}

AT_ONE_LEVEL = {"adapt": False, "min": None, "max": None, "one_frame": False}

WORDS = {
    "compress:zstd:3": {"codec": "zstd:3"} | AT_ONE_LEVEL,
    "compress:-3": {"codec": "-3"} | AT_ONE_LEVEL,
    "compress:zstd:auto,min=1,max=12": AT_ONE_LEVEL | {"codec": "zstd:auto", "min": "1", "max": "12"},
    "compress:adapt,min=-3": AT_ONE_LEVEL | {"codec": None, "adapt": True, "min": "-3"},
    "compress:one-frame": AT_ONE_LEVEL | {"codec": None, "one_frame": True},
    "checksum:blake3": {"algorithm": "blake3", "to": None},
    "checksum:to=a=b": {"algorithm": "sha256", "to": "a=b"},
    "checksum:to=a,,b,sha1": {"algorithm": "sha1", "to": "a,b"},
    "checksum:to=a,,,sha1": {"algorithm": "sha1", "to": "a,"},
    "checksum:to=,,,,": {"algorithm": "sha256", "to": ",,"},
    "checksum:to=": {"algorithm": "sha256", "to": ""},
    "checksum:to=--to": {"algorithm": "sha256", "to": "--to"},
    "checksum:,,": {"algorithm": ",", "to": None},
    "progress:name=a:b,size=4G": {"name": "a:b", "size": "4G", "status_fd": None},
    "verify:from=/x/y": {"digest": None, "from": "/x/y", "algorithm": None},
    "decrypt:i=a,identity=b": {"identity": ["a", "b"], "signed_by": None} | NO_PASSPHRASE,
    "decrypt:p": {"identity": [], "signed_by": None} | NO_PASSPHRASE | {"passphrase": True},
    "encrypt:age1x,r=age1y,R=f,a,recipient=ssh-rsa A== b": {
        "recipients": ["age1x"],
        "recipient": ["age1y", "ssh-rsa A== b"],
        "recipients_file": ["f"],
        "armor": True,
        "sign": None,
    }
    | NO_PASSPHRASE,
}


def test_a_word() -> None:
    for word in WORDS:
        with case(word):
            assert parse_word(word)[1] == WORDS[word]


BAD_WORDS = {
    "": "there is no filter ''",
    ":": "there is no filter ''",
    "pipe": "there is no filter 'pipe'",
    "Compress": "there is no filter 'Compress'",
    "decompress:x": "in the word 'decompress:x': unrecognized arguments: x",
    "decompress:--x": "in the word 'decompress:--x': ",
    "checksum:to": "in the word 'checksum:to': --to needs a value",
    "checksum:a,b": "in the word 'checksum:a,b': unrecognized arguments: b",
}


def test_a_word_that_is_none() -> None:
    for word in BAD_WORDS:
        with case(word):
            with pytest.raises(UsageError) as caught:
                parse_word(word)
            assert str(caught.value).startswith(BAD_WORDS[word])
            assert caught.value.hint


def test_a_word_can_not_ask_for_help() -> None:
    """--help would end the program in the middle of a pipeline."""
    with pytest.raises(UsageError):
        parse_word("decompress:-h")


@pytest.mark.parametrize(
    "line",
    [
        ["f", "--force", "d", "--", "qemu", "-m", "128", "--", "-x", "--force"],
        ["--force", "d", "f", "--", "qemu", "-m", "128", "--", "-x", "--force"],
    ],
)
def test_the_command_after_the_dashes_is_not_looked_at(line: list[str]) -> None:
    values = parse(verb("load"), line)
    assert (values["file"], values["force"]) == ("f", ["d"])
    assert values["command"] == ["qemu", "-m", "128", "--", "-x", "--force"]


@pytest.mark.parametrize("at", range(4))
def test_options_stand_anywhere(at: int) -> None:
    line = ["checksum", "compress:zstd:3", "FILE"]
    line[at:at] = ["--then", "quit", "--qmp=S"]
    values = parse(verb("save"), line)
    assert values["words"] == ["checksum", "compress:zstd:3"]
    assert (values["file"], values["then"], values["qmp"]) == ("FILE", "quit", "S")


def test_a_name_that_looks_like_an_option_stands_after_the_dashes() -> None:
    values = parse(verb("inspect"), ["--json", "--", "--json"])
    assert (values["file"], values["json"]) == ("--json", True)


def test_an_unknown_option() -> None:
    for verb, word in product(VERBS, ("--no-such", "--no-such=x", "-z")):
        with case(verb.name, word):
            with pytest.raises(UsageError) as caught:
                parse(verb, ["FILE", word])
            assert caught.value.hint == f"see: statepipe {verb.name} --help"


def test_options_are_not_abbreviated() -> None:
    """A script that says --forc would change its meaning with the next option."""
    with pytest.raises(UsageError):
        parse(verb("load"), ["f", "--forc"])


INCOMPLETE = [
    ("save", [], "the following arguments are required: FILE"),
    ("load", ["--", "qemu"], "the following arguments are required: FILE"),
    ("rate", ["1"], "the following arguments are required: RATE"),
    ("save", ["--then", "x", "f"], "--then WHAT cannot be 'x'"),
    ("save", ["--qmp", "--then", "quit", "f"], "--qmp needs a value"),
    ("save", ["f", "--qmp"], "--qmp needs a value"),
    ("checksum", ["--to", "--", "f"], "--to needs a value"),
    ("decompress", ["f", "g"], "unrecognized arguments: g"),
    ("migrate", ["h"], "the following arguments are required: --qmp"),
    ("check", ["h"], "the following arguments are required: --qmp"),
    ("resolve", ["here"], "the following arguments are required: --qmp"),
]


@pytest.mark.parametrize(("name", "line", "message"), INCOMPLETE)
def test_what_is_missing_or_too_much(name: str, line: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(verb(name), line)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("name", "line"), [("decompress", ["f", "g"]), ("compress", ["zstd", "f", "g"])])
def test_a_second_file_is_named_as_the_cause(name: str, line: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(verb(name), line)
    assert str(caught.value.hint).startswith("give one FILE at a time; see: ")


PATHS = ("FILE", "DIR", "CA", "IDENTITY", "IDENTITIES")

DASHES = [(row, param) for row in VERBS for param in row.params if param.metavar in PATHS]


def test_a_dash_is_standard_input_or_output_or_is_refused() -> None:
    """Never a file that is called so."""
    for verb, param in DASHES:
        with case(verb.name, param.name):
            others = [
                (each.choices or [each.metavar])[0]
                for each in verb.params
                if must_be_given(each) and each.name != param.name
            ]
            line = [*(str(other) for other in others), *param.names[-1:], "-"]
            line += ["--qmp", "S"] if any(each.name == "--qmp" for each in verb.params) else []
            if param.dash:
                given = parse(verb, line).values()
                assert any("-" in value if isinstance(value, list) else value == "-" for value in given)
            else:
                with pytest.raises(UsageError, match=f"{param.metavar} cannot be -") as caught:
                    parse(verb, line)
                assert "write ./-" in str(caught.value.hint)


def test_help_names_every_parameter() -> None:
    for verb in VERBS:
        with case(verb.name):
            text = parser_for(verb).format_help()
            assert all((param.name if param.name.startswith("--") else param.metavar) in text for param in verb.params)


WRONG_WORDS = [
    ("verify", "verify needs the digest"),
    ("progress:size=x", "'x' is not a size"),
    ("checksum:crc", "crc"),
    ("checksum:sha256,md5", "unrecognized arguments: md5"),
    ("checksum:to", "--to needs a value"),
    ("progress:to=F", "unrecognized arguments: to=F"),
    ("tee:-", "FILE cannot be -"),
    ("checksum:to=-", "--to FILE cannot be -"),
]


def test_what_is_wrong_with_a_word_names_it_whatever_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what only the stage's making finds out."""
    address = f"unix://{tmp_path}/socket"
    verbs = [verb.name for verb in VERBS if any(p.metavar == "WORD" for p in verb.params)]
    for verb, (word, reason) in product(verbs, WRONG_WORDS):
        behind = {"pipe": [word], "save": [word, str(tmp_path / "state")]}
        behind |= {"send": [word, address], "recv": [address, word]}
        behind["convert"] = [word, str(tmp_path / "image"), str(tmp_path / "state")]
        behind["migrate"] = ["--qmp", str(tmp_path / "monitor"), word, "localhost"]
        with case(verb, word):
            assert main([verb, *behind[verb]]) == 2
            said = capsys.readouterr().err
            assert f"in the word '{word}': " in said and reason in said


@pytest.mark.parametrize(
    "words", [["load", "s", "qemu-system-x86_64"], ["receive", "tls://:1", "/usr/bin/qemu-system-x86_64"]]
)
def test_a_qemu_command_line_without_its_separator_is_told_so(words: list[str]) -> None:
    verb, *rest = [*words, "-m", "128"]
    with pytest.raises(UsageError, match="comes after --") as caught:
        parse(find_verb(verb), rest)
    assert caught.value.hint == f"write: statepipe {words[0]} {words[1]} -- {words[2]} …"


MISSPELT = [
    (["chcksum"], "did you mean checksum? "),
    (["zstd"], "did you mean compress zstd? "),
    (["compress", "--levle", "3"], "the level is part of the codec, as in zstd:3; "),
    (["compress", "--adpt"], "did you mean --adapt? "),
    (["compress", "ztsd:3"], "did you mean zstd? "),
    (["checksum", "sha265"], "did you mean sha256? "),
    (["verify", "--algorithm", "sha265", "00"], "did you mean sha256? "),
    (["pipe", "chcksum"], "did you mean checksum? "),
    (["pipe", "zsdt:3"], "did you mean zstd? "),
    (["pipe", "compress,adapt"], "options follow a colon: compress:adapt"),
    (["pipe", "compress:gzpi"], "did you mean gzip? "),
    (["pipe", "compress:zstd:auto,mim=3"], "did you mean min? "),
    (["pipe", "checksum:sha265"], "did you mean sha256? "),
    (["migrate", "--qpm", "S", "h"], "did you mean --qmp? "),
    (["pki", "isue"], "did you mean issue? "),
    (["resolve", "--qmp", "S", "her"], "did you mean here? "),
    (["save", "--qmp", "S", "--then", "quite", "F"], "did you mean quit? "),
]


@pytest.mark.parametrize(("line", "hint"), MISSPELT, ids=[" ".join(line) for line, _ in MISSPELT])
def test_a_misspelt_name_gets_a_suggestion(line: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    assert f"statepipe: hint: {hint}" in capsys.readouterr().err


MISPLACED = [
    (["load", "--lazy", "auto", "F", "--", "q"], "the value of --lazy follows an equals sign: --lazy=auto"),
    (["load", "--lazy", "--learn", "5", "F", "--qmp", "S"], "the value of --learn follows an equals sign: --learn=5"),
    (["load", "--resume", "F"], "statepipe ps shows the whole command; "),
    (["load", "--lazy", "--", "F", "q"], "write: statepipe load FILE -- qemu-system-x86_64 …"),
]


DOMAINS = [
    (["save", "vm 1", "F"], 2, "if it is a domain of libvirt's: statepipe save --domain 'vm 1' F; of another QEMU"),
    (["save", "checksm", "F"], 2, "did you mean checksum?"),
    (["save", "--qmp", "S", "vm1", "F"], 2, "filters are "),
    (["save", "--domain", "vm1", "--then", "cont", "F"], 2, "to have the domain again after the save: statepipe load"),
    (["save", "--domain", "vm1", "--then", "quit", "F"], 2, "leave --then out\n"),
    (["save", "--domain", "vm1", "-r", "age1…", "F"], 2, "write the whole public key: keygen prints it"),
    (["save", "--domain", "vm1", "-i", "K", "F"], 2, "-r RECIPIENT names who can decrypt; "),
    (["load", "--domain", "-r", "age1x", "F"], 2, "-i FILE names the secret key that decrypts; "),
    (["load", "--domain", "vm1", "F"], 2, "--domain takes no value: leave 'vm1' out"),
    (["load", "--domain", "vm1"], 1, "name the file of the state: it holds the domain"),
    (["convert", "vm1", "F"], 1, "for libvirt's managed save of a domain: statepipe convert --domain vm1 F"),
]


@pytest.mark.parametrize(("line", "status", "hint"), DOMAINS, ids=[" ".join(line) for line, _, _ in DOMAINS])
def test_a_domain_that_is_named_otherwise_gets_the_right_command(
    line: list[str],
    status: int,
    hint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line) == status
    assert f"statepipe: hint: {hint}" in capsys.readouterr().err.replace("leave --then out; ", "")


@pytest.mark.parametrize(("line", "hint"), MISPLACED, ids=[" ".join(line) for line, _ in MISPLACED])
def test_a_misplaced_word_gets_its_place(line: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    assert f"statepipe: hint: {hint}" in capsys.readouterr().err


def test_help_writes_an_optional_value_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(find_verb("load"), ["--help"])
    shown = capsys.readouterr().out
    assert "[--lazy[=WHEN]]" in shown and "  --learn[=SECONDS]" in shown


REFUSED = [
    (["send", "--timeout", "x", "h"], "--timeout SECONDS: 'x' is not a number of seconds"),
    (["send", "--retry", "-1", "h"], "--retry SECONDS: '-1' is not a number of seconds"),
    (["send", "--links", "17", "h"], "--links N: '17' is not a number of links"),
    (["send", "--ssh", "a 'b", "ssh://h/f"], "--ssh COMMAND: the command line cannot be split"),
    (["receive", "--serve", "0", "tls://:1", "--", "q"], "--serve N: '0' is not a number of guests"),
    (["receive", "--status-fd", "x", "tls://:1", "--", "q"], "--status-fd N: 'x' is not a descriptor"),
    (["migrate", "--qmp", "S", "--rate", "much", "h"], "--rate RATE: 'much' is not a rate"),
    (["migrate", "--qmp", "S", "--downtime-limit", "1s", "h"], "--downtime-limit MS: '1s' is not a number of"),
    (["pki", "init", "--days", "0"], "--days DAYS: '0' is not a number of days"),
    (["load", "--disk", "=b", "F"], "--disk OLD=NEW: '=b' does not say where a disk is now"),
    (["ps", "--watch", "0"], "SECONDS: '0' is not a number of seconds"),
    (["ps", "3"], "SECONDS needs --watch"),
    (["save", "--then", "quit", "F"], "--then WHAT is for --qmp only"),
    (["save", "--qmp", "S", "--on-timeout", "cancel", "F"], "--on-timeout WHAT needs --timeout SECONDS"),
    (["load", "--detach", "F"], "--detach needs a QEMU command line after --"),
    (["load", "--learn", "F", "--", "q"], "--learn[=SECONDS] needs --lazy[=WHEN]"),
    (["load", "--lazy", "--learn=soon", "F", "--", "q"], "--learn[=SECONDS]: 'soon' is not a number of seconds"),
    (["load", "--lazy", "F"], "--lazy needs a connection to QEMU in both directions"),
    (["load", "--lazy", "--resume", "--qmp", "S", "F"], "--lazy and --resume exclude each other"),
    (["load", "--connect", "U", "F"], "--connect URI needs --domain"),
    (["load", "--paused", "F"], "--paused needs --domain"),
    (["load", "--domain", "F", "--", "q"], "--domain and a QEMU command exclude each other: libvirt starts QEMU"),
    (["load", "--domain", "--qmp", "S", "F"], "--domain and --qmp exclude each other: libvirt starts QEMU, and is"),
    (["load", "--domain", "--lazy=auto", "F"], "--domain and --lazy exclude each other: libvirt loads all memory"),
    (["load", "--domain", "--throttle", "1M", "F"], "--domain and --throttle exclude each other"),
    (["load", "--domain", "--running", "--paused", "F"], "--running and --paused exclude each other"),
    (["load", "--domain", "--force", "cpu", "F"], "--force cpu has no effect with --domain"),
    (["load", "F", "G", "--", "q"], "'G' is one argument too many"),
    (["load", "--qmp", "S", "F", "G"], "'G' is one argument too many"),
    (["receive", "tls://:1", "q"], "'q' is one argument too many"),
    (["external", "a", "--", "b"], "'a' is one argument too many"),
    (["save", "--qmp", "S", "--live", "--then", "cont", "F"], "--live and --then exclude each other"),
    (["send", "--links", "2", "tcp://h:1"], "--links N is for tls:// and ssh:// only"),
    (["send", "--ssh", "ssh -v", "h"], "--ssh COMMAND is for ssh:// only"),
    (["send", "--also", "i", "ssh://h/f"], "--also HOST is for tls:// only"),
    (["send", "--bind", "i", "ssh://h/f"], "--bind HOST is for tls:// and tcp:// only"),
    (["recv", "ssh://h/f", "-o", "f"], "recv does not listen at ssh://"),
    (["migrate", "--qmp", "S", "--journal", "J", "tcp://h:1"], "--journal FILE is for tls://, ssh:// and unix:// only"),
    (["migrate", "--qmp", "S", "--switchover-timeout", "0", "exec:x"], "--switchover-timeout SECONDS is for tls://"),
    (["migrate", "--qmp", "S", "--detach", "tcp://h:1"], "--detach is for tls://"),
    (["migrate", "--qmp", "S", "--rate", "1M", "file:///f"], "--rate RATE has no effect with file:///PATH"),
    (["migrate", "--qmp", "S", "file://f"], "'file://f' is not a file"),
    (["migrate", "--qmp", "S", "--peer", "p", "ssh://h"], "--peer NAME is for tls:// and unix:// only"),
    (["pki", "show", "--for", "server"], "--for USE is for pki issue only"),
    (["pair", "--list", "--name", "n"], "--name NAME is for pair --listen and pair ADDRESS only"),
    (["pair", "--list", "--remove", "n"], "--remove NAME is for pair --remove only"),
    (["pipe"], "pipe needs at least one filter"),
]


@pytest.mark.parametrize(("line", "error"), REFUSED, ids=[" ".join(line) for line, _ in REFUSED])
def test_what_an_option_does_not_take_or_is_not_for(
    line: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 2
    said = capsys.readouterr().err
    assert f"error: {error}" in said and "statepipe: hint: " in said


def test_tables_that_a_start_must_not_import_are_copied_rightly() -> None:
    from statepipe.session.protocol.frames import MAX_LINKS
    from statepipe.stages.codec import CODECS as TABLE

    assert tuple(codec.name for codec in TABLE) == CODECS
    assert parse(find_verb("send"), ["--links", str(MAX_LINKS), "h"])["links"] == MAX_LINKS
    with pytest.raises(UsageError):
        parse(find_verb("send"), ["--links", str(MAX_LINKS + 1), "h"])


def test_a_name_that_an_option_needs_is_one_of_the_verb_s() -> None:
    for row in VERBS:
        names = {name for param in row.params for name in (param.name, param.metavar)}
        assert {param.needs for param in row.params if param.needs} <= names


@pytest.mark.parametrize(
    "line",
    [
        ["migrate", "--qmp", "/none/q", "--bind", "127.0.0.1", "--offline", "tcp://127.0.0.1:1"],
        ["migrate", "--qmp", "/none/q", "--auto-converge", "--rate", "1M", "exec:cat"],
        ["migrate", "--qmp", "/none/q", "--on-timeout", "suspend", "--timeout", "9", "file:///none/f"],
        ["check", "--qmp", "/none/q", "--ssh", "/none/ssh", "--remote-command", "x", "ssh://h"],
        ["save", "--qmp", "/none/q", "--then", "quit", "/none/f"],
    ],
)
def test_an_option_in_its_place_is_no_slip(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """These fail at the monitor or the file, which are not there."""
    assert main(line) in (1, 5, 6)
    assert "/none" in capsys.readouterr().err


def test_zero_is_given() -> None:
    assert parse(find_verb("migrate"), ["--qmp", "S", "--switchover-timeout", "0", "h"])["switchover_timeout"] == 0
    values = parse(find_verb("save"), ["--qmp", "S", "--timeout", "0", "--on-timeout", "cancel", "F"])
    assert values["timeout"] == 0
