"""TLS round a raw stream: in memory where order matters, over sockets and against OpenSSL's own programs."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import ssl
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import make_authority
from connections import Pair
from sockstream import tls
from sockstream.errors import (
    AddressError,
    AuthenticationError,
    ConnectionLost,
    LimitExceeded,
    RemoteProtocolError,
    SockstreamError,
)
from sockstream.raw import QUEUE_LIMIT, RawStream
from sockstream.session import Data, Finished
from support import free_port, limit

WHOLE = 1 << 30
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def noise(size: int) -> bytes:
    """Return bytes that do not repeat and are the same in every run."""
    return random.Random(size).randbytes(size)


class Files(NamedTuple):
    """PEM files: an authority, a certificate for localhost, its key."""

    ca: str
    cert: str
    key: str


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    """Make the files once."""
    with tempfile.TemporaryDirectory() as directory:
        yield Files(*make_authority(directory))


class Strict(RawStream):
    """A raw stream that minds when its buffer is asked for while events still point into it."""

    def get_buffer(self, hint: int) -> memoryview:
        assert hint > 0
        assert not self._events, "the events before were not used up"
        return super().get_buffer(hint)


class End:
    """One end: a TlsLayer round a raw stream, and what came out of it. `takes`: whether it takes bytes at once."""

    def __init__(self, context: ssl.SSLContext, *, server: bool, takes: bool = True, **options: object) -> None:
        self.stream = Strict(sends=1, receives=2)
        self.received = bytearray()
        self.finished = False
        self.takes = takes
        self.untaken = 0
        self.layer = tls.TlsLayer(
            context, server_side=server, make_core=self._make_core, on_data=self.absorb, **options
        )

    def _make_core(self, sslobject: ssl.SSLObject) -> RawStream:
        self.sslobject = sslobject
        return self.stream

    def absorb(self) -> None:
        for event in self.stream.events():
            if isinstance(event, Data):
                self.received += event.data
                self.untaken += len(event.data)
            else:
                assert isinstance(event, Finished)
                self.finished = True
        if self.takes:
            self.take()

    def take(self) -> None:
        self.stream.take(2, self.untaken, 0.0)
        self.untaken = 0

    def resume(self) -> None:
        """Take all, and call the layer as long as it is due, as a driver does."""
        self.take()
        while (deadline := self.layer.next_deadline()) is not None:
            assert deadline == 0.0
            self.layer.handle_timeout(1.0)
            self.take()

    def write(self, data: bytes) -> None:
        self.stream.write(1, data)

    def finish(self) -> None:
        self.stream.finish(1)

    def outgoing(self, most: int = WHOLE) -> bytes:
        """Hand out ciphertext, at most so many bytes."""
        out = bytearray()
        while len(out) < most and (buffers := self.layer.data_to_send(0.0)):
            data = b"".join(buffers)[: most - len(out)]
            self.layer.data_sent(len(data))
            out += data
        return bytes(out)

    def feed(self, data: bytes, piece: int = WHOLE) -> bytes:
        """Receive ciphertext in pieces of at most so many bytes; return what it did not want."""
        while data and self.layer.wants_read():
            view = self.layer.get_buffer(piece)
            count = min(len(view), len(data), piece)
            view[:count] = data[:count]
            self.layer.buffer_updated(count, 0.0)
            data = data[count:]
        return data


def settle(left: End, right: End, piece: int = WHOLE) -> None:
    """Move ciphertext both ways until there is none; both ends take all they get."""
    while (one := left.outgoing()) + (other := right.outgoing()):
        assert right.feed(one, piece) == left.feed(other, piece) == b""


def raw_ends(files: Files, version: ssl.TLSVersion, **server_options: object) -> tuple[End, End]:
    """Return a verifying client and a server of raw tls://, after the handshake in the TLS version given."""
    client_context = tls.client_context(files.ca)
    client_context.maximum_version = version
    client = End(client_context, server=False, server_hostname="localhost")
    server = End(tls.server_context(files.cert, files.key, session=False)[0], server=True, **server_options)
    settle(client, server)
    assert client.sslobject.version() == {1: "TLSv1.2", 2: "TLSv1.3"}[VERSIONS.index(version) + 1]
    return client, server


SESSION_CONTEXT, SESSION_CERTIFICATE = tls.session_server_context()


