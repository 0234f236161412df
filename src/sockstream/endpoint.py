"""A session, the descriptors that feed and drain it, and whatever link it has at the moment.

Rules: every event of the session is handled here or handed to the owner, in order, before anything else is
received; whatever changed is sent before the loop waits again. The owner (a program end or a viewer end) decides
what an ending means.

The same class serves a raw stream, which is its own core and has just one link.
"""

from __future__ import annotations

from .errors import SessionLost
from .events import Data, Finished, Stopped
from .frames import GoAwayCode
from .session import Session
from .streams import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from .descriptors import Read
    from .driver import SocketDriver
    from .errors import SockstreamError
    from .events import Event
    from .link import Link
    from .loop import Loop
    from .raw import RawStream

    class Drain(Protocol):
        """Where a channel's bytes go: a `streams.Sink`, or what a viewer makes of one."""

        def write(self, data: memoryview, on_taken: Callable[[int], None]) -> None: ...
        def finish(self, on_finished: Callable[[], None] | None = None) -> None: ...

    class Owner(Protocol):
        """Who decides: told of everything that is not bytes."""

        def on_event(self, event: Event) -> None: ...
        def on_source_end(self, channel: int) -> None: ...
        def on_sink_end(self, channel: int) -> None: ...
        def on_link_lost(self, error: SockstreamError | None) -> None: ...


class Endpoint:
    """Join `session` to descriptors and links, on behalf of `owner`."""

    def __init__(self, loop: Loop, session: Session | RawStream, owner: Owner) -> None:
        self.loop = loop
        self.session = session
        self.owner = owner
        self.driver: SocketDriver | None = None
        self.sources: dict[int, Source] = {}
        self.sinks: dict[int, Drain] = {}
        self.on_room: Callable[[], None] = _nothing
        self.came_up = False  # whether the latest link that has ended got as far as OPEN
        self._flush_due = False

    def use(self, driver: SocketDriver) -> None:
        """Take over a connected driver."""
        self.driver = driver
        driver.on_input = self._on_input
        driver.on_sent = self.update_sources
        driver.on_lost = lambda error: self._on_lost(driver, error)

    def join(self, driver: SocketDriver, link: Link) -> None:
        """Waiting end: go on over a link that an acceptor has handed over; raises SessionLost where that is impossible.

        An older link of the session is told and closed first.
        """
        assert isinstance(self.session, Session)
        if self.driver is not None and self.session.link is not None:
            self.session.link.refuse(GoAwayCode.REPLACED, "a newer connection took over")
            self.driver.flush()
            self.drop_link()
        self.use(driver)
        try:
            link.accept(self.session, self.loop.now())
        except SessionLost:
            driver.flush()  # the GOAWAY that says why
            raise
        self.dispatch()
        driver.flush()

    def drop_link(self) -> None:
        """Close the link there is, without a word to the owner."""
        if self.driver is not None:
            self.driver.abort()
            self.driver = None
        self._detach()

    def add_source(self, channel: int, fd: int, *, owned: bool = True, read: Read | None = None) -> Source:
        """Read `fd` into a channel, and finish the channel at its end."""

        def give(data: bytes) -> None:
            self.session.write(channel, data)
            self.flush_soon()

        def room() -> int:
            return self.session.room(channel)

        source = Source(self.loop, fd, room, give, lambda: self._on_source_end(channel), owned=owned, read=read)
        self.sources[channel] = source
        return source

    def dispatch(self) -> None:
        """Handle what has happened in the session, then let the sources see what room there is."""
        events = self.session.events()
        if not events:
            return
        for event in events:
            if isinstance(event, Data):
                self._on_data(event)
            elif isinstance(event, Finished):
                self._on_finished(event)
            elif isinstance(event, Stopped):
                self._on_stopped(event)
            else:
                self.owner.on_event(event)
        self.update_sources()

    def _on_input(self) -> None:
        self.dispatch()
        self.update_sources()  # a TAKEN makes room without being an event

    def update_sources(self) -> None:
        """Let whoever feeds the session see what room there is."""
        for source in self.sources.values():
            if source.paused:
                source.update()
        self.on_room()

    def flush_soon(self) -> None:
        """Send what is due before the loop waits again."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.soon(self._flush)

    def stop(self, channel: int) -> None:
        """Want no more of a channel."""
        self.session.stop(channel, self.loop.now())
        self.flush_soon()

    def _flush(self) -> None:
        self._flush_due = False
        self.dispatch()
        if self.driver is not None:
            self.driver.flush()

    def _on_data(self, event: Data) -> None:
        channel = event.channel
        sink = self.sinks.get(channel)

        def taken(count: int) -> None:
            if self.session.take(channel, count, self.loop.now()):
                self.flush_soon()

        if sink is None:
            taken(len(event.data))
        else:
            sink.write(event.data, taken)

    def _on_finished(self, event: Finished) -> None:
        sink = self.sinks.get(event.channel)
        self.owner.on_event(event)
        if sink is not None:
            sink.finish(lambda: self.owner.on_sink_end(event.channel))

    def _on_stopped(self, event: Stopped) -> None:
        source = self.sources.get(event.channel)
        if source is not None:
            source.end()
        self.owner.on_event(event)

    def _on_source_end(self, channel: int) -> None:
        self.session.finish(channel)
        self.flush_soon()
        self.owner.on_source_end(channel)

    def _on_lost(self, driver: SocketDriver, error: SockstreamError | None) -> None:
        if self.driver is not driver:
            return
        self.dispatch()  # what came before the end
        self.driver = None
        self._detach()
        self.owner.on_link_lost(error)

    def _detach(self) -> None:
        """There is no connection any more, and no buffer is kept for it."""
        session = self.session
        link = session.link if isinstance(session, Session) else None
        self.came_up = link is not None
        if not isinstance(session, Session):
            session.release()
        elif link is not None:
            session.detach(link)
            link.release()


def _nothing() -> None:
    return
