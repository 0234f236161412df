"""Sockets: dial, wait, look at the peer; the one place where the system's errors become ours.

Rules:
* Every socket from here is non-blocking and closed on exec. Nothing here waits, except for a name to be
  resolved.
* A failure while dialling, or on a connected socket, is ConnectionLost; one while waiting is AddressError.
  What can be cured by trying again later is never AddressError.
* Whether a peer is local, and what either end's address is, is judged on the connected socket, never on the
  text that was dialled. IPv4 addresses mapped into IPv6 count, and are shown, as IPv4.

Reasoning: a numeric host never reaches the resolver, since looking it up loads an IDNA codec that costs more
than the connection. A TCP socket that dials a free port of its own machine can be given that very port and
connect to itself; an end that tries again and again would one day find itself, so that counts as refused.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys

from sockstream.address import Address, is_loopback
from sockstream.errors import AddressError, ConnectionLost
from sockstream.unixsocket import (
    bind_path,
    check_path,
    check_peer,
    default_address,
    peer_credentials,
    unlink_socket,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

    SockAddr = tuple[Any, ...] | str

__all__ = [
    "begin_connect",
    "bind",
    "check_peer",
    "connection_lost",
    "default_address",
    "finish_connect",
    "inherited_listener",
    "is_loopback_peer",
    "listener_address",
    "notify",
    "peer_credentials",
    "peer_is_gone",
    "peer_text",
    "resolve",
    "tcp_binding_address",
    "tune",
    "ucspi_environment",
    "unlink_socket",
    "unsent_bytes",
]

_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START
_SIOCOUTQ = 0x5411  # Linux; termios knows it as TIOCOUTQ, at the price of an import
_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96
_ADVICE = {
    errno.EACCES: "the socket belongs to another user: start both ends as the same one",
    errno.EADDRNOTAVAIL: "this machine has no such address: check it with 'ip addr'",
    errno.EAFNOSUPPORT: "this machine does not speak that protocol: is IPv6 switched off?",
    errno.EAGAIN: "the other end is too busy to answer: try again later",
    errno.ECONNREFUSED: "nobody listens there: is the other end started?",
    errno.ECONNRESET: "the other end broke the connection off: its own messages say why",
    errno.EHOSTUNREACH: "there is no way to that host: check the address, the network and the firewall",
    errno.EMFILE: "this process has too many files open: raise the limit (ulimit -n)",
    errno.ENETUNREACH: "there is no way to that network: check the address and the network",
    errno.ENFILE: "the system has too many files open: close some programs",
    errno.ENOENT: "there is no such socket: is the other end started, and the path right?",
    errno.EPIPE: "the other end has closed the connection: its own messages say why",
    errno.EPROTOTYPE: "the socket there is not a stream socket: check the path",
    errno.ETIMEDOUT: "no answer came: is the host up, or does a firewall swallow the packets?",
}
_ADVICE_FOR_WAITING = _ADVICE | {
    errno.EACCES: "choose a directory of your own, or a port above 1023",
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port (0 takes a free one)",
    errno.ENOENT: "make the directory first",
}


class _Dialled(socket.socket):
    """A socket that remembers whom it dialled: one that failed to connect has no peer to ask for a message."""

    __slots__ = ("target",)
    target: str


def connection_lost(error: OSError, doing: str) -> ConnectionLost:
    """Return the error to raise `from` what the system reported: what we were doing, why not, what to do.

    doing: the first words, such as "cannot connect to 127.0.0.1:4000".
    """
    return ConnectionLost(_explained(error, doing, _ADVICE))


def resolve(address: Address) -> list[tuple[int, SockAddr]]:
    """Return family and socket address of each place that the address means, to be tried in this order.

    Blocks while a name is looked up; IP addresses and paths are not looked up.
    Raises AddressError if the name does not exist or the path is too long; ConnectionLost if the resolver
    does not answer.
    """
    if address.is_unix:
        return [(socket.AF_UNIX, check_path(address.path))]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address.host)
        except OSError:
            continue
        return [(family, (address.host, address.port))]
    return _look_up(address)


def begin_connect(family: int, sockaddr: SockAddr) -> socket.socket:
    """Return a non-blocking socket that is connecting; `finish_connect` it when it is writable.

    Arguments as from `resolve`. Raises ConnectionLost if it fails at once.
    """
    doing = f"cannot connect to {_shown(sockaddr)}"
    try:
        sock = _Dialled(family, socket.SOCK_STREAM)
    except OSError as error:
        raise connection_lost(error, doing) from error
    sock.target = _shown(sockaddr)
    sock.setblocking(False)
    code = sock.connect_ex(sockaddr)
    # A Unix socket never takes its time: EAGAIN there means a full backlog, and nothing is under way.
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        _fail(code, doing)
    return sock


def finish_connect(sock: socket.socket) -> None:
    """Check that a socket from `begin_connect`, now writable, is connected; the caller closes it if not.

    Raises ConnectionLost if it is not.
    """
    target = sock.target if isinstance(sock, _Dialled) else "the other end"
    doing = f"cannot connect to {target}"
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        if not code and sock.getpeername() == sock.getsockname():
            code = errno.ECONNREFUSED  # it met itself
    except OSError as error:
        raise connection_lost(error, doing) from error
    if code:
        _fail(code, doing)


def bind(address: Address, backlog: int = 128) -> tuple[socket.socket, Address]:
    """Return a listening socket and the address with its real port.

    address: a name that has several addresses means the first; [::] means all of IPv6 and IPv4.
    backlog: connections that may wait to be accepted.
    Raises AddressError if nobody can listen there, or somebody does already; as `resolve` for names.
    """
    try:
        if address.is_unix:
            return bind_path(address.path, backlog), address
        sock = _bind_tcp(*resolve(address)[0], backlog)
    except ConnectionLost:
        raise
    except OSError as error:
        raise AddressError(_explained(error, f"cannot listen on {address}", _ADVICE_FOR_WAITING)) from error
    return sock, address.with_port(sock.getsockname()[1])


def inherited_listener(environ: Mapping[str, str], pid: int) -> socket.socket | None:
    """Return the listening socket that a service manager has opened for us (LISTEN_FDS), or None.

    pid: our process id; variables meant for another process are ignored.
    Raises AddressError if there is more than one, or it is no listening stream socket.
    """
    if environ.get("LISTEN_PID") != str(pid) or environ.get("LISTEN_FDS", "0") == "0":
        return None
    if environ["LISTEN_FDS"] != "1":
        raise AddressError(f"LISTEN_FDS is {environ['LISTEN_FDS']!r}: pass exactly one listening socket")
    fault = "descriptor 3, passed by LISTEN_FDS, is no listening stream socket: correct the service's socket unit"
    try:
        sock = socket.socket(fileno=_FIRST_INHERITED)
    except OSError as error:
        raise AddressError(fault) from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise AddressError(fault)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def listener_address(sock: socket.socket, like: Address) -> Address:
    """Return where a listening socket really listens, in the scheme of another address.

    Raises AddressError if one is a Unix socket and the other is not, or it has no path.
    """
    if (sock.family == socket.AF_UNIX) != like.is_unix:
        kind = "Unix" if sock.family == socket.AF_UNIX else "TCP"
        raise AddressError(f"the socket is a {kind} socket, {like} is not: give the address it really has")
    name = sock.getsockname()
    if not like.is_unix:
        return Address(like.scheme, name[0], name[1])
    if not isinstance(name, str):
        raise AddressError(f"the socket has the abstract name {name!r}, which nothing protects: give it a path")
    return Address(like.scheme, path=name)


def notify(environ: Mapping[str, str], text: str) -> bool:
    """Tell the service manager something, such as "READY=1"; False if none asks for it (NOTIFY_SOCKET).

    Raises ConnectionLost if it cannot be told.
    """
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    name = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), name)
    except OSError as error:
        raise connection_lost(error, f"cannot notify {path!r} (NOTIFY_SOCKET)") from error
    return True


def tune(sock: socket.socket, raw: bool) -> None:
    """Set a connected socket's options: no delay, and for a raw one from another host keepalive of about 75 s.

    raw: whether plain bytes are spoken; a session's own pings notice a dead peer sooner.
    Raises ConnectionLost if there is no peer any more.
    """
    if sock.family == socket.AF_UNIX:
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if raw and not is_loopback_peer(sock):
            _keep_alive(sock)
    except ConnectionLost:
        raise
    except OSError as error:
        raise connection_lost(error, "cannot set up a connection") from error


def peer_text(sock: socket.socket) -> str:
    """Return the peer's name for messages: address and port, a path, or the process and user."""
    try:
        name = sock.getpeername()
        if name or sock.family != socket.AF_UNIX:
            return _shown(name)
        pid, uid, _ = peer_credentials(sock)
        return f"process {pid} of uid {uid}"
    except OSError:
        return "a peer that is gone"


