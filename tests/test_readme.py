"""The README: its transcript is what two real terminals show, and each of its command lines is run here.

Rules: the lines come out of the README itself, and a line that no test takes out fails `test_every_line_is_run`. Only
what belongs to a machine is replaced: the port, the name of the other machine, and the directory of the socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from support import Running, free_port, limit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/README.md", "examples/README.md")}
LINKING = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", *PAGES)

REPORT = b"Which month? Orders in May\n  week 1    17\n  week 2    34\n  week 3    51\n  week 4    68\n"
WARNING = b"week 4 is not complete\n"

OUTPUT_ONLY = (
    "sockstream listen --once >report.txt",
    "echo May | sockstream run --only out -- examples/legacy_report.py",
)
INPUT_ONLY = (r"printf 'pear\napple\n' | sockstream listen --once", "sockstream run --only in -- sort")
DIALLING = ("sockstream listen --timestamps", "sockstream run -- examples/legacy_report.py")
WAITING = ("sockstream serve :7411 -- examples/legacy_report.py", "sockstream connect :7411")
RAW = ("sockstream serve tcp://127.0.0.1:7411 -- examples/legacy_report.py", "nc -N 127.0.0.1 7411")
CARRYING = ("sockstream token --show | ssh other sockstream token --set",)
TWO_MACHINES = ("sockstream serve 0.0.0.0:7411 -- examples/legacy_report.py", "sockstream connect desk:7411")
EXAMPLES = ("sockstream run -- ./legacy_report.py",)
# Lines that other files' tests run, as the words stand there; `make test` is what runs all this.
ELSEWHERE = {"make demo": 'test_demo.py: ["make", "demo"]', "pipx install .": 'test_cli.py: "pipx install ."'}
RUN_HERE = {*OUTPUT_ONLY, *INPUT_ONLY, *DIALLING, *WAITING, *RAW, *CARRYING, *TWO_MACHINES, *EXAMPLES}


def blocks(page: str, language: str) -> list[list[str]]:
    """Return the lines of a page's fenced blocks in a language, without their comments."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [[line.partition("  #")[0] for line in text.splitlines()] for text in found]


def test_every_line_is_run() -> None:
    """The README's command lines are those of the tests below, in pairs of terminals as they stand there."""
    pairs = {OUTPUT_ONLY, INPUT_ONLY, DIALLING, WAITING, RAW, CARRYING, TWO_MACHINES}
    assert {tuple(block) for block in blocks("README.md", "sh")} == {
        *pairs,
        ("make demo", "make test"),
        ("pipx install .",),
    }
    assert blocks("examples/README.md", "sh") == [list(EXAMPLES)]
    assert blocks("docs/README.md", "sh") == []
    for words in ELSEWHERE.values():
        file, _, line = words.partition(": ")
        assert line in (ROOT / "tests" / file).read_text()


def test_links_lead_somewhere() -> None:
    """Every link from one page of the project to another has its file."""
    for name in LINKING:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


# ---- the transcript


@pytest.fixture(autouse=True)
def installed() -> None:
    """Have `sockstream` and `python3` in PATH be those that are tested."""
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"


class Typist:
    """A terminal of 80 columns with bash in it, in the source's directory; `screen` has what it showed."""

    def __init__(self) -> None:
        environ = {**os.environ, "PS1": "$ ", "TERM": "dumb"}
        self._bash = pexpect.spawn(
            "bash", ["--norc", "--noprofile"], cwd=str(ROOT), env=environ, encoding="utf-8", timeout=limit(20)
        )
        self.screen = ""
        self.wait_for("$ ")

    def type(self, line: str) -> None:
        """Type a line."""
        self._bash.sendline(line)

    def wait_for(self, text: str) -> None:
        """Read on until the terminal shows the text."""
        self._bash.expect_exact(text)
        self.screen += (self._bash.before + self._bash.after).replace("\r\n", "\n")

    def close(self) -> None:
        """Interrupt what runs, and leave bash."""
        self._bash.sendcontrol("c")
        self.wait_for("$ ")
        self.type("exit")
        self._bash.expect(pexpect.EOF)
        self._bash.close()


@pytest.fixture
def typists() -> Iterator[tuple[Typist, Typist]]:
    """Give two terminals."""
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(contextlib.closing(Typist())) for _ in range(2))


def test_the_transcript_is_true(typists: tuple[Typist, Typist]) -> None:
    """Typing what the README types, two terminals show to the letter what it shows."""
    viewer, runner = typists
    (listen, *_shown), (run, *_rest) = blocks("README.md", "console")
    viewer.type(listen.removeprefix("$ "))
    viewer.wait_for("default.sock\r\n")
    runner.type(run.removeprefix("$ "))
    viewer.wait_for("Which month? ")
    viewer.type("May")
    viewer.wait_for("ended with status 3\r\n")
    runner.wait_for("$ ")
    runner.type("echo $?")
    runner.wait_for("$ ")
    transcripts = re.findall(r"^```console\n(.*?)^```$", PAGES["README.md"], re.MULTILINE | re.DOTALL)
    assert viewer.screen.replace(os.environ["XDG_RUNTIME_DIR"], "/run/user/1000") == transcripts[0]
    assert runner.screen == transcripts[1] + "$ "


