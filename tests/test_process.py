"""Real programs are started, watched, signalled and reaped by the process layer.

What depends on the state of the parent (closed stdio, ignored signals, a terminal) runs in a Python of its own,
through `python` and `python_under_terminal`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sockstream import process as process_module
from sockstream.errors import ProgramError
from sockstream.loop import Loop
from sockstream.process import PIPE_SIZES, STEPS, Ladder, Process, start, watch_end
from sockstream.records import How, Status
from support import alive_in_group, helper, limit, processes, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Program = Callable[..., Process]

PIPES: dict[str, Any] = {"stdin": "pipe", "stdout": "pipe", "stderr": "pipe"}
SH = ("/bin/sh", "-c")
FAST = ((0, signal.SIGHUP), (0.1, signal.SIGTERM), (0.2, signal.SIGKILL))


@pytest.fixture
def program() -> Iterator[Program]:
    """Call this to start a program on pipes; when the test is over its group is killed and all is closed."""
    started: list[Process] = []

    def program(*args: str | Path, **options: Any) -> Process:
        started.append(start(args, **{"environ": os.environ, **PIPES, **options}))
        return started[-1]

    yield program
    for process in started:
        process.signal(signal.SIGKILL)
        wait_until(process.reap, 10, "the end of a killed program")
        process.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop."""
    loop = Loop()
    yield loop
    loop.close()


def run_until(loop: Loop, done: Callable[[], object]) -> None:
    """Run the loop until `done()` is true; AssertionError after limit(20)."""
    wait_until(lambda: run_for(loop, 0.002) or done(), 20, "what the loop does")


def run_for(loop: Loop, seconds: float) -> None:
    """Run the loop for some seconds."""
    loop.call_later(seconds, loop.stop)
    loop.run()


def read(fd: int | None, until: bytes | None = None) -> bytes:
    """Read one of our ends to its end of file, or byte by byte until it ends with these bytes."""
    assert fd is not None
    data = b""
    while until is None or not data.endswith(until):
        assert select.select([fd], [], [], limit(20))[0], data
        piece = os.read(fd, 1 if until else 1 << 20)
        if not piece:
            break
        data += piece
    return data


def end_of(process: Process) -> Status:
    """Wait for the end of a program and return what `poll` says."""
    status: Status = wait_until(process.poll, 20, f"the end of {process.args}")
    return status


def state_of(pid: int) -> str:
    """The letter of a process's state, or nothing when there is no such process."""
    return "".join(each.state for each in processes() if each.pid == pid)


def executable(path: Path, text: bytes, mode: int = 0o755) -> Path:
    """Write a file with these permissions."""
    path.write_bytes(text)
    path.chmod(mode)
    return path


def refusal(*args: str | Path, **options: Any) -> ProgramError:
    """The error with which `start` refuses; it has to be one line that names the program and gives advice."""
    with pytest.raises(ProgramError) as caught:
        start(args, **{"environ": os.environ, **PIPES, **options})
    message = str(caught.value)
    assert message.startswith(f"cannot start {str(args[0])!r}: ") and "; " in message
    assert "\n" not in message and len(message) < 300
    return caught.value


PRELUDE = """
import os, signal, sys, time
from sockstream.loop import Loop
from sockstream.process import *
def go(*args, **options):
    pipes = dict(stdin="inherit", stdout="inherit", stderr="inherit")
    return start(args, environ=os.environ, **{**pipes, **options})
def end(process, close=True):
    while process.poll() is None:
        time.sleep(0.005)
    if close:
        process.close()
    return process.reap()
"""


