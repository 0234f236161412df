"""Unix sockets: where they lie, who may use them, and how a file that nobody serves any more is replaced.

Rules:
* A socket file of ours has mode 0600, the directory of the default address 0700; on both ends of a link the
  peer's uid must be ours or root's.
* Only a socket file that no process serves is ever removed, and only under a lock (flock on PATH.lock).
* The lock is held for a few system calls, never while listening. Whoever holds it removes its file before
  letting go; whoever gets it looks whether the file he locked still has its name, and else begins again.
* Names that are not in the file system (abstract sockets) are never used: no permission protects them.

Reasoning:
* The mode is set between bind() and listen(). Permission is judged at connect(), and connect() to a socket
  that does not listen yet is refused, so there is no moment at which others get in. A umask belongs to the
  whole process and so to its other threads; renaming a socket into place leaves the wrong name in
  getsockname().
* Whether a file is served is asked by connecting a *datagram* socket to it: the system answers "wrong type"
  if any stream socket is bound there and "refused" if none is, and the server never notices. A connection
  made to find out would start a program at a `serve` end.
* An end that closes needs no record of its file either: when its socket is closed, the file is dead, unless
  somebody (a forked child, a program that has replaced it) serves that name now. Inode numbers are used
  again at once by some file systems and would prove less.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys

from sockstream import address, errors
from sockstream.errors import AddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# sun_path has 108 bytes on Linux and 104 on the BSDs and macOS; the last one is a zero byte.
PATH_LIMIT = 107 if sys.platform == "linux" else 103
_XUCRED = struct.Struct("=IIhxxI60x")  # macOS: version, uid, number of groups, the groups


def check_path(path: str) -> str:
    """Return the path; raise AddressError if it is longer than a socket's path may be on this system."""
    length = len(os.fsencode(path))
    if length > PATH_LIMIT:
        raise AddressError(
            f"the socket path {path} has {length} bytes and this system allows {PATH_LIMIT}: choose a shorter one"
        )
    return path


def bind_path(path: str, backlog: int) -> socket.socket:
    """Return a socket that listens at the path, in place of a socket file that nobody serves any more.

    path: absolute path; the file is made with mode 0600.
    Raises AddressError if the path is too long, is served, or is no socket; OSError if the system refuses.
    """
    check_path(path)
    lock = _lock(path)
    try:
        _remove_dead(path)
        return _listen(path, backlog)
    finally:
        _unlock(lock, path)


def unlink_socket(path: str) -> None:
    """Remove the socket file if nobody serves it; to be called when the listening socket has been closed.

    Raises AddressError if the system refuses; the next end that listens there replaces the file.
    """
    try:
        lock = _lock(path)
    except FileNotFoundError:  # the directory went, and the file with it
        return
    except OSError as error:
        raise AddressError(f"cannot remove the socket {path}: {error.strerror}: remove it by hand") from error
    try:
        if os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode) and not _is_served(path):
            os.unlink(path)
    except OSError as error:
        raise AddressError(f"cannot remove the socket {path}: {error.strerror}: remove it by hand") from error
    finally:
        _unlock(lock, path)


def default_address(environ: Mapping[str, str], objects: bool = False) -> address.Address:
    """Return the address that is meant where none is given; its directory exists and is ours alone.

    environ: where SOCKSTREAM_ADDRESS, XDG_RUNTIME_DIR and TMPDIR are looked up; an empty one counts as unset.
    objects: the default for objects, which programs do not share.
    Raises AddressError if the variable holds no address or the directory is not private to us.
    """
    text = environ.get("SOCKSTREAM_ADDRESS")
    if text:
        try:
            return address.parse(text)
        except AddressError as error:
            raise AddressError(f"SOCKSTREAM_ADDRESS: {error}") from error
    directory = _default_directory(environ)
    _make_private(directory)
    path = os.path.join(directory, "objects.sock" if objects else "default.sock")
    return address.Address("sock+unix", path=path)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return process id (0 if the system does not tell it), effective uid and gid of a Unix socket's peer.

    They are those of the moment at which the peer called connect() or listen(). Raises OSError if there is
    no peer.
    """
    if sys.platform == "darwin":
        # SOL_LOCAL, LOCAL_PEERCRED.
        _, uid, _, gid = _XUCRED.unpack(sock.getsockopt(0, 1, _XUCRED.size))
        return 0, uid, gid
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def check_peer(sock: socket.socket) -> None:
    """Refuse the peer of a Unix socket that is neither of our user nor root; other sockets pass.

    Raises AuthenticationError if it is; OSError if there is no peer any more.
    """
    if sock.family != socket.AF_UNIX:
        return
    _, uid, _ = peer_credentials(sock)
    if uid not in (0, os.geteuid()):
        raise errors.AuthenticationError(
            f"the other end of the Unix socket runs as uid {uid}, this one as {os.geteuid()}: "
            "start both as the same user"
        )


def _listen(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"{path} is there already and is no socket: remove it or choose another path")
    if _is_served(path):
        raise AddressError(f"another program listens on {path} already: stop it or choose another path")
    os.unlink(path)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        code = probe.connect_ex(path)
    if code not in (0, errno.ECONNREFUSED, errno.EPROTOTYPE):
        raise OSError(code, os.strerror(code), path)
    return code != errno.ECONNREFUSED


def _lock(path: str) -> int:
    """Wait for the lock of a socket path and return its descriptor."""
    import fcntl  # no dialling end needs it

    name = f"{path}.lock"
    while True:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_uid != os.geteuid():  # its owner could hold it for ever
                raise AddressError(f"{name} belongs to another user: choose a path in a directory of your own")
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_named(fd, name):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _unlock(fd: int, path: str) -> None:
    try:
        os.unlink(f"{path}.lock")
    except FileNotFoundError:  # somebody sweeps the folder
        return
    finally:
        os.close(fd)


def _is_named(fd: int, name: str) -> bool:
    """Tell whether the open file still has that name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(name))
    except FileNotFoundError:
        return False


def _default_directory(environ: Mapping[str, str]) -> str:
    """Return $XDG_RUNTIME_DIR/sockstream if that is ours (`su` and `sudo` keep another user's), else one in TMPDIR."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and _is_our_directory(runtime):
        return os.path.join(runtime, "sockstream")
    temp = environ.get("TMPDIR", "")
    return os.path.join(temp if temp.startswith("/") else "/tmp", f"sockstream-{os.geteuid()}")


def _is_our_directory(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _make_private(directory: str) -> None:
    """Make the directory with mode 0700, or check the one that is there; AddressError if others could be in it."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise AddressError(
            f"cannot make the directory {directory} for sockets: {error.strerror}: set XDG_RUNTIME_DIR to a "
            "directory of yours, or give an address"
        ) from error
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        fault = "is a symbolic link or no directory: remove it"
    elif found.st_uid != os.geteuid():
        fault = f"belongs to uid {found.st_uid}: set XDG_RUNTIME_DIR to a directory of yours"
    elif found.st_mode & 0o077:
        fault = "is open to other users: chmod 700 it"
    else:
        return
    raise AddressError(f"sockets cannot be kept in {directory}, which {fault}, or give an address")
