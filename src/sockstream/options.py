"""What the commands take: their parsers, option by option.

Rules: one function for each kind of end, so that an option is written once; only the named subcommand's parser is
built; an error is one line and exit 125; help is written by `show`, which knows what may become of stdout.
"""

from __future__ import annotations

import argparse
import os

from . import errors
from .notices import Notices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

OUR_TROUBLE = 125
ADDRESSES = """\
addresses:
  /path, sock+unix:///path   the sockstream protocol on a Unix socket (default)
  :port, sock://host:port    the protocol on TCP; off this machine in TLS
  sock+tls://host:port       the protocol, always in TLS
  tcp:// unix:/// tls://     raw bytes, for peers that know nothing of all this
"""
STATUSES = """\
exit status (of serve and listen with --once):
  the program's own, or 128+N where signal N ended it;
  126 it cannot be executed, 127 it is not found;
  125 trouble of sockstream's own, which is one line on stderr
"""
NOTES = f"\n{ADDRESSES}\n{STATUSES}"


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
        notes: str = NOTES,
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
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: every frame")
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


def run_options(parser: Parser) -> None:
    """Add what `run` takes."""
    parser.add_argument("--to", metavar="ADDRESS", help="where the viewer end waits (default: the user's own socket)")
    _running(parser)
    _dialling(parser)
    _every_end(parser)


def serve_options(parser: Parser) -> None:
    """Add what `serve` takes."""
    parser.add_argument("address", metavar="ADDRESS", help="where to wait")
    parser.add_argument("--once", action="store_true", help="run one program and end with its status")
    parser.add_argument("--max", type=count, default=64, metavar="N", help="programs at a time (64)")
    _running(parser)
    _waiting(parser)
    _every_end(parser)


def listen_options(parser: Parser) -> None:
    """Add what `listen` takes."""
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="where to wait (default: the user's own socket)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--once", action="store_true", help="one program: its exact bytes, its status")
    style.add_argument("--timestamps", action="store_true", help="put the time before each line")
    _waiting(parser)
    _every_end(parser)


def connect_options(parser: Parser) -> None:
    """Add what `connect` takes."""
    parser.add_argument("address", metavar="ADDRESS", help="where the program end, or any raw service, waits")
    parser.add_argument("--crlf", action="store_true", help="send line ends as CR LF, for line protocols")
    _dialling(parser)
    _every_end(parser)


def token_options(parser: Parser) -> None:
    """Add what `token` takes."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--show", action="store_true", help="print the token itself; it is made if there is none")
    which.add_argument("--set", action="store_true", help="read a token from stdin and keep it")
    parser.add_argument("--replace", action="store_true", help="with --set: also in place of another one")
    parser.add_argument("--token-file", metavar="FILE", help="this file in place of the user's own")


def demo_options(parser: Parser) -> None:
    """Add what `demo` takes."""
    parser.add_argument("--seconds", type=seconds, default=4.0, metavar="SECONDS", help="about how long (4; at most 6)")
