"""The command line: options in, exit codes out, no logic of its own.

Rules: only the named subcommand's parser is built and only what it needs is imported, since a wrapper's start time
is part of its job; whatever goes wrong is one line on stderr, never a traceback; our own trouble is 125, as with
`env` and `timeout`, and the options of the program that follows `--` are never looked at.
"""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__, address, errors
from .notices import Notices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from .address import Address
    from .security import Security

OUR_TROUBLE = 125
_ADDRESSES = """\
addresses:
  /path, sock+unix:///path   the sockstream protocol on a Unix socket (default)
  :port, sock://host:port    the protocol on TCP; off this machine in TLS
  sock+tls://host:port       the protocol, always in TLS
  tcp:// unix:/// tls://     raw bytes, for peers that know nothing of all this
"""
_STATUSES = """\
exit status (of serve and listen with --once):
  the program's own, or 128+N where signal N ended it;
  126 it cannot be executed, 127 it is not found;
  125 trouble of sockstream's own, which is one line on stderr
"""
_NOTES = f"\n{_ADDRESSES}\n{_STATUSES}"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit 125."""

    def error(self, message: str) -> NoReturn:
        Notices().error(f"{message}; see {self.prog} --help")
        raise SystemExit(OUR_TROUBLE)

    def print_help(self, file: object = None) -> None:
        show(self.format_help())


class Layout(argparse.RawDescriptionHelpFormatter):
    """argparse's own, which would import shutil (2 ms) to find the width, whether there is help to print or not."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    text = os.environ.get("COLUMNS", "")
    try:
        return int(text) if text.isdecimal() and int(text) else os.get_terminal_size(1).columns or 80
    except OSError:  # stdout is no terminal
        return 80


class Command:
    """A subcommand: its summary for the list of commands, its examples, its options and what it does.

    operands: what the usage has behind the options; notes: what its help says below the examples.
    """

    __slots__ = ("examples", "name", "notes", "operands", "options", "perform", "summary")

    def __init__(
        self,
        name: str,
        operands: str,
        summary: str,
        examples: str,
        options: Callable[[Parser], None],
        perform: Callable[[argparse.Namespace], int],
        notes: str = _NOTES,
    ) -> None:
        self.name = name
        self.operands = operands
        self.summary = summary
        self.examples = examples
        self.options = options
        self.perform = perform
        self.notes = notes

    @property
    def takes_program(self) -> bool:
        """Whether a program follows behind `--`."""
        return "PROGRAM" in self.operands

    @property
    def usage(self) -> str:
        """How it is written."""
        return f"sockstream {self.name} [options] {self.operands}".rstrip()

    def parser(self) -> Parser:
        """Build this command's parser; the program behind `--` is cut off before it is used."""
        parser = Parser(
            prog=f"sockstream {self.name}",
            description=self.summary,
            epilog=f"examples:\n{self.examples}\n{self.notes}",
            formatter_class=Layout,
            usage=self.usage,
            allow_abbrev=False,
        )
        self.options(parser)
        return parser


def show(text: str) -> None:
    """Write to stdout; raises SockstreamError where that cannot be, SystemExit where nobody reads any more."""
    data = os.fsencode(text)  # a path need not be valid text
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        raise SystemExit(141) from None  # as a program ends that SIGPIPE ends
    except OSError as error:
        raise errors.SockstreamError(f"cannot write to stdout: {error.strerror}") from error


