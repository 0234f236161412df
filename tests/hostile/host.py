"""A waiting end made in this process, for attacks on commands that dial.

Rules: `Host` listens on a free port of 127.0.0.1 (or where it is told) and counts who comes; what it says to them is
the test's business. `welcome` plays the waiting end of a session by hand, over the project's own pure core.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from hostile.guest import Guest
from hostile.victim import TOKEN
from sockstream import auth
from sockstream.handshake import Handshake
from sockstream.link import Link, LinkState
from sockstream.records import Kind, Peer
from sockstream.security import plain_binding
from sockstream.session import Session
from support import limit

if TYPE_CHECKING:
    from collections.abc import Callable


class Host:
    """A listening socket at `place`, and how many have come so far."""

    def __init__(self, place: tuple[str, int] | str = ("127.0.0.1", 0)) -> None:
        family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(place)
        self.listener.listen(64)
        self.came = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.listener.getsockname()[1]
        return port

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.listener.close()

    def accept(self, seconds: float = 10) -> socket.socket:
        """Take the next who comes."""
        assert select.select([self.listener], [], [], limit(seconds))[0], "nobody came"
        sock, _ = self.listener.accept()
        sock.settimeout(limit(15))
        self.came += 1
        return sock

    def serve(self, talk: Callable[[socket.socket], None], until: Callable[[], object], seconds: float = 20) -> None:
        """Let everyone who comes hear the same, until something holds."""
        deadline = time.monotonic() + limit(seconds)
        while not until():
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.listener], [], [], 0.02)[0]:
                with self.accept() as sock, contextlib.suppress(OSError):
                    talk(sock)


class Welcome(Guest):
    """The waiting end of a session, towards a command that has dialled `sock`."""

    def __init__(self, sock: socket.socket, kind: Kind, *, grace: float = 60.0) -> None:
        self.session = Session(Peer(kind, name="host", grace=grace))
        self.received: dict[int, bytes] = {}
        self.happened: list[object] = []
        self.recorded = b""
        self.sock = sock
        nonce, key = os.urandom(auth.NONCE_SIZE), auth.key_from_token(TOKEN)
        handshake = Handshake(dials=False, key=key, binding=plain_binding(sock, dials=False), nonce=nonce)
        self.link = Link(handshake, time.monotonic())

    def until_asked(self) -> Welcome:
        """Go on until the command's OPEN is here."""
        self.go_on(lambda: self.link.state is LinkState.PARKED)
        return self

    def open(self) -> Welcome:
        """Go on until both OPENs are through."""
        self.until_asked()
        assert self.link.peer is not None
        self.session.me.session = self.link.peer.session
        self.link.accept(self.session, time.monotonic())
        self.flush()
        return self
