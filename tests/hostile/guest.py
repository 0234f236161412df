"""Peers made in this process: one that behaves, over the project's own pure core, and its links by hand for attacks.

Rules: sockets block, with a time limit; `Guest` drives one session over one link at a time. An attack begins as a
guest, and then writes to `sock` what no guest would.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING

from hostile.victim import TOKEN, Victim, dial, send_all
from sockstream import auth
from sockstream.address import parse
from sockstream.handshake import Handshake
from sockstream.link import Link, LinkState
from sockstream.records import How, Kind, Peer, Status
from sockstream.security import plain_binding
from sockstream.session import Completed, Data, GoneAway, Opened, Session
from sockstream.tls import ALPN
from support import limit

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO_SIZE = 49  # with its preamble
GOOD_NEWS = Status(How.EXITED, 0)


def client_context(alpn: str | None = ALPN) -> ssl.SSLContext:
    """Return a TLS context that trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def dial_link(where: str, source: str | None = None, *, tls: bool | None = None) -> tuple[socket.socket, bytes]:
    """Connect and return the socket, in TLS where the address says so, and the binding of the link.

    tls: whether to speak TLS, whatever the address says.
    """
    sock = dial(where, source)
    if not (parse(where).needs_tls if tls is None else tls):
        return sock, plain_binding(sock, dials=True)
    try:
        wrapped = client_context().wrap_socket(sock)
    except BaseException:
        sock.close()
        raise
    return wrapped, hashlib.sha256(wrapped.getpeercert(True) or b"").digest()


def prove(sock: socket.socket, binding: bytes, token: bytes = TOKEN, *behind: bytes) -> None:
    """Carry a handshake as far as a client's proof of a token, and send that, with something right behind it."""
    key, nonce = auth.key_from_token(token), os.urandom(auth.NONCE_SIZE)
    client = Handshake(dials=True, key=key, binding=binding, nonce=nonce)
    sock.sendall(bytes(client.output))
    client.output.clear()
    answer = b""
    while len(answer) < HELLO_SIZE:
        answer += sock.recv(HELLO_SIZE - len(answer))
    client.receive(answer[:16])
    client.receive(answer[16:])
    send_all(sock, bytes(client.output) + b"".join(behind))


class Guest:
    """An end that dials `where`, knows the token, and takes everything it is sent.

    kind: VIEWER for `serve`, PROGRAM for `listen`. session_id and wants: of a session that goes on; name: a program's.
    recorded: everything it has put on the wire.
    """

    def __init__(
        self,
        where: str,
        kind: Kind,
        *,
        name: str = "guest",
        source: str | None = None,
        token: bytes = TOKEN,
        tls: bool | None = None,
        session: Session | None = None,
    ) -> None:
        self.session = session or Session(Peer(kind, session=os.urandom(16), name=name))
        self.received: dict[int, bytes] = {}
        self.happened: list[object] = []
        self.recorded = b""
        self.sock, binding = dial_link(where, source, tls=tls)
        key = auth.key_from_token(token)
        handshake = Handshake(dials=True, key=key, binding=binding, nonce=os.urandom(auth.NONCE_SIZE))
        self.link = Link(handshake, time.monotonic(), self.session)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()
        self.session.detach(self.link)

    def open(self) -> Guest:
        """Go on until both OPENs are through; raises what the link raises."""
        self.go_on(lambda: self.link.state is not LinkState.HANDSHAKE and self._saw(Opened, GoneAway))
        return self

    def _saw(self, *kinds: type) -> bool:
        return any(isinstance(event, kinds) for event in self.happened)

    def go_on(self, until: Callable[[], object], seconds: float = 10) -> None:
        """Send and receive until something holds; AssertionError when that takes too long, EOFError at the end."""
        deadline = time.monotonic() + limit(seconds)
        while True:
            self.flush()
            if until():
                return
            assert time.monotonic() < deadline, f"nothing came of it: {self.happened} {self.received}"
            self.receive(deadline - time.monotonic())

    def flush(self) -> None:
        """Send what is due."""
        while buffers := self.link.data_to_send(time.monotonic()):
            data = b"".join(buffers)
            self.sock.sendall(data)
            self.recorded += data
            self.link.data_sent(len(data))

    def receive(self, seconds: float) -> None:
        """Receive once."""
        self.sock.settimeout(max(0.01, min(seconds, 0.05)))
        with contextlib.suppress(TimeoutError):
            count = self.sock.recv_into(self.link.get_buffer(65536))
            if not count:
                raise EOFError("the other end closed the connection")
            self.link.buffer_updated(count, time.monotonic())
            self._note()
        self.link.handle_timeout(time.monotonic())

    def _note(self) -> None:
        for event in self.session.events():
            self.happened.append(event)
            if isinstance(event, Data):
                self.received[event.channel] = self.received.get(event.channel, b"") + bytes(event.data)
                self.session.take(event.channel, len(event.data), time.monotonic())

    def exchange(self, text: bytes = b"hello\n") -> None:
        """A viewer: have `cat` send some bytes back. A program: have them taken."""
        channel = 1 if self.session.me.kind is Kind.VIEWER else 2
        wanted = self.received.get(2, b"") + text
        self.session.write(channel, text)
        self.go_on(lambda: self.received.get(2) == wanted if channel == 1 else not self.session.untaken())

    def end(self) -> None:
        """Bring the session to its proper end: the viewer ends cat's input, the program ends itself."""
        if self.session.me.kind is Kind.VIEWER:
            self.session.finish(1)
            self.go_on(lambda: self._saw(Completed))
            self.go_on(lambda: self._saw(GoneAway))
            return
        self.session.finish(2)
        self.session.finish(3)
        self.session.end(GOOD_NEWS)
        self.go_on(lambda: self._saw(Completed))
        self.session.leave()
        self.flush()
        with contextlib.suppress(EOFError):
            self.go_on(lambda: False)

    def send_frame(self, kind: int, flags: int = 0, channel: int = 0, number: int = 0, payload: bytes = b"") -> None:
        """Write a frame behind the session's back."""
        self.sock.sendall(frame(kind, flags, channel, number, payload))


def frame(kind: int, flags: int, channel: int, number: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Return a frame as docs/protocol.md has it, or with a false length."""
    size = len(payload) if length is None else length
    return (
        bytes((kind, flags))
        + channel.to_bytes(2, "little")
        + size.to_bytes(4, "little")
        + (number.to_bytes(8, "little") + payload)
    )


def kind_for(victim: Victim) -> Kind:
    """What a guest of that command is."""
    return Kind.VIEWER if victim.name == "serve" else Kind.PROGRAM


def good_client(victim: Victim, *, seconds: float = 1, tls: bool | None = None) -> None:
    """A client with the token is served within limit(seconds): it gets in, and its bytes are carried."""
    started = time.monotonic()
    with Guest(victim.address, kind_for(victim), tls=tls) as guest:
        guest.open().exchange()
        took = time.monotonic() - started
        guest.end()
    assert took < limit(seconds), f"a good client waited {took:.2f} s"
