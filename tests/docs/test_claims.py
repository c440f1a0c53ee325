"""What the pages say of the technique `trap`, and of what does not work."""

import re

import pytest

from emu86 import Machine, images
from emu86.spec import x86
from support.shell import APPEND, INITRD, KERNEL

USER_CS = 0x73
SECOND = 10**9
WRONG = ("POPF", "SGDT", "SIDT", "STR", "LAR", "LSL", "VERR", "VERW", "IN", "OUT")


def test_trap_and_the_teaching_kernel():
    machine = Machine(technique="trap")
    shown = bytearray()
    machine.on_console(shown.extend)
    machine.load_kernel(images.path("teach"), append="script")
    assert machine.run(until=b"A writes line 1\r\n", timeout=300).reason == "until"
    wrong = " ".join(re.findall(r"WRONG: (.*)", shown.decode()))
    for name in WRONG:
        assert re.search(rf"\b{name}\b", wrong), name
    # The task now waits for the timer with its interrupts off.
    machine.run(timeout=0.5)
    assert machine.registers["cs"] & 3 == 3
    assert not machine.registers["eflags"] & x86.IF


@pytest.mark.guest
def test_trap_and_a_loop_in_debian():
    machine = Machine(technique="trap")
    machine.load_kernel(KERNEL, initrd=INITRD, append=APPEND)
    assert machine.run(until=b"emu86# ", timeout=200).reason == "until"
    machine.console_input(b"echo ready; i=0; while :; do i=$((i+1)); done\n")
    assert machine.run(until=b"\nready", timeout=300).reason == "until"
    for _ in range(100):
        machine.run(timeout=0.05)
        registers = machine.registers
        if registers["cs"] == USER_CS and not registers["eflags"] & x86.IF:
            break
    else:
        pytest.fail("the loop's interrupts are on")
    # Typed, and not heard in a second of the guest's.
    machine.console_input(b"\x03")
    end = machine.now + SECOND
    while machine.now < end:
        assert machine.run(until=b"emu86# ", timeout=0.1).reason == "timeout"


def test_a_selector_with_rpl_1_is_not_refused():
    machine = Machine(memory=1 << 20)
    code = "66 b8 19 00  8e d8  8c db  fa f4"  # mov ax, 19h; mov ds, ax; mov ebx, ds
    machine.load_flat(bytes.fromhex(code), 0x10000)
    assert machine.run(timeout=120).reason == "halted"
    assert machine.registers["ebx"] == 0x19


def test_with_trap_a_data_segment_has_no_limit():
    # The GDT at 20000h: null, flat code, flat data, and data of 16 bytes at 0.
    gdt = bytes.fromhex(
        "0000000000000000 ffff0000009bcf00 ffff00000093cf00 0f00000000934000"
    )
    code = "0f 01 15 20 00 01 00  66 b8 18 00  8e d8  a1 00 10 00 00  fa f4"
    machine = Machine(memory=1 << 20, technique="trap")
    machine.load_flat(bytes.fromhex(code), 0x10000)
    machine.write_physical(0x20000, gdt)
    machine.write_physical(0x10020, bytes.fromhex("1f00 00000200"))
    machine.write_physical(0x1000, b"\x2a\0\0\0")
    assert machine.run(timeout=120).reason == "halted"
    assert machine.registers["ds"] == 0x18
    assert machine.registers["eax"] == 0x2A


def ran(code, **options):
    """Run code of ring 0 at 10000h, to its HLT."""
    machine = Machine(memory=2 << 20, **options)
    machine.load_flat(bytes.fromhex(code + "fa f4"), 0x10000)
    machine.run(timeout=120)
    return machine.registers


def test_with_trap_a_cpu_without_cmov_has_it():
    # mov eax, 1; cpuid; xor eax, eax; cmovz eax, esp
    code = "b8 01 00 00 00  0f a2  31 c0  0f 44 c4"
    registers = ran(code, cpu="pentium", technique="trap")
    assert not registers["edx"] & 1 << 15
    assert registers["eax"] == registers["esp"]


def test_a_division_by_zero_leaves_no_flag_in_mxcsr():
    # CR4.OSFXSR; push 1; cvtsi2ss xmm0, [esp]; divss xmm0, xmm1; stmxcsr [esp]
    registers = ran(
        "0f 20 e0  0d 00 02 00 00  0f 22 e0  bc 00 80 00 00  6a 01  f3 0f 2a 04 24"
        "0f 57 c9  f3 0f 5e c1  0f ae 1c 24  58"
    )
    assert registers["eax"] == 0x1F80


def test_the_screen_is_there():
    # mov byte [B8000h], 41h; mov al, [B8000h]
    assert ran("c6 05 00 80 0b 00 41  a0 00 80 0b 00")["eax"] & 0xFF == 0x41
