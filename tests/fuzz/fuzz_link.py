"""Feed a link what a broken or hostile peer might send: `fuzz_link.py [SECONDS] [FIRST SEED]`.

Rules: a case is one number, which decides everything; of exceptions only those of `ALLOWED` may come out of a link, and
anything else is a `Finding` that names the case. Before the peer has proven itself a link may take 4096 bytes and must
not come up; afterwards it may hold its receive buffer and give its application a window of each channel, and no more.

A case takes what a real peer said to a link like this one (nonces are fixed, so it can be said again), and changes it
before or behind the proof: bits, bytes, frames, fields of headers, whole payloads; or it says something random.
"""

from __future__ import annotations

import functools
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pair import (
    DIALLER,
    STATUS,
    WAITER,
    Application,
    Pair,
    accept,
    drain,
    handshake,
    peer,
    program_session,
    split_frames,
    viewer_session,
)
from sockstream import errors, records
from sockstream.frames import HEADER, FrameType, GoAwayCode, pack
from sockstream.link import BUFFER_SIZE, Link, LinkState
from sockstream.records import Kind, Peer
from sockstream.session import OPPOSITE

ALLOWED = (
    errors.RemoteProtocolError,
    errors.AuthenticationError,
    errors.SessionLost,
    errors.ConnectionLost,
    errors.Timeout,
    errors.LimitExceeded,
)
BITS = 16
HELLO = 16 + 33
GREETING = HELLO + 32
NUMBERS = (0, 1, 2, 9, 16, 17, 255, 1024, 1025, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, (1 << 32) - 1)
OFFSETS = (*NUMBERS, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1)


class Finding(AssertionError):
    """A case in which a link did what it must not do."""


def ends() -> tuple[Application, Application]:
    """Return a program and a viewer that have said all they will say."""
    program, viewer = Application(program_session(BITS)), Application(viewer_session(BITS))
    for number in range(3):
        program.session.send(records.Started(number))
        program.session.write(2, bytes(4000))
        program.session.write(3, b"x" * 20_000 * number)
        viewer.session.send(records.WindowSize(number, 80))
        viewer.session.send(records.Signal("SIGINT"))
        viewer.session.write(1, bytes(3000 * number))
    for end in (program, viewer):
        for channel in end.session.outgoing:
            if channel:
                end.session.finish(channel)
    program.session.send(records.Exited(STATUS))
    program.session.end(STATUS)
    return program, viewer


def order(program_dials: bool) -> tuple[Application, Application]:
    """Return a dialling and a waiting end."""
    program, viewer = ends()
    return (program, viewer) if program_dials else (viewer, program)


@functools.cache
def recorded(program_dials: bool) -> tuple[bytes, bytes]:
    """Return what the dialling and the waiting end say in an orderly conversation."""
    said = [bytearray(), bytearray()]
    pair = Pair(*order(program_dials))
    for now in (0.0, 0.0, 0.0, 0.0, 1.0, 6.0, 7.0):
        for link in pair.links:
            if link.state is LinkState.UP:
                link.handle_timeout(now)
        for side in (DIALLER, WAITER, DIALLER, WAITER):
            pair.send(side, now)
            said[side] += pair.wires[side]
            pair.deliver(side, now)
    assert pair.ends[DIALLER].completed, "the conversation that the fuzzer starts from is not whole"
    return bytes(said[DIALLER]), bytes(said[WAITER])


# ---- what is said to the link


