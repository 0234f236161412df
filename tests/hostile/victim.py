"""A command that is attacked, and what must hold of it afterwards.

Rules: a `Victim` is a real process with a token of its own; its descriptors and its memory are read from /proc. Every
attack on TCP comes from a loopback address of its own, since the log says at most one line a second about an address.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import DROPPED
from sockstream import address, transport
from support import Running, limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = bytes(range(100, 132))
WAITING = ("listen", "serve")
SCHEMES = ("sock", "sock+tls", "sock+unix")
_EXPECTED = re.compile(rb"listening on |: any user or web page|is attached|ended with status|^$")
_sources = itertools.count(2)


def environment(directory: str | Path) -> dict[str, str]:
    """Return an environment whose home, configuration and runtime directory are one directory."""
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED and "SOCKSTREAM" not in name}
    return {**kept, "HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}


def write_token(directory: str | Path, token: bytes = TOKEN) -> str:
    """Write a token file that only we can read, and return its path."""
    path = Path(directory, f"token-{token.hex()[:8]}")
    path.touch(0o600)
    path.write_text(f"{token.hex()}\n")
    return str(path)


def waiting_address(scheme: str, directory: str | Path) -> str:
    """Return an address to wait on: a free port of 127.0.0.1, or a path in the directory."""
    return f"{scheme}://{directory}/end.sock" if scheme.endswith("unix") else f"{scheme}://127.0.0.1:0"


class Victim(Running):
    """`listen` or `serve -- cat` on an address, or any other command, with the token TOKEN."""

    def __init__(
        self, name: str, where: str, directory: str | Path, *options: str, program: tuple[str, ...] = ("cat",)
    ):
        behind = ("--", *program) if name == "serve" else ()
        token = () if where.startswith(("tcp:", "tls:", "unix:")) else ("--token-file", write_token(directory))
        super().__init__(name, *token, *options, where, *behind, env=environment(directory))
        self.name = name

    @property
    def lines(self) -> list[bytes]:
        """What it has said on stderr, without what it says when all is well."""
        return [line for line in self.stderr.split(b"\n") if not _EXPECTED.search(line)]

    def lines_about(self, peer: str) -> list[bytes]:
        """Its lines about a peer: `127.0.0.3` or `uid 0`."""
        wanted = re.compile(rb"sockstream: [^ ]*" + re.escape(peer.encode()) + rb"[:\d]|of " + peer.encode() + b":")
        return [line for line in self.lines if wanted.search(line)]

    def wait_for_line_about(self, peer: str) -> bytes:
        """Wait for a line about a peer; there must be one and no more."""
        wait_until(lambda: self.lines_about(peer), 15, f"a line about {peer}: {self}")
        lines = self.lines_about(peer)
        assert len(lines) == 1, lines
        return lines[0]

    def assert_unharmed(self) -> None:
        """It runs, and has never raised anything nobody expected."""
        assert self.process.poll() is None, self
        assert b"Traceback" not in self.stderr, self

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def settled(self) -> int:
        """How many it has open when the last guest has gone."""
        seen = [-1]
        while len(set(seen[-3:])) > 1 or len(seen) < 4:
            time.sleep(0.01)
            seen.append(self.descriptors())
        return seen[-1]

    def memory(self) -> int:
        """Its resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    @contextlib.contextmanager
    def no_leaks(self, memory: int = 4 << 20) -> Iterator[None]:
        """What happens in the block leaves no descriptor behind, and not more than so many bytes of memory."""
        descriptors, before = self.settled(), self.memory()
        yield
        wait_until(lambda: self.descriptors() <= descriptors, 10, f"{descriptors} open descriptors again: {self}")
        assert self.memory() - before < memory, (self.memory(), before)
        self.assert_unharmed()


def dial(where: str, source: str | None = None) -> socket.socket:
    """Return a plain, blocking connection to a waiting end; on TCP from `source`, a loopback address."""
    [(family, sockaddr)] = transport.resolve(address.parse(where))
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(limit(15))
        if source is not None:
            sock.bind((source, 0))
        sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def own_source() -> str:
    """Return a loopback address that no other attack in this run comes from."""
    number = next(_sources)
    return f"127.0.{number >> 8}.{number & 255}"


def read_to_end(sock: socket.socket) -> bytes:
    """Return everything that comes until the other end closes, however it does that."""
    found = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := sock.recv(65536):
            found += piece
    return bytes(found)


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send as much of the data as the other end lets us."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        sock.sendall(data)


def trickle(sock: socket.socket, data: bytes, seconds: float) -> float:
    """Send a byte a second until the other end closes or the time is over; return how long it let us."""
    started = time.monotonic()
    sock.settimeout(1)
    for byte in itertools.cycle(data):
        if time.monotonic() - started > seconds:
            break
        try:
            sock.sendall(bytes((byte,)))
            if not sock.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


def own_address() -> str:
    """Return an address of this machine that is not loopback; a peer there is a peer of the network to us."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the system only says from where it would
        except OSError:
            pytest.skip("this machine has no address but loopback")
        host: str = probe.getsockname()[0]
    if address.is_loopback(host):
        pytest.skip("this machine has no address but loopback")
    return host


def is_open(sock: socket.socket) -> bool:
    """Whether the other end has neither closed nor reset the connection, and has said nothing."""
    readable, _, _ = select.select([sock], [], [], 0)
    return not readable
