"""Reading and writing descriptors that others use too: this process's own stdin, stdout and stderr.

Rules: the flags of an inherited descriptor are never changed, because O_NONBLOCK belongs to the open file and would
break its other users (measured: another writer of the same pipe fails with "Resource temporarily unavailable"). So
each is opened anew through /proc/self/fd, or used in a way that cannot block.
"""

from __future__ import annotations

import os
import select
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[memoryview], int]
    Read = Callable[[int], bytes]

_FLAGS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def own_reader(fd: int) -> tuple[int, Read]:
    """Return a descriptor of our own for an inherited input and a function that reads up to n bytes from it."""
    ours = _reopen(fd, os.O_RDONLY)
    if ours is not None:
        return ours, lambda size: os.read(ours, size)
    return fd, lambda size: os.read(fd, size)  # only called when poll says that there is something


def own_writer(fd: int) -> tuple[int, Write]:
    """Return a descriptor of our own for an inherited output and a function that writes without blocking.

    The function returns how many bytes it wrote and raises BlockingIOError for none.
    """
    mode = os.fstat(fd).st_mode
    ours = _reopen(fd, os.O_WRONLY)
    if ours is not None:
        return ours, lambda data: os.write(ours, data)
    if stat.S_ISREG(mode):  # opening it anew would lose the position, and it never blocks
        return fd, lambda data: os.write(fd, data)
    if stat.S_ISSOCK(mode):
        return fd, lambda data: _send(fd, data)
    return fd, lambda data: _write_if_ready(fd, data)


def _reopen(fd: int, mode: int) -> int | None:
    """Open the same file again, as an open file of our own; None where that cannot be or changes its meaning."""
    try:
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
            return None
        return os.open(f"/proc/self/fd/{fd}", mode | _FLAGS)
    except OSError:  # no /proc, or a terminal of another user after su: then it is used as it is
        return None


def _send(fd: int, data: memoryview) -> int:
    import socket

    borrowed = socket.socket(fileno=fd)
    try:
        return borrowed.send(data, socket.MSG_DONTWAIT)
    finally:
        borrowed.detach()


def _write_if_ready(fd: int, data: memoryview) -> int:
    """Write at most PIPE_BUF bytes, which cannot block once poll says that there is room."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError
    return os.write(fd, data[: select.PIPE_BUF])
