"""TLS round any core, and the contexts it takes; the only module that imports ssl.

Rules:
* A TlsLayer is a core itself: ciphertext on the socket's side, the inner core's plaintext on the other. It is
  one SSLObject between two memory BIOs and does no I/O.
* The inner core is made when the handshake is complete, since it may be bound to the peer's certificate. Until
  then a fixed number of bytes is taken from the peer.
* Plaintext goes straight into the inner core's buffer. After each piece `on_data` is called and must use up the
  core's events, because they may point into that buffer.
* While the inner core does not want to read, ciphertext stays where it is and `wants_read` is False. When the
  core wants it again no socket will say so: then `next_deadline` is 0.0, which has passed on any clock, and
  `handle_timeout` goes on. `resume_reading` does the same at once.
* The inner core's end of sending becomes a close_notify, and one from the peer its end of file; either direction
  goes on without the other. A connection that ends without close_notify has been cut, perhaps by an attacker.

Reasoning:
* unwrap() sends close_notify and then reads; application data that it meets there is lost and an error. So what
  the BIO holds is first decrypted into a stash; only then is nothing there for unwrap() to destroy. It cannot
  wait for the inner core to want that data: an end that reads slowly may still say that it has finished.
* BIOs never give memory back. They are filled by slices, so that a connection that once carried much and is now
  idle holds no more than one that never did. The receive buffers are shared: a layer has one only between
  `get_buffer` and the last of its bytes, so that idle connections have none, and no other connection or thread
  can write into it, not even when an interrupt comes between the two calls.
* Small pieces are joined into full records: a frame's header would else be a record of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl

from sockstream import errors, frames
from sockstream.errors import (
    AddressError,
    ConnectionLost,
    LimitExceeded,
    RemoteProtocolError,
    SockstreamError,
    Timeout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    Buffer = bytes | bytearray | memoryview

    class Core(Protocol):
        """What is inside of a TlsLayer: a session's link or a raw stream."""

        def wants_read(self) -> bool: ...
        def get_buffer(self, hint: int) -> memoryview: ...
        def buffer_updated(self, count: int, now: float) -> None: ...
        def eof_received(self, now: float) -> None: ...
        def data_to_send(self, now: float) -> list[bytes | memoryview]: ...
        def data_sent(self, count: int) -> None: ...
        def sending_is_over(self) -> bool: ...
        def next_deadline(self) -> float | None: ...
        def handle_timeout(self, now: float) -> None: ...


ALPN = "sockstream/1"
SERVER_HANDSHAKE_LIMIT = 4096
CLIENT_HANDSHAKE_LIMIT = 128 << 10  # a server sends its whole chain of certificates

_RECEIVE = 256 << 10
_SEND = 256 << 10
_RECORD = 16 << 10  # plaintext in a full record
_SLICE = 32 << 10
_ENOUGH = _RECORD + 512  # ciphertext that holds a whole record: header, padding and tag included
_SPARE_BUFFERS = 4
_NOTHING = memoryview(b"")

_spare: list[memoryview] = []


