"""The conversation of two ends: what it promises through broken links, new viewers and the program's end."""

from __future__ import annotations

import pytest

from pair import (
    DIALLER,
    STATUS,
    WAITER,
    Application,
    Pair,
    by_hand,
    connected,
    drain,
    end_program,
    give,
    pair_of,
    peer,
    program_session,
    split_frames,
    until_accepted,
    viewer_session,
)
from sockstream import records
from sockstream.errors import ConnectionLost, LocalProtocolError, SessionLost
from sockstream.frames import FrameType, GoAwayCode, OpenFlag, pack
from sockstream.records import How, Kind, Status
from sockstream.session import State

WINDOW = 1 << 16


def redial(old: Pair, number: int = 1, now: float = 0.0) -> Pair:
    """Return a new connection between the ends of an old one, OPENs through."""
    return connected(*old.ends, now, number)


# ---- one link


@pytest.mark.parametrize("program_dials", [True, False])
def test_a_whole_conversation(program_dials: bool) -> None:
    """Bytes both ways, end of file on each channel, records, the status, completion at both ends, GOAWAY."""
    program, viewer, pair = pair_of(program_dials=program_dials)
    program.session.send(records.Started(77))
    program.session.write(2, b"out")
    program.session.write(3, b"err")
    viewer.session.write(1, b"in")
    viewer.session.send(records.WindowSize(24, 80))
    viewer.session.finish(1)
    end_program(program)
    pair.settle()
    assert viewer.received == {0: b"", 2: b"out", 3: b"err"}
    assert program.received == {0: b"", 1: b"in"}
    assert sorted(viewer.finished) == [2, 3]
    assert program.finished == [1]
    assert viewer.records == [records.Started(77).encode(), records.Exited(STATUS).encode()]
    assert program.records == [records.WindowSize(24, 80).encode()]
    assert (viewer.completed, program.completed) == ([STATUS], [STATUS])
    assert program.session.untaken() == {}
    program.session.leave()
    pair.settle()
    assert viewer.gone == [(GoAwayCode.LEAVING, "")]
    assert viewer.session.state is program.session.state is State.OVER


def test_opened_comes_first_and_says_who() -> None:
    """The peer's OPEN is an event, with what the peer said of itself."""
    program, viewer, _ = pair_of()
    assert (program.opened, viewer.opened) == ([False], [False])
    assert program.session.peer is not None
    assert viewer.session.peer is not None
    assert (program.session.peer.name, viewer.session.peer.name) == ("viewer", "program")


def test_what_was_written_before_the_link_goes_out() -> None:
    """A session takes bytes, records and ends before it has a link."""
    program, viewer = Application(program_session()), Application(viewer_session())
    program.session.write(2, b"early")
    end_program(program)
    connected(program, viewer)
    assert viewer.received[2] == b"early"
    assert viewer.completed == [STATUS]


def test_values_and_records_overtake_data() -> None:
    """A signal does not wait behind a megabyte of input: it stands before the data that was written first."""
    program, viewer, pair = pair_of()
    viewer.session.write(1, bytes(1 << 20))
    viewer.session.send(records.Signal("SIGINT"))
    pair.send(WAITER)
    pair.deliver(WAITER, most=200)
    assert program.records == [b"\2SIGINT"]


def test_streams_take_turns() -> None:
    """A flood on one channel does not hold up the other."""
    program, _, pair = pair_of()
    for _ in range(4):
        program.session.write(2, bytes(60_000))
    program.session.write(3, b"urgent")
    channels = [frame[2] for frame in split_frames(drain(pair.links[DIALLER])) if frame[0] == FrameType.DATA]
    assert channels.index(3) <= 1


