"""SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS: the way into a kernel and back.

They load CS and SS with selectors of MSRs and with what stands in no table. The engine
does nothing at SYSCALL and SYSENTER but call a hook, the others trap. Source: SDM Vol.
2B, operation sections.
"""

from typing import Final

from emu86.cpu.state import BASE, RFLAGS, RIP
from emu86.rings.cpu import Cpu, Mode
from emu86.rings.decode import Insn
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import gp, undefined
from emu86.rings.insn.record import Record
from emu86.spec import x86
from emu86.spec.features import SEP

SYSCALL, SYSRET = 0x0F05, 0x0F07  # of which TF counts as they leave it
_LIMIT: Final = 0xFFFF
_CODE64: Final = 0x00AF9B00  # flat, DPL 0, accessed: the high doublewords
_CODE32: Final = 0x00CF9B00
_DATA: Final = 0x00CF9300
_USERS: Final = x86.CPL_USER
# What SYSRET takes of R11: not RF and VM.
_RETURNED: Final = 0x3C7FD7
_GS_BASE: Final = BASE[x86.GS]


def _flat(high: int, dpl: int) -> Descriptor:
    return Descriptor(_LIMIT, high | dpl << x86.DESC_DPL_SHIFT)


def _enter(cpu: Cpu, cs: int, ss: int, cpl: int, *, code64: bool) -> None:
    """Load flat CS and SS, of selectors 16 bits wide, and enter ring `cpl`."""
    code = _CODE64 if code64 else _CODE32
    cpu.set_segment(x86.CS, cs & 0xFFFC | cpl, _flat(code, cpl))
    cpu.set_segment(x86.SS, ss & 0xFFFF, _flat(_DATA, cpl))
    cpu.enter_ring()


def _is_there(cpu: Cpu) -> None:
    """Raise #UD where there is no SYSCALL: on Intel's CPUs it is of 64-bit code."""
    if cpu.mode is not Mode.LONG or not cpu.vcpu.efer & x86.EFER_SCE:
        raise undefined()


def _syscall(cpu: Cpu, insn: Insn) -> bool:
    _is_there(cpu)
    q, vcpu = cpu.q, cpu.vcpu
    flags = cpu.services.guest_flags()
    q[x86.ECX] = cpu.next_eip(insn.length)
    q[x86.R11] = flags
    q[RIP] = vcpu.lstar
    selector = vcpu.star >> 32
    _enter(cpu, selector, selector + 8, 0, code64=True)
    cpu.services.set_guest_flags(flags & ~vcpu.fmask)
    return True


def _sysret(cpu: Cpu, insn: Insn) -> bool:
    _is_there(cpu)
    if cpu.cpl:
        raise gp(0)
    q = cpu.q
    wide = insn.size == 8
    if wide:
        cpu.check_canonical(q[x86.ECX])
    q[RIP] = q[x86.ECX] & (x86.MASK64 if wide else x86.MASK32)
    selector = cpu.vcpu.star >> 48
    cs = selector + 16 if wide else selector
    flags = q[x86.R11] & _RETURNED
    _enter(cpu, cs, selector + 8 | _USERS, _USERS, code64=wide)
    cpu.services.set_guest_flags(flags)
    return True


def _sysenter_cs(cpu: Cpu) -> int:
    """Return what SYSENTER and SYSEXIT make their selectors of; raises #UD, #GP(0)."""
    if not cpu.vcpu.model.features & SEP:
        raise undefined()
    selector = cpu.vcpu.msr.get(x86.MSR_SYSENTER_CS, 0)
    if not selector & 0xFFFC or cpu.mode is Mode.REAL:
        raise gp(0)
    return selector


def _sysenter(cpu: Cpu, _insn: Insn) -> bool:
    selector = _sysenter_cs(cpu)
    q, msr = cpu.q, cpu.vcpu.msr
    ia32e = bool(cpu.vcpu.efer & x86.EFER_LMA)
    mask = x86.MASK64 if ia32e else x86.MASK32
    flags = cpu.services.guest_flags()
    q[x86.ESP] = msr.get(x86.MSR_SYSENTER_ESP, 0) & mask
    q[RIP] = msr.get(x86.MSR_SYSENTER_EIP, 0) & mask
    q[RFLAGS] &= ~x86.VM
    cs = selector & 0xFFFC
    _enter(cpu, cs, cs + 8, 0, code64=ia32e)
    cpu.services.set_guest_flags(flags & ~(x86.VM | x86.IF))
    return True


def _sysexit(cpu: Cpu, insn: Insn) -> bool:
    selector = _sysenter_cs(cpu)
    if cpu.cpl:
        raise gp(0)
    q = cpu.q
    wide = insn.size == 8
    if wide:
        cpu.check_canonical(q[x86.ECX])
        cpu.check_canonical(q[x86.EDX])
    mask = x86.MASK64 if wide else x86.MASK32
    q[x86.ESP] = q[x86.ECX] & mask
    q[RIP] = q[x86.EDX] & mask
    cs = selector + (32 if wide else 16) | _USERS
    _enter(cpu, cs, cs + 8, _USERS, code64=wide)
    return True


def _swapgs(cpu: Cpu, _insn: Insn) -> None:
    if cpu.mode is not Mode.LONG:
        raise undefined()
    if cpu.cpl:
        raise gp(0)
    vcpu = cpu.vcpu
    vcpu.kernel_gs_base, cpu.q[_GS_BASE] = cpu.q[_GS_BASE], vcpu.kernel_gs_base


_OF_64_BIT: Final = "On 32-bit CPU models it is #UD."

RECORDS = (
    Record(
        "SYSCALL", "0F 05", (0x0F05,), "sensitive", "an engine hook", _syscall,
        "Vol. 2B SYSCALL",
        "The engine does nothing but call the hook. The VMM loads what the MSRs STAR,"
        f" LSTAR and FMASK say. #UD outside of 64-bit mode. {_OF_64_BIT}",
    ),
    Record(
        "SYSRET", "0F 07", (0x0F07,), "privileged", "#GP(0)", _sysret,
        "Vol. 2B SYSRET",
        "The VMM loads what STAR, RCX and R11 say. An RCX that is not canonical is"
        f" #GP(0), still in ring 0. {_OF_64_BIT}",
    ),
    Record(
        "SYSENTER", "0F 34", (0x0F34,), "sensitive",
        "#UD in 64-bit code, else an engine hook", _sysenter, "Vol. 2B SYSENTER",
        f"As SYSCALL, with the MSRs of its own. {_OF_64_BIT}",
    ),
    Record(
        "SYSEXIT", "0F 35", (0x0F35,), "privileged",
        "#UD in 64-bit code, else #GP(0)", _sysexit, "Vol. 2B SYSEXIT",
        f"The VMM loads what the MSR, RCX and RDX say. {_OF_64_BIT}",
    ),
    Record(
        "SWAPGS", "0F 01 F8", (0x0F01,), "privileged", "#GP(0)", _swapgs,
        "Vol. 2B SWAPGS",
        "Exchanges the base of GS, which the engine's register holds, with the virtual"
        f" KERNEL_GS_BASE. {_OF_64_BIT}",
        reg=7, modrm=0xF8,
    ),
)  # fmt: skip
