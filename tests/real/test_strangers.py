"""Programs that know nothing of sockstream at the other end of a raw address: netcat, ncat, socat, OpenSSL, Python.

Rules: where a stranger says how a connection ended, it must say nothing of a reset. One that cannot half-close (most
do not, over TLS) has its input left open until the program has ended by itself.
"""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from strangers import STRANGERS, meeting, running

from certificates import make_authority
from ends import shell
from helper_program import AWKWARD, pattern
from support import helper, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Running

DATA = AWKWARD + pattern(300_000)
HALF_CLOSING = [name for name, stranger in STRANGERS.items() if stranger.half_closes]
# This one goes on until its input ends, so that our patience with it (5 s) has to.
PATIENT = [pytest.param(name, marks=pytest.mark.slow) if name == "ncat-tls" else name for name in STRANGERS]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of an authority, a certificate and its key."""
    return dict(zip(("ca", "cert", "key"), make_authority(tmp_path_factory.mktemp("tls")), strict=True))


@pytest.fixture
def data_file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with DATA, for the stdin of a stranger."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        yield file.fileno()


def ended_well(stranger: Running) -> None:
    """Check that a stranger ends, content, at the latest when its input does, and never saw a reset."""
    stranger.close_stdin()
    assert stranger.wait() == 0, f"{stranger}"
    for trouble in b"reset", b"errno", b"Broken pipe", b"Traceback":
        assert trouble not in stranger.stderr, f"{stranger}"


def end_input(name: str, stranger: Running) -> None:
    """End a stranger's input, if it can pass that on and still listen; others see for themselves what has ended."""
    if STRANGERS[name].half_closes:
        stranger.close_stdin()


# ---- a stranger as the viewer of a program


@pytest.mark.parametrize("name", HALF_CLOSING)
def test_all_goes_in_and_all_comes_out(name: str, certificates: dict[str, str], data_file: int) -> None:
    """The program gets what the stranger sends, and its end; what it writes after that arrives; its status is ours."""
    with running(name, certificates, shell("cat; sleep 0.1; echo end; exit 5"), data_file) as (stranger, ours):
        ended_well(stranger)
        assert stranger.stdout == DATA + b"end\n"
        assert ours.wait() == 5


@pytest.mark.parametrize("name", PATIENT)
def test_a_stranger_talks_with_a_program(name: str, certificates: dict[str, str]) -> None:
    """Lines go to and fro, live; the program ends the conversation, and its status is ours."""
    program = shell('while read -r line && [ "$line" != bye ]; do echo "you said $line"; done; exit 5')
    with running(name, certificates, program) as (stranger, ours):
        for word in b"one\n", b"two\n", b"three\n":
            stranger.write(word)
            stranger.wait_for_output(b"you said " + word)
        stranger.write(b"bye\n")
        end_input(name, stranger)
        assert ours.wait() == 5
        ended_well(stranger)
        assert stranger.stdout == b"you said one\nyou said two\nyou said three\n"


@pytest.mark.parametrize("name", [*HALF_CLOSING, "openssl"])
def test_input_that_nobody_reads_makes_no_reset(name: str, certificates: dict[str, str], tmp_path: Path) -> None:
    """A program ends while the network is full of input for it: the stranger has the whole answer, and no reset."""
    (tmp_path / "data").write_bytes(b"answer\n" + bytes(8 << 20))  # more than sockets, queues and pipes hold
    with (
        (tmp_path / "data").open("rb") as file,
        running(name, certificates, shell("read -r line; echo $line; exit 5"), file.fileno()) as (stranger, ours),
    ):
        assert ours.wait() == 5
        ended_well(stranger)
        assert stranger.stdout == b"answer\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_a_lot_of_output_comes_whole(name: str, certificates: dict[str, str]) -> None:
    """8 MB, then the end of file; a stranger that ended its own input at the start gets all the same."""
    with running(name, certificates, helper("burst", 8 << 20)) as (stranger, ours):
        end_input(name, stranger)
        assert ours.wait() == 0
        ended_well(stranger)
        assert stranger.stdout == pattern(8 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nc", "ncat-unix", "socat-tls", "python-listen"])
def test_a_half_closed_stranger_may_wait(name: str, certificates: dict[str, str]) -> None:
    """Output that comes seconds after the stranger's end of file still arrives: half-closed is not gone."""
    with running(name, certificates, shell("cat; sleep 3; echo late"), subprocess.DEVNULL) as (stranger, ours):
        ended_well(stranger)
        assert stranger.stdout == b"late\n"
        assert ours.wait() == 0


# ---- a stranger in the program's place


@pytest.mark.parametrize("name", [name for name in STRANGERS if name != "ncat-tls"])
def test_a_viewer_end_talks_with_a_stranger(name: str, certificates: dict[str, str]) -> None:
    """`connect` and `listen --once` pass on what both say, live, and the end of our input; our status is 0."""
    with meeting(name, certificates, ("listen", "--once"), ("connect",), []) as (stranger, ours):
        stranger.write(b"greeting\n")
        ours.wait_for_output(b"greeting\n")
        ours.write(DATA)
        wait_until(lambda: stranger.stdout == DATA, 10, f"all that was said; there is {stranger}")
        ours.close_stdin()
        end_input(name, stranger)
        assert ours.wait() == 0, f"{ours}"
        ended_well(stranger)
        assert (ours.stdout, stranger.stdout) == (b"greeting\n", DATA)


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF_CLOSING)
def test_a_viewer_end_gets_all_that_a_stranger_has(name: str, certificates: dict[str, str], data_file: int) -> None:
    """What a stranger sends before its end of file is our whole output, while our own input is open; status 0."""
    with meeting(name, certificates, ("listen", "--once"), ("connect",), [], data_file) as (stranger, ours):
        assert ours.wait() == 0, f"{ours}"
        ended_well(stranger)
        assert ours.stdout == DATA


@pytest.mark.parametrize("way", ["listen", "serve"])
def test_a_tls_stranger_without_close_notify_was_cut(way: str, certificates: dict[str, str]) -> None:
    """ncat ends its input by closing the socket alone, as an attacker could: that is said and is no end of file."""
    command = (way, "--once", "-v")
    with meeting("ncat-tls", certificates, command, (), shell("cat") if way == "serve" else []) as (stranger, ours):
        stranger.write(b"greeting\n")
        (ours if way == "listen" else stranger).wait_for_output(b"greeting\n")
        stranger.close_stdin()
        assert ours.wait() == (125 if way == "listen" else 128 + signal.SIGHUP)
        assert b"without the other end's close_notify" in ours.stderr
        assert stranger.wait() in (0, 1)
