"""Any program on pipes: start it, see its end, reap it, end its group.

Rules of this file:

* `posix_spawn`, never `fork`: safe beside threads, and 4 ms faster than `subprocess`. It returns when the
  program has been executed, so a refusal is an exception here and not a status later.
* The leader is looked at with WNOWAIT and stays a zombie until `Process.reap`. A zombie keeps its number, so
  a signal to the group cannot hit a stranger that got the number since.
* Signals go to the whole group. A process that left the group (a daemon, a job of an interactive shell) is
  not found again; the page on how things end says so.
* The program's ends of the pipes stay blocking, ours do not block: the two ends of a pipe are separate open
  files, and O_NONBLOCK belongs to the open file. Inherited descriptors 0-2 are never touched.
* Descriptors that somebody made inheritable on purpose (`cat <(...)`, LISTEN_FDS) reach the program, as with
  env, nohup and timeout; all of ours are close-on-exec.
* Nothing blocks. All waiting is done by the loop.

Signal dispositions: what Python or a shell's `&` made ignored is set back, or the program would survive a
broken pipe and a remote Ctrl-C. SIGHUP is left as it came: that is how nohup works.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time

from .errors import ProgramError
from .loop import READ
from .records import How, Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, Literal

    from .loop import Loop, Timer

    Steps = tuple[tuple[float, int], ...]
    Launch = Callable[[str, tuple[str, ...]], int]

# Bytes in the pipes for stdin, stdout and stderr. More for stdout would not be faster, and is what Ctrl-C has to wait
# for; the kernel lets one user have 64 MiB of pipes, and `serve` runs 64 programs with three each.
PIPE_SIZES = (256 << 10, 512 << 10, 64 << 10)

# The signals that end a group: seconds to wait after the one before, and the signal.
STEPS: Steps = ((0, signal.SIGHUP), (2, signal.SIGTERM), (8, signal.SIGKILL))

_POLL_EVERY = 0.02  # where there is no pidfd
_LOOK_FIRST, _LOOK_EVERY = 0.001, 0.05  # whether a group has ended: soon after a signal, then more rarely
_CONFIRM = 2.0  # what is in an uninterruptible call outlives even SIGKILL
_DEFAULTED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)


def _status(code: int, elapsed: float, user: float, system: float) -> Status:
    """The status for a return code as Python has it: negative for signals."""
    how, text = (How.EXITED, "") if code >= 0 else (How.SIGNALED, _signal_name(-code))
    return Status(how, abs(code), text, elapsed=elapsed, user=user, system=system)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have a number only
        return f"signal {number}"


def start(
    args: Sequence[str | os.PathLike[str]],
    *,
    environ: Mapping[str, str],
    stdin: Literal["pipe", "inherit"],
    stdout: Literal["pipe", "inherit"],
    stderr: Literal["pipe", "inherit", "merge"],
    own_session: bool = True,
) -> Process:
    """Start the program `args[0]`, looked up in the PATH of `environ` unless it has a slash.

    `stderr="merge"` sends it where stdout goes. `own_session=False` gives it a group of its own only, for
    when a terminal is left to it (see `give_terminal`). A script without a #! line is run by /bin/sh; a .py
    file that cannot be executed itself by this interpreter. Raises ProgramError (status 127 not found, 126
    cannot be executed, 125 no resources), ValueError for an empty `args` or a NUL character.
    """
    argv = tuple(os.fspath(arg) for arg in args)
    if not argv:
        raise ValueError("args is empty: it needs at least the name of a program")
    _keep_statuses()
    stdio = _Stdio(argv[0], stdin, stdout, stderr)
    started = time.monotonic()
    try:
        pid = _spawn(argv, environ, stdio.actions, own_session)
    except BaseException:
        _close(stdio.ours)
        raise
    finally:
        _close(stdio.theirs)  # or end of file would never be seen
    return Process(pid, argv, stdio.ours, started)


def _keep_statuses() -> None:
    """Take back an inherited "ignore SIGCHLD", under which the system throws statuses away."""
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except ValueError:  # not the main thread: the status will be the one that says "unknown"
            return


class _Stdio:
    """The pipes of one program, and what `posix_spawn` has to do with their far ends."""

    __slots__ = ("actions", "ours", "theirs")

    def __init__(self, name: str, *how: str) -> None:
        self.actions: list[tuple[int, int, int]] = []
        self.ours: list[int | None] = [None, None, None]
        self.theirs: list[int] = []
        try:
            for target, kind in enumerate(how):
                self._add(target, kind)
        except OSError as error:
            _close([*self.ours, *self.theirs])
            raise _refusal(name, name, error) from error

    def _add(self, target: int, kind: str) -> None:
        if kind == "merge":
            self.actions.append((os.POSIX_SPAWN_DUP2, 1, target))
        elif kind == "pipe":
            reading, writing = _pipe(PIPE_SIZES[target])
            ours, theirs = (writing, reading) if target == 0 else (reading, writing)
            self.ours[target] = ours
            self.theirs.append(theirs)
            self.actions.append((os.POSIX_SPAWN_DUP2, theirs, target))
            os.set_blocking(ours, False)


def _close(fds: Iterable[int | None]) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _pipe(size: int) -> list[int]:
    """A pipe of so many bytes, both ends close-on-exec and above 2.

    With our own stdio closed it would get 0-2, and what anything in this process prints would go into it.
    """
    ends = [*os.pipe()]
    try:
        for index, fd in enumerate(ends):
            if fd <= 2:
                ends[index] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
                os.close(fd)
    except OSError:
        os.close(ends[0])
        os.close(ends[1])
        raise
    _resize(ends[1], size)
    return ends


def _resize(fd: int, size: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except (AttributeError, OSError):  # not Linux, or this user's share of pipe memory is used up: only slower
        return


def _spawn(
    argv: tuple[str, ...], environ: Mapping[str, str], actions: list[tuple[int, int, int]], own_session: bool
) -> int:
    place: dict[str, Any] = {"setsid": True} if own_session else {"setpgroup": 0}

    def launch(path: str, argv: tuple[str, ...]) -> int:
        return os.posix_spawn(path, argv, environ, file_actions=actions, setsigmask=(), setsigdef=_DEFAULTED, **place)

    if "/" in argv[0]:
        try:
            return _execute(launch, argv[0], argv, given=True)
        except OSError as error:
            raise _refusal(argv[0], argv[0], error) from error
    return _search(launch, argv, environ.get("PATH", os.defpath))


def _search(launch: Launch, argv: tuple[str, ...], path: str) -> int:
    """Execute the first file of that name on the search path that can be, as os.execvpe does."""
    name, refused = argv[0], None
    for directory in path.split(":") if name else ():
        candidate = f"{directory or '.'}/{name}"
        if not os.path.exists(candidate):  # this costs a hundredth of a spawn that fails
            continue
        try:
            return _execute(launch, candidate, argv, given=False)
        except OSError as error:
            refused = refused or _refusal(name, candidate, error)
    if refused is not None:
        raise refused
    hint = f"write ./{name} for the one in this directory" if os.path.lexists(name) else "correct PATH"
    raise ProgramError(f"cannot start {name!r}: no directory of PATH has it; give its path, or {hint}", 127)


def _execute(launch: Launch, path: str, argv: tuple[str, ...], *, given: bool) -> int:
    try:
        return launch(path, argv)
    except OSError as error:
        runner = _runner(path, error.errno, given)
        if runner is None:
            raise
    return launch(runner, (runner, path, *argv[1:]))


def _runner(path: str, code: int | None, given: bool) -> str | None:
    """What runs a file that the kernel does not execute, or None.

    A .py file never goes to the shell: its `import os` would start ImageMagick's import.
    """
    if code != errno.ENOEXEC and not (code == errno.EACCES and given and not os.access(path, os.X_OK)):
        return None
    if path.endswith(".py"):
        return (os.path.isfile(path) and os.access(path, os.R_OK) and sys.executable) or None
    return "/bin/sh" if code == errno.ENOEXEC and b"\0" not in _first_line(path) else None


def _first_line(path: str) -> bytes:
    """The first line (at most 256 bytes) of a file; a NUL byte stands for one that cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(256).partition(b"\n")[0]
    except OSError:
        return b"\0"


