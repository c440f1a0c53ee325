"""Privileged instructions: they trap, and are emulated.

The engine runs the guest's kernel at CPL 1, so each raises #GP(0) there. At the guest's
own CPL 1 to 3 that #GP(0) is the guest's, which `ring0_only` says.
"""

from emu86.cpu import offsets
from emu86.cpu.state import HFLAGS, RFLAGS
from emu86.native import abi
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import gp, undefined
from emu86.rings.insn.record import Record
from emu86.rings.insn.tasks import load_tr
from emu86.spec import x86
from emu86.spec.features import RDTSCP, SMAP

_CR8 = 8  # of 64-bit code alone, which names it by a REX prefix


def _iopl_allows(cpu: Cpu) -> None:
    if cpu.cpl > cpu.iopl:
        raise gp(0)


def _cli(cpu: Cpu, insn: Insn) -> None:
    _iopl_allows(cpu)
    cpu.q[RFLAGS] &= ~x86.IF
    cpu.services.compile_site(insn, abi.SITE_CLI)


def _sti(cpu: Cpu, insn: Insn) -> None:
    _iopl_allows(cpu)
    if not cpu.q[RFLAGS] & x86.IF:
        cpu.q[RFLAGS] |= x86.IF
        cpu.d[HFLAGS] |= offsets.HF_INHIBIT_IRQ
    cpu.services.compile_site(insn, abi.SITE_STI)


def _hlt(cpu: Cpu, insn: Insn) -> None:
    cpu.services.halt()
    cpu.services.compile_site(insn, abi.SITE_HLT)


def _read_cr(cpu: Cpu, insn: Insn) -> None:
    vcpu = cpu.vcpu
    number = insn.reg
    if number == 0:
        value = vcpu.cr0
    elif number == 2:
        value = vcpu.cr2
    elif number == 3:
        value = vcpu.cr3
    elif number == 4:
        value = vcpu.cr4
    elif number == _CR8:
        cpu.q[insn.rm] = vcpu.cr8
        return
    else:
        raise undefined()
    cpu.q[insn.rm] = value & cpu.address_mask
    kind = abi.SITE_READ_CR | insn.rm << 4 | number << 8
    cpu.services.compile_site(insn, kind)


def _write_cr(cpu: Cpu, insn: Insn) -> None:
    value = cpu.q[insn.rm] & cpu.address_mask
    number = insn.reg
    if number in (0, 2, 3, 4):  # first, for behind it the code may be elsewhere
        kind = abi.SITE_WRITE_CR | insn.rm << 4 | number << 8
        cpu.services.compile_site(insn, kind)
    if number == 0:
        cpu.services.write_cr0(value)
    elif number == 2:
        cpu.vcpu.cr2 = value
    elif number == 3:
        cpu.services.write_cr3(value)
    elif number == 4:
        cpu.services.write_cr4(value)
    elif number == _CR8:
        if value & ~x86.CR8_TPR:
            raise gp(0)
        cpu.vcpu.cr8 = value
    else:
        raise undefined()


def read_dr(cpu: Cpu, insn: Insn) -> None:
    """Do MOV from DR; #UD or #DB as `Breakpoints.read`."""
    cpu.q[insn.rm] = cpu.services.read_dr(insn.reg) & cpu.address_mask


def write_dr(cpu: Cpu, insn: Insn) -> None:
    """Do MOV to DR; #UD, #GP(0) or #DB as `Breakpoints.write`."""
    cpu.services.write_dr(insn.reg, cpu.q[insn.rm] & cpu.address_mask)


def _table_operand(cpu: Cpu, insn: Insn) -> tuple[int, int]:
    if not insn.memory:
        raise undefined()
    where = operand.address(cpu, insn, 10 if cpu.code_bits == 64 else 6)
    limit = operand.read(cpu, where, 2)
    if cpu.code_bits == 64:
        base = operand.read(cpu, where + 2 & x86.MASK64, 8)
        cpu.check_canonical(base)
        return base, limit
    base = operand.read(cpu, where + 2, 4)
    return base & (x86.MASK32 if insn.size == 4 else 0xFFFFFF), limit


def _lgdt(cpu: Cpu, insn: Insn) -> None:
    cpu.load_gdt(*_table_operand(cpu, insn))


def _lidt(cpu: Cpu, insn: Insn) -> None:
    cpu.load_idt(*_table_operand(cpu, insn))


def _lldt(cpu: Cpu, insn: Insn) -> None:
    cpu.load_ldt(operand.read_rm(cpu, insn, 2))