def is_loopback_peer(sock: socket.socket) -> bool:
    """Tell whether what is sent never leaves this machine: a Unix socket, or TCP to a loopback address.

    Raises ConnectionLost if there is no peer any more.
    """
    return sock.family == socket.AF_UNIX or is_loopback(_name(sock, peer=True)[0])


def tcp_binding_address(sock: socket.socket, client: bool) -> tuple[bytes, int]:
    """Return the server's IP address in 16-byte form and its port, as this end of a connection sees them.

    client: whether this end dialled. Raises ConnectionLost if there is no peer any more.
    """
    ip, port = _name(sock, peer=client)
    if ":" in ip:
        return socket.inet_pton(socket.AF_INET6, ip.partition("%")[0]), port
    return _MAPPED + socket.inet_pton(socket.AF_INET, ip), port


def peer_is_gone(sock: socket.socket) -> bool:
    """Tell whether the peer of a raw connection, whose end of file has come, has closed and not only half-closed.

    True also when both directions are over. False whenever the system does not tell: peers on other hosts,
    systems other than Linux.
    """
    if sys.platform != "linux":
        return False
    if sock.family == socket.AF_UNIX:
        return _has_hung_up(sock)
    try:
        theirs, ours = _name(sock, peer=True), _name(sock, peer=False)
    except ConnectionLost:  # reset
        return True
    if not (is_loopback(theirs[0]) and os.path.exists("/proc/net/tcp")):
        return False
    # The table is read in pieces, and a row can slip between two of them: a missing one is looked for twice.
    return not (_has_owner(theirs, ours) or _has_owner(theirs, ours))


