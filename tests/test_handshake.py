"""The bytes before the first frame: two ends that share a key get through, nobody else does."""

from __future__ import annotations

import struct

import pytest

from pair import BINDING, KEY, advance, handshake, nonce
from sockstream import auth
from sockstream.errors import AuthenticationError, RemoteProtocolError
from sockstream.handshake import MAGIC, Handshake, Step

PREAMBLE = struct.Struct("<8sBBHHH")
OTHER_KEY = bytes(32)
OTHER_BINDING = auth.tcp_binding(bytes(16), 7)


def preamble(*, major: int = 1, minor: int = 0, flags: int = 0, hello: int = 33, zero: int = 0) -> bytes:
    """Return a preamble, by default a right one."""
    return PREAMBLE.pack(MAGIC, major, minor, flags, hello, zero)


def take_output(side: Handshake) -> bytes:
    """Return and forget what a side has to send."""
    data = bytes(side.output)
    side.output.clear()
    return data


def shake(client: Handshake, server: Handshake) -> tuple[bytes, bytes]:
    """Carry out a handshake; return the bytes of the client and of the server."""
    said = [b"", b""]
    while (mine := take_output(client)) or server.output:
        said[0] += mine
        advance(server, mine)
        theirs = take_output(server)
        said[1] += theirs
        advance(client, theirs)
    return said[0], said[1]


def pair(**options: bytes) -> tuple[Handshake, Handshake]:
    """Return a client and a server; options go to the server."""
    return handshake(dials=True), handshake(dials=False, **options)


def until_proof(server: Handshake, client: Handshake) -> bytes:
    """Get both ends to where the client has made its proof; return that proof."""
    advance(server, take_output(client))
    advance(client, take_output(server))
    return take_output(client)


def test_two_ends_with_one_key_get_through() -> None:
    """Both are done, and the bytes are exactly those of docs/protocol.md section 2."""
    client, server = pair()
    from_client, from_server = shake(client, server)
    assert client.step is server.step is Step.DONE
    hello_client = preamble() + b"\1" + nonce(1)
    hello_server = preamble() + b"\2" + nonce(0)
    proof = auth.client_proof(KEY, hello_client + hello_server, BINDING)
    assert from_client == hello_client + proof
    assert from_server == hello_server + auth.server_proof(KEY, hello_client + hello_server, proof, BINDING)


def test_the_server_says_nothing_before_the_magic() -> None:
    """A server has no output at the start; nor has it any before the whole HELLO is there."""
    client, server = pair()
    assert not server.output
    data = take_output(client)
    server.receive(data[:16])
    assert not server.output
    server.receive(data[16:])
    assert server.output


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n", b"SSH-2.0-OpenSSH_", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\0" * 16, MAGIC[:7] + b"\x0b"],
)
def test_noise_is_refused_from_its_first_bytes_on(noise: bytes) -> None:
    """The first byte that cannot belong to the magic ends it, without an answer."""
    server = handshake(dials=False)
    wrong = next(count for count in range(1, 9) if noise[:count] != MAGIC[:count])
    server.check_start(noise[: wrong - 1])
    with pytest.raises(RemoteProtocolError, match="does not speak the sockstream protocol"):
        server.check_start(noise[:wrong])
    with pytest.raises(RemoteProtocolError):
        server.receive(noise.ljust(16, b"x")[:16])
    assert not server.output


@pytest.mark.parametrize(("major", "minor"), [(0, 9), (2, 0), (2, 7), (255, 255)])
def test_a_server_answers_another_version_with_its_own(major: int, minor: int) -> None:
    """It sends its preamble with an empty HELLO, and its error names both versions."""
    server = handshake(dials=False)
    with pytest.raises(RemoteProtocolError, match=rf"version {major}\.{minor} .* this one 1\.0"):
        server.receive(preamble(major=major, minor=minor))
    assert bytes(server.output) == preamble(hello=0)


@pytest.mark.parametrize(("major", "minor"), [(0, 9), (2, 0)])
def test_a_client_names_both_versions(major: int, minor: int) -> None:
    """An older and a newer server are told apart from noise by name, and get no more bytes."""
    client = handshake(dials=True)
    take_output(client)
    with pytest.raises(RemoteProtocolError, match=rf"version {major}\.{minor} .* this one 1\.0"):
        client.receive(preamble(major=major, minor=minor, hello=0))
    assert not client.output


def test_a_newer_minor_version_and_unknown_flags_pass() -> None:
    """Only the major version decides; both ends have all of the preamble in their transcript."""
    server = handshake(dials=False)
    hello = preamble(minor=9, flags=0xFFFF, zero=1) + b"\1" + nonce(1)
    assert advance(server, hello) == b""
    proof = auth.client_proof(KEY, hello + take_output(server), BINDING)
    server.receive(proof)
    assert server.step is Step.DONE


