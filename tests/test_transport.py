"""Dialling, waiting and looking at the peer, on real sockets."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from connections import KINDS, LINUX_ONLY, TCP_KINDS, Pair, accept, dial, runtime
from sockstream import transport
from sockstream.address import Address, parse
from sockstream.errors import AddressError, ConnectionLost
from support import free_port, limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Yield a connected pair of each kind."""
    with Pair(request.param) as pair:
        yield pair


@pytest.fixture(params=TCP_KINDS)
def tcp_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Yield a connected pair of each TCP kind."""
    with Pair(request.param) as pair:
        yield pair


def python(code: str) -> str:
    """Run a few lines of Python in a process of their own, which must succeed, and return what they print."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- start-up


def test_import_is_light() -> None:
    """Importing and dialling an IP address loads none of the modules that make a start slow."""
    heavy = (
        "dataclasses inspect typing logging pathlib subprocess secrets tempfile asyncio multiprocessing pickle ssl "
        "encodings.idna stringprep"
    )
    code = f"""
import sys
from sockstream import address, transport
family, sockaddr = transport.resolve(address.parse("127.0.0.1:1"))[0]
transport.begin_connect(family, sockaddr).close()
print([name for name in {heavy.split()!r} if name in sys.modules])
"""
    assert python(code) == "[]"


# ---- resolving


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://127.0.0.1:80", (socket.AF_INET, ("127.0.0.1", 80))),
        ("tcp://localhost:80", (socket.AF_INET, ("127.0.0.1", 80))),
        (":80", (socket.AF_INET, ("127.0.0.1", 80))),
        ("tcp://[::1]:80", (socket.AF_INET6, ("::1", 80))),
        ("unix:///run/x", (socket.AF_UNIX, "/run/x")),
        ("/run/x", (socket.AF_UNIX, "/run/x")),
    ],
)
def test_resolve(text: str, expected: object) -> None:
    """An IP address or a path means one place, itself."""
    assert transport.resolve(parse(text)) == [expected]


def test_resolve_zone() -> None:
    """A link-local address keeps its zone; one whose zone does not exist is an AddressError that names it."""
    index = socket.if_nametoindex("lo")
    assert transport.resolve(parse("tcp://[fe80::1%lo]:7")) == [(socket.AF_INET6, ("fe80::1", 7, 0, index))]
    with pytest.raises(AddressError, match=r"'fe80::1%no-zone'.*check the name"):
        transport.resolve(parse("tcp://[fe80::1%no-zone]:7"))


def test_resolve_unknown_name() -> None:
    """A name that no resolver knows is an error of ours that names it, whether a resolver answers or not."""
    with pytest.raises((AddressError, ConnectionLost), match=r"cannot find the host 'no-such-host\.invalid'"):
        transport.resolve(parse("tcp://no-such-host.invalid:80"))


# ---- dialling


def test_connection(pair: Pair) -> None:
    """What one end sends the other receives, and the sockets are non-blocking and closed on exec."""
    for sock in (pair.client, pair.listener):
        assert not sock.getblocking()
        assert not sock.get_inheritable()
    pair.client.send(b"there")
    assert select.select([pair.server], [], [], limit(10))[0]
    assert pair.server.recv(100) == b"there"


def test_tcp_refused() -> None:
    """A refused connection says so, says the address, and asks whether the other end is started."""
    port = free_port()
    with pytest.raises(ConnectionLost, match=rf"127\.0\.0\.1:{port}: Connection refused.*is the other end started"):
        dial(Address("tcp", "127.0.0.1", port))


def test_unix_refused() -> None:
    """A socket path that is missing, and one that nobody serves, are ConnectionLost with the path."""
    address = Address("unix", path=runtime("nobody"))
    with pytest.raises(ConnectionLost, match=f"{address.path}: No such file.*is the other end started"):
        dial(address)
    transport.bind(address)[0].close()
    with pytest.raises(ConnectionLost, match=f"{address.path}: Connection refused") as caught:
        dial(address)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ECONNREFUSED


