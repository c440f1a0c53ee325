"""Port I/O. The engine never faults it, so what a user may not do is patched.

In the guest's kernel IN, OUT, INS and OUTS run natively into the engine's I/O hooks. At
CPL 3 every site is patched, and IOPL and the TSS's permission bitmap are checked here:
SDM Vol. 1 section 19.5.
"""

from emu86.cpu.state import RFLAGS
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import gp
from emu86.rings.insn.record import Record
from emu86.spec import x86

_IO_MAP = 0x66
_BATCH = 256  # iterations of a repeated string in one exit


def check(cpu: Cpu, insn: Insn) -> tuple[int, int]:
    """Return port and width if the guest's CPL may use the port; raises #GP(0)."""
    by_register = insn.opcode >= 0xEC or insn.opcode < 0x70
    port = cpu.q[x86.EDX] & 0xFFFF if by_register else insn.immediate
    width = insn.size if insn.opcode & 1 else 1
    if cpu.cpl <= cpu.iopl and not cpu.is_virtual_8086:
        return port, width
    tr = cpu.vcpu.tr
    if tr.kind not in (x86.SYS_TSS32, x86.SYS_TSS32_BUSY) or tr.limit < _IO_MAP + 1:
        raise gp(0)
    at = cpu.memory.read(tr.base + _IO_MAP, 2) + (port >> 3)
    if at + 1 > tr.limit:
        raise gp(0)
    bits = cpu.memory.read(tr.base + at, 2) >> (port & 7)
    if bits & (1 << width) - 1:
        raise gp(0)
    return port, width


def _in(cpu: Cpu, insn: Insn) -> None:
    port, width = check(cpu, insn)
    operand.set_register(cpu, x86.EAX, cpu.services.port_read(port, width), width)


def _out(cpu: Cpu, insn: Insn) -> None:
    port, width = check(cpu, insn)
    cpu.services.port_write(port, width, cpu.q[x86.EAX] & (1 << 8 * width) - 1)


def _string(cpu: Cpu, insn: Insn, register: int, *, store: bool) -> bool:
    """INS and OUTS; True: not finished, the instruction runs again."""
    q = cpu.q
    port, width = check(cpu, insn)
    address_size = insn.address_size
    mask = (1 << 8 * address_size) - 1
    segment = x86.ES if store else insn.segment
    step = -width if cpu.state.flags() & x86.DF else width
    # With TF set each round is trapped after.
    rounds = _BATCH if insn.rep and not q[RFLAGS] & x86.TF else 1
    for _ in range(rounds):
        if insn.rep and not q[x86.ECX] & mask:
            return False
        where = operand.base(cpu, segment) + (q[register] & mask) & cpu.address_mask
        operand.check_canonical(cpu, where, width, segment)
        if store:
            operand.translate(cpu, where, width, write=True)
            operand.write(cpu, where, cpu.services.port_read(port, width), width)
        else:
            cpu.services.port_write(port, width, operand.read(cpu, where, width))
        operand.set_register(cpu, register, q[register] + step, address_size)
        if insn.rep:
            operand.set_register(cpu, x86.ECX, q[x86.ECX] - 1, address_size)
    return bool(insn.rep and q[x86.ECX] & mask)


def _ins(cpu: Cpu, insn: Insn) -> bool:
    return _string(cpu, insn, x86.EDI, store=True)


def _outs(cpu: Cpu, insn: Insn) -> bool:
    return _string(cpu, insn, x86.ESI, store=False)


_TRAPS = "an engine hook at CPL 1, a patch at CPL 3"
_USERS = (x86.CPL_USER,)

RECORDS = (
    Record(
        "IN", "E4 ib, E5 ib, EC, ED", (0xE4, 0xE5, 0xEC, 0xED), "io", _TRAPS, _in,
        "Vol. 2A IN",
        "Reads a device of the board. Where there is none, it reads ones.",
        patched=_USERS,
    ),
    Record(
        "OUT", "E6 ib, E7 ib, EE, EF", (0xE6, 0xE7, 0xEE, 0xEF), "io", _TRAPS, _out,
        "Vol. 2B OUT",
        "Writes a device of the board. Where there is none, the value is lost.",
        patched=_USERS,
    ),
    Record(
        "INS", "6C, 6D", (0x6C, 0x6D), "io", _TRAPS, _ins, "Vol. 2A INS",
        "Reads ports to memory at ES:EDI.", patched=_USERS,
    ),
    Record(
        "OUTS", "6E, 6F", (0x6E, 0x6F), "io", _TRAPS, _outs, "Vol. 2B OUTS",
        "Writes ports from memory at DS:ESI.", patched=_USERS,
    ),
)  # fmt: skip
