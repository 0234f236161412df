"""Mutual proof that both ends hold the same token, bound to the link it is said on (docs/protocol.md section 2.2).

Rules: pure functions over bytes; a proof is compared in constant time and in one place; the token itself never
leaves `key_from_token`. hashlib is imported where it is used: it loads OpenSSL (3 ms), and raw addresses prove
nothing.

Why a binding: without one, whoever gets dialled in our stead passes both proofs on and reads everything. A TLS
relay has another certificate; a local relay has another address (the real one is taken).
"""

from __future__ import annotations

PROOF_SIZE = 32
NONCE_SIZE = 32
REFUSAL = bytes(PROOF_SIZE)
_CLIENT_LABEL = b"sockstream 1 client\0"
_SERVER_LABEL = b"sockstream 1 server\0"


def key_from_token(token: bytes) -> bytes:
    """Return the 32-byte key for a token; one that is not 32 bytes long is stretched by scrypt (about 50 ms)."""
    if len(token) == 32:
        return token
    import hashlib

    return hashlib.scrypt(token, salt=b"sockstream 1 key", n=1 << 14, r=8, p=1, dklen=32)


def unix_binding() -> bytes:
    """Return the binding of a link over a Unix socket: the file system says who may use it."""
    return _sha256(b"unix")


def tcp_binding(server_ip: bytes, port: int) -> bytes:
    """Return the binding of a plain TCP link: `server_ip` has 16 bytes (IPv4 as ::ffff:a.b.c.d)."""
    return _sha256(b"tcp" + server_ip + port.to_bytes(2, "little"))


def client_proof(key: bytes, transcript: bytes, binding: bytes) -> bytes:
    """Return what the dialling end sends; `transcript` is both preambles and HELLOs, client's first."""
    return _proof(key, _CLIENT_LABEL, transcript, binding)


def server_proof(key: bytes, transcript: bytes, proof_of_client: bytes, binding: bytes) -> bytes:
    """Return what the waiting end answers to a right client proof."""
    return _proof(key, _SERVER_LABEL, transcript + proof_of_client, binding)


def equal(left: bytes, right: bytes) -> bool:
    """Compare two proofs in a time that does not depend on where they differ."""
    import hmac

    return hmac.compare_digest(left, right)


def _proof(key: bytes, label: bytes, transcript: bytes, binding: bytes) -> bytes:
    import hmac

    return hmac.digest(key, label + _sha256(transcript) + binding, "sha256")


def _sha256(data: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(data).digest()
