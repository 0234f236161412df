"""A link that is cut behind any single byte costs nothing: the conversation always has the same result.

Rules: a script of ten rounds, with ten frames at least of each kind that can come so often, is run once without a cut
and then once for each byte of it, both directions counted together: handshake, OPENs and all frames. What is under way
at the cut is lost, both ends dial and wait again, and everything that either application saw must be as it was.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pair import DIALLER, STATUS, WAITER, Application, Pair, accept, program_session, split_frames, viewer_session
from sockstream import records
from sockstream.frames import FrameType
from sockstream.session import State

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 10
NEVER = 1 << 60


class Conversation:
    """The script; `cut_at` is the number of delivered bytes behind which the link is cut."""

    def __init__(self, script: str, cut_at: int = NEVER) -> None:
        self.cut_at = cut_at
        self.program, self.viewer = Application(program_session()), Application(viewer_session())
        self.stops, self.adopts = script == "stop", script == "adoption"
        self.program_dials = script != "viewer dials"
        self.unknown = False  # the viewer is a new process that has not answered yet
        self.now, self.delivered, self.links = 0.0, 0, 0
        self.sent = [bytearray(), bytearray()]
        self.dial()

    def dial(self) -> None:
        """Make a new connection."""
        ends = (self.program, self.viewer) if self.program_dials else (self.viewer, self.program)
        self.pair = Pair(*ends, self.now, number=self.links, answer=self.answer)
        self.links += 1

    def answer(self, pair: Pair, now: float) -> None:
        """Accept; a viewer that knows nothing adopts the program first."""
        if self.unknown:
            self.unknown = False
            self.viewer = pair.ends[WAITER] = Application(viewer_session(adopting=pair.links[WAITER].peer))
        accept(pair, now)

    def settle(self) -> None:
        """Move bytes until there are none; cut the link in the middle of that when its time has come."""
        while self.program.session.state is not State.OVER:
            for side in (DIALLER, WAITER):
                self.pair.send(side, self.now)
                self.sent[side] += self.pair.wires[side]
                self.delivered += self.pair.deliver(side, self.now, self.cut_at - self.delivered)
                if self.delivered == self.cut_at:
                    self.cut_at = NEVER
                    self.cut()
                if self.program.completed:
                    return
            if not any(link.data_to_send(self.now) for link in self.pair.links) and not any(self.pair.wires):
                return

    def cut(self) -> None:
        """Lose the link and dial again."""
        self.pair.cut(self.now)
        self.dial()

    def wait(self, seconds: float) -> None:
        """Let time pass, and settle what comes of it."""
        self.now += seconds
        for link in self.pair.links:
            link.handle_timeout(self.now)
        self.settle()

    def round(self, number: int) -> None:
        """Let both ends say one thing of each kind."""
        if self.stops and number == ROUNDS // 2:
            self.viewer.session.stop(3, self.now)
            self.program.session.stop(1, self.now)
        self.program.session.send(records.Started(number))
        self.viewer.session.send(records.WindowSize(number, 80))
        self.viewer.session.send(records.Signal(f"SIG{number}"))
        for end, channel in ((self.program, 2), (self.program, 3), (self.viewer, 1)):
            if channel not in end.stopped:
                end.session.write(channel, b"line %d on %d\n" % (number, channel))
        self.settle()
        self.wait(0.06)  # TAKEN
        self.wait(5.1)  # PING

    def become_unknown(self) -> None:
        """Let the viewer die, and a new one take its place."""
        self.unknown = True
        self.cut()
        self.settle()

    def run(self) -> Conversation:
        """Have the whole conversation."""
        self.settle()
        for number in range(ROUNDS):
            if self.adopts and number == ROUNDS // 2:
                self.become_unknown()
            self.round(number)
        self.viewer.session.finish(1)
        self.settle()
        for channel in (2, 3):
            self.program.session.finish(channel)
        self.program.session.send(records.Exited(STATUS))
        self.program.session.end(STATUS)
        self.settle()
        return self

    def result(self) -> list[object]:
        """Return all that the two applications have seen."""
        return [
            [end.received, sorted(end.finished), sorted(end.stopped), end.records, end.completed, end.gaps]
            for end in (self.program, self.viewer)
        ]


SCRIPTS = ["program dials", "viewer dials", "stop", "adoption"]
uncut: Callable[[str], Conversation] = functools.cache(lambda script: Conversation(script).run())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_says_everything(script: str) -> None:
    """Without a cut it completes, and ten frames or more of each kind pass in each direction where that can be."""
    whole = uncut(script)
    program, viewer = whole.program, whole.viewer
    assert program.completed == viewer.completed == [STATUS]
    if script != "adoption":  # there the bytes of two links follow each other
        for sent in whole.sent:
            kinds = Counter(frame[0] for frame in split_frames(bytes(sent[16 + 33 + 32 :])))
            assert kinds[FrameType.OPEN] == 1
            assert min(kinds[kind] for kind in (FrameType.DATA, FrameType.TAKEN)) >= ROUNDS
            assert kinds[FrameType.PING] + kinds[FrameType.PONG] >= ROUNDS
    if script == "stop":
        assert (program.stopped, viewer.stopped) == ([3], [1])
    if script == "adoption":
        assert {gap[0] for gap in viewer.gaps} == {0, 2, 3}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("part", range(7))
def test_a_cut_behind_some_bytes(script: str, part: int) -> None:
    """The same result, wherever the link was cut: a sample, seven parts of every 91st byte."""
    check(script, range(13 * part, uncut(script).delivered, 91))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_cut_behind_every_byte(script: str) -> None:
    """The same result, wherever the link was cut: all of them."""
    check(script, range(uncut(script).delivered))


def check(script: str, positions: range) -> None:
    """Compare a conversation that is cut at each of the positions with one that is not."""
    expected = uncut(script).result()
    for position in positions:
        cut = Conversation(script, position).run()
        assert cut.links > uncut(script).links, "there was no cut"
        assert cut.result() == expected, f"cut behind byte {position}"
