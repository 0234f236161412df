"""`run` with `listen`: bytes, signals, prompts and prefixes, the ways to redirect, and what is inherited.

The tests that hold for `serve` with `connect` as well run over both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ends import KINDS, RAW, SESSIONS, WAITS, WAYS, ends, null, over, own_stderr, program_of, shell, waiting_address
from helper_program import AWKWARD, pattern
from support import Running, alive_in_group, helper, wait_until

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = ["INT", "TERM", "HUP", "QUIT"]


def trapping(name: str, status: int) -> list[str]:
    """Return a program that says `ready` and exits with a status of its own when it gets a signal."""
    return shell(f"trap 'exit {status}' {name}; {WAITS}")


def send(command: Running, name: str) -> None:
    """Send a signal to a command."""
    command.process.send_signal(signal.Signals[f"SIG{name}"])


# ---- bytes


@over(SESSIONS)
def test_stdout_and_stderr_are_exact_and_apart(way: str, kind: str) -> None:
    """300,000 bytes each of stdout and stderr, written in turns, arrive on the right descriptor, unchanged."""
    with ends(way, kind, helper("both", 300_000), viewer_options=["-q"] * (way == "serve")) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        said = f"sockstream: listening on {viewer.address}\n".encode() if way == "run" else b""
        assert viewer.stdout == pattern(300_000, 1)
        assert viewer.stderr == said + pattern(300_000, 2)


@over(RAW)
def test_raw_leaves_stderr_where_it_is(way: str, kind: str) -> None:
    """On raw addresses stdout arrives unchanged, and stderr is the program end's own."""
    with ends(way, kind, shell("printf out; printf 'err\\n' >&2")) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == b"out"
        assert own_stderr(viewer.stderr) == b""
        assert own_stderr(end.stderr) == b"err\n"


@over(KINDS)
def test_stdin_is_exact_and_its_end_is_passed_on(way: str, kind: str) -> None:
    """Every byte value goes in and comes back; the viewer's end of file is the program's, and output still follows."""
    data = AWKWARD + pattern(200_000)
    with ends(way, kind, shell("cat; echo end")) as (viewer, end):
        viewer.write(data)
        viewer.close_stdin()
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == data + b"end\n"


@over(KINDS)
def test_output_is_live(way: str, kind: str) -> None:
    """A Python program's print() arrives when it is printed, without flush, while the program sleeps."""
    assert "PYTHONUNBUFFERED" not in os.environ
    with ends(way, kind, helper("tick", 2, 60)) as (viewer, _end):
        viewer.wait_for_output(b"tick 0\n")
        assert viewer.stdout == b"tick 0\n"
        assert viewer.process.poll() is None


# ---- signals


@pytest.mark.parametrize("kind", ["sock", "tcp"])
@pytest.mark.parametrize("name", SIGNALS)
def test_signals_to_run_go_to_the_program(name: str, kind: str) -> None:
    """What people and service managers send to `run` reaches the program, whose status is run's and the viewer's."""
    with ends("run", kind, trapping(name, 41)) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        send(end, name)
        assert end.wait() == 41
        assert viewer.wait() == (41 if kind == "sock" else 0)


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_that_ends_the_program_is_the_status(name: str) -> None:
    """A program without a handler dies of the forwarded signal: 128 + its number at both ends."""
    with ends("run", "sock", shell(WAITS)) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        send(end, name)
        status = 128 + signal.Signals[f"SIG{name}"]
        assert (viewer.wait(), end.wait()) == (status, status)


def test_a_signal_before_there_is_a_viewer_ends_run() -> None:
    """While `run` still dials there is no program: Ctrl-C ends it with 130."""
    with Running("run", "--to", f"{os.environ['XDG_RUNTIME_DIR']}/nobody", "--wait", "60", "--", "true") as end:
        wait_until(lambda: catches(end.pid, signal.SIGTERM), 10, "a command that minds signals")
        send(end, "INT")
        assert end.wait() == 130


