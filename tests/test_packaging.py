"""The built wheel: what is in it, and that the tests run it and not the source tree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import sockstream
from support import limit

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "module": (sys.executable, "-m", "sockstream"),
    "script": (Path(sysconfig.get_path("scripts"), "sockstream"),),
}

wheel = pytest.mark.skipif(
    os.environ.get("SOCKSTREAM_TEST_WHEEL") != "1", reason="not in tox: the package is not the built wheel"
)


def output_of(*command: object, **environment: str) -> str:
    """Run a command in a folder that has nothing of ours, and return its stdout."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=os.environ["HOME"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=limit(20),
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@wheel
def test_the_package_is_the_installed_one() -> None:
    """What the tests import lies in the environment, and nothing of src/ is on the path."""
    assert Path(sockstream.__file__).parent == Path(sysconfig.get_path("purelib"), "sockstream")
    assert str(ROOT / "src") not in sys.path
    asked = output_of(sys.executable, "-c", "import sockstream; print(sockstream.__file__)")
    assert asked.strip() == sockstream.__file__


@wheel
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_version_from_the_shell(command: tuple[object, ...]) -> None:
    """Module and script both print the version."""
    assert output_of(*command, "--version").split()[-1] == sockstream.__version__


@wheel
def test_the_wheel_is_whole() -> None:
    """It has every file of src/, the licence, and nothing beside the package."""
    files = {str(path) for path in importlib.metadata.files("sockstream") or ()}
    source = {
        str(path.relative_to(ROOT / "src"))
        for path in ROOT.joinpath("src").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "sockstream/py.typed" in source
    assert source <= files
    assert any(name.endswith("/licenses/LICENSE") for name in files)
    tops = {name.split("/")[0] for name in files if not name.startswith("../")}
    assert tops == {"sockstream", f"sockstream-{sockstream.__version__}.dist-info"}


def test_the_metadata() -> None:
    """The version is the package's own, and cloudpickle and cryptography are all it needs."""
    metadata = importlib.metadata.metadata("sockstream")
    needed = [text for text in importlib.metadata.requires("sockstream") or () if "extra ==" not in text]
    assert metadata["Version"] == sockstream.__version__
    assert {re.match(r"[\w-]+", text)[0] for text in needed} == {"cloudpickle", "cryptography"}
    assert metadata["Requires-Python"] == ">=3.11"


def test_importing_the_package_is_light() -> None:
    """`import sockstream` loads none of its modules and nothing heavy."""
    code = "import sys; before = set(sys.modules); import sockstream; print(*sys.modules.keys() - before)"
    assert output_of(sys.executable, "-c", code).split() == ["sockstream"]


def make_pyenv(root: Path, minor: int) -> Path:
    """Make pyenv's tree for one Python, a real program and a shim that fails; return the real one's folder."""
    real = root / f"versions/3.{minor}.9/bin"
    shims = root / "shims"
    real.mkdir(parents=True)
    shims.mkdir()
    (real / f"python3.{minor}").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (shims / f"python3.{minor}").write_text("#!/bin/sh\nexit 127\n")
    for program in (real / f"python3.{minor}", shims / f"python3.{minor}"):
        program.chmod(0o755)
    return real


def test_pythons_are_found_behind_shims(tmp_path: Path) -> None:
    """The folder of the real program is printed, not that of pyenv's shim."""
    real = make_pyenv(tmp_path, sys.version_info.minor)
    path = f"{tmp_path}/shims:/usr/bin:/bin"
    prefix = output_of(ROOT / "tools/pythons", PYENV_ROOT=str(tmp_path), PATH=path)
    assert str(real) in prefix.split(":")
    assert prefix.endswith(":")
    assert "/shims" not in prefix


def test_the_first_python_can_make_environments() -> None:
    """What `make` builds its environments with runs, and is new enough."""
    python = output_of(ROOT / "tools/pythons", "first").strip()
    version = output_of(python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])")
    assert tuple(map(int, version.split())) >= (3, 11)