def session_ends() -> tuple[End, End]:
    """Return a client and a server of the sockstream protocol, before the handshake."""
    client = End(tls.session_client_context(), server=False, alpn=tls.ALPN)
    return client, End(SESSION_CONTEXT, server=True, alpn=tls.ALPN)


def connected() -> tuple[End, End]:
    """Return the same after it."""
    client, server = session_ends()
    settle(client, server)
    assert client.layer.core is client.stream
    assert server.layer.core is server.stream
    return client, server


# ---- bytes


@pytest.mark.parametrize("version", VERSIONS)
def test_both_directions(files: Files, version: ssl.TLSVersion) -> None:
    """Bytes written at either end arrive at the other, none is on the wire in the clear."""
    client, server = raw_ends(files, version)
    client.write(b"a question")
    server.write(b"an answer")
    asked, answered = client.outgoing(), server.outgoing()
    assert b"question" not in asked
    assert b"answer" not in answered
    server.feed(asked)
    client.feed(answered)
    assert (server.received, client.received) == (b"a question", b"an answer")


def test_data_to_send_stays_until_sent() -> None:
    """What is handed out is the same until it is sent, in whatever portions."""
    client, server = connected()
    client.write(noise(100_000))
    first = b"".join(client.layer.data_to_send(0.0))
    client.write(b"later")
    assert b"".join(client.layer.data_to_send(1.0)) == first
    client.layer.data_sent(1000)
    assert b"".join(client.layer.data_to_send(2.0)) == first[1000:]
    client.layer.data_sent(len(first) - 1000)
    server.feed(first + client.outgoing())
    assert server.received == noise(100_000) + b"later"


def test_small_pieces_are_joined() -> None:
    """A thousand small pieces cost few records: much less than 22 bytes each."""
    client, server = connected()
    for _ in range(1000):
        client.write(b"four")
    wire = client.outgoing()
    assert len(wire) < 4000 + 100
    server.feed(wire)
    assert server.received == b"four" * 1000


def test_a_batch_is_bounded() -> None:
    """Of much to send about 256 KiB are encrypted at a time, the rest stays with the inner core."""
    client, _ = connected()
    client.write(bytes(QUEUE_LIMIT))
    batch = sum(map(len, client.layer.data_to_send(0.0)))
    assert 256 << 10 <= batch < 300 << 10
    assert client.stream.room(1) == batch // (1 << 14) * (1 << 14)


@settings(max_examples=60)
@given(
    writes=st.lists(st.integers(1, 70_000), max_size=8),
    cuts=st.lists(st.integers(1, 40_000), min_size=1),
    hand_out=st.integers(1, 100_000),
)
def test_any_split(writes: list[int], cuts: list[int], hand_out: int) -> None:
    """However what is written and the ciphertext are split, the plaintext is the same."""
    client, server = connected()
    for size in writes:
        client.write(noise(size))
    client.finish()
    turn = 0
    while wire := client.outgoing(hand_out):
        while wire:
            cut = cuts[turn % len(cuts)]
            assert server.feed(wire[:cut]) == b""
            wire = wire[cut:]
            turn += 1
    assert server.received == b"".join(map(noise, writes))
    assert server.finished


@pytest.mark.parametrize("version", VERSIONS)
def test_single_bytes(files: Files, version: ssl.TLSVersion) -> None:
    """Handshake and data come through byte by byte."""
    context = tls.client_context(files.ca)
    context.maximum_version = version
    client = End(context, server=False, server_hostname="127.0.0.1")
    server = End(tls.server_context(files.cert, files.key, session=False)[0], server=True)
    client.write(noise(3000))
    client.finish()
    settle(client, server, piece=1)
    assert server.received == noise(3000)
    assert server.finished


def test_data_right_behind_the_handshake() -> None:
    """What the client sends together with the end of its handshake arrives, however much it is."""
    client, server = session_ends()
    server.feed(client.outgoing())
    client.feed(server.outgoing())
    client.write(noise(200_000))
    server.feed(client.outgoing())
    assert server.received == noise(200_000)


def test_from_within_on_data() -> None:
    """An owner may send, and try to go on reading, while it is told of data; an echo does."""
    client, server = connected()
    echoed = bytearray()

    def echo() -> None:
        before = len(server.received)
        server.absorb()
        server.write(bytes(server.received[before:]))
        server.layer.resume_reading(0.0)
        echoed.extend(server.outgoing())

    server.layer._on_data = echo
    client.write(noise(500_000))
    server.feed(client.outgoing())
    client.feed(bytes(echoed))
    assert client.received == server.received == noise(500_000)


