"""The layout of docs/design.md, 3, kept true over the syntax trees: who imports whom, who does I/O, who speaks."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import statepipe

PACKAGE = Path(statepipe.__file__).parent

LAYERS = (
    "statepipe",
    "statepipe.typed",
    "statepipe.libzstd",
    "statepipe.errors",
    "statepipe.extras",
    "statepipe.telling",
    "statepipe.units",
    "statepipe.guessing",
    "statepipe.shapes",
    "statepipe.wakeups",
    "statepipe.descriptors",
    "statepipe.private",
    "statepipe.imagelocks",
    "statepipe.stage",
    "statepipe.reuse",
    "statepipe.threads",
    "statepipe.memorylimit",
    "statepipe.processes",
    "statepipe.formats",
    "statepipe.objectstore",
    "statepipe.ends",
    "statepipe.qemu",
    "statepipe.stages",
    "statepipe.pipeline",
    "statepipe.trust",
    "statepipe.session.protocol",
    "statepipe.session",
    "statepipe.recovery",
    "statepipe.state",
    "statepipe.lazy",
    "statepipe.libvirt",
    "statepipe.transfer",
    "statepipe.migration",
    "statepipe.tunnel",
    "statepipe.library",
    "statepipe.cli",
    "statepipe.start",
    "statepipe.__main__",
)
"""From the bottom up: a module imports from lines before its own, and from its own folder."""

IO = {"os", "io", "socket", "time", "threading", "subprocess", "select", "selectors", "fcntl", "asyncio", "pathlib"}
PROCESSES = {"subprocess", "multiprocessing", "pty", "signal"}
CLOCKS = {"time", "sched", "datetime"}

LONGEST_MODULE = 450
LONGEST_FUNCTION = 60
"""Lines: room for one idea and for one story. Neither is ever cut by size where it is one."""

Problems = Iterator[str]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    """The line of LAYERS a module stands on; the longest name that fits."""
    fitting = [each for each in LAYERS if module == each or module.startswith(f"{each}.")]
    return LAYERS.index(max(fitting, key=len))


@cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """All of its syntax tree, walked once for all that look through it."""
    return tuple(ast.walk(ast.parse(source)))


@cache
def imports(source: str) -> frozenset[str]:
    """Every module imported anywhere in `source`; `from a import b` counts as a.b where that is a module."""
    found: set[str] = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            joined = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= joined & set(SOURCES) or {node.module or ""}
    return frozenset(found)


def ours(source: str) -> set[str]:
    return {name for name in imports(source) if name.partition(".")[0] == "statepipe"}


FACADE = "statepipe"
"""It names what the library has, for type checkers alone: `import statepipe` imports no module of ours."""


def upward(module: str, source: str) -> Problems:
    if module == FACADE:
        return
    for name in sorted(ours(source)):
        if layer(name) > layer(module):
            yield f"{module} imports {name}, which stands above it"


def foreign(module: str, source: str, refused: set[str]) -> Problems:
    for name in sorted(imports(source)):
        if name.partition(".")[0] in refused:
            yield f"{module} imports {name}"


def talkers(module: str, source: str) -> Problems:
    """Uses of print, sys.stdout and sys.stderr."""
    for node in nodes_of(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            yield f"{module}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and ast.unparse(node.value) == "sys":
            yield f"{module}:{node.lineno} uses sys.{node.attr}"


WIDE = {"StatepipeError", "Exception", "BaseException"}
"""What nobody below cli may let end: the whole error tree, or everything."""


def is_wide(caught: ast.expr | None) -> bool:
    """Whether one of these types, or their tuple, is wide. `except:` with nothing is."""
    if isinstance(caught, ast.Tuple):
        return any(map(is_wide, caught.elts))
    return caught is None or ast.unparse(caught).split(".")[-1] in WIDE


def names_in(tree: ast.AST, name: str) -> bool:
    """Whether a value is used there, other than to ask what it is or by one of its attributes alone."""
    if isinstance(tree, ast.Name):
        return tree.id == name
    if isinstance(tree, ast.Call) and ast.unparse(tree.func) in ("isinstance", "type"):
        return False
    if isinstance(tree, ast.IfExp):
        return names_in(tree.body, name) or names_in(tree.orelse, name)
    return any(names_in(each, name) for each in ast.iter_child_nodes(tree))


def hands_on(step: ast.stmt, name: str, used: set[str]) -> bool:
    """Whether a step gives the error to somebody: as an argument, as the value returned, or where it is looked for."""
    if isinstance(step, ast.Return):
        return step.value is not None and names_in(step.value, name)
    if isinstance(step, ast.Assign):
        return names_in(step.value, name) and all(target_of(each) in used for each in step.targets)
    walked = ast.walk(step) if isinstance(step, ast.Expr) else ()
    calls = (each for each in walked if isinstance(each, ast.Call) and names_in(each, name))
    arguments = (argument for call in calls for argument in (*call.args, *(each.value for each in call.keywords)))
    return any(names_in(argument, name) for argument in arguments)


def target_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def settles(steps: Iterable[ast.stmt], name: str, used: set[str]) -> bool:
    """Whether every way through these steps raises, or hands the error on."""
    for step in steps:
        if isinstance(step, ast.Raise) or hands_on(step, name, used):
            return True
        if isinstance(step, ast.If) and settles(step.body, name, used) and settles(step.orelse, name, used):
            return True
        if isinstance(step, ast.With | ast.Try) and settles(step.body, name, used):
            return True
        if any(isinstance(each, ast.Return | ast.Continue | ast.Break) for each in ast.walk(step)):
            return False
    return False


def swallowers(module: str, source: str) -> Problems:
    """Where the whole error tree, or everything, may end: no way on leads to somebody who tells it."""
    used = {
        target_of(node)
        for node in nodes_of(source)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for node in nodes_of(source):
        if isinstance(node, ast.ExceptHandler) and is_wide(node.type) and not settles(node.body, node.name or "", used):
            yield f"{module}:{node.lineno} swallows {ast.unparse(node.type) if node.type else 'everything'}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and any(map(is_wide, node.args)):
            yield f"{module}:{node.lineno} suppresses {', '.join(map(ast.unparse, node.args))}"
        if isinstance(node, ast.Try) and any(map(leaves, node.finalbody)):
            yield f"{module}:{node.lineno} leaves by its finally, which drops the error"
        if isinstance(node, ast.FunctionDef) and node.name == "__exit__" and any(map(returns_something, node.body)):
            yield f"{module}:{node.lineno} may swallow by what __exit__ returns"


def leaves(step: ast.AST) -> bool:
    """Whether a step of a `finally` returns from the function around it."""
    if isinstance(step, ast.FunctionDef | ast.Lambda):
        return False
    return isinstance(step, ast.Return) or any(map(leaves, ast.iter_child_nodes(step)))


def returns_something(step: ast.stmt) -> bool:
    return any(isinstance(each, ast.Return) and each.value is not None for each in ast.walk(step))


def long_ones(module: str, source: str) -> Problems:
    if (count := len(source.splitlines())) > LONGEST_MODULE:
        yield f"{module} has {count} lines"
    for node in nodes_of(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            if size > LONGEST_FUNCTION:
                yield f"{module}.{node.name} has {size} lines"


def below(*layers: str) -> dict[str, str]:
    return {name: source for name, source in SOURCES.items() if LAYERS[layer(name)] in layers}


def outside_cli() -> dict[str, str]:
    return below(*LAYERS[: LAYERS.index("statepipe.cli")])


Check = Callable[[str, str], Problems]
"""What finds the problems of a module, by its name and its source."""


def assert_none(check: Check, modules: Iterable[str]) -> None:
    """All that there are: each begins with its module."""
    assert [problem for module in modules for problem in check(module, SOURCES[module])] == []


def test_a_module_imports_only_from_the_lines_above_it() -> None:
    assert_none(upward, SOURCES)


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter(graph(SOURCES)).prepare()


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    return {name: ours(source) - {name} for name, source in sources.items() if name != FACADE}


SANS_IO = {"statepipe.recovery.handover", "statepipe.trust.certificates", "statepipe.trust.spake"}
"""Beside the formats and the session's protocol: the tables of a migration, and what pairs and certifies hosts."""


