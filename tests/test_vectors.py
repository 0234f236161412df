"""The bytes of tests/vectors: the package makes and reads each of them as docs/protocol.md says.

Rules: the files come of make_vectors.py, which knows nothing of the package; a vector goes through the package's own
functions, in both directions where it has both. Each file is named in USED or in UNUSED, so that none is forgotten.

The recorded conversation is played with a real `Session` in place of either end. Not compared is what an end may
choose: the order of OPEN's fields and between channels, PING, a TAKEN of 0, a TAKEN more than the recorded ones.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pair import Application, advance, drain, end_of_file, feed, split_frames
from sockstream import auth, frames, records, tls
from sockstream.errors import RemoteProtocolError
from sockstream.frames import HEADER, HEADER_SIZE, FrameType
from sockstream.handshake import Handshake, Step
from sockstream.link import Link, LinkState
from sockstream.records import How, Kind, Peer, Status, Tag
from sockstream.session import Session

VECTORS = Path(__file__).with_name("vectors")
USED = {"bindings", "conversation", "frames", "goaway", "handshake", "keys", "open", "proofs", "records"}
UNUSED = {"descriptors": "the package sends no objects yet"}
CHOSEN = (FrameType.OPEN, FrameType.PING, FrameType.PONG, FrameType.TAKEN)  # not compared one by one
HANDSHAKE_BYTES = 49 + auth.PROOF_SIZE  # of one end


def load(name: str) -> Any:
    return json.loads(VECTORS.joinpath(f"{name}.json").read_text())


def vectors(name: str) -> pytest.MarkDecorator:
    """Parametrize a test by the fields and the bytes of each vector of a file."""
    return pytest.mark.parametrize(
        ("fields", "data"), [pytest.param(v["fields"], bytes.fromhex(v["hex"]), id=v["name"]) for v in load(name)]
    )


def vector(file: str, name: str) -> tuple[dict[str, Any], bytes]:
    """Return the fields and the bytes of one vector."""
    found = next(each for each in load(file) if each["name"] == name)
    return found["fields"], bytes.fromhex(found["hex"])


def raw(fields: dict[str, Any], *names: str) -> list[bytes]:
    """Return fields that are written as hex."""
    return [bytes.fromhex(fields[name]) for name in names]


def test_the_files_are_what_the_generator_writes() -> None:
    """The vectors in the tree are exactly those of make_vectors.py."""
    command = [sys.executable, str(VECTORS / "make_vectors.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_file_is_forgotten() -> None:
    """Every file of vectors is used below, or says why it is not."""
    assert {path.stem for path in VECTORS.glob("*.json")} == USED | UNUSED.keys()


# ---- section 2


@vectors("keys")
def test_keys(fields: dict[str, Any], data: bytes) -> None:
    """A token of 32 bytes is the key, any other is stretched to it."""
    assert auth.key_from_token(*raw(fields, "token")) == data


@vectors("bindings")
def test_bindings(fields: dict[str, Any], data: bytes) -> None:
    """Each kind of link has the binding of the page."""
    if "certificate" in fields:
        made = tls.certificate_binding(*raw(fields, "certificate"))
    elif "address" in fields:
        address = ipaddress.ip_address(fields["address"])
        packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
        made = auth.tcp_binding(packed, fields["port"])
    else:
        made = auth.unix_binding()
    assert made == data


@vectors("proofs")
def test_proofs(fields: dict[str, Any], data: bytes) -> None:
    """Both proofs come of key, transcript and binding as the page says."""
    if "sha256" in fields:
        assert hashlib.sha256(data).hexdigest() == fields["sha256"]
        return
    key, binding, transcript = raw(fields, "key", "binding", "transcript")
    if "client_proof" in fields:
        made = auth.server_proof(key, transcript, *raw(fields, "client_proof"), binding)
    else:
        made = auth.client_proof(key, transcript, binding)
    assert made == data


def side(*, dials: bool, name: str = "", nonce: bytes = bytes(32)) -> Handshake:
    """Return a side with the nonce of a vector, or another one, and the key and binding of the proofs over TCP."""
    fields, _proof = vector("proofs", "client proof, tcp4, 32 bytes of token")
    key, binding = raw(fields, "key", "binding")
    if name:
        (nonce,) = raw(vector("handshake", name)[0], "nonce")
    return Handshake(dials=dials, key=key, binding=binding, nonce=nonce)


def said(end: Handshake) -> bytes:
    """Return and forget what a side has to send."""
    data = bytes(end.output)
    end.output.clear()
    return data


def test_a_whole_handshake() -> None:
    """With the recorded nonces both ends send exactly the recorded bytes, and believe each other."""
    client = side(dials=True, name="client preamble and HELLO")
    server = side(dials=False, name="server preamble and HELLO")
    steps = [
        (client, server, vector("handshake", "client preamble and HELLO")[1]),
        (server, client, vector("handshake", "server preamble and HELLO")[1]),
        (client, server, vector("proofs", "client proof, tcp4, 32 bytes of token")[1]),
        (server, client, vector("proofs", "server proof, tcp4, 32 bytes of token")[1]),
    ]
    for sender, receiver, recorded in steps:
        assert said(sender) == recorded
        advance(receiver, recorded)
    assert client.step is server.step is Step.DONE


def test_the_rest_of_a_hello_is_proven_though_ignored() -> None:
    """Unknown flags and what follows the nonce say nothing, but are part of the transcript."""
    _, longer = vector("handshake", "client HELLO with a rest and unknown flags")
    server = side(dials=False)
    advance(server, longer)
    fields, _proof = vector("proofs", "client proof, tcp4, 32 bytes of token")
    key, binding = raw(fields, "key", "binding")
    advance(server, auth.client_proof(key, longer + said(server), binding))
    assert server.step is Step.DONE


def test_another_version_is_answered() -> None:
    """A server answers a client of version 2 with its own preamble alone; a client says both versions."""
    _, newer = vector("handshake", "preamble of a client of version 2")
    _, answer = vector("handshake", "a server's answer to another version")
    server, client = side(dials=False), side(dials=True)
    with pytest.raises(RemoteProtocolError, match=r"version 2\.0 .* this one 1\.0"):
        advance(server, newer)
    assert said(server) == answer
    with pytest.raises(RemoteProtocolError, match=r"version 2\.0 .* this one 1\.0"):
        advance(client, newer)


# ---- section 3


@vectors("frames")
def test_frames(fields: dict[str, Any], data: bytes) -> None:
    """Each frame is packed so, is read so, and is one that may come."""
    (payload,) = raw(fields, "payload")
    kind, flags, channel, number = (fields[name] for name in ("type", "flags", "channel", "number"))
    assert frames.pack(kind, flags=flags, channel=channel, number=number, payload=payload) == data
    assert HEADER.unpack_from(data) == (kind, flags, channel, len(payload), number)
    assert data[HEADER_SIZE:] == payload
    frames.check_header(kind, flags, channel, len(payload))


def fields_of(payload: bytes) -> list[tuple[int, bytes]]:
    """Cut OPEN into tags and values."""
    found = []
    while payload:
        tag, size = struct.unpack_from("<HI", payload)
        found.append((tag, payload[6 : 6 + size]))
        payload = payload[6 + size :]
    return found


def number(values: list[bytes]) -> int:
    """Return the number in the only value of a field, 0 for none."""
    return int.from_bytes(b"".join(values), "little")


@vectors("open")
def test_open_is_read(fields: dict[str, Any], data: bytes) -> None:
    """Every field of OPEN means what the page says, and an absent one its default."""
    values: dict[int, list[bytes]] = {tag: [] for tag in Tag}
    for tag, value in fields["fields"]:
        values.setdefault(tag, []).append(bytes.fromhex(value))
    peer = Peer.decode(data)
    assert [peer.session] == values[Tag.SESSION]
    assert peer.kind == number(values[Tag.KIND])
    assert peer.wants == dict(struct.unpack("<HQ", value) for value in values[Tag.WANT])
    assert peer.window_bits == (number(values[Tag.WINDOW]) or 20)
    grace = number(values[Tag.GRACE]) if values[Tag.GRACE] else 60_000
    assert peer.grace == (float("inf") if grace == 2**64 - 1 else grace / 1000)
    assert list(peer.arguments) == values[Tag.ARGUMENT]
    texts = {Tag.SOFTWARE: peer.software, Tag.NAME: peer.name, Tag.HOST: peer.host}
    assert texts == {tag: b"".join(values[tag]).decode() for tag in texts}
    assert (peer.max_pickle, peer.max_message) == (number(values[Tag.MAX_PICKLE]), number(values[Tag.MAX_MESSAGE]))
    assert (peer.takes_objects, peer.has_terminal) == (bool(values[Tag.TAKES_OBJECTS]), bool(values[Tag.TERMINAL]))
    assert peer.python == next((tuple(value) for value in values[Tag.PYTHON]), None)
    assert peer.size == next((struct.unpack("<HH", value) for value in values[Tag.SIZE]), None)


@vectors("open")
def test_open_is_written(fields: dict[str, Any], data: bytes) -> None:
    """What was read is written again: the same fields, without unknown ones, and with the defaults of two."""
    known = [(tag, bytes.fromhex(value)) for tag, value in fields["fields"] if tag in Tag.__members__.values()]
    defaults = {Tag.WINDOW: b"\x14", Tag.GRACE: struct.pack("<Q", 60_000)}
    known += [(tag, value) for tag, value in defaults.items() if tag not in dict(known)]
    written = fields_of(Peer.decode(data).encode())
    assert sorted(written) == sorted(known)
    assert [value for tag, value in written if tag == Tag.ARGUMENT] == [v for tag, v in known if tag == Tag.ARGUMENT]


# ---- section 5


def status_of(fields: dict[str, Any]) -> Status:
    times = {name: fields[name] / 1e6 for name in ("elapsed", "user", "system")}
    return Status(How(fields["how"]), fields["value"], fields["text"], **times)


def record_of(fields: dict[str, Any]) -> records.Record | None:
    """Return the record that a vector's fields describe, None for a kind that is not known."""
    match fields:
        case {"pid": pid}:
            return records.Started(pid)
        case {"signal": name}:
            return records.Signal(name)
        case {"size": size}:
            return records.WindowSize(*size)
        case {"finals": finals}:
            return records.End(dict(finals), status_of(fields))
        case {"how": _}:
            return records.Exited(status_of(fields))
    return None


