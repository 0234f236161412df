"""The relay itself: accepts links, dials the target for each, moves bytes, strikes where a plan says so.

Rules: one thread and one selector; what was read and not yet written is at most one piece for each direction, so
that back-pressure goes through; an orderly end of one direction is passed on as a half-close, a reset as a reset.
A strike is exact: the bytes before it have been handed to the kernel of the other end, not one more is.

What comes later (delay, a limit of bandwidth) belongs into `Flow`, between reading a piece and writing it; what
breaks a link in another way is one more method in `ACTIONS`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING

from .triggers import DOWN, UP

if TYPE_CHECKING:
    from collections.abc import Callable

    from .triggers import Plan, Trigger

    Address = tuple[str, int] | str

PIECE = 256 << 10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_TURN_OFF = 0


def parse(text: str) -> Address:
    """Read HOST:PORT or a path; raises ValueError."""
    if "/" in text:
        return text
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError
    return host or "127.0.0.1", int(port)


def make_socket(address: Address) -> socket.socket:
    """Return a socket of the address's family."""
    return socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM)


class Flow:
    """One direction of a link: what `source` says is written to `sink`."""

    def __init__(self, link: Link, direction: str, source: socket.socket, sink: socket.socket) -> None:
        self.link = link
        self.direction = direction
        self.source = source
        self.sink = sink
        self.passed = 0
        self.ended = False
        self._piece = memoryview(b"")
        self._read_to_end = False
        self._strike = False

    @property
    def wants_read(self) -> bool:
        """Whether another piece is to be read."""
        return not (self._piece or self._read_to_end or self._strike)

    @property
    def wants_write(self) -> bool:
        """Whether a piece waits to be written."""
        return bool(self._piece)

    def read(self) -> None:
        """Read a piece, as far as the link's trigger lets it pass, and pass it on."""
        with contextlib.suppress(BlockingIOError):
            data = self.source.recv(PIECE)
            self._read_to_end = not data
            self.admit(data)

    def admit(self, data: bytes) -> None:
        """Pass data on, as far as the link's trigger lets it."""
        cut = self.link.trigger.cut(self.direction, data)
        self._strike = cut is not None
        self._piece = memoryview(data)[:cut]
        self.write()

    def write(self) -> None:
        """Write what waits; then do what comes behind it."""
        with contextlib.suppress(BlockingIOError):
            while self._piece:
                count = self.sink.send(self._piece)
                self.passed += count
                self._piece = self._piece[count:]
        if self._piece:
            return
        if self._strike:
            self.link.strike(f"behind {self.passed} bytes {self.direction}")
        elif self._read_to_end and not self.ended:
            self.ended = True
            self.sink.shutdown(socket.SHUT_WR)


