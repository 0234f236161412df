"""Nobody can stand between two ends: not with a certificate of his own, not on another address, not with a recording.

The relays are real processes, of another user where the tests run as root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from certificates import make_authority
from connections import ONLY_ROOT
from hostile.guest import Guest, dial_link, good_client, kind_for
from hostile.victim import WAITING, Victim, environment, read_to_end, send_all, waiting_address, write_token
from sockstream.handshake import MAGIC
from support import Running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RELAY = Path(__file__).with_name("relay.py")
NOBODY = 65534
HELLO_SIZE = 49
REFUSED = (
    b"sockstream: wrong token, or not the address you dialled (a forwarded port?): for the latter use sock+tls://\n"
)


@pytest.fixture
def copy() -> Iterator[Path]:
    """Where a relay keeps what it has heard: a directory in which another user may write."""
    directory = tempfile.mkdtemp(prefix="sks-", dir="/tmp")
    os.chmod(directory, 0o777)
    yield Path(directory, "heard")
    shutil.rmtree(directory)


@contextlib.contextmanager
def relay(listen: str, target: str, copy: Path, *options: str) -> Iterator[int]:
    """Put a man in the middle, as another user if we can; yields his port (0 for a path)."""
    user = ("--uid", str(NOBODY)) if os.geteuid() == 0 and "/" not in listen else ()
    with Running(*user, *options, listen, target, str(copy), command=(sys.executable, str(RELAY))) as process:
        wait_until(lambda: process.stdout.startswith(b"ready ") or process.process.poll() is not None, 10, "a relay")
        assert process.process.poll() is None, process
        said = process.stdout.split()[1]
        yield int(said) if said.isdigit() else 0


def heard(copy: Path, side: str) -> bytes:
    """What the relay has heard from the client or the server."""
    path = Path(f"{copy}.{side}")
    return path.read_bytes() if path.exists() else b""


def port_of(victim: Victim) -> str:
    """The port that a victim listens on."""
    return victim.address.rpartition(":")[2]


def dialling(victim: Victim, where: str, directory: Path) -> Running:
    """Start the command that goes with a victim, towards the man in the middle."""
    token = ("--token-file", write_token(directory))
    if victim.name == "serve":
        return Running("connect", *token, where, env=environment(directory))
    program = ("sh", "-c", "echo secret output; exec cat")
    return Running("run", *token, "--to", where, "--", *program, env=environment(directory))


def assert_nothing_was_heard(copy: Path) -> None:
    """A preamble, a HELLO and a proof on one side, a preamble, a HELLO and zeros on the other; no more."""
    client, server = heard(copy, "client"), heard(copy, "server")
    assert client.startswith(MAGIC) and len(client) == HELLO_SIZE + 32
    assert server.startswith(MAGIC) and server[HELLO_SIZE:] == bytes(32)


def assert_refused(victim: Victim, command: Running, copy: Path) -> None:
    """The client says what is wrong and never comes back; the victim has one line; the relay has nothing."""
    command.close_stdin()
    assert command.wait() == 125, command
    assert command.stderr == REFUSED and command.stdout == b""
    line = victim.wait_for_line_about("127.0.0.1")
    assert b"the peer has another token, or dialled another address" in line
    assert_nothing_was_heard(copy)


@pytest.mark.parametrize("name", WAITING)
def test_a_tls_relay_with_its_own_certificate(name: str, tmp_path: Path, copy: Path) -> None:
    """The proof covers the certificate, so the relay is refused by the real end, and its client told so."""
    _, certificate, key = make_authority(tmp_path)
    with Victim(name, "sock+tls://127.0.0.1:0", tmp_path) as victim:
        good_client(victim, seconds=20)
        tls = ("--cert", certificate, "--key", key)
        with victim.no_leaks(), relay("127.0.0.1,0", f"127.0.0.1,{port_of(victim)}", copy, *tls) as port:
            with dialling(victim, f"sock+tls://127.0.0.1:{port}", tmp_path) as command:
                assert_refused(victim, command, copy)
            good_client(victim)


@pytest.mark.parametrize("place", ["another port", "the same port of ::1"])
@pytest.mark.parametrize("name", WAITING)
def test_a_relay_on_another_local_address(name: str, place: str, tmp_path: Path, copy: Path) -> None:
    """The proof covers the address dialled: another user who is dialled in the real end's stead gets nothing."""
    with Victim(name, "sock://127.0.0.1:0", tmp_path) as victim:
        good_client(victim, seconds=20)
        port = port_of(victim)
        listen = "127.0.0.1,0" if place == "another port" else f"::1,{port}"
        with victim.no_leaks(), relay(listen, f"127.0.0.1,{port}", copy) as theirs:
            host = "127.0.0.1" if place == "another port" else "[::1]"
            with dialling(victim, f"sock://{host}:{theirs}", tmp_path) as command:
                assert_refused(victim, command, copy)
            good_client(victim)


