"""The manual page and the completions: complete, rendered and used by the real programs, and equal to the files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from sockstream import cli, errors, manual
from support import limit

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
SHELLS = ("bash", "zsh", "fish")
FILES = {
    "share/man/man1/sockstream.1": ("--man",),
    "share/bash-completion/completions/sockstream": ("--completion", "bash"),
    "share/zsh/site-functions/_sockstream": ("--completion", "zsh"),
    "share/fish/vendor_completions.d/sockstream.fish": ("--completion", "fish"),
}
FLAGS = {
    name: [flag for option in manual.options_of(command) for flag in option.flags]
    for name, command in cli.COMMANDS.items()
}


def printed(*args: str) -> str:
    """Return what the command prints."""
    command = [sys.executable, "-m", "sockstream", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit(20)).stdout


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_up_to_date(name: str) -> None:
    """What the wheel carries below share/ is what the command prints."""
    remedy = f"sockstream {' '.join(FILES[name])} >{name}"
    assert (ROOT / name).read_text() == printed(*FILES[name]), f"make it anew: {remedy}"


def test_there_are_no_other_files() -> None:
    """Nothing else is below share/, so nothing else gets installed."""
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("share/**/*") if path.is_file()} == FILES.keys()


# ---- the manual page

with_man = pytest.mark.skipif(shutil.which("man") is None, reason="man-db is not installed")


def rendered() -> str:
    """Return the page as `man` shows it on a terminal of 80 columns; fail if it warns."""
    environ = {**os.environ, "MANWIDTH": "80", "MANROFFOPT": "", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    command = ["man", "--warnings", "--nh", "--nj", "--local-file", str(ROOT / "share/man/man1/sockstream.1")]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=limit(20))
    assert (result.returncode, result.stderr) == (0, "")
    return re.sub(".\b", "", result.stdout)


@with_man
def test_man_renders_it_whole() -> None:
    """`man` shows each command's usage and each option with its text, without a warning."""
    page = rendered()
    sections = dict(zip(cli.COMMANDS, re.split(r"^   (?:\w+)$", page, flags=re.MULTILINE)[1:], strict=True))
    for name, command in cli.COMMANDS.items():
        text = " ".join(sections[name].split())
        assert command.usage in text
        assert command.summary in text
        for line in command.examples.splitlines():
            assert line.strip() in text
        for flag in FLAGS[name]:
            assert re.search(rf"(?m)^ {{7}}(?:-\w, )?{flag}\b", sections[name]), flag


@with_man
def test_the_page_has_the_usual_sections() -> None:
    """A reader finds what other pages have, and where the token is."""
    headings = re.findall(r"(?m)^[A-Z][A-Z ]+$", rendered())
    wanted = "NAME SYNOPSIS DESCRIPTION OPTIONS COMMANDS ADDRESSES EXIT-STATUS ENVIRONMENT FILES"
    assert [heading.replace(" ", "-") for heading in headings] == wanted.split()
    assert "${XDG_CONFIG_HOME:-~/.config}/sockstream/token" in rendered()


@with_man
def test_groff_has_no_objection() -> None:
    """groff with all its warnings is silent about the page."""
    command = ["groff", "-man", "-ww", "-z", "-Kutf8", str(ROOT / "share/man/man1/sockstream.1")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=limit(20))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@with_man
def test_whatis_line() -> None:
    """`lexgrog`, which feeds whatis and apropos, finds the name and what it does."""
    command = ["lexgrog", str(ROOT / "share/man/man1/sockstream.1")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=limit(20))
    assert "sockstream - put any program's stdin, stdout and stderr on a socket" in result.stdout


@with_man
@pytest.mark.parametrize("text", ["-x", "a\\b", "it's", "`~^", ".TH at the start", "two\n.lines"])
def test_special_characters_survive(text: str) -> None:
    """What roff would take for its own is shown as it stands."""
    source = f".TH X 1\n.nf\n{manual._roff(text)}\n.fi\n"
    result = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=source, capture_output=True, text=True, timeout=limit(20)
    )
    assert result.stderr == ""
    for line in text.split("\n"):
        assert line in re.sub(r"\x1b\[\d*m", "", result.stdout)


# ---- completion: every shell that is there completes for real; of the others the text is looked at


def test_another_shell_is_refused() -> None:
    """The message names the shells there are."""
    with pytest.raises(errors.SockstreamError, match=r"'tcsh'.*bash, zsh, fish"):
        manual.completion("tcsh", cli.COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_whole(shell: str) -> None:
    """It has every command and option, its quotes are paired, and the shell accepts it if it is installed."""
    script = manual.completion(shell, cli.COMMANDS)
    words = set(re.findall(r"[\w-]+", " ".join(shlex.split(script, comments=True))))
    for name, flags in FLAGS.items():
        assert name in words
        assert {flag.lstrip("-") if shell == "fish" else flag for flag in flags} <= words
    if program := shutil.which(shell):
        result = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, timeout=limit(20))
        assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a directory and two files, one with a space in its name."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file-1").touch()
    (tmp_path / "file 2").touch()
    return tmp_path


