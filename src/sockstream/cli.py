"""The command line: options in, exit codes out, no logic of its own.

Rules: only the named subcommand's parser is built and only what it needs is imported, since a wrapper's start time
is part of its job; whatever goes wrong is one line on stderr, never a traceback; our own trouble is 125, as with
`env` and `timeout`, and the options of the program that follows `--` are never looked at.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from . import __version__, address, errors
from .notices import Notices
from .options import (
    ADDRESSES,
    OUR_TROUBLE,
    STATUSES,
    Command,
    connect_options,
    demo_options,
    listen_options,
    run_options,
    serve_options,
    show,
    token_options,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from .address import Address
    from .security import Security

# Objects between two collections of garbage: at Python's own 700 the imports alone set off a dozen (2 ms).
_COLLECT_EVERY = 20_000


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
    from . import transport
    from .server import Server

    where, notices, credentials = _address(options.address), _notices(options), _security(options)
    listener = transport.inherited_listener(os.environ, os.getpid())
    if listener is not None:  # where it really listens decides who can come, not what was typed
        where = transport.listener_address(listener, where)
    _check_waiting(where, options, notices)
    job = _job(options)
    return Server(job, where, credentials, notices, once=options.once, most=options.max, listener=listener).run()


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
            run_options,
            _run,
        ),
        Command(
            "serve",
            "ADDRESS -- PROGRAM [ARG...]",
            "Wait for viewers and run a program for each.",
            "  sockstream serve :7411 -- python3 -i\n  sockstream serve tcp://127.0.0.1:7000 -- cat\n"
            "  sockstream serve --once /tmp/build.sock -- make",
            serve_options,
            _serve,
        ),
        Command(
            "listen",
            "[ADDRESS]",
            "Wait for programs and show them in this terminal.",
            "  sockstream listen\n  sockstream listen --once :7411 >output\n  sockstream listen --timestamps",
            listen_options,
            _listen,
        ),
        Command(
            "connect",
            "ADDRESS",
            "Dial a served program, or any raw service, from this terminal.",
            "  sockstream connect :7411\n  sockstream connect --crlf tcp://127.0.0.1:80",
            connect_options,
            _connect,
        ),
        Command(
            "token",
            "",
            "Show where the token is, or carry it to a second machine.",
            "  sockstream token\n  sockstream token --show | ssh other sockstream token --set",
            token_options,
            _token,
            notes="",
        ),
        Command(
            "demo",
            "",
            "See it work: a script's output arrives live in another process.",
            "  sockstream demo",
            demo_options,
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
        f"{ADDRESSES}\n{STATUSES}\n"
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
    gc.set_threshold(_COLLECT_EVERY)
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

    return man_page(COMMANDS, ADDRESSES, STATUSES)


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
