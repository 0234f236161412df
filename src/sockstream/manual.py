"""The manual page and the shells' completion, made from the commands' own parsers.

Rules: nothing here repeats an option or a help text; what no parser says stands in the tables below. The same
commands give the same text on every Python, so argparse's own layout, which changes between versions, is not used.
The wheel carries what is made here (`share/` in the source, compared by a test).
"""

from __future__ import annotations

import re

from . import __version__
from .errors import SockstreamError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from .options import Command

    Commands = Mapping[str, Command]

_GENERAL = {
    "--help": "list the commands",
    "--version": "print the version",
    "--man": "print this manual page",
    "--completion": "print the completion of the command line for a shell: bash, zsh or fish",
}
_DESCRIPTION = """\
A program end (run, serve) starts a program that knows nothing of sockets; a viewer end (listen, connect) shows it,
feeds it and gets its exit status. Either end may be the one that waits. Between two ends that speak the sockstream
protocol every byte arrives once and in order, also through broken connections; then the end of file, then the status.

Both ends must own the same token, a secret that is made on first use. Raw addresses, for peers that know nothing of
sockstream, have no token and no status.
"""
_ENVIRONMENT = {
    "SOCKSTREAM_ADDRESS": "The address where none is given.",
    "SOCKSTREAM_TOKEN": "The token, 64 hex digits or a passphrase, in place of the file. The program does not get it.",
    "XDG_RUNTIME_DIR, TMPDIR": "Where the directory of the default address is.",
    "XDG_CONFIG_HOME": "Where the directory of the token file is.",
    "PROTO, TCPREMOTEIP, TCPREMOTEPORT, TCPLOCALIP, TCPLOCALPORT": "Set for the program by serve, as by tcpserver.",
    "PYTHONUNBUFFERED": "Set to 1 for the program unless it is set, so that a Python program's output is live.",
}
_FILES = {
    "${XDG_CONFIG_HOME:-~/.config}/sockstream/token": "The token.",
    "${XDG_RUNTIME_DIR}/sockstream/default.sock": "The default address.",
}
_SPECIAL = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha"})


class Option:
    """One option or operand of a command, as its parser has it.

    flags: such as `-q` and `--quiet`; empty for an operand. value: what the help calls its value, "" if it takes
    none. choices: the values there are, empty if any may be given.
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
    # argparse has no public list of them; this attribute is what all tools of this kind read.
    return [Option(action) for action in command.parser()._actions]


# ---- the manual page


def man_page(commands: Commands, addresses: str, statuses: str) -> str:
    """Return the manual page in roff.

    commands: name to command; addresses, statuses: what the general help says of them, each with its heading.
    """
    general = {f"{name}{' SHELL' * (name == '--completion')}": text for name, text in _GENERAL.items()}
    rows = addresses.rstrip().split("\n")[1:]
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
        *_definitions(dict(re.split(" {2,}", row.strip(), maxsplit=1) for row in rows)),
        ".SH EXIT STATUS",
        _roff(" ".join(statuses.split()) + "."),
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
        raise SockstreamError(f"there is no completion for {shell!r}: the shells are {', '.join(makers)}")
    return makers[shell](commands)


def _quoted(text: str) -> str:
    """Put text into single quotes, for bash, zsh and fish alike."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _bash(commands: Commands) -> str:
    options = {name: options_of(command) for name, command in commands.items()}
    values = [
        f"        '{name} {flag}') {_bash_value(option)} ;;"
        for name, each in options.items()
        for option in each
        for flag in option.flags
        if option.value
    ]
    flags = [
        f"                {name}) words='{' '.join(flag for option in each for flag in option.flags)}' ;;"
        for name, each in options.items()
    ]
    return _BASH % {
        "first": " ".join([*commands, *_GENERAL]),
        "values": "\n".join(values),
        "flags": "\n".join(flags),
        "paths": " | ".join(f"{name}:/*" for name, each in options.items() if any(not o.flags for o in each)),
    }


def _bash_value(option: Option) -> str:
    if option.choices:
        return f"words='{' '.join(option.choices)}'"
    if option.takes_path:
        return f"_sockstream_paths -{'d' if option.value == 'DIR' else 'f'}; return"
    return "return"


