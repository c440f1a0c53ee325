"""Operands of 64-bit code: beside the engine's own, and where there are none."""

import random

import pytest
import unicorn
from unicorn import x86_const

from emu86.cpu.state import BASE, RIP
from emu86.rings import operand
from emu86.rings.decode import decode
from emu86.rings.fault import GuestFault
from emu86.spec import x86
from support.plain_cpu import emulate, plain_cpu, set_code_bits

CODE = 0x2000
LOW, HIGH = 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000
NAMES = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"]
NAMES += [f"R{number}" for number in range(8, 16)]
NUMBERS = [getattr(x86_const, f"UC_X86_REG_{name}") for name in NAMES]
PREFIXES = (b"", b"\x67", b"\x64", b"\x65\x67", b"\x2e\x65", b"\x36\x3e")


def cpu64(**registers):
    cpu = plain_cpu(**registers)
    set_code_bits(cpu, 64)
    return cpu


def test_the_register_behind_the_last_is_rip():
    assert RIP == x86.RIP


class Engine:
    """The engine in 64-bit code with nothing mapped but the code."""

    def __init__(self):
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.mem_map(0, 0x4000)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_READ, self.read)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_READ_UNMAPPED, self.read)

    def read(self, _uc, _kind, address, *_rest):
        self.found = address
        return False

    def address(self, code, cpu):
        """Where the first thing that `code` reads is."""
        for number, value in zip(NUMBERS, cpu.q[:16], strict=True):
            self.uc.reg_write(number, value)
        for segment, name in ((x86.FS, "FS"), (x86.GS, "GS")):
            base = getattr(x86_const, f"UC_X86_REG_{name}_BASE")
            self.uc.reg_write(base, cpu.q[BASE[segment]])
        self.uc.ctl_remove_cache(CODE, CODE + 16)
        self.uc.mem_write(CODE, code)
        try:
            self.uc.emu_start(CODE, 0, count=1)
        except unicorn.UcError as error:
            assert error.errno == unicorn.UC_ERR_READ_UNMAPPED
        return self.found


def test_addresses_are_the_engines():
    pick = random.Random(1)
    engine, cpu = Engine(), cpu64()
    cpu.q[BASE[x86.DS]] = 0x1000  # of compatibility mode: it counts for nothing
    cpu.q[RIP] = CODE
    for _ in range(1500):
        cpu.q[BASE[x86.FS]] = pick.getrandbits(40)
        cpu.q[BASE[x86.GS]] = pick.getrandbits(40)
        for number in range(16):
            cpu.q[number] = pick.getrandbits(43)
        code = pick.choice(PREFIXES)
        code += pick.choice((b"", bytes([pick.randrange(0x40, 0x50)]))) + b"\x8b"
        code += bytes([pick.randrange(0xC0)]) + pick.randbytes(5)
        code = code.ljust(16, b"\x90")
        insn = decode(code, 64)
        there = operand.linear_address(cpu, insn)
        if there & 0xFFFF_FFFF_FFFF == there:
            assert there == engine.address(code, cpu), code.hex()


@pytest.mark.parametrize(
    ("code", "register", "vector"),
    [("8b00", x86.EAX, x86.VEC_GP), ("648b00", x86.EAX, x86.VEC_GP),
     ("8b0424", x86.ESP, x86.VEC_SS), ("8b4500", x86.EBP, x86.VEC_SS),
     ("368b00", x86.EAX, x86.VEC_GP), ("418b4500", x86.R13, x86.VEC_GP),
     ("658b4500", x86.EBP, x86.VEC_GP)],
)  # fmt: skip
def test_what_is_not_canonical_faults(code, register, vector):
    cpu = cpu64()
    insn = decode(bytes.fromhex(code), 64)
    for where, size in ((LOW + 1, 1), (HIGH - 1, 1), (LOW, 2), (HIGH - 1, 8)):
        cpu.q[register] = where
        with pytest.raises(GuestFault) as fault:
            operand.address(cpu, insn, size)
        assert (fault.value.vector, fault.value.error) == (vector, 0)
    for where, size in ((LOW, 1), (HIGH, 8), (x86.MASK64, 2), (LOW - 7, 8)):
        cpu.q[register] = where
        assert operand.address(cpu, insn, size) == where


