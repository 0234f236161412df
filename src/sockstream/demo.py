"""`sockstream demo`: a script in one process, shown and answered in another, with the time of every line.

Rules: everything is real, two commands and a script that knows nothing of them, in a temporary directory with a token
and a socket of its own, so the user's are never touched; whatever happens, both commands are ended and the directory
is removed, and that within 10 s. Colours only for a terminal that may have them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from . import __version__
from .errors import SockstreamError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, NoReturn

_PATIENCE = 8.5  # seconds, of the 10: the commands may need some to end
_LATER = 1.5  # the viewer ends so much later than the program end, at most
_LONGEST = 6.0
_STARTING = 1.0  # what two commands and a script take to start, roughly
_PAUSES = 5  # one before the answer, and the script's four
_A_MOMENT = 0.05
_LISTENING, _QUESTION, _ANSWER, _STATUS = b"listening on", b"? ", "May", 3
_VIEWER, _PROGRAM = "listen", "run"
_COLOURS = {"time": "2", "stdin": "1;32", "stderr": "33", "status": "1"}

# The file examples/legacy_report.py, which the wheel does not carry.
SCRIPT = '''\
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
'''
_INTRODUCTION = f"""\
sockstream {__version__}: a script that knows only input() and print(), shown and answered from another process

"""
_CONCLUSION = """
Every line came when it was printed, the question was answered from another process, and the script's exit
status is known at both ends. The script was not touched.

Try next, in two terminals:
  {0} listen
  {0} run -- PROGRAM

or let the program wait, on this machine or another one that has your token:
  {0} serve :7411 -- PROGRAM
  {0} connect :7411
"""


def demonstrate(seconds: float) -> int:
    """Show it on stdout in about `seconds`, at most 6; return 0 if all went as it should, else 125.

    Raises SockstreamError if there is no place for its files or stdout cannot be written.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _stop)
    try:
        directory = tempfile.mkdtemp(prefix="sockstream-demo-", dir=_short_directory())
        try:
            return _Demo(directory, max(min(seconds, _LONGEST) - _STARTING, 0) / _PAUSES).run()
        finally:
            shutil.rmtree(directory)
    except BrokenPipeError:
        return 141  # nobody reads our stdout any more, which is said to nobody
    except OSError as error:
        raise SockstreamError(f"the demo cannot be shown: {error.strerror}") from error


