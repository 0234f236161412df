"""The second implementation talks to the package: to its core, and to each of its commands.

Rules: `independent.py` is a real process at one end; at the other is a real command, or the core on a Unix socket. The
cuts are made by independent.py, which breaks the link hard after so many bytes: the numbers lie inside the first
frames, inside the stream and near the end.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from certificates import make_authority
from ends import shell, waiting_address
from helper_program import pattern
from interop.core_end import CoreEnd
from pair import STATUS, peer
from sockstream import records
from sockstream.records import Kind
from sockstream.session import Session
from support import Running, helper, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INDEPENDENT = Path(__file__).with_name("independent.py")
WAYS = ("run", "listen", "serve", "connect")  # the command; the second implementation is the other end
VIEWERS = ("run", "serve")  # ... of these, a viewer
NO_CUTS, CUTS = (), (1, 70, 300_000, 2_000_000, 5_000_000)
SIZE = 5_000_000
BOTH_AND_SEVEN = shell("tee /dev/stderr; exit 7")
OWN_WORDS = re.compile(rb"(?:sockstream|independent): [^\n]*\n")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """Give both ends the same token: the commands in the environment, independent.py in a file."""
    key = os.urandom(32)
    monkeypatch.setenv("SOCKSTREAM_TOKEN", key.hex())
    (tmp_path / "token").write_text(key.hex() + "\n")
    return key


def independent(tmp_path: Path, kind: str, *args: str, cuts: Sequence[int] = (), **options: Any) -> Running:
    """Start the second implementation."""
    command = [sys.executable, str(INDEPENDENT), kind, "--token-file", str(tmp_path / "token")]
    cut = ["--cut", ",".join(map(str, cuts))] if cuts else []
    return Running(*cut, *args, command=command, **options)


def waiting(tmp_path: Path, address: str) -> list[str]:
    """Return the options with which the second implementation waits."""
    certificate = []
    if address.startswith("sock+tls"):
        _authority, cert, key = make_authority(tmp_path)
        certificate = ["--cert", cert, "--key", key]
    return ["--wait", address, *certificate]


def address_of(end: Running, asked: str) -> str:
    """Return where a waiting independent.py can be reached."""
    end.wait_for_message(b"independent: listening on ")
    scheme, _, place = asked.partition("://")
    found = re.search(rb"listening on \('127.0.0.1', (\d+)\)", end.stderr)
    return f"{scheme}://127.0.0.1:{found[1].decode()}" if found else f"{scheme}://{place}"


@contextlib.contextmanager
def ends(
    tmp_path: Path,
    way: str,
    kind: str,
    program: Sequence[str],
    *,
    cuts: Sequence[int] = (),
    viewer_stdio: dict[str, Any] | None = None,
) -> Iterator[tuple[Running, Running]]:
    """Start a command and the second implementation at its other end; yield viewer end and program end."""
    stdio = viewer_stdio or {}
    address, argv = waiting_address(kind), ["--", *program]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        if way == "listen":
            viewer = enter(Running("listen", "--once", address, **stdio))
            end = enter(independent(tmp_path, "program", "--dial", viewer.address, *argv, cuts=cuts))
        elif way == "serve":
            end = enter(Running("serve", "--once", address, *argv))
            viewer = enter(independent(tmp_path, "viewer", "--dial", end.address, cuts=cuts, **stdio))
        elif way == "run":
            wait = waiting(tmp_path, address)
            viewer = enter(independent(tmp_path, "viewer", *wait, cuts=cuts, **stdio))
            end = enter(Running("run", "--to", address_of(viewer, address), *argv))
        else:
            wait = waiting(tmp_path, address)
            end = enter(independent(tmp_path, "program", *wait, *argv, cuts=cuts))
            viewer = enter(Running("connect", address_of(end, address), **stdio))
        yield viewer, end


def check_status(viewer: Running, end: Running, status: int) -> None:
    """Both ends end with this status."""
    both = (viewer.process, end.process)
    with contextlib.suppress(AssertionError):  # the one below says more
        wait_until(lambda: None not in [each.poll() for each in both], 40, "both ends")
    assert [each.poll() for each in both] == [status, status], f"{viewer}\n{end}"


def check_exchange(tmp_path: Path, way: str, kind: str, cuts: Sequence[int], size: int = SIZE) -> None:
    """Send bytes through a program that writes them to both outputs; all arrive, and so does status 7."""
    data = pattern(size, seed=size)
    (tmp_path / "input").write_bytes(data)
    with (
        open(tmp_path / "input", "rb") as file,
        ends(tmp_path, way, kind, BOTH_AND_SEVEN, cuts=cuts, viewer_stdio={"stdin": file}) as (viewer, end),
    ):
        check_status(viewer, end, 7)
        assert viewer.stdout == data
        assert OWN_WORDS.sub(b"", viewer.stderr) == data
        ours = viewer if way in VIEWERS else end
        assert ours.stderr.count(b"independent: cut\n") == len(cuts)


# ---- the commands


@pytest.mark.parametrize(
    ("kind", "cuts"),
    [
        pytest.param("sock", NO_CUTS, id="sock-whole"),
        pytest.param("sock", CUTS, id="sock-cut"),
        pytest.param("sock+unix", NO_CUTS, id="unix-whole", marks=pytest.mark.slow),
        pytest.param("sock+unix", CUTS, id="unix-cut"),
        pytest.param("sock+tls", NO_CUTS, id="tls-whole", marks=pytest.mark.slow),
        pytest.param("sock+tls", CUTS, id="tls-cut"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_every_byte_and_the_status_arrive(tmp_path: Path, way: str, kind: str, cuts: Sequence[int]) -> None:
    """5 MB go in, come out of both outputs once and in order, and both ends end with 7; broken links change nothing."""
    check_exchange(tmp_path, way, kind, cuts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sock", "sock+unix", "sock+tls"])
@pytest.mark.parametrize("way", WAYS)
def test_many_cuts(tmp_path: Path, way: str, kind: str) -> None:
    """Forty broken links in one session lose nothing and repeat nothing."""
    check_exchange(tmp_path, way, kind, [100_000] * 40)


def check_short(tmp_path: Path, way: str, cuts: Sequence[int]) -> None:
    """Run a program that says little through broken links; nothing is lost, and its status is known at both ends."""
    program = shell("echo out; echo err >&2; exit 7")
    with ends(tmp_path, way, "sock", program, cuts=cuts, viewer_stdio={"stdin": subprocess.DEVNULL}) as (viewer, end):
        check_status(viewer, end, 7)
        assert (viewer.stdout, OWN_WORDS.sub(b"", viewer.stderr)) == (b"out\n", b"err\n")


@pytest.mark.parametrize("way", WAYS)
def test_cuts_at_the_begin_of_every_link(tmp_path: Path, way: str) -> None:
    """Twenty links that are broken as soon as they stand are no harm to the one that comes after."""
    check_short(tmp_path, way, [1] * 20)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_cut_anywhere(tmp_path: Path, way: str) -> None:
    """A short session ends well wherever its link is broken, between END and the last GOAWAY too."""
    for number in range(16, 400, 16):  # the frames at the end have 16 bytes
        check_short(tmp_path, way, [number])


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_dies_of_a_signal(tmp_path: Path, way: str) -> None:
    """Both ends end with 128 + 15 when SIGTERM ends the program, also through a broken link."""
    with ends(tmp_path, way, "sock", shell("kill -TERM $$"), cuts=[1]) as (viewer, end):
        check_status(viewer, end, 143)


@pytest.mark.parametrize(
    ("way", "number"),
    [*((way, signal.SIGTERM) for way in VIEWERS), *((way, signal.SIGINT) for way in WAYS)],
)
def test_a_signal_at_the_viewer_reaches_the_program(tmp_path: Path, way: str, number: signal.Signals) -> None:
    """The viewer's signal is the program's, and the status says so."""
    with ends(tmp_path, way, "sock", shell("echo ready; exec sleep 60")) as (viewer, end):
        viewer.wait_for_output(b"ready\n")
        viewer.process.send_signal(number)
        check_status(viewer, end, 128 + number)


@pytest.mark.parametrize("way", WAYS)
def test_each_line_arrives_at_once(tmp_path: Path, way: str) -> None:
    """A line is answered while stdin stays open, and the end of stdin ends the program."""
    with ends(tmp_path, way, "sock", helper("lines-in")) as (viewer, end):
        for line in (b"one\n", b"two\n"):
            viewer.write(line)
            viewer.wait_for_output(b"got " + line)
        viewer.close_stdin()
        check_status(viewer, end, 0)
        assert viewer.stdout == b"got one\ngot two\n"


@pytest.mark.parametrize(
    "cuts", [pytest.param((), id="whole"), pytest.param((500_000,), id="cut", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_closed_output_stops_the_program(tmp_path: Path, way: str, cuts: Sequence[int]) -> None:
    """When the viewer's stdout is closed, STOP makes of it a SIGPIPE for the program."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb") as output,
        ends(tmp_path, way, "sock", helper("flood"), cuts=cuts, viewer_stdio={"stdout": writing}) as (viewer, end),
    ):
        os.close(writing)
        assert output.read(1_000_000) == pattern(1_000_000)
        output.close()
        check_status(viewer, end, 141)


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_wants_no_input(tmp_path: Path, way: str) -> None:
    """Input that the program never reads is no obstacle to its end."""
    (tmp_path / "input").write_bytes(bytes(SIZE))
    with (
        open(tmp_path / "input", "rb") as file,
        ends(tmp_path, way, "sock", shell("exec <&-; echo done"), viewer_stdio={"stdin": file}) as (viewer, end),
    ):
        check_status(viewer, end, 0)
        assert viewer.stdout == b"done\n"


