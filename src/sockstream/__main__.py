"""`python -m sockstream` is the command `sockstream`."""

from __future__ import annotations

from sockstream.cli import entry

if __name__ == "__main__":
    entry()
