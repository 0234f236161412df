"""What tests of real processes share: limits, command lines, and a command that always ends.

Rules: every process is ended and reaped by its own id; nothing here starts a thread; an upper time bound goes
through `limit` and exists for liveness alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HELPER_PROGRAM = Path(__file__).with_name("helper_program.py")
SOCKSTREAM = (sys.executable, "-m", "sockstream")
LISTENING = re.compile(rb"^sockstream: listening on (\S+)\n", re.MULTILINE)


def limit(seconds: float) -> float:
    """Return an upper bound in seconds, longer where SOCKSTREAM_TEST_SLOWNESS says the machine is slow."""
    return seconds * float(os.environ.get("SOCKSTREAM_TEST_SLOWNESS") or 1)


def wait_until(predicate: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll the predicate until it is true and return its value.

    Raises AssertionError, naming `what` was waited for, when limit(seconds) have passed.
    """
    deadline = time.monotonic() + limit(seconds)
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit(seconds):g} s in vain for {what}")
        time.sleep(0.005)
    return value


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def helper(mode: str, *args: object) -> list[str]:
    """Return the command line that runs tests/helper_program.py in a mode."""
    return [sys.executable, str(HELPER_PROGRAM), mode, *map(str, args)]


class Process(NamedTuple):
    """One row of the process table."""

    pid: int
    name: str
    state: str
    parent: int
    group: int


def processes() -> Iterator[Process]:
    """Yield every process of the system, zombies included."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                yield _parse_stat(Path("/proc", entry, "stat").read_text(errors="replace"))


def _parse_stat(line: str) -> Process:
    # The name stands in parentheses and may hold some itself, and spaces.
    head, _, tail = line.rpartition(")")
    pid, _, name = head.partition(" (")
    state, parent, group = tail.split()[:3]
    return Process(int(pid), name, state, int(parent), int(group))


def alive_in_group(pgid: int) -> list[int]:
    """Return the ids of the processes of a process group that still run; zombies do not."""
    return [process.pid for process in processes() if process.group == pgid and process.state not in "ZX"]


def sockstream(*args: str, **popen_options: Any) -> subprocess.Popen[bytes]:
    """Start the installed command with a pipe on stdin, stdout and stderr; the caller ends it.

    Takes the command's arguments, and what Popen takes to replace a pipe or add an option.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([*SOCKSTREAM, *args], **{**pipes, **popen_options})


class Running:
    """A command in the background whose output is collected in files: it can never block on us.

    `with Running("listen", "--once") as viewer:` starts `sockstream listen --once`; `command=` replaces
    `python -m sockstream`, and other keywords go to Popen. At the end of the block a command that still runs
    gets SIGTERM; one that outlives that by 20 seconds is killed, and the test fails.
    """

    def __init__(self, *args: str, command: Sequence[str] = SOCKSTREAM, **popen_options: Any) -> None:
        self._files = contextlib.ExitStack()
        self._out = self._file()
        self._err = self._file()
        files = {"stdin": subprocess.PIPE, "stdout": self._out, "stderr": self._err}
        try:
            self.process = subprocess.Popen([*command, *args], **{**files, **popen_options})
        except BaseException:
            self._files.close()
            raise

    def _file(self) -> BinaryIO:
        return self._files.enter_context(tempfile.TemporaryFile())

    @property
    def pid(self) -> int:
        """The id of the command's process."""
        return self.process.pid

    @property
    def stdout(self) -> bytes:
        """What it has written so far."""
        return _content(self._out)

    @property
    def stderr(self) -> bytes:
        """What it has said so far."""
        return _content(self._err)

    @property
    def address(self) -> str:
        """The address it says it listens on; waits up to 10 seconds for that line."""
        found = wait_until(self._listening_or_ended, 10, f"a listening {self.process.args!r}")
        if found is True:
            raise AssertionError(f"{self} ended before it listened")
        return str(found)

    def _listening_or_ended(self) -> str | bool:
        ended = self.process.poll() is not None  # looked at first: what it said before is in the file then
        if match := LISTENING.search(self.stderr):
            return match[1].decode()
        return ended

    def write(self, data: bytes) -> None:
        """Write all of data to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        """End its stdin, if that is a pipe of ours."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it reads no more, so nothing is owed to it
                self.process.stdin.close()

    def wait(self, seconds: float = 20) -> int:
        """Return its exit status, negative for a signal; AssertionError if that takes over limit(seconds)."""
        try:
            return self.process.wait(limit(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} did not end within {limit(seconds):g} s") from None

    def wait_for_output(self, wanted: bytes, seconds: float = 10) -> None:
        """Wait until `wanted` is somewhere in its stdout."""
        wait_until(lambda: wanted in self.stdout, seconds, f"{wanted!r} from {self.process.args!r}")

    def wait_for_message(self, wanted: bytes, seconds: float = 10) -> None:
        """Wait until `wanted` is somewhere in its stderr."""
        wait_until(lambda: wanted in self.stderr, seconds, f"{wanted!r} on stderr of {self.process.args!r}")

    def __str__(self) -> str:
        status = "running" if self.process.returncode is None else f"status {self.process.returncode}"
        said = f"stdout {self.stdout[-500:]!r}; stderr {self.stderr[-2000:]!r}"
        return f"{self.process.args!r} ({status}; {said})"

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End and reap the command; harmless when it has ended."""
        try:
            self.close_stdin()
            self._end()
        finally:
            self._files.close()

    def _end(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(limit(20))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self} had to be killed: it did not end on SIGTERM") from None


def _content(file: BinaryIO) -> bytes:
    # pread, because the command shares the file's position.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
