"""Nothing is lost and nothing is left, where popular tools lose bytes or leave programs behind.

Each test is an experiment in which at least one of socat, ncat, tcpserver, socket activation and websocketd fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ends import KINDS, RAW, SESSIONS, WAYS, ends, null, over, own_stderr, program_of, shell, waiting_address
from helper_program import AWKWARD, pattern
from support import Running, alive_in_group, helper, limit, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


# ---- what arrives


def test_an_answer_long_after_the_end_of_input() -> None:
    """The client sends and half-closes; the answer, a second later, arrives: over every kind of address."""
    with contextlib.ExitStack() as stack:
        program = helper("echo-late", 1)
        pairs = [stack.enter_context(ends(way, kind, program)) for way in WAYS for kind in KINDS]
        for viewer, _end in pairs:
            viewer.write(b"question\n")
            viewer.close_stdin()
        for viewer, end in pairs:
            assert (viewer.wait(), end.wait()) == (0, 0)
            assert viewer.stdout == b"question\n"


def slow_reader(path: str | Path, delay: float, pause: float = 0.005) -> list[str]:
    """Return a command that copies stdin to a file: nothing for a while, then with a pause every 64 KiB."""
    code = """
import os, sys, time
out = open(sys.argv[1], "wb", buffering=0)
time.sleep(float(sys.argv[2]))
while data := os.read(0, 65536):
    out.write(data)
    time.sleep(float(sys.argv[3]))
"""
    return [sys.executable, "-c", code, str(path), str(delay), str(pause)]


@over(KINDS)
def test_unread_input_does_not_destroy_output(way: str, kind: str, tmp_path: Path) -> None:
    """A program writes 1 MiB and exits, its input unread; a slow reader gets every byte, and no reset."""
    reading, writing = os.pipe()
    with (
        subprocess.Popen(slow_reader(tmp_path / "out", 0.5), stdin=reading) as reader,
        ends(way, kind, helper("unread", MIB), viewer_stdio={"stdout": writing}) as (viewer, end),
    ):
        os.close(reading)
        os.close(writing)
        viewer.write(b"nobody reads this\n" * 3000)
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert reader.wait(limit(20)) == 0
    assert (tmp_path / "out").read_bytes() == pattern(MIB)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RAW)
def test_a_raw_peer_that_reads_late_gets_everything(kind: str) -> None:
    """A raw peer sends what nobody reads, and reads nothing for 8 s after the program has ended: no byte is missing."""
    program = helper("unread", 3 * MIB)
    with Running("serve", "--once", waiting_address(kind), "--", *program) as end, raw_peer(end.address) as peer:
        group = program_of(end)
        peer.sendall(b"nobody reads this\n" * 3000)
        time.sleep(8)
        peer.send(b"nor this\n")
        output = received(peer)
        assert output == pattern(3 * MIB)
        peer.close()
        assert end.wait() == 0
        assert not alive_in_group(group)


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


def bursts(way: str, kind: str, times: int) -> None:
    """Run a 3 MB burst so often, each time over a new pair."""
    wanted = pattern(3_000_000)
    for _ in range(times):
        with ends(way, kind, helper("burst", 3_000_000)) as (viewer, end):
            assert (viewer.wait(), end.wait()) == (0, 0)
            assert viewer.stdout == wanted


@over(KINDS)
def test_a_burst_before_the_exit_arrives(way: str, kind: str) -> None:
    """3 MB written and exit at once: complete, every time of a few."""
    bursts(way, kind, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_burst_before_the_exit_arrives_100_times_of_100(kind: str) -> None:
    """The same a hundred times, dialling and waiting in turns."""
    for way in WAYS:
        bursts(way, kind, 50)


@over(KINDS)
def test_awkward_bytes_and_a_last_line_without_newline(way: str, kind: str) -> None:
    """Every byte value, invalid UTF-8, NULs, terminal escapes, and an unfinished last line are passed as they are."""
    with ends(way, kind, helper("bytes")) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == AWKWARD


def test_awkward_bytes_among_many_programs() -> None:
    """Also where lines get names: nothing but the names, and the newline that was missing, is added."""
    with Running("listen", waiting_address("sock"), stdin=subprocess.DEVNULL) as viewer:
        with Running("run", "--to", viewer.address, "--name", "n", "--", *helper("bytes")) as end:
            assert end.wait() == 0
        viewer.wait_for_message(b"n ended with status 0")
        lines = AWKWARD.split(b"\n")
        assert viewer.stdout == b"".join(b"n| " + line + b"\n" for line in lines)


@over(KINDS)
def test_long_stderr_lines_do_not_stop_anything(way: str, kind: str) -> None:
    """Fifty stderr lines of 5,000 bytes arrive whole, and so does stdout after them."""
    program = shell(f"{' '.join(helper('stderr-lines', 5000, 50))}; echo out")
    with ends(way, kind, program) as (viewer, end):
        assert (viewer.wait(), end.wait()) == (0, 0)
        said = own_stderr((viewer if kind in SESSIONS else end).stderr)
        assert said == b"".join(b"%d".ljust(5002 - len(str(n)), b"x") % n + b"\n" for n in range(50))
        assert viewer.stdout == b"out\n"


@pytest.mark.parametrize("kind", SESSIONS)
def test_an_unread_stderr_does_not_block_stdout(kind: str) -> None:
    """Stderr that nobody reads at the viewer stops the program only where it writes more of it than is kept."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb") as errors,
        ends("serve", kind, helper("both", 200_000), viewer_stdio={"stderr": writing}) as (viewer, end),
    ):
        os.close(writing)
        wait_until(lambda: len(viewer.stdout) == 200_000, 10, "all of stdout")
        assert errors.read() == pattern(200_000, 2)
        assert (viewer.wait(), end.wait()) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_both_ways_at_once(kind: str) -> None:
    """8 MB through `cat`, written as fast as it goes: the same bytes come back."""
    data = pattern(8_000_000, 3)
    with ends("serve", kind, ["cat"]) as (viewer, end):
        viewer.write(data)
        viewer.close_stdin()
        assert (viewer.wait(), end.wait()) == (0, 0)
        assert viewer.stdout == data


