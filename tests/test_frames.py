"""The frame header: what each type may look like, and that nothing is set aside for a frame that is too long."""

from __future__ import annotations

import pytest

from sockstream import frames
from sockstream.errors import RemoteProtocolError
from sockstream.frames import FrameType, pack

# type -> least and largest payload, as docs/protocol.md section 3 has them
PAYLOADS = {
    FrameType.OPEN: (0, 65_536),
    FrameType.DATA: (0, 1_048_576),
    FrameType.TAKEN: (0, 0),
    FrameType.STOP: (0, 0),
    FrameType.GAP: (1, 1),
    FrameType.PING: (0, 0),
    FrameType.PONG: (0, 0),
    FrameType.GOAWAY: (1, 513),
}
FLAGS = {
    FrameType.OPEN: 0b11,
    FrameType.DATA: 0b1111_0011,
    FrameType.TAKEN: 0xFF,
    FrameType.STOP: 0,
    FrameType.GAP: 0,
    FrameType.PING: 0,
    FrameType.PONG: 0,
    FrameType.GOAWAY: 0,
}
ON_CONTROL_ONLY = {FrameType.OPEN, FrameType.PING, FrameType.PONG, FrameType.GOAWAY}


def accepted(kind: int, flags: int, channel: int, length: int) -> bool:
    """Does a header pass?"""
    try:
        frames.check_header(kind, flags, channel, length)
    except RemoteProtocolError:
        return False
    return True


def test_a_frame_is_sixteen_bytes_and_its_payload() -> None:
    """The header is u8 type, u8 flags, u16 channel, u32 length, u64 number, little-endian."""
    frame = pack(FrameType.DATA, flags=1, channel=0x0302, number=0x0C0B0A0908070605, payload=b"xyz")
    assert frame == bytes((2, 1, 2, 3, 3, 0, 0, 0, 5, 6, 7, 8, 9, 10, 11, 12)) + b"xyz"


@pytest.mark.parametrize("kind", FrameType)
def test_payload_exactly_at_the_limit_and_one_over(kind: FrameType) -> None:
    """The least and the largest payload pass; one byte less or more does not."""
    least, largest = PAYLOADS[kind]
    assert accepted(kind, 0, 0, least)
    assert accepted(kind, 0, 0, largest)
    assert not accepted(kind, 0, 0, largest + 1)
    assert not least or not accepted(kind, 0, 0, least - 1)


@pytest.mark.parametrize("kind", FrameType)
def test_a_length_of_four_gigabytes_is_refused(kind: FrameType) -> None:
    """2^32-1 is too long for every type."""
    assert not accepted(kind, 0, 0, (1 << 32) - 1)


@pytest.mark.parametrize("kind", FrameType)
def test_each_flag_is_defined_or_refused(kind: FrameType) -> None:
    """Each single bit of flags passes where the protocol defines it, and nowhere else."""
    length = PAYLOADS[kind][0]
    passing = sum(1 << bit for bit in range(8) if accepted(kind, 1 << bit, 0, length))
    assert passing == FLAGS[kind]


@pytest.mark.parametrize("kind", FrameType)
def test_frames_of_the_whole_link_stand_on_channel_0(kind: FrameType) -> None:
    """OPEN, PING, PONG and GOAWAY name channel 0; the others may name any, which the session checks."""
    length = PAYLOADS[kind][0]
    assert accepted(kind, 0, 1, length) is (kind not in ON_CONTROL_ONLY)


@pytest.mark.parametrize("kind", [0, *range(9, 256)])
def test_unknown_types_are_refused(kind: int) -> None:
    """A type that version 1 does not define is a protocol error that names its number."""
    with pytest.raises(RemoteProtocolError, match=f"unknown type {kind}$"):
        frames.check_header(kind, 0, 0, 0)


def test_the_message_names_frame_and_length() -> None:
    """What is said about a frame of the wrong length tells which one, and what is allowed."""
    with pytest.raises(RemoteProtocolError, match="GOAWAY with 514 bytes; 1 to 513 are allowed"):
        frames.check_header(FrameType.GOAWAY, 0, 0, 514)
