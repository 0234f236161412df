"""Random bytes through `cat` and back arrive as they were, over every kind of address and with either end waiting.

Rules: the bytes go in from a file and come out into a pipe that is hashed as it is read, so that both ends are always
pushed; the quick set moves 16 MiB, the slow one 256 MiB.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from certificates import make_authority
from support import Running

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

SCHEMES = ("tcp", "unix", "tls", "sock", "sock+unix", "sock+tls")
MIB = 1 << 20
SIZES = (pytest.param(16 * MIB, id="16MiB"), pytest.param(256 * MIB, id="256MiB", marks=pytest.mark.slow))


class Certificates(NamedTuple):
    """The options of a waiting and of a dialling end of tls://."""

    waiting: tuple[str, ...]
    dialling: tuple[str, ...]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and a certificate for this machine."""
    ca_file, cert_file, key_file = make_authority(tmp_path_factory.mktemp("certificates"))
    return Certificates(("--tls-cert", cert_file, "--tls-key", key_file), ("--tls-ca", ca_file))


class Source(NamedTuple):
    """A file of random bytes and its hash."""

    path: Path
    digest: str


@pytest.fixture(scope="session", params=SIZES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Random bytes of each size, made once."""
    path, digest = tmp_path_factory.mktemp("bulk") / "random", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(request.param // MIB):
            piece = os.urandom(MIB)
            file.write(piece)
            digest.update(piece)
    request.addfinalizer(path.unlink)
    return Source(path, digest.hexdigest())


def address(scheme: str) -> str:
    """Return where to wait."""
    return f"{scheme}://{os.environ['XDG_RUNTIME_DIR']}/bulk.sock" if "unix" in scheme else f"{scheme}://127.0.0.1:0"


def hash_of(pipe: BinaryIO) -> str:
    """Return the hash of all that comes."""
    digest = hashlib.sha256()
    while piece := os.read(pipe.fileno(), MIB):
        digest.update(piece)
    return digest.hexdigest()


def viewer_of(stack: ExitStack, source: Source, *args: str) -> Running:
    """Start a viewer end that reads the source and writes into a pipe."""
    stdin = stack.enter_context(source.path.open("rb"))
    viewer = stack.enter_context(Running(*args, stdin=stdin, stdout=subprocess.PIPE))
    assert viewer.process.stdout is not None
    stack.enter_context(viewer.process.stdout)
    return viewer


def check(viewer: Running, program: Running, source: Source) -> None:
    """All bytes have come back, both ends say 0, and nobody complains."""
    assert viewer.process.stdout is not None
    assert hash_of(viewer.process.stdout) == source.digest
    assert (viewer.wait(), program.wait()) == (0, 0)
    messages = [line for each in (viewer, program) for line in each.stderr.splitlines()]
    assert [m for m in messages if b": listening on " not in m and b"can reach tcp://" not in m] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_serve_and_connect(scheme: str, source: Source, certificates: Certificates) -> None:
    """What `connect` reads comes back through a served `cat` unchanged."""
    with ExitStack() as stack:
        waiting, dialling = certificates if scheme == "tls" else ((), ())
        program = stack.enter_context(Running("serve", "--once", *waiting, address(scheme), "--", "cat"))
        viewer = viewer_of(stack, source, "connect", *dialling, program.address)
        check(viewer, program, source)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_run_and_listen(scheme: str, source: Source, certificates: Certificates) -> None:
    """What `listen --once` reads comes back through a `cat` that dials unchanged."""
    with ExitStack() as stack:
        waiting, dialling = certificates if scheme == "tls" else ((), ())
        viewer = viewer_of(stack, source, "listen", "--once", *waiting, address(scheme))
        program = stack.enter_context(Running("run", *dialling, "--to", viewer.address, "--", "cat"))
        check(viewer, program, source)
