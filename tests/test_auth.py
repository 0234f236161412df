"""Keys, bindings and proofs, against what docs/protocol.md section 2.2 says, written out a second time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

import pytest

from pair import BINDING, KEY
from sockstream import auth

TRANSCRIPT = b"both preambles and both HELLOs"


def test_a_token_of_32_bytes_is_the_key() -> None:
    """It is used as it is: it has all the randomness that a key can hold."""
    assert auth.key_from_token(KEY) == KEY


@pytest.mark.parametrize("token", [b"", b"x", KEY[:-1], KEY + b"x", b"x" * (1 << 20)], ids=len)
def test_any_other_token_is_stretched(token: bytes) -> None:
    """A token that is not 32 bytes long goes through scrypt with the salt and costs of the protocol."""
    expected = hashlib.scrypt(token, salt=b"sockstream 1 key", n=16384, r=8, p=1, dklen=32)
    assert auth.key_from_token(token) == expected


def test_the_clients_proof() -> None:
    """HMAC-SHA256 over label, hash of the transcript, and binding."""
    message = b"sockstream 1 client\0" + hashlib.sha256(TRANSCRIPT).digest() + BINDING
    assert auth.client_proof(KEY, TRANSCRIPT, BINDING) == hmac.new(KEY, message, "sha256").digest()


def test_the_servers_proof() -> None:
    """The same with its own label and the client's proof behind the transcript."""
    proof = auth.client_proof(KEY, TRANSCRIPT, BINDING)
    message = b"sockstream 1 server\0" + hashlib.sha256(TRANSCRIPT + proof).digest() + BINDING
    assert auth.server_proof(KEY, TRANSCRIPT, proof, BINDING) == hmac.new(KEY, message, "sha256").digest()


def test_every_input_of_a_proof_counts() -> None:
    """Another key, transcript, binding or client's proof gives another proof; so do the two ends."""
    proof = auth.client_proof(KEY, TRANSCRIPT, BINDING)
    other = bytes(32)
    proofs = [
        proof,
        auth.client_proof(other, TRANSCRIPT, BINDING),
        auth.client_proof(KEY, TRANSCRIPT + b"x", BINDING),
        auth.client_proof(KEY, TRANSCRIPT, other),
        auth.server_proof(KEY, TRANSCRIPT, proof, BINDING),
        auth.server_proof(KEY, TRANSCRIPT, other, BINDING),
        auth.server_proof(other, TRANSCRIPT, proof, BINDING),
        auth.server_proof(KEY, TRANSCRIPT + b"x", proof, BINDING),
        auth.server_proof(KEY, TRANSCRIPT, proof, other),
    ]
    assert len(set(proofs)) == len(proofs)


@pytest.mark.parametrize(
    ("address", "wire"),
    [
        ("::ffff:192.0.2.1", bytes(10) + b"\xff\xff\xc0\x00\x02\x01"),
        ("2001:db8::5", b"\x20\x01\x0d\xb8" + bytes(11) + b"\x05"),
    ],
)
def test_the_binding_of_plain_tcp(address: str, wire: bytes) -> None:
    """SHA-256 of "tcp", the server's address in 16 bytes, and its port."""
    packed = ipaddress.IPv6Address(address).packed
    assert packed == wire
    expected = hashlib.sha256(b"tcp" + wire + b"\x34\x12").digest()
    assert auth.tcp_binding(packed, 0x1234) == expected
    assert auth.tcp_binding(packed, 0x1235) != expected


def test_the_binding_of_a_unix_socket() -> None:
    """SHA-256 of "unix": the directory's permissions say who is there."""
    assert hashlib.sha256(b"unix").digest() == auth.unix_binding()


def test_proofs_are_compared_whole_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference in any byte is seen, and it is hmac's own comparison that looks."""
    proof = auth.client_proof(KEY, TRANSCRIPT, BINDING)
    assert auth.equal(proof, bytes(bytearray(proof)))
    for position in range(len(proof)):
        wrong = bytearray(proof)
        wrong[position] ^= 1
        assert not auth.equal(bytes(wrong), proof)
    assert not auth.equal(proof[:-1], proof)
    asked = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: asked.append(pair))
    auth.equal(b"left", b"right")
    assert asked == [(b"left", b"right")]
