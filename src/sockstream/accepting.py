"""The waiting side: accepts connections, finds out who they are, hands on those that may talk.

Rules: nothing here blocks, so a silent stranger delays nobody; at most 64 connections may be unknown at a time, and
above that the *oldest* goes (measured: refusing the new one loses good clients in most floods, this in none), at
most 16 from one address of another host; each has 10 s (`frames.HANDSHAKE_TIME`) and 4096 bytes. A refusal is one
line of our log and nothing on the wire but what docs/protocol.md says.
"""

from __future__ import annotations

import errno
import socket

from . import security, transport, unixsocket
from .driver import SocketDriver
from .errors import RemoteProtocolError, SockstreamError, Timeout
from .frames import HANDSHAKE_TIME
from .link import Link, LinkState
from .loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .address import Address
    from .driver import Core
    from .loop import Loop
    from .notices import Notices
    from .raw import RawStream
    from .security import Security

MAX_UNKNOWN = 64
MAX_UNKNOWN_FROM_ONE_HOST = 16
_TLS_HELLO = 0x16
_ACCEPTS_A_TURN = 16
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BREATH = 0.1
_NOT_NOW = (SockstreamError, OSError, ImportError)  # gone again; or no descriptor is left, and modules need some, too


class Acceptor:
    """Accept on `listener` for as long as the loop runs.

    on_link(driver, link): an authenticated peer has said its OPEN: accept or refuse it. on_stream(driver, stream):
    a raw peer; its stream comes from `make_stream()`. Each address has one of the two kinds.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        address: Address,
        credentials: Security,
        notices: Notices,
        *,
        on_link: Callable[[SocketDriver, Link], None] | None = None,
        on_stream: Callable[[SocketDriver, RawStream], None] | None = None,
        make_stream: Callable[[], RawStream] | None = None,
    ) -> None:
        self.loop = loop
        self.address = address
        self.credentials = credentials
        self.notices = notices
        self.on_link = on_link
        self.on_stream = on_stream
        self.make_stream = make_stream
        self._listener = listener
        self._unknown: dict[Unknown, None] = {}
        self._closed = self._paused = False
        self.resume()

    def pause(self) -> None:
        """Accept nobody; the kernel's backlog holds those who come."""
        self._paused = True
        self.loop.unwatch(self._listener.fileno())

    def resume(self) -> None:
        """Accept again."""
        self._paused = False
        self._watch()

    def _watch(self) -> None:
        if not (self._closed or self._paused):
            self.loop.watch(self._listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Stop listening, drop who is unknown, remove our socket file."""
        if self._closed:
            return
        self.pause()
        self._closed = True
        self._listener.close()
        for unknown in list(self._unknown):
            unknown.drop()
        if self.address.is_unix:
            try:
                unixsocket.unlink_socket(self.address.path)
            except SockstreamError as error:  # a program's status is not to be lost by it
                self.notices.say(str(error))

    def forget(self, unknown: Unknown) -> None:
        """An unknown one has become known, or has gone."""
        self._unknown.pop(unknown, None)

    def _accept(self, _mask: int) -> None:
        # Raw peers one by one: the first may be the last that is wanted, and its owner says so before the next turn.
        for turn in range(1 if self.address.is_raw else _ACCEPTS_A_TURN):
            try:
                sock, _name = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if not turn:  # else there may be nobody: the system looks for a descriptor before it looks for a peer
                    self._catch_breath(error)
                return
            self._admit(sock)

    def _catch_breath(self, error: OSError) -> None:
        """Go on a little later: sessions that live are not to suffer.

        Out of descriptors, the oldest unknown one gives his; anything else (accept(2) hands on errors of the network
        that wait on a new connection) passes by itself.
        """
        self.notices.about_peer("accept", f"{error.strerror}; connections have to wait")
        if error.errno in _OUT_OF_DESCRIPTORS and self._unknown:
            next(iter(self._unknown)).drop()
        self.loop.unwatch(self._listener.fileno())
        self.loop.call_later(_BREATH, self._watch)

    def _admit(self, sock: socket.socket) -> None:
        peer = transport.peer_text(sock)
        sock.setblocking(False)
        try:
            transport.tune(sock, self.address.is_raw)
            if not self.address.is_raw:
                unixsocket.check_peer(sock)
            host = None if transport.is_loopback_peer(sock) else peer.rpartition(":")[0]
        except (SockstreamError, OSError) as error:
            self.notices.about_peer(peer, str(error))
            sock.close()
            return
        self._make_room(host)
        unknown = Unknown(self, sock, peer, host)
        self._unknown[unknown] = None
        unknown.begin()

    def _make_room(self, host: str | None) -> None:
        """Drop the oldest of all, or of this host, where the limit is reached."""
        same_host = [u for u in self._unknown if host is not None and u.host == host]
        if len(same_host) >= MAX_UNKNOWN_FROM_ONE_HOST:
            same_host[0].refuse("too many unknown connections from there, the oldest goes")
        elif len(self._unknown) >= MAX_UNKNOWN:
            next(iter(self._unknown)).refuse("too many unknown connections, the oldest goes")


class Unknown:
    """A connection of which we do not know yet who it is."""

    def __init__(self, acceptor: Acceptor, sock: socket.socket, peer: str, host: str | None) -> None:
        self.acceptor = acceptor
        self.sock = sock
        self.peer = peer
        self.host = host
        self.link: Link | None = None
        self.stream: RawStream | None = None
        self.driver: SocketDriver | None = None
        self._deadline = acceptor.loop.call_later(HANDSHAKE_TIME, self._expire)

    def begin(self) -> None:
        """Choose how to speak; for `sock://` the first byte decides, so it has to come first."""
        address = self.acceptor.address
        if address.scheme == "sock":
            self.acceptor.loop.watch(self.sock.fileno(), READ, self._sniff)
        elif address.needs_tls:
            self._speak_tls()
        else:
            self._speak_plain()

    def refuse(self, why: str) -> None:
        """Close it, with one line in the log."""
        self.acceptor.notices.about_peer(self.peer, why)
        self.drop()

    def drop(self) -> None:
        """Close it."""
        self._leave()
        if self.driver is not None:
            self.driver.abort()
            self.driver = None  # they know each other: without this they and their buffers wait for the collector
        else:
            self.acceptor.loop.unwatch(self.sock.fileno())
            self.sock.close()

    def _leave(self) -> None:
        self._deadline.cancel()
        self.acceptor.forget(self)

    def _expire(self) -> None:
        self.refuse(str(Timeout(f"did not say who it is within {HANDSHAKE_TIME:g} s")))

    def _sniff(self, _mask: int) -> None:
        try:
            first = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self.refuse(f"the connection broke: {error.strerror}")
            return
        self.acceptor.loop.unwatch(self.sock.fileno())
        if not first:
            self.refuse("closed without a word")
        elif first[0] == _TLS_HELLO:
            self._speak_tls()
        elif self.host is None:  # never ask the socket again: a peer that has reset it by now has no address
            self._speak_plain()
        else:
            self.refuse("refused: plain connections are taken from this machine only; dial sock+tls://")

    def _speak_plain(self) -> None:
        raw = self.acceptor.address.is_raw
        try:
            core = self._raw_core() if raw else self._link_core(security.plain_binding(self.sock, dials=False))
        except _NOT_NOW as error:
            self.refuse(f"cannot be spoken with: {error}")
        else:
            self._speak(core)

    def _speak_tls(self) -> None:
        acceptor = self.acceptor
        try:
            from . import tls

            context, certificate = acceptor.credentials.server_context(acceptor.address)
        except _NOT_NOW as error:
            self.refuse(f"cannot speak TLS: {error}")
            return

        def core(_ssl: object) -> Core:
            if acceptor.address.is_raw:
                return self._raw_core()
            return self._link_core(tls.certificate_binding(certificate))

        alpn = None if acceptor.address.is_raw else tls.ALPN
        self._speak(tls.TlsLayer(context, server_side=True, make_core=core, on_data=self._on_plaintext, alpn=alpn))

    def _link_core(self, binding: bytes) -> Core:
        acceptor = self.acceptor
        handshake = acceptor.credentials.handshake(dials=False, binding=binding)
        self.link = Link(handshake, acceptor.loop.now())
        self.link.trace = acceptor.notices.tracer()
        return self.link

    def _raw_core(self) -> Core:
        assert self.acceptor.make_stream is not None
        self.stream = self.acceptor.make_stream()
        self.acceptor.loop.soon(self._hand_on)
        return self.stream

    def _speak(self, core: Core) -> None:
        self.driver = SocketDriver(self.acceptor.loop, self.sock, core, self._on_input, self._on_lost)

    def _on_input(self) -> None:
        if self.link is not None and self.link.state is LinkState.PARKED:
            self._hand_on()

    def _on_plaintext(self) -> bool:
        """TLS has decrypted something for the core: its events are the driver's present owner's business."""
        return self.driver is None or self.driver.deliver()

    def _hand_on(self) -> None:
        """It is known now: it becomes the owner's."""
        if self.driver is None or self.driver.closed:
            return
        self._leave()
        if self.link is not None and self.acceptor.on_link is not None:
            self.acceptor.on_link(self.driver, self.link)
        elif self.stream is not None and self.acceptor.on_stream is not None:
            self._hand_on_stream(self.driver, self.stream)

    def _hand_on_stream(self, driver: SocketDriver, stream: RawStream) -> None:
        """A raw peer may be gone again before there is a program for it."""
        assert self.acceptor.on_stream is not None
        try:
            self.acceptor.on_stream(driver, stream)
        except SockstreamError as error:
            self.refuse(str(error))

    def _on_lost(self, error: SockstreamError | None) -> None:
        self._leave()
        self.driver = None
        if error is None:  # the owner has refused it, and said so
            return
        hint = ""
        if isinstance(error, RemoteProtocolError) and self.acceptor.address.is_unix:
            hint = " (a Unix socket takes the plain protocol only)"
        self.acceptor.notices.about_peer(self.peer, f"refused: {error}{hint}")
