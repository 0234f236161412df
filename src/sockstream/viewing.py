"""One program as a viewer end sees it: a session or a raw stream, from the first link to the last (DESIGN section 5).

Rules: a program's status is reported when END is taken, no END is *broken*; a broken link may come back until the
program end's grace has passed; the last TAKEN is known to have arrived when the program end says goodbye. Where the
bytes go is the business of whoever owns this: a terminal, a window, files.
"""

from __future__ import annotations

from .endpoint import Endpoint
from .errors import LocalProtocolError
from .events import Completed, Finished, Gap, GoneAway, Opened, Stopped
from .frames import Channel, GoAwayCode
from .raw import RawStream
from .records import How, Signal, Status, goaway_name
from .session import Session, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import SockstreamError
    from .events import Event
    from .loop import Loop, Timer
    from .notices import Notices

GOODBYE_TIME = 5.0
POLITE_TIME = 2.0
_NAMES = {Channel.STDOUT: "stdout", Channel.STDERR: "stderr", Channel.CONTROL: "control records"}


class Viewing:
    """Watch one program.

    on_opened(): it is there (again); on_broken(error): its link has broken, a new one is wanted; on_done(status):
    it is over; `status` is None where the session broke off, or was refused, and this has been said.
    """

    def __init__(
        self,
        loop: Loop,
        session: Session | RawStream,
        notices: Notices,
        on_opened: Callable[[], None],
        on_broken: Callable[[SockstreamError | None], None],
        on_done: Callable[[Status | None], None],
    ) -> None:
        self.loop = loop
        self.notices = notices
        self.endpoint = Endpoint(loop, session, self)
        self.name = ""
        self.opened = False
        self.left = False
        self._on_opened = on_opened
        self._on_broken = on_broken
        self._on_done = on_done
        self.on_stdin_closed: Callable[[], None] = _nothing
        self._status: Status | None = None
        self._timer: Timer | None = None
        self._done = False

    @property
    def session(self) -> Session | RawStream:
        """What carries the program."""
        return self.endpoint.session

    def begin(self) -> None:
        """A raw peer is there, or a session is."""
        if self.endpoint.driver is None:  # a raw one that has gone again
            return
        self.opened = True
        if isinstance(self.session, RawStream):
            self.session.begin()
            self.endpoint.flush_soon()
        self._on_opened()

    def signal(self, name: str) -> bool:
        """Ask for a signal to the program; False where there is no way to ask."""
        session = self.session
        if not isinstance(session, Session) or session.state is not State.OPEN or session.end_received:
            return False
        try:
            session.send(Signal(name))
        except LocalProtocolError as error:
            self.notices.say(str(error))
            return False
        self.endpoint.flush_soon()
        return True

    def leave(self) -> None:
        """Leave for good: the program end need not wait for us."""
        self.left = True
        if isinstance(self.session, Session) and self.endpoint.driver is not None:
            self.session.leave()
            self.endpoint.driver.finish(POLITE_TIME)
        else:  # a raw peer cannot be told, and may go on for ever: it gets a closed connection
            self.endpoint.drop_link()
            self._finish(None)

    def give_up(self, why: str) -> None:
        """There will be no further link."""
        if not self._done and self._status is None:
            self.notices.error(f"{self._shown()}broken off: {why}")
        self.endpoint.drop_link()
        self._finish(self._status)

    # ---- what the session says

    def on_event(self, event: Event) -> None:
        """Handle what is not bytes."""
        if isinstance(event, Opened):
            self._on_session_opened(event)
        elif isinstance(event, Completed):
            self._status = event.status
            self._wait_for_goodbye()
        elif isinstance(event, GoneAway):
            self._on_gone_away(event)
        elif isinstance(event, Stopped):
            self.on_stdin_closed()
        elif isinstance(event, Gap):
            what = _NAMES.get(Channel(event.channel), "")
            self.notices.say(f"{self._shown()}{event.stop - event.start} bytes of {what} are missing: they came before")
        elif isinstance(event, Finished) and isinstance(self.session, RawStream):
            self._status = Status(How.EXITED, 0)  # an orderly end of file, as far as raw can tell
            self.notices.detail(f"{self._shown()}closed the connection; a raw address carries no exit status")

    def on_source_end(self, channel: int) -> None:
        """Our own input has ended, which the session has been told."""

    def _on_session_opened(self, event: Opened) -> None:
        self._cancel_wait()
        if self._status is not None:
            self._wait_for_goodbye()
        self.name = self.name or event.peer.name or "program"
        if event.resumed:
            self.notices.detail(f"{self._shown()}the link is back")
        self.begin()

    def _on_gone_away(self, event: GoneAway) -> None:
        text = f" ({event.text})" if event.text else ""
        if self._status is None and not self.left:
            if event.code == GoAwayCode.LEAVING:
                self.notices.error(f"{self._shown()}broken off: the program end has left without a status{text}")
            else:
                self.notices.error(f"{self._shown()}refused: {event.text or goaway_name(event.code)}")
        if self.endpoint.driver is not None:
            self.endpoint.driver.finish(POLITE_TIME)

    def on_sink_end(self, channel: int) -> None:
        """Everything of a channel is written; for a raw peer that is its end."""
        stream = self.session
        if isinstance(stream, RawStream) and self.endpoint.driver is not None:
            stream.finish(Channel.STDIN)
            self.endpoint.driver.finish(POLITE_TIME)

    # ---- links

    def on_link_lost(self, error: SockstreamError | None) -> None:
        """The connection is over: orderly, or a new one is wanted."""
        session = self.session
        if isinstance(session, RawStream) and not self.opened:
            self._on_broken(error)
        elif isinstance(session, RawStream):
            if self._status is None and not self.left:
                self.notices.error(f"{self._shown()}broken off: {error}")
            self._finish(self._status)
        elif session.state is State.OVER:
            self._finish(self._status)
        elif not self._done:
            if self._timer is None and self.opened and session.peer is not None:
                grace = session.peer.grace
                self._wait(grace, lambda: self.give_up(f"no link for {grace:g} s"))
            self._on_broken(error)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_wait()
        if seconds != float("inf"):
            self._timer = self.loop.call_later(seconds, then)

    def _wait_for_goodbye(self) -> None:
        self._wait(GOODBYE_TIME, lambda: self.give_up("the program end did not say goodbye"))

    def _cancel_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(self, status: Status | None) -> None:
        if not self._done:
            self._done = True
            self._cancel_wait()
            self._on_done(status)

    def _shown(self) -> str:
        return f"{self.name}: " if self.name else ""


def _nothing() -> None:
    return
