"""Single steps that the guest does not know of: TF that is the VMM's.

Two need them: an access to what is no RAM (`mmio`), for one instruction, and the
guest's breakpoints (`breakpoints`), for as long as one is enabled.
"""

from typing import TYPE_CHECKING, Final

from emu86.cpu import control as word
from emu86.cpu.engine import ATTRIBUTES, BASE, RFLAGS, RIP
from emu86.mmu.memory import PageFault
from emu86.rings.fault import GuestFault
from emu86.rings.inject import as_fault
from emu86.rings.record import Record
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.vmm import Vmm

_FLAGS: Final = (0x9C, 0x9D, 0xCF)  # PUSHF, POPF, IRET: they have TF


class Steps:
    """The hardware's TF.

    forced: TF, if it is set and the guest's is not; else 0.
    """

    def __init__(self, vmm: "Vmm") -> None:
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
        if self._vmm.breakpoints.armed:
            self._vmm.breakpoints.resume = flags & x86.RF
            self.forced = 0
            self.force()

    def look(self) -> bool:
        """While a breakpoint is enabled, look at the next instruction before it runs.

        It runs with TF set. What would show that, or lose it, is emulated. Of a stepped
        engine that is a step, or a breakpoint is: returns whether one is done so.
        """
        vmm = self._vmm
        if not vmm.breakpoints.armed:
            self.release()
            return False
        self.force()
        control = vmm.engine.control
        while not (vmm.end or vmm.vcpu.halted):
            try:
                insn = vmm.sites.at_eip()
                linear = (vmm.q[RIP] + vmm.q[BASE[x86.CS]]) & x86.MASK32
                wide = bool(vmm.d[ATTRIBUTES[x86.CS]] & x86.DESC_B)
                code = vmm.sites.code(linear, wide=wide)
            except PageFault:
                break  # the fetch's own
            try:
                if vmm.breakpoints.reach(insn, code):
                    vmm.trap(stepped=False)
                elif insn.opcode in _FLAGS and isinstance(insn.record, Record):
                    vmm.emulate(insn)
                else:
                    break
            except (GuestFault, PageFault) as raised:
                vmm.reflect(*as_fault(vmm, raised))
            if vmm.engine.stepped:
                return True
            control[word.NOW] += control[word.EXIT_COST]
            if control[word.NOW] >= control[word.STOP_AT]:
                vmm.engine.stop()
                break  # `Vmm.run` looks again
        return False
