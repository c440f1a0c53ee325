"""Sensitive instructions that do not trap: found before they first run, and patched.

After Robin and Irvine (USENIX Security 2000). Their sites run INT3 in the engine's
translation only; guest memory keeps its bytes (`scan`). Because the engine holds the
guest's own selectors and flags, PUSHF and reads of segment registers need no patch.
"""

from emu86.native import abi
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import GuestFault, undefined
from emu86.rings.insn.record import Record
from emu86.rings.stack import Stack
from emu86.spec import x86

_POPF = x86.ARITHMETIC_FLAGS | x86.TF | x86.DF | x86.NT | x86.AC | x86.ID
# LAR accepts these system types, LSL those (SDM Vol. 2A tables 3-51 and 3-65); the
# second of each in IA-32e mode.
_LAR_TYPES = frozenset({1, 2, 3, 4, 5, 9, 11, 12}), frozenset({2, 9, 11, 12})
_LSL_TYPES = frozenset({1, 2, 3, 9, 11}), frozenset({2, 9, 11})


def _popf(cpu: Cpu, insn: Insn) -> None:
    if insn.size == 4:
        cpu.services.compile_site(insn, abi.SITE_POPF)
    stack = Stack(cpu)
    image = stack.peek(0, insn.size)
    stack.drop(insn.size)
    flags = cpu.services.guest_flags()
    cpl = cpu.cpl
    change = _POPF
    if cpl <= cpu.iopl:
        change |= x86.IF
    if cpl == 0:
        change |= x86.IOPL
    if insn.size == 2:
        change &= 0xFFFF
    stack.commit()
    cpu.services.set_guest_flags((flags & ~change | image & change) & ~x86.RF)


def _pushf(cpu: Cpu, insn: Insn) -> None:
    stack = Stack(cpu)
    stack.push(cpu.services.guest_flags() & ~(x86.VM | x86.RF), insn.size)
    stack.commit()


def _store_table(cpu: Cpu, insn: Insn, base: int, limit: int) -> None:
    if not insn.memory:
        raise undefined()
    # A 16-bit operand stores all 32 bits of the base too, on the P6 and later.
    width = 8 if cpu.code_bits == 64 else 4
    where = operand.address(cpu, insn, 2 + width)
    operand.translate(cpu, where, 2 + width, write=True)  # before any is written
    operand.write(cpu, where, limit, 2)
    operand.write(cpu, where + 2 & cpu.address_mask, base, width)


def _sgdt(cpu: Cpu, insn: Insn) -> None:
    _store_table(cpu, insn, cpu.vcpu.gdt_base, cpu.vcpu.gdt_limit)


def _sidt(cpu: Cpu, insn: Insn) -> None:
    _store_table(cpu, insn, cpu.vcpu.idt_base, cpu.vcpu.idt_limit)


def _sldt(cpu: Cpu, insn: Insn) -> None:
    operand.write_rm16(cpu, insn, cpu.vcpu.ldtr.selector)


def _str(cpu: Cpu, insn: Insn) -> None:
    operand.write_rm16(cpu, insn, cpu.vcpu.tr.selector)


def _smsw(cpu: Cpu, insn: Insn) -> None:
    if insn.memory:
        operand.write_rm16(cpu, insn, cpu.vcpu.cr0)
    else:
        operand.set_register(cpu, insn.rm, cpu.vcpu.cr0, insn.size)


def _visible(cpu: Cpu, selector: int) -> Descriptor | None:
    """Return the descriptor if the guest's tables have one there."""
    if selector & 0xFFFC == 0:
        return None
    try:
        return cpu.descriptor(selector)
    except GuestFault:
        return None


def _set_zf(cpu: Cpu, *, on: bool) -> None:
    flags = cpu.state.flags()
    cpu.state.set_flags(flags | x86.ZF if on else flags & ~x86.ZF)


def _allowed(cpu: Cpu, found: Descriptor, selector: int) -> bool:
    return found.conforming or found.dpl >= max(cpu.cpl, selector & 3)


def _lar_lsl(
    cpu: Cpu,
    insn: Insn,
    by_mode: tuple[frozenset[int], frozenset[int]],
    *,
    limit: bool,
) -> None:
    types = by_mode[bool(cpu.vcpu.efer & x86.EFER_LMA)]
    selector = operand.read_rm(cpu, insn, 2)
    found = _visible(cpu, selector)
    good = (
        found is not None
        and (found.system < 0 or found.system in types)
        and _allowed(cpu, found, selector)
    )
    _set_zf(cpu, on=good)
    if good and found is not None:
        value = found.limit if limit else found.high & 0x00F0FF00
        operand.set_register(cpu, insn.reg, value, insn.size)


def _lar(cpu: Cpu, insn: Insn) -> None:
    _lar_lsl(cpu, insn, _LAR_TYPES, limit=False)


def _lsl(cpu: Cpu, insn: Insn) -> None:
    _lar_lsl(cpu, insn, _LSL_TYPES, limit=True)