# No mapfile and no unconditional compopt: macOS has bash 3.2. What stands behind -- is completed by
# bash-completion's _command_offset where that is loaded.
_BASH = """\
# Completion of the command sockstream in bash: made by `sockstream --completion bash`.

_sockstream() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    local words='' index
    COMPREPLY=()
    for ((index = 2; index < COMP_CWORD; index++)); do
        if [[ ${COMP_WORDS[index]} == -- ]]; then
            _sockstream_program "$((index + 1))"
            return
        fi
    done
    if ((COMP_CWORD == 1)); then
        command='' previous='' words='%(first)s'
    fi
    case "$command $previous" in
        '--completion --completion') words='bash zsh fish' ;;
%(values)s
        *)
            case $command in
%(flags)s
            esac
            case $command:$current in
                %(paths)s) _sockstream_paths -f; return ;;
            esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}

_sockstream_paths() {
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$current"))
}

_sockstream_program() {
    if declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif ((COMP_CWORD == $1)); then
        COMPREPLY=($(compgen -A command -- "$current"))
    else
        _sockstream_paths -f
    fi
}

complete -F _sockstream sockstream
"""


def _zsh(commands: Commands) -> str:
    cases = [
        f"    {name})\n      _arguments -s -S \\\n        {_zsh_specs(command)} ;;"
        for name, command in commands.items()
    ]
    return _ZSH % {
        "commands": _zsh_described({name: command.summary for name, command in commands.items()}),
        "general": _zsh_described(_GENERAL),
        "cases": "\n".join(cases),
    }


def _zsh_described(items: Mapping[str, str]) -> str:
    return " ".join(_quoted(f"{name}:{_zsh_plain(text)}") for name, text in items.items())


def _zsh_specs(command: Command) -> str:
    """Return the specifications for _arguments: every flag may be repeated; the program has all that follows."""
    specs = [
        f"*{flag}[{_zsh_plain(option.help)}]{_zsh_value(option)}" if flag else f"1{_zsh_value(option)}"
        for option in options_of(command)
        for flag in option.flags or ("",)
    ]
    return " \\\n        ".join(map(_quoted, [*specs, *["*:::PROGRAM:_normal"] * command.takes_program]))


def _zsh_plain(text: str) -> str:
    return re.sub(r"([\\:\[\]])", r"\\\1", text)


def _zsh_value(option: Option) -> str:
    if not option.value:
        return ""
    if option.choices:
        return f":{option.value}:({' '.join(option.choices)})"
    action = " " if not option.takes_path else "_files -/" if option.value == "DIR" else "_files"
    return f":{option.value}:{action}"


# Autoloaded from fpath its last lines are the function's body; sourced, they declare it.
_ZSH = """\
#compdef sockstream
# Completion of the command sockstream in zsh: made by `sockstream --completion zsh`.

_sockstream() {
  if (( CURRENT == 2 )); then
    local -a commands=(%(commands)s)
    local -a general=(%(general)s)
    _describe -t commands command commands -- general
    return
  fi
  shift words
  (( CURRENT-- ))
  case $words[1] in
    --completion) compadd bash zsh fish ;;
%(cases)s
  esac
}

if [[ $funcstack[1] == _sockstream ]]; then
  _sockstream "$@"
else
  compdef _sockstream sockstream
fi
"""


def _fish(commands: Commands) -> str:
    rows = [
        *(f"-n __sockstream_at_start -a {name} -d {_quoted(c.summary)}" for name, c in commands.items()),
        *(f"-n __sockstream_at_start -l {name[2:]} -d {_quoted(text)}" for name, text in _GENERAL.items()),
        *(_fish_option(name, option) for name, command in commands.items() for option in options_of(command)),
    ]
    return _FISH % "\n".join(f"complete -c sockstream {row}" for row in rows)


def _fish_option(command: str, option: Option) -> str:
    names = [f"-{'l' if flag.startswith('--') else 's'} {flag.lstrip('-')}" for flag in option.flags]
    value = ""
    if option.choices:
        value = f"-x -a {_quoted(' '.join(option.choices))}"
    elif option.value == "DIR":
        value = "-x -a '(__fish_complete_directories)'"
    elif option.takes_path:
        value = "-r -F" if option.flags else "-F"
    elif option.value:
        value = "-x"
    return " ".join([f"-n '__sockstream_in {command}'", *names, *[value] * bool(value), "-d", _quoted(option.help)])


_FISH = """\
# Completion of the command sockstream in fish: made by `sockstream --completion fish`.

function __sockstream_at_start
    test (count (commandline -opc)) -eq 1
end

function __sockstream_in
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test "$words[2]" = "$argv[1]"; and not contains -- -- $words
end

function __sockstream_program
    set -l words (commandline -opc)
    set -l dashes (contains -i -- -- $words); or return
    set -l program $words[(math $dashes + 1)..-1] (commandline -ct)
    complete -C (string join ' ' -- (string escape -- $program))
end

complete -c sockstream -f
complete -c sockstream -n 'contains -- -- (commandline -opc)' -x -a '(__sockstream_program)'
complete -c sockstream -n '__sockstream_in --completion' -x -a 'bash zsh fish'
%s
"""