# ---- the recipes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory for the commands, with the examples in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@contextlib.contextmanager
def terminal(line: str, folder: Path, **environ: str) -> Iterator[Running]:
    """Run a line in bash as a terminal would; at the end of the block what still runs of it is ended."""
    settings = {**os.environ, **environ}
    with Running("-c", line, command=["bash"], cwd=folder, env=settings, start_new_session=True) as shell:
        try:
            yield shell
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)


@contextlib.contextmanager
def both(lines: tuple[str, str], folder: Path, **machine: str) -> Iterator[tuple[Running, Running]]:
    """Run the two lines of a recipe, the second when the first one waits; `machine` replaces words in both."""
    words = {"7411": str(free_port()), **machine}
    waiting, dialling = (re.sub("|".join(words), lambda found: words[found[0]], line) for line in lines)
    with terminal(waiting, folder) as first:
        assert first.address
        with terminal(dialling, folder) as second:
            yield first, second


def test_output_only(folder: Path) -> None:
    """The file gets the report, the program its input from where it runs; both ends have its status."""
    with both(OUTPUT_ONLY, folder) as (viewer, program):
        assert (program.wait(), viewer.wait()) == (3, 3)
        assert (folder / "report.txt").read_bytes() == REPORT
        assert viewer.stderr.endswith(WARNING)
        assert (program.stdout, program.stderr) == (b"", b"")


def test_input_only(folder: Path) -> None:
    """The sorted lines are where the program runs, and nothing is at the viewer."""
    with both(INPUT_ONLY, folder) as (viewer, program):
        assert (program.wait(), viewer.wait()) == (0, 0)
        assert (program.stdout, program.stderr, viewer.stdout) == (b"apple\npear\n", b"", b"")


def test_both_dialling(folder: Path) -> None:
    """The viewer shows time, name and line, answers the question, and goes on waiting."""
    with both(DIALLING, folder) as (viewer, program):
        viewer.wait_for_output(b"Which month? ")
        viewer.write(b"May\n")
        assert program.wait() == 3
        viewer.wait_for_message(b"legacy_report.py ended with status 3")
        shown = re.sub(rb"(?m)^\d\d:\d\d:\d\d\.\d{3} legacy_report\.py\| ", b"", viewer.stdout)
        assert shown == REPORT
        assert viewer.process.poll() is None


def test_both_waiting(folder: Path) -> None:
    """Two viewers in turn get a program each, and its status."""
    with both(WAITING, folder) as (server, first):
        assert_report(first)
        with terminal(f"sockstream connect {server.address}", folder) as second:
            assert_report(second)


def assert_report(viewer: Running) -> None:
    """Answer the question at a viewer of one program, and check what it shows."""
    viewer.wait_for_output(b"Which month? ")
    viewer.write(b"May\n")
    assert (viewer.wait(), viewer.stdout) == (3, REPORT)
    assert re.fullmatch(rb"(sockstream: listening on \S+\n)?" + WARNING, viewer.stderr)


@pytest.mark.skipif(shutil.which("nc") is None, reason="netcat is not installed")
def test_raw(folder: Path) -> None:
    """netcat gets the report; the warning and the word about the open port stay at the server."""
    with both(RAW, folder) as (server, netcat):
        netcat.wait_for_output(b"Which month? ")
        netcat.write(b"May\n")
        netcat.close_stdin()
        assert (netcat.wait(), netcat.stdout) == (0, REPORT)
        server.wait_for_message(WARNING)
        assert b"any user or web page on this machine can reach it" in server.stderr.replace(
            server.address.encode(), b"it"
        )


def test_the_token_is_carried(folder: Path) -> None:
    """After the line both homes have the same token; ssh is one that only changes the home."""
    ssh = folder / "ssh"
    ssh.write_text(f'#!/bin/sh\n[ "$1" = other ] && shift && XDG_CONFIG_HOME={folder}/other exec "$@"\n')
    ssh.chmod(0o755)
    with terminal(CARRYING[0], folder, PATH=f"{folder}:{os.environ['PATH']}") as shell:
        assert shell.wait() == 0
        assert shell.stdout == f"the token is kept in {folder}/other/sockstream/token\n".encode()
    own = Path(os.environ["XDG_CONFIG_HOME"], "sockstream/token")
    assert (folder / "other/sockstream/token").read_bytes() == own.read_bytes()


def own_address() -> str:
    """Return this machine's own address in its network, or loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # which sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def test_two_machines(folder: Path) -> None:
    """Over this machine's own address in the network, hence in TLS, the viewer gets the report."""
    with both(TWO_MACHINES, folder, desk=own_address()) as (_server, viewer):
        assert_report(viewer)


def test_the_examples_page(tmp_path: Path) -> None:
    """The line of examples/README.md works from that folder."""
    with terminal("sockstream listen --once", tmp_path) as viewer:
        assert viewer.address
        with terminal(EXAMPLES[0], ROOT / "examples") as program:
            assert_report(viewer)
            assert program.wait() == 3
