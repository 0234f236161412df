"""One connection's bytes: what a link takes from a peer, who may be anybody, and what it hands out."""

from __future__ import annotations

import contextlib

import pytest

from pair import (
    DIALLER,
    KEY,
    SESSION_ID,
    WAITER,
    Application,
    Pair,
    advance,
    authenticated,
    by_hand,
    connected,
    drain,
    give,
    handshake,
    open_frame,
    peer,
    program_session,
    split_frames,
    viewer_session,
)
from sockstream import records
from sockstream.errors import AuthenticationError, ConnectionLost, RemoteProtocolError, SessionLost, Timeout
from sockstream.frames import HEADER, FrameType, GoAwayCode, OpenFlag, pack
from sockstream.handshake import MAGIC
from sockstream.link import Link, LinkState
from sockstream.records import Kind
from sockstream.session import State

PREAMBLE = MAGIC + b"\1\0\0\0"
DATA, TAKEN, STOP, GAP, PING, PONG = (
    FrameType.DATA,
    FrameType.TAKEN,
    FrameType.STOP,
    FrameType.GAP,
    FrameType.PING,
    FrameType.PONG,
)


def waiting_link(**options: bytes) -> Link:
    """Return a waiting end's new link."""
    return Link(handshake(dials=False, **options), 0.0)


def hello(size: int, role: int = 1) -> bytes:
    """Return a preamble and a HELLO of so many bytes."""
    return PREAMBLE + size.to_bytes(2, "little") + bytes(2) + bytes((role,)).ljust(size, b"n")


# ---- before the proof


@pytest.mark.parametrize("piece", [1, 2, 15, 16, 17, 81, 4096])
def test_the_handshake_survives_any_slices(piece: int) -> None:
    """Both links come up however the bytes are cut."""
    pair = Pair(Application(program_session()), Application(viewer_session()))
    pair.settle(piece=piece)
    assert [link.state for link in pair.links] == [LinkState.UP, LinkState.UP]


def test_a_waiting_link_says_nothing_by_itself() -> None:
    """It has nothing to send, and refuses noise from the first byte on without an answer."""
    link = waiting_link()
    assert link.data_to_send(0.0) == []
    with pytest.raises(RemoteProtocolError, match="does not speak"):
        give(link, b"G")
    assert link.data_to_send(0.0) == []


@pytest.mark.parametrize("count", range(1, 8))
def test_noise_that_begins_like_the_magic(count: int) -> None:
    """The first wrong byte is enough."""
    link = waiting_link()
    give(link, MAGIC[:count])
    with pytest.raises(RemoteProtocolError, match="does not speak"):
        give(link, bytes((MAGIC[count] ^ 1,)))


def test_an_answer_that_was_due_still_goes_out() -> None:
    """After another version and after a wrong proof the peer is told, as the last thing."""
    link = waiting_link()
    with pytest.raises(RemoteProtocolError):
        give(link, MAGIC + b"\2\0" + bytes(6))
    assert drain(link) == PREAMBLE + bytes(4)
    link = waiting_link()
    give(link, hello(33))
    drain(link)
    with pytest.raises(AuthenticationError):
        give(link, b"wrong proof".ljust(32))
    assert drain(link) == bytes(32)


@pytest.mark.parametrize("again", [b"", b"x", b"x" * 32, open_frame(peer(Kind.PROGRAM))])
def test_after_a_wrong_proof_no_frame_is_taken(again: bytes) -> None:
    """A driver that goes on all the same gets nowhere: the link does not come up, and knows no peer."""
    link = waiting_link()
    give(link, hello(33))
    with pytest.raises(AuthenticationError):
        give(link, bytes(32))
    with contextlib.suppress(AuthenticationError, RemoteProtocolError):
        link.get_buffer(1)[: len(again)] = again
        link.buffer_updated(len(again), 0.0)
    assert link.state in (LinkState.HANDSHAKE, LinkState.CLOSED)
    assert link.peer is None


@pytest.mark.parametrize("size", [33, 2048])
def test_a_hello_up_to_2048_bytes_is_answered(size: int) -> None:
    """The answer is the server's preamble and HELLO."""
    link = waiting_link()
    give(link, hello(size))
    assert drain(link).startswith(PREAMBLE + b"\x21\0\0\0\2")


