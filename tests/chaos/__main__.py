"""The relay by hand; a test uses `running.Relay`."""

from __future__ import annotations

import argparse
import random
import signal
import sys

from . import triggers
from .proxy import ACTIONS, Proxy, parse


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _frame(text: str) -> tuple[str, int]:
    name, _, number = text.partition("@")
    if name not in triggers.FRAME_NAMES:
        raise ValueError
    return name, int(number or 1)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Relay TCP or Unix connections and break them in chosen places. Without --after, --before or "
        "--behind everything passes, until a line on stdin says otherwise: one of the actions, for all "
        "links there are; refuse, to listen no more; accept, to listen again.",
        epilog="example: python -m tests.chaos 127.0.0.1:7500 127.0.0.1:7411 --after 0-5000000 --times 100",
    )
    options.add_argument("listen", type=parse, help="HOST:PORT (port 0: a free one) or a path")
    options.add_argument("target", type=parse, help="HOST:PORT or a path")
    options.add_argument("--action", choices=ACTIONS, default="reset", help="what to do to a link (reset)")
    where = options.add_mutually_exclusive_group()
    where.add_argument("--after", type=_range, metavar="N[-M]", help="when so many bytes have passed, drawn anew")
    frames = ", ".join(triggers.FRAME_NAMES)
    where.add_argument("--before", type=_frame, metavar="FRAME[@N]", help=f"before the N-th of these: {frames}")
    where.add_argument("--behind", type=_frame, metavar="FRAME[@N]", help="when that frame has passed")
    options.add_argument(
        "--direction", choices=triggers.DIRECTIONS, help="up: from the end that dials; default: drawn anew"
    )
    options.add_argument("--skip", type=int, default=0, metavar="N", help="leave the first N links alone (0)")
    options.add_argument("--times", type=int, metavar="N", help="strike N links at most")
    options.add_argument("--seed", type=int, default=1, metavar="N", help="of what is drawn at random (1)")
    return options


def plan(options: argparse.Namespace) -> triggers.Plan:
    """Return what the options say about each link."""
    frame = options.before or options.behind
    low, high = options.after or (0, 0)
    return triggers.Plan(
        random.Random(options.seed),
        options.action,
        direction=options.direction,
        low=low,
        high=high,
        frame=frame and (*frame, options.before is not None),
        skip=options.skip,
        times=0 if frame is None and options.after is None else options.times,
    )


def main() -> None:
    """Relay until a signal comes."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Proxy(options.listen, options.target, plan(options), sys.stdin.fileno()).run()


main()