def seconds(text: str) -> float:
    """Read a number of seconds, `inf` for no limit."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def count(text: str) -> int:
    """Read how many: a whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def variable(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _every_end(parser: Parser) -> None:
    parser.add_argument(
        "--token-file", metavar="FILE", help="the secret that both ends share (default: the user's own)"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    parser.add_argument("-q", "--quiet", action="store_true", help="say errors only")
    parser.add_argument(
        "--grace", type=seconds, default=60.0, metavar="SECONDS", help="how long to go on without a link (60; inf)"
    )


def _dialling(parser: Parser) -> None:
    parser.add_argument(
        "--wait", type=seconds, default=5.0, metavar="SECONDS", help="how long to try at the start (5; 0: once)"
    )
    parser.add_argument("--tls-ca", metavar="FILE", help="tls://: the authority to trust, in place of the system's")


def _waiting(parser: Parser) -> None:
    parser.add_argument("--tls-cert", metavar="FILE", help="the certificate of this end (tls:// needs one)")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, if that is in a file of its own")
    parser.add_argument("--insecure", action="store_true", help="let raw tcp:// wait on an address of the network")


def _running(parser: Parser) -> None:
    parser.add_argument("--only", choices=("out", "in"), help="carry only the outputs, or only the input")
    parser.add_argument("--merge-stderr", action="store_true", help="send stderr where stdout goes")
    parser.add_argument("--name", help="the program's name for viewers (default: its file name)")
    parser.add_argument(
        "--env", type=variable, action="append", default=[], metavar="NAME=VALUE", help="set a variable for the program"
    )
    parser.add_argument("--chdir", metavar="DIR", help="run the program in this directory")
    parser.add_argument(
        "--eof-grace",
        type=seconds,
        metavar="SECONDS",
        help="raw: how long the program may go on after the peer's end of file (no limit)",
    )


def _run_options(parser: Parser) -> None:
    parser.add_argument("--to", metavar="ADDRESS", help="where the viewer end waits (default: the user's own socket)")
    _running(parser)
    _dialling(parser)
    _every_end(parser)


def _serve_options(parser: Parser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="where to wait")
    parser.add_argument("--once", action="store_true", help="run one program and end with its status")
    parser.add_argument("--max", type=count, default=64, metavar="N", help="programs at a time (64)")
    _running(parser)
    _waiting(parser)
    _every_end(parser)


def _listen_options(parser: Parser) -> None:
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="where to wait (default: the user's own socket)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--once", action="store_true", help="one program: its exact bytes, its status")
    style.add_argument("--timestamps", action="store_true", help="put the time before each line")
    _waiting(parser)
    _every_end(parser)


def _connect_options(parser: Parser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="where the program end, or any raw service, waits")
    parser.add_argument("--crlf", action="store_true", help="send line ends as CR LF, for line protocols")
    _dialling(parser)
    _every_end(parser)


def _token_options(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--show", action="store_true", help="print the token itself; it is made if there is none")
    which.add_argument("--set", action="store_true", help="read a token from stdin and keep it")
    parser.add_argument("--replace", action="store_true", help="with --set: also in place of another one")
    parser.add_argument("--token-file", metavar="FILE", help="this file in place of the user's own")


def _demo_options(parser: Parser) -> None:
    parser.add_argument("--seconds", type=seconds, default=4.0, metavar="SECONDS", help="about how long (4; at most 6)")


# ---- what the commands do


def _notices(options: argparse.Namespace) -> Notices:
    return Notices(0 if options.quiet else 1 + options.verbose)


def _address(text: str | None) -> Address:
    if text:
        return address.parse(text)
    from . import unixsocket

    return unixsocket.default_address(os.environ)


def _security(options: argparse.Namespace) -> Security:
    from .security import Security

    files = {name: getattr(options, name, None) for name in ("token_file", "tls_cert", "tls_key", "tls_ca")}
    found = {name: os.path.abspath(file) if file else file for name, file in files.items()}  # --chdir comes later
    return Security(
        token_file=found["token_file"],
        cert_file=found["tls_cert"],
        key_file=found["tls_key"],
        ca_file=found["tls_ca"],
    )


def _check_waiting(where: Address, options: argparse.Namespace, notices: Notices) -> None:
    """Raw and open to others is refused, or at least said."""
    if where.scheme == "tls" and not options.tls_cert:
        raise errors.AddressError(f"{where} needs --tls-cert (and --tls-key): those who dial it verify a certificate")
    if where.scheme != "tcp":
        return
    if not where.host_is_loopback and not options.insecure:
        raise errors.AddressError(
            f"{where} would let anybody on the network in, without a token or encryption: "
            f"use sock+tls://{where.host}:{where.port}, or say --insecure"
        )
    if options.command == "serve" and where.host_is_loopback:
        notices.say(f"any user or web page on this machine can reach {where}; sock:// asks for the token")


def _job(options: argparse.Namespace) -> Job:
    from .program import Job

    if options.chdir is not None:
        try:
            os.chdir(options.chdir)
        except OSError as error:
            raise errors.ProgramError(f"cannot enter {options.chdir!r}: {error.strerror}", OUR_TROUBLE) from error
    return Job(
        options.program,
        {**os.environ, **dict(options.env)},
        only=options.only,
        merge_stderr=options.merge_stderr,
        name=options.name,
        grace=options.grace,
        eof_grace=options.eof_grace,
    )


def _run(options: argparse.Namespace) -> int:
    from .runner import Runner

    where, credentials = _address(options.to), _security(options)
    return Runner(_job(options), where, credentials, _notices(options), options.wait).run()


def _serve(options: argparse.Namespace) -> int:
    from .server import Server

    where, notices, credentials = _address(options.address), _notices(options), _security(options)
    _check_waiting(where, options, notices)
    server = Server(_job(options), where, credentials, notices, once=options.once, most=options.max)
    return server.run()


def _listen(options: argparse.Namespace) -> int:
    from .viewers.listening import Listening

    where, notices = _address(options.address), _notices(options)
    _check_waiting(where, options, notices)
    return Listening(
        where,
        _security(options),
        notices,
        once=options.once,
        timestamps=options.timestamps,
        grace=options.grace,
    ).run()


def _connect(options: argparse.Namespace) -> int:
    from .viewers.connecting import Connecting

    return Connecting(
        _address(options.address),
        _security(options),
        _notices(options),
        wait=options.wait,
        grace=options.grace,
        crlf=options.crlf,
    ).run()


def _token(options: argparse.Namespace) -> int:
    from . import token

    if options.set:
        path = token.store(_first_line(), options.token_file, replace=options.replace)
        show(f"the token is kept in {path}\n")
        return 0
    if options.replace:
        raise errors.SockstreamError("--replace goes with --set, which reads the other token from stdin")
    secret = token.load(options.token_file)
    show(f"{token.to_hex(secret) if options.show else options.token_file or token.default_path()}\n")
    return 0


def _first_line() -> str:
    """Return the first line of stdin, or enough of it to see that it is no token."""
    data = b""
    try:
        while b"\n" not in data and len(data) < 4096 and (piece := os.read(0, 4096)):
            data += piece
    except OSError as error:
        raise errors.SockstreamError(f"cannot read the token from stdin: {error.strerror}") from error
    return data.partition(b"\n")[0].decode("ascii", "replace")


def _demo(options: argparse.Namespace) -> int:
    from .demo import demonstrate

    return demonstrate(options.seconds)


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "run",
            "-- PROGRAM [ARG...]",
            "Run a program with its stdin, stdout and stderr on a socket.",
            "  sockstream run -- ./report.py\n  sockstream run --to sock+tls://desk:7411 -- make test\n"
            "  sockstream run --to tcp://127.0.0.1:9000 --only out -- tail -f log",
            _run_options,
            _run,
        ),
        Command(
            "serve",
            "ADDRESS -- PROGRAM [ARG...]",
            "Wait for viewers and run a program for each.",
            "  sockstream serve :7411 -- python3 -i\n  sockstream serve tcp://127.0.0.1:7000 -- cat\n"
            "  sockstream serve --once /tmp/build.sock -- make",
            _serve_options,
            _serve,
        ),
        Command(
            "listen",
            "[ADDRESS]",
            "Wait for programs and show them in this terminal.",
            "  sockstream listen\n  sockstream listen --once :7411 >output\n  sockstream listen --timestamps",
            _listen_options,
            _listen,
        ),
        Command(
            "connect",
            "ADDRESS",
            "Dial a served program, or any raw service, from this terminal.",
            "  sockstream connect :7411\n  sockstream connect --crlf tcp://127.0.0.1:80",
            _connect_options,
            _connect,
        ),
        Command(
            "token",
            "",
            "Show where the token is, or carry it to a second machine.",
            "  sockstream token\n  sockstream token --show | ssh other sockstream token --set",
            _token_options,
            _token,
            notes="",
        ),
        Command(
            "demo",
            "",
            "See it work: a script's output arrives live in another process.",
            "  sockstream demo",
            _demo_options,
            _demo,
            notes="",
        ),
    )
}


