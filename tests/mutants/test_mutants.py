"""The model of the session finds every fault of the table, and none where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutant_table import MUTANTS
from run_mutant import FOUND

import sockstream
from support import limit

RUNNER = Path(__file__).with_name("run_mutant.py")


def run(directory: Path, *number: str) -> tuple[int, str]:
    """Run the model against a mutant in a fresh process; return its status and what it said."""
    command = [sys.executable, str(RUNNER), str(directory), *number]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(100), check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[mutant.name for mutant in MUTANTS])
def test_the_text_is_there(number: int) -> None:
    """What the mutant changes stands exactly once in the source."""
    mutant = MUTANTS[number]
    source = Path(sockstream.__file__).with_name(f"{mutant.module}.py").read_text()
    assert source.count(mutant.old) == 1


def test_names_are_unique() -> None:
    """So that a report says which one it was."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.slow
def test_the_package_as_it_is_passes(tmp_path: Path) -> None:
    """Without a fault the same run of the model finds nothing."""
    status, said = run(tmp_path)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[mutant.name for mutant in MUTANTS])
def test_the_mutant_is_found(number: int, tmp_path: Path) -> None:
    """The model fails against it."""
    status, said = run(tmp_path, str(number))
    assert status == FOUND, said
