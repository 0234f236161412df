"""One descriptor at one end of a channel: `Source` reads it into a session, `Sink` writes a session's bytes to it.

Rules: a source reads only what the session has room for, so the program meets a full pipe and waits; a sink says
`taken` only for what the kernel took; both end once, and close the descriptors they own. A sink never copies what
it can write at once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

from .loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .descriptors import Read, Write
    from .loop import Loop

READ_SIZE = 512 << 10
_KEEP = 4 << 20


def keep_freed_memory() -> None:
    """Let this process keep the memory of a large read for the next one; to be called once, before the first.

    By default glibc maps memory for each and unmaps it again, and the kernel fills it with zeros in between (measured:
    a tenth of the processor time of a bulk transfer, 20 us of a line there and back). Freeing a larger block once
    raises the size from which it does that; elsewhere this does nothing.
    """
    bytearray(_KEEP)


class Source:
    """Read `fd` whenever `room()` is positive, give each piece to `give(data)`, call `on_end()` once behind the last.

    owned: whether to close `fd`; read: how to read (default `os.read`).
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        room: Callable[[], int],
        give: Callable[[bytes], None],
        on_end: Callable[[], None],
        *,
        owned: bool = True,
        read: Read | None = None,
    ) -> None:
        self.loop = loop
        self.fd = fd
        self.ended = False
        self.waiting_since: float | None = None
        self._room = room
        self._give = give
        self._on_end = on_end
        self._owned = owned
        self._read = read or (lambda size: os.read(fd, size))
        self._watched = False
        self.update()

    @property
    def paused(self) -> bool:
        """Whether it waits for room."""
        return not (self._watched or self.ended)

    def update(self) -> None:
        """Watch the descriptor, or leave it alone, by the room there is; call it when room may have come."""
        wanted = not self.ended and self._room() > 0
        if wanted != self._watched:
            self._watched = wanted
            self.waiting_since = self.loop.now() if wanted else None
            self.loop.watch(self.fd, READ if wanted else 0, self._ready)

    def end(self) -> None:
        """Read no more; `on_end` is called if it was not."""
        if self.ended:
            return
        self.ended = True
        self.loop.unwatch(self.fd)
        self._watched = False
        if self._owned:
            os.close(self.fd)
        self._on_end()

    def _ready(self, _mask: int) -> None:
        size = min(self._room(), READ_SIZE)
        if size <= 0:
            self.update()
            return
        try:
            data = self._read(size)
        except BlockingIOError:
            return
        except OSError:  # EIO: a terminal whose other side has gone; it has no more to say, which is an end
            data = b""
        if data:
            self.waiting_since = self.loop.now()
            self._give(data)  # where that fills the room, the next call finds out
        else:
            self.end()


class Sink:
    """Write to `fd` what comes, in order; `on_taken(count)` as it is written, `on_broken()` when nobody reads any more.

    owned: whether to close `fd` at the end; write: how to write (default `os.write`), BlockingIOError meaning
    later.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_broken: Callable[[OSError], None],
        *,
        owned: bool = True,
        write: Write | None = None,
    ) -> None:
        self.loop = loop
        self.fd = fd
        self.broken = self.closed = False
        self._on_broken = on_broken
        self._owned = owned
        self._write = write or (lambda data: os.write(fd, data))
        self._queue: deque[tuple[memoryview, Callable[[int], None]]] = deque()
        self._finishing: Callable[[], None] | None = None
        self._mask = 0
        # The reader's going shows as readiness for reading on a pipe's writing end, which never has anything to read.
        self._base_mask = READ if stat.S_ISFIFO(os.fstat(fd).st_mode) else 0
        self._watch(self._base_mask)

    def write(self, data: memoryview, on_taken: Callable[[int], None]) -> None:
        """Write `data`, or keep a copy of what cannot be written yet; `on_taken(n)` tells as the kernel takes it."""
        if self.broken:
            return
        if not self._queue:
            data = data[self._write_some(data, on_taken) :]
        if data and not self.broken:
            self._queue.append((memoryview(bytes(data)), on_taken))
            self._watch(self._base_mask | WRITE)

    def finish(self, on_finished: Callable[[], None] | None = None) -> None:
        """Close behind the last byte, then call `on_finished`."""
        self._finishing = on_finished or _nothing
        if not self._queue:
            self._close()

    def break_off(self) -> None:
        """Close now and throw away what waits."""
        self._queue.clear()
        self.broken = True
        self._close()

    @property
    def empty(self) -> bool:
        """Whether everything given to it has been written."""
        return not self._queue

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self.loop.watch(self.fd, mask, self._ready)

    def _ready(self, _mask: int) -> None:
        if not self._queue:
            self.break_off()
            self._on_broken(OSError(errno.EPIPE, os.strerror(errno.EPIPE)))
            return
        while self._queue and not self.broken:
            data, on_taken = self._queue[0]
            written = self._write_some(data, on_taken)
            if self.broken:
                return
            if written < len(data):
                self._queue[0] = (data[written:], on_taken)
                return
            self._queue.popleft()
        if self._finishing is not None:
            self._close()
        else:
            self._watch(self._base_mask)

    def _write_some(self, data: memoryview, on_taken: Callable[[int], None]) -> int:
        """Write until it would block; returns how much went."""
        done = 0
        try:
            while done < len(data):
                count = self._write(data[done:])
                done += count
                on_taken(count)
        except BlockingIOError:
            return done
        except OSError as error:
            self.break_off()
            self._on_broken(error)
        return done

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._watch(0)
        if self._owned:
            os.close(self.fd)
        if self._finishing is not None and not self.broken:
            self._finishing()


def _nothing() -> None:
    return