class TlsLayer:
    """A core that speaks TLS to the peer and hands plaintext to an inner core.

    context: from one of the functions below.
    server_side: whether this end waits. server_hostname: whom a client dialled, if the context verifies that.
    make_core: called with the SSLObject once the handshake is complete, returns the inner core.
    on_data: called whenever the inner core has events; it returns False when it has given the connection up, and
        then nothing more is delivered.
    handshake_limit: bytes taken from the peer before the inner core exists; None for 4096 (server) or 131072.
    strict_eof: whether a connection that ends without close_notify is an error or merely ended.
    alpn: the protocol that the peer must have agreed to, or None for any.
    deadline: when the handshake must be complete (seconds, as `now`), or None if somebody else sees to that.
    Raises AddressError if the host name cannot be one. What its methods raise is said at `buffer_updated`; what
    `data_to_send` gives after that is the alert that tells the peer why.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        make_core: Callable[[ssl.SSLObject], Core],
        on_data: Callable[[], bool | None],
        handshake_limit: int | None = None,
        strict_eof: bool = True,
        alpn: str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.core: Core | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        except ValueError as error:
            raise AddressError(f"{server_hostname!r} cannot be the name of a TLS server: {error}") from error
        self._make_core = make_core
        self._on_data = on_data
        self._allowance = handshake_limit or (SERVER_HANDSHAKE_LIMIT if server_side else CLIENT_HANDSHAKE_LIMIT)
        self._strict_eof = strict_eof
        self._alpn = alpn
        self._deadline = deadline
        self._buffer: memoryview | None = None  # to receive into
        self._full: memoryview | None = None  # received into
        self._received = _NOTHING  # what the BIO has not got yet of the full one
        self._stash = bytearray()  # plaintext decrypted before the core wanted it
        self._out: list[bytes | memoryview] = []
        self._more = False  # there may be plaintext to deliver
        self._delivering = False
        self._socket_ended = False
        self._ended = False  # nothing can come behind what has been decrypted: close_notify, or an error
        self._failed = False
        self._error: SockstreamError | None = None  # for whoever is told of the end
        self._end_told = False
        self._closed = False  # our close_notify is written
        self._shake_hands()

    # ---- receiving

    def wants_read(self) -> bool:
        """Whether to receive: always during the handshake, then while the inner core keeps up."""
        if self.core is None:
            return not self._failed
        return not self._ended and not self._more and self.core.wants_read()

    def get_buffer(self, hint: int) -> memoryview:
        """Return where to receive ciphertext; little room for a peer whose handshake is not complete."""
        if self.core is None:
            self._buffer = memoryview(bytearray(min(self._allowance, _ENOUGH)))
        elif self._buffer is None:
            try:
                self._buffer = _spare.pop()
            except IndexError:
                self._buffer = memoryview(bytearray(_RECEIVE))
        return self._buffer

    def buffer_updated(self, count: int, now: float) -> None:
        """Take `count` bytes of ciphertext and deliver the plaintext.

        Raises, besides what the inner core raises: during the handshake AuthenticationError (a certificate),
        RemoteProtocolError (no TLS, or none in common), LimitExceeded; afterwards ConnectionLost.
        """
        assert self._buffer is not None
        self._feed(len(self._received))  # nothing, unless this was received without being wanted
        self._full, self._buffer = self._buffer, None
        self._received = self._full[:count]
        if self.core is None:
            self._allowance -= count
            self._feed(count)
            self._shake_hands()
        self._more = True
        self.resume_reading(now)

    def eof_received(self, now: float) -> None:
        """The socket has ended; an error without close_notify.

        Raises ConnectionLost if the connection was cut, or later from `resume_reading` if data waits before it.
        """
        self._socket_ended = True
        _give_back(self._buffer)
        self._buffer = None
        if self.core is None:
            raise self._fail(ConnectionLost(_CLOSED_EARLY))
        if not self._ended:
            self._more = True
            self.resume_reading(now)

    def resume_reading(self, now: float) -> None:
        """Deliver what has waited, as far as the inner core wants it; raises as `buffer_updated`."""
        core = self.core
        if core is None or self._delivering:  # on_data may lead here again
            return
        self._delivering = True
        try:
            while self._more and core.wants_read():
                count = self._fill(core.get_buffer(self._at_hand()))
                if count:
                    core.buffer_updated(count, now)
                    self._call_on_data()
            if self._ended and not self._more and not self._end_told:
                self._tell_end(core, now)
        finally:
            self._delivering = False

    def _tell_end(self, core: Core, now: float) -> None:
        self._end_told = True
        error, self._error = self._error, None  # what is raised and kept would keep this layer until it is collected
        if error is not None:
            raise error
        core.eof_received(now)
        self._call_on_data()

    def _call_on_data(self) -> None:
        if self._on_data() is False:
            self._more = False
            self._ended = self._end_told = True

    def _at_hand(self) -> int:
        return len(self._stash) + len(self._received) + self._incoming.pending + _RECORD

    def _fill(self, view: memoryview) -> int:
        """Put plaintext into the view, as much as there is; return how much."""
        filled = min(len(view), len(self._stash))
        if filled:
            view[:filled] = self._stash[:filled]
            del self._stash[:filled]
        size = len(view)
        while filled < size:
            if self._incoming.pending < _ENOUGH:
                self._feed(_SLICE)
            count = self._read(view[filled:])
            if not count:
                break
            filled += count
        return filled

    def _feed(self, size: int) -> None:
        """Move the next piece of the ciphertext into the BIO, and its end behind the last."""
        if self._received:
            self._incoming.write(self._received[:size])
            self._received = self._received[size:]
        if not self._received and self._full is not None:
            _give_back(self._full)
            self._full, self._received = None, _NOTHING
        if not self._received and self._socket_ended:
            self._incoming.write_eof()

    def _read(self, view: memoryview) -> int:
        """Decrypt into the view; 0 if nothing is left in the BIO, or nothing can come any more."""
        try:
            count = int(self._ssl.read(len(view), view))  # the stub says bytes, but with a buffer it is the count
        except ssl.SSLWantReadError:
            self._more = False
            return 0
        except ssl.SSLZeroReturnError:  # close_notify, when ours has gone out
            count = 0
        except ssl.SSLEOFError as error:
            if self._strict_eof:
                self._error = self._fail(ConnectionLost(_CUT), error)
            count = 0
        except ssl.SSLError as error:
            self._error = self._fail(ConnectionLost(f"the TLS connection broke: {_reason(error)}"), error)
            count = 0
        if not count:
            self._more = False
            self._ended = True
        return count

    # ---- the handshake

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            if self._allowance <= 0:
                raise self._fail(LimitExceeded(_TOO_LONG)) from None
            return
        except ssl.SSLError as error:
            raise self._fail(_handshake_error(error, self._ssl.server_hostname)) from error
        if self._alpn is not None and self._ssl.selected_alpn_protocol() != self._alpn:
            raise self._fail(RemoteProtocolError(_OTHER_PROTOCOL))
        self.core = self._make_core(self._ssl)

    def _fail(self, error: SockstreamError, cause: Exception | None = None) -> SockstreamError:
        error.__cause__ = cause
        self._failed = True
        return error

    # ---- sending

    def data_to_send(self, now: float) -> list[bytes | memoryview]:
        """Return ciphertext for `sendmsg`, about 256 KiB at most; the same until `data_sent`.

        Raises ConnectionLost if TLS breaks.
        """
        if not self._out:
            if self.core is not None and not self._failed:
                self._encrypt(self.core, now)
            if self._outgoing.pending:
                self._out.append(self._outgoing.read())
        return self._out

    def data_sent(self, count: int) -> None:
        """The kernel took `count` bytes of `data_to_send`."""
        frames.consume(self._out, count)

    def sending_is_over(self) -> bool:
        """Whether close_notify, the last of all, has been handed out."""
        return self._closed and not self._out and not self._outgoing.pending

    def _encrypt(self, core: Core, now: float) -> None:
        buffers = core.data_to_send(now)
        if buffers:
            core.data_sent(self._write(buffers))
        if not self._closed and core.sending_is_over():
            self._close()

    def _write(self, buffers: Iterable[Buffer]) -> int:
        """Encrypt of the buffers what is sent at a time; return how much that is."""
        total = 0
        try:
            for piece in _pieces(buffers):
                self._ssl.write(piece)
                self._out.append(self._outgoing.read())
                total += len(piece)
                if total >= _SEND:
                    break
        except ssl.SSLError as error:
            raise self._fail(ConnectionLost(f"the TLS connection broke: {_reason(error)}")) from error
        return total

    def _close(self) -> None:
        """Write close_notify, after saving what unwrap() would destroy."""
        self._closed = True
        if not self._ended:
            self._save_plaintext()
        # It wants to read the peer's close_notify, which comes in its own time, or never.
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()

    def _save_plaintext(self) -> None:
        """Decrypt all that the BIO holds, a few records at most, into the stash."""
        waiting = self._more
        block = memoryview(bytearray(_RECORD))
        while count := self._read(block):
            self._stash += block[:count]
        self._more = waiting  # true if there is a stash now, or the socket's end has yet to be looked at

    # ---- time

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is to be called: 0.0 if the inner core can go on, else its own deadline."""
        if self.core is None:
            return self._deadline
        if self._more and self.core.wants_read():
            return 0.0
        return self.core.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Go on delivering, and tell the inner core if it is due; raises as `buffer_updated`, Timeout before that."""
        self.resume_reading(now)
        if self.core is None:
            if self._deadline is not None and now >= self._deadline:
                raise self._fail(Timeout(_TOO_SLOW))
        else:
            deadline = self.core.next_deadline()
            if deadline is not None and deadline <= now:
                self.core.handle_timeout(now)


def _give_back(buffer: memoryview | None) -> None:
    if buffer is not None and len(buffer) == _RECEIVE and len(_spare) < _SPARE_BUFFERS:
        _spare.append(buffer)


def client_context(ca_file: str | None = None, verify: bool = True) -> ssl.SSLContext:
    """Return the context of an end that dials tls://.

    ca_file: PEM file with the certificates to trust in place of the system's, a server's own may be one of them.
    verify: whether the server must prove its name; else anybody may be it.
    Raises SockstreamError if the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        context.load_default_certs()
    else:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise SockstreamError(
                f"cannot use the CA file {ca_file}: {_reason(error)}: --tls-ca takes certificates in PEM form"
            ) from error
    return context