# ---- what is left when the viewer is killed

SILENT = {
    "sleeps": ["sleep", "600"],
    "grandchild": shell("sleep 600 & sleep 600"),
    "writes": shell("while :; do echo line; sleep 0.2; done"),
    "floods": ["yes"],
}


@over(KINDS)
def test_no_program_outlives_a_killed_viewer(way: str, kind: str) -> None:
    """15 s after the viewer was killed nothing of the program's group is alive, whether it ever writes or not."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(ends(way, kind, program, options=["--grace", "1"])) for program in SILENT.values()]
        groups = [program_of(end) for _viewer, end in pairs]
        wait_until(lambda: len(alive_in_group(groups[1])) == 3, 10, "a program with two children")
        for viewer, _end in pairs:
            viewer.process.kill()
        wait_until(lambda: not any(map(alive_in_group, groups)), 15, "the end of the groups")
        for _viewer, end in pairs:
            assert end.wait() in (128 + signal.SIGHUP, 128 + signal.SIGPIPE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_not_even_one_that_ignores_signals_outlives_a_killed_viewer(kind: str) -> None:
    """The same for a program that ignores HUP and TERM: the whole ladder is climbed within the 15 s."""
    with ends("run", kind, helper("ignore-term"), options=["--grace", "1"]) as (viewer, end):
        viewer.wait_for_output(b"ignoring\n")
        group = program_of(end)
        viewer.process.kill()
        wait_until(lambda: not alive_in_group(group), 15, "the end of the group")
        assert end.wait() == 128 + signal.SIGKILL


def test_one_way_programs_do_not_outlive_a_killed_viewer() -> None:
    """Also where only the outputs, or only the input, are carried."""
    with contextlib.ExitStack() as stack:
        pairs = [
            stack.enter_context(
                ends("run", kind, ["sleep", "600"], options=["--only", only, "--grace", "1"], stdio=null())
            )
            for kind in KINDS
            for only in ("out", "in")
        ]
        groups = [program_of(end) for _viewer, end in pairs]
        for viewer, _end in pairs:
            viewer.process.kill()
        wait_until(lambda: not any(map(alive_in_group, groups)), 15, "the end of the groups")


@pytest.mark.slow
def test_nor_where_input_waits_that_nobody_reads() -> None:
    """Raw: the viewer is killed while megabytes of its input wait for a program that reads nothing."""
    with open("/dev/zero", "rb") as endless, contextlib.ExitStack() as stack:
        stdin = {"stdin": endless}
        pairs = [stack.enter_context(ends("serve", kind, ["sleep", "600"], viewer_stdio=stdin)) for kind in RAW]
        groups = [program_of(end) for _viewer, end in pairs]
        wait_until(settles(lambda: sum(transferred(viewer.pid) for viewer, _end in pairs)), 10, "full connections")
        for viewer, _end in pairs:
            viewer.process.kill()
        wait_until(lambda: not any(map(alive_in_group, groups)), 15, "the end of the groups")


def test_a_peer_that_only_sends_is_heard_to_its_end(tmp_path: Path) -> None:
    """Raw: what a peer has sent before it closed is the program's, though nobody will see its output."""
    for kind in RAW:
        target = tmp_path / kind
        sends_and_goes(kind, b"a line\n", shell(f"sleep 1; cat >{target}"))
        assert target.read_bytes() == b"a line\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", RAW)
def test_a_slow_program_is_given_all_that_a_gone_peer_sent(kind: str, tmp_path: Path) -> None:
    """Raw: a program that works through megabytes is not ended while it takes more of them."""
    data = pattern(1_500_000)
    sends_and_goes(kind, data, slow_reader(tmp_path / "received", 0, 0.3))
    assert (tmp_path / "received").read_bytes() == data


def sends_and_goes(kind: str, data: bytes, program: list[str]) -> None:
    """Send data to a raw `serve` and close at once; the program's status has to be 0."""
    with Running("serve", "--once", waiting_address(kind), "--", *program) as end:
        with raw_peer(end.address) as peer:
            peer.sendall(data)
        assert end.wait() == 0


def settles(value: Callable[[], int]) -> Callable[[], bool]:
    """Return a predicate that is true once a value has not changed for half a second."""
    seen = [value(), time.monotonic()]

    def settled() -> bool:
        now = value()
        if now != seen[0]:
            seen[:] = now, time.monotonic()
        return time.monotonic() - seen[1] > 0.5

    return settled


def transferred(pid: int) -> int:
    """Return how many bytes a process has read from its files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


@pytest.mark.parametrize("kind", RAW)
def test_a_peer_that_vanishes_with_a_reset_ends_the_program(kind: str) -> None:
    """Raw: a peer that is gone with a reset, which says no end of file, ends the program too."""
    with Running("serve", "--once", waiting_address(kind), "--", *shell("sleep 600 & echo x; wait")) as end:
        with raw_peer(end.address) as peer:
            group = program_of(end)
            if kind == "tcp":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wait_until(lambda: peer.recv(1, socket.MSG_PEEK), 10, "unread output")
        wait_until(lambda: not alive_in_group(group), 15, "the end of the group")
        assert end.wait() == 128 + signal.SIGHUP
