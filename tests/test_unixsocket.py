"""Socket files, the default address, and the peer's user."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from connections import LINUX_ONLY, ONLY_ROOT, Pair, accept, dial, runtime
from sockstream import transport, unixsocket
from sockstream.address import Address, parse
from sockstream.errors import AddressError, AuthenticationError
from support import wait_until

# ---- the length of a path


def test_resolve_path_too_long() -> None:
    """A path as long as the system allows works; one byte more is an error that says both lengths."""
    room = unixsocket.PATH_LIMIT - len(runtime(""))
    listener, address = transport.bind(Address("unix", path=runtime("x" * room)))
    with listener, dial(address):
        pass
    longer = Address("unix", path=runtime("x" * (room + 1)))
    message = f"{unixsocket.PATH_LIMIT + 1} bytes and this system allows {unixsocket.PATH_LIMIT}"
    with pytest.raises(AddressError, match=message):
        transport.resolve(longer)
    with pytest.raises(AddressError, match=message):
        transport.bind(longer)


def test_path_length_is_counted_in_bytes() -> None:
    """Letters of two bytes count twice."""
    path = "/" + "é" * 54
    assert len(path) <= unixsocket.PATH_LIMIT
    with pytest.raises(AddressError, match="109 bytes"):
        transport.resolve(Address("unix", path=path))


# ---- Unix socket files


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_socket_file_is_ours_alone(mask: int) -> None:
    """The socket file has mode 0600 whatever the umask, and no lock file stays."""
    before = os.umask(mask)
    try:
        listener, address = transport.bind(Address("unix", path=runtime("mine")))
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
        assert os.listdir(runtime("")) == ["mine"]


def test_stale_socket_is_replaced() -> None:
    """A file that nobody serves is replaced, and the new one works."""
    address = Address("sock+unix", path=runtime("stale"))
    transport.bind(address)[0].close()
    assert os.path.exists(address.path)
    listener, _ = transport.bind(address)
    with listener, dial(address), accept(listener):
        pass


def test_stale_socket_with_a_connection_is_replaced() -> None:
    """A connection that is still open does not keep its dead listener's file."""
    with Pair("unix") as pair:
        pair.listener.close()
        listener, _ = transport.bind(pair.address)
        listener.close()


