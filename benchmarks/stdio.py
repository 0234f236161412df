"""Bulk and latency of a program's stdio on a socket, against socat and ncat.

Usage: python benchmarks/stdio.py [ROUNDS [MEBIBYTES]]

Bulk: a program writes so many bytes at once; the time of the same run with 1 MiB is taken off. Raw addresses
have the same receiver as the peers (socat into /dev/null); `sock://` has our own at the other end, against socat's
at both. Line: a line there and back through `cat`, both ends relayed through pipes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import _bench as bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
SIZE = (int(sys.argv[2]) if len(sys.argv) > 2 else 1024) << 20
SOCAT_BUFFERS = (8192, 65536, 262144, 1048576)
LITTLE = 1 << 20  # not nothing: socat's OPENSSL fails where a connection carries none
LINES = 3000
BARE_SENDER = """
import os, socket, ssl, sys
port, tls, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
link = socket.create_connection(("127.0.0.1", port))
if tls != "-":
    context = ssl.create_default_context(cafile=tls)
    context.check_hostname = False
    link = context.wrap_socket(link)
r, w = os.pipe()
os.posix_spawnp(program[0], program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, w, 1)])
os.close(w)
while data := os.read(r, 262144):
    link.sendall(data)
if tls != "-":
    link = link.unwrap()
"""
BARE_ECHO = """
import os, select, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
link, _ = server.accept()
ir, iw = os.pipe()
r, w = os.pipe()
os.posix_spawnp("cat", ["cat"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, ir, 0), (os.POSIX_SPAWN_DUP2, w, 1)])
poll = select.epoll()
poll.register(r, 1)
poll.register(link, 1)
while True:
    for fd, _ in poll.poll():
        if fd == r:
            link.sendall(os.read(r, 65536))
        elif data := link.recv(65536):
            os.write(iw, data)
        else:
            sys.exit()
"""
BARE_CLIENT = """
import os, select, socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
poll = select.epoll()
poll.register(0, 1)
poll.register(link, 1)
while True:
    for fd, _ in poll.poll():
        if fd:
            os.write(1, link.recv(65536))
        elif data := os.read(0, 65536):
            link.sendall(data)
        else:
            sys.exit()
