"""`listen`: the viewer end that waits, for one program or for many.

Rules: a program that comes back finds its session; one that belonged to a viewer which is gone is adopted, and what
is missing is said; `once` takes one program, byte-exact, and ends with its status.
"""

from __future__ import annotations

import os

from .. import transport
from ..accepting import Acceptor
from ..errors import LimitExceeded, ProtocolError, SessionLost
from ..frames import Channel, GoAwayCode
from ..notices import escape
from ..raw import RawStream
from ..records import Kind, Peer
from ..session import Session
from ..viewing import POLITE_TIME, Viewing
from .lines import LineSink, Screen
from .terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..address import Address
    from ..driver import SocketDriver
    from ..errors import SockstreamError
    from ..link import Link
    from ..notices import Notices
    from ..records import Status
    from ..security import Security

_LONGEST_NAME = 64  # it stands before every line, however short: the peer must not choose how much that is
_MARKS = ((Channel.STDOUT, b"| "), (Channel.STDERR, b"! "))


class Listening:
    """Wait on `address` for programs and show them."""

    def __init__(
        self,
        address: Address,
        credentials: Security,
        notices: Notices,
        *,
        once: bool,
        timestamps: bool,
        grace: float,
    ) -> None:
        self.credentials = credentials
        self.notices = notices
        self.terminal = Terminal(notices)
        self._address = address
        self._once = once
        self._timestamps = timestamps
        self._grace = grace
        self._screen = Screen()
        self.terminal.on_line_typed = self._screen.end_line
        self._acceptor: Acceptor | None = None
        self._by_session: dict[bytes, Viewing] = {}
        self._names: set[str] = set()

    def run(self) -> int:
        """Listen and show; returns the exit status."""
        return self.terminal.run(self._start, self._stop)

    def _start(self) -> None:
        address = self._address
        if not address.is_raw:
            self.credentials.key()
        if address.needs_tls or not (address.is_unix or address.host_is_loopback or address.is_raw):
            self.credentials.server_context(address)
        listener, real = transport.bind(address)
        self._acceptor = Acceptor(
            self.terminal.loop,
            listener,
            real,
            self.credentials,
            self.notices,
            on_link=self._on_link,
            on_stream=self._on_stream,
            make_stream=lambda: RawStream(sends=Channel.STDIN, receives=Channel.STDOUT),
        )
        self.notices.say(f"listening on {real}")

    def _stop(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()

    # ---- programs that come

    def _on_link(self, driver: SocketDriver, link: Link) -> None:
        assert link.peer is not None
        viewing = self._by_session.get(link.peer.session)
        refusal = self._refusal(link.peer, viewing)
        if refusal is not None:
            self.notices.about_peer(transport.peer_text(driver.sock), f"refused: {refusal[1]}")
            link.refuse(*refusal)
            driver.finish(POLITE_TIME)
            return
        if viewing is None:
            me = Peer(Kind.VIEWER, session=link.peer.session, host=os.uname().nodename, grace=self._grace)
            session = Session(me, adopting=link.peer if link.resumes else None)
            viewing = self._new(session, escape(link.peer.name)[:_LONGEST_NAME] or "program")
            self._by_session[link.peer.session] = viewing
        try:
            viewing.endpoint.join(driver, link)
        except SessionLost as error:
            viewing.give_up(str(error))

    def _refusal(self, peer: Peer, viewing: Viewing | None) -> tuple[GoAwayCode, str] | None:
        if peer.kind is not Kind.PROGRAM:
            return GoAwayCode.REFUSED, "this end shows programs: start one with sockstream run"
        if viewing is None and self._once and self.terminal.programs:
            return GoAwayCode.FULL, "this viewer shows one program only (--once)"
        return None

    def _on_stream(self, driver: SocketDriver, stream: RawStream) -> None:
        if self._once and self.terminal.programs:  # of several that were in their TLS handshake
            raise LimitExceeded("refused: this viewer shows one program only (--once)")
        viewing = self._new(stream, transport.peer_text(driver.sock))
        viewing.endpoint.use(driver)
        if self._once and self._acceptor is not None:
            self._acceptor.pause()
        viewing.begin()

    def _new(self, session: Session | RawStream, name: str) -> Viewing:
        def done(status: Status | None) -> None:
            self._on_done(viewing, status)

        def broken(error: SockstreamError | None) -> None:
            """A program end dials again by itself; until then its grace runs."""
            if isinstance(error, ProtocolError):
                self.notices.about_peer(viewing.name, f"the link is closed: {error}")

        viewing = Viewing(self.terminal.loop, session, self.notices, lambda: self._on_opened(viewing), broken, done)
        viewing.name = self._unique(name)
        return viewing

    def _unique(self, name: str) -> str:
        """Return the name, with #2, #3 ... while another program has it."""
        unique, number = name, 1
        while unique in self._names:
            number += 1
            unique = f"{name}#{number}"
        self._names.add(unique)
        return unique

    def _on_opened(self, viewing: Viewing) -> None:
        if viewing in self.terminal.programs:
            return
        if self._once:
            self.terminal.show(viewing)
            return
        for channel, mark in _MARKS:
            sink = self.terminal.sink(channel)
            prefix = viewing.name.encode("utf-8", "replace") + mark
            viewing.endpoint.sinks[channel] = LineSink(
                self.terminal.loop, sink, prefix, self._screen, timestamps=self._timestamps
            )
        self.notices.say(f"{viewing.name} is attached")
        self.terminal.attach(viewing)

    def _on_done(self, viewing: Viewing, status: Status | None) -> None:
        self._names.discard(viewing.name)
        if isinstance(viewing.session, Session):
            self._by_session.pop(viewing.session.me.session, None)
        self.terminal.detach(viewing)
        self.terminal.tell(viewing, status, alone=self._once)
        useless = (viewing.left or self.terminal.unread) and not self.terminal.programs
        if self._once or useless:
            self.terminal.end(self.terminal.exit_code(status))
        elif self._acceptor is not None:
            self._acceptor.resume()
