"""Writes tests/vectors/*.json: the facts of docs/protocol.md as bytes.

Only struct, hmac and hashlib make the bytes, and nothing of sockstream is imported, so that these files
check the implementation and not the other way round. Every vector has a name, the fields that went in, and
"hex". All nonces and ids are SHA-256 of a label, hence the same in each run. Offsets and sizes are JSON
integers up to 2^64-1.

    python tests/vectors/make_vectors.py [--check]

--check writes nothing and exits with 1 when a file differs from what would be written.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os.path
import struct
import sys

OPEN, DATA, TAKEN, STOP, GAP, PING, PONG, GOAWAY = range(1, 9)
FIN, WHOLE, RESUME, DURABLE, OLDEST = 1, 2, 1, 2, 2**64 - 1
OBJECTS, PROGRAM, VIEWER = 1, 2, 3
STARTED, SIGNAL, WINSIZE, EXIT, END = range(1, 6)
MAGIC = bytes.fromhex("93534B530D0A1A0A")
HERE = os.path.dirname(os.path.abspath(__file__))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def vector(name: str, data: bytes, **fields: object) -> dict[str, object]:
    """Returns one entry of a file; fields of bytes are written as hex."""
    shown = {key: value.hex() if isinstance(value, bytes) else value for key, value in fields.items()}
    return {"name": name, "fields": shown, "hex": data.hex()}


# Section 2


def preamble(hello_length: int, major: int = 1, flags: int = 0) -> bytes:
    return MAGIC + struct.pack("<BBHHH", major, 0, flags, hello_length, 0)


def hello(role: int, nonce: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<B32s", role, nonce) + rest


def greeting(role: int, nonce: bytes, rest: bytes = b"") -> bytes:
    body = hello(role, nonce, rest)
    return preamble(len(body)) + body


def stretch(token: bytes) -> bytes:
    if len(token) == 32:
        return token
    return hashlib.scrypt(token, salt=b"sockstream 1 key", n=16384, r=8, p=1, dklen=32)


def tcp_binding(address: bytes, port: int) -> bytes:
    return sha256(b"tcp" + address.rjust(16, b"\0") + struct.pack("<H", port))


def ipv4(text: str) -> bytes:
    return b"\xff\xff" + bytes(int(part) for part in text.split("."))


def proofs(key: bytes, transcript: bytes, binding: bytes) -> tuple[bytes, bytes]:
    client = hmac.digest(key, b"sockstream 1 client\0" + sha256(transcript) + binding, "sha256")
    server = hmac.digest(key, b"sockstream 1 server\0" + sha256(transcript + client) + binding, "sha256")
    return client, server


TOKEN = sha256(b"token")
CLIENT = greeting(1, sha256(b"client nonce"))
SERVER = greeting(2, sha256(b"server nonce"))


def handshake_vectors() -> list[dict[str, object]]:
    rest = b"to be ignored"
    nonces = sha256(b"client nonce"), sha256(b"server nonce")
    return [
        vector("client preamble and HELLO", CLIENT, role=1, nonce=nonces[0], rest=b"", flags=0),
        vector("server preamble and HELLO", SERVER, role=2, nonce=nonces[1], rest=b"", flags=0),
        vector(
            "client HELLO with a rest and unknown flags",
            preamble(46, flags=0x8001) + hello(1, nonces[0], rest),
            role=1,
            nonce=nonces[0],
            rest=rest,
            flags=0x8001,
        ),
        vector("preamble of a client of version 2", preamble(33, major=2), major=2, hello_length=33),
        vector("a server's answer to another version", preamble(0), major=1, hello_length=0),
    ]


def key_vectors() -> list[dict[str, object]]:
    tokens = {
        "token of 32 bytes": TOKEN,
        "passphrase": b"correct horse battery staple",
        "passphrase in UTF-8": "gr\u00fcn \u03bb".encode(),
        "passphrase of 31 bytes": b"x" * 31,
    }
    return [vector(name, stretch(token), token=token) for name, token in tokens.items()]


V4_ON_V6 = bytes(10) + ipv4("192.0.2.7")
V6 = bytes.fromhex("20010db8000000000000000000000001")
CERTIFICATE = b"any bytes stand for a certificate in DER"
BINDINGS = {"tls": sha256(CERTIFICATE), "tcp4": tcp_binding(ipv4("127.0.0.1"), 7001), "unix": sha256(b"unix")}


def binding_vectors() -> list[dict[str, object]]:
    loopback6 = bytes(15) + b"\1"
    return [
        vector("TLS", BINDINGS["tls"], certificate=CERTIFICATE),
        vector("TCP over IPv4", BINDINGS["tcp4"], address="127.0.0.1", port=7001),
        vector(
            "TCP over IPv4, seen as ::ffff:192.0.2.7", tcp_binding(V4_ON_V6, 65535), address="192.0.2.7", port=65535
        ),
        vector("TCP over IPv6", tcp_binding(V6, 443), address="2001:db8::1", port=443),
        vector("TCP over IPv6 loopback", tcp_binding(loopback6, 7001), address="::1", port=7001),
        vector("Unix", BINDINGS["unix"]),
    ]


def proof_vectors() -> list[dict[str, object]]:
    """The proofs of one transcript over each kind of link, and with a stretched passphrase."""
    found, transcript = [], CLIENT + SERVER
    passphrase = b"correct horse battery staple"
    for link, token in (("tls", TOKEN), ("tcp4", TOKEN), ("unix", TOKEN), ("tcp4", passphrase)):
        client, server = proofs(stretch(token), transcript, BINDINGS[link])
        given = {"key": stretch(token), "binding": BINDINGS[link], "transcript": transcript}
        which = f"{link}, {len(token)} bytes of token"
        found.append(vector(f"client proof, {which}", client, **given))
        found.append(vector(f"server proof, {which}", server, client_proof=client, **given))
    return [vector("transcript", transcript, sha256=sha256(transcript)), *found]


# Section 3


def frame(kind: int, flags: int, channel: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHIQ", kind, flags, channel, len(payload), number) + payload


def frame_vectors() -> list[dict[str, object]]:
    minimal = open_payload([(1, sha256(b"session")[:16]), (2, b"\x02")])
    cases: list[tuple[str, int, int, int, int, bytes]] = [
        ("OPEN", OPEN, DURABLE, 0, 0, minimal),
        ("OPEN, resuming", OPEN, DURABLE | RESUME, 0, 0, minimal),
        ("OPEN with unknown features", OPEN, DURABLE, 0, 1 << 63, minimal),
        ("DATA", DATA, 0, 2, 4096, b"hello\n"),
        ("DATA, the end of a stream", DATA, FIN, 2, 4102, b""),
        *((f"DATA, WHOLE, codec {codec}", DATA, WHOLE | codec << 4, 4, 7, b"body") for codec in range(1, 6)),
        ("DATA without WHOLE on channel 4", DATA, 0, 4, 11, descriptor(4, 3, [(2, 1)]) + b"bodXY"),
        *((f"TAKEN, window 2^{log}", TAKEN, log, 3, 2**40 + 5, b"") for log in (16, 20, 24)),
        ("STOP", STOP, 0, 1, 0, b""),
        ("GAP, taken by an earlier process", GAP, 0, 2, 65536, b"\1"),
        ("GAP, dropped by a policy", GAP, 0, 3, 2**33, b"\2"),
        ("PING", PING, 0, 0, 0x0123456789ABCDEF, b""),
        ("PONG", PONG, 0, 0, 0x0123456789ABCDEF, b""),
        ("GOAWAY", GOAWAY, 0, 0, 0, b"\6"),
    ]
    return [
        vector(
            name,
            frame(kind, flags, channel, number, payload),
            type=kind,
            flags=flags,
            channel=channel,
            number=number,
            payload=payload,
        )
        for name, kind, flags, channel, number, payload in cases
    ]


def open_payload(fields: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("<HI", tag, len(value)) + value for tag, value in fields)


def want(channel: int, offset: int) -> tuple[int, bytes]:
    return 3, struct.pack("<HQ", channel, offset)


def u64(tag: int, value: int) -> tuple[int, bytes]:
    return tag, struct.pack("<Q", value)


def full_program(session: bytes) -> list[tuple[int, bytes]]:
    return [
        (1, session),
        (2, b"\x02"),
        want(0, 0),
        want(1, 123_456),
        (4, b"sockstream 1.0"),
        (8, b"\x14"),
        u64(9, 3_600_000),
        (10, b"python"),
        (10, b"-c"),
        (10, b"print(1)"),
        (11, "gr\u00fcn".encode()),
        (12, b"host.example"),
        (14, b"\x01"),
    ]


def full_viewer(session: bytes) -> list[tuple[int, bytes]]:
    return [
        (1, session),
        (2, b"\x03"),
        want(0, 58),
        want(2, 2**33),
        want(3, 0),
        want(4, 17),
        (4, b"sockstream 1.0"),
        u64(6, 2**26),
        u64(7, 2**30),
        (8, b"\x18"),
        u64(9, OLDEST),
        (11, b"terminal"),
        (12, b"host.example"),
        (13, b"\x01"),
        (15, struct.pack("<HH", 24, 80)),
    ]


def open_vectors() -> list[dict[str, object]]:
    session = sha256(b"session")[:16]
    cases = {
        "minimal, program": [(1, session), (2, b"\x02")],
        "minimal, viewer": [(1, session), (2, b"\x03")],
        "full program": full_program(session),
        "full viewer with wants": full_viewer(session),
        "viewer that adopts": [(1, session), (2, b"\x03"), *(want(channel, OLDEST) for channel in (0, 2, 3))],
        "objects": [
            (1, session),
            (2, b"\x01"),
            want(4, 0),
            (5, bytes([3, 11, 7])),
            u64(6, 2**20),
            u64(7, 2**40),
            (8, b"\x10"),
            u64(9, 0),
        ],
        "repeated and empty arguments": [(1, session), (2, b"\x02"), (10, b"a"), (10, b""), (10, b"a"), (10, b"\xff")],
        "unknown tags, also twice": [(999, b"?"), (1, session), (999, b""), (2, b"\x02")],
    }
    return [
        vector(name, open_payload(fields), fields=[[tag, value.hex()] for tag, value in fields])
        for name, fields in cases.items()
    ]


# Sections 5 and 6


def status(how: int, value: int, text: str = "", elapsed: int = 0, user: int = 0, system: int = 0) -> bytes:
    return struct.pack("<BBHQQQ", how, value, 0, elapsed, user, system) + text.encode()


def end(finals: dict[int, int], state: bytes) -> bytes:
    listed = b"".join(struct.pack("<HQ", *item) for item in finals.items())
    return struct.pack("<BH", END, len(finals)) + listed + state


def started(pid: int) -> bytes:
    return struct.pack("<BQ", STARTED, pid)


STATES = {
    "unknown": (0, 0, "", 5, 0, 0),
    "exited with 7": (1, 7, "", 1_500_000, 20_000, 3_000),
    "ended by SIGTERM": (2, 15, "SIGTERM", 2**33, 1, 2),
    "could not be started": (3, 127, "nothere: no such file", 0, 0, 0),
}


def record_vectors() -> list[dict[str, object]]:
    names = ("how", "value", "text", "elapsed", "user", "system")
    found = [
        vector("STARTED", started(4242), kind=STARTED, pid=4242),
        vector("SIGNAL", bytes([SIGNAL]) + b"SIGINT", kind=SIGNAL, signal="SIGINT"),
        *(
            vector(f"WINSIZE {size}", struct.pack("<BHHHH", WINSIZE, *size), kind=WINSIZE, size=size)
            for size in ([24, 80, 640, 480], [50, 132, 0, 0])
        ),
        vector("an unknown kind", b"\xc8?", kind=200),
    ]
    for name, state in STATES.items():
        fields: dict[str, object] = dict(zip(names, state, strict=True))
        finals = {2: 6, 3: 0} if name != "ended by SIGTERM" else {2: 2**33, 3: 9, 4: 77}
        body = status(*state)
        found.append(vector(f"EXIT, {name}", bytes([EXIT]) + body, kind=EXIT, **fields))
        fields |= {"kind": END, "finals": list(finals.items())}
        found.append(vector(f"END, {name}", end(finals, body), **fields))
    return found


def goaway_vectors() -> list[dict[str, object]]:
    names = ["refused", "version", "full", "replaced", "unknown-session", "leaving"]
    texts = [(code, name, "") for code, name in enumerate(names, 1)]
    texts.append((1, "refused, with a reason", "only viewers here"))
    texts.append((3, "full, with the longest text", "x" * 512))
    return [vector(name, bytes([code]) + text.encode(), code=code, text=text) for code, name, text in texts]


def descriptor(codec: int, body: int, buffers: list[tuple[int, int]]) -> bytes:
    listed = b"".join(struct.pack("<QB7x", *buffer) for buffer in buffers)
    return struct.pack("<BBHIQ", codec, 0, 0, len(buffers), body) + listed


def descriptor_vectors() -> list[dict[str, object]]:
    cases = {
        "bytes without buffers": (1, 2**32, []),
        "an empty bytes": (2, 0, []),
        "a pickle with two buffers": (4, 120, [(1_000_000, 0), (2**33, 1)]),
        "a pickle by value": (5, 2**20, [(0, 1)]),
    }
    return [
        vector(name, descriptor(*case), **dict(zip(("codec", "body", "buffers"), case, strict=True)))
        for name, case in cases.items()
    ]


# One session: a program prints "hello\n" and exits with 7; its viewer is broken off once and replaced once

Step = dict[str, str]


def program(what: str, data: bytes) -> Step:
    return {"from": "client", "what": what, "hex": data.hex()}


def viewer(what: str, data: bytes) -> Step:
    return {"from": "server", "what": what, "hex": data.hex()}


def opens(number: int, program_wants: dict[int, int], viewer_wants: dict[int, int]) -> list[Step]:
    """The steps of a link up to both OPENs."""
    ours = greeting(1, sha256(b"client nonce %d" % number))
    theirs = greeting(2, sha256(b"server nonce %d" % number))
    client, server = proofs(TOKEN, ours + theirs, BINDINGS["tcp4"])
    known = [(1, sha256(b"session")[:16])]
    from_program = [*known, (2, b"\x02"), *(want(*item) for item in program_wants.items()), (10, b"greet")]
    from_viewer = [*known, (2, b"\x03"), *(want(*item) for item in viewer_wants.items())]
    flags = DURABLE if number == 1 else DURABLE | RESUME
    return [
        program("preamble and HELLO", ours),
        viewer("preamble and HELLO", theirs),
        program("proof", client),
        viewer("proof", server),
        program("OPEN", frame(OPEN, flags, 0, 0, open_payload(from_program))),
        viewer("OPEN", frame(OPEN, DURABLE, 0, 0, open_payload(from_viewer))),
    ]


def taken(channel: int, offset: int) -> tuple[str, bytes]:
    return f"TAKEN of channel {channel}", frame(TAKEN, 20, channel, offset)


def gap(channel: int, offset: int) -> tuple[str, bytes]:
    return f"GAP on channel {channel}", frame(GAP, 0, channel, offset, b"\1")


def fin(channel: int, offset: int) -> tuple[str, bytes]:
    return f"FIN of channel {channel}", frame(DATA, FIN, channel, offset)


def stdout(offset: int, data: bytes) -> tuple[str, bytes]:
    return "DATA of stdout", frame(DATA, 0, 2, offset, data)


def first_link() -> list[Step]:
    return [
        *opens(1, {}, {}),
        program("STARTED", frame(DATA, 0, 0, 0, started(4242))),
        program(*fin(3, 0)),  # the program closes its stderr at once
        viewer(*taken(0, 9)),
        program(*stdout(0, b"hel")),
    ]


def second_link() -> list[Step]:
    return [
        *opens(2, {0: 0, 1: 0}, {0: 9, 2: 3, 3: 0}),
        program(*taken(0, 0)),
        program(*taken(1, 0)),
        program(*fin(3, 0)),
        viewer(*taken(0, 9)),
        viewer(*taken(2, 0)),
        viewer(*taken(3, 0)),
        viewer(*taken(2, 3)),
        program(*stdout(3, b"lo\n")),
    ]


def third_link() -> list[Step]:
    body = status(*STATES["exited with 7"])
    last = end({2: 6, 3: 0}, body)
    at_end = 9 + 1 + len(body)
    return [
        *opens(3, {0: 0, 1: 0}, dict.fromkeys((0, 2, 3), OLDEST)),
        program(*taken(0, 0)),
        program(*taken(1, 0)),
        program(*gap(0, 9)),
        program(*gap(2, 3)),
        program(*gap(3, 0)),
        program(*fin(3, 0)),
        viewer(*taken(0, 9)),
        viewer(*taken(2, 3)),
        viewer(*taken(3, 0)),
        program(*stdout(3, b"lo\n")),
        program("EXIT", frame(DATA, 0, 0, 9, bytes([EXIT]) + body)),
        program(*fin(2, 6)),
        program("END", frame(DATA, 0, 0, at_end, last)),
        viewer(*taken(2, 6)),
        viewer("TAKEN of channel 0: the completion", taken(0, at_end + len(last))[1]),
        program("GOAWAY leaving", frame(GOAWAY, 0, 0, 0, b"\6")),
    ]


def conversation() -> dict[str, object]:
    return {
        "token": TOKEN.hex(),
        "binding": BINDINGS["tcp4"].hex(),
        "address": "127.0.0.1",
        "port": 7001,
        "client": "program",
        "server": "viewer",
        "stdout": b"hello\n".hex(),
        "exit": 7,
        "links": [
            {"name": "the session begins", "ends": "broken", "steps": first_link()},
            {"name": "both ends resume", "ends": "broken, and the viewer is gone", "steps": second_link()},
            {"name": "a new viewer adopts", "ends": "completion", "steps": third_link()},
        ],
    }


def files() -> dict[str, object]:
    return {
        "handshake.json": handshake_vectors(),
        "keys.json": key_vectors(),
        "bindings.json": binding_vectors(),
        "proofs.json": proof_vectors(),
        "frames.json": frame_vectors(),
        "open.json": open_vectors(),
        "records.json": record_vectors(),
        "goaway.json": goaway_vectors(),
        "descriptors.json": descriptor_vectors(),
        "conversation.json": conversation(),
    }


def is_written(name: str, text: str) -> bool:
    path = os.path.join(HERE, name)
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8", newline="") as file:
        return file.read() == text


def main() -> int:
    texts = {name: json.dumps(content, indent=1) + "\n" for name, content in files().items()}
    stale = [name for name, text in texts.items() if not is_written(name, text)]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{name} differs from what make_vectors.py writes; run it", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        with open(os.path.join(HERE, name), "w", encoding="utf-8", newline="") as file:
            file.write(texts[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
