"""Who may talk to us, for every link: the key, the TLS contexts, the binding (DESIGN section 6).

Rules: TLS, the token and what proves it are loaded when first needed and never again, because most runs need no TLS
at all, and raw addresses need none of them; whether a link is plain or TLS is decided here and nowhere else, by the
connected socket and not by the text of an address.
"""

from __future__ import annotations

import os
import socket

from . import transport
from .address import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext

    from .handshake import Handshake


class Security:
    """The secrets and settings of one command.

    token: the token's bytes if the caller has them; token_file: where else to look; cert_file, key_file: a waiting
    end's own certificate; ca_file: what a dialling `tls://` end trusts in place of the system's authorities.
    """

    def __init__(
        self,
        *,
        token: bytes | None = None,
        token_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self._token = token
        self._token_file = token_file
        self._cert_file = cert_file
        self._key_file = key_file
        self._ca_file = ca_file
        self._key: bytes | None = None
        self._server: tuple[SSLContext, bytes] | None = None
        self._client: SSLContext | None = None

    def key(self) -> bytes:
        """Return the 32-byte key; raises SockstreamError where there is no usable token."""
        if self._key is None:
            from . import auth, token

            secret = self._token if self._token is not None else token.load(self._token_file)
            self._key = auth.key_from_token(secret)
        return self._key

    def prepare_to_dial(self, address: Address) -> None:
        """Load what dialling needs, so that a bad token or authority is told before anything is dialled."""
        if not address.is_raw:
            self.key()
        elif address.needs_tls:
            self.client_context(address)

    def handshake(self, *, dials: bool, binding: bytes) -> Handshake:
        """Return a fresh handshake for one link."""
        from .auth import NONCE_SIZE
        from .handshake import Handshake

        return Handshake(dials=dials, key=self.key(), binding=binding, nonce=os.urandom(NONCE_SIZE))

    def server_context(self, address: Address) -> tuple[SSLContext, bytes]:
        """Return the context of a waiting end and its certificate (DER); raises SockstreamError."""
        from . import tls

        if self._server is None:
            if self._cert_file is not None:
                self._server = tls.server_context(self._cert_file, self._key_file, session=not address.is_raw)
            else:
                self._server = tls.session_server_context()
        return self._server

    def client_context(self, address: Address) -> SSLContext:
        """Return the context of a dialling end: raw TLS verifies, session TLS is bound by the proof instead."""
        from . import tls

        if self._client is None:
            raw = address.is_raw
            self._client = tls.client_context(self._ca_file, verify=True) if raw else tls.session_client_context()
        return self._client


def dials_tls(address: Address, sock: socket.socket) -> bool:
    """Whether a dialled connection speaks TLS: as the address says, and for `sock://` always off loopback."""
    return address.needs_tls or (address.scheme == "sock" and not transport.is_loopback_peer(sock))


def plain_binding(sock: socket.socket, *, dials: bool) -> bytes:
    """Return the binding of a plain link (docs/protocol.md section 2.2)."""
    from . import auth

    if sock.family == socket.AF_UNIX:
        return auth.unix_binding()
    return auth.tcp_binding(*transport.tcp_binding_address(sock, dials))
