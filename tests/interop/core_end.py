"""The pure core on a Unix socket, in this process: what the second implementation talks to beside the commands.

Rules: a blocking dial or accept, then one `select`; a broken link is made anew by the end that dials, until the session
is over. `work` is the application: it is called after each turn, and answers whether all is said.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING

from pair import Application, end_of_file
from sockstream import auth
from sockstream.errors import ConnectionLost
from sockstream.handshake import Handshake
from sockstream.link import Link, LinkState
from support import limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from sockstream.session import Session


class CoreEnd:
    """One end of a session over Unix sockets.

    path: where it dials, or waits; key: the 32 bytes of the token.
    """

    def __init__(self, session: Session, path: str, key: bytes, *, dials: bool) -> None:
        self.application = Application(session)
        self.links = 0  # how many there were
        self._path, self._key, self._dials = path, key, dials
        self._link: Link
        self._socket: socket.socket
        self._listener = None if dials else socket.create_server(path, family=socket.AF_UNIX)

    def serve(self, work: Callable[[], bool]) -> None:
        """Make links and serve them, until `work` is done and the last link has ended in good order."""
        deadline = time.monotonic() + limit(60)
        try:
            while not self._one_link(work, deadline):
                pass
        finally:
            if self._listener is not None:
                self._listener.close()

    def _one_link(self, work: Callable[[], bool], deadline: float) -> bool:
        """Serve one link; answers whether it was the last."""
        handshake = Handshake(dials=self._dials, key=self._key, binding=auth.unix_binding(), nonce=os.urandom(32))
        session = self.application.session
        self._link = Link(handshake, time.monotonic(), session if self._dials else None)
        self._socket = self._connect(deadline)
        self.links += 1
        with self._socket:
            self._socket.setblocking(False)
            while not self._link.sending_is_over():
                assert time.monotonic() < deadline, "the session did not come to its end"
                if not self._turn():
                    end_of_file(self._link)
                    return bool(self.application.gone)
                if self._link.state is LinkState.UP and work():
                    session.leave()
                    self._send()
        return True

    def _connect(self, deadline: float) -> socket.socket:
        if self._listener is not None:
            self._listener.settimeout(max(0.1, deadline - time.monotonic()))
            return self._listener.accept()[0]
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(self._path)
                return sock
            except OSError:
                sock.close()
                assert time.monotonic() < deadline, "nobody listens"
                time.sleep(0.02)

    def _turn(self) -> bool:
        """Move what can be moved; False when the peer has closed or broken the link."""
        link, now = self._link, time.monotonic()
        writing = [self._socket] if link.data_to_send(now) else []
        readable, _, _ = select.select([self._socket], writing, [], 0.02)
        now = time.monotonic()
        try:
            if readable and not self._receive(now):
                return False
            if (due := link.next_deadline()) is not None and now >= due:
                link.handle_timeout(now)
            self._send()
        except (ConnectionLost, OSError):
            return False
        return True

    def _receive(self, now: float) -> bool:
        link = self._link
        count = self._socket.recv_into(link.get_buffer(1 << 16))
        if not count:
            return False
        link.buffer_updated(count, now)
        if link.state is LinkState.PARKED:
            assert link.peer is not None
            session = self.application.session
            if session.peer is None:
                session.me.session = link.peer.session  # the dialling end has chosen it
            assert session.me.session == link.peer.session
            assert link.resumes is (session.peer is not None)
            link.accept(session, now)
        self.application.absorb(now)
        return True

    def _send(self) -> None:
        while buffers := self._link.data_to_send(time.monotonic()):
            try:
                self._link.data_sent(self._socket.sendmsg(buffers[:64]))
            except BlockingIOError:
                return
