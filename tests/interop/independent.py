"""A second implementation, written from docs/protocol.md alone; it imports nothing of sockstream.

    independent.py viewer|program --dial|--wait ADDRESS --token-file FILE [--cut N] [--cert PEM --key PEM]
        [-- ARGV...]

Both ends exit with the program's status (128+N for signal N), or with 125 when the session is lost. --cut
breaks the link hard once N bytes of DATA have come in, and says so on stderr. One thread and one select:
while there is no link, the local streams rest. Left out: objects, adopting (a program does answer a viewer
that adopts), TLS under sock://, IPv6, a second link while the first one stands.
"""
from __future__ import annotations

import argparse
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
from typing import Any

OPEN, DATA, TAKEN, STOP, GAP, PING, PONG, GOAWAY = range(1, 9)
LONGEST = {DATA: 1 << 20, TAKEN: 0, STOP: 0, GAP: 1, PING: 0, PONG: 0, GOAWAY: 513}
FIN, RESUME, DURABLE, UNKNOWN_SESSION, LEAVING = 1, 1, 2, 5, 6
STARTED, SIGNAL, _, EXIT, END = range(1, 6)
PROGRAM, VIEWER, OLDEST, WINDOW, GRACE = 2, 3, 2**64 - 1, 20, 60.0
AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def check(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(what)  # it ends the session, where an OSError only breaks the link


def frame(kind: int, flags: int, channel: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHIQ", kind, flags, channel, len(payload), number) + payload


def receive(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := link.recv(count - len(data))):
            raise ConnectionResetError("the peer closed the link")
        data += part
    return data


def read_text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


class Endpoint:
    """Sections 1 and 2: where links come from, and how they prove the token."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.dials, self.key = args, bool(args.dial), bytes.fromhex(read_text(args.token_file))
        self.scheme, _, place = (args.dial or args.wait).partition("://")
        self.unix, self.where = self.scheme == "sock+unix", place
        if not self.unix:
            host, _, port = place.rpartition(":")
            self.where = (host, int(port))
        self.family = socket.AF_UNIX if self.unix else socket.AF_INET
        self.listener = None if self.dials else self.listen()

    def listen(self) -> socket.socket:
        listener = socket.socket(self.family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.where)
        listener.listen()
        place = self.where if self.unix else "{}:{}".format(*listener.getsockname())
        print(f"listening on {self.scheme}://{place}", file=sys.stderr, flush=True)
        return listener

    def close(self) -> None:
        if self.listener:
            self.listener.close()
            if self.unix:
                os.unlink(self.where)

    def link(self, patience: float) -> socket.socket:
        """Returns a new link that has proved the token; a waiting end waits `patience` seconds for it."""
        if self.listener:
            self.listener.settimeout(patience)
            link = self.listener.accept()[0]
        else:
            link = socket.socket(self.family)
        try:
            link.settimeout(10)
            if self.dials:
                link.connect(self.where)
            if self.scheme == "sock+tls":
                link = self.tls().wrap_socket(link, server_side=not self.dials)
            self.prove(link, sha256(self.place(link)).digest())
        except BaseException:
            link.close()
            raise
        return link

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if self.dials else ssl.PROTOCOL_TLS_SERVER)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["sockstream/1"])
        if not self.dials:
            context.load_cert_chain(self.args.cert, self.args.key)
        return context

    def place(self, link: socket.socket) -> bytes:
        """Returns what the binding is the hash of."""
        if self.unix:
            uid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            check(uid in (0, os.getuid()), f"the peer's uid is {uid}")
            return b"unix"
        if isinstance(link, ssl.SSLSocket):
            check(link.selected_alpn_protocol() == "sockstream/1", "ALPN")
            own = b"" if self.dials else ssl.PEM_cert_to_DER_cert(read_text(self.args.cert))
            return own or link.getpeercert(True) or b""
        check(link.getpeername()[0].startswith("127."), "a plain link that is not loopback")
        host, port = link.getpeername() if self.dials else link.getsockname()
        return b"tcp" + bytes(10) + b"\xff\xff" + socket.inet_aton(host) + struct.pack("<H", port)

    def prove(self, link: socket.socket, binding: bytes) -> None:
        role, magic = 1 if self.dials else 2, bytes.fromhex("93534B530D0A1A0A")
        mine = magic + struct.pack("<BBHHHB", 1, 0, 0, 33, 0, role) + os.urandom(32)
        link.sendall(mine if self.dials else b"")
        theirs = receive(link, 16)
        check(theirs[:8] == magic, "wrong magic")
        link.sendall(mine[:12] + bytes(4) if theirs[8] != 1 and not self.dials else b"")
        check(theirs[8] == 1, f"the peer speaks version {theirs[8]}, this end version 1")
        length = int.from_bytes(theirs[12:14], "little")
        check(33 <= length <= 2048, "length of HELLO")
        theirs += receive(link, length)
        check(theirs[16] == 3 - role, "the peer has this end's own role")
        transcript = mine + theirs if self.dials else theirs + mine
        text = b"sockstream 1 client\0" + sha256(transcript).digest() + binding
        client = hmac.digest(self.key, text, "sha256")
        text = b"sockstream 1 server\0" + sha256(transcript + client).digest() + binding
        server = hmac.digest(self.key, text, "sha256")
        link.sendall(client if self.dials else mine)
        right = hmac.compare_digest(receive(link, 32), server if self.dials else client)
        link.sendall(b"" if self.dials else server if right else bytes(32))
        check(right, "the peer has another token")


class Stream:
    """One channel in one direction: data is what is not taken yet, by the peer or by us."""

    fd, base, sent, taken, window, expected, ended, stopped = -1, 0, 0, 0, 0, 0, False, False

    def __init__(self) -> None:
        self.data = bytearray()  # a sender's begins at base, a receiver's ends at expected
        self.told: dict[int, int] = {}  # TAKEN, STOP and FIN (as DATA) that went out on the newest link

    def close(self) -> None:
        if self.fd > 2:
            os.close(self.fd)
        self.fd = -1


class Session:
    """Sections 3 to 5: the program's or the viewer's end of one session."""

    opened, live, done, over, end_at, output, came = False, False, False, 0.0, -1, b"", 0
    child: subprocess.Popen[bytes] | None = None
    status = b""
    finals: list[Any] | None = None  # channel and length, as END names them

    def __init__(self, args: argparse.Namespace, argv: list[str]) -> None:
        self.endpoint, self.dials, self.cut, self.argv = Endpoint(args), bool(args.dial), args.cut, argv
        self.kind, mine, theirs = (PROGRAM, (0, 2, 3), (0, 1)) if argv else (VIEWER, (0, 1), (0, 2, 3))
        self.id, self.records, self.signals = os.urandom(16) if args.dial else b"", [0], list[str]()
        self.out, self.into = {c: Stream() for c in mine}, {c: Stream() for c in theirs}
        if not argv:
            self.out[1].fd, self.into[2].fd, self.into[3].fd = 0, 1, 2
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda n, _: self.signals.append(signal.Signals(n).name))

    def run(self) -> int:
        """Makes links until the session is over; returns the exit status."""
        attempt, limit = 0, time.monotonic() + 3600
        while not self.done and time.monotonic() < limit:
            self.live = False
            try:
                with self.endpoint.link(limit - time.monotonic()) as link:
                    self.greet(link)
                    self.talk(link)
            except (OSError, ValueError) as error:
                check(isinstance(error, OSError) or self.over or not (self.dials or self.live), str(error))
            attempt, limit = (1, self.over or time.monotonic() + GRACE) if self.live else (attempt + 1, limit)
            time.sleep(random.uniform(0, min(10, 0.05 * 2**attempt)) if self.dials and not self.done else 0)
        check(self.done or self.over, "the session is lost")
        return {1: 0, 2: 128, 3: 0}.get(self.status[0], 125) + self.status[1]

    def open(self) -> bytes:
        fields = [(1, self.id), (2, bytes([self.kind])), (4, b"independent"), (8, bytes([WINDOW]))]
        fields += [(3, struct.pack("<HQ", c, s.expected)) for c, s in self.into.items()]
        payload = b"".join(struct.pack("<HI", tag, len(value)) + value for tag, value in fields)
        return frame(OPEN, DURABLE | (RESUME if self.opened and self.dials else 0), 0, 0, payload)

    def greet(self, link: socket.socket) -> None:
        """Section 3.1 and the beginning of 4.2."""
        link.sendall(self.open() if self.dials else b"")
        kind, flags, _, size, _ = struct.unpack("<BBHIQ", receive(link, 16))
        payload, fields, wants = receive(link, min(size, 65536)), dict[int, bytes](), dict[int, int]()
        check(kind == OPEN and flags & DURABLE, f"the peer does not want this session: {payload!r}")
        while payload:
            tag, size = struct.unpack_from("<HI", payload.ljust(6))
            check(size <= len(payload) - 6 and (tag in (3, 10) or tag not in fields), f"field {tag} of OPEN")
            fields[tag], payload = payload[6 : 6 + size], payload[6 + size :]
            wants.update([struct.unpack("<HQ", fields[tag])] if tag == 3 else [])
        if self.id not in (b"", fields[1]) or (flags & RESUME and not self.opened):
            link.sendall(b"" if self.dials else frame(GOAWAY, 0, 0, 0, bytes([UNKNOWN_SESSION])))
            raise ConnectionAbortedError("a link of another session")
        check(fields[2][0] == PROGRAM + VIEWER - self.kind, "the kind of the peer")
        self.id, self.output = fields[1], b""
        link.sendall(b"" if self.dials else self.open())
        for channel, stream in self.out.items():
            self.resume(channel, stream, wants.get(channel, 0), 1 << fields.get(8, b"\x14")[0])
        for stream in self.into.values():
            stream.told = {}
            if stream.ended and OLDEST in wants.values():  # the new viewer does not know that stdin has ended
                stream.ended, stream.stopped = False, True
        if self.argv and not self.opened:
            self.start()
        self.opened = self.live = True

    def resume(self, channel: int, stream: Stream, want: int, window: int) -> None:
        if want == OLDEST or not self.opened:
            stream.window = window
        if want == OLDEST:  # section 4.3
            want = stream.base
            self.output += frame(GAP, 0, channel, want, b"\1")
        check(stream.taken <= want <= stream.sent, f"the peer wants {want} on channel {channel}")
        stream.sent, stream.told = want, {}

    def start(self) -> None:
        pipe, self.began = subprocess.PIPE, time.monotonic()
        try:
            self.child = child = subprocess.Popen(self.argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            self.exit(3, 127 if isinstance(error, FileNotFoundError) else 126, str(error))
            self.out[2].ended = self.out[3].ended = True
            return
        self.record(struct.pack("<BQ", STARTED, child.pid))
        streams = (self.into[1], self.out[2], self.out[3])
        for stream, file in zip(streams, (child.stdin, child.stdout, child.stderr), strict=True):
            assert file
            stream.fd = os.dup(file.fileno())
            file.close()

    def exit(self, how: int, value: int, text: str) -> None:
        times = os.times()
        spent = (time.monotonic() - self.began, times.children_user, times.children_system)
        self.status = struct.pack("<BBHQQQ", how, value, 0, *(int(1e6 * t) for t in spent)) + text.encode()
        self.record(bytes([EXIT]) + self.status)

    def record(self, record: bytes) -> None:
        self.out[0].data += record
        self.records.append(self.records[-1] + len(record))

    def talk(self, link: socket.socket) -> None:
        """Carries frames until the session is done or the link breaks."""
        link.setblocking(False)
        came, heard, asked = bytearray(), time.monotonic(), 0.0
        while not self.done and (not self.over or time.monotonic() < self.over):
            self.fill()
            if self.out[0].taken == self.end_at:
                return self.leave(link)
            self.move_local(link)
            with contextlib.suppress(*AGAIN):
                while self.output:
                    self.output = self.output[link.send(self.output) :]
            with contextlib.suppress(*AGAIN):
                while part := link.recv(65536):
                    heard = time.monotonic()
                    came += part
                    self.parse(link, came)
                raise ConnectionResetError("the peer closed the link")
            if time.monotonic() > max(heard, asked) + 5:
                asked = time.monotonic()
                self.output += frame(PING, 0, 0, 0)
            if time.monotonic() > heard + 15:
                raise TimeoutError("the peer is silent")

    def move_local(self, link: socket.socket) -> None:
        """Waits until something can move, and moves what is not the link's."""
        sources = {s.fd: s for s in self.out.values() if s.fd >= 0 and not s.ended and len(s.data) < 1e6}
        sinks = {s.fd: s for s in self.into.values() if s.fd >= 0 and s.data}
        writes = [link.fileno(), *sinks] if self.output else [*sinks]
        readable, writable, _ = select.select([link.fileno(), *sources], writes, [], 0.05)
        for stream in (sources[fd] for fd in readable if fd in sources):
            part = os.read(stream.fd, 65536)
            stream.data += part
            stream.ended = not part
        for stream in (sinks[fd] for fd in writable if fd in sinks):
            try:
                del stream.data[: os.write(stream.fd, stream.data[:4096])]  # which a ready pipe takes
            except OSError:
                stream.stopped = True  # the peer learns it by STOP
        for stream in self.into.values():
            if stream.stopped:
                stream.data.clear()
            if stream.stopped or (stream.ended and not stream.data):
                stream.close()

    def parse(self, link: socket.socket, came: bytearray) -> None:
        while len(came) >= 16:
            kind, flags, channel, size, number = struct.unpack_from("<BBHIQ", came)
            check(size <= LONGEST.get(kind, -1), f"frame type {kind}, length {size}")
            if len(came) < 16 + size:
                return
            self.handle(kind, flags, channel, number, bytes(came[16 : 16 + size]))
            del came[: 16 + size]
            if self.cut and self.came >= self.cut:
                print(f"link cut after {self.came} bytes", file=sys.stderr, flush=True)
                self.cut = 0
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionAbortedError("--cut")

    def handle(self, kind: int, flags: int, channel: int, number: int, payload: bytes) -> None:
        streams = self.into if kind in (DATA, GAP) else self.out if kind in (TAKEN, STOP) else {0: Stream()}
        check(channel in streams and (channel or kind != STOP), f"frame type {kind} on channel {channel}")
        check(kind == TAKEN or flags == 0 or (kind == DATA and flags == FIN and not payload), "flags")
        stream = streams[channel]
        if kind == DATA:
            check(flags == FIN or not stream.ended, f"DATA on channel {channel} after its FIN")
            self.take(channel, stream, number, payload)
            stream.ended = flags == FIN
        elif kind == TAKEN:
            check(stream.taken <= number <= stream.sent and 16 <= flags <= 24, f"TAKEN of channel {channel}")
            del stream.data[: number - stream.base]
            stream.base, stream.taken, stream.window = number, number, 1 << flags
        elif kind == STOP:
            del stream.data[stream.sent - stream.base :]
            stream.ended = True
            stream.close()
        elif kind == GAP:
            check(number >= stream.expected and payload, "GAP")
            stream.expected = number
        elif kind == PING:
            self.output += frame(PONG, 0, 0, number)
        elif kind == GOAWAY:
            check(self.over, f"the peer went away: {payload!r}")
            self.done = True

    def take(self, channel: int, stream: Stream, number: int, payload: bytes) -> None:
        check(number == stream.expected, f"DATA on channel {channel} at {number}")
        stream.expected += len(payload)
        self.came += len(payload)
        credit = stream.told.get(TAKEN, 0) + (1 << WINDOW)
        check(channel == 0 or stream.expected <= credit, f"channel {channel}: more than the window")
        if channel:
            stream.data += payload
        elif payload[0] == SIGNAL and self.child and payload[1:].decode() in signal.Signals.__members__:
            self.child.send_signal(signal.Signals[payload[1:].decode()])
        elif payload[0] == END and not self.argv:
            count = int.from_bytes(payload[1:3], "little")
            body, self.status = payload[3 : 3 + 10 * count], payload[3 + 10 * count :]
            self.finals = list(struct.iter_unpack("<HQ", body))
            check(all(self.into[c].ended and self.into[c].expected == n for c, n in self.finals), "END")
            stream.data += payload  # so it is not taken yet

    def fill(self) -> None:
        """Puts all that may be sent now into the output."""
        self.write_records()
        if self.finals is not None and not any(self.into[c].data for c, _ in self.finals):
            self.into[0].data.clear()  # TAKEN may pass END: the completion
            self.over = self.over or time.monotonic() + 5
        for channel, stream in self.into.items():
            taken = stream.expected - len(stream.data)
            if stream.told.get(TAKEN) != taken:
                self.output += frame(TAKEN, WINDOW, channel, taken)
            if stream.stopped and STOP not in stream.told:
                self.output += frame(STOP, 0, channel, 0)
            stream.told = {TAKEN: taken, STOP: 0} if stream.stopped else {TAKEN: taken}
        while len(self.output) < 1 << 18 and sum([self.advance(c, s) for c, s in self.out.items()]):
            pass

    def write_records(self) -> None:
        while self.signals:
            self.record(bytes([SIGNAL]) + self.signals.pop(0).encode())
        if self.child and not self.status and (code := self.child.poll()) is not None:
            name = next((s.name for s in signal.Signals if s == -code), "")
            self.exit(1 if code >= 0 else 2, abs(code), name)
        if self.argv and self.status and self.out[2].ended and self.out[3].ended and self.end_at < 0:
            finals = b"".join(struct.pack("<HQ", c, self.out[c].base + len(self.out[c].data)) for c in (2, 3))
            self.record(struct.pack("<BH", END, 2) + finals + self.status)
            self.end_at = self.records[-1]

    def advance(self, channel: int, stream: Stream) -> bool:
        """Puts one frame of a channel into the output; tells whether there was one."""
        end = stream.base + len(stream.data)
        limit = min(end, stream.taken + stream.window, stream.sent + 65536)
        if channel == 0:  # one record in each frame, and END after the FINs
            limit = next((mark for mark in self.records if mark > stream.sent), 0)
            if limit == self.end_at and not (DATA in self.out[2].told and DATA in self.out[3].told):
                return False
        if limit > stream.sent:
            part = bytes(stream.data[stream.sent - stream.base : limit - stream.base])
            self.output += frame(DATA, 0, channel, stream.sent, part)
            stream.sent = limit
        elif stream.ended and stream.sent == end and DATA not in stream.told:
            self.output += frame(DATA, FIN, channel, end)
            stream.told[DATA] = end
        else:
            return False
        return True

    def leave(self, link: socket.socket) -> None:
        self.done = True
        link.settimeout(5)
        with contextlib.suppress(OSError):  # the peer may be gone already: it has all
            link.sendall(self.output + frame(GOAWAY, 0, 0, 0, bytes([LEAVING])))
            socket.socket.shutdown(link, socket.SHUT_WR)
            while link.recv(65536):  # closing with unread bytes would reset the link, and GOAWAY be lost
                pass


def main() -> int:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description="A second implementation of the sockstream protocol.")
    parser.add_argument("kind", choices=["viewer", "program"])
    for name in ("--dial", "--wait", "--token-file", "--cert", "--key"):
        parser.add_argument(name)
    parser.add_argument("--cut", type=int, default=0)
    session = Session(parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :])
    try:
        return session.run()
    except ValueError as error:
        print(f"independent: {error}", file=sys.stderr)
        return 125
    finally:
        session.endpoint.close()


if __name__ == "__main__":
    sys.exit(main())
