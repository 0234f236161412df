"""How long a whole `sockstream run -- true` takes, against a bare interpreter that connects and execs.

Usage: python benchmarks/start.py [ROUNDS]
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import _bench as bench

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 25
BARS = {"raw tcp://": 1.6, "sock://": 1.8}
BARE = """
import os, socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for fd in (0, 1):
    os.dup2(link.fileno(), fd)
os.execvp("true", ["true"])
"""
BARE_LOOP = """
import os, socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
r, w = os.pipe()
pid = os.posix_spawnp("true", ["true"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, w, 1)], setsid=True)
os.close(w)
while data := os.read(r, 65536):
    link.sendall(data)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
link.shutdown(socket.SHUT_WR)
link.recv(1)
os._exit(status)
"""


def drain(server: socket.socket) -> None:
    """Take connections and read each to its end, for ever."""
    while True:
        link, _ = server.accept()
        with link:
            while link.recv(65536):
                pass


def timed(command: list[str]) -> float:
    """Return the seconds that a command takes, which must end with 0."""
    began = time.perf_counter()
    process = bench.start(command)
    if process.wait():  # with a limit it would look only every 50 ms
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - began


def main() -> None:
    """Run the rounds and print the table."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=drain, args=(server,), daemon=True).start()
    port = str(server.getsockname()[1])
    ours = free = str(bench.free_port())
    viewer = bench.start([*bench.SOCKSTREAM, "listen", "-q", f"sock://127.0.0.1:{free}"])
    bench.wait_for_port(int(free))
    bare_file, loop_file = bench.HOME / "bare.py", bench.HOME / "loop.py"
    Path(bare_file).write_text(BARE)
    Path(loop_file).write_text(BARE_LOOP)
    run = [*bench.SOCKSTREAM, "run", "-q"]
    try:
        results = bench.rounds(
            ROUNDS,
            bare=lambda: timed([sys.executable, str(bare_file), port]),
            loop=lambda: timed([sys.executable, str(loop_file), port]),
            raw=lambda: timed([*run, "--to", f"tcp://127.0.0.1:{port}", "--", "true"]),
            sock=lambda: timed([*run, "--to", f"sock://127.0.0.1:{ours}", "--", "true"]),
        )
    finally:
        bench.end(viewer)
    table = bench.Table("Start: `run -- true` against an interpreter that connects and execs")
    bare = bench.ratio(results["loop"], results["bare"])
    for name, key in (("raw tcp://", "raw"), ("sock://", "sock")):
        table.row(
            name,
            f"{bench.median(results[key]) * 1000:.0f} ms",
            f"{bench.median(results['bare']) * 1000:.0f} ms",
            bench.ratio(results[key], results["bare"]),
            BARS[name],
            at_least=False,
            bare=bare,
        )
    table.finish()


if __name__ == "__main__":
    main()
