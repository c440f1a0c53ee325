"""RDMSR, WRMSR and RDPMC: the model-specific registers of each CPU model.

An MSR that the model does not have is #GP(0), and so is a value that it does not take.
Source: SDM Vol. 4 tables 2-2 (architectural), 2-4 (Atom), 2-20 (Skylake), 2-41 (Pentium
4), 2-55 (P6 family), 2-56 (Pentium). What comes with a feature that CPUID denies is not
there: no MTRRs (FEh, 200h and up), no debug store, and on 32-bit models no PAT and no
SYSENTER.

IA32_APIC_BASE is there on the P6 and the Pentium 4, for all that there is no APIC. It
tells of a local APIC that is disabled, which is "functionally equivalent to an IA-32
processor without an on-chip APIC" (Vol. 3A 10.4.3): the base FEE00000h, BSP set, the
enable bit clear. What is written to the enable bit is ignored: an APIC of the P6 cannot
be enabled again before a reset. (QEMU's `pentium3,-apic` reads 0 there, without BSP.)

Branches are not recorded: the last-branch registers read 0, and LBR, BTF and TR of
DEBUGCTL stay clear. A microcode update is taken and does nothing.
"""

from typing import Final, NamedTuple

from emu86.cpu.models import CpuModel
from emu86.cpu.state import BASE
from emu86.mmu.paging import is_canonical
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import gp, undefined
from emu86.rings.insn.record import Record
from emu86.spec import x86
from emu86.spec.features import PAT, RDTSCP


class Register(NamedTuple):
    """An MSR that holds what is written to it, and does nothing.

    reset: its value at first, 64 bits; writable: the bits that can be written; ignored:
    bits that stay as they are, whatever is written. Any other must be written as 0.
    With neither, a write is #GP(0). address: it must be a canonical one.
    """

    reset: int = 0
    writable: int = 0
    ignored: int = 0
    address: bool = False


def _bits(*numbers: int | range) -> int:
    spans = (part if isinstance(part, range) else (part,) for part in numbers)
    return sum(1 << bit for span in spans for bit in span)


_READ_ONLY: Final = Register()
_WHOLE: Final = Register(writable=_bits(range(64)))
_UPDATE_TRIGGER: Final = 0x79
_BBL_CR_TRIG: Final = 0x11A
_WRITE_ONLY: Final = (_UPDATE_TRIGGER, _BBL_CR_TRIG)
_MACHINE_CHECKS: Final = {0x0: _READ_ONLY, 0x1: _READ_ONLY}  # P5_MC_ADDR, P5_MC_TYPE

