"""Observers: objects that are told what a VMM does."""

from collections.abc import Callable
from typing import Final, Protocol


class WatchesExits(Protocol):
    """Is told of VM exits. Only RDTSC then stays in compiled code."""

    def vm_exit(self, reason: str, cs: int, eip: int) -> None:
        """Tell of an exit: its reason, and where the guest is afterwards."""
        ...


class WatchesEvents(Protocol):
    """Is told of exceptions and interrupts."""

    def inject(self, vector: int, error: int | None) -> None:
        """Tell of an event on its way through the guest's IDT.

        Where the way ends in a fault, what comes of that is told next: an event, or the
        shutdown that follows a fault of #DF.
        """
        ...


class WatchesFills(Protocol):
    """Is told of shadow page tables."""

    def shadow_fill(self, gva: int) -> None:
        """Tell of a shadow entry made for `gva`."""
        ...


class WatchesPorts(Protocol):
    """Is told of port I/O."""

    def pio(self, port: int, width: int, value: int, write: bool) -> None:
        """Tell of a port access."""
        ...


class WatchesShutdown(Protocol):
    """Is told of a triple fault."""

    def shutdown(self, cs: int, eip: int) -> None:
        """Tell that the CPU has shut down, and where the guest was."""
        ...


Observer = WatchesExits | WatchesEvents | WatchesFills | WatchesPorts | WatchesShutdown
HOOKS: Final = ("vm_exit", "inject", "shadow_fill", "pio", "shutdown")


class Observers:
    """The observers of one VMM, hook by hook; a hook that nobody has costs nothing.

    All of it is told after the fact, in the order of subscription. guard: makes of a
    method what is called in its stead.
    """

    def __init__(self) -> None:
        self.guard: Callable[[Callable[..., None]], Callable[..., None]] = as_it_is
        self.vm_exit: list[Callable[[str, int, int], None]] = []
        self.inject: list[Callable[[int, int | None], None]] = []
        self.shadow_fill: list[Callable[[int], None]] = []
        self.pio: list[Callable[[int, int, int, bool], None]] = []
        self.shutdown: list[Callable[[int, int], None]] = []

    def subscribe(self, observer: Observer) -> None:
        """Tell `observer` from now on; TypeError if it has none of the hooks."""
        hooks = [hook for hook in HOOKS if callable(getattr(observer, hook, None))]
        if not hooks:
            message = f"{observer!r:.60} has none of the methods {', '.join(HOOKS)}"
            raise TypeError(message)
        if isinstance(observer, type):
            message = f"{observer!r:.60} is a class: subscribe one of its objects"
            raise TypeError(message)
        for hook in hooks:
            getattr(self, hook).append(self.guard(getattr(observer, hook)))

    def clear(self) -> None:
        """Tell nobody any more; exits that Python has taken back stay with it."""
        for hook in HOOKS:
            getattr(self, hook).clear()


def as_it_is(method: Callable[..., None]) -> Callable[..., None]:
    """Stand for a guard that nobody has set."""
    return method
