"""A program joined to a session or a raw stream: started, fed, drained, ended (DESIGN section 5, "How things end").

Rules: the program starts when there is a peer; EXIT goes out the moment it has ended, END when its output has been
read to the end, or for the drain time where a process that it left behind holds the pipes; what is left of its
group is then ended. Without a link it goes on for the grace; after that, or when the peer leaves, HUP, TERM and
KILL end the group. How a new link comes about is the business of `runner` and `server`.
"""

from __future__ import annotations

import os
import signal

from . import process, transport
from .endpoint import Endpoint
from .errors import LocalProtocolError, ProgramError
from .events import Completed, Finished, GoneAway, Opened
from .frames import Channel, GoAwayCode
from .raw import RawStream
from .records import Exited, How, Kind, Peer, Signal, Started, Status, goaway_name
from .session import Session, State
from .streams import Sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from .errors import SockstreamError
    from .events import Event
    from .loop import Loop, Timer
    from .notices import Notices

DRAIN_TIME = 5.0
POLITE_TIME = 2.0
RAW_POLITE_TIME = 5.0
_LOOK_FOR_PEER, _GONE_FOR = 1.0, 2.0
_OURS_ALONE = ("SOCKSTREAM_TOKEN", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
_OUTPUTS = (Channel.STDOUT, Channel.STDERR)
_NAMES = {Channel.STDIN: "stdin", Channel.STDOUT: "stdout", Channel.STDERR: "stderr"}


class Job:
    """What to run, and how its stdio is carried.

    only: "out" leaves stdin, "in" leaves both outputs where they are; merge_stderr: stderr goes where stdout goes;
    grace: seconds without a link; eof_grace: raw, seconds after the peer's end of file (None: no limit).
    """

    __slots__ = ("args", "environ", "eof_grace", "grace", "merge_stderr", "name", "only")

    def __init__(
        self,
        args: Sequence[str],
        environ: Mapping[str, str],
        *,
        only: Literal["in", "out"] | None = None,
        merge_stderr: bool = False,
        name: str | None = None,
        grace: float = 60.0,
        eof_grace: float | None = None,
    ) -> None:
        self.args = tuple(args)
        self.environ = {name: value for name, value in environ.items() if name not in _OURS_ALONE}
        self.environ.setdefault("PYTHONUNBUFFERED", "1")  # or a Python program's output would not be live
        self.only = only
        self.merge_stderr = merge_stderr
        self.name = name or os.path.basename(self.args[0])
        self.grace = grace
        self.eof_grace = eof_grace

    def describe(self, session_id: bytes = b"") -> Peer:
        """Return what a program end says of itself in OPEN."""
        peer = Peer(Kind.PROGRAM, session=session_id, name=self.name, host=os.uname().nodename, grace=self.grace)
        peer.arguments = tuple(os.fsencode(argument) for argument in self.args)
        return peer


class ProgramEnd:
    """Run `job` over `session`; links are handed to `endpoint`.

    on_broken(): a session's link has broken, a new one is wanted within the grace; on_done(status): all is over,
    and `status` is what a command ends with; extra_environ: variables to add to the job's.
    """

    def __init__(
        self,
        loop: Loop,
        job: Job,
        session: Session | RawStream,
        notices: Notices,
        on_broken: Callable[[SockstreamError | None], None],
        on_done: Callable[[int], None],
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        self.loop = loop
        self.job = job
        self.notices = notices
        self.endpoint = Endpoint(loop, session, self)
        self.process: process.Process | None = None
        self.status: Status | None = None
        self.opened = False
        self._environ = {**job.environ, **(extra_environ or {})}
        self._on_broken = on_broken
        self._on_done = on_done
        self._grace_timer: Timer | None = None
        self._ladder: process.Ladder | None = None
        self._watch: process.EndWatch | None = None
        self._drain_timer: Timer | None = None
        self._cutting_off = False
        self._terminal: int | None = None
        self.refused = False
        self._drained = self._link_over = self._group_over = self._done = False
        self._eof_at: float | None = None
        self._taken, self._idle_since = 0, loop.now()

    @property
    def session(self) -> Session | RawStream:
        """The session or raw stream that carries the program."""
        return self.endpoint.session

    # ---- the start

    def begin(self) -> None:
        """There is a peer: start the program."""
        driver = self.endpoint.driver
        if driver is None:  # a raw one that has gone again: another is dialled, or nobody is there to run it for
            return
        self.opened = True
        if isinstance(self.session, RawStream):
            driver.reads_on = False  # nobody is there any more to run the program for
            self.session.begin()
            self.endpoint.flush_soon()
        job, only = self.job, self.job.only
        apart: Literal["inherit", "pipe"] = "inherit" if isinstance(self.session, RawStream) else "pipe"
        self._terminal = self._terminal_left()
        try:
            self.process = process.start(
                job.args,
                environ=self._environ,
                stdin="inherit" if only == "out" else "pipe",
                stdout="inherit" if only == "in" else "pipe",
                stderr="inherit" if only == "in" else "merge" if job.merge_stderr else apart,
                own_session=self._terminal is None,
            )
        except ProgramError as error:
            self._not_started(error)
            return
        self._join(self.process)

    def _terminal_left(self) -> int | None:
        """The descriptor of a terminal that stays the program's, or None."""
        left = {"out": 0, "in": 1}.get(self.job.only or "")
        return left if left is not None and os.isatty(left) else None

    def _join(self, started: process.Process) -> None:
        if self._terminal is not None and not process.give_terminal(self._terminal, started.pid):
            self._terminal = None
        self._send(Started(started.pid))
        if started.stdin is not None:
            self._add_stdin(started.stdin)
            started.stdin = None
        else:
            self.endpoint.stop(Channel.STDIN)
        for channel, fd in ((Channel.STDOUT, started.stdout), (Channel.STDERR, started.stderr)):
            if fd is not None:
                self.endpoint.add_source(channel, fd)
            elif isinstance(self.session, Session):
                self.session.finish(channel)
        started.stdout = started.stderr = None
        self._watch = process.watch_end(self.loop, started, self._on_exit)
        self._look_for_peer()

    def _add_stdin(self, fd: int) -> None:
        self.endpoint.sinks[Channel.STDIN] = Sink(self.loop, fd, lambda _error: self.endpoint.stop(Channel.STDIN))

    def _not_started(self, error: ProgramError) -> None:
        self.notices.error(str(error))
        self.endpoint.stop(Channel.STDIN)
        for channel in _OUTPUTS:
            self.session.finish(channel)
        self.status = Status(How.NOT_STARTED, error.status, str(error))
        self._send(Exited(self.status))
        self._finish_output()

    # ---- while it runs

    def signal(self, signum: int) -> bool:
        """Send a signal to the program's group; False when there is no program to send it to."""
        return self.process is not None and self.status is None and self.process.signal(signum)

    def on_event(self, event: Event) -> None:
        """Handle what the session says that is not bytes."""
        if isinstance(event, Opened):
            self._cancel_grace()
            if not self.opened:
                self.begin()
        elif isinstance(event, Signal):
            self._on_signal(event.name)
        elif isinstance(event, Completed):
            self._complete()
        elif isinstance(event, GoneAway):
            self._on_gone_away(event)
        elif isinstance(event, Finished) and isinstance(self.session, RawStream):
            self._eof_at = self.loop.now()

    def on_source_end(self, channel: int) -> None:
        """An output of the program has come to its end, or nobody wants it."""
        if self.status is not None:
            self._drain()

    def on_sink_end(self, channel: int) -> None:
        """The program's stdin is closed behind the last byte."""

    def _on_signal(self, name: str) -> None:
        signum = getattr(signal, name, None) if name.startswith("SIG") and name.isalnum() else None
        if isinstance(signum, signal.Signals):
            self.signal(signum)
        else:
            self.notices.detail(f"the viewer asked for {name}, which is no signal here")

    def _send(self, record: Started | Exited) -> None:
        if not isinstance(self.session, Session):
            return
        try:
            self.session.send(record)
        except LocalProtocolError as error:  # END says the status again, so nothing is lost by it
            self.notices.detail(str(error))
        self.endpoint.flush_soon()

    # ---- the program's end

    def _on_exit(self, status: Status) -> None:
        self.status = status
        self._take_terminal()
        self._send(Exited(status))
        self.notices.detail(f"{self.job.name} {status.describe()}")
        if self._link_over:
            self._end_group()
        else:
            self._drain()

    def _take_terminal(self) -> None:
        """Have back the terminal that was left to the program."""
        if self._terminal is not None:
            process.take_terminal(self._terminal)
            self._terminal = None

    def _drain(self) -> None:
        """Read the outputs to their end, or until they have been empty for the drain time while we could read."""
        if self._drained or self._cutting_off or self._ladder is not None:
            return
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        left = [source for source in self.endpoint.sources.values() if not source.ended]
        if not left:
            self._finish_output()
            return
        now = self.loop.now()
        waiting = [now if s.waiting_since is None else s.waiting_since for s in left]
        if now - max(waiting) >= DRAIN_TIME:
            self.notices.say(f"{self.job.name} left a process behind that holds its output: not read any further")
            self._cutting_off = True
            for source in left:
                source.end()
            self._finish_output()
        else:
            self._drain_timer = self.loop.call_later(max(0.05, DRAIN_TIME - (now - max(waiting))), self._drain)

    def _finish_output(self) -> None:
        if self._drained:
            return
        self._drained = True
        if isinstance(self.session, Session):
            assert self.status is not None
            self.session.end(self.status)
        else:
            self.session.finish(Channel.STDOUT)
            if self.endpoint.driver is not None:
                self.endpoint.driver.finish(RAW_POLITE_TIME, lossless=True)
        self.endpoint.flush_soon()
        self._end_group()

    def _end_group(self) -> None:
        """End what is left of the program's group, or the program itself."""
        started = self.process
        if self._ladder is not None or self._group_over:  # it is being done, and says when it is over
            return
        if started is None or (started.reap() is not None and not started.group_alive()):
            self._on_group_over()  # the usual case: nothing is left, so no ladder is needed
        else:
            self._ladder = process.Ladder(self.loop, started, self._on_group_over)

    def _on_group_over(self) -> None:
        if self.process is not None:
            self.status = self.process.poll()
            if self._ladder is not None and not self._ladder.gone:
                self.notices.say(f"a process of {self.job.name} could not be ended (group {self.process.pid})")
        self._group_over = True
        self._maybe_done()

    def _close_streams(self) -> None:
        for source in self.endpoint.sources.values():
            source.end()
        for sink in self.endpoint.sinks.values():
            if isinstance(sink, Sink):
                sink.break_off()

    # ---- the link's end

    def _complete(self) -> None:
        """The viewer has taken everything, END included: say goodbye."""
        assert isinstance(self.session, Session)
        self.session.leave()
        if self.endpoint.driver is not None:
            self.endpoint.driver.finish(POLITE_TIME)

    def on_link_lost(self, error: SockstreamError | None) -> None:
        """The connection is over: for a session that is not, wait for another one; a raw peer is gone."""
        session = self.session
        if isinstance(session, RawStream) and self.opened:
            self._give_up(None if self._drained else error)
        elif isinstance(session, RawStream):
            self._on_broken(error)
        elif session.state is State.OVER:
            self._link_over = True
            self._maybe_done()
        elif not self._link_over:
            if self._grace_timer is None and self.opened and self.job.grace != float("inf"):
                self._grace_timer = self.loop.call_later(self.job.grace, self._on_grace_over)
            self._on_broken(error)

    def give_up(self, why: str) -> None:
        """There will be no further link: end the program, say what nobody has confirmed."""
        if not self._link_over:
            unconfirmed = self._unconfirmed()
            self.notices.say(f"{why}{unconfirmed}" if self.status else f"{why}: ending {self.job.name}{unconfirmed}")
            if self.endpoint.driver is not None and isinstance(self.session, Session):
                self.session.leave(text=why)  # or the viewer would wait for another link
                self.endpoint.driver.flush()
            self._give_up(None)

    def _give_up(self, error: SockstreamError | None) -> None:
        if error is not None:
            self.notices.detail(f"{self.job.name}: {error}")
        self._link_over = True
        self._cancel_grace()
        self.endpoint.drop_link()
        self._drained = True
        sources = self.endpoint.sources.values()
        if isinstance(self.session, RawStream) and self.status is None and sources and all(s.ended for s in sources):
            # It has closed its output, which is what the peer answered by closing: it is probably about to end.
            self.loop.call_later(POLITE_TIME, self._end_group)
            return
        for source in sources:
            source.end()  # a program that writes gets SIGPIPE
        self._end_group()
        self._maybe_done()

    def _on_grace_over(self) -> None:
        self._grace_timer = None
        self.give_up(f"no link for {self.job.grace:g} s")

    def _on_gone_away(self, event: GoneAway) -> None:
        reason = f" ({event.text})" if event.text else ""
        if event.code == GoAwayCode.LEAVING and self.opened:
            self.give_up(f"the viewer has left{reason}")
        else:
            self.notices.error(f"the viewer end refused: {event.text or goaway_name(event.code)}")
            self.refused = True
            self._give_up(None)

    def _cancel_grace(self) -> None:
        if self._grace_timer is not None:
            self._grace_timer.cancel()
            self._grace_timer = None

    def _unconfirmed(self) -> str:
        session = self.session
        left = session.untaken() if isinstance(session, Session) else {}
        parts = [f"{count} bytes of {_NAMES[Channel(channel)]}" for channel, count in left.items()]
        return f" ({' and '.join(parts)} not confirmed)" if parts else ""

    def _look_for_peer(self) -> None:
        """A raw peer that we do not read from may be gone without a trace: it has ended its input, or that waits.

        What it has sent is still the program's: only one that takes no more of it is ended.
        """
        driver, stream, now = self.endpoint.driver, self.session, self.loop.now()
        if driver is None or driver.closed or self._drained or not isinstance(stream, RawStream):
            return
        if stream.wants_read() or stream.taken != self._taken:
            self._taken, self._idle_since = stream.taken, now
        patience, eof_at = self.job.eof_grace, self._eof_at
        late = patience is not None and eof_at is not None and now - eof_at >= patience
        if late or (now - self._idle_since >= _GONE_FOR and transport.peer_is_gone(driver.sock)):
            self.notices.detail(f"{self.job.name}: the peer is gone")
            self._give_up(None)
        else:
            self.loop.call_later(_LOOK_FOR_PEER, self._look_for_peer)

    def _maybe_done(self) -> None:
        if self._done or not (self._link_over and self._group_over):
            return
        self._done = True
        self._take_terminal()
        self._close_streams()
        if self._watch is not None:
            self._watch.cancel()
        if self.process is not None:
            self.process.close()
        self._on_done(125 if self.refused or self.status is None else self.status.exit_code)
