"""Time by instructions: interrupts come at the same instruction under every technique.

An instruction takes 100 ns of virtual time, and nothing else takes any: no exit, no
port. Interrupts come between two instructions, not between the rounds of a repeated
one.
"""

from collections import deque
from typing import Final

from emu86.cpu.state import RIP, SELECTOR
from emu86.mmu.paging import denied, is_canonical, walk
from emu86.native import abi
from emu86.rings.decode import Insn, decode
from emu86.rings.technique.base import Technique
from emu86.spec import x86

PERIOD: Final = 100 * abi.QUARTERS


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

    def advance(self, now: int) -> None:
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
        self.advance(self._now)
        return vector


class InstructionClock:
    """Counts the instructions of a VMM's guest from its program's first one.

    It watches the VMM; `tick` must be called before each instruction. start: linear
    address of the first one; count: how many have run before the one that comes.
    """

    def __init__(self, vmm: Technique, line: Line, start: int) -> None:
        self._vmm = vmm
        self._line = line
        self._start = start
        self.count = -1  # the program has not begun
        self._here = -1
        self._last = b"", 0  # state as of the last tick
        self._moved = False  # an event has come since the last tick
        self._retried = False  # or a page was filled, a block patched, or looked at
        vmm.clock.set_costs(other=0)
        vmm.subscribe(self)

    def tick(self) -> None:
        """Count the instruction at CS:EIP, unless it is one that goes on."""
        vmm = self._vmm
        here = vmm.cpu.linear_eip
        insn = _code(vmm, here)
        if insn is None:
            return
        # Where the last one was, a transfer may have come to itself; anything else goes
        # on: another round, or another try once a page was filled.
        state = self._state()
        tried = self._retried and state == self._last
        again = tried or not insn.spec.transfers
        self._last = state
        if self.count < 0:
            self.count = 0 if here == self._start else -1
        elif self._moved or here != self._here or not again:
            self.count += 1
        self._here = here
        self._moved = self._retried = False
        vmm.engine.control[abi.NOW] = max(self.count, 0) * PERIOD
        self._line.advance(self.count)

    def _state(self) -> tuple[bytes, int]:
        """Return what a transfer changes that is done, unless it is JMP to itself."""
        vmm = self._vmm
        return vmm.q[: RIP + 1].tobytes(), vmm.d[SELECTOR[x86.CS]]

    def again(self) -> None:
        """Learn that the instruction has not run yet."""
        self._retried = True

    def skip(self) -> bool:
        """Pass the time of a halted CPU to the next interrupt, if there is one."""
        due = self._line.next()
        if due < 0:
            return False
        self.count = due
        self._line.advance(due)
        return True

    # -- observers ---------------------------------------------------------------------

    def vm_exit(self, reason: str, _cs: int, _eip: int) -> None:
        """Learn of an exit after which the instruction is tried again."""
        self._retried |= reason.startswith(("#PF", "segment access"))

    def inject(self, _vector: int, _error: int | None) -> None:
        """Learn of an event: what follows is another instruction."""
        self._moved = True


def _code(vmm: Technique, here: int) -> Insn | None:
    """Decode the instruction at a linear address; None if it cannot be fetched."""
    vcpu, ram = vmm.vcpu, vmm.ram
    user = vmm.cpu.cpl == x86.CPL_USER
    # A patch that is to be translated stands in RAM.
    patch = vmm.pending_patch
    code = bytearray()
    while len(code) < x86.LONGEST_INSN:
        linear = (here + len(code)) & vmm.cpu.address_mask
        part = min(x86.LONGEST_INSN - len(code), x86.PAGE_SIZE - (linear & 0xFFF))
        if vcpu.efer & x86.EFER_LMA and not is_canonical(linear):
            break
        found = walk(ram, vcpu, linear)
        if denied(found, write=False, user=user, wp=False) is not None:
            break
        start = found.page << x86.PAGE_SHIFT | linear & 0xFFF
        inside = bytearray(ram.bytes[start : start + part])
        if patch is not None and start <= patch[0] < start + part:
            inside[patch[0] - start] = patch[1]
        code += inside.ljust(part, b"\xff")
    return decode(bytes(code), vmm.cpu.code_bits)
