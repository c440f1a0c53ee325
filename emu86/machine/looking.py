"""Looking at a guest without touching it: memory, instructions, page tables.

Nothing here sets an accessed bit, fills a shadow entry or takes virtual time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import capstone

from emu86.cpu.state import BASE, CR
from emu86.mmu.paging import Format, format_of, is_canonical, walk
from emu86.mmu.vmm_memory import VmmMemory
from emu86.rings.descriptor import Descriptor
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.technique.base import Technique

_BACK: Final = 48  # bytes before an instruction in which those before it are looked for
LEVELS: Final = ("PML4E", "PDPTE", "PDE", "PTE")
# MOV Sreg, r/m16, as Vol. 2B has it: the disassembler writes the register in 32 bits.
_TO_SEGMENT: Final = re.compile(r"^([c-gs]s, )e(?=[a-ds][xpi]$)(..)$")
# Bits of CPUID.1:EDX that instructions need: Vol. 2A CPUID.
_NEEDS: Final = {
    capstone.x86.X86_GRP_CMOV: 15,
    capstone.x86.X86_GRP_MMX: 23,
    capstone.x86.X86_GRP_SSE1: 25,
    capstone.x86.X86_GRP_SSE2: 26,
}
_STACK_BASES: Final = (
    capstone.x86.X86_REG_ESP, capstone.x86.X86_REG_EBP,
    capstone.x86.X86_REG_SP, capstone.x86.X86_REG_BP,
    capstone.x86.X86_REG_RSP, capstone.x86.X86_REG_RBP,
)  # fmt: skip
_MODES: Final = {
    16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64,
}  # fmt: skip
_UPPER: Final = -1 << 36 & (1 << 52) - 1  # of the number of a page of the upper half
_LEVELS_OF_48: Final = (39, 30, 21, 12)
_LEVELS_OF_57: Final = (48, *_LEVELS_OF_48)
# Bytes of R8 to R15 that a letter at the end of a name means.
_PARTS: Final = {"d": 4, "w": 2, "b": 1}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the guest.

    eip: where it is; code: its bytes; mnemonic, operands: as a disassembler writes
    them.
    """

    eip: int
    code: bytes
    mnemonic: str
    operands: str

    def __str__(self) -> str:
        return f"{self.mnemonic} {self.operands}".rstrip()


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand in memory: segment register, offset, linear address, bytes."""

    segment: int
    offset: int
    linear: int
    size: int


@cache
def _decoder(bits: int) -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])


def disassemble(code: bytes, eip: int, bits: int) -> Instruction | None:
    """Return the instruction that some code begins with, or None if it is none."""
    found = next(iter(_decoder(bits).disasm_lite(code, eip, 1)), None)
    return None if found is None else _instruction(found, eip, code)


def _instruction(
    found: tuple[int, int, str, str], eip: int, code: bytes
) -> Instruction:
    """Make one of what the disassembler has found in `code`, which begins at `eip`."""
    at, length, mnemonic, operands = found
    text = _TO_SEGMENT.sub(r"\1\2", operands.replace(" ptr ", " "))
    start = at - eip
    return Instruction(at, code[start : start + length], mnemonic, text)


def read_linear(vmm: "Technique", linear: int, size: int) -> bytes:
    """Read by the guest's tables and CR3 itself, up to what is not mapped.

    In the midst of an exit, too, when the VMM may not have heard yet of compiled code.
    """
    ram, data = vmm.ram, b""
    while len(data) < size:
        at = linear + len(data)
        found = walk(ram, vmm.vcpu, at) if is_canonical(at) else None
        if found is None or not (found.mapped and ram.backed(found.page)):
            break
        part = min(size - len(data), x86.PAGE_SIZE - (at & 0xFFF))
        data += _read(vmm, found.page << x86.PAGE_SHIFT | at & 0xFFF, part)
    return data


def _read(vmm: "Technique", gpa: int, size: int) -> bytes:
    """Read RAM, FFh where there is none; the guest's own byte where a patch stands."""
    data, pending = vmm.ram.read(gpa, size), vmm.pending_patch
    if pending is None or not 0 <= pending[0] - gpa < size:
        return data
    i = pending[0] - gpa
    return data[:i] + bytes([pending[1]]) + data[i + 1 :]


class Met(NamedTuple):
    """An entry that a walk of the guest's tables meets.

    name: "PTE" and its like; number: in its table; shift: of the linear address; at:
    its guest-physical address, -1 of a PDPTE register.
    """

    name: str
    number: int
    shift: int
    at: int
    entry: int


def met(vmm: "Technique", paging: Format, linear: int) -> Iterator[Met]:
    """Yield the entries for a linear address, up to one that maps it or has P clear."""
    vcpu, ram, size = vmm.vcpu, vmm.ram, paging.entry_size
    table = vcpu.cr3 & paging.root
    for level, shift in enumerate(paging.shifts):
        index = linear >> shift & x86.PAGE_SIZE // size - 1
        at = table + size * index
        if paging.in_registers and not level:
            at, entry = -1, vcpu.pdptes[index & 3]
        else:
            entry = ram.read32(at) if size == 4 else ram.read64(at)
        yield Met(LEVELS[level - len(paging.shifts)], index, shift, at, entry)
        large = shift in paging.large_shifts and entry & x86.PDE_PS
        if not entry & x86.PTE_P or large:
            return
        table = entry & paging.frame