@LINUX_ONLY
def test_full_backlog_is_an_error() -> None:
    """A Unix listener with a full backlog is ConnectionLost at once, not a connection that never comes."""
    listener, address = transport.bind(Address("unix", path=runtime("busy")), backlog=0)
    with listener, dial(address), pytest.raises(ConnectionLost, match="too busy"):
        dial(address)


def test_meeting_oneself_is_refused() -> None:
    """A socket that has connected to its own port counts as refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionLost, match="Connection refused"):
            transport.finish_connect(sock)


def test_finish_without_a_connection() -> None:
    """A socket that is not connecting at all is ConnectionLost, not a success."""
    with socket.socket() as sock, pytest.raises(ConnectionLost, match="cannot connect to the other end"):
        transport.finish_connect(sock)


def test_dialling_port_0_is_refused() -> None:
    """Port 0 means any port to an end that waits; nobody can be dialled there."""
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:0: "):
        dial(parse("tcp://127.0.0.1:0"))


def test_out_of_descriptors() -> None:
    """Without a descriptor left dialling is ConnectionLost and waiting AddressError, with the cure."""
    code = """
import os, resource
from sockstream import address, errors, transport
place = address.parse("tcp://127.0.0.1:0")
family, sockaddr = transport.resolve(place)[0]
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
os.closerange(3, 1000)
for error, call in (errors.ConnectionLost, lambda: transport.begin_connect(family, sockaddr)), (
    errors.AddressError,
    lambda: transport.bind(place),
):
    try:
        call()
    except error as caught:
        print(caught)
"""
    said = python(code).splitlines()
    assert [
        line.endswith("Too many open files: this process has too many files open: raise the limit (ulimit -n)")
        for line in said
    ] == [True, True]


def test_no_descriptor_is_left_by_failures() -> None:
    """Dialling that fails in begin_connect closes its socket: the leak check of every test sees to it."""
    for _ in range(3):
        with pytest.raises(ConnectionLost):
            transport.begin_connect(socket.AF_UNIX, runtime("missing"))


# ---- waiting


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:0", "sock://[::1]:0", "tls://localhost:0", "sock+tls://[::]:0"])
def test_bind_resolves_port_0(text: str) -> None:
    """The address that comes back has the scheme and host given and the real port."""
    given = parse(text)
    listener, address = transport.bind(given)
    with listener:
        assert address == given.with_port(listener.getsockname()[1])
        assert address.port


def test_bind_in_use() -> None:
    """A port that is taken is an AddressError that names the address and what to do."""
    listener, address = transport.bind(parse("tcp://127.0.0.1:0"))
    with listener, pytest.raises(AddressError, match=f"cannot listen on {address}.*choose another port"):
        transport.bind(address)


def test_bind_again_at_once() -> None:
    """A port whose connections have just ended can be taken again."""
    listener, address = transport.bind(parse("tcp://127.0.0.1:0"))
    with listener, dial(address), accept(listener) as server:
        server.shutdown(socket.SHUT_WR)
    transport.bind(address)[0].close()


def test_bind_foreign_address() -> None:
    """An address that is not this machine's is an AddressError."""
    with pytest.raises(AddressError, match="this machine has no such address"):
        transport.bind(parse("tcp://203.0.113.1:0"))


# ---- the peer


@pytest.mark.parametrize("kind", TCP_KINDS)
def test_peer_text_tcp(kind: str) -> None:
    """A TCP peer is named by address and port, IPv4 as IPv4 and IPv6 in brackets."""
    host = "[::1]" if kind == "ipv6" else "127.0.0.1"
    with Pair(kind) as pair:
        assert transport.peer_text(pair.client) == f"{host}:{pair.address.port}"
        assert transport.peer_text(pair.server) == f"{host}:{pair.client.getsockname()[1]}"


def test_peer_text_unix() -> None:
    """A Unix peer is named by the path dialled, or by its process and user."""
    with Pair("unix") as pair:
        assert transport.peer_text(pair.client) == pair.address.path
        assert transport.peer_text(pair.server) == f"process {os.getpid()} of uid {os.geteuid()}"


