#!/usr/bin/env python3
"""Print a monthly report. It asks with input(), answers with print(), and has never heard of a socket."""

import sys
import time

pause = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
month = input("Which month? ")
print("Orders in", month)
for week in range(1, 5):
    print("  week", week, "  ", 17 * week)
    time.sleep(pause)
print("week 4 is not complete", file=sys.stderr)
sys.exit(3)
