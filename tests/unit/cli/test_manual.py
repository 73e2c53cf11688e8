"""The manual pages against the tables that the program itself reads, in both directions.

The pages are read as mdoc source, so that these tests need no formatter. A verb has a page, alone or with others of its
group: a line in that page's SYNOPSIS, and a subsection of the verb's name, whose lists have an item for each parameter.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from statepipe.cli.grammar import parse, parse_word
from statepipe.cli.main import main
from statepipe.cli.verb import Param, Verb
from statepipe.cli.verbs import EXIT_CODES, VERBS
from tests.unit.cases import case

ROOT = Path(__file__).parents[3]
MANUAL = ROOT / "man"
PAGES = {path.name: path.read_text() for path in sorted(MANUAL.glob("statepipe*.[15]"))}
OTHER_NAMES = {name: text for name, text in PAGES.items() if text.startswith(".so ")}
"""Pages that are another's under the name of a verb of its."""

OWN = {name: text for name, text in PAGES.items() if name not in OTHER_NAMES}
MAIN = PAGES["statepipe.1"]
SOURCE = "".join(OWN.values())
README = (ROOT / "README.md").read_text()
GENERAL = {"--help", "--version", "--percent"}
"""Options of the program itself, which main.py knows without a table."""


# --- reading mdoc, as much of it as the page uses


