"""One direction of one channel: what a sender keeps and may send, what a receiver expects."""

from __future__ import annotations

import pytest

from sockstream.channels import Incoming, Outgoing
from sockstream.errors import LocalProtocolError, RemoteProtocolError, SessionLost
from sockstream.frames import MAX_DATA, OLDEST

WINDOW = 1 << 16


def outgoing(data: bytes = b"", *, window: int = WINDOW, records: bool = False) -> Outgoing:
    """Return a sender whose peer has granted a window and wants the beginning."""
    channel = Outgoing(2, records=records)
    channel.resume(0, window)
    if data:
        channel.write(data)
    return channel


def frames(channel: Outgoing) -> list[tuple[int, bytes]]:
    """Send all that may be sent now: offset and payload of each frame."""
    found = []
    while frame := channel.next_frame():
        found.append((frame[0], bytes(frame[1])))
    return found


def incoming(expected: int = 0, *, bits: int = 16) -> Incoming:
    """Return a receiver that has received and taken so many bytes."""
    channel = Incoming(2, bits=bits)
    channel.receive(expected)
    channel.take(expected, 0.0)
    return channel


# ---- the sending side


def test_what_is_written_is_sent_once_in_order() -> None:
    """Frames follow each other without a hole, and nothing is left over."""
    channel = outgoing(b"hello ")
    channel.write(b"world")
    assert frames(channel) == [(0, b"hello world")]
    channel.write(b"!")
    assert frames(channel) == [(11, b"!")]
    assert channel.next_frame() is None


def test_small_writes_share_a_frame_large_ones_are_not_copied() -> None:
    """Single bytes do not cost a frame each; what came from a pipe goes out as the same object."""
    channel = outgoing()
    for number in range(1000):
        channel.write(bytes((number % 251,)))
    assert len(frames(channel)) == 1
    large = bytes(50_000)
    channel.write(large)
    frame = channel.next_frame()
    assert frame is not None
    assert frame[1] is large


def test_empty_writes_send_nothing() -> None:
    """DATA without bytes would be a protocol error at the peer."""
    channel = outgoing()
    channel.write(b"")
    assert frames(channel) == []
    channel.write(b"x" * 5000)
    channel.write(b"")
    assert frames(channel) == [(0, b"x" * 5000)]
    channel.finish()
    assert channel.fin_due()


def test_credit_ends_at_the_window() -> None:
    """Not one byte at or above taken + window goes out; each TAKEN lets as many more go as it takes."""
    channel = outgoing(bytes(3 * WINDOW))
    assert sum(len(data) for _, data in frames(channel)) == WINDOW
    channel.take(1, WINDOW)
    assert [(offset, len(data)) for offset, data in frames(channel)] == [(WINDOW, 1)]
    channel.take(WINDOW + 1, WINDOW)
    assert sum(len(data) for _, data in frames(channel)) == WINDOW


def test_the_same_taken_twice_gives_no_new_credit() -> None:
    """TAKEN is absolute: repeating it is harmless."""
    channel = outgoing(bytes(3 * WINDOW))
    frames(channel)
    channel.take(100, WINDOW)
    frames(channel)
    channel.take(100, WINDOW)
    assert frames(channel) == []
    assert channel.sent == 100 + WINDOW


def test_a_window_smaller_than_the_default_holds() -> None:
    """A peer may grant as little as 64 KiB in its OPEN, and says so again in its TAKEN."""
    channel = Outgoing(2)
    channel.write(bytes(1 << 20))
    channel.resume(0, WINDOW)
    assert sum(len(data) for _, data in frames(channel)) == WINDOW
    channel.take(0, WINDOW)
    assert frames(channel) == []


def test_a_window_grows_but_never_shrinks() -> None:
    """The newest TAKEN counts; a smaller window than before is a protocol error; OPEN repeats only the first one."""
    channel = outgoing(bytes(8 * WINDOW))
    channel.take(0, 2 * WINDOW)
    assert sum(len(data) for _, data in frames(channel)) == 2 * WINDOW
    with pytest.raises(RemoteProtocolError, match="smaller"):
        channel.take(0, WINDOW)
    channel.resume(0, WINDOW)
    assert sum(len(data) for _, data in frames(channel)) == 2 * WINDOW


