"""One direction of one channel: what a sender keeps, what a receiver expects (docs/protocol.md section 4).

Rules: offsets are absolute and only grow; `Outgoing` keeps every byte above the last TAKEN, in two queues of chunks
(not yet sent on this link, sent but not taken); `Incoming` keeps no bytes at all, only numbers.

One number does everything: *taken* is acknowledgement, credit and resume point. Chunks are kept by reference, so
what was read from a pipe is neither copied nor joined on its way to `sendmsg`; only small ones are joined, or a
program that writes single bytes would cost sixty times the memory of its output.
"""

from __future__ import annotations

from collections import deque

from .errors import LocalProtocolError, RemoteProtocolError, SessionLost
from .frames import DEFAULT_WINDOW_BITS, MAX_DATA, MAX_OFFSET, MAX_WINDOW_BITS, OLDEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    Chunk = bytes | memoryview

_SMALL = 4096
_FAST = 0.2  # seconds in which a whole window must be taken for it to grow (DESIGN section 4)


class Outgoing:
    """The sending side of a channel.

    records: each chunk is one frame (channel 0): never joined, never split, exempt from credit. start: the offset at
    which an adopting end begins: what came before is not kept here, and what of it is taken the first TAKEN will tell.
    """

    __slots__ = (
        "_fin_announced",
        "_kept_from",
        "_unsent",
        "_untaken",
        "base",
        "channel",
        "end",
        "fin_sent",
        "finished",
        "gap_due",
        "records",
        "sent",
        "stopped",
        "window",
    )

    def __init__(self, channel: int, *, start: int = 0, records: bool = False) -> None:
        self.channel = channel
        self.base = 0
        self.sent = self.end = self._kept_from = start
        self.window = 0  # the peer's OPEN grants one
        self.records = records
        self.finished = self.fin_sent = self._fin_announced = self.stopped = self.gap_due = False
        self._unsent: deque[Chunk] = deque()
        self._untaken: deque[Chunk] = deque()

    def room(self) -> int:
        """Return how many bytes may be written now: none while a window's worth is not taken."""
        return 0 if self.finished else max(0, self.base + self.window - self.end)

    def write(self, data: bytes) -> None:
        """Keep `data`, by reference, to be sent. Raises LocalProtocolError after `finish`."""
        if self.finished:
            raise LocalProtocolError(f"channel {self.channel} was finished before this write")
        if not data:
            return
        self.end += len(data)
        unsent = self._unsent
        if unsent and not self.records and len(unsent[-1]) + len(data) <= _SMALL:
            unsent[-1] = b"".join((unsent[-1], data))
        else:
            unsent.append(data)

    def finish(self) -> None:
        """Nothing more will be written; FIN follows the last byte."""
        self.finished = True

    def drop_unsent(self) -> None:
        """The receiver wants no more (STOP): forget what is not sent, end with FIN there.

        STOP is repeated on every link, but a FIN once announced cannot move back, though its bytes may wait to be
        sent again.
        """
        if not self.stopped and not self._fin_announced:
            self._unsent.clear()
            self.end = self.sent
        self.stopped = self.finished = True

    def next_frame(self) -> tuple[int, Chunk] | None:
        """Return offset and payload of the next DATA frame, or None: nothing to send, or no credit."""
        if not self._unsent:
            return None
        chunk = self._unsent.popleft()
        allowed = len(chunk) if self.records else min(MAX_DATA, self.base + self.window - self.sent)
        if allowed < len(chunk):
            rest = memoryview(chunk)[max(0, allowed) :]
            self._unsent.appendleft(rest)
            if allowed <= 0:
                return None
            chunk = memoryview(chunk)[:allowed]
        offset = self.sent
        self.sent += len(chunk)
        self._keep(chunk)
        return offset, chunk

    def send_fin(self) -> int:
        """Note that FIN goes out; return its offset, the stream's length."""
        self.fin_sent = self._fin_announced = True
        return self.end

    def fin_due(self) -> bool:
        """Whether FIN is to be sent now: everything before it has gone out on this link."""
        return self.finished and not self.fin_sent and not self._unsent

    def kept(self) -> int:
        """Return how many bytes written here are not known to be taken."""
        return self.end - max(self.base, self._kept_from)

    def take(self, offset: int, window: int) -> None:
        """The receiver has taken everything below `offset` and grants `window` bytes beyond it."""
        if not self.base <= offset <= self.sent:
            raise RemoteProtocolError(
                f"the peer took channel {self.channel} up to {offset}, which is not within {self.base} to {self.sent}"
            )
        if window < self.window:
            raise RemoteProtocolError(f"the peer made the window of channel {self.channel} smaller")
        self.window = window
        self._forget(offset - max(self.base, self._kept_from))
        self.base = offset

    def check_wanted(self, wanted: int) -> None:
        """Raise SessionLost unless the stream can go on at the offset that the peer wants."""
        kept = max(self.base, self._kept_from)
        if wanted != OLDEST and not kept <= wanted <= self.sent:
            raise SessionLost(
                f"the peer wants channel {self.channel} from {wanted} on, but only {kept} to {self.sent} is kept",
                {self.channel: self.base},
            )
        if self.records and wanted != OLDEST and wanted not in self._boundaries(kept):
            raise RemoteProtocolError(f"the peer wants channel {self.channel} from inside a record on")

    def _boundaries(self, offset: int) -> set[int]:
        """Return where the records kept here begin and end, the first of them at `offset`."""
        found = {offset}
        for chunk in (*self._untaken, *self._unsent):
            offset += len(chunk)
            found.add(offset)
        return found

    def resume(self, wanted: int, window: int) -> None:
        """Begin a new link at the offset that the peer wants; raises SessionLost as `check_wanted`."""
        self.check_wanted(wanted)
        self.fin_sent = False
        self.gap_due = wanted == OLDEST
        self.window = window if self.gap_due else max(window, self.window)  # a new process grants its own
        kept = max(self.base, self._kept_from)
        offset = kept if self.gap_due else wanted
        self._unsent.extendleft(reversed(self._untaken))
        self._untaken.clear()
        self.sent = kept
        while self.sent < offset:
            self._send_again_later_than(offset)

    def all_taken(self) -> bool:
        """Whether the whole stream has been sent and taken."""
        return self.finished and self.base == self.end

    def _send_again_later_than(self, offset: int) -> None:
        chunk = self._unsent.popleft()
        if self.sent + len(chunk) > offset:
            cut = offset - self.sent
            self._unsent.appendleft(memoryview(chunk)[cut:])
            chunk = memoryview(chunk)[:cut]
        self.sent += len(chunk)
        self._untaken.append(chunk)

    def _keep(self, chunk: Chunk) -> None:
        untaken = self._untaken
        if untaken and not self.records and len(untaken[-1]) + len(chunk) <= _SMALL:
            untaken[-1] = b"".join((untaken[-1], chunk))
        else:
            untaken.append(chunk)

    def _forget(self, count: int) -> None:
        untaken = self._untaken
        while count > 0:
            chunk = untaken.popleft()
            if len(chunk) > count:
                untaken.appendleft(memoryview(chunk)[count:])
                return
            count -= len(chunk)


