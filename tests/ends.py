"""Both ends of one program as real commands, over each kind of address, for the tests of how things go and end.

Rules: `ends` is the one way to start a pair; what a test does to one end it does to a real process. Nothing is left
behind: each `Running` ends its command, and a program end ends its program.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support import Running, processes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SESSIONS = ("sock", "sock+unix")
RAW = ("tcp", "unix")
KINDS = (*SESSIONS, *RAW)
WAYS = ("run", "serve")  # which command is the program end; listen --once or connect is the other

QUICK = {("run", "sock"), ("serve", "sock+unix"), ("serve", "tcp"), ("run", "unix")}
WAITS = "echo ready; while :; do sleep 0.05; done"  # a shell's traps are run between two commands


def over(kinds: Sequence[str]) -> pytest.MarkDecorator:
    """Run a test over both ways and these kinds of address; the quick set has each way and each kind once."""
    cases = [(way, kind) for way in WAYS for kind in kinds]
    marked = [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("way", "kind"), marked)


def shell(script: str) -> list[str]:
    """Return the command line that runs a shell script."""
    return ["sh", "-c", script]


def waiting_address(kind: str) -> str:
    """Return an address of one of KINDS for an end that waits: a free port, or a path of this test's own."""
    if kind.endswith("unix"):
        return f"{kind}://{os.environ['XDG_RUNTIME_DIR']}/{len(os.listdir(os.environ['XDG_RUNTIME_DIR']))}"
    return f"{kind}://127.0.0.1:0"


@contextlib.contextmanager
def ends(
    way: str,
    kind: str,
    program: Sequence[str],
    *,
    options: Sequence[str] = (),
    viewer_options: Sequence[str] = (),
    stdio: dict[str, Any] | None = None,
    viewer_stdio: dict[str, Any] | None = None,
) -> Iterator[tuple[Running, Running]]:
    """Start a viewer end and a program end for one program and yield them, the viewer first.

    `way` is one of WAYS, `kind` one of KINDS; the options are those of the commands, and of `Running`.
    """
    stdio, viewer_stdio = stdio or {}, viewer_stdio or {}
    if way == "run":
        with (
            Running("listen", "--once", *viewer_options, waiting_address(kind), **viewer_stdio) as viewer,
            Running("run", "--to", viewer.address, *options, "--", *program, **stdio) as end,
        ):
            yield viewer, end
    else:
        with (
            Running("serve", "--once", *options, waiting_address(kind), "--", *program, **stdio) as end,
            Running("connect", *viewer_options, end.address, **viewer_stdio) as viewer,
        ):
            yield viewer, end


def programs_of(end: Running) -> list[int]:
    """Return the process groups of the programs that a program end has started and not reaped."""
    return [each.pid for each in processes() if each.parent == end.pid and each.group == each.pid]


def program_of(end: Running) -> int:
    """Wait for a program end's program and return its process group."""
    group: int = wait_until(lambda: programs_of(end), 10, f"a program of {end.process.args!r}")[0]
    return group


def own_stderr(said: bytes) -> bytes:
    """Return what a command wrote to stderr without its own lines: what came from the program."""
    return b"".join(line for line in said.splitlines(keepends=True) if not line.startswith(b"sockstream: "))


def null() -> dict[str, Any]:
    """Options for `ends`: a command whose input is at its end from the start."""
    return {"stdin": subprocess.DEVNULL}
