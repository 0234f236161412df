"""Addresses: text to Address and back. Pure: nothing is looked up, no socket and no file is touched.

Rules:
* An Address that exists is valid and in canonical form, whoever made it; `parse(str(a)) == a`.
* The forms are `SCHEME://HOST:PORT` (tcp, tls, sock, sock+tls), `SCHEME:///PATH` (unix, sock+unix), and bare:
  `HOST:PORT` and `:PORT` are sock, `/PATH` is sock+unix. The text is used as it stands: percent-encoding is
  not interpreted, nothing is trimmed.
* HOST is nothing or `localhost` (both mean 127.0.0.1), an IPv4 address of four decimal numbers, a name, or an
  IPv6 address in brackets, with `%ZONE` if it is link-local. Scheme and name are in lower case, IPv6 in its
  shortest form.
* User names, queries, fragments and paths after a port are errors. In PATH the characters `@ ? # %` and
  spaces are ordinary ones; control characters, NUL and line separators are errors.
* Whether a path is too long for a socket depends on the system, so the transport judges it.

Reasoning: one strict form keeps a typing error from becoming another valid address. `127.1` and `0x7f.1` are
refused because resolvers read them as addresses, `010.0.0.1` because they disagree which; `tcp:80` because it
would be a host called "tcp" under another protocol (which is `sock://tcp:80`). What may be a password is not
repeated in a message. A line break in a path would forge lines in what we print. A name is never loopback,
except localhost: only a resolver knows, and the transport judges the connected socket anyway. ipaddress and
urllib are too slow to import.
"""

from __future__ import annotations

from sockstream.errors import AddressError

SCHEMES = ("tcp", "unix", "tls", "sock", "sock+tls", "sock+unix")
_UNIX_SCHEMES = ("unix", "sock+unix")
_LOOPBACK = "127.0.0.1"
_HEX = frozenset("0123456789abcdefABCDEF")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_ZONE = _NAME | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ.~")
_NOT_IN_AN_ADDRESS = {"@": "a user name", "?": "a query", "#": "a fragment", "/": "a path"}


class Address:
    """Where to wait or dial, and what is spoken there; do not change one, it is hashable.

    scheme: one of SCHEMES.
    host: IP address or name, IPv6 without brackets; "" is 127.0.0.1. Stays "" for Unix sockets.
    port: 0 to 65535; 0 lets the system pick one. Stays 0 for Unix sockets.
    path: absolute path of a Unix socket; "" for all others.
    Raises AddressError if the parts are no address.
    """

    __slots__ = ("host", "path", "port", "scheme")

    def __init__(self, scheme: str, host: str = "", port: int = 0, path: str = "") -> None:
        if scheme not in SCHEMES:
            raise AddressError(f"unknown scheme {_shown(scheme)}: the known ones are {', '.join(SCHEMES)}")
        unix = scheme in _UNIX_SCHEMES
        if (host or port) if unix else path:
            raise AddressError(f"these parts are no {scheme} address, which has the form {_form(scheme)}")
        if not 0 <= port <= 65535:
            raise AddressError(f"port {port} is not a number from 0 to 65535")
        self.scheme = scheme
        self.host = "" if unix else _canonical_host(host)
        self.port = port
        self.path = _checked_path(scheme, path) if unix else ""

    @property
    def is_raw(self) -> bool:
        """Whether plain bytes are spoken there, not the sockstream protocol."""
        return not self.scheme.startswith("sock")

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.scheme in _UNIX_SCHEMES

    @property
    def needs_tls(self) -> bool:
        """Whether TLS is spoken there in any case, also on loopback."""
        return self.scheme in ("tls", "sock+tls")

    @property
    def host_is_loopback(self) -> bool:
        """Whether the host is a loopback address; False for every other name, and for Unix sockets."""
        return is_loopback(self.host)

    def with_port(self, port: int) -> Address:
        """Return the same address with another port, such as the one the system picked.

        port: 0 to 65535. Raises AddressError for another number or a Unix socket.
        """
        if self.is_unix:
            raise AddressError(f"{self} is a Unix socket and has no port")
        return Address(self.scheme, self.host, port)

    def _parts(self) -> tuple[str, str, int, str]:
        return self.scheme, self.host, self.port, self.path

    def __eq__(self, other: object) -> bool:
        return self._parts() == other._parts() if isinstance(other, Address) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._parts())

    def __str__(self) -> str:
        if self.is_unix:
            return f"{self.scheme}://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __repr__(self) -> str:
        place = f"path={self.path!r}" if self.is_unix else f"{self.host!r}, {self.port}"
        return f"Address({self.scheme!r}, {place})"