# ---- half-close


@pytest.mark.parametrize("server_first", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_half_close(files: Files, version: ssl.TLSVersion, server_first: bool) -> None:
    """One end of sending is an end of file at the other; the other direction goes on, then ends too."""
    ends = raw_ends(files, version)
    first, second = reversed(ends) if server_first else ends
    first.write(b"all I have")
    first.finish()
    second.write(b"on its way already, ")
    under_way = second.outgoing()
    second.feed(first.outgoing())
    assert first.layer.sending_is_over()
    assert (second.received, second.finished) == (b"all I have", True)
    assert not second.layer.wants_read()
    first.feed(under_way)
    for _ in range(20):
        second.write(noise(50_000))
        first.feed(second.outgoing())
    assert not first.finished
    second.finish()
    first.feed(second.outgoing())
    assert first.received == b"on its way already, " + noise(50_000) * 20
    assert first.finished
    assert second.layer.sending_is_over()
    assert not first.layer.wants_read()
    for end in first, second:
        end.layer.eof_received(0.0)  # orderly


def test_sending_is_over_when_close_notify_is_handed_out() -> None:
    """Not before the handshake, nor while data or close_notify is left."""
    client, server = session_ends()
    client.finish()
    assert not client.layer.sending_is_over()
    settle(client, server)
    assert client.layer.sending_is_over()
    server.write(b"x")
    server.finish()
    assert not server.layer.sending_is_over()
    size = sum(map(len, server.layer.data_to_send(0.0)))
    server.layer.data_sent(size - 1)
    assert not server.layer.sending_is_over()
    server.layer.data_sent(1)
    assert server.layer.sending_is_over()


@pytest.mark.parametrize("version", VERSIONS)
def test_half_close_with_data_unread(files: Files, version: ssl.TLSVersion) -> None:
    """An end that reads slowly can say that it has finished, at once, and loses nothing of what waits for it."""
    client, server = raw_ends(files, version, takes=False)
    client.write(noise(3 << 20))
    wire = server.feed(client.outgoing())
    assert wire, "the server has not pushed back"
    server.write(b"I am done")
    server.finish()
    client.feed(server.outgoing())
    assert (client.received, client.finished) == (b"I am done", True)
    client.finish()
    wire += client.outgoing()
    while wire:
        server.resume()
        wire = server.feed(wire)
    server.resume()
    assert server.received == noise(3 << 20)
    assert server.finished


# ---- back-pressure


def test_back_pressure_is_bounded() -> None:
    """An end that takes nothing soon wants no more, keeps what it has, and gets all when it takes."""
    client, server = connected()
    server.takes = False
    data = noise(4 << 20)
    client.write(data)
    client.finish()
    wire = client.outgoing()
    rest = server.feed(wire)
    accepted = len(wire) - len(rest)
    assert not server.layer.wants_read()
    assert server.layer.next_deadline() is None
    assert QUEUE_LIMIT <= accepted <= QUEUE_LIMIT + (512 << 10)
    server.layer.handle_timeout(0.0)
    server.layer.resume_reading(0.0)
    assert len(server.received) < QUEUE_LIMIT + (256 << 10)
    while rest:
        server.resume()
        assert server.layer.wants_read()
        rest = server.feed(rest)
    server.resume()
    assert server.received == data
    assert server.finished


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 900_000), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 300_000), min_size=1),
    takes=st.lists(st.booleans(), min_size=1),
    close_at=st.integers(0, 20),
)
def test_back_pressure_at_any_time(sizes: list[int], cuts: list[int], takes: list[bool], close_at: int) -> None:
    """Whenever an end takes what it has, and whenever it ends its own sending, nothing is lost or changed."""
    client, server = connected()
    server.takes = False
    for size in sizes:
        client.write(noise(size))
    client.finish()
    wire, turn = client.outgoing(), 0
    while wire or not server.finished:
        if turn == close_at:
            server.finish()
            client.feed(server.outgoing())
        if takes[turn % len(takes)] or turn > 100:
            server.resume()
        cut = cuts[turn % len(cuts)]
        wire = server.feed(wire[:cut]) + wire[cut:]
        turn += 1
    assert server.received == b"".join(map(noise, sizes))
    assert client.finished == (turn > close_at)