def _levels(vmm: "Technique") -> tuple[int, ...]:
    """Return the shifts by which the engine walks the shadow."""
    return _LEVELS_OF_57 if vmm.q[CR + 4] & x86.CR4_LA57 else _LEVELS_OF_48


def shadow_entry(vmm: "Technique", linear: int) -> int:
    """Return the shadow's entry for a page, as the engine walks it; 0 if none leads."""
    q = vmm.q
    pool = vmm.shadow_memory
    table = q[CR + 3]
    entry = 0
    for shift in _levels(vmm):
        index = ((table & x86.LONG_FRAME) - VmmMemory.BASE >> 3) + (
            linear >> shift & 511
        )
        if not 0 <= index < len(pool):
            return 0
        entry = pool[index]
        if not entry & x86.PTE_P:
            return entry if shift == x86.PAGE_SHIFT else 0
        table = entry
    return entry


def shadow_leaves(vmm: "Technique") -> Iterator[tuple[int, int]]:
    """Yield what the engine's walk can find: numbers of linear pages, their entries.

    Without what maps the VMM's own tables.
    """
    levels = _levels(vmm)
    pool, fixed = vmm.shadow_memory, VmmMemory.hpa(VmmMemory.POOL)

    def below(table: int, levels: tuple[int, ...], linear: int) -> Iterator[Any]:
        first = (table & x86.LONG_FRAME) - VmmMemory.BASE >> 3
        for i, entry in enumerate(pool[first : first + 512]):
            at = linear | i << levels[0]
            if not entry & x86.PTE_P:
                continue
            if len(levels) == 1:
                yield at >> x86.PAGE_SHIFT, entry
            elif entry & x86.LONG_FRAME >= fixed:
                yield from below(entry, levels[1:], at)

    # Of 57 bits the guest has the lowest and the highest 47: the others are copies.
    for page, entry in below(vmm.q[CR + 3], levels, 0):
        upper = levels is _LEVELS_OF_57 and page >> 35
        yield page | (_UPPER if upper else 0), entry