class Incoming:
    """The receiving side of a channel: offsets, the window it grants, and what it has told the peer."""

    __slots__ = (
        "_gap",
        "_mark",
        "_mark_time",
        "_waiting",
        "bits",
        "channel",
        "expected",
        "final",
        "gap_wanted",
        "stop_due",
        "stopping",
        "taken",
        "told",
        "told_due",
    )

    def __init__(self, channel: int, *, unknown: bool = False, bits: int = DEFAULT_WINDOW_BITS) -> None:
        self.channel = channel
        self.expected = self.taken = self.told = 0
        self.final: int | None = None
        self.gap_wanted = unknown
        self.stopping = self.stop_due = False
        self.told_due = False
        self.bits = bits
        self._mark = 0
        self._waiting = 0  # bytes that have arrived and are not taken
        # Where the first gap among those bytes begins and the last one ends: taken waits there till that is passed.
        self._gap: tuple[int, int] | None = None
        self._mark_time: float | None = None

    @property
    def wanted(self) -> int:
        """The offset for OPEN."""
        return OLDEST if self.gap_wanted else self.expected

    def expect(self, offset: int, length: int, *, fin: bool) -> None:
        """Check a DATA frame's header against what may come; raises RemoteProtocolError."""
        if self.gap_wanted:
            raise RemoteProtocolError(
                f"the peer sent data on channel {self.channel} before the GAP that must come first"
            )
        if offset != self.expected:
            raise RemoteProtocolError(
                f"the peer sent channel {self.channel} from {offset} on, expected {self.expected}"
            )
        if self.final is not None and (length or offset != self.final):
            raise RemoteProtocolError(f"the peer sent data on channel {self.channel} behind its end")
        if fin and length:
            raise RemoteProtocolError(f"the peer sent a FIN with {length} bytes on channel {self.channel}")
        if self.channel and offset + length > self.taken + (1 << self.bits):
            raise RemoteProtocolError(f"the peer sent channel {self.channel} beyond the window it was granted")

    def receive(self, count: int) -> bool:
        """Count bytes that have arrived; False when they are to be thrown away (after STOP)."""
        self.expected += count
        if self.stopping:
            self.taken = self.expected
        else:
            self._waiting += count
        return not self.stopping

    def take(self, count: int, now: float) -> None:
        """The application has taken `count` more bytes."""
        if self.stopping:
            return
        if count > self._waiting:
            raise LocalProtocolError(f"channel {self.channel}: more bytes taken than have arrived")
        self._waiting -= count
        if self._gap is not None and self._waiting > self.expected - self._gap[1]:
            self.taken = min(self._gap[0], self.taken + count)
        else:
            self.taken = self.expected - self._waiting
            self._mark = self.taken if self._gap is not None else self._mark
            self._gap = None
        if self._mark_time is None:
            self._mark_time = now

    def grow(self, now: float, round_trip: float) -> None:
        """Double the window where it is what limits the peer: a whole one taken within 200 ms and two round trips.

        The second condition is ours: on a fast link a larger window only fills caches (1 MiB is fastest on loopback).
        """
        if self._mark_time is None or self.taken - self._mark < 1 << self.bits:
            return
        elapsed = now - self._mark_time
        if elapsed <= min(_FAST, 2 * round_trip) and round_trip and self.bits < MAX_WINDOW_BITS:
            self.bits += 1
        self._mark, self._mark_time = self.taken, now

    def stop(self) -> None:
        """Want no more: what arrived counts as taken, what still arrives is thrown away."""
        if not self.stopping:
            self.stopping = self.stop_due = True
            self.taken = self.expected
            self._waiting, self._gap = 0, None

    def begin_again(self) -> None:
        """The peer is a new process: a stream that had ended is unwanted now, and ends again where the peer says."""
        if self.final is not None:
            self.final = None
            self.stop()

    def skip_to(self, offset: int) -> int:
        """A GAP: the stream goes on at `offset`; return how many bytes are missing."""
        if offset < self.expected or self.final is not None:
            raise RemoteProtocolError(f"the peer sent a GAP on channel {self.channel} that goes back to {offset}")
        if offset > MAX_OFFSET:
            raise RemoteProtocolError(f"the peer sent a GAP on channel {self.channel} that goes on at {offset}")
        missing = offset - self.expected
        if self._waiting:
            self._gap = (self._gap[0] if self._gap is not None else self.expected, offset)
        else:
            self.taken = self._mark = offset
        self.expected = offset
        self.gap_wanted = False
        return missing

    def new_link(self) -> None:
        """Say again on a new link what must be repeated there; where nothing has come yet, OPEN has said it."""
        self.told_due = self.expected > 0
        self.stop_due = self.stopping
        self._mark_time = None

    def taken_due(self) -> bool:
        """Whether TAKEN should go out without delay: a quarter of the window, or the whole stream."""
        return self.told_due or self.taken - self.told >= 1 << (self.bits - 2) or self.taken == self.final != self.told

    def all_taken(self) -> bool:
        """Whether the peer has ended this stream and all of it is taken."""
        return self.final is not None and self.taken == self.final