def python(script: str, before: str = "", after: str = "", **options: Any) -> bytes:
    """Run a script in a Python of its own, shell text round it, and return its stdout; it must end well."""
    command = f"{before} exec {shlex.join([sys.executable, '-W', 'error', '-c', PRELUDE + script])} {after}"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, timeout=limit(30), check=False, **options)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def python_under_terminal(script: str, data: bytes = b"") -> bytes:
    """Run a script as leader of a terminal's session, type `data`, return what the terminal shows."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-W", "error", "-c", PRELUDE + script])
    shown = b""
    with open(terminal, "r+b", buffering=0) as file:
        file.write(data)
        while select.select([file], [], [], limit(20))[0]:
            try:
                shown += file.read(1000)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        else:
            os.killpg(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == 0, shown
    return shown


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (("exit", 0), "ended with status 0"),
        (("exit", 255), "ended with status 255"),
        (("signal", "TERM"), "was ended by SIGTERM"),
        (("signal", "SEGV"), "was ended by SIGSEGV"),
        (("signal", "RTMAX"), "was ended by SIGRTMAX"),
    ],
)
def test_status_of_a_program(program: Program, mode: tuple[str, Any], said: str) -> None:
    """A program's own status or signal arrives, before and after it is reaped."""
    exited = mode[0] == "exit"
    value = mode[1] if exited else signal.Signals[f"SIG{mode[1]}"]
    process = program(*helper(*mode))
    for status in end_of(process), process.reap(), process.poll():
        assert status is not None
        assert (status.how, status.value) == (How.EXITED if exited else How.SIGNALED, value)
        assert status.describe() == said


def test_times(program: Program) -> None:
    """The times are those of the program and the children it waited for, and reaping changes nothing."""
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    process = program(*SH, '"$0" -c "$1"; sleep 0.2', sys.executable, burn)
    before, after = end_of(process), process.reap()
    assert after is not None
    assert after.elapsed == before.elapsed >= 0.5
    assert before.user + before.system >= 0.28
    assert after == before


def test_streams(program: Program) -> None:
    """Bytes pass and end of file both ways; stderr is apart, or in the order written merged into stdout."""
    process = program(*SH, "cat; echo problem >&2")
    assert process.stdin is not None
    os.write(process.stdin, b"\0\xff data")
    os.close(process.stdin)
    process.stdin = None
    assert (read(process.stdout), read(process.stderr)) == (b"\0\xff data", b"problem\n")
    process = program(*helper("flood"))
    process.close()
    assert end_of(process).exit_code == 128 + signal.SIGPIPE, "it is ignored by Python, and must not be here"
    process = program(*SH, "echo 1; echo 2 >&2; echo 3", stderr="merge")
    assert process.stderr is None
    assert read(process.stdout) == b"1\n2\n3\n"
    assert python("end(go('/bin/sh', '-c', 'cat; echo 2 >&2', stderr='merge'))", input=b"1\n") == b"1\n2\n"


def test_our_ends_of_the_pipes(program: Program) -> None:
    """They have their sizes, do not block, are not inherited; the program's ends do block."""
    blocking = "import os; print([os.get_blocking(fd) for fd in (0, 1, 2)])"
    process = program(sys.executable, "-c", blocking)
    for fd, size in zip((process.stdin, process.stdout, process.stderr), PIPE_SIZES, strict=True):
        assert fd is not None and fd > 2
        assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == size
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    assert read(process.stdout) == b"[True, True, True]\n"


