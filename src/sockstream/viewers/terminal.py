"""`listen` and `connect`: a terminal, or pipes in its place, as the viewer end.

Rules: with one program (`connect`, `listen --once`) every byte is passed on as it is, and its status is ours; with
many, lines get their program's name in front, and stdin goes to the one attached longest. The flags of descriptors
0-2 are never changed. Ctrl-C is SIGINT to the program; a second within 2 s, or with no program, leaves (130). 125
is our own trouble: a broken session, no status, a peer that refuses.
"""

from __future__ import annotations

import errno
import os
import signal

from ..descriptors import own_reader, own_writer
from ..frames import Channel
from ..loop import Loop
from ..raw import RawStream
from ..records import How
from ..streams import Sink, Source, keep_freed_memory
from ..viewing import Viewing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..notices import Notices
    from ..records import Status

TWICE = 2.0
_OUTPUTS = ((Channel.STDOUT, 1), (Channel.STDERR, 2))
_PIPE_CLOSED = 128 + signal.SIGPIPE  # as a program ends that writes where nobody reads


class Terminal:
    """This process's stdin, stdout and stderr, shared by the programs on show; and its signals.

    crlf: send each line end as CR LF, as line protocols want it.
    """

    def __init__(self, notices: Notices, *, crlf: bool = False) -> None:
        self.loop = Loop()
        self.notices = notices
        self.status = 125
        self.programs: list[Viewing] = []
        self.on_line_typed: Callable[[], None] = _nothing
        self._crlf = crlf
        self._stdin: Source | None = None
        self._stdin_ended = False
        self._sinks: dict[int, Sink] = {}
        self._write_failed = self._ending = False
        self._interrupted = float("-inf")
        self._leaving: int | None = None

    def run(self, start: Callable[[], None], stop: Callable[[], None]) -> int:
        """Call `start`, go round until `end`, call `stop`; returns the exit status."""
        self.loop.on_signal(signal.SIGINT, lambda: self._interrupt("SIGINT"))
        self.loop.on_signal(signal.SIGQUIT, lambda: self._interrupt("SIGQUIT"))
        for signum in (signal.SIGTERM, signal.SIGHUP):
            self.loop.on_signal(signum, lambda signum=signum: self.leave(128 + signum))  # type: ignore[misc]  # a default binds it
        keep_freed_memory()
        try:
            start()
            self.loop.run()
        finally:
            stop()
            self.loop.close()
        return self.status

    def end(self, status: int) -> None:
        """Let `run` return when our output is written, with this exit status unless people chose another."""
        self.status = self._leaving if self._leaving is not None else status
        self._ending = True
        self._stop_when_written()

    def _stop_when_written(self) -> None:
        left = [sink for sink in self._sinks.values() if not (sink.empty or sink.broken)]
        if left and self._leaving is None:
            left[0].finish(self._stop_when_written)
        else:
            self.loop.stop()

    def exit_code(self, status: Status | None) -> int:
        """What a program's end means for a command that shows just this program."""
        return 125 if status is None or self._write_failed else status.exit_code

    def tell(self, viewing: Viewing, status: Status | None, *, alone: bool) -> None:
        """Say how a program ended; of one that is shown alone only what our status cannot say."""
        if status is not None and (not alone or status.how in (How.NOT_STARTED, How.UNKNOWN)):
            self.notices.say(f"{viewing.name} {status.describe()}")

    # ---- output

    def show(self, viewing: Viewing) -> None:
        """Show a program's bytes as they are."""
        for channel, _fd in _OUTPUTS:
            viewing.endpoint.sinks[channel] = self.sink(channel)
        viewing.on_stdin_closed = self._close_stdin
        self.attach(viewing)

    def sink(self, channel: int) -> Sink:
        """Return the one sink for an output of ours; a session's FIN does not close it."""
        if channel not in self._sinks:
            fd, write = own_writer(dict(_OUTPUTS)[Channel(channel)])
            self._sinks[channel] = Sink(
                self.loop, fd, lambda error: self._on_output_broken(channel, error), owned=False, write=write
            )
        return self._sinks[channel]

    def _on_output_broken(self, channel: int, error: OSError) -> None:
        """Nobody reads our output, or it cannot be written: the programs get a closed pipe."""
        if error.errno != errno.EPIPE:
            self._write_failed = True
            self.notices.error(f"cannot write {Channel(channel).name.lower()}: {error.strerror}")
        for viewing in self.programs:
            self._stop_output(viewing, channel)
        if self._ending:
            self._stop_when_written()
        elif self.unread and not self.programs:
            self.leave(_PIPE_CLOSED)

    @property
    def unread(self) -> bool:
        """Whether nobody reads our stdout any more."""
        return Channel.STDOUT in self._sinks and self._sinks[Channel.STDOUT].broken

    def _stop_output(self, viewing: Viewing, channel: int) -> None:
        if isinstance(viewing.session, RawStream):
            self.loop.soon(lambda: self.leave(125 if self._write_failed else _PIPE_CLOSED))
        else:
            viewing.endpoint.stop(channel)

    # ---- input

    def attach(self, viewing: Viewing) -> None:
        """A program is there: it may get our stdin."""
        self.programs.append(viewing)
        viewing.endpoint.on_room = self._update_stdin
        for channel, sink in self._sinks.items():
            if sink.broken and channel in viewing.endpoint.sinks:
                self._stop_output(viewing, channel)
        if self._stdin_ended:
            self._finish_stdin(viewing)
        elif self._stdin is None:
            self._open_stdin()
        self._update_stdin()

    def detach(self, viewing: Viewing) -> None:
        """A program is over: stdin goes to the next."""
        if viewing in self.programs:
            self.programs.remove(viewing)
        self._update_stdin()

    def _open_stdin(self) -> None:
        try:
            fd, read = own_reader(0)
        except OSError:  # closed, as a service's may be
            self._on_stdin_end()
            return
        self._stdin = Source(self.loop, fd, self._stdin_room, self._give, self._on_stdin_end, owned=False, read=read)

    def _stdin_room(self) -> int:
        if not self.programs:
            return 0
        return self.programs[0].session.room(Channel.STDIN) >> self._crlf  # each byte may become two

    def _give(self, data: bytes) -> None:
        viewing = self.programs[0]
        if data.endswith(b"\n") and os.isatty(0) and os.isatty(1):  # the terminal has shown it, line end and all
            self.on_line_typed()
        viewing.session.write(Channel.STDIN, data.replace(b"\n", b"\r\n") if self._crlf else data)
        viewing.endpoint.flush_soon()

    def _on_stdin_end(self) -> None:
        self._stdin_ended = True
        for viewing in self.programs:
            self._finish_stdin(viewing)

    def _close_stdin(self) -> None:
        """The program has closed its stdin: whoever writes to ours gets a closed pipe, too."""
        if self._stdin is None or self._stdin.ended:
            return
        self._stdin.end()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for fd in {0, self._stdin.fd}:
            os.dup2(null, fd)
        os.close(null)

    def _finish_stdin(self, viewing: Viewing) -> None:
        viewing.session.finish(Channel.STDIN)
        viewing.endpoint.flush_soon()

    def _update_stdin(self) -> None:
        if self._stdin is not None and self._stdin.paused:
            self._stdin.update()

    # ---- signals

    def _interrupt(self, name: str) -> None:
        now = self.loop.now()
        twice, self._interrupted = now - self._interrupted < TWICE, now
        if twice or not self.programs or not self.programs[0].signal(name):
            self.leave(130)

    def leave(self, status: int) -> None:
        """Leave all programs and end."""
        if self._leaving is not None:
            self.loop.stop()
        self._leaving = self.status = status
        for viewing in list(self.programs):
            viewing.leave()
        if not self.programs:
            self.loop.stop()


def _nothing() -> None:
    return