def test_a_hello_of_2049_bytes_is_refused() -> None:
    """Before any of it has come."""
    link = waiting_link()
    with pytest.raises(RemoteProtocolError, match="HELLO of 2049"):
        give(link, hello(2049)[:16])


def test_a_peer_with_another_token_is_refused_by_name() -> None:
    """A server with another key refuses the client, and the client says what may be wrong."""
    client = Application(program_session())
    pair = Pair(client, Application(viewer_session()))
    pair.links = (pair.links[DIALLER], waiting_link(key=bytes(32)))
    for side in (DIALLER, WAITER):
        pair.send(side)
        pair.deliver(side)
    pair.send(DIALLER)
    with pytest.raises(AuthenticationError, match="another token"):
        pair.deliver(DIALLER)
    pair.send(WAITER)
    with pytest.raises(AuthenticationError, match="wrong token"):
        pair.deliver(WAITER)
    assert client.session.state is State.NEW


def test_frames_before_the_proof_is_through() -> None:
    """Bytes right behind the client's proof are refused: nothing stands there before the server's."""
    client, link = handshake(dials=True), waiting_link()
    give(link, bytes(client.output))
    client.output.clear()
    advance(client, drain(link))
    with pytest.raises(RemoteProtocolError, match="before the proof was through"):
        give(link, bytes(client.output) + open_frame(peer(Kind.PROGRAM)))


@pytest.mark.parametrize("first", [1, 16, 2000, 2064, 2064 + 31])
@pytest.mark.parametrize("then", [7, 1000, 1 << 20])
def test_no_more_than_4096_bytes_before_the_proof(first: int, then: int) -> None:
    """However the slices fall, a link takes 4096 bytes in all until the peer has proven itself, and then refuses it."""
    link, taken = waiting_link(), 0
    data = memoryview(hello(2048) + bytes(20_000))
    with pytest.raises((AuthenticationError, RemoteProtocolError)):
        while True:
            room = link.get_buffer(1)
            count = min(len(room), then if taken else first, len(data))
            assert count
            room[:count], data = data[:count], data[count:]
            taken += count
            assert taken <= 4096
            link.buffer_updated(count, 0.0)


def test_a_handshake_has_ten_seconds() -> None:
    """All of it, OPEN included, whatever trickles in; then Timeout says so."""
    link = Link(handshake(dials=False), 100.0)
    assert link.next_deadline() == 110.0
    give(link, hello(33)[:20], 109.0)
    assert link.next_deadline() == 110.0
    link.handle_timeout(109.9)
    with pytest.raises(Timeout, match="within 10 s"):
        link.handle_timeout(110.0)
    link = authenticated(None, 100.0)
    assert link.next_deadline() == 110.0
    give(link, open_frame(peer(Kind.PROGRAM)), 105.0)
    assert link.state is LinkState.PARKED
    with pytest.raises(Timeout):
        link.handle_timeout(110.0)


def test_an_end_of_file_in_the_handshake() -> None:
    """The peer was there and has gone: ConnectionLost."""
    with pytest.raises(ConnectionLost):
        waiting_link().eof_received(0.0)


# ---- OPEN


def test_a_waiting_link_parks_until_it_is_accepted() -> None:
    """It knows the peer, says nothing, and its OPEN is the first frame behind the proof."""
    link = authenticated()
    assert link.state is LinkState.OPENING
    give(link, open_frame(peer(Kind.PROGRAM)))
    assert link.state is LinkState.PARKED
    assert link.peer is not None
    assert (link.peer.kind, link.peer.session) == (Kind.PROGRAM, SESSION_ID)
    assert link.data_to_send(0.0) == []
    link.accept(viewer_session(), 0.0)
    assert split_frames(drain(link))[0][0] == FrameType.OPEN


def test_a_dialling_link_sends_open_and_nothing_else() -> None:
    """Before the peer's OPEN nothing follows its own, though there is something to send."""
    session = program_session()
    session.write(2, b"early output")
    link = authenticated(session)
    assert [frame[:3] for frame in split_frames(drain(link))] == [(FrameType.OPEN, OpenFlag.DURABLE, 0)]
    give(link, open_frame(peer(Kind.VIEWER)))
    assert b"early output" in drain(link)


def test_a_link_knows_whether_the_peer_resumes() -> None:
    """The waiting end's answer to an unknown session depends on it."""
    for flags, resumes in ((OpenFlag.DURABLE, False), (OpenFlag.DURABLE | OpenFlag.RESUME, True)):
        link = authenticated()
        give(link, open_frame(peer(Kind.PROGRAM), flags))
        assert link.resumes is resumes


