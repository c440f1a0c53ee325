"""RDMSR, WRMSR and RDPMC: the model-specific registers of each CPU model.

An MSR that the model does not have is #GP(0), and so is a value that it does not take.
Source: SDM Vol. 4 tables 2-2 (architectural), 2-41 (Pentium 4), 2-55 (P6 family), 2-56
(Pentium).
"""

from typing import Final

from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import gp, undefined
from emu86.rings.insn.record import Record
from emu86.spec import x86

# MISC_ENABLE of a Pentium 4: fast strings are on; there is no branch trace store, no
# event sampling and (bit 7) no performance monitoring.
_FAST_STRINGS: Final = 1 << 0
_NOT_THERE: Final = 1 << 11 | 1 << 12
_STATUS_BITS: Final = 7  # RIPV, EIPV and MCIP of MCG_STATUS


def read(cpu: Cpu, number: int) -> int:
    """Return an MSR, 64 bits; raises #GP(0)."""
    vcpu, model = cpu.vcpu, cpu.vcpu.model
    if number == x86.MSR_TSC:
        return cpu.clock.tsc()
    if model.family == 5:
        if number in (x86.MSR_P5_MC_ADDR, x86.MSR_P5_MC_TYPE):
            return 0
        raise gp(0)
    if number in (x86.MSR_PLATFORM_ID, x86.MSR_BIOS_SIGN_ID, x86.MSR_MCG_STATUS):
        return vcpu.msr.get(number, 0)
    if number == x86.MSR_MCG_CAP:
        return model.banks
    if _bank_register(cpu, number) is not None:
        return vcpu.msr.get(number, 0)
    if 0 <= number - x86.MSR_PERFCTR0 < model.counters:
        return vcpu.pmu.read(cpu.clock.now, number - x86.MSR_PERFCTR0)
    if 0 <= number - x86.MSR_PERFEVTSEL0 < model.counters:
        return vcpu.pmu.select[number - x86.MSR_PERFEVTSEL0]
    if number == x86.MSR_MISC_ENABLE and model.family == 15:
        return vcpu.msr.get(number, _FAST_STRINGS) | _NOT_THERE
    raise gp(0)


def write(cpu: Cpu, number: int, value: int) -> None:
    """Write 64 bits to an MSR; raises #GP(0)."""
    vcpu, model = cpu.vcpu, cpu.vcpu.model
    if number == x86.MSR_TSC:
        # Only the low half is writable before family 0Fh models 3 (Vol. 3B 17.17.3).
        cpu.clock.set_tsc(value & x86.MASK32)
    elif model.family == 5:
        raise gp(0)
    elif number == x86.MSR_BIOS_SIGN_ID:
        vcpu.msr[number] = value
    elif number == x86.MSR_MCG_STATUS:
        if value & ~_STATUS_BITS:
            raise gp(0)
        vcpu.msr[number] = value
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
    elif number == x86.MSR_MISC_ENABLE and model.family == 15:
        vcpu.msr[number] = value & _FAST_STRINGS
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