def _ltr(cpu: Cpu, insn: Insn) -> None:
    load_tr(cpu, operand.read_rm(cpu, insn, 2))


def _lmsw(cpu: Cpu, insn: Insn) -> None:
    low = operand.read_rm(cpu, insn, 2) & 0xF
    cr0 = cpu.vcpu.cr0
    cpu.services.write_cr0(cr0 & ~0xE | low | cr0 & x86.CR0_PE)


def _clts(cpu: Cpu, insn: Insn) -> None:
    cpu.services.compile_site(insn, abi.SITE_CLTS)
    cpu.services.write_cr0(cpu.vcpu.cr0 & ~x86.CR0_TS)


def _invlpg(cpu: Cpu, insn: Insn) -> None:
    if not insn.memory:
        raise undefined()
    cpu.services.invalidate(operand.linear_address(cpu, insn))
    plain = insn.index < 0 and not insn.displacement and insn.segment == x86.DS
    if plain and insn.base >= 0:
        cpu.services.compile_site(insn, abi.SITE_INVLPG | insn.base << 4)


def _nothing(_cpu: Cpu, _insn: Insn) -> None:
    """There is no cache to write back or to lose."""


def _rdtsc(cpu: Cpu, _insn: Insn) -> None:
    if cpu.vcpu.cr4 & x86.CR4_TSD and cpu.cpl:
        raise gp(0)
    value = cpu.clock.tsc()
    cpu.q[x86.EAX], cpu.q[x86.EDX] = value & x86.MASK32, value >> 32 & x86.MASK32


def _rdtscp(cpu: Cpu, insn: Insn) -> None:
    if not cpu.vcpu.model.extended & RDTSCP:
        raise undefined()
    _rdtsc(cpu, insn)
    cpu.q[x86.ECX] = cpu.vcpu.tsc_aux


def _set_ac(cpu: Cpu, insn: Insn, ac: int) -> None:
    there = cpu.vcpu.model.structured & SMAP
    if not there or cpu.cpl or insn.size_prefix or insn.rep:
        raise undefined()
    cpu.q[RFLAGS] = cpu.q[RFLAGS] & ~x86.AC | ac


def _clac(cpu: Cpu, insn: Insn) -> None:
    _set_ac(cpu, insn, 0)


def _stac(cpu: Cpu, insn: Insn) -> None:
    _set_ac(cpu, insn, x86.AC)