# A command line -> what must be offered for its last word, and one word that must not.
COMPLETED = {
    "sockstream ": (set(cli.COMMANDS), "--only"),
    "sockstream r": ({"run"}, "serve"),
    "sockstream --v": ({"--version"}, "run"),
    "sockstream --completion ": (set(SHELLS), "run"),
    "sockstream run --": ({flag for flag in FLAGS["run"] if flag.startswith("--")}, "--once"),
    "sockstream serve --m": ({"--max", "--merge-stderr"}, "--to"),
    "sockstream run --only ": ({"out", "in"}, "--to"),
    "sockstream run --chdir ": ({"directory"}, "file-1"),
    "sockstream run --token-file f": ({"file-1", "file 2"}, "directory"),
    "sockstream run --to {folder}/d": ({"{folder}/directory"}, "{folder}/file-1"),
    "sockstream listen {folder}/f": ({"{folder}/file-1", "{folder}/file 2"}, "{folder}/directory"),
    "sockstream token --s": ({"--show", "--set"}, "--replace"),
    "sockstream run -- sockstr": ({"sockstream"}, "run"),
    "sockstream run -- cat f": ({"file-1", "file 2"}, "--to"),
    "sockstream serve :7411 -- cat f": ({"file-1", "file 2"}, "--max"),
}


def bash_offers(line: str, folder: Path, setup: str = "") -> set[str]:
    """Return what bash's completion offers for the last word of a line."""
    words = " ".join(map(shlex.quote, line.split(" ")))
    script = f"""
        {setup}
        source {shlex.quote(str(ROOT / "share/bash-completion/completions/sockstream"))}
        COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        _sockstream
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return offered(["bash", "--norc", "-c", script], folder)


def bash_offers_with_package(line: str, folder: Path) -> set[str]:
    """The same where the package bash-completion is loaded, which completes what stands behind `--`."""
    setup = "source /usr/share/bash-completion/bash_completion; compopt() { :; }"  # which works at the Tab key only
    return bash_offers(line, folder, setup)


def fish_offers(line: str, folder: Path) -> set[str]:
    """Return what fish's completion offers for the last word of a line."""
    script = str(ROOT / "share/fish/vendor_completions.d/sockstream.fish")
    return offered(["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", script, line], folder)


def offered(command: list[str], folder: Path) -> set[str]:
    """Run a shell that prints offers, one a line, and return them without escapes and descriptions."""
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=limit(20))
    assert (result.returncode, result.stderr) == (0, "")
    return {row.partition("\t")[0].rstrip("/ ").replace("\\ ", " ") for row in result.stdout.splitlines()}


ASKED = [
    bash_offers,
    *[bash_offers_with_package] * os.path.exists("/usr/share/bash-completion/bash_completion"),
    *[fish_offers] * bool(shutil.which("fish")),
]


@pytest.mark.parametrize("line", COMPLETED)
@pytest.mark.parametrize("offers", ASKED)
def test_what_fits_is_offered(offers: Callable[[str, Path], set[str]], line: str, folder: Path) -> None:
    """The shell offers all that fits the last word and nothing of another place: bash, and fish if it is there."""
    wanted, unwanted = COMPLETED[line]
    found = offers(line.format(folder=folder), folder)
    assert {each.format(folder=folder) for each in wanted} <= found
    assert unwanted.format(folder=folder) not in found


SHELLS_WITH_TABS = {
    "bash": (["--norc"], f"source {shlex.quote(str(ROOT / 'share/bash-completion/completions/sockstream'))}"),
    "zsh": (["-f", "-i"], f"fpath=({ROOT}/share/zsh/site-functions $fpath); autoload compinit; compinit -u -D"),
}


@pytest.mark.parametrize("shell", [shell for shell in SHELLS_WITH_TABS if shutil.which(shell)])
def test_the_tab_key_completes(shell: str, folder: Path) -> None:
    """In a real shell on a terminal Tab completes an option, its value and a file: bash, and zsh if it is there."""
    arguments, setup = SHELLS_WITH_TABS[shell]
    environ = {**os.environ, "PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    size = (24, 200)
    child = pexpect.spawn(shell, arguments, cwd=str(folder), env=environ, timeout=limit(10), dimensions=size)
    try:
        child.sendline(f"{setup}; echo rea''dy")
        child.expect("ready\r+\n")
        for keys, completed in ("sockstream run --on\t", "--only "), ("o\t", "out "), ("--token-file file-\t", "1 "):
            child.send(keys)
            child.expect_exact(completed)
    finally:
        child.close(force=True)


def test_fish_rows_have_conditions() -> None:
    """No row of fish's script is valid everywhere, or options would be offered for the program behind `--`."""
    rows = [row for row in manual.completion("fish", cli.COMMANDS).splitlines() if row.startswith("complete ")]
    assert [row for row in rows if " -n " not in row] == ["complete -c sockstream -f"]
    for name, command in cli.COMMANDS.items():
        inside = [row for row in rows if f" -n '__sockstream_in {name}' " in row]
        assert len(inside) == len(manual.options_of(command))