def parts(record: records.Record | None) -> object:
    """Return type and content of a record, to be compared."""
    return record and (type(record), {name: getattr(record, name) for name in record.__slots__})


@vectors("records")
def test_records(fields: dict[str, Any], data: bytes) -> None:
    """Each control record is read as its fields say and written with the same bytes; unknown ones are no fault."""
    record = record_of(fields)
    assert parts(records.decode_record(data)) == parts(record)
    assert record is None or record.encode() == data


@vectors("goaway")
def test_goaway(fields: dict[str, Any], data: bytes) -> None:
    """Each GOAWAY has code and text, and is one that may come."""
    assert records.encode_goaway(fields["code"], fields["text"]) == data
    assert records.decode_goaway(data) == (fields["code"], fields["text"])
    frames.check_header(FrameType.GOAWAY, 0, 0, len(data))


@pytest.mark.parametrize("name", ["refused", "version", "full", "replaced", "unknown-session", "leaving"])
def test_the_names_of_goaway(name: str) -> None:
    """A code has the same name for people as on the page."""
    assert records.goaway_name(vector("goaway", name)[0]["code"]) == name


# ---- the conversation


class Player:
    """A real end that is led through the recorded conversation in place of its client or its server."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.recorded = load("conversation")
        self.status = status_of(vector("records", "EXIT, exited with 7")[0])
        self.now = 0.0
        me = Peer(Kind.PROGRAM if role == "client" else Kind.VIEWER, session=self._id())
        me.arguments = (b"greet",) if role == "client" else ()
        self.application = Application(Session(me), takes=False)

    def _id(self) -> bytes:
        opened = next(step for step in self.recorded["links"][0]["steps"] if step["what"] == "OPEN")
        return Peer.decode(bytes.fromhex(opened["hex"])[HEADER_SIZE:]).session

    def play(self, recorded: dict[str, Any]) -> tuple[bytes, bytes]:
        """Play one link; return the bytes that this end sent, and those that the recorded one sent."""
        steps = [(step["from"] == self.role, step["what"], bytes.fromhex(step["hex"])) for step in recorded["steps"]]
        self.link = self._link(next(data for mine, _, data in steps if mine))
        sent = bytearray()
        for mine, what, data in steps:
            if not mine:
                self._receive(data, adopts="adopts" in recorded["name"])
                continue
            if self.link.state is LinkState.UP:
                self._act(what, data)
                self.now += 0.06  # a TAKEN may wait for 50 ms
                self.link.handle_timeout(self.now)
            sent += drain(self.link, self.now)
        end_of_file(self.link, self.now)
        return bytes(sent), b"".join(data for mine, _, data in steps if mine)

    def _link(self, greeting: bytes) -> Link:
        key, binding = raw(self.recorded, "token", "binding")
        dials = self.role == "client"
        shaking = Handshake(dials=dials, key=key, binding=binding, nonce=greeting[17:49])
        return Link(shaking, self.now, self.application.session if dials else None)

    def _receive(self, data: bytes, *, adopts: bool) -> None:
        for _ in feed(self.link, data, self.now):
            if self.link.state is LinkState.PARKED:
                if adopts:
                    session = Session(Peer(Kind.VIEWER, session=self._id()), adopting=self.link.peer)
                    self.application = Application(session, takes=False)
                self.link.accept(self.application.session, self.now)
            if self.link.state is not LinkState.HANDSHAKE:
                self.application.absorb(self.now)

    def _act(self, what: str, data: bytes) -> None:
        """Do what makes an end say this; what a new link repeats was done on an older one."""
        session = self.application.session
        kind, _flags, channel, number, payload = split_frames(data)[0]
        if kind == FrameType.TAKEN and channel and number > session.incoming[channel].taken:
            self.application.take(channel, number - session.incoming[channel].taken, self.now)
        elif what == "STARTED":
            session.send(records.Started(4242))
        elif what == "EXIT":
            session.send(records.Exited(self.status))
        elif what == "END":
            session.end(self.status)
        elif what.startswith("FIN") and not session.outgoing[channel].finished:
            session.finish(channel)
        elif what == "DATA of stdout" and session.outgoing[channel].end == number:
            session.write(channel, payload)
        elif what.startswith("GOAWAY"):
            assert self.application.completed == [self.status]
            session.leave()


def check_open(mine: tuple[int, int, int, int, bytes], recorded: tuple[int, int, int, int, bytes]) -> None:
    """Both OPENs say the same; a channel that is not named is wanted from 0 on."""
    assert mine[:4] == recorded[:4]
    ours, theirs = Peer.decode(mine[4]), Peer.decode(recorded[4])
    assert (ours.session, ours.kind, ours.arguments) == (theirs.session, theirs.kind, theirs.arguments)
    assert [ours.wants.get(channel, 0) for channel in range(4)] == [theirs.wants.get(c, 0) for c in range(4)]


def check_sent(mine: bytes, recorded: bytes) -> None:
    """This end sent what the recorded one did, but for what it may choose."""
    assert mine[:HANDSHAKE_BYTES] == recorded[:HANDSHAKE_BYTES]
    ours, theirs = split_frames(mine[HANDSHAKE_BYTES:]), split_frames(recorded[HANDSHAKE_BYTES:])
    check_open(ours[0], theirs[0])
    for channel in range(4):
        wanted = [each for each in theirs if each[0] not in CHOSEN and each[2] == channel]
        assert [each for each in ours if each[0] not in CHOSEN and each[2] == channel] == wanted
    assert {each for each in theirs if each[0] == FrameType.TAKEN and each[3]} <= set(ours)


@pytest.mark.parametrize("role", ["client", "server"])
def test_the_conversation(role: str) -> None:
    """In place of either end a real one says what was recorded on each link: begin, resume, adoption and end."""
    player = Player(role)
    for recorded in player.recorded["links"]:
        resumes = recorded is not player.recorded["links"][0]
        mine, theirs = player.play(recorded)
        check_sent(mine, theirs)
        assert player.link.resumes is (resumes and role == "server")
    assert player.application.completed == [player.status]
    assert player.status.exit_code == player.recorded["exit"]
    assert player.application.gone == ([] if role == "client" else [(frames.GoAwayCode.LEAVING, "")])


def test_the_conversation_carries_the_output() -> None:
    """Both viewers together get what the program printed."""
    player = Player("server")
    output = []
    for recorded in player.recorded["links"]:
        viewer = player.application
        player.play(recorded)
        if player.application is not viewer:
            taken = viewer.session.incoming[2].taken
            output.append(bytes(viewer.received[2][:taken]))
    output.append(bytes(player.application.received[2]))
    assert b"".join(output) == bytes.fromhex(player.recorded["stdout"])
