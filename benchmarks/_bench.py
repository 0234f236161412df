"""What the benchmarks share: rounds in which the peer and we take turns, ratios, bars, a table.

Rules: the peer and sockstream run in the same round, so that a slow moment of the machine hits both; figures are
medians over rounds, ratios are medians of the rounds' own ratios; a missed bar ends the script with status 1 unless
a bare Python loop (no framing, no checks) misses it in the same run, which is then said. Programs run without
PYTHONUNBUFFERED and PYTHONDONTWRITEBYTECODE, or they would measure something else.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOME = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
ENVIRON = {
    **{k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")},
    "HOME": str(HOME),
    "XDG_CONFIG_HOME": str(HOME),
    "XDG_RUNTIME_DIR": str(HOME),
}


def installed_command() -> list[str]:
    """Return the installed script beside this interpreter, which is what people start."""
    script = Path(sys.executable).with_name("sockstream")
    return [str(script)] if script.exists() else [sys.executable, "-m", "sockstream"]


SOCKSTREAM = installed_command()


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start(command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    """Start a command in the benchmark's environment, quietly."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=ENVIRON, **{**quiet, **options})  # type: ignore[call-overload,no-any-return]  # options vary


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, if it still runs, and reap it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_port(port: int) -> None:
    """Return when somebody listens on a loopback port, without connecting to it."""
    wanted = f":{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if wanted in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.002)
    raise SystemExit(f"nobody listens on port {port}")


class Table:
    """Collects rows, prints them as Markdown, remembers missed bars."""

    def __init__(self, title: str) -> None:
        self.missed = False
        print(f"## {title}\n\n{machine()}\n")
        print("| what | sockstream | peer | ratio | bar | |\n|---|---|---|---|---|---|")

    def row(self, what: str, ours: str, peer: str, ratio: float, bar: float, *, at_least: bool, bare: float) -> None:
        """Print one row; `bare` is the ratio that a bare Python loop reaches against the same peer."""
        held = ratio >= bar if at_least else ratio <= bar
        bare_held = bare >= bar if at_least else bare <= bar
        verdict = "held" if held else f"missed, as by a bare Python loop ({bare:.2f})" if not bare_held else "MISSED"
        self.missed |= verdict == "MISSED"
        sign = "at least" if at_least else "at most"
        print(f"| {what} | {ours} | {peer} | {ratio:.2f} | {sign} {bar} | {verdict} |", flush=True)

    def finish(self) -> None:
        """End the script with the verdict."""
        shutil.rmtree(HOME, ignore_errors=True)
        raise SystemExit(1 if self.missed else 0)


def machine() -> str:
    """Describe the machine in a line."""
    return f"{os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}, CPython {platform.python_version()}."


def rounds(count: int, **measures: Callable[[], float]) -> dict[str, list[float]]:
    """Call each measure once a round, in turn, after a warm-up round that does not count."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(count + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                results[name].append(value)
    return results


def ratio(left: list[float], right: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(left, right, strict=True))


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)
