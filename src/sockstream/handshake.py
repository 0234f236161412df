"""Preambles, HELLOs and proofs: the bytes before the first frame (docs/protocol.md section 2), for either end.

Rules: `needs()` says how many bytes the next step takes, `receive()` gets exactly those; what is to be sent
collects in `output`. The steps are one table, told apart by who dials. A server says nothing before the magic is
right, and answers a wrong proof with zeros. After an exception the caller sends what is left in `output` and
closes.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from . import auth, errors

MAGIC = b"\x93SKS\r\n\x1a\n"
VERSION = (1, 0)
MAX_HELLO = 2048
MAX_BEFORE_PROOF = 4096
_PREAMBLE = struct.Struct("<8sBBHHH")
_HELLO_SIZE = 1 + auth.NONCE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Role(IntEnum):
    DIALS = 1
    WAITS = 2


class Step(IntEnum):
    PREAMBLE = 0
    HELLO = 1
    PROOF = 2
    DONE = 3


class Handshake:
    """One end's side of getting to know the peer.

    dials: whether this end dialled; key: 32 bytes; binding: 32 bytes that name the link; nonce: 32 fresh random
    bytes.
    """

    def __init__(self, *, dials: bool, key: bytes, binding: bytes, nonce: bytes) -> None:
        self.step = Step.PREAMBLE
        self.output = bytearray()
        self._dials = dials
        self._key = key
        self._binding = binding
        role = Role.DIALS if dials else Role.WAITS
        self._mine = _preamble(_HELLO_SIZE) + bytes((role,)) + nonce
        self._theirs = b""
        self._needs = _PREAMBLE.size
        self._proof = b""
        if dials:
            self.output += self._mine

    def needs(self) -> int:
        """Return how many bytes `receive` takes next."""
        return self._needs

    def check_start(self, data: bytes) -> None:
        """Raise RemoteProtocolError as soon as the first bytes cannot become our magic (noise is not waited for)."""
        if self.step is Step.PREAMBLE and not MAGIC.startswith(data[: len(MAGIC)]):
            raise errors.RemoteProtocolError(
                f"the other end does not speak the sockstream protocol (it began with {data[:8]!r})"
            )

    def receive(self, data: bytes) -> None:
        """Take the `needs()` bytes of the current step and go on to the next.

        Raises RemoteProtocolError for another protocol, version or role, AuthenticationError for a wrong proof.
        """
        _RECEIVERS[self.step](self, data)
        self.step = _NEXT[self.step]

    def _receive_preamble(self, data: bytes) -> None:
        self.check_start(data)
        _, major, minor, _flags, hello_size, _zero = _PREAMBLE.unpack(data)
        if major != VERSION[0]:
            if not self._dials:
                self.output += _preamble(0)
            raise errors.RemoteProtocolError(
                f"the other end speaks version {major}.{minor} of the sockstream protocol, this one "
                f"{VERSION[0]}.{VERSION[1]}: install the same release at both ends"
            )
        if not _HELLO_SIZE <= hello_size <= MAX_HELLO:
            raise errors.RemoteProtocolError(f"the peer announced a HELLO of {hello_size} bytes")
        self._theirs = data
        self._needs = hello_size

    def _receive_hello(self, data: bytes) -> None:
        expected = Role.WAITS if self._dials else Role.DIALS
        if data[0] != expected:
            raise errors.RemoteProtocolError(f"the peer claims role {data[0]}, which is not the other side of ours")
        self._theirs += data
        self._needs = auth.PROOF_SIZE
        if self._dials:
            self._proof = auth.client_proof(self._key, self._transcript(), self._binding)
            self.output += self._proof
        else:
            self.output += self._mine

    def _receive_proof(self, data: bytes) -> None:
        self._needs = 0
        if self._dials:
            wanted = auth.server_proof(self._key, self._transcript(), self._proof, self._binding)
            if not auth.equal(data, wanted):
                raise errors.AuthenticationError(
                    "wrong token, or not the address you dialled (a forwarded port?): for the latter use sock+tls://"
                )
            return
        if not auth.equal(data, auth.client_proof(self._key, self._transcript(), self._binding)):
            self.output += auth.REFUSAL
            raise errors.AuthenticationError("the peer has another token, or dialled another address")
        self.output += auth.server_proof(self._key, self._transcript(), data, self._binding)

    def _transcript(self) -> bytes:
        return self._mine + self._theirs if self._dials else self._theirs + self._mine


_NEXT = {Step.PREAMBLE: Step.HELLO, Step.HELLO: Step.PROOF, Step.PROOF: Step.DONE}
_RECEIVERS: dict[Step, Callable[[Handshake, bytes], None]] = {
    Step.PREAMBLE: Handshake._receive_preamble,
    Step.HELLO: Handshake._receive_hello,
    Step.PROOF: Handshake._receive_proof,
}


def _preamble(hello_size: int) -> bytes:
    return _PREAMBLE.pack(MAGIC, *VERSION, 0, hello_size, 0)