def test_a_new_viewer_begins_with_its_own_window() -> None:
    """The window that an earlier process had grown is gone with it."""
    channel = outgoing(bytes(8 * WINDOW))
    channel.take(0, 4 * WINDOW)
    frames(channel)
    channel.resume(OLDEST, WINDOW)
    assert sum(len(data) for _, data in frames(channel)) == WINDOW
    channel.take(0, WINDOW)


def test_room_is_a_window_in_all() -> None:
    """What is not sent counts like what is not taken; a finished channel has none."""
    channel = outgoing(bytes(1000))
    assert channel.room() == WINDOW - 1000
    frames(channel)
    assert channel.room() == WINDOW - 1000
    channel.take(600, WINDOW)
    assert channel.room() == WINDOW - 400
    channel.write(bytes(2 * WINDOW))
    assert channel.room() == 0
    channel.finish()
    channel.take(1000, WINDOW)
    assert channel.room() == 0


def test_no_frame_is_larger_than_a_megabyte() -> None:
    """A large write is cut at the frame's limit."""
    channel = outgoing(bytes(2 * MAX_DATA + 1), window=1 << 24)
    assert [len(data) for _, data in frames(channel)] == [MAX_DATA, MAX_DATA, 1]


@pytest.mark.parametrize("offset", [99, 201])
def test_taken_must_lie_between_the_last_one_and_what_was_sent(offset: int) -> None:
    """TAKEN that goes back, or beyond what was sent, is a protocol error that changes nothing."""
    channel = outgoing(bytes(200))
    frames(channel)
    channel.take(100, WINDOW)
    with pytest.raises(RemoteProtocolError, match="not within 100 to 200"):
        channel.take(offset, WINDOW)
    assert channel.base == 100
    channel.take(200, WINDOW)


def test_what_was_written_but_not_sent_cannot_be_taken() -> None:
    """The end of the stream is not the end of what was sent."""
    channel = outgoing(bytes(2 * WINDOW))
    frames(channel)
    with pytest.raises(RemoteProtocolError):
        channel.take(WINDOW + 1, WINDOW)


@pytest.mark.parametrize("wanted", [0, 1, 99, 100, 5000, 5001, 9999, 10_000])
def test_resume_goes_on_at_the_wanted_offset(wanted: int) -> None:
    """Everything from there on comes, the sent and the unsent, whatever the frames were before."""
    data = bytes(number % 251 for number in range(12_000))
    channel = outgoing()
    for start in (0, 100, 5000):
        channel.write(data[start : {0: 100, 100: 5000, 5000: 10_000}[start]])
        frames(channel)
    channel.write(data[10_000:])
    channel.resume(wanted, WINDOW)
    again = frames(channel)
    assert again[0][0] == wanted
    assert b"".join(payload for _, payload in again) == data[wanted:]
    channel.take(12_000, WINDOW)
    channel.finish()
    assert channel.all_taken()


@pytest.mark.parametrize("wanted", [99, 201, 1 << 63])
def test_what_is_gone_or_was_never_sent_cannot_be_resumed(wanted: int) -> None:
    """SessionLost says from where to where the channel is kept, and what the peer is known to have taken."""
    channel = outgoing(bytes(200))
    frames(channel)
    channel.take(100, WINDOW)
    with pytest.raises(SessionLost, match="only 100 to 200 is kept") as caught:
        channel.resume(wanted, WINDOW)
    assert caught.value.delivered == {2: 100}


def test_the_oldest_is_what_is_not_taken() -> None:
    """A new process gets a GAP and everything from the last TAKEN on."""
    channel = outgoing(bytes(100) + b"x" * 100)
    frames(channel)
    channel.take(100, WINDOW)
    channel.resume(OLDEST, WINDOW)
    assert channel.gap_due
    assert frames(channel) == [(100, b"x" * 100)]
    channel.resume(150, WINDOW)
    assert not channel.gap_due
    assert frames(channel) == [(150, b"x" * 50)]


