"""Moves bytes between one connected socket and its core.

Rules: the socket is non-blocking and ours; what arrives goes through `core.get_buffer` in place, and `on_input` is
called after each piece, since events may point into that buffer; everything that the core wants to send is sent at
once, and only what the kernel refuses waits for the loop. Whatever ends the connection comes out of `on_lost`
exactly once.

An orderly end is half-close, then reading until the peer closes: closing with unread bytes would make the kernel
send a reset, which destroys what the peer has not read yet. A peer that has closed takes no more, but what it said
before is in our kernel, and is read to its end first.
"""

from __future__ import annotations

import errno
import socket

from . import transport
from .errors import ConnectionLost, SockstreamError
from .loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from .loop import Loop, Timer

    class Core(Protocol):
        """What a driver needs: a session's link, a raw stream, or TLS round one of them."""

        def wants_read(self) -> bool: ...
        def get_buffer(self, hint: int) -> memoryview: ...
        def buffer_updated(self, count: int, now: float) -> None: ...
        def eof_received(self, now: float) -> None: ...
        def resume_reading(self, now: float) -> None: ...
        def data_to_send(self, now: float) -> list[bytes | memoryview]: ...
        def data_sent(self, count: int) -> None: ...
        def sending_is_over(self) -> bool: ...
        def next_deadline(self) -> float | None: ...
        def handle_timeout(self, now: float) -> None: ...


_READS_A_TURN = 4
_BUFFERS_A_CALL = 64
_READ_SIZE = 256 << 10
_LOOK_EVERY = 0.25


