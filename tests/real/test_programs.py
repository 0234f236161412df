"""Programs of everyday use, carried by `serve` with `connect` and `run` with `listen --once`, against the same program
run here: the same bytes on stdout and stderr, the same exit status.

Rules: each case says what must be seen of it, so that two empty outputs are never "equal"; git and ssh-keygen touch
nothing of the user's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ends import KINDS, SESSIONS, WAYS, ends, own_stderr
from support import limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Running

FILES, COMMITS = 2000, 300
QUICK = ("sock+unix", "tcp")
MOST_KINDS = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


class Case(NamedTuple):
    """A command line, in which {place} is the directory with something to work on; its input; what must come."""

    command: str
    given: bytes = b""
    status: int = 0
    stdout: bytes = b""  # is part of it
    stderr: bytes = b""


SUMS = b"2+3\n2^200\nscale=20\n1/3\ndefine f(n) { if (n < 2) return (1); return (n * f(n - 1)); }\nf(30)\nquit\n"
TABLE = b"""create table t (n integer primary key, word text);
with recursive c(n) as (select 1 union all select n + 1 from c where n < 5000)
    insert into t select n, 'word ' || n from c;
select count(*), sum(n) from t;
select * from t;
select * from nowhere;
"""
STATEMENTS = b"import sys\nprint('x' * 100000)\nfor n in range(3):\n    print(n)\n\n1 / 0\nsys.exit(3)\n"

CASES = {
    "bc": Case("bc", SUMS, 0, b"265252859812191058636308480000000\n"),
    "bc-error": Case("bc -l", b"1/0\n4*a(1)\n", 0, b"3.14159265358979323844\n", b"ivide by zero"),
    "sqlite3": Case("sqlite3", TABLE, 1, b"5000|word 5000\n", b"no such table: nowhere"),
    "sqlite3-file": Case("sqlite3 {place}/data.db .dump", b"", 0, b"INSERT INTO"),
    "python": Case("{python} -i", STATEMENTS, 3, b"0\n1\n2\n", b"ZeroDivisionError"),
    "grep": Case("grep -rn needle {place}/tree", b"", 0, b"/file 1999:1:"),
    "grep-nothing": Case("grep -r haystack {place}/tree", b"", 1),
    "grep-error": Case("grep -r needle {place}/nowhere", b"", 2, b"", b"nowhere: No such file"),
    "git": Case("git -C {place}/repository log --stat", b"", 0, b"Commit number 299\n"),
    "git-error": Case("git -C {place} log", b"", 128, b"", b"not a git repository"),
    "ssh-keygen": Case("ssh-keygen -lf {place}/key.pub", b"", 0, b"SHA256:"),
    "ssh-keygen-stdin": Case("ssh-keygen -lf -", b"{key}", 0, b"SHA256:"),
    "ssh-keygen-error": Case("ssh-keygen -lf {place}/tree", b"", 255, b"", b"{place}/tree"),
}


class Outcome(NamedTuple):
    """What a program did."""

    stdout: bytes
    stderr: bytes
    status: int


@pytest.fixture(autouse=True)
def no_git_variables(own_directories: None, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of git's may run the tests: its GIT_DIR must not reach our git, nor must the machine's configuration."""
    for name in [*os.environ]:
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    for name, value in git_variables(place).items():
        monkeypatch.setenv(name, value)


