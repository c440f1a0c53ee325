"""Single steps that the guest does not know of: TF that is the VMM's.

Two need them: an access to what is no RAM (`mmio`), for one instruction, and the
guest's breakpoints (`breakpoints`), for as long as one is enabled.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

from emu86.cpu.state import RFLAGS
from emu86.mmu.memory import PageFault
from emu86.rings.insn.record import Record
from emu86.rings.insn.segment_loads import loads_ss
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.technique.deprivileged import Deprivileged

_FLAGS: Final = (0x9C, 0x9D, 0xCF)  # PUSHF, POPF, IRET: they have TF


class Steps:
    """The hardware's TF.

    forced: TF, if it is set and the guest's is not; else 0.
    """

    def __init__(self, vmm: "Deprivileged") -> None:
        self._vmm = vmm
        self.forced = 0

    def force(self) -> None:
        """Have the next instruction trap, unseen by the guest."""
        q = self._vmm.q
        self.forced |= ~q[RFLAGS] & x86.TF
        q[RFLAGS] |= x86.TF

    def release(self) -> None:
        """Have the hardware's TF be the guest's again, if nobody needs it."""
        vmm = self._vmm
        if not (vmm.breakpoints.armed or vmm.stepper.active):
            vmm.q[RFLAGS] &= ~self.forced
            self.forced = vmm.breakpoints.resume = 0

    def follow(self, flags: int) -> None:
        """Learn of new flags of the guest, 32 bits, which the hardware has already."""
        self.forced = 0
        if self._vmm.breakpoints.armed:
            self._vmm.breakpoints.resume = flags & x86.RF
            self.force()

    def look(self) -> bool:
        """While a breakpoint is enabled, look at the next instruction before it runs.

        It runs with TF set. What would show that, or hold its trap off, is emulated. Of
        a stepped engine that is a step, or a breakpoint is: returns whether one is done
        so.
        """
        vmm = self._vmm
        if not vmm.breakpoints.armed:
            self.release()
            return False
        self.force()
        clock = vmm.engine.clock
        while not (vmm.end or vmm.vcpu.halted) and self._does():
            if vmm.engine.stepped:
                return True
            clock.count_exit()
            if clock.is_due:
                vmm.engine.stop()
                break  # `Deprivileged.run` looks again
        return False

    def _does(self) -> bool:
        """Break before the next instruction, or emulate it; False: the hardware's."""
        vmm = self._vmm
        if vmm.breakpoints.before():
            vmm.instead(partial(vmm.trap, stepped=False))
            return True
        try:
            insn = vmm.sites.at_eip()
            code = vmm.sites.code_at_eip()
        except PageFault:
            return False  # the fetch's own
        vmm.breakpoints.reach(insn, code)
        shows = insn.opcode in _FLAGS or loads_ss(insn)
        if not shows or not isinstance(insn.record, Record):
            return False
        vmm.instead(partial(vmm.emulate, insn))
        return True