def general_help() -> str:
    """Return what `sockstream --help` prints."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {c.name:{width}}  {c.summary}" for c in COMMANDS.values())
    return (
        "usage: sockstream COMMAND [options] [-- PROGRAM [ARG...]]\n\n"
        "Put any program's stdin, stdout and stderr on a socket; the program never knows.\n\n"
        f"commands:\n{rows}\n\n"
        "examples:\n  sockstream listen                  in one terminal\n"
        "  sockstream run -- ./report.py      in another\n\n"
        f"{_ADDRESSES}\n{_STATUSES}\n"
        "sockstream COMMAND --help     a command's options\n"
        "sockstream --man              the manual page\n"
        "sockstream --completion bash  completion for the shell (bash, zsh, fish)\n"
        "sockstream --version          the version\n"
    )


def parse(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """Parse a subcommand's words; what follows the first `--` is the program, unseen."""
    words = list(words)
    program: list[str] = []
    if command.takes_program and "--" in words:
        cut = words.index("--")
        words, program = words[:cut], words[cut + 1 :]
    parser = command.parser()
    options, surplus = parser.parse_known_args(words)
    if command.takes_program and not program:
        hint = f"sockstream {command.name} ... -- {' '.join(surplus) or 'PROGRAM'}"
        parser.error(f"no program: put it behind two dashes, {hint}")
    if surplus:
        parser.error(f"not understood: {' '.join(surplus)}")
    options.command, options.program = command.name, program
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; SystemExit where a parser has answered."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _perform(words)
    except errors.SockstreamError as error:
        Notices().error(str(error))
        return error.status if isinstance(error, errors.ProgramError) else OUR_TROUBLE
    except KeyboardInterrupt:
        return 130