def catches(pid: int, signum: int) -> bool:
    """Tell whether a process has a handler of its own for a signal."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    return bool(caught >> (signum - 1) & 1)


@over(SESSIONS)
def test_ctrl_c_at_the_viewer_interrupts_the_program(way: str, kind: str) -> None:
    """SIGINT at `listen` or `connect` is SIGINT for the program; its status is everybody's."""
    with ends(way, kind, trapping("INT", 42)) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        send(viewer, "INT")
        assert (viewer.wait(), end.wait()) == (42, 42)


def test_ctrl_c_at_the_viewer_overtakes_output() -> None:
    """A program that floods a reader who does not read is interrupted all the same."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb") as output,
        ends("run", "sock", helper("flood"), viewer_stdio={"stdout": writing}) as (viewer, end),
    ):
        os.close(writing)
        group = program_of(end)
        assert len(output.read(65536)) == 65536
        send(viewer, "INT")
        wait_until(lambda: not alive_in_group(group), 10, "the end of the program")
        output.read()
        assert (viewer.wait(), end.wait()) == (130, 130)


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_twice_leaves(way: str) -> None:
    """A second SIGINT within 2 s leaves with 130, and the program, which ignores it, is ended."""
    with ends(way, "sock", shell(f"trap '' INT; {WAITS}")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        send(viewer, "INT")
        time.sleep(0.2)  # two of one signal that come at once are one
        send(viewer, "INT")
        assert viewer.wait() == 130
        assert end.wait() == 128 + signal.SIGHUP
        assert b"the viewer has left" in end.stderr


@pytest.mark.slow
def test_ctrl_c_again_after_a_while_is_a_signal_again() -> None:
    """Two SIGINTs more than 2 s apart both go to the program."""
    with ends("run", "sock", shell(f"trap 'echo got' INT; {WAITS}")) as (viewer, _end):
        viewer.wait_for_output(b"ready\n")
        send(viewer, "INT")
        time.sleep(2.2)
        send(viewer, "INT")
        viewer.wait_for_output(b"got\ngot\n")


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_ctrl_c_without_a_program_leaves(name: str) -> None:
    """With nobody there to be interrupted, `listen` ends with 130."""
    with Running("listen", waiting_address("sock")) as viewer:
        assert viewer.address
        send(viewer, name)
        assert viewer.wait() == 130


@over(RAW)
def test_ctrl_c_on_raw_closes(way: str, kind: str) -> None:
    """Raw carries no signals: SIGINT at the viewer closes the connection (130), and the program is ended."""
    with ends(way, kind, shell(WAITS)) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        send(viewer, "INT")
        assert viewer.wait() == 130
        assert end.wait() == 128 + signal.SIGHUP


@over(SESSIONS)
def test_sigterm_at_the_viewer_leaves(way: str, kind: str) -> None:
    """SIGTERM at `listen` or `connect` ends it with 143, and the program with it."""
    with ends(way, kind, shell(WAITS)) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        send(viewer, "TERM")
        assert viewer.wait() == 143
        assert end.wait() == 128 + signal.SIGHUP


# ---- many programs in one terminal


def attached(viewer: Running, *words: str, **popen: object) -> Running:
    """Start `run` towards a viewer."""
    return Running("run", "--to", viewer.address, *words, **popen)


def test_lines_have_their_programs_name() -> None:
    """Stdout lines begin with `NAME| `, stderr lines with `NAME! `; each program's end is told."""
    with Running("listen", waiting_address("sock"), **null()) as viewer:
        with attached(viewer, "--name", "report", "--", *shell("echo one; echo two >&2; exit 3")) as end:
            assert end.wait() == 3
        viewer.wait_for_output(b"report| one\n")
        viewer.wait_for_message(b"report ended with status 3\n")
        assert viewer.stdout == b"report| one\n"
        assert own_stderr(viewer.stderr) == b"report! two\n"


