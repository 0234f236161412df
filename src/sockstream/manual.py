"""The manual page and the shells' completion, made from the commands' own parsers.

Rules: nothing here repeats an option or a help text: what a parser does not say stands in the page's sections below;
the same commands give the same text on every Python, so argparse's own layout, which changes between versions, is not
used. The wheel carries what is made here (share/ in the source), and a test compares.
"""

from __future__ import annotations

import shlex

from . import __version__
from .errors import SockstreamError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from .cli import Command

    Commands = Mapping[str, Command]

_GENERAL = {
    "--help": "list the commands",
    "--version": "print the version",
    "--man": "print the manual page",
    "--completion": "print a shell's completion",
}
_SHELLS = ("bash", "zsh", "fish")

_DESCRIPTION = """\
A program end (run, serve) starts a program that knows nothing of sockets; a viewer end (listen, connect) shows it,
feeds it and gets its exit status. Between the two ends every byte arrives once and in order, also through broken
connections; then the end of file, then the status.

Either end may be the one that waits. Both must own the same token, a secret that is made on first use; raw
addresses, for peers that know nothing of sockstream, have none.
"""
_ENVIRONMENT = {
    "SOCKSTREAM_ADDRESS": "the address where none is given",
    "SOCKSTREAM_TOKEN": "the token, 64 hex digits or a passphrase, in place of the file; the program does not get it",
    "XDG_RUNTIME_DIR, TMPDIR": "where the directory of the default socket is",
    "XDG_CONFIG_HOME": "where the token file is",
    "PROTO, TCPREMOTEIP, TCPREMOTEPORT, TCPLOCALIP, TCPLOCALPORT": "set by serve for the program, as by tcpserver",
    "PYTHONUNBUFFERED": "set to 1 for the program unless it is set, so that a Python program's output is live",
}
_FILES = {
    "${XDG_CONFIG_HOME:-~/.config}/sockstream/token": "the token",
    "${XDG_RUNTIME_DIR}/sockstream/default.sock": "the default address",
}


class Option:
    """One option or operand of a command, as its parser has it.

    flags: `-q`, `--quiet`; empty for an operand. value: what the usage calls its value, "" if it takes none.
    choices: the values there are, empty if any may be given.
    """

    __slots__ = ("choices", "flags", "help", "value")

    def __init__(self, action: argparse.Action) -> None:
        self.flags = tuple(action.option_strings)
        self.choices = tuple(map(str, action.choices or ()))
        self.help = action.help or ""
        name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        self.value = "" if action.nargs == 0 else "|".join(self.choices) or name

    @property
    def takes_path(self) -> bool:
        """Whether a path may be its value."""
        return self.value in ("FILE", "DIR", "ADDRESS")


def options_of(command: Command) -> list[Option]:
    """Return a command's options and operands in the order of its help."""
    # argparse has no public list of them; this attribute is what every tool of this kind reads.
    return [Option(action) for action in command.parser()._actions]


# ---- the manual page


def man_page(commands: Commands, addresses: str, statuses: str) -> str:
    """Return the manual page in roff.

    commands: name to command; addresses, statuses: what the general help says of them, each with its heading.
    """
    general = {f"{name}{' SHELL' * (name == '--completion')}": text for name, text in _GENERAL.items()}
    parts = [
        f'.TH SOCKSTREAM 1 "" "sockstream {__version__}" "User Commands"',
        ".SH NAME",
        r"sockstream \- put any program's stdin, stdout and stderr on a socket",
        ".SH SYNOPSIS",
        *_lines(command.usage for command in commands.values()),
        ".SH DESCRIPTION",
        _roff(_DESCRIPTION.rstrip()).replace("\n\n", "\n.PP\n"),
        ".SH OPTIONS",
        *_definitions(general),
        ".SH COMMANDS",
        *(line for command in commands.values() for line in _section(command)),
        ".SH ADDRESSES",
        *_definitions(dict(re.split(" {2,}", row.strip(), maxsplit=1) for row in _below_heading(addresses))),
        ".SH EXIT STATUS",
        _roff(" ".join(statuses.split())),
        ".SH ENVIRONMENT",
        *_definitions(_ENVIRONMENT),
        ".SH FILES",
        *_definitions(_FILES),
    ]
    return "\n".join(parts) + "\n"


