"""Frames of a link that is up: what a peer may send, exactly how much of it, and what it may not.

Program ends receive channels 0 and 1, viewers 0, 2 and 3.
"""

from __future__ import annotations

import tracemalloc

import pytest

from pair import (
    Application,
    by_hand,
    drain,
    feed,
    give,
    program_session,
    split_frames,
    viewer_session,
)
from sockstream import records
from sockstream.errors import RemoteProtocolError
from sockstream.frames import HEADER, OLDEST, FrameType, GoAwayCode, pack
from sockstream.records import How, Status

WINDOW = 1 << 16
DATA, TAKEN, STOP, GAP, PING, PONG = (
    FrameType.DATA,
    FrameType.TAKEN,
    FrameType.STOP,
    FrameType.GAP,
    FrameType.PING,
    FrameType.PONG,
)


def end_record(finals: dict[int, int]) -> bytes:
    """Return a program's END."""
    return records.End(finals, Status(How.EXITED, 0)).encode()


HEAD = HEADER.pack
# Each breaks a rule on a fresh link; given to a viewer, where channel 2 expects 0 and nothing was sent but by `sent`.
BAD_FOR_VIEWER = {
    "unknown type 0": HEAD(0, 0, 0, 0, 0),
    "unknown type 9": HEAD(9, 0, 0, 0, 0),
    "unknown type 255": HEAD(255, 0, 0, 0, 0),
    "DATA on channel 5": pack(DATA, channel=5, payload=b"x"),
    "DATA on channel 65535": pack(DATA, channel=65_535, payload=b"x"),
    "DATA on this end's own channel": pack(DATA, channel=1, payload=b"x"),
    "an object": pack(DATA, channel=4, flags=2, payload=b"x"),
    "WHOLE on a byte stream": pack(DATA, channel=2, flags=2, payload=b"x"),
    "a codec on a byte stream": pack(DATA, channel=2, flags=0x10, payload=b"x"),
    "empty DATA": pack(DATA, channel=2),
    "an empty record": pack(DATA, channel=0),
    "a record with FIN": pack(DATA, channel=0, flags=1),
    "a record of 1025 bytes": pack(DATA, channel=0, payload=b"\x63" * 1025),
    "an unreadable record": pack(DATA, channel=0, payload=b"\1"),
    "DATA from 1 on": pack(DATA, channel=2, number=1, payload=b"x"),
    "DATA from 2^64-1 on": pack(DATA, channel=2, number=OLDEST, payload=b"x"),
    "DATA twice": pack(DATA, channel=2, payload=b"x") * 2,
    "a record twice": pack(DATA, channel=0, payload=b"\x63") * 2,
    "FIN with bytes": pack(DATA, channel=2, flags=1, payload=b"x"),
    "FIN too early": pack(DATA, channel=2, flags=1, number=1),
    "DATA behind FIN": pack(DATA, channel=2, flags=1) + pack(DATA, channel=2, payload=b"x"),
    "TAKEN of a channel of the peer": pack(TAKEN, channel=2, flags=20),
    "TAKEN of channel 9": pack(TAKEN, channel=9, flags=20),
    "TAKEN beyond what was sent": pack(TAKEN, channel=1, flags=20, number=11),
    "TAKEN of records beyond what was sent": pack(TAKEN, channel=0, flags=20, number=1),
    "TAKEN that goes back": pack(TAKEN, channel=1, flags=20, number=5) + pack(TAKEN, channel=1, flags=20, number=4),
    "a window of 2^15": pack(TAKEN, channel=1, flags=15),
    "a window of 2^25": pack(TAKEN, channel=1, flags=25),
    "a window made smaller": pack(TAKEN, channel=1, flags=21) + pack(TAKEN, channel=1, flags=20),
    "TAKEN with a payload": HEAD(TAKEN, 20, 1, 1, 0) + b"x",
    "STOP of the control channel": pack(STOP),
    "STOP of a channel of the peer": pack(STOP, channel=2),
    "STOP with a flag": pack(STOP, channel=1, flags=1),
    "GAP that goes back": pack(DATA, channel=2, payload=b"xy") + pack(GAP, channel=2, number=1, payload=b"\2"),
    "GAP to where no stream gets": pack(GAP, channel=2, number=1 << 63, payload=b"\2"),
    "GAP behind FIN": pack(DATA, channel=2, flags=1) + pack(GAP, channel=2, number=1, payload=b"\2"),
    "GAP of this end's own channel": pack(GAP, channel=1, payload=b"\2"),
    "GAP without a reason": HEAD(GAP, 0, 2, 0, 5),
    "PING on a channel": HEAD(PING, 0, 1, 0, 0),
    "PONG with a flag": HEAD(PONG, 1, 0, 0, 0),
    "GOAWAY without a code": HEAD(FrameType.GOAWAY, 0, 0, 0, 0),
    "END with other finals": pack(DATA, channel=2, payload=b"x")
    + pack(DATA, channel=2, flags=1, number=1)
    + pack(DATA, channel=3, flags=1)
    + pack(DATA, channel=0, payload=end_record({2: 2, 3: 0})),
    "END that leaves a channel out": pack(DATA, channel=2, flags=1) + pack(DATA, channel=0, payload=end_record({2: 0})),
    "END of nothing": pack(DATA, channel=0, payload=end_record({})),
    "END before the FINs": pack(DATA, channel=0, payload=end_record({2: 0, 3: 0})),
    "END twice": pack(DATA, channel=2, flags=1)
    + pack(DATA, channel=3, flags=1)
    + pack(DATA, payload=end_record({2: 0, 3: 0}))
    + pack(DATA, number=len(end_record({2: 0, 3: 0})), payload=end_record({2: 0, 3: 0})),
    "END of a channel that is none": pack(DATA, channel=0, payload=end_record({7: 0})),
}


