"""Where a link is struck: behind so many bytes, or beside a frame of the plain protocol.

Rules: a trigger watches both directions of one link and touches no socket; it says how many bytes of what has come
may pass before the strike. Nothing is drawn at random but from the generator that is passed in, so a seed gives the
same places in every run.

A trigger that looks for frames reads the plain protocol only: inside TLS there is nothing to see. It knows just the
frame header and the length of what comes before the first one (docs/protocol.md sections 2 and 3).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

UP, DOWN = "up", "down"  # from the dialling end to the waiting one, and back
DIRECTIONS = (UP, DOWN)

_TYPES = {1: "OPEN", 2: "DATA", 3: "TAKEN", 4: "STOP", 5: "GAP", 6: "PING", 7: "PONG", 8: "GOAWAY"}
_RECORDS = {1: "STARTED", 2: "SIGNAL", 3: "WINSIZE", 4: "EXIT", 5: "END"}
_HEADER = struct.Struct("<BBHIQ")
_PREAMBLE_SIZE, _HELLO_LENGTH_AT, _PROOF_SIZE = 16, 12, 32
FRAME_NAMES = (*_TYPES.values(), *_RECORDS.values())


class Trigger(Protocol):
    """What decides where a link is struck."""

    def cut(self, direction: str, data: bytes) -> int | None:
        """Return how many bytes of `data` may pass before the strike, None for all of them and no strike yet."""


class Never:
    """A link that is left alone."""

    def cut(self, direction: str, data: bytes) -> int | None:
        """Let everything pass."""
        return None


class AfterBytes:
    """Strike when `count` bytes have passed in one direction; 0 is as soon as the link is there."""

    def __init__(self, direction: str, count: int) -> None:
        self._direction = direction
        self._left = count

    def cut(self, direction: str, data: bytes) -> int | None:
        """Count what passes in the direction."""
        if direction != self._direction:
            return None
        if len(data) >= self._left:
            return self._left
        self._left -= len(data)
        return None


class AtFrame:
    """Strike before or behind the `number`-th frame of a name, such as GOAWAY, or END for that control record.

    before: the frame is lost; of a header that comes in pieces the first ones may have passed.
    """

    def __init__(self, direction: str, name: str, number: int = 1, *, before: bool) -> None:
        self._direction = direction
        self._name = name
        self._number = number
        self._before = before
        self._rest = 0
        self._frames = Frames()

    def cut(self, direction: str, data: bytes) -> int | None:
        """Look at the frames of the direction."""
        if direction != self._direction:
            return None
        if self._rest:  # of the frame behind which the strike is due
            return self._due(len(data))
        for names, start, stop in self._frames.feed(data):
            self._number -= self._name in names
            if not self._number and self._before:
                return max(0, start)
            if not self._number:
                self._rest = stop
                return self._due(len(data))
        return None

    def _due(self, size: int) -> int | None:
        if size >= self._rest:
            return self._rest
        self._rest -= size
        return None


class Frames:
    """Cuts one direction of a plain link into frames."""

    def __init__(self) -> None:
        self._head = b""  # the beginning of what is not known yet
        self._to_skip = -1  # bytes before the next header; -1 until the length of the handshake is known

    def feed(self, data: bytes) -> list[tuple[tuple[str, ...], int, int]]:
        """Return names, start and end of each frame whose head is now complete; positions count from this piece.

        A frame that began in an earlier piece has a negative start; the end may lie in a later piece.
        """
        base = -len(self._head)
        whole = self._head + data
        position, found = 0, []
        if self._to_skip < 0:
            if len(whole) < _PREAMBLE_SIZE:
                self._head = whole
                return []
            (hello,) = struct.unpack_from("<H", whole, _HELLO_LENGTH_AT)
            self._to_skip = _PREAMBLE_SIZE + hello + _PROOF_SIZE
        while len(whole) - position > self._to_skip:
            start = position + self._to_skip
            frame = _names(whole[start : start + _HEADER.size + 1])
            if frame is None:
                break
            names, size = frame
            found.append((names, base + start, base + start + size))
            position, self._to_skip = start, size
        self._keep(whole, position)
        return found

    def _keep(self, whole: bytes, position: int) -> None:
        """Remember where the next header begins, and what there is of it."""
        skipped = min(self._to_skip, len(whole) - position)
        self._to_skip -= skipped
        self._head = whole[position + skipped :]


def _names(head: bytes) -> tuple[tuple[str, ...], int] | None:
    """Return the names and the size of the frame that begins so; None while that is not to be told."""
    if len(head) < _HEADER.size:
        return None
    kind, _flags, channel, length, _number = _HEADER.unpack_from(head)
    size = _HEADER.size + length
    name = _TYPES.get(kind, "UNKNOWN")
    if name != "DATA" or channel or not length:
        return (name,), size
    if len(head) == _HEADER.size:
        return None
    return (name, _RECORDS.get(head[_HEADER.size], "UNKNOWN")), size


class Plan:
    """What happens to each link, in the order in which they come.

    action: as in `proxy.ACTIONS`; direction: UP, DOWN, or None for one drawn for each link; low, high: a number of
    bytes between these, drawn for each link; frames: in place of bytes name, number and whether before, one for each
    link that is struck, and the last for those that follow; skip: links left alone first; times: links struck at most
    (None: all).
    """

    def __init__(
        self,
        generator: random.Random,
        action: str,
        *,
        direction: str | None = None,
        low: int = 0,
        high: int = 0,
        frames: Sequence[tuple[str, int, bool]] = (),
        skip: int = 0,
        times: int | None = None,
    ) -> None:
        self.action = action
        self._generator = generator
        self._direction = direction
        self._low = low
        self._high = high
        self._frames = list(frames)
        self._skip = skip
        self._left = times

    def next_link(self) -> Trigger:
        """Return the trigger for another link."""
        if self._skip or self._left == 0:
            self._skip = max(0, self._skip - 1)
            return Never()
        direction = self._direction or self._generator.choice(DIRECTIONS)
        if self._frames:
            name, number, before = self._frames[0]
            return AtFrame(direction, name, number, before=before)
        return AfterBytes(direction, self._generator.randint(self._low, self._high))

    def struck(self) -> None:
        """A link has been struck."""
        if len(self._frames) > 1:
            del self._frames[0]
        if self._left:
            self._left -= 1
