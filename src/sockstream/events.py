"""What a session, or a raw stream, tells its owner: small classes, in the order in which things happened; no I/O.

Rules: an event says what has happened and holds no behaviour; `Data` points into a receive buffer and is used up before
the next read.
"""

from __future__ import annotations

from . import records
from .records import Peer, Status


class Opened:
    """The peer's OPEN has come: the first (`resumed` False) or one of a new link."""

    __slots__ = ("peer", "resumed")

    def __init__(self, peer: Peer, resumed: bool) -> None:
        self.peer = peer
        self.resumed = resumed


class Data:
    """Bytes of a channel; say `Session.take` when they are where they belong."""

    __slots__ = ("channel", "data")

    def __init__(self, channel: int, data: memoryview) -> None:
        self.channel = channel
        self.data = data


class Finished:
    """The peer has ended a channel: nothing follows its last byte."""

    __slots__ = ("channel",)

    def __init__(self, channel: int) -> None:
        self.channel = channel


class Stopped:
    """The peer wants no more of a channel; what was not sent is dropped."""

    __slots__ = ("channel",)

    def __init__(self, channel: int) -> None:
        self.channel = channel


class Gap:
    """Bytes of a channel that will never come: those from `start` to `stop`."""

    __slots__ = ("channel", "reason", "start", "stop")

    def __init__(self, channel: int, start: int, stop: int, reason: int) -> None:
        self.channel = channel
        self.start = start
        self.stop = stop
        self.reason = reason


class Completed:
    """Viewer: all up to END has been taken, and this is the program's status. Program: the viewer has said so."""

    __slots__ = ("status",)

    def __init__(self, status: Status) -> None:
        self.status = status


class GoneAway:
    """The peer has left for good, with a code of `GoAwayCode` and a text."""

    __slots__ = ("code", "text")

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text


Event = Opened | Data | Finished | Stopped | Gap | Completed | GoneAway | records.Record
