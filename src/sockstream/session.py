"""The conversation of two ends, which outlives its links (docs/protocol.md sections 3 to 7), without any I/O.

Rules: bytes in, events and bytes out; the time and random bytes are passed in. A `Session` owns the channels; a
`Link` owns one connection's bytes: it runs the handshake, cuts frames and hands them to its session by one table,
`_HANDLERS`: a missing key *is* the protocol error. Events that carry bytes hold views of the link's receive buffer:
they are used up before the link's next `get_buffer`.

Why two classes: the waiting end learns only from OPEN which session a link belongs to, and a session goes on when
its link has died.
"""

from __future__ import annotations

from enum import IntEnum

from . import frames, records
from .channels import Incoming, Outgoing
from .errors import LocalProtocolError, RemoteProtocolError, SessionLost
from .events import Completed, Data, Finished, Gap, GoneAway, Opened, Stopped
from .frames import HEADER, Channel, DataFlag, FrameType, GoAwayCode, OpenFlag, pack
from .records import Kind, Peer, Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import Event
    from .link import Link

PING_AFTER = 5.0
DEAD_AFTER = 15.0
TAKEN_DELAY = 0.05
MAX_OUTSTANDING_RECORDS = 1 << 16
_SENDS: dict[Kind, tuple[int, ...]] = {
    Kind.PROGRAM: (Channel.CONTROL, Channel.STDOUT, Channel.STDERR),
    Kind.VIEWER: (Channel.CONTROL, Channel.STDIN),
}
_RECORDS_TO: dict[Kind, tuple[type, ...]] = {
    Kind.PROGRAM: (records.Signal, records.WindowSize),
    Kind.VIEWER: (records.Started, records.Exited, records.End),
}
OPPOSITE = {Kind.PROGRAM: Kind.VIEWER, Kind.VIEWER: Kind.PROGRAM}


class State(IntEnum):
    """Where a session stands; a broken link leads back from OPEN to BROKEN, a new one forward again."""

    NEW = 0
    OPEN = 1
    BROKEN = 2
    OVER = 3