def git_variables(place: Path) -> dict[str, str]:
    """Return the environment in which git knows nothing of this user, this machine and what is above a directory."""
    return {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CEILING_DIRECTORIES": str(place.parent)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tree of files, a repository, a key and a database."""
    directory = tmp_path_factory.mktemp("place")
    make_tree(directory / "tree")
    make_repository(directory / "repository")
    make(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a key", "-f", str(directory / "key")])
    make(["sqlite3", "-bail", str(directory / "data.db")], TABLE.replace(b"select * from nowhere;", b""))
    return directory


def make_tree(top: Path) -> None:
    """Write FILES files of 20 lines, of which every other has the needle, in 20 directories."""
    for number in range(FILES):
        directory = top / f"directory {number % 20}"
        directory.mkdir(parents=True, exist_ok=True)
        lines = (f"{'needle' if line % 2 else 'hay'} {line} {'é' * 40} {number}\n" for line in range(1, 21))
        (directory / f"file {number}").write_text("".join(lines), encoding="utf-8")


def make_repository(directory: Path) -> None:
    """Make a bare repository of COMMITS commits."""
    make(["git", "init", "--quiet", "--bare", "-b", "main", str(directory)])
    stream = b"".join(map(commit, range(COMMITS)))
    make(["git", "-C", str(directory), "fast-import", "--quiet"], stream)


def commit(number: int) -> bytes:
    """Return a commit of one file in git's fast-import language."""
    message = b"Commit number %d\n\n%s\n" % (number, b"It has a few words. " * 20)
    content = b"content %d\n" % number
    who = b"Some Body <body@example.org> %d +0100" % (1_700_000_000 + number)
    return b"commit refs/heads/main\ncommitter %s\ndata %d\n%s\nM 644 inline file-%d\ndata %d\n%s\n" % (
        who,
        len(message),
        message,
        number % 40,
        len(content),
        content,
    )


def make(command: list[str], given: bytes = b"") -> None:
    """Run a command that must succeed, in an environment that is not the user's."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ.update(GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, HOME=os.devnull)
    subprocess.run(command, input=given, env=environ, check=True)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, place: Path) -> Case:
    """One case with its places filled in; skipped where its program is not installed."""
    found = CASES[request.param]
    command = found.command.format(place=place, python=sys.executable)
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"{command.split()[0]} is not installed")
    key = (place / "key.pub").read_bytes()
    given, stderr = found.given.replace(b"{key}", key), found.stderr.replace(b"{place}", os.fsencode(place))
    return found._replace(command=command, given=given, stderr=stderr)


def locally(program: list[str], given: bytes) -> Outcome:
    """Run a program here."""
    done = subprocess.run(program, input=given, capture_output=True, timeout=limit(20), check=False)
    return Outcome(done.stdout, done.stderr, done.returncode)


def outcome(kind: str, viewer: Running, end: Running) -> Outcome:
    """Return what came of a program that ends by itself: stderr is the program end's own on raw addresses."""
    viewer_status, status = viewer.wait(), end.wait()
    assert viewer_status == (status if kind in SESSIONS else 0)
    others, own = (end, viewer) if kind in SESSIONS else (viewer, end)
    assert own_stderr(others.stderr) == b""
    return Outcome(viewer.stdout, own_stderr(own.stderr), status)


@pytest.mark.parametrize("kind", MOST_KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_program_does_the_same_as_here(case: Case, way: str, kind: str) -> None:
    """Given all its input at once, a program writes the same bytes and ends with the same status as run locally."""
    program = case.command.split()
    expected = locally(program, case.given)
    assert expected.status == case.status
    assert case.stdout in expected.stdout
    assert case.stderr in expected.stderr
    with ends(way, kind, program) as (viewer, end):
        viewer.write(case.given)
        viewer.close_stdin()
        assert outcome(kind, viewer, end) == expected


# ---- conversations


class Talk(NamedTuple):
    """A conversation: what is said, and what has come on stdout when it has been answered."""

    program: list[str]
    said: list[tuple[bytes, bytes]]
    farewell: bytes
    status: int


TALKS = {
    "bc": Talk(["bc"], [(b"6*7\n", b"42\n"), (b"x=2^10; x\n", b"1024\n"), (b"x-24\n", b"1000\n")], b"quit\n", 0),
    "sqlite3": Talk(
        ["sqlite3"],
        [
            (b"create table t (n); insert into t values (1), (22); select sum(n) from t;\n", b"23\n"),
            (b"select *\n", b""),
            (b"from t;\n", b"1\n22\n"),
        ],
        b".exit 9\n",
        9,
    ),
    "python": Talk(
        [sys.executable, "-i"],
        [(b"6 * 7\n", b"42\n"), (b"print('a', end='')\n", b"a"), (b"'\\u00e9'.encode()\n", b"b'\\xc3\\xa9'\n")],
        b"raise SystemExit(4)\n",
        4,
    ),
}


def answers(talk: Talk) -> Iterator[tuple[bytes, bytes]]:
    """Yield each thing said with all that has come on stdout when it has been answered."""
    heard = b""
    for words, answer in talk.said:
        heard += answer
        yield words, heard


@pytest.mark.parametrize("kind", MOST_KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TALKS)
def test_a_conversation_goes_back_and_forth(name: str, way: str, kind: str) -> None:
    """Each line is answered before the next is said; the program's own end, with stdin open, ends both commands."""
    talk = TALKS[name]
    if shutil.which(talk.program[0]) is None:
        pytest.skip(f"{talk.program[0]} is not installed")
    with ends(way, kind, talk.program) as (viewer, end):
        for words, heard in answers(talk):
            viewer.write(words)
            wait_until(lambda heard=heard: viewer.stdout == heard, 10, f"{heard!r}; there is {viewer}")
        viewer.write(talk.farewell)
        everything = b"".join(words for words, _ in talk.said) + talk.farewell
        assert outcome(kind, viewer, end) == locally(talk.program, everything)
        assert end.wait() == talk.status


@pytest.mark.parametrize("kind", MOST_KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_is_there_before_anything_is_said(way: str, kind: str) -> None:
    """Python's prompt, which has no line end, is on stderr while it waits; it comes again after each statement."""
    with ends(way, kind, [sys.executable, "-i"]) as (viewer, end):
        prompter = viewer if kind in SESSIONS else end
        prompter.wait_for_message(b">>> ")
        viewer.write(b"6 * 7\n")
        wait_until(lambda: prompter.stderr.endswith(b">>> >>> "), 10, "the second prompt")
        wait_until(lambda: viewer.stdout == b"42\n", 10, "the answer")
        viewer.close_stdin()
        assert (viewer.wait(), end.wait()) == (0, 0)
