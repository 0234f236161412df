"""`serve`: a program for each connection, how many, under which supervisor, and how the service ends.

What holds for `serve` with `connect` as it does for `run` with `listen` is tested in test_run_listen.py over both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from ends import KINDS, RAW, SESSIONS, WAITS, ends, null, program_of, programs_of, shell, waiting_address
from sockstream import token
from support import Running, alive_in_group, helper, limit, processes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def serving(kind: str, *program: str, options: tuple[str, ...] = (), **popen: Any) -> Running:
    """Start `serve` at a fresh address of a kind."""
    return Running("serve", *options, waiting_address(kind), "--", *program, **popen)


def connecting(server: Running, *options: str, **popen: Any) -> Running:
    """Start `connect` to it."""
    return Running("connect", *options, server.address, **popen)


@contextlib.contextmanager
def raw_peer(address: str) -> Iterator[socket.socket]:
    """Connect to a raw address as a program that knows nothing of us."""
    if address.startswith("unix"):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(address.removeprefix("unix://"))
    else:
        peer = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    with peer:
        peer.settimeout(limit(20))
        yield peer


def received(peer: socket.socket) -> bytes:
    """Return what comes until the end of file."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


# ---- one program for each


@pytest.mark.parametrize("kind", KINDS)
def test_each_connection_has_its_own_program(kind: str) -> None:
    """Two viewers at once talk to two programs; the service goes on when they have gone."""
    with serving(kind, *shell("read line; echo $$ $line")) as server:
        with connecting(server) as first, connecting(server) as second:
            wait_until(lambda: len(programs_of(server)) == 2, 10, "two programs")
            second.write(b"second\n")
            assert second.wait() == 0
            first.write(b"first\n")
            assert first.wait() == 0
            pids, words = zip(*(each.stdout.split() for each in (first, second)), strict=True)
            assert words == (b"first", b"second")
            assert len(set(pids)) == 2
        assert server.process.poll() is None
        with connecting(server) as third:
            third.write(b"third\n")
            assert third.wait() == 0


def environment_of(output: bytes) -> dict[str, str]:
    """Parse what the helper's mode `env` writes."""
    return dict(line.decode().split("=", 1) for line in output.splitlines() if b"=" in line)


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_the_program_knows_its_peer_over_tcp(kind: str) -> None:
    """PROTO, TCPREMOTEIP and the others are in the program's environment, as tcpserver has them."""
    with serving(kind, *helper("env")) as server, connecting(server, **null()) as viewer:
        assert viewer.wait() == 0
        found = environment_of(viewer.stdout)
        port = server.address.rpartition(":")[2]
        assert (found["PROTO"], found["TCPLOCALIP"], found["TCPLOCALPORT"]) == ("TCP", "127.0.0.1", port)
        assert (found["TCPREMOTEIP"], found["TCPCONNNUM"]) == ("127.0.0.1", "1")
        assert 0 < int(found["TCPREMOTEPORT"]) < 65536


@pytest.mark.parametrize("kind", ["sock+unix", "unix"])
def test_the_program_knows_its_peer_over_unix(kind: str) -> None:
    """The Unix variables: the path here, and who is on the other side."""
    with serving(kind, *helper("env")) as server, connecting(server, **null()) as viewer:
        assert viewer.wait() == 0
        found = environment_of(viewer.stdout)
        assert (found["PROTO"], found["UNIXLOCALPATH"]) == ("UNIX", server.address.partition("://")[2])
        assert (found["UNIXREMOTEPID"], found["UNIXREMOTEEUID"]) == (str(viewer.pid), str(os.geteuid()))


@pytest.mark.parametrize("kind", SESSIONS)
def test_our_secrets_are_not_the_programs(kind: str) -> None:
    """The token and what a service manager told us are not in the program's environment."""
    secret = "5e" * 32
    ours = {"SOCKSTREAM_TOKEN": secret, "LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    with (
        serving(kind, *helper("env"), env={**os.environ, **ours}) as server,
        connecting(server, env={**os.environ, "SOCKSTREAM_TOKEN": secret}, **null()) as viewer,
    ):
        assert viewer.wait() == 0
        found = environment_of(viewer.stdout)
        assert not {*ours, "NOTIFY_SOCKET"} & found.keys()
        assert secret.encode() not in viewer.stdout


