"""The last faults and changes of ring of a guest, kept for a report.

It is the host's, neither architectural nor derived: a state that is saved has none of
it.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from emu86.native import abi
from emu86.spec import x86

_KEPT: Final = 3
_CALLS: Final = {abi.BY_SYSCALL: "SYSCALL", abi.BY_SYSRET: "SYSRET"}


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

    how: the instruction or event, as "IRET" or "#PF"; at: `native.abi`'s NOW then.
    """

    how: str
    before: int
    cs: int
    eip: int
    after: int
    to_cs: int
    to_eip: int
    at: int = 0


def _how(how: int) -> str:
    """Return the name of what `abi.Change` tells."""
    if how == abi.BY_IRET:
        return "IRET"
    if how in _CALLS:
        return _CALLS[how]
    if how & abi.BY_INTERRUPT:
        return f"interrupt {how & 0xFF:X}h"
    if how & abi.BY_EVENT:
        return x86.event_name(how & 0xFF)
    return f"INT {how:02X}h"


def _event(one: abi.Event) -> Event:
    error = None if one.error < 0 else one.error
    return Event(one.vector, error, False, one.cs, one.eip, one.address, [])


def _last(kept: abi.Array, count: int) -> Iterator[Any]:
    """Yield what compiled code has kept last of the `count` that there have been."""
    for i in range(max(count - abi.CHANGES_KEPT, 0), count):
        yield kept[i % abi.CHANGES_KEPT]


class History:
    """The last exceptions and ring changes, the latest last."""

    __slots__ = ("_changes", "_control", "_events")

    def __init__(self, control: abi.Control) -> None:
        self._events: deque[tuple[int, Event]] = deque(maxlen=_KEPT)
        self._changes: deque[RingChange] = deque(maxlen=_KEPT)
        self._control = control

    def change_ring(self, change: RingChange) -> None:
        """Keep a ring change."""
        self._changes.append(change._replace(at=self._control.now))

    def keep(self, event: Event) -> None:
        """Keep an exception, or an interrupt that could not be delivered."""
        self._events.append((self._control.now, event))

    @property
    def events(self) -> tuple[Event, ...]:
        """The last of those, what compiled code has delivered among them."""
        control = self._control
        made = _last(control.events, control.event_count)
        native = ((one.at, _event(one)) for one in made)
        both = sorted((*self._events, *native), key=lambda kept: kept[0])
        return tuple(event for _at, event in both[-_KEPT:])

    @property
    def changes(self) -> tuple[RingChange, ...]:
        """The last ring changes, those that compiled code has made among them."""
        control = self._control
        made = _last(control.changes, control.change_count)
        native = (
            RingChange(
                _how(one.how),
                one.before, one.cs, one.eip, one.after, one.to_cs, one.to_eip, one.at,
            )
            for one in made
        )  # fmt: skip
        both = sorted((*self._changes, *native), key=lambda change: change.at)
        return tuple(both[-_KEPT:])

    def clear(self) -> None:
        """Forget it: another guest begins."""
        self._events.clear()
        self._changes.clear()
        self._control.change_count = self._control.event_count = 0
