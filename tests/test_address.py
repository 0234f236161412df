"""Addresses: every form and what it means, what is refused and in which words, and the way back to text."""

from __future__ import annotations

import copy
import ipaddress
import pickle
import socket
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockstream.address import SCHEMES, Address, is_loopback, parse
from sockstream.errors import AddressError

TCP_SCHEMES = ["tcp", "tls", "sock", "sock+tls"]
UNIX_SCHEMES = ["unix", "sock+unix"]


def label(extra: str = "") -> st.SearchStrategy[str]:
    """Generate one part of a host name; `extra` are more characters for its inside."""
    rest = st.text(string.ascii_letters + string.digits + "_" + extra, max_size=62)
    texts = st.builds(str.__add__, st.sampled_from(string.ascii_letters), rest)
    return texts.filter(lambda text: not text.endswith("-"))


def ipv6_text() -> st.SearchStrategy[str]:
    """Generate IPv6 addresses in many spellings, with zeros that can be left out."""
    group = st.one_of(st.just("0"), st.text(string.hexdigits, min_size=1, max_size=4))
    whole = st.lists(group, min_size=8, max_size=8).map(":".join)
    cut = st.tuples(st.lists(group, max_size=3), st.lists(group, max_size=4)).map(
        lambda halves: "::".join(":".join(half) for half in halves)
    )
    dotted = st.tuples(st.sampled_from(["::", "::ffff:", "1:2:3:4:5:6:", "::0:"]), ipv4_text()).map("".join)
    return st.one_of(whole, cut, dotted, st.ip_addresses(v=6).map(str))


def ipv4_text() -> st.SearchStrategy[str]:
    """Generate IPv4 addresses."""
    return st.ip_addresses(v=4).map(str)


