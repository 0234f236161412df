"""A session goes on when its links are broken: every byte arrives once and in order, then the status.

Rules: real ends, with the relay of tests/chaos between them. Over TCP the proof is bound to the address that was
dialled, so only sock+tls:// can be relayed there; over a Unix socket the plain protocol can, and then the relay sees
the frames and strikes beside them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaos.running import Relay
from helper_program import pattern
from support import Running, helper, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIB = 1 << 20
PAIRS = ("serve", "run")
SEVEN = ("sh", "-c", "printf out; printf err >&2; exit 7")
UNIX, TLS = "sock+unix", "sock+tls"


class Ends:
    """A program end and a viewer end, with a relay between them; one of each, made in the right order.

    waits: "serve" (and the viewer is `connect`) or "run" (and the viewer is `listen --once`).
    """

    def __init__(self, stack: ExitStack, pair: str, scheme: str = UNIX) -> None:
        self.stack = stack
        self.pair = pair
        self.scheme = scheme
        self.to_viewer = "up" if pair == "run" else "down"  # the relay's word for it
        self.relay: Relay

    def place(self, name: str) -> str:
        """Return where somebody may wait, without the scheme."""
        return f"{os.environ['XDG_RUNTIME_DIR']}/{name}" if self.scheme == UNIX else "127.0.0.1:0"

    def start(
        self,
        program: Sequence[str],
        *relay_options: object,
        grace: str = "60",
        viewer: Sequence[str] = (),
        **popen_options: object,
    ) -> tuple[Running, Running]:
        """Start all three and return the viewer end and the program end; `popen_options` are the viewer's."""
        waiting = f"{self.scheme}://{self.place('end')}"
        if self.pair == "serve":
            program_end = self._enter(Running("serve", "--once", "--grace", grace, waiting, "--", *program))
            front = self._relay(program_end.address, relay_options)
            return self._enter(Running("connect", *viewer, front, **popen_options)), program_end
        viewer_end = self._enter(Running("listen", "--once", *viewer, waiting, **popen_options))
        front = self._relay(viewer_end.address, relay_options)
        return viewer_end, self._enter(Running("run", "--grace", grace, "--to", front, "--", *program))

    def _relay(self, address: str, options: Sequence[object]) -> str:
        target = address.partition("://")[2]
        self.relay = self.stack.enter_context(Relay(self.place("front"), target, *options))
        return f"{self.scheme}://{self.relay.address}"

    def _enter(self, running: Running) -> Running:
        self.stack.enter_context(running)
        if running.process.stdout is not None:
            self.stack.enter_context(running.process.stdout)
        return running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as entered:
        yield entered


def own_words(end: Running) -> list[bytes]:
    """Return what the command itself has said, without the address and who broke off before saying his name."""
    lines = [line for line in end.stderr.splitlines() if line.startswith(b"sockstream: ")]
    return [line for line in lines if not re.search(rb": listening on |: refused: the (other end|connection) ", line)]


def check_end(viewer: Running, program: Running, status: int = 7) -> None:
    """Both ends report the program's status, and neither has anything to complain about."""
    assert (viewer.wait(60), program.wait(60)) == (status, status), f"{viewer} {program}"
    assert (own_words(viewer), own_words(program)) == ([], [])