# ---- how many


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_session_above_max_is_refused(kind: str) -> None:
    """With --max 1 the second viewer is told that it is full (125), at both ends; after the first it may come."""
    with serving(kind, *shell("read line"), options=("--max", "1")) as server:
        with connecting(server) as first:
            program_of(server)
            with connecting(server, "--wait", "30") as second:
                assert second.wait() == 125
                assert b"as many programs as may run here (1) do already" in second.stderr
            server.wait_for_message(b"as many programs as may run here (1) do already")
            first.write(b"\n")
            assert first.wait() == 0
        wait_until(lambda: not programs_of(server), 10, "the end of the first program")
        with connecting(server, **null()) as third:
            assert third.wait() == 1  # `read` at the end of file


@pytest.mark.parametrize("kind", RAW)
def test_a_raw_connection_above_max_waits(kind: str) -> None:
    """With --max 1 four raw peers that come at once are served one after the other, never two at a time."""
    program = shell("read line; ps -o pid= --ppid $PPID | wc -l; echo end $line")
    with serving(kind, *program, options=("--max", "1")) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(raw_peer(server.address)) for _ in range(4)]
        for number, peer in enumerate(peers):
            peer.sendall(b"%d\n" % number)
        outputs = []
        for peer in peers:
            outputs.append(received(peer))
            peer.close()
        assert [output.split()[-2:] for output in outputs] == [[b"end", b"%d" % n] for n in range(4)]
        assert [int(output.split()[0]) for output in outputs] == [1] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_once_takes_one(kind: str) -> None:
    """`serve --once` runs one program for the first of several that come at once, and ends with its status."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(kind, *shell("echo started >&2; read line; exit 6"), options=("--once",)))
        viewers = [stack.enter_context(connecting(server, "--wait", "0")) for _ in range(3)]
        program_of(server)
        time.sleep(0.3)
        assert len(programs_of(server)) == 1
        for viewer in viewers:
            with contextlib.suppress(BrokenPipeError):  # the two that are not served may have ended
                viewer.write(b"\n")
        assert server.wait() == 6
        statuses = sorted(viewer.wait() for viewer in viewers)
        assert statuses == ([6, 125, 125] if kind in SESSIONS else statuses)


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_no_zombie_after_200_short_programs(kind: str) -> None:
    """Programs that end at once are reaped, each of them, and no descriptor stays open."""
    with serving(kind, "true", options=("-q",)) as server:
        port = wait_until(lambda: port_of(server.pid), 10, "a listening port")
        address = f"{kind}://127.0.0.1:{port}"
        before = None
        for number in range(200 if kind == "tcp" else 20):
            if kind == "tcp":
                with raw_peer(address) as peer:
                    assert received(peer) == b""
            else:
                with Running("connect", address, **null()) as viewer:
                    assert viewer.wait() == 0
            if number == 10:
                before = descriptors(server.pid)
        wait_until(lambda: not [each for each in processes() if each.parent == server.pid], 10, "no child")
        assert before is not None
        wait_until(lambda: descriptors(server.pid) <= before, 10, "no more descriptors than after 10 programs")


def port_of(pid: int) -> int | None:
    """Return the TCP port that a process listens on, from the process table: -q says nothing."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    return next((int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes), None)


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_client_delays_nobody(kind: str) -> None:
    """While ten connections say nothing at all, another is served at once."""
    with serving(kind, *shell("echo hello")) as server, contextlib.ExitStack() as stack:
        address = server.address.removeprefix("sock+").replace("sock://", "tcp://")
        for _ in range(10):
            stack.enter_context(raw_peer(address))
        with connecting(server, **null()) as viewer:
            assert viewer.wait(5) == 0
            assert viewer.stdout == b"hello\n"


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_connections_that_are_reset_at_once_harm_nobody(kind: str) -> None:
    """A hundred connections that are reset before or while they are looked at: the service goes on."""
    with serving(kind, "cat", options=("-q",)) as server:
        port = wait_until(lambda: port_of(server.pid), 10, "a listening port")
        for _ in range(100):
            with raw_peer(f"tcp://127.0.0.1:{port}") as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with Running("connect", f"{kind}://127.0.0.1:{port}") as viewer:
            viewer.write(b"still here\n")
            viewer.wait_for_output(b"still here\n")
        wait_until(lambda: not programs_of(server), 10, "the end of every program")
        assert server.process.poll() is None