_PENTIUM: Final = _MACHINE_CHECKS | {
    0x11: Register(writable=_bits(range(10), range(16, 26))),  # CESR: see README
    0x12: Register(writable=_bits(range(40))),  # CTR0
    0x13: Register(writable=_bits(range(40))),  # CTR1
}
_SINCE_P6: Final = _MACHINE_CHECKS | {
    0x17: _READ_ONLY,  # IA32_PLATFORM_ID
    # IA32_APIC_BASE; BSP is bit 8, the enable bit 11.
    0x1B: Register(0xFEE00100, _bits(range(12, 36)), _bits(8, 11)),
    _UPDATE_TRIGGER: _WHOLE,  # IA32_BIOS_UPDT_TRIG
    0x8B: _WHOLE,  # IA32_BIOS_SIGN_ID: the revision in the upper half, 0
    0x17A: Register(writable=_bits(range(3))),  # IA32_MCG_STATUS: RIPV, EIPV, MCIP
    **dict.fromkeys(range(0x1DB, 0x1DF), _READ_ONLY),  # last branches and exceptions
}
_P6: Final = _SINCE_P6 | {
    # EBL_CR_POWERON: 10 times a bus of 100 MHz, which is the TSC's 1 GHz. The codes are
    # those of Linux's speedstep-lib.c.
    0x2A: Register(
        0x2B << 22 | 2 << 18,
        _bits(range(1, 5), 6, 7, 26),
        _bits(range(8, 11), range(12, 26), 27),
    ),
    0x33: Register(writable=_bits(30, 31)),  # TEST_CTL
    # The L2 cache, of 512 KiB in 4 ways, enabled: BBL_CR_D0 to D2, ADDR, DECC, CTL,
    # TRIG, BUSY, CTL3.
    **dict.fromkeys(range(0x88, 0x8B), _WHOLE),
    0x116: Register(writable=_bits(range(3, 32))),
    0x118: _WHOLE,
    0x119: Register(writable=_bits(range(7), range(8, 14), 16, 18, 21)),
    _BBL_CR_TRIG: Register(ignored=_bits(0)),
    0x11B: _READ_ONLY,
    0x11E: Register(
        2 << 13 | 2 << 9 | 1 << 8 | 1,
        _bits(range(9), range(13, 19), range(20, 23)),
        _bits(range(9, 13), 23, 25),
    ),
    0x1D9: Register(0, _bits(range(2, 6)), _bits(0, 1, 6)),  # DEBUGCTLMSR: PB0 to PB3
    0x1E0: Register(1 << 2, _bits(2)),  # ROB_CR_BKUPTMPDR6: fast strings
}
_PENTIUM4: Final = _SINCE_P6 | {
    0x2A: _READ_ONLY,  # MSR_EBC_HARD_POWERON
    0x2B: Register(writable=_bits(range(7))),  # MSR_EBC_SOFT_POWERON
    0x2C: Register(10 << 24),  # MSR_EBC_FREQUENCY_ID: 10 times 100 MHz
    # IA32_MISC_ENABLE: fast strings are on; there is no branch trace store, no event
    # sampling and (bit 7) no performance monitoring, nor is there what else is ignored.
    0x1A0: Register(
        _bits(0, 11, 12),
        _bits(0),
        _bits(2, 3, 4, range(6, 13), 19, 23, 24),
    ),
    0x1D7: _READ_ONLY,  # MSR_LER_FROM_LIP
    0x1D8: _READ_ONLY,  # MSR_LER_TO_LIP
    0x1D9: Register(ignored=_bits(range(7))),  # MSR_DEBUGCTLA
    0x1DA: _READ_ONLY,  # MSR_LASTBRANCH_TOS
}
_INTEL64: Final = _SINCE_P6 | {
    # SYSENTER's CS, ESP and EIP. Of CS, the selector counts.
    x86.MSR_SYSENTER_CS: Register(0, _bits(range(16)), _bits(range(16, 64))),
    x86.MSR_SYSENTER_ESP: Register(writable=x86.MASK64, address=True),
    x86.MSR_SYSENTER_EIP: Register(writable=x86.MASK64, address=True),
    # IA32_MISC_ENABLE, as the Pentium 4's. XD stays enabled.
    0x1A0: Register(
        _bits(0, 11, 12),
        _bits(0),
        _bits(3, 7, 11, 12, 13, 16, 18, 20, 22, 23, 34),
    ),
    0x1C9: _READ_ONLY,  # MSR_LASTBRANCH_TOS
    0x1D9: Register(ignored=_bits(range(7))),  # IA32_DEBUGCTL
}
_ATOM: Final = _INTEL64 | {
    0xCD: Register(5),  # MSR_FSB_FREQ: 100 MHz, as the Pentium 4's above
    **dict.fromkeys((*range(0x40, 0x48), *range(0x60, 0x68)), _READ_ONLY),
}
_OF_FAMILY: Final = {5: _PENTIUM, 6: _P6, 15: _PENTIUM4}
_OF_MODEL: Final = {"atom": _ATOM, "skylake": _INTEL64}
_PAT_AT_FIRST: Final = 0x0007040600070406
_MEMORY_TYPES: Final = (0, 1, 4, 5, 6, 7)  # that an entry of the PAT can hold
# Of FS and GS, of which the CPU's state has the bases.
_BASES: Final = {x86.MSR_FS_BASE: BASE[x86.FS], x86.MSR_GS_BASE: BASE[x86.GS]}


