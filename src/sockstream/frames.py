"""The frame header of docs/protocol.md section 3, and what each type of frame may look like.

Rules: nothing here knows who sends what when (that is `session`); a header is checked against one table before
a byte of payload is accepted or memory is set aside for it.

Types and flags are plain `IntEnum` members: they compare and hash as integers at C speed, which counts, because
every frame passes here twice (an `IntFlag` would compute each `&` in Python).
"""

from __future__ import annotations

import struct
from enum import IntEnum

from .errors import RemoteProtocolError

HEADER = struct.Struct("<BBHIQ")
HEADER_SIZE = HEADER.size
MAX_DATA = 1 << 20
MAX_OPEN = 1 << 16
MAX_RECORD = 1024
MAX_GOAWAY = 513
OLDEST = (1 << 64) - 1
MAX_OFFSET = (1 << 63) - 1  # no stream gets there; beyond, a u64 would soon be too small for the next one
HANDSHAKE_TIME = 10.0  # seconds until the OPENs are through
MIN_WINDOW_BITS, DEFAULT_WINDOW_BITS, MAX_WINDOW_BITS = 16, 20, 24


class FrameType(IntEnum):
    OPEN = 1
    DATA = 2
    TAKEN = 3
    STOP = 4
    GAP = 5
    PING = 6
    PONG = 7
    GOAWAY = 8


class Channel(IntEnum):
    CONTROL = 0
    STDIN = 1
    STDOUT = 2
    STDERR = 3
    OBJECTS = 4


class OpenFlag(IntEnum):
    RESUME = 1
    DURABLE = 2


class DataFlag(IntEnum):
    FIN = 1
    WHOLE = 2


class GoAwayCode(IntEnum):
    REFUSED = 1
    VERSION = 2
    FULL = 3
    REPLACED = 4
    UNKNOWN_SESSION = 5
    LEAVING = 6


class GapReason(IntEnum):
    TAKEN_BY_ANOTHER = 1
    DROPPED = 2


# type -> (least payload, largest payload, flags that may be set, channel 0 only)
_SHAPES: dict[int, tuple[int, int, int, bool]] = {
    FrameType.OPEN: (0, MAX_OPEN, 0x03, True),
    FrameType.DATA: (0, MAX_DATA, 0xF3, False),
    FrameType.TAKEN: (0, 0, 0xFF, False),
    FrameType.STOP: (0, 0, 0, False),
    FrameType.GAP: (1, 1, 0, False),
    FrameType.PING: (0, 0, 0, True),
    FrameType.PONG: (0, 0, 0, True),
    FrameType.GOAWAY: (1, MAX_GOAWAY, 0, True),
}


def pack(kind: int, *, flags: int = 0, channel: int = 0, number: int = 0, payload: bytes = b"") -> bytes:
    """Return a whole frame; `number` is what docs/protocol.md says for the type."""
    return HEADER.pack(kind, flags, channel, len(payload), number) + payload


def check_header(kind: int, flags: int, channel: int, length: int) -> None:
    """Raise RemoteProtocolError unless a frame of this type may have these flags, this channel and length (bytes)."""
    shape = _SHAPES.get(kind)
    if shape is None:
        raise RemoteProtocolError(f"the peer sent a frame of unknown type {kind}")
    least, largest, allowed, control_only = shape
    if not least <= length <= largest:
        name = FrameType(kind).name
        raise RemoteProtocolError(f"the peer sent {name} with {length} bytes; {least} to {largest} are allowed")
    if flags & ~allowed or (control_only and channel):
        name = FrameType(kind).name
        raise RemoteProtocolError(f"the peer sent {name} with flags {flags:#x} on channel {channel}")


def describe(buffers: list[bytes | memoryview]) -> list[str]:
    """Say for people what frames a list of buffers holds, each of which begins with a header or is a payload alone."""
    said, payload_left = [], 0
    for buffer in buffers:
        if payload_left:
            payload_left = 0
            continue
        kind, flags, channel, length, number = HEADER.unpack_from(buffer)
        said.append(describe_header(kind, flags, channel, length, number))
        payload_left = HEADER_SIZE + length - len(buffer)
    return said


def describe_header(kind: int, flags: int, channel: int, length: int, number: int) -> str:
    """Say for people what a frame's header says."""
    return f"{FrameType(kind).name} channel {channel} number {number} length {length} flags {flags:#x}"


def consume(buffers: list[bytes | memoryview], count: int) -> None:
    """Drop `count` bytes from the front of a list of buffers."""
    done = 0
    for buffer in buffers:
        if count < len(buffer):
            break
        count -= len(buffer)
        done += 1
    del buffers[:done]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
