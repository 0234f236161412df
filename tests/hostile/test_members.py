"""Peers that own the token and break the rules: their link is closed with one line, the session and the command live.

What a member may do to the program is no matter here; what he may not do is harm the command, or others' sessions.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import pytest

from hostile.guest import GOOD_NEWS, Guest, frame, good_client, kind_for
from hostile.victim import Victim, waiting_address
from sockstream.frames import FrameType
from sockstream.records import End, Kind, Peer
from sockstream.session import Session
from support import limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPEN, DATA, TAKEN, STOP, GAP, PING, PONG, GOAWAY = FrameType
MIB = 1 << 20
_names = (f"guest-{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=["listen", "serve"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """One running command for all attacks on it."""
    directory: Path = tmp_path_factory.mktemp("v")
    with Victim(request.param, waiting_address("sock", directory), directory) as victim:
        good_client(victim, seconds=20)
        yield victim


def guest_of(victim: Victim, session: Session | None = None) -> Guest:
    """Return a peer with a name of its own, whose session is open."""
    return Guest(victim.address, kind_for(victim), name=next(_names), session=session)


def closed_by(guest: Guest) -> None:
    """Wait until the other end has closed the link."""
    guest.sock.settimeout(limit(5))
    while True:
        try:
            if not guest.sock.recv(65536):
                return
        except ConnectionError:
            return


# The sender's own channel is put in place of C: 1 (stdin) for a viewer, 2 (stdout) for a program.
C = 99
BROKEN_RULES = {
    "unknown type 0": (frame(0, 0, 0, 0), b"unknown type 0"),
    "unknown type 9": (frame(9, 0, 0, 0), b"unknown type 9"),
    "unknown type 255": (b"\xff" * 16, b"unknown type 255"),
    "length 2^32-1": (frame(DATA, 0, C, 6, length=(1 << 32) - 1), b"4294967295 bytes"),
    "data over the limit": (frame(DATA, 0, C, 6, length=MIB + 1), b"1048577 bytes"),
    "record over the limit": (frame(DATA, 0, 0, 0, b"\0" * 1025), b"1025 bytes"),
    "goaway over the limit": (frame(GOAWAY, 0, 0, 0, b"\6" + b"x" * 513), b"514 bytes"),
    "goaway without a code": (frame(GOAWAY, 0, 0, 0), b"0 bytes"),
    "taken with a payload": (frame(TAKEN, 20, 0, 0, b"x"), b"1 bytes"),
    "gap of two bytes": (frame(GAP, 0, C, 6, b"\1\1"), b"2 bytes"),
    "open again": (frame(OPEN, 2, 0, 0), b"OPEN where it may not stand"),
    "open over the limit": (frame(OPEN, 2, 0, 0, length=65537), b"65537 bytes"),
    "a flag nobody defined": (frame(DATA, 4, C, 6, b"x"), b"flags 0x4"),
    "an object": (frame(DATA, 2, C, 6, b"x"), b"which carries bytes"),
    "ping on channel 1": (frame(PING, 0, 1, 0), b"on channel 1"),
    "a channel that is not": (frame(DATA, 0, 77, 0, b"x"), b"channel 77"),
    "the objects' channel": (frame(DATA, 0, 4, 0, b"x"), b"channel 4"),
    "data again": (frame(DATA, 0, C, 0, b"x"), b"expected 6"),
    "data too far": (frame(DATA, 0, C, 1 << 40, b"x"), b"expected 6"),
    "data at the end of numbers": (frame(DATA, 0, C, (1 << 64) - 1, b"x"), b"expected 6"),
    "taken what was not sent": (frame(TAKEN, 20, 0, 1 << 50), b"took channel 0 up to"),
    "a smaller window": (frame(TAKEN, 16, 0, 0), b"smaller"),
    "a window of 2^255": (frame(TAKEN, 255, 0, 0), b"window of 2^255"),
    "stop for the control channel": (frame(STOP, 0, 0, 0), b"control channel"),
    "a gap that goes back": (frame(GAP, 0, C, 1, b"\2"), b"goes back"),
    "a gap to the end of numbers": (frame(GAP, 0, C, (1 << 64) - 2, b"\2"), b"goes on at"),
    "an empty record": (frame(DATA, 0, 0, 0), b"control record of 0 bytes"),
}


# The pure core is tested with all of them; here a few are enough for the quick set.
QUICK = {
    "unknown type 9",
    "length 2^32-1",
    "data over the limit",
    "record over the limit",
    "a gap to the end of numbers",
}


@pytest.mark.parametrize("victim", ["listen", pytest.param("serve", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in BROKEN_RULES.items()
    ],
)
def test_a_broken_rule_ends_the_link_and_not_the_session(victim: Victim, attack: bytes, reason: bytes) -> None:
    """The link is closed, the log says why, and over a new link the session goes on where it was."""
    with victim.no_leaks():
        with guest_of(victim) as guest:
            guest.open().exchange()
            guest.flush()
            channel = 1 if victim.name == "serve" else 2
            own = attack[:2] + channel.to_bytes(2, "little") + attack[4:] if attack[2] == C else attack
            guest.sock.sendall(own)
            closed_by(guest)
        with guest_of(victim, guest.session) as again:
            again.received = guest.received
            again.open().exchange(b"still there\n")
            again.end()
    if victim.name == "listen":
        [line] = victim.lines_about(guest.session.me.name)
        assert b"the link is closed: the peer" in line and reason in line, line


# For `listen`, for `serve`.
BAD_RECORDS = {
    "unreadable": ((b"\4\xff", b"unreadable exit status"), (b"\3\1", b"WINSIZE with 1 bytes")),
    "truncated": ((b"\5\xff\xff", b"unreadable END"), (b"\3" + bytes(9), b"WINSIZE with 9 bytes")),
    "false": (
        (End({2: 1 << 60}, GOOD_NEWS).encode(), b"END that does not fit"),
        (End({}, GOOD_NEWS).encode(), b"not for its kind"),
    ),
    "not its own": ((b"\2SIGINT", b"not for its kind"), (b"\1" + bytes(8), b"not for its kind")),
}


@pytest.mark.parametrize("records", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_ends_the_link_and_not_the_session(
    victim: Victim, records: tuple[tuple[bytes, bytes], ...]
) -> None:
    """As any other broken rule; a program is neither ended nor left alone by a viewer that says END."""
    data, reason = records[victim.name == "serve"]
    with victim.no_leaks():
        with guest_of(victim) as guest:
            guest.open().exchange()
            guest.session.write(0, data)
            guest.flush()
            closed_by(guest)
        with guest_of(victim, guest.session) as again:
            again.received = guest.received
            again.open().exchange(b"still there\n")
            again.end()
    if victim.name == "listen":
        [line] = victim.lines_about(guest.session.me.name)
        assert b"the link is closed: the peer" in line and reason in line, line


def test_garbage_after_the_proof_is_told_once(victim: Victim) -> None:
    """64 KiB of anything are one line and one closed link, and a good client beside them does not notice."""
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open().exchange()
        if victim.name == "serve":  # whose log says at most one line a second about its one program
            time.sleep(1.1)
        before = len(victim.lines)
        guest.sock.sendall(b"\xfe" * 65536)
        good_client(victim)
        closed_by(guest)
        wait_until(lambda: len(victim.lines) > before, 5, "a line about it")
        time.sleep(0.2)  # another one would come right behind it
        assert len(victim.lines) == before + 1, victim.lines
        with guest_of(victim, guest.session) as again:
            again.open()
            again.end()


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 400])
def test_a_frame_cut_short_is_a_broken_link(victim: Victim, cut: int) -> None:
    """What had come of it is kept, the rest comes over the next link: nothing is lost or doubled."""
    text = bytes(range(32, 127)) * 10 + b"\n"
    with victim.no_leaks():
        with guest_of(victim) as guest:
            guest.open().exchange()
            channel = 1 if victim.name == "serve" else 2
            guest.sock.sendall(frame(DATA, 0, channel, 6, text)[:cut])
        guest.session.write(channel, text)  # it never learnt that a part had gone
        with guest_of(victim, guest.session) as again:
            outgoing = guest.session.outgoing[channel]
            outgoing.sent += len(text)
            outgoing._untaken.append(outgoing._unsent.popleft())
            again.received = guest.received
            again.open()
            wanted = b"hello\n" + text
            shown = text if victim.name == "listen" else b""
            again.go_on(lambda: shown in victim.stdout and again.received.get(2, wanted) == wanted)
            again.end()


@pytest.mark.parametrize("victim", ["serve"], indirect=True)
def test_a_frame_of_exactly_the_limit_is_taken(victim: Victim) -> None:
    """1,048,576 bytes in one frame come back from `cat`."""
    text = bytes(range(256)) * 4096
    with guest_of(victim) as guest:
        guest.open()
        guest.session.write(1, text)
        guest.go_on(lambda: guest.received.get(2) == text)
        assert frame(DATA, 0, 1, 0, length=MIB) in guest.recorded
        guest.end()


def test_a_record_of_exactly_the_limit_is_taken(victim: Victim) -> None:
    """1,024 bytes of a kind that is not known are taken and ignored."""
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open()
        guest.session.write(0, b"\xee" * 1024)
        guest.exchange()
        guest.end()


def test_a_flood_of_records_is_taken_and_forgotten(victim: Victim) -> None:
    """65,536 bytes of control records at a time, twelve times: no memory, no line; others are served meanwhile."""
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open()
        before = len(victim.lines)
        for _ in range(12):
            for _ in range(64):
                guest.session.write(0, b"\xee" * 1024)
            guest.flush()
            good_client(victim)
            guest.go_on(lambda: guest.session.outgoing[0].base == guest.session.outgoing[0].end)
        guest.end()
        assert len(victim.lines) == before, victim.lines


def test_a_flood_of_empty_frames_is_taken(victim: Victim) -> None:
    """100,000 PINGs are answered by as few PONGs as there were turns; nothing piles up."""
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open()
        for number in range(100):
            guest.sock.sendall(frame(PING, 0, 0, number) * 1000)
            guest.receive(0.01)
        good_client(victim)
        guest.exchange()
        guest.end()


RUBBISH = [
    b"",
    b"\0",
    b"SIG",
    b"SIG_DFL",
    b"SIGNAL",
    b"signal",
    b"SIGKILL\0",
    b"__class__",
    b"\xff\xfe",
    b"9",
    b"x" * 1000,
]


@pytest.mark.parametrize("victim", ["serve"], indirect=True)
def test_rubbish_for_a_signal_is_ignored(victim: Victim) -> None:
    """The program lives on, and the log says nothing."""
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open()
        before = victim.lines
        for name in RUBBISH:
            guest.session.write(0, b"\2" + name)
        guest.exchange()
        guest.end()
        assert victim.lines == before


def test_the_wrong_kind_is_refused_also_where_the_session_is_known(victim: Victim) -> None:
    """A program cannot take the place of a viewer, or the other way round; the real one goes on undisturbed."""
    wrong = Kind.PROGRAM if victim.name == "serve" else Kind.VIEWER
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open().exchange()
        with Guest(victim.address, wrong, session=Session(Peer(wrong, session=guest.session.me.session))) as other:
            other.open()
            assert [type(event).__name__ for event in other.happened] == ["GoneAway"]
            assert other.happened[0].code == 1
        guest.exchange()
        guest.end()


@pytest.mark.parametrize("victim", ["listen"], indirect=True)
@pytest.mark.parametrize("grace", [float("inf"), 2.0**60, 86400 * 25.0, 0.0])
def test_any_offer_of_grace_is_lived_with(victim: Victim, grace: float) -> None:
    """A link that breaks where the peer promised to come back for centuries does not end the command."""
    with victim.no_leaks():
        with guest_of(victim) as guest:
            guest.session.me.grace = grace
            guest.open().exchange()
        if grace:
            time.sleep(0.1)  # it waits for the peer now
            victim.assert_unharmed()
            with guest_of(victim, guest.session) as again:
                again.open()
                again.end()
        good_client(victim)


@pytest.mark.parametrize("victim", ["listen"], indirect=True)
@pytest.mark.parametrize("wants", [(1 << 63), (1 << 64) - 2, (1 << 64) - 1])
def test_impossible_offsets_of_a_session_to_adopt(victim: Victim, wants: int) -> None:
    """A program that comes back and wants stdin from the end of numbers on is refused."""
    with victim.no_leaks():
        with guest_of(victim) as guest:
            guest.session.peer = Peer(Kind.VIEWER)  # so that its OPEN says RESUME
            guest.session.incoming[1].expected = wants
            with pytest.raises((EOFError, ConnectionError)):
                guest.open()
        good_client(victim)


NAMES = {
    "escapes": "\x1b[2J\x1b]0;owned\x07red\x1b[31m",
    "lines": "cat ended with status 0\nsockstream: listening on tcp://0.0.0.0:1\r\n",
    "bidi": "txt.\u202eexe",
    "long": "n" * 60000,
    "nul": "a\0b",
}


@pytest.mark.parametrize("victim", ["listen"], indirect=True)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_programs_name_is_escaped_and_short(victim: Victim, name: str) -> None:
    """In front of its lines as well as in messages: no control character, no line of its own, no page of text."""
    from sockstream.notices import escape

    out, err = len(victim.stdout), len(victim.stderr)
    with Guest(victim.address, Kind.PROGRAM, name=name) as guest:
        guest.open().exchange()
        guest.end()
    wait_until(lambda: victim.stderr[err:].endswith(b" ended with status 0\n"), 5, "its end")
    shown = escape(name)[:64].encode()
    assert victim.stdout[out:] == shown + b"| hello\n"
    lines = victim.stderr[err:].split(b"\n")
    assert lines == [b"sockstream: " + shown + b" is attached", b"sockstream: " + shown + b" ended with status 0", b""]


@pytest.mark.parametrize("victim", ["serve", "listen"], indirect=True)
def test_what_a_peer_says_on_leaving_is_escaped(victim: Victim) -> None:
    """GOAWAY's text is one line of ours, without its escapes."""
    with victim.no_leaks(), guest_of(victim) as guest:
        guest.open().exchange()
        guest.flush()
        before = len(victim.stderr)
        guest.send_frame(GOAWAY, payload=b"\6so long\x1b[2J\nsockstream: all is well\r\x9b1m")
        wait_until(lambda: b"so long" in victim.stderr[before:], 5, "its farewell")
        said = victim.stderr[before:]
    assert b"so long\\x1b[2J\\nsockstream: all is well\\r" in said
    assert said.count(b"\n") == 1 and b"\x1b" not in said and b"\x9b" not in said and b"\r" not in said