def _verr(cpu: Cpu, insn: Insn) -> None:
    selector = operand.read_rm(cpu, insn, 2)
    found = _visible(cpu, selector)
    good = found is not None and found.readable and _allowed(cpu, found, selector)
    _set_zf(cpu, on=good)


def _verw(cpu: Cpu, insn: Insn) -> None:
    selector = operand.read_rm(cpu, insn, 2)
    found = _visible(cpu, selector)
    good = found is not None and found.writable and _allowed(cpu, found, selector)
    _set_zf(cpu, on=good)
    is_absolute = insn.memory and insn.base < 0 and insn.index < 0
    if cpu.code_bits == 64:
        return
    if cpu.plans and is_absolute and insn.segment in (x86.CS, x86.DS):
        operand_at = operand.address(cpu, insn, 2)
        if operand_at & 0xFFF < x86.PAGE_SIZE - 1:
            index = cpu.plans.keep_verw(
                cpu.linear_eip, operand_at, selector, zf=good, length=insn.length
            )
            cpu.services.compile_site(insn, abi.SITE_VERW | index << 4)


def _icebp(cpu: Cpu, insn: Insn) -> bool:
    cpu.advance(insn.length)
    raise GuestFault(x86.VEC_DB)


_PATCH = "a patch: it does not trap"
_BOTH = (1, 3)

RECORDS = (
    Record(
        "POPF", "9D", (0x9D,), "sensitive", _PATCH, _popf, "Vol. 2B POPF",
        "At CPL 1 with IOPL 0 a CPU ignores IF and IOPL of the popped flags, and"
        " raises nothing. So a kernel that restores its flags would keep its"
        " interrupts as they were. Patched in the guest's kernel. With IOPL raised it"
        " runs natively.",
        patched=(1,),
    ),
    Record(
        "PUSHF", "9C", (0x9C,), "sensitive", "nothing: it needs no patch", _pushf,
        "Vol. 2B PUSHF",
        "The engine's IF is the guest's, so PUSHF shows the right flags and needs no"
        " patch. With IOPL raised, it shows the raised IOPL.",
    ),
    Record(
        "SGDT", "0F 01 /0", (0x0F01,), "sensitive", _PATCH, _sgdt, "Vol. 2B SGDT",
        "Unpatched, it would store the shadow GDT's base and limit. The VMM stores"
        " the guest's.",
        reg=0, patched=_BOTH,
    ),
    Record(
        "SIDT", "0F 01 /1", (0x0F01,), "sensitive", _PATCH, _sidt, "Vol. 2B SIDT",
        "Unpatched, it would store the engine's IDTR. The VMM stores the guest's.",
        reg=1, patched=_BOTH,
    ),
    Record(
        "SLDT", "0F 00 /0", (0x0F00,), "sensitive", _PATCH, _sldt, "Vol. 2B SLDT",
        "Unpatched, it would store the engine's LDTR selector. The VMM stores the"
        " guest's.",
        reg=0, patched=_BOTH,
    ),
    Record(
        "STR", "0F 00 /1", (0x0F00,), "sensitive", _PATCH, _str, "Vol. 2B STR",
        "Unpatched, it would store the engine's TR selector. The VMM stores the"
        " guest's.",
        reg=1, patched=_BOTH,
    ),
    Record(
        "SMSW", "0F 01 /4", (0x0F01,), "sensitive", _PATCH, _smsw, "Vol. 2B SMSW",
        "Unpatched, it would store the engine's CR0. The VMM stores the guest's.",
        reg=4, patched=_BOTH,
    ),
    Record(
        "LAR", "0F 02 /r", (0x0F02,), "sensitive", _PATCH, _lar, "Vol. 2A LAR",
        "Unpatched, it would read the shadow tables, in which DPLs are raised and"
        " descriptors are missing. The VMM reads the guest's.",
        patched=_BOTH,
    ),
    Record(
        "LSL", "0F 03 /r", (0x0F03,), "sensitive", _PATCH, _lsl, "Vol. 2A LSL",
        "Unpatched, it would read the shadow tables, in which DPLs are raised and"
        " descriptors are missing. The VMM reads the guest's.",
        patched=_BOTH,
    ),
    Record(
        "VERR", "0F 00 /4", (0x0F00,), "sensitive", _PATCH, _verr, "Vol. 2D VERR",
        "Unpatched, it would read the shadow tables, in which DPLs are raised and"
        " descriptors are missing. The VMM reads the guest's.",
        reg=4, patched=_BOTH,
    ),
    Record(
        "VERW", "0F 00 /5", (0x0F00,), "sensitive", _PATCH, _verw, "Vol. 2D VERW",
        "Unpatched, it would read the shadow tables, in which DPLs are raised and"
        " descriptors are missing. The VMM reads the guest's.",
        reg=5, patched=_BOTH,
    ),
    Record(
        "INT1", "F1", (0xF1,), "sensitive", _PATCH, _icebp, "Vol. 2A INT1",
        "The engine raises #UD. The VMM gives the guest #DB, as a CPU does.",
        patched=_BOTH,
    ),
)  # fmt: skip
