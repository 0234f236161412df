"""A raw stream, as core and as session in one: bytes as they are, for peers that know nothing of us; no I/O.

Rules: one channel each way, nothing on the wire but its bytes; end of file is the half-close of the socket. Nothing is
read before `begin`: TLS may have bytes at hand before there is a program or an output that could take them. It has
the same faces as `Link` (towards a socket) and `Session` (towards descriptors), so that every end is written once
for both kinds of address. What raw cannot carry (status, signals, a second output) is simply absent.
"""

from __future__ import annotations

from . import frames
from .events import Data, Finished

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .events import Event

BUFFER_SIZE = 256 << 10
QUEUE_LIMIT = 1 << 20


class RawStream:
    """Bytes in on channel `receives`, bytes out from channel `sends`, of at most `QUEUE_LIMIT` kept each way."""

    def __init__(self, *, sends: int, receives: int) -> None:
        self.sends = sends
        self.receives = receives
        self.ended = False
        self.taken = 0
        self._begun = False
        self._buffer = memoryview(b"")
        self._queue: list[bytes | memoryview] = []
        self._queued = 0
        self._finished = False
        self._untaken = 0
        self._discarding = False
        self._events: list[Event] = []

    # ---- the application's side

    def begin(self) -> None:
        """What arrives has somewhere to go from here on."""
        self._begun = True

    def events(self) -> list[Event]:
        """Return and forget what has happened since the last call."""
        events, self._events = self._events, []
        return events

    def room(self, channel: int) -> int:
        """Return how many bytes may be written now."""
        return 0 if self._finished else QUEUE_LIMIT - self._queued

    def write(self, channel: int, data: bytes) -> None:
        """Send `data`."""
        self._queue.append(data)
        self._queued += len(data)

    def finish(self, channel: int) -> None:
        """Half-close behind the last byte."""
        self._finished = True

    def take(self, channel: int, count: int, now: float) -> bool:
        """Say that `count` more received bytes are where they belong; True when reading may go on by it."""
        paused = self._untaken >= QUEUE_LIMIT
        if not self._discarding:
            self._untaken -= count
            self.taken += count
        return paused and self._untaken < QUEUE_LIMIT

    def stop(self, channel: int, now: float) -> None:
        """Throw away what still arrives."""
        self._discarding = True
        self._untaken = 0

    # ---- the socket's side

    def wants_read(self) -> bool:
        """Not while a queue's worth of bytes waits to be taken: the peer then meets a full socket."""
        return self._begun and not self.ended and self._untaken < QUEUE_LIMIT

    def get_buffer(self, hint: int) -> memoryview:
        """Return where to receive; views handed out before are void from here on."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(BUFFER_SIZE))
        return self._buffer

    def release(self) -> None:
        """The connection is closed: whoever still knows this stream does not keep its buffer alive."""
        self._buffer = memoryview(b"")

    def buffer_updated(self, count: int, now: float) -> None:
        """Take `count` received bytes."""
        if not self._discarding:
            self._untaken += count
            self._events.append(Data(self.receives, self._buffer[:count]))

    def resume_reading(self, now: float) -> None:
        """Nothing is held back here: only TLS decrypts more than it can deliver."""

    def eof_received(self, now: float) -> None:
        """The peer sends no more."""
        if not self.ended:
            self.ended = True
            self._events.append(Finished(self.receives))

    def data_to_send(self, now: float) -> list[bytes | memoryview]:
        """Return buffers for `sendmsg`."""
        return self._queue

    def data_sent(self, count: int) -> None:
        """The kernel took `count` bytes of `data_to_send`."""
        self._queued -= count
        frames.consume(self._queue, count)

    def sending_is_over(self) -> bool:
        """Whether the socket is to be half-closed now."""
        return self._finished and not self._queue

    def next_deadline(self) -> float | None:
        """Raw streams have no deadlines of their own."""
        return None

    def handle_timeout(self, now: float) -> None:
        """Nothing is ever due."""
