"""What OPEN, GOAWAY and the control records say, as objects and as bytes (docs/protocol.md sections 3.1 and 5).

Rules: `decode_*` raise RemoteProtocolError for anything the page forbids and never set aside more than they were
given; unknown tags and unknown records are skipped, because later versions may add some; text from the peer is
decoded with "replace" and is escaped by whoever shows it.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from . import __version__
from .errors import RemoteProtocolError
from .frames import DEFAULT_WINDOW_BITS, MAX_WINDOW_BITS, MIN_WINDOW_BITS, GoAwayCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SOFTWARE = f"sockstream {__version__}"
FOR_EVER = (1 << 64) - 1
MAX_ARGUMENTS = 16 << 10
MAX_TEXT = 512
_FIELD = struct.Struct("<HI")
_WANT = struct.Struct("<HQ")
_STATUS = struct.Struct("<BBHQQQ")
_WINSIZE = struct.Struct("<HHHH")
_MICROSECONDS = 1_000_000
_LONGEST = float(1 << 43)  # seconds; more microseconds than a u64 holds come out of longer ones


class Kind(IntEnum):
    """What an end is."""

    OBJECTS = 1
    PROGRAM = 2
    VIEWER = 3


class Tag(IntEnum):
    SESSION = 1
    KIND = 2
    WANT = 3
    SOFTWARE = 4
    PYTHON = 5
    MAX_PICKLE = 6
    MAX_MESSAGE = 7
    WINDOW = 8
    GRACE = 9
    ARGUMENT = 10
    NAME = 11
    HOST = 12
    TAKES_OBJECTS = 13
    TERMINAL = 14
    SIZE = 15


_REPEATED = (Tag.WANT, Tag.ARGUMENT)
_SIZES = {
    Tag.SESSION: 16,
    Tag.KIND: 1,
    Tag.WANT: _WANT.size,
    Tag.PYTHON: 3,
    Tag.MAX_PICKLE: 8,
    Tag.MAX_MESSAGE: 8,
    Tag.WINDOW: 1,
    Tag.GRACE: 8,
    Tag.TAKES_OBJECTS: 1,
    Tag.TERMINAL: 1,
    Tag.SIZE: 4,
}


class Peer:
    """What one end says of itself in OPEN.

    session: 16 bytes; grace: seconds, `inf` = for ever; window_bits: log2 of the window in bytes; wants: channel ->
    offset; size: rows and columns of a terminal, or None.
    """

    __slots__ = (
        "arguments",
        "grace",
        "has_terminal",
        "host",
        "kind",
        "max_message",
        "max_pickle",
        "name",
        "python",
        "session",
        "size",
        "software",
        "takes_objects",
        "wants",
        "window_bits",
    )

    def __init__(
        self, kind: Kind, *, session: bytes = b"", name: str = "", host: str = "", grace: float = 60.0
    ) -> None:
        self.kind = kind
        self.session = session
        self.name = name
        self.host = host
        self.grace = grace
        self.software = SOFTWARE
        self.python: tuple[int, int, int] | None = None
        self.arguments: tuple[bytes, ...] = ()
        self.wants: dict[int, int] = {}
        self.window_bits = DEFAULT_WINDOW_BITS
        self.max_pickle = self.max_message = 0
        self.takes_objects = self.has_terminal = False
        self.size: tuple[int, int] | None = None

    def encode(self) -> bytes:
        """Return the payload of OPEN."""
        return b"".join(_FIELD.pack(tag, len(value)) + value for tag, value in self._fields())

    def _fields(self) -> Iterator[tuple[int, bytes]]:
        yield Tag.SESSION, self.session
        yield Tag.KIND, bytes((self.kind,))
        for channel, offset in sorted(self.wants.items()):
            yield Tag.WANT, _WANT.pack(channel, offset)
        yield Tag.WINDOW, bytes((self.window_bits,))
        yield Tag.GRACE, _u64(_grace_to_wire(self.grace))
        for argument in _cut_short(self.arguments):
            yield Tag.ARGUMENT, argument
        for tag, text in ((Tag.SOFTWARE, self.software), (Tag.NAME, self.name), (Tag.HOST, self.host)):
            if text:
                yield tag, text.encode("utf-8", "replace")[:MAX_TEXT]
        if self.python is not None:
            yield Tag.PYTHON, bytes(self.python)
        for tag, limit in ((Tag.MAX_PICKLE, self.max_pickle), (Tag.MAX_MESSAGE, self.max_message)):
            if limit:
                yield tag, _u64(limit)
        for tag, flag in ((Tag.TAKES_OBJECTS, self.takes_objects), (Tag.TERMINAL, self.has_terminal)):
            if flag:
                yield tag, b"\1"
        if self.size is not None:
            yield Tag.SIZE, struct.pack("<HH", *self.size)

    @classmethod
    def decode(cls, payload: bytes) -> Peer:
        """Read the payload of OPEN; raises RemoteProtocolError."""
        fields = _read_fields(payload)
        kind = _one(fields, Tag.KIND)[0]
        if kind not in (Kind.OBJECTS, Kind.PROGRAM, Kind.VIEWER):
            raise RemoteProtocolError(f"the peer is of unknown kind {kind}")
        peer = cls(Kind(kind), session=_one(fields, Tag.SESSION))
        peer._take_numbers(fields)
        peer._take_texts(fields)
        return peer

    def _take_numbers(self, fields: dict[int, list[bytes]]) -> None:
        self.wants = _read_wants(fields)
        self.window_bits = _one(fields, Tag.WINDOW, bytes((DEFAULT_WINDOW_BITS,)))[0]
        if not MIN_WINDOW_BITS <= self.window_bits <= MAX_WINDOW_BITS:
            raise RemoteProtocolError(f"the peer offered a window of 2^{self.window_bits} bytes")
        self.grace = _grace_from_wire(_number(fields, Tag.GRACE, 60_000))
        self.max_pickle = _number(fields, Tag.MAX_PICKLE, 0)
        self.max_message = _number(fields, Tag.MAX_MESSAGE, 0)
        self.takes_objects = _one(fields, Tag.TAKES_OBJECTS, b"\0") != b"\0"
        self.has_terminal = _one(fields, Tag.TERMINAL, b"\0") != b"\0"
        size = _one(fields, Tag.SIZE, b"")
        self.size = (size[0] | size[1] << 8, size[2] | size[3] << 8) if size else None
        python = _one(fields, Tag.PYTHON, b"")
        self.python = (python[0], python[1], python[2]) if python else None

    def _take_texts(self, fields: dict[int, list[bytes]]) -> None:
        self.software = _text(_one(fields, Tag.SOFTWARE, b"")[:MAX_TEXT])
        self.name = _text(_one(fields, Tag.NAME, b"")[:MAX_TEXT])
        self.host = _text(_one(fields, Tag.HOST, b"")[:MAX_TEXT])
        self.arguments = tuple(fields.get(Tag.ARGUMENT, ()))


class How(IntEnum):
    """In which way a program ended."""

    UNKNOWN = 0
    EXITED = 1
    SIGNALED = 2
    NOT_STARTED = 3


class Status:
    """How a program ended.

    value: exit status, signal number, or 126/127 when it could not be started; times in seconds; text: the signal's
    name, or why it could not be started.
    """

    __slots__ = ("elapsed", "how", "system", "text", "user", "value")

    def __init__(
        self, how: How, value: int = 0, text: str = "", *, elapsed: float = 0, user: float = 0, system: float = 0
    ) -> None:
        self.how = how
        self.value = value
        self.text = text
        self.elapsed = elapsed
        self.user = user
        self.system = system

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Status) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def _parts(self) -> tuple[object, ...]:
        return self.how, self.value, self.text, self.elapsed, self.user, self.system

    def __repr__(self) -> str:
        return f"<Status {self.describe()}>"

    @property
    def exit_code(self) -> int:
        """The status a wrapper ends with: the program's own, 128+N for signal N, 126 or 127, 125 for none."""
        if self.how is How.UNKNOWN:
            return 125
        return 128 + self.value if self.how is How.SIGNALED else self.value

    def describe(self) -> str:
        """Say it for people, to stand behind a program's name."""
        if self.how is How.EXITED:
            return f"ended with status {self.value}"
        if self.how is How.SIGNALED:
            return f"was ended by {self.text or f'signal {self.value}'}"
        if self.how is How.NOT_STARTED:
            return f"could not be started: {self.text}"
        return "ended without a status"

    def encode(self) -> bytes:
        times = (_microseconds(seconds) for seconds in (self.elapsed, self.user, self.system))
        return _STATUS.pack(self.how, self.value, 0, *times) + self.text.encode("utf-8", "replace")[:MAX_TEXT]

    @classmethod
    def decode(cls, data: bytes) -> Status:
        if len(data) < _STATUS.size or data[0] > How.NOT_STARTED:
            raise RemoteProtocolError("the peer sent an unreadable exit status")
        how, value, _zero, elapsed, user, system = _STATUS.unpack_from(data)
        return cls(
            How(how),
            value,
            _text(data[_STATUS.size :]),
            elapsed=elapsed / _MICROSECONDS,
            user=user / _MICROSECONDS,
            system=system / _MICROSECONDS,
        )