@pytest.mark.parametrize("way", WAYS)
def test_another_token_is_refused(tmp_path: Path, way: str) -> None:
    """Where the tokens differ, the dialling end says so and gives up; nothing of the program is seen."""
    (tmp_path / "token").write_text("00" * 32)
    with ends(tmp_path, way, "sock", ["echo", "secret"]) as (viewer, end):
        dialler = viewer if way in ("serve", "connect") else end
        dialler.wait()
        assert b"another token" in dialler.stderr or b"wrong token" in dialler.stderr, str(dialler)
        assert viewer.stdout == b""


# ---- the core


def core_session(kind: Kind) -> Session:
    """Return a new session with an id of its own."""
    return Session(peer(kind, session=os.urandom(16)))


class Echo:
    """A program in this process: it writes what it reads to both outputs, and ends with status 7."""

    def __init__(self, core: CoreEnd) -> None:
        self.core = core
        self.written = 0
        self.ended = False

    def work(self) -> bool:
        """Go on; answers whether the peer has taken everything."""
        application, session = self.core.application, self.core.application.session
        if data := bytes(application.received[1][self.written :]):
            self.written += len(data)
            session.write(2, data)
            session.write(3, data)
        if application.finished and not self.ended:
            self.ended = True
            session.finish(2)
            session.finish(3)
            session.send(records.Exited(STATUS))
            session.end(STATUS)
        return bool(application.completed)