@pytest.mark.parametrize("kind", [Kind.PROGRAM, Kind.VIEWER])
def test_programs_and_viewers_are_durable(kind: Kind) -> None:
    """One that says it cannot go on after a broken link is a protocol error."""
    with pytest.raises(RemoteProtocolError, match=r"(?i)durable"):
        give(authenticated(), open_frame(peer(kind), 0))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (peer(Kind.VIEWER, session=b"another session!"), "another session"),
        (peer(Kind.PROGRAM), "is a program, as this one"),
        (peer(Kind.OBJECTS), "objects"),
    ],
)
def test_an_answer_from_the_wrong_peer(said: records.Peer, words: str) -> None:
    """Another session's OPEN, or one of a kind that does not fit, does not come near the session."""
    session = program_session()
    link = authenticated(session)
    with pytest.raises(RemoteProtocolError, match=words):
        give(link, open_frame(said))
    assert session.state is State.NEW


FRAMES_BEFORE_OPEN = [
    pack(DATA, channel=2, payload=b"x"),
    pack(DATA, channel=0, payload=records.Started(1).encode()),
    pack(DATA, flags=1, channel=2),
    pack(TAKEN, flags=20, channel=0),
    pack(STOP, channel=2),
    pack(GAP, channel=2, payload=b"\1"),
    pack(PING),
    pack(PONG),
]


@pytest.mark.parametrize("frame", FRAMES_BEFORE_OPEN, ids=lambda frame: FrameType(frame[0]).name)
def test_nothing_stands_before_open(frame: bytes) -> None:
    """At a dialling end, at a waiting one, and there also while its own OPEN is being decided."""
    parked = authenticated()
    give(parked, open_frame(peer(Kind.PROGRAM)))
    for link in (authenticated(program_session()), authenticated(), parked):
        with pytest.raises(RemoteProtocolError):
            give(link, frame)


def test_goaway_in_place_of_open() -> None:
    """A waiting end may answer so; the session is over and the reason is known."""
    program = Application(program_session())
    link = authenticated(program.session)
    give(link, pack(FrameType.GOAWAY, payload=b"\3no room"))
    program.absorb(0.0)
    assert program.gone == [(GoAwayCode.FULL, "no room")]
    assert (link.state, program.session.state) == (LinkState.CLOSED, State.OVER)
    link.eof_received(0.0)


def test_a_refusal_is_one_goaway() -> None:
    """Code and text go out in place of OPEN, then sending is over, and what still comes is of no interest."""
    link = authenticated()
    give(link, open_frame(peer(Kind.PROGRAM)))
    link.refuse(GoAwayCode.FULL, "no room")
    assert not link.sending_is_over()
    assert split_frames(drain(link)) == [(FrameType.GOAWAY, 0, 0, 0, b"\3no room")]
    assert link.sending_is_over()
    give(link, b"\xff" * 1_000_000)
    link.eof_received(0.0)


def test_open_twice() -> None:
    """Once a link is up, OPEN is a protocol error at both ends."""
    for dials in (True, False):
        link = by_hand(program_session(), dials=dials)
        with pytest.raises(RemoteProtocolError, match="OPEN where it may not stand"):
            give(link, open_frame(peer(Kind.VIEWER)))


@pytest.mark.parametrize("size", [65_536, 65_537])
def test_an_open_exactly_at_the_limit_and_one_over(size: int) -> None:
    """65,536 bytes are read whole, one more is refused from its header."""
    said = peer(Kind.PROGRAM).encode()
    padding = HEADER.size - 10  # a field's header has 6 bytes
    payload = said + (999).to_bytes(2, "little") + (size - len(said) - padding).to_bytes(4, "little")
    payload = payload.ljust(size, b"p")
    frame = pack(FrameType.OPEN, flags=OpenFlag.DURABLE, payload=payload)
    link = authenticated()
    if size > 65_536:
        with pytest.raises(RemoteProtocolError, match="65537 bytes"):
            give(link, frame[:16])
    else:
        give(link, frame)
        assert link.state is LinkState.PARKED


# ---- sending


