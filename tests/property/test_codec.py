"""What is written is what is read, and slices do not matter."""

from __future__ import annotations

import contextlib
import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pair import (
    DIALLER,
    STATUS,
    WAITER,
    Application,
    Pair,
    accept,
    drain,
    feed,
    handshake,
    program_session,
    split_frames,
    viewer_session,
)
from sockstream import frames, records
from sockstream.errors import RemoteProtocolError
from sockstream.frames import HEADER, FrameType, pack
from sockstream.link import Link, LinkState
from sockstream.records import How, Kind, Peer, Status
from sockstream.session import State

u8, u16, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 64))
short_text = st.text(st.characters(codec="utf-8"), max_size=100)
microseconds = st.integers(0, 10**15)
statuses = st.builds(
    lambda how, value, text, times: Status(
        how, value, text, elapsed=times[0] / 1e6, user=times[1] / 1e6, system=times[2] / 1e6
    ),
    st.sampled_from(How),
    u8,
    short_text,
    st.tuples(microseconds, microseconds, microseconds),
)
control_records = st.one_of(
    st.builds(records.Started, u64),
    st.builds(records.Signal, st.text(st.characters(codec="ascii"), max_size=500)),
    st.builds(records.WindowSize, u16, u16, u16, u16),
    st.builds(records.Exited, statuses),
    st.builds(records.End, st.dictionaries(u16, u64, max_size=5), statuses),
)


@st.composite
def peers(draw: st.DrawFn) -> Peer:
    """Return anything that an end may say of itself."""
    peer = Peer(
        draw(st.sampled_from(Kind)),
        session=draw(st.binary(min_size=16, max_size=16)),
        name=draw(short_text),
        host=draw(short_text),
        grace=draw(st.one_of(st.just(float("inf")), st.integers(0, 10**12).map(lambda number: number / 8))),
    )
    peer.software = draw(short_text)
    peer.python = draw(st.one_of(st.none(), st.tuples(u8, u8, u8)))
    peer.arguments = tuple(draw(st.lists(st.binary(max_size=50), max_size=10)))
    peer.wants = draw(st.dictionaries(u16, u64, max_size=5))
    peer.window_bits = draw(st.integers(16, 24))
    peer.max_pickle, peer.max_message = draw(u64), draw(u64)
    peer.takes_objects, peer.has_terminal = draw(st.booleans()), draw(st.booleans())
    peer.size = draw(st.one_of(st.none(), st.tuples(u16, u16)))
    return peer


@given(kind=u8, flags=u8, channel=u16, number=u64, payload=st.binary(max_size=100))
def test_frames(kind: int, flags: int, channel: int, number: int, payload: bytes) -> None:
    """A frame is its header and its payload, and any header is either refused or known in full."""
    frame = pack(kind, flags=flags, channel=channel, number=number, payload=payload)
    assert HEADER.unpack_from(frame) == (kind, flags, channel, len(payload), number)
    assert split_frames(frame) == [(kind, flags, channel, number, payload)]
    with contextlib.suppress(RemoteProtocolError):
        frames.check_header(kind, flags, channel, len(payload))
        assert FrameType(kind).name


@given(peers())
def test_open(peer: Peer) -> None:
    """Every field that was said is read."""
    read = Peer.decode(peer.encode())
    assert {name: getattr(read, name) for name in Peer.__slots__} == {
        name: getattr(peer, name) for name in Peer.__slots__
    }


@given(control_records)
def test_records(record: records.Record) -> None:
    """Every record is read as it was, and fits its frame."""
    wire = record.encode()
    read = records.decode_record(wire)
    assert type(read) is type(record)
    assert read.encode() == wire
    assert len(wire) <= frames.MAX_RECORD


@given(statuses)
def test_statuses(status: Status) -> None:
    """A status that has travelled equals the one that was sent, in every part."""
    read = Status.decode(status.encode())
    assert read == status
    assert (read.how, read.value, read.text) == (status.how, status.value, status.text)
    assert read.elapsed == pytest.approx(status.elapsed, abs=2e-6)


@given(st.integers(0, 255), st.text(max_size=1000))
def test_goaways(code: int, text: str) -> None:
    """Code and text come through, the text cut at 512 bytes."""
    wire = records.encode_goaway(code, text)
    assert len(wire) <= frames.MAX_GOAWAY
    read = records.decode_goaway(wire)
    assert read[0] == code
    assert read[1] == text.encode("utf-8", "replace")[:512].decode("utf-8", "replace")