def test_an_unread_channel_does_not_block_another() -> None:
    """stderr is at its window's end, stdout goes on and ends."""
    program, viewer, pair = pair_of(bits=16, takes=False)
    program.session.write(3, bytes(3 * WINDOW))
    pair.settle()
    assert len(viewer.received[3]) == WINDOW
    for _ in range(20):
        program.session.write(2, bytes(WINDOW // 2))
        pair.settle()
        viewer.take(2, viewer.untaken[2])
        pair.settle()
    assert len(viewer.received[2]) == 10 * WINDOW
    program.session.finish(2)
    pair.settle()
    assert viewer.finished == [2]


def test_memory_is_bounded_by_the_window() -> None:
    """A viewer that takes nothing gets a window's worth of each channel; the sender has no room then."""
    program, viewer, pair = pair_of(bits=16, takes=False)
    for channel in (2, 3):
        while room := program.session.room(channel):
            program.session.write(channel, bytes(min(room, 5000)))
            pair.settle()
        assert len(viewer.received[channel]) == WINDOW
    assert program.session.untaken() == {2: WINDOW, 3: WINDOW}
    viewer.take(2, WINDOW)
    pair.settle()
    assert program.session.untaken() == {3: WINDOW}
    assert program.session.room(2) == WINDOW


def test_more_than_a_link_hands_out_at_once() -> None:
    """Megabytes within the credit all go out, without anything that wakes the sender in between."""
    program, viewer, pair = pair_of(bits=24)
    for channel in (2, 3):
        for _ in range(3):
            program.session.write(channel, bytes(1 << 20))
        program.session.finish(channel)
    pair.send(DIALLER)
    pair.deliver(DIALLER)
    assert [len(viewer.received[channel]) for channel in (2, 3)] == [3 << 20, 3 << 20]
    assert sorted(viewer.finished) == [2, 3]


def test_empty_writes_are_harmless() -> None:
    """A program's empty write goes nowhere, and the stream goes on."""
    program, viewer, pair = pair_of()
    for data in (b"", b"x" * 5000, b"", b"y"):
        program.session.write(2, data)
        pair.settle()
    assert viewer.received[2] == b"x" * 5000 + b"y"


# ---- TAKEN


def taken_frames(frames: list[tuple[int, int, int, int, bytes]]) -> dict[int, int]:
    """Return channel -> offset of the TAKENs among frames."""
    return {channel: number for kind, _, channel, number, _ in frames if kind == FrameType.TAKEN}


def test_taken_waits_for_more_but_not_for_long() -> None:
    """A few bytes are confirmed 50 ms later; a quarter of the window at once."""
    viewer = Application(viewer_session(16))
    link = by_hand(viewer.session, now=100.0)
    give(link, pack(FrameType.DATA, channel=2, payload=b"few"), 100.0)
    viewer.absorb(100.0)
    assert taken_frames(split_frames(drain(link, 100.0))) == {}
    assert link.next_deadline() == pytest.approx(100.05)
    link.handle_timeout(100.04)
    assert taken_frames(split_frames(drain(link, 100.04))) == {}
    link.handle_timeout(100.05)
    assert taken_frames(split_frames(drain(link, 100.05))) == {2: 3}
    assert link.next_deadline() == pytest.approx(115.0)  # the first PING is not answered yet
    give(link, pack(FrameType.DATA, channel=2, number=3, payload=bytes(WINDOW // 4)), 101.0)
    viewer.absorb(101.0)
    assert taken_frames(split_frames(drain(link, 101.0))) == {2: 3 + WINDOW // 4}


def test_a_new_link_says_again_what_is_taken() -> None:
    """Whatever has come before, right behind OPEN and before any data."""
    program, viewer, pair = pair_of()
    program.session.write(2, b"12345")
    pair.settle()
    pair.cut()
    viewer.session.write(1, b"data")
    new = Pair(*pair.ends, number=1)
    until_accepted(new)
    frames = split_frames(drain(new.links[WAITER]))
    kinds = [frame[0] for frame in frames]
    taken = taken_frames(frames)
    assert taken.pop(2) == 5
    assert set(taken.values()) <= {0}  # where nothing has come there is nothing to say
    assert kinds[0] == FrameType.OPEN
    assert kinds.index(FrameType.DATA) > max(i for i, kind in enumerate(kinds) if kind == FrameType.TAKEN)
    assert program.session.untaken() == {2: 5}


def test_taken_says_the_window_and_the_window_grows() -> None:
    """On a far link that takes a window within two round trips the next TAKEN says twice the window."""
    viewer = Application(viewer_session(16))
    link = by_hand(viewer.session, now=100.0)
    give(link, pack(FrameType.PONG), 100.1)
    for number in range(4):
        give(link, pack(FrameType.DATA, channel=2, number=number * WINDOW // 2, payload=bytes(WINDOW // 2)), 100.1)
        viewer.absorb(100.1)
    frames = [frame for frame in split_frames(drain(link, 100.1)) if frame[0] == FrameType.TAKEN]
    assert frames == [(FrameType.TAKEN, 17, 2, 2 * WINDOW, b"")]
    give(link, pack(FrameType.DATA, channel=2, number=2 * WINDOW, payload=bytes(2 * WINDOW)), 101.0)


# ---- liveness


def test_ping_is_answered_ahead_of_data() -> None:
    """With its number, before everything queued."""
    program = program_session()
    link = by_hand(program)
    program.write(2, bytes(1 << 20))
    give(link, pack(FrameType.PING, number=12345))
    assert split_frames(drain(link))[0] == (FrameType.PONG, 0, 0, 12345, b"")


def test_newer_values_replace_older_ones() -> None:
    """Two PINGs that were not answered yet are answered once, with the newer number."""
    link = by_hand(program_session())
    give(link, pack(FrameType.PING, number=1) + pack(FrameType.PING, number=2))
    assert split_frames(drain(link)) == [(FrameType.PONG, 0, 0, 2, b"")]


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    """PING after 5 s without a byte, ConnectionLost after 15 s."""
    link = by_hand(program_session(), now=100.0)
    give(link, pack(FrameType.PONG), 100.0)
    drain(link, 100.0)
    assert link.next_deadline() == 105.0
    link.handle_timeout(104.9)
    assert link.data_to_send(104.9) == []
    link.handle_timeout(105.0)
    assert [frame[0] for frame in split_frames(drain(link, 105.0))] == [FrameType.PING]
    assert link.next_deadline() == 115.0
    link.handle_timeout(114.9)
    with pytest.raises(ConnectionLost, match="silent for 15 s"):
        link.handle_timeout(115.0)


def test_any_byte_is_a_sign_of_life() -> None:
    """Half a header will do."""
    link = by_hand(program_session(), now=100.0)
    give(link, b"\2", 114.0)
    link.handle_timeout(128.9)
    with pytest.raises(ConnectionLost):
        link.handle_timeout(129.0)


def test_a_quiet_conversation_lives_on() -> None:
    """Two ends that have nothing to say keep each other alive for an hour, by little more than two frames in 5 s."""
    _, _, pair = pair_of()
    now, moved = 0.0, 0
    while now < 3600.0:
        now = min(link.next_deadline() for link in pair.links)
        for link in pair.links:
            link.handle_timeout(now)
        moved += pair.settle(now)
    assert moved <= 4 * 16 * 3600 / 5 + 1000


def test_a_ping_that_cannot_be_sent_does_not_spin() -> None:
    """While the kernel takes nothing, the next deadline lies ahead: a driver that obeys it sleeps."""
    program = program_session()
    link = by_hand(program, now=100.0)
    give(link, pack(FrameType.PONG), 100.0)
    link.handle_timeout(105.0)
    deadline = link.next_deadline()
    assert deadline is not None
    assert deadline > 105.0


# ---- broken links


def test_a_broken_link_loses_and_repeats_nothing() -> None:
    """What was sent and not received comes again, in both directions, and only that."""
    program, viewer, pair = pair_of()
    program.session.write(2, b"0123456789" * 1000)
    viewer.session.write(1, b"abcdefghij")
    pair.send(DIALLER)
    pair.deliver(DIALLER, most=5000)
    pair.send(WAITER)
    pair.cut()
    assert program.session.state is viewer.session.state is State.BROKEN
    program.session.write(2, b"!")
    redial(pair)
    assert viewer.received[2] == b"0123456789" * 1000 + b"!"
    assert program.received[1] == b"abcdefghij"
    assert (program.opened, viewer.opened) == ([False, True], [False, True])


def test_resume_says_so() -> None:
    """RESUME stands in OPEN once this end has had the peer's; the waiting end never sets it."""
    session = program_session()
    assert session.open_frame(dials=True)[1] == OpenFlag.DURABLE
    by_hand(session)
    assert session.open_frame(dials=True)[1] == OpenFlag.DURABLE | OpenFlag.RESUME
    assert session.open_frame(dials=False)[1] == OpenFlag.DURABLE


def test_fin_and_stop_are_said_again() -> None:
    """A FIN or STOP that was lost comes on the next link; one that arrived is not an event twice."""
    program, viewer, pair = pair_of()
    viewer.session.finish(1)
    viewer.session.stop(3, 0.0)
    pair.send(WAITER)
    pair.cut()
    assert (program.finished, program.stopped) == ([], [])
    second = redial(pair)
    assert (program.finished, program.stopped) == ([1], [3])
    second.cut()
    third = redial(second, 2)
    assert (program.finished, program.stopped) == ([1], [3])
    end_program(program)
    third.settle()
    assert viewer.completed == [STATUS]


def test_a_lost_taken_costs_nothing() -> None:
    """The peer wants what it has received: bytes whose TAKEN was lost are not sent twice."""
    program, viewer, pair = pair_of(bits=16)
    program.session.write(2, bytes(WINDOW // 2))
    pair.send(DIALLER)
    pair.deliver(DIALLER)
    pair.cut()
    assert program.session.untaken() == {2: WINDOW // 2}
    new = Pair(*pair.ends, number=1)
    assert new.settle() < 2000
    assert len(viewer.received[2]) == WINDOW // 2
    assert program.session.untaken() == {}


def test_only_the_own_link_detaches() -> None:
    """The end of an older link, noticed late, is not the end of the session's new one."""
    program, viewer, old = pair_of()
    program.session.detach(old.links[DIALLER])
    new = redial(old)
    assert not viewer.session.detach(old.links[WAITER])
    assert viewer.session.state is State.OPEN
    program.session.write(2, b"still here")
    new.settle()
    assert viewer.received[2] == b"still here"
    assert viewer.session.detach(new.links[WAITER])
    assert viewer.session.state is State.BROKEN


def test_a_program_that_lost_its_memory() -> None:
    """A peer that wants more than was ever sent, or what was taken and forgotten, ends the session with SessionLost."""
    program, _, pair = pair_of()
    program.session.write(2, b"0123456789")
    pair.settle()
    pair.links[WAITER].handle_timeout(0.05)
    pair.settle()
    pair.cut()
    for wanted in (11, 5):
        said = peer(Kind.VIEWER)
        said.wants = {2: wanted}
        with pytest.raises(SessionLost, match=f"wants channel 2 from {wanted} on") as caught:
            by_hand(program.session, said)
        assert caught.value.delivered == {2: 10}


def test_a_session_that_was_left_is_not_revived() -> None:
    """A link that comes up after `leave` carries no data, and at most GOAWAY."""
    program, viewer, pair = pair_of()
    pair.cut()
    program.session.write(2, b"never")
    new = Pair(*pair.ends, number=1)
    for side in (DIALLER, WAITER, DIALLER, WAITER, DIALLER):
        new.send(side)
        new.deliver(side)
    program.session.leave()
    new.settle()
    assert program.session.state is State.OVER
    assert viewer.received[2] == b""
    assert new.links[DIALLER].sending_is_over()
    assert viewer.gone in ([], [(GoAwayCode.LEAVING, "")])


# ---- STOP


def test_stop_ends_the_stream_where_it_is() -> None:
    """The sender hears it once, may write no more, and ends with FIN; what was under way is thrown away."""
    program, viewer, pair = pair_of(bits=16, takes=False)
    program.session.write(2, bytes(3 * WINDOW))
    pair.settle()
    viewer.take(2, 100)
    viewer.session.stop(2, 0.0)
    pair.settle()
    assert program.stopped == [2]
    with pytest.raises(LocalProtocolError):
        program.session.write(2, b"x")
    assert viewer.finished == [2]
    assert len(viewer.received[2]) == WINDOW
    program.session.send(records.Exited(STATUS))
    program.session.finish(3)
    program.session.end(STATUS)
    pair.settle()
    assert viewer.completed == [STATUS]
    assert program.session.untaken() == {}


def test_nothing_arrives_after_stop() -> None:
    """Bytes that were under way are counted, not delivered."""
    program, viewer, pair = pair_of()
    program.session.write(2, b"before")
    pair.settle()
    program.session.write(2, b"under way")
    pair.send(DIALLER)
    viewer.session.stop(2, 0.0)
    pair.settle()
    assert viewer.received[2] == b"before"


def test_a_stop_by_the_program_reaches_the_viewer() -> None:
    """A program that closes its stdin: the viewer's writer hears of it."""
    program, viewer, pair = pair_of()
    program.session.stop(1, 0.0)
    pair.settle()
    assert viewer.stopped == [1]
    assert program.finished == [1]


# ---- records


def test_records_outstanding_are_bounded() -> None:
    """65,536 bytes of records may wait to be taken, the 65,537th is refused here; taken ones make room."""
    program, viewer = Application(program_session()), Application(viewer_session())
    text = "t" * (255 - 28)
    record = records.Exited(Status(How.NOT_STARTED, 127, text))
    assert len(record.encode()) == 256
    for _ in range(256):
        program.session.send(record)
    with pytest.raises(LocalProtocolError, match="too many control records"):
        program.session.send(records.Started(1))
    pair = connected(program, viewer)
    pair.links[WAITER].handle_timeout(1.0)
    pair.settle()
    program.session.send(records.Started(1))
    pair.settle()
    assert viewer.records == [record.encode()] * 256 + [records.Started(1).encode()]


def test_records_come_once_and_in_order_through_cuts() -> None:
    """A record of which half had arrived comes again, whole."""
    program, viewer, pair = pair_of()
    for pid in range(50):
        program.session.send(records.Started(pid))
        pair.send(DIALLER)
        pair.deliver(DIALLER, most=20 + pid)
        pair.cut()
        pair = redial(pair, pid + 1)
    assert viewer.records == [records.Started(pid).encode() for pid in range(50)]


# ---- the end


def test_completion_waits_until_all_is_taken() -> None:
    """The status is known at once by EXIT; Completed comes with the last taken byte, at both ends."""
    program, viewer, pair = pair_of(takes=False)
    program.session.write(2, b"out")
    program.session.write(3, b"err")
    end_program(program)
    pair.settle()
    assert viewer.records == [records.Exited(STATUS).encode()]
    assert sorted(viewer.finished) == [2, 3]
    for channel in (2, 3):
        assert viewer.completed == program.completed == []
        viewer.take(channel, 2)
        pair.links[WAITER].handle_timeout(1.0)
        pair.settle()
        assert viewer.completed == program.completed == []
        viewer.take(channel, 1)
        viewer.absorb(0.0)
        pair.settle()
    assert viewer.completed == program.completed == [STATUS]


def test_at_completion_all_output_is_known_to_be_taken() -> None:
    """The TAKEN that completes comes behind those of the streams: a program that leaves then need not warn."""
    program, viewer, pair = pair_of(takes=False)
    program.session.write(2, b"out")
    end_program(program)
    pair.settle()
    viewer.take(2, 3)
    pair.send(WAITER)
    while not program.completed:
        assert pair.deliver(WAITER, most=1)
    assert program.session.untaken() == {}


def test_end_waits_for_the_fins_on_every_link() -> None:
    """END never stands before the FINs of its link, though it was sent on an earlier one."""
    program, viewer, pair = pair_of(bits=16, takes=False)
    program.session.write(2, bytes(WINDOW + 1))
    end_program(program)
    pair.settle()
    pair.cut()
    viewer.take(2, WINDOW)
    new = redial(pair)
    assert viewer.finished.count(2) == 1
    viewer.take(2, 1)
    viewer.absorb(0.0)
    new.settle()
    assert viewer.completed == program.completed == [STATUS]


def test_a_lost_completion_is_said_again() -> None:
    """The link breaks between the viewer's last TAKEN and the program: the next link brings it."""
    program, viewer, pair = pair_of()
    end_program(program)
    pair.send(DIALLER)
    pair.deliver(DIALLER)
    assert viewer.completed == [STATUS]
    pair.cut()
    assert program.completed == []
    redial(pair)
    assert (program.completed, viewer.completed) == ([STATUS], [STATUS])


def test_the_viewers_input_need_not_end() -> None:
    """A program that ends while there is input for it completes all the same."""
    program, viewer, pair = pair_of(takes=False)
    viewer.session.write(1, b"nobody reads this")
    end_program(program)
    pair.settle()
    assert program.completed == viewer.completed == [STATUS]


@pytest.mark.parametrize("code", GoAwayCode)
def test_leaving_tells_the_peer_why(code: GoAwayCode) -> None:
    """Code and text arrive, and both sessions are over."""
    program, viewer, pair = pair_of()
    viewer.session.leave(code, "because")
    pair.settle()
    assert program.gone == [(code, "because")]
    assert program.session.state is viewer.session.state is State.OVER
    for link in pair.links:
        assert link.sending_is_over()
        link.eof_received(0.0)


def test_both_ends_may_leave_at_once() -> None:
    """GOAWAYs that cross are no error."""
    program, viewer, pair = pair_of()
    program.session.leave()
    viewer.session.leave()
    pair.settle()
    assert program.session.state is viewer.session.state is State.OVER