@pytest.mark.parametrize("cuts", [NO_CUTS, CUTS], ids=["whole", "cut"])
@pytest.mark.parametrize("dials", [True, False], ids=["dials", "waits"])
def test_a_viewer_and_a_program_of_the_core(tmp_path: Path, token: bytes, dials: bool, cuts: Sequence[int]) -> None:
    """The core as program: both outputs of 5 MB arrive at an independent viewer, with status 7."""
    path, data = f"{os.environ['XDG_RUNTIME_DIR']}/core", pattern(SIZE)
    (tmp_path / "input").write_bytes(data)
    core = CoreEnd(core_session(Kind.PROGRAM), path, token, dials=dials)
    side = ["--wait" if dials else "--dial", f"sock+unix://{path}"]
    with (
        open(tmp_path / "input", "rb") as file,
        independent(tmp_path, "viewer", *side, cuts=cuts, stdin=file) as viewer,
    ):
        core.serve(Echo(core).work)
        assert viewer.wait() == 7
        assert (viewer.stdout, OWN_WORDS.sub(b"", viewer.stderr)) == (data, data)
    assert (core.links, core.application.opened) == (len(cuts) + 1, [False] + [True] * len(cuts))


@pytest.mark.parametrize("cuts", [NO_CUTS, CUTS], ids=["whole", "cut"])
@pytest.mark.parametrize("dials", [True, False], ids=["dials", "waits"])
def test_a_program_and_a_viewer_of_the_core(tmp_path: Path, token: bytes, dials: bool, cuts: Sequence[int]) -> None:
    """The core as viewer: an independent program gets 5 MB, returns them on both outputs, and ends with 7."""
    path, data = f"{os.environ['XDG_RUNTIME_DIR']}/core", pattern(SIZE)
    core = CoreEnd(core_session(Kind.VIEWER), path, token, dials=dials)
    core.application.session.write(1, data)
    core.application.session.finish(1)
    side = ["--wait" if dials else "--dial", f"sock+unix://{path}", "--", *BOTH_AND_SEVEN]
    with independent(tmp_path, "program", *side, cuts=cuts, stdin=subprocess.DEVNULL) as program:
        core.serve(lambda: False)
        assert program.wait() == 7
    application = core.application
    assert (bytes(application.received[2]), bytes(application.received[3])) == (data, data)
    assert [status.exit_code for status in application.completed] == [7]
    assert application.gone == [(6, "")]
    assert (core.links, application.opened) == (len(cuts) + 1, [False] + [True] * len(cuts))


# ---- the second implementation itself


def test_it_is_small_and_stands_alone() -> None:
    """It has at most 300 lines of at most 120 columns, and imports the standard library alone."""
    source = INDEPENDENT.read_text()
    lines = source.splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines)) <= 120
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found.add(node.module.partition(".")[0])
    assert found
    assert found <= sys.stdlib_module_names
    assert not {"importlib", "runpy"} & found
    assert not re.search(r"__import__|\bexec\(|\beval\(", source)


def test_two_of_its_kind_talk(tmp_path: Path) -> None:
    """What the page says is enough for two ends that share no line with the package."""
    address = waiting_address("sock")
    with independent(tmp_path, "viewer", "--wait", address, cuts=CUTS[:3], stdin=subprocess.DEVNULL) as viewer:
        to = address_of(viewer, address)
        with independent(tmp_path, "program", "--dial", to, "--", *helper("both", SIZE), cuts=CUTS[1:]) as program:
            check_status(viewer, program, 0)
        assert (viewer.stdout, OWN_WORDS.sub(b"", viewer.stderr)) == (pattern(SIZE, 1), pattern(SIZE, 2))