def test_peer_text_is_one_harmless_line() -> None:
    """A peer that chose a path with control characters gets it shown escaped."""
    listener, address = transport.bind(Address("unix", path=runtime("listener")))
    with listener, socket.socket(socket.AF_UNIX) as evil:
        evil.bind(runtime("a\x1b[2J\nb"))
        evil.connect(address.path)
        with accept(listener) as server:
            text = transport.peer_text(server)
    assert text.isprintable()
    assert r"\x1b[2J\nb" in text


def test_peer_that_is_gone() -> None:
    """A socket without a peer has a text, and every question about the peer's address is ConnectionLost."""
    with socket.socket() as sock:
        assert transport.peer_text(sock) == "a peer that is gone"
        for question in (
            transport.is_loopback_peer,
            lambda sock: transport.tcp_binding_address(sock, client=True),
            lambda sock: transport.ucspi_environment(sock, 1),
            lambda sock: transport.tune(sock, raw=True),
        ):
            with pytest.raises(ConnectionLost, match="no peer any more"):
                question(sock)


def test_loopback_peer(pair: Pair) -> None:
    """Every kind of local connection is loopback, seen from both ends."""
    assert transport.is_loopback_peer(pair.client)
    assert transport.is_loopback_peer(pair.server)


def other_address() -> str:
    """Return an address of this machine that is not loopback; the test is skipped if it has none."""
    for family, target in (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((target, 9))  # UDP: nothing is sent
            except OSError:
                continue
            return str(sock.getsockname()[0])
    pytest.skip("this machine has no address but loopback")


def test_other_hosts_are_not_loopback() -> None:
    """A peer at an address that is not loopback is remote: not loopback, kept alive if raw, never known to be gone."""
    listener, address = transport.bind(Address("tcp", other_address()))
    with listener, dial(address) as client, accept(listener) as server:
        assert not transport.is_loopback_peer(client)
        assert not transport.is_loopback_peer(server)
        transport.tune(client, raw=False)
        assert not client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.tune(server, raw=True)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        times = [
            server.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        ]
        assert times[0] + times[1] * times[2] == 75
        client.close()
        assert not transport.peer_is_gone(server)


def test_tune_local(pair: Pair) -> None:
    """TCP sends at once; a local peer needs no keepalive."""
    for sock in (pair.client, pair.server):
        transport.tune(sock, raw=True)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sock.family != socket.AF_UNIX:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("kind", TCP_KINDS)
def test_binding_address(kind: str) -> None:
    """Both ends name the same server address, whatever kind of socket each of them has."""
    ip = bytes(15) + b"\1" if kind == "ipv6" else bytes(10) + b"\xff\xff\x7f\0\0\1"
    with Pair(kind) as pair:
        expected = (ip, pair.address.port)
        assert transport.tcp_binding_address(pair.client, client=True) == expected
        assert transport.tcp_binding_address(pair.server, client=False) == expected


# ---- the end of a raw connection


def at_eof(sock: socket.socket) -> socket.socket:
    """Wait until the peer's end of file has arrived."""
    assert select.select([sock], [], [], limit(10))[0]
    assert sock.recv(1) == b""
    return sock


@LINUX_ONLY
@pytest.mark.parametrize("dials", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_half_closed_or_closed(kind: str, dials: bool) -> None:
    """A peer that has half-closed is there, one that has closed is gone, whichever end dialled."""
    with Pair(kind) as pair:
        sock, peer = (pair.client, pair.server) if dials else (pair.server, pair.client)
        assert not transport.peer_is_gone(sock)
        peer.shutdown(socket.SHUT_WR)
        at_eof(sock)
        assert not transport.peer_is_gone(sock)
        peer.close()
        wait_until(lambda: transport.peer_is_gone(sock), 10, "the closed peer to be gone")


@LINUX_ONLY
@pytest.mark.parametrize("kind", KINDS)
def test_killed_peer_is_gone(kind: str) -> None:
    """A peer whose process has half-closed and is then killed is gone; while a child holds its socket it is not."""
    with Pair(kind) as pair:
        fd = pair.client.fileno()
        code = f"import socket, sys; sock = socket.socket(fileno={fd}); sock.shutdown(socket.SHUT_WR); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[fd]) as child:
            pair.client.close()
            at_eof(pair.server)
            assert not transport.peer_is_gone(pair.server)
            os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: transport.peer_is_gone(pair.server), 10, "the killed peer to be gone")


@LINUX_ONLY
def test_closed_peer_stays_gone(tcp_pair: Pair) -> None:
    """A peer that closed so long ago that the kernel has forgotten it is still gone."""
    tcp_pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # forget after a second, not a minute
    ports = [b":%04X " % sock.getsockname()[1] for sock in (tcp_pair.client, tcp_pair.server)]
    tcp_pair.client.close()
    at_eof(tcp_pair.server)
    wait_until(lambda: _rows(*ports) == 1, 20, "the kernel to forget the peer")
    assert transport.peer_is_gone(tcp_pair.server)


def _rows(*ports: bytes) -> int:
    """Count the ends of the connection between two ports that the kernel knows."""
    tables = (Path("/proc/net", table).read_bytes() for table in ("tcp", "tcp6"))
    return sum(all(port in row for port in ports) for table in tables for row in table.splitlines())


@LINUX_ONLY
def test_reset_peer_is_gone(tcp_pair: Pair) -> None:
    """A peer that has broken the connection off is gone."""
    tcp_pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tcp_pair.client.close()
    wait_until(lambda: transport.peer_is_gone(tcp_pair.server), 10, "the reset")


@LINUX_ONLY
def test_unsent_bytes(pair: Pair) -> None:
    """What the peer has not got yet is counted, and the count falls to 0 when it has read to the end."""
    assert transport.unsent_bytes(pair.client) == 0
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += pair.client.send(bytes(100_000))
    assert transport.unsent_bytes(pair.client) > 0
    pair.client.shutdown(socket.SHUT_WR)
    pair.server.setblocking(True)
    pair.server.settimeout(limit(10))
    received = 0
    while piece := pair.server.recv(1 << 20):
        received += len(piece)
    assert received == sent
    wait_until(lambda: transport.unsent_bytes(pair.client) == 0, 10, "the last confirmation")


def test_unsent_bytes_of_no_connection() -> None:
    """A listening socket has sent nothing."""
    listener, _ = transport.bind(parse("tcp://127.0.0.1:0"))
    with listener:
        assert transport.unsent_bytes(listener) == 0


# ---- service managers


INHERITING = """
import os, socket
from sockstream import address, errors, transport
{make}
os.dup2(passed.fileno(), 3)
os.set_inheritable(3, True)
environ = dict(LISTEN_PID=str(os.getpid()), LISTEN_FDS={count!r})
try:
    listener = transport.inherited_listener(environ, os.getpid())
except errors.AddressError as error:
    print("refused:", error)
else:
    print(listener.fileno(), listener.get_inheritable(), listener.getblocking(),
          transport.listener_address(listener, address.parse({like!r})))
"""


def inherit(make: str, count: str = "1", like: str = "tcp://:1") -> str:
    """Let a process find a socket at descriptor 3, as a service manager passes it, and return what it says."""
    return python(INHERITING.format(make=make, count=count, like=like))


def test_inherited_listener() -> None:
    """A listening socket passed at descriptor 3 is taken, closed on exec, and says its real address."""
    made = "passed = socket.create_server(('127.0.0.1', {}))"
    port = free_port()
    assert inherit(made.format(port)) == f"3 False False tcp://127.0.0.1:{port}"
    assert inherit(made.format(port), like="sock://:0") == f"3 False False sock://127.0.0.1:{port}"
    path = runtime("passed")
    made = f"passed = socket.socket(socket.AF_UNIX); passed.bind({path!r}); passed.listen()"
    assert inherit(made, like="/elsewhere") == f"3 False False sock+unix://{path}"


@pytest.mark.parametrize(
    "make",
    [
        "passed = socket.socket()",
        "passed = open('/dev/null')",
        "passed = socket.socket(type=socket.SOCK_DGRAM); passed.bind(('127.0.0.1', 0))",
        "passed = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); passed.bind(''); passed.listen()",
    ],
)
def test_inherited_descriptor_must_listen(make: str) -> None:
    """A socket that does not listen, and anything else, is refused with what to correct."""
    assert "refused: descriptor 3" in inherit(make)
    assert "is no listening stream socket" in inherit(make)


@pytest.mark.parametrize("count", ["2", "-1", "many", ""])
def test_one_inherited_listener_is_expected(count: str) -> None:
    """Any other number than one is an error that says so."""
    said = inherit("passed = socket.create_server(('127.0.0.1', 0))", count)
    assert said == f"refused: LISTEN_FDS is {count!r}: pass exactly one listening socket"


def test_nothing_inherited() -> None:
    """Without the variables, with those of another process, or with none passed there is no listener."""
    for environ in (
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ):
        assert transport.inherited_listener(environ, os.getpid()) is None


def test_listener_address_of_another_kind() -> None:
    """A Unix socket where TCP was asked for, and the other way round, is an AddressError."""
    with Pair("ipv4") as pair, pytest.raises(AddressError, match=r"is a TCP socket, unix:///x is not"):
        transport.listener_address(pair.listener, parse("unix:///x"))
    with Pair("unix") as pair, pytest.raises(AddressError, match=r"is a Unix socket, tcp://127\.0\.0\.1:1 is not"):
        transport.listener_address(pair.listener, parse("tcp://:1"))


@LINUX_ONLY
def test_listener_address_abstract() -> None:
    """An abstract Unix socket is refused, since nothing protects its name."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0sockstream test")
        with pytest.raises(AddressError, match="abstract name"):
            transport.listener_address(sock, parse("/x"))


@pytest.mark.parametrize("abstract", [pytest.param(True, marks=LINUX_ONLY), False])
def test_notify(abstract: bool) -> None:
    """The service manager gets the text as one datagram, at a path or an abstract name."""
    path = f"@{runtime('notify')}" if abstract else runtime("notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path[1:] if abstract else path)
        assert transport.notify({"NOTIFY_SOCKET": path}, "READY=1")
        assert manager.recv(100) == b"READY=1"


def test_notify_nobody() -> None:
    """Without the variable nothing is sent; a manager that is gone is an error that names the variable."""
    assert not transport.notify({}, "READY=1")
    assert not transport.notify({"NOTIFY_SOCKET": ""}, "READY=1")
    with pytest.raises(ConnectionLost, match="NOTIFY_SOCKET"):
        transport.notify({"NOTIFY_SOCKET": runtime("gone")}, "READY=1")


# ---- UCSPI


@pytest.mark.parametrize("kind", TCP_KINDS)
def test_ucspi_tcp(kind: str) -> None:
    """The names and values are those of tcpserver and s6; a mapped address is shown as IPv4."""
    ip = "::1" if kind == "ipv6" else "127.0.0.1"
    with Pair(kind) as pair:
        assert transport.ucspi_environment(pair.server, 3) == {
            "PROTO": "TCP",
            "TCPLOCALIP": ip,
            "TCPLOCALPORT": str(pair.address.port),
            "TCPREMOTEIP": ip,
            "TCPREMOTEPORT": str(pair.client.getsockname()[1]),
            "TCPCONNNUM": "3",
        }


def test_ucspi_unix() -> None:
    """The names and values are those of unixserver."""
    with Pair("unix") as pair:
        assert transport.ucspi_environment(pair.server, 1) == {
            "PROTO": "UNIX",
            "UNIXLOCALPATH": pair.address.path,
            "UNIXREMOTEPID": str(os.getpid()),
            "UNIXREMOTEEUID": str(os.geteuid()),
            "UNIXREMOTEEGID": str(os.getegid()),
            "UNIXCONNNUM": "1",
        }
