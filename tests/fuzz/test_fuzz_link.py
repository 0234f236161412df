"""The fuzzer finds nothing in a link as it is, and finds faults that are planted."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections import Counter

import pytest
from fuzz_link import ALLOWED, Finding, prepare, run

from sockstream import channels, frames, handshake, link, records
from sockstream.link import BUFFER_SIZE

CASES = 2500
ENOUGH = 3000  # cases within which a planted fault must be found


def test_nothing_else_comes_out() -> None:
    """Only the allowed exceptions, whatever is said; and the cases reach every part of a link's life."""
    outcomes = Counter(run(case) for case in range(CASES))
    wanted = {"RemoteProtocolError", "AuthenticationError", "SessionLost", "ConnectionLost", "Timeout", "through"}
    assert set(outcomes) == wanted


def test_what_an_honest_peer_says_passes() -> None:
    """Unspoilt, a case goes on to the peer's end of file, unless time runs out in it: the fuzzer starts from sense."""
    outcomes = Counter(run(case, spoil=False) for case in range(200))
    assert set(outcomes) <= {"ConnectionLost", "Timeout"}
    assert outcomes["ConnectionLost"] > 150


def test_memory_is_bounded() -> None:
    """Whatever is said, a link, its session and what they hand out need little more than a receive buffer."""
    tracemalloc.start()
    try:
        for case in range(300):
            target, said, honest = prepare(case)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(*ALLOWED):
                target.hear(said, honest)
            assert tracemalloc.get_traced_memory()[1] - before < 2 * BUFFER_SIZE, f"case {case}"
    finally:
        tracemalloc.stop()


def no_check(*_args: object, **_options: object) -> None:
    """Check nothing."""


FAULTS: dict[str, tuple[object, str, object]] = {
    "headers are not checked": (frames, "check_header", no_check),
    "any frame is data in order": (channels.Incoming, "expect", no_check),
    "a larger buffer before the proof": (link, "MAX_BEFORE_PROOF", 8192),
    "every proof is right": (handshake.auth, "equal", lambda *_: True),
    "records are not measured": (records, "_sized", lambda body, *_: body),
    "fields are not measured": (records, "_SIZES", {}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each within some thousand cases."""
    monkeypatch.setattr(*FAULTS[name])
    with pytest.raises(Finding, match=r"^case \d+: "):
        for case in range(ENOUGH):
            run(case)


@pytest.mark.soak
def test_nothing_else_comes_out_for_long() -> None:
    """A million cases more."""
    for case in range(CASES, CASES + 1_000_000):
        run(case)