@pytest.mark.parametrize("piece", [1, 1 << 20], ids=["bytewise", "whole"])
@pytest.mark.parametrize("dials", [True, False], ids=["dials", "waits"])
@pytest.mark.parametrize("name", BAD_FOR_VIEWER)
def test_what_a_peer_may_not_send(name: str, dials: bool, piece: int) -> None:
    """Each breach is a RemoteProtocolError, however its bytes arrive and whoever dialled."""
    viewer = Application(viewer_session())
    link = by_hand(viewer.session, dials=dials)
    viewer.session.write(1, b"ten bytes.")
    drain(link)
    with pytest.raises(RemoteProtocolError):
        for _ in feed(link, BAD_FOR_VIEWER[name], piece=piece):
            viewer.absorb(0.0)


FINS = pack(DATA, channel=2, flags=1) + pack(DATA, channel=3, flags=1)
FROM_PROGRAM = [
    records.Started(1),
    records.Exited(Status(How.EXITED, 0)),
    records.End({2: 0, 3: 0}, Status(How.EXITED, 0)),
]
FROM_VIEWER = [records.Signal("SIGINT"), records.WindowSize(24, 80)]


@pytest.mark.parametrize("record", [*FROM_PROGRAM, *FROM_VIEWER], ids=lambda record: type(record).__name__)
def test_records_come_from_the_end_that_may_send_them(record: records.Record) -> None:
    """STARTED, EXIT and END are a program's, SIGNAL and WINSIZE a viewer's: a viewer's END would end the session."""
    viewer, program = Application(viewer_session()), Application(program_session())
    right, wrong = (viewer, program) if record in FROM_PROGRAM else (program, viewer)
    link = by_hand(right.session)
    give(link, (FINS if right is viewer else b"") + pack(DATA, payload=record.encode()))
    link = by_hand(wrong.session)
    with pytest.raises(RemoteProtocolError):
        give(link, pack(DATA, payload=record.encode()))
    wrong.absorb(0.0)
    assert (wrong.records, wrong.completed) == ([], [])


def test_an_unknown_record_is_taken() -> None:
    """A later version's record is skipped, and the peer learns that it need not keep it."""
    viewer = Application(viewer_session())
    link = by_hand(viewer.session)
    give(link, pack(DATA, payload=b"\x63 from the future"))
    link.handle_timeout(1.0)
    viewer.absorb(0.0)
    assert (FrameType.TAKEN, 20, 0, 17, b"") in split_frames(drain(link))
    assert viewer.records == []