class Started:
    """The program runs."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def encode(self) -> bytes:
        return b"\1" + _u64(self.pid)


class Signal:
    """The viewer asks for a signal to the program, by name (`SIGINT`)."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self) -> bytes:
        return b"\2" + self.name.encode("ascii", "replace")[:MAX_TEXT]


class WindowSize:
    """The viewer's terminal has this size, in characters and (0 = unknown) pixels."""

    __slots__ = ("columns", "height", "rows", "width")

    def __init__(self, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
        self.rows = rows
        self.columns = columns
        self.width = width
        self.height = height

    def encode(self) -> bytes:
        return b"\3" + _WINSIZE.pack(self.rows, self.columns, self.width, self.height)


class Exited:
    """The program has ended; output may still follow."""

    __slots__ = ("status",)

    def __init__(self, status: Status) -> None:
        self.status = status

    def encode(self) -> bytes:
        return b"\4" + self.status.encode()


class End:
    """Everything has been sent: the final offset of each channel, and the status again."""

    __slots__ = ("finals", "status")

    def __init__(self, finals: dict[int, int], status: Status) -> None:
        self.finals = finals
        self.status = status

    def encode(self) -> bytes:
        offsets = b"".join(_WANT.pack(*item) for item in sorted(self.finals.items()))
        return b"\5" + len(self.finals).to_bytes(2, "little") + offsets + self.status.encode()


Record = Started | Signal | WindowSize | Exited | End


def decode_record(data: bytes) -> Record | None:
    """Read a control record; None for a kind that this version does not know; raises RemoteProtocolError."""
    if not data:
        raise RemoteProtocolError("the peer sent an empty control record")
    decoder = _DECODERS.get(data[0])
    return decoder(data[1:]) if decoder else None


def encode_goaway(code: int, text: str) -> bytes:
    """Return the payload of GOAWAY."""
    return bytes((code,)) + text.encode("utf-8", "replace")[:MAX_TEXT]


def decode_goaway(payload: bytes) -> tuple[int, str]:
    """Return code and text; an unknown code is passed on as it is."""
    return payload[0], _text(payload[1:])


def goaway_name(code: int) -> str:
    """Return the code's name as docs/protocol.md has it."""
    known = code in GoAwayCode.__members__.values()
    return GoAwayCode(code).name.lower().replace("_", "-") if known else f"code {code}"


def _decode_started(body: bytes) -> Started:
    return Started(int.from_bytes(_sized(body, 8, "STARTED"), "little"))


def _decode_signal(body: bytes) -> Signal:
    return Signal(body.decode("ascii", "replace"))


def _decode_winsize(body: bytes) -> WindowSize:
    return WindowSize(*_WINSIZE.unpack(_sized(body, _WINSIZE.size, "WINSIZE")))


def _decode_exit(body: bytes) -> Exited:
    return Exited(Status.decode(body))


def _decode_end(body: bytes) -> End:
    count = int.from_bytes(body[:2], "little")
    start, stop = 2, 2 + count * _WANT.size
    if len(body) < stop:
        raise RemoteProtocolError("the peer sent an unreadable END")
    finals: dict[int, int] = dict(_WANT.iter_unpack(body[start:stop]))
    return End(finals, Status.decode(body[stop:]))


_DECODERS: dict[int, Callable[[bytes], Record]] = {
    1: _decode_started,
    2: _decode_signal,
    3: _decode_winsize,
    4: _decode_exit,
    5: _decode_end,
}


def _sized(body: bytes, size: int, name: str) -> bytes:
    if len(body) != size:
        raise RemoteProtocolError(f"the peer sent {name} with {len(body)} bytes in place of {size}")
    return body


def _read_fields(payload: bytes) -> dict[int, list[bytes]]:
    fields: dict[int, list[bytes]] = {}
    position = 0
    while position < len(payload):
        if position + _FIELD.size > len(payload):
            raise RemoteProtocolError("the peer sent an OPEN that ends inside a field")
        tag, size = _FIELD.unpack_from(payload, position)
        position += _FIELD.size
        if position + size > len(payload) or size != _SIZES.get(tag, size):
            raise RemoteProtocolError(f"the peer sent an OPEN whose field {tag} has {size} bytes")
        fields.setdefault(tag, []).append(payload[position : position + size])
        position += size
    for tag, values in fields.items():
        if len(values) > 1 and tag in Tag.__members__.values() and tag not in _REPEATED:
            raise RemoteProtocolError(f"the peer sent an OPEN that has field {tag} twice")
    return fields


def _read_wants(fields: dict[int, list[bytes]]) -> dict[int, int]:
    wants: dict[int, int] = {}
    for value in fields.get(Tag.WANT, ()):
        channel, offset = _WANT.unpack(value)
        if channel in wants:
            raise RemoteProtocolError(f"the peer sent an OPEN that wants channel {channel} twice")
        wants[channel] = offset
    return wants


def _one(fields: dict[int, list[bytes]], tag: Tag, default: bytes | None = None) -> bytes:
    values = fields.get(tag)
    if values:
        return values[0]
    if default is None:
        raise RemoteProtocolError(f"the peer sent an OPEN without field {tag.value}")
    return default


def _number(fields: dict[int, list[bytes]], tag: Tag, default: int) -> int:
    return int.from_bytes(_one(fields, tag, _u64(default)), "little")


def _cut_short(arguments: Iterable[bytes]) -> Iterator[bytes]:
    room = MAX_ARGUMENTS
    for argument in arguments:
        if room <= 0:
            return
        yield argument[:room]
        room -= len(argument) + _FIELD.size


def _grace_to_wire(seconds: float) -> int:
    return FOR_EVER if seconds == float("inf") else min(int(seconds * 1000), FOR_EVER - 1)


def _grace_from_wire(milliseconds: int) -> float:
    return float("inf") if milliseconds == FOR_EVER else milliseconds / 1000


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _microseconds(seconds: float) -> int:
    """Return a time for the wire; one that no clock shows (negative, infinite) is 0."""
    return round(seconds * _MICROSECONDS) if 0 <= seconds < _LONGEST else 0


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")