def _stop(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def _short_directory() -> str | None:
    """Where the default is too long: the path of a socket has about 100 bytes."""
    return "/tmp" if len(os.fsencode(tempfile.gettempdir())) > 60 else None


class _Demo:
    """One showing in `directory`; `pause` is in seconds."""

    def __init__(self, directory: str, pause: float) -> None:
        self._directory = directory
        self._pause = pause
        self._environ = self._environment()
        self._start = time.monotonic()
        self._until = self._start + _PATIENCE
        self._selector = selectors.DefaultSelector()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._statuses: dict[str, int] = {}
        self._unfinished: dict[tuple[str, str], bytes] = {}
        self._colours = os.isatty(1) and "NO_COLOR" not in os.environ and os.environ.get("TERM") not in (None, "dumb")

    def _environment(self) -> dict[str, str]:
        """Return one in which both commands are this package's, and share an address and a token of their own."""
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
            "SOCKSTREAM_ADDRESS": os.path.join(self._directory, "demo.sock"),
            "SOCKSTREAM_TOKEN": os.urandom(32).hex(),
        }

    def run(self) -> int:
        """Show it; returns the exit status."""
        with open(os.path.join(self._directory, "legacy_report.py"), "w") as file:
            file.write(SCRIPT)
        try:
            self._write(_INTRODUCTION)
            self._begin(_VIEWER, "--once")
            self._follow()
        finally:
            self._end()
        if self._statuses != {_VIEWER: _STATUS, _PROGRAM: _STATUS}:
            self._write("\nThat is not how it should be: please report it, with the lines above.\n")
            return 125
        self._write(_CONCLUSION.format(_command()))
        return 0

    def _begin(self, name: str, *arguments: str) -> None:
        """Start the command `sockstream NAME ARGUMENT...`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "sockstream", name, *arguments],
            cwd=self._directory,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._processes[name] = process
        self._say(name, "starts", " ".join(("sockstream", name, *arguments)))
        for kind, file in ("stdout", process.stdout), ("stderr", process.stderr):
            assert file is not None
            self._selector.register(file, selectors.EVENT_READ, (name, kind))

    def _follow(self) -> None:
        """Tell what the commands write, as it comes, until both have ended or the patience is over."""
        while self._selector.get_map() and time.monotonic() < self._until:
            ready = self._selector.select(_A_MOMENT)
            for key, _mask in ready:
                self._read(key.fileobj, *key.data)  # type: ignore[arg-type]  # what was registered is a file
            if not ready:
                self._show_unfinished()

    def _read(self, file: IO[bytes], name: str, kind: str) -> None:
        data = os.read(file.fileno(), 65536)
        *lines, rest = (self._unfinished.pop((name, kind), b"") + data).split(b"\n")
        for line in lines:
            self._say(name, kind, line.decode("utf-8", "replace"))
            if _LISTENING in line:
                self._begin(_PROGRAM, "--", "./legacy_report.py", f"{self._pause:.2g}")
        if rest:  # more of the line may follow: an unbuffered print() writes each of its arguments by itself
            self._unfinished[name, kind] = rest
        if not data:
            self._selector.unregister(file)
            self._look(name)

    def _show_unfinished(self) -> None:
        """Show what has stood without a line end for a moment: the question."""
        for (name, kind), text in self._unfinished.items():
            self._say(name, kind, text.decode("utf-8", "replace"))
        if self._unfinished.pop((_VIEWER, "stdout"), b"").endswith(_QUESTION):
            self._answer()
        self._unfinished.clear()

    def _answer(self) -> None:
        time.sleep(self._pause)
        stdin = self._processes[_VIEWER].stdin
        assert stdin is not None
        self._say(_VIEWER, "stdin", _ANSWER)
        with contextlib.suppress(BrokenPipeError):  # it has ended, and why is on its stderr
            stdin.write(f"{_ANSWER}\n".encode())
            stdin.flush()

    def _look(self, name: str) -> None:
        """Tell the status of a command both of whose outputs have come to their end."""
        if name in {key.data[0] for key in self._selector.get_map().values()}:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it has no status, which run() minds
            self._statuses[name] = self._processes[name].wait(1)
            self._say(name, "status", str(self._statuses[name]))
        if name == _PROGRAM:
            self._until = min(self._until, time.monotonic() + _LATER)

    def _end(self) -> None:
        """End what still runs, and free everything."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for file in process.stdin, process.stdout, process.stderr:
                assert file is not None
                with contextlib.suppress(BrokenPipeError):  # an answer that nobody took
                    file.close()
        self._selector.close()

    # ---- what is shown

    def _say(self, name: str, kind: str, text: str) -> None:
        elapsed = self._paint("time", f"{time.monotonic() - self._start:6.2f} s")
        self._write(f"{elapsed}  {name:6}  {kind:6}  {self._paint(kind, text)}".rstrip() + "\n")

    def _paint(self, kind: str, text: str) -> str:
        code = _COLOURS.get(kind)
        return f"\x1b[{code}m{text}\x1b[0m" if code and self._colours else text

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(1, data) :]


def _command() -> str:
    """Return what to type for the command: its path, where PATH does not have it (as after `make demo`)."""
    beside = os.path.join(os.path.dirname(sys.executable), "sockstream")
    if shutil.which("sockstream") or not os.path.exists(beside):
        return "sockstream"
    return os.path.relpath(beside)
