"""Two ends of a session and the connection between them, all in memory: what the tests of the pure core drive.

Rules: bytes move only when a test says so, in the slices it says; the clock is a number that the test passes in; every
random byte is counted up, so that one script gives the same bytes in every run.

`Application` is an end that keeps what it takes. `Pair` is one connection: two links and the bytes on their way. A test
that cuts a connection throws its `Pair` away and makes another one between the same applications.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sockstream import records
from sockstream.errors import ConnectionLost
from sockstream.frames import HEADER, HEADER_SIZE, FrameType, GoAwayCode, OpenFlag, pack
from sockstream.handshake import Handshake, Step
from sockstream.link import Link, LinkState
from sockstream.records import How, Kind, Peer, Status
from sockstream.session import OPPOSITE, Completed, Data, Finished, Gap, GoneAway, Opened, Session, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = bytes(range(32))
BINDING = hashlib.sha256(b"unix").digest()
SESSION_ID = b"0123456789abcdef"
STATUS = Status(How.EXITED, 7, elapsed=1.5)
WHOLE = 1 << 30  # more bytes than any test moves
DIALLER, WAITER = 0, 1


def nonce(number: int) -> bytes:
    """Return 32 bytes that differ for every number."""
    return hashlib.sha256(b"nonce %d" % number).digest()


def handshake(*, dials: bool, key: bytes = KEY, binding: bytes = BINDING, number: int = 0) -> Handshake:
    """Return a side of a handshake; two with the same key and binding understand each other."""
    return Handshake(dials=dials, key=key, binding=binding, nonce=nonce(2 * number + dials))


def program_session(window_bits: int = 20) -> Session:
    """Return the session of a program end that grants windows of 2^window_bits bytes."""
    return Session(peer(Kind.PROGRAM, window_bits))


def viewer_session(window_bits: int = 20, *, adopting: Peer | None = None) -> Session:
    """Return the session of a viewer end, new or (`adopting` the program that said this) in the middle of one."""
    return Session(peer(Kind.VIEWER, window_bits), adopting=adopting)


def peer(kind: Kind, window_bits: int = 20, session: bytes = SESSION_ID) -> Peer:
    """Return what an end of this kind says of itself."""
    said = Peer(kind, session=session, name=kind.name.lower())
    said.window_bits = window_bits
    return said


class Application:
    """One end of a session that keeps all it receives; `takes` says whether it takes bytes at once."""

    def __init__(self, session: Session, *, takes: bool = True) -> None:
        self.session = session
        self.takes = takes
        self.received: dict[int, bytearray] = {channel: bytearray() for channel in session.incoming}
        self.untaken = dict.fromkeys(session.incoming, 0)
        self.opened: list[bool] = []
        self.finished: list[int] = []
        self.stopped: list[int] = []
        self.gaps: list[tuple[int, int, int, int]] = []
        self.records: list[bytes] = []
        self.completed: list[Status] = []
        self.gone: list[tuple[int, str]] = []
        self.order: list[tuple[str, int | None]] = []  # event and channel; bytes in pieces count as one

    def absorb(self, now: float) -> None:
        """Note every event that is due, those too that come of taking."""
        while events := self.session.events():
            for event in events:
                self._note(event, now)

    def _note(self, event: object, now: float) -> None:
        key = type(event).__name__, getattr(event, "channel", None)
        if self.order[-1:] != [key]:
            self.order.append(key)
        match event:
            case Data(channel=channel, data=data):
                self.received[channel] += data
                self.untaken[channel] += len(data)
                if self.takes:
                    self.take(channel, len(data), now)
            case Opened(resumed=resumed):
                self.opened.append(resumed)
            case Finished(channel=channel):
                self.finished.append(channel)
            case Stopped(channel=channel):
                self.stopped.append(channel)
            case Gap(channel=channel, start=start, stop=stop, reason=reason):
                self.gaps.append((channel, start, stop, reason))
            case Completed(status=status):
                self.completed.append(status)
            case GoneAway(code=code, text=text):
                self.gone.append((code, text))
            case records.Started() | records.Signal() | records.WindowSize() | records.Exited():
                self.records.append(event.encode())
            case _:
                raise AssertionError(f"an event that no application knows: {event!r}")

    def take(self, channel: int, count: int, now: float = 0.0) -> None:
        """Take some of what has arrived."""
        self.untaken[channel] -= count
        self.session.take(channel, count, now)


class Pair:
    """One connection between a dialling and a waiting application.

    answer: what the waiting end does with a link that is PARKED; it accepts for its application unless told otherwise.
    """

    def __init__(
        self,
        dialler: Application,
        waiter: Application,
        now: float = 0.0,
        *,
        number: int = 0,
        answer: Callable[[Pair, float], None] | None = None,
    ) -> None:
        self.ends = [dialler, waiter]
        self.links = (
            Link(handshake(dials=True, number=number), now, dialler.session),
            Link(handshake(dials=False, number=number), now),
        )
        self.wires = (bytearray(), bytearray())  # what each side has sent and the other has not read
        self.delivered = [0, 0]
        self._answer = answer or accept

    def send(self, side: int, now: float = 0.0, most: int = WHOLE) -> int:
        """Let the kernel take at most so many bytes from a side; return how many."""
        link, taken = self.links[side], 0
        while taken < most and (buffers := link.data_to_send(now)):
            data = b"".join(buffers)[: most - taken]
            self.wires[side].extend(data)
            taken += len(data)
            link.data_sent(len(data))
        return taken

    def deliver(self, side: int, now: float = 0.0, most: int = WHOLE, piece: int = WHOLE) -> int:
        """Hand at most so many bytes that a side has sent to the other, `piece` at a time; return how many."""
        wire = self.wires[side]
        data = bytes(wire[:most])
        del wire[: len(data)]
        for chunk in feed(self.links[1 - side], data, now, piece):
            self.delivered[side] += chunk
            self._after(1 - side, now)
        return len(data)

    def _after(self, side: int, now: float) -> None:
        if self.links[side].state is LinkState.PARKED:
            self._answer(self, now)
        if self.links[side].session is not None:
            self.ends[side].absorb(now)

    def settle(self, now: float = 0.0, piece: int = WHOLE) -> int:
        """Move everything both ways until nothing is left; return how many bytes that were."""
        total = 0
        while self.send(DIALLER, now) + self.send(WAITER, now) or any(self.wires):
            total += sum(self.deliver(side, now, piece=piece) for side in (DIALLER, WAITER))
        return total

    def cut(self, now: float = 0.0) -> None:
        """End the connection: what is under way is lost, both ends notice and detach."""
        for link, wire in zip(self.links, self.wires, strict=True):
            wire.clear()
            end_of_file(link, now)


def accept(pair: Pair, now: float) -> None:
    """The waiting end's usual answer: close the session's older link, then go on over the new one."""
    session = pair.ends[WAITER].session
    if session.link is not None:
        session.link.refuse(GoAwayCode.REPLACED, "")
        session.detach(session.link)
    pair.links[WAITER].accept(session, now)


def end_of_file(link: Link, now: float = 0.0) -> None:
    """Tell a link that the peer has closed; its session, if it was that session's link, has none from here on."""
    try:
        link.eof_received(now)
    except ConnectionLost:
        if link.session is not None:
            link.session.detach(link)