def _roff(text: str) -> str:
    """Escape what roff would read: the characters of _SPECIAL, and dots at line starts."""
    text = text.translate(_SPECIAL)
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in text.split("\n"))


def _lines(texts: Iterable[str]) -> list[str]:
    return [".nf", *(_roff(text) for text in texts), ".fi"]


def _definitions(items: Mapping[str, str]) -> list[str]:
    return [line for term, text in items.items() for line in (".TP", rf"\fB{_roff(term)}\fR", _roff(text))]


def _below_heading(text: str) -> list[str]:
    return text.rstrip("\n").split("\n")[1:]


def _section(command: Command) -> list[str]:
    """Return a command's part of the page."""
    options = {f"{', '.join(o.flags)} {o.value}".strip(): o.help for o in options_of(command)}
    examples = _lines(line.strip() for line in command.examples.split("\n"))
    head = [f".SS {command.name}", rf"\fB{_roff(command.usage)}\fR", ".PP", _roff(command.summary)]
    return [*head, *_definitions(options), ".PP", "Examples:", ".PP", ".RS 4", *examples, ".RE"]


# ---- completion


def completion(shell: str, commands: Commands) -> str:
    """Return the script that completes the command line in a shell: bash, zsh or fish.

    Raises SockstreamError for another shell.
    """
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in makers:
        raise SockstreamError(f"there is no completion for {shell!r}: the shells are {', '.join(_SHELLS)}")
    options = {name: options_of(command) for name, command in commands.items()}
    return makers[shell](commands, options)


def _flags(options: list[Option], wanted: Callable[[Option], bool] = lambda _option: True) -> list[str]:
    return [flag for option in options if wanted(option) for flag in option.flags]


def _bash(commands: Commands, options: Mapping[str, list[Option]]) -> str:
    values = [
        f"        '{name} {flag}') {_bash_values(option)} ;;"
        for name, each in options.items()
        for option in each
        if option.value
        for flag in option.flags
    ]
    flags = [f"                {name}) words='{' '.join(_flags(each))}' ;;" for name, each in options.items()]
    return _BASH.format(
        first=" ".join([*commands, *_GENERAL]),
        shells=" ".join(_SHELLS),
        values="\n".join(values),
        flags="\n".join(flags),
        with_address="|".join(name for name, each in options.items() if any(not o.flags for o in each)),
    )


def _bash_values(option: Option) -> str:
    if option.choices:
        return f"words='{' '.join(option.choices)}'"
    return f"_sockstream_paths -{'d' if option.value == 'DIR' else 'f'}; return" if option.takes_path else "return"


_BASH = """\
# Completion of sockstream's command line for bash, made by `sockstream --completion bash`.

_sockstream_paths() {{
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$current"))
}}

# The program behind --, whose name is word number $1.
_sockstream_program() {{
    if declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif ((COMP_CWORD == $1)); then
        COMPREPLY=($(compgen -A command -- "$current"))
    else
        _sockstream_paths -f
    fi
}}

_sockstream() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words='' index
    COMPREPLY=()
    for ((index = 2; index < COMP_CWORD; index++)); do
        if [[ ${{COMP_WORDS[index]}} == -- ]]; then
            _sockstream_program "$((index + 1))"
            return
        fi
    done
    case "$((COMP_CWORD == 1)) $command ${{COMP_WORDS[COMP_CWORD - 1]}}" in
        1*) words='{first}' ;;
        *--completion) words='{shells}' ;;
    esac
    case "$command ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{values}
        *)
            case $command in
{flags}
            esac
            case $command:$current in
                {with_address}) _sockstream_paths -f; return ;;
            esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}

complete -F _sockstream sockstream
"""