@given(st.binary(max_size=100))
def test_noise_is_read_or_refused(data: bytes) -> None:
    """Any bytes are a record, an OPEN, a status, or a RemoteProtocolError."""
    for decode in (records.decode_record, Peer.decode, Status.decode):
        with contextlib.suppress(RemoteProtocolError):
            decode(data)


fields = st.builds(
    lambda tag, value: tag.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value,
    st.integers(0, 20),
    st.one_of(*[st.binary(min_size=size, max_size=size) for size in (0, 1, 2, 3, 4, 8, 10, 16)]),
)


@given(st.lists(fields, max_size=6))
def test_any_fields_are_read_or_refused(parts: list[bytes]) -> None:
    """Whatever fields an OPEN has, it is refused or says again all that was understood."""
    must = Peer(Kind.VIEWER, session=bytes(16)).encode()[:29]
    with contextlib.suppress(RemoteProtocolError):
        peer = Peer.decode(must + b"".join(parts))
        again = Peer.decode(peer.encode())
        assert (again.wants, again.size, again.python) == (peer.wants, peer.size, peer.python)
        assert again.max_pickle == peer.max_pickle


# ---- slices


def ends() -> tuple[Application, Application]:
    """Return a program and a viewer with something of every kind to say."""
    program, viewer = Application(program_session()), Application(viewer_session())
    program.session.send(records.Started(1))
    program.session.write(2, bytes(range(256)) * 20)
    program.session.write(3, b"small")
    program.session.send(records.Exited(STATUS))
    viewer.session.write(1, b"in" * 1000)
    viewer.session.send(records.Signal("SIGINT"))
    for end in (program, viewer):
        for channel in end.session.outgoing:
            if channel:
                end.session.finish(channel)
    program.session.end(STATUS)
    return program, viewer


@functools.cache
def heard() -> tuple[list[bytes], list[bytes]]:
    """Return what each side of an orderly conversation hears, in the steps in which it came."""
    steps: tuple[list[bytes], list[bytes]] = ([], [])
    pair = Pair(*ends())
    while not pair.ends[WAITER].gone:
        for side in (DIALLER, WAITER):
            pair.send(side)
            if pair.wires[side]:
                steps[1 - side].append(bytes(pair.wires[side]))
            pair.deliver(side)
        if pair.ends[DIALLER].completed and pair.ends[DIALLER].session.state is not State.OVER:
            pair.ends[DIALLER].session.leave()
    return steps


def seen(application: Application) -> list[object]:
    """Return all that an application has seen."""
    return [
        application.received,
        application.finished,
        application.records,
        application.completed,
        application.gone,
        application.opened,
        application.order,
    ]


def listen(side: int, cuts: list[int]) -> list[object]:
    """Let a side hear the conversation again, cut at these places of each step; return what its application sees."""
    pair = Pair(*ends())
    link: Link = Link(handshake(dials=side == DIALLER), 0.0, pair.ends[side].session if side == DIALLER else None)
    pair.links = (link, link)
    for step in heard()[side]:
        places = sorted({0, len(step), *(cut % (len(step) + 1) for cut in cuts)})
        for start, stop in itertools.pairwise(places):
            for _ in feed(link, step[start:stop]):
                if link.state is LinkState.PARKED:
                    accept(pair, 0.0)
                if link.session is not None:
                    pair.ends[side].absorb(0.0)
        drain(link)
    return seen(pair.ends[side])


whole = functools.cache(lambda side: listen(side, []))


@pytest.mark.parametrize("side", [DIALLER, WAITER])
def test_the_conversation_says_something(side: int) -> None:
    """What the slices are compared with is not empty."""
    received, finished, said, _completed, _gone, opened, order = whole(side)
    assert any(received.values())
    assert finished
    assert said
    assert opened == [False]
    assert len(order) > 4


@given(side=st.sampled_from((DIALLER, WAITER)), cuts=st.lists(st.integers(0, 1 << 14), max_size=30))
def test_any_slices_give_the_same_events(side: int, cuts: list[int]) -> None:
    """A link hears the same, however its bytes arrive."""
    assert listen(side, cuts) == whole(side)


@given(st.lists(st.integers(1, 3000), max_size=200))
def test_any_slices_are_sent_the_same(counts: list[int]) -> None:
    """A link says the same bytes, however few the kernel takes at a time."""
    pairs = [Pair(*ends()), Pair(*ends())]
    for pair in pairs:
        for _ in range(3):
            for side in (DIALLER, WAITER):
                pair.send(side)
                pair.deliver(side)
    sliced, whole = pairs
    for count in counts:
        sliced.send(DIALLER, most=count)
    for pair in pairs:
        pair.send(DIALLER)
    assert sliced.wires[DIALLER] == whole.wires[DIALLER]
