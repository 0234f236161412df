"""Who may talk to us at all: what a waiting end refuses to open, whose token is believed, and where it never shows."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import connections
from certificates import make_authority
from connections import ONLY_ROOT
from hostile.guest import Guest, kind_for
from hostile.victim import TOKEN, Victim, environment, own_address, write_token
from sockstream import auth, security
from sockstream.address import parse
from sockstream.errors import SockstreamError
from sockstream.security import Security
from support import Running, helper

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": ("--to", "sock://127.0.0.1:1", "--wait", "0", "--", "true"),
    "connect": ("sock://127.0.0.1:1", "--wait", "0"),
    "serve": ("sock://127.0.0.1:0", "--", "true"),
    "listen": ("sock://127.0.0.1:0",),
}


def assert_refused(words: Sequence[str], *says: bytes, **options: object) -> None:
    """The command ends at once with 125 and one line."""
    with Running(*words, **options) as command:
        assert command.wait() == 125, command
        assert command.stderr.count(b"\n") == 1 and command.stderr.startswith(b"sockstream: "), command
        assert all(word in command.stderr for word in says), command
        assert command.stdout == b""


# ---- raw addresses


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.77", "example.test", "[fe80::1%eth0]"])
@pytest.mark.parametrize("name", ["serve", "listen"])
def test_raw_beyond_loopback_is_refused(name: str, host: str) -> None:
    """It would let anybody in: refused unless that is spelt out, and the line says what to do instead."""
    behind = ("--", "cat") if name == "serve" else ()
    assert_refused((name, f"tcp://{host}:7411", *behind), b"--insecure", b"sock+tls://")


@pytest.mark.parametrize("name", ["serve", "listen"])
def test_raw_beyond_loopback_when_it_is_spelt_out(name: str, tmp_path: Path) -> None:
    """With --insecure it waits there, and takes peers from the network."""
    with Victim(name, "tcp://0.0.0.0:0", tmp_path, "--insecure", program=("echo", "hi")) as victim:
        port = int(victim.address.rpartition(":")[2])
        with socket.create_connection((own_address(), port)) as sock:
            if name == "serve":
                assert sock.recv(10) == b"hi\n"
        assert b"any user or web page" not in victim.stderr


def test_insecure_is_not_needed_to_dial() -> None:
    """Whom we dial is our own choice: only waiting is refused."""
    with Running("connect", "--wait", "0", "tcp://0.0.0.0:1") as command:
        assert command.wait() == 125
        assert b"--insecure" not in command.stderr and b"Connection refused" in command.stderr


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        (("serve", "tcp://127.0.0.1:0", "--", "echo", "hi"), 1),
        (("serve", "tcp://[::1]:0", "--", "echo", "hi"), 1),
        (("serve", "tcp://localhost:0", "--", "echo", "hi"), 1),
        (("serve", "sock://127.0.0.1:0", "--", "echo", "hi"), 0),
        (("serve", "unix://{}/s", "--", "echo", "hi"), 0),
        (("listen", "tcp://127.0.0.1:0"), 0),
    ],
)
def test_raw_serve_on_loopback_warns_once(words: tuple[str, ...], warnings: int, tmp_path: Path) -> None:
    """Not for each peer, and not where there is a token or a file's mode."""
    with Running(*(word.format(tmp_path) for word in words)) as command:
        where = parse(command.address)
        for _ in range(2 if where.scheme == "tcp" and words[0] == "serve" else 0):
            with connections.dial(where) as sock:
                sock.setblocking(True)
                assert sock.recv(10) == b"hi\n"
        assert command.stderr.count(b"any user or web page on this machine can reach") == warnings, command


# ---- the token


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, 0o644) for name in COMMANDS), *(("serve", mode) for mode in (0o640, 0o604, 0o620, 0o602, 0o610, 0o601))],
)
def test_a_token_file_open_to_others_is_refused(name: str, mode: int, tmp_path: Path) -> None:
    """By each command, before it does anything else; the line says how to mend it, and not what is in the file."""
    path = Path(write_token(tmp_path))
    path.chmod(mode)
    assert_refused((name, "--token-file", str(path), *COMMANDS[name]), b"is open to others", b"chmod 600")


