"""`serve`: the program end that waits, with one program for each connection.

Rules: one loop for all of them; a session is found by its id, so a viewer that comes back gets its program and not
another one; at `most` programs a session is refused (`full`) and a raw connection waits in the backlog. A signal
ends the service: it goes to every program, nobody new is taken, and the last program's end is ours.
"""

from __future__ import annotations

import os
import signal

from . import transport
from .accepting import Acceptor
from .errors import LimitExceeded, ProtocolError, SessionLost, SockstreamError
from .frames import Channel, GoAwayCode
from .loop import Loop
from .program import POLITE_TIME, Job, ProgramEnd
from .raw import RawStream
from .records import Kind
from .runner import FORWARDED
from .session import Session, State
from .streams import keep_freed_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from .address import Address
    from .driver import SocketDriver
    from .link import Link
    from .notices import Notices
    from .security import Security


class Server:
    """Serve `job` on `address`.

    once: one program, whose status is ours; most: programs at a time; listener: a socket that listens there already.
    """

    def __init__(
        self,
        job: Job,
        address: Address,
        credentials: Security,
        notices: Notices,
        *,
        once: bool,
        most: int,
        listener: socket.socket | None = None,
    ) -> None:
        self.job = job
        self.credentials = credentials
        self.notices = notices
        self.loop = Loop()
        self.status = 0
        self._once = once
        self._most = 1 if once else most
        self._address = address
        self._listener = listener
        self._acceptor: Acceptor | None = None
        self._by_session: dict[bytes, ProgramEnd] = {}
        self._ends: dict[ProgramEnd, str] = {}  # and the host of its first viewer
        self._stopping = False

    def run(self) -> int:
        """Listen and serve; returns the exit status."""
        if not self._address.is_raw:
            self.credentials.key()
        if self._address.needs_tls or not (self._address.is_unix or self._address.host_is_loopback):
            self.credentials.server_context(self._address)
        listener, address = (self._listener, self._address) if self._listener else transport.bind(self._address)
        self._acceptor = Acceptor(
            self.loop,
            listener,
            address,
            self.credentials,
            self.notices,
            on_link=self._on_link,
            on_stream=self._on_stream,
            make_stream=lambda: RawStream(sends=Channel.STDOUT, receives=Channel.STDIN),
        )
        for signum in FORWARDED:
            self.loop.on_signal(signum, lambda signum=signum: self._on_signal(signum))  # type: ignore[misc]  # a default binds it
        keep_freed_memory()
        try:
            self.notices.say(f"listening on {address}")
            transport.notify(os.environ, "READY=1")
            self.loop.run()
        finally:
            self._acceptor.close()
            self.loop.close()
        return self.status

    # ---- those who come

    def _on_link(self, driver: SocketDriver, link: Link) -> None:
        """A viewer has come, for a program of its own or back to one."""
        assert link.peer is not None
        known = self._by_session.get(link.peer.session)
        refusal = self._refusal(link, link.peer.kind, known)
        if refusal is not None:
            self.notices.about_peer(transport.peer_text(driver.sock), f"refused: {refusal[1]}")
            link.refuse(*refusal)
            driver.finish(POLITE_TIME)
            return
        end = known or self._new_end(driver, Session(self.job.describe(link.peer.session)), link.peer.session)
        try:
            end.endpoint.join(driver, link)
        except SessionLost as error:
            end.give_up(str(error))

    def _refusal(self, link: Link, kind: Kind, known: ProgramEnd | None) -> tuple[GoAwayCode, str] | None:
        if kind is not Kind.VIEWER:
            return GoAwayCode.REFUSED, "this end runs programs and takes viewers: use sockstream connect"
        if known is not None and isinstance(known.session, Session) and known.session.state is not State.OVER:
            return None
        if known is not None or link.resumes:
            return GoAwayCode.UNKNOWN_SESSION, "that program is not here any more"
        if self._stopping or len(self._ends) >= self._most:
            return GoAwayCode.FULL, f"as many programs as may run here ({self._most}) do already"
        return None

    def _on_stream(self, driver: SocketDriver, stream: RawStream) -> None:
        """A raw peer has come: its program starts at once."""
        if self._stopping or len(self._ends) >= self._most:  # it was in its TLS handshake meanwhile
            raise LimitExceeded(f"refused: as many programs as may run here ({self._most}) do already")
        end = self._new_end(driver, stream, b"")
        end.endpoint.use(driver)
        if self._acceptor is not None and (self._once or len(self._ends) >= self._most):
            self._acceptor.pause()
        end.begin()

    def _new_end(self, driver: SocketDriver, session: Session | RawStream, session_id: bytes) -> ProgramEnd:
        host = transport.peer_text(driver.sock).rpartition(":")[0]
        environ = transport.ucspi_environment(driver.sock, list(self._ends.values()).count(host) + 1)

        def done(status: int) -> None:
            self._forget(end, session_id, status)

        end = ProgramEnd(self.loop, self.job, session, self.notices, self._on_broken, done, environ)
        self._ends[end] = host
        if session_id:
            self._by_session[session_id] = end
        return end

    def _on_broken(self, error: SockstreamError | None) -> None:
        """A viewer dials again by itself; until then the program end counts its grace."""
        if isinstance(error, ProtocolError):
            self.notices.about_peer(self.job.name, f"the link is closed: {error}")

    # ---- the end

    def _forget(self, end: ProgramEnd, session_id: bytes, status: int) -> None:
        del self._ends[end]
        self._by_session.pop(session_id, None)
        if self._once:
            self.status = status
            self.loop.stop()
        elif self._stopping and not self._ends:
            self.loop.stop()
        elif self._acceptor is not None and not self._stopping:
            self._acceptor.resume()

    def _on_signal(self, signum: int) -> None:
        """Stop: pass it on, and when it comes again, or a program has ended already, do not wait for viewers."""
        again, self._stopping = self._stopping, True
        # A service that is told to stop has not failed; one program that never came has no status.
        self.status = 0 if signum == signal.SIGTERM and not self._once else 128 + signum
        if self._address.is_raw and self._acceptor is not None:
            self._acceptor.pause()
        for end in list(self._ends):
            if again or not end.signal(signum):
                end.give_up("stopped")
        if not self._ends:
            self.loop.stop()
