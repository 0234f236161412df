"""What OPEN, GOAWAY and the control records say, as objects and as bytes."""

from __future__ import annotations

import struct

import pytest

from pair import SESSION_ID
from sockstream import records
from sockstream.errors import RemoteProtocolError
from sockstream.frames import OLDEST, GoAwayCode
from sockstream.records import How, Kind, Peer, Status, Tag


def field(tag: int, value: bytes) -> bytes:
    """Return one field of OPEN."""
    return struct.pack("<HI", tag, len(value)) + value


MUST = field(Tag.SESSION, SESSION_ID) + field(Tag.KIND, b"\2")


def full_peer() -> Peer:
    """Return a Peer in which nothing has its default."""
    peer = Peer(Kind.PROGRAM, session=SESSION_ID, name="näme", host="höst", grace=1.25)
    peer.software = "sockstream 1"
    peer.python = (3, 11, 7)
    peer.arguments = (b"prog", b"\xff\0", b"")
    peer.wants = {0: 1, 2: 1 << 40, 3: OLDEST}
    peer.window_bits = 24
    peer.max_pickle, peer.max_message = 1 << 24, 1 << 62
    peer.takes_objects = peer.has_terminal = True
    peer.size = (24, 1000)
    return peer


def test_open_says_everything_again() -> None:
    """What an end says of itself, the other reads: every field, none with its default."""
    said = full_peer()
    read = Peer.decode(said.encode())
    assert {name: getattr(read, name) for name in Peer.__slots__} == {
        name: getattr(said, name) for name in Peer.__slots__
    }


def test_an_open_with_the_least_has_the_defaults() -> None:
    """Absent fields mean what docs/protocol.md says."""
    peer = Peer.decode(MUST)
    assert (peer.session, peer.kind) == (SESSION_ID, Kind.PROGRAM)
    assert (peer.window_bits, peer.grace, peer.wants) == (20, 60.0, {})
    assert (peer.name, peer.host, peer.software, peer.arguments) == ("", "", "", ())
    assert (peer.size, peer.python, peer.takes_objects, peer.has_terminal) == (None, None, False, False)


def test_the_fields_as_bytes() -> None:
    """Tags and sizes are those of the page: an OPEN written by hand is read."""
    by_hand = b"".join(
        (
            MUST,
            field(3, struct.pack("<HQ", 2, 77)),
            field(4, b"other 2"),
            field(5, bytes((3, 12, 1))),
            field(6, (5).to_bytes(8, "little")),
            field(7, (6).to_bytes(8, "little")),
            field(8, b"\x10"),
            field(9, (1500).to_bytes(8, "little")),
            field(10, b"a"),
            field(10, b"b"),
            field(11, b"n"),
            field(12, b"h"),
            field(13, b"\1"),
            field(14, b"\1"),
            field(15, struct.pack("<HH", 50, 132)),
        )
    )
    peer = Peer.decode(by_hand)
    assert (peer.wants, peer.software, peer.python) == ({2: 77}, "other 2", (3, 12, 1))
    assert (peer.max_pickle, peer.max_message, peer.window_bits, peer.grace) == (5, 6, 16, 1.5)
    assert (peer.arguments, peer.name, peer.host) == ((b"a", b"b"), "n", "h")
    assert (peer.takes_objects, peer.has_terminal, peer.size) == (True, True, (50, 132))


def test_a_grace_without_end() -> None:
    """Infinity is 2^64-1 on the wire, and comes back as infinity."""
    peer = Peer(Kind.VIEWER, session=SESSION_ID, grace=float("inf"))
    assert field(9, b"\xff" * 8) in peer.encode()
    assert Peer.decode(peer.encode()).grace == float("inf")


def test_unknown_tags_are_ignored_even_twice() -> None:
    """Later versions may add some."""
    peer = Peer.decode(field(999, b"new") + MUST + field(999, b"") + field(16, b"x" * 1000))
    assert peer.session == SESSION_ID


ONCE = {
    Tag.SESSION: SESSION_ID,
    Tag.KIND: b"\2",
    Tag.SOFTWARE: b"s",
    Tag.PYTHON: b"\3\13\0",
    Tag.MAX_PICKLE: bytes(8),
    Tag.MAX_MESSAGE: bytes(8),
    Tag.WINDOW: b"\x14",
    Tag.GRACE: bytes(8),
    Tag.NAME: b"n",
    Tag.HOST: b"h",
    Tag.TAKES_OBJECTS: b"\1",
    Tag.TERMINAL: b"\1",
    Tag.SIZE: bytes(4),
}