@pytest.mark.parametrize("bits", [16, 20, 24])
def test_data_up_to_the_credit_and_one_byte_beyond(bits: int) -> None:
    """Not one byte at or above taken + window passes; taking one lets one more pass."""
    viewer = Application(viewer_session(bits), takes=False)
    link = by_hand(viewer.session)
    window, piece = 1 << bits, 1 << 16
    for offset in range(0, window, piece):
        give(link, pack(DATA, channel=2, number=offset, payload=bytes(piece)))
    viewer.absorb(0.0)
    viewer.take(2, 1)
    give(link, pack(DATA, channel=2, number=window, payload=b"x"))
    with pytest.raises(RemoteProtocolError, match="beyond the window"):
        give(link, pack(DATA, channel=2, number=window + 1, payload=b"x"))


def test_a_frame_may_not_begin_within_the_credit_and_end_beyond() -> None:
    """The header alone decides, before any of the payload has come."""
    link = by_hand(viewer_session(16))
    with pytest.raises(RemoteProtocolError, match="beyond the window"):
        give(link, HEAD(DATA, 0, 2, WINDOW + 1, 0))


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1])
def test_data_exactly_at_the_limit_and_one_over(size: int) -> None:
    """A megabyte in one frame arrives whole; one byte more is refused from its header."""
    viewer = Application(viewer_session(24))
    link = by_hand(viewer.session)
    if size > 1 << 20:
        with pytest.raises(RemoteProtocolError, match="1048577 bytes"):
            give(link, HEAD(DATA, 0, 2, size, 0))
    else:
        for _ in feed(link, pack(DATA, channel=2, payload=b"m" * size)):
            viewer.absorb(0.0)
        assert viewer.received[2] == b"m" * size


@pytest.mark.parametrize("kind", FrameType)
def test_a_length_of_four_gigabytes_sets_nothing_aside(kind: FrameType) -> None:
    """2^32-1 is refused from the header, and no memory was asked for."""
    link = by_hand(viewer_session())
    link.get_buffer(1)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="4294967295 bytes"):
            give(link, HEAD(kind, 0, 0, (1 << 32) - 1, 0))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("step", [0, 1], ids=["nothing is missing", "a byte is missing"])
def test_gaps_do_not_fill_memory(step: int) -> None:
    """Thousands of GAPs between bytes that the application has not taken yet are not all remembered."""
    viewer = viewer_session()
    link = by_hand(viewer)
    give(link, pack(DATA, channel=2, payload=b"x"))
    frames, offset = [], 1
    for _ in range(20_000):
        offset += step
        frames.append(pack(GAP, channel=2, number=offset, payload=b"\2"))
        if step:
            frames.append(pack(DATA, channel=2, number=offset, payload=b"x"))
            offset += 1
    tracemalloc.start()
    try:
        for frame in frames:
            give(link, frame)
            viewer.events()
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [513, 514])
def test_goaway_exactly_at_the_limit_and_one_over(size: int) -> None:
    """512 bytes of text pass."""
    program = Application(program_session())
    link = by_hand(program.session)
    frame = pack(FrameType.GOAWAY, payload=b"\6".ljust(size, b"t"))
    if size > 513:
        with pytest.raises(RemoteProtocolError):
            give(link, frame)
    else:
        give(link, frame)
        program.absorb(0.0)
        assert program.gone == [(GoAwayCode.LEAVING, "t" * 512)]


def test_a_record_exactly_at_the_limit() -> None:
    """1,024 bytes of channel 0 arrive in one piece, whatever the slices."""
    program = Application(program_session())
    link = by_hand(program.session)
    name = "S" * 1023
    for _ in feed(link, pack(DATA, payload=b"\2" + name.encode()), piece=100):
        program.absorb(0.0)
    assert program.records == [b"\2" + name.encode()[:512]]


def test_what_follows_goaway_is_of_no_interest() -> None:
    """It is read and forgotten, in the same slice and later."""
    program = Application(program_session())
    link = by_hand(program.session)
    give(link, pack(FrameType.GOAWAY, payload=b"\6") + b"\xff" * 100)
    give(link, b"\xff" * 300_000)
    link.eof_received(0.0)
    program.absorb(0.0)
    assert len(program.gone) == 1
