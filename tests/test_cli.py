"""The command line: help, errors, exit codes, streams that are closed; what it imports; that pipx can install it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sockstream
from sockstream import cli
from support import SOCKSTREAM, Running, free_port, helper, limit

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
SCRIPT = str(Path(sysconfig.get_path("scripts"), "sockstream"))
OURS = 125


def run(*args: str, command: Sequence[str] = SOCKSTREAM, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with no input."""
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*command, *args], text=True, timeout=limit(30), **settings)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `sockstream` is the installed command."""
    path = f"{Path(SCRIPT).parent}:{os.environ['PATH']}"
    return run("-o", "pipefail", "-c", line, command=["bash"], env={**os.environ, "PATH": path})


def assert_one_line(result: subprocess.CompletedProcess[str], fragment: str, status: int = OURS) -> None:
    """Check that a command said just one line, why it failed, and ended with that status."""
    assert (result.returncode, result.stdout) == (status, "")
    assert re.fullmatch(r"sockstream: [^\n]+\n", result.stderr), result.stderr
    assert fragment in result.stderr


# ---- help and version


@pytest.mark.parametrize("command", [SOCKSTREAM, [SCRIPT]], ids=["module", "script"])
def test_version(command: Sequence[str]) -> None:
    """`--version` prints the package's version, as a module and as a script."""
    result = run("--version", command=command)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"sockstream {sockstream.__version__}\n", "")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_general_help(word: str) -> None:
    """`--help` names every command with its summary."""
    result = run(word)
    assert (result.returncode, result.stderr) == (0, "")
    for command in cli.COMMANDS.values():
        assert re.search(rf"^  {command.name} +{re.escape(command.summary)}$", result.stdout, re.MULTILINE)


def test_no_command_at_all() -> None:
    """Without a word the help is shown, and it is no success."""
    assert run().stdout == run("--help").stdout
    assert run().returncode == OURS


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command(name: str) -> None:
    """A command's help has its usage, its examples and what each option is for."""
    result = run(name, "--help")
    command = cli.COMMANDS[name]
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {command.usage}\n")
    assert f"examples:\n{command.examples}\n" in result.stdout
    assert all(action.help for action in command.parser()._actions)


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_fits_a_terminal(name: str) -> None:
    """No line of a help is longer than the 80 columns there are where stdout is no terminal."""
    result = run(*filter(None, [name]), "--help")
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []


def test_help_fits_a_narrow_terminal() -> None:
    """The options' texts are wrapped to the columns that COLUMNS tells."""
    options = run("run", "--help", env={**os.environ, "COLUMNS": "50"}).stdout.partition("examples:")[0]
    assert max(map(len, options.splitlines()[3:])) <= 50


EXAMPLES = [
    (name, line.strip())
    for name, command in cli.COMMANDS.items()
    for line in [*command.examples.splitlines(), *cli.general_help().splitlines()]
    if line.strip().startswith(f"sockstream {name}") and not line.strip().endswith(("terminal", "another"))
]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_examples_are_right(name: str, line: str) -> None:
    """Every example in a help is understood by the command that it shows."""
    words = shlex.split(re.split(r" [|>]", line)[0])
    options = cli.parse(cli.COMMANDS[name], words[2:])
    assert options.command == name


def test_every_command_has_an_example() -> None:
    """The examples above are not there by accident."""
    assert {name for name, _line in EXAMPLES} == cli.COMMANDS.keys()


# ---- what goes wrong is one line, and 125

