"""Peers as books and manuals have them: pexpect, makefile(), socketserver, http.server, tcpserver, a hasty server.

Rules: those in Python run in this process, so that a reset is an exception here and fails the test.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import socketserver
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from pexpect import EOF, fdpexpect, socket_pexpect
from strangers import wait_for_port

from ends import shell
from helper_program import AWKWARD, pattern
from support import Running, limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pexpect.spawnbase import SpawnBase

PAGE = pattern(300_000)
DIALOGUE = 'for n in 1 2 3; do echo "question $n"; read -r answer || exit 9; echo "got $answer"; done; exit 5'


@contextlib.contextmanager
def accepting() -> Iterator[tuple[socket.socket, str]]:
    """Listen on a port and yield the listener and its address as a raw one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(limit(20))
        yield server, f"tcp://127.0.0.1:{server.getsockname()[1]}"


# ---- those who show or drive a program


def spawn_on_socket(sock: socket.socket) -> socket_pexpect.SocketSpawn:
    """Give a socket to pexpect's socket_pexpect."""
    return socket_pexpect.SocketSpawn(sock, timeout=limit(20))


def spawn_on_descriptor(sock: socket.socket) -> fdpexpect.fdspawn:
    """Give a socket's descriptor to pexpect's fdpexpect, which closes it."""
    return fdpexpect.fdspawn(sock.detach(), timeout=limit(20))


@pytest.mark.parametrize("spawn", [spawn_on_socket, spawn_on_descriptor])
def test_pexpect_drives_python(spawn: Callable[[socket.socket], SpawnBase]) -> None:
    """pexpect's socket spawn waits for prompts and answers; the interpreter's exit status is that of `serve --once`."""
    command = ("serve", "--once", "--merge-stderr", "tcp://127.0.0.1:0", "--", sys.executable, "-i")
    with Running(*command) as ours:
        sock = socket.create_connection(("127.0.0.1", int(ours.address.rpartition(":")[2])))
        with sock, contextlib.closing(spawn(sock)) as child:
            child.expect_exact(">>> ")
            child.sendline("6 * 7")
            child.expect(r"(\d+)\n>>> ")
            assert child.match[1] == b"42"
            child.sendline("1 / 0")
            child.expect("ZeroDivisionError: .*\n>>> ")
            child.sendline("print('x' * 100000); raise SystemExit(4)")
            child.expect(EOF)
            assert child.before == b"x" * 100_000 + b"\n"
        assert ours.wait() == 4


def test_a_makefile_loop_answers_a_program() -> None:
    """`for line in sock.makefile('r')` with answers through makefile('w') ends when the program does."""
    heard = []
    with accepting() as (server, address), Running("run", "--to", address, "--", *shell(DIALOGUE)) as ours:
        sock, _ = server.accept()
        with sock, sock.makefile("r", encoding="utf-8") as lines, sock.makefile("w", encoding="utf-8") as answers:
            for line in lines:
                heard.append(line)
                if line.startswith("question"):
                    answers.write(f"answer é to {line}")
                    answers.flush()
        assert ours.wait() == 5
    said = [[f"question {n}\n", f"got answer é to question {n}\n"] for n in (1, 2, 3)]
    assert heard == [line for pair in said for line in pair]


def test_a_makefile_loop_that_only_listens() -> None:
    """A listener that never says anything gets every line of 100,000 and the end of file, then closes."""
    program = shell("seq 100000; exit 5")
    with accepting() as (server, address), Running("run", "--to", address, "--", *program) as ours:
        sock, _ = server.accept()
        with sock, sock.makefile("r", encoding="ascii") as lines:
            assert [int(line) for line in lines] == list(range(1, 100_001))
        assert ours.wait() == 5


def test_a_makefile_client_of_serve() -> None:
    """A client that writes, half-closes and reads through makefile gets all of a program's answers."""
    with Running("serve", "--once", "tcp://127.0.0.1:0", "--", "sort", "-n") as ours:
        with (
            socket.create_connection(("127.0.0.1", int(ours.address.rpartition(":")[2]))) as sock,
            sock.makefile("rw", encoding="ascii") as file,
        ):
            sock.settimeout(limit(20))
            file.writelines(f"{n}\n" for n in range(20_000, 0, -1))
            file.flush()
            sock.shutdown(socket.SHUT_WR)
            assert [int(line) for line in file] == list(range(1, 20_001))
        assert ours.wait() == 0


# ---- servers that `connect` dials


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    """Serve with a threading server of the standard library and yield the address."""

    class Server(socketserver.ThreadingTCPServer):
        failures: list[BaseException | None] = []  # noqa: RUF012  (of this class, which is made for each call)

        def handle_error(self, request: object, client_address: object) -> None:
            self.failures.append(sys.exception())

    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
    assert not Server.failures


