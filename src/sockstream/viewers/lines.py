"""Many programs' output on one terminal: whole lines, each with its program's name in front.

Rules: lines of different programs never mix; bytes are passed on as they came, a prefix is added and nothing else;
a line that stands unfinished for a moment (a prompt) is shown as it is, and ended when another program has
something to say. What is held back is counted as taken only when it has been written, and is at most 64 KiB a
stream.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..loop import Loop, Timer
    from ..streams import Sink

MAX_HELD = 64 << 10
SHOW_UNFINISHED_AFTER = 0.1


class Screen:
    """What the streams on one terminal share: whose line is unfinished."""

    __slots__ = ("unfinished",)

    def __init__(self) -> None:
        self.unfinished: LineSink | None = None

    def end_line(self) -> None:
        """Somebody else has ended the line: the terminal, with what was typed at a prompt."""
        self.unfinished = None


class LineSink:
    """One stream of one program, written to `out` line by line with `prefix` in front.

    timestamps: put the time of day before the prefix.
    """

    def __init__(self, loop: Loop, out: Sink, prefix: bytes, screen: Screen, *, timestamps: bool) -> None:
        self._loop = loop
        self._out = out
        self._prefix = prefix
        self._screen = screen
        self._timestamps = timestamps
        self._held = bytearray()
        self._on_taken: Callable[[int], None] = _nothing
        self._timer: Timer | None = None

    def write(self, data: memoryview, on_taken: Callable[[int], None]) -> None:
        """Show the lines that `data` completes; hold the rest back for a moment."""
        self._held += data
        self._on_taken = on_taken
        size = self._held.rfind(b"\n") + 1
        if size:
            self._stop_waiting()  # what is unfinished now is another line, with a moment of its own
            self._show(size)
        if len(self._held) > MAX_HELD:
            self._show(len(self._held))
        elif self._held and self._timer is None:
            self._timer = self._loop.call_later(SHOW_UNFINISHED_AFTER, self._show_unfinished)

    def finish(self, on_finished: Callable[[], None] | None = None) -> None:
        """Show what is left, and end its line."""
        self._show_unfinished()
        if self._screen.unfinished is self:
            self._screen.unfinished = None
            self._out.write(memoryview(b"\n"), lambda _count: None)
        if on_finished is not None:
            on_finished()

    def _show_unfinished(self) -> None:
        self._stop_waiting()
        if self._held:
            self._show(len(self._held))

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _show(self, size: int) -> None:
        """Write the first `size` held bytes, prefixed; they are taken when the last of that is written."""
        data = bytes(self._held[:size])
        del self._held[:size]
        shown = self._prefixed(data)
        on_taken, left = self._on_taken, len(shown)

        def written(count: int) -> None:
            nonlocal left
            left -= count
            if not left:
                on_taken(size)

        self._out.write(memoryview(shown), written)

    def _prefixed(self, data: bytes) -> bytes:
        screen = self._screen
        continued = screen.unfinished is self
        start = b"" if continued or screen.unfinished is None else b"\n"
        ended = data.endswith(b"\n")
        screen.unfinished = None if ended else self
        lines = data.split(b"\n")
        if ended:
            lines.pop()
        prefix = (self._time() if self._timestamps else b"") + self._prefix
        first = lines[0] if continued else prefix + lines[0]
        body = b"\n".join([first, *(prefix + line for line in lines[1:])])
        return start + body + (b"\n" if ended else b"")

    @staticmethod
    def _time() -> bytes:
        now = time.time()
        return f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now * 1000) % 1000:03} ".encode()


def _nothing(_count: int) -> None:
    return
