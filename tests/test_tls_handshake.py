"""The TLS handshake: limits, garbage, certificates and versions; and OpenSSL's own programs as peers."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import make_authority
from sockstream import tls
from sockstream.errors import (
    AddressError,
    AuthenticationError,
    LimitExceeded,
    RemoteProtocolError,
    SockstreamError,
    Timeout,
)
from support import free_port, limit
from tls_ends import (
    SESSION_CERTIFICATE,
    SESSION_CONTEXT,
    End,
    Files,
    raw_server,
    session_client,
    session_ends,
    settle,
)


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    """Make the files once."""
    with tempfile.TemporaryDirectory() as directory:
        yield Files(*make_authority(directory))


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


def test_handshake_deadline() -> None:
    """A layer with a deadline of its own raises Timeout when it has passed, unless the handshake is complete."""
    client = session_client(deadline=10.0)
    assert client.layer.next_deadline() == 10.0
    client.layer.handle_timeout(9.9)
    with pytest.raises(Timeout, match="TLS handshake"):
        client.layer.handle_timeout(10.0)
    assert not client.layer.wants_read()
    client, server = session_client(deadline=10.0), session_ends()[1]
    settle(client, server)
    assert client.layer.next_deadline() is None
    client.layer.handle_timeout(10.0)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-x\r\n" * 5, b"\x93SKS\r\n\x1a\n" * 5])
def test_plain_text_at_a_tls_server(garbage: bytes) -> None:
    """Plain text is RemoteProtocolError that says so."""
    server = End(SESSION_CONTEXT, server=True)
    with pytest.raises(RemoteProtocolError, match="does not speak TLS"):
        server.feed(garbage)


def test_plain_text_from_a_server() -> None:
    """A client that meets a server of plain text says that it speaks no TLS."""
    client = session_client()
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
    server = raw_server(files)
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
    assert careless.is_up


def test_the_certificate_itself_as_authority(files: Files) -> None:
    """--tls-ca may name the server's own certificate."""
    client = End(tls.client_context(files.cert), server=False, server_hostname="::1")
    settle(client, raw_server(files))
    assert client.is_up


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
    other = raw_server(files)
    client = session_client(alpn=tls.ALPN)
    with pytest.raises(RemoteProtocolError, match="speaks TLS, but not sockstream/1"):
        settle(client, other)
    ours = End(tls.server_context(files.cert, files.key, session=True)[0], server=True, alpn=tls.ALPN)
    client = session_client(alpn=tls.ALPN)
    settle(client, ours)
    assert client.sslobject.selected_alpn_protocol() == "sockstream/1"


def test_binding(files: Files) -> None:
    """Both ends of a connection have the same 32 bytes of the server's certificate, given or made for now."""
    context, der = tls.server_context(files.cert, files.key, session=True)
    for server_context, known in (context, der), (SESSION_CONTEXT, SESSION_CERTIFICATE):
        client, server = session_client(), End(server_context, server=True)
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
    client, server = session_ends()
    server.feed(client.outgoing())
    client.feed(server.outgoing())
    server.feed(client.outgoing())
    assert server.is_up
    assert server.outgoing() == b""


def test_key_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memfd the key goes through a file that is gone at once, and works."""
    directory = os.environ["XDG_RUNTIME_DIR"]
    monkeypatch.setattr(tempfile, "tempdir", directory)
    monkeypatch.delattr(os, "memfd_create")
    context, der = tls.session_server_context()
    assert os.listdir(directory) == []
    client = session_client()
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


# ---- OpenSSL's programs


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
    server = raw_server(files)
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
