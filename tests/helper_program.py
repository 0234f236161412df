"""A program with modes, for tests to run: it knows only stdin, stdout and stderr.

usage: helper_program.py MODE [ARGUMENT...]

Rules: the standard library only, and each import in the mode that needs it, so that it starts fast. It writes
straight to the descriptors, except where a mode is about buffering. It takes SIGPIPE as a C program does, and
none outlives half an hour, so that a failed test leaves nothing for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time

LIFETIME = 1800  # seconds
PIECE = 65536  # a multiple of 4: then pieces of random bytes join up to what one call gives
AWKWARD = bytes(range(256)) + b"\n\xff\xfe \xc3( \xed\xa0\x80\n\0\0\0\r\n\r\x1b[31m\n" + b"no newline at end"


def pattern(count, seed=1):
    """Return the first count bytes that `burst`, `flood`, `unread` and `both` write."""
    import random

    return random.Random(seed).randbytes(-(-count // 4) * 4)[:count]


def pieces(seed=1):
    """Yield the pattern for ever."""
    import random

    generator = random.Random(seed)
    while True:
        yield generator.randbytes(PIECE)


def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def say(text):
    write(1, f"{text}\n".encode())


def burst(count):
    """Write COUNT bytes of the pattern and exit at once."""
    left = int(count)
    for piece in pieces():
        if left <= 0:
            return
        write(1, piece[:left])
        left -= len(piece)


def flood():
    """Write the pattern for ever."""
    for piece in pieces():
        write(1, piece)


def tick(count, delay):
    """Print COUNT numbered lines through Python's own buffer, never flushed, DELAY seconds apart."""
    for number in range(int(count)):
        print("tick", number)
        time.sleep(float(delay))


def echo_late(seconds):
    """Read stdin to its end, wait, then write what was read."""
    data = sys.stdin.buffer.read()
    time.sleep(float(seconds))
    write(1, data)


def ignore_term():
    """Ignore SIGTERM and SIGHUP, say `ignoring`, and stay."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    say("ignoring")
    stay()


def grandchild(seconds):
    """Say `parent` and a child's id and exit; the child holds stdout for SECONDS, then says `grandchild`."""
    child = os.fork()
    if child:
        say(f"parent {child}")
    else:
        time.sleep(float(seconds))
        say("grandchild")


def grandchild_silent(seconds):
    """Say `parent` and a child's id and exit; the child holds no descriptor of ours for SECONDS."""
    child = os.fork()
    if child:
        say(f"parent {child}")
        return
    null = os.open(os.devnull, os.O_RDWR)
    for fd in 0, 1, 2:
        os.dup2(null, fd)
    time.sleep(float(seconds))


def close_stdout_and_work(seconds):
    """Say `before`, close stdout, work for SECONDS, say `after` on stderr."""
    say("before")
    os.close(1)
    time.sleep(float(seconds))
    write(2, b"after\n")


def close_stdin(seconds):
    """Close stdin, say `closed`, stay for SECONDS."""
    os.close(0)
    say("closed")
    time.sleep(float(seconds))


def exit_with(status):
    """Exit with STATUS."""
    sys.exit(int(status))


def kill_self(name):
    """Die of the signal NAME, such as TERM."""
    import resource

    number = signal.Signals[f"SIG{name}"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def stderr_lines(length, count):
    """Write COUNT numbered lines of LENGTH characters to stderr."""
    for number in range(int(count)):
        write(2, str(number).ljust(int(length), "x").encode() + b"\n")


def awkward_bytes():
    """Write every byte value, invalid UTF-8, NULs, and a last line without a newline."""
    write(1, AWKWARD)


def stay(seconds=LIFETIME):
    """Write nothing, read nothing, for SECONDS."""
    time.sleep(float(seconds))


def unread(count):
    """Wait for input and leave it unread; write COUNT bytes of the pattern and exit."""
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.poll()
    burst(count)


def both(count):
    """Write COUNT bytes each to stdout (seed 1) and stderr (seed 2), in turns."""
    left = int(count)
    for out, err in zip(pieces(1), pieces(2), strict=True):
        if left <= 0:
            return
        write(1, out[:left])
        write(2, err[:left])
        left -= PIECE


def environment():
    """Write the environment, one NAME=VALUE a line."""
    for name, value in sorted(os.environb.items()):
        write(1, name + b"=" + value + b"\n")


def tty():
    """Open /dev/tty and set its attributes, which stops a background process; say what happened."""
    import errno
    import termios

    try:
        fd = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        say(f"not opened: {errno.errorcode[error.errno]}")
        return
    say("opened")
    termios.tcsetattr(fd, termios.TCSADRAIN, termios.tcgetattr(fd))
    say("attributes set")


def lines_in():
    """Answer each line of stdin at once."""
    for line in iter(sys.stdin.buffer.readline, b""):
        write(1, b"got " + line)


MODES = {
    "both": both,
    "burst": burst,
    "bytes": awkward_bytes,
    "close-stdin": close_stdin,
    "close-stdout-and-work": close_stdout_and_work,
    "echo-late": echo_late,
    "env": environment,
    "exit": exit_with,
    "flood": flood,
    "grandchild": grandchild,
    "grandchild-silent": grandchild_silent,
    "ignore-term": ignore_term,
    "lines-in": lines_in,
    "signal": kill_self,
    "sleep": stay,
    "stderr-lines": stderr_lines,
    "tick": tick,
    "tty": tty,
    "unread": unread,
}

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.alarm(LIFETIME)
    MODES[sys.argv[1]](*sys.argv[2:])
