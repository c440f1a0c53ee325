"""Instructions whose flags the engine loses; patched, so that no guest can tell.

On a CPU none of them is sensitive, and any program may run them. The engine keeps the
arithmetic flags lazily, as the last operation and its operands, and here it forgets in
what form it has them: after a fault of the instruction's own, or at once. So they are
found and emulated like those that are (`scan`, `sensitive`). Of those with ModRM only
what has a memory operand; the others cannot fault.

Where no RAM is they read and write the bus, as they do natively.
"""

from typing import Final

from emu86.cpu.state import LIMIT, RIP
from emu86.native import abi
from emu86.native.setcc import holds
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import gp
from emu86.rings.insn.flag_states import CMPXCHG8B, SETCC
from emu86.rings.insn.record import Record
from emu86.spec import x86

ROTATES: Final = (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3)
_LOOPE: Final = 0xE1
_RCL: Final = 2  # ModRM.reg
_BY_IMMEDIATE: Final = (0xC0, 0xC1)
_BY_ONE: Final = (0xD0, 0xD1)


def width(insn: Insn) -> int:
    """Return how many bytes of memory RCL, RCR or SETcc writes."""
    return insn.size if insn.opcode in ROTATES and insn.opcode & 1 else 1


def _to_write(cpu: Cpu, linear: int, size: int) -> int:
    """Return where in RAM (GPA) an operand is that will be written, or -1.

    -1: it is a user's, in two pages, or not in RAM, and `GuestMemory` knows the way.
    Raises what the write would. Kernels use CMPXCHG8B and SETcc
    in their allocators: this is what makes them cheap.
    """
    offset = linear & 0xFFF
    if cpu.cpl == x86.CPL_USER or offset + size > x86.PAGE_SIZE:
        operand.translate(cpu, linear, size, write=True)
        return -1
    start = cpu.memory.page_to_write(linear, user=False)
    return start + offset if start >= 0 else -1


def _device(cpu: Cpu, linear: int, size: int) -> int:
    """Return where (GPA) an operand of no RAM is, all in one page; -1 for another."""
    gpa = cpu.memory.lookup(linear)
    if gpa is None or (gpa & 0xFFF) + size > x86.PAGE_SIZE:
        return -1
    return -1 if cpu.memory.ram.backed(gpa >> x86.PAGE_SHIFT) else gpa


def _rotate(cpu: Cpu, insn: Insn) -> None:
    size = width(insn)
    linear = operand.address(cpu, insn, size)
    at = _to_write(cpu, linear, size)
    device = -1 if at >= 0 else _device(cpu, linear, size)
    if device >= 0:
        before = int.from_bytes(cpu.services.mmio_read(device, size), "little")
    else:
        before = operand.read(cpu, linear, size)
    bits = 8 * size
    if insn.opcode in _BY_IMMEDIATE:
        count = insn.immediate
    elif insn.opcode in _BY_ONE:
        count = 1
    else:
        count = cpu.q[x86.ECX]
    count = (count & (0x3F if size == 8 else 0x1F)) % (bits + 1)
    flags = cpu.state.flags()
    # The carry stands above the operand, and all of it goes round.
    whole = before | (flags & x86.CF) << bits
    left = count if insn.reg == _RCL else bits + 1 - count
    whole = whole << left | whole >> bits + 1 - left
    after = whole & (1 << bits) - 1
    if device >= 0:
        cpu.services.mmio_write(device, after.to_bytes(size, "little"))
    else:
        operand.write(cpu, linear, after, size)
    if count:
        flags &= ~(x86.CF | x86.OF)
        flags |= whole >> bits & 1  # CF
        if (before ^ after) >> bits - 1 & 1:
            flags |= x86.OF  # undefined but for a count of 1; this is the engine's
        cpu.state.set_flags(flags)