def test_formats_tables_and_protocol_do_no_io() -> None:
    modules = [*below("statepipe.formats", "statepipe.session.protocol"), *sorted(SANS_IO)]
    assert_none(lambda module, source: foreign(module, source, IO), modules)


def test_a_stage_owns_no_process_and_no_clock() -> None:
    stages = below("statepipe.stages")
    assert_none(lambda module, source: foreign(module, source, CLOCKS | PROCESSES), stages)
    owners = {module for module, source in stages.items() if "statepipe.processes" in ours(source)}
    assert owners <= {"statepipe.stages.external"}


def test_only_cli_speaks() -> None:
    assert_none(talkers, outside_cli())


def test_only_cli_has_the_last_word_on_an_error() -> None:
    assert_none(swallowers, outside_cli())


def test_modules_and_functions_are_short() -> None:
    assert_none(long_ones, SOURCES)


def forks(module: str, source: str) -> Problems:
    """Uses of fork, which copies the locks of threads and not the threads."""
    for node in nodes_of(source):
        if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty"):
            yield f"{module}:{node.lineno} uses {node.attr}"
        if isinstance(node, ast.keyword) and node.arg == "preexec_fn":
            yield f"{module}:{node.value.lineno} gives a preexec_fn"


def test_nothing_forks() -> None:
    assert_none(forks, SOURCES)