def peak_memory(end: Running) -> int:
    """Return the most memory that a command has ever had resident, in bytes."""
    text = Path(f"/proc/{end.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


# ---- while data flows


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scheme", [TLS, UNIX])
@pytest.mark.parametrize(
    ("size", "resets"),
    [
        pytest.param(16 * MIB, 12, id="16MiB"),
        pytest.param(256 * MIB, 100, id="256MiB", marks=pytest.mark.slow),
    ],
)
def test_bulk_through_resets(stack: ExitStack, pair: str, scheme: str, size: int, resets: int, tmp_path: Path) -> None:
    """Random bytes through `cat` and back are the same, although the link is reset again and again, either way."""
    data = os.urandom(size)
    source = tmp_path / "random"
    source.write_bytes(data)
    stdin = stack.enter_context(source.open("rb"))
    ends = Ends(stack, pair, scheme)
    options = ("--after", f"0-{size // resets}", "--times", resets, "--seed", size + resets)
    viewer, program = ends.start(["cat"], *options, stdin=stdin)
    check_end(viewer, program, 0)
    assert sha256(viewer.stdout).digest() == sha256(data).digest()
    assert (ends.relay.strikes, ends.relay.links) == (resets, resets + 1)
    source.unlink()


@pytest.mark.parametrize("pair", PAIRS)
def test_three_streams_through_resets(stack: ExitStack, pair: str, tmp_path: Path) -> None:
    """stdin, stdout and stderr flow at once, each is whole, and the status is right, through resets either way."""
    data = pattern(4 * MIB).replace(b"\n", b" ")  # so that a line of our own would be seen
    source = tmp_path / "random"
    source.write_bytes(data)
    stdin = stack.enter_context(source.open("rb"))
    ends = Ends(stack, pair)
    viewer, program = ends.start(
        ("sh", "-c", "tee /dev/stderr; exit 7"), "--after", "0-500000", "--times", 10, stdin=stdin
    )
    assert (viewer.wait(60), program.wait(60)) == (7, 7)
    assert viewer.stdout == data
    assert re.sub(rb"^sockstream: listening on \S+\n", b"", viewer.stderr) == data
    assert ends.relay.strikes == 10


@pytest.mark.parametrize("pair", PAIRS)
def test_small_writes_through_resets(stack: ExitStack, pair: str) -> None:
    """Lines that come one by one are all there, in order, when the link breaks every few hundred bytes."""
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.005; done; exit 7"
    ends = Ends(stack, pair)
    viewer, program = ends.start(
        ("sh", "-c", script), "--after", "250-450", "--direction", ends.to_viewer, "--times", 12
    )
    check_end(viewer, program)
    assert viewer.stdout.split() == [b"%d" % number for number in range(1, 301)]
    assert ends.relay.strikes == 12


# ---- in the handshake and at the end


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("count", [0, 1, 48, 49, 81, 90, 120, 160])
def test_a_cut_before_the_start(stack: ExitStack, pair: str, direction: str, count: int) -> None:
    """A first link that breaks in preamble, HELLO, proof or OPEN is dialled again; the program runs once."""
    ends = Ends(stack, pair)
    viewer, program = ends.start(SEVEN, "--after", count, "--direction", direction, "--times", 1)
    check_end_of_seven(viewer, program)
    assert (ends.relay.strikes, ends.relay.links) == (1, 2)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("before", [True, False])
def test_a_cut_beside_open(stack: ExitStack, pair: str, before: bool) -> None:
    """The waiting end's OPEN is lost, or the last that the dialling end hears: the program runs once."""
    ends = Ends(stack, pair)
    options = ("--before" if before else "--behind", "OPEN", "--direction", "down", "--times", 1)
    viewer, program = ends.start(SEVEN, *options)
    check_end_of_seven(viewer, program)
    assert ends.relay.strikes == 1


@pytest.mark.parametrize("pair", PAIRS)
def test_cuts_in_many_handshakes(stack: ExitStack, pair: str) -> None:
    """Once a session stands, any number of links may break before they carry anything."""
    ends = Ends(stack, pair)
    viewer, program = ends.start(
        ("sh", "-c", "echo begun; read line; echo $line; exit 7"), "--after", "0-230", "--skip", 1, "--times", 5
    )
    viewer.wait_for_output(b"begun\n")
    ends.relay.command("reset")
    wait_until(lambda: ends.relay.strikes == 6, 30, "5 broken links")
    viewer.write(b"through\n")
    check_end(viewer, program)
    assert viewer.stdout == b"begun\nthrough\n"


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    ("where", "frame", "by_program"),
    [
        ("--before", "EXIT", True),
        ("--behind", "EXIT", True),
        ("--before", "END", True),
        ("--behind", "END", True),  # what the viewer answers, the last TAKEN, is lost
        # The viewer then waits 5 s for it, since its own last TAKEN might be what is lost.
        pytest.param("--before", "GOAWAY", True, marks=pytest.mark.slow),
        ("--before", "STARTED", True),
        ("--before", "TAKEN", False),
    ],
)
def test_a_cut_at_the_end(stack: ExitStack, pair: str, where: str, frame: str, by_program: bool) -> None:
    """Whatever the last moments of a link lose, both ends come to the program's status."""
    ends = Ends(stack, pair)
    direction = ends.to_viewer if by_program else {"up": "down", "down": "up"}[ends.to_viewer]
    viewer, program = ends.start(SEVEN, where, frame, "--direction", direction, "--times", 1)
    check_end_of_seven(viewer, program)
    assert ends.relay.strikes == 1


