"""What `run` and `connect` do when the wrong one answers: one line, 125, and no second try where that cannot help."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
import sys
import time
from typing import TYPE_CHECKING

import pytest

from certificates import make_authority
from hostile.guest import frame
from hostile.host import Host, Welcome
from hostile.victim import Victim, environment, read_to_end, send_all, write_token
from sockstream.frames import FrameType
from sockstream.handshake import MAGIC
from sockstream.records import Kind
from support import Running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Talk = Callable[[socket.socket], None]

OPEN, DATA, TAKEN, STOP, GAP, PING, PONG, GOAWAY = FrameType
PREAMBLE = MAGIC + bytes.fromhex("0100 0000 2100 0000")
NOISE = random.Random(11).randbytes(65536)
WRONG_TOKEN = b"wrong token, or not the address you dialled (a forwarded port?): for the latter use sock+tls://"


def dialling(name: str, where: str, directory: Path, *options: str) -> Running:
    """Start `run -- cat` or `connect` towards an address."""
    token = ("--token-file", write_token(directory))
    env = environment(directory)
    if name == "connect":
        return Running(name, *token, *options, where, env=env)
    return Running(name, *token, *options, "--to", where, "--", "sh", "-c", "echo started; exec cat", env=env)


def says(data: bytes) -> Talk:
    """Say something to everybody, and listen until he goes."""

    def talk(sock: socket.socket) -> None:
        send_all(sock, data)
        sock.shutdown(socket.SHUT_WR)
        read_to_end(sock)

    return talk


def after_hello(data: bytes) -> Talk:
    """Answer a client's preamble and HELLO, and its proof with something false."""

    def talk(sock: socket.socket) -> None:
        sock.recv(49, socket.MSG_WAITALL)
        sock.sendall(PREAMBLE + b"\2" + bytes(32))
        sock.recv(32, socket.MSG_WAITALL)
        send_all(sock, data)
        read_to_end(sock)

    return talk


def reflects(sock: socket.socket) -> None:
    """Say back what is said."""
    while data := sock.recv(4096):
        sock.sendall(data)


def reflects_proof(sock: socket.socket) -> None:
    """Take the client's nonce for our own, and give its proof back for ours."""
    hello = sock.recv(49, socket.MSG_WAITALL)
    sock.sendall(PREAMBLE + b"\2" + hello[17:])
    sock.sendall(sock.recv(32, socket.MSG_WAITALL))
    read_to_end(sock)