def _registers(model: CpuModel) -> dict[int, Register]:
    return _OF_MODEL.get(model.name) or _OF_FAMILY[model.family]


def read(cpu: Cpu, number: int) -> int:
    """Return an MSR, 64 bits; raises #GP(0)."""
    vcpu, model = cpu.vcpu, cpu.vcpu.model
    if number == x86.MSR_TSC:
        return cpu.clock.tsc()
    if number == x86.MSR_EFER and model.efer_defined:
        return vcpu.efer
    if number >= x86.MSR_STAR and model.is_64_bit:
        return _read_of_intel64(cpu, number)
    if number == x86.MSR_PAT and model.features & PAT:
        return vcpu.msr.get(number, _PAT_AT_FIRST)
    register = _registers(model).get(number)
    if register is not None and number not in _WRITE_ONLY:
        return vcpu.msr.get(number, register.reset)
    if number == x86.MSR_MCG_CAP and model.banks:
        return model.banks
    if _bank_register(cpu, number) is not None:
        return vcpu.msr.get(number, 0)
    if 0 <= number - x86.MSR_PERFCTR0 < model.counters:
        return vcpu.pmu.read(cpu.clock.now, number - x86.MSR_PERFCTR0)
    if 0 <= number - x86.MSR_PERFEVTSEL0 < model.counters:
        return vcpu.pmu.select[number - x86.MSR_PERFEVTSEL0]
    raise gp(0)


def write(cpu: Cpu, number: int, value: int) -> None:
    """Write 64 bits to an MSR; raises #GP(0)."""
    vcpu, model = cpu.vcpu, cpu.vcpu.model
    if number == x86.MSR_TSC:
        # Before the 64-bit models only the low half is writable (Vol. 3B 17.17.3).
        cpu.clock.set_tsc(value if model.is_64_bit else value & x86.MASK32)
    elif number == x86.MSR_EFER and model.efer_defined:
        if value & ~model.efer_defined:
            raise gp(0)
        cpu.services.write_efer(value)
    elif number >= x86.MSR_STAR and model.is_64_bit:
        _write_of_intel64(cpu, number, value)
    elif number == x86.MSR_PAT and model.features & PAT:
        if any(kind not in _MEMORY_TYPES for kind in value.to_bytes(8, "little")):
            raise gp(0)
        vcpu.msr[number] = value
    elif (held := _registers(model).get(number)) is not None:
        takes = held.writable | held.ignored
        if not takes or value & ~takes or (held.address and not is_canonical(value)):
            raise gp(0)
        vcpu.msr[number] = value & held.writable | held.reset & ~held.writable
    elif (register := _bank_register(cpu, number)) is not None:
        # There is never an error to tell of: STATUS, ADDR and MISC stay 0.
        if register == 0:
            vcpu.msr[number] = value
        elif value:
            raise gp(0)
    elif 0 <= number - x86.MSR_PERFCTR0 < model.counters:
        vcpu.pmu.write(cpu.clock.now, number - x86.MSR_PERFCTR0, value)
    elif 0 <= number - x86.MSR_PERFEVTSEL0 < model.counters:
        select = value & x86.MASK32
        vcpu.pmu.choose(cpu.clock.now, number - x86.MSR_PERFEVTSEL0, select)
    else:
        raise gp(0)


