"""`tls://` and `sock+tls://` between real commands and real peers: who is believed, what goes through, what is said.

A dialling `tls://` end verifies as a browser does; a `sock` end does not, since the proof covers the certificate.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certificates import make_authority
from hostile.guest import client_context, good_client
from hostile.host import Host
from hostile.victim import Victim, environment, own_address, read_to_end, write_token
from support import Running, limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Files(NamedTuple):
    """PEM files: an authority, and a certificate of it for 127.0.0.1, ::1 and localhost with its key."""

    ca: str
    certificate: str
    key: str

    @property
    def options(self) -> tuple[str, ...]:
        """A waiting end's options."""
        return "--tls-cert", self.certificate, "--tls-key", self.key


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """An authority that both ends know."""
    return Files(*make_authority(tmp_path))


@pytest.fixture
def strangers_files(tmp_path: Path) -> Files:
    """An authority that nobody knows."""
    directory = tmp_path / "stranger"
    directory.mkdir()
    return Files(*make_authority(directory))


def self_signed(directory: Path, name: str = "127.0.0.1", days: tuple[int, int] = (-1, 1)) -> str:
    """Write a certificate that only itself vouches for, and its key, into one file; valid between two days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin, end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(day) for day in days)
    digits = name.replace(".", "").isdigit()
    names = [x509.IPAddress(ipaddress.ip_address(name)) if digits else x509.DNSName(name)]
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), begin, end)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = directory / f"{name}.pem"
    file.touch(0o600)
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem) + secret)
    return str(file)


def serving(files: Files, directory: Path, *program: str, where: str = "tls://127.0.0.1:0") -> Victim:
    """Start `serve tls://... -- cat`, or another program."""
    return Victim("serve", where, directory, *files.options, program=program or ("cat",))


def place_of(victim: Victim) -> tuple[str, int]:
    """Host and port of a victim."""
    return "127.0.0.1", int(victim.address.rpartition(":")[2])


# ---- verification


def test_the_right_authority_is_believed(files: Files, tmp_path: Path) -> None:
    """`connect` with --tls-ca gets through, by address and by name, and the bytes come back from `cat`."""
    with serving(files, tmp_path) as victim:
        port = place_of(victim)[1]
        for host in ("127.0.0.1", "localhost"):
            with Running("connect", "--tls-ca", files.ca, f"tls://{host}:{port}") as command:
                command.write(b"to cat\n")
                command.close_stdin()
                assert command.wait() == 0, command
                assert (command.stdout, command.stderr) == (b"to cat\n", b"")
        victim.assert_unharmed()


def assert_not_trusted(victim: Victim, where: str, *options: str, says: bytes) -> None:
    """`connect` and `run` refuse: one line that names --tls-ca, 125, no second try, and no byte of theirs goes out."""
    for name, to, behind in (("connect", (), ()), ("run", ("--to",), ("--", "sh", "-c", "echo secret"))):
        with Running(name, *options, "--wait", "5", *to, where, *behind) as command:
            with contextlib.suppress(BrokenPipeError):  # it may have refused and gone already
                command.write(b"secret\n")
            command.close_stdin()
            assert command.wait() == 125, command
            assert command.stderr.count(b"\n") == 1 and says in command.stderr, command
            assert b"--tls-ca" in command.stderr
            assert command.stdout == b""
    victim.assert_unharmed()


def test_a_self_signed_certificate_is_refused(files: Files, tmp_path: Path) -> None:
    """Whether the system's authorities are asked or others; where it is named itself, it is believed."""
    own = self_signed(tmp_path)
    with serving(Files(own, own, own), tmp_path, "sh", "-c", "cat; echo no secret") as victim:
        assert_not_trusted(victim, victim.address, says=b"self-signed certificate")
        assert_not_trusted(victim, victim.address, "--tls-ca", files.ca, says=b"is not to be trusted")
        with Running("connect", "--tls-ca", own, victim.address) as command:
            command.close_stdin()
            assert command.wait() == 0 and command.stdout == b"no secret\n", command


def test_an_unknown_authority_is_refused(files: Files, strangers_files: Files, tmp_path: Path) -> None:
    """Its certificate has the right name, but nobody we know has signed it."""
    with serving(strangers_files, tmp_path) as victim:
        assert_not_trusted(victim, victim.address, "--tls-ca", files.ca, says=b"unable to get local issuer certificate")