def test_fin_follows_the_last_byte_on_every_link() -> None:
    """It waits for credit like the bytes before it, is sent once a link, and its offset is the stream's length."""
    channel = outgoing(bytes(WINDOW + 1))
    channel.finish()
    frames(channel)
    assert not channel.fin_due()
    channel.take(1, WINDOW)
    frames(channel)
    assert channel.fin_due()
    assert channel.send_fin() == WINDOW + 1
    assert not channel.fin_due()
    channel.resume(WINDOW, WINDOW)
    assert not channel.fin_due()
    frames(channel)
    assert channel.fin_due()
    assert not channel.all_taken()
    channel.take(WINDOW + 1, WINDOW)
    assert channel.all_taken()


def test_nothing_is_written_behind_the_end() -> None:
    """Writing to a finished channel is this end's mistake."""
    channel = outgoing()
    channel.finish()
    with pytest.raises(LocalProtocolError, match="finished"):
        channel.write(b"x")


def test_stop_drops_what_is_not_sent() -> None:
    """The stream ends where sending had come to; the sender may write no more."""
    channel = outgoing(bytes(WINDOW + 500))
    frames(channel)
    channel.drop_unsent()
    assert frames(channel) == []
    assert channel.fin_due()
    assert channel.send_fin() == WINDOW
    with pytest.raises(LocalProtocolError):
        channel.write(b"x")
    channel.take(WINDOW, WINDOW)
    assert channel.all_taken()


def test_stop_does_not_move_a_fin_back() -> None:
    """A FIN that was announced may have been read: what lies before it is sent again, though nobody wants it."""
    channel = outgoing(bytes(300))
    channel.finish()
    frames(channel)
    channel.send_fin()
    channel.resume(100, WINDOW)
    channel.drop_unsent()
    assert sum(len(data) for _, data in frames(channel)) == 200
    assert channel.send_fin() == 300


def test_a_stop_repeated_on_a_new_link_drops_nothing_more() -> None:
    """What was sent before the first STOP is owed to the peer's count until the end."""
    channel = outgoing(bytes(300))
    frames(channel)
    channel.drop_unsent()
    channel.resume(100, WINDOW)
    channel.drop_unsent()
    assert sum(len(data) for _, data in frames(channel)) == 200
    assert channel.send_fin() == 300


def test_records_are_one_frame_each_and_need_no_credit() -> None:
    """They are never joined nor split, and go out however much is outstanding."""
    channel = outgoing(records=True)
    for number in range(100):
        channel.write(bytes((number,)) * 1000)
    assert [len(data) for _, data in frames(channel)] == [1000] * 100
    channel.resume(50_000, WINDOW)
    assert [data[0] for _, data in frames(channel)] == list(range(50, 100))


def test_records_go_on_at_a_boundary_only() -> None:
    """A peer that wants half a record is wrong: it must want it from its beginning."""
    channel = outgoing(records=True)
    for _ in range(3):
        channel.write(bytes(10))
    frames(channel)
    with pytest.raises(RemoteProtocolError, match="inside a record"):
        channel.resume(15, WINDOW)


def test_memory_is_given_back_when_bytes_are_taken() -> None:
    """What is taken is forgotten: only the rest can be resumed, and sums stay right through odd sizes."""
    channel = outgoing()
    written = taken = 0
    for step in range(1, 400):
        channel.write(bytes(step * 37 % 6000))
        written += step * 37 % 6000
        frames(channel)
        taken = max(taken, channel.sent - step * 11 % 7000)
        channel.take(taken, 1 << 24)
        kept = sum(map(len, channel._untaken)) + sum(map(len, channel._unsent))
        assert kept == written - taken


# ---- the receiving side


def test_data_must_begin_where_it_is_expected() -> None:
    """Neither a repeated nor a skipped byte passes."""
    channel = incoming(100)
    channel.expect(100, 5, fin=False)
    for offset in (0, 99, 101, OLDEST):
        with pytest.raises(RemoteProtocolError, match="expected 100"):
            channel.expect(offset, 5, fin=False)