def test_what_is_to_be_sent_stays_until_it_is_sent() -> None:
    """A driver may look twice, and may get rid of any part: no byte is lost or repeated."""
    pair = connected()
    session = pair.ends[DIALLER].session
    link = pair.links[DIALLER]
    session.write(2, bytes(range(256)) * 100)
    session.write(3, b"small")
    whole = b"".join(link.data_to_send(0.0))
    sent = bytearray()
    for count in [0, 1, 15, 16, 17, 5000, 3, *[997] * 100]:
        assert b"".join(link.data_to_send(0.0)) == whole[len(sent) :]
        part = whole[len(sent) : len(sent) + count]
        sent += part
        link.data_sent(len(part))
    assert sent == whole
    assert link.data_to_send(0.0) == []


def test_large_payloads_are_not_copied() -> None:
    """What was written goes to the kernel as the same object, its header before it."""
    pair = connected()
    data = bytes(100_000)
    pair.ends[DIALLER].session.write(2, data)
    assert any(buffer is data for buffer in pair.links[DIALLER].data_to_send(0.0))


def test_bytes_are_received_in_place() -> None:
    """An event's bytes are a view of the buffer that the driver received into."""
    viewer = viewer_session()
    link = by_hand(viewer)
    viewer.events()
    room = link.get_buffer(1)
    frame = pack(DATA, channel=2, payload=b"in place")
    room[: len(frame)] = frame
    link.buffer_updated(len(frame), 0.0)
    (event,) = viewer.events()
    room[16:24] = b"IN PLACE"
    assert event.data == b"IN PLACE"


def test_goaway_is_the_last_frame() -> None:
    """Sending is not over before it has gone out, also when nobody has asked for bytes yet; nothing follows it."""
    pair = connected()
    session, link = pair.ends[DIALLER].session, pair.links[DIALLER]
    session.write(2, b"not sent any more")
    session.leave(text="bye")
    assert not link.sending_is_over()
    frames = split_frames(drain(link))
    assert frames == [(FrameType.GOAWAY, 0, 0, 0, b"\6bye")]
    assert link.sending_is_over()


def test_goaway_comes_behind_the_frame_under_way() -> None:
    """A frame of which the kernel has a part is finished first."""
    pair = connected()
    pair.ends[DIALLER].session.write(2, bytes(1000))
    pair.send(DIALLER, most=500)
    pair.ends[DIALLER].session.leave()
    pair.settle()
    assert pair.ends[WAITER].received[2] == bytes(1000)
    assert pair.ends[WAITER].gone == [(GoAwayCode.LEAVING, "")]


LATE_FRAMES = [
    pack(DATA, channel=1, payload=b"x"),
    pack(DATA, payload=records.Signal("SIGINT").encode()),
    pack(TAKEN, flags=20, channel=2),
    pack(STOP, channel=2),
    pack(PING),
    pack(PONG),
    pack(FrameType.GOAWAY, payload=b"\6"),
]


@pytest.mark.parametrize("frame", LATE_FRAMES, ids=lambda frame: FrameType(frame[0]).name)
def test_what_was_under_way_when_this_end_left_is_no_error(frame: bytes) -> None:
    """The peer has not read our GOAWAY yet; its frames are forgotten and nothing reaches the application."""
    program = Application(program_session())
    link = by_hand(program.session)
    program.absorb(0.0)
    program.session.leave()
    give(link, frame)
    program.absorb(0.0)
    assert split_frames(drain(link)) == [(FrameType.GOAWAY, 0, 0, 0, b"\6")]
    assert link.sending_is_over()
    assert not program.received[1]
    assert not program.records + program.stopped


# ---- links that end


def test_an_end_of_file_is_a_broken_link() -> None:
    """ConnectionLost, also in the middle of a frame; the session can go on over another link."""
    pair = connected()
    pair.ends[DIALLER].session.write(2, bytes(1000))
    pair.send(DIALLER)
    pair.deliver(DIALLER, most=500)
    with pytest.raises(ConnectionLost):
        pair.links[WAITER].eof_received(0.0)
    session = pair.ends[WAITER].session
    assert session.detach(pair.links[WAITER])
    assert session.state is State.BROKEN


def replaced() -> tuple[Pair, Pair]:
    """Return an older connection and the newer one that took its session over; the older one's GOAWAY is due."""
    old = connected()
    old.ends[DIALLER].session.detach(old.links[DIALLER])
    new = Pair(*old.ends, number=1)
    new.settle()
    return old, new


