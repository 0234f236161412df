"""The checks that hold for every test find what they look for.

A pytest of its own runs the tests in FAULTY, with this folder's conftest.py.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from support import limit

TESTS = Path(__file__).parent
FAULTY = """
import os, subprocess, sys, threading, warnings
import pytest

kept = []

def test_clean(): pass
def test_descriptor(): os.open("/dev/null", os.O_RDONLY)
def test_reused_descriptor():
    os.close(9)
    os.dup2(os.open("/dev/zero", os.O_RDONLY), 9)
def test_thread(): threading.Thread(target=threading.Event().wait, daemon=True).start()
def test_child(): kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
def test_zombie(): kept.append(subprocess.Popen(["true"]))
def test_warning(): warnings.warn("old")
def test_unclosed(): open("/dev/null")
def test_environment(): os.environ["LEFT"] = "behind"
def test_next_environment(): assert "LEFT" not in os.environ
@pytest.mark.soak
def test_soak(): pass
@pytest.mark.xfail(reason="an old fault")
def test_expected(): assert False
@pytest.mark.xfail(reason="mended")
def test_unexpected(): pass
def test_skipped(): pytest.skip("no\\n window")
"""
EXPECTED = {
    "test_clean": None,
    "test_descriptor": "descriptor",
    "test_reused_descriptor": "descriptor 9: /dev/zero",
    "test_thread": "thread",
    "test_child": "child process",
    "test_zombie": "child process",
    "test_warning": "UserWarning: old",
    "test_unclosed": "unclosed file",
    "test_environment": None,
    "test_next_environment": None,
    "test_expected": "skipped",
    "test_unexpected": "XPASS(strict)",
    "test_skipped": "skipped",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run FAULTY and a module that skips itself; return the folder with results.xml and skips."""
    tmp_path = tmp_path_factory.mktemp("faulty")
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "test_module.py").write_text("import pytest; pytest.skip('no module', allow_module_level=True)")
    pytest_command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    where = ["-c", TESTS.parent / "pyproject.toml", "--rootdir", tmp_path, f"--junitxml={tmp_path}/results.xml"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "SOCKSTREAM_SKIP_LOG": str(tmp_path / "skips"),
        "SOCKSTREAM_TEST_SLOWNESS": "0.2",  # each leak is given time to go away
    }
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        subprocess.run(
            [*pytest_command, *where, tmp_path],
            env=environment,
            capture_output=True,
            preexec_fn=lambda: os.dup2(null, 9, inheritable=True),
            close_fds=False,
            timeout=limit(60),
        )
    finally:
        os.close(null)
    return tmp_path


def outcomes(report: Path) -> dict[str, str | None]:
    """Return what the report says of each test: nothing, or the text of what went wrong."""
    cases = xml.etree.ElementTree.parse(report).iter("testcase")
    return {
        case.get("name", ""): " ".join(f"{part.tag} {part.get('message')} {part.text}" for part in case) or None
        for case in cases
    }


def test_each_fault_is_found(results: Path) -> None:
    """A leak, a warning or an unexpected success fails its test, and no other; soak tests do not run."""
    found = outcomes(results / "results.xml")
    found.pop("test_module", None)
    wrong = {
        name: found.get(name)
        for name, expected in EXPECTED.items()
        if (found[name] is None) != (expected is None) or (expected or "") not in (found[name] or "")
    }
    assert wrong == {}
    assert found.keys() - {""} == EXPECTED.keys()


def test_skips_are_logged(results: Path) -> None:
    """Each skip stands in the log with its reason on one line, expected failures among them."""
    lines = [line.partition("\t")[::2] for line in (results / "skips").read_text().splitlines()]
    assert sorted(reason for _, reason in lines) == ["expected to fail: an old fault", "no module", "no window"]
    assert all(test.partition("::")[0].endswith(".py") for test, _ in lines)


def test_directories_are_private_and_short() -> None:
    """HOME, XDG_CONFIG_HOME and XDG_RUNTIME_DIR are three empty folders with mode 0700 and short paths."""
    paths = [Path(os.environ[name]) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")]
    assert len(set(paths)) == 3
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o700] * 3
    assert [list(path.iterdir()) for path in paths] == [[], [], []]
    assert max(len(str(path)) for path in paths) < 60


def test_the_environment_is_clean() -> None:
    """Nothing of ours and nothing that changes how a program buffers is in the environment."""
    ours = [name for name in os.environ if name.startswith("SOCKSTREAM_")]
    assert [name for name in ours if not name.startswith("SOCKSTREAM_TEST_")] in ([], ["SOCKSTREAM_SKIP_LOG"])
    assert not {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"} & os.environ.keys()
