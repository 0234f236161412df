"""The tree of errors: its shape, and that three of its classes cost nothing until they are used."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

from sockstream import errors

TREE: dict[str, tuple[type, ...]] = {
    "SockstreamError": (Exception,),
    "AddressError": (errors.SockstreamError, ValueError),
    "AuthenticationError": (errors.SockstreamError, multiprocessing.AuthenticationError),
    "ConnectionLost": (errors.SockstreamError, ConnectionError),
    "SessionLost": (errors.ConnectionLost,),
    "Timeout": (errors.SockstreamError, TimeoutError),
    "ProtocolError": (errors.SockstreamError,),
    "LocalProtocolError": (errors.ProtocolError,),
    "RemoteProtocolError": (errors.ProtocolError,),
    "LimitExceeded": (errors.SockstreamError,),
    "ObjectRefused": (errors.SockstreamError, pickle.UnpicklingError),
    "BufferTooShort": (errors.SockstreamError, multiprocessing.BufferTooShort),
    "ProgramError": (errors.SockstreamError,),
}
LAZY = ("AuthenticationError", "BufferTooShort", "ObjectRefused")
SLOW_TO_IMPORT = {
    *("argparse", "asyncio", "dataclasses", "inspect", "ipaddress", "logging", "multiprocessing", "pathlib"),
    *("pickle", "re", "secrets", "socket", "ssl", "subprocess", "tempfile", "typing", "urllib"),
}


def make(name: str) -> errors.SockstreamError:
    """Return an error of the class of that name, with what it needs."""
    error = errors.ProgramError("told", 127) if name == "ProgramError" else getattr(errors, name)("told")
    assert isinstance(error, errors.SockstreamError)
    return error


def fresh_interpreter(code: str) -> str:
    """Return what the code prints in an interpreter that has loaded nothing else, not even site."""
    source = os.path.dirname(os.path.dirname(errors.__file__))
    start = f"import sys; sys.path.insert(0, {source!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + code]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize("name", TREE)
def test_every_class_has_its_place_in_the_tree(name: str) -> None:
    """The bases are exactly those of the design, the class belongs to this module and is documented."""
    made = getattr(errors, name)
    assert made.__bases__ == TREE[name]
    assert (made.__module__, made.__qualname__) == ("sockstream.errors", name)
    assert made.__doc__ and made.__doc__ != TREE[name][0].__doc__


def test_the_module_offers_the_tree_and_nothing_else() -> None:
    """__all__ is the tree, `import *` gives all of it, and dir() shows it."""
    namespace: dict[str, object] = {}
    exec("from sockstream.errors import *", namespace)
    assert set(errors.__all__) == set(TREE) == namespace.keys() - {"__builtins__"}
    assert set(TREE) <= set(dir(errors))


@pytest.mark.parametrize("module", ["errors", "address", "token"])
def test_importing_loads_nothing_slow(module: str) -> None:
    """A module on the path of `run` loads none of the modules that make a start slow."""
    loaded = fresh_interpreter(f"import sockstream.{module}; print(*sys.modules)").split()
    assert f"sockstream.{module}" in loaded
    assert SLOW_TO_IMPORT.isdisjoint(loaded)


@pytest.mark.parametrize("name", LAZY)
def test_a_class_with_a_slow_base_is_made_on_first_use(name: str) -> None:
    """The base's module is loaded by the first use of the class, not before, and dir() is no use."""
    base_module = TREE[name][1].__module__.partition(".")[0].removeprefix("_")
    code = f"""
from sockstream import errors
assert {name!r} in dir(errors)
print({base_module!r} in sys.modules, {name!r} in vars(errors))
errors.{name}
print({base_module!r} in sys.modules, {name!r} in vars(errors))
"""
    assert fresh_interpreter(code).split() == ["False", "False", "True", "True"]


@pytest.mark.parametrize("name", LAZY)
def test_a_class_made_on_first_use_is_made_once(name: str) -> None:
    """Every use gives the same class, also to a second thread that began to make it at the same time."""
    first = getattr(errors, name)
    assert errors._make(name) is first
    assert getattr(errors, name) is first


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt class is told with the module and the name, and cannot be imported."""
    with pytest.raises(AttributeError, match=r"'sockstream\.errors' has no attribute 'AuthentcationError'"):
        _ = errors.AuthentcationError  # type: ignore[attr-defined]  # the misspelling is what is tested
    with pytest.raises(ImportError):
        exec("from sockstream.errors import AuthentcationError")


@pytest.mark.parametrize("name", TREE)
def test_the_message_is_what_is_printed(name: str) -> None:
    """str() of an error is its message, whatever the second base does with arguments."""
    assert str(make(name)) == "told"


@pytest.mark.parametrize("name", TREE)
def test_errors_survive_pickle_and_copy(name: str) -> None:
    """Class, message, arguments and notes come out of pickle, copy and deepcopy as they went in."""
    error = make(name)
    error.add_note("a note")
    for twin in pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error):
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


def test_session_lost_says_what_is_delivered() -> None:
    """`delivered` has the offsets per channel, is None when nothing is known, and survives pickle."""
    assert errors.SessionLost("gone").delivered is None
    error = pickle.loads(pickle.dumps(errors.SessionLost("gone", {1: 0, 2: 1 << 40})))
    assert (str(error), error.delivered) == ("gone", {1: 0, 2: 1 << 40})


@pytest.mark.parametrize("status", [125, 126, 127])
def test_program_error_has_the_exit_status(status: int) -> None:
    """`status` is what the command ends with, and survives pickle."""
    error = pickle.loads(pickle.dumps(errors.ProgramError("cannot run it", status)))
    assert (str(error), error.status) == ("cannot run it", status)


def test_buffer_too_short_carries_the_message() -> None:
    """args[0] is the whole message, as code written for multiprocessing.connection expects."""
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        raise errors.BufferTooShort(b"whole")
    assert caught.value.args[0] == b"whole"