def test_no_descriptor_leaks_into_the_program() -> None:
    """A program has descriptors 0, 1 and 2 alone, and one that was made inheritable on purpose."""
    look = "import os\nfor n in os.listdir('/proc/self/fd'):\n try: os.fstat(int(n)); print(n)\n except OSError: 0"
    script = (
        f"first = go('cat', stdin='pipe', stdout='pipe', stderr='pipe')\nend(go({sys.executable!r}, '-c', {look!r}))\n"
        "first.signal(9); end(first)"
    )
    # subprocess closes everything else in the shell that starts it.
    assert sorted(python(script).split()) == [b"0", b"1", b"2"]
    assert sorted(python(script, before="exec 7</dev/null;").split()) == [b"0", b"1", b"2", b"7"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_own_stdio_closed(tmp_path: Path, closed: str) -> None:
    """With our stdio closed the pipes do not take its place, and end up as the program's stdio all the same."""
    script = f"""
p = go('/bin/sh', '-c', 'cat; echo err >&2', stdin='pipe', stdout='pipe', stderr='pipe')
assert min(p.stdin, p.stdout, p.stderr) > 2
os.write(p.stdin, b'in')
os.close(p.stdin)
p.stdin = None
status = end(p, close=False).value
said = os.read(p.stdout, 99), os.read(p.stderr, 99), status
with open({str(tmp_path / "said")!r}, 'w') as file:
    file.write(repr(said))"""
    assert python(script, after=closed) == b""
    assert (tmp_path / "said").read_text() == "(b'in', b'err\\n', 0)"


def test_signal_dispositions() -> None:
    """What we ignore or block is back to normal in the program, except SIGHUP, which stays as nohup set it."""
    script = (
        "ignored = 'INT QUIT TERM PIPE XFSZ HUP'.split()\n"
        "for name in ignored: signal.signal(signal.Signals['SIG' + name], signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})\n"
        "end(go('grep', '-E', 'SigBlk|SigIgn', '/proc/self/status'))"
    )
    masks = dict(line.split() for line in python(script).splitlines())
    assert int(masks[b"SigBlk:"], 16) == 0
    ignored = int(masks[b"SigIgn:"], 16)
    wanted = signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP
    assert [number for number in wanted if ignored >> number - 1 & 1] == [signal.SIGHUP]


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not in PATH, or a path where nothing is, gives 127; the empty name is never found."""
    (tmp_path / "dangling").symlink_to("nothing")
    for name in "no-such-program", "", tmp_path / "nothing", tmp_path / "dangling":
        assert refusal(name).status == 127
    monkeypatch.chdir(tmp_path)
    executable(tmp_path / "here", b"#!/bin/sh\n")
    error = refusal("here")
    assert error.status == 127 and "./here" in str(error)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("plain", "chmod +x"),
        ("", "directory"),
        ("plain/below", "Not a directory"),
        ("foreign", "machine"),
        ("windows", r"#!/bin/sh\r"),  # shown as it is written, or nobody would see what is wrong with it
    ],
)
def test_cannot_be_executed(tmp_path: Path, name: str, advice: str) -> None:
    """What is there but cannot be executed gives 126 and says why."""
    executable(tmp_path / "plain", b"echo no\n", 0o644)
    executable(tmp_path / "foreign", b"\x7fELF\2\1\1" + bytes(99))
    executable(tmp_path / "windows", b"#!/bin/sh\r\necho no\r\n")
    error = refusal(f"{tmp_path}/{name}")
    assert error.status == 126 and advice in str(error)


def test_argument_list_too_long() -> None:
    """One argument, or all together, that the system cannot pass on give 126 and a line without them."""
    for args in ["x" * 200_000], ["x" * 100_000] * 100:
        error = refusal("echo", *args)
        assert error.status == 126 and "arguments" in str(error)


def test_no_start_leaves_no_descriptor() -> None:
    """Running out of descriptors half-way is our own failure, 125; misuse is a ValueError; no pipe stays."""
    os.close(lowest := os.dup(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 3, hard))
    try:
        error = refusal("/bin/true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.status == 125 and "ulimit -n" in str(error)
    for args, reason in ([], "empty"), (["/bin/echo", "a\0b"], "null"):
        with pytest.raises(ValueError, match=reason):
            start(args, environ=os.environ, **PIPES)


def test_script_without_interpreter_line(program: Program, tmp_path: Path) -> None:
    """It is run by the shell as execvp does, with its arguments, by path and by name."""
    executable(tmp_path / "bare", b'echo "$#" "$1" "$2"\n')
    assert read(program(tmp_path / "bare", "a b", "").stdout) == b"2 a b \n"
    environ = {"PATH": f"{tmp_path}:/bin"}
    assert read(program("bare", "c", "d", environ=environ).stdout) == b"2 c d\n"


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_python_file_that_cannot_be_executed(program: Program, tmp_path: Path, mode: int) -> None:
    """This interpreter runs a .py file without execute permission or without #! line, never the shell."""
    path = executable(tmp_path / "report.py", b"import sys; print(sys.executable, *sys.argv[1:])\n", mode)
    process = program(path, "a b", "c")
    assert read(process.stdout).decode() == f"{sys.executable} a b c\n"
    assert process.args == (str(path), "a b", "c")


def test_python_file_like_any_program(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own #! line decides; a bare .py name means PATH, and one there without permission is refused."""
    path = executable(tmp_path / "odd.py", b"#!/bin/echo\n")
    assert read(program(path, "x").stdout).decode() == f"{path} x\n"
    executable(tmp_path / "report.py", b"print('no')\n", 0o644)
    assert refusal("report.py", environ={"PATH": str(tmp_path)}).status == 126
    monkeypatch.chdir(tmp_path)
    error = refusal("report.py")
    assert error.status == 127 and "./report.py" in str(error)


def test_path_of_the_given_environment(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PATH searched is the program's, not ours; what cannot be executed there is passed over."""
    for name in "first", "second", "third/tool":
        (tmp_path / name).mkdir(parents=True)
    executable(tmp_path / "first/tool", b"#!/bin/sh\necho first\n", 0o644)
    executable(tmp_path / "second/tool", b"#!/bin/sh\necho second $PATH\n")
    path = f"/nowhere:{tmp_path}/first/tool:{tmp_path}/first:{tmp_path}/second"
    assert read(program("tool", environ={"PATH": path}).stdout).decode() == f"second {path}\n"
    error = refusal("tool", environ={"PATH": f"{tmp_path}/first:/bin:{tmp_path}/third"})
    assert error.status == 126 and "chmod" in str(error), "the first reason counts"
    assert refusal("tool", environ={"PATH": "/bin"}).status == 127
    executable(tmp_path / "windows", b"#!/bin/sh\r\n")
    assert refusal("windows", environ={"PATH": f"{tmp_path}:/bin"}).status == 126
    monkeypatch.setenv("PATH", str(tmp_path / "second"))
    assert refusal("tool", environ={}).status == 127
    assert read(program("echo", "default path", environ={}).stdout) == b"default path\n"
    monkeypatch.chdir(tmp_path / "second")
    assert read(program("tool", environ={"PATH": ":/bin"}).stdout) == b"second :/bin\n"


def test_removed_working_directory(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program starts although the directory we are in is gone; what is looked up in it is not found."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert read(program("echo", "here").stdout) == b"here\n"
    assert refusal("./program").status == 127
    assert refusal("program", environ={"PATH": ":."}).status == 127


def test_own_session(program: Program) -> None:
    """The program leads its own session, where opening /dev/tty is an error, or its own group in our session."""
    process = program("sleep", "60")
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    process = program("sleep", "60", own_session=False)
    assert (os.getsid(process.pid), os.getpgid(process.pid)) == (os.getsid(0), process.pid)
    assert python_under_terminal(f"assert end(go(*{helper('tty')!r})).value == 0") == b"not opened: ENXIO\r\n"


def test_terminal_given_and_taken_back() -> None:
    """A program in its own group can use the terminal once it is given, also if it was stopped, and then we again."""
    script = (
        f"p = go(*{helper('tty')!r}, own_session=False)\n"
        "assert not give_terminal(os.pipe()[0], p.pid), 'not a terminal'\n"
        "assert give_terminal(0, p.pid) and os.tcgetpgrp(0) == p.pid\n"
        "assert not give_terminal(0, p.pid), 'we are in the background now'\n"
        "assert end(p).value == 0\n"
        "assert take_terminal(0) and os.tcgetpgrp(0) == os.getpgrp()\n"
        "assert not give_terminal(0, p.pid), 'the group has ended'\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()\n"
        "print('typed', input())"
    )
    shown = python_under_terminal(script, b"words\n")
    assert shown.replace(b"words\r\n", b"", 1) == b"opened\r\nattributes set\r\ntyped words\r\n"

    # It may have been stopped for reading before.
    script = (
        "p = go('/bin/sh', '-c', 'read line; echo got $line', own_session=False)\n"
        "os.waitid(os.P_PID, p.pid, os.WSTOPPED)\n"
        "assert give_terminal(0, p.pid)\n"
        "assert end(p).value == 0 and take_terminal(0)"
    )
    assert python_under_terminal(script, b"words\n").endswith(b"got words\r\n")


def test_ended_program_stays_a_zombie_until_reaped(program: Program) -> None:
    """Polling keeps its number from being used again; reaping frees it, after which nothing is signalled."""
    process = program(*helper("exit", 0))
    assert process.reap() is None
    end_of(process)
    assert state_of(process.pid) == "Z"
    assert process.group_alive() and process.signal(signal.SIGTERM)
    process.reap()
    assert state_of(process.pid) == ""
    assert not process.group_alive() and not process.signal(signal.SIGTERM)


def test_reaped_by_somebody_else(program: Program) -> None:
    """A status that another part of this process took away is unknown, not 0; one that was seen is kept."""
    process = program(*helper("exit", 0))
    os.waitpid(process.pid, 0)
    for status in process.poll(), process.reap():
        assert status is not None
        assert (status.how, status.exit_code) == (How.UNKNOWN, 125)
    process = program(*helper("exit", 7))
    seen = end_of(process)
    os.waitpid(process.pid, 0)
    assert process.reap() is seen
    # Whoever ignores SIGCHLD and starts us would have the system throw the status away.
    assert python("print(end(go('/bin/sh', '-c', 'exit 7')).value)", before="trap '' CHLD;") == b"7\n"


def test_without_waitid(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without waitid (macOS before Python 3.13) reaps when it polls, with the same answers."""
    monkeypatch.delattr(os, "waitid")
    process = program("sleep", "60")
    assert process.poll() is None
    process.signal(signal.SIGRTMIN + 3)  # most real-time signals have no name
    status = end_of(process)
    assert (status.value, status.describe()) == (signal.SIGRTMIN + 3, "was ended by signal 37")
    assert process.reap() is status


@pytest.mark.parametrize("pidfd", [True, False])
def test_watch_end(program: Program, loop: Loop, monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    """The end, not a stop, is told once, from the loop, to who has not cancelled; nothing is reaped by that."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    ends: list[Status] = []
    process, other = program("sleep", "60"), program(*SH, "exit 4")
    assert (process.pidfd is not None) == pidfd
    watch_end(loop, process, ends.append)
    watch_end(loop, other, ends.append).cancel()
    other.close()
    for stop, state in (signal.SIGSTOP, "T"), (signal.SIGCONT, "S"):
        process.signal(stop)
        wait_until(lambda state=state: state_of(process.pid) == state, 10, state)
        run_for(loop, 0.05)
        assert process.poll() is None and ends == []
    process.signal(signal.SIGTERM)
    end_of(process)
    assert ends == []
    run_for(loop, 0.1)
    assert [status.value for status in ends] == [signal.SIGTERM]
    assert state_of(process.pid) == "Z"


def climb(loop: Loop, process: Process, steps: Any = FAST) -> tuple[Status | None, float]:
    """Run a ladder to its end, and on, to see that it ends once; return the status and the seconds it took.

    If it says that nothing is left, there must be no process of the group, except for other people's zombies.
    """
    done: list[float] = []
    ladder = Ladder(loop, process, lambda: done.append(time.monotonic() - began), steps)
    began = time.monotonic()
    assert done == [], "on_done was called before anybody has the ladder"
    run_until(loop, lambda: done)
    run_for(loop, 0.4)
    group = [each for each in processes() if each.group == process.pid]
    left = [each for each in group if each.state != "Z" or each.parent == os.getpid()]
    assert ladder.gone == (left == [])
    assert len(done) == 1
    return process.poll(), done[0]


@pytest.mark.parametrize(
    ("steps", "script", "count", "last", "seconds"),
    [
        (STEPS, "echo; exec sleep 60", 1, signal.SIGHUP, 0),
        (STEPS, "trap 'sleep 0.2; kill -9 $$' HUP; echo; sleep 60 & wait", 2, signal.SIGKILL, 0.2),
        (FAST, "trap '' HUP; echo; exec sleep 60", 1, signal.SIGTERM, 0.1),
        (FAST, "trap '' HUP TERM; sleep 60 & sleep 60 & echo; wait", 3, signal.SIGKILL, 0.3),
    ],
)
def test_ladder_goes_as_far_as_needed(
    program: Program, loop: Loop, steps: Any, script: str, count: int, last: int, seconds: float
) -> None:
    """Whoever ignores a signal gets the next one in its time, grandchildren too, and nothing is left."""
    assert STEPS == ((0, signal.SIGHUP), (2, signal.SIGTERM), (8, signal.SIGKILL))
    process = program(*SH, script)
    read(process.stdout, b"\n")
    wait_until(lambda: len(alive_in_group(process.pid)) == count, 10, "all of the group")
    status, took = climb(loop, process, steps)
    assert status is not None and status.value == last
    assert seconds <= took < limit(1.9)  # a program that heeds HUP does not wait for TERM


def test_ladder_asks_in_order(program: Program, loop: Loop) -> None:
    """Each signal arrives once, in order, also at a stopped program; who watches the end is told as well."""
    ends: list[Status] = []
    show = "lambda number, _: os.write(1, b'%d\\n' % number)"
    script = f"import os, signal, time\nfor n in 1, 15: signal.signal(n, {show})\nos.write(1, b'\\n')\ntime.sleep(60)"
    process = program(sys.executable, "-c", script)
    watch_end(loop, process, ends.append)
    read(process.stdout, b"\n")
    process.signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process.pid) == "T", 10, "the stop")
    climb(loop, process)
    assert read(process.stdout) == b"1\n15\n"
    assert [status.value for status in ends] == [signal.SIGKILL]


@pytest.mark.parametrize(("mode", "left"), [(("exit", 7), 0), (("grandchild-silent", 60), 1)])
def test_ladder_after_the_end(program: Program, loop: Loop, mode: tuple[Any, ...], left: int) -> None:
    """A program that has ended alone is reaped, what it left behind is ended, and its status stays."""
    process = program(*helper(*mode))
    seen = end_of(process)
    process.reap()
    assert process.group_alive() == process.signal(signal.SIGCONT) == bool(left)
    assert len(alive_in_group(process.pid)) == left
    status, _ = climb(loop, process)
    assert status is not None and status.value == seen.value
    assert not process.group_alive()


def test_ladder_cancelled_or_in_vain(program: Program, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `cancel` no signal is sent and nobody called; what outlives the last step is given up in the end."""
    monkeypatch.setattr(process_module, "_CONFIRM", 0.2)
    process = program(*SH, "trap '' HUP; echo; exec sleep 60")
    read(process.stdout, b"\n")
    ladder = Ladder(loop, process, lambda: pytest.fail("called"), FAST)
    run_for(loop, 0.05)
    ladder.cancel()
    run_for(loop, 0.4)
    assert process.poll() is None
    status, seconds = climb(loop, process, FAST[:1])
    assert status is None and seconds >= 0.2


def test_zombie_that_nobody_reaps(program: Program, loop: Loop) -> None:
    """A zombie whose parent left the group and does not reap it does not count as alive."""
    fork = "import os, time\nif os.fork(): os.setsid(); print(os.getpid(), flush=True)\ntime.sleep(60)"
    process = program(*SH, f"{shlex.join([sys.executable, '-c', fork])} & wait")
    careless = int(read(process.stdout, b"\n"))
    try:
        climb(loop, process)
        assert not process.group_alive() and not process.signal(signal.SIGTERM)
        assert [(each.state, each.parent) for each in processes() if each.group == process.pid] == [("Z", careless)]
    finally:
        os.kill(careless, signal.SIGKILL)


def test_zombie_with_threads_is_alive(program: Program) -> None:
    """A program whose first thread has ended looks like a zombie, but runs."""
    script = (
        "import ctypes, os, threading, time\n"
        "if os.fork(): os._exit(0)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(0)"
    )
    process = program(sys.executable, "-c", script)
    end_of(process)
    process.reap()
    wait_until(lambda: not alive_in_group(process.pid), 10, "the zombie")
    assert process.group_alive() and process.signal(signal.SIGKILL)
    wait_until(lambda: not process.group_alive(), 10, "the end of the group")


def test_adopted_orphans_are_reaped() -> None:
    """Where orphans become our children (process 1, subreaper) reaping and the ladder take the group's along."""
    script = f"""
import ctypes
sys.path.insert(0, {str(Path(__file__).parent)!r})
from support import processes
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
loop = Loop()
p = go(*{helper("grandchild-silent", 60)!r}, stdout='pipe')
while p.poll() is None:
    time.sleep(0.005)
end(go('/bin/sh', '-c', '(sleep 0 &); sleep 0.2'))
ladder = Ladder(loop, p, loop.stop)
loop.run()
p.close()
print(ladder.gone, [each for each in processes() if each.parent == os.getpid()])"""
    assert python(script) == b"True []\n"