@pytest.mark.parametrize(
    ("name", "days", "says"),
    [
        ("127.0.0.2", (-1, 1), b"IP address mismatch"),
        ("example.test", (-1, 1), b"IP address mismatch"),
        ("127.0.0.1", (-3, -1), b"certificate has expired"),
        ("127.0.0.1", (1, 3), b"certificate is not yet valid"),
    ],
)
def test_a_wrong_name_or_time_is_refused(name: str, days: tuple[int, int], says: bytes, tmp_path: Path) -> None:
    """Also for a certificate that is trusted otherwise."""
    own = self_signed(tmp_path, name, days)
    with serving(Files(own, own, own), tmp_path) as victim:
        assert_not_trusted(victim, victim.address, "--tls-ca", own, says=says)


# ---- the waiting end's files


def test_a_waiting_tls_end_needs_a_certificate(tmp_path: Path) -> None:
    """Those who dial it verify one; there is no throw-away certificate for them."""
    for name, behind in ("serve", ("--", "cat")), ("listen", ()):
        with Running(name, "tls://127.0.0.1:0", *behind) as command:
            assert command.wait() == 125
            assert b"needs --tls-cert" in command.stderr and command.stderr.count(b"\n") == 1


def encrypted(files: Files, directory: Path) -> str:
    """Write the key once more, under a password, and return the file."""
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"password")
    path = directory / "encrypted.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    return str(path)


@pytest.mark.parametrize("scheme", ["tls", "sock+tls"])
def test_unusable_files_are_told_at_the_start(
    scheme: str, files: Files, strangers_files: Files, tmp_path: Path
) -> None:
    """A missing file, no PEM, a key for another certificate, a key under a password: one line, 125, nobody is asked."""
    empty = tmp_path / "empty.pem"
    empty.touch()
    pairs = [
        ("/nowhere/cert.pem", files.key),
        (str(empty), files.key),
        (files.certificate, strangers_files.key),
        (files.certificate, encrypted(files, tmp_path)),
    ]
    for certificate, key in pairs:
        options = ("--tls-cert", certificate, "--tls-key", key)
        with Victim("serve", f"{scheme}://127.0.0.1:0", tmp_path, *options) as command:
            assert command.wait() == 125, command
            assert b"cannot use the certificate" in command.stderr and b"Traceback" not in command.stderr, command
            assert command.lines == command.stderr.split(b"\n")[:1]


