"""Two ends of a session, the links between them, and beside them what must come of it: plain byte arrays.

Rules: `World` has one method for each thing that may happen, and each checks what must hold after it; nothing is
random here. It is used by the state machine of test_session_model.py and, with it, against every mutant.

What must hold: each byte once, in order, up to the end of file; a sender forgets only what the receiver's application
has taken; nobody holds more than a window of what is not taken; Completed only when all is taken; a new viewer misses
only what earlier viewers had taken; and, when all have caught up, nothing is missing.
"""

from __future__ import annotations

import random

from pair import DIALLER, STATUS, WAITER, WHOLE, Application, Pair, accept, program_session, viewer_session
from sockstream import records
from sockstream.errors import ConnectionLost
from sockstream.frames import Channel, FrameType
from sockstream.link import LinkState
from sockstream.session import State

STREAMS = (Channel.STDIN, Channel.STDOUT, Channel.STDERR)
OUTPUT = (Channel.STDOUT, Channel.STDERR)
NOISE = random.Random(1).randbytes(1 << 18) * 2


class World:
    """A program, a viewer, their links, and the truth.

    program_dials: who makes the connections; bits: log2 of the windows that program and viewer grant.
    """

    def __init__(self, *, program_dials: bool = True, bits: tuple[int, int] = (16, 16)) -> None:
        self.now = 100.0
        self.program_dials = program_dials
        self.viewer_bits = bits[1]
        self.program = Application(program_session(bits[0]), takes=False)
        self.viewer = Application(viewer_session(bits[1]), takes=False)
        self.written: dict[int, bytearray] = {channel: bytearray() for channel in STREAMS}
        self.said: dict[Application, list[bytes]] = {self.program: [], self.viewer: []}
        self.checked = dict.fromkeys(STREAMS, 0)
        self.taken_before = dict.fromkeys(STREAMS, 0)  # by viewers that are gone
        self.refused: dict[int, int] = {}  # channel -> bytes received when its receiver said STOP
        self.input_over = False  # an earlier viewer has ended stdin
        self.ended = False
        self.pair: Pair | None = None
        self.half_open: Pair | None = None  # the dialling end has left it, the waiting one does not know
        self.number = 0
        self._noise = 0
        self._adopting = False

    # ---- what there is

    def sender(self, channel: int) -> Application:
        """Return the end that sends a channel."""
        return self.viewer if channel == Channel.STDIN else self.program

    def receiver(self, channel: int) -> Application:
        """Return the end that receives a channel."""
        return self.program if channel == Channel.STDIN else self.viewer

    def begins(self, channel: int) -> int:
        """Return the offset at which the receiver's application began: a new viewer's GAP."""
        return next((gap[2] for gap in self.receiver(channel).gaps if gap[0] == channel), 0)

    def taken(self, channel: int) -> int:
        """Return up to which offset applications have taken a channel."""
        receiver = self.receiver(channel)
        if channel in self.refused:
            return len(self.written[channel])
        mine = self.begins(channel) + len(receiver.received[channel]) - receiver.untaken[channel]
        return max(mine, self.taken_before[channel])

    # ---- what the applications do

    def write(self, channel: int, size: int) -> None:
        """Write so many bytes, unless far more than a window waits already or the channel takes no more."""
        outgoing = self.sender(channel).session.outgoing[channel]
        if outgoing.finished or outgoing.end - outgoing.sent > 3 * outgoing.window or self.input_over_for(channel):
            return
        self._noise = (self._noise + 7919) % (1 << 18)
        data = NOISE[self._noise : self._noise + size]
        self.sender(channel).session.write(channel, data)
        self.written[channel] += data
        self.check()

    def input_over_for(self, channel: int) -> bool:
        """Is this the stdin that an earlier viewer has ended?"""
        return channel == Channel.STDIN and self.input_over

    def finish(self, channel: int) -> None:
        """End a channel."""
        self.sender(channel).session.finish(channel)
        self.check()

    def take(self, channel: int, count: int) -> int:
        """Take so many bytes of a channel, if there are."""
        receiver = self.receiver(channel)
        count = min(count, receiver.untaken[channel])
        if count:
            receiver.take(channel, count, self.now)
            receiver.absorb(self.now)
            self.check()
        return count

    def stop(self, channel: int) -> None:
        """Want no more of a channel."""
        receiver = self.receiver(channel)
        receiver.session.stop(channel, self.now)
        receiver.absorb(self.now)
        receiver.untaken[channel] = 0
        self.refused.setdefault(channel, len(receiver.received[channel]))
        self.check()

    def record(self, end: Application) -> None:
        """Send a control record; a number in it tells it from all others, of which there may be a thousand."""
        if len(self.said[end]) > 1000:
            return
        number = self._noise = self._noise + 1
        record = records.Started(number) if end is self.program else records.WindowSize(number >> 16, number & 65535)
        end.session.send(record)
        self.said[end].append(record.encode())

    def end(self) -> None:
        """End the program, if its output has ended."""
        outgoing = self.program.session.outgoing
        if not self.ended and all(outgoing[channel].finished for channel in OUTPUT):
            self.ended = True
            self.program.session.end(STATUS)

    # ---- what the network does

    def send(self, side: int, most: int) -> None:
        """Let the kernel of a side take some bytes."""
        if self.pair:
            self.pair.send(side, self.now, most)

    def deliver(self, side: int, most: int, piece: int = WHOLE) -> None:
        """Let the other side read some of what a side has to say."""
        if self.pair:
            self.now += 0.001  # so that a round trip has a length, and windows may grow
            missing = most - len(self.pair.wires[side])
            if missing > 0:
                self.pair.send(side, self.now, missing)
            self.pair.deliver(side, self.now, most, piece)
            self.check()

    def cut(self, *, arrives: bool = False) -> None:
        """Break the link for both ends; what is under way is lost, or arrives before."""
        if self.pair:
            if arrives:
                for side in (DIALLER, WAITER):
                    self.pair.deliver(side, self.now)
            self.pair.cut(self.now)
            self.pair = None
        self.forget_half_open()
        self.check()

    def cut_one_end(self) -> None:
        """Break the link so that only the dialling end notices; what it has sent may still arrive at the other."""
        if self.pair and self.pair.links[WAITER].session is not None:
            self.forget_half_open()
            self.half_open, self.pair = self.pair, None
            self.half_open.wires[WAITER].clear()
            dialler = self.half_open.ends[DIALLER].session
            dialler.detach(self.half_open.links[DIALLER])
            self.check()

    def forget_half_open(self) -> None:
        """The waiting end notices at last."""
        if self.half_open:
            self.half_open.ends[WAITER].session.detach(self.half_open.links[WAITER])
            self.half_open = None

    def arrive_late(self, most: int) -> None:
        """Bytes that the dialling end had sent before it gave up arrive, though there may be a newer link by now."""
        if self.half_open:
            link = self.half_open.links[WAITER]
            replaced = link.state is LinkState.CLOSED
            before = self.progress()
            self.half_open.deliver(DIALLER, self.now, most)
            assert not replaced or self.progress() == before, "a replaced link fed its session"
            self.check()

    def progress(self) -> list[object]:
        """Return what a link can change at the waiting end, in numbers."""
        session = (self.viewer if self.program_dials else self.program).session
        out = [(o.base, o.sent, o.end) for o in session.outgoing.values()]
        return [out, [(i.expected, i.taken, i.final) for i in session.incoming.values()], session.link, session.state]

    def redial(self) -> None:
        """Dial, if there is no link: the waiting end closes the older one and has answered, which nobody knows yet."""
        if self.pair or self.program.session.state is State.OVER:
            return
        self.number += 1
        ends = (self.program, self.viewer) if self.program_dials else (self.viewer, self.program)
        pair = self.pair = Pair(*ends, self.now, number=self.number, answer=self._answer)
        side = DIALLER
        while pair.links[WAITER].session is None:
            pair.send(side, self.now)
            pair.deliver(side, self.now)
            side = 1 - side
        self.check()

    def _answer(self, pair: Pair, now: float) -> None:
        if self._adopting:
            self._adopting = False
            self._adopt(pair)
        accept(pair, now)
        if self.half_open:
            self._check_farewell(self.half_open)

    def _check_farewell(self, old: Pair) -> None:
        """A replaced link ends with GOAWAY, and stays out of the session's way."""
        link = old.links[WAITER]
        frames = b"".join(link.data_to_send(self.now))
        link.data_sent(len(frames))
        assert frames[-17:] == bytes((FrameType.GOAWAY, 0, 0, 0, 1)) + bytes(11) + b"\4"
        assert link.data_to_send(self.now) == []
        assert link.sending_is_over()
        assert not old.ends[WAITER].session.detach(link)

    def restart_viewer(self) -> None:
        """Let the viewer die and a new process, which knows nothing, take the program over."""
        if self.program_dials and not self.program.completed:
            for channel in OUTPUT:
                self.taken_before[channel] = self.taken(channel)
            self.cut()
            self._adopting = True
            self.redial()

    def _adopt(self, pair: Pair) -> None:
        said = self.said.pop(self.viewer)
        assert said[: len(self.program.records)] == self.program.records
        self.viewer = Application(viewer_session(self.viewer_bits, adopting=pair.links[WAITER].peer), takes=False)
        pair.ends[WAITER] = self.viewer
        self.said[self.viewer] = list(self.program.records)
        stdin = Channel.STDIN
        self.written[stdin] = bytearray(self.program.received[stdin]) if stdin not in self.refused else bytearray()
        self.input_over = self.input_over or stdin in self.program.finished or stdin in self.refused
        for channel in OUTPUT:
            self.checked[channel] = 0
            self.refused.pop(channel, None)

    def wait(self, seconds: float) -> None:
        """Let time pass; a link that is silent for too long breaks."""
        self.now += seconds
        if self.half_open and self.half_open.links[WAITER].state is LinkState.UP:
            try:
                self.half_open.links[WAITER].handle_timeout(self.now)
            except ConnectionLost:
                self.forget_half_open()
        if self.pair:
            try:
                self.pass_time()
            except ConnectionLost:
                self.cut()
        self.check()

    def pass_time(self) -> None:
        """Tell both links of a connection that is up what time it is."""
        assert self.pair
        for link in self.pair.links:
            if link.state is LinkState.UP:
                link.handle_timeout(self.now)

    def stay_quiet(self) -> None:
        """Forty seconds in which nobody has anything to say do not break a link that works."""
        if self.pair:
            self.pair.settle(self.now)
            for _ in range(8):
                self.now += 5.0
                self.pass_time()
                self.pair.settle(self.now)
            self.check()

    # ---- what must hold

    def check(self) -> None:
        """Compare everything that may be looked at now with the truth."""
        for channel in STREAMS:
            self._check_stream(channel)
        for end in (self.program, self.viewer):
            self._check_records(end)
        self._check_completion()

    def _check_stream(self, channel: int) -> None:
        receiver, outgoing = self.receiver(channel), self.sender(channel).session.outgoing[channel]
        truth, got, start = self.written[channel], receiver.received[channel], self.begins(channel)
        if channel in self.refused:
            assert len(got) == self.refused[channel], f"bytes of channel {channel} after STOP"
            return
        assert start <= self.taken_before[channel], f"bytes of channel {channel} that nobody took are skipped"
        if channel in self.sender(channel).stopped:
            del truth[outgoing.end :]
        checked = self.checked[channel]
        assert got[checked:] == truth[start + checked : start + len(got)], f"channel {channel} differs"
        self.checked[channel] = len(got)
        assert receiver.untaken[channel] <= 1 << receiver.session.incoming[channel].bits, "more than a window"
        if channel in receiver.finished and not self.input_over_for(channel):
            assert start + len(got) == len(truth), f"end of channel {channel} before its last byte"
            assert outgoing.finished
        self._check_memory(channel)

    def _check_memory(self, channel: int) -> None:
        session = self.sender(channel).session
        outgoing = session.outgoing[channel]
        kept = sum(len(chunk) for queue in (outgoing._unsent, outgoing._untaken) for chunk in queue)
        said = session.untaken().get(channel, 0)
        assert kept == said or self.program.completed, f"channel {channel} keeps what is taken, or has lost some"
        assert outgoing.end - kept <= max(self.taken(channel), self._own_start(channel)), "acknowledged, not taken"
        assert outgoing.sent - self.taken(channel) <= max(outgoing.window, 0) or channel == Channel.STDIN

    def _own_start(self, channel: int) -> int:
        """What a new viewer has not written itself is not its to keep."""
        return len(self.program.received[channel]) if channel == Channel.STDIN and self.number > 1 else 0

    def _check_records(self, end: Application) -> None:
        other = self.viewer if end is self.program else self.program
        said, got = self.said[other], end.records
        missed = next((gap[2] for gap in end.gaps if gap[0] == Channel.CONTROL), 0)
        first = 0
        while missed > 0 and first < len(said):
            missed -= len(said[first])
            first += 1
        assert missed == 0, "a GAP within a record"
        assert got == said[first : first + len(got)], "records differ"

    def _check_completion(self) -> None:
        assert len(self.program.completed) <= 1
        assert len(self.viewer.completed) <= 1
        if self.viewer.completed:
            assert self.ended
            for channel in OUTPUT:
                assert channel in self.viewer.finished
                assert not self.viewer.untaken[channel], "Completed before all was taken"
        if self.program.completed:
            assert self.viewer.completed, "the program thinks that all was taken"
            assert self.program.completed == self.viewer.completed == [STATUS]

    # ---- the end

    def catch_up(self) -> None:
        """Let everything arrive and be taken; then nothing is missing."""
        self.redial()
        assert self.pair
        for _ in range(1000):
            moved = self.pair.settle(self.now)
            took = sum(self.take(channel, WHOLE) for channel in STREAMS)
            self.now += 0.06
            self.pass_time()
            if not moved and not took and not any(link.data_to_send(self.now) for link in self.pair.links):
                break
        else:
            raise AssertionError("the ends do not come to rest")
        self.check()
        for channel in STREAMS:
            self._check_all_arrived(channel)
        assert len(self.program.records) == len(self.said[self.viewer]), "records of the viewer are missing"

    def _check_all_arrived(self, channel: int) -> None:
        receiver, sender = self.receiver(channel), self.sender(channel)
        if channel in self.refused or self.input_over_for(channel):
            assert channel not in self.refused or channel in sender.stopped, "STOP did not arrive"
        else:
            arrived = self.begins(channel) + len(receiver.received[channel])
            assert arrived == len(self.written[channel]), f"bytes of channel {channel} are missing"
            assert not sender.session.untaken().get(channel), f"channel {channel} is not known to be taken"
        if sender.session.outgoing[channel].finished:
            assert channel in receiver.finished, f"the end of channel {channel} is missing"

    def conclude(self) -> None:
        """End everything that has not ended; all must arrive, and both ends must know that it is over."""
        for channel in STREAMS:
            self.finish(channel)
        self.end()
        self.catch_up()
        assert self.program.completed == self.viewer.completed == [STATUS]
        assert sorted(self.viewer.finished) == list(OUTPUT)
        self.program.session.leave()
        assert self.pair
        self.pair.settle(self.now)
        assert len(self.viewer.gone) == 1
        assert all(link.sending_is_over() for link in self.pair.links)