def test_data_up_to_the_window_and_one_byte_beyond() -> None:
    """taken + window is the end, exactly; taking a byte moves it by one."""
    channel = incoming(100)
    channel.expect(100, WINDOW, fin=False)
    with pytest.raises(RemoteProtocolError, match="beyond the window"):
        channel.expect(100, WINDOW + 1, fin=False)
    channel.receive(WINDOW)
    with pytest.raises(RemoteProtocolError):
        channel.expect(100 + WINDOW, 1, fin=False)
    channel.take(1, 0.0)
    channel.expect(100 + WINDOW, 1, fin=False)


def test_records_need_no_credit() -> None:
    """Channel 0 is never held back by bytes that are not taken."""
    channel = Incoming(0, bits=16)
    channel.receive(WINDOW)
    channel.expect(WINDOW, 1024, fin=False)


def test_a_fin_is_bare_and_may_be_repeated() -> None:
    """It carries no bytes, comes again on a new link, and nothing follows it."""
    channel = incoming(100)
    with pytest.raises(RemoteProtocolError, match="FIN with 1 bytes"):
        channel.expect(100, 1, fin=True)
    channel.expect(100, 0, fin=True)
    channel.final = 100
    channel.expect(100, 0, fin=True)
    with pytest.raises(RemoteProtocolError, match="behind its end"):
        channel.expect(100, 1, fin=False)
    with pytest.raises(RemoteProtocolError):
        channel.expect(101, 0, fin=True)


def test_more_than_has_arrived_cannot_be_taken() -> None:
    """That is this end's mistake."""
    channel = incoming()
    channel.receive(10)
    with pytest.raises(LocalProtocolError, match="more bytes taken"):
        channel.take(11, 0.0)


def test_stop_takes_what_has_come_and_throws_the_rest_away() -> None:
    """Bytes count as taken as they arrive; what the application says it took before is no longer counted."""
    channel = incoming()
    assert channel.receive(10)
    channel.stop()
    assert (channel.taken, channel.stop_due) == (10, True)
    assert not channel.receive(90)
    assert channel.taken == channel.expected == 100
    channel.take(5, 0.0)
    assert channel.taken == 100


def test_stop_is_repeated_on_a_new_link_only() -> None:
    """Saying it twice here sends it once; a new link sends it again."""
    channel = incoming()
    channel.stop()
    channel.stop_due = False
    channel.stop()
    assert not channel.stop_due
    channel.new_link()
    assert channel.stop_due
    other = incoming()
    other.new_link()
    assert not other.stop_due


def test_a_living_end_wants_what_it_has_not_received() -> None:
    """Not what it has not taken: the bytes between are here already."""
    channel = incoming()
    channel.receive(500)
    channel.take(100, 0.0)
    assert channel.wanted == 500


def test_a_new_process_wants_the_oldest_until_the_gap_has_come() -> None:
    """No data passes before it; behind it, the stream goes on at its number."""
    channel = Incoming(2, unknown=True, bits=16)
    assert channel.wanted == OLDEST
    with pytest.raises(RemoteProtocolError, match="before the GAP"):
        channel.expect(0, 5, fin=False)
    assert channel.skip_to(1000) == 1000
    assert channel.wanted == channel.taken == 1000
    channel.expect(1000, WINDOW, fin=False)
    with pytest.raises(RemoteProtocolError):
        channel.expect(1000, WINDOW + 1, fin=False)


def test_a_gap_does_not_go_back() -> None:
    """Nor does one come behind the end of a stream."""
    channel = incoming(100)
    with pytest.raises(RemoteProtocolError, match="goes back to 99"):
        channel.skip_to(99)
    assert channel.skip_to(100) == 0
    channel.final = 100
    with pytest.raises(RemoteProtocolError):
        channel.skip_to(200)


