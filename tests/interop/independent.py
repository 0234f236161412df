"""A second implementation, written from docs/protocol.md alone; it imports nothing of sockstream.

    independent.py viewer|program --dial|--wait ADDRESS --token-file FILE [--cut N]... [--cert PEM --key PEM] [-- ARGV]

Both ends exit with the program's status (128+N for signal N). A protocol error, GOAWAY or a lost session is 125: nothing
is forgiven, so that a test sees it. Each --cut breaks the link hard once N more bytes of frames have passed over it, in
the middle of one where that comes. A link is made with blocking calls; then one select serves everything. Left out:
objects, adoption and GAP, TLS under sock://, IPv6, stretched tokens, programs that cannot start, the answer to another
version or session, and the checks of a peer's address and uid.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import math
import os
import random
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

OPEN, DATA, TAKEN, STOP, _, PING, PONG, GOAWAY = range(1, 9)
STARTED, SIGNAL, _, EXIT, END = range(1, 6)
FIN, RESUME, DURABLE, PROGRAM, VIEWER, LEAVING = 1, 1, 2, 2, 3, 6
LONGEST = {DATA: 1 << 20, TAKEN: 0, STOP: 0, PING: 0, PONG: 0, GOAWAY: 513}
WINDOW, GRACE, MAGIC = 20, 60, bytes.fromhex("93534B530D0A1A0A")
AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def check(holds: object, what: object) -> None:
    if not holds:
        raise ValueError(what)  # it ends the session, where an OSError only breaks the link


def say(what: object) -> None:
    print(f"independent: {what}", file=sys.stderr, flush=True)


def frame(kind: int, flags: int = 0, channel: int = 0, number: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHIQ", kind, flags, channel, len(payload), number) + payload


def receive(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := link.recv(count - len(data))):
            raise ConnectionResetError("the peer closed the link")
        data += part
    return data


class Endpoint:
    """Sections 1 and 2: where links come from, and how they prove the token."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.dials = args, bool(args.dial)
        self.scheme, _, place = (args.dial or args.wait).partition("://")
        self.family = socket.AF_UNIX if self.scheme == "sock+unix" else socket.AF_INET
        host, _, port = place.rpartition(":")
        self.where: Any = place if self.family == socket.AF_UNIX else (host, int(port))
        self.listener = None if self.dials else socket.create_server(self.where, family=self.family)
        if self.listener:
            name = self.listener.getsockname()
            say(f"listening on {self.scheme}://{name if isinstance(name, str) else '{}:{}'.format(*name)}")

    def link(self) -> socket.socket:
        """Returns the link that was dialled, or that came, when it has proved the token."""
        link = self.listener.accept()[0] if self.listener else socket.socket(self.family)
        link.settimeout(10)
        if self.dials:
            link.connect(self.where)
        if self.family == socket.AF_UNIX:
            binding = b"unix"
        elif self.scheme == "sock+tls":
            link = self.tls().wrap_socket(link, server_side=not self.dials)
            check(link.selected_alpn_protocol() == "sockstream/1", "the peer did not choose our protocol")
            own = "" if self.dials else Path(self.args.cert).read_text()
            binding = ssl.PEM_cert_to_DER_cert(own) if own else link.getpeercert(True)
        else:
            host, port = link.getpeername() if self.dials else link.getsockname()
            binding = b"tcp" + bytes(10) + b"\xff\xff" + socket.inet_aton(host) + struct.pack("<H", port)
        self.prove(link, sha256(binding).digest())
        return link

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if self.dials else ssl.PROTOCOL_TLS_SERVER)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["sockstream/1"])
        if not self.dials:
            context.load_cert_chain(self.args.cert, self.args.key)
        return context

    def prove(self, link: socket.socket, binding: bytes) -> None:
        def proof(text: bytes, transcript: bytes) -> bytes:
            return hmac.digest(key, text + sha256(transcript).digest() + binding, "sha256")

        key, role = bytes.fromhex(Path(self.args.token_file).read_text()), 1 if self.dials else 2
        mine = MAGIC + struct.pack("<BBHHHB", 1, 0, 0, 33, 0, role) + os.urandom(32)
        link.sendall(mine if self.dials else b"")
        theirs = receive(link, 16)
        check(theirs[:9] == MAGIC + b"\1", f"the peer speaks something else: {theirs!r}")
        theirs += receive(link, int.from_bytes(theirs[12:14], "little"))
        check(49 <= len(theirs) <= 2064 and theirs[16] == 3 - role, f"HELLO: {theirs!r}")
        transcript = mine + theirs if self.dials else theirs + mine
        client = proof(b"sockstream 1 client\0", transcript)
        server = proof(b"sockstream 1 server\0", transcript + client)
        link.sendall(client if self.dials else mine)
        right = hmac.compare_digest(receive(link, 32), server if self.dials else client)
        link.sendall(b"" if self.dials else server if right else bytes(32))
        check(right, "the peer has another token")


class Stream:
    """One channel in one direction; `data` are the bytes not taken yet, which `file` gives or gets."""

    def __init__(self, file: Any = None) -> None:
        self.file, self.data, self.window = file, bytearray(), 0
        self.at = self.taken = 0  # sent, or received, up to here; the peer has taken up to there
        self.ended = self.stopped = False  # the length is known; we want no more
        self.told: dict[int, int] = {}  # the TAKEN, STOP and FIN (as DATA) that went out on the newest link


class Session:
    """Sections 3 to 5: the program's or the viewer's end of one session."""

    link: Any = None  # its blocking beginning is over, and OPEN read
    child: subprocess.Popen[bytes] | None = None
    id, opened, output, passed, retry_at, attempts, lost_at = b"", False, b"", 0, 0.0, 0, math.inf
    end_at, finals, status, over = -1, b"", b"", math.inf  # over: when a viewer waits for GOAWAY no longer

    def __init__(self, args: argparse.Namespace, argv: list[str]) -> None:
        self.argv, self.cuts, self.dials, self.kind = argv, args.cut, bool(args.dial), VIEWER
        if args.kind == "program":
            self.out, self.into, self.kind = {c: Stream() for c in (0, 2, 3)}, {0: Stream(), 1: Stream()}, PROGRAM
        else:
            files = [open(fd, "wb" if fd else "rb", 0, closefd=False) for fd in range(3)]
            self.out, self.into = {0: Stream(), 1: Stream(files[0])}, {0: Stream(), 2: Stream(files[1]), 3: Stream(files[2])}
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda n, _: self.record(bytes([SIGNAL]) + signal.Signals(n).name.encode()))
        self.input, self.marks = bytearray(), [0]  # marks: where our records end
        if self.dials:
            self.id, self.lost_at = os.urandom(16), time.monotonic() + GRACE
        self.endpoint = Endpoint(args)

    def run(self) -> int:
        """Serves the session until it is over; returns the exit status."""
        while not self.over < time.monotonic() and not self.out[0].taken == self.end_at:
            check(self.link or time.monotonic() < self.lost_at, "the session is lost")
            try:
                self.serve()
            except OSError as error:
                say(error)
                self.over = self.over if self.link or not self.dials else min(self.over, 0)
                ...
        return {1: 0, 2: 128, 3: 0}.get(self.status[0], 125) + self.status[1]