def part(heading: str, name: str, text: str = SOURCE) -> str:
    """What stands between the heading `.Sh NAME` or `.Ss NAME` and the next one of either kind of at least its rank."""
    ending = r"\.Sh " if heading == "Sh" else r"\.S[hs] "
    found = re.search(rf"^\.{heading} {re.escape(name)}\n(.*?)(?=^{ending}|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the manual has no '.{heading} {name}'"
    return found[1]


def plain(text: str) -> str:
    """Source without mdoc's escapes."""
    return text.replace(r"\-", "-").replace(r"\&", "").replace(r"\ ", " ")


def marked(text: str) -> list[str]:
    """Options and arguments marked by Fl and Ar, in order: `--to`, `FILE`. `Fl -` is the bare `--`."""
    pairs = re.findall(r"\b(Fl|Ar) (\S+)", text)
    return ["-" + word if macro == "Fl" else word for macro, word in pairs]


def page_of(verb: Verb) -> str:
    """The source of a verb's page."""
    text = PAGES[f"statepipe-{verb.name}.1"]
    return PAGES[text.removeprefix(".so man1/").strip()] if text.startswith(".so ") else text


def entries(page: str) -> list[str]:
    """The lines of a page's SYNOPSIS: each begins with a verb."""
    return part("Sh", "SYNOPSIS", page).split(".Nm statepipe\n")[1:]


def synopsis(verb: Verb) -> list[str]:
    """The marked words of a verb's line in SYNOPSIS."""
    for entry in entries(page_of(verb)):
        if entry.startswith(f".Cm {verb.name}\n"):
            return marked(entry)
    pytest.fail(f"SYNOPSIS has no line for {verb.name}")


def items(verb: Verb) -> set[tuple[str, ...]]:
    """The list items of a verb's subsection that stand for a parameter: `("--to", "FILE")`, `("-a", "--armor")`."""
    rows = re.findall(r"^\.It ((?:Fl|Ar) .*)$", part("Ss", verb.name, page_of(verb)), re.MULTILINE)
    return {tuple(marked(row)) for row in rows}


def words_of(param: Param) -> tuple[str, ...]:
    """How the page should name a parameter."""
    return (*param.names, *([param.metavar] if param.metavar else []))


def examples() -> list[str]:
    """Every command line of statepipe in the literal blocks, without what the shell does around it."""
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", SOURCE, re.DOTALL | re.MULTILINE)
    lines = re.findall(r'(?:^|exec:exec )statepipe ([^|<>"\n]+)', plain("".join(blocks)), re.MULTILINE)
    return [line.strip() for line in lines]


# --- verbs and their parameters


def test_synopsis_has_the_parameters_of_the_table() -> None:
    for verb in VERBS:
        with case(verb.name):
            written = [word for word in synopsis(verb) if word not in ("--", "...")]
            assert sorted(written) == sorted(word for param in verb.params for word in words_of(param))


def test_synopsis_gives_arguments_in_the_order_that_they_are_parsed_in() -> None:
    for verb in VERBS:
        with case(verb.name):
            arguments = [param.metavar for param in verb.params if not param.name.startswith("--")]
            told = [word for word in synopsis(verb) if word in arguments]
            assert told[-len(arguments) :] == arguments or not arguments


def test_each_parameter_is_explained_and_no_other() -> None:
    for verb in VERBS:
        with case(verb.name):
            assert items(verb) == {words_of(param) for param in verb.params}


def test_choices_and_defaults_are_told() -> None:
    for verb in VERBS:
        with case(verb.name):
            text = part("Ss", verb.name, page_of(verb))
            for param in verb.params:
                for value in [*(param.choices or ()), *([param.default] if param.default else [])]:
                    assert f".Ql {value}" in text, f"{verb.name} {param.name}: {value}"


def test_what_may_be_given_again_is_said_to_be() -> None:
    """At the option itself, or at that of the verb to which it refers."""
    for verb in VERBS:
        with case(verb.name):
            explained = re.split(r"^\.It ", part("Ss", verb.name, page_of(verb)), flags=re.MULTILINE)
            for param in verb.params:
                if param.names and param.many == "any":
                    [text] = [each for each in explained if tuple(marked(each.split("\n")[0])) == words_of(param)]
                    assert re.search("again|As for", text), f"{verb.name} {param.name}"


def test_each_verb_has_one_synopsis_and_a_place_in_the_overview() -> None:
    written = [
        re.findall(r"^\.Cm (\S+)", entry, re.MULTILINE)
        for name, page in OWN.items()
        if name.endswith(".1")
        for entry in entries(page)
    ]
    verbs = sorted(verb.name for verb in VERBS)
    assert sorted(name for names in written for name in names) == verbs
    rows = re.findall(r"^\.It (Cm .*)$", part("Sh", "VERBS", MAIN), re.MULTILINE)
    assert sorted(re.findall(r"Cm (\S+)", " ".join(rows))) == verbs


def test_each_page_is_named_by_the_overview() -> None:
    named = {f"{name}.{number}" for name, number in re.findall(r"^\.Xr (statepipe\S*) (\d)", MAIN, re.MULTILINE)}
    assert named | {"statepipe.1"} == set(OWN)


def test_each_reference_to_a_page_of_ours_leads_somewhere() -> None:
    found = {f"{name}.{number}" for name, number in re.findall(r"^\.Xr (statepipe\S*) (\d)", SOURCE, re.MULTILINE)}
    assert found <= set(OWN)


def test_what_is_marked_as_a_verb_is_one() -> None:
    assert set(re.findall(r"\bCm (\S+)", SOURCE)) <= {verb.name for verb in VERBS}


OF_VIRSH = {"--copy-storage-all", "--compressed", "--desturi", "--p", "--parallel", "--postcopy", "--postcopy-resume"}
OF_VIRSH |= {"--reason"}
"""Options of virsh that the page of tunnel names, as the pattern below finds them (--p2p)."""


def test_no_option_is_told_of_that_does_not_exist() -> None:
    known = GENERAL | {param.name for verb in VERBS for param in verb.params if param.name.startswith("--")}
    told = {word for word in marked(SOURCE) if re.match("--[a-z]", word)}
    literal = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", plain(SOURCE)))
    assert told <= known and literal <= known | OF_VIRSH
    assert told >= known


def test_every_exit_code_is_told_with_its_meaning() -> None:
    rows = re.findall(r"^\.It (\d+)\n(.+)$", part("Sh", "EXIT STATUS", MAIN), re.MULTILINE)
    assert [(int(code), meaning) for code, meaning in rows if code != "141"] == list(EXIT_CODES)
    assert "141" in dict(rows) and ".It 128+n\n" in SOURCE


def test_each_message_that_is_explained_is_one_of_ours() -> None:
    """The words between names in capitals, which stand for what a message fills in, are in string constants."""
    constants = [
        node.value
        for path in (ROOT / "statepipe").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for message in re.findall(r"^\.It (.+)$", part("Sh", "DIAGNOSTICS", MAIN), re.MULTILINE):
        for words in re.split(r"\b[A-Z]{4,}\b|\.\.\.", plain(message)):
            assert any(words.strip() in constant for constant in constants), message


# --- what a reader will type


def test_there_are_examples_of_each_way_to_save_and_load() -> None:
    assert len(examples()) >= 12
    assert {line.split()[0] for line in examples()} >= {"save", "load", "pipe", "inspect", "verify-state", "checksum"}


def test_every_example_is_a_command_line_that_parses() -> None:
    for line in examples():
        with case(line):
            name, *arguments = shlex.split(line)
            verb = next(verb for verb in VERBS if verb.name == name)
            for word in parse(verb, arguments).get("words") or ():
                parse_word(word)


def test_help_tells_the_same_options_as_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with case(verb.name):
            with pytest.raises(SystemExit) as left:
                main([verb.name, "--help"])
            assert left.value.code == 0
            options = re.findall(r"^  (?:-\w(?: [A-Z]+)?, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
            assert sorted(options) == sorted(["--help", *(p.name for p in verb.params if p.name.startswith("--"))])


def test_help_lists_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  ([a-z-]+)  ", out, re.MULTILINE) == [verb.name for verb in VERBS]
    assert all(f"{code} {meaning}" in out for code, meaning in EXIT_CODES)


# --- README


def readme_examples() -> list[str]:
    """The command lines of statepipe in README's literal blocks, without prompts and what the shell does with them."""
    text = "\n".join(re.findall(r"^    (.*)$", README, re.MULTILINE)).replace("\\\n", " ")
    lines = re.findall(r'(?:^[a-z]*\$ |exec:exec |\| )statepipe ([^|<>"\n]+)', text, re.MULTILINE)
    return [line.strip().replace("…", "x") for line in lines]


def test_readme_s_examples_parse() -> None:
    for line in readme_examples():
        with case(line):
            name, *arguments = shlex.split(line)
            verb = next(verb for verb in VERBS if verb.name == name)
            for word in parse(verb, arguments).get("words") or ():
                parse_word(word)


def test_readme_has_examples_of_the_main_verbs() -> None:
    shown = {line.split()[0] for line in readme_examples()}
    assert shown >= {"save", "load", "verify-state", "pair", "receive", "check", "migrate", "pipe", "keygen"}


def test_readme_s_table_has_every_verb_once() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", README, re.MULTILINE)
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(rows))) == sorted(verb.name for verb in VERBS)


def test_readme_has_100_columns_and_leads_to_documents_that_exist() -> None:
    assert [line for line in README.splitlines() if len(line) > 100] == []
    assert all((ROOT / path).is_file() for path in re.findall(r"\]\(([^):#]+)\)", README))


# --- the page itself


def test_every_reference_to_a_section_leads_somewhere() -> None:
    for page in OWN:
        with case(page):
            headings = {plain(name) for name in re.findall(r"^\.S[hs] (.+)$", OWN[page], re.MULTILINE)}
            assert set(re.findall(r"^\.Sx (.+?)(?: [.,;)])?$", OWN[page], re.MULTILINE)) <= headings


def test_mandoc_finds_nothing_to_warn_of() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed: tools/setup test")
    command = ["mandoc", "-Tlint", "-W", "warning", *(MANUAL / page for page in OWN)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