def test_an_end_of_file_waits_for_its_turn() -> None:
    """The end of file comes behind the last byte, also when that waits and the socket has ended meanwhile."""
    client, server = connected()
    server.takes = False
    client.write(noise(QUEUE_LIMIT + 100_000))
    client.finish()
    assert server.feed(client.outgoing()) == b""
    server.layer.eof_received(0.0)
    assert not server.finished
    server.resume()
    assert server.received == noise(QUEUE_LIMIT + 100_000)
    assert server.finished


# ---- broken off


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("missing", [0, 10])
def test_truncation(files: Files, version: ssl.TLSVersion, missing: int) -> None:
    """A socket that ends without close_notify is an error; what came before it has been delivered."""
    client, server = raw_ends(files, version)
    client.write(noise(40_000))
    wire = client.outgoing()
    server.feed(wire[: len(wire) - missing])
    with pytest.raises(ConnectionLost, match="was cut.*may be incomplete"):
        server.layer.eof_received(0.0)
    assert noise(40_000).startswith(server.received)
    assert len(server.received) == (40_000 if not missing else 40_000 // (1 << 14) * (1 << 14))
    assert not server.finished
    assert not server.layer.wants_read()


def test_truncation_behind_data_that_waits() -> None:
    """A cut behind data that the inner core has not wanted yet is reported when that is delivered."""
    client, server = connected()
    server.takes = False
    client.write(noise(QUEUE_LIMIT + 100_000))
    assert server.feed(client.outgoing()) == b""
    server.layer.eof_received(0.0)
    with pytest.raises(ConnectionLost, match="was cut"):
        server.resume()
    assert server.received == noise(QUEUE_LIMIT + 100_000)


def test_lenient_end_of_file(files: Files) -> None:
    """With strict_eof=False a socket that ends without close_notify has ended."""
    client, server = raw_ends(files, VERSIONS[1], strict_eof=False)
    client.write(b"that is all")
    server.feed(client.outgoing())
    server.layer.eof_received(0.0)
    assert (server.received, server.finished) == (b"that is all", True)


@pytest.mark.parametrize("version", VERSIONS)
def test_corruption(files: Files, version: ssl.TLSVersion) -> None:
    """A record that was changed is ConnectionLost; what came before it counts, and the peer gets an alert."""
    client, server = raw_ends(files, version)
    client.write(b"good")
    good = client.outgoing()
    client.write(b"bad")
    bad = bytearray(client.outgoing())
    bad[-1] ^= 1
    with pytest.raises(ConnectionLost, match="the TLS connection broke"):
        server.feed(good + bad)
    assert server.received == b"good"
    assert not server.layer.wants_read()
    with pytest.raises(ConnectionLost, match="ALERT"):
        client.feed(server.outgoing())


def test_closed_during_the_handshake() -> None:
    """An end of file before the handshake is complete is ConnectionLost, at either end."""
    client, server = session_ends()
    server.feed(client.outgoing())
    for end in client, server:
        with pytest.raises(ConnectionLost, match="during the TLS handshake"):
            end.layer.eof_received(0.0)
        assert not end.layer.wants_read()


# ---- before the handshake is complete


def test_handshake_limit() -> None:
    """A server takes 4096 bytes of an endless handshake and no more."""
    server = End(SESSION_CONTEXT, server=True)
    flood = b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(1 << 14)
    taken = 0
    with pytest.raises(LimitExceeded):
        while True:
            count = len(server.layer.get_buffer(1 << 20))
            assert 0 < count <= 4096 - taken
            server.feed(flood[taken : taken + count])
            taken += count
    assert taken + count == 4096
    assert not server.layer.wants_read()


def test_handshake_limit_can_be_set() -> None:
    """handshake_limit bounds what a client takes, too."""
    client = End(tls.session_client_context(), server=False, handshake_limit=100)
    _, server = session_ends()
    server.feed(client.outgoing())
    with pytest.raises(LimitExceeded):
        client.feed(server.outgoing())


def test_half_a_hello() -> None:
    """A peer that falls silent is neither an error nor a deadline of ours: the driver has one."""
    client, server = session_ends()
    server.feed(client.outgoing()[:100])
    assert server.layer.wants_read()
    assert server.layer.next_deadline() is None
    assert server.layer.core is None
    server.layer.handle_timeout(1.0)
    server.layer.resume_reading(1.0)
    assert server.outgoing() == b""


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-x\r\n" * 5, b"\x93SKS\r\n\x1a\n" * 5])
def test_plain_text_at_a_tls_server(garbage: bytes) -> None:
    """Plain text is RemoteProtocolError that says so."""
    server = End(SESSION_CONTEXT, server=True)
    with pytest.raises(RemoteProtocolError, match="does not speak TLS"):
        server.feed(garbage)


def test_plain_text_from_a_server() -> None:
    """A client that meets a server of plain text says that it speaks no TLS."""
    client = End(tls.session_client_context(), server=False)
    with pytest.raises(RemoteProtocolError, match="does not speak TLS"):
        client.feed(b"220 mail.example ESMTP ready\r\n")


@settings(max_examples=200)
@given(garbage=st.binary(max_size=3000), hello=st.integers(0, 600), server_side=st.booleans())
def test_garbage(garbage: bytes, hello: int, server_side: bool) -> None:
    """Garbage, also behind the start of a true handshake, is one of our errors or waits for more."""
    client, server = session_ends()
    start = client.outgoing()
    if not server_side:
        server.feed(start)
        start = server.outgoing()
    end = server if server_side else client
    try:
        end.feed(start[:hello] + garbage)
    except (RemoteProtocolError, LimitExceeded):
        assert not end.layer.wants_read()
    assert end.received == b""


# ---- certificates and versions


def handshake_errors(client: End, server: End) -> tuple[type, type]:
    """Run a handshake that fails at the client; return the kinds of error at both ends."""
    with pytest.raises(SockstreamError) as at_client:
        settle(client, server)
    with pytest.raises(SockstreamError) as at_server:
        server.feed(client.outgoing())
    return at_client.type, at_server.type


def test_unknown_authority(files: Files) -> None:
    """A certificate that the system's authorities do not vouch for is refused, the error names --tls-ca."""
    client = End(tls.client_context(), server=False, server_hostname="localhost")
    server = End(tls.server_context(files.cert, files.key, session=False)[0], server=True)
    with pytest.raises(AuthenticationError, match=r"certificate of localhost.*--tls-ca"):
        settle(client, server)
    with pytest.raises(AuthenticationError, match="does not trust our certificate"):
        server.feed(client.outgoing())


@pytest.mark.parametrize("name", ["example.org", "127.0.0.2"])
def test_wrong_name(files: Files, name: str) -> None:
    """A certificate for another name is refused, unless nothing is to be verified."""
    server_context, _ = tls.server_context(files.cert, files.key, session=False)
    client = End(tls.client_context(files.ca), server=False, server_hostname=name)
    assert handshake_errors(client, End(server_context, server=True))[0] is AuthenticationError
    careless = End(tls.client_context(verify=False), server=False, server_hostname=name)
    settle(careless, End(server_context, server=True))
    assert careless.layer.core is careless.stream


def test_the_certificate_itself_as_authority(files: Files) -> None:
    """--tls-ca may name the server's own certificate."""
    client = End(tls.client_context(files.cert), server=False, server_hostname="::1")
    settle(client, End(tls.server_context(files.cert, files.key, session=False)[0], server=True))
    assert client.layer.core is client.stream


def test_sessions_speak_tls_1_3_only(files: Files) -> None:
    """A peer that knows no more than TLS 1.2 is refused with the reason at both ends."""
    old = tls.client_context(verify=False)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = End(old, server=False), End(SESSION_CONTEXT, server=True)
    with pytest.raises(RemoteProtocolError, match="no TLS version or method in common"):
        settle(client, server)
    with pytest.raises(RemoteProtocolError, match="no TLS version or method in common"):
        client.feed(server.outgoing())


def test_session_protocol_must_be_agreed(files: Files) -> None:
    """A client of sessions refuses a TLS server that does not speak sockstream, and one that does is fine."""
    other = End(tls.server_context(files.cert, files.key, session=False)[0], server=True)
    client = End(tls.session_client_context(), server=False, alpn=tls.ALPN)
    with pytest.raises(RemoteProtocolError, match="speaks TLS, but not sockstream/1"):
        settle(client, other)
    ours = End(tls.server_context(files.cert, files.key, session=True)[0], server=True, alpn=tls.ALPN)
    client = End(tls.session_client_context(), server=False, alpn=tls.ALPN)
    settle(client, ours)
    assert client.sslobject.selected_alpn_protocol() == "sockstream/1"


def test_binding(files: Files) -> None:
    """Both ends of a connection have the same 32 bytes of the server's certificate, given or made for now."""
    context, der = tls.server_context(files.cert, files.key, session=True)
    for server_context, known in (context, der), (SESSION_CONTEXT, SESSION_CERTIFICATE):
        client, server = End(tls.session_client_context(), server=False), End(server_context, server=True)
        settle(client, server)
        seen = tls.certificate_binding(tls.peer_certificate(client.sslobject))
        assert seen == tls.certificate_binding(known) == hashlib.sha256(known).digest()
        with pytest.raises(RemoteProtocolError, match="no certificate"):
            tls.peer_certificate(server.sslobject)


def test_throw_away_certificates_differ() -> None:
    """Each start has a certificate of its own."""
    assert tls.session_server_context()[1] != SESSION_CERTIFICATE


def test_nothing_follows_the_handshake() -> None:
    """A session's server sends no tickets: nothing comes before the first word of the protocol."""
    client, server = connected()
    assert client.outgoing() == server.outgoing() == b""


def test_key_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memfd the key goes through a file that is gone at once, and works."""
    directory = os.environ["XDG_RUNTIME_DIR"]
    monkeypatch.setattr(tempfile, "tempdir", directory)
    monkeypatch.delattr(os, "memfd_create")
    context, der = tls.session_server_context()
    assert os.listdir(directory) == []
    client = End(tls.session_client_context(), server=False)
    settle(client, End(context, server=True))
    assert tls.peer_certificate(client.sslobject) == der


def encrypted(key_file: str) -> str:
    """Write the key again, with a passphrase, and return the path."""
    key = serialization.load_pem_private_key(Path(key_file).read_bytes(), None)
    path = Path(os.environ["XDG_RUNTIME_DIR"], "encrypted.pem")
    best = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, best))
    return str(path)


def test_unusable_files(files: Files) -> None:
    """A missing file, a wrong or encrypted key and a CA file without certificates are errors that name the file."""
    with pytest.raises(SockstreamError, match=r"/missing: No such file.*--tls-cert"):
        tls.server_context("/missing", None, session=False)
    with pytest.raises(SockstreamError, match="cannot use the certificate and key in"):
        tls.server_context(files.ca, files.key, session=True)
    with pytest.raises(SockstreamError, match="the key is encrypted"):
        tls.server_context(files.cert, encrypted(files.key), session=False)
    with pytest.raises(SockstreamError, match=r"/missing: No such file.*--tls-ca"):
        tls.client_context("/missing")
    with pytest.raises(SockstreamError, match=r"cannot use the CA file .*key\.pem"):
        tls.client_context(files.key)


def test_certificate_and_key_in_one_file(files: Files) -> None:
    """Both may stand in one file, in any order, with a chain behind: the certificate is the first one."""
    path = Path(os.environ["XDG_RUNTIME_DIR"], "both.pem")
    path.write_text("".join(Path(file).read_text() for file in (files.key, files.cert, files.ca)))
    assert tls.server_context(str(path), None, session=False)[1] == tls.server_context(*files[1:], session=False)[1]


def test_impossible_server_name() -> None:
    """A host name that TLS cannot carry is an AddressError."""
    with pytest.raises(AddressError, match="cannot be the name of a TLS server"):
        End(tls.client_context(), server=False, server_hostname=".example.org")


# ---- cost


def test_idle_connections_hold_no_receive_buffer() -> None:
    """Connections that have carried a megabyte each and are idle hold little memory of ours."""
    ends = [connected() for _ in range(30)]
    tracemalloc.start()
    try:
        for client, server in ends:
            server.stream = Strict(sends=1, receives=2)  # made before, and its buffer is not the layer's
            client.write(noise(QUEUE_LIMIT))
            server.feed(client.outgoing())
            server.received.clear()
            server.received = bytearray()
        held = sum(each.size for each in tracemalloc.take_snapshot().filter_traces(_of(tls.__file__)).traces)
    finally:
        tracemalloc.stop()
    assert held < 30 * (64 << 10) + tls._SPARE_BUFFERS * tls._RECEIVE


def _of(file: str) -> list[tracemalloc.Filter]:
    return [tracemalloc.Filter(True, file)]


# ---- sockets


def drive(pairs: list[tuple[End, socket.socket]]) -> None:
    """Drive ends over their sockets until both have received an end of file and handed out all of theirs."""
    over: set[int] = set()
    while len(over) < len(pairs):
        readers = [sock for end, sock in pairs if end.layer.wants_read()]
        writers = [sock for end, sock in pairs if end.layer.data_to_send(0.0)]
        ready, writable, _ = select.select(readers, writers, [], limit(10))
        assert ready or writable, "nothing moves any more"
        for number, (end, sock) in enumerate(pairs):
            if sock in ready:
                count = sock.recv_into(end.layer.get_buffer(1 << 18))
                end.layer.buffer_updated(count, 0.0) if count else end.layer.eof_received(0.0)
            if sock in writable:
                end.layer.data_sent(sock.sendmsg(end.layer.data_to_send(0.0)))
            if end.finished and end.layer.sending_is_over():
                over.add(number)


@pytest.mark.parametrize("version", VERSIONS)
def test_bulk_over_sockets(files: Files, version: ssl.TLSVersion) -> None:
    """Megabytes in both directions at once over TCP arrive equal."""
    context = tls.client_context(files.ca)
    context.maximum_version = version
    client = End(context, server=False, server_hostname="127.0.0.1")
    server = End(tls.server_context(files.cert, files.key, session=False)[0], server=True)
    there, back = noise(9 << 20), noise(7 << 20)
    client.write(there)
    server.write(back)
    client.finish()
    server.finish()
    with Pair("ipv4") as pair:
        drive([(client, pair.client), (server, pair.server)])
    assert hashlib.sha256(server.received).digest() == hashlib.sha256(there).digest()
    assert hashlib.sha256(client.received).digest() == hashlib.sha256(back).digest()


def pump(end: End, sock: socket.socket, until: object) -> None:
    """Drive one end against another program until something holds."""
    sock.setblocking(False)
    while not until():  # type: ignore[operator]  # a predicate
        if buffers := end.layer.data_to_send(0.0):
            end.layer.data_sent(sock.sendmsg(buffers))
            continue
        assert select.select([sock], [], [], limit(10))[0], "the other program is silent"
        count = sock.recv_into(end.layer.get_buffer(1 << 18))
        end.layer.buffer_updated(count, 0.0) if count else end.layer.eof_received(0.0)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_client(files: Files, version: str) -> None:
    """OpenSSL's client verifies our certificate, gets what we send, and its end of input is our end of file."""
    server = End(tls.server_context(files.cert, files.key, session=False)[0], server=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        command = ["openssl", "s_client", "-connect", where, version, "-CAfile", files.ca, "-verify_return_error"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([*command, "-quiet", "-no_ign_eof"], **pipes) as client:
            sock, _ = listener.accept()
            with sock:
                server.write(b"hello, openssl\n")
                pump(server, sock, lambda: server.layer.core and not server.layer.data_to_send(0.0))
                assert client.stdout.readline() == b"hello, openssl\n"
                client.stdin.write(b"hello, sockstream\n")
                client.stdin.close()
                pump(server, sock, lambda: server.finished)
    assert server.received == b"hello, sockstream\n"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_server(files: Files, version: str) -> None:
    """Our client verifies OpenSSL's server, and each gets what the other sends and when it ends."""
    client = End(tls.client_context(files.ca), server=False, server_hostname="localhost")
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", files.cert, "-key", files.key]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*command, version, "-naccept", "1"], **pipes) as server:
        while b"ACCEPT" not in server.stdout.readline():
            assert server.poll() is None, "openssl s_server has ended"
        with socket.create_connection(("127.0.0.1", port), limit(10)) as sock:
            client.write(b"hello, openssl\n")
            pump(client, sock, lambda: client.layer.core and not client.layer.data_to_send(0.0))
            while b"hello, openssl" not in server.stdout.readline():
                assert server.poll() is None, "openssl s_server has ended"
            server.stdin.write(b"hello, sockstream\n")
            server.stdin.flush()
            pump(client, sock, lambda: client.received)
            client.finish()
            pump(client, sock, lambda: client.layer.sending_is_over() and client.finished)
        server.communicate()
    assert client.received == b"hello, sockstream\n"
