"""The dialling side: connects, tries again while there is time, and hands on what is connected.

Rules: nothing here blocks but the look-up of a name; every address that a name has is tried; between attempts lies
a random time between 0 and min(10 s, 0.05 s * 2^n), so that a thousand ends do not come back in step; what trying
again cannot mend (a wrong token, another protocol) is not tried again.
"""

from __future__ import annotations

import os

from . import errors, security, transport
from .driver import SocketDriver
from .errors import AddressError, LimitExceeded, ProtocolError, SessionLost, SockstreamError, Timeout
from .frames import HANDSHAKE_TIME
from .loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from ssl import SSLObject

    from .address import Address
    from .driver import Core
    from .loop import Loop
    from .security import Security

CONNECT_TIME = 10.0
_FINAL = (ProtocolError, AddressError, SessionLost, LimitExceeded)
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 10.0


def is_final(error: SockstreamError | None) -> bool:
    """Whether dialling again cannot help."""
    return isinstance(error, _FINAL) or errors.is_authentication_error(error)


class Dialler:
    """Dial `address` until it works or the patience is over.

    make_core(binding): the core for a connection, `binding` being 32 bytes (empty for raw addresses);
    on_connected(driver): a driver whose `on_input` and `on_lost` are to be set; on_failed(error): the patience is
    over.
    """

    def __init__(
        self,
        loop: Loop,
        address: Address,
        credentials: Security,
        make_core: Callable[[bytes], Core],
        on_connected: Callable[[SocketDriver], None],
        on_failed: Callable[[SockstreamError], None],
    ) -> None:
        self.loop = loop
        self.address = address
        self.credentials = credentials
        self._make_core = make_core
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._until = 0.0
        self._attempts = 0
        self._candidates: list[tuple[int, transport.SockAddr]] = []
        self._attempt: Attempt | None = None
        self._stopped = False
        self._reached = False  # the address is right, whatever a resolver without a network says

    def start(self, patience: float) -> None:
        """Begin to dial, for `patience` seconds (0: one attempt)."""
        self._until = self.loop.now() + patience
        self._attempts = 0
        self.loop.soon(self._dial)  # never from within: a failure would stop a loop that has not begun to run

    def start_again(self, patience: float) -> None:
        """A good link has broken: dial anew, for `patience` seconds, but not at the same moment as everybody else."""
        self._until = self.loop.now() + patience
        self._attempts = 0
        self.loop.call_later(self._delay(), self._dial)

    def stop(self) -> None:
        """Dial no more."""
        self._stopped = True
        if self._attempt is not None:
            self._attempt.abandon()

    def failed(self, error: SockstreamError) -> None:
        """This attempt came to nothing (also: later, in the handshake): try again if there is time."""
        self._attempt = None
        if self._stopped:
            return
        left = self._until - self.loop.now()
        final = is_final(error) and not (self._reached and isinstance(error, AddressError))
        if final or left <= 0:
            self._on_failed(error)
        else:
            delay = min(self._delay(), left)  # so that the last attempt uses the patience up
            self._attempts += 1
            self.loop.call_later(delay, self._dial)

    def _delay(self) -> float:
        longest: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2**self._attempts)
        return longest * int.from_bytes(os.urandom(4), "little") / (1 << 32)

    def _dial(self) -> None:
        if self._stopped:
            return
        try:
            self._candidates = transport.resolve(self.address)
        except SockstreamError as error:
            self.failed(error)
            return
        self._try_next(None)

    def _try_next(self, error: SockstreamError | None) -> None:
        if not self._candidates:
            self.failed(error or AddressError(f"{self.address} has no address to dial"))
            return
        family, name = self._candidates.pop(0)
        try:
            sock = transport.begin_connect(family, name)
        except SockstreamError as failure:
            self._try_next(failure)
            return
        self._attempt = Attempt(self.loop, sock, self._connected, self._try_next)

    def _connected(self, sock: socket.socket) -> None:
        self._attempt = None
        try:
            transport.tune(sock, self.address.is_raw)
            if not self.address.is_raw:
                transport.check_peer(sock)
            driver = self._drive(sock)
        except (SockstreamError, OSError) as error:
            sock.close()
            mapped = error if isinstance(error, SockstreamError) else transport.connection_lost(error, "cannot connect")
            self.failed(mapped)
            return
        self._reached = True
        self._on_connected(driver)
        driver.flush()

    def _drive(self, sock: socket.socket) -> SocketDriver:
        core: Core
        if security.dials_tls(self.address, sock):
            core = self._tls(lambda: driver.deliver())
        elif self.address.is_raw:
            core = self._make_core(b"")
        else:
            core = self._make_core(security.plain_binding(sock, dials=True))
        driver = SocketDriver(self.loop, sock, core, _nothing, _nothing_lost)
        return driver

    def _tls(self, on_data: Callable[[], bool]) -> Core:
        from . import tls

        def make_core(session: SSLObject) -> Core:
            return self._make_core(tls.certificate_binding(tls.peer_certificate(session)))

        raw = self.address.is_raw
        return tls.TlsLayer(
            self.credentials.client_context(self.address),
            server_side=False,
            server_hostname=self.address.host if raw else None,
            make_core=make_core,
            on_data=on_data,
            alpn=None if raw else tls.ALPN,
            deadline=self.loop.now() + HANDSHAKE_TIME,
        )


class Attempt:
    """One connect that is under way."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_connected: Callable[[socket.socket], None],
        on_failed: Callable[[SockstreamError], None],
    ) -> None:
        self.loop = loop
        self.sock = sock
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._timer = loop.call_later(CONNECT_TIME, self._expire)
        loop.watch(sock.fileno(), WRITE, self._ready)

    def abandon(self) -> None:
        """Close it without a word."""
        self._leave()
        self.sock.close()

    def _leave(self) -> None:
        self._timer.cancel()
        self.loop.unwatch(self.sock.fileno())

    def _ready(self, _mask: int) -> None:
        self._leave()
        try:
            transport.finish_connect(self.sock)
        except SockstreamError as error:
            self.sock.close()
            self._on_failed(error)
            return
        self._on_connected(self.sock)

    def _expire(self) -> None:
        self.abandon()
        self._on_failed(Timeout(f"no answer to a connect within {CONNECT_TIME:g} s: is the other end up?"))


def _nothing() -> None:
    return


def _nothing_lost(_error: SockstreamError | None) -> None:
    return