"""


def writer(size: int) -> list[str]:
    """Return a program that writes so many zero bytes as fast as it can."""
    return ["dd", "if=/dev/zero", "bs=1M", f"count={size >> 20}", "status=none"]


def receiver(port: int, buffer: int) -> list[str]:
    """Return socat as a raw receiver."""
    return ["socat", "-u", "-b", str(buffer), f"TCP-LISTEN:{port},reuseaddr", "OPEN:/dev/null"]


class Bulk:
    """Measures bytes a second from a program to a receiver."""

    def __init__(self, certificate: str) -> None:
        self.certificate = certificate
        self.bare = bench.HOME / "sender.py"
        self.bare.write_text(BARE_SENDER)

    def speed(self, pair: Callable[[int, int], tuple[list[str], list[str]]]) -> float:
        """Return GB/s of a (receiver, sender) pair, each a command line made for a port and a size."""
        return (SIZE - LITTLE) / (self._seconds(pair, SIZE) - self._seconds(pair, LITTLE)) / 1e9

    def _seconds(self, pair: Callable[[int, int], tuple[list[str], list[str]]], size: int) -> float:
        port = bench.free_port()
        receiving, sending = pair(port, size)
        sink = bench.start(receiving)
        try:
            bench.wait_for_port(port)
            began = time.perf_counter()
            source = bench.start(sending)
            if source.wait() or sink.wait():  # with a limit it would look only every 50 ms
                raise SystemExit(f"{sending} ended with {source.returncode}, {receiving} with {sink.returncode}")
            return time.perf_counter() - began
        finally:
            bench.end(sink)

    def socat(self, buffer: int) -> Callable[[int, int], tuple[list[str], list[str]]]:
        """socat at both ends, over TCP."""
        return lambda port, size: (
            receiver(port, buffer),
            ["socat", "-u", "-b", str(buffer), f"EXEC:{' '.join(writer(size))},pipes", f"TCP:127.0.0.1:{port}"],
        )

    def ncat(self, port: int, size: int) -> tuple[list[str], list[str]]:
        """ncat as the sender."""
        return receiver(port, 262144), ["ncat", "--send-only", "-e", *[self._script(size)], "127.0.0.1", str(port)]

    def _script(self, size: int) -> str:
        script = Path(bench.HOME, f"write-{size}")
        script.write_text(f"#!/bin/sh\nexec {' '.join(writer(size))}\n")
        script.chmod(0o755)
        return str(script)

    def raw(self, port: int, size: int) -> tuple[list[str], list[str]]:
        """`run` towards the same receiver as the peers."""
        sender = [*bench.SOCKSTREAM, "run", "-q", "--only", "out", "--to", f"tcp://127.0.0.1:{port}", "--"]
        return receiver(port, 262144), [*sender, *writer(size)]

    def sock(self, scheme: str) -> Callable[[int, int], tuple[list[str], list[str]]]:
        """`run` and `listen --once`."""

        def pair(port: int, size: int) -> tuple[list[str], list[str]]:
            where = f"{scheme}://127.0.0.1:{port}"
            sender = [*bench.SOCKSTREAM, "run", "-q", "--only", "out", "--to", where, "--", *writer(size)]
            return [*bench.SOCKSTREAM, "listen", "-q", "--once", where], sender

        return pair

    def socat_tls(self, buffer: int) -> Callable[[int, int], tuple[list[str], list[str]]]:
        """socat's OPENSSL at both ends."""
        return lambda port, size: (
            self._tls_receiver(port, buffer),
            [
                *("socat", "-u", "-b", str(buffer), f"EXEC:{' '.join(writer(size))},pipes"),
                f"OPENSSL:127.0.0.1:{port},cafile={self.certificate},commonname=localhost",
            ],
        )

    def _tls_receiver(self, port: int, buffer: int) -> list[str]:
        listening = f"OPENSSL-LISTEN:{port},reuseaddr,cert={self.certificate},verify=0"
        return ["socat", "-u", "-b", str(buffer), listening, "OPEN:/dev/null"]

    def raw_tls(self, port: int, size: int) -> tuple[list[str], list[str]]:
        """`run` over tls:// towards socat."""
        where = f"tls://localhost:{port}"
        sender = [*bench.SOCKSTREAM, "run", "-q", "--only", "out", "--tls-ca", self.certificate, "--to", where, "--"]
        return self._tls_receiver(port, 262144), [*sender, *writer(size)]

    def loop(self, *, tls: bool) -> Callable[[int, int], tuple[list[str], list[str]]]:
        """A bare Python loop as the sender."""
        mode = self.certificate if tls else "-"
        return lambda port, size: (
            self._tls_receiver(port, 262144) if tls else receiver(port, 262144),
            [sys.executable, str(self.bare), str(port), mode, *writer(size)],
        )


