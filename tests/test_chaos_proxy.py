"""The relay that breaks links does it where it says, and nowhere else."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import pytest

from chaos.proxy import parse
from chaos.running import Relay
from chaos.triggers import DOWN, UP, AfterBytes, AtFrame, Frames, Never, Plan
from helper_program import pattern
from support import limit, wait_until

GREETING = bytes(12) + struct.pack("<HH", 40, 0) + bytes(40) + bytes(32)
END = struct.pack("<BBHIQ", 2, 0, 0, 3, 0) + b"\x05xy"
DATA = struct.pack("<BBHIQ", 2, 0, 2, 5, 0) + b"\x05abcd"
GOAWAY = struct.pack("<BBHIQ", 8, 0, 0, 1, 0) + b"\x06"


class Ends:
    """A listener as the target, and what dials it through a relay."""

    def __init__(self, path: Path | None) -> None:
        self.family = socket.AF_UNIX if path else socket.AF_INET
        self.target = socket.socket(self.family)
        self.target.bind(str(path / "target") if path else ("127.0.0.1", 0))
        self.target.listen()
        self.target.settimeout(limit(10))
        self.front = str(path / "front") if path else "127.0.0.1:0"

    @property
    def target_name(self) -> str:
        """Where the target listens, as the relay takes it."""
        name = self.target.getsockname()
        return name if isinstance(name, str) else f"{name[0]}:{name[1]}"

    def dial(self, relay: Relay) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a link through the relay."""
        client = socket.socket(self.family)
        try:
            client.connect(parse(relay.address))  # before the time-out is set: with one, connect() itself sees a reset
        except OSError:
            client.close()
            raise
        client.settimeout(limit(10))
        server, _ = self.target.accept()
        server.settimeout(limit(10))
        return client, server