def feed(link: Link, data: bytes, now: float = 0.0, piece: int = WHOLE) -> Iterator[int]:
    """Let a link receive data in pieces of at most so many bytes; yield the size of each, for the events between."""
    view = memoryview(data)
    while view:
        room = link.get_buffer(piece)
        count = min(len(room), len(view), piece)
        assert count, "a link that wants to read has no room to receive into"
        room[:count] = view[:count]
        link.buffer_updated(count, now)
        view = view[count:]
        yield count


def give(link: Link, data: bytes, now: float = 0.0) -> None:
    """Let a link receive data, as large a piece at a time as it takes."""
    for _ in feed(link, data, now):
        pass


def drain(link: Link, now: float = 0.0) -> bytes:
    """Take everything that a link has to send."""
    out = bytearray()
    while buffers := link.data_to_send(now):
        data = b"".join(buffers)
        out += data
        link.data_sent(len(data))
    return bytes(out)


def split_frames(data: bytes) -> list[tuple[int, int, int, int, bytes]]:
    """Cut frames apart: type, flags, channel, number, payload of each."""
    found = []
    while data:
        kind, flags, channel, length, number = HEADER.unpack_from(data)
        found.append((kind, flags, channel, number, data[HEADER_SIZE : HEADER_SIZE + length]))
        data = data[HEADER_SIZE + length :]
    return found


