"""What is told on stderr: whole lines, without a peer's control characters, and never a flood."""

from __future__ import annotations

import os
import socket
import time
import unicodedata

import pytest

from sockstream.notices import Notices, escape


class Stderr:
    """Descriptor 2 within a block: one datagram for each write, so that it shows what was written at once."""

    def __enter__(self) -> Stderr:
        self._kept = os.dup(2)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        os.dup2(theirs.fileno(), 2)
        theirs.close()
        return self

    def writes(self) -> list[bytes]:
        """Return what was written since the last call, each write on its own."""
        found = []
        while True:
            try:
                found.append(self._ours.recv(1 << 17))
            except BlockingIOError:
                return found

    def __exit__(self, *exc_info: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)
        self._ours.close()


# ---- escaping


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ümlauts and 日本語 and 🙂", "plain, with ümlauts and 日本語 and 🙂"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("two\nlines\r\nand\ttabs\0", "two\\nlines\\r\\nand\\ttabs\\x00"),
        ("\x9b1m \x85", "\\x9b1m \\x85"),
        ("a\u202etxt.exe \u2028 \u200b \ufeff", "a\\u202etxt.exe \\u2028 \\u200b \\ufeff"),
        ("\ud800 \udcff", "\\ud800 \\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("", ""),
    ],
)
def test_escapes_are_made_visible(text: str, shown: str) -> None:
    """Ordinary text stays; what moves a cursor, ends a line or turns the direction is spelt out."""
    assert escape(text) == shown


def test_nothing_that_controls_anything_is_left() -> None:
    """Of all common characters and the tags, those that pass are letters, marks, numbers, signs and the plain space."""
    passed = escape("".join(map(chr, (*range(0x11000), *range(0xE0000, 0xE0200)))))
    assert {unicodedata.category(c)[0] for c in passed} <= set("LMNPSZ")
    assert {c for c in passed if unicodedata.category(c)[0] == "Z"} == {" "}


# ---- lines


def test_a_notice_is_one_line_and_one_write() -> None:
    """So lines of several processes on one terminal do not mix."""
    with Stderr() as stderr:
        Notices().say("first\nsecond " + "x" * 5000)
        assert stderr.writes() == [b"sockstream: first\\nsecond " + b"x" * 5000 + b"\n"]


@pytest.mark.parametrize(
    ("verbosity", "said"),
    [(0, ["error"]), (1, ["error", "say"]), (2, ["error", "say", "detail"]), (3, ["error", "say", "detail", "frame"])],
)
def test_weights(verbosity: int, said: list[str]) -> None:
    """-q leaves errors, -v adds details, -vv frames."""
    with Stderr() as stderr:
        notices = Notices(verbosity)
        notices.error("error")
        notices.say("say")
        notices.detail("detail")
        trace = notices.tracer()
        if trace is not None:
            trace("frame")
        assert stderr.writes() == [f"sockstream: {word}\n".encode() for word in said]


def test_a_closed_or_broken_stderr_is_no_error() -> None:
    """There is nobody left to tell."""
    with Stderr():
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)
        Notices().error("to nobody")
        os.close(2)
        Notices().error("to nothing")


# ---- about peers


SAME = [
    ("127.0.0.1:1", "127.0.0.1:65535"),
    ("[::1]:1", "[::1]:2"),
    ("[fe80::1%eth0]:1", "[fe80::1%eth0]:2"),
    ("process 17 of uid 1000", "process 18 of uid 1000"),
]
OTHER = [
    ("127.0.0.1:1", "127.0.0.2:1"),
    ("[::1]:1", "[::2]:1"),
    ("127.0.0.1:1", "[::1]:1"),
    ("process 17 of uid 1000", "process 17 of uid 0"),
]


@pytest.mark.parametrize(("one", "another"), SAME)
def test_one_line_about_an_address(one: str, another: str) -> None:
    """Port and process do not count."""
    with Stderr() as stderr:
        notices = Notices()
        notices.about_peer(one, "first")
        notices.about_peer(another, "again")
        assert stderr.writes() == [f"sockstream: {one}: first\n".encode()]


def test_after_a_second_there_is_room_for_another_line() -> None:
    """However often something was to be said meanwhile."""
    with Stderr() as stderr:
        notices, started = Notices(), time.monotonic()
        while time.monotonic() < started + 0.9:
            notices.about_peer("127.0.0.1:1", "first")
        time.sleep(0.2)
        notices.about_peer("127.0.0.1:2", "later")
        assert stderr.writes() == [b"sockstream: 127.0.0.1:1: first\n", b"sockstream: 127.0.0.1:2: later\n"]


@pytest.mark.parametrize(("one", "another"), OTHER)
def test_addresses_do_not_silence_each_other(one: str, another: str) -> None:
    """Noise from one hides nothing about another."""
    with Stderr() as stderr:
        notices = Notices()
        notices.about_peer(one, "refused")
        notices.about_peer(another, "refused")
        assert stderr.writes() == [f"sockstream: {peer}: refused\n".encode() for peer in (one, another)]


def test_what_is_said_of_peers_is_escaped_and_silenced_as_all_else() -> None:
    """-q silences it, and neither the name nor the text can end the line."""
    with Stderr() as stderr:
        Notices(0).about_peer("127.0.0.1:1", "refused")
        assert stderr.writes() == []
        Notices().about_peer("name\x1b[1m\n:1", "text\r\x07")
        assert stderr.writes() == [b"sockstream: name\\x1b[1m\\n:1: text\\r\\x07\n"]


def test_many_addresses_take_no_memory() -> None:
    """What is remembered of addresses is bounded, though somebody has a whole network of them."""
    with Stderr() as stderr:
        import tracemalloc

        notices = Notices(0)
        tracemalloc.start()
        try:
            for number in range(20000):
                notices.about_peer(f"[2001:db8::{number:x}]:1", "refused")
            current, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert current < 1 << 20
        assert stderr.writes() == []
