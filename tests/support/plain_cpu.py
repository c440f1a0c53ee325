"""A CPU that nothing runs: to emulate an instruction on, without an engine."""

from types import SimpleNamespace

from emu86 import config
from emu86.cpu import offsets
from emu86.cpu.clock import Clock
from emu86.cpu.models import MODELS
from emu86.cpu.state import ATTRIBUTES, RIP, CpuState
from emu86.cpu.vcpu import VCpu
from emu86.native import abi
from emu86.rings.decode import decode
from emu86.rings.insn.table import find
from emu86.rings.technique.bare_guest import BareCpu
from emu86.spec import x86

SIZE = 1 << 20


class Memory:
    """Linear memory of 1 MiB, without paging."""

    def __init__(self):
        self.bytes = memoryview(bytearray(SIZE))
        self.ram = SimpleNamespace(backed=lambda page: page < SIZE >> 12)

    def translate(self, gva, **_rights):
        return gva

    def lookup(self, gva):
        return gva

    def page_to_write(self, gva, *, user=None):  # noqa: ARG002
        return gva & ~0xFFF

    page = page_to_write

    def read(self, gva, size, **_rights):
        return int.from_bytes(self.bytes[gva : gva + size], "little")

    def read32(self, gva):
        return self.read(gva, 4)

    def write(self, gva, value, size, **_rights):
        self.bytes[gva : gva + size] = value.to_bytes(size, "little")

    def write32(self, gva, value):
        self.write(gva, value, 4)


class Services:
    """Those of a VMM that only remembers what it was asked for."""

    def __init__(self, cpu):
        self.cpu = cpu
        self.asked = []

    def guest_flags(self):
        return self.cpu.state.flags() | self.cpu.iopl << 12

    def set_guest_flags(self, value):
        self.cpu.iopl = value >> 12 & 3
        self.cpu.state.set_flags(value)

    def __getattr__(self, name):
        return lambda *arguments: self.asked.append((name, *arguments))


def plain_cpu(**registers):
    """A CPU in protected mode at ring 0 with flat segments of 32 bits."""
    state = CpuState(memoryview(bytearray(offsets.SIZE)))
    control = memoryview(bytearray(8 * abi.WORDS)).cast("q")
    cpu = BareCpu(state, VCpu(MODELS[config.CPU]), Memory(), Clock(control))
    cpu.services = Services(cpu)
    kind = x86.DESC_P | x86.DESC_S | x86.DESC_RW | x86.DESC_A | x86.DESC_B
    for index in range(6):
        code = x86.DESC_CODE if index == x86.CS else 0
        state.set_segment(index, 8 + 8 * (index != x86.CS), 0, x86.MASK32, kind | code)
    cpu.enter_ring()
    for name, value in registers.items():
        cpu.q[x86.GPR_NAMES.index(name)] = value
    return cpu


def emulate(cpu, code, at=0x1000):
    """Have the handler of one instruction act; EIP moves as the VMM moves it."""
    cpu.memory.bytes[at : at + len(code)] = code
    cpu.q[RIP] = at
    insn = decode(code, cpu.code_bits)
    if not find(insn).handler(cpu, insn):
        cpu.advance(insn.length)
    return insn


def set_code_bits(cpu, bits):
    """Make CS a segment of 16, 32 or (in IA-32e mode then) 64 bits."""
    kinds = {16: 0, 32: x86.DESC_B, 64: x86.DESC_L}
    cpu.d[ATTRIBUTES[x86.CS]] &= ~(x86.DESC_B | x86.DESC_L)
    cpu.d[ATTRIBUTES[x86.CS]] |= kinds[bits]
    cpu.vcpu.efer = x86.EFER_LME | x86.EFER_LMA if bits == 64 else 0
    cpu.sync_segments()