def parse(text: str) -> Address:
    """Return the Address that the text means; raise AddressError, naming the right form, if it means none."""
    if text.startswith("/"):
        return Address("sock+unix", path=text)
    scheme, mark, rest = text.partition("://")
    if not mark:
        _check_bare(text)
        return Address("sock", *_host_and_port(text, ""))
    if scheme.isascii():  # or KELVIN SIGN would become a k
        scheme = scheme.lower()
    if scheme in SCHEMES and scheme not in _UNIX_SCHEMES:
        return Address(scheme, *_host_and_port(rest, f"{scheme}://"))
    return Address(scheme, path=rest)


def is_loopback(ip: str) -> bool:
    """Tell whether the text is a loopback address: 127.0.0.0/8, ::1, or the first mapped into IPv6.

    ip: an address as a socket reports it, without brackets. Names and everything else are False.
    """
    quad = _ipv4(ip)
    if quad is not None:
        return quad[0] == 127
    groups = _ipv6(ip.partition("%")[0]) or (0,) * 8
    return groups == (0, 0, 0, 0, 0, 0, 0, 1) or (_is_mapped(groups) and groups[6] >> 8 == 127)


def _check_bare(text: str) -> None:
    """Refuse what somebody meant as a scheme or a path, before it is read as a host and a port."""
    if not text:
        raise AddressError("the address is empty: write HOST:PORT, :PORT or /PATH")
    head = text.partition(":")[0].lower()
    if head in SCHEMES:
        raise AddressError(f"'{head}:' is a scheme and needs two slashes: write {_form(head)}")
    if ":" not in text or "/" in text:
        shown = "the address" if set("@?#").intersection(text) else _shown(text)
        raise AddressError(f"{shown} has no port or is no absolute path: write HOST:PORT, :PORT or /PATH")


def _host_and_port(rest: str, prefix: str) -> tuple[str, int]:
    """Split `HOST:PORT`; the prefix is what stood before it, for messages."""
    for mark, name in _NOT_IN_AN_ADDRESS.items():
        if mark in rest:
            raise AddressError(f"an address has no {name[2:]} ({mark!r}): write {prefix}HOST:PORT")
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        colon, port = tail[:1], tail[1:]
        if not bracket or _ipv6(host.partition("%")[0]) is None or colon not in ("", ":"):
            raise AddressError(f"{_shown(rest)} is no IPv6 address with a port: write {prefix}[ADDRESS]:PORT")
    else:
        host, colon, port = rest.rpartition(":")
        if ":" in host:
            raise AddressError(f"{_shown(rest)} has more than one ':': write IPv6 as {prefix}[ADDRESS]:PORT")
    if not (colon and port):
        raise AddressError(f"{_shown(prefix + rest)} has no port: write {prefix}HOST:PORT")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise AddressError(f"port {_shown(port)} is not a decimal number from 0 to 65535")
    return host, int(port)


def _canonical_host(host: str) -> str:
    """Return the host in its one spelling; raise AddressError if it is neither an IP address nor a name."""
    if ":" in host:
        return _canonical_ipv6(host)
    if not host.isascii():
        raise AddressError(f"host {_shown(host)} is not ASCII: write an international name in its xn-- form")
    name = host.lower()
    if name in ("", "localhost", "localhost."):
        return _LOOPBACK
    absolute = name.removesuffix(".")
    labels = absolute.split(".")
    if _is_number(labels[-1]):
        if _ipv4(name) is None:
            raise AddressError(f"host {_shown(host)} is no IPv4 address: write it like {_LOOPBACK}")
    elif len(absolute) > 253 or not all(map(_is_label, labels)):
        raise AddressError(f"host {_shown(host)} is no name: use letters, digits, '-', '_' and single dots")
    return name