MISTAKES = {
    "frob": "there is no command 'frob'",
    "--frob": "there is no command '--frob'",
    "run": "no program",
    "run --": "no program",
    "run echo hi": "sockstream run ... -- echo hi",
    "run --frob -- echo": "not understood: --frob",
    "run --to foo -- echo": "'foo' has no port",
    "run --to tcp:80 -- echo": "needs two slashes",
    "run --wait x -- echo": "'x' is no number of seconds",
    "run --wait -1 -- echo": "--wait",
    "run --grace nan -- echo": "'nan' is no number of seconds",
    "run --only both -- echo": "'both'",
    "run --env X -- echo": "'X' is not NAME=VALUE",
    "run --chdir /nonexistent -- echo": "cannot enter '/nonexistent'",
    "run --token-file /nonexistent -- echo": "there is no token file '/nonexistent'",
    "run --wait 0 -- echo": "there is no such socket",
    "run --wait 0 --to tcp://127.0.0.1:1 -- echo": "nobody listens there",
    "serve": "ADDRESS",
    "serve :0": "no program",
    "serve --max 0 :0 -- echo": "'0' is no whole number above 0",
    "serve --max x :0 -- echo": "'x' is no whole number above 0",
    "serve tcp://0.0.0.0:0 -- echo": "--insecure",
    "serve tls://127.0.0.1:0 -- echo": "--tls-cert",
    "listen --frob": "not understood: --frob",
    "listen --once --timestamps": "not allowed with",
    "listen a b": "not understood: b",
    "listen tcp://0.0.0.0:0": "--insecure",
    "listen /nonexistent/socket": "/nonexistent/socket",
    "connect": "ADDRESS",
    "connect --wait 0 :1": "nobody listens there",
    "token frob": "not understood: frob",
    "token --set": "that is no token",
    "token --show --set": "not allowed with",
    "token --replace": "--replace goes with --set",
    "demo --seconds x": "'x' is no number of seconds",
    "--completion tcsh": "no completion for 'tcsh'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line(line: str) -> None:
    """A mistake is told in one line that names it, and the status is 125."""
    assert_one_line(run(*line.split()), MISTAKES[line])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_options_without_their_value(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An option whose value is missing is told by its name, for every option there is."""
    flags = [a.option_strings[-1] for a in cli.COMMANDS[name].parser()._actions if a.option_strings and a.nargs is None]
    assert flags
    for flag in flags:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, flag])
        said = capfd.readouterr()
        assert (stop.value.code, said.out) == (OURS, "")
        assert re.fullmatch(rf"sockstream: argument {flag}: [^\n]+\n", said.err)


def test_control_characters_are_escaped() -> None:
    """What somebody typed or pasted cannot move the cursor or forge a line."""
    assert_one_line(run("\x1b[2J\nsockstream: all is well"), r"'\x1b[2J\nsockstream: all is well'")


def test_arguments_that_are_no_text() -> None:
    """Bytes that are not UTF-8 are told as well as may be, without a traceback."""
    result = subprocess.run([SCRIPT, b"\xff\xfe"], capture_output=True, timeout=limit(30))
    assert (result.returncode, result.stdout) == (OURS, b"")
    assert result.stderr.startswith(b"sockstream: there is no command ")
    assert result.stderr.count(b"\n") == 1


def test_an_occupied_address(tmp_path: Path) -> None:
    """A second listener is told that there is one."""
    with Running("listen", f"{tmp_path}/socket") as first:
        assert first.address
        assert_one_line(run("listen", f"{tmp_path}/socket"), "listens on")


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), (str(ROOT / "LICENSE"), 126)])
def test_a_program_that_cannot_start(program: str, status: int, tmp_path: Path) -> None:
    """Both ends say why, each in one line, and end as env does."""
    with Running("listen", "--once", f"{tmp_path}/socket") as viewer:
        assert_one_line(run("run", "--to", f"{tmp_path}/socket", "--", program), f"cannot start '{program}'", status)
        assert viewer.wait() == status
        assert f"could not be started: cannot start '{program}'".encode() in viewer.stderr


def test_the_wrong_kind_of_peer(tmp_path: Path) -> None:
    """A viewer that dials a viewer is told what to do instead."""
    with Running("listen", f"{tmp_path}/socket") as viewer:
        assert viewer.address
        expected = "refused: this end shows programs: start one with sockstream run"
        assert_one_line(run("connect", f"{tmp_path}/socket"), expected)


# ---- the token


def test_token_is_shown_and_carried(tmp_path: Path) -> None:
    """`token` names the file, `--show | --set` carries it to another home, `--replace` overwrites another."""
    path = Path(os.environ["XDG_CONFIG_HOME"], "sockstream/token")
    assert run("token").stdout == f"{path}\n"
    assert run("token", "--show").stdout == path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    carried = shell(f"sockstream token --show | XDG_CONFIG_HOME={tmp_path} sockstream token --set")
    assert carried.stdout == f"the token is kept in {tmp_path}/sockstream/token\n"
    assert Path(tmp_path, "sockstream/token").read_text() == path.read_text()
    assert "holds another token" in shell(f"echo {'0' * 64} | sockstream token --set").stderr
    assert shell(f"echo {'0' * 64} | sockstream token --set --replace").returncode == 0
    assert path.read_text() == "0" * 64 + "\n"


def test_token_that_is_no_text() -> None:
    """Rubbish on stdin is no token, and no traceback."""
    assert_one_line(shell("head -c 100000 /dev/zero | tr '\\0' '\\377' | sockstream token --set"), "that is no token")


def test_token_file_is_relative_to_where_the_user_is(tmp_path: Path) -> None:
    """`--chdir` is for the program: a relative `--token-file` is looked up before it."""
    (tmp_path / "token").write_text("1" * 64 + "\n")
    (tmp_path / "token").chmod(0o600)
    end = ("--token-file", "token")
    with Running("listen", "--once", *end, f"{tmp_path}/socket", cwd=tmp_path) as viewer:
        assert viewer.address
        result = run("run", *end, "--to", f"{tmp_path}/socket", "--chdir", "/", "--", "pwd", cwd=tmp_path)
        assert (result.returncode, result.stderr, viewer.wait(), viewer.stdout) == (0, "", 0, b"/\n")


# ---- stdin, stdout and stderr that are closed, full, or not read


@pytest.mark.parametrize("words", ["--help", "run --help", "token", "--man", "demo"])
def test_output_that_nobody_reads(words: str) -> None:
    """Behind `| true` a command ends as one that SIGPIPE ends, and says nothing."""
    result = shell(f"{{ sleep 0.2; sockstream {words}; }} | true")
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


def test_output_that_is_read_in_part() -> None:
    """`| head -1` gets the first line and no complaint."""
    result = shell("sockstream --help | head -1")
    assert result.stdout.startswith("usage: ")
    assert result.stderr == ""


@pytest.mark.parametrize("words", ["--help", "run --help", "token", "--completion zsh", "demo"])
def test_output_that_cannot_be_written(words: str) -> None:
    """A full disk is told in one line."""
    assert_one_line(shell(f"sockstream {words} >/dev/full"), "No space left on device")


@pytest.mark.parametrize("words", ["--help", "run --help", "token"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(words: str, closed: str) -> None:
    """With closed streams a command ends well, and what it opens never takes their places."""
    result = shell(f"sockstream {words} {closed}")
    assert (result.returncode, result.stderr) == (0, "")
    assert bool(result.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_viewer_with_closed_streams(closed: str, tmp_path: Path) -> None:
    """`listen` takes a closed stream for /dev/null: the program comes to its end, and so does it."""
    with Running(
        "-c", f'exec "$@" {closed}', "sh", *SOCKSTREAM, "listen", "--once", f"{tmp_path}/socket", command=["sh"]
    ) as viewer:
        program = "echo out; echo err >&2; exit 4"
        result = run("run", "--to", f"{tmp_path}/socket", "--", "sh", "-c", program)
        assert (result.returncode, result.stderr, viewer.wait()) == (4, "", 4)
        assert viewer.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")


def test_a_program_end_with_closed_streams(tmp_path: Path) -> None:
    """`run` without any stream carries the program's, and ends with its status."""
    with Running("listen", "--once", f"{tmp_path}/socket") as viewer:
        result = shell(f"sockstream run --to {tmp_path}/socket -- sh -c 'echo out; exit 4' <&- >&- 2>&-")
        assert (result.returncode, viewer.wait(), viewer.stdout) == (4, 4, b"out\n")


# ---- what `run` imports

HEAVY = {
    "asyncio", "dataclasses", "inspect", "logging", "multiprocessing", "pathlib", "pickle", "secrets", "ssl",
    "subprocess", "tempfile", "typing",
}  # fmt: skip
# -I -S: nothing that the environment or site brings along may hide an import of ours.
RUN_AND_TELL = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from sockstream.cli import main
status = main(sys.argv[1:])
print(status, *sorted(sys.modules))
"""


def started(*args: str) -> Running:
    """Start `sockstream run ARGS` in a fresh interpreter that tells its status and its modules."""
    package = str(Path(sockstream.__file__).parent.parent)
    return Running(package, "run", *args, command=[sys.executable, "-I", "-S", "-c", RUN_AND_TELL])


def assert_light(process: Running) -> None:
    """Check the status of a `started` command, and that none of its modules is heavy."""
    assert (process.wait(), process.stderr) == (0, b"")
    status, *modules = process.stdout.decode().split()
    assert status == "7"
    assert {"sockstream.runner", "argparse", "socket"} <= set(modules)  # it really ran, and this sees modules
    assert HEAVY & set(modules) == set()
    assert "shutil" not in modules  # which argparse imports for its help's width: 2 ms


def test_run_imports_nothing_heavy_over_tcp() -> None:
    """A whole `run` over raw TCP, program and all, gets by without the modules that take long to import.

    Nothing is excepted: what argparse, socket and selectors import themselves (re, enum, collections) is not listed.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with started("--to", address, "--", "sh", "-c", "read line; echo $line; exit 7") as process:
            server.settimeout(limit(20))
            peer, _name = server.accept()
            with peer:
                peer.sendall(b"hello\n")
                peer.shutdown(socket.SHUT_WR)
                assert peer.makefile("rb").read() == b"hello\n"
            assert_light(process)


def test_run_imports_nothing_heavy_with_the_protocol(tmp_path: Path) -> None:
    """The same over a Unix socket with the protocol: the handshake, the token and the session add nothing heavy."""
    with Running("listen", "--once", f"{tmp_path}/socket") as viewer:
        assert viewer.address
        with started("--to", f"{tmp_path}/socket", "--", *helper("exit", 7)) as process:
            assert viewer.wait() == 7
            assert_light(process)


# ---- installed by pipx


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of the source as a fresh clone has it, as far as the package needs it."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("src", "share"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".mypy_cache"))
    return copy


@pytest.mark.slow
def test_pipx_installs_it(source: Path) -> None:
    """`pipx install .` gives a command that runs programs, its manual page, and all other files of share/."""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    run("-c", "pipx install .", command=["bash"], cwd=source, env={**os.environ, "PATH": path}, check=True)
    home = Path(os.environ["HOME"], ".local")
    command = [str(home / "bin/sockstream")]
    assert run("--version", command=command).stdout == f"sockstream {sockstream.__version__}\n"
    assert ".TH SOCKSTREAM 1" in (home / "share/man/man1/sockstream.1").read_text()
    for path in (path for path in ROOT.glob("share/**/*") if path.is_file()):
        assert (home / "share/pipx/venvs/sockstream" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    port = free_port()
    with Running("serve", "--once", f":{port}", "--", "echo", "hi", command=command) as server:
        assert server.address == f"sock://127.0.0.1:{port}"
        assert run("connect", f":{port}", command=command).stdout == "hi\n"
        assert server.wait() == 0