def test_a_second_program_of_a_name_is_numbered() -> None:
    """The second program of a name is NAME#2 while the first is there, and NAME after that."""
    with Running("listen", waiting_address("sock"), **null()) as viewer:
        with attached(viewer, "--", *shell(WAITS)) as first:
            viewer.wait_for_output(b"sh| ready\n")
            with attached(viewer, "--", *shell("echo two")) as second:
                assert second.wait() == 0
            viewer.wait_for_output(b"sh#2| two\n")
            send(first, "TERM")
            assert first.wait() == 143
        viewer.wait_for_message(b"sh was ended by SIGTERM\n")
        with attached(viewer, "--", *shell("echo three")) as third:
            assert third.wait() == 0
        viewer.wait_for_output(b"sh| three\n")


def test_stdin_goes_to_the_program_attached_longest() -> None:
    """The first program gets the viewer's input until it ends, then the second does."""
    with Running("listen", waiting_address("sock")) as viewer:
        once = shell("echo here; read line; echo got $line")
        with attached(viewer, "--name", "a", "--", *once) as first:
            viewer.wait_for_output(b"a| here\n")
            with attached(viewer, "--name", "b", "--", *once) as second:
                viewer.wait_for_output(b"b| here\n")
                viewer.write(b"one\n")
                viewer.wait_for_output(b"a| got one\n")
                viewer.wait_for_message(b"a ended with status 0")
                viewer.write(b"two\n")
                viewer.wait_for_output(b"b| got two\n")
                assert (first.wait(), second.wait()) == (0, 0)


def test_end_of_input_reaches_every_program() -> None:
    """The viewer's end of file is everybody's: of those attached and of those that come later."""
    with Running("listen", waiting_address("sock")) as viewer:
        with attached(viewer, "--name", "a", "--", *shell("cat; echo end")) as first:
            viewer.wait_for_message(b"a is attached")
            with attached(viewer, "--name", "b", "--", *shell("cat; echo end")) as second:
                viewer.wait_for_message(b"b is attached")
                viewer.write(b"text\n")
                viewer.close_stdin()
                assert (first.wait(), second.wait()) == (0, 0)
        with attached(viewer, "--name", "c", "--", *shell("cat; echo end")) as third:
            assert third.wait() == 0
        viewer.wait_for_output(b"c| end\n")
        assert sorted(viewer.stdout.splitlines()) == [b"a| end", b"a| text", b"b| end", b"c| end"]


def test_a_prompt_is_shown_before_its_line_ends() -> None:
    """An unfinished line appears while the program waits for the answer, and goes on after it."""
    with Running("listen", waiting_address("sock")) as viewer:
        program = shell("printf 'name? '; read name; echo hello $name; printf last")
        with attached(viewer, "--name", "p", "--", *program) as end:
            viewer.wait_for_output(b"p| name? ")
            viewer.write(b"bob\n")
            assert end.wait() == 0
        viewer.wait_for_message(b"p ended")
        assert viewer.stdout == b"p| name? hello bob\np| last\n"


def test_another_programs_line_ends_a_prompt() -> None:
    """A line of another program never stands behind a prompt: the prompt's line is ended first."""
    with Running("listen", waiting_address("sock")) as viewer:
        with attached(viewer, "--name", "p", "--", *shell("printf 'name? '; read name; echo hello $name")) as first:
            viewer.wait_for_output(b"p| name? ")
            with attached(viewer, "--name", "q", "--", *shell("echo between")) as second:
                assert second.wait() == 0
            viewer.wait_for_output(b"between\n")
            viewer.write(b"bob\n")
            assert first.wait() == 0
        viewer.wait_for_message(b"p ended")
        assert viewer.stdout == b"p| name? \nq| between\np| hello bob\n"


def test_timestamps_stand_before_the_name() -> None:
    """With --timestamps each line begins with the time of day, to the millisecond."""
    with Running("listen", "--timestamps", waiting_address("sock"), **null()) as viewer:
        with attached(viewer, "--name", "t", "--", *shell("echo one; echo two")) as end:
            assert end.wait() == 0
        viewer.wait_for_message(b"t ended")
        assert re.fullmatch(rb"(\d\d:\d\d:\d\d\.\d{3} t\| (one|two)\n){2}", viewer.stdout)


