"""The relay as a process of a test."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from support import Running, wait_until

_ROOT = Path(__file__).parent.parent.parent
_ADDRESS = re.compile(rb"^chaos: listening on (\S+)$", re.MULTILINE)
_STRUCK = re.compile(rb"^chaos: link \d+ (?:reset|reset-client|reset-server|close|silence) ", re.MULTILINE)


class Relay(Running):
    """A relay in a process of its own; arguments as those of `python -m tests.chaos`."""

    def __init__(self, listen: str, target: str, *options: object) -> None:
        command = (sys.executable, "-m", "tests.chaos", listen, target)
        super().__init__(*map(str, options), command=command, cwd=_ROOT)

    @property
    def address(self) -> str:
        """Where it listens: HOST:PORT or a path; waits up to 10 seconds until it does."""
        found = wait_until(lambda: _ADDRESS.search(self.stdout), 10, f"a relay that listens ({self})")
        return str(found[1].decode())

    @property
    def links(self) -> int:
        """How many links there have been."""
        return self.stdout.count(b" opened\n")

    @property
    def strikes(self) -> int:
        """How many links have been struck."""
        return len(_STRUCK.findall(self.stdout))

    def command(self, line: str) -> None:
        """Have a command done, and wait until it is."""
        done = self.stdout.count(b"chaos: done: ")
        self.write(line.encode() + b"\n")
        wait_until(lambda: self.stdout.count(b"chaos: done: ") > done, 10, f"{line} by {self}")
