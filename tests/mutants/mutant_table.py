"""Faults of one line each, which the model of the session must find.

Rules: (name, module, old text, new text); the old text stands exactly once in the module. A mutant that no end of the
protocol could ever notice does not belong here.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: in `module`, `old` becomes `new`."""

    name: str
    module: str
    old: str
    new: str


_END = "            self.end_received = record"
_UNTIL_FINS = "(self._end_at is None or control.sent != self._end_at or self._fins_sent())"
_WAKE = "        self._due = True\n        "
_CREDIT = "min(MAX_DATA, self.base + self.window - self.sent)"

MUTANTS = [
    # what a sender forgets
    Mutant("acknowledged one too far", "channels", "        self.base = offset\n", "        self.base = offset + 1\n"),
    Mutant("received counts as taken", "session", "number=incoming.taken)", "number=incoming.expected)"),
    Mutant("a taken byte is kept", "channels", "memoryview(chunk)[count:])", "memoryview(chunk)[count - 1 :])"),
    Mutant("sent chunks joined in the wrong order", "channels", "((untaken[-1], chunk))", "((chunk, untaken[-1]))"),
    Mutant("written chunks joined in the wrong order", "channels", "((unsent[-1], data))", "((data, unsent[-1]))"),
    # resume
    Mutant(
        "the last frame is not sent again", "channels", "reversed(self._untaken)", "list(reversed(self._untaken))[1:]"
    ),
    Mutant("what is sent again comes backwards", "channels", "(reversed(self._untaken))", "(self._untaken)"),
    Mutant("bytes below the wanted offset are sent again", "channels", "while self.sent < offset:", "while False:"),
    Mutant("a frame is not cut at the wanted offset", "channels", "if self.sent + len(chunk) > offset:", "if False:"),
    Mutant(
        "what was not sent is lost at resume",
        "channels",
        "self._unsent.extendleft(reversed(self._untaken))",
        "self._unsent = deque(self._untaken)",
    ),
    Mutant(
        "wants what it has not taken",
        "channels",
        "if self.gap_wanted else self.expected",
        "if self.gap_wanted else self.taken",
    ),
    Mutant("FIN is not repeated", "channels", "        self.fin_sent = False\n", ""),
    Mutant("STOP is not repeated", "channels", "        self.stop_due = self.stopping\n", ""),
    Mutant("TAKEN is not repeated", "channels", "self.told_due = self.expected > 0", "self.told_due = False"),
    Mutant("nothing is repeated", "session", "            incoming.new_link()\n", "            pass\n"),
    # credit
    Mutant("credit is added, not set", "channels", "        self.window = window\n", "        self.window += window\n"),
    Mutant("one byte beyond the credit is sent", "channels", _CREDIT, _CREDIT.replace("self.sent", "self.sent + 1")),
    Mutant("the last byte of the window is refused", "channels", "> self.taken + (1 <<", ">= self.taken + (1 <<"),
    Mutant(
        "a TAKEN that was put off is forgotten",
        "session",
        "incoming.told_due |= incoming.taken > incoming.told",
        "pass",
    ),
    # the end of streams
    Mutant("FIN before data", "channels", "not self.fin_sent and not self._unsent", "not self.fin_sent"),
    Mutant(
        "END before FIN", "session", "if self._end_due is None or not self._fins_sent():", "if self._end_due is None:"
    ),
    Mutant("END before FIN on a new link", "session", _UNTIL_FINS, "True"),
    Mutant("END is taken too early", "session", _END + "\n", _END + "\n            control.take(len(payload), now)\n"),
    Mutant(
        "a record behind END is taken too early",
        "session",
        "        if self.end_received is None:\n",
        "        if True:\n",
    ),
    Mutant(
        "complete before all is taken",
        "session",
        "self.completed or not all(self.incoming[c].all_taken() for c in end.finals):",
        "self.completed:",
    ),
    Mutant("completion is not told", "session", "        control.taken = control.expected\n", ""),
    # records
    Mutant("records are joined", "channels", "if unsent and not self.records and", "if unsent and"),
    Mutant("records are split", "channels", "len(chunk) if self.records else", "5 if self.records else"),
    Mutant("a record is read before its last byte", "link", "if self._end < stop:", "if self._end < stop - 1:"),
    # STOP
    Mutant("bytes behind STOP are delivered", "channels", "return not self.stopping", "return True"),
    Mutant("STOP does not end the stream where it is", "channels", "            self.end = self.sent\n", ""),
    Mutant(
        "STOP takes a FIN back", "channels", "if not self.stopped and not self._fin_announced:", "if not self.stopped:"
    ),
    # viewers that come and go
    Mutant("GAP is not sent", "session", "if outgoing.gap_due:", "if False:"),
    Mutant(
        "GAP names the wrong place", "session", "number=outgoing.base, payload", "number=outgoing.base + 1, payload"
    ),
    Mutant("a new viewer begins at 0", "session", "adopting.wants.get(channel, 0) if adopting else 0", "0"),
    Mutant("an older link takes the newer one down", "session", "if self.link is not link:", "if self.link is None:"),
    # one link
    Mutant(
        "a bare frame waits for the next",
        "link",
        "if self._end - start < HEADER_SIZE:",
        "if self._end - start <= HEADER_SIZE:",
    ),
    Mutant(
        "a part of a frame counts as a whole one", "link", "        self._left -= count\n", "        self._left = 0\n"
    ),
    Mutant("PING is not answered", "session", "        self._pong_due = number\n", "        pass\n"),
    Mutant("bytes are no sign of life", "session", "        self._heard = now\n\n", "        pass\n\n"),
    # what wakes the sender
    Mutant(
        "a write wakes nobody",
        "session",
        _WAKE + "self.outgoing[channel].write",
        "        self.outgoing[channel].write",
    ),
    Mutant(
        "an end wakes nobody", "session", _WAKE + "self.outgoing[channel].fin", "        self.outgoing[channel].fin"
    ),
    Mutant("a frame wakes nobody", "session", _WAKE + "handler(", "        handler("),
    Mutant(
        "the delay wakes nobody",
        "session",
        "            self._taken_at = None\n            self._due = True",
        "            self._taken_at = None",
    ),
    Mutant(
        "a record wakes nobody",
        "session",
        "        control.write(data)\n        self._due = True\n",
        "        control.write(data)\n",
    ),
]