@pytest.mark.parametrize("size", [33, 34, 2048])
@pytest.mark.parametrize("dials", [True, False])
def test_a_longer_hello_is_part_of_the_transcript(size: int, dials: bool) -> None:
    """HELLOs of 33 to 2048 bytes pass; what this version does not know is ignored, but proven."""
    side = handshake(dials=dials)
    mine = preamble() + (b"\1" if dials else b"\2") + nonce(dials)
    theirs = preamble(hello=size) + (b"\2" if dials else b"\1") + nonce(9) + b"x" * (size - 33)
    advance(side, theirs)
    transcript = mine + theirs if dials else theirs + mine
    proof = auth.client_proof(KEY, transcript, BINDING)
    if dials:
        assert take_output(side) == mine + proof
        proof = auth.server_proof(KEY, transcript, proof, BINDING)
    side.receive(proof)
    assert side.step is Step.DONE


@pytest.mark.parametrize("size", [0, 32, 2049, 65_535])
@pytest.mark.parametrize("dials", [True, False])
def test_a_hello_too_short_or_too_long_is_refused_unread(size: int, dials: bool) -> None:
    """The preamble alone decides, so no memory is set aside and nothing is answered."""
    side = handshake(dials=dials)
    take_output(side)
    with pytest.raises(RemoteProtocolError, match=f"HELLO of {size} bytes"):
        side.receive(preamble(hello=size))
    assert not side.output


@pytest.mark.parametrize("dials", [True, False])
def test_both_ends_in_the_same_role(dials: bool) -> None:
    """Two clients or two servers refuse each other; a client's own bytes sent back are such a case."""
    side, other = handshake(dials=dials), handshake(dials=dials, number=5)
    take_output(side)
    side.receive(preamble())
    with pytest.raises(RemoteProtocolError, match="role"):
        side.receive((b"\1" if dials else b"\2") + nonce(9))
    assert not side.output
    assert other.step is Step.PREAMBLE


def test_wrong_token_at_the_server() -> None:
    """The server answers 32 zero bytes in place of its proof, and the client understands them."""
    client, server = pair(key=OTHER_KEY)
    proof = until_proof(server, client)
    with pytest.raises(AuthenticationError, match="another token"):
        server.receive(proof)
    refusal = take_output(server)
    assert refusal == bytes(32)
    with pytest.raises(AuthenticationError, match=r"wrong token, or not the address .* sock\+tls://"):
        client.receive(refusal)
    assert not client.output


def test_another_binding() -> None:
    """A proof for one address or certificate is none for another: a relay gets nowhere, though the token is right."""
    client, server = pair(binding=OTHER_BINDING)
    proof = until_proof(server, client)
    with pytest.raises(AuthenticationError):
        server.receive(proof)
    assert take_output(server) == bytes(32)


def test_a_server_that_does_not_know_the_token() -> None:
    """It can let the client's proof pass, but its own convinces nobody."""
    client, server = pair()
    proof = until_proof(server, client)
    transcript = preamble() + b"\1" + nonce(1) + preamble() + b"\2" + nonce(0)
    with pytest.raises(AuthenticationError):
        client.receive(auth.server_proof(OTHER_KEY, transcript, proof, BINDING))


def test_a_reflected_proof() -> None:
    """The client's own proof, sent back, is not the server's."""
    client, server = pair()
    proof = until_proof(server, client)
    with pytest.raises(AuthenticationError):
        client.receive(proof)


def test_a_proof_of_zeros_is_refused_by_the_server() -> None:
    """The bytes that mean a refusal are no proof."""
    client, server = pair()
    until_proof(server, client)
    with pytest.raises(AuthenticationError):
        server.receive(bytes(32))
    assert take_output(server) == bytes(32)


def test_replayed_client_bytes() -> None:
    """All that a client once said convinces no later server, whose nonce is another."""
    recorded, _ = shake(*pair())
    server = handshake(dials=False, number=1)
    with pytest.raises(AuthenticationError):
        advance(server, recorded)
    assert server.output.endswith(bytes(32))


def test_replayed_server_bytes() -> None:
    """All that a server once said convinces no later client."""
    _, recorded = shake(*pair())
    client = handshake(dials=True, number=1)
    with pytest.raises(AuthenticationError):
        advance(client, recorded)


@pytest.mark.parametrize("position", range(16 + 33 + 32))
@pytest.mark.parametrize("from_client", [True, False], ids=["client", "server"])
def test_every_byte_is_proven(from_client: bool, position: int) -> None:
    """Somebody in the middle who changes any byte of any message does not get two ends that are through with it."""
    client, server = pair()
    changed: list[bytes] = []

    def carry(data: bytes, mine: bool) -> bytes:
        start = sum(map(len, changed))
        if mine is from_client:
            changed.append(data)
            if start <= position < start + len(data):
                at = position - start
                return data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :]
        return data

    noticed = False
    try:
        while client.output or server.output:
            advance(server, carry(take_output(client), True))
            advance(client, carry(take_output(server), False))
    except (AuthenticationError, RemoteProtocolError):
        noticed = True
    assert sum(map(len, changed)) > position, "the byte was never sent"
    receiver = server if from_client else client
    assert noticed or receiver.step is not Step.DONE  # not done: it waits for the rest of a longer HELLO


@pytest.mark.parametrize("dials", [True, False])
def test_a_refused_handshake_does_not_go_on(dials: bool) -> None:
    """After a wrong proof a side is not done, whatever it is given."""
    client, server = pair()
    side = client if dials else server
    until_proof(server, client)
    with pytest.raises(AuthenticationError):
        side.receive(b"x" * 32)
    assert side.step is not Step.DONE