@pytest.mark.parametrize("tag", ONCE)
def test_a_known_tag_twice(tag: Tag) -> None:
    """Only the wanted offsets and the arguments may come more than once."""
    rest = b"".join(field(t, ONCE[t]) for t in (Tag.SESSION, Tag.KIND) if t != tag)
    Peer.decode(rest + field(tag, ONCE[tag]))
    with pytest.raises(RemoteProtocolError, match=f"field {tag.value} twice"):
        Peer.decode(rest + field(tag, ONCE[tag]) * 2)


@pytest.mark.parametrize("tag", [t for t in ONCE if t not in (Tag.SOFTWARE, Tag.NAME, Tag.HOST)] + [Tag.WANT])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_value_of_the_wrong_size(tag: Tag, change: int) -> None:
    """Numbers have their size, neither less nor more."""
    value = ONCE.get(tag, bytes(10))
    wrong = value[:-1] if change < 0 else value + b"\0"
    rest = b"".join(field(t, ONCE[t]) for t in (Tag.SESSION, Tag.KIND) if t != tag)
    with pytest.raises(RemoteProtocolError, match=f"field {tag.value} has {len(wrong)} bytes"):
        Peer.decode(rest + field(tag, wrong))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        field(Tag.SESSION, SESSION_ID),
        field(Tag.KIND, b"\2"),
        field(Tag.SESSION, SESSION_ID) + field(Tag.KIND, b"\0"),
        field(Tag.SESSION, SESSION_ID) + field(Tag.KIND, b"\4"),
        MUST + b"\1",
        MUST + field(99, b"abc")[:-1],
        MUST + struct.pack("<HI", 99, (1 << 32) - 1),
        MUST + field(Tag.WINDOW, b"\x0f"),
        MUST + field(Tag.WINDOW, b"\x19"),
        MUST + field(Tag.WANT, struct.pack("<HQ", 2, 5)) * 2,
    ],
    ids=[
        "empty",
        "no-kind",
        "no-session",
        "kind-0",
        "kind-4",
        "cut-in-header",
        "cut-in-value",
        "huge-field",
        "window-15",
        "window-25",
        "wants-twice",
    ],
)
def test_an_open_that_is_refused(payload: bytes) -> None:
    """What the page forbids is a protocol error, not some other exception."""
    with pytest.raises(RemoteProtocolError):
        Peer.decode(payload)


def test_an_open_fits_its_frame_whatever_is_said() -> None:
    """Arguments are cut at 16 KiB, texts at 512 bytes: OPEN stays far below 65,536 bytes."""
    peer = full_peer()
    peer.arguments = (b"a" * 10_000, b"b" * 10_000, b"c")
    peer.name = peer.host = peer.software = "x" * 100_000
    payload = peer.encode()
    assert len(payload) < 20_000
    read = Peer.decode(payload)
    assert read.arguments[0] == b"a" * 10_000
    assert set(read.arguments[1]) == set(b"b")
    assert len(read.name) == 512


def test_many_small_arguments_are_cut_short_too() -> None:
    """Their headers count: a million empty arguments do not make a large OPEN."""
    peer = full_peer()
    peer.arguments = (b"",) * 100_000
    assert len(peer.encode()) < 20_000


def test_text_from_the_peer_always_decodes() -> None:
    """Bytes that are no UTF-8 become replacement characters; a text we cannot encode goes out with some."""
    assert Peer.decode(MUST + field(Tag.NAME, b"a\xffb")).name == "a\ufffdb"
    peer = Peer(Kind.VIEWER, session=SESSION_ID, name="\udcff")
    assert Peer.decode(peer.encode()).name == "?"


STATUSES = [
    (Status(How.EXITED, 3), 3, "ended with status 3"),
    (Status(How.SIGNALED, 9, "SIGKILL"), 137, "was ended by SIGKILL"),
    (Status(How.SIGNALED, 40), 168, "was ended by signal 40"),
    (Status(How.NOT_STARTED, 127, "no such file"), 127, "could not be started: no such file"),
    (Status(How.UNKNOWN), 125, "ended without a status"),
]


@pytest.mark.parametrize(("status", "exit_code", "words"), STATUSES)
def test_a_status_in_words_and_as_exit_code(status: Status, exit_code: int, words: str) -> None:
    """A wrapper ends as its program did, and can say so."""
    assert status.exit_code == exit_code
    assert status.describe() == words
    assert words in repr(status)
    assert Status.decode(status.encode()) == status
    assert hash(Status.decode(status.encode())) == hash(status)