@pytest.mark.parametrize("listens", [True, False])
def test_live_socket_is_left_alone(listens: bool) -> None:
    """A file that another socket is bound to is an error that says so, and its owner does not notice."""
    address = Address("unix", path=runtime("live"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(address.path)
        if listens:
            other.listen()
        other.setblocking(False)
        with pytest.raises(AddressError, match=f"another program listens on {address.path} already"):
            transport.bind(address)
        if listens:
            with pytest.raises(BlockingIOError):
                other.accept()
            with dial(address), accept(other):
                pass
    assert os.listdir(runtime("")) == ["live"]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/nowhere")])
def test_what_is_no_socket_is_left_alone(make: object) -> None:
    """A file, a directory or a link at the path is an error, and stays."""
    address = Address("unix", path=runtime("file"))
    make(Path(address.path))
    with pytest.raises(AddressError, match="is no socket"):
        transport.bind(address)
    assert os.listdir(runtime("")) == ["file"]


def test_missing_directory() -> None:
    """A path in a directory that does not exist is an AddressError that says what to make."""
    with pytest.raises(AddressError, match="make the directory first"):
        transport.bind(Address("unix", path=runtime("no/socket")))


def test_one_of_many_replaces_a_stale_socket() -> None:
    """Of several processes that find the same stale file exactly one listens; the others say who does not."""
    address = Address("unix", path=runtime("contended"))
    code = f"""
import sys
from sockstream import address, errors, transport
sys.stdin.readline()
try:
    listener, _ = transport.bind(address.parse({str(address)!r}))
except errors.AddressError as error:
    print("refused", error, flush=True)
else:
    print("listening", flush=True)
sys.stdin.read()
"""
    for _ in range(5):
        transport.bind(address)[0].close()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        racers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = sorted(racer.stdout.readline() for racer in racers)
        for racer in racers:
            racer.communicate()
        assert said[0] == "listening\n"
        assert [line for line in said[1:] if "another program listens" in line] == said[1:]
        assert os.listdir(runtime("")) == ["contended"]
        transport.unlink_socket(address.path)


@LINUX_ONLY
def test_replacing_waits_for_the_lock() -> None:
    """An end that finds the lock taken waits, and then looks at the path as the other has left it."""
    address = Address("unix", path=runtime("contended"))
    transport.bind(address)[0].close()
    with open(f"{address.path}.lock", "w") as lock, socket.socket(socket.AF_UNIX) as winner:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = f"from sockstream import address, transport; transport.bind(address.parse({str(address)!r}))"
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as loser:
            wait_until(lambda: _waits_for_a_lock(loser.pid), 10, "the other end to wait for the lock")
            os.unlink(address.path)
            winner.bind(address.path)
            os.unlink(lock.name)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert f"another program listens on {address.path} already" in loser.communicate()[1]


def _waits_for_a_lock(pid: int) -> bool:
    rows = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(row[1] == "->" and row[5] == str(pid) for row in rows)


def test_unlink_socket() -> None:
    """The file goes when its socket is closed; a second call, or a directory that is gone, does no harm."""
    listener, address = transport.bind(Address("unix", path=runtime("mine")))
    listener.close()
    transport.unlink_socket(address.path)
    transport.unlink_socket(address.path)
    transport.unlink_socket(runtime("gone/mine"))
    assert os.listdir(runtime("")) == []


def test_unlink_socket_keeps_what_is_not_ours() -> None:
    """A file that somebody serves now, and one that is no socket, stay."""
    old, address = transport.bind(Address("unix", path=runtime("mine")))
    old.close()
    listener, _ = transport.bind(address)
    with listener:
        transport.unlink_socket(address.path)
        with dial(address), accept(listener):
            pass
    Path(runtime("file")).touch()
    transport.unlink_socket(runtime("file"))
    assert sorted(os.listdir(runtime(""))) == ["file", "mine"]


@ONLY_ROOT
def test_lock_of_another_user_is_refused() -> None:
    """A lock file that another user could hold for ever is an error, not a wait."""
    lock = Path(runtime("mine.lock"))
    lock.touch()
    os.chown(lock, 65534, 65534)
    with pytest.raises(AddressError, match=r"mine\.lock belongs to another user"):
        transport.bind(Address("unix", path=runtime("mine")))


@ONLY_ROOT
def test_socket_of_another_user_is_left_alone() -> None:
    """A socket that we may not connect to is an error, dead or not, and stays."""
    listener, address = transport.bind(Address("unix", path=runtime("theirs")))
    listener.close()
    base = Path(runtime(""))
    base.parent.chmod(0o755)
    base.chmod(0o777)
    code = f"""
import fcntl, os  # nobody may not even read the standard library everywhere
from sockstream import address, errors, transport
os.seteuid(65534)
try:
    transport.bind(address.parse({str(address)!r}))
except errors.AddressError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Permission denied: choose a directory of your own" in done.stdout
    assert os.listdir(runtime("")) == ["theirs"]


# ---- the default address


def test_default_address_from_the_environment() -> None:
    """$SOCKSTREAM_ADDRESS decides; one that is no address is an error that names the variable."""
    assert transport.default_address({"SOCKSTREAM_ADDRESS": "tcp://h:1"}, objects=True) == parse("tcp://h:1")
    with pytest.raises(AddressError, match=r"SOCKSTREAM_ADDRESS: .*has no port"):
        transport.default_address({"SOCKSTREAM_ADDRESS": "nonsense"})


def test_default_address_in_the_runtime_directory() -> None:
    """Without it the socket is in a private directory in $XDG_RUNTIME_DIR, one for programs and one for objects."""
    environ = {"XDG_RUNTIME_DIR": runtime(""), "SOCKSTREAM_ADDRESS": ""}
    before = os.umask(0)
    try:
        address = transport.default_address(environ)
    finally:
        os.umask(before)
    assert address == Address("sock+unix", path=runtime("sockstream/default.sock"))
    assert stat.S_IMODE(os.stat(runtime("sockstream")).st_mode) == 0o700
    assert transport.default_address(environ, objects=True).path == runtime("sockstream/objects.sock")
    listener, _ = transport.bind(address)
    with listener, dial(address):
        pass


@pytest.mark.parametrize("runtime_directory", [None, "", "relative", "/does/not/exist"])
def test_default_address_in_the_temp_folder(runtime_directory: str | None) -> None:
    """Without a runtime directory it is in one of ours, named by uid, in $TMPDIR."""
    environ = {"TMPDIR": runtime("")}
    if runtime_directory is not None:
        environ["XDG_RUNTIME_DIR"] = runtime_directory
    directory = runtime(f"sockstream-{os.geteuid()}")
    assert transport.default_address(environ).path == f"{directory}/default.sock"
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700


@ONLY_ROOT
def test_default_address_not_in_another_users_directory() -> None:
    """A runtime directory that `su` has kept is another user's, and nothing is made in it."""
    Path(runtime("theirs")).mkdir()
    os.chown(runtime("theirs"), 65534, 65534)
    environ = {"XDG_RUNTIME_DIR": runtime("theirs"), "TMPDIR": runtime("")}
    assert transport.default_address(environ).path == runtime(f"sockstream-{os.geteuid()}/default.sock")
    assert os.listdir(runtime("theirs")) == []


def refuse_directory(match: str) -> None:
    """Check that the default directory in the runtime directory is refused."""
    with pytest.raises(AddressError, match=match):
        transport.default_address({"XDG_RUNTIME_DIR": runtime("")})


def test_default_directory_must_be_private() -> None:
    """A directory that others can enter, a symbolic link and a file are refused with what to do."""
    directory = Path(runtime("sockstream"))
    directory.mkdir(mode=0o755)
    refuse_directory("is open to other users: chmod 700")
    directory.rename(runtime("elsewhere"))
    directory.symlink_to(runtime("elsewhere"))
    refuse_directory("is a symbolic link or no directory")
    directory.unlink()
    directory.touch()
    refuse_directory("is a symbolic link or no directory")


@ONLY_ROOT
def test_default_directory_must_be_ours() -> None:
    """A directory that belongs to another user is refused."""
    Path(runtime("sockstream")).mkdir(mode=0o700)
    os.chown(runtime("sockstream"), 65534, 65534)
    refuse_directory("belongs to uid 65534")


def test_default_directory_cannot_be_made() -> None:
    """A temp folder that does not exist is an AddressError that names the way out."""
    with pytest.raises(AddressError, match="set XDG_RUNTIME_DIR"):
        transport.default_address({"TMPDIR": "/does/not/exist"})


# ---- the peer's user


def test_peer_credentials_and_check() -> None:
    """Both ends of a Unix socket see the other's process, user and group, and accept their own user."""
    with Pair("unix") as pair:
        for sock in (pair.client, pair.server):
            assert transport.peer_credentials(sock) == (os.getpid(), os.geteuid(), os.getegid())
            transport.check_peer(sock)


def test_check_peer_lets_tcp_pass() -> None:
    """A TCP peer has no user to check."""
    with Pair("ipv4") as pair:
        transport.check_peer(pair.server)


@ONLY_ROOT
def test_check_peer_refuses_another_user() -> None:
    """A peer of another user is refused by either end; root's is not."""
    base = Path(os.environ["XDG_RUNTIME_DIR"])
    base.parent.chmod(0o755)
    base.chmod(0o755)
    code = f"""
import os, socket
from sockstream import errors, transport
sock = socket.socket(socket.AF_UNIX)
sock.connect({runtime("open")!r})
transport.check_peer(sock)
os.setegid(65534)
os.seteuid(65534)
transport.check_peer(sock)
with socket.socket(socket.AF_UNIX) as other:
    other.connect({runtime("open")!r})
    transport.check_peer(other)
    os.read(0, 1)
"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(runtime("open"))
        os.chmod(runtime("open"), 0o666)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
            with accept(listener) as root, accept(listener) as nobody:
                transport.check_peer(root)
                with pytest.raises(AuthenticationError, match="runs as uid 65534, this one as 0: start both"):
                    transport.check_peer(nobody)
            child.communicate()
        assert child.returncode == 0
