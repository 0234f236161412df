"""The program that the process tests run does what its modes say."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helper_program import AWKWARD, MODES, pattern
from support import Running, alive_in_group, helper, limit, wait_until


def run(mode: str, *args: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a mode to its end."""
    return subprocess.run(helper(mode, *args), input=data, capture_output=True, timeout=limit(20))


def running(mode: str, *args: object, **options: object) -> Running:
    """Start a mode in the background."""
    return Running(command=helper(mode, *args), **options)


def test_every_mode_has_a_test() -> None:
    """A mode is named in this file outside of its own definition."""
    source = Path(__file__).read_text()
    assert [mode for mode in MODES if f'"{mode}"' not in source] == []


@pytest.mark.parametrize("count", [0, 1, 65535, 65536, 200_001])
def test_burst_writes_the_pattern(count: int) -> None:
    """Exactly COUNT bytes of the pattern come out, and stdin is not needed."""
    result = run("burst", count)
    assert (result.returncode, result.stdout == pattern(count), result.stderr) == (0, True, b"")
    assert len(result.stdout) == count


def test_pattern_is_one_stream() -> None:
    """A shorter pattern begins a longer one, and it is not the same bytes again and again."""
    assert pattern(200_001)[:70_003] == pattern(70_003)
    assert pattern(200_001)[:65536] != pattern(200_001)[65536:131072]