# ---- under a supervisor


@pytest.mark.parametrize("kind", KINDS)
def test_a_listening_socket_is_taken_over(kind: str) -> None:
    """LISTEN_FDS: the service manager's socket is used, and its real address is said."""
    listening, address = listener(kind)
    code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    code += "os.execv(sys.executable, [sys.executable, '-m', 'sockstream', *sys.argv[2:]])"
    command = [sys.executable, "-c", code, str(listening.fileno())]
    environ = {**os.environ, "LISTEN_FDS": "1"}
    like = f"{kind}://127.0.0.1:1" if listening.family == socket.AF_INET else f"{kind}:///other"
    words = ["serve", "--once", like, "--", *helper("env")]
    with listening, Running(*words, command=command, env=environ, pass_fds=[listening.fileno()]) as server:
        assert server.address == address
        with Running("connect", address, **null()) as viewer:
            assert viewer.wait() == 0
            assert not any(line.startswith(b"LISTEN_") for line in viewer.stdout.splitlines())
        assert server.wait() == 0


def test_a_socket_that_is_taken_over_is_judged_by_where_it_listens() -> None:
    """Raw and open to the network needs --insecure, whatever address was typed."""
    code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    code += "os.execv(sys.executable, [sys.executable, '-m', 'sockstream', *sys.argv[2:]])"
    with socket.create_server(("0.0.0.0", 0)) as listening:
        command = [sys.executable, "-c", code, str(listening.fileno())]
        environ = {**os.environ, "LISTEN_FDS": "1"}
        words = ["serve", "--once", "tcp://127.0.0.1:1", "--", "true"]
        with Running(*words, command=command, env=environ, pass_fds=[listening.fileno()]) as server:
            assert server.wait() == 125
            assert b"--insecure" in server.stderr


def test_a_raw_service_that_stops_takes_nobody_new() -> None:
    """After SIGTERM a program that ignores it goes on, but whoever comes now gets none; a second one ends it all."""
    with Running("serve", "tcp://127.0.0.1:0", "--", "sh", "-c", 'trap "" TERM; echo up; sleep 60') as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as first:
            first.settimeout(limit(10))
            assert first.recv(16) == b"up\n"
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)  # the signal has been handled by then, or the next line proves nothing: it would be served
            with socket.create_connection(("127.0.0.1", port)) as second:
                second.settimeout(1)
                with pytest.raises(TimeoutError):
                    second.recv(16)
                server.process.send_signal(signal.SIGTERM)
                assert server.wait() == 0


@pytest.mark.slow
def test_output_that_is_held_is_told_once() -> None:
    """A process that holds both outputs after the program's end is one line, not one for each of them."""
    with Running("listen", "--once", ":0", **null()) as viewer:
        address = viewer.address
        with Running("run", "--to", address, "--", "sh", "-c", "sleep 60 & exit 4", **null()) as runner:
            assert (runner.wait(), viewer.wait()) == (4, 4)
            assert runner.stderr.count(b"left a process behind") == 1


def test_nohup_keeps_a_service() -> None:
    """A hang-up that was ignored at the start stays ignored; SIGTERM still ends the service."""
    words = ["-c", 'trap "" HUP; exec "$0" -m sockstream serve :0 -- cat', sys.executable]
    with Running(*words, command=["sh"]) as server:
        assert server.address.startswith("sock://127.0.0.1:")
        server.process.send_signal(signal.SIGHUP)
        with Running("connect", server.address, **null()) as viewer:
            assert viewer.wait() == 0
        server.process.terminate()
        assert server.wait() == 0


