"""The relay by hand; a test uses `running.Relay`."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from functools import partial

from . import triggers
from .proxy import ACTIONS, Proxy, parse


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _frame(text: str, *, before: bool) -> tuple[str, int, bool]:
    name, _, number = text.partition("@")
    if name not in triggers.FRAME_NAMES:
        raise ValueError
    return name, int(number or 1), before


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
    options.add_argument("--after", type=_range, metavar="N[-M]", help="when so many bytes have passed, drawn anew")
    frame = {"action": "append", "dest": "frames", "metavar": "FRAME[@N]"}
    names = ", ".join(triggers.FRAME_NAMES)
    options.add_argument(
        "--before",
        type=partial(_frame, before=True),
        help=f"before the N-th of these: {names}; given several times: the next link at the next of them",
        **frame,
    )
    options.add_argument("--behind", type=partial(_frame, before=False), help="when that frame has passed", **frame)
    options.add_argument(
        "--direction", choices=triggers.DIRECTIONS, help="up: from the end that dials; default: drawn anew"
    )
    options.add_argument("--skip", type=int, default=0, metavar="N", help="leave the first N links alone (0)")
    options.add_argument("--times", type=int, metavar="N", help="strike N links at most")
    options.add_argument("--seed", type=int, default=1, metavar="N", help="of what is drawn at random (1)")
    return options


def plan(options: argparse.Namespace) -> triggers.Plan:
    """Return what the options say about each link."""
    low, high = options.after or (0, 0)
    return triggers.Plan(
        random.Random(options.seed),
        options.action,
        direction=options.direction,
        low=low,
        high=high,
        frames=options.frames or (),
        skip=options.skip,
        times=options.times if options.frames or options.after else 0,
    )


def main() -> None:
    """Relay until a signal comes."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Proxy(options.listen, options.target, plan(options), sys.stdin.fileno()).run()


main()