def test_the_throw_away_key_stays_nowhere(tmp_path: Path) -> None:
    """No file on a disk, no descriptor, and every start has another certificate."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    seen = set()
    for _ in range(2):
        with Victim("serve", "sock+tls://127.0.0.1:0", tmp_path) as victim:
            good_client(victim, seconds=20)
            with socket.create_connection(place_of(victim)) as sock, client_context().wrap_socket(sock) as wrapped:
                seen.add(wrapped.getpeercert(True))
            opened = [os.readlink(f"/proc/{victim.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{victim.pid}/fd")]
            assert not [name for name in opened if "memfd" in name or "pem" in name], opened
    assert len(seen) == 2
    assert not list(temporary.iterdir())


def test_a_session_end_may_have_a_certificate_of_its_own(files: Files, tmp_path: Path) -> None:
    """It is shown to whoever dials, and the proof covers it."""
    with Victim("serve", "sock+tls://127.0.0.1:0", tmp_path, *files.options) as victim:
        good_client(victim, seconds=20)
        with socket.create_connection(place_of(victim)) as sock, client_context().wrap_socket(sock) as wrapped:
            shown = ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(True) or b"")
        assert shown == Path(files.certificate).read_text()


# ---- real peers


def test_openssl_s_client_against_serve(files: Files, tmp_path: Path) -> None:
    """It verifies the certificate, sends, and gets everything back before the end."""
    text = b"".join(b"%06d\n" % number for number in range(20000))
    with serving(files, tmp_path) as victim:
        place = f"127.0.0.1:{place_of(victim)[1]}"
        verify = ("-CAfile", files.ca, "-verify_return_error", "-verify_ip", "127.0.0.1")
        command = ("openssl", "s_client", "-quiet", "-no_ign_eof", *verify, "-connect", place)
        with Running(*command[1:], command=command[:1]) as client:
            client.write(text)
            client.wait_for_output(text[-7:])
            client.close_stdin()
            assert client.wait() == 0, client
            assert client.stdout == text
        victim.assert_unharmed()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_run_against_openssl_s_server(version: str, files: Files, tmp_path: Path) -> None:
    """What the program writes comes out there, what is typed there goes to the program."""
    with Host() as host:
        port = host.port
    options = ("-cert", files.certificate, "-key", files.key, "-quiet", "-naccept", "1", version)
    with Running("s_server", *options, "-accept", f"127.0.0.1:{port}", command=("openssl",)) as server:
        program = ("sh", "-c", "echo from the program; read line; echo got $line >&2; exit 3")
        with Running("run", "--tls-ca", files.ca, "--to", f"tls://127.0.0.1:{port}", "--", *program) as command:
            server.wait_for_output(b"from the program\n")
            server.write(b"typed\n")
            assert command.wait() == 3, command
            assert command.stderr == b"got typed\n"
        server.close_stdin()


@pytest.mark.parametrize(
    ("highest", "scheme", "works"),
    [
        (TLS12, "tls", True),
        (TLS13, "tls", True),
        (TLS12, "sock+tls", False),
        (TLS13, "sock+tls", True),
    ],
)
def test_versions_of_tls(highest: ssl.TLSVersion, scheme: str, works: bool, files: Files, tmp_path: Path) -> None:
    """Raw addresses take 1.2 for old peers; between ends of ours it is 1.3."""
    context = client_context(None if scheme == "tls" else "sockstream/1")
    context.maximum_version = highest
    with serving(files, tmp_path, where=f"{scheme}://127.0.0.1:0") as victim:
        with socket.create_connection(place_of(victim)) as sock:
            if works:
                with context.wrap_socket(sock) as wrapped:
                    assert wrapped.version() == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[highest]
            else:
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(sock)
                assert b"no TLS version or method in common" in victim.wait_for_line_about("127.0.0.1")
        victim.assert_unharmed()


@pytest.mark.parametrize("protocol", [None, "http/1.1"])
def test_a_session_in_tls_needs_its_own_protocol(protocol: str | None, tmp_path: Path) -> None:
    """A TLS client that has not agreed to speak ours (ALPN) is not listened to."""
    with Victim("serve", "sock+tls://127.0.0.1:0", tmp_path) as victim:
        with socket.create_connection(place_of(victim)) as sock:
            sock.settimeout(limit(10))
            with client_context(protocol).wrap_socket(sock) as wrapped:
                assert read_to_end(wrapped) == b""
        assert b"but not sockstream/1" in victim.wait_for_line_about("127.0.0.1")


# ---- bytes that come early, or not at all


class ByHand:
    """TLS over a socket, whose flights and records a test sends as it likes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, waits: bool) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=waits)

    def shake_hands(self) -> None:
        """Go on until our side is done; its last flight is not sent yet."""
        while True:
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self.send()
                self.receive()

    def send(self) -> None:
        """Send what is due in one go."""
        if self.outgoing.pending:
            self.sock.sendall(self.outgoing.read())

    def receive(self) -> bytes:
        """Receive once, and decrypt all of it."""
        data, found = self.sock.recv(1 << 16), b""
        assert data, "the other end has closed"
        self.incoming.write(data)
        if self.tls.version() is None:
            return b""
        try:
            while piece := self.tls.read(1 << 16):
                found += piece
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return found
        return found


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_much_data_right_behind_a_clients_handshake(version: ssl.TLSVersion, files: Files, tmp_path: Path) -> None:
    """In the same segment as its last flight, before there is a program: every byte comes back from `cat`."""
    context = client_context(None)
    context.maximum_version = version
    text = b"".join(b"%07d\n" % number for number in range(25000))
    with serving(files, tmp_path) as victim, socket.create_connection(place_of(victim)) as sock:
        sock.settimeout(limit(10))
        client = ByHand(sock, context, waits=False)
        client.shake_hands()
        for start in range(0, len(text), 1000):
            client.tls.write(text[start : start + 1000])
        sender = threading.Thread(target=client.send)
        sender.start()
        got = b""
        while len(got) < len(text):
            got += client.receive()
        sender.join()
        assert got == text
        victim.assert_unharmed()


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("name", ["connect", "run"])
def test_a_server_that_speaks_first(name: str, version: ssl.TLSVersion, files: Files) -> None:
    """A greeting in the same segment as the server's last flight is not lost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.maximum_version = version
    with Host() as host:
        where = f"tls://127.0.0.1:{host.port}"
        words = ("connect", where) if name == "connect" else ("run", "--to", where, "--", "sh", "-c", "cat >&2")
        with Running(words[0], "--tls-ca", files.ca, *words[1:]) as command, host.accept() as sock:
            server = ByHand(sock, context, waits=True)
            server.shake_hands()
            server.tls.write(b"greeting\n")
            server.send()
            output = (lambda: command.stdout) if name == "connect" else (lambda: command.stderr)
            wait_until(lambda: output() == b"greeting\n", 5, f"the greeting: {command}")
            command.close_stdin()
            with pytest.raises(ssl.SSLError):
                server.tls.unwrap()  # it says that we are done, and would wait for the client's word
            server.send()
            sock.shutdown(socket.SHUT_WR)
            assert command.wait() == 0, command


def test_a_cut_is_not_taken_for_an_end(files: Files) -> None:
    """A connection that ends without close_notify may have been cut by somebody: `connect` says so, and 125."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with Host() as host, Running("connect", "--tls-ca", files.ca, f"tls://127.0.0.1:{host.port}") as command:
        with host.accept() as sock:
            server = ByHand(sock, context, waits=True)
            server.shake_hands()
            server.tls.write(b"pay 100")
            server.send()
        assert command.wait() == 125
        assert command.stdout == b"pay 100" and b"it was cut" in command.stderr