def test_a_replaced_link_says_so_and_nothing_else() -> None:
    """Its last frame is GOAWAY `replaced`; what the session has to say goes out over the newer link alone."""
    old, new = replaced()
    new.ends[WAITER].session.write(1, b"for the newer link")
    frames = split_frames(drain(old.links[WAITER]))
    assert frames == [(FrameType.GOAWAY, 0, 0, 0, bytes((GoAwayCode.REPLACED,)))]
    assert old.links[WAITER].sending_is_over()
    new.settle()
    assert new.ends[DIALLER].received[1] == b"for the newer link"


def test_a_replaced_link_takes_nothing_and_ends_nothing() -> None:
    """Bytes that still arrive on it do not reach the session, and its end is not the session's."""
    old, new = replaced()
    session = new.ends[WAITER].session
    deadline = session.next_deadline()
    give(old.links[WAITER], pack(DATA, channel=2, payload=b"stale"), 3.0)
    assert session.next_deadline() == deadline, "it counted as a sign of life on the newer link"
    new.ends[WAITER].absorb(0.0)
    assert not new.ends[WAITER].received[2]
    old.links[WAITER].eof_received(0.0)
    assert not session.detach(old.links[WAITER])
    assert (session.state, session.link) == (State.OPEN, new.links[WAITER])


def test_a_replaced_link_does_not_say_the_newer_ones_farewell() -> None:
    """When the session is left, GOAWAY `leaving` goes out over its newer link, also where the older is asked first."""
    old, new = replaced()
    new.ends[WAITER].session.leave()
    assert split_frames(drain(old.links[WAITER])) == [(FrameType.GOAWAY, 0, 0, 0, bytes((GoAwayCode.REPLACED,)))]
    assert old.links[WAITER].sending_is_over()
    assert split_frames(drain(new.links[WAITER]))[-1] == (FrameType.GOAWAY, 0, 0, 0, bytes((GoAwayCode.LEAVING,)))


def test_a_closed_link_waits_for_no_handshake() -> None:
    """Long after its beginning a link that has been closed by either end does not time out as if nobody were there."""
    old, _ = replaced()
    old.links[WAITER].handle_timeout(3600.0)
    program = program_session()
    link = by_hand(program)
    give(link, pack(FrameType.GOAWAY, payload=b"\6"), 3600.0)
    link.handle_timeout(3600.0)


def test_a_resume_that_cannot_be_answered() -> None:
    """The peer is told by GOAWAY, SessionLost says why, and this link is not the session's."""
    pair = connected()
    pair.cut()
    viewer = pair.ends[WAITER].session
    said = peer(Kind.PROGRAM)
    said.wants = {1: 1000}
    link = authenticated()
    give(link, open_frame(said, OpenFlag.DURABLE | OpenFlag.RESUME))
    with pytest.raises(SessionLost, match="wants channel 1 from 1000 on"):
        link.accept(viewer, 0.0)
    assert [frame[0] for frame in split_frames(drain(link))] == [FrameType.GOAWAY]
    assert link.sending_is_over()
    assert viewer.link is None
    assert viewer.state is State.BROKEN


def test_a_refused_resume_leaves_the_session_as_it_was() -> None:
    """One peer that wants too much on one channel does not spoil the others for the right one, which comes after it."""
    program = Application(program_session())
    pair = connected(Application(viewer_session()), program)
    program.session.write(2, b"out")
    program.session.write(3, b"err")
    pair.settle()
    pair.cut()
    said = peer(Kind.VIEWER)
    said.wants = {2: 0, 3: 99}
    link = authenticated()
    give(link, open_frame(said))
    with pytest.raises(SessionLost):
        link.accept(program.session, 0.0)
    again = connected(pair.ends[DIALLER], program, number=1)
    program.session.write(2, b"put")
    again.settle()
    assert again.ends[DIALLER].received == {0: b"", 2: b"output", 3: b"err"}


@pytest.mark.parametrize("count", [0, 1, 100])
def test_the_key_never_shows(count: int) -> None:
    """No byte that a link sends, nor its repr, holds the key."""
    pair = Pair(Application(program_session()), Application(viewer_session()))
    pair.send(DIALLER)
    pair.deliver(DIALLER)
    pair.send(WAITER)
    assert KEY not in bytes(pair.wires[WAITER])
    assert KEY.hex() not in repr(vars(pair.links[WAITER]))
    pair.deliver(WAITER, most=count)
