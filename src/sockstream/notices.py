"""What the commands tell people on stderr: one line each, `sockstream: ...`.

Rules: control characters are escaped, since a peer may have chosen them; about one peer address at most one line a
second is written, so that noise from the network cannot flood a log. The library itself never prints: it is handed a
`Notices`, or a subclass of its own.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_QUIET_FOR = 1.0
_REMEMBERED = 1024


class Notices:
    """Write notices of at least the wanted weight: 0 errors only (`-q`), 1 normal, 2 `-v`, 3 frames (`-vv`)."""

    def __init__(self, verbosity: int = 1) -> None:
        self.verbosity = verbosity
        self._last: dict[str, float] = {}

    def error(self, text: str) -> None:
        """Say why something ends; always written."""
        self._write(text)

    def say(self, text: str) -> None:
        """Say what people want to know; `-q` silences it."""
        if self.verbosity >= 1:
            self._write(text)

    def detail(self, text: str) -> None:
        """Say what `-v` asks for."""
        if self.verbosity >= 2:
            self._write(text)

    def tracer(self) -> Callable[[str], None] | None:
        """Return what writes a line for each frame, where `-vv` asks for it."""
        return self._write if self.verbosity >= 3 else None

    def about_peer(self, peer: str, text: str) -> None:
        """Say why a peer was refused: at most one line a second and address, or uid (port and process do not count)."""
        now = time.monotonic()
        key = peer.rpartition(":")[0] or peer.rpartition(" ")[2]
        if now - self._last.get(key, -_QUIET_FOR) < _QUIET_FOR:
            return
        if len(self._last) >= _REMEMBERED:
            self._last.clear()
        self._last[key] = now
        self.say(f"{peer}: {text}")

    def _write(self, text: str) -> None:
        line = f"sockstream: {escape(text)}\n".encode("utf-8", "replace")
        try:
            os.write(2, line)
        except OSError:  # nobody reads stderr: there is no one left to tell
            return


def escape(text: str) -> str:
    """Return `text` with control characters, line ends and terminal escapes made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