def test_localhost_never_means_the_other_family(tmp_path: Path, copy: Path) -> None:
    """Who dials :PORT or localhost reaches 127.0.0.1 also while another user sits on [::1]."""
    with Victim("serve", "sock://127.0.0.1:0", tmp_path) as victim:
        port = port_of(victim)
        with relay(f"::1,{port}", f"127.0.0.1,{port}", copy):
            for where in (f":{port}", f"localhost:{port}", f"sock://localhost:{port}"):
                with dialling(victim, where, tmp_path) as command:
                    command.write(b"to cat\n")
                    command.close_stdin()
                    assert command.wait() == 0, command
                    assert command.stdout == b"to cat\n"
            assert heard(copy, "client") == b""


def test_a_forwarded_port_works_with_tls(tmp_path: Path, copy: Path) -> None:
    """As the message says: a relay that only passes bytes on is no obstacle to sock+tls://, and learns nothing."""
    with (
        Victim("serve", "sock+tls://127.0.0.1:0", tmp_path) as victim,
        relay("127.0.0.1,0", f"127.0.0.1,{port_of(victim)}", copy) as port,
    ):
        with dialling(victim, f"sock+tls://127.0.0.1:{port}", tmp_path) as command:
            command.write(b"to cat\n")
            command.close_stdin()
            assert command.wait() == 0, command
            assert command.stdout == b"to cat\n"
        for side in ("client", "server"):
            assert heard(copy, side)[:1] == b"\x16" and b"to cat" not in heard(copy, side)


# ---- recordings


def test_a_recording_of_a_good_client_is_worth_nothing(tmp_path: Path, copy: Path) -> None:
    """Recorded on a Unix socket, where a relay of our own user can pass a good client on; then said again."""
    path = tmp_path / "relay.sock"
    with Victim("serve", waiting_address("sock+unix", tmp_path), tmp_path) as victim:
        target = victim.address.removeprefix("sock+unix://")
        with relay(str(path), target, copy), dialling(victim, str(path), tmp_path) as command:
            command.write(b"touch it again\n")
            command.close_stdin()
            assert command.wait() == 0, command
        recorded = heard(copy, "client")
        assert b"touch it again\n" in recorded
        with victim.no_leaks():
            for _ in range(3):
                sock, _ = dial_link(victim.address)
                with sock:
                    send_all(sock, recorded[: HELLO_SIZE + 32])
                    answer = read_to_end(sock)
                assert len(answer) == HELLO_SIZE + 32 and answer[HELLO_SIZE:] == bytes(32)
            with dial_link(victim.address)[0] as sock:
                send_all(sock, recorded)
                assert read_to_end(sock)[HELLO_SIZE:].strip(b"\0") == b""
            good_client(victim)
        assert b"another token" in victim.wait_for_line_about("uid 0") if os.geteuid() == 0 else victim.lines


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("scheme", ["sock", "sock+tls"])
def test_what_was_said_once_is_refused_the_second_time(name: str, scheme: str, tmp_path: Path) -> None:
    """On the very address and certificate it was made for: the server's nonce is another one."""
    with Victim(name, waiting_address(scheme, tmp_path), tmp_path) as victim:
        with Guest(victim.address, kind_for(victim)) as guest:
            guest.open().exchange()
            guest.end()
        with victim.no_leaks():
            sock, _ = dial_link(victim.address)
            with sock:
                send_all(sock, guest.recorded[: HELLO_SIZE + 32])
                answer = read_to_end(sock)
            assert answer[HELLO_SIZE:] == bytes(32)
            assert b"another token" in victim.wait_for_line_about("127.0.0.1")
            good_client(victim)