def zoned(address: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Generate the addresses with the name of a network interface."""
    return st.builds("{}%{}".format, address, st.text(string.ascii_letters + ".-_~", min_size=1))


hosts = st.one_of(
    st.sampled_from(["", "localhost", "LocalHost.", "0.0.0.0", "tcp", "a." * 126 + "b"]),
    ipv4_text(),
    ipv6_text(),
    zoned(ipv6_text()),
    st.lists(label("-"), min_size=1, max_size=3).map(".".join),
)
paths = st.builds(
    "/{}{}".format,
    st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"])),
    st.sampled_from(["x", ".", "\udcff", " ", "é"]),
)
addresses = st.one_of(
    st.builds(Address, st.sampled_from(TCP_SCHEMES), hosts, st.integers(0, 65535)),
    st.builds(Address, st.sampled_from(UNIX_SCHEMES), path=paths),
)
# Pieces of addresses in any order come further into the parser than random characters do.
pieces = st.sampled_from(
    [
        *SCHEMES,
        "://",
        "//",
        *"/:[]%@?#.-0 \0\né٣\u212a",
        "::",
        "80",
        "65536",
        "::1",
        "ffff",
        "1.2.3",
        "0x7f",
        "host",
        "localhost",
    ]
)
texts = st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join), st.text(st.characters()))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("tcp://example.org:80", "tcp://example.org:80"),
        ("tls://example.org:443", "tls://example.org:443"),
        ("sock://example.org:7411", "sock://example.org:7411"),
        ("sock+tls://example.org:7411", "sock+tls://example.org:7411"),
        ("unix:///run/a.sock", "unix:///run/a.sock"),
        ("sock+unix:///run/a.sock", "sock+unix:///run/a.sock"),
        ("example.org:80", "sock://example.org:80"),
        (":7411", "sock://127.0.0.1:7411"),
        ("/run/a.sock", "sock+unix:///run/a.sock"),
        ("localhost:80", "sock://127.0.0.1:80"),
        ("LOCALHOST.:80", "sock://127.0.0.1:80"),
        ("tcp://:80", "tcp://127.0.0.1:80"),
        ("tls://localhost:0", "tls://127.0.0.1:0"),
        ("127.0.0.1:0", "sock://127.0.0.1:0"),
        ("0.0.0.0:65535", "sock://0.0.0.0:65535"),
        ("tcp://host:00080", "tcp://host:80"),
        ("TCP://Example.ORG.:80", "tcp://example.org.:80"),
        ("Sock+Unix:///Run/A", "sock+unix:///Run/A"),
        ("my_service-2:80", "sock://my_service-2:80"),
        ("xn--bcher-kva.example:80", "sock://xn--bcher-kva.example:80"),
        ("sock://tcp:80", "sock://tcp:80"),
        ("0xbox:80", "sock://0xbox:80"),
        ("10.example:80", "sock://10.example:80"),
        ("[::1]:80", "sock://[::1]:80"),
        ("tcp://[::]:0", "tcp://[::]:0"),
        ("tcp://[2001:DB8:0:0:1:0:0:1]:80", "tcp://[2001:db8::1:0:0:1]:80"),
        ("tcp://[1:0:2:3:4:5:6:7]:80", "tcp://[1:0:2:3:4:5:6:7]:80"),
        ("tcp://[1:0:0:2:0:0:0:3]:80", "tcp://[1:0:0:2::3]:80"),
        ("tcp://[1:2:3:4:5:6:7::]:80", "tcp://[1:2:3:4:5:6:7:0]:80"),
        ("tcp://[::FFFF:7f00:1]:80", "tcp://[::ffff:127.0.0.1]:80"),
        ("tcp://[64:ff9b::1.2.3.4]:80", "tcp://[64:ff9b::102:304]:80"),
        ("tcp://[FE80::1%Eth0.7]:80", "tcp://[fe80::1%Eth0.7]:80"),
        ("/with space/and@?#%20[x]:80", "sock+unix:///with space/and@?#%20[x]:80"),
        ("unix:////two//slashes/../kept", "unix:////two//slashes/../kept"),
        ("/tmp/tcp://x", "sock+unix:///tmp/tcp://x"),
        ("/" + "long" * 100, "sock+unix:///" + "long" * 100),
        ("/not-utf-8-\udcff", "sock+unix:///not-utf-8-\udcff"),
    ],
)
def test_forms_and_their_canonical_text(text: str, canonical: str) -> None:
    """A form means what its canonical text says, and that text means the same."""
    assert str(parse(text)) == canonical
    assert str(parse(canonical)) == canonical
    assert parse(canonical) == parse(text)


def test_the_parts_of_an_address() -> None:
    """Scheme, host, port and path are split, and what an address does not have is "" or 0."""
    tcp = parse("tls://[::1]:443")
    assert (tcp.scheme, tcp.host, tcp.port, tcp.path) == ("tls", "::1", 443, "")
    unix = parse("/run/x:80")
    assert (unix.scheme, unix.host, unix.port, unix.path) == ("sock+unix", "", 0, "/run/x:80")


@pytest.mark.parametrize(
    ("scheme", "raw", "unix", "tls"),
    [
        ("tcp", True, False, False),
        ("unix", True, True, False),
        ("tls", True, False, True),
        ("sock", False, False, False),
        ("sock+tls", False, False, True),
        ("sock+unix", False, True, False),
    ],
)
def test_what_a_scheme_stands_for(scheme: str, raw: bool, unix: bool, tls: bool) -> None:
    """Each scheme is raw or not, a Unix socket or not, TLS in any case or not."""
    address = Address(scheme, path="/x") if unix else Address(scheme, "host", 1)
    assert (address.is_raw, address.is_unix, address.needs_tls) == (raw, unix, tls)


def test_the_schemes_are_those_of_the_design() -> None:
    """There are six, and each of them is tested above as TCP or Unix."""
    assert sorted(SCHEMES) == sorted(TCP_SCHEMES + UNIX_SCHEMES)


REFUSED = [
    ("", "is empty: write HOST:PORT, :PORT or /PATH"),
    ("example.org", "'example.org' has no port or is no absolute path: write HOST:PORT, :PORT or /PATH"),
    ("8080", "write HOST:PORT, :PORT or /PATH"),
    ("./a.sock", "write HOST:PORT, :PORT or /PATH"),
    ("~/a:b.sock", "write HOST:PORT, :PORT or /PATH"),
    ("host:80/path", "write HOST:PORT, :PORT or /PATH"),
    ("host:", "'host:' has no port: write HOST:PORT"),
    ("tcp://", "'tcp://' has no port: write tcp://HOST:PORT"),
    ("tcp://host", "'tcp://host' has no port: write tcp://HOST:PORT"),
    ("tls://host:", "'tls://host:' has no port: write tls://HOST:PORT"),
    ("sock://[::1]", "has no port: write sock://HOST:PORT"),
    ("tcp:80", "'tcp:' is a scheme and needs two slashes: write tcp://HOST:PORT"),
    ("Sock:host:80", "'sock:' is a scheme and needs two slashes: write sock://HOST:PORT"),
    ("unix:/run/x", "'unix:' is a scheme and needs two slashes: write unix:///PATH"),
    ("http://host:80", "unknown scheme 'http': the known ones are tcp, unix, tls, sock, sock+tls, sock+unix"),
    ("://host:80", "unknown scheme ''"),
    (" tcp://host:80", "unknown scheme ' tcp'"),
    ("soc\u212a://host:80", "unknown scheme 'soc\u212a'"),
    ("unix://run/x", "'unix://run/x' has no absolute path: write unix:///PATH, three slashes"),
    ("sock+unix://", "'sock+unix://' has no absolute path: write sock+unix:///PATH, three slashes"),
    ("unix:///", "path '/' is a directory: name the socket in it"),
    ("/run/", "path '/run/' is a directory"),
    ("/a\0b", r"path '/a\x00b' holds a control character"),
    ("/a\nb", r"path '/a\nb' holds a control character"),
    ("unix:///a\x1b[31m", r"path '/a\x1b[31m' holds a control character"),
    ("/a\x7f", "holds a control character"),
    ("/a\x85b", "holds a control character"),
    ("/a\u2028b", "holds a control character"),
    ("/a\ud800", "cannot be a file name"),
    ("tcp://host:65536", "port '65536' is not a decimal number from 0 to 65535"),
    ("tcp://host:-1", "port '-1' is not"),
    ("tcp://host:+1", "port '+1' is not"),
    ("tcp://host:1_0", "port '1_0' is not"),
    ("tcp://host: 80", "port ' 80' is not"),
    ("tcp://host:80 ", "port '80 ' is not"),
    ("tcp://host:http", "port 'http' is not"),
    ("tcp://host:0x50", "port '0x50' is not"),
    ("tcp://host:٣", "port '٣' is not"),
    ("tcp://host:²", "port '²' is not"),
    ("tcp://host:" + "9" * 5000, "is not a decimal number from 0 to 65535"),
    ("tcp://host:80/", "an address has no path ('/'): write tcp://HOST:PORT"),
    ("tcp://host:80?x=1", "an address has no query ('?'): write tcp://HOST:PORT"),
    ("sock://host:80#x", "an address has no fragment ('#'): write sock://HOST:PORT"),
    ("me@host:80", "an address has no user name ('@'): write HOST:PORT"),
    ("::1:80", "has more than one ':': write IPv6 as [ADDRESS]:PORT"),
    ("tcp://fe80::1:80", "has more than one ':': write IPv6 as tcp://[ADDRESS]:PORT"),
    ("tcp://[127.0.0.1]:80", "is no IPv6 address with a port: write tcp://[ADDRESS]:PORT"),
    ("tcp://[host]:80", "is no IPv6 address with a port: write tcp://[ADDRESS]:PORT"),
    ("[::1:80", "is no IPv6 address with a port: write [ADDRESS]:PORT"),
    ("[::1]80", "is no IPv6 address with a port: write [ADDRESS]:PORT"),
    ("[]:80", "is no IPv6 address with a port"),
    ("[:::]:80", "is no IPv6 address with a port"),
    ("[1::2::3]:80", "is no IPv6 address with a port"),
    ("[1:2:3:4::5:6:7:8]:80", "is no IPv6 address with a port"),
    ("[1:2:3:4:5:6:7]:80", "is no IPv6 address with a port"),
    ("[::12345]:80", "is no IPv6 address with a port"),
    ("[::1.2.3.4:5]:80", "is no IPv6 address with a port"),
    ("[1.2.3.4::]:80", "is no IPv6 address with a port"),
    ("[::1.2.3]:80", "is no IPv6 address with a port"),
    ("[v1.x:y]:80", "is no IPv6 address with a port"),
    ("[fe80::1%]:80", "host 'fe80::1%' is no IPv6 address"),
    ("[fe80::1%a b]:80", "host 'fe80::1%a b' is no IPv6 address"),
    ("a[::1]:80", "has more than one ':'"),
    ("127.1:80", "host '127.1' is no IPv4 address: write it like 127.0.0.1"),
    ("0x7f.1:80", "host '0x7f.1' is no IPv4 address"),
    ("0x7f000001:80", "host '0x7f000001' is no IPv4 address"),
    ("2130706433:80", "host '2130706433' is no IPv4 address"),
    ("010.0.0.1:80", "host '010.0.0.1' is no IPv4 address"),
    ("1.2.3.256:80", "host '1.2.3.256' is no IPv4 address"),
    ("1.2.3.4.5:80", "host '1.2.3.4.5' is no IPv4 address"),
    ("1.2.3." + "4" * 5000 + ":80", "is no IPv4 address"),
    ("1.2.3.4.:80", "host '1.2.3.4.' is no IPv4 address"),
    ("host name:80", "host 'host name' is no name"),
    ("host\n:80", r"host 'host\n' is no name"),
    ("-x:80", "host '-x' is no name"),
    ("x-.example:80", "is no name"),
    ("a..b:80", "host 'a..b' is no name"),
    (".:80", "host '.' is no name"),
    ("*:80", "host '*' is no name"),
    ("a%20b:80", "host 'a%20b' is no name"),
    ("h" * 64 + ":80", "is no name"),
    ("ab." * 84 + "cd:80", "is no name"),
    ("bücher.example:80", "is not ASCII: write an international name in its xn-- form"),
    ("tcp://\u212a:80", "is not ASCII"),
    ("tcp://127.0.0.\u0661:80", "is not ASCII"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_is_no_address_is_refused_with_the_right_form(text: str, words: str) -> None:
    """The error is an AddressError and a ValueError, and says what is wrong and what to write."""
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "text",
    [
        "tcp://me:hunter2@host:80",
        "me:hunter2@host:80",
        "hunter2@host",
        "me/hunter2@host:80",
        "sock://host:80?token=hunter2",
        "sock://host:80#hunter2",
        "host?token=hunter2",
        "https://me:hunter2@host/",
    ],
)
def test_what_may_be_a_secret_is_not_repeated(text: str) -> None:
    """No message shows what stands where other kinds of addresses have a password or a token."""
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["h" * 10**6, "h" * 10**6 + ":80", "/" + "\0" * 10**6, "[" * 10**6])
def test_messages_are_short_and_of_one_line(text: str) -> None:
    """However long the text and whatever is in it, the message can be printed as one line."""
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("http", "host", 80), "unknown scheme 'http'"),
        (("TCP", "host", 80), "unknown scheme 'TCP'"),
        (("tcp", "host", 65536), "port 65536 is not a number from 0 to 65535"),
        (("tcp", "host", -1), "port -1 is not"),
        (("tcp", "[::1]", 80), "is no IPv6 address"),
        (("tcp", "a/b", 80), "is no name"),
        (("tcp", "host", 80, "/x"), "no tcp address, which has the form tcp://HOST:PORT"),
        (("unix", "host", 0, "/x"), "no unix address, which has the form unix:///PATH"),
        (("sock+unix", "", 1, "/x"), "no sock+unix address, which has the form sock+unix:///PATH"),
        (("unix",), "has no absolute path"),
        (("unix", "", 0, "x"), "has no absolute path"),
    ],
)
def test_impossible_parts_are_refused(parts: tuple[str, str, int, str], words: str) -> None:
    """An Address that exists is one that can be written and read again."""
    with pytest.raises(AddressError) as caught:
        Address(*parts)
    assert words in str(caught.value)


def test_parts_become_canonical() -> None:
    """An Address made from parts equals the one made from text."""
    assert Address("tcp", "", 80) == Address("tcp", "LOCALHOST", 80) == parse("tcp://:80")
    assert Address("sock", "0:0::0:1", 80) == parse("[::1]:80")


def test_with_port() -> None:
    """Only the port changes, in a new object; a Unix socket has none and an impossible one is refused."""
    address = parse("sock+tls://[fe80::1%eth0]:0")
    assert str(address.with_port(7411)) == "sock+tls://[fe80::1%eth0]:7411"
    assert address.port == 0
    with pytest.raises(AddressError, match="port 65536 is not"):
        address.with_port(65536)
    with pytest.raises(AddressError, match="unix:///x is a Unix socket and has no port"):
        parse("unix:///x").with_port(1)


def test_equality_and_hash() -> None:
    """Addresses are equal when all parts are, hash alike then, and equal nothing else."""
    same = [parse(":80"), parse("sock://LocalHost:80"), Address("sock", "127.0.0.1", 80)]
    assert len(set(same)) == 1
    others = ["sock://127.0.0.1:81", "sock://127.0.0.2:80", "tcp://127.0.0.1:80", "/x", "/y", "unix:///x"]
    assert len({*same, *map(parse, others)}) == 1 + len(others)
    assert parse(":80") != "sock://127.0.0.1:80"


def test_an_address_has_no_other_attributes() -> None:
    """A misspelt attribute is an error instead of a new one."""
    with pytest.raises(AttributeError):
        parse(":80").prot = 81  # type: ignore[attr-defined]  # the misspelling is what is tested


@pytest.mark.parametrize(
    ("ip", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("0:0:0:0:0:0:0:1", True),
        ("0000::0001", True),
        ("::1%lo", True),
        ("::ffff:127.0.0.1", True),
        ("::FFFF:7f12:3456", True),
        ("126.255.255.255", False),
        ("128.0.0.0", False),
        ("0.0.0.0", False),
        ("10.127.0.1", False),
        ("::", False),
        ("::2", False),
        ("1::1", False),
        ("::127.0.0.1", False),
        ("::ffff:126.255.255.255", False),
        ("::ffff:128.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::127.0.0.1", False),
        ("fe80::1", False),
        ("127.1", False),
        ("127.0.0.1.", False),
        ("127.0.0.01", False),
        ("0x7f.0.0.1", False),
        ("127.0.0.1.example.org", False),
        ("127.0.0.1%lo", False),
        ("[::1]", False),
        ("127.0.0.\u0661", False),
        ("localhost", False),
        ("", False),
        ("1", False),
    ],
)
def test_is_loopback(ip: str, loopback: bool) -> None:
    """Only loopback addresses in the form that sockets report are loopback."""
    assert is_loopback(ip) is loopback


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        (":80", True),
        ("localhost:80", True),
        ("127.9.9.9:80", True),
        ("[::1]:80", True),
        ("[::ffff:127.0.0.1]:80", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("192.168.0.1:80", False),
        ("localhost.example.org:80", False),
        ("my.localhost:80", False),
        ("ip6-localhost:80", False),
        ("/run/x", False),
    ],
)
def test_host_is_loopback(text: str, loopback: bool) -> None:
    """localhost and loopback addresses are; every other name and a Unix socket are not."""
    assert parse(text).host_is_loopback is loopback


@given(addresses)
def test_text_leads_back_to_the_address(address: Address) -> None:
    """parse(str(a)) == a, and the text does not change any more."""
    again = parse(str(address))
    assert again == address
    assert hash(again) == hash(address)
    assert str(again) == str(address)


@given(addresses)
def test_repr_pickle_and_copy_lead_back_to_the_address(address: Address) -> None:
    """The repr is Python for an equal address; pickle and copy make one."""
    assert eval(repr(address), {"Address": Address}) == address
    assert pickle.loads(pickle.dumps(address)) == copy.copy(address) == address


@given(addresses)
def test_the_text_of_an_address_is_one_line(address: Address) -> None:
    """No address can add a line to what is printed."""
    assert str(address).splitlines() == [str(address)]
    assert not set(map(chr, [*range(32), *range(127, 160)])).intersection(str(address))


@given(texts)
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    """Nothing but AddressError comes out of parse, and an address that does has a stable text."""
    try:
        address = parse(text)
    except AddressError as error:
        assert str(error)
    else:
        assert parse(str(address)) == address


@given(st.sampled_from([*SCHEMES, "http", ""]), texts, st.integers(-1, 65536), texts)
def test_any_parts_are_an_address_or_an_address_error(scheme: str, host: str, port: int, path: str) -> None:
    """Nothing but AddressError comes out of Address, and an address that does can be read again."""
    for parts in (scheme, host, port), (scheme, "", 0, path), (scheme, host, port, path):
        try:
            address = Address(*parts)
        except AddressError:
            continue
        assert parse(str(address)) == address


def inet_pton(family: int, text: str) -> bytes | None:
    """Return what the system makes of an IP address, None if it is none."""
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: NUL, or text that has no encoding
        return None


@given(st.one_of(ipv6_text(), st.lists(st.sampled_from([*"01:.af", "::", "1.2.3.4", "ffff"])).map("".join)))
def test_ipv6_is_what_the_system_takes_for_ipv6(text: str) -> None:
    """The same texts are IPv6 addresses, and the canonical one is the same address."""
    packed = inet_pton(socket.AF_INET6, text)
    try:
        host = parse(f"tcp://[{text}]:80").host
    except AddressError:
        assert packed is None
    else:
        assert packed == inet_pton(socket.AF_INET6, host)


@given(st.one_of(ipv4_text(), st.lists(st.sampled_from(["0", "1", "00", "255", "256", "."])).map("".join)))
def test_ipv4_is_what_the_system_takes_for_ipv4(text: str) -> None:
    """Of numbers and dots, the same texts are IPv4 addresses."""
    packed = inet_pton(socket.AF_INET, text)
    try:
        host = Address("tcp", text, 80).host
    except AddressError:
        assert packed is None
    else:
        assert text == "" or (host == text and packed is not None)


@given(st.ip_addresses(v=6))
def test_canonical_ipv6_follows_rfc_5952(ip: ipaddress.IPv6Address) -> None:
    """The canonical text is the standard library's, but for IPv4 mapped into IPv6, which is shown as IPv4."""
    expected = f"::ffff:{ip.ipv4_mapped}" if ip.ipv4_mapped else str(ip)
    assert Address("tcp", ip.exploded.upper(), 80).host == expected


@given(st.ip_addresses())
def test_is_loopback_agrees_with_ipaddress(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Random addresses are judged as ipaddress judges them, mapped ones as the IPv4 address inside."""
    inside = getattr(ip, "ipv4_mapped", None) or ip
    assert is_loopback(str(ip)) is inside.is_loopback