def make_certificate() -> str:
    """Make a key and certificate for localhost in one file, as socat wants it."""
    path = str(bench.HOME / "pair.pem")
    key = str(bench.HOME / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", path, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    Path(path).write_text(Path(path).read_text() + Path(key).read_text())
    return path


def bulk(table: bench.Table) -> None:
    """Print the rows for bulk."""
    kinds = Bulk(make_certificate())
    peers = {f"socat {b >> 10} KiB": kinds.socat(b) for b in SOCAT_BUFFERS} | {"ncat": kinds.ncat}
    measures = {name: (lambda pair=pair: kinds.speed(pair)) for name, pair in peers.items()}
    ours = {"raw": kinds.raw, "sock": kinds.sock("sock"), "loop": kinds.loop(tls=False)}
    measures |= {name: (lambda pair=pair: kinds.speed(pair)) for name, pair in ours.items()}
    results = bench.rounds(ROUNDS, **measures)
    best = max(peers, key=lambda name: bench.median(results[name]))
    for what, key in (("bulk stdout, `tcp://`", "raw"), ("bulk stdout, `sock://`", "sock")):
        _speed_row(table, what, results, key, best, "loop")
    tls_peers = {f"socat OPENSSL {b >> 10} KiB": kinds.socat_tls(b) for b in SOCAT_BUFFERS}
    tls = {**tls_peers, "raw": kinds.raw_tls, "sock": kinds.sock("sock+tls"), "loop": kinds.loop(tls=True)}
    results = bench.rounds(ROUNDS, **{name: (lambda pair=pair: kinds.speed(pair)) for name, pair in tls.items()})
    best = max(tls_peers, key=lambda name: bench.median(results[name]))
    for what, key in (("bulk stdout, `tls://`", "raw"), ("bulk stdout, `sock+tls://`", "sock")):
        _speed_row(table, what, results, key, best, "loop")


def _speed_row(table: bench.Table, what: str, results: dict[str, list[float]], key: str, best: str, loop: str) -> None:
    table.row(
        what,
        f"{bench.median(results[key]):.2f} GB/s",
        f"{bench.median(results[best]):.2f} GB/s ({best})",
        bench.ratio(results[key], results[best]),
        1.0,
        at_least=True,
        bare=bench.ratio(results[loop], results[best]),
    )


def round_trip(serving: Sequence[str], dialling: Sequence[str], port: int) -> float:
    """Return the microseconds for a line through a dialling relay, a serving relay and `cat`, and back."""
    server = bench.start(serving)
    try:
        bench.wait_for_port(port)
        client = bench.start(dialling, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            return _exchange(client)
        finally:
            client.stdin.close()  # type: ignore[union-attr]  # it has pipes
            client.stdout.close()  # type: ignore[union-attr]  # it has pipes
            bench.end(client)
    finally:
        bench.end(server)


def _exchange(client: subprocess.Popen[bytes]) -> float:
    assert client.stdin is not None and client.stdout is not None
    there, back = client.stdin.fileno(), client.stdout.fileno()
    began = 0.0
    for number in range(LINES + 200):
        if number == 200:
            began = time.perf_counter()
        line = b"%08d\n" % number
        os.write(there, line)
        if os.read(back, 64) != line:
            raise SystemExit("the line did not come back whole")
    return (time.perf_counter() - began) / LINES * 1e6


def socat_dialling(port: int) -> list[str]:
    """Return socat as the dialling relay."""
    return ["socat", "-", f"TCP:127.0.0.1:{port},nodelay"]


def socat_line() -> float:
    """socat at both ends."""
    port = bench.free_port()
    return round_trip(["socat", f"TCP-LISTEN:{port},reuseaddr,nodelay", "EXEC:cat,pipes"], socat_dialling(port), port)


def our_line(scheme: str, *, both: bool) -> float:
    """`serve`, and `connect` or socat."""
    port = bench.free_port()
    where = f"{scheme}://127.0.0.1:{port}"
    dialling = [*bench.SOCKSTREAM, "connect", "-q", where] if both else socat_dialling(port)
    return round_trip([*bench.SOCKSTREAM, "serve", "-q", "--once", where, "--", "cat"], dialling, port)


def bare_line(*, both: bool) -> float:
    """A bare Python loop that serves, and another one or socat that dials."""
    scripts = {"echo.py": BARE_ECHO, "client.py": BARE_CLIENT}
    for name, text in scripts.items():
        Path(bench.HOME, name).write_text(text)
    port = bench.free_port()
    client = [sys.executable, str(bench.HOME / "client.py"), str(port)]
    serving = [sys.executable, str(bench.HOME / "echo.py"), str(port)]
    return round_trip(serving, client if both else socat_dialling(port), port)


def line(table: bench.Table) -> None:
    """Print the rows for a line there and back."""
    results = bench.rounds(
        ROUNDS,
        peer=socat_line,
        raw=lambda: our_line("tcp", both=False),
        raw_loop=lambda: bare_line(both=False),
        sock=lambda: our_line("sock", both=True),
        sock_loop=lambda: bare_line(both=True),
    )
    rows = (
        ("line there and back, `tcp://`", "raw", 1.4),
        ("line there and back, `sock://`, both ends ours", "sock", 1.5),
    )
    for what, key, bar in rows:
        table.row(
            what,
            f"{bench.median(results[key]):.0f} us",
            f"{bench.median(results['peer']):.0f} us (socat)",
            bench.ratio(results[key], results["peer"]),
            bar,
            at_least=False,
            bare=bench.ratio(results[f"{key}_loop"], results["peer"]),
        )


def main() -> None:
    """Run the rounds and print the table."""
    table = bench.Table(f"Stdio: {SIZE >> 20} MiB, {LINES} lines, {ROUNDS} rounds")
    line(table)
    bulk(table)
    table.finish()


if __name__ == "__main__":
    main()
