"""RCL and RCR of memory that is not there yet: a fault of the engine's own, mended.

The engine brings its lazy flags to EFLAGS form before such a rotate loads its operand,
and forgets that it did when the load faults: the carry that the instruction takes when
it runs again is rubbish. The SDM (Vol. 2B RCL) leaves the flags as they were. A store
that faults where the load did not (the page was read, but not yet written) is past
mending: the engine has put the new carry over the old one by then.
"""

from typing import TYPE_CHECKING, Final

from emu86.cpu.engine import ATTRIBUTES, BASE, CC_OP, CC_SRC, RIP
from emu86.rings.decode import decode
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.vmm import Vmm

_IN_EFLAGS: Final = 1  # the engine's CC_OP_EFLAGS
_OPCODES: Final = frozenset(b"\xc0\xc1\xd0\xd1\xd2\xd3")
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_LONGEST: Final = 15
_REGS: Final = (2, 3)  # ModRM.reg of RCL and RCR


def settle_flags(vmm: "Vmm") -> bool:
    """Mend the flags if a data access of RCL or RCR has faulted; tell if it was one."""
    q = vmm.q
    linear = (q[RIP] + q[BASE[x86.CS]]) & x86.MASK32
    here = x86.PAGE_SIZE - (linear & 0xFFF)
    code = vmm.mmu.executed(linear, min(here, _LONGEST))
    wide = bool(vmm.d[ATTRIBUTES[x86.CS]] & x86.DESC_B)
    if here < _LONGEST and decode(code, wide=wide) is None:
        # The engine has fetched the rest, so there is a page.
        code += vmm.mmu.executed((linear + here) & x86.MASK32, _LONGEST - here)
    at = 0
    while at < len(code) and code[at] in _PREFIXES:
        at += 1
    if at + 1 >= len(code) or code[at] not in _OPCODES:
        return False
    modrm = code[at + 1]
    if modrm >> 3 & 7 not in _REGS or modrm >= 0xC0:
        return False
    vmm.d[CC_OP] = _IN_EFLAGS
    q[CC_SRC] &= x86.ARITHMETIC_FLAGS
    return True