def _setcc(cpu: Cpu, insn: Insn) -> None:
    linear = operand.address(cpu, insn, 1)
    held = holds(insn.opcode & 15, cpu.state.flags())
    at = _to_write(cpu, linear, 1)
    device = -1 if at >= 0 else _device(cpu, linear, 1)
    if at >= 0:
        cpu.memory.bytes[at] = held
    elif device >= 0:
        cpu.services.mmio_write(device, bytes([held]))
    else:
        operand.write(cpu, linear, held, 1)
    if insn.address_size == 4 and cpu.code_bits == 32:
        kind = abi.setcc_kind(
            insn.opcode & 15, insn.segment, insn.base, insn.index, insn.scale,
            insn.displacement, insn.length,
        )  # fmt: skip
        cpu.services.compile_site(insn, kind)


def _stay(_cpu: Cpu, _insn: Insn) -> bool:
    """Leave EIP where it is: what stands there runs next, in a block of its own."""
    return True


def _loop_by_zf(cpu: Cpu, insn: Insn) -> bool:
    q = cpu.q
    count = q[x86.ECX] - 1 & (1 << 8 * insn.address_size) - 1
    eip = cpu.next_eip(insn.length)
    if count and bool(cpu.state.flags() & x86.ZF) == (insn.opcode == _LOOPE):
        eip += (insn.immediate ^ 0x80) - 0x80
        eip &= (1 << 8 * insn.size) - 1
    if cpu.code_bits == 64:
        operand.check_canonical(cpu, eip, 1, x86.CS)
    elif eip > cpu.d[LIMIT[x86.CS]]:
        raise gp(0)
    operand.set_register(cpu, x86.ECX, count, insn.address_size)
    q[RIP] = eip
    return True


_PATCH: Final = "a patch: it does not trap"
_BOTH: Final = (1, 3)
_ROTATE_FAULTS: Final = (
    "Not sensitive on a CPU. In the engine, one of memory loses the carry if its load"
    " or its store faults. One of a register runs natively."
)

RECORDS: Final = (
    Record(
        "LOOPE/LOOPNE", "E1 cb, E0 cb", (0xE0, 0xE1), "sensitive", _PATCH, _loop_by_zf,
        "Vol. 2A LOOP",
        "Not sensitive on a CPU. In the engine, one that ends by its count can leave"
        " flags that an earlier instruction has set.",
        patched=_BOTH,
    ),
    Record(
        "RCL", "C0 /2 ib, C1 /2 ib, D0 /2, D1 /2, D2 /2, D3 /2", ROTATES, "sensitive",
        _PATCH, _rotate, "Vol. 2B RCL", _ROTATE_FAULTS,
        reg=2, patched=_BOTH, memory=True,
    ),
    Record(
        "RCR", "C0 /3 ib, C1 /3 ib, D0 /3, D1 /3, D2 /3, D3 /3", ROTATES, "sensitive",
        _PATCH, _rotate, "Vol. 2B RCR", _ROTATE_FAULTS,
        reg=3, patched=_BOTH, memory=True,
    ),
    Record(
        "SETcc", "0F 90+cc /r", SETCC, "sensitive", _PATCH, _setcc, "Vol. 2B SETcc",
        "Not sensitive on a CPU. In the engine, a SETcc of memory loses the flags if"
        " it faults. A SETcc of a register runs natively. So does, for most"
        " conditions, a SETcc after a CMP, a TEST or the like in its block.",
        patched=_BOTH, memory=True,
    ),
    Record(
        "CMPXCHG8B", "0F C7 /1", (CMPXCHG8B,), "sensitive", _PATCH, _stay,
        "Vol. 2A CMPXCHG8B",
        "Not sensitive on a CPU. In the engine, all its flags but ZF become those of"
        " an instruction before its block. If an earlier instruction in the block sets"
        " flags, the VMM lets a new block begin at CMPXCHG8B, where the engine does it"
        " right. All CPU models have it.",
        reg=1, patched=_BOTH, memory=True, anew=True,
    ),
)  # fmt: skip
