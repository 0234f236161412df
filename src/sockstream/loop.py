"""One event loop for everything that waits: descriptors, timers, things to do before the next wait.

Rules: one thread; callbacks never block; a callback that raises ends the loop (nothing passes silently); a timer is
cancelled by its handle; descriptors that the system cannot poll (regular files) count as always ready.

asyncio would do, at 30 ms of imports: starting fast is part of a wrapper's job.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Watch = tuple[int, Callable[[int], None]]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
_LONGEST_WAIT = 86400.0  # epoll takes 24 days at most, and a peer may offer a grace of centuries


class Timer:
    """A call that is due at `when` (seconds of `Loop.now`)."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Never call it; harmless when it has been called."""
        self.callback = None


class Loop:
    """Wait for descriptors and timers and call back, until `stop`."""

    def __init__(self) -> None:
        self.now = time.monotonic
        self._selector = selectors.DefaultSelector()
        self._watches: dict[int, Watch] = {}
        self._unpollable: set[int] = set()
        self._timers: list[Timer] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._running = False
        self._signals: dict[int, Callable[[], None]] = {}
        self._old_handlers: dict[int, Any] = {}
        self._signal_pipe: tuple[int, int] | None = None
        self._old_wakeup = -1

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Call `callback(mask)` whenever `fd` is ready; replaces an earlier watch, mask 0 ends it."""
        if not mask:
            self.unwatch(fd)
            return
        known, watch = self._watches.get(fd), (mask, callback)
        if watch == known:  # selectors would keep the old one, which `_turn` takes for one that has ended
            return
        self._watches[fd] = watch
        if fd in self._unpollable:
            return
        if known:
            self._selector.modify(fd, mask, watch)
        else:
            self._register(fd, mask, watch)

    def _register(self, fd: int, mask: int, watch: Watch) -> None:
        try:
            self._selector.register(fd, mask, watch)
        except PermissionError:  # epoll's EPERM: a regular file, which never blocks
            self._unpollable.add(fd)

    def unwatch(self, fd: int) -> None:
        """Call back no more for `fd`; harmless when it is not watched."""
        if self._watches.pop(fd, None) is None:
            return
        if fd in self._unpollable:
            self._unpollable.discard(fd)
        else:
            self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` once at `when`, in seconds of `now()`."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` once in `delay` seconds."""
        return self.call_at(self.now() + delay, callback)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once before the next wait."""
        self._soon.append(callback)

    def on_signal(self, signum: int, callback: Callable[[], None]) -> None:
        """Call `callback()` when this process gets a signal; only in the main thread, until `close`.

        A hang-up that nohup has made ignored stays ignored.
        """
        if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
            return
        if self._signal_pipe is None:
            self._signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._old_wakeup = signal.set_wakeup_fd(self._signal_pipe[1], warn_on_full_buffer=False)
            self.watch(self._signal_pipe[0], READ, self._run_signals)
        self._signals[signum] = callback
        self._old_handlers[signum] = signal.signal(signum, _note_signal)

    def run(self) -> None:
        """Go round until `stop` is called."""
        self._running = True
        while self._running:
            self._turn()

    def stop(self) -> None:
        """Let `run` return when the current callbacks are done."""
        self._running = False

    def close(self) -> None:
        """Free the selector and give the signals back; descriptors stay their owners'."""
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        if self._signal_pipe is not None:
            signal.set_wakeup_fd(self._old_wakeup)
            os.close(self._signal_pipe[0])
            os.close(self._signal_pipe[1])
        self._selector.close()

    def _run_signals(self, _mask: int) -> None:
        """The wakeup descriptor gets each signal's number as a byte, written by C code: none is missed or doubled."""
        assert self._signal_pipe is not None
        for signum in os.read(self._signal_pipe[0], 256):
            callback = self._signals.get(signum)
            if callback is not None:
                callback()

    def _turn(self) -> None:
        while self._soon:
            self._soon.popleft()()
        if not self._running:
            return
        watches = self._watches
        for key, mask in self._selector.select(self._patience()):
            watch = watches.get(key.fd)
            if watch is not None and watch is key.data:  # an earlier callback may have ended or changed it
                watch[1](mask)
        for fd in list(self._unpollable):
            if fd in watches:
                watches[fd][1](watches[fd][0])
        if self._timers:
            self._run_timers()

    def _patience(self) -> float | None:
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        if self._unpollable or self._soon:
            return 0
        return min(max(0.0, timers[0].when - self.now()), _LONGEST_WAIT) if timers else None

    def _run_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()


def _note_signal(_signum: int, _frame: object) -> None:
    """Nothing: Python needs a handler so that the wakeup descriptor gets the signal's number."""