HALVES = """
import os, sys, time
for number in range(1000):
    os.write(1, b"%s %d " % (sys.argv[1].encode(), number))
    time.sleep(0.0002)
    os.write(1, b"x" * (number % 200) + b"z\\n")
"""


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_lines_of_several_programs_never_mix(kind: str) -> None:
    """Four programs write 1,000 lines each at once, each line in two pieces: nearly every one comes whole, in order.

    Not all, because a line that stands unfinished for 0.1 s is shown as it is, which happens on a busy machine.
    """
    with Running("listen", waiting_address(kind), **null()) as viewer, contextlib.ExitStack() as stack:
        programs = [[sys.executable, "-c", HALVES, f"program{number}"] for number in range(4)]
        several = [stack.enter_context(attached(viewer, "--", *program)) for program in programs]
        for end in several:
            assert end.wait() == 0
        wait_until(lambda: viewer.stdout.count(b"z\n") == 4000, 10, "4,000 lines")
        whole = [re.fullmatch(rb"[^|]+\| (program\d) (\d+) (x*)z", line) for line in viewer.stdout.splitlines()]
        seen: dict[bytes, list[int]] = {}
        for match in filter(None, whole):
            assert len(match[3]) == int(match[2]) % 200
            seen.setdefault(match[1], []).append(int(match[2]))
        assert sum(map(len, seen.values())) > 3960
        assert all(numbers == sorted(set(numbers)) for numbers in seen.values())


# ---- the four ways to redirect: output only, input only, both, dialling and waiting


@over(KINDS)
def test_only_out_leaves_stdin_local(way: str, kind: str, tmp_path: Path) -> None:
    """With --only out the program reads the program end's own stdin, and its output goes to the viewer."""
    local = tmp_path / "input"
    local.write_bytes(b"local\n")
    with local.open("rb") as stdin:
        program = shell("read line; echo got $line; echo err >&2")
        with ends(way, kind, program, options=["--only", "out"], stdio={"stdin": stdin}) as (viewer, end):
            viewer.close_stdin()
            assert end.wait() == 0
            assert viewer.wait() == 0
            assert viewer.stdout == b"got local\n"
            assert own_stderr((viewer if kind in SESSIONS else end).stderr) == b"err\n"


@over(KINDS)
def test_only_in_leaves_the_outputs_local(way: str, kind: str) -> None:
    """With --only in the viewer's input is the program's, whose outputs stay the program end's own."""
    with ends(way, kind, shell("cat; echo err >&2"), options=["--only", "in"]) as (viewer, end):
        viewer.write(AWKWARD)
        viewer.close_stdin()
        assert (end.wait(), viewer.wait()) == (0, 0)
        assert end.stdout == AWKWARD
        assert own_stderr(end.stderr) == b"err\n"
        assert viewer.stdout == own_stderr(viewer.stderr) == b""


@over(KINDS)
def test_merge_stderr_keeps_the_order(way: str, kind: str) -> None:
    """With --merge-stderr both outputs are one stream, in the order in which they were written."""
    program = shell("for n in 1 2 3; do echo out $n; echo err $n >&2; done")
    with ends(way, kind, program, options=["--merge-stderr"]) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == b"".join(b"out %d\nerr %d\n" % (n, n) for n in (1, 2, 3))


@over(["sock", "tcp"])
def test_env_and_chdir_are_the_programs(way: str, kind: str, tmp_path: Path) -> None:
    """--env sets the program's variables, also PATH for finding it; --chdir is where it runs."""
    (tmp_path / "own-program").write_text("#!/bin/sh\necho $COLOUR; pwd\n")
    (tmp_path / "own-program").chmod(0o755)
    options = ["--env", "COLOUR=blue=green", "--env", f"PATH={tmp_path}:{os.environ['PATH']}", "--chdir", str(tmp_path)]
    with ends(way, kind, ["own-program"], options=options) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == f"blue=green\n{tmp_path}\n".encode()


