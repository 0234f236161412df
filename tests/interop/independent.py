"""A second implementation, written from docs/protocol.md alone; it imports nothing of sockstream.

    independent.py viewer|program --dial|--wait ADDRESS --token-file FILE [--cut N,...] [--cert PEM --key PEM] [-- ARGV]

It exits with the program's status (128+N for signal N), or with a traceback: after a breach, GOAWAY, or a minute with
no link. Each number of --cut breaks the link hard after so many more bytes. A link begins with blocking calls; then one
select serves all. Left out: objects, adoption, GAP, TLS under sock://, IPv6, stretched tokens, programs that cannot
start, PINGs of its own, answers to another version or session, and the checks of a peer's address and uid.
"""

import contextlib
import hmac
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

OPEN, DATA, TAKEN, STOP, _, PING, PONG, GOAWAY = range(1, 9)
STARTED, SIGNAL, _, EXIT, END = range(1, 6)
FIN, RESUME, DURABLE, PROGRAM, VIEWER, LEAVING = 1, 1, 2, 2, 3, 6
LONGEST = {OPEN: 1 << 16, DATA: 1 << 20, TAKEN: 0, STOP: 0, PING: 0, PONG: 0, GOAWAY: 513}
WINDOW, GRACE, NEVER, MAGIC = 20, 60, float("inf"), bytes.fromhex("93534B530D0A1A0A")
AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def frame(kind: int, flags: int = 0, channel: int = 0, number: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHIQ", kind, flags, channel, len(payload), number) + payload


def receive(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := link.recv(count - len(data))):
            raise ConnectionResetError("the peer closed the link")
        data += part
    return data


class Stream:
    """One channel in one direction; `data` are the bytes not taken yet, which `file` gives or gets."""

    def __init__(self) -> None:
        self.file, self.data, self.window = None, bytearray(), 0
        self.at = self.taken = 0  # sent, or received, up to here; the peer has taken up to there
        self.ended = self.stopped = False  # the length is known; we want no more


class Session:
    """The program's or the viewer's end of one session."""

    link = child = listener = None
    opened, output, passed, attempts, end_at = False, b"", 0, 0, -1
    complete, finals, status = False, [], b""  # finals: what END says of the peer's streams

    def __init__(self, kind: str, options: dict[str, str], argv: list[str]) -> None:
        self.options, self.argv, self.kind = options, argv, PROGRAM
        self.cuts = [int(count) for count in options.get("--cut", "").split(",") if count]
        self.input, self.marks = bytearray(), [0]  # marks: where our records end
        self.out, self.into = {c: Stream() for c in (0, 2, 3)}, {c: Stream() for c in (0, 1)}
        if kind == "viewer":
            self.kind, self.out, self.into = VIEWER, self.into, self.out
            for fd, stream in enumerate((self.out[1], self.into[2], self.into[3])):
                stream.file = open(fd, "wb" if fd else "rb", 0, closefd=False)  # noqa: SIM115 (for good)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda n, _: self.record(bytes([SIGNAL]) + signal.Signals(n).name.encode()))
        self.dials = "--dial" in options
        self.id, self.deadline = (os.urandom(16), time.monotonic() + GRACE) if self.dials else (b"", NEVER)
        self.scheme, _, place = options["--dial" if self.dials else "--wait"].partition("://")
        self.family = socket.AF_UNIX if self.scheme == "sock+unix" else socket.AF_INET
        self.where = place if self.scheme == "sock+unix" else (place.split(":")[0], int(place.split(":")[1]))
        if not self.dials:
            self.listener = socket.create_server(self.where, family=self.family)
            print("independent: listening on", self.listener.getsockname(), file=sys.stderr)

    def run(self) -> int:
        """Serves the session until it is over; returns the exit status."""
        while time.monotonic() < self.deadline:
            try:
                self.report()
                self.move()
            except OSError as error:
                print("independent:", error, file=sys.stderr)
                if self.link:
                    self.link.close()
                    self.deadline, self.attempts = min(self.deadline, time.monotonic() + GRACE), 0
                elif self.dials and self.complete:
                    self.deadline = 0  # the program end has gone: it knows that all is taken
                self.link, self.output, self.attempts = None, b"", self.attempts + 1
                time.sleep(random.uniform(0, min(10, 0.05 * 2**self.attempts)) if self.dials else 0)
        assert self.complete, "the session is lost"
        return {1: 0, 2: 128, 3: 0}[self.status[0]] + self.status[1]

    def make_link(self) -> None:
        """Dials or accepts a link, and makes it the session's when it has proved the token (sections 1 and 2)."""
        link = self.listener.accept()[0] if self.listener else socket.socket(self.family)
        link.settimeout(10)
        if self.dials:
            link.connect(self.where)
        if self.scheme == "sock+tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if self.dials else ssl.PROTOCOL_TLS_SERVER)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["sockstream/1"])
            if not self.dials:
                context.load_cert_chain(self.options["--cert"], self.options["--key"])
            link = context.wrap_socket(link, server_side=not self.dials)
            assert (link.version(), link.selected_alpn_protocol()) == ("TLSv1.3", "sockstream/1")
            own = None if self.dials else Path(self.options["--cert"]).read_text()
            binding = ssl.PEM_cert_to_DER_cert(own) if own else link.getpeercert(True)
        elif self.scheme == "sock+unix":
            binding = b"unix"
        else:
            host, port = link.getpeername() if self.dials else link.getsockname()
            binding = b"tcp" + bytes(10) + b"\xff\xff" + socket.inet_aton(host) + struct.pack("<H", port)
        self.prove(link, sha256(binding).digest())
        self.greet(link)
        link.setblocking(False)
        self.link, self.input, self.output, self.told = link, bytearray(), b"", {}  # told: on this link
        self.deadline = self.deadline if self.complete else NEVER

    def prove(self, link: socket.socket, binding: bytes) -> None:
        key, role = bytes.fromhex(Path(self.options["--token-file"]).read_text()), 1 if self.dials else 2
        mine = MAGIC + struct.pack("<BBHHHB", 1, 0, 0, 33, 0, role) + os.urandom(32)
        link.sendall(mine if self.dials else b"")
        theirs = receive(link, 16)
        theirs += receive(link, int.from_bytes(theirs[12:14], "little"))
        assert theirs[:9] == MAGIC + b"\1" and len(theirs) >= 49 and theirs[16] == 3 - role, f"not for us: {theirs!r}"
        transcript = mine + theirs if self.dials else theirs + mine
        client = hmac.digest(key, b"sockstream 1 client\0" + sha256(transcript).digest() + binding, "sha256")
        server = hmac.digest(key, b"sockstream 1 server\0" + sha256(transcript + client).digest() + binding, "sha256")
        link.sendall(client if self.dials else mine)
        right = hmac.compare_digest(receive(link, 32), server if self.dials else client)
        link.sendall(b"" if self.dials else server if right else bytes(32))
        assert right, "the peer has another token"

    def open(self) -> bytes:
        fields = [(1, self.id), (2, bytes([self.kind])), (4, b"independent"), (8, bytes([WINDOW]))]
        fields += [(3, struct.pack("<HQ", channel, stream.at)) for channel, stream in self.into.items()]
        payload = b"".join(struct.pack("<HI", tag, len(value)) + value for tag, value in fields)
        return frame(OPEN, DURABLE | (RESUME if self.opened and self.dials else 0), payload=payload)

    def greet(self, link: socket.socket) -> None:
        """Section 3.1, and the beginning of 4.2."""
        link.sendall(self.open() if self.dials else b"")
        kind, flags, _, size, _ = struct.unpack("<BBHIQ", receive(link, 16))
        payload, fields, wants = receive(link, min(size, LONGEST[OPEN])), {8: b"\x14"}, {}
        if kind == GOAWAY:
            self.handle(kind, flags, 0, 0, payload)
        assert kind == OPEN and flags & DURABLE, "OPEN"
        while payload:
            tag, size = struct.unpack_from("<HI", payload)
            fields[tag], payload = payload[6 : 6 + size], payload[6 + size :]
            wants.update([struct.unpack("<HQ", fields[tag])] if tag == 3 else [])
        assert fields[1] == self.id or not (self.id or flags & RESUME), "another session"
        assert fields[2][0] + self.kind == PROGRAM + VIEWER, "the kind of the peer"
        self.id, self.opened = fields[1], True
        link.sendall(b"" if self.dials else self.open())
        for channel, stream in self.out.items():
            want = wants.get(channel, 0)
            assert stream.taken <= want <= stream.at, f"the peer wants {want} on channel {channel}"
            stream.at, stream.window = want, max(stream.window, 1 << fields[8][0])
        if self.kind == PROGRAM and not self.child:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            self.child = child = subprocess.Popen(self.argv, bufsize=0, **pipes)
            self.into[1].file, self.out[2].file, self.out[3].file = child.stdin, child.stdout, child.stderr
            self.record(struct.pack("<BQ", STARTED, child.pid))

    def record(self, record: bytes) -> None:
        self.out[0].data += record
        self.marks.append(self.marks[-1] + len(record))

    def report(self) -> None:
        """Writes EXIT and END when they are due."""
        if self.child and not self.status and (code := self.child.poll()) is not None:
            self.status = struct.pack("<BBHQQQ", 1 if code >= 0 else 2, abs(code), 0, 0, 0, 0)
            self.status += signal.Signals(-code).name.encode() if code < 0 else b""
            self.record(bytes([EXIT]) + self.status)
        if self.child and self.status and self.out[2].ended and self.out[3].ended and self.end_at < 0:
            finals = b"".join(struct.pack("<HQ", c, self.out[c].taken + len(self.out[c].data)) for c in (2, 3))
            self.record(struct.pack("<BH", END, 2) + finals + self.status)
            self.end_at = self.marks[-1]

    def fill(self) -> bytes:
        """Puts what may be sent now into the output, one frame of each channel at most."""
        if self.finals and not any(self.into[c].data for c, _ in self.finals):
            self.into[0].data.clear()  # TAKEN may pass END: the completion
            self.complete, self.deadline = True, min(self.deadline, time.monotonic() + 5)
        due = {(TAKEN, channel): stream.at - len(stream.data) for channel, stream in self.into.items()}
        due |= {(STOP, channel): 0 for channel, stream in self.into.items() if stream.stopped}
        for (kind, channel), number in due.items() - self.told.items():
            self.output += frame(kind, WINDOW if kind == TAKEN else 0, channel, number)
        self.told |= due
        for channel, stream in self.out.items():
            limit = min(stream.taken + min(len(stream.data), stream.window), stream.at + LONGEST[DATA])
            if channel == 0:  # one record in each frame, and END after the FINs
                limit = next((mark for mark in self.marks if mark > stream.at), stream.at)
                if limit == self.end_at and not {(FIN, 2), (FIN, 3)} <= self.told.keys():
                    continue
            part = bytes(stream.data[stream.at - stream.taken : limit - stream.taken])
            over = stream.ended and stream.at == stream.taken + len(stream.data)
            if part or (over and (FIN, channel) not in self.told):
                self.output += frame(DATA, 0 if part else FIN, channel, stream.at, part)
                self.told |= {} if part else {(FIN, channel): limit}
                stream.at = limit
        return self.output

    def move(self) -> None:
        """Waits until something can move, and moves it."""
        sources = {s.file: s for s in self.out.values() if s.file and not s.ended and len(s.data) < 1 << WINDOW}
        sinks = {s.file: s for s in self.into.values() if s.file and s.data}
        links, writers = [each for each in (self.link, self.listener) if each], [self.link] if self.output else []
        readable, writable, _ = select.select([*sources, *links], [*sinks, *writers], [], 0.05)
        for stream in [sources[file] for file in readable if file in sources]:
            stream.data += (part := stream.file.read(65536))
            stream.ended = not part
        for stream in [sinks[file] for file in writable if file in sinks]:
            try:
                del stream.data[: stream.file.write(stream.data[:4096])]  # so much a ready pipe takes
            except OSError:
                stream.stopped, stream.data = True, bytearray()  # the peer learns it by STOP
        for stream in [*self.out.values(), *(s for s in self.into.values() if not s.data)]:
            if stream.file and (stream.ended or stream.stopped):
                stream.file = stream.file.close()
        if self.link:
            self.move_link()
        if self.listener in readable or (self.dials and not self.link):
            self.make_link()

    def move_link(self) -> None:
        with contextlib.suppress(*AGAIN):
            if not (part := self.link.recv(1 << 16)):
                raise ConnectionResetError("the peer closed the link")
            self.input, self.passed = self.input + part, self.passed + len(part)
        while len(self.input) >= 16:
            kind, flags, channel, size, number = struct.unpack_from("<BBHIQ", self.input)
            assert size <= LONGEST[kind], f"a frame of type {kind} with {size} bytes"
            if len(self.input) < 16 + size:
                break
            self.handle(kind, flags, channel, number, bytes(self.input[16 : 16 + size]))
            del self.input[: 16 + size]
        with contextlib.suppress(*AGAIN):
            while self.output or self.fill():
                count = self.link.send(self.output)
                self.output, self.passed = self.output[count:], self.passed + count
        if self.cuts and self.passed >= self.cuts[0]:
            self.passed -= self.cuts.pop(0)
            self.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionAbortedError("cut")

    def handle(self, kind: int, flags: int, channel: int, number: int, payload: bytes) -> None:
        stream = self.into[channel] if kind == DATA else self.out[channel]
        if kind == DATA:
            right = flags == 0 and not stream.ended if payload else flags == FIN
            assert right and number == stream.at, f"DATA of channel {channel} at {number}, expected {stream.at}"
            stream.at, stream.ended = number + len(payload), bool(flags)
            stream.data += payload if channel and not stream.stopped else b""
            assert len(stream.data) <= 1 << WINDOW, f"channel {channel}: more than the window"
            if channel == 0 and payload[0] == SIGNAL and self.child:
                self.child.send_signal(signal.Signals[payload[1:].decode()])
            elif channel == 0 and payload[0] == END and self.kind == VIEWER:
                finals, self.status = payload[3 : 3 + 10 * payload[1]], payload[3 + 10 * payload[1] :]
                self.finals = [*struct.iter_unpack("<HQ", finals)]
                assert all(self.into[c].ended and self.into[c].at == n for c, n in self.finals), "END is too early"
                stream.data += payload  # so it is not taken yet
        elif kind == TAKEN:
            assert stream.taken <= number <= stream.at and 16 <= flags <= 24, f"TAKEN of channel {channel}"
            del stream.data[: number - stream.taken]
            stream.taken, stream.window = number, 1 << flags
            if channel == 0 and number == self.end_at:
                self.leave()
        elif kind == STOP and not stream.ended:
            del stream.data[stream.at - stream.taken :]
            stream.ended = True
        elif kind == PING:
            self.output += frame(PONG, number=number)
        elif kind == GOAWAY:
            self.deadline = 0
            raise ConnectionAbortedError(f"the peer has left: {payload!r}")

    def leave(self) -> None:
        self.complete, self.deadline = True, 0
        self.link.settimeout(2)
        self.link.sendall(self.output + frame(GOAWAY, payload=bytes([LEAVING])))
        socket.socket.shutdown(self.link, socket.SHUT_WR)
        while self.link.recv(1 << 16):  # closing with unread bytes would reset the link, and lose the GOAWAY
            pass


if __name__ == "__main__":
    split = [*sys.argv, "--"].index("--")
    words = sys.argv[2:split]
    sys.exit(Session(sys.argv[1], dict(zip(words[::2], words[1::2], strict=True)), sys.argv[split + 1 :]).run())