def test_flood_goes_on_until_sigpipe() -> None:
    """It writes the pattern for as long as somebody reads, then dies as a C program does."""
    with subprocess.Popen(helper("flood"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        received = process.stdout.read(1_000_000)
        process.stdout.close()
        assert process.wait(limit(20)) == -signal.SIGPIPE
    assert received == pattern(1_000_000)


def test_tick_is_buffered_by_python() -> None:
    """Nothing arrives before the end, because nothing is flushed; PYTHONUNBUFFERED changes that."""
    with running("tick", 3, 0.1) as process:
        process.wait()
        assert process.stdout == b"tick 0\ntick 1\ntick 2\n"
    with running("tick", 2, 30) as process:
        time.sleep(0.2)
        assert process.stdout == b""
    with running("tick", 2, 30, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        process.wait_for_output(b"tick 0\n")


def test_echo_late_waits_for_the_end_of_its_input() -> None:
    """The answer comes after the end of file and the delay, and is what was read."""
    started = time.monotonic()
    result = run("echo-late", 0.2, data=b"a\0b")
    assert result.stdout == b"a\0b"
    assert time.monotonic() - started >= 0.2


def test_ignore_term_needs_kill() -> None:
    """SIGTERM and SIGHUP leave it alive."""
    with running("ignore-term") as process:
        process.wait_for_output(b"ignoring\n")
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.1)
        assert process.process.poll() is None
        process.process.kill()
        assert process.wait() == -signal.SIGKILL


def test_grandchild_holds_stdout() -> None:
    """The program ends at once; its stdout ends later, with the grandchild's word."""
    with subprocess.Popen(helper("grandchild", 0.5), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.wait(limit(20)) == 0
        assert process.stdout.readline().startswith(b"parent ")
        assert select.select([process.stdout], [], [], 0.05)[0] == []
        assert process.stdout.read() == b"grandchild\n"


def test_grandchild_silent_holds_nothing() -> None:
    """Program and stdout end at once while the grandchild lives on in the same process group."""
    with subprocess.Popen(helper("grandchild-silent", 30), stdout=subprocess.PIPE, start_new_session=True) as process:
        output, _ = process.communicate(timeout=limit(20))
    grandchild = int(output.removeprefix(b"parent "))
    assert alive_in_group(process.pid) == [grandchild]
    os.kill(grandchild, signal.SIGKILL)
    wait_until(lambda: not alive_in_group(process.pid), 10, "the end of the grandchild")


def test_close_stdout_and_work() -> None:
    """Its stdout ends while it goes on to work, and to use stderr."""
    with subprocess.Popen(
        helper("close-stdout-and-work", 0.3), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read() == b"before\n"
        assert process.poll() is None
        assert process.stderr.read() == b"after\n"
        assert process.wait(limit(20)) == 0


def test_close_stdin_breaks_the_writer() -> None:
    """Once it has said so, nobody reads its stdin and it still runs."""
    with running("close-stdin", 30) as process:
        process.wait_for_output(b"closed\n")
        with pytest.raises(BrokenPipeError):
            process.write(b"x")
        assert process.process.poll() is None


@pytest.mark.parametrize("status", [0, 1, 255])
def test_exit(status: int) -> None:
    """It exits with the status it was told."""
    assert run("exit", status).returncode == status


@pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "PIPE", "SEGV"])
def test_signal(name: str) -> None:
    """It dies of the signal it was told."""
    assert run("signal", name).returncode == -signal.Signals[f"SIG{name}"]


def test_stderr_lines() -> None:
    """COUNT lines of LENGTH characters come on stderr, and stdout stays empty."""
    result = run("stderr-lines", 5, 3)
    assert (result.stdout, result.stderr) == (b"", b"0xxxx\n1xxxx\n2xxxx\n")


def test_bytes_are_awkward() -> None:
    """The bytes arrive as they are, are no UTF-8, and have every value."""
    assert run("bytes").stdout == AWKWARD
    assert set(AWKWARD) == set(range(256))
    assert not AWKWARD.endswith(b"\n")
    with pytest.raises(UnicodeDecodeError):
        AWKWARD[256:].decode()


def test_sleep_is_silent_and_reads_nothing() -> None:
    """It goes on although its input has ended, without a word; SIGTERM ends it."""
    with running("sleep") as process:
        process.close_stdin()
        time.sleep(0.1)
        assert process.process.poll() is None
        process.process.terminate()
        assert process.wait() == -signal.SIGTERM
        assert process.stdout + process.stderr == b""


def test_unread_leaves_its_input() -> None:
    """It ends although what it was sent is still in the pipe."""
    reader, writer = os.pipe()
    os.write(writer, b"never read")
    try:
        result = subprocess.run(helper("unread", 1000), stdin=reader, capture_output=True, timeout=limit(20))
        assert result.stdout == pattern(1000)
        assert os.read(reader, 100) == b"never read"
    finally:
        os.close(reader)
        os.close(writer)


def test_unread_waits_for_input() -> None:
    """It writes nothing before something was sent."""
    with running("unread", 10) as process:
        time.sleep(0.2)
        assert process.process.poll() is None
        assert process.stdout == b""
        process.write(b"x")
        assert process.wait() == 0
        assert process.stdout == pattern(10)


def test_both_writes_two_patterns() -> None:
    """Each of stdout and stderr gets COUNT bytes of its own pattern."""
    result = run("both", 70_001)
    assert result.stdout == pattern(70_001, 1)
    assert result.stderr == pattern(70_001, 2)


def test_env() -> None:
    """The environment comes out line by line, as bytes."""
    given = {"A": "1", "B": "\udcff"}
    result = subprocess.run(helper("env"), env=given, capture_output=True, timeout=limit(20))
    assert {b"A=1", b"B=\xff"} <= set(result.stdout.splitlines())


def test_tty_without_a_terminal() -> None:
    """In a session of its own it says that there is none."""
    result = subprocess.run(helper("tty"), capture_output=True, start_new_session=True, timeout=limit(20))
    assert (result.returncode, result.stdout) == (0, b"not opened: ENXIO\n")


def test_tty_with_a_terminal() -> None:
    """With a controlling terminal it can open it and set its attributes."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(helper("tty")[0], helper("tty"))
    with open(terminal, "rb", buffering=0) as file:
        output = b""
        while not output.endswith(b"attributes set\r\n"):
            output += file.read(1000)
        assert os.waitpid(pid, 0)[1] == 0
    assert output == b"opened\r\nattributes set\r\n"


def test_lines_in_answers_at_once() -> None:
    """Each line is answered before the next is sent; end of file ends it."""
    with running("lines-in") as process:
        process.write(b"one\n")
        process.wait_for_output(b"got one\n")
        process.write(b"two\n")
        process.wait_for_output(b"got one\ngot two\n")
        process.close_stdin()
        assert process.wait() == 0
