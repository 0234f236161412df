"""What holds for every test: it has directories of its own, and leaves nothing behind.

Rules: a test that leaves a descriptor, thread or child process fails, and the report names what was left; a
skipped test is written to the file that SOCKSTREAM_SKIP_LOG names, for .ci/run.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hypothesis
import pytest

from support import limit, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = ("SOCKSTREAM_TEST_", "SOCKSTREAM_SKIP_LOG")
DROPPED = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")

# No deadline: that would be an upper time bound. The same examples in every run of .ci/run.
hypothesis.settings.register_profile("sockstream", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("sockstream")

# Under nohup, or in the background of a shell, the tests would start with these ignored, and so would all they start.
for signum in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(signum, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_directories() -> Iterator[None]:
    """Give the test a home, configuration and runtime directory, and an environment free of our variables.

    The paths are short, because the path of a Unix socket may have 107 bytes at most.
    """
    before = dict(os.environ)
    base = Path(tempfile.mkdtemp(prefix="sks-", dir="/tmp"))
    _clean_environment()
    for name, directory in ("HOME", "home"), ("XDG_CONFIG_HOME", "config"), ("XDG_RUNTIME_DIR", "run"):
        (base / directory).mkdir(mode=0o700)
        os.environ[name] = str(base / directory)
    yield
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(base)


def _clean_environment() -> None:
    for name in list(os.environ):
        if name in DROPPED or (name.startswith("SOCKSTREAM_") and not name.startswith(KEPT)):
            del os.environ[name]


class Belongings(NamedTuple):
    """What this process owns at one moment, each with a description."""

    descriptors: dict[int, str]
    threads: dict[int, str]
    children: dict[int, str]

    def since(self, before: Belongings) -> list[str]:
        """Say what is here that was not there before."""
        kinds = zip(("descriptor", "thread", "child process"), self, before, strict=True)
        return [
            f"{kind} {number}: {text}"
            for kind, now, then in kinds
            for number, text in now.items()
            if then.get(number) != text
        ]


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


def _threads() -> dict[int, str]:
    return {id(thread): repr(thread) for thread in threading.enumerate()}


def _children() -> dict[int, str]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    own = os.getpid()
    return {each.pid: each.name for each in processes() if each.parent == own}


def _belongings() -> Belongings:
    return Belongings(_descriptors(), _threads(), _children())


@pytest.fixture(autouse=True)
def no_leaks(own_directories: None) -> Iterator[None]:
    """Fail the test that leaves a descriptor, a thread or a child process; children left are killed."""
    before = _belongings()
    yield
    leaks = _belongings().since(before)
    deadline = time.monotonic() + limit(1)
    while leaks and time.monotonic() < deadline:
        gc.collect()  # what only a cycle holds is reported as a ResourceWarning, in the test that made it
        time.sleep(0.01)
        leaks = _belongings().since(before)
    if leaks:
        _end_children(_children().keys() - before.children.keys())
        pytest.fail("the test left behind\n  " + "\n  ".join(leaks), pytrace=False)


def _end_children(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _log_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    log = os.environ.get("SOCKSTREAM_SKIP_LOG")
    if log and report.skipped:
        with open(log, "a") as file:
            file.write(f"{report.nodeid}\t{_skip_reason(report)}\n")


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if hasattr(report, "wasxfail"):
        reason = f"expected to fail: {report.wasxfail}"
    else:
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
    return " ".join(reason.split())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Log a skipped test."""
    _log_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Log a skipped module."""
    _log_skip(report)