def session_client_context() -> ssl.SSLContext:
    """Return the context of an end that dials the sockstream protocol; the proof, not a CA, vouches for the server."""
    context = client_context(verify=False)
    _for_sessions(context)
    return context


def session_server_context() -> tuple[ssl.SSLContext, bytes]:
    """Return the context of an end that waits for sessions, and the DER form of its throw-away certificate."""
    context = _waiting_context()
    _for_sessions(context)
    certificate, pem = _throw_away_certificate()
    _load_secret(context, pem)
    return context, certificate


def server_context(cert_file: str, key_file: str | None, session: bool) -> tuple[ssl.SSLContext, bytes]:
    """Return the context of a waiting end with a certificate of its own, and that certificate's DER form.

    cert_file: PEM file, the end's own certificate first. key_file: PEM file, None if the key is in cert_file.
    session: whether the sockstream protocol is spoken, or raw tls://.
    Raises SockstreamError if the files cannot be used.
    """
    context = _waiting_context()
    if session:
        _for_sessions(context)
    try:
        context.load_cert_chain(cert_file, key_file, password=_refuse_password)
        with open(cert_file, encoding="ascii", errors="replace") as file:
            certificate = _first_certificate(file.read())
    except (OSError, ValueError) as error:
        files = cert_file if key_file is None else f"{cert_file} and {key_file}"
        raise SockstreamError(
            f"cannot use the certificate and key in {files}: {_reason(error)}: "
            "--tls-cert and --tls-key take an unencrypted key and its certificate in PEM form"
        ) from error
    return context, certificate