class Link:
    """One connection: the side that dialled us, and the side that we have dialled for it."""

    def __init__(self, proxy: Proxy, number: int, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.number = number
        self.client = client
        self.server = server
        self.trigger: Trigger = proxy.plan.next_link()
        self.flows = {UP: Flow(self, UP, client, server), DOWN: Flow(self, DOWN, server, client)}
        self._masks = dict.fromkeys((client, server), 0)

    def begin(self) -> None:
        """Let bytes pass, unless the link is to be struck at once."""
        self._guarded(*(partial(flow.admit, b"") for flow in self.flows.values()))

    def ready(self, sock: socket.socket, mask: int) -> None:
        """Move what can be moved for one of the two sockets."""
        if self not in self.proxy.links:  # it has been struck since the selector looked
            return
        flows = self.flows.values()
        if mask & selectors.EVENT_READ:
            self._guarded(*(flow.read for flow in flows if flow.source is sock))
        if mask & selectors.EVENT_WRITE and self in self.proxy.links:
            self._guarded(*(flow.write for flow in flows if flow.sink is sock))

    def _guarded(self, *moves: Callable[[], None]) -> None:
        """Do them; pass on a reset, close when both directions have ended, else wait for what is of use now."""
        try:
            for move in moves:
                move()
        except OSError as error:
            self.leave(f"broken by an end ({error.strerror})")
            self._close(self.client, self.server, reset=True)
            return
        if self not in self.proxy.links:
            return
        if all(flow.ended for flow in self.flows.values()):
            self.leave("ended")
            self._close(self.client, self.server)
            return
        self._watch()

    def _watch(self) -> None:
        for sock, old in self._masks.items():
            mask = 0
            for flow in self.flows.values():
                mask |= selectors.EVENT_READ if flow.source is sock and flow.wants_read else 0
                mask |= selectors.EVENT_WRITE if flow.sink is sock and flow.wants_write else 0
            self._masks[sock] = mask
            self.proxy.watch(sock, old, mask, self)

    def strike(self, where: str) -> None:
        """Do what the plan says."""
        self.proxy.plan.struck()
        ACTIONS[self.proxy.plan.action](self, where)

    def leave(self, what: str) -> None:
        """Move no more bytes; the sockets stay as they are."""
        for sock, mask in self._masks.items():
            self.proxy.watch(sock, mask, _TURN_OFF, self)
            self._masks[sock] = _TURN_OFF
        passed = ", ".join(f"{flow.passed} bytes {flow.direction}" for flow in self.flows.values())
        self.proxy.links.discard(self)
        self.proxy.say(f"link {self.number} {what}: {passed}")

    def _close(self, *socks: socket.socket, reset: bool = False) -> None:
        for sock in socks:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.close()

    def reset(self, where: str) -> None:
        """Break both sides."""
        self.leave(f"reset {where}")
        self._close(self.client, self.server, reset=True)

    def reset_client(self, where: str) -> None:
        """Break the side that has dialled; the other one stays open and never hears another byte."""
        self.leave(f"reset-client {where}")
        self._close(self.client, reset=True)
        self.proxy.silent.append(self.server)

    def reset_server(self, where: str) -> None:
        """Break the side that waited; the other one stays open and never hears another byte."""
        self.leave(f"reset-server {where}")
        self._close(self.server, reset=True)
        self.proxy.silent.append(self.client)

    def close(self, where: str) -> None:
        """End both sides as if their peers had closed."""
        self.leave(f"close {where}")
        self._close(self.client, self.server)

    def silence(self, where: str) -> None:
        """Keep both sides open; neither ever hears another byte."""
        self.leave(f"silence {where}")
        self.proxy.silent += (self.client, self.server)


ACTIONS: dict[str, Callable[[Link, str], None]] = {
    "reset": Link.reset,
    "reset-client": Link.reset_client,
    "reset-server": Link.reset_server,
    "close": Link.close,
    "silence": Link.silence,
}


class Proxy:
    """Relay every connection to `address` to `target`, as `plan` says.

    Lines on `commands` (a descriptor) command it while it runs: an action, for every link there is; `refuse`, to
    listen no more; `accept`, to listen again.
    """

    def __init__(self, address: Address, target: Address, plan: Plan, commands: int) -> None:
        self.plan = plan
        self.links: set[Link] = set()
        self.silent: list[socket.socket] = []
        self._address = address
        self._target = target
        self._count = 0
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._accept_links()
        with contextlib.suppress(PermissionError):  # /dev/null and other files have no commands to wait for
            self._selector.register(commands, selectors.EVENT_READ, self._command)

    def run(self) -> None:
        """Relay for ever."""
        shown = self._address if isinstance(self._address, str) else "{}:{}".format(*self._address)
        self.say(f"listening on {shown}")
        while True:
            for key, mask in self._selector.select():
                key.data(key.fileobj, mask)

    def say(self, text: str) -> None:
        """Write a line to stdout."""
        sys.stdout.write(f"chaos: {text}\n")
        sys.stdout.flush()

    def watch(self, sock: socket.socket, old: int, mask: int, link: Link) -> None:
        """Have the link called for this in place of what was wanted before."""
        if old == mask:
            return
        if not mask:
            self._selector.unregister(sock)
        elif old:
            self._selector.modify(sock, mask, link.ready)
        else:
            self._selector.register(sock, mask, link.ready)

    def _accept_links(self) -> None:
        if isinstance(self._address, str):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._address)
        self._listener = make_socket(self._address)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self._address)
        self._listener.listen(64)
        if not isinstance(self._address, str):
            self._address = self._listener.getsockname()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _refuse_links(self) -> None:
        assert self._listener is not None
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = None

    def _accept(self, listener: socket.socket, _mask: int) -> None:
        client, _ = listener.accept()
        server = make_socket(self._target)
        try:
            server.connect(self._target)  # of this machine: it takes no time
        except OSError as error:
            self.say(f"nobody at the target: {error.strerror}")
            client.close()
            server.close()
            return
        for sock in client, server:
            sock.setblocking(False)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._count += 1
        link = Link(self, self._count, client, server)
        self.links.add(link)
        self.say(f"link {link.number} opened")
        link.begin()

    def _command(self, commands: int, _mask: int) -> None:
        lines = os.read(commands, 4096).decode().split()
        if not lines:
            self._selector.unregister(commands)
        for line in lines:
            if line == "refuse":
                self._refuse_links()
            elif line == "accept":
                self._accept_links()
            else:
                for link in sorted(self.links, key=lambda link: link.number):
                    ACTIONS[line](link, "by command")
            self.say(f"done: {line}")
