"""What an emulated instruction may touch, and its mode; handlers without an engine."""

import pytest

from emu86.cpu import offsets
from emu86.cpu.state import BASE, HFLAGS, RFLAGS, RIP, SELECTOR
from emu86.native import abi
from emu86.rings.cpu import Mode
from emu86.rings.fault import GuestFault
from emu86.spec import x86
from support.plain_cpu import emulate, plain_cpu, set_code_bits

GDT = 0x2000


def test_mode_follows_the_registers():
    cpu = plain_cpu()
    assert (cpu.mode, cpu.cpl) == (Mode.PROTECTED, 0)
    cpu.d[SELECTOR[x86.CS]] = 0x1B
    cpu.update_mode()
    assert (cpu.mode, cpu.cpl) == (Mode.PROTECTED, 3)
    cpu.vcpu.cr0 &= ~x86.CR0_PE
    cpu.update_mode()
    assert (cpu.mode, cpu.cpl) == (Mode.REAL, 0)


def test_virtual_8086_mode():
    cpu = plain_cpu()
    cpu.enter_virtual_8086((0x10, 0x20, 0x30, 0x40, 0x50, 0x60))
    assert (cpu.mode, cpu.cpl) == (Mode.VIRTUAL_8086, 3)
    assert (cpu.code_bits, cpu.stack_bits) == (16, 16)
    assert [cpu.q[BASE[i]] for i in range(6)] == [0x100 * i for i in range(1, 7)]
    cpu.leave_virtual_8086()
    assert not cpu.q[RFLAGS] & x86.VM


@pytest.mark.parametrize("bits", [16, 32])
def test_code_bits(bits):
    cpu = plain_cpu()
    set_code_bits(cpu, bits)
    assert cpu.code_bits == bits
    assert bool(cpu.d[HFLAGS] & offsets.HF_CS32) == (bits == 32)


def test_cli_and_sti():
    cpu = plain_cpu()
    emulate(cpu, b"\xfb")
    assert cpu.q[RFLAGS] & x86.IF
    assert cpu.d[HFLAGS] & offsets.HF_INHIBIT_IRQ
    insn = emulate(cpu, b"\xfa")
    assert not cpu.q[RFLAGS] & x86.IF
    assert cpu.q[RIP] == 0x1001
    assert cpu.services.asked[-1] == ("compile_site", insn, abi.SITE_CLI)


def test_cli_above_iopl_is_gp():
    cpu = plain_cpu()
    cpu.d[SELECTOR[x86.CS]] = 0x1B
    cpu.update_mode()
    with pytest.raises(GuestFault) as fault:
        emulate(cpu, b"\xfa")
    assert (fault.value.vector, fault.value.error) == (x86.VEC_GP, 0)


def test_mov_to_cr3_asks_the_vmm():
    cpu = plain_cpu(eax=0x5000)
    emulate(cpu, b"\x0f\x22\xd8")
    assert ("write_cr3", 0x5000) in cpu.services.asked


def test_popf_takes_if_and_iopl_at_ring_0():
    cpu = plain_cpu(esp=0x8000)
    cpu.memory.write32(0x8000, 0x3202)
    emulate(cpu, b"\x9d")
    assert cpu.iopl == 3
    assert cpu.q[RFLAGS] & x86.IF
    assert cpu.q[x86.ESP] == 0x8004


def test_a_segment_is_loaded_by_the_guests_table():
    cpu = plain_cpu(eax=0x18)
    cpu.load_gdt(GDT, 0x1F)
    cpu.memory.write(GDT + 0x18, 0x00409200_1000FFFF | 0x12 << 32, 8)
    emulate(cpu, b"\x8e\xd8")
    assert cpu.d[SELECTOR[x86.DS]] == 0x18
    assert cpu.q[BASE[x86.DS]] == 0x121000
    assert cpu.memory.read(GDT + 0x1D, 1) & 1, "accessed"


def test_beyond_the_limit_is_gp_of_the_selector():
    cpu = plain_cpu(eax=0x20)
    cpu.load_gdt(GDT, 0x1F)
    with pytest.raises(GuestFault) as fault:
        emulate(cpu, b"\x8e\xd8")
    assert (fault.value.vector, fault.value.error) == (x86.VEC_GP, 0x20)
