"""Two ends of TLS in memory, for tests: each a TlsLayer round a strict inner core, and what came out of it.

Rules: ciphertext moves only when a test says so, in the slices it says; no end sees the other but through it.
"""

from __future__ import annotations

import random
import ssl
from typing import NamedTuple

from sockstream import frames, tls

WHOLE = 1 << 30
ROOM = 128 << 10
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
SESSION_CONTEXT, SESSION_CERTIFICATE = tls.session_server_context()


def noise(size: int) -> bytes:
    """Return bytes that do not repeat and are the same in every run."""
    return random.Random(size).randbytes(size)


class Files(NamedTuple):
    """PEM files: an authority, a certificate for localhost, its key."""

    ca: str
    cert: str
    key: str


class Inner:
    """An inner core that wants no more than ROOM bytes untaken, and minds when its rules are broken."""

    def __init__(self, buffer_size: int) -> None:
        self.arrived: memoryview | None = None
        self.finished = False
        self.untaken = 0
        self.queue: list[bytes | memoryview] = []
        self.sends_no_more = False
        self._buffer = memoryview(bytearray(buffer_size))

    def wants_read(self) -> bool:
        return self.untaken < ROOM and not self.finished

    def get_buffer(self, hint: int) -> memoryview:
        assert hint > 0
        assert self.wants_read()
        assert self.arrived is None, "what arrived before was not used up"
        return self._buffer

    def buffer_updated(self, count: int, now: float) -> None:
        assert self.arrived is None
        assert count > 0
        self.arrived = self._buffer[:count]
        self.untaken += count

    def eof_received(self, now: float) -> None:
        assert self.arrived is None
        assert not self.finished
        self.finished = True

    def data_to_send(self, now: float) -> list[bytes | memoryview]:
        return self.queue

    def data_sent(self, count: int) -> None:
        frames.consume(self.queue, count)

    def sending_is_over(self) -> bool:
        return self.sends_no_more and not self.queue

    def next_deadline(self) -> float | None:
        return None

    def handle_timeout(self, now: float) -> None:
        raise AssertionError("nothing was due")


class End:
    """One end; `takes`: whether it takes bytes at once; other options go to the TlsLayer."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server: bool,
        takes: bool = True,
        buffer_size: int = 64 << 10,
        **options: object,
    ) -> None:
        self.inner = Inner(buffer_size)
        self.received = bytearray()
        self.takes = takes
        self.on_data = self.absorb
        self.layer = tls.TlsLayer(
            context, server_side=server, make_core=self._make_core, on_data=lambda: self.on_data(), **options
        )

    def _make_core(self, sslobject: ssl.SSLObject) -> Inner:
        self.sslobject = sslobject
        return self.inner

    @property
    def is_up(self) -> bool:
        """Whether the handshake is complete."""
        return self.layer.core is self.inner

    @property
    def finished(self) -> bool:
        """Whether the peer's end of file has come."""
        return self.inner.finished

    def absorb(self) -> None:
        """Use up what has arrived."""
        if self.inner.arrived is not None:
            self.received += self.inner.arrived
            self.inner.arrived = None
        if self.takes:
            self.inner.untaken = 0

    def resume(self) -> None:
        """Take all, and call the layer as long as it is due, as a driver does."""
        self.inner.untaken = 0
        while (deadline := self.layer.next_deadline()) is not None:
            assert deadline == 0.0
            self.layer.handle_timeout(1.0)
            self.inner.untaken = 0

    def write(self, data: bytes) -> None:
        """Send data."""
        self.inner.queue.append(data)

    def finish(self) -> None:
        """Half-close behind the last byte."""
        self.inner.sends_no_more = True

    def outgoing(self, most: int = WHOLE) -> bytes:
        """Hand out ciphertext, at most so many bytes."""
        out = bytearray()
        while len(out) < most and (buffers := self.layer.data_to_send(0.0)):
            data = b"".join(buffers)[: most - len(out)]
            self.layer.data_sent(len(data))
            out += data
        return bytes(out)

    def feed(self, data: bytes, piece: int = WHOLE) -> bytes:
        """Receive ciphertext in pieces of at most so many bytes; return what it did not want."""
        while data and self.layer.wants_read():
            view = self.layer.get_buffer(piece)
            count = min(len(view), len(data), piece)
            view[:count] = data[:count]
            self.layer.buffer_updated(count, 0.0)
            data = data[count:]
        return data


def settle(left: End, right: End, piece: int = WHOLE) -> None:
    """Move ciphertext both ways until there is none; both ends take all they get."""
    while True:
        one, other = left.outgoing(), right.outgoing()
        if not one + other:
            return
        assert right.feed(one, piece) == left.feed(other, piece) == b""


def raw_pair(files: Files, version: ssl.TLSVersion = VERSIONS[1], **server_options: object) -> tuple[End, End]:
    """Return a verifying client and a server of raw tls:// that will speak the TLS version given."""
    context = tls.client_context(files.ca)
    context.maximum_version = version
    client = End(context, server=False, server_hostname="localhost")
    return client, raw_server(files, **server_options)


def raw_server(files: Files, **options: object) -> End:
    """Return a server of raw tls://."""
    return End(tls.server_context(files.cert, files.key, session=False)[0], server=True, **options)


def raw_ends(files: Files, version: ssl.TLSVersion, **server_options: object) -> tuple[End, End]:
    """Return the same after the handshake."""
    client, server = raw_pair(files, version, **server_options)
    settle(client, server)
    assert client.sslobject.version() == {VERSIONS[0]: "TLSv1.2", VERSIONS[1]: "TLSv1.3"}[version]
    return client, server


def session_client(**options: object) -> End:
    """Return a client of the sockstream protocol."""
    return End(tls.session_client_context(), server=False, **options)


def session_ends() -> tuple[End, End]:
    """Return a client and a server of the sockstream protocol, before the handshake."""
    return session_client(alpn=tls.ALPN), End(SESSION_CONTEXT, server=True, alpn=tls.ALPN)


def connected() -> tuple[End, End]:
    """Return the same after it."""
    client, server = session_ends()
    settle(client, server)
    assert client.is_up
    assert server.is_up
    return client, server