def _perform(words: list[str]) -> int:
    general = _GENERAL.get(words[0]) if words else _GENERAL["--help"]
    if general is not None:
        show(general(words[1:]))
        return 0 if words else OUR_TROUBLE
    command = COMMANDS.get(words[0])
    if command is None:
        Notices().error(f"there is no command {words[0]!r}: {', '.join(COMMANDS)}; see sockstream --help")
        return OUR_TROUBLE
    return command.perform(parse(command, words[1:]))


def entry() -> NoReturn:
    """Run the installed script: leave without the interpreter's farewell, which costs 3 ms."""
    _fill_standard_descriptors()
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else OUR_TROUBLE
    os._exit(status)


def _fill_standard_descriptors() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed, or what is opened next would be taken for it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is fd
            os.set_inheritable(fd, True)


def _man(_words: Sequence[str]) -> str:
    from .manual import man_page

    return man_page(COMMANDS, _ADDRESSES, _STATUSES)


def _completion(words: Sequence[str]) -> str:
    from .manual import completion

    return completion(words[0] if words else "bash", COMMANDS)


_GENERAL: dict[str, Callable[[Sequence[str]], str]] = {
    "--help": lambda _words: general_help(),
    "-h": lambda _words: general_help(),
    "--version": lambda _words: f"sockstream {__version__}\n",
    "--man": _man,
    "--completion": _completion,
}

if TYPE_CHECKING:
    from .program import Job
