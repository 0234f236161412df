"""`python -m sockstream` is the command `sockstream`."""

from __future__ import annotations

from sockstream.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