def described(tree: str) -> list[str]:
    """The modules that a tree of files names, by their paths: two blanks a folder, a description on each line."""
    found, above = [], []
    for line in filter(str.strip, tree.splitlines()):
        name, description = line.split(maxsplit=1)
        assert description
        del above[(len(line) - len(line.lstrip())) // 2 :]
        (above if name.endswith("/") else found).append(name if name.endswith("/") else "".join([*above, name]))
    return found


def test_the_design_names_each_module_once() -> None:
    tree = (PACKAGE.parent / "docs" / "design.md").read_text().split("## 3. Layout")[1].split("```")[1]
    modules = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(described(tree)) == sorted(modules)


def test_a_tree_is_read_by_its_folders() -> None:
    tree = "a/  one\n  b.py  two\n  c/  three\n    d.py  four\ne.py  five\n"
    assert described(tree) == ["a/b.py", "a/c/d.py", "e.py"]


def test_every_folder_is_on_a_line() -> None:
    assert {name for name in SOURCES if layer(name) == 0} == {"statepipe"}


BAD_IMPORTS = [
    ("statepipe.formats.x", "from statepipe.stages.tee import tee"),
    ("statepipe.stage", "import statepipe.formats.statefile"),
    ("statepipe.units", "def f():\n    from statepipe import stage"),
    ("statepipe.qemu.x", "from statepipe.pipeline.pipeline import Pipeline"),
    ("statepipe.errors", "if TYPE_CHECKING:\n    from statepipe.units import parse_size"),
]


@pytest.mark.parametrize(("module", "source"), BAD_IMPORTS)
def test_the_check_finds_an_import_from_above(module: str, source: str) -> None:
    assert len(list(upward(module, source))) == 1


def test_the_check_finds_a_cycle() -> None:
    sources = {"statepipe.errors": "import statepipe.units", "statepipe.units": "import statepipe.errors"}
    with pytest.raises(CycleError):
        TopologicalSorter(graph(sources)).prepare()


def test_the_check_finds_io_and_clocks() -> None:
    assert len(list(foreign("x", "import os.path\nfrom time import sleep", IO))) == 2


def test_the_check_finds_who_speaks() -> None:
    assert len(list(talkers("x", "print(1)\nsys.stderr.write('')\nself.print()"))) == 2


SWALLOWS = [
    "try: f()\nexcept (OSError, StatepipeError): pass",
    "try: f()\nexcept: pass",
    "try: f()\nexcept BaseException: undo()",
    "try: f()\nexcept errors.StatepipeError as error: print(isinstance(error, QemuError))",
    "try: f()\nexcept Exception as error:\n    if isinstance(error, InterruptedBySignal): raise",
    "try: f()\nexcept BaseException as error:\n    if late: return\n    raise",
    "try: f()\nexcept BaseException as error: self.forgotten = error",
    "with suppress(OSError, StatepipeError): f()",
    "with contextlib.suppress(BaseException): f()",
    "def f():\n    try: g()\n    finally: return 1",
    "class A:\n    def __exit__(self, *error): return True",
]


@pytest.mark.parametrize("source", SWALLOWS)
def test_the_check_finds_who_swallows(source: str) -> None:
    assert len(list(swallowers("x", source))) == 1


HANDS_ON = [
    "try: f()\nexcept StatepipeError as error: raise g(error)",
    "try: f()\nexcept OSError: pass",
    "try: f()\nexcept BaseException:\n    undo()\n    raise",
    "try: f()\nexcept BaseException as error: queue.put(error)",
    "try: f()\nexcept BaseException as error: self.error = error\nif self.error: raise self.error",
    "try: f()\nexcept Exception as error:\n    if isinstance(error, Signal): raise\n    tell(f'no: {error}')",
    "with suppress(PeerError): f()",
]


@pytest.mark.parametrize("source", HANDS_ON)
def test_the_check_lets_pass_who_raises_or_hands_on(source: str) -> None:
    assert list(swallowers("x", source)) == []


def test_the_check_finds_who_forks() -> None:
    assert len(list(forks("x", "os.fork()\npty.forkpty()\nPopen(['x'], preexec_fn=f)"))) == 3


def test_the_check_finds_what_is_long() -> None:
    function = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
    assert len(list(long_ones("x", function + "\n" * LONGEST_MODULE))) == 2
    assert list(long_ones("x", function.removesuffix("    pass\n"))) == []
