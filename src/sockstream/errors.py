"""The one tree of errors; layer 0, imports nothing.

    SockstreamError
    ├── AddressError              also ValueError
    ├── AuthenticationError       also multiprocessing.AuthenticationError
    ├── ConnectionLost            also ConnectionError
    │   └── SessionLost           .delivered
    ├── Timeout                   also TimeoutError
    ├── ProtocolError
    │   ├── LocalProtocolError
    │   └── RemoteProtocolError
    ├── LimitExceeded
    ├── ObjectRefused             also pickle.UnpicklingError
    ├── BufferTooShort            also multiprocessing.BufferTooShort
    └── ProgramError              .status

Rules: every error of the library is in this tree, except the end of a conversation, which is Python's own
EOFError. A message says what happened, to what, and what to do. Every error survives pickle and copy.

Second bases let code written for the standard library catch ours unchanged. Three of them live in
multiprocessing and pickle, which a wrapper that must start quickly cannot afford to import; those classes are
made by `__getattr__` (PEP 562) when somebody first asks for them. So modules on the path of `run` write
`errors.AuthenticationError` where they raise or catch it: `from sockstream.errors import AuthenticationError`
asks for the class, and so imports its base, at once.

ConnectionLost and Timeout are OSErrors through their second bases: an `except OSError` that maps the system's
errors to ours must not have our own inside it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import multiprocessing
    import pickle

__all__ = [
    "AddressError",
    "AuthenticationError",
    "BufferTooShort",
    "ConnectionLost",
    "LimitExceeded",
    "LocalProtocolError",
    "ObjectRefused",
    "ProgramError",
    "ProtocolError",
    "RemoteProtocolError",
    "SessionLost",
    "SockstreamError",
    "Timeout",
]


class SockstreamError(Exception):
    """Anything that sockstream itself reports as gone wrong."""


class AddressError(SockstreamError, ValueError):
    """The text or the parts are no address, or not one that this call can use."""


class ConnectionLost(SockstreamError, ConnectionError):
    """A link broke, or could not be made, and what it carried does not go on."""


class SessionLost(ConnectionLost):
    """A session cannot go on, on this link or any other.

    message: what happened.
    delivered: channel number to the offset in bytes up to which the peer is known to have taken what we sent,
        or None if nothing is known.
    """

    def __init__(self, message: str, delivered: dict[int, int] | None = None) -> None:
        super().__init__(message)
        self.delivered = delivered


class Timeout(SockstreamError, TimeoutError):
    """The time that the caller allowed is over."""


class ProtocolError(SockstreamError):
    """The rules of the protocol were broken."""


class LocalProtocolError(ProtocolError):
    """This end asked for something that the protocol does not allow now; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""


class LimitExceeded(SockstreamError):
    """Something is larger, or there are more of them, than a stated limit allows."""


class ProgramError(SockstreamError):
    """The program could not be run.

    message: what happened.
    status: the exit status to end with: 126 cannot be executed, 127 not found, 125 a fault of ours.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with both arguments; BaseException keeps only the message."""
        return type(self), (str(self), self.status), self.__dict__


def is_authentication_error(error: object) -> bool:
    """Whether it is an AuthenticationError, without making that class (and importing its base) just to ask."""
    made = globals().get("AuthenticationError")
    return made is not None and isinstance(error, made)


# Name -> (module of the second base, its name there, docstring).
_MADE_ON_FIRST_USE = {
    "AuthenticationError": (
        "multiprocessing",
        "AuthenticationError",
        "The two ends do not own the same token, or one of them cannot prove that it does.",
    ),
    "BufferTooShort": (
        "multiprocessing",
        "BufferTooShort",
        "A message does not fit into the caller's buffer; `args[0]` is the whole message as bytes.",
    ),
    "ObjectRefused": (
        "pickle",
        "UnpicklingError",
        "A received object was not built, being malformed or naming what the trust mode does not allow.",
    ),
}

if TYPE_CHECKING:

    class AuthenticationError(SockstreamError, multiprocessing.AuthenticationError): ...

    class BufferTooShort(SockstreamError, multiprocessing.BufferTooShort): ...

    class ObjectRefused(SockstreamError, pickle.UnpicklingError): ...


def _make(name: str) -> object:
    """Make the class `name` of the table; of two threads that do so at once both get the first one's."""
    module, base, docstring = _MADE_ON_FIRST_USE[name]
    bases = (SockstreamError, getattr(__import__(module), base))
    return globals().setdefault(name, type(name, bases, {"__doc__": docstring, "__module__": __name__}))


def __dir__() -> list[str]:
    return sorted({*globals(), *_MADE_ON_FIRST_USE})


if not TYPE_CHECKING:  # a type checker that saw this function would accept every misspelt name

    def __getattr__(name):
        if name in _MADE_ON_FIRST_USE:
            return _make(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
