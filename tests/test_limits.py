"""What a stranger may take before he has said who he is: ten seconds, 4096 bytes, a place among 64 (16 from afar)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest

from hostile.guest import Guest, client_context, dial_link, good_client, kind_for, prove
from hostile.victim import (
    WAITING,
    Victim,
    dial,
    is_open,
    own_address,
    own_source,
    read_to_end,
    send_all,
    trickle,
    waiting_address,
)
from sockstream.handshake import MAGIC
from support import limit, wait_until

if TYPE_CHECKING:
    from pathlib import Path

PREAMBLE = MAGIC + bytes.fromhex("0100 0000 2100 0000")
MOST, MOST_FROM_AFAR = 64, 16


def tls_hello(padding: int) -> bytes:
    """Return a TLS client's first flight with so many bytes more than needed: names of protocols that it speaks."""
    context = client_context(None)
    names = ["sockstream/1", *(f"{number:05}".ljust(250, "x") for number in range(padding // 251))]
    context.set_alpn_protocols(names)
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(("padding", "taken"), [(0, True), (3000, True), (5000, False), (60000, False)])
def test_a_tls_hello_of_4096_bytes_is_the_longest(padding: int, taken: bool, tmp_path: Path) -> None:
    """A shorter one is answered; a longer one is refused when 4096 bytes have come, and not read any further."""
    with Victim("serve", "sock+tls://127.0.0.1:0", tmp_path) as victim:
        good_client(victim, seconds=20)
        hello = tls_hello(padding)
        assert (len(hello) <= 4096) is taken
        with victim.no_leaks(), dial(victim.address) as sock:
            send_all(sock, hello)
            answer = sock.recv(5) if taken else read_to_end(sock)
            assert answer[:1] == b"\x16" if taken else answer[:1] in (b"", b"\x15"), answer
        if not taken:
            assert b"more bytes than allowed" in victim.wait_for_line_about("127.0.0.1")


# ---- how many


@pytest.mark.parametrize("name", ["serve", pytest.param("listen", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["sock", "sock+tls", "sock+unix"])
def test_of_ninety_silent_strangers_the_oldest_go(name: str, scheme: str, tmp_path: Path) -> None:
    """64 may be unknown at a time; a good client comes in beside them at once, again and again."""
    with Victim(name, waiting_address(scheme, tmp_path), tmp_path) as victim:
        good_client(victim, seconds=20)
        ninety_strangers(victim)
        with victim.no_leaks():
            ninety_strangers(victim)
        assert 0 < len(victim.lines) <= 6, victim.lines
        assert all(b"too many unknown connections, the oldest goes" in line for line in victim.lines)


def ninety_strangers(victim: Victim) -> None:
    """Have ninety say nothing, and see who is dropped."""
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(dial(victim.address)) for _ in range(90)]
        for _ in range(3):
            good_client(victim)
        wait_until(lambda: sum(map(is_open, strangers)) < MOST, 5, "the oldest to be dropped")
        oldest_left = next(index for index, sock in enumerate(strangers) if is_open(sock))
        assert 90 - MOST <= oldest_left <= 90 - MOST + 3, "others than the oldest, or more than needed, were dropped"
        assert all(map(is_open, strangers[oldest_left:]))


def test_from_one_address_of_the_network_sixteen(tmp_path: Path) -> None:
    """One host cannot take everybody's places: of its strangers the oldest goes; others' stay."""
    host = own_address()
    with Victim("serve", "sock://0.0.0.0:0", tmp_path) as victim, contextlib.ExitStack() as stack:
        port = victim.address.rpartition(":")[2]
        near, far = f"sock://127.0.0.1:{port}", f"sock://{host}:{port}"
        locals_ = [stack.enter_context(dial(near)) for _ in range(20)]
        wait_until(lambda: victim.descriptors() > 20, 5, "the first strangers")
        strangers = [stack.enter_context(dial(far)) for _ in range(20)]
        wait_until(lambda: sum(map(is_open, strangers)) == MOST_FROM_AFAR, 5, "the oldest from there to go")
        assert not any(map(is_open, strangers[:4])) and all(map(is_open, strangers[4:]))
        assert all(map(is_open, locals_)), "strangers from elsewhere went with them"
        assert b"too many unknown connections from there" in victim.wait_for_line_about(host)
        with Guest(far, kind_for(victim), tls=True) as guest:
            guest.open().exchange()
            guest.end()


# ---- how long


def say_hello(sock: socket.socket) -> None:
    """Say who we claim to be, and read the answer, but prove nothing."""
    sock.sendall(PREAMBLE + b"\1" + bytes(32))
    sock.recv(65536)


class Slow:
    """Strangers who take their time, each in a thread: how long each was let."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self._threads: list[threading.Thread] = []

    def add(self, name: str, sock: socket.socket, drip: bytes = b"") -> None:
        """Let `sock` say nothing more, or a byte a second."""

        def wait() -> None:
            started = time.monotonic()
            if drip:
                trickle(sock, drip, limit(20))
            else:
                sock.settimeout(limit(20))
                read_to_end(sock)
            self.took[name] = time.monotonic() - started
            sock.close()

        self._threads.append(threading.Thread(target=wait))
        self._threads[-1].start()

    def join(self) -> dict[str, float]:
        """Wait for the last one."""
        for thread in self._threads:
            thread.join()
        return self.took


@pytest.mark.slow
@pytest.mark.parametrize("name", WAITING)
def test_ten_seconds_are_all_there_is(name: str, tmp_path: Path) -> None:
    """For silence, for a byte a second, for half a handshake, with TLS and without, and after the proof until OPEN.

    Each is dropped after ten seconds, whatever it has said, with one line; good clients are served all the while.
    """
    slow, sources = Slow(), [own_source() for _ in range(8)]
    with Victim(name, "sock://127.0.0.1:0", tmp_path) as victim:
        good_client(victim, seconds=20)
        good_client(victim, seconds=20, tls=True)
        where = victim.address
        with victim.no_leaks():
            slow.add("silence", dial(where, sources[0]))
            slow.add("slowloris", dial(where, sources[1]), PREAMBLE + b"\1" + bytes(32))
            slow.add("slow tls hello", dial(where, sources[2]), tls_hello(0))
            slow.add("tls and silence", dial_link(where, sources[3], tls=True)[0])
            for key, source, tls in ("hello", sources[4], None), ("hello in tls", sources[5], True):
                sock, _ = dial_link(where, source, tls=tls)
                say_hello(sock)
                slow.add(key, sock)
            half = dial(where, sources[6])
            half.sendall(tls_hello(0))
            half.recv(65536)
            slow.add("half a tls handshake", half)
            member, binding = dial_link(where, sources[7])
            prove(member, binding)
            assert member.recv(32)
            slow.add("proof without OPEN", member)
            for _ in range(16):
                time.sleep(0.5)
                good_client(victim)
            took = slow.join()
            for source in sources:
                assert b"did not say who it is within 10 s" in victim.wait_for_line_about(source)
        assert all(9 < seconds < limit(13) for seconds in took.values()), took
