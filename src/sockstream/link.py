"""One connection's bytes: handshake, then frames, cut and handed to the session (docs/protocol.md sections 2 and 3).

Rules: this is a *core* as every socket driver knows it: `get_buffer`, `buffer_updated`, `data_to_send`, `data_sent`
and so on; a payload of a byte stream is handed on piece by piece as it arrives, in place, everything else when it
is whole. Before the peer is authenticated there is room for 4096 bytes and no more.
"""

from __future__ import annotations

from enum import IntEnum

from . import frames
from .errors import ConnectionLost, RemoteProtocolError, SockstreamError, Timeout
from .frames import HANDSHAKE_TIME, HEADER, HEADER_SIZE, FrameType, GoAwayCode, OpenFlag, pack
from .handshake import MAX_BEFORE_PROOF, Handshake, Step
from .records import Kind, Peer, encode_goaway
from .session import OPPOSITE, Session, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER_SIZE = 512 << 10
_SEND_LIMIT = 512 << 10


class LinkState(IntEnum):
    HANDSHAKE = 0
    OPENING = 1  # the peer's OPEN is awaited
    PARKED = 2  # waiting end: the peer's OPEN is here, ours is not decided
    UP = 3
    CLOSED = 4


class Link:
    """The core for one connection of a session.

    handshake: this end's side of it; session: the dialling end's; the waiting end finds `peer` set in state PARKED
    and calls `accept` or `refuse`.
    """

    def __init__(self, handshake: Handshake, now: float, session: Session | None = None) -> None:
        self.state = LinkState.HANDSHAKE
        self.peer: Peer | None = None
        self.session = session
        self.trace: Callable[[str], None] | None = None  # told of every frame
        self.resumes = False  # the peer has had an answer for this session before
        self._handshake = handshake
        self._deadline = now + HANDSHAKE_TIME
        self._buffer = bytearray(MAX_BEFORE_PROOF)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._before_proof = 0  # bytes taken from a peer of whom nothing is known
        self._left = 0
        self._channel = 0
        self._staged: list[bytes | memoryview] = []

    # ---- receiving

    def wants_read(self) -> bool:
        """Session links are read always: credit, not the socket, holds the peer back."""
        return self.state is not LinkState.CLOSED

    def get_buffer(self, hint: int) -> memoryview:
        """Return where to receive; views handed out before are void from here on."""
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        if self.state is not LinkState.HANDSHAKE and len(self._buffer) < BUFFER_SIZE:
            self._grow_buffer()
        if self.state is LinkState.HANDSHAKE:
            return self._view[self._end : self._end + MAX_BEFORE_PROOF - self._before_proof]
        return self._view[self._end :]

    def _grow_buffer(self) -> None:
        buffer = bytearray(BUFFER_SIZE)
        buffer[: self._end] = self._buffer[: self._end]
        self._buffer, self._view = buffer, memoryview(buffer)

    def release(self) -> None:
        """The connection is closed: whoever still knows this link does not keep its buffer alive."""
        self._buffer, self._start, self._end = bytearray(), 0, 0
        self._view = memoryview(self._buffer)

    def buffer_updated(self, count: int, now: float) -> None:
        """Take `count` bytes that were put into the buffer.

        Raises RemoteProtocolError, AuthenticationError or SessionLost; then what `data_to_send` still has goes out,
        and the link ends.
        """
        self._end += count
        if self.state is LinkState.HANDSHAKE:
            self._before_proof += count
        if self.session is not None and self.session.link is self:
            self.session.heard(now)
        try:
            if self.state is LinkState.HANDSHAKE:
                self._shake_hands()
            if self.state is not LinkState.HANDSHAKE:
                self._cut_frames(now)
        except SockstreamError:
            self.state = LinkState.CLOSED
            raise

    def resume_reading(self, now: float) -> None:
        """Nothing is held back here: only TLS decrypts more than it can deliver."""

    def eof_received(self, now: float) -> None:
        """The peer has closed: for a session that is a broken link, unless it was over."""
        if not self._is_over():
            silent = self.session is not None and self.state is LinkState.HANDSHAKE and not self._before_proof
            hint = ": does it speak sock:// there, or sock+tls:// or something else?" if silent else ""
            raise ConnectionLost(f"the other end closed the connection{hint}")

    def _shake_hands(self) -> None:
        handshake = self._handshake
        handshake.check_start(bytes(self._view[self._start : self._end]))
        while handshake.step is not Step.DONE and self._end - self._start >= handshake.needs():
            stop = self._start + handshake.needs()
            data = bytes(self._view[self._start : stop])
            self._start = stop
            handshake.receive(data)
        if handshake.step is Step.DONE:
            if self._start != self._end:
                raise RemoteProtocolError("the peer sent frames before the proof was through")
            self.state = LinkState.OPENING
            if self.session is not None:
                self._staged.append(self.session.open_frame(dials=True))

    def _cut_frames(self, now: float) -> None:
        while not self._is_over():
            if self._left:
                if not self._pass_on():
                    return
            elif not self._next_frame(now):
                return
        self._start = self._end  # what follows a GOAWAY, the peer's or ours, is of no interest

    def _is_over(self) -> bool:
        """Whether nothing more counts that comes here: a GOAWAY was said, or a newer link has taken over."""
        session = self.session
        replaced = self.state is LinkState.UP and session is not None and session.link is not self
        return self.state is LinkState.CLOSED or replaced or (session is not None and session.state is State.OVER)

    def _pass_on(self) -> bool:
        count = min(self._left, self._end - self._start)
        if not count:
            return False
        assert self.session is not None
        self.session.receive_data(self._channel, self._view[self._start : self._start + count])
        self._start += count
        self._left -= count
        return True

    def _next_frame(self, now: float) -> bool:
        """Take one frame, or the header of one that carries a stream; False when it is not there yet."""
        start = self._start
        if self._end - start < HEADER_SIZE:
            return False
        kind, flags, channel, length, number = HEADER.unpack_from(self._buffer, start)
        frames.check_header(kind, flags, channel, length)
        if self.trace is not None and (channel or self._end >= start + HEADER_SIZE + length):
            self.trace(f"< {frames.describe_header(kind, flags, channel, length, number)}")
        if kind == FrameType.DATA:
            self._check_data(flags, channel, length, number)
            if channel:
                self._start = start + HEADER_SIZE
                self._begin_stream(channel, length)
                return True
        stop = start + HEADER_SIZE + length
        if self._end < stop:
            return False
        self._start = stop
        self._dispatch(kind, flags, channel, number, self._view[start + HEADER_SIZE : stop], now)
        return True

    def _check_data(self, flags: int, channel: int, length: int, number: int) -> None:
        if self.state is not LinkState.UP or self.session is None or self.session.state is not State.OPEN:
            raise RemoteProtocolError("the peer sent DATA where it may not stand")
        self.session.expect_data(flags, channel, length, number)
        if channel and not length and not flags:
            raise RemoteProtocolError(f"the peer sent an empty DATA frame on channel {channel}")

    def _begin_stream(self, channel: int, length: int) -> None:
        assert self.session is not None
        if length:
            self._channel, self._left = channel, length
        else:
            self.session.receive_fin(channel)

    def _dispatch(self, kind: int, flags: int, channel: int, number: int, payload: memoryview, now: float) -> None:
        if self.state is LinkState.OPENING and kind == FrameType.OPEN:
            self.resumes = bool(flags & OpenFlag.RESUME)
            self._receive_open(Peer.decode(bytes(payload)), flags, now)
        elif self.session is None or (self.state is LinkState.OPENING and kind != FrameType.GOAWAY):
            raise RemoteProtocolError(f"the peer sent {FrameType(kind).name} before the OPENs were through")
        else:
            self.session.receive(kind, flags, channel, number, payload, now)
        if kind == FrameType.GOAWAY:
            self.state = LinkState.CLOSED

    def _receive_open(self, peer: Peer, flags: int, now: float) -> None:
        if peer.kind is not Kind.OBJECTS and not flags & OpenFlag.DURABLE:
            raise RemoteProtocolError(f"the peer is a {peer.kind.name.lower()} that is not durable")
        self.peer = peer
        if self.session is None:
            self.state = LinkState.PARKED
            return
        if peer.session != self.session.me.session:
            raise RemoteProtocolError("the peer answered for another session")
        if OPPOSITE.get(self.session.me.kind) != peer.kind:
            raise RemoteProtocolError(f"the other end is a {peer.kind.name.lower()}, as this one")
        self.state = LinkState.UP
        self.session.attach(self, peer, now)

    # ---- the waiting end's answer to OPEN

    def accept(self, session: Session, now: float) -> None:
        """Join a session; its older link has been closed by the caller. Raises SessionLost (GOAWAY is on its way)."""
        assert self.peer is not None
        try:
            session.attach(self, self.peer, now)
        except Exception as error:
            self.refuse(GoAwayCode.UNKNOWN_SESSION, str(error))
            raise
        self.session = session
        self.state = LinkState.UP
        self._staged.append(session.open_frame(dials=False))

    def refuse(self, code: GoAwayCode, text: str) -> None:
        """Answer GOAWAY in place of OPEN."""
        self._staged.append(pack(FrameType.GOAWAY, payload=encode_goaway(code, text)))
        self.state = LinkState.CLOSED

    # ---- sending

    def data_to_send(self, now: float) -> list[bytes | memoryview]:
        """Return buffers for `sendmsg`; the same ones until `data_sent`."""
        if not self._staged:
            if self._handshake.output:
                self._staged.append(bytes(self._handshake.output))
                self._handshake.output.clear()
            elif self.session is not None and self.session.link is self:
                self._staged = self.session.compose(now, _SEND_LIMIT)
                if self.trace is not None:
                    for said in frames.describe(self._staged):
                        self.trace(f"> {said}")
        return self._staged

    def data_sent(self, count: int) -> None:
        """The kernel took `count` bytes of `data_to_send`."""
        frames.consume(self._staged, count)

    def sending_is_over(self) -> bool:
        """Whether GOAWAY, the last frame of all, has gone out."""
        due = self.session is not None and self.session.link is self and self.session.goodbye_due
        return self._is_over() and not self._staged and not due

    # ---- time

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is to be called, None for never."""
        if self._is_over():
            return None
        if self.state is LinkState.UP and self.session is not None:
            return self.session.next_deadline()
        return self._deadline

    def handle_timeout(self, now: float) -> None:
        """Raise Timeout for a handshake that takes too long, ConnectionLost for a silent peer."""
        if self._is_over():
            return
        if self.state is LinkState.UP and self.session is not None:
            if not self.session.handle_timeout(now):
                raise ConnectionLost("the other end has been silent for 15 s")
        elif now >= self._deadline:
            raise Timeout(f"the other end did not say who it is within {HANDSHAKE_TIME:g} s")