def unsent_bytes(sock: socket.socket) -> int:
    """Return what of the sent is not confirmed yet (TCP: bytes, and 1 for the end of file; Unix: unread memory).

    0 if there is nothing, or where the system does not tell.
    """
    if sys.platform != "linux":
        return 0
    try:
        import fcntl  # only a polite close needs it

        return int.from_bytes(fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ImportError):  # gone, and nothing will be confirmed any more; or no descriptor to load it
        return 0


def ucspi_environment(sock: socket.socket, number: int) -> dict[str, str]:
    """Return what a UCSPI server puts into the environment of the program that gets this connection.

    number: connections from that peer now, this one included; s6's CONNNUM.
    Raises ConnectionLost if there is no peer any more.
    """
    if sock.family == socket.AF_UNIX:
        return _ucspi_unix(sock, number)
    (ours, our_port), (theirs, their_port) = _name(sock, peer=False), _name(sock, peer=True)
    return {
        "PROTO": "TCP",
        "TCPLOCALIP": ours,
        "TCPLOCALPORT": str(our_port),
        "TCPREMOTEIP": theirs,
        "TCPREMOTEPORT": str(their_port),
        "TCPCONNNUM": str(number),
    }


def _ucspi_unix(sock: socket.socket, number: int) -> dict[str, str]:
    try:
        pid, uid, gid = peer_credentials(sock)
        path = sock.getsockname()
    except OSError as error:
        raise connection_lost(error, "the Unix socket has no peer any more") from error
    return {
        "PROTO": "UNIX",
        "UNIXLOCALPATH": path,
        "UNIXREMOTEPID": str(pid),
        "UNIXREMOTEEUID": str(uid),
        "UNIXREMOTEEGID": str(gid),
        "UNIXCONNNUM": str(number),
    }


