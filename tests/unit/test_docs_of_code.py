"""What the code says of itself: a docstring where a reader begins, and tables in prose that agree with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import statepipe
from statepipe import errors
from statepipe.cli.filtertable import FILTERS
from statepipe.cli.verbs import EXIT_CODES, VERBS

PACKAGE = Path(statepipe.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py") if path.stat().st_size}


def public_without_docstring(source: str) -> list[str]:
    """Top-level functions and classes for others to use, and the module, that say nothing of themselves."""
    tree = ast.parse(source)
    silent = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if defines and not node.name.startswith("_") and not ast.get_docstring(node):
            silent.append(node.name)
    return silent


NEED_NONE = {"Hash"}
"""The name of a protocol with the two methods of every hash says it all."""


def test_what_others_use_is_described() -> None:
    silent = [(module, name) for module, source in MODULES.items() for name in public_without_docstring(source)]
    assert [(module, name) for module, name in silent if name not in NEED_NONE] == []


def test_the_check_finds_who_is_silent() -> None:
    assert public_without_docstring("def f(): pass\ndef _g(): pass\nclass C:\n    'Said.'") == ["the module", "f"]


def test_the_error_tree_in_prose_is_the_one_in_code() -> None:
    prose = dict(re.findall(r"(\w+)\s+(\d+)  ", (errors.__doc__ or "").replace("128+n", "1  ")))
    code = {
        name: str(kind.exit_code)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.StatepipeError)
    }
    assert {name: value for name, value in prose.items() if name != "InterruptedBySignal"} == {
        name: value for name, value in code.items() if name != "InterruptedBySignal"
    }
    assert "InterruptedBySignal 128+n" in (errors.__doc__ or "")


def test_every_exit_code_is_told() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {0} | {kind.exit_code for kind in kinds} == {code for code, _ in EXIT_CODES} | {errors.ReaderGone.exit_code}


def test_an_inverse_is_a_filter_whose_inverse_it_is() -> None:
    pairs = {row.name: row.inverse for row in FILTERS if row.inverse}
    assert all(pairs[inverse] == name for name, inverse in pairs.items())


def test_names_are_given_once() -> None:
    names = [verb.name for verb in VERBS]
    assert len(set(names)) == len(names)
    for verb in VERBS:
        options = [param.name for param in verb.params]
        assert len(set(options)) == len(options)


TOP = PACKAGE.parent
DOCUMENTS = [path for path in [*TOP.glob("*.md"), *TOP.glob("docs/*.md")] if path.name != "CHANGELOG.md"]

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@each_document
def test_a_module_that_a_document_names_exists(document: Path) -> None:
    named = sorted(set(re.findall(r"`((?:[a-z]+/)+[a-z_]+\.py)`", document.read_text())))
    assert [name for name in named if not ((PACKAGE / name).is_file() or (TOP / name).is_file())] == []


def anchors(text: str) -> set[str]:
    """The anchors that a forge makes of a document's headings."""
    return {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }


@each_document
def test_a_document_s_links_lead_somewhere(document: Path) -> None:
    for name, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", document.read_text()):
        target = document.parent / name if name else document
        assert target.is_file(), name
        assert not anchor or anchor in anchors(target.read_text()), anchor


@each_document
def test_no_line_of_a_document_is_longer_than_100_columns(document: Path) -> None:
    assert [line for line in document.read_text().splitlines() if len(line) > 100] == []