def _canonical_ipv6(host: str) -> str:
    address, percent, zone = host.partition("%")
    groups = _ipv6(address)
    if groups is None or (percent and not zone) or not _ZONE.issuperset(zone):
        raise AddressError(f"host {_shown(host)} is no IPv6 address")
    return _ipv6_text(groups) + percent + zone


def _checked_path(scheme: str, path: str) -> str:
    """Return the path; raise AddressError if no Unix socket can have it or a line of text cannot show it."""
    if not path.startswith("/"):
        raise AddressError(
            f"{_shown(f'{scheme}://{path}')} has no absolute path: write {scheme}:///PATH, three slashes"
        )
    if any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" for c in path):
        raise AddressError(f"path {_shown(path)} holds a control character: choose another path")
    if path.endswith("/"):
        raise AddressError(f"path {_shown(path)} is a directory: name the socket in it")
    try:
        path.encode("utf-8", "surrogateescape")  # file names that are not UTF-8 reach us so and may stay
    except UnicodeEncodeError as error:
        raise AddressError(f"path {_shown(path)} cannot be a file name: choose another path") from error
    return path


def _form(scheme: str) -> str:
    return f"{scheme}:///PATH" if scheme in _UNIX_SCHEMES else f"{scheme}://HOST:PORT"


def _shown(text: str) -> str:
    """Quote for a message: control characters escaped, long text cut."""
    return repr(text) if len(text) <= 120 else repr(text[:120]) + "..."


def _is_number(label: str) -> bool:
    """Tell whether resolvers take a host that ends so for an IPv4 address: decimal, octal or hexadecimal."""
    return label.isdigit() or (label.startswith("0x") and _HEX.issuperset(label[2:]))


def _is_label(label: str) -> bool:
    return 0 < len(label) <= 63 and _NAME.issuperset(label) and label[0] != "-" and label[-1] != "-"


def _ipv4(text: str) -> tuple[int, ...] | None:
    """Return the four numbers, or None; no leading zeros, which some resolvers read as octal."""
    parts = text.split(".")
    if not text.isascii() or len(parts) != 4:
        return None
    if not all(part.isdigit() and len(part) <= 3 and str(int(part)) == part for part in parts):
        return None
    quad = tuple(map(int, parts))
    return quad if max(quad) <= 255 else None


def _ipv6(text: str) -> tuple[int, ...] | None:
    """Return the eight groups, or None if the text (no zone) is no IPv6 address: RFC 4291, section 2.2."""
    if "." in text:
        start, _, end = text.rpartition(":")
        quad = _ipv4(end)
        if quad is None:
            return None
        text = f"{start}:{quad[0] << 8 | quad[1]:x}:{quad[2] << 8 | quad[3]:x}"
    head, gap, tail = text.partition("::")
    left, right = (part.split(":") if part else [] for part in (head, tail))
    missing = 8 - len(left) - len(right)
    if (missing < 1) if gap else (missing != 0):
        return None
    words = [*left, *["0"] * missing, *right]
    if not all(0 < len(word) <= 4 and _HEX.issuperset(word) for word in words):
        return None
    return tuple(int(word, 16) for word in words)


def _is_mapped(groups: tuple[int, ...]) -> bool:
    return groups[:6] == (0, 0, 0, 0, 0, 0xFFFF)


def _ipv6_text(groups: tuple[int, ...]) -> str:
    """Format as RFC 5952 says: lower case, the first longest run of two or more zeros left out."""
    if _is_mapped(groups):
        return "::ffff:" + ".".join(str(byte) for group in groups[6:] for byte in (group >> 8, group & 255))
    words = [f"{group:x}" for group in groups]
    for length in range(8, 1, -1):
        for start in range(9 - length):
            if not any(groups[start : start + length]):
                return ":".join(words[:start]) + "::" + ":".join(words[start + length :])
    return ":".join(words)