# ---- the wrong scheme at one end


def test_a_plain_hello_at_a_tls_end(tmp_path: Path) -> None:
    """`connect sock://` to a `sock+tls://` end: both say what may be wrong."""
    with Victim("serve", "sock+tls://127.0.0.1:0", tmp_path) as victim:
        good_client(victim, seconds=20)
        where = victim.address.replace("sock+tls", "sock")
        options = ("--wait", "0", "--token-file", write_token(tmp_path))
        with victim.no_leaks(), Running("connect", *options, where) as command:
            assert command.wait() == 125
            assert command.stderr.count(b"\n") == 1 and b"does it speak sock:// there, or sock+tls://" in command.stderr
        assert b"does not speak TLS" in victim.wait_for_line_about("127.0.0.1")


def test_a_tls_hello_at_a_unix_end(tmp_path: Path) -> None:
    """It is told apart, and the log says that a Unix socket takes the plain protocol only."""
    with Victim("serve", f"sock+unix://{tmp_path}/s", tmp_path) as victim:
        good_client(victim, seconds=20)
        with victim.no_leaks(), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(limit(10))
            sock.connect(f"{tmp_path}/s")
            with pytest.raises((ssl.SSLError, OSError)):
                client_context().wrap_socket(sock)
        wait_until(lambda: victim.lines, 5, "a line about it")
        [line] = victim.lines
        assert b"a Unix socket takes the plain protocol only" in line


# ---- beyond loopback


@pytest.fixture
def everywhere(tmp_path: Path) -> Iterator[Victim]:
    """`serve sock://0.0.0.0`."""
    with Victim("serve", "sock://0.0.0.0:0", tmp_path) as victim:
        yield victim


def test_beyond_loopback_a_session_is_tls(everywhere: Victim, tmp_path: Path) -> None:
    """`connect sock://` and `run --to sock://` speak TLS to an address of the network, and get through."""
    host = own_address()
    port = everywhere.address.rpartition(":")[2]
    with Running("connect", "--token-file", write_token(tmp_path), f"sock://{host}:{port}") as command:
        command.write(b"to cat\n")
        command.close_stdin()
        assert command.wait() == 0 and command.stdout == b"to cat\n", command
    assert everywhere.lines == []


def test_beyond_loopback_nothing_plain_is_taken(everywhere: Victim) -> None:
    """A plain hello from an address of the network is refused without a word; from loopback it is not."""
    host, port = own_address(), int(everywhere.address.rpartition(":")[2])
    with socket.create_connection((host, port)) as sock:
        sock.settimeout(limit(10))
        sock.sendall(b"\x93SKS\r\n\x1a\n\1\0\0\0\x21\0\0\0\1" + bytes(32))
        assert read_to_end(sock) == b""
    line = everywhere.wait_for_line_about(host)
    assert b"plain connections are taken from this machine only; dial sock+tls://" in line
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(limit(10))
        sock.sendall(b"\x93SKS\r\n\x1a\n\1\0\0\0\x21\0\0\0\1" + bytes(32))
        assert len(sock.recv(100)) == 49


@pytest.mark.parametrize("name", ["connect", "run"])
def test_beyond_loopback_nothing_plain_is_said(name: str, tmp_path: Path) -> None:
    """The first byte that a dialling end says there is a TLS hello's."""
    token, env = ("--token-file", write_token(tmp_path)), environment(tmp_path)
    with Host((own_address(), 0)) as host:
        where = f"sock://{own_address()}:{host.port}"
        words = (name, *token, where) if name == "connect" else (name, *token, "--to", where, "--", "cat")
        with Running(*words, env=env), host.accept() as sock:
            assert sock.recv(4096)[:3] == b"\x16\x03\x01"