def _explained(error: OSError, doing: str, advice: Mapping[int, str]) -> str:
    parts = (doing, error.strerror or str(error), advice.get(error.errno or 0))
    return ": ".join(filter(None, parts))


def _fail(code: int, doing: str) -> NoReturn:
    error = OSError(code, os.strerror(code))
    raise connection_lost(error, doing) from error


def _look_up(address: Address) -> list[tuple[int, SockAddr]]:
    try:
        # As bytes: text would be passed through the IDNA codec, and an Address is ASCII already.
        found = socket.getaddrinfo(address.host.encode(), address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        message = f"cannot find the host {address.host!r}: {error.strerror}"
        if error.errno == socket.EAI_NONAME:
            raise AddressError(f"{message}: check the name, or write its IP address") from error
        raise ConnectionLost(f"{message}: is the network up?") from error
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _bind_tcp(family: int, sockaddr: SockAddr, backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Or connections that ended a minute ago would keep us from listening again.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # systems differ in the default
        sock.bind(sockaddr)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Notice within 30 + 5 * 9 seconds that a silent peer's host is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "darwin":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, 30)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 9)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def _name(sock: socket.socket, *, peer: bool) -> tuple[str, int]:
    """Return IP address and port of one end of a TCP connection, IPv4 in its own form."""
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError as error:
        raise connection_lost(error, "the connection has no peer any more") from error
    return _unmapped(name[0]), name[1]


def _unmapped(ip: str) -> str:
    return ip.removeprefix("::ffff:") if "." in ip else ip


def _shown(sockaddr: SockAddr | bytes) -> str:
    """Format a socket address for a message; a peer chooses its path, which may hold anything."""
    if isinstance(sockaddr, tuple):
        host = _unmapped(sockaddr[0])
        return f"[{host}]:{sockaddr[1]}" if ":" in host else f"{host}:{sockaddr[1]}"
    return sockaddr if isinstance(sockaddr, str) and sockaddr.isprintable() else repr(sockaddr)


def _has_hung_up(sock: socket.socket) -> bool:
    poller = select.poll()
    poller.register(sock, 0)  # POLLHUP is reported in any case; a half-close is POLLRDHUP alone
    return any(mask & select.POLLHUP for _, mask in poller.poll(0))


def _has_owner(local: tuple[str, int], remote: tuple[str, int]) -> bool:
    """Tell whether a process of this machine holds the TCP socket with these two addresses.

    A socket without an inode is one that its process has closed and the kernel finishes. Whether an IPv4
    connection is in the table of IPv4 or, mapped, in that of IPv6 is up to the process that made the socket.
    """
    tables = {"tcp6": 16} if ":" in local[0] else {"tcp": 4, "tcp6": 16}
    for table, size in tables.items():
        key = b" %s %s " % (_table_form(local, size), _table_form(remote, size))
        try:
            with open(f"/proc/net/{table}", "rb") as file:
                row = next((line for line in file if key in line), None)
        except FileNotFoundError:  # tcp6, on a system without IPv6
            continue
        except OSError:  # no descriptor is left to look with
            return True
        if row is not None:
            return row.split()[9] != b"0"
    return False


def _table_form(name: tuple[str, int], size: int) -> bytes:
    """Format an address as /proc/net/tcp does: each 32-bit word in the machine's own byte order."""
    ip, port = name
    packed = socket.inet_pton(socket.AF_INET6, ip) if ":" in ip else _MAPPED + socket.inet_pton(socket.AF_INET, ip)
    words = struct.unpack(f"={size // 4}I", packed[-size:])
    return b"%s:%04X" % (b"".join(b"%08X" % word for word in words), port)
