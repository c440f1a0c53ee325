"""What a debugger asks of one virtual CPU: neither architectural nor derived.

It is the host's: a state that is saved has none of it, and the guest sees nothing of
it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from emu86.native import abi

_LINES: Final = 63  # a page has that many parts of 64 bytes, and one more


@dataclass(frozen=True, slots=True)
class Trap:
    """What stops a guest that is debugged.

    reason: "breakpoint", "watchpoint" or "step"; address: the linear one of a
    breakpoint, or that of what is watched, else 0; detail: more words.
    """

    reason: str
    address: int = 0
    detail: str = ""


@dataclass(slots=True)
class Watch:
    """Bytes of RAM that a debugger watches: where, and what they held last.

    linear: the address that they were asked for by.
    """

    linear: int
    gpa: int
    size: int
    held: bytes = b""


class Debug:
    """The breakpoints of one virtual CPU, what is watched, and whether it is stepped.

    linear, physical: addresses of instructions; stepping: the next instruction, or
    event, is to be the last; watches: by page; trap: what has happened, until the run
    loop takes it.
    """

    def __init__(self, control: abi.Control) -> None:
        self.linear: frozenset[int] = frozenset()
        self.physical: frozenset[int] = frozenset()
        self.watches: dict[int, list[Watch]] = {}
        self.stepping = False
        self.trap: Trap | None = None
        self._control = control

    @property
    def breaks(self) -> bool:
        """Whether there is any breakpoint."""
        return bool(self.linear or self.physical)

    def set(self, linear: Collection[int], physical: Collection[int]) -> set[int]:
        """Have these breakpoints and no others; return where pages have another.

        That are offsets in pages: what is translated there is to be dropped.
        """
        before = self.linear ^ frozenset(linear), self.physical ^ frozenset(physical)
        self.linear, self.physical = frozenset(linear), frozenset(physical)
        offsets = {one & 0xFFF for one in (*self.linear, *self.physical)}
        lines = sum({1 << (offset >> 6 & _LINES) for offset in offsets})
        self._control.breaks = lines
        return {one & 0xFFF for changed in before for one in changed}

    def is_break(self, linear: int, gpa: int) -> bool:
        """Tell whether there is a breakpoint at an instruction."""
        return linear in self.linear or gpa in self.physical

    def may_break(self, linear: int, size: int) -> bool:
        """Tell whether `is_break` may hold in a block: it is cheaper."""
        if not self.breaks:
            return False
        first, last = linear & 0xFFF, (linear & 0xFFF) + size
        lines = range(first >> 6, (last >> 6) + 1)
        mask = self._control.breaks
        return any(mask >> (line & _LINES) & 1 for line in lines)
