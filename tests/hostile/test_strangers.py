"""Whoever has no token gets nothing: no answer but the one docs/protocol.md allows, no time, no memory, one log line.

Each attack meets both waiting commands on each of their addresses; while its connection is still there, a good client
is served.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from hostile.guest import client_context, dial_link, good_client, prove
from hostile.victim import SCHEMES, TOKEN, WAITING, Victim, dial, own_source, read_to_end, send_all, waiting_address
from sockstream.handshake import MAGIC
from support import limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PREAMBLE = MAGIC + bytes.fromhex("0100 0000 2100 0000")
VERSION_ANSWER = MAGIC + bytes.fromhex("0100 0000 0000 0000")
BROWSER = (
    b"POST /run HTTP/1.1\r\nHost: 127.0.0.1:7411\r\nConnection: keep-alive\r\nContent-Length: 27\r\n"
    b'sec-ch-ua: "Chromium";v="131", "Not_A Brand";v="24"\r\nOrigin: http://shop.example\r\n'
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0\r\n"
    b"Content-Type: text/plain;charset=UTF-8\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\r\n"
    b"\x93SKS\r\n\x1a\n rm -rf ~ ; exit 0\n"
)


# `listen` and `serve` share what refuses, and Unix sockets what is plain: all of them are for the full suite.
QUICK = {("serve", "sock"), ("serve", "sock+tls")}
VICTIMS = [
    pytest.param(pair, id="-".join(pair), marks=[] if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(WAITING, SCHEMES)
]
TCP_VICTIMS = [victim for victim in VICTIMS if "+unix" not in str(victim.id)]


@pytest.fixture(scope="module", params=VICTIMS)
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """One running command for all attacks on it; what it needs once (TLS, for example) it has loaded already."""
    name, scheme = request.param
    directory: Path = tmp_path_factory.mktemp("v")
    with Victim(name, waiting_address(scheme, directory), directory) as victim:
        warm_up(victim, scheme)
        yield victim


def warm_up(victim: Victim, scheme: str) -> None:
    """Have the victim load what it will need."""
    for tls in (None, True) if scheme == "sock" else (None,):
        good_client(victim, seconds=20, tls=tls)
        with dial_link(victim.address, "127.0.0.1" if "unix" not in scheme else None, tls=tls)[0] as sock:
            sock.sendall(false_proof(sock))
            read_to_end(sock)


def is_unix(victim: Victim) -> bool:
    """Whether it waits on a Unix socket."""
    return "+unix:" in victim.address


def hello(role: int = 1, size: int = 33, version: bytes = b"\1\0", nonce: bytes = b"n" * 32) -> bytes:
    """Return a client's preamble and HELLO, right unless told otherwise."""
    start = MAGIC + version + bytes(2) + size.to_bytes(2, "little") + bytes(2)
    return start + bytes((role,)) + nonce.ljust(size - 1, b"n")[: max(0, size - 1)]


def false_proof(sock: socket.socket) -> bytes:
    """Say hello, read the answer, and return 32 bytes that prove nothing."""
    sock.sendall(hello())
    sock.recv(65536)
    return b"\x5a" * 32


def client_hello() -> bytes:
    """Return the first flight of a TLS client, of the kind we take."""
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


NOISE = random.Random(7).randbytes(65536)
STRANGE_BYTES = {
    "closes at once": b"",
    "a browser": BROWSER,
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "noise": NOISE,
    "noise like tls": b"\x16" + NOISE,
    "noise like ours": MAGIC[:7] + NOISE,
    "smb": bytes.fromhex("00000054ff534d4272000000001801280000000000000000000000000000000000"),
    "zeros": bytes(65536),
    "tls hello, then noise": client_hello() + NOISE,
    "tls 1.0 hello": bytes.fromhex("1603010031010000 2d0301" + "5a" * 32 + "000006002f0035000a0100"),
}


def only_tls_records(data: bytes) -> bool:
    """Whether that is nothing, or whole records of a TLS handshake and its alerts."""
    while len(data) >= 5 and data[0] in (20, 21, 22, 23) and data[1] == 3:
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return not data


@pytest.mark.parametrize("data", STRANGE_BYTES.values(), ids=STRANGE_BYTES)
def test_bytes_of_another_protocol_get_no_answer(victim: Victim, data: bytes) -> None:
    """Nothing goes back but what TLS itself says, where TLS is spoken; the log has one line about it."""
    source = None if is_unix(victim) else own_source()
    with victim.no_leaks():
        with dial(victim.address, source) as sock:
            send_all(sock, data)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            good_client(victim)
            answer = read_to_end(sock)
        speaks_tls = not is_unix(victim) and ("tls" in victim.address or data[:1] == b"\x16")
        assert only_tls_records(answer) if speaks_tls else answer == b"", answer
        if source is not None:
            victim.wait_for_line_about(source)