def _read_of_intel64(cpu: Cpu, number: int) -> int:
    vcpu = cpu.vcpu
    if number in _BASES:
        return cpu.q[_BASES[number]]
    if number == x86.MSR_STAR:
        return vcpu.star
    if number == x86.MSR_LSTAR:
        return vcpu.lstar
    if number == x86.MSR_CSTAR:
        return vcpu.cstar
    if number == x86.MSR_FMASK:
        return vcpu.fmask
    if number == x86.MSR_KERNEL_GS_BASE:
        return vcpu.kernel_gs_base
    if number == x86.MSR_TSC_AUX and vcpu.model.extended & RDTSCP:
        return vcpu.tsc_aux
    raise gp(0)


def _write_of_intel64(cpu: Cpu, number: int, value: int) -> None:
    vcpu = cpu.vcpu
    if number == x86.MSR_STAR:
        vcpu.star = value
    elif number == x86.MSR_FMASK:
        if value > x86.MASK32:
            raise gp(0)
        vcpu.fmask = value
    elif number == x86.MSR_TSC_AUX:
        if value > x86.MASK32 or not vcpu.model.extended & RDTSCP:
            raise gp(0)
        vcpu.tsc_aux = value
    elif not is_canonical(value):
        raise gp(0)
    elif number in _BASES:
        cpu.q[_BASES[number]] = value
    elif number == x86.MSR_LSTAR:
        vcpu.lstar = value
    elif number == x86.MSR_CSTAR:
        vcpu.cstar = value
    elif number == x86.MSR_KERNEL_GS_BASE:
        vcpu.kernel_gs_base = value
    else:
        raise gp(0)


def _bank_register(cpu: Cpu, number: int) -> int | None:
    """Return 0 to 3 for a bank's CTL, STATUS, ADDR or MISC; None for another MSR."""
    offset = number - x86.MSR_MC0_CTL
    return offset & 3 if 0 <= offset < 4 * cpu.vcpu.model.banks else None


def _give(cpu: Cpu, value: int) -> None:
    cpu.q[x86.EAX], cpu.q[x86.EDX] = value & x86.MASK32, value >> 32 & x86.MASK32


def rdmsr(cpu: Cpu, _insn: Insn) -> None:
    """RDMSR: raises #GP(0)."""
    _give(cpu, read(cpu, cpu.q[x86.ECX] & x86.MASK32))


def wrmsr(cpu: Cpu, _insn: Insn) -> None:
    """WRMSR: raises #GP(0)."""
    value = cpu.q[x86.EAX] & x86.MASK32 | (cpu.q[x86.EDX] & x86.MASK32) << 32
    write(cpu, cpu.q[x86.ECX] & x86.MASK32, value)


def rdpmc(cpu: Cpu, _insn: Insn) -> None:
    """RDPMC: raises #GP(0)."""
    vcpu = cpu.vcpu
    if vcpu.model.family == 5:
        raise undefined()  # it came with the Pentium MMX
    counter = cpu.q[x86.ECX] & x86.MASK32
    if cpu.cpl and not vcpu.cr4 & x86.CR4_PCE:
        raise gp(0)
    if counter >= vcpu.model.counters:
        raise gp(0)
    _give(cpu, vcpu.pmu.read(cpu.clock.now, counter))


RECORDS = (
    Record(
        "RDMSR", "0F 32", (0x0F32,), "privileged", "#GP(0)", rdmsr, "Vol. 2B RDMSR",
        "Reads the few MSRs that the CPU model has; any other is the guest's #GP(0).",
        ring0_only=True,
    ),
    Record(
        "WRMSR", "0F 30", (0x0F30,), "privileged", "#GP(0)", wrmsr, "Vol. 2D WRMSR",
        "Writes the few MSRs that the CPU model has; any other is the guest's #GP(0).",
        ring0_only=True,
    ),
    Record(
        "RDPMC", "0F 33", (0x0F33,), "privileged", "#UD", rdpmc,
        "Vol. 2B RDPMC",
        "Reads one of the two counters of a P6; any other is #GP(0). They count clocks"
        " (CPU_CLK_UNHALTED) and nothing else. The engine does not have it.",
    ),
)  # fmt: skip
