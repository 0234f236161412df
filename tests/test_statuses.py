"""Each end of a program knows how it ended, and tells *ended* from *broken* and *no status* from 0."""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ends import RAW, SESSIONS, WAITS, WAYS, ends, null, over, shell, waiting_address
from sockstream.transport import unsent_bytes
from support import Running, free_port, limit, wait_until

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS = {
    "0": (["true"], 0),
    "7": (shell("exit 7"), 7),
    "SIGTERM": (shell("kill -TERM $$"), 143),
    "SIGKILL": (shell("kill -KILL $$"), 137),
    "not found": (["no-such-program-anywhere"], 127),
    "not executable": (["/dev/null"], 126),
}


@pytest.mark.parametrize("ending", ENDINGS)
@over(SESSIONS)
def test_both_ends_end_with_the_programs_status(way: str, kind: str, ending: str) -> None:
    """On a session the program's status, 128 + its signal, 126 or 127 is the status of both commands."""
    program, status = ENDINGS[ending]
    with ends(way, kind, program) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (status, status)


@pytest.mark.parametrize("ending", ["7", "SIGKILL", "not found"])
@over(RAW)
def test_raw_carries_no_status(way: str, kind: str, ending: str) -> None:
    """On raw addresses the program end has the status, the viewer 0 for an orderly end; -v says why."""
    program, status = ENDINGS[ending]
    with ends(way, kind, program, viewer_options=["-v"]) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, status)
        assert b"a raw address carries no exit status" in viewer.stderr