def test_the_status_as_bytes() -> None:
    """u8 how, u8 value, u16 0, three times in microseconds, text."""
    status = Status(How.SIGNALED, 15, "SIGTERM", elapsed=1.5, user=0.25, system=2.0)
    assert status.encode() == struct.pack("<BBHQQQ", 2, 15, 0, 1_500_000, 250_000, 2_000_000) + b"SIGTERM"
    assert status != Status(How.SIGNALED, 15, "SIGTERM")
    assert status != "a status"


def test_times_of_a_status_come_through_exactly() -> None:
    """Microseconds on the wire are the same microseconds after a way through this end's floating point."""
    for microseconds in range(0, 3_000_000, 997):
        wire = struct.pack("<BBHQQQ", 1, 0, 0, microseconds, microseconds + 1, microseconds * 1000)
        assert Status.decode(wire).encode() == wire


def test_a_status_with_impossible_times_can_be_compared() -> None:
    """A peer may say any number of microseconds; looking at what it said raises nothing."""
    status = Status.decode(struct.pack("<BBHQQQ", 1, 0, 0, OLDEST, OLDEST, OLDEST))
    assert status == status
    assert hash(status) == hash(status)


@pytest.mark.parametrize("data", [b"", bytes(27), b"\4" + bytes(27), b"\xff" * 40])
def test_an_unreadable_status(data: bytes) -> None:
    """Too short, or ended in no known way: a protocol error."""
    with pytest.raises(RemoteProtocolError, match="status"):
        Status.decode(data)


RECORDS = [
    (records.Started(1 << 40), b"\1" + (1 << 40).to_bytes(8, "little")),
    (records.Signal("SIGINT"), b"\2SIGINT"),
    (records.WindowSize(24, 80, 640, 480), b"\3" + struct.pack("<HHHH", 24, 80, 640, 480)),
    (records.Exited(Status(How.EXITED, 3)), b"\4" + Status(How.EXITED, 3).encode()),
    (
        records.End({3: 7, 2: 1 << 40}, Status(How.EXITED, 3)),
        b"\5\2\0" + struct.pack("<HQHQ", 2, 1 << 40, 3, 7) + Status(How.EXITED, 3).encode(),
    ),
]


@pytest.mark.parametrize(("record", "wire"), RECORDS, ids=lambda value: type(value).__name__)
def test_records_as_bytes(record: records.Record, wire: bytes) -> None:
    """Each record is written as the page says, and read back as it was."""
    assert record.encode() == wire
    read = records.decode_record(wire)
    assert type(read) is type(record)
    assert read.encode() == wire


def test_an_unknown_record_is_none() -> None:
    """Later versions may add kinds."""
    assert records.decode_record(b"\6anything") is None
    assert records.decode_record(b"\0") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        b"\1" + bytes(7),
        b"\1" + bytes(9),
        b"\3" + bytes(7),
        b"\3" + bytes(9),
        b"\4",
        b"\4" + bytes(27),
        b"\5",
        b"\5\0",
        b"\5\0\0",
        b"\5\xff\xff" + bytes(500),
        b"\5\1\0" + bytes(9),
        b"\5\1\0" + bytes(10) + bytes(27),
    ],
)
def test_an_unreadable_record(data: bytes) -> None:
    """A known kind with a body of the wrong size is a protocol error."""
    with pytest.raises(RemoteProtocolError):
        records.decode_record(data)


def test_every_record_fits_its_frame() -> None:
    """However long the texts, no record passes 1,024 bytes."""
    long = Status(How.NOT_STARTED, 127, "ä" * 10_000)
    for record in (
        records.Exited(long),
        records.End(dict.fromkeys(range(5), OLDEST), long),
        records.Signal("S" * 9999),
    ):
        assert len(record.encode()) <= 1024


@pytest.mark.parametrize("code", [*GoAwayCode, 0, 200])
def test_goaway_comes_through(code: int) -> None:
    """Code and text; a code of a later version is passed on as it is."""
    assert records.decode_goaway(records.encode_goaway(code, "because")) == (code, "because")


def test_goaway_has_at_most_512_bytes_of_text() -> None:
    """The frame's limit is 513 bytes in all."""
    assert len(records.encode_goaway(1, "ä" * 1000)) == 513
    assert records.decode_goaway(b"\6") == (6, "")


def test_names_of_goaway_codes() -> None:
    """They are the page's names; an unknown code has its number."""
    names = [records.goaway_name(code) for code in range(1, 8)]
    assert names == ["refused", "version", "full", "replaced", "unknown-session", "leaving", "code 7"]