@pytest.mark.slow
def test_a_goodbye_that_never_comes(stack: ExitStack) -> None:
    """A viewer that has it all waits 5 s for the goodbye, however often the link came back, and not for the grace."""
    ends = Ends(stack, "run")
    options = ("--action", "reset-client", "--behind", "END", "--before", "GOAWAY", "--direction", "up", "--times", 2)
    viewer, program = ends.start(SEVEN, *options)
    check_end_of_seven(viewer, program)
    assert ends.relay.strikes == 2


def check_end_of_seven(viewer: Running, program: Running) -> None:
    """The program SEVEN has run once and everything of it has come."""
    assert (viewer.wait(), program.wait()) == (7, 7), f"{viewer} {program}"
    assert viewer.stdout == b"out"
    assert re.sub(rb"^sockstream: .*\n", b"", viewer.stderr, flags=re.MULTILINE) == b"err"
    assert (own_words(viewer), own_words(program)) == ([], [])


def test_a_dead_end_is_not_dialled_in_a_hurry(stack: ExitStack) -> None:
    """A relay that takes connections and drops them, as a forwarded port does, is dialled with growing pauses."""
    ends = Ends(stack, "run")
    viewer, _ = ends.start(("sh", "-c", "echo begun; exec sleep 60"), "--after", 0, "--skip", 1, grace="3")
    viewer.wait_for_output(b"begun\n")
    ends.relay.command("reset")
    time.sleep(2)
    assert 2 < ends.relay.links < 40


# ---- when the link stays away


@pytest.mark.parametrize("pair", PAIRS)
def test_the_grace_ends(stack: ExitStack, pair: str) -> None:
    """Without a link for the grace the program gets HUP, its status is the command's, and the unconfirmed is named."""
    ends = Ends(stack, pair)
    write = "head -c 500000 /dev/zero; echo written >&2; exec sleep 60"
    viewer, program = ends.start(("sh", "-c", write), grace="1", stdout=subprocess.PIPE)
    viewer.wait_for_message(b"written\n")
    ends.relay.command("refuse")
    ends.relay.command("reset")
    assert program.wait() == 128 + signal.SIGHUP
    (line,) = own_words(program)
    wanted = rb"sockstream: no link for 1 s: ending sh \((\d+) bytes of stdout( and 8 bytes of stderr)? not confirmed\)"
    found = re.fullmatch(wanted, line)
    assert found is not None, line
    assert 300_000 < int(found[1]) <= 500_000  # the reader of our pipe has read nothing
    viewer.wait_for_message(b"sockstream: sh: broken off: no link for 1 s\n")
    assert viewer.process.stdout is not None
    assert viewer.process.stdout.read() == bytes(500_000)  # what has come is written, however late it is read
    assert viewer.wait() == 125


@pytest.mark.slow
def test_hup_term_kill(stack: ExitStack) -> None:
    """A program that ignores HUP and TERM is killed in the end, when the grace is over."""
    ends = Ends(stack, "run")
    viewer, program = ends.start(helper("ignore-term"), grace="0.5")
    viewer.wait_for_output(b"ignoring\n")
    ends.relay.command("refuse")
    ends.relay.command("reset")
    assert program.wait(30) == 128 + signal.SIGKILL
    assert viewer.wait() == 125