class Session:
    """One end of a conversation.

    me: what this end says of itself; its `session` id decides which conversation it is. adopting: this end begins
    in the middle of a session it knows nothing of, `peer` being the other end's OPEN.
    """

    def __init__(self, me: Peer, *, adopting: Peer | None = None) -> None:
        self.me = me
        self.state = State.NEW
        self.peer: Peer | None = None
        self.link: Link | None = None
        self.outgoing = {c: self._outgoing(c, adopting) for c in _SENDS[me.kind]}
        self.incoming = {
            c: Incoming(c, unknown=adopting is not None, bits=me.window_bits) for c in _SENDS[OPPOSITE[me.kind]]
        }
        self.end_received: records.End | None = None
        self.completed = False
        self._events: list[Event] = []
        self._end_due: Status | None = None
        self._end_at: int | None = None
        self._goaway: bytes | None = None
        self._ping_due: int | None = None
        self._pong_due: int | None = None
        self._ping_sent: float | None = None
        self._round_trip = 0.0
        self._heard = 0.0
        self._taken_at: float | None = None
        self._streams = [o for c, o in self.outgoing.items() if c != Channel.CONTROL]
        self._turn = 0
        self._due = False  # there may be something to compose: most calls of `compose` end here

    @staticmethod
    def _outgoing(channel: int, adopting: Peer | None) -> Outgoing:
        start = adopting.wants.get(channel, 0) if adopting else 0
        if start > frames.MAX_OFFSET:
            raise RemoteProtocolError(f"the peer wants channel {channel} from {start} on, which cannot be")
        return Outgoing(channel, start=start, records=channel == Channel.CONTROL)

    # ---- the application's side

    def events(self) -> list[Event]:
        """Return and forget what has happened since the last call."""
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

    def room(self, channel: int) -> int:
        """Return how many bytes may be written to a channel now."""
        return self.outgoing[channel].room()

    def write(self, channel: int, data: bytes) -> None:
        """Send `data`, which is kept by reference until the peer has taken it."""
        self._due = True
        self.outgoing[channel].write(data)

    def finish(self, channel: int) -> None:
        """End a channel behind its last byte."""
        self._due = True
        self.outgoing[channel].finish()

    def take(self, channel: int, count: int, now: float) -> bool:
        """Say that `count` more received bytes are where they belong; True when the link is to be flushed for it."""
        timed = self._taken_at is not None
        incoming = self.incoming[channel]
        incoming.take(count, now)
        incoming.grow(now, self._round_trip)
        self._note_taken(incoming, now)
        return self._due or bool(self._events) or timed != (self._taken_at is not None)

    def stop(self, channel: int, now: float) -> None:
        """Want no more of a channel: the peer's program gets a closed pipe."""
        incoming = self.incoming[channel]
        incoming.stop()
        self._note_taken(incoming, now)

    def send(self, record: records.Record) -> None:
        """Send a control record; it overtakes queued data. Raises LocalProtocolError when too many are outstanding."""
        control = self.outgoing[Channel.CONTROL]
        data = record.encode()
        if control.kept() + len(data) > MAX_OUTSTANDING_RECORDS:
            raise LocalProtocolError("too many control records are outstanding: the peer does not take them")
        control.write(data)
        self._due = True

    def end(self, status: Status) -> None:
        """Say that the program is over and everything was written; END follows the FINs of all channels."""
        self._end_due = status
        self._due = True

    def leave(self, code: GoAwayCode = GoAwayCode.LEAVING, text: str = "") -> None:
        """End the session for good; GOAWAY goes out as the last frame of the link, if there is one."""
        self._goaway = records.encode_goaway(code, text)
        self._due = True
        self.state = State.OVER

    @property
    def goodbye_due(self) -> bool:
        """Whether GOAWAY has not gone out yet."""
        return self._goaway is not None

    def untaken(self) -> dict[int, int]:
        """Return, per channel that has some, how many bytes written here are not known to be taken."""
        if self.completed and self._end_due is not None:  # END was taken, which says it of everything
            return {}
        return {o.channel: o.kept() for o in self._streams if o.kept()}

    # ---- the link's side

    def open_frame(self, *, dials: bool) -> bytes:
        """Return this end's OPEN for a new link; RESUME says that a dialling end has had an answer before."""
        self.me.wants = {c: i.wanted for c, i in self.incoming.items() if i.wanted}
        flags = OpenFlag.DURABLE | (OpenFlag.RESUME if dials and self.peer is not None else 0)
        return pack(FrameType.OPEN, flags=flags, payload=self.me.encode())

    def attach(self, link: Link, peer: Peer, now: float) -> None:
        """Go on over a new link whose OPEN is `peer`; raises SessionLost where what the peer wants is gone."""
        if self.state is State.OVER:
            raise SessionLost("this end has left the session")
        for channel, outgoing in self.outgoing.items():
            outgoing.check_wanted(peer.wants.get(channel, 0))
        resumed = self.peer is not None
        self.peer, self.link, self.state = peer, link, State.OPEN
        self._due = True
        for channel, outgoing in self.outgoing.items():
            outgoing.resume(peer.wants.get(channel, 0), 1 << peer.window_bits)
        for incoming in self.incoming.values():
            if frames.OLDEST in peer.wants.values():
                incoming.begin_again()
            incoming.new_link()
        self._heard, self._ping_sent, self._round_trip = now, None, 0.0
        self._ping_due, self._pong_due = 0, None  # the first PING measures the round trip
        self._events.append(Opened(peer, resumed))

    def detach(self, link: Link) -> bool:
        """The link has died; False when the session had another one already."""
        if self.link is not link:
            return False
        self.link = None
        self._goaway = None
        if self.state is State.OPEN:
            self.state = State.BROKEN
        return True

    def heard(self, now: float) -> None:
        """Something has come from the peer."""
        self._heard = now

    def receive(self, kind: int, flags: int, channel: int, number: int, payload: memoryview, now: float) -> None:
        """Take a whole frame other than DATA of a byte stream; raises RemoteProtocolError."""
        handler = _HANDLERS.get((self.state, kind))
        if handler is None:
            raise RemoteProtocolError(f"the peer sent {FrameType(kind).name} where it may not stand")
        self._due = True
        handler(self, flags, channel, number, payload, now)

    def expect_data(self, flags: int, channel: int, length: int, offset: int) -> None:
        """Check the header of a DATA frame before its payload is received; raises RemoteProtocolError."""
        incoming = self._incoming(channel)
        if flags & ~DataFlag.FIN:
            raise RemoteProtocolError(f"the peer sent an object on channel {channel}, which carries bytes")
        if channel == Channel.CONTROL and (length > frames.MAX_RECORD or flags or not length):
            raise RemoteProtocolError(f"the peer sent a control record of {length} bytes, flags {flags:#x}")
        incoming.expect(offset, length, fin=bool(flags & DataFlag.FIN))

    def receive_data(self, channel: int, data: memoryview) -> None:
        """Take bytes of a stream, all or part of a DATA frame's payload."""
        if self.incoming[channel].receive(len(data)):
            self._events.append(Data(channel, data))
        else:
            self._due = True  # thrown away is taken

    def receive_fin(self, channel: int) -> None:
        """Take a FIN (checked by `expect_data`); it comes again on every link."""
        incoming = self.incoming[channel]
        if incoming.final is None:
            incoming.final = incoming.expected
            self._events.append(Finished(channel))
        self._complete_if_all_taken()

    def compose(self, now: float, limit: int) -> list[bytes | memoryview]:
        """Return frames to send now, about `limit` bytes of data at most, the urgent ones first."""
        out: list[bytes | memoryview] = []
        if not self._due:
            return out
        self._due = False
        if self._goaway is not None:
            out.append(pack(FrameType.GOAWAY, payload=self._goaway))
            self._goaway = None
        if self.state is not State.OPEN:
            return out
        self._compose_values(out, now)
        self._compose_control(out)
        self._compose_data(out, limit)
        if self._end_ready():
            self._compose_control(out)
        return out

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is to be called."""
        asked = self._ping_sent is not None or self._ping_due is not None
        alive = self._heard + (DEAD_AFTER if asked else PING_AFTER)
        return alive if self._taken_at is None else min(alive, self._taken_at)

    def handle_timeout(self, now: float) -> bool:
        """Do what is due; False when the peer has been silent for too long."""
        if self._taken_at is not None and now >= self._taken_at:
            self._taken_at = None
            self._due = True
            for incoming in self.incoming.values():
                incoming.told_due |= incoming.taken > incoming.told
        if now >= self._heard + PING_AFTER and self._ping_sent is None:
            self._ping_due = int(now * 1000)
            self._due = True
        return now < self._heard + DEAD_AFTER

    # ---- frames

    def _incoming(self, channel: int) -> Incoming:
        incoming = self.incoming.get(channel)
        if incoming is None:
            raise RemoteProtocolError(f"the peer sent channel {channel}, which it may not send here")
        return incoming

    def _outgoing_of(self, channel: int) -> Outgoing:
        outgoing = self.outgoing.get(channel)
        if outgoing is None:
            raise RemoteProtocolError(f"the peer spoke of channel {channel}, which this end does not send")
        return outgoing

    def _receive_record(self, _f: int, _c: int, _n: int, payload: memoryview, now: float) -> None:
        control = self.incoming[Channel.CONTROL]
        control.receive(len(payload))
        record = records.decode_record(bytes(payload))
        if record is not None and not isinstance(record, _RECORDS_TO[self.me.kind]):
            raise RemoteProtocolError(f"the peer sent {type(record).__name__}, which is not for its kind of end")
        if isinstance(record, records.End):
            self._check_finals(record)
            self.end_received = record
            self._complete_if_all_taken()
            return
        if self.end_received is None:
            control.take(len(payload), now)
            self._note_taken(control, now)
        if record is not None:
            self._events.append(record)

    def _check_finals(self, end: records.End) -> None:
        finals = {c: i.final for c, i in self.incoming.items() if c != Channel.CONTROL}
        if self.end_received is not None or finals != end.finals:
            raise RemoteProtocolError(f"the peer sent an END that does not fit: {end.finals} in place of {finals}")

    def _receive_taken(self, flags: int, channel: int, number: int, _payload: memoryview, _now: float) -> None:
        if not frames.MIN_WINDOW_BITS <= flags <= frames.MAX_WINDOW_BITS:
            raise RemoteProtocolError(f"the peer granted a window of 2^{flags} bytes")
        self._outgoing_of(channel).take(number, 1 << flags)
        confirmed = self._end_at is not None and self.outgoing[Channel.CONTROL].base > self._end_at
        if confirmed and self._end_due is not None and not self.completed:
            self.completed = True
            self._events.append(Completed(self._end_due))

    def _receive_stop(self, _flags: int, channel: int, _number: int, _payload: memoryview, _now: float) -> None:
        outgoing = self._outgoing_of(channel)
        if channel == Channel.CONTROL:
            raise RemoteProtocolError("the peer sent STOP for the control channel")
        known = outgoing.stopped
        outgoing.drop_unsent()
        if not known:
            self._events.append(Stopped(channel))

    def _receive_gap(self, _flags: int, channel: int, number: int, payload: memoryview, now: float) -> None:
        incoming = self._incoming(channel)
        start = incoming.expected
        incoming.told_due = True
        if incoming.skip_to(number):
            self._events.append(Gap(channel, start, number, payload[0]))

    def _receive_ping(self, _flags: int, _channel: int, number: int, _payload: memoryview, _now: float) -> None:
        self._pong_due = number

    def _receive_pong(self, _flags: int, _channel: int, _number: int, _payload: memoryview, now: float) -> None:
        if self._ping_sent is not None:
            trip = now - self._ping_sent
            self._round_trip = min(trip, self._round_trip) if self._round_trip else trip
            self._ping_sent = None

    def _receive_goaway(self, _flags: int, _channel: int, _number: int, payload: memoryview, _now: float) -> None:
        self.state = State.OVER
        self._events.append(GoneAway(*records.decode_goaway(bytes(payload))))

    # ---- composing

    def _compose_values(self, out: list[bytes | memoryview], now: float) -> None:
        if self._pong_due is not None:
            out.append(pack(FrameType.PONG, number=self._pong_due))
            self._pong_due = None
        if self._ping_due is not None:
            out.append(pack(FrameType.PING, number=self._ping_due))
            self._ping_due, self._ping_sent = None, now
        for channel, outgoing in self.outgoing.items():
            if outgoing.gap_due:
                outgoing.gap_due = False
                reason = bytes((frames.GapReason.TAKEN_BY_ANOTHER,))
                out.append(pack(FrameType.GAP, channel=channel, number=outgoing.base, payload=reason))
        for channel, incoming in self.incoming.items():
            if incoming.stop_due:
                incoming.stop_due = False
                out.append(pack(FrameType.STOP, channel=channel))
            if not incoming.gap_wanted and incoming.taken_due():
                incoming.told, incoming.told_due = incoming.taken, False
                out.append(pack(FrameType.TAKEN, flags=incoming.bits, channel=channel, number=incoming.taken))

    def _compose_control(self, out: list[bytes | memoryview]) -> None:
        control = self.outgoing[Channel.CONTROL]
        while (self._end_at is None or control.sent != self._end_at or self._fins_sent()) and (
            frame := control.next_frame()
        ):
            _append_data(out, Channel.CONTROL, *frame)

    def _compose_data(self, out: list[bytes | memoryview], limit: int) -> None:
        streams = self._streams
        idle = 0
        while limit > 0 and idle < len(streams):
            self._turn = (self._turn + 1) % len(streams)
            outgoing = streams[self._turn]
            frame = outgoing.next_frame()
            if frame is None:
                idle += 1
                continue
            idle = 0
            limit -= len(frame[1])
            _append_data(out, outgoing.channel, *frame)
        self._due |= limit <= 0
        for outgoing in streams:
            if outgoing.fin_due():
                fin = pack(FrameType.DATA, flags=DataFlag.FIN, channel=outgoing.channel, number=outgoing.send_fin())
                out.append(fin)

    def _fins_sent(self) -> bool:
        return all(outgoing.fin_sent for outgoing in self._streams)

    def _end_ready(self) -> bool:
        """Whether END may go out now; writes its record when that happens for the first time."""
        if self._end_due is None or not self._fins_sent():
            return False
        if self._end_at is None:
            finals = {c: o.end for c, o in self.outgoing.items() if c != Channel.CONTROL}
            self._end_at = self.outgoing[Channel.CONTROL].end
            self.outgoing[Channel.CONTROL].write(records.End(finals, self._end_due).encode())
        return True

    def _note_taken(self, incoming: Incoming, now: float) -> None:
        if incoming.taken_due() or incoming.stop_due:
            self._due = True
        elif incoming.taken > incoming.told and self._taken_at is None:
            self._taken_at = now + TAKEN_DELAY
        if self.end_received is not None:
            self._complete_if_all_taken()

    def _complete_if_all_taken(self) -> None:
        end = self.end_received
        if end is None or self.completed or not all(self.incoming[c].all_taken() for c in end.finals):
            return
        control = self.incoming[Channel.CONTROL]
        control.taken = control.expected
        control.told_due = self._due = True
        self.completed = True
        self._events.append(Completed(end.status))


_HANDLERS: dict[tuple[State, int], Callable[[Session, int, int, int, memoryview, float], None]] = {
    (State.OPEN, FrameType.DATA): Session._receive_record,
    (State.OPEN, FrameType.TAKEN): Session._receive_taken,
    (State.OPEN, FrameType.STOP): Session._receive_stop,
    (State.OPEN, FrameType.GAP): Session._receive_gap,
    (State.OPEN, FrameType.PING): Session._receive_ping,
    (State.OPEN, FrameType.PONG): Session._receive_pong,
    (State.OPEN, FrameType.GOAWAY): Session._receive_goaway,
    (State.NEW, FrameType.GOAWAY): Session._receive_goaway,
    (State.BROKEN, FrameType.GOAWAY): Session._receive_goaway,
}


def _append_data(out: list[bytes | memoryview], channel: int, offset: int, payload: bytes | memoryview) -> None:
    header = HEADER.pack(FrameType.DATA, 0, channel, len(payload), offset)
    if len(payload) <= _JOINED:  # one small copy is cheaper than a second buffer in sendmsg
        out.append(b"".join((header, payload)))
    else:
        out.append(header)
        out.append(payload)


_JOINED = 2048