def test_chdir_does_not_move_the_token_file(tmp_path: Path) -> None:
    """A relative --token-file is looked for where the command was started, not in --chdir."""
    (tmp_path / "token").write_text("ab" * 32)
    (tmp_path / "token").chmod(0o600)
    with Running("listen", "--once", "--token-file", "token", waiting_address("sock"), cwd=tmp_path) as viewer:
        options = ["--token-file", "token", "--chdir", "/"]
        with Running("run", "--to", viewer.address, *options, "--", "pwd", cwd=tmp_path) as end:
            assert end.wait() == 0
        assert viewer.wait() == 0
        assert viewer.stdout == b"/\n"


def test_chdir_to_nowhere_is_125() -> None:
    """A directory that cannot be entered is said, before anything is dialled."""
    with Running("run", "--to", "/nobody", "--chdir", "/does/not/exist", "--", "true") as end:
        assert end.wait() == 125
        assert b"cannot enter '/does/not/exist'" in end.stderr


# ---- what is inherited


def test_a_closed_stdin_stays_closed_for_the_program() -> None:
    """`run <&- --only out`: no socket of ours becomes the program's stdin."""
    program = shell("readlink /proc/self/fd/0 || echo closed")
    close = {"stdin": None, "preexec_fn": lambda: os.close(0)}
    with ends("run", "sock", program, options=["--only", "out"], stdio=close) as (viewer, end):
        assert end.wait() == 0
        assert viewer.wait() == 0
        assert viewer.stdout in (b"closed\n", b"/dev/null\n")


@over(["sock", "tcp"])
def test_a_viewer_without_stdin_works(way: str, kind: str) -> None:
    """A viewer whose stdin is closed shows everything; the program sees an end of file."""
    close = {"stdin": None, "preexec_fn": lambda: os.close(0)}
    with ends(way, kind, shell("cat; echo out"), viewer_stdio=close) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == b"out\n"


@pytest.mark.parametrize("way", WAYS)
def test_all_three_may_be_closed(way: str) -> None:
    """Both ends work without any stdin, stdout and stderr, and the program's status comes through."""

    def close() -> None:
        os.closerange(0, 3)

    bare = {"stdin": None, "preexec_fn": close}
    path = f"{os.environ['XDG_RUNTIME_DIR']}/socket"
    address = f"sock+unix://{path}"
    waits = ["listen", "--once", address] if way == "run" else ["serve", "--once", address, "--", "sh", "-c", "exit 6"]
    dials = ["run", "--to", address, "--", "sh", "-c", "exit 6"] if way == "run" else ["connect", address]
    with Running(*waits, **bare) as first:
        wait_until(lambda: os.path.exists(path), 10, "a listening socket")
        with Running(*dials, **bare) as second:
            assert (first.wait(), second.wait()) == (6, 6)


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_output_to_a_file_is_appended(kind: str, tmp_path: Path) -> None:
    """A viewer whose stdout is a file opened for append adds to it, and does not begin at its start."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    with (
        path.open("ab") as log,
        ends("run", kind, shell("echo new"), viewer_stdio={"stdout": log, **null()}) as (viewer, end),
    ):
        assert (viewer.wait(), end.wait()) == (0, 0)
    assert path.read_bytes() == b"before\nnew\n"


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_stdin_from_a_file_keeps_the_position(kind: str, tmp_path: Path) -> None:
    """A viewer whose stdin is a file read so far goes on from there."""
    path = tmp_path / "data"
    path.write_bytes(b"header\n" + pattern(100_000))
    with path.open("rb", buffering=0) as data:
        data.seek(7)
        with ends("run", kind, ["cat"], viewer_stdio={"stdin": data}) as (viewer, end):
            assert (viewer.wait(), end.wait()) == (0, 0)
            assert viewer.stdout == pattern(100_000)


@over(["sock", "tcp"])
def test_a_socket_may_be_stdin_and_stdout(way: str, kind: str) -> None:
    """A viewer whose stdin and stdout are one socket passes everything, more than the socket holds, both ways."""
    data = pattern(1_000_000)
    ours, theirs = socket.socketpair()
    with ours, theirs, ends(way, kind, ["cat"], viewer_stdio={"stdin": theirs, "stdout": theirs}) as (viewer, end):
        theirs.close()
        received = exchange(ours, data)
        assert received == data
        assert (viewer.wait(), end.wait()) == (0, 0)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send all of data and half-close, receiving meanwhile; return what came until the end."""
    sock.setblocking(False)
    view, received = memoryview(data), bytearray()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if view:
            try:
                view = view[sock.send(view[:65536]) :]
                if not view:
                    sock.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                pass
        try:
            piece = sock.recv(65536)
        except BlockingIOError:
            time.sleep(0.001)
            continue
        if not piece:
            break
        received += piece
    return bytes(received)