_OURS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_ADVICE = {
    errno.EACCES: "make it and its interpreter executable (chmod +x), or name the interpreter before it",
    errno.ENOEXEC: "it is neither for this machine nor a script; a script begins with a line like #!/bin/sh",
    errno.E2BIG: "arguments and environment exceed what the system allows; pass data in a file or on stdin",
    errno.ETXTBSY: "somebody has it open for writing; try again when it is closed",
    errno.EAGAIN: "this user has too many processes; end some, or raise the limit (ulimit -u)",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


def _refusal(name: str, path: str, error: OSError) -> ProgramError:
    """The ProgramError for an OSError of the attempt to execute `path`, called `name` by the user."""
    code = error.errno or 0
    reason, advice, status = error.strerror or str(error), _ADVICE.get(code, "check the path"), 126
    if code in _OURS:
        status = 125
    elif os.path.isdir(path):
        reason, advice = "it is a directory", "name a program in it"
    elif code == errno.ENOENT and not os.path.exists(path):
        reason, status = "there is no such file", 127
    elif code == errno.ENOENT:
        reason, advice = _missing_interpreter(path)
    return ProgramError(f"cannot start {name!r}: {reason}; {advice}", status)


def _missing_interpreter(path: str) -> tuple[str, str]:
    """Reason and advice for a file that is there but whose execution says "no such file"."""
    line = _first_line(path)
    if line.startswith(b"#!"):
        # As repr, so that the carriage return of a file saved on Windows is seen.
        return f"there is no such interpreter: {line.decode(errors='replace')!r}", "correct its first line"
    return "the loader that it needs is not there", "it was built for another system: see file and ldd"


_PIPES = ("stdin", "stdout", "stderr")


class Process:
    """A started program: its group is `pid`; its pipes are descriptors of ours that do not block.

    `stdin`, `stdout`, `stderr` are None where there is no pipe. Whoever closes one of them sets it to None.
    `pidfd` becomes readable when the program has ended; None where the system has none.
    """

    __slots__ = ("_gone", "_reaped", "_started", "_status", "args", "pid", "pidfd", *_PIPES)

    def __init__(self, pid: int, args: tuple[str, ...], pipes: Sequence[int | None], started: float) -> None:
        self.pid, self.args = pid, args
        self.stdin, self.stdout, self.stderr = pipes
        self.pidfd = _open_pidfd(pid)
        self._started = started
        self._status: Status | None = None
        self._reaped = False  # its number may be somebody else's, unless the group lives
        self._gone = False  # nothing of the group is left: never signal it again

    def poll(self) -> Status | None:
        """The status if the program has ended, else None; being stopped or continued is not an end.

        The processor times are in clock ticks (10 ms), and 0 without /proc.
        """
        if self._status is None:
            self._status = self._peek() if hasattr(os, "waitid") else self._collect()
        return self._status

    def reap(self) -> Status | None:
        """Release the ended program's number and return its final status; None while it still runs."""
        if self.poll() is not None and not self._reaped:
            self._release()
            self.group_alive()  # often nothing is left: then nothing is ever signalled again
        return self._status

    def signal(self, signum: int) -> bool:
        """Send a signal to the whole group; False if nobody is left, or nobody we may signal."""
        if self._reaped and not self.group_alive():
            return False
        try:
            os.killpg(self.pid, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def group_alive(self) -> bool:
        """Whether anything of the group still runs; until the leader is reaped, it counts also as a zombie."""
        if not self._gone:
            try:
                os.killpg(self.pid, 0)
                self._gone = self._reaped and _all_zombies(self.pid)
            except ProcessLookupError:
                self._gone = True
            except OSError:  # it is there, but another user's by now; or /proc cannot be read, being out of descriptors
                return True
            if self._gone:
                self._reap_adopted()
        return not self._gone

    def close(self) -> None:
        """Close the descriptors that are still ours; the program itself is left as it is."""
        for name in (*_PIPES, "pidfd"):
            fd = getattr(self, name)
            if fd is not None:
                setattr(self, name, None)
                os.close(fd)

    def _peek(self) -> Status | None:
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._lost()
        if info is None:
            return None
        code = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        return _status(code, time.monotonic() - self._started, *_times_of_zombie(self.pid))

    def _collect(self) -> Status | None:
        """Reap; on a system without `waitid` this is also how the end is seen."""
        try:
            pid, wait_status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return self._lost()
        if pid == 0:
            return None
        self._reaped = True
        elapsed = time.monotonic() - self._started
        return _status(os.waitstatus_to_exitcode(wait_status), elapsed, usage.ru_utime, usage.ru_stime)

    def _release(self) -> None:
        """Reap; not by wait4, whose exact times would be a second truth, and whose answer imports `resource` (2 ms)."""
        self._reaped = True
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # reaped elsewhere, after its end was seen
            return

    def _lost(self) -> Status:
        """Somebody else in this process reaped our program: keep what is known."""
        self._reaped = True
        elapsed, reason = time.monotonic() - self._started, "it was reaped elsewhere, or SIGCHLD is ignored"
        return self._status or Status(How.UNKNOWN, text=reason, elapsed=elapsed)

    def _reap_adopted(self) -> None:
        """Reap the group's orphans: they are ours if we are process 1 of a container, or a subreaper."""
        try:
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, too old, forbidden, too many files: then it is polled
        return None


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third (the state) on; empty if there are none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(4096).rpartition(b")")[2].split()  # the name before ")" may contain anything
    except OSError:
        return []


def _times_of_zombie(pid: int) -> tuple[float, float]:
    """User and system seconds of an ended process and what it reaped; Python's `waitid` has no rusage."""
    user, system, user_below, system_below = map(int, _stat(pid)[11:15] or (0, 0, 0, 0))
    tick = os.sysconf("SC_CLK_TCK")
    return (user + user_below) / tick, (system + system_below) / tick


def _members(group: int) -> set[int]:
    members = set()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        try:
            if entry.isdigit() and os.getpgid(int(entry)) == group:
                members.add(int(entry))
        except OSError:  # it ended meanwhile
            continue
    return members


def _all_zombies(group: int) -> bool:
    """Whether all that is left of a group has ended, and only waits for parents that may never reap it.

    Process 1 of many a container reaps late or not at all. A zombie with several threads is a running program
    whose first thread has ended. The second look finds what was forked during the first.
    """
    members = _members(group)
    found = [(fields[0], int(fields[17])) for fields in map(_stat, members) if fields]
    ended = all(state in b"ZX" and threads <= 1 for state, threads in found)
    return bool(members) and ended and _members(group) <= members


class EndWatch:
    """Calls `callback(status)` once, from the loop, when the program has ended; it is not reaped by that."""

    __slots__ = ("_callback", "_loop", "_process", "_timer", "_watched")

    def __init__(self, loop: Loop, process: Process, callback: Callable[[Status], object]) -> None:
        self._loop, self._process, self._callback = loop, process, callback
        self._watched = process.pidfd
        self._timer: Timer | None = None
        if self._watched is None:
            self._look_later()
        else:
            loop.watch(self._watched, READ, self._look)

    def cancel(self) -> None:
        """Stop watching; to be called before `Process.close` if the program has not ended."""
        if self._watched is not None:
            self._loop.unwatch(self._watched)
            self._watched = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, _mask: int = 0) -> None:
        # A pidfd that is readable while there is no status (a debugger may hold the ended program) would stay
        # so and spin; hence it is watched once, and from there on the end is polled.
        self.cancel()
        status = self._process.poll()
        if status is None:
            self._look_later()
        else:
            self._callback(status)

    def _look_later(self) -> None:
        self._timer = self._loop.call_at(self._loop.now() + _POLL_EVERY, self._look)


def watch_end(loop: Loop, process: Process, callback: Callable[[Status], object]) -> EndWatch:
    """Have `callback(status)` called once when the program has ended; the result can `cancel()` that."""
    return EndWatch(loop, process, callback)


class Ladder:
    """Ends a program's group with ever stronger signals and calls `on_done()` once, from the loop.

    `steps` are (seconds after the step before, signal). It is done as soon as nothing of the group is left
    (`gone` is then True), or some seconds after the last step. The leader is reaped on the way, because a
    zombie leader looks like a living group; its status stays available from `Process.poll`.
    """

    __slots__ = ("_look_timer", "_loop", "_on_done", "_pause", "_process", "_step_timer", "_steps", "gone")

    def __init__(self, loop: Loop, process: Process, on_done: Callable[[], object], steps: Steps = STEPS) -> None:
        self._loop, self._process, self._on_done = loop, process, on_done
        self._steps = iter(steps)
        self._pause = _LOOK_FIRST
        self._look_timer: Timer | None = None
        self._step_timer: Timer | None = None
        self.gone = False
        self._next_step()

    def cancel(self) -> None:
        """Send nothing more, and do not call `on_done`."""
        for timer in (self._look_timer, self._step_timer):
            if timer is not None:
                timer.cancel()

    def _next_step(self) -> None:
        delay, signum = next(self._steps, (_CONFIRM, None))
        self._step_timer = self._loop.call_at(self._loop.now() + delay, lambda: self._step(signum))

    def _step(self, signum: int | None) -> None:
        if signum is None:
            self._finish()
            return
        self._process.signal(signum)
        self._process.signal(signal.SIGCONT)  # a stopped process acts on nothing but SIGKILL
        self._next_step()
        self._pause = _LOOK_FIRST
        self._look_later()

    def _look(self) -> bool:
        self._process.reap()
        self.gone = not self._process.group_alive()
        return self.gone

    def _look_later(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_timer = self._loop.call_at(self._loop.now() + self._pause, self._look_again)

    def _look_again(self) -> None:
        if self._look():
            self._finish()
            return
        self._pause = min(2 * self._pause, _LOOK_EVERY)
        self._look_later()

    def _finish(self) -> None:
        self.cancel()
        self._on_done()


def give_terminal(fd: int, group: int) -> bool:
    """Make `group` the foreground group of the terminal `fd`; continue it if it was stopped meanwhile.

    False, and nothing changed, if `fd` is not our terminal, we are in its background ourselves (it is the
    user's shell's then), or the group is gone.
    """
    try:
        if os.tcgetpgrp(fd) != os.getpgrp():
            return False
        _set_foreground(fd, group)
        os.killpg(group, signal.SIGCONT)
    except OSError:
        return False
    return True


def take_terminal(fd: int) -> bool:
    """Make our own group the foreground group again, after `give_terminal`; False if the terminal is gone."""
    try:
        _set_foreground(fd, os.getpgrp())
    except OSError:
        return False
    return True


def _set_foreground(fd: int, group: int) -> None:
    # From the background the call itself stops the caller. Blocking SIGTTOU counts like ignoring it, works in
    # any thread, and is not inherited by a program started meanwhile.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(fd, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