def says(data: bytes) -> Callable[[socket.socket, bytes], bytes]:
    """Return an attack that says something, and returns the answer."""

    def attack(sock: socket.socket, _binding: bytes) -> bytes:
        send_all(sock, data)
        return read_to_end(sock)

    return attack


def with_token(token: bytes, *behind: bytes) -> Callable[[socket.socket, bytes], bytes]:
    """Return an attack that proves a token, perhaps with something right behind the proof."""

    def attack(sock: socket.socket, binding: bytes) -> bytes:
        prove(sock, binding, token, *behind)
        return read_to_end(sock)

    return attack


def of_another_address(sock: socket.socket, binding: bytes) -> bytes:
    """Prove the right token for another link."""
    prove(sock, binding[::-1])
    return read_to_end(sock)


# What is done, what may come back (in full), and what the log says. A reset may destroy an answer.
FALSE_MEMBERS = {
    "wrong token": (with_token(bytes(32)), (bytes(32),), b"another token"),
    "passphrase": (with_token(b"let me in"), (bytes(32),), b"another token"),
    "no token": (with_token(b"\0"), (bytes(32),), b"another token"),
    "another link's proof": (of_another_address, (bytes(32),), b"another token"),
    "zeros as proof": (says(hello() + bytes(32)), (PREAMBLE + b"\2" + bytes(64),), b"another token"),
    "a longer hello": (says(hello(size=2048) + bytes(32)), (PREAMBLE + b"\2" + bytes(64),), b"another token"),
    "hello of 2049": (says(hello(size=2049)), (b"",), b"HELLO of 2049"),
    "hello of 0": (says(hello(size=0)), (b"",), b"HELLO of 0"),
    "hello of 65535": (says(hello(size=65535)), (b"",), b"HELLO of 65535"),
    "our own role": (says(hello(role=2)), (b"",), b"role 2"),
    "role 0": (says(hello(role=0)), (b"",), b"role 0"),
    "version 2": (says(hello(version=b"\2\0")), (VERSION_ANSWER,), b"version 2.0"),
    "version 0.9": (says(hello(version=b"\0\x09")), (VERSION_ANSWER,), b"version 0.9"),
    "version 255": (says(hello(version=b"\xff\xff")), (VERSION_ANSWER,), b"version 255.255"),
    "frames behind the proof": (with_token(TOKEN, bytes(16)), (), b"before the proof was through"),
    "frames behind a false one": (with_token(bytes(32), NOISE), (b"", bytes(32)), b"another token"),
}


def without_nonce(answer: bytes) -> bytes:
    """Put zeros in place of the server's nonce, which is random, where there is one."""
    return answer[:17] + bytes(32) + answer[49:] if answer.startswith(PREAMBLE + b"\2") else answer


@pytest.mark.parametrize(("attack", "wanted", "reason"), FALSE_MEMBERS.values(), ids=FALSE_MEMBERS)
def test_false_members_get_what_the_protocol_allows(
    victim: Victim, attack: Callable[[socket.socket, bytes], bytes], wanted: tuple[bytes, ...], reason: bytes
) -> None:
    """The answer is exactly the one of docs/protocol.md section 2, and never a proof; the log has the reason."""
    source = None if is_unix(victim) else own_source()
    with victim.no_leaks():
        sock, binding = dial_link(victim.address, source)
        with sock:
            answer = without_nonce(attack(sock, binding))
            # Who owns the token gets the server's proof, whatever he has put behind his own.
            assert answer in wanted if wanted else len(answer) <= 32, answer
            good_client(victim)
    if source is not None:
        assert reason in victim.wait_for_line_about(source)


@pytest.mark.parametrize("victim", TCP_VICTIMS, indirect=True)
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_real_http_clients_get_nothing(victim: Victim, secure: bool) -> None:
    """The standard library's HTTP and HTTPS clients find nobody who speaks HTTP."""
    place, source = ("127.0.0.1", int(victim.address.rpartition(":")[2])), own_source()
    common = {"timeout": limit(10), "source_address": (source, 0)}
    context = client_context("http/1.1")
    client = (
        http.client.HTTPSConnection(*place, **common, context=context)
        if secure
        else http.client.HTTPConnection(*place, **common)
    )
    with victim.no_leaks():
        try:
            with pytest.raises((http.client.HTTPException, OSError)):
                client.request("GET", "/")
                client.getresponse()
        finally:
            client.close()
        victim.wait_for_line_about(source)