@ONLY_ROOT
@pytest.mark.parametrize("name", COMMANDS)
def test_a_token_file_of_somebody_else_is_refused(name: str, tmp_path: Path) -> None:
    """He knows what is in it."""
    path = write_token(tmp_path)
    os.chown(path, 1234, 1234)
    assert_refused((name, "--token-file", path, *COMMANDS[name]), b"belongs to user id 1234")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, b"") for name in COMMANDS),
        *(("run", text) for text in (b"0123", b"g" * 64, b"0" * 63, b"0" * 66, b"\xff" * 64, b"0" * 100000)),
    ],
)
def test_a_malformed_token_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    """Nothing of it is in the message."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_bytes(content)
    with Running(name, "--token-file", str(path), *COMMANDS[name]) as command:
        assert command.wait() == 125
        assert b"is malformed" in command.stderr and (not content or content[:16] not in command.stderr)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_token_file_is_not_made(name: str, tmp_path: Path) -> None:
    """One that was named is the user's affair."""
    path = tmp_path / "token"
    assert_refused((name, "--token-file", str(path), *COMMANDS[name]), b"there is no token file")
    assert not path.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_takes_the_token_itself(name: str) -> None:
    """Others could read it in the list of processes."""
    with Running(name, "--token", "0" * 64, *COMMANDS[name]) as command:
        assert command.wait() == 125
        assert b"not understood: --token" in command.stderr or b"no program" in command.stderr


@pytest.mark.parametrize("way", ["file", "variable", "default file"])
@pytest.mark.parametrize("name", ["run", "serve"])
def test_the_token_never_reaches_the_program(name: str, way: str, tmp_path: Path) -> None:
    """It is in no argument and no variable of the program, nor in what the ends say at their loudest."""
    token, env = TOKEN.hex(), environment(tmp_path)
    options: tuple[str, ...] = ()
    if way == "file":
        options = ("--token-file", write_token(tmp_path))
    elif way == "variable":
        env["SOCKSTREAM_TOKEN"] = token
    else:
        directory = tmp_path / "sockstream"
        directory.mkdir(mode=0o700)
        Path(write_token(tmp_path)).rename(directory / "token")
    program = helper("env")
    waits = ("listen", "--once", "-vv") if name == "run" else ("serve", "--once", "-vv")
    behind = () if name == "run" else ("--env", f"SOCKSTREAM_TOKEN={token}", "--", *program)
    with Running(*waits, *options, "sock://127.0.0.1:0", *behind, env=env) as waiting:
        if name == "run":
            words = (
                "run",
                *options,
                "-vv",
                "--to",
                waiting.address,
                "--env",
                f"SOCKSTREAM_TOKEN={token}",
                "--",
                *program,
            )
        else:
            words = ("connect", *options, "-vv", waiting.address)
        with Running(*words, env=env) as dialling:
            assert dialling.wait() == 0 and waiting.wait() == 0, (dialling, waiting)
            said = waiting.stdout + waiting.stderr + dialling.stdout + dialling.stderr
    assert b"PYTHONUNBUFFERED=1" in said, "the program has not shown its environment"
    assert b"SOCKSTREAM_TOKEN" not in said
    assert token.encode() not in said and TOKEN not in said and token[:16].encode() not in said


def test_the_token_is_in_no_argument_while_it_runs(tmp_path: Path) -> None:
    """Neither of the command nor of the program it started: what any user sees in the list of processes."""
    with (
        Victim("serve", "sock://127.0.0.1:0", tmp_path, program=("sleep", "600")) as victim,
        Guest(victim.address, kind_for(victim)) as guest,
    ):
        guest.open()
        children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
        assert len(children) == 1
        for pid in (str(victim.pid), *children):
            for file in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{file}").read_bytes()
                assert TOKEN.hex().encode() not in content and TOKEN not in content
        os.kill(int(children[0]), signal.SIGKILL)
        guest.end()


# ---- the class


def test_the_token_is_read_once_and_when_it_is_needed(tmp_path: Path) -> None:
    """A raw end needs none; later changes of the file do not split one command's links."""
    path = Path(write_token(tmp_path))
    credentials = Security(token_file=str(path))
    assert credentials.key() == TOKEN
    path.unlink()
    assert credentials.key() == TOKEN
    with pytest.raises(SockstreamError, match="there is no token file"):
        Security(token_file=str(path)).key()