def end_without_a_link(ends: Ends, directory: Path, grace: str) -> tuple[Running, Running]:
    """Start a program that writes, break the link, and let it write more and end while there is none."""
    script = "echo one; while [ ! -e go ]; do sleep 0.01; done; echo two; echo three >&2; exec 2>gone; exit 7"
    program = ("sh", "-c", f"cd '{directory}'; {script}")
    viewer, program_end = ends.start(program, grace=grace)
    viewer.wait_for_output(b"one\n")
    ends.relay.command("refuse")
    ends.relay.command("reset")
    directory.joinpath("go").touch()
    wait_until(directory.joinpath("gone").exists, 10, "the end of the program")
    return viewer, program_end


@pytest.mark.parametrize("pair", PAIRS)
def test_the_program_ends_while_the_link_is_down(stack: ExitStack, pair: str, tmp_path: Path) -> None:
    """What it has written and its status arrive when the link is back."""
    ends = Ends(stack, pair)
    viewer, program = end_without_a_link(ends, tmp_path, "60")
    ends.relay.command("accept")
    assert (viewer.wait(), program.wait()) == (7, 7)
    assert viewer.stdout == b"one\ntwo\n"
    assert viewer.stderr.endswith(b"three\n")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_program_ends_and_the_link_stays_down(stack: ExitStack, pair: str, tmp_path: Path) -> None:
    """After the grace the program end says what nobody has confirmed, and ends with the program's status."""
    ends = Ends(stack, pair)
    viewer, program = end_without_a_link(ends, tmp_path, "1")
    assert (viewer.wait(), program.wait()) == (125, 7)
    (line,) = own_words(program)
    wanted = rb"sockstream: no link for 1 s \((4|8) bytes of stdout and 6 bytes of stderr not confirmed\)"
    assert re.fullmatch(wanted, line), line  # 8: `one` was taken, but the link broke before that was said


# ---- other viewers


@pytest.mark.parametrize("scheme", [UNIX, TLS, "sock"])
def test_a_new_listen_adopts_the_program(stack: ExitStack, scheme: str) -> None:
    """`listen` is killed and started again at its address: the new one goes on and says what is missing."""
    ends = Ends(stack, "run", scheme)
    first = stack.enter_context(Running("listen", "--once", f"{scheme}://{ends.place('end')}"))
    script = "head -c 3000 /dev/zero; echo one >&2; read line; echo got $line; exit 7"
    program = stack.enter_context(Running("run", "--grace", "30", "--to", first.address, "--", "sh", "-c", script))
    first.wait_for_message(b"one\n")
    wait_until(lambda: len(first.stdout) == 3000, 10, "the first output")
    first.process.kill()
    first.process.wait()
    second = stack.enter_context(Running("listen", "--once", first.address))
    second.write(b"something\n")
    assert (second.wait(), program.wait()) == (7, 7), f"{second} {program}"
    missing = [int(line.split()[1]) for line in own_words(second) if b"bytes of stdout are missing" in line]
    shown = second.stdout.removesuffix(b"got something\n")
    assert sum(missing) + len(shown) == 3000, second  # what had been taken when the link broke, if that was said
    assert own_words(program) == []