def listener(kind: str) -> tuple[socket.socket, str]:
    """Return a listening socket, and the sockstream address that it has."""
    if kind.endswith("unix"):
        listening = socket.socket(socket.AF_UNIX)
        path = f"{os.environ['XDG_RUNTIME_DIR']}/managed"
        listening.bind(path)
        listening.listen()
        return listening, f"{kind}://{path}"
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, f"{kind}://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("abstract", [False, True])
def test_readiness_is_told(abstract: bool) -> None:
    """NOTIFY_SOCKET gets READY=1 when the service listens, also at an abstract name; programs do not see it."""
    path = f"{os.environ['XDG_RUNTIME_DIR']}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path}" if abstract else path)
        manager.settimeout(limit(10))
        name = f"@{path}" if abstract else path
        with serving("sock", *helper("env"), env={**os.environ, "NOTIFY_SOCKET": name}) as server:
            assert manager.recv(100) == b"READY=1"
            with connecting(server, "--wait", "0", **null()) as viewer:
                assert viewer.wait() == 0
                assert b"NOTIFY_SOCKET" not in viewer.stdout


# ---- the end of the service


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_ends_the_service(kind: str) -> None:
    """SIGTERM goes to every program, their viewers see their status, and the service ends with 0."""
    program = shell(f"trap 'echo bye; exit 7' TERM; {WAITS}")
    with serving(kind, *program) as server, connecting(server) as first, connecting(server) as second:
        for viewer in first, second:
            viewer.wait_for_output(b"ready\n")
        groups = programs_of(server)
        server.process.send_signal(signal.SIGTERM)
        for viewer in first, second:
            assert viewer.wait() == (7 if kind in SESSIONS else 0)
            assert viewer.stdout == b"ready\nbye\n"
        assert server.wait() == 0
        assert len(groups) == 2
        assert not [pid for group in groups for pid in alive_in_group(group)]


@pytest.mark.parametrize(("name", "status"), [("TERM", 0), ("INT", 130), ("HUP", 129)])
def test_an_idle_service_ends_at_once(name: str, status: int) -> None:
    """With no program running, SIGTERM ends the service with 0, other signals with 128 + their number."""
    with serving("sock", "true") as server:
        assert server.address
        server.process.send_signal(signal.Signals[f"SIG{name}"])
        assert server.wait() == status


def test_signals_to_serve_once_go_to_the_program() -> None:
    """`serve --once` is like `run`: the program gets the signal, and its status is ours."""
    with ends("serve", "sock", shell(f"trap 'exit 8' TERM; {WAITS}")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        end.process.send_signal(signal.SIGTERM)
        assert (viewer.wait(), end.wait()) == (8, 8)


def test_serve_once_that_nobody_came_to_has_no_status() -> None:
    """SIGTERM before anybody came is not a program's success: 143."""
    with serving("sock", "true", options=("--once",)) as server:
        assert server.address
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 143


def test_nobody_new_is_served_while_the_service_ends() -> None:
    """A viewer that comes after SIGTERM, while a program takes its time, gets no program."""
    with serving("sock", *shell(f"trap 'sleep 1; exit 0' TERM; {WAITS}")) as server, connecting(server) as first:
        first.wait_for_output(b"ready\n")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: len(alive_in_group(program_of(server))) > 0, 10, "the program")
        with connecting(server, "--wait", "0") as late:
            assert late.wait() == 125
        assert first.wait() == 0
        assert server.wait() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_service_at_the_same_address_is_refused(kind: str) -> None:
    """A live address is an error that says so, with 125, and the first service is not harmed."""
    with serving(kind, "cat") as server:
        with Running("serve", server.address, "--", "cat") as second:
            assert second.wait() == 125
            assert second.stderr.count(b"\n") <= 2  # raw: also the line about who can reach it
        with connecting(server) as viewer:
            viewer.write(b"text\n")
            viewer.wait_for_output(b"text\n")


def test_the_token_is_made_before_anybody_waits() -> None:
    """The first `serve` of a user makes the token file, readable by that user alone."""
    with serving("sock", "true") as server:
        assert server.address
        assert os.stat(token.default_path()).st_mode & 0o777 == 0o600
