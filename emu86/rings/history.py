"""The last faults and changes of ring of a guest, kept for a report.

It is the host's, neither architectural nor derived: a state that is saved has none of
it.
"""

from collections import deque
from typing import Final, NamedTuple

_KEPT: Final = 3


class Failure(NamedTuple):
    """A fault on the way of an event through the guest's IDT.

    delivering: the vector that was under way; vector, error: of the fault; address: its
    CR2 if it was a page fault; instead: the vector delivered then, None at a shutdown.
    """

    delivering: int
    vector: int
    error: int | None
    address: int | None
    instead: int | None


class Event(NamedTuple):
    """An exception, or an interrupt that could not be delivered.

    cs, eip: where the guest was; address: CR2 then; failures: of its delivery, in their
    order.
    """

    vector: int
    error: int | None
    interrupt: bool
    cs: int
    eip: int
    address: int
    failures: list[Failure]


class RingChange(NamedTuple):
    """A transfer from ring `before` at cs:eip to ring `after` at to_cs:to_eip.

    how: the instruction or event, as "IRET" or "#PF".
    """

    how: str
    before: int
    cs: int
    eip: int
    after: int
    to_cs: int
    to_eip: int


class History:
    """The last exceptions and ring changes, the latest last."""

    __slots__ = ("changes", "events")

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_KEPT)
        self.changes: deque[RingChange] = deque(maxlen=_KEPT)

    def clear(self) -> None:
        """Forget it: another guest begins."""
        self.events.clear()
        self.changes.clear()
