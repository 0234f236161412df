"""A new viewer, which knows nothing of a session, takes its program over (docs/protocol.md section 4.3)."""

from __future__ import annotations

import pytest

from pair import (
    DIALLER,
    STATUS,
    WAITER,
    adoption,
    connected,
    end_program,
    pair_of,
    peer,
    until_accepted,
    viewer_session,
)
from sockstream import records
from sockstream.errors import LocalProtocolError
from sockstream.frames import OLDEST
from sockstream.records import Kind

WINDOW = 1 << 16


def test_a_new_viewer_takes_a_program_over() -> None:
    """It gets everything that the earlier one had not taken, is told what it misses, and goes on in both directions."""
    program, old, pair = pair_of(takes=False)
    program.session.write(2, b"0123456789")
    program.session.write(3, b"errors")
    old.session.write(1, b"first line\n")
    pair.settle()
    old.take(2, 4)
    pair.links[WAITER].handle_timeout(1.0)
    pair.settle()
    pair.cut()
    new_pair = adoption(program, number=1)
    new_pair.settle()
    viewer = new_pair.ends[WAITER]
    assert viewer.received == {0: b"", 2: b"456789", 3: b"errors"}
    assert viewer.gaps == [(2, 0, 4, 1)]
    viewer.session.write(1, b"second line\n")
    program.session.write(2, b"abc")
    end_program(program)
    new_pair.settle()
    assert program.received[1] == b"first line\nsecond line\n"
    assert viewer.received[2] == b"456789abc"
    assert viewer.completed == program.completed == [STATUS]


@pytest.mark.parametrize("count", [0, 100, 180, 220, 260, 300, 400, 100_000])
def test_an_adoption_may_break_at_any_point(count: int) -> None:
    """A viewer whose GAPs were lost asks again for the oldest; one that has them goes on from there."""
    program, old, pair = pair_of()
    program.session.write(2, b"taken before")
    pair.settle()
    pair.links[WAITER].handle_timeout(1.0)
    pair.settle()
    pair.cut()
    program.session.write(2, b"kept" * 100)
    first = adoption(program, number=1)
    viewer = until_accepted(first)
    first.send(WAITER)
    first.deliver(WAITER)
    first.send(DIALLER)
    first.deliver(DIALLER, most=count)
    first.cut()
    connected(program, viewer, number=2)
    assert viewer.received[2] == b"kept" * 100
    assert viewer.gaps[-1] in [(2, 0, 12, 1), (0, 0, 0, 1)]
    assert old.received[2] == b"taken before"


def test_a_new_viewer_has_its_own_window() -> None:
    """It is not flooded with the window that the earlier one had grown."""
    program, _, pair = pair_of(bits=18, takes=False)
    program.session.write(2, bytes(1 << 20))
    pair.settle()
    pair.cut()
    new = adoption(program, number=1, window_bits=16)
    until_accepted(new).takes = False
    new.settle()
    assert len(new.ends[WAITER].received[2]) == WINDOW


def test_a_new_viewer_waits_for_credit() -> None:
    """Input that an earlier viewer sent, and the program has not read, fills the window: the new one sends none."""
    program, old, pair = pair_of(bits=16, takes=False)
    old.session.write(1, bytes(WINDOW))
    pair.settle()
    pair.cut()
    new = adoption(program, number=1, window_bits=16)
    viewer = until_accepted(new)
    viewer.session.write(1, b"more")
    new.settle()
    assert len(program.received[1]) == WINDOW
    assert viewer.session.untaken() == {1: 4}
    program.take(1, WINDOW)
    new.settle()
    assert program.received[1] == bytes(WINDOW) + b"more"


def test_a_new_viewer_learns_that_the_input_has_ended() -> None:
    """An earlier viewer closed the program's stdin: the new one hears STOP, and what it had written does no harm."""
    program, old, pair = pair_of()
    old.session.write(1, b"all there is")
    old.session.finish(1)
    pair.settle()
    pair.cut()
    new = adoption(program, number=1)
    viewer = until_accepted(new)
    viewer.session.write(1, b"too late")
    new.settle()
    assert viewer.stopped == [1]
    assert program.received[1] == b"all there is"
    assert set(program.finished) == {1}
    end_program(program)
    new.settle()
    assert viewer.completed == [STATUS]


def test_a_new_viewer_may_send_records_at_once() -> None:
    """How many an earlier viewer has sent does not count: they are not outstanding."""
    said = peer(Kind.PROGRAM)
    said.wants = {0: 100_000}
    viewer = viewer_session(adopting=said)
    viewer.send(records.Signal("SIGTERM"))
    with pytest.raises(LocalProtocolError, match="too many"):
        for _ in range(10_000):
            viewer.send(records.Signal("SIGTERM"))


def test_a_new_viewer_of_a_program_that_has_ended() -> None:
    """The status and what nobody took are still there."""
    program, old, pair = pair_of(takes=False)
    program.session.write(2, b"last words")
    end_program(program)
    pair.settle()
    pair.cut()
    new = adoption(program, number=1)
    new.settle()
    assert new.ends[WAITER].received[2] == b"last words"
    assert new.ends[WAITER].completed == program.completed == [STATUS]
    assert old.completed == []


def test_adoption_wants_the_oldest_on_every_channel() -> None:
    """2^64-1 in OPEN, for records too; its own directions begin where the program wants them."""
    said = peer(Kind.PROGRAM)
    said.wants = {0: 10, 1: 4321}
    viewer = viewer_session(adopting=said)
    viewer.open_frame(dials=False)
    assert viewer.me.wants == {0: OLDEST, 2: OLDEST, 3: OLDEST}
    assert (viewer.outgoing[0].end, viewer.outgoing[1].end) == (10, 4321)
