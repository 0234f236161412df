"""The helpers of the tests wait, find, and clean up as they say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from support import Running, alive_in_group, free_port, helper, limit, processes, wait_until


def shell(script: str, **options: object) -> Running:
    """Start a shell script in the background."""
    return Running(command=["sh", "-c", script], **options)


def test_limit_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOCKSTREAM_TEST_SLOWNESS multiplies limits; unset or empty it does not."""
    monkeypatch.setenv("SOCKSTREAM_TEST_SLOWNESS", "2.5")
    assert limit(4) == 10
    monkeypatch.setenv("SOCKSTREAM_TEST_SLOWNESS", "")
    assert limit(4) == 4


def test_wait_until_returns_the_value() -> None:
    """The first true value comes back."""
    values = iter([0, "", "found"])
    assert wait_until(lambda: next(values), 10, "a value") == "found"


def test_wait_until_gives_up() -> None:
    """What never becomes true is an error that names it."""
    with pytest.raises(AssertionError, match="in vain for the moon"):
        wait_until(lambda: False, 0.02, "the moon")


def test_free_port_is_free() -> None:
    """One can listen on the port."""
    socket.create_server(("127.0.0.1", free_port())).close()


def test_processes_reads_strange_names() -> None:
    """A process whose name has spaces and parentheses is read like any other."""
    rename = "import sys; open('/proc/self/comm', 'w').write(') 1 (a'); print(1, flush=True); sys.stdin.read()"
    with Running(command=[sys.executable, "-c", rename]) as process:
        process.wait_for_output(b"1\n")
        row = next(each for each in processes() if each.pid == process.pid)
        assert (row.name, row.parent, row.group) == (") 1 (a", os.getpid(), os.getpgrp())


def test_alive_in_group_leaves_out_zombies() -> None:
    """A process counts until it ends, not until it is reaped."""
    with subprocess.Popen(helper("sleep"), process_group=0) as process:
        assert alive_in_group(process.pid) == [process.pid]
        process.kill()
        wait_until(lambda: not alive_in_group(process.pid), 10, "the end of the process")
        assert process.pid in [each.pid for each in processes()]


def test_running_collects_output() -> None:
    """stdout and stderr are there apart, while it runs and after."""
    with shell("echo out; echo err >&2; read line; echo $line") as process:
        process.wait_for_output(b"out\n")
        process.wait_for_message(b"err\n")
        process.write(b"more\n")
        assert process.wait() == 0
        assert (process.stdout, process.stderr) == (b"out\nmore\n", b"err\n")


def test_running_finds_the_address() -> None:
    """The address is taken from the line on stderr, among others, once the line is whole."""
    said = "echo a >&2; printf 'sockstream: listening on tcp://127' >&2; sleep 0.1; echo .0.0.1:99 >&2; exec cat"
    with shell(said) as process:
        assert process.address == "tcp://127.0.0.1:99"


def test_running_says_why_there_is_no_address() -> None:
    """A command that ends before it listens is reported with what it said, at once."""
    with shell("echo no such port >&2; exit 125") as process, pytest.raises(AssertionError) as caught:
        process.address  # noqa: B018 - reading it is what fails
    assert "no such port" in str(caught.value) and "status 125" in str(caught.value)


def test_running_ends_what_it_started() -> None:
    """At the end of the block the command has got SIGTERM and is reaped."""
    with Running(command=helper("sleep")) as process:
        assert process.process.poll() is None
    assert process.process.returncode == -signal.SIGTERM


def test_running_kills_and_reports_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that outlives SIGTERM is killed, and that is an error."""
    with pytest.raises(AssertionError, match="had to be killed"), Running(command=helper("ignore-term")) as process:
        process.wait_for_output(b"ignoring\n")
        monkeypatch.setenv("SOCKSTREAM_TEST_SLOWNESS", "0.01")
    assert process.process.returncode == -signal.SIGKILL


def test_running_gives_up_waiting() -> None:
    """A command that runs on is an error that says what it is."""
    with Running(command=helper("sleep")) as process, pytest.raises(AssertionError, match="did not end within"):
        process.wait(0.05)
