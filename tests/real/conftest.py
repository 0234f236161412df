"""What holds for every test with real programs and strangers: nothing that it started outlives it.

Rules: a process counts as the test's when it has the test's own runtime directory in its environment, wherever it was
reparented to; so programs that lost their program end are found, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import processes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_process_left(own_directories: None) -> Iterator[None]:
    """Fail the test that leaves a process behind, and kill that."""
    mark = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
    yield
    try:
        wait_until(lambda: not marked(mark), 5, "the end of every process of the test")
    except AssertionError:
        left = marked(mark)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pytest.fail(f"the test left processes behind: {left}", pytrace=False)


def marked(mark: bytes) -> dict[int, str]:
    """Return the ids and names of the living processes with a variable in the environment they started with."""
    return {each.pid: each.name for each in processes() if each.state not in "ZX" and mark in environment(each.pid)}


def environment(pid: int) -> list[bytes]:
    """Return NAME=VALUE for each variable of a process; nothing of one that has ended, or is another user's."""
    try:
        return Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []
