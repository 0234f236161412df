"""Many at once, and a system that has run out: the command lives, its sessions go on, new ones come in again."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from certificates import make_authority
from hostile.guest import Guest, client_context, good_client, kind_for
from hostile.victim import WAITING, Victim, dial, is_open, read_to_end, send_all, waiting_address
from sockstream.records import Exited
from support import limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BEGINNINGS = {
    "nothing": b"",
    "false proof": b"\x93SKS\r\n\x1a\n\1\0\0\0\x21\0\0\0\1" + bytes(64),
    "half a tls hello": b"\x16\x03\x01\x02\x00noise",
}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets the connection


@contextlib.contextmanager
def few_descriptors(process: Victim, spare: int) -> Iterator[None]:
    """Let a running command open only so many descriptors more."""
    process.settled()
    opened = set(map(int, os.listdir(f"/proc/{process.pid}/fd")))
    free = (number for number in itertools.count() if number not in opened)
    most = next(itertools.islice(free, spare, None))
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (most, before[1]))
    yield
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize(
    "scheme", ["sock", *(pytest.param(s, marks=pytest.mark.slow) for s in ("sock+tls", "sock+unix"))]
)
def test_without_descriptors_sessions_go_on_and_accepting_comes_back(name: str, scheme: str, tmp_path: Path) -> None:
    """Strangers take the last descriptor: a session that lives does not notice, and when they are gone others come."""
    with Victim(name, waiting_address(scheme, tmp_path), tmp_path) as victim, contextlib.ExitStack() as stack:
        good_client(victim, seconds=20)
        with victim.no_leaks(), Guest(victim.address, kind_for(victim)) as guest:
            guest.open().exchange()
            with few_descriptors(victim, 3):
                strangers = [stack.enter_context(dial(victim.address)) for _ in range(20)]
                victim.wait_for_message(b"Too many open files; connections have to wait")
                for _ in range(5):
                    guest.exchange()
                    time.sleep(0.05)
            stack.close()
            assert strangers
            guest.end()
            good_client(victim, seconds=2)
        assert len([line for line in victim.lines if b"Too many open files" in line]) <= 2, victim.lines


@pytest.mark.parametrize("name", WAITING)
def test_without_descriptors_the_oldest_stranger_goes(name: str, tmp_path: Path) -> None:
    """So strangers cannot keep a good client out for their ten seconds, although 64 of them never come to be."""
    with Victim(name, "sock://127.0.0.1:0", tmp_path) as victim, contextlib.ExitStack() as stack:
        good_client(victim, seconds=20)
        with few_descriptors(victim, 8):
            strangers = [stack.enter_context(dial(victim.address)) for _ in range(12)]
            victim.wait_for_message(b"Too many open files")
            with Guest(victim.address, kind_for(victim)) as guest:
                started = time.monotonic()
                guest.open()
                assert time.monotonic() - started < limit(5)
                if name == "listen":
                    guest.exchange()
                    guest.end()
                else:  # a program needs more of them, and is told to be what fails
                    guest.go_on(lambda: any(isinstance(event, Exited) for event in guest.happened))
                    assert b"cannot start 'cat': Too many open files" in victim.stderr
            assert not is_open(strangers[0])


def test_without_descriptors_tls_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    """The first TLS hello at a `sock://` end needs modules, and those descriptors; it can do without one peer."""
    with Victim("serve", "sock://127.0.0.1:0", tmp_path) as victim:
        good_client(victim, seconds=20)
        with few_descriptors(victim, 1), dial(victim.address) as sock:
            send_all(sock, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
            assert read_to_end(sock) == b""
            assert b"Too many open files" in victim.wait_for_line_about("127.0.0.1")
        good_client(victim)
        good_client(victim, tls=True, seconds=20)
        victim.assert_unharmed()


@pytest.mark.parametrize("name", WAITING)
def test_wrong_tokens_without_descriptors(name: str, tmp_path: Path) -> None:
    """Also the first peer and the first refusal of all, which have things to load, end nothing but themselves."""
    with Victim(name, "sock://127.0.0.1:0", tmp_path) as victim:
        victim.wait_for_message(b"listening")
        with few_descriptors(victim, 1), dial(victim.address) as sock:
            send_all(sock, b"\x93SKS\r\n\x1a\n\1\0\0\0\x21\0\0\0\1" + bytes(64))
            assert read_to_end(sock)[49:] in (b"", bytes(32))
        good_client(victim, seconds=2)
        victim.assert_unharmed()


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("scheme", ["sock", "sock+tls"])
def test_peers_that_reset_behind_their_first_bytes(name: str, scheme: str, tmp_path: Path) -> None:
    """What has come of them is still there to be read, but they have no address any more, and cannot be answered."""
    with Victim(name, waiting_address(scheme, tmp_path), tmp_path) as victim:
        good_client(victim, seconds=20, tls=True)  # it has loaded what it needs
        with victim.no_leaks():
            for data in (b"x", *filter(None, BEGINNINGS.values())):
                for _ in range(15):
                    reset(victim, data)
            victim.assert_unharmed()
            good_client(victim)


def reset(victim: Victim, data: bytes) -> None:
    """Connect, give it a moment to accept, say something and reset the connection right behind that."""
    sock = dial(victim.address)
    time.sleep(0.002)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    send_all(sock, data)
    sock.close()


# ---- raw addresses, where nobody is asked who he is


@pytest.mark.parametrize("name", WAITING)
def test_peers_that_are_gone_at_once(name: str, tmp_path: Path) -> None:
    """Connections that are reset while they wait to be accepted, or right behind it, end nothing but themselves."""
    with Victim(name, "tcp://127.0.0.1:0", tmp_path, program=("true",)) as victim:
        victim.wait_for_message(b"listening")
        for turn in range(30):
            batch = [dial(victim.address) for _ in range(16)]
            time.sleep(turn % 5 / 2000)
            for sock in batch:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
            assert victim.process.poll() is None, victim
        wait_until(lambda: victim.descriptors() < 20, 10, "the rest of them to be gone")
        victim.assert_unharmed()


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_once_is_once_also_for_five_at_a_time(scheme: str, tmp_path: Path) -> None:
    """Of those who wait to be accepted together, one gets the program, which is started once."""
    with Victim(
        "serve", waiting_address(scheme, tmp_path), tmp_path, "--once", program=("sh", "-c", "echo hi; cat")
    ) as victim:
        where = victim.address
        os.kill(victim.pid, signal.SIGSTOP)
        peers = [dial(where) for _ in range(5)]
        os.kill(victim.pid, signal.SIGCONT)
        try:
            assert peers[0].recv(10) == b"hi\n"
            time.sleep(0.2)  # the others' programs would have said so by now
            assert all(map(is_open, peers[1:]))
            peers[0].shutdown(socket.SHUT_WR)
            assert victim.wait() == 0
        finally:
            for peer in peers:
                peer.close()


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_programs_than_may_run(most: int, tmp_path: Path) -> None:
    """Raw peers beyond `--max` wait in the backlog until a program has ended."""
    options = ("--max", str(most))
    with Victim("serve", "tcp://127.0.0.1:0", tmp_path, *options, program=("sh", "-c", "echo hi; cat")) as victim:
        where = victim.address
        os.kill(victim.pid, signal.SIGSTOP)
        peers = [dial(where) for _ in range(6)]
        os.kill(victim.pid, signal.SIGCONT)
        try:
            for peer in peers[:most]:
                assert peer.recv(10) == b"hi\n"
            time.sleep(0.2)
            assert all(map(is_open, peers[most:]))
            for peer in peers:
                peer.shutdown(socket.SHUT_WR)
            for peer in peers[most:]:
                assert peer.recv(10) == b"hi\n"
        finally:
            for peer in peers:
                peer.close()


@pytest.mark.parametrize("name", WAITING)
def test_once_is_once_also_in_tls(name: str, tmp_path: Path) -> None:
    """Of several in their TLS handshake one becomes the peer; the others are closed."""
    _, certificate, key = make_authority(tmp_path)
    options = ("--once", "--tls-cert", certificate, "--tls-key", key)
    with Victim(name, "tls://127.0.0.1:0", tmp_path, *options, program=("sh", "-c", "echo hi; cat")) as victim:
        sockets = [dial(victim.address) for _ in range(3)]
        try:
            wrapped = [client_context(None).wrap_socket(sock, do_handshake_on_connect=False) for sock in sockets]
            for sock in wrapped:
                with contextlib.suppress(OSError):
                    sock.do_handshake()
            if name == "serve":
                assert wrapped[0].recv(10) == b"hi\n"
            for sock in wrapped[1:]:
                assert read_to_end(sock) == b""
            assert victim.process.poll() is None
        finally:
            for sock in wrapped:
                sock.close()


# ---- many, one after the other


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["sock", "sock+tls"])
@pytest.mark.parametrize("data", BEGINNINGS.values(), ids=BEGINNINGS)
def test_two_thousand_strangers_leave_nothing(scheme: str, data: bytes, tmp_path: Path) -> None:
    """Neither memory nor descriptors, however they begin; the log has at most a line a second."""
    with Victim("serve", waiting_address(scheme, tmp_path), tmp_path) as victim:
        good_client(victim, seconds=20)
        storm(victim, data, 200)
        started, before = time.monotonic(), len(victim.lines)
        with victim.no_leaks():
            storm(victim, data, 2000)
        assert len(victim.lines) - before <= 2 + (time.monotonic() - started)
        good_client(victim)


def storm(victim: Victim, data: bytes, count: int) -> None:
    """Have strangers come and go, fifty at a time."""
    for _ in range(count // 50):
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                send_all(stack.enter_context(dial(victim.address)), data)