class Shouter(socketserver.StreamRequestHandler):
    """Gives back each line in capitals, and says goodbye when there are no more."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())
        self.wfile.write(b"goodbye\n")


def test_connect_talks_with_a_socketserver() -> None:
    """`connect` passes on lines live, its end of file by half-close, and what comes after that; status 0."""
    with serving(Shouter) as address, Running("connect", address) as ours:
        ours.write(b"one\n")
        ours.wait_for_output(b"ONE\n")
        ours.write(AWKWARD + b"\n")
        ours.write(PAGE)
        ours.close_stdin()
        assert ours.wait() == 0, f"{ours}"
        assert ours.stdout == b"ONE\n" + (AWKWARD + b"\n" + PAGE).upper() + b"goodbye\n"


@pytest.mark.parametrize("ends_input", [False, True])
def test_connect_makes_an_http_request_by_hand(ends_input: bool) -> None:
    """With --crlf a request typed with plain line ends arrives with CR LF, and the answer comes as it is; status 0."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.raw_requestline, self.headers.as_string()))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *args: object) -> None:
            """Say nothing on the tests' stderr."""

    with serving(Handler) as address, Running("connect", "--crlf", address) as ours:
        ours.write(b"GET /page HTTP/1.0\nHost: localhost\nX-Field: 1\n\n")
        if ends_input:
            ours.close_stdin()
        assert ours.wait() == 0, f"{ours}"
        head, _, body = ours.stdout.partition(b"\r\n\r\n")
        assert asked == [(b"GET /page HTTP/1.0\r\n", "Host: localhost\nX-Field: 1\n\n")]
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert body == PAGE


def test_connect_gets_a_file_from_http_server(tmp_path: os.PathLike[str]) -> None:
    """`python -m http.server` delivers a file byte for byte."""
    with open(os.path.join(tmp_path, "page.bin"), "wb") as file:
        file.write(PAGE)
    server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), "0"]
    with Running(command=server) as other:
        with Running("connect", "--crlf", f"tcp://127.0.0.1:{wait_for_port(other)}") as ours:
            ours.write(b"GET /page.bin HTTP/1.0\n\n")
            assert ours.wait() == 0, f"{ours}"
            assert ours.stdout.endswith(b"\r\n\r\n" + PAGE)
        assert b"Traceback" not in other.stderr


@contextlib.contextmanager
def tcpserver(*program: str) -> Iterator[str]:
    """Serve a program with ucspi-tcp's tcpserver and yield the address."""
    if shutil.which("tcpserver") is None:
        pytest.skip("tcpserver is not installed")
    with Running(command=["tcpserver", "-RHl0", "127.0.0.1", "0", *program]) as server:
        yield f"tcp://127.0.0.1:{wait_for_port(server)}"


def test_connect_talks_with_a_program_of_tcpserver() -> None:
    """A program that owns its socket: lines go to and fro, the half-close is its end of file, all comes; status 0."""
    program = shell("while read -r line; do echo got $line; done; echo end for $TCPREMOTEIP")
    with tcpserver(*program) as address, Running("connect", address) as ours:
        ours.write(b"one\n")
        ours.wait_for_output(b"got one\n")
        ours.write(b"two\n")
        ours.close_stdin()
        assert ours.wait() == 0, f"{ours}"
        assert ours.stdout == b"got one\ngot two\nend for 127.0.0.1\n"


def test_a_reset_by_the_peer_is_said() -> None:
    """tcpserver's program leaves input unread, so its kernel resets: the answer is passed on, then status 125."""
    with tcpserver(*shell("read -r line; echo $line")) as address, Running("connect", address) as ours:
        ours.write(b"answer\n" + pattern(60_000))
        assert ours.wait() == 125
        assert ours.stdout == b"answer\n"
        assert b"sockstream: broken off: the connection broke: " in ours.stderr


# ---- a server that does not wait for the end of what we say


def hasty_answer(path: str, viewer: Running) -> int:
    """Serve one connection: read a line, answer as much as will go while nobody reads the viewer's output, close."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(limit(20))
        viewer.write(b"hello\n")
        sock, _ = server.accept()
    with sock:
        assert sock.recv(100) == b"hello\n"
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += sock.send(PAGE[sent % 1000 :][:1000])
        return sent


def test_input_that_is_not_wanted_any_more_costs_no_output() -> None:
    """A server answers and closes while we still send: what it said before comes whole, to a slow reader too."""
    path = f"{os.environ['XDG_RUNTIME_DIR']}/hasty"
    reading, writing = os.pipe()
    with open(reading, "rb") as output, Running("connect", f"unix://{path}", stdout=writing) as ours:
        os.close(writing)
        sent = hasty_answer(path, ours)
        for _ in range(10):
            ours.write(b"more\n")
            time.sleep(0.02)
        assert len(output.read()) == sent
        assert ours.wait() == 0, f"{ours}"
