"""Time by instructions, so that interrupts come at the same one whatever the technique.

An instruction takes 100 ns of virtual time and nothing else takes any: no exit, no
port. Interrupts come between two instructions, not between the rounds of a repeated
one.
"""

from collections import deque
from typing import Final

from emu86.cpu import control as word
from emu86.cpu.engine import ATTRIBUTES, BASE, RIP
from emu86.mmu.walk import denied, walk
from emu86.rings.bare import Bare
from emu86.rings.decode import decode
from emu86.rings.monitor import Monitor
from emu86.rings.vmm import Vmm
from emu86.spec import x86

PERIOD: Final = 100 * word.QUARTERS
_USER: Final = 3
# Transfers of control, which may go to where they stand.
_TRANSFERS: Final = frozenset(
    {*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEA, 0xEB, 0x9A, 0xFF}
    | {0xC2, 0xC3, 0xCA, 0xCB, 0xCF, *range(0x0F80, 0x0F90)}
)


class Line:
    """An interrupt controller whose interrupts come at given instructions.

    interrupts: pairs (instructions run before it, vector), in order of coming; due:
    whether one waits for the guest to let it in; intr: the INTR pin, which whoever runs
    the guest raises when it does.
    """

    def __init__(self, interrupts: tuple[tuple[int, int], ...] = ()) -> None:
        self._waiting = deque(sorted(interrupts, key=lambda one: one[0]))
        self._now = 0
        self.due = self.intr = False

    def look(self, now: int) -> None:
        """Tell in `due` whether an interrupt waits."""
        self._now = now
        self.due = bool(self._waiting) and self._waiting[0][0] <= now

    def next(self) -> int:
        """Return when the next interrupt comes: now at the soonest; -1 if none does."""
        return max(self._now, self._waiting[0][0]) if self._waiting else -1

    def acknowledge(self) -> int:
        """Take the interrupt that waits; return its vector."""
        _, vector = self._waiting.popleft()
        self.intr = False
        self.look(self._now)
        return vector


class Clock:
    """Counts the instructions of a monitor's guest from its program's first one.

    It watches the monitor; `tick` must be called before each instruction. start: linear
    address of the first one.
    """

    def __init__(self, monitor: Monitor, line: Line, start: int) -> None:
        self._monitor = monitor
        self._line = line
        self._start = start
        self._count = -1  # the program has not begun
        self._here = -1
        self._moved = False  # an event has come since the last tick
        self._retried = False  # or a page has been filled
        monitor.engine.control[word.EXIT_COST] = 0
        monitor.observers.append(self)

    def tick(self) -> None:
        """Count the instruction at CS:EIP, unless it is one that goes on."""
        monitor = self._monitor
        here = (monitor.q[RIP] + monitor.q[BASE[x86.CS]]) & x86.MASK32
        if isinstance(monitor, Bare) and not _is_there(monitor, here):
            return
        if self._count < 0:
            self._count = 0 if here == self._start else -1
        elif self._moved or here != self._here or self._goes_to_itself(here):
            self._count += 1
        self._here = here
        self._moved = self._retried = False
        self.show()
        self._line.look(self._count)

    def show(self) -> None:
        """Set virtual time, to which the engine adds the bytes of each block."""
        self._monitor.engine.control[word.NOW] = max(self._count, 0) * PERIOD

    def skip(self) -> bool:
        """Pass the time of a halted CPU to the next interrupt, if there is one."""
        due = self._line.next()
        if due < 0:
            return False
        self._count = due
        self._line.look(due)
        return True

    def _goes_to_itself(self, here: int) -> bool:
        """Tell whether the last instruction, here, was a transfer, and is done."""
        if self._retried:
            return False
        insn = decode(_code(self._monitor, here), wide=_wide(self._monitor))
        return insn is not None and insn.opcode in _TRANSFERS

    # -- rings.wiring.Observer ---------------------------------------------------------

    def vm_exit(self, reason: str, _cs: int, _eip: int) -> None:
        """Learn of an exit after which the instruction is tried again."""
        self._retried |= reason.startswith("#PF")

    def inject(self, _vector: int, _error: int | None) -> None:
        """Learn of an event: what follows is another instruction."""
        self._moved = True

    def shadow_fill(self, gva: int) -> None:
        """Learn nothing from it."""

    def pio(self, port: int, width: int, value: int, write: bool) -> None:
        """Learn nothing from it."""


def _wide(monitor: Monitor) -> bool:
    return bool(monitor.d[ATTRIBUTES[x86.CS]] & x86.DESC_B)


def _code(monitor: Monitor, here: int) -> bytes:
    """Return the code at a linear address, to the end of its page."""
    size = min(15, x86.PAGE_SIZE - (here & 0xFFF))
    if isinstance(monitor, Vmm):
        return monitor.mmu.executed(here, size)
    assert isinstance(monitor, Bare)
    gpa = monitor.memory.lookup(here)
    return b"" if gpa is None else bytes(monitor.memory.ram.bytes[gpa : gpa + size])


def _is_there(bare: Bare, here: int) -> bool:
    """Tell whether the instruction at a linear address can be fetched.

    A deprivileged guest's is not announced if it cannot.
    """
    insn = bare.peek()
    if insn is None:
        return False
    if not bare.vcpu.cr0 & x86.CR0_PG:
        return True
    ram, cr3, cr4 = bare.memory.ram, bare.vcpu.cr3, bare.vcpu.cr4
    user = bare.segments.cpl == _USER
    ends = (here, (here + insn.length - 1) & x86.MASK32)
    return all(
        denied(walk(ram, cr3, cr4, end), write=False, user=user, wp=False) is None
        for end in ends
    )