def spoil_bytes(data: bytes, dice: random.Random) -> bytes:
    """Change, insert, repeat or leave out some bytes."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(out) + 1)
        match dice.randrange(5):
            case 0 if at < len(out):
                out[at] ^= 1 << dice.randrange(8)
            case 1:
                out[at:at] = dice.randbytes(dice.choice((1, 4, 16, 3000)))
            case 2:
                del out[at : at + dice.choice((1, 4, 16, 1000))]
            case 3:
                out[at:at] = out[max(0, at - 64) : at]
            case _:
                del out[at:]
    return bytes(out)


def spoil_frames(data: bytes, dice: random.Random) -> bytes:
    """Change, insert, repeat, exchange or leave out some frames."""
    found = split_frames(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(found))
        match dice.randrange(6):
            case 0:
                found.insert(at, random_frame(dice))
            case 1:
                found.insert(dice.randrange(len(found)), found[at])
            case 2 if len(found) > 1:
                del found[at]
            case 3:
                other = dice.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 4:
                kind, flags, channel, number, payload = found[at]
                found[at] = kind, flags, channel, number, spoil_bytes(payload, dice)
            case _:
                found[at] = spoil_header(found[at], dice)
    lie = dice.randrange(len(found)) if dice.random() < 0.2 else None
    return b"".join(to_bytes(frame, dice if at == lie else None) for at, frame in enumerate(found))


Frame = tuple[int, int, int, int, bytes]


def to_bytes(frame: Frame, dice: random.Random | None) -> bytes:
    """Return a frame as it goes over the wire; with dice, one that has another length than it says."""
    kind, flags, channel, number, payload = frame
    length = dice.choice(NUMBERS) if dice else len(payload)
    return HEADER.pack(kind, flags, channel, length, number) + payload


def spoil_header(frame: Frame, dice: random.Random) -> Frame:
    """Change one field."""
    fields: list[int] = list(frame[:4])
    at = dice.randrange(4)
    near = (fields[at] + dice.choice((-1, 1, 256))) % (256, 256, 65_536, 1 << 64)[at]
    fields[at] = dice.choice((near, random_frame(dice)[at]))
    return fields[0], fields[1], fields[2], fields[3], frame[4]


def random_frame(dice: random.Random) -> Frame:
    """Return a frame, most often of a type that there is."""
    kind = dice.choice((*FrameType, *FrameType, dice.randrange(256)))
    flags = dice.choice((0, 0, 1, 2, 3, 16, 20, 24, dice.randrange(256)))
    channel = dice.choice((0, 1, 2, 3, 4, dice.randrange(65_536)))
    payload = dice.randbytes(dice.choice((0, 0, 1, 1, 9, 100, 1024, 1025)))
    if payload and dice.random() < 0.5:
        payload = bytes((dice.randrange(1, 7),)) + payload[1:]
    return kind, flags, channel, dice.choice(OFFSETS), payload


def random_field(dice: random.Random) -> bytes:
    """Return a field of OPEN, most often one that there is."""
    value = dice.randbytes(dice.choice((0, 1, 2, 3, 4, 8, 10, 16, 600)))
    return dice.randrange(18).to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def story(channels: tuple[int, ...], said: Peer, dice: random.Random) -> bytes:
    """Return OPEN and frames whose offsets fit each other, of a peer that sends these channels; few are wrong."""
    for channel in range(4):
        if dice.random() < 0.2:
            said.wants[channel] = dice.choice(OFFSETS)
    fields = [random_field(dice) for _ in range(dice.choice((0, 0, 0, 1, 2)))]
    frames = [pack(FrameType.OPEN, flags=dice.choice((2, 2, 2, 3, 0)), payload=said.encode() + b"".join(fields))]
    offsets = dict.fromkeys(channels, 0)
    for _ in range(dice.choice((1, 10, 100))):
        channel = dice.choice(channels)
        size = dice.choice((1, 9, 1000, 30_000, 65_536)) if channel else 9
        match dice.randrange(8):
            case 0:
                offsets[channel] += dice.choice((0, 0, 1, 5000, 1 << 40))
                frames.append(pack(FrameType.GAP, channel=channel, number=offsets[channel], payload=b"\2"))
            case 1:
                frames.append(
                    pack(FrameType.TAKEN, flags=20, channel=dice.choice((0, 1, 2, 3)), number=dice.choice(OFFSETS))
                )
            case 2:
                frames.append(pack(FrameType.STOP, channel=dice.choice((1, 2, 3))))
            case 3:
                frames.append(pack(dice.choice((FrameType.PING, FrameType.PONG)), number=dice.choice(OFFSETS)))
            case 4 if dice.random() < 0.1:
                frames.append(pack(FrameType.DATA, flags=1, channel=channel, number=offsets[channel]))
            case _:
                payload = bytes(size) if channel else dice.randbytes(9)
                frames.append(pack(FrameType.DATA, channel=channel, number=offsets[channel], payload=payload))
                offsets[channel] += size
    return b"".join(frames)


def what_to_say(heard: bytes, dice: random.Random, said: Peer) -> tuple[bytes, bool]:
    """Return what the peer, who would say `said` in its OPEN, says in this case, and whether its proof is right."""
    greeting, rest = heard[:GREETING], heard[GREETING:]
    match dice.randrange(8):
        case 0:
            return dice.randbytes(dice.choice((1, 100, 10_000))), False
        case 1:
            spoilt = spoil_bytes(greeting, dice) + rest
            return spoilt, spoilt.startswith(greeting)
        case 2:
            size = dice.choice((0, 32, 34, 1000, 2047, 2048, 2049, 65_535))
            return greeting[:12] + size.to_bytes(2, "little") + greeting[14:] + bytes(6000), False
        case 3:
            return greeting + spoil_bytes(rest, dice), True
        case 4 | 5:
            channels = (0, 2, 3) if said.kind is Kind.PROGRAM else (0, 1)
            return greeting + story(channels, said, dice), True
        case _:
            return greeting + spoil_frames(rest, dice), True


def first_frame(said: bytes) -> int:
    """Return the length of the first frame behind the greeting, as its header has it."""
    header = said[GREETING : GREETING + HEADER.size]
    return HEADER.size + HEADER.unpack(header)[3] if len(header) == HEADER.size else 0


# ---- the link


class Target:
    """A link, its session and application, and the checks."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.program_dials, self.dials = dice.random() < 0.5, dice.random() < 0.5
        self.pair = Pair(*order(self.program_dials))
        self.side = DIALLER if self.dials else WAITER
        self.application = self.pair.ends[self.side]
        self.application.takes = dice.random() < 0.5
        session = self.application.session if self.dials else None
        self.link = Link(handshake(dials=self.dials), 0.0, session)
        self.pair.links = (self.link, self.link)
        self.now = 0.0
        self.taken_before_proof = 0

    def hear(self, said: bytes, honest: bool) -> None:
        """Let the link receive what is said, in slices, and behave as a driver would."""
        view = memoryview(said)
        # An honest peer's greeting and OPEN come in steps: it waits for this end's before it goes on.
        steps = (HELLO, GREETING, GREETING + first_frame(said)) if honest or self.dice.random() < 0.5 else ()
        for stop in (*steps, len(said)):
            while view and len(said) - len(view) < stop and self.link.wants_read():
                left = stop - (len(said) - len(view))
                view = view[self.receive(view[:left]) :]
                self.check(honest)
            drain(self.link, self.now)
        self.link.eof_received(self.now)

    def receive(self, data: memoryview) -> int:
        """Receive one slice; return its size."""
        room = self.link.get_buffer(self.dice.choice((1, 4096, 65_536)))
        count = min(len(room), len(data), self.dice.choice((1, 7, 100, 5000, 1 << 20)))
        if not count:
            raise Finding("a link that wants to read has no room to receive into")
        room[:count] = data[:count]
        if self.link.state is LinkState.HANDSHAKE:
            self.taken_before_proof += count
            if self.taken_before_proof > 4096:
                raise Finding(f"{self.taken_before_proof} bytes were taken before the proof")
        self.link.buffer_updated(count, self.now)
        self.drive()
        return count

    def drive(self) -> None:
        """Do what an application and its driver do between two slices."""
        if self.link.state is LinkState.PARKED:
            self.answer()
        if self.link.session is not None:
            self.application.absorb(self.now)
            for received in self.application.received.values():
                received.clear()
        for channel, count in self.application.untaken.items():
            if count and self.dice.random() < 0.3:
                self.application.take(channel, self.dice.randint(1, count), self.now)
        if self.dice.random() < 0.5:
            drain(self.link, self.now)
        if self.dice.random() < 0.05:
            self.now += self.dice.choice((0.05, 5.0, 9.0))
            self.link.handle_timeout(self.now)

    def answer(self) -> None:
        """Accept a peer that fits; refuse any other."""
        other, me = self.link.peer, self.application.session.me
        assert other is not None
        if other.session == me.session and OPPOSITE.get(other.kind) is me.kind:
            accept(self.pair, self.now)
        else:
            self.link.refuse(GoAwayCode.REFUSED, "not here")

    def check(self, honest: bool) -> None:
        """Raise Finding where the link holds more than it may, or trusts a stranger."""
        if self.link.state is not LinkState.HANDSHAKE and not honest:
            raise Finding("the link came up without a proof")
        if len(self.link._buffer) > BUFFER_SIZE:
            raise Finding(f"the link has a buffer of {len(self.link._buffer)} bytes")
        for channel, count in self.application.untaken.items():
            if count > 1 << self.application.session.incoming[channel].bits:
                raise Finding(f"the application holds {count} bytes of channel {channel}")


def prepare(case: int, *, spoil: bool = True) -> tuple[Target, bytes, bool]:
    """Return the link of a case, what its peer will say, and whether that peer is honest about who it is."""
    dice = random.Random(case)
    target = Target(dice)
    heard = recorded(target.program_dials)[1 - target.side]
    if not spoil:
        return target, heard, True
    return target, *what_to_say(heard, dice, peer(OPPOSITE[target.application.session.me.kind]))


def run(case: int, *, spoil: bool = True) -> str:
    """Run one case and return its outcome: the name of an allowed exception, or "through"; raises Finding."""
    target, said, honest = prepare(case, spoil=spoil)
    try:
        target.hear(said, honest)
    except ALLOWED as error:
        return type(error).__name__
    except Finding as finding:
        raise Finding(f"case {case}: {finding}") from None
    except Exception as error:
        raise Finding(f"case {case}: {error!r}") from error
    return "through"


def main() -> None:
    """Run cases until the time is over; print how many had which outcome."""
    seconds, case = float((sys.argv[1:] or [60])[0]), int((sys.argv[2:] or [0])[0])
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        outcomes[run(case)] += 1
        case += 1
    print(f"cases up to {case}: {dict(outcomes)}")


if __name__ == "__main__":
    main()
