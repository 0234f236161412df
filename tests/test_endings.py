"""How things end, row by row of docs/ending.md: who ends what, and what each side sees.

Rules: the program's group is looked for in the process table when all is over: nothing of it may be alive, and the
`no_leaks` fixture sees to our own children.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time

import pytest

from ends import KINDS, RAW, SESSIONS, WAITS, ends, null, over, own_stderr, program_of, shell, waiting_address
from support import Running, alive_in_group, helper, limit, wait_until

HANGUP = 128 + signal.SIGHUP
PIPE_CLOSED = 128 + signal.SIGPIPE


def gone(group: int, seconds: float = 10) -> None:
    """Wait until nothing of a process group is alive."""
    wait_until(lambda: not alive_in_group(group), seconds, f"the end of the group {group}")


# ---- the program closes something, or ends


@over(SESSIONS)
def test_a_program_may_close_stdout_and_work_on(way: str, kind: str) -> None:
    """A closed stdout ends that channel alone: input and stderr go on, and the status comes at the end."""
    program = shell("echo before; exec >&-; read line; echo $line >&2; exit 5")
    with ends(way, kind, program) as (viewer, end):
        viewer.wait_for_output(b"before\n")
        viewer.write(b"still here\n")
        assert (viewer.wait(), end.wait()) == (5, 5)
        assert own_stderr(viewer.stderr) == b"still here\n"


def test_a_raw_peer_sees_the_end_of_stdout_and_may_go_on() -> None:
    """Raw: the program's closed stdout is a half-close; what the peer sends after it still reaches the program."""
    program = shell("exec >&-; cat >&2; exit 5")
    with Running("serve", "--once", waiting_address("tcp"), "--", *program) as end, raw_peer(end.address) as peer:
        assert peer.recv(1) == b""
        peer.sendall(b"still here\n")
        end.wait_for_message(b"still here\n")
        peer.shutdown(socket.SHUT_WR)
        assert end.wait() == 5


def test_a_raw_half_close_waits_for_both_where_stderr_is_merged() -> None:
    """With --merge-stderr the peer's end of file comes when both outputs are closed."""
    program = shell("echo out; exec >&-; sleep 0.3; echo err >&2")
    with Running("serve", "--once", "--merge-stderr", waiting_address("tcp"), "--", *program) as end:
        with raw_peer(end.address) as peer:
            assert received(peer) == b"out\nerr\n"
        assert end.wait() == 0


def raw_peer(address: str) -> socket.socket:
    """Connect to a raw address as a program that knows nothing of us."""
    if address.startswith("unix"):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(address.removeprefix("unix://"))
    else:
        peer = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    peer.settimeout(limit(20))
    return peer


