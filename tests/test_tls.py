"""The bytes of TLS round an inner core: any split, half-close, back-pressure, cuts; in memory and over sockets."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import tempfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import make_authority
from connections import Pair
from sockstream import tls
from sockstream.errors import ConnectionLost
from support import limit
from tls_ends import ROOM, VERSIONS, End, Files, connected, noise, raw_ends, raw_pair, session_ends, settle


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    """Make the files once."""
    with tempfile.TemporaryDirectory() as directory:
        yield Files(*make_authority(directory))


# ---- bytes


@pytest.mark.parametrize("version", VERSIONS)
def test_both_directions(files: Files, version: ssl.TLSVersion) -> None:
    """Bytes written at either end arrive at the other, none is on the wire in the clear."""
    client, server = raw_ends(files, version)
    client.write(b"a question")
    server.write(b"an answer")
    asked, answered = client.outgoing(), server.outgoing()
    assert b"question" not in asked
    assert b"answer" not in answered
    server.feed(asked)
    client.feed(answered)
    assert (server.received, client.received) == (b"a question", b"an answer")


def test_data_to_send_stays_until_sent() -> None:
    """What is handed out is the same until it is sent, in whatever portions."""
    client, server = connected()
    client.write(noise(100_000))
    first = b"".join(client.layer.data_to_send(0.0))
    client.write(b"later")
    assert b"".join(client.layer.data_to_send(1.0)) == first
    client.layer.data_sent(1000)
    assert b"".join(client.layer.data_to_send(2.0)) == first[1000:]
    client.layer.data_sent(len(first) - 1000)
    server.feed(first + client.outgoing())
    assert server.received == noise(100_000) + b"later"


def test_small_pieces_are_joined() -> None:
    """A thousand small pieces cost few records: much less than 22 bytes each."""
    client, server = connected()
    for _ in range(1000):
        client.write(b"four")
    wire = client.outgoing()
    assert len(wire) < 4000 + 100
    server.feed(wire)
    assert server.received == b"four" * 1000


def test_a_batch_is_bounded() -> None:
    """Of much to send about 256 KiB are encrypted at a time, the rest stays with the inner core."""
    client, _ = connected()
    client.write(bytes(1 << 20))
    batch = sum(map(len, client.layer.data_to_send(0.0)))
    assert 256 << 10 <= batch < 300 << 10
    assert sum(map(len, client.inner.queue)) == (1 << 20) - (256 << 10)


@settings(max_examples=60)
@given(
    writes=st.lists(st.integers(1, 40_000), max_size=4),
    cuts=st.lists(st.integers(1, 20_000), min_size=1),
    hand_out=st.integers(1, 100_000),
)
def test_any_split(writes: list[int], cuts: list[int], hand_out: int) -> None:
    """However what is written and the ciphertext are split, the plaintext is the same."""
    client, server = connected()
    for size in writes:
        client.write(noise(size))
    client.finish()
    turn = 0
    while wire := client.outgoing(hand_out):
        while wire:
            cut = cuts[turn % len(cuts)]
            assert server.feed(wire[:cut]) == b""
            wire = wire[cut:]
            turn += 1
    assert server.received == b"".join(map(noise, writes))
    assert server.finished


@pytest.mark.parametrize("version", VERSIONS)
def test_single_bytes(files: Files, version: ssl.TLSVersion) -> None:
    """Handshake and data come through byte by byte."""
    client, server = raw_pair(files, version)
    client.write(noise(3000))
    client.finish()
    settle(client, server, piece=1)
    assert server.received == noise(3000)
    assert server.finished


def test_data_right_behind_the_handshake() -> None:
    """What the client sends together with the end of its handshake arrives, however much it is."""
    client, server = session_ends()
    server.feed(client.outgoing())
    client.feed(server.outgoing())
    client.write(noise(200_000))
    server.feed(client.outgoing())
    assert server.received == noise(200_000)


def test_from_within_on_data() -> None:
    """An owner may send, and try to go on reading, while it is told of data; an echo does."""
    client, server = connected()
    echoed = bytearray()

    def echo() -> None:
        before = len(server.received)
        server.layer.resume_reading(0.0)
        server.absorb()
        server.write(bytes(server.received[before:]))
        echoed.extend(server.outgoing())

    server.on_data = echo
    client.write(noise(500_000))
    server.feed(client.outgoing())
    client.feed(bytes(echoed))
    assert client.received == server.received == noise(500_000)


def test_given_up_within_on_data() -> None:
    """An owner that gives the connection up when it is told of data is told of no more, not even of the end."""
    client, server = connected()
    told = 0

    def give_up() -> bool:
        nonlocal told
        told += 1
        server.absorb()
        return False

    server.on_data = give_up
    client.write(noise(300_000))
    client.finish()
    server.feed(client.outgoing())
    server.layer.eof_received(0.0)
    server.resume()
    assert told == 1
    assert noise(300_000).startswith(server.received)
    assert not server.finished
    assert not server.layer.wants_read()


# ---- half-close


@pytest.mark.parametrize("server_first", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_half_close(files: Files, version: ssl.TLSVersion, server_first: bool) -> None:
    """One end of sending is an end of file at the other; the other direction goes on, then ends too."""
    ends = raw_ends(files, version)
    first, second = reversed(ends) if server_first else ends
    first.write(b"all I have")
    first.finish()
    second.write(b"on its way already, ")
    under_way = second.outgoing()
    second.feed(first.outgoing())
    assert first.layer.sending_is_over()
    assert (second.received, second.finished) == (b"all I have", True)
    assert not second.layer.wants_read()
    first.feed(under_way)
    for _ in range(20):
        second.write(noise(50_000))
        first.feed(second.outgoing())
    assert not first.finished
    second.finish()
    first.feed(second.outgoing())
    assert first.received == b"on its way already, " + noise(50_000) * 20
    assert first.finished
    assert second.layer.sending_is_over()
    assert not first.layer.wants_read()
    for end in first, second:
        end.layer.eof_received(0.0)  # orderly


def test_sending_is_over_when_close_notify_is_handed_out() -> None:
    """Not before the handshake, nor while data or close_notify is left."""
    client, server = session_ends()
    client.finish()
    assert not client.layer.sending_is_over()
    settle(client, server)
    assert client.layer.sending_is_over()
    server.write(b"x")
    server.finish()
    assert not server.layer.sending_is_over()
    size = sum(map(len, server.layer.data_to_send(0.0)))
    server.layer.data_sent(size - 1)
    assert not server.layer.sending_is_over()
    server.layer.data_sent(1)
    assert server.layer.sending_is_over()


@pytest.mark.parametrize("buffer_size", [1000, 100_000])
@pytest.mark.parametrize("version", VERSIONS)
def test_half_close_with_data_unread(files: Files, version: ssl.TLSVersion, buffer_size: int) -> None:
    """An end that reads slowly can say that it has finished, at once, and loses nothing of what waits for it."""
    client, server = raw_ends(files, version, takes=False, buffer_size=buffer_size)
    client.write(noise(3 << 20))
    wire = server.feed(client.outgoing())
    assert wire, "the server has not pushed back"
    server.write(b"I am done")
    server.finish()
    client.feed(server.outgoing())
    assert (client.received, client.finished) == (b"I am done", True)
    client.finish()
    wire += client.outgoing()
    while wire:
        server.resume()
        wire = server.feed(wire)
    server.resume()
    assert server.received == noise(3 << 20)
    assert server.finished


# ---- back-pressure


def test_back_pressure_is_bounded() -> None:
    """An end that takes nothing soon wants no more, keeps what it has, and gets all when it takes."""
    client, server = connected()
    server.takes = False
    data = noise(2 << 20)
    client.write(data)
    client.finish()
    wire = client.outgoing()
    rest = server.feed(wire)
    accepted = len(wire) - len(rest)
    assert not server.layer.wants_read()
    assert server.layer.next_deadline() is None
    assert ROOM <= accepted <= ROOM + (512 << 10)
    server.layer.handle_timeout(0.0)
    server.layer.resume_reading(0.0)
    assert len(server.received) < ROOM + (256 << 10)
    server.inner.untaken = 0
    assert not server.layer.wants_read(), "what waits is to be delivered first"
    assert server.layer.next_deadline() == 0.0
    while rest:
        server.resume()
        assert server.layer.wants_read()
        rest = server.feed(rest)
    server.resume()
    assert server.received == data
    assert server.finished


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=4),
    cuts=st.lists(st.integers(500, 300_000), min_size=1),
    takes=st.lists(st.booleans(), min_size=1),
    close_at=st.integers(0, 20),
)
def test_back_pressure_at_any_time(sizes: list[int], cuts: list[int], takes: list[bool], close_at: int) -> None:
    """Whenever an end takes what it has, and whenever it ends its own sending, nothing is lost or changed."""
    client, server = connected()
    server.takes = False
    for size in sizes:
        client.write(noise(size))
    client.finish()
    wire, turn = client.outgoing(), 0
    while wire or not server.finished:
        if turn == close_at:
            server.finish()
            client.feed(server.outgoing())
        if takes[turn % len(takes)] or turn > 100:
            server.resume()
        cut = cuts[turn % len(cuts)]
        wire = server.feed(wire[:cut]) + wire[cut:]
        turn += 1
    assert server.received == b"".join(map(noise, sizes))
    assert client.finished == (turn > close_at)


def test_received_without_being_wanted() -> None:
    """A driver that reads to throw away, or although nothing is wanted, spoils nothing of what waits."""
    client, server = connected()
    server.takes = False
    client.write(noise(ROOM + 200_000))
    wire = client.outgoing()
    assert server.feed(wire[:200_000]) == b""
    assert not server.layer.wants_read()
    view = server.layer.get_buffer(1 << 18)
    view[:] = bytes(len(view))  # thrown away
    view = server.layer.get_buffer(1 << 18)
    view[: len(wire) - 200_000] = wire[200_000:]
    server.layer.buffer_updated(len(wire) - 200_000, 0.0)
    server.resume()
    assert server.received == noise(ROOM + 200_000)


def test_every_connection_has_its_own_buffer() -> None:
    """Two connections never receive into the same memory, however much they have carried before."""
    ends = [end for _ in range(3) for end in connected()]
    for client, server in zip(ends[::2], ends[1::2], strict=True):
        client.write(noise(300_000))
        server.feed(client.outgoing())
        server.write(noise(300_000))
        client.feed(server.outgoing())
    assert len({id(end.layer.get_buffer(1).obj) for end in ends}) == len(ends)


def test_an_end_of_file_waits_for_its_turn() -> None:
    """The end of file comes behind the last byte, also when that waits and the socket has ended meanwhile."""
    client, server = connected()
    server.takes = False
    client.write(noise(ROOM + 100_000))
    client.finish()
    assert server.feed(client.outgoing()) == b""
    server.layer.eof_received(0.0)
    assert not server.finished
    server.resume()
    assert server.received == noise(ROOM + 100_000)
    assert server.finished


# ---- broken off


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("missing", [0, 10])
def test_truncation(files: Files, version: ssl.TLSVersion, missing: int) -> None:
    """A socket that ends without close_notify is an error; what came before it has been delivered."""
    client, server = raw_ends(files, version)
    client.write(noise(40_000))
    wire = client.outgoing()
    server.feed(wire[: len(wire) - missing])
    with pytest.raises(ConnectionLost, match=r"was cut.*may be incomplete"):
        server.layer.eof_received(0.0)
    assert noise(40_000).startswith(server.received)
    assert len(server.received) == (40_000 if not missing else 40_000 // (1 << 14) * (1 << 14))
    assert not server.finished
    assert not server.layer.wants_read()


def test_truncation_behind_data_that_waits() -> None:
    """A cut behind data that the inner core has not wanted yet is reported when that is delivered."""
    client, server = connected()
    server.takes = False
    client.write(noise(ROOM + 100_000))
    assert server.feed(client.outgoing()) == b""
    server.layer.eof_received(0.0)
    with pytest.raises(ConnectionLost, match="was cut"):
        server.resume()
    assert server.received == noise(ROOM + 100_000)


def test_cut_while_nothing_is_wanted() -> None:
    """An end that wants no more for now, and has itself finished, still learns that the connection was cut."""
    client, server = connected()
    server.takes = False
    client.write(noise(ROOM))
    assert server.feed(client.outgoing()) == b""
    assert server.received == noise(ROOM)
    assert not server.layer.wants_read()
    server.layer.eof_received(0.0)
    server.finish()
    assert server.outgoing()
    with pytest.raises(ConnectionLost, match="was cut"):
        server.resume()


def test_lenient_end_of_file(files: Files) -> None:
    """With strict_eof=False a socket that ends without close_notify has ended."""
    client, server = raw_ends(files, VERSIONS[1], strict_eof=False)
    client.write(b"that is all")
    server.feed(client.outgoing())
    server.layer.eof_received(0.0)
    assert (server.received, server.finished) == (b"that is all", True)


@pytest.mark.parametrize("version", VERSIONS)
def test_corruption(files: Files, version: ssl.TLSVersion) -> None:
    """A record that was changed is ConnectionLost; what came before it counts, and the peer gets an alert."""
    client, server = raw_ends(files, version)
    client.write(b"good")
    good = client.outgoing()
    client.write(b"bad")
    bad = bytearray(client.outgoing())
    bad[-1] ^= 1
    with pytest.raises(ConnectionLost, match="the TLS connection broke"):
        server.feed(good + bad)
    assert server.received == b"good"
    assert not server.layer.wants_read()
    with pytest.raises(ConnectionLost, match="ALERT"):
        client.feed(server.outgoing())


def test_closed_during_the_handshake() -> None:
    """An end of file before the handshake is complete is ConnectionLost, at either end."""
    client, server = session_ends()
    server.feed(client.outgoing())
    for end in client, server:
        with pytest.raises(ConnectionLost, match="during the TLS handshake"):
            end.layer.eof_received(0.0)
        assert not end.layer.wants_read()


# ---- cost


def test_idle_connections_hold_no_receive_buffer() -> None:
    """Connections that have carried a megabyte each and are idle hold little memory of ours."""
    ends = [connected() for _ in range(30)]
    tracemalloc.start()
    try:
        for client, server in ends:
            client.write(noise(1 << 20))
            server.feed(client.outgoing())
        held = sum(each.size for each in tracemalloc.take_snapshot().filter_traces(_of(tls.__file__)).traces)
    finally:
        tracemalloc.stop()
    assert all(server.received == noise(1 << 20) for _, server in ends)
    assert held < tls._SPARE_BUFFERS * tls._RECEIVE + 30 * (16 << 10)


def _of(file: str) -> list[tracemalloc.Filter]:
    return [tracemalloc.Filter(True, file)]


# ---- sockets


def drive(pairs: list[tuple[End, socket.socket]]) -> None:
    """Drive ends over their sockets until both have received an end of file and handed out all of theirs."""
    over: set[int] = set()
    while len(over) < len(pairs):
        readers = [sock for end, sock in pairs if end.layer.wants_read()]
        writers = [sock for end, sock in pairs if end.layer.data_to_send(0.0)]
        ready, writable, _ = select.select(readers, writers, [], limit(10))
        assert ready or writable, "nothing moves any more"
        for number, (end, sock) in enumerate(pairs):
            if sock in ready:
                count = sock.recv_into(end.layer.get_buffer(1 << 18))
                end.layer.buffer_updated(count, 0.0) if count else end.layer.eof_received(0.0)
            if sock in writable:
                end.layer.data_sent(sock.sendmsg(end.layer.data_to_send(0.0)))
            if end.finished and end.layer.sending_is_over():
                over.add(number)


@pytest.mark.parametrize("version", VERSIONS)
def test_bulk_over_sockets(files: Files, version: ssl.TLSVersion) -> None:
    """Megabytes in both directions at once over TCP arrive equal."""
    client, server = raw_pair(files, version)
    there, back = noise(9 << 20), noise(7 << 20)
    client.write(there)
    server.write(back)
    client.finish()
    server.finish()
    with Pair("ipv4") as pair:
        drive([(client, pair.client), (server, pair.server)])
    assert hashlib.sha256(server.received).digest() == hashlib.sha256(there).digest()
    assert hashlib.sha256(client.received).digest() == hashlib.sha256(back).digest()