def test_a_gap_in_the_middle_leaves_received_bytes_to_be_taken() -> None:
    """That the application takes later what arrived before the GAP is no mistake, and counts once."""
    channel = incoming(100)
    channel.receive(50)
    assert channel.skip_to(200) == 50
    channel.take(20, 0.0)
    channel.receive(10)
    channel.take(30, 0.0)
    assert (channel.expected, channel.taken) == (210, 200)
    channel.take(10, 0.0)
    assert channel.taken == 210


def test_a_gap_gives_no_credit_for_bytes_that_are_here() -> None:
    """What the application has not taken fills the window before a GAP and behind it: memory stays bounded."""
    channel = incoming(100)
    channel.receive(WINDOW)
    for offset in (100 + WINDOW, 200 + WINDOW):
        channel.skip_to(offset)
        with pytest.raises(RemoteProtocolError, match="beyond the window"):
            channel.expect(offset, 1, fin=False)


def test_taken_is_due_on_a_new_link_at_a_quarter_window_and_at_the_end() -> None:
    """Else it waits for the session's delay."""
    channel = incoming()
    channel.told, channel.told_due = 0, False
    channel.receive(WINDOW)
    channel.take(WINDOW // 4 - 1, 0.0)
    assert not channel.taken_due()
    channel.take(1, 0.0)
    assert channel.taken_due()
    channel.told = channel.taken
    channel.final = WINDOW
    channel.take(WINDOW // 2, 0.0)
    channel.told = channel.taken
    channel.take(WINDOW // 4 - 1, 0.0)
    assert not channel.taken_due()
    channel.take(1, 0.0)
    assert channel.taken_due()
    channel.told = channel.taken
    assert not channel.taken_due()
    assert channel.all_taken()
    channel.new_link()
    assert channel.taken_due()


def test_all_taken_needs_the_end() -> None:
    """A stream without FIN is never all taken; one with FIN is when its last byte is."""
    channel = incoming(100)
    assert not channel.all_taken()
    channel.final = 100
    assert channel.all_taken()
    other = incoming()
    other.receive(1)
    other.final = 1
    assert not other.all_taken()


def taken_window(elapsed: float, round_trip: float, *, bits: int = 16) -> Incoming:
    """Return a receiver that has taken one window within so many seconds."""
    channel = Incoming(2, bits=bits)
    size = 1 << bits
    channel.receive(1 + size)
    channel.take(1, 5.0)
    channel.grow(5.0, round_trip)
    channel.take(size - 1, 5.0 + elapsed)
    channel.grow(5.0 + elapsed, round_trip)
    return channel


@pytest.mark.parametrize(
    ("elapsed", "round_trip", "grows"),
    [
        (0.1, 0.1, True),
        (0.19, 0.1, True),
        (0.0, 0.001, True),
        (0.21, 0.2, False),
        (0.1, 0.04, False),
        (10.0, 10.0, False),
        (0.0, 0.0, False),
    ],
)
def test_a_window_grows_where_it_is_the_limit(elapsed: float, round_trip: float, grows: bool) -> None:
    """It is doubled when a whole one was taken within 200 ms and two round trips; not before a round trip is known."""
    assert taken_window(elapsed, round_trip).bits == (17 if grows else 16)


def test_a_window_grows_to_16_mib_at_most() -> None:
    """2^24 is the largest that the protocol has."""
    assert taken_window(0.1, 0.1, bits=24).bits == 24


def test_less_than_a_window_does_not_grow_it() -> None:
    """However fast."""
    channel = Incoming(2, bits=16)
    channel.receive(WINDOW)
    channel.take(WINDOW - 1, 0.0)
    channel.grow(0.0, 1.0)
    assert channel.bits == 16


def test_bytes_of_an_older_link_do_not_grow_the_window() -> None:
    """A whole window must be taken on the link whose speed is measured."""
    channel = Incoming(2, bits=16)
    channel.receive(2 * WINDOW)
    channel.take(WINDOW - 1, 0.0)
    channel.grow(0.0, 0.0)
    channel.new_link()
    channel.take(1, 100.0)
    channel.grow(100.0, 0.0)
    assert channel.bits == 16