@pytest.fixture(params=["tcp", "unix"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Ends:
    """A target over TCP, and one over a Unix socket."""
    made = Ends(tmp_path if request.param == "unix" else None)
    request.addfinalizer(made.target.close)
    return made


def read_all(sock: socket.socket) -> bytes:
    """Read until the end of file or a reset."""
    pieces = []
    try:
        while piece := sock.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pieces.append(b"<reset>")
    return b"".join(pieces)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read so many bytes."""
    received = b""
    while len(received) < count and (piece := sock.recv(count - len(received))):
        received += piece
    return received


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 1000])
def test_frames_are_found_however_they_are_cut(size: int) -> None:
    """Each frame is found once, at its place, with its names, in pieces of any size."""
    stream = GREETING + DATA + END + GOAWAY
    frames, found = Frames(), []
    for position in range(0, len(stream), size):
        for names, start, stop in frames.feed(stream[position : position + size]):
            found.append((names, position + start, position + stop))
    first, second, third = len(GREETING), len(GREETING + DATA), len(GREETING + DATA + END)
    assert found == [
        (("DATA",), first, second),
        (("DATA", "END"), second, third),
        (("GOAWAY",), third, third + len(GOAWAY)),
    ]


@pytest.mark.parametrize(
    ("name", "number", "before", "passes"),
    [
        ("GOAWAY", 1, True, GREETING + DATA + END),
        ("END", 1, False, GREETING + DATA + END),
        ("DATA", 2, True, GREETING + DATA),
        ("DATA", 1, False, GREETING + DATA),
    ],
)
@pytest.mark.parametrize("size", [7, 16, 1000])
def test_a_trigger_cuts_beside_its_frame(name: str, number: int, before: bool, passes: bytes, size: int) -> None:
    """What passes ends at the frame, or behind it; of a header in pieces the first ones may have passed."""
    trigger = AtFrame(UP, name, number, before=before)
    stream, passed = GREETING + DATA + END + GOAWAY, b""
    for position in range(0, len(stream), size):
        piece = stream[position : position + size]
        assert trigger.cut(DOWN, piece) is None
        cut = trigger.cut(UP, piece)
        passed += piece[:cut]
        if cut is not None:
            break
    assert passed[: len(passes)] == passes
    assert len(passed) - len(passes) <= (16 if before and size < 1000 else 0)


def test_a_trigger_strikes_behind_the_last_byte() -> None:
    """The strike comes with the byte that completes the count, not with the one after it; 0 is at once."""
    assert AfterBytes(UP, 0).cut(UP, b"") == 0
    trigger = AfterBytes(UP, 3)
    assert [trigger.cut(UP, b""), trigger.cut(UP, b"ab"), trigger.cut(UP, b"c")] == [None, None, 1]


def test_a_seed_gives_the_same_places() -> None:
    """Two plans with one seed strike alike; links to skip and those beyond `times` are left alone."""

    def places(seed: int) -> list[object]:
        plan = Plan(random.Random(seed), "reset", low=0, high=999, skip=1, times=3)
        made = []
        for _ in range(5):
            made.append(trigger := plan.next_link())
            if isinstance(trigger, AfterBytes):
                plan.struck()
        return [None if isinstance(t, Never) else sorted(vars(t).items()) for t in made]

    assert places(5) == places(5) != places(6)
    assert [place is None for place in places(5)] == [True, False, False, False, True]


def test_it_relays_both_ways_and_half_closes(ends: Ends) -> None:
    """Bytes arrive as they are; the end of one direction is passed on while the other goes on."""
    data = pattern(1 << 20)
    with Relay(ends.front, ends.target_name) as relay:
        client, server = ends.dial(relay)
        with client, server:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"question"
            for position in range(0, len(data), 65536):  # a piece that fits into the buffers between us
                server.sendall(data[position : position + 65536])
                assert read_exactly(client, 65536) == data[position : position + 65536]
            server.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        wait_until(lambda: b"link 1 ended: 8 bytes up, 1048576 bytes down" in relay.stdout, 10, "the end of the link")
        assert (relay.links, relay.strikes) == (1, 0)


@pytest.mark.parametrize("count", [0, 1, 100_000])
def test_it_resets_behind_the_byte(ends: Ends, count: int) -> None:
    """So many bytes arrive and no more, both ends are broken, the next link is left alone as `times` says."""
    options = ("--after", count, "--direction", "up", "--times", 1)
    with Relay(ends.front, ends.target_name, *options) as relay:
        client, server = ends.dial(relay)
        with client, server:
            if count:
                client.sendall(pattern(count + 1000))
            received = read_all(server)
            assert received.removesuffix(b"<reset>") == pattern(count)
            read_all(client)  # it ends
        client, server = ends.dial(relay)
        with client, server:
            client.sendall(b"alive")
            assert server.recv(5) == b"alive"
        assert (relay.links, relay.strikes) == (2, 1)


def test_a_reset_over_tcp_is_one() -> None:
    """Both ends of a TCP link get ECONNRESET, and an end's own reset is passed on."""
    ends = Ends(None)
    with ends.target, Relay(ends.front, ends.target_name, "--after", 5, "--direction", "down", "--times", 1) as relay:
        client, server = ends.dial(relay)
        with client, server:
            server.sendall(b"hello")
            assert read_all(server) == b"<reset>"
            assert read_all(client) == b"hello<reset>"
        client, server = ends.dial(relay)
        with client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()
            assert read_all(client) == b"<reset>"


def test_commands_break_one_side_or_none(ends: Ends) -> None:
    """`reset-client` leaves the waiting end in the dark, `silence` both; `refuse` and `accept` do what they say."""
    with Relay(ends.front, ends.target_name) as relay:
        client, server = ends.dial(relay)
        with client, server:
            relay.command("reset-client")
            assert read_all(client) in (b"", b"<reset>")
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(1)
        client, server = ends.dial(relay)
        with client, server:
            relay.command("silence")
            client.sendall(b"x")
            server.setblocking(False)
            client.setblocking(False)
            for sock in client, server:
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
        relay.command("refuse")
        with pytest.raises(ConnectionRefusedError):
            ends.dial(relay)
        relay.command("accept")
        client, server = ends.dial(relay)
        client.close()
        server.close()
