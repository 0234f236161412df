"""`run`: the program end that dials.

Rules: the program starts when the viewer end has answered; a broken link is dialled again for the grace; the
signals that people and service managers send go to the program, whose status is ours. Exit codes: the program's
own, 125 for our own trouble, 126 and 127 as `env` has them, 128+N for a signal.
"""

from __future__ import annotations

import os
import signal

from .dialling import Dialler, is_final
from .frames import Channel
from .loop import Loop
from .program import Job, ProgramEnd
from .raw import RawStream
from .session import Session
from .streams import keep_freed_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .address import Address
    from .driver import Core, SocketDriver
    from .errors import SockstreamError
    from .notices import Notices
    from .security import Security

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Runner:
    """Run `job` with its stdio on `address`, which is dialled for up to `wait` seconds."""

    def __init__(self, job: Job, address: Address, credentials: Security, notices: Notices, wait: float) -> None:
        self.job = job
        self.credentials = credentials
        self.notices = notices
        self.loop = Loop()
        self.status = 125
        self._wait = wait
        self._address = address
        self._dialler = Dialler(self.loop, address, credentials, self._core, self._connected, self._failed)
        self.end = ProgramEnd(self.loop, job, self._new_session(), notices, self._on_broken, self._on_done)

    def run(self) -> int:
        """Do it, and return the exit status."""
        self.credentials.prepare_to_dial(self._address)
        for signum in FORWARDED:
            self.loop.on_signal(signum, lambda signum=signum: self._on_signal(signum))  # type: ignore[misc]  # a default binds it
        keep_freed_memory()
        try:
            self._dialler.start(self._wait)
            self.loop.run()
        finally:
            self.loop.close()
        return self.status

    def _new_session(self) -> Session | RawStream:
        if self._address.is_raw:
            return RawStream(sends=Channel.STDOUT, receives=Channel.STDIN)
        return Session(self.job.describe(os.urandom(16)))

    def _core(self, binding: bytes) -> Core:
        session = self.end.session
        if isinstance(session, RawStream):
            self.loop.soon(self.end.begin)
            return session
        from .link import Link  # not for raw addresses: a millisecond and a half of every start

        link = Link(self.credentials.handshake(dials=True, binding=binding), self.loop.now(), session)
        link.trace = self.notices.tracer()
        return link

    def _connected(self, driver: SocketDriver) -> None:
        self.end.endpoint.use(driver)

    def _on_broken(self, error: SockstreamError | None) -> None:
        if error is not None and (is_final(error) or not self.end.endpoint.came_up):
            self._dialler.failed(error)
        else:
            self.notices.detail(f"{error}; dialling again")
            self._dialler.start_again(self.job.grace)

    def _failed(self, error: SockstreamError) -> None:
        if self.end.opened:
            self.end.give_up(str(error))
        else:
            self.notices.error(str(error))
            self._on_done(125)

    def _on_signal(self, signum: int) -> None:
        if self.end.opened and self.end.signal(signum):
            return
        self._dialler.stop()
        if self.end.opened:
            self.end.give_up("interrupted")
        else:
            self._on_done(128 + signum)

    def _on_done(self, status: int) -> None:
        self._dialler.stop()
        self.status = status
        self.loop.stop()
