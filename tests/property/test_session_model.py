"""The session against plain byte arrays: Hypothesis decides what happens, `World` says what must come of it.

Rules: every rule may come at any time, and does nothing where it makes no sense then. `run_model` is what a mutant
is tried with as well (tests/mutants): the same examples every time, no database, no shrinking.
"""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from session_world import OUTPUT, STREAMS, World

from pair import DIALLER, WAITER, WHOLE

channels = st.sampled_from(STREAMS)
sides = st.sampled_from((DIALLER, WAITER))
written = st.sampled_from((1, 2, 100, 4000, 5000, 30_000, 65_536, 100_000))
moved = st.sampled_from((1, 15, 16, 17, 40, 100, 1000, 16_384, 70_000, WHOLE))
sometimes = st.integers(0, 4).map(lambda number: number == 4)
taken = st.sampled_from((1, 2, 100, 16_384, 40_000, 65_536, WHOLE))


class SessionModel(RuleBasedStateMachine):
    """What may happen to a session.

    Hypothesis leaves some rules out of each story: so there is more than one that writes, and those that end things
    are in earnest only now and then.
    """

    steps = 0

    @initialize(program_dials=st.booleans(), bits=st.tuples(*[st.sampled_from((16, 17))] * 2))
    def begin(self, program_dials: bool, bits: tuple[int, int]) -> None:
        """Start with two ends and a link on its way."""
        self.world = World(program_dials=program_dials, bits=bits)
        self.world.redial()

    @invariant()
    def goes_on(self) -> None:
        """Count the step, and start again where a program has ended."""
        SessionModel.steps += 1
        if self.world.program.completed:
            self.world.conclude()
            self.begin(not self.world.program_dials, (16, 16))

    # ---- applications

    @rule(channel=channels, size=written)
    def write(self, channel: int, size: int) -> None:
        self.world.write(channel, size)

    @rule(channel=channels, sizes=st.lists(written, min_size=1, max_size=5))
    def write_some(self, channel: int, sizes: list[int]) -> None:
        for size in sizes:
            self.world.write(channel, size)

    @rule(size=written, most=moved)
    def write_all_and_exchange(self, size: int, most: int) -> None:
        for channel in STREAMS:
            self.world.write(channel, size)
        self.exchange(most)

    @rule(channel=channels, size=taken)
    def take(self, channel: int, size: int) -> None:
        self.world.take(channel, size)

    @rule(size=taken)
    def take_all(self, size: int) -> None:
        for channel in STREAMS:
            self.world.take(channel, size)

    @rule(channel=channels, in_earnest=sometimes)
    def finish(self, channel: int, in_earnest: bool) -> None:
        if in_earnest:
            self.world.finish(channel)

    @rule(channel=channels, in_earnest=sometimes)
    def stop(self, channel: int, in_earnest: bool) -> None:
        if in_earnest:
            self.world.stop(channel)

    @rule(in_earnest=sometimes)
    def finish_output_and_end(self, in_earnest: bool) -> None:
        if in_earnest:
            for channel in OUTPUT:
                self.world.finish(channel)
            self.world.end()

    @rule(program=st.booleans(), count=st.integers(1, 3))
    def record(self, program: bool, count: int) -> None:
        for _ in range(count):
            self.world.record(self.world.program if program else self.world.viewer)

    @rule(side=sides, count=st.integers(1, 3))
    def say_slowly(self, side: int, count: int) -> None:
        for program in (True, False):
            self.record(program, count)
        self.world.deliver(side, 200, 1)

    @rule(size=written, mosts=st.lists(moved, max_size=4), channel=channels, stops=sometimes)
    def end_among_cuts(self, size: int, mosts: list[int], channel: int, stops: bool) -> None:
        for stream in STREAMS:
            self.world.write(stream, size)
            self.world.finish(stream)
        self.world.end()
        for most in mosts:
            self.exchange(most)
            self.world.cut()
            if stops:
                self.world.stop(channel)
            self.take_all(most)
            self.world.redial()

    # ---- the network

    @rule(side=sides, most=moved)
    def send(self, side: int, most: int) -> None:
        self.world.send(side, most)

    @rule(side=sides, most=moved, piece=moved)
    def deliver(self, side: int, most: int, piece: int) -> None:
        self.world.deliver(side, most, max(piece, most >> 8))

    @rule(most=moved)
    def exchange(self, most: int) -> None:
        for side in (DIALLER, WAITER, DIALLER, WAITER):
            self.world.deliver(side, most)

    @rule(arrives=st.booleans())
    def cut(self, arrives: bool) -> None:
        self.world.cut(arrives=arrives)

    @rule()
    def cut_one_end(self) -> None:
        self.world.cut_one_end()

    @rule(most=moved)
    def arrive_late(self, most: int) -> None:
        self.world.arrive_late(most)

    @rule()
    def redial(self) -> None:
        self.world.redial()

    @rule(arrives=st.booleans())
    def cut_and_redial(self, arrives: bool) -> None:
        self.world.cut(arrives=arrives)
        self.world.redial()

    @rule(most=moved)
    def take_over(self, most: int) -> None:
        self.world.cut_one_end()
        self.world.arrive_late(most)
        self.world.redial()
        self.world.arrive_late(most)

    @rule(arrives=st.booleans())
    def lose_taken(self, arrives: bool) -> None:
        self.take_all(WHOLE)
        self.world.wait(0.06)
        for side in (DIALLER, WAITER):
            self.world.send(side, WHOLE)
        self.world.cut(arrives=arrives)
        self.world.redial()

    @rule(most=moved)
    def restart_viewer(self, most: int) -> None:
        self.world.restart_viewer()
        self.exchange(most)

    # ---- time

    @rule(seconds=st.sampled_from((0.01, 0.06, 1.0, 6.0, 20.0)))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule()
    def stay_quiet(self) -> None:
        self.world.stay_quiet()

    @rule(in_earnest=sometimes)
    def catch_up(self, in_earnest: bool) -> None:
        if in_earnest:
            self.world.catch_up()

    @rule(channel=channels, size=written, in_earnest=sometimes)
    def break_the_silence(self, channel: int, size: int, in_earnest: bool) -> None:
        if in_earnest:
            self.world.catch_up()
            self.world.write(channel, size)
            self.world.catch_up()

    def teardown(self) -> None:
        """In the end everything has arrived; where something has gone wrong before, that is what is to be reported."""
        if hasattr(self, "world") and sys.exc_info()[0] is None:
            self.world.conclude()


def run_model(examples: int, steps: int, *, phases: tuple[Phase, ...] = (Phase.generate,), same: bool = True) -> int:
    """Run the model for so many stories of so many steps each; return how many steps there were.

    same: the same stories in every run.
    """
    SessionModel.steps = 0
    run_state_machine_as_test(
        SessionModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=same,
            database=None,
            deadline=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return SessionModel.steps


EXPLAINED = (Phase.generate, Phase.shrink)


def test_the_session_is_its_model() -> None:
    """A thousand steps and more: never a difference."""
    assert run_model(30, 60, phases=EXPLAINED) >= 1000


@pytest.mark.slow
def test_the_session_is_its_model_for_long() -> None:
    """Ten thousand steps and more, in long stories."""
    assert run_model(300, 130, phases=EXPLAINED) >= 10_000


@pytest.mark.soak
def test_the_session_is_its_model_for_hours() -> None:
    """A million steps, others in every run."""
    assert run_model(8000, 200, phases=EXPLAINED, same=False) >= 1_000_000