def test_a_new_serve_has_not_got_the_program(stack: ExitStack) -> None:
    """A `serve` that was killed and started again has not got the program: the viewer is told, and ends with 125."""
    address = f"{UNIX}://{os.environ['XDG_RUNTIME_DIR']}/end"
    first = stack.enter_context(Running("serve", address, "--", "cat"))
    viewer = stack.enter_context(Running("connect", first.address))
    viewer.write(b"hello\n")
    viewer.wait_for_output(b"hello\n")
    first.process.kill()
    first.process.wait()
    stack.enter_context(Running("serve", address, "--", "cat"))
    assert viewer.wait() == 125
    (line,) = own_words(viewer)
    assert b"that program is not here any more" in line


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scheme", [UNIX, TLS])
def test_a_newer_link_takes_over(stack: ExitStack, pair: str, scheme: str) -> None:
    """The dialling end has lost its link, the waiting end does not know it yet: the new one takes the session over."""
    ends = Ends(stack, pair, scheme)
    viewer, program = ends.start(("sh", "-c", "echo one; read line; echo got $line; exit 7"))
    viewer.wait_for_output(b"one\n")
    ends.relay.command("reset-client")
    wait_until(lambda: ends.relay.links == 2, 10, "a new link")
    viewer.write(b"something\n")
    check_end(viewer, program)
    assert viewer.stdout == b"one\ngot something\n"


# ---- silence


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "scheme"), [("run", UNIX), ("serve", TLS)])
def test_a_silent_peer_is_noticed(stack: ExitStack, pair: str, scheme: str) -> None:
    """A link that carries nothing any more is given up after 15 s, and the session goes on over a new one."""
    ends = Ends(stack, pair, scheme)
    viewer, program = ends.start(("sh", "-c", "echo one; read line; echo got $line; exit 7"))
    viewer.wait_for_output(b"one\n")
    ends.relay.command("silence")
    viewer.write(b"something\n")
    begin = time.monotonic()
    wait_until(lambda: ends.relay.links == 2, 17, "a new link")
    assert time.monotonic() - begin > 9  # it may have been silent for 5 s before
    check_end(viewer, program)
    assert viewer.stdout == b"one\ngot something\n"


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "stopped"), [("run", "viewer"), ("run", "program"), ("serve", "viewer")])
def test_an_end_that_was_stopped_goes_on(stack: ExitStack, pair: str, stopped: str) -> None:
    """Either end may be stopped (a suspended laptop) for longer than a silent link lives: the session goes on."""
    ends = Ends(stack, pair)
    script = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo $i; sleep 0.01; done; read line; echo $line; exit 7"
    viewer, program = ends.start(("sh", "-c", script))
    viewer.wait_for_output(b"10\n")
    end = {"viewer": viewer, "program": program}[stopped]
    os.kill(end.pid, signal.SIGSTOP)
    time.sleep(17)
    os.kill(end.pid, signal.SIGCONT)
    assert viewer.process.poll() is None, viewer
    viewer.write(b"done\n")
    check_end(viewer, program)
    assert viewer.stdout == b"".join(b"%d\n" % number for number in range(1, 1001)) + b"done\n"


# ---- memory


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scheme", [UNIX, TLS])
def test_memory_is_bounded_when_the_reader_stops(stack: ExitStack, pair: str, scheme: str) -> None:
    """64 MiB for a reader that does not read: neither end ever holds more than a window; then all of it comes."""
    ends = Ends(stack, pair, scheme)
    viewer, program = ends.start(helper("burst", 64 * MIB), "--after", "0-900000", "--times", 5, stdout=subprocess.PIPE)
    assert viewer.process.stdout is not None
    wait_until(lambda: is_still(viewer, program), 30, "ends that wait")
    assert max(peak_memory(viewer), peak_memory(program)) < 60 * MIB
    received = viewer.process.stdout.read(63 * MIB)
    assert max(peak_memory(viewer), peak_memory(program)) < 60 * MIB
    received += viewer.process.stdout.read()
    viewer.process.stdout.close()
    assert (viewer.wait(), program.wait()) == (0, 0)
    assert sha256(received).digest() == sha256(pattern(64 * MIB)).digest()


def is_still(*ends: Running) -> bool:
    """Whether none of them uses the processor for a quarter of a second."""

    def used() -> list[list[str]]:
        return [Path(f"/proc/{end.pid}/stat").read_text().rpartition(")")[2].split()[11:13] for end in ends]

    before = used()
    time.sleep(0.25)
    return used() == before
