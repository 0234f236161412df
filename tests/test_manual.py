"""The manual page and the completions: complete, rendered and used by the real programs, and equal to the files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from sockstream import cli, errors, manual
from support import limit

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


def rendered() -> str:
    """Return the page as `man` shows it on a terminal of 80 columns; fail if it warns."""
    environ = {**os.environ, "MANWIDTH": "80", "MANROFFOPT": "", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    command = ["man", "--warnings", "--local-file", str(ROOT / "share/man/man1/sockstream.1")]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=limit(20))
    assert (result.returncode, result.stderr) == (0, "")
    return re.sub(".\b", "", result.stdout)


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


def test_the_page_has_the_usual_sections() -> None:
    """A reader finds what other pages have, and where the token is."""
    headings = re.findall(r"(?m)^[A-Z][A-Z ]+$", rendered())
    wanted = "NAME SYNOPSIS DESCRIPTION OPTIONS COMMANDS ADDRESSES EXIT-STATUS ENVIRONMENT FILES"
    assert [heading.replace(" ", "-") for heading in headings] == wanted.split()
    assert "${XDG_CONFIG_HOME:-~/.config}/sockstream/token" in rendered()


def test_groff_has_no_objection() -> None:
    """groff with all its warnings is silent about the page."""
    command = ["groff", "-man", "-ww", "-z", "-Kutf8", str(ROOT / "share/man/man1/sockstream.1")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=limit(20))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_whatis_line() -> None:
    """`lexgrog`, which feeds whatis and apropos, finds the name and what it does."""
    command = ["lexgrog", str(ROOT / "share/man/man1/sockstream.1")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=limit(20))
    assert "sockstream - put any program's stdin, stdout and stderr on a socket" in result.stdout


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
    with pytest.raises(errors.SockstreamError, match="'tcsh'.*bash, zsh, fish"):
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


def bash_offers(line: str, setup: str, folder: Path) -> set[str]:
    """Return what bash's completion offers for the last word of a line."""
    words = " ".join(map(shlex.quote, line.split(" ")))
    script = f"""
        {setup}
        source {shlex.quote(str(ROOT / "share/bash-completion/completions/sockstream"))}
        COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        _sockstream
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=folder, capture_output=True, text=True, timeout=limit(20)
    )
    assert result.returncode == 0, result.stderr
    return {offer.rstrip("/ ").replace("\\ ", " ") for offer in result.stdout.splitlines()}


@pytest.mark.parametrize("line", COMPLETED)
@pytest.mark.parametrize("setup", ["", ". /usr/share/bash-completion/bash_completion"], ids=["bare", "package"])
def test_bash_completes(line: str, setup: str, folder: Path) -> None:
    """bash offers just what fits, with and without the package bash-completion."""
    wanted, unwanted = COMPLETED[line]
    offers = bash_offers(line.format(folder=folder), setup, folder)
    assert {each.format(folder=folder) for each in wanted} <= offers
    assert unwanted.format(folder=folder) not in offers


def test_bash_completes_at_the_tab_key(folder: Path) -> None:
    """In a real bash on a real terminal one press of Tab completes an option, its value and a file with a space."""
    environ = {**os.environ, "PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    size = (24, 200)
    bash = pexpect.spawn("bash", ["--norc"], cwd=str(folder), env=environ, timeout=limit(10), dimensions=size)
    try:
        bash.sendline(f"source {shlex.quote(str(ROOT / 'share/bash-completion/completions/sockstream'))}; echo rea''dy")
        bash.expect_exact("ready\r\n")
        bash.send("sockstream ru\t --on\t o\t --token-file file\\ \t")
        bash.expect_exact(b"sockstream run  --only  out  --token-file file\\ 2 ")
    finally:
        bash.close(force=True)


FISH_ASKS = "source $argv[1]; complete -C $argv[2]"


@pytest.mark.parametrize("line", COMPLETED)
def test_fish_completes(line: str, folder: Path) -> None:
    """fish, where it is installed, offers just what fits; elsewhere each row's option has its condition."""
    script = ROOT / "share/fish/vendor_completions.d/sockstream.fish"
    fish = shutil.which("fish")
    if fish is None:
        rows = [row for row in script.read_text().splitlines() if row.startswith("complete -c sockstream -n ")]
        assert len(rows) == sum(len(manual.options_of(command)) + 1 for command in cli.COMMANDS.values()) + 4 + 2
        return
    wanted, unwanted = COMPLETED[line]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        [fish, "--no-config", "-c", FISH_ASKS, str(script), line.format(folder=folder)],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=limit(20),
    )
    assert result.stderr == ""
    offers = {row.partition("\t")[0].rstrip("/").replace("\\ ", " ") for row in result.stdout.splitlines()}
    expected = {each.format(folder=folder) for each in wanted}
    assert expected <= offers
    assert unwanted.format(folder=folder) not in offers
