"""The strangers themselves: how each is started, and how it meets a command of ours.

Rules: each runs as its users run it, on a port that it picks, which is looked up in the kernel's table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support import Running, limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = f"{limit(20):g}"  # how long socat waits for what comes after its own half-close

# A socket client and server as a textbook has them: one thread sends and half-closes, the other reads to the end.
TALKER = """
import os, socket, threading
def send():
    try:
        while data := os.read(0, 65536):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        os._exit(9)
with {how} as sock:
    sender = threading.Thread(target=send)
    sender.start()
    while data := sock.recv(65536):
        os.write(1, data)
    sender.join()
"""
DIALS = TALKER.format(how="socket.create_connection(('127.0.0.1', {port}))")
WAITS = TALKER.format(how="socket.create_server(('127.0.0.1', 0)).accept()[0]")


class Stranger(NamedTuple):
    """A program with a socket, which passes its stdin to it and writes what comes from there to its stdout.

    The command has {port}, {path}, {ca}, {cert} and {key} for what it needs.
    """

    scheme: str
    command: tuple[str, ...]
    waits: bool = False
    half_closes: bool = True

    def fill(self, **values: str) -> list[str]:
        """Return the command with everything in its place; skips the test if there is no such program."""
        if shutil.which(self.command[0]) is None:
            pytest.skip(f"{self.command[0]} is not installed")
        return [word.format(**values) for word in self.command]


_S_CLIENT = ("openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", "{ca}", "-connect", "127.0.0.1:{port}")
_S_SERVER = ("openssl", "s_server", "-quiet", "-naccept", "1", "-cert", "{cert}", "-key", "{key}", "-accept")
_NCAT_TLS = ("--ssl-verify", "--ssl-trustfile", "{ca}", "--ssl-servername", "localhost", "127.0.0.1", "{port}")
STRANGERS = {
    "nc": Stranger("tcp", ("nc", "-N", "127.0.0.1", "{port}")),
    "nc-unix": Stranger("unix", ("nc", "-N", "-U", "{path}")),
    "nc-listen": Stranger("tcp", ("nc", "-N", "-l", "127.0.0.1", "0"), waits=True),
    "nc-unix-listen": Stranger("unix", ("nc", "-N", "-lU", "{path}"), waits=True),
    "ncat": Stranger("tcp", ("ncat", "127.0.0.1", "{port}")),
    "ncat-unix": Stranger("unix", ("ncat", "-U", "{path}")),
    "ncat-listen": Stranger("tcp", ("ncat", "-l", "127.0.0.1", "0"), waits=True),
    "ncat-unix-listen": Stranger("unix", ("ncat", "-lU", "{path}"), waits=True),
    "ncat-tls": Stranger("tls", ("ncat", "--ssl", *_NCAT_TLS), half_closes=False),
    "ncat-tls-listen": Stranger(
        "tls",
        ("ncat", "-l", "--ssl", "--ssl-cert", "{cert}", "--ssl-key", "{key}", "127.0.0.1", "0"),
        waits=True,
        half_closes=False,
    ),
    "socat": Stranger("tcp", ("socat", "-t", PATIENCE, "STDIO", "TCP:127.0.0.1:{port}")),
    "socat-unix": Stranger("unix", ("socat", "-t", PATIENCE, "STDIO", "UNIX-CONNECT:{path}")),
    "socat-listen": Stranger("tcp", ("socat", "-t", PATIENCE, "STDIO", "TCP-LISTEN:0,bind=127.0.0.1"), waits=True),
    "socat-unix-listen": Stranger("unix", ("socat", "-t", PATIENCE, "STDIO", "UNIX-LISTEN:{path}"), waits=True),
    "socat-tls": Stranger("tls", ("socat", "-t", PATIENCE, "STDIO", "OPENSSL:127.0.0.1:{port},cafile={ca}")),
    "socat-tls-listen": Stranger(
        "tls",
        ("socat", "-t", PATIENCE, "STDIO", "OPENSSL-LISTEN:0,bind=127.0.0.1,verify=0,cert={cert},key={key}"),
        waits=True,
    ),
    "openssl": Stranger("tls", _S_CLIENT, half_closes=False),
    "openssl-listen": Stranger("tls", (*_S_SERVER, "127.0.0.1:0"), waits=True, half_closes=False),
    "python": Stranger("tcp", (sys.executable, "-c", DIALS)),
    "python-listen": Stranger("tcp", (sys.executable, "-c", WAITS), waits=True),
}


def listening_port(pid: int) -> int | None:
    """Return the TCP port of 127.0.0.1 that a process listens on, or None for now."""
    owned = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed while we looked
            owned.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == "0A" and f"socket:[{rest[5]}]" in owned:
            return int(local.rpartition(":")[2], 16)
    return None


def wait_for_port(server: Running) -> int:
    """Wait until a stranger listens on TCP and return its port."""
    port: int = wait_until(lambda: listening_port(server.pid), 10, f"a listening {server.process.args!r}")
    return port


@contextlib.contextmanager
def meeting(
    name: str,
    certificates: dict[str, str],
    waits: tuple[str, ...],
    dials: tuple[str, ...],
    program: list[str],
    stdin: int = subprocess.PIPE,
) -> Iterator[tuple[Running, Running]]:
    """Start a stranger, whose stdin may be a descriptor, and the command of ours that waits or dials, as it needs."""
    stranger = STRANGERS[name]
    path = os.path.join(os.environ["XDG_RUNTIME_DIR"], "meeting")
    behind = ["--", *program] if program else []
    if stranger.waits:
        with Running(command=stranger.fill(path=path, **certificates), stdin=stdin) as other:
            where = path if stranger.scheme == "unix" else f"127.0.0.1:{wait_for_port(other)}"
            trust = ["--tls-ca", certificates["ca"]] if stranger.scheme == "tls" else []
            with Running(dials[0], *trust, *dials[1:], f"{stranger.scheme}://{where}", *behind) as ours:
                yield other, ours
    else:
        where = path if stranger.scheme == "unix" else "127.0.0.1:0"
        proof = ["--tls-cert", certificates["cert"], "--tls-key", certificates["key"]]
        options = proof if stranger.scheme == "tls" else []
        with Running(*waits, *options, f"{stranger.scheme}://{where}", *behind) as ours:
            port = ours.address.rpartition(":")[2]
            with Running(command=stranger.fill(path=path, port=port, **certificates), stdin=stdin) as other:
                yield other, ours


def running(
    name: str, certificates: dict[str, str], program: list[str], stdin: int = subprocess.PIPE
) -> contextlib.AbstractContextManager[tuple[Running, Running]]:
    """Let a stranger meet a program, by `run` or `serve --once`; yields both commands."""
    return meeting(name, certificates, ("serve", "--once"), ("run", "--to"), program, stdin)