# What answers, and what the command says of it.
ANSWERS: dict[str, tuple[Talk, bytes]] = {
    "ssh": (says(b"SSH-2.0-OpenSSH_9.2p1\r\n"), b"does not speak the sockstream protocol"),
    "http": (says(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n\x1b[2J"), b"does not speak the sockstream"),
    "noise": (says(NOISE), b"does not speak the sockstream protocol"),
    "tls alert": (says(bytes.fromhex("15030300020246")), b"does not speak the sockstream protocol"),
    "refusal": (after_hello(bytes(32)), WRONG_TOKEN),
    "false proof": (after_hello(NOISE[:32]), WRONG_TOKEN),
    "false proof and more": (after_hello(NOISE), WRONG_TOKEN),
    "reflected": (reflects, b"claims role 1"),
    "reflected proof": (reflects_proof, WRONG_TOKEN),
    "newer version": (
        says(MAGIC + bytes.fromhex("0203 0000 0000 0000")),
        b"version 2.3 of the sockstream protocol, this one 1.0",
    ),
    "older version": (
        says(MAGIC + bytes.fromhex("0009 0000 0000 0000")),
        b"version 0.9 of the sockstream protocol, this one 1.0",
    ),
    "hello of 2049": (says(PREAMBLE[:12] + b"\x01\x08\0\0"), b"HELLO of 2049"),
}


@pytest.mark.parametrize("name", ["run", pytest.param("connect", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("talk", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_the_wrong_answer_is_final(name: str, talk: Talk, reason: bytes, tmp_path: Path) -> None:
    """One attempt although there was time for more, one line that says why, 125, and the program never starts."""
    with Host() as host, dialling(name, f"sock://127.0.0.1:{host.port}", tmp_path, "--wait", "5") as command:
        host.serve(talk, lambda: command.process.poll() is not None)
        assert command.wait() == 125
        assert host.came == 1
        assert command.stderr.count(b"\n") == 1 and reason in command.stderr and b"\x1b" not in command.stderr
        assert command.stdout == b""


@pytest.mark.parametrize("name", [pytest.param("run", marks=pytest.mark.slow), "connect"])
@pytest.mark.parametrize(
    "data", [b"", PREAMBLE, PREAMBLE + b"\2" + bytes(32)], ids=["at once", "after preamble", "after hello"]
)
def test_who_closes_without_a_reason_may_be_dialled_again(name: str, data: bytes, tmp_path: Path) -> None:
    """Until the time for that is over; then one line and 125."""
    with Host() as host, dialling(name, f"sock://127.0.0.1:{host.port}", tmp_path, "--wait", "0.4") as command:
        host.serve(says(data), lambda: command.process.poll() is not None)
        assert command.wait() == 125
        assert host.came > 1
        hint = b": does it speak sock:// there, or sock+tls:// or something else?" if not data else b""
        assert command.stderr == b"sockstream: the other end closed the connection" + hint + b"\n"


@pytest.mark.slow
def test_who_says_nothing_is_waited_for_ten_seconds(tmp_path: Path) -> None:
    """By both commands, on plain links and on TLS ones, where no protocol of ours has begun yet."""
    with contextlib.ExitStack() as stack:
        commands = []
        for name, scheme in itertools.product(("run", "connect"), ("sock", "sock+tls")):
            host = stack.enter_context(Host())
            where = f"{scheme}://127.0.0.1:{host.port}"
            commands.append(stack.enter_context(dialling(name, where, tmp_path, "--wait", "0")))
            stack.enter_context(host.accept())
        started = time.monotonic()
        for command in commands:
            assert command.wait(13) == 125
            assert time.monotonic() - started > 9
            assert b"did not" in command.stderr and command.stderr.count(b"\n") == 1


def tls_answer(directory: Path, alpn: str, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return the context of a TLS server that is none of ours."""
    _, certificate, key = make_authority(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.maximum_version = version
    context.set_alpn_protocols([alpn])
    return context


@pytest.mark.parametrize(
    ("alpn", "version", "reason"),
    [
        ("http/1.1", ssl.TLSVersion.TLSv1_3, b"speaks TLS, but not sockstream/1"),
        ("sockstream/1", ssl.TLSVersion.TLSv1_2, b"no TLS version or method in common"),
    ],
    ids=["https", "tls 1.2"],
)
def test_tls_of_others_is_refused(alpn: str, version: ssl.TLSVersion, reason: bytes, tmp_path: Path) -> None:
    """A server of another protocol, or with an old TLS, gets no HELLO of ours."""
    context, heard = tls_answer(tmp_path, alpn, version), []

    def talk(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=True) as wrapped:
            heard.append(read_to_end(wrapped))

    with Host() as host, dialling("run", f"sock+tls://127.0.0.1:{host.port}", tmp_path, "--wait", "5") as command:
        host.serve(talk, lambda: command.process.poll() is not None)
        assert command.wait() == 125 and host.came == 1
        assert reason in command.stderr and command.stderr.count(b"\n") == 1
        assert not any(heard)


def endless_certificates() -> bytes:
    """Return the beginning of a TLS server's flight that never ends."""
    record = b"\x16\x03\x03\x40\x00" + b"\x0b\xff\xff\xff".ljust(16384, b"c")
    return record * 64


def test_an_endless_tls_handshake_is_cut(tmp_path: Path) -> None:
    """A server may say 128 KiB before it has proved anything, and less if it is nonsense."""
    with Host() as host, dialling("connect", f"sock+tls://127.0.0.1:{host.port}", tmp_path, "--wait", "0") as command:
        host.serve(says(endless_certificates()), lambda: command.process.poll() is not None)
        assert command.wait() == 125
        assert b"TLS handshake" in command.stderr and b"Traceback" not in command.stderr


# ---- hosts that own the token


def kind_against(name: str) -> Kind:
    """What waits for that command."""
    return Kind.VIEWER if name == "run" else Kind.PROGRAM


@pytest.mark.parametrize("name", ["run", "connect"])
def test_goaway_with_escapes_is_one_line_without_them(name: str, tmp_path: Path) -> None:
    """In place of OPEN, as a refusal: its text is shown escaped, the status is 125, nobody dials again."""
    with Host() as host, dialling(name, f"sock://127.0.0.1:{host.port}", tmp_path) as command:
        with host.accept() as sock:
            welcome = Welcome(sock, kind_against(name)).until_asked()
            welcome.send_frame(GOAWAY, payload=b"\1no\x1b[2J\x1b]52;c;b3duZWQ=\x07\nsockstream: yes\r\xc2\x9b1m")
        assert command.wait() == 125
        assert b"no\\x1b[2J\\x1b]52;c;b3duZWQ=\\x07\\nsockstream: yes\\r\\x9b1m" in command.stderr
        assert command.stderr.count(b"\n") == 1 and b"\x1b" not in command.stderr and b"\r" not in command.stderr


GARBAGE = {
    "unknown type": frame(9, 0, 0, 0),
    "noise": NOISE[:4096],
    "length 2^32-1": frame(DATA, 0, 2, 0, length=(1 << 32) - 1),
    "end of numbers": frame(GAP, 0, 2, (1 << 64) - 2, b"\2"),
}


@pytest.mark.parametrize("name", ["run", "connect"])
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_from_a_host_ends_the_command(name: str, data: bytes, tmp_path: Path) -> None:
    """A host that breaks the rules will break them again: the reason is told, the program is ended."""
    with Host() as host, dialling(name, f"sock://127.0.0.1:{host.port}", tmp_path) as command:
        with host.accept() as sock:
            Welcome(sock, kind_against(name)).open()
            send_all(sock, data)
            status = command.wait()
            assert status == 125 if name == "connect" else status in (129, 141), command
        assert b"the peer sent" in command.stderr and b"Traceback" not in command.stderr
        assert host.came == 1


@pytest.mark.parametrize("grace", [2.0**60, 86400 * 25.0])
def test_a_host_that_promises_to_stay_for_ever(grace: float, tmp_path: Path) -> None:
    """`connect` lives with it when the link breaks, dials again, and gives up when it is told to."""
    with Host() as host, dialling("connect", f"sock://127.0.0.1:{host.port}", tmp_path) as command:
        with host.accept() as sock:
            Welcome(sock, Kind.PROGRAM, grace=grace).open().exchange(b"before\n")
        with host.accept() as sock:
            again = Welcome(sock, Kind.PROGRAM).until_asked()
            assert again.link.resumes
            again.send_frame(GOAWAY, payload=b"\5")
        assert command.wait() == 125
        assert command.stdout == b"before\n" and b"Traceback" not in command.stderr


# ---- real ends of other versions

OTHER_VERSION = (
    "import sockstream.handshake as h; h.VERSION = {}; import sys; from sockstream.cli import main; sys.exit(main())"
)


@pytest.mark.parametrize("version", [(2, 1), (0, 3)], ids=["newer", "older"])
@pytest.mark.parametrize("waits", ["listen", "serve"])
def test_both_ends_name_both_versions(version: tuple[int, int], waits: str, tmp_path: Path) -> None:
    """Whichever of them dials: its status is 125, and each says which version the other speaks, and itself."""
    other = (sys.executable, "-c", OTHER_VERSION.format(version))
    token, env = ("--token-file", write_token(tmp_path)), environment(tmp_path)
    name = f"{version[0]}.{version[1]}".encode()
    waiting = Victim(waits, "sock://127.0.0.1:0", tmp_path)
    dial = ("run", *token, "--to") if waits == "listen" else ("connect", *token)
    behind = ("--", "true") if waits == "listen" else ()
    with waiting, Running(*dial, waiting.address, *behind, command=other, env=env) as command:
        assert command.wait() == 125
        said = b"speaks version 1.0 of the sockstream protocol, this one " + name
        assert said in command.stderr and command.stderr.count(b"\n") == 1
        wait_until(lambda: waiting.lines, 5, "a line about it")
        [line] = waiting.lines
        assert b"speaks version " + name + b" of the sockstream protocol, this one 1.0" in line
