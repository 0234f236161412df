"""`connect`: the viewer end that dials, for one program or any raw service."""

from __future__ import annotations

import os

from ..dialling import Dialler, is_final
from ..frames import Channel
from ..link import Link
from ..raw import RawStream
from ..records import Kind, Peer
from ..session import Session
from ..viewing import Viewing
from .terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..address import Address
    from ..driver import Core, SocketDriver
    from ..errors import SockstreamError
    from ..notices import Notices
    from ..records import Status
    from ..security import Security


class Connecting:
    """Dial `address` for up to `wait` seconds and show what is there.

    grace: seconds without a link before a session is given up; crlf: send line ends as CR LF.
    """

    def __init__(
        self,
        address: Address,
        credentials: Security,
        notices: Notices,
        *,
        wait: float,
        grace: float,
        crlf: bool,
    ) -> None:
        self.credentials = credentials
        self.notices = notices
        self.terminal = Terminal(notices, crlf=crlf)
        self._address = address
        self._wait = wait
        self._grace = grace
        self._dialler = Dialler(self.terminal.loop, address, credentials, self._core, self._connected, self._failed)
        self.viewing = Viewing(
            self.terminal.loop,
            self._new_session(address),
            notices,
            self._on_opened,
            self._on_broken,
            self._on_done,
        )

    def run(self) -> int:
        """Dial and show; returns the exit status."""
        return self.terminal.run(self._start, self._dialler.stop)

    def _start(self) -> None:
        self.credentials.prepare_to_dial(self._address)
        self._dialler.start(self._wait)

    def _new_session(self, address: Address) -> Session | RawStream:
        if address.is_raw:
            return RawStream(sends=Channel.STDIN, receives=Channel.STDOUT)
        return Session(Peer(Kind.VIEWER, session=os.urandom(16), host=os.uname().nodename, grace=self._grace))

    def _core(self, binding: bytes) -> Core:
        session = self.viewing.session
        if isinstance(session, RawStream):
            self.terminal.loop.soon(self.viewing.begin)
            return session
        link = Link(self.credentials.handshake(dials=True, binding=binding), self.terminal.loop.now(), session)
        link.trace = self.notices.tracer()
        return link

    def _connected(self, driver: SocketDriver) -> None:
        self.viewing.endpoint.use(driver)

    def _on_opened(self) -> None:
        if self.viewing not in self.terminal.programs:
            self.terminal.show(self.viewing)

    def _on_broken(self, error: SockstreamError | None) -> None:
        if error is not None and (is_final(error) or not self.viewing.endpoint.came_up):
            self._dialler.failed(error)
        else:
            self.notices.detail(f"{error}; dialling again")
            self._dialler.start_again(self._grace)

    def _failed(self, error: SockstreamError) -> None:
        if self.viewing.opened:
            self.viewing.give_up(str(error))
        else:
            self.notices.error(str(error))
            self._on_done(None)

    def _on_done(self, status: Status | None) -> None:
        self._dialler.stop()
        self.terminal.detach(self.viewing)
        self.terminal.tell(self.viewing, status, alone=True)
        self.terminal.end(self.terminal.exit_code(status))