class Inherited:
    """A pipe to be inherited, and a second handle on the very open file that the command gets."""

    def __init__(self, *, reads: bool) -> None:
        self.reading, self.writing = os.pipe()
        self.theirs = self.reading if reads else self.writing
        self.before = self.flags

    @property
    def flags(self) -> int:
        """The flags of the open file."""
        return fcntl.fcntl(self.theirs, fcntl.F_GETFL)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reading)
        os.close(self.writing)


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_flags_of_inherited_pipes_never_change(kind: str) -> None:
    """O_NONBLOCK of a pipe that is the viewer's stdin, stdout or stderr is as it was, while it runs and after."""
    three = [Inherited(reads=True), Inherited(reads=False), Inherited(reads=False)]
    stdio = dict(zip(("stdin", "stdout", "stderr"), [each.theirs for each in three], strict=True))
    with (
        Running("serve", "--once", waiting_address(kind), "--", *helper("lines-in")) as end,
        Running("connect", end.address, **stdio) as viewer,
    ):
        os.write(three[0].writing, b"text\n")
        assert os.read(three[1].reading, 100) == b"got text\n"
        assert [each.flags for each in three] == [each.before for each in three]
        viewer.process.terminate()
        viewer.wait()
        assert [each.flags for each in three] == [each.before for each in three]
        end.wait()
    for each in three:
        each.close()


@pytest.mark.parametrize("way", WAYS)
def test_flags_of_a_socket_and_a_terminal_never_change(way: str) -> None:
    """The same for a socket as stdout, and for a terminal as stdin."""
    ours, theirs = socket.socketpair()
    master, slave = pty.openpty()
    before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (theirs.fileno(), slave)]
    with ours, theirs:
        stdio = {"stdin": slave, "stdout": theirs}
        with ends(way, "sock", helper("lines-in"), viewer_stdio=stdio) as (_viewer, _end):
            os.write(master, b"text\n")
            assert ours.recv(100) == b"got text\n"
            assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (theirs.fileno(), slave)] == before
        assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (theirs.fileno(), slave)] == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_what_a_program_end_leaves_local_keeps_its_flags(kind: str) -> None:
    """With --only in, the program writes to run's own stdout, whose flags stay as they were."""
    out = Inherited(reads=False)
    with ends("run", kind, helper("lines-in"), options=["--only", "in"], stdio={"stdout": out.theirs}) as (viewer, end):
        viewer.write(b"text\n")
        assert os.read(out.reading, 100) == b"got text\n"
        assert out.flags == out.before
        assert program_of(end)
        viewer.close_stdin()
        assert end.wait() == 0
        assert out.flags == out.before
    out.close()


def test_descriptors_of_ours_do_not_reach_the_program() -> None:
    """The program has its stdin, stdout and stderr open, and nothing of sockstream's."""
    listing = [sys.executable, "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"]
    with ends("run", "sock", listing) as (viewer, end):
        assert end.wait() == 0
        assert viewer.wait() == 0
        assert viewer.stdout == b"[0, 1, 2, 3]\n"  # 3 is the listing's own


def test_popen_is_given_what_it_needs() -> None:
    """A viewer may be run with nothing but a pipe for its output, as scripts do."""
    with Running("serve", "--once", waiting_address("sock"), "--", "echo", "text") as end:
        done = subprocess.run(
            [sys.executable, "-m", "sockstream", "connect", end.address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"text\n", b"")