def test_a_token_of_another_length_is_stretched() -> None:
    """As docs/protocol.md says; 32 bytes are the key themselves."""
    assert Security(token=b"k" * 32).key() == b"k" * 32
    assert Security(token=b"passphrase").key() == auth.key_from_token(b"passphrase") != b"passphrase"


def test_every_link_has_a_nonce_of_its_own() -> None:
    """Two handshakes of one end never begin alike."""
    credentials = Security(token=TOKEN)
    hellos = {bytes(credentials.handshake(dials=True, binding=bytes(32)).output) for _ in range(50)}
    assert len(hellos) == 50


@pytest.mark.parametrize("kind", connections.KINDS)
def test_both_ends_of_a_link_have_one_binding(kind: str) -> None:
    """IPv4 through a socket of IPv6 counts as IPv4; another port is another binding."""
    with connections.Pair(kind) as pair:
        dialled = security.plain_binding(pair.client, dials=True)
        assert dialled == security.plain_binding(pair.server, dials=False)
        if kind == "unix":
            assert dialled == hashlib.sha256(b"unix").digest()
        else:
            assert dialled != security.plain_binding(pair.client, dials=False)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("sock://127.0.0.1:0", False),
        ("sock+tls://127.0.0.1:0", True),
        ("tls://127.0.0.1:0", True),
        ("tcp://127.0.0.1:0", False),
        ("sock://[::1]:0", False),
        ("sock+unix:///s", False),
        ("unix:///s", False),
    ],
)
def test_what_speaks_tls_on_loopback(where: str, expected: bool) -> None:
    """As the address says."""
    address = parse(where)
    with connections.Pair("unix" if address.is_unix else "ipv6" if ":" in address.host else "ipv4") as pair:
        assert security.dials_tls(address, pair.client) is expected


@pytest.mark.parametrize(("scheme", "expected"), [("sock", True), ("sock+tls", True), ("tls", True), ("tcp", False)])
@pytest.mark.parametrize("named", ["itself", "127.0.0.1"])
def test_what_speaks_tls_beyond_loopback(scheme: str, expected: bool, named: str) -> None:
    """The connected socket decides, not the text that was dialled."""
    host = own_address()
    with socket.create_server((host, 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        address = parse(f"{scheme}://{host if named == 'itself' else named}:1")
        assert security.dials_tls(address, sock) is expected


def test_contexts_are_made_once(tmp_path: Path) -> None:
    """And a session's context shows the certificate that its proof covers."""
    credentials = Security(token=TOKEN)
    context, certificate = credentials.server_context(parse("sock+tls://127.0.0.1:0"))
    assert credentials.server_context(parse("sock+tls://127.0.0.1:0")) == (context, certificate)
    assert credentials.client_context(parse("sock+tls://127.0.0.1:1")).verify_mode is ssl.CERT_NONE
    _, cert_file, key_file = make_authority(tmp_path)
    named = Security(cert_file=cert_file, key_file=key_file)
    assert ssl.DER_cert_to_PEM_cert(named.server_context(parse("tls://127.0.0.1:0"))[1]) == Path(cert_file).read_text()


def test_raw_tls_verifies(tmp_path: Path) -> None:
    """Name and authority, also where --tls-ca names one."""
    ca_file, _, _ = make_authority(tmp_path)
    for credentials in Security(), Security(ca_file=ca_file):
        context = credentials.client_context(parse("tls://127.0.0.1:1"))
        assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


@pytest.mark.parametrize("words", [COMMANDS["run"], ("--to", "tcp://127.0.0.1:1", "--wait", "0", "--", "true")])
def test_a_plain_run_loads_no_tls(words: tuple[str, ...]) -> None:
    """Starting fast is part of a wrapper's job: ssl is for those who need it."""
    code = "import sys; from sockstream.cli import main; main(sys.argv[1:]); print('ssl' in sys.modules)"
    with Running("-c", code, "run", *words, command=(sys.executable,)) as command:
        command.wait()
        assert command.stdout == b"False\n", command
