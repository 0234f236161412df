"""The token: the secret that both ends own, from a file or the environment.

Rules:
* Sought in this order: the file named (`--token-file`), `$SOCKSTREAM_TOKEN`, the file at `default_path()`.
  The first that is given decides; a bad one is an error, never a reason to try the next.
* A file holds 64 hex digits and a newline. It belongs to us and nobody else may read or write it, or it is
  refused; what is judged is the file opened, also behind a symbolic link. A pipe will do.
* Only the default file is ever made, and it appears under its name complete: of several first users one makes
  it and all use that one.
* `$SOCKSTREAM_TOKEN` of exactly 64 hex digits is those 32 bytes; any other text is a passphrase, its UTF-8
  bytes.
* No part of a secret is in any message, nor in an exception behind it.

Reasoning: a file written in place can be seen empty, and a rename silently replaces what another first user
already uses; a hard link to a complete file does neither. A file that others can write is as bad as one they
can read, since they choose the secret. A variable that is set but empty is nearly always a command
substitution that failed; going on with another token would hide that, and an empty secret would let everybody
in.
"""

from __future__ import annotations

import os

from sockstream.errors import SockstreamError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_BYTES = 32
_DIGITS = 2 * _BYTES
_READ_LIMIT = 4096
_ELSEWHERE = "name a file with --token-file, or set SOCKSTREAM_TOKEN"


def load(path: str | None = None, environ: Mapping[str, str] = os.environ, *, create: bool = True) -> bytes:
    """Return the secret: 32 bytes, or a passphrase of any other length from `$SOCKSTREAM_TOKEN`.

    path: the file to read and nothing else, or None. It is never made.
    environ: where SOCKSTREAM_TOKEN, XDG_CONFIG_HOME and HOME are looked up.
    create: make the default file if it is the one to read and does not exist.
    Raises SockstreamError if the secret is missing, malformed, open to others, or cannot be read or made.
    """
    if path is not None:
        return _read(path)
    text = environ.get("SOCKSTREAM_TOKEN")
    if text is not None:
        return _from_variable(text)
    path = default_path(environ)
    if create and not os.path.lexists(path):
        _make_directory(os.path.dirname(path))
        _place(path, os.urandom(_BYTES), replace=False)
    return _read(path)  # also after making it: another first user's may have been first


def store(
    hex_text: str, path: str | None = None, environ: Mapping[str, str] = os.environ, *, replace: bool = False
) -> str:
    """Write a token that another machine made, and return the path of the file.

    hex_text: 64 hex digits; white space round them is dropped.
    path: the file, in a directory that exists; None for the default one.
    environ: where XDG_CONFIG_HOME and HOME are looked up.
    replace: overwrite a file that holds another token, or none.
    Raises SockstreamError if the text is no token, the file holds another one, or cannot be read or written.
    """
    token = _from_hex(hex_text.strip())
    if token is None:
        raise SockstreamError(f"that is no token: it must be {_DIGITS} hex digits")
    if path is None:
        path = default_path(environ)
        _make_directory(os.path.dirname(path))
    if not _place(path, token, replace=replace) and _read(path) != token:
        raise SockstreamError(f"the token file {path!r} holds another token: keep it, or overwrite it with --replace")
    return path


def default_path(environ: Mapping[str, str] = os.environ) -> str:
    """Return the absolute path of the user's token file.

    environ: where XDG_CONFIG_HOME and HOME are looked up; values that are not absolute count as unset, as the
        XDG Base Directory Specification demands.
    Raises SockstreamError if neither says where.
    """
    config = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            raise SockstreamError(f"HOME is no absolute path, so the token file has no place: {_ELSEWHERE}")
        config = os.path.join(home, ".config")
    return os.path.join(config, "sockstream", "token")


def to_hex(token: bytes) -> str:
    """Return the 64 hex digits of a token, as `store` takes them; raise SockstreamError for a passphrase."""
    if len(token) != _BYTES:
        raise SockstreamError("this is a passphrase, no token: set SOCKSTREAM_TOKEN at the other end too")
    return token.hex()


def _from_hex(text: str) -> bytes | None:
    """Return the 32 bytes, or None if the text is anything but 64 hex digits."""
    try:
        token = bytes.fromhex(text)
    except ValueError:
        return None
    return token if len(text) == _DIGITS and len(token) == _BYTES else None  # fromhex skips spaces


def _from_variable(text: str) -> bytes:
    if not text:
        raise SockstreamError("SOCKSTREAM_TOKEN is set but empty: unset it, or give it a value")
    token = _from_hex(text)
    if token is not None:
        return token
    if any("\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" for c in text):
        # Not left to encode(): the text would be in its exception.
        raise SockstreamError("SOCKSTREAM_TOKEN is no valid text: set it to 64 hex digits or a passphrase")
    return text.encode("utf-8", "surrogateescape")  # the bytes as the environment has them


def _read(path: str) -> bytes:
    """Return the token in the file, after checking that it is ours alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            content = _read_all(descriptor)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise SockstreamError(f"there is no token file {path!r}: put one there, or {_ELSEWHERE}") from error
    except (OSError, ValueError) as error:
        raise SockstreamError(f"cannot read the token file {path!r}: {_reason(error)}") from error
    _check_private(path, status)
    token = _from_hex(content.decode("ascii", "replace").rstrip())
    if token is None or len(content) > _READ_LIMIT:
        raise SockstreamError(f"token file {path!r} is malformed: wanted {_DIGITS} hex digits and a newline")
    return token


def _read_all(descriptor: int) -> bytes:
    """Read to the end of the file, or just past what any token file has."""
    content = b""
    while len(content) <= _READ_LIMIT and (piece := os.read(descriptor, _READ_LIMIT)):
        content += piece
    return content


def _check_private(path: str, status: os.stat_result) -> None:
    """Refuse a file that somebody else owns, can read or can write."""
    if os.name != "posix":
        return  # modes and owners mean nothing there
    if status.st_uid != os.geteuid():
        raise SockstreamError(
            f"the token file {path!r} belongs to user id {status.st_uid}, not {os.geteuid()}: {_ELSEWHERE}"
        )
    if status.st_mode & 0o077:
        raise SockstreamError(
            f"the token file {path!r} is open to others (mode {status.st_mode & 0o777:04o}): "
            f"chmod 600 {path!r}, and use a new token if somebody may have read it"
        )


def _make_directory(directory: str) -> None:
    """Make the directory and the one above it for ourselves only, as far as they are missing."""
    try:
        for each in (os.path.dirname(directory), directory):  # makedirs gives the mode to the last one
            os.makedirs(each, 0o700, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SockstreamError(f"cannot make {directory!r}: {_reason(error)}; {_ELSEWHERE}") from error


def _place(path: str, token: bytes, *, replace: bool) -> bool:
    """Make the file, complete from its first moment; return False if it exists and is not to be replaced."""
    temporary = os.path.join(os.path.dirname(path), f".token-{os.urandom(8).hex()}")
    try:
        try:
            _write(temporary, token)
            (os.replace if replace else os.link)(temporary, path)
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)
    except FileExistsError:
        return False
    except (OSError, ValueError) as error:
        raise SockstreamError(f"cannot make token file {path!r}: {_reason(error)}; {_ELSEWHERE}") from error
    return True


def _write(path: str, token: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(token.hex().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())  # or a crash of the machine leaves the name with nothing behind it


def _reason(error: OSError | ValueError) -> str:
    """Say why without the path, which the message has already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
