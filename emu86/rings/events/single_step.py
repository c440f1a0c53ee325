"""Single steps that the guest does not know of: TF that is the VMM's.

Two need them: an access to what is no RAM (`technique.mmio`), for one instruction, and
the guest's breakpoints (`breakpoints`), for as long as one is enabled.
"""

from emu86.cpu.state import RFLAGS, CpuState
from emu86.spec import x86


class SingleStep:
    """The hardware's TF.

    forced: TF, if it is set and the guest's is not; else 0.
    """

    def __init__(self, state: CpuState) -> None:
        self._q = state.q
        self.forced = 0

    def force(self) -> None:
        """Have the next instruction trap, unseen by the guest."""
        q = self._q
        self.forced |= ~q[RFLAGS] & x86.TF
        q[RFLAGS] |= x86.TF

    def release(self) -> None:
        """Have the hardware's TF be the guest's again."""
        self._q[RFLAGS] &= ~self.forced
        self.forced = 0
