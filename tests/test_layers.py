"""The source keeps to the house's sizes, and its suppressions give their reasons.

Which module may import which is checked by import-linter: `tox -e layers`, contracts in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "tests", "benchmarks", "examples")
FILES = sorted(path for folder in FOLDERS for path in ROOT.joinpath(folder).rglob("*.py"))
FUNCTION_LINES, FUNCTION_LINES_WITH_REASON, FILE_LINES = 40, 80, 600

# Functions of more than 40 lines, as "path:name", and why each cannot be shorter.
LONG_FUNCTIONS: dict[str, str] = {}

SUPPRESSION = re.compile(
    r"#\s*(?:type:\s*ignore|noqa)\b"
    r"(?:\[[\w, -]*\]|:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?"  # which ones
    r"(.*)"  # why
)


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the qualified name of every function below a node, and its lines without docstring."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, lines_of(child)
            name += "."
        yield from functions(child, name)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines, from `def` to its last, without the docstring's."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def long_functions() -> dict[str, int]:
    """Return the lines of every function of the project that needs a reason."""
    return {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in FILES
        for name, lines in functions(ast.parse(path.read_bytes()))
        if lines > FUNCTION_LINES
    }


def unexplained(line: str) -> bool:
    """Is there a `type: ignore` or `noqa` without words after it?"""
    found = SUPPRESSION.search(line)
    return found is not None and re.search(r"[a-z]{2}", found[1]) is None


def test_the_files_are_found() -> None:
    """The checks below look at the package and at these tests."""
    assert {ROOT / "src/sockstream/__init__.py", Path(__file__)} <= set(FILES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return 1\n", [("f", 2)]),
        ('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n', [("f", 2)]),
        ("class C:\n    async def m(self):\n        def g(): pass\n", [("C.m", 2), ("C.m.g", 1)]),
        ("if x:\n    @d\n    def f(a,\n          b):\n        pass\n", [("f", 3)]),
    ],
)
def test_functions_are_measured(source: str, expected: list[tuple[str, int]]) -> None:
    """Nested functions and methods are found; a docstring and decorators do not count."""
    assert list(functions(ast.parse(source))) == expected


def test_long_functions_give_a_reason() -> None:
    """A function of more than 40 lines is in the table; the table has no other; none has more than 80."""
    found = long_functions()
    assert found.keys() == LONG_FUNCTIONS.keys(), "give the reason in LONG_FUNCTIONS, or take out the entry"
    assert all(reason.strip() for reason in LONG_FUNCTIONS.values())
    assert {name: lines for name, lines in found.items() if lines > FUNCTION_LINES_WITH_REASON} == {}


def test_files_are_short() -> None:
    """No file has more than 600 lines."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = 1  #" + " noqa", True),
        ("x = 1  #" + " noqa: E501", True),
        ("x = 1  #" + " type: ignore[arg-type]", True),
        ("x = 1  #" + " type: ignore[arg-type]  # the stub lacks the second form", False),
        ("x = 1  #" + " noqa: S101, E501 - an invariant, not a check of input", False),
        ("x = 1  # noquorum", False),
    ],
)
def test_bare_suppressions_are_found(line: str, expected: bool) -> None:
    """A suppression with a reason passes, one without does not."""
    assert unexplained(line) is expected


def test_suppressions_give_a_reason() -> None:
    """Each `type: ignore` and `noqa` says in its line why."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unexplained(line)
    ]
    assert found == []
