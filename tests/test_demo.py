"""The demonstration: it shows what it says, as it happens, and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from sockstream import demo
from support import SOCKSTREAM, Running, limit, processes, wait_until

ROOT = Path(__file__).parent.parent
ROW = re.compile(r" *(\d+\.\d\d) s  (.{6})  (.{6})  (.*)")
# What is shown, without the times.
ROWS = [
    ("listen", "starts", "sockstream listen --once"),
    ("listen", "stderr", "sockstream: listening on sock+unix://{place}/demo.sock"),
    ("run", "starts", "sockstream run -- ./legacy_report.py {pause}"),
    ("listen", "stdout", "Which month?"),
    ("listen", "stdin", "May"),
    ("listen", "stdout", "Orders in May"),
    *(("listen", "stdout", f"  week {week}    {17 * week}") for week in range(1, 5)),
    ("listen", "stderr", "week 4 is not complete"),
]


@pytest.fixture(autouse=True)
def place() -> Path:
    """Have the demonstration's directory made in one of the test's own, whose path is short, and return that."""
    folder = Path(os.environ["HOME"]).with_name("tmp")
    folder.mkdir()
    os.environ["TMPDIR"] = str(folder)
    return folder


def rows(text: str) -> list[tuple[float, str, str, str]]:
    """Return the rows of a demonstration: seconds, command, stream, text."""
    found = filter(None, map(ROW.fullmatch, text.splitlines()))
    return [(float(row[1]), row[2].strip(), row[3].strip(), row[4]) for row in found]


def wanted(text: str, pause: str) -> list[tuple[str, str, str]]:
    """Return the rows that a demonstration should have, with its own directory put in."""
    found = re.search(r"sock\+unix://(\S+)/demo.sock", text)
    assert found is not None
    return [(name, kind, each.format(place=found[1], pause=pause)) for name, kind, each in ROWS]


def test_it_shows_everything_and_leaves_nothing(place: Path) -> None:
    """Output, question, answer, warning and both statuses are shown; no colours; no file and no token is left."""
    result = subprocess.run([*SOCKSTREAM, "demo", "--seconds", "2"], capture_output=True, text=True, timeout=limit(30))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"sock+unix://{place}/sockstream-demo-" in result.stdout
    *middle, first, second = [row[1:] for row in rows(result.stdout)]
    assert middle == wanted(result.stdout, "0.2")
    assert {first, second} == {("listen", "status", "3"), ("run", "status", "3")}
    assert "\x1b" not in result.stdout
    assert "sockstream connect" in result.stdout
    own = ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")
    assert [path for folder in (place, *(Path(os.environ[name]) for name in own)) for path in folder.iterdir()] == []


def test_lines_come_when_they_are_printed() -> None:
    """The times lie apart as the script's pauses do, in what is shown and in when it is shown."""
    with Running("demo", "--seconds", "3") as shown:
        wait_until(lambda: b"week 1" in shown.stdout, 20, "the first line")
        assert b"week 4" not in shown.stdout
        assert shown.wait() == 0
        times = [seconds for seconds, *_row, text in rows(shown.stdout.decode()) if "week" in text]
    assert len(times) == 5
    assert all(later - earlier > 0.3 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("seconds", ["0", "inf"])
def test_it_takes_ten_seconds_at_most(seconds: str) -> None:
    """However long it is asked for, it comes to its proper end within ten seconds."""
    start = time.monotonic()
    result = subprocess.run([*SOCKSTREAM, "demo", "--seconds", seconds], capture_output=True, timeout=limit(30))
    assert (result.returncode, result.stderr) == (0, b"")
    assert time.monotonic() - start < limit(10)


def test_the_script_is_the_example() -> None:
    """What the demonstration runs is examples/legacy_report.py, to the byte."""
    example = ROOT / "examples/legacy_report.py"
    assert example.read_text() == demo.SCRIPT
    assert os.access(example, os.X_OK)


def test_the_users_own_socket_is_not_touched(tmp_path: Path) -> None:
    """With a viewer on the user's own socket, and a token that is set, neither sees anything of it."""
    environ = {**os.environ, "SOCKSTREAM_TOKEN": "mine", "SOCKSTREAM_ADDRESS": f"{tmp_path}/mine.sock"}
    with Running("listen", env=environ) as viewer:
        assert viewer.address == f"sock+unix://{tmp_path}/mine.sock"
        result = subprocess.run(
            [*SOCKSTREAM, "demo", "--seconds", "0"], env=environ, capture_output=True, timeout=limit(30)
        )
        assert (result.returncode, result.stderr) == (0, b"")
        assert (viewer.stdout, viewer.stderr.count(b"\n")) == (b"", 1)


def test_a_long_temporary_directory(tmp_path: Path) -> None:
    """Where TMPDIR's path is too long for a socket another place is taken."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    command = [*SOCKSTREAM, "demo", "--seconds", "0"]
    result = subprocess.run(command, env={**os.environ, "TMPDIR": str(long)}, capture_output=True, timeout=limit(30))
    assert (result.returncode, result.stderr) == (0, b"")


def started_below(pid: int) -> set[int]:
    """Return the ids of the processes whose parent is that one."""
    return {each.pid for each in processes() if each.parent == pid and each.state != "Z"}


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_it_cleans_up_when_it_is_stopped(signum: int, status: int, place: Path) -> None:
    """Stopped in the middle it ends both commands, removes its directory, and says nothing of a traceback."""
    with Running("demo", "--seconds", "8") as shown:
        shown.wait_for_output(b"Which month? ".rstrip())
        children = started_below(shown.pid)
        assert len(children) == 2
        shown.process.send_signal(signum)
        assert (shown.wait(), shown.stderr) == (status, b"")
        assert children & {each.pid for each in processes()} == set()
        assert list(place.iterdir()) == []


def test_a_command_that_fails_is_told(place: Path) -> None:
    """Where the commands cannot work the demonstration shows why, says so, and ends with 125."""
    code = "import os, sys\nif 'run' in sys.argv[1:2]:\n    os.write(2, b'it is broken\\n')\n    os._exit(1)\n"
    (place / "sitecustomize.py").write_text(code)
    broken = {**os.environ, "PYTHONPATH": str(place)}
    result = subprocess.run([*SOCKSTREAM, "demo"], env=broken, capture_output=True, text=True, timeout=limit(30))
    assert result.returncode == 125
    assert [row[1:] for row in rows(result.stdout)][2:] == [
        ("run", "starts", "sockstream run -- ./legacy_report.py 0.6"),
        ("run", "stderr", "it is broken"),
        ("run", "status", "1"),
    ]
    assert "That is not how it should be" in result.stdout


@pytest.mark.parametrize(("variable", "coloured"), [("TERM=xterm", True), ("TERM=dumb", False), ("NO_COLOR=1", False)])
def test_colours_on_a_terminal_only_where_they_may_be(variable: str, coloured: bool) -> None:
    """On a terminal there are colours, unless it has none or the user wants none."""
    name, _, value = variable.partition("=")
    environ = {**os.environ, "TERM": "xterm", name: value}
    child = pexpect.spawn(sys.executable, [*SOCKSTREAM[1:], "demo", "--seconds", "0"], env=environ, timeout=limit(20))
    shown = child.read()
    child.close()
    assert child.exitstatus == 0
    assert (b"\x1b[" in shown) is coloured


@pytest.mark.slow
def test_make_demo_from_a_fresh_clone(tmp_path: Path) -> None:
    """`make demo` works from a copy of the source with an empty HOME, and shows the demonstration."""
    copy = tmp_path / "clone"
    kept_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, copy, ignore=kept_out)
    assert list(Path(os.environ["HOME"]).iterdir()) == []
    result = subprocess.run(["make", "demo"], cwd=copy, capture_output=True, text=True, timeout=limit(100))
    assert result.returncode == 0, result.stderr
    assert [row[1:] for row in rows(result.stdout)][:-2] == wanted(result.stdout, "0.6")
