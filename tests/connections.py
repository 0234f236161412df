"""Connected sockets of every kind, for tests: made by the code under test, closed at the end of a block."""

from __future__ import annotations

import os
import select
import socket
import sys

import pytest

from sockstream import transport
from sockstream.address import Address, parse
from support import limit

KINDS = ("ipv4", "ipv6", "mapped", "unix")
TCP_KINDS = KINDS[:3]
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whether a peer has closed")
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as another user")


def runtime(name: str) -> str:
    """Return a path in this test's runtime directory."""
    return os.path.join(os.environ["XDG_RUNTIME_DIR"], name)


def dial(address: Address) -> socket.socket:
    """Connect as an end does, and wait for it."""
    family, sockaddr = transport.resolve(address)[0]
    sock = transport.begin_connect(family, sockaddr)
    try:
        assert select.select([], [sock], [], limit(10))[1], "the connection neither came nor failed"
        transport.finish_connect(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket) -> socket.socket:
    """Accept one connection."""
    assert select.select([listener], [], [], limit(10))[0], "nobody connected"
    sock, _ = listener.accept()
    return sock


class Pair:
    """A client and a server socket of one kind, made by the code under test."""

    def __init__(self, kind: str) -> None:
        waiting = {
            "ipv4": "tcp://127.0.0.1:0",
            "ipv6": "tcp://[::1]:0",
            "mapped": "tcp://[::]:0",
            "unix": f"unix://{runtime('pair')}",
        }[kind]
        self.listener, self.address = transport.bind(parse(waiting))
        dialled = Address("tcp", "127.0.0.1", self.address.port) if kind == "mapped" else self.address
        self.client = dial(dialled)
        self.server = accept(self.listener)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self.client, self.server, self.listener):
            sock.close()
