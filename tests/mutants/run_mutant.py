"""Run the model of the session against a mutant of it: `run_mutant.py DIRECTORY [NUMBER]`.

Rules: this is a process of its own, so that no module is loaded before its mutant. DIRECTORY, which must be empty, gets
a copy of the package, and in it the fault of that number in the table (none: as it is). Status 0: the model found
nothing; 3: it found the fault, and the last line of stdout says as what. Anything else is a failure of this script.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOUND = 3
EXAMPLES, STEPS = 150, 100


def plant(directory: Path, number: int | None) -> None:
    """Copy the package to the directory, with a fault in it or without."""
    spec = importlib.util.find_spec("sockstream")
    assert spec is not None
    assert spec.origin is not None
    package = directory / "sockstream"
    shutil.copytree(Path(spec.origin).parent, package, ignore=shutil.ignore_patterns("*cache*"))
    if number is not None:
        from mutant_table import MUTANTS

        mutant = MUTANTS[number]
        file = package / f"{mutant.module}.py"
        source = file.read_text()
        assert source.count(mutant.old) == 1, mutant
        file.write_text(source.replace(mutant.old, mutant.new))


def main() -> int:
    """Plant the fault and let the model look for it."""
    directory = Path(sys.argv[1])
    plant(directory, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    sys.path[:0] = [str(directory), str(HERE.parent), str(HERE.parent / "property")]
    from test_session_model import run_model

    import sockstream

    assert sockstream.__file__.startswith(str(directory)), "not the copy"
    try:
        steps = run_model(EXAMPLES, STEPS)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        return FOUND
    print(f"nothing in {steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