def connected(
    dialler: Application | None = None, waiter: Application | None = None, now: float = 0.0, number: int = 0
) -> Pair:
    """Return a pair whose OPENs are through: a program that dials and a viewer, unless told otherwise."""
    dialler = dialler or Application(program_session())
    pair = Pair(dialler, waiter or Application(viewer_session()), now, number=number)
    pair.settle(now)
    assert [link.state for link in pair.links] == [LinkState.UP, LinkState.UP]
    return pair


def adoption(program: Application, now: float = 0.0, *, number: int = 0, window_bits: int = 20) -> Pair:
    """Return a pair, still without a link, in which a new viewer that knows nothing will take the program over."""

    def adopt(pair: Pair, now: float) -> None:
        pair.ends[WAITER] = Application(viewer_session(window_bits, adopting=pair.links[WAITER].peer))
        accept(pair, now)

    return Pair(program, Application(viewer_session(window_bits)), now, number=number, answer=adopt)


def advance(side: Handshake, data: bytes) -> bytes:
    """Let a side of a handshake receive data step by step; return what does not belong to the handshake."""
    while side.step is not Step.DONE and len(data) >= side.needs():
        count = side.needs()
        side.receive(data[:count])
        data = data[count:]
    return data


def authenticated(session: Session | None = None, now: float = 0.0) -> Link:
    """Return a link whose peer, played by hand, has proven itself: a dialling one for a session, else a waiting one."""
    dials = session is not None
    link, other = Link(handshake(dials=dials), now, session), handshake(dials=not dials)
    while link.state is LinkState.HANDSHAKE:
        advance(other, drain(link))
        give(link, bytes(other.output), now)
        other.output.clear()
    if not dials:
        drain(link)  # the proof
    return link


def open_frame(said: Peer, flags: int = OpenFlag.DURABLE) -> bytes:
    """Return the OPEN of a peer that is played by hand."""
    return pack(FrameType.OPEN, flags=flags, payload=said.encode())


def by_hand(session: Session, said: Peer | None = None, now: float = 0.0, *, dials: bool = True) -> Link:
    """Return a session's link that is UP, whose peer is played by hand; it has nothing left to send.

    said: what the peer says in its OPEN, by default what an ordinary one of the other kind would.
    """
    said = said or peer(OPPOSITE[session.me.kind])
    link = authenticated(session if dials else None, now)
    give(link, open_frame(said), now)
    if not dials:
        link.accept(session, now)
    drain(link, now)
    return link


def pair_of(*, program_dials: bool = True, takes: bool = True, bits: int = 20) -> tuple[Application, Application, Pair]:
    """Return a program, a viewer and the connection between them, OPENs through."""
    program = Application(program_session(bits), takes=takes)
    viewer = Application(viewer_session(bits), takes=takes)
    ends = (program, viewer) if program_dials else (viewer, program)
    return program, viewer, connected(*ends)


def until_accepted(pair: Pair) -> Application:
    """Move bytes until the waiting end has accepted, and no further; return its application."""
    side = DIALLER
    while pair.links[WAITER].session is None:
        pair.send(side)
        pair.deliver(side)
        side = 1 - side
    return pair.ends[WAITER]


def end_program(program: Application) -> None:
    """Let the program end, with its status on the way at once."""
    program.session.send(records.Exited(STATUS))
    program.session.finish(2)
    program.session.finish(3)
    program.session.end(STATUS)