RECORDS = (
    Record(
        "CLI", "FA", (0xFA,), "privileged", "#GP(0): CPL 1 > IOPL 0", _cli,
        "Vol. 2A CLI",
        "Clears the virtual IF. No interrupt ever reaches the engine, so the engine's"
        " IF can hold the virtual one, and PUSHF needs no help. With IOPL raised, CLI"
        " never traps.",
    ),
    Record(
        "STI", "FB", (0xFB,), "privileged", "#GP(0): CPL 1 > IOPL 0", _sti,
        "Vol. 2B STI",
        "Sets the virtual IF. An interrupt that waits is injected after the next"
        " instruction, for STI casts an interrupt shadow.",
    ),
    Record(
        "HLT", "F4", (0xF4,), "privileged", "#GP(0)", _hlt, "Vol. 2A HLT",
        "Stops the guest until the next interrupt; virtual time jumps to it. With IF"
        " clear no interrupt can come, and the machine is halted.",
        ring0_only=True,
    ),
    Record(
        "MOV from CR", "0F 20 /r", (0x0F20,), "privileged", "#GP(0)", _read_cr,
        "Vol. 2B MOV—Move to/from Control Registers",
        "Reads the virtual CR0, CR2, CR3, CR4 or CR8. The engine's own registers hold"
        " the VMM's values.",
        ring0_only=True,
    ),
    Record(
        "MOV to CR", "0F 22 /r", (0x0F22,), "privileged", "#GP(0)", _write_cr,
        "Vol. 2B MOV—Move to/from Control Registers",
        "Writes the virtual register. CR3 switches to the shadow root of that page"
        " directory and drops the entries that the guest has changed. PG, WP, PSE and"
        " PGE rebuild the shadow tables. TS, EM, MP and the SSE bits are set in the"
        " engine, too. CR8, the task priority, is kept and masks nothing: there is no"
        " local APIC.",
        ring0_only=True,
    ),
    Record(
        "MOV from DR", "0F 21 /r", (0x0F21,), "privileged", "#GP(0)", read_dr,
        "Vol. 2B MOV—Move to/from Debug Registers",
        "Reads the virtual debug register.",
        ring0_only=True,
    ),
    Record(
        "MOV to DR", "0F 23 /r", (0x0F23,), "privileged", "#GP(0)", write_dr,
        "Vol. 2B MOV—Move to/from Debug Registers",
        "Writes the virtual debug register, with its fixed bits. While a breakpoint"
        " is enabled the guest runs instruction by instruction, and the VMM looks at"
        " each before it runs.",
        ring0_only=True,
    ),
    Record(
        "LGDT", "0F 01 /2", (0x0F01,), "privileged", "#GP(0)", _lgdt,
        "Vol. 2A LGDT/LIDT",
        "Sets the virtual GDTR. The shadow GDT is emptied and follows the new table.",
        reg=2, ring0_only=True,
    ),
    Record(
        "LIDT", "0F 01 /3", (0x0F01,), "privileged", "#GP(0)", _lidt,
        "Vol. 2A LGDT/LIDT",
        "Sets the virtual IDTR, which only the injector reads.",
        reg=3, ring0_only=True,
    ),
    Record(
        "LLDT", "0F 00 /2", (0x0F00,), "privileged", "#GP(0)", _lldt, "Vol. 2A LLDT",
        "Sets the virtual LDTR from the guest's GDT. The shadow LDT follows.",
        reg=2, ring0_only=True,
    ),
    Record(
        "LTR", "0F 00 /3", (0x0F00,), "privileged", "#GP(0)", _ltr, "Vol. 2A LTR",
        "Sets the virtual TR and marks the TSS busy. The injector uses the stacks in"
        " it.",
        reg=3, ring0_only=True,
    ),
    Record(
        "LMSW", "0F 01 /6", (0x0F01,), "privileged", "#GP(0)", _lmsw, "Vol. 2A LMSW",
        "Writes the low four bits of the virtual CR0. It can set PE, and cannot clear"
        " it.",
        reg=6, ring0_only=True,
    ),
    Record(
        "CLTS", "0F 06", (0x0F06,), "privileged", "#GP(0)", _clts, "Vol. 2A CLTS",
        "Clears CR0.TS, in the virtual CR0 and in the engine's.",
        ring0_only=True,
    ),
    Record(
        "INVLPG", "0F 01 /7", (0x0F01,), "privileged", "#GP(0)", _invlpg,
        "Vol. 2A INVLPG",
        "Drops the shadow entry of one page, so that the next use reads the guest's"
        " tables again.",
        reg=7, ring0_only=True,
    ),
    Record(
        "INVD", "0F 08", (0x0F08,), "privileged", "#GP(0)", _nothing, "Vol. 2A INVD",
        "Nothing to do: the guest's memory has no cache.",
        ring0_only=True,
    ),
    Record(
        "WBINVD", "0F 09", (0x0F09,), "privileged", "#GP(0)", _nothing,
        "Vol. 2D WBINVD",
        "Nothing to do: the guest's memory has no cache.",
        ring0_only=True,
    ),
    Record(
        "RDTSC", "0F 31", (0x0F31,), "privileged",
        "#GP(0) with CR4.TSD; else an engine hook", _rdtsc, "Vol. 2B RDTSC",
        "Gives virtual time in nanoseconds: a TSC of 1 GHz. The hook is compiled"
        " code.",
    ),
    Record(
        "RDTSCP", "0F 01 F9", (0x0F01,), "sensitive", "a patch: it does not trap",
        _rdtscp, "Vol. 2B RDTSCP",
        "As RDTSC, and ECX gets IA32_TSC_AUX. #UD on CPU models without it, but with"
        " trap, where a hook does it.",
        reg=7, modrm=0xF9, patched=(1, 3), registers=True,
    ),
    Record(
        "CLAC", "0F 01 CA", (0x0F01,), "privileged", "#UD", _clac, "Vol. 2A CLAC",
        "Clears AC, so that SMAP keeps the kernel from its users' pages. AC and CR4's"
        " SMEP and SMAP are the engine's, too, which looks at them in ring 1 as in ring"
        " 0. Patched in the guest's kernel, for compiled code has the patches.",
        reg=1, modrm=0xCA, patched=(1,), registers=True,
    ),
    Record(
        "STAC", "0F 01 CB", (0x0F01,), "privileged", "#UD", _stac, "Vol. 2B STAC",
        "Sets AC: see CLAC.",
        reg=1, modrm=0xCB, patched=(1,), registers=True,
    ),
)  # fmt: skip


def after_shadow(cpu: Cpu) -> None:
    """Hold interrupts off for one instruction, after MOV SS and POP SS."""
    cpu.d[HFLAGS] |= offsets.HF_INHIBIT_IRQ