@pytest.mark.parametrize("ending", ["not found", "not executable"])
@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_cannot_start_is_explained_at_both_ends(way: str, ending: str) -> None:
    """Not only the number: each end says in one line which program could not be started, and why."""
    program, _status = ENDINGS[ending]
    with ends(way, "sock", program) as (viewer, end):
        viewer.wait(), end.wait()
        for command in viewer, end:
            assert command.stderr.count(f"cannot start '{program[0]}'".encode()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_link_is_not_an_end(way: str) -> None:
    """When the program end is killed, the viewer waits for its grace, says that the link broke, and ends with 125."""
    with ends(way, "sock", shell("echo here; exec sleep 60"), options=["--grace", "1"]) as (viewer, end):
        viewer.wait_for_output(b"here\n")
        end.process.kill()
        assert viewer.wait() == 125
        assert b"broken off: no link for 1 s\n" in viewer.stderr
        assert viewer.stdout == b"here\n"


def test_leaving_without_a_status_has_its_own_line() -> None:
    """A program end that leaves before its program has ended says so: 125 at once, not after a grace."""
    with ends("serve", "sock", shell(f"trap '' INT TERM; {WAITS}")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        end.process.send_signal(signal.SIGTERM)
        end.process.send_signal(signal.SIGINT)
        assert viewer.wait() == 125
        assert b"has left without a status (stopped)" in viewer.stderr
        assert end.wait() == 129


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side gets a reset."""
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()  # with input unread, a Unix socket resets too


def listener(kind: str) -> tuple[socket.socket, str]:
    """Return a listening raw socket and its address."""
    if kind == "tcp":
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(limit(10))
        return server, f"tcp://127.0.0.1:{server.getsockname()[1]}"
    path = f"{os.environ['XDG_RUNTIME_DIR']}/peer"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    server.settimeout(limit(10))
    return server, f"unix://{path}"


@pytest.mark.parametrize("kind", RAW)
def test_a_reset_is_not_an_end_when_dialled(kind: str) -> None:
    """`connect` to a raw peer that resets ends with 125 and a line; what came before is shown."""
    server, address = listener(kind)
    with server, Running("connect", address) as viewer:
        peer, _ = server.accept()
        with peer:
            viewer.write(b"unread\n")
            peer.send(b"before\n")
            viewer.wait_for_output(b"before\n")
            reset(peer)
        assert viewer.wait() == 125
        assert b"broken off: the connection broke" in viewer.stderr


def test_a_reset_is_not_an_end_when_waiting() -> None:
    """`listen --once` on a raw address ends with 125 and a line when its peer resets."""
    with Running("listen", "--once", waiting_address("tcp")) as viewer:
        peer = socket.create_connection(("127.0.0.1", int(viewer.address.rpartition(":")[2])))
        with peer:
            peer.send(b"before\n")
            viewer.wait_for_output(b"before\n")
            reset(peer)
        assert viewer.wait() == 125
        assert b"broken off: the connection broke" in viewer.stderr


def test_what_came_before_a_reset_is_written() -> None:
    """A slow reader of the viewer's output gets all that had arrived when the connection broke."""
    sent = os.urandom(400_000)
    server, address = listener("tcp")
    reading, writing = os.pipe()
    with server, os.fdopen(reading, "rb") as output, Running("connect", address, stdout=writing) as viewer:
        os.close(writing)
        peer, _ = server.accept()
        with peer:
            peer.sendall(sent)
            wait_until(lambda: not unsent_bytes(peer), 10, "everything to be received")
            reset(peer)
        viewer.wait_for_message(b"broken off")
        assert output.read() == sent
        assert viewer.wait() == 125


def test_run_against_serve_names_the_right_call() -> None:
    """Two program ends do not talk: 125, with the command that was meant."""
    with (
        Running("serve", waiting_address("sock"), "--", "cat") as server,
        Running("run", "--to", server.address, "--", "true") as end,
    ):
        assert end.wait() == 125
        assert b"use sockstream connect" in end.stderr


def test_connect_against_listen_names_the_right_call() -> None:
    """Two viewer ends do not talk: 125, with the command that was meant."""
    with (
        Running("listen", waiting_address("sock")) as server,
        Running("connect", server.address) as viewer,
    ):
        assert viewer.wait() == 125
        assert b"start one with sockstream run" in viewer.stderr


def test_listen_once_shows_one_program() -> None:
    """A second program is refused (125) while `listen --once` shows the first, which goes on undisturbed."""
    with ends("run", "sock", shell("echo ready; read line; exit 3")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        with Running("run", "--to", viewer.address, "--", "true") as second:
            assert second.wait() == 125
            assert b"this viewer shows one program only (--once)" in second.stderr
        viewer.write(b"\n")
        assert (viewer.wait(), end.wait()) == (3, 3)


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_token_is_final(way: str) -> None:
    """The dialling end says that the token is wrong and ends with 125 at once, whatever --wait says."""
    mine, theirs = ({**os.environ, "SOCKSTREAM_TOKEN": digit * 64} for digit in "ab")
    waits, dials = (["listen"], ["run", "--to"]) if way == "run" else (["serve"], ["connect"])
    program = ["--", "true"]
    waits += [waiting_address("sock")] + (program if way == "serve" else [])
    with Running(*waits, env=mine) as server:
        dials += [server.address, "--wait", "60"] + (program if way == "run" else [])
        with Running(*dials, env=theirs) as client:
            assert client.wait() == 125
            assert b"wrong token" in client.stderr


@pytest.mark.parametrize("kind", ["sock", "tcp"])
@pytest.mark.parametrize("command", ["run", "connect"])
def test_nobody_there_is_125(command: str, kind: str) -> None:
    """Where nobody listens, a dialling end tries for --wait seconds, says so, and starts no program."""
    address = f"{kind}://127.0.0.1:{free_port()}"
    words = (
        ["run", "--to", address, "--wait", "0.2", "--", "true"]
        if command == "run"
        else ["connect", address, "--wait", "0"]
    )
    with Running(*words) as client:
        assert client.wait() == 125
        assert client.stderr.count(b"\n") == 1
        assert b"nobody listens there" in client.stderr


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_a_python_file_need_not_be_executable(kind: str, tmp_path: Path) -> None:
    """A .py without the x bit is run by this Python; its arguments and its status are its own."""
    script = tmp_path / "report.py"
    script.write_text("import sys\nprint('args', sys.argv[1:])\nsys.exit(3)\n")
    with ends("run", kind, [str(script), "--x", "y"], viewer_stdio=null()) as (viewer, end):
        assert end.wait() == 3
        viewer.wait()
        assert viewer.stdout == b"args ['--x', 'y']\n"