class SocketDriver:
    """Drive `core` over `sock` until one of them ends.

    on_sent(): some of what the core had has gone, there may be room for more; on_input(): the core has taken bytes or
    an end of file, look at its events; on_lost(error): the connection is over, `error` is None after an orderly end.
    The socket is closed by then.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        core: Core,
        on_input: Callable[[], None],
        on_lost: Callable[[SockstreamError | None], None],
    ) -> None:
        self.loop = loop
        self.sock = sock
        self.core = core
        self.on_input = on_input
        self.on_lost = on_lost
        self.on_sent: Callable[[], None] = _nothing
        self.closed = False
        self.read_eof = False
        self.reads_on = True  # to the end of what has come, when the peer takes no more
        self._unsendable: OSError | None = None
        self._half_closed = False
        self._lingering = False
        self._mask = 0
        self._blocked = False
        self._timer: Timer | None = None
        self._update()

    def flush(self) -> None:
        """Send what the core has; call it after everything that may have given it something to send."""
        if self.closed:
            return
        try:
            if not self._lingering:
                self.core.resume_reading(self.loop.now())
            if self._unsendable is None:
                self._send()
        except BlockingIOError:
            self._blocked = True
        except SockstreamError as error:  # before OSError: some of ours are both
            self._say_last_words()
            self._lose(error)
        except OSError as error:
            self._on_unsendable(error)
        self._update()

    def deliver(self) -> bool:
        """Call `on_input` for what TLS has decrypted; False when that ended the connection."""
        self.on_input()
        return not self.closed

    def abort(self) -> None:
        """Close at once, without a word to the owner."""
        if not self.closed:
            self._close()

    def finish(self, patience: float, *, lossless: bool = False) -> None:
        """Half-close behind what is to be sent, wait for the peer to close, then say `on_lost(None)`.

        patience: seconds without progress after which it is closed anyway; lossless: not before the
        peer's kernel has everything, since what the peer sends to a closed socket is answered by a reset.
        """
        if self.closed or self._lingering:
            return
        self._lingering = True
        self.flush()
        if self.read_eof and not self._blocked:
            self._finish_now()
        elif not self.closed:
            self._look_again(patience, lossless, transport.unsent_bytes(self.sock), self.loop.now())

    def _look_again(self, patience: float, lossless: bool, unsent: int, since: float) -> None:
        """Close when nothing has moved for `patience` seconds: what the kernel has, it delivers without us."""
        if self.closed:
            return
        now, left = self.loop.now(), transport.unsent_bytes(self.sock)
        if left != unsent or (lossless and (self._blocked or left)):
            since = now
        if now - since >= patience:
            self._finish_now()
        else:
            self.loop.call_later(_LOOK_EVERY, lambda: self._look_again(patience, lossless, left, since))

    # ---- receiving

    def _ready(self, mask: int) -> None:
        self._blocked = False if mask & WRITE else self._blocked
        if mask & READ:
            self._receive()
        self.flush()

    def _receive(self) -> None:
        try:
            for _ in range(_READS_A_TURN):
                if self.closed or not (self._lingering or self.core.wants_read()):
                    return
                if not self._receive_some():
                    return
        except BlockingIOError:
            return
        except SockstreamError as error:  # before OSError: some of ours are both
            self._say_last_words()
            self._lose(error)
        except OSError as error:
            self._lose(_lost(error))

    def _receive_some(self) -> bool:
        """Receive once; False when there is no more for now."""
        buffer = self.core.get_buffer(_READ_SIZE)
        count = self.sock.recv_into(buffer)
        now = self.loop.now()
        if self._lingering:
            if not count:
                self.read_eof = True
                if not self._blocked:
                    self._finish_now()
            return bool(count)
        if count:
            self.core.buffer_updated(count, now)
        elif self._unsendable is not None and self._unsendable.errno == errno.ECONNRESET:
            raise _lost(self._unsendable)  # which reading does not report again
        else:
            self.read_eof = True
            self.core.eof_received(now)
        self.on_input()
        return count == len(buffer)

    # ---- sending

    def _send(self) -> None:
        now, sent = self.loop.now(), False
        while not self._blocked:
            buffers = self.core.data_to_send(now)
            if not buffers:
                break
            sent = True
            one = len(buffers) == 1
            self.core.data_sent(self.sock.send(buffers[0]) if one else self.sock.sendmsg(buffers[:_BUFFERS_A_CALL]))
        if sent:
            self.on_sent()
        if self._lingering and self.read_eof and not self._blocked:
            self._finish_now()
            return
        over = self.core.sending_is_over() or (self._lingering and not self._blocked)
        if over and not self._half_closed:
            self._half_close()

    def _on_unsendable(self, error: OSError) -> None:
        if self.reads_on and not self._lingering and error.errno in (errno.EPIPE, errno.ECONNRESET):
            self._unsendable, self._blocked = error, False
        else:
            self._lose(_lost(error))

    def _half_close(self) -> None:
        self._half_closed = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the peer is gone already, which reading will tell
            return

    def _say_last_words(self) -> None:
        """Try to hand over a refusal or a GOAWAY; a peer that does not read does without."""
        try:
            buffers = self.core.data_to_send(self.loop.now())
            if buffers:
                self.sock.sendmsg(buffers[:_BUFFERS_A_CALL])
        except (OSError, SockstreamError):
            return

    # ---- time and the end

    def _update(self) -> None:
        """Watch the socket for what is of use now, and the core's next deadline."""
        if self.closed:
            return
        reads = not self.read_eof and (self._lingering or self.core.wants_read())
        mask = (READ if reads else 0) | (WRITE if self._blocked else 0)
        if mask != self._mask:
            self._mask = mask
            self.loop.watch(self.sock.fileno(), mask, self._ready)
        deadline = None if self._lingering else self.core.next_deadline()
        timer = self._timer
        if deadline is not None and (timer is None or deadline < timer.when):
            if timer is not None:
                timer.cancel()
            self._timer = self.loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.closed or self._lingering:
            return
        now = self.loop.now()
        deadline = self.core.next_deadline()
        try:
            if deadline is not None and now >= deadline:
                self.core.handle_timeout(now)
        except SockstreamError as error:
            self._lose(error)
            return
        self.flush()

    def _finish_now(self) -> None:
        if not self.closed:
            self._lose(None)

    def _lose(self, error: SockstreamError | None) -> None:
        if not self.closed:
            self._close()
            self.on_lost(error)

    def _close(self) -> None:
        self.closed = True
        self.loop.unwatch(self.sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self.sock.close()


def _lost(error: OSError) -> ConnectionLost:
    lost = ConnectionLost(f"the connection broke: {error.strerror or error}")
    lost.__cause__ = error
    return lost


def _nothing() -> None:
    return
