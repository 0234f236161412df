"""Lines of many programs on one terminal (viewers.lines), over a real loop and a real pipe."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from sockstream.loop import Loop
from sockstream.streams import Sink
from sockstream.viewers.lines import MAX_HELD, SHOW_UNFINISHED_AFTER, LineSink, Screen

if TYPE_CHECKING:
    from collections.abc import Iterator


class Shown:
    """A screen that is a pipe, and what has been taken of each stream."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(writing, False)
        self.out = Sink(self.loop, writing, lambda error: pytest.fail(str(error)))
        self.screen = Screen()
        self.taken: dict[str, int] = {}

    def stream(self, name: str) -> LineSink:
        """Return a stream with its name as prefix."""
        return LineSink(self.loop, self.out, name.encode() + b"| ", self.screen, timestamps=False)

    def write(self, stream: LineSink, name: str, data: bytes) -> None:
        """Give bytes to a stream and count what is taken."""

        def taken(count: int) -> None:
            self.taken[name] = self.taken.get(name, 0) + count

        stream.write(memoryview(data), taken)

    def go_on(self, seconds: float) -> bytes:
        """Let the loop run, and return what has been shown since the last call."""
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()
        try:
            return os.read(self.reading, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Free everything."""
        self.out.break_off()
        self.loop.close()
        os.close(self.reading)


@pytest.fixture
def shown() -> Iterator[Shown]:
    """A screen of the test's own."""
    screen = Shown()
    yield screen
    screen.close()


def test_whole_lines_of_two_programs_do_not_mix(shown: Shown) -> None:
    """Each line has its program's name; an unfinished one is held back while it may still be finished."""
    one, two = shown.stream("one"), shown.stream("two")
    shown.write(one, "one", b"a\nb")
    shown.write(two, "two", b"x\n")
    shown.write(one, "one", b"c\n")
    assert shown.go_on(0) == b"one| a\ntwo| x\none| bc\n"
    assert shown.taken == {"one": 5, "two": 2}


def test_a_line_that_is_begun_late_has_a_moment_of_its_own(shown: Shown) -> None:
    """The moment for which an unfinished line is held back is not that of the line before."""
    one = shown.stream("one")
    shown.write(one, "one", b"first")
    time.sleep(0.8 * SHOW_UNFINISHED_AFTER)
    shown.write(one, "one", b" line\nsecond")
    assert shown.go_on(0.5 * SHOW_UNFINISHED_AFTER) == b"one| first line\n"
    assert shown.go_on(SHOW_UNFINISHED_AFTER) == b"one| second"


def test_a_prompt_is_shown_and_ended_when_another_speaks(shown: Shown) -> None:
    """What stands unfinished for a moment is shown; its line ends when another program has something to say."""
    one, two = shown.stream("one"), shown.stream("two")
    shown.write(one, "one", b"Name? ")
    assert shown.go_on(2 * SHOW_UNFINISHED_AFTER) == b"one| Name? "
    shown.write(two, "two", b"x\n")
    assert shown.go_on(0) == b"\ntwo| x\n"


def test_a_stream_without_line_ends_is_not_held_for_ever(shown: Shown) -> None:
    """More than 64 KiB are shown at once, and all of it is taken."""
    one = shown.stream("one")
    shown.write(one, "one", bytes(MAX_HELD + 1))
    assert shown.go_on(0).startswith(b"one| \0")
    assert shown.go_on(0.01) is not None
    assert shown.taken["one"] == MAX_HELD + 1


def test_the_last_line_is_ended(shown: Shown) -> None:
    """A stream that ends in the middle of a line does not leave the next program behind it."""
    one = shown.stream("one")
    shown.write(one, "one", b"no newline")
    one.finish()
    assert shown.go_on(0) == b"one| no newline\n"