def received(peer: socket.socket) -> bytes:
    """Return what comes until the end of file."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


@over(SESSIONS)
def test_a_program_that_closes_stdin_stops_the_writer(way: str, kind: str) -> None:
    """Whoever writes to the viewer's stdin gets a closed pipe, and the program goes on undisturbed."""
    with ends(way, kind, shell(f"exec <&-; trap 'exit 4' TERM; {WAITS}")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        with pytest.raises(BrokenPipeError):
            for _ in range(5000):
                viewer.write(b"x" * 1000)
                time.sleep(0.002)
        assert viewer.process.poll() is None
        end.process.send_signal(signal.SIGTERM)
        assert (viewer.wait(), end.wait()) == (4, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_input_nobody_reads_harms_nothing(kind: str) -> None:
    """A program that closes stdin while input without end is under way ends in its own time, with its own status."""
    program = shell("exec <&-; sleep 0.3; echo done; exit 4")
    with (
        open("/dev/zero", "rb") as endless,
        ends("run", kind, program, viewer_stdio={"stdin": endless}) as (viewer, end),
    ):
        assert end.wait() == 4
        assert viewer.wait() == (4 if kind in SESSIONS else 0)
        assert viewer.stdout == b"done\n"


@over(KINDS)
def test_a_reader_that_leaves_gives_the_program_sigpipe(way: str, kind: str) -> None:
    """`listen | head -1`: the program that goes on writing dies of SIGPIPE; both ends say 141."""
    reading, writing = os.pipe()
    with ends(way, kind, ["yes"], viewer_stdio={"stdout": writing}) as (viewer, end):
        os.close(writing)
        group = program_of(end)
        assert os.read(reading, 2) == b"y\n"
        os.close(reading)
        assert viewer.wait() == PIPE_CLOSED
        assert end.wait() in ((PIPE_CLOSED,) if kind in SESSIONS else (PIPE_CLOSED, HANGUP))
        assert viewer.stderr.count(b"\n") == (way == "run")
        gone(group)


def test_a_reader_that_leaves_ends_listen_without_once() -> None:
    """`listen | head` ends when its reader has gone and the last program with it."""
    reading, writing = os.pipe()
    with Running("listen", waiting_address("sock"), stdout=writing, **null()) as viewer:
        os.close(writing)
        with Running("run", "--to", viewer.address, "--", "yes") as end:
            os.read(reading, 2)
            os.close(reading)
            assert (viewer.wait(), end.wait()) == (PIPE_CLOSED, PIPE_CLOSED)


def test_a_reader_that_leaves_before_any_program_ends_listen() -> None:
    """`listen` whose reader goes while nothing is attached has no use any more: 141."""
    reading, writing = os.pipe()
    with Running("listen", waiting_address("sock"), stdout=writing, **null()) as viewer:
        os.close(writing)
        with Running("run", "--to", viewer.address, "--", "echo", "text") as end:
            assert end.wait() == 0
        assert os.read(reading, 100) == b"echo| text\n"
        os.close(reading)
        assert viewer.wait() == PIPE_CLOSED


@over(KINDS)
def test_a_full_disk_at_the_viewer_is_said_once(way: str, kind: str) -> None:
    """Output that cannot be written: one line that says so, 125, and the program is ended; nothing hangs."""
    with open("/dev/full", "wb") as full, ends(way, kind, ["yes"], viewer_stdio={"stdout": full}) as (viewer, end):
        assert viewer.wait() == 125
        assert end.wait() in (PIPE_CLOSED, HANGUP)
        assert viewer.stderr.count(b"No space left on device") == 1


def test_a_full_disk_with_an_end_in_sight_is_125_too() -> None:
    """A program that has ended before the failure was known does not make it a success."""
    with (
        open("/dev/full", "wb") as full,
        ends("run", "sock", ["echo", "x"], viewer_stdio={"stdout": full}) as (viewer, end),
    ):
        assert viewer.wait() == 125
        assert b"cannot write stdout: No space left on device" in viewer.stderr
        assert end.wait() == 0


@pytest.mark.slow
@over(["sock", "tcp"])
def test_a_grandchild_holding_stdout_is_not_waited_for_long(way: str, kind: str) -> None:
    """When only a grandchild holds the outputs, all ends 5 s after the last byte, with a line; it is ended."""
    with ends(way, kind, shell("sleep 600 & echo $$")) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert b"left a process behind that holds its output" in end.stderr
        gone(int(viewer.stdout), 1)


@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_a_grandchild_that_finishes_is_heard_to_its_end(kind: str) -> None:
    """What a grandchild writes after the program's end arrives, if it does not take 5 s."""
    with ends("run", kind, helper("grandchild", 0.5)) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout.endswith(b"grandchild\n")


@over(["sock", "tcp"])
def test_a_grandchild_without_our_pipes_is_ended(way: str, kind: str) -> None:
    """What the program leaves in its group is ended when the program has, at once if it does not object."""
    with ends(way, kind, shell("sleep 600 <&- >&- 2>&- & echo $$")) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        gone(int(viewer.stdout), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sock", "tcp"])
def test_a_grandchild_that_ignores_hup_and_term_is_killed(kind: str) -> None:
    """The ladder goes up to KILL, 10 s after the program's end; the status is the program's."""
    stubborn = "trap '' HUP TERM; exec >&- 2>&- <&-; while :; do sleep 1; done"
    with ends("run", kind, shell(f"({stubborn}) & echo $$; exit 3")) as (viewer, end):
        viewer.wait_for_output(b"\n")
        group, began = int(viewer.stdout), time.monotonic()
        assert alive_in_group(group)
        assert end.wait() == 3
        assert time.monotonic() - began > 9
        assert viewer.wait() == (3 if kind == "sock" else 0)
        gone(group, 1)


# ---- somebody leaves, or is killed


@over(SESSIONS)
def test_a_viewer_that_leaves_ends_the_program_at_once(way: str, kind: str) -> None:
    """A viewer that says goodbye does not make the program wait for the grace of 60 s."""
    with ends(way, kind, shell("sleep 600 & echo ready; wait")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        group = program_of(end)
        viewer.process.terminate()
        assert viewer.wait() == 143
        assert end.wait() == HANGUP
        assert b"the viewer has left" in end.stderr
        gone(group, 1)


@pytest.mark.slow
def test_a_program_that_ignores_hup_and_term_is_killed() -> None:
    """When the viewer has left: HUP, 2 s later TERM, 8 s later KILL."""
    with ends("run", "sock", helper("ignore-term")) as (viewer, end):
        viewer.wait_for_output(b"ignoring\n")
        began = time.monotonic()
        viewer.process.terminate()
        assert end.wait() == 128 + signal.SIGKILL
        assert time.monotonic() - began > 9


@over(KINDS)
def test_a_killed_program_end_closes_the_programs_pipes(way: str, kind: str) -> None:
    """kill -9 of the program end: its program gets end of file on stdin, and SIGPIPE where it writes."""
    with ends(way, kind, shell("cat; echo ready; while echo x; do sleep 0.05; done"), options=["--grace", "1"]) as (
        viewer,
        end,
    ):
        group = program_of(end)
        end.process.kill()
        end.wait()
        gone(group)
        assert viewer.wait() == (125 if kind in SESSIONS else 0)


def test_a_viewer_killed_and_a_program_ended_meanwhile() -> None:
    """A program that ends while the viewer is gone: its own status after the grace, and what nobody has confirmed."""
    with ends("run", "sock", shell("echo ready; sleep 0.5; echo unseen; exit 9"), options=["--grace", "1"]) as (
        viewer,
        end,
    ):
        viewer.wait_for_output(b"ready\n")
        viewer.process.kill()
        viewer.wait()
        assert end.wait() == 9
        # "ready" is confirmed 50 ms after it was taken, which the viewer may not have lived to see.
        assert re.search(rb"no link for 1 s \((7|13) bytes of stdout not confirmed\)\n", end.stderr)


def test_a_stopped_viewer_is_waited_for() -> None:
    """A viewer that is stopped for a moment is no broken link: the program waits, and nothing is lost."""
    with ends("run", "sock", helper("burst", 3_000_000)) as (viewer, end):
        viewer.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        assert end.process.poll() is None
        viewer.process.send_signal(signal.SIGCONT)
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert len(viewer.stdout) == 3_000_000


@pytest.mark.parametrize("kind", RAW)
def test_eof_grace_ends_a_program_after_the_peers_end_of_file(kind: str) -> None:
    """Raw, --eof-grace: a program that goes on for longer than that after its input's end is ended."""
    options = ["--once", "--eof-grace", "0.5"]
    with (
        Running("serve", *options, waiting_address(kind), "--", *shell(WAITS)) as end,
        raw_peer(end.address) as peer,
    ):
        assert peer.recv(6) == b"ready\n"
        peer.shutdown(socket.SHUT_WR)
        assert end.wait() == HANGUP


@pytest.mark.slow
@pytest.mark.parametrize("kind", RAW)
def test_a_raw_half_close_alone_ends_nothing(kind: str) -> None:
    """Raw: a peer that has only ended its input is waited for, though the program is silent for long."""
    with Running("serve", "--once", waiting_address(kind), "--", *shell("cat; sleep 5; echo late")) as end:
        with raw_peer(end.address) as peer:
            peer.shutdown(socket.SHUT_WR)
            assert received(peer) == b"late\n"
        assert end.wait() == 0


# ---- nothing is left


@over(KINDS)
def test_nothing_of_the_group_is_left_after_an_ordinary_end(way: str, kind: str) -> None:
    """Neither the program nor what it started in its group is alive when both ends are done."""
    left = "(sleep 600; sleep 600) >/dev/null 2>&1 &"
    with ends(way, kind, shell(f"{left} {left} read line; exit 2")) as (viewer, end):
        group = program_of(end)
        wait_until(lambda: len(alive_in_group(group)) == 5, 10, "a program, and two children with a child each")
        viewer.write(b"go\n")
        assert end.wait() == 2
        assert viewer.wait() == (2 if kind in SESSIONS else 0)
        gone(group, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_socket_file_is_removed(kind: str) -> None:
    """A waiting end leaves no socket file behind, whichever way it ends."""
    runtime = os.environ["XDG_RUNTIME_DIR"]
    with ends("serve", kind, ["true"], viewer_stdio={"stdin": subprocess.DEVNULL}) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
    with Running("listen", waiting_address(kind)) as viewer:
        assert viewer.address
        viewer.process.terminate()
        assert viewer.wait() == 143
    assert not [name for name in os.listdir(runtime) if not name.endswith(".lock")]