def certificate_binding(der: bytes) -> bytes:
    """Return the 32 bytes that bind a proof to the server's certificate."""
    return hashlib.sha256(der).digest()


def peer_certificate(sslobject: ssl.SSLObject) -> bytes:
    """Return the DER form of the server's certificate, as the client sees it; RemoteProtocolError if it sent none."""
    certificate = sslobject.getpeercert(binary_form=True)
    if not certificate:
        raise RemoteProtocolError("the other end showed no certificate: is it a sockstream end?")
    return certificate


def _waiting_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nobody resumes TLS sessions here, and tickets would keep a key for as long as the process lives.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def _for_sessions(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])


def _throw_away_certificate() -> tuple[bytes, bytes]:
    """Make a key and a certificate; return the certificate in DER form and both in PEM form."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sockstream")])
    now = datetime.datetime.now(datetime.UTC)
    year = datetime.timedelta(days=365)  # nobody checks it: its hash is what counts, as long as the process lives
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - year, now + year)
    certificate = builder.sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + secret
    return certificate.public_bytes(serialization.Encoding.DER), pem


def _load_secret(context: ssl.SSLContext, pem: bytes) -> None:
    """Load certificate and key, which ssl takes from a file only, without leaving the key on a disk."""
    try:
        fd = os.memfd_create("sockstream-key")
    except (AttributeError, OSError):  # not Linux, or forbidden
        _load_from_file(context, pem)
        return
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # no /proc
        _load_from_file(context, pem)
    finally:
        os.close(fd)


def _load_from_file(context: ssl.SSLContext, pem: bytes) -> None:
    import tempfile

    fd, path = tempfile.mkstemp()  # 0600
    try:
        os.write(fd, pem)
        context.load_cert_chain(path)
    finally:
        os.close(fd)
        os.unlink(path)


def _refuse_password() -> str:
    # Or OpenSSL would ask on the terminal and wait.
    raise ValueError("the key is encrypted")


def _first_certificate(pem: str) -> bytes:
    start = pem.find(ssl.PEM_HEADER)
    end = pem.find(ssl.PEM_FOOTER, start)
    if start < 0 or end < 0:
        raise ValueError("no certificate in PEM form in it")
    return ssl.PEM_cert_to_DER_cert(pem[start : end + len(ssl.PEM_FOOTER)])


def _pieces(buffers: Iterable[Buffer]) -> Iterator[bytearray | memoryview]:
    """Yield what to encrypt in one call each: large pieces in place, small ones joined into full records."""
    small = bytearray()
    for buffer in buffers:
        view = memoryview(buffer)
        if small:
            missing = _RECORD - len(small)
            small += view[:missing]
            view = view[missing:]
            if len(small) < _RECORD:
                continue
            yield small
            small = bytearray()
        while len(view) >= _RECORD:
            yield view[:_SLICE] if len(view) >= _SLICE else view[:_RECORD]
            view = view[_SLICE:] if len(view) >= _SLICE else view[_RECORD:]
        small += view
    if small:
        yield small


_CLOSED_EARLY = "the other end closed the connection during the TLS handshake: does it speak TLS? Its messages say why"
_CUT = "the TLS connection ended without the other end's close_notify: it was cut, and what came may be incomplete"
_TOO_LONG = "the TLS handshake takes more bytes than allowed: the other end was refused"
_TOO_SLOW = "the other end did not finish the TLS handshake in time: does it speak TLS, and is the address right?"
_OTHER_PROTOCOL = f"the other end speaks TLS, but not {ALPN}: is it a sockstream end, and the address right?"
_NO_TLS = "the other end does not speak TLS: check the scheme of the address at both ends"
_NOT_IN_COMMON = "the two ends have no TLS version or method in common: the older one needs an update"

_ADVICE = {
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "HTTPS_PROXY_REQUEST": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "UNEXPECTED_MESSAGE": _NO_TLS,
    "UNSUPPORTED_PROTOCOL": _NOT_IN_COMMON,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NOT_IN_COMMON,
    "NO_SHARED_CIPHER": _NOT_IN_COMMON,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _NOT_IN_COMMON,
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": _OTHER_PROTOCOL,
}


def _handshake_error(error: ssl.SSLError, server_hostname: str | None) -> SockstreamError:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return errors.AuthenticationError(
            f"the certificate of {server_hostname or 'the other end'} is not to be trusted: {why}: "
            "if it is the right one, name it or its CA with --tls-ca"
        )
    reason = _reason(error)
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return errors.AuthenticationError(
            f"the other end does not trust our certificate ({reason}): it has to know its CA (--tls-ca)"
        )
    return RemoteProtocolError(f"the TLS handshake failed ({reason}): {_ADVICE.get(reason, _CLOSED_EARLY)}")


def _reason(error: Exception) -> str:
    """Return the short form of what went wrong; ssl's own text names a line of its source."""
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