@pytest.mark.parametrize(
    ("size", "after"),
    [(1, 0x1122_3344_5566_77AB), (2, 0x1122_3344_5566_CDAB), (4, 0x89EF_CDAB),
     (8, 0x4567_89EF_CDAB)],
)  # fmt: skip
def test_32_bits_clear_what_is_above_them(size, after):
    cpu = cpu64()
    cpu.q[x86.R9] = 0x1122_3344_5566_7788
    operand.set_register(cpu, x86.R9, 0x4567_89EF_CDAB, size)
    assert cpu.q[x86.R9] == after


def test_sgdt_stores_ten_bytes():
    cpu = cpu64()
    cpu.vcpu.gdt_base, cpu.vcpu.gdt_limit = 0xFFFF_FE00_0000_1000, 0x7F
    cpu.q[x86.R8] = 0x8000
    emulate(cpu, b"\x41\x0f\x01\x00")
    assert cpu.memory.read(0x8000, 2) == 0x7F
    assert cpu.memory.read(0x8002, 8) == 0xFFFF_FE00_0000_1000
    cpu.q[x86.R8] = LOW - 8
    with pytest.raises(GuestFault):
        emulate(cpu, b"\x41\x0f\x01\x00")


@pytest.mark.parametrize(
    ("code", "after"),
    [("490f00c1", 0x28), ("410f00c1", 0x28), ("66410f00c1", 0xFFFF_FFFF_FFFF_0028)],
)
def test_sldt_of_a_register(code, after):
    cpu = cpu64()
    cpu.vcpu.ldtr.selector = 0x28
    cpu.q[x86.R9] = x86.MASK64
    emulate(cpu, bytes.fromhex(code))
    assert cpu.q[x86.R9] == after


@pytest.mark.parametrize(
    ("kind", "lar", "lsl"),
    [(1, False, False), (2, True, True), (4, False, False), (5, False, False),
     (9, True, True), (11, True, True), (12, True, False), (14, False, False)],
)  # fmt: skip
def test_system_descriptors_that_lar_and_lsl_take(kind, lar, lsl):
    """SDM Vol. 2A tables 3-51 and 3-65, the column of IA-32e mode."""
    cpu = cpu64(eax=0x18)
    cpu.load_gdt(0x3000, 0x2F)
    cpu.memory.write(0x3018, (0x8000 | kind << 8) << 32 | 0x67, 8)
    for opcode, good, value in ((2, lar, 0x8000 | kind << 8), (3, lsl, 0x67)):
        cpu.q[x86.R10] = x86.MASK64
        emulate(cpu, bytes([0x4C, 0x0F, opcode, 0xD0]))
        assert bool(cpu.state.flags() & x86.ZF) == good
        assert cpu.q[x86.R10] == (value if good else x86.MASK64)


@pytest.mark.parametrize("code", ["e1fe", "67e1fe"])
def test_loope_counts_by_the_address_size(code):
    cpu = cpu64()
    cpu.state.set_flags(x86.ZF)
    cpu.q[x86.ECX] = 0x1_0000_0001
    emulate(cpu, bytes.fromhex(code))
    taken = code == "e1fe"
    assert cpu.q[x86.ECX] == (0x1_0000_0000 if taken else 0)
    assert cpu.q[RIP] == (0x1000 if taken else 0x1003)


def test_rcl_of_64_bits():
    cpu = cpu64()
    cpu.memory.write(0x8000, 0x8000_0000_0000_0001, 8)
    cpu.q[x86.R15], cpu.q[x86.ECX] = 0x8000, 33
    emulate(cpu, b"\x49\xd3\x17")
    assert cpu.memory.read(0x8000, 8) == 0x2_8000_0000
    assert not cpu.state.flags() & x86.CF


def test_ins_of_a_32_bit_address_clears_what_is_above_it():
    cpu = cpu64()
    cpu.services.port_read = lambda _port, _width: 0x12345678
    cpu.q[x86.EDI], cpu.q[x86.ECX] = 0x5_0000_8000, 0x1_0000_0002
    emulate(cpu, b"\x67\xf3\x48\x6d")
    assert cpu.memory.read(0x8000, 8) == 0x12345678_12345678
    assert (cpu.q[x86.EDI], cpu.q[x86.ECX]) == (0x8008, 0)