class Looker:
    """Looks at one guest as it is now."""

    def __init__(self, vmm: "Technique") -> None:
        self._vmm = vmm
        vmm.cpu.update_mode()
        self.bits = vmm.cpu.code_bits
        self.mask = vmm.cpu.address_mask
        self.is_ia32e = bool(vmm.vcpu.efer & x86.EFER_LMA)
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, _MODES[self.bits])
        self._decoder.detail = True

    # -- memory ------------------------------------------------------------------------

    def read(self, linear: int, size: int) -> bytes:
        """Read by the guest's tables, up to the first page that is not mapped."""
        data = b""
        while len(data) < size:
            at = (linear + len(data)) & self.mask
            gpa = self.lookup(at)
            if gpa is None:
                break
            part = min(size - len(data), x86.PAGE_SIZE - (at & 0xFFF))
            data += self.read_physical(gpa, part)
        return data

    def read_physical(self, gpa: int, size: int) -> bytes:
        """Read RAM; FFh where there is none."""
        return _read(self._vmm, gpa, size)

    def descriptor(self, linear: int, size: int = 8) -> Descriptor | None:
        """Return the descriptor or gate of 8 or 16 bytes there; None: not mapped."""
        data = self.read(linear & self.mask, size)
        if len(data) < size:
            return None
        words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, size, 4)]
        return Descriptor(*words[:3])

    def lookup(self, linear: int) -> int | None:
        """Return where the tables map a linear address to, or None."""
        return self._vmm.memory.lookup(linear)

    def has_ram(self, linear: int) -> bool:
        """Tell whether RAM is mapped there."""
        gpa = self.lookup(linear)
        return gpa is not None and self._vmm.ram.backed(gpa >> x86.PAGE_SHIFT)

    # -- instructions ------------------------------------------------------------------

    def decode(self, eip: int, linear: int) -> Instruction | None:
        """Return the instruction there, or None if there is none."""
        return next(
            iter(self._sweep(self.read(linear, x86.LONGEST_INSN), eip, 1)), None
        )

    def _sweep(self, code: bytes, eip: int, count: int) -> list[Instruction]:
        found = self._decoder.disasm_lite(code, eip, count)
        out = [_instruction(one, eip, code) for one in found]
        return [replace(one, eip=one.eip & self.mask) for one in out]

    def around(self, eip: int, linear: int, count: int) -> list[Instruction]:
        """Return up to `count` instructions, those before `eip` first, then from it on.

        Where those before begin is a guess: code has no marks. A start is one from
        which all decode and one ends at `eip`: of those at multiples of 16, as
        functions are, and then of all the farthest.
        """
        code = self.read(linear, x86.LONGEST_INSN * count)
        before: list[Instruction] = []
        starts = sorted(
            range(max(eip - _BACK, 0), eip), key=lambda start: (start % 16 > 0, start)
        )
        for start in starts:
            back = eip - start
            data = self.read(linear - back & self.mask, back)
            if len(data) < back:
                continue
            found = self._sweep(data, start, 0)
            if found and sum(len(one.code) for one in found) == back:
                before = found[-((count - 1) // 2) :]
                break
        after = self._sweep(code, eip, count - len(before))
        if code and not after:
            after = [Instruction(eip, code[:2], "no instruction", "")]
        return before + after

    def call_before(self, eip: int, linear: int) -> Instruction | None:
        """Return the CALL that ends at `eip`, if one does."""
        for length in range(2, 8):
            data = self.read(linear - length & self.mask, length)
            found = self._sweep(data, eip - length, 1)
            if found and found[0].mnemonic == "call" and len(found[0].code) == length:
                return found[0]
        return None

    def operand(self, insn: Instruction) -> Operand | None:
        """Return the operand in memory of an instruction, by the registers as now."""
        for one in next(self._decoder.disasm(insn.code, insn.eip, 1)).operands:
            if one.type == capstone.x86.X86_OP_MEM:
                mem = one.mem
                offset = mem.disp + self._register(mem.base)
                offset += self._register(mem.index) * mem.scale
                if mem.base == capstone.x86.X86_REG_RIP:
                    offset += insn.eip + len(insn.code)
                segment = self._segment(mem.segment, mem.base)
                offset &= self.mask
                based = self.bits < 64 or segment >= x86.FS
                base = self._vmm.q[BASE[segment]] if based else 0
                linear = (offset + base) & self.mask
                return Operand(segment, offset, linear, one.size)
        return None

    def needs(self, insn: Instruction) -> int:
        """Return the bit of CPUID.1:EDX that an instruction needs, or -1."""
        groups = next(self._decoder.disasm(insn.code, insn.eip, 1)).groups
        return max((_NEEDS[one] for one in groups if one in _NEEDS), default=-1)

    def _register(self, number: int) -> int:
        name = self._decoder.reg_name(number) if number else ""
        return self.register(name or "")

    def register(self, name: str) -> int:
        """Return a general register by its name, parts of one too; 0 if it is none."""
        q = self._vmm.q
        names = x86.GPR_NAMES
        if name in x86.GPR64_NAMES:
            return q[x86.GPR64_NAMES.index(name)]
        if name[:-1] in x86.GPR64_NAMES[8:]:
            size = _PARTS.get(name[-1], 0)
            return q[x86.GPR64_NAMES.index(name[:-1])] & (1 << 8 * size) - 1
        if name[-1:] == "l" and f"e{name[:-1]}" in names[4:]:  # SPL and its like
            return q[names.index(f"e{name[:-1]}")] & 0xFF
        if name in names:
            return q[names.index(name)] & x86.MASK32
        if f"e{name}" in names:
            return q[names.index(f"e{name}")] & 0xFFFF
        if len(name) == 2 and name[1] in "lh" and f"e{name[0]}x" in names:
            value = q[names.index(f"e{name[0]}x")]
            return value >> (8 if name[1] == "h" else 0) & 0xFF
        return 0

    def _segment(self, number: int, base: int) -> int:
        name = self._decoder.reg_name(number) if number else ""
        if name in x86.SEGMENT_NAMES:
            return x86.SEGMENT_NAMES.index(name)
        return x86.SS if base in _STACK_BASES else x86.DS

    # -- page tables -------------------------------------------------------------------

    def rights(self, linear: int) -> int:
        """Return the RW and US bits that the tables give an address, 0 if unmapped."""
        vcpu = self._vmm.vcpu
        found = walk(self._vmm.ram, vcpu, linear) if is_canonical(linear) else None
        return found.rights if found else 0

    def pages(self, linear: int) -> str:
        """Say what the page tables have for a linear address."""
        vcpu, ram = self._vmm.vcpu, self._vmm.ram
        layout = format_of(vcpu.cr0, vcpu.cr4, vcpu.efer)
        if not is_canonical(linear):
            return f"{linear:016x}: not canonical"
        gpa = self.lookup(linear)
        # Leading zeros of many tables would fill the line.
        short = len(layout.shifts) < len(LEVELS)
        digits = 2 * layout.entry_size if short else 1
        steps = [
            f"{one.name} {one.entry:0{digits}x}"
            for one in met(self._vmm, layout, linear)
        ]
        tables = ", ".join(steps) or "no paging"
        if gpa is None:
            fault = walk(ram, vcpu, linear).fault
            why = "reserved bits" if fault & x86.PF_RSVD else "not mapped"
            return f"{linear:08x}: {tables}: {why}"
        rights = self.rights(linear)
        words = [
            "user" if rights & x86.PTE_US else "supervisor",
            "writable" if rights & x86.PTE_RW else "read-only",
        ]
        if rights & x86.PTE_NX:
            words.append("not executable")
        if not ram.backed(gpa >> x86.PAGE_SHIFT):
            words.append("no RAM")
        if layout.direct:
            return ", ".join([f"{linear:08x}: {tables}", *words[2:]])
        return f"{linear:08x} is at {gpa:08x}: {tables}: {', '.join(words)}"