# ---- other users and Unix sockets

AS_NOBODY = f"import os, socket, sys; os.setgid({NOBODY}); os.setuid({NOBODY}); s = socket.socket(socket.AF_UNIX); "


def as_nobody(code: str, *args: str) -> Running:
    """Run a line of Python, with a Unix socket `s`, as another user."""
    return Running("-c", AS_NOBODY + code, *args, command=(sys.executable,))


@ONLY_ROOT
@pytest.mark.parametrize("name", WAITING)
def test_another_user_at_a_unix_socket_is_refused(name: str, tmp_path: Path, copy: Path) -> None:
    """By the file's mode; and where somebody has opened that up, by his uid, before he has said a word."""
    path = copy.with_name("s")
    with Victim(name, f"sock+unix://{path}", tmp_path) as victim:
        good_client(victim, seconds=20)
        with victim.no_leaks():
            with as_nobody("s.connect(sys.argv[1])", str(path)) as stranger:
                assert stranger.wait() == 1 and b"PermissionError" in stranger.stderr
            path.chmod(0o777)
            with as_nobody("s.connect(sys.argv[1]); print(len(s.recv(100)))", str(path)) as stranger:
                assert stranger.wait() == 0, stranger
                assert stranger.stdout == b"0\n"
            assert f"runs as uid {NOBODY}".encode() in victim.wait_for_line_about(f"uid {NOBODY}")
            good_client(victim)


@ONLY_ROOT
def test_processes_of_another_user_share_one_line_a_second(tmp_path: Path, copy: Path) -> None:
    """He cannot flood the log by forking."""
    path = copy.with_name("s")
    with Victim("serve", f"sock+unix://{path}", tmp_path) as victim:
        victim.wait_for_message(b"listening")
        path.chmod(0o777)
        started = time.monotonic()
        fork = "[os.fork() for _ in range(5)]; s.connect(sys.argv[1]); s.recv(1)"
        with as_nobody(fork, str(path)) as stranger:
            stranger.wait()
        wait_until(lambda: victim.lines, 5, "a line about it")
        time.sleep(0.3)
        assert len(victim.lines) <= 1 + (time.monotonic() - started), victim.lines
        good_client(victim, seconds=5)


@ONLY_ROOT
@pytest.mark.parametrize("name", ["connect", "run"])
def test_another_user_who_waits_at_a_path_hears_nothing(name: str, tmp_path: Path, copy: Path) -> None:
    """A dialling end looks at the peer's uid as well: no byte of ours goes to him, and there is no second try."""
    path = copy.with_name("s")
    code = (
        "s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o777); s.listen(); print('ready', flush=True); "
        "print(len(s.accept()[0].recv(100)), flush=True); s.settimeout(0.4); s.accept()"
    )
    with as_nobody(code, str(path)) as stranger:
        stranger.wait_for_output(b"ready")
        token = ("--token-file", write_token(tmp_path))
        where = (str(path),) if name == "connect" else ("--to", str(path), "--", "cat")
        with Running(name, *token, *where, env=environment(tmp_path)) as command:
            assert command.wait() == 125
            assert f"runs as uid {NOBODY}".encode() in command.stderr and command.stderr.count(b"\n") == 1
        assert stranger.wait() == 1 and b"TimeoutError" in stranger.stderr
        assert stranger.stdout == b"ready\n0\n"
