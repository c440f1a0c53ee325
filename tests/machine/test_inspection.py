"""Registers and memory, seen and changed from outside."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from emu86 import ConfigError, Machine, Stop
from support.assembler import assemble
from support.flat import MEMORY, flat, guest

# Paging: 0-4 MiB as it is, 400000h -> 200000h, 401000h -> 300000h, 402000h -> F0000000h.
PAGED = """
    org 0x100000
    bits 32
    mov esp, 0x90000
    mov edi, 0x81000
    mov eax, 3
    mov ecx, 1024
    .map: stosd
    add eax, 4096
    loop .map
    mov dword [0x80000], 0x81003
    mov dword [0x80004], 0x82003
    mov dword [0x82000], 0x200003
    mov dword [0x82004], 0x300003
    mov dword [0x82008], 0xF0000003
    mov eax, 0x80000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, 0x11111111
    mov ecx, 0x22222222
    mov edx, 0x33333333
    mov ebx, 0x44444444
    mov ebp, 0x55555555
    mov esi, 0x66666666
    mov edi, 0x77777777
    stc
    out 0xf4, al
    jmp $
"""
LOOP = """
    org 0x100000
    bits 32
    mov esp, 0x90000
    again:
    call work
    mov dx, 0x3F8
    out dx, al
    jmp again
    work:
    mov al, 'a'
    ret
"""


def paged():
    machine = Machine(memory=4 << 20, debug_exit=True)
    machine.load_flat(assemble(PAGED), 0x100000)
    stop = machine.run(timeout=120)
    assert (stop.reason, stop.code) == ("debug exit", 0x11)
    return machine


def test_registers():
    built = guest(
        "mov eax, 1\nmov ecx, 2\nmov edx, 3\nmov ebx, 4\nmov esp, 5\nmov ebp, 6\n"
        "mov esi, 7\nmov edi, -8\nstc\nend: cli\nhlt\n"
    )
    assert built.run(timeout=120).reason == "halted"
    registers = built.registers
    names = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
    assert [registers[n] for n in names] == [1, 2, 3, 4, 5, 6, 7, 0xFFFFFFF8]
    assert registers["eflags"] == 3
    assert registers["eip"] == 0x100000 + 8 * 5 + 3
    assert registers["cs"] & 3 == 0, "ring 0, as the guest sees it"
    assert registers["cr0"] & 0x80000001 == 1
    assert registers["cr3"] == registers["cr4"] == 0
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        assert registers[f"{name}_base"] == 0


def test_registers_of_a_paging_guest():
    told = paged().registers
    wanted = {"eax": 0x11111111, "ecx": 0x22222222, "ebx": 0x44444444, "ebp": 0x55555555,
              "esi": 0x66666666, "edi": 0x77777777, "edx": 0x33333333, "esp": 0x90000,
              "cr3": 0x80000, "cr2": 0, "cr4": 0}  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted
    assert told["eflags"] & 0x701 == 1
    assert told["cr0"] >> 31 == 1
    assert told["cs"] & 3 == told["ss"] & 3 == 0, "the guest's ring, not the engine's"
    assert told["cs_base"] == 0
    assert 0x100000 < told["eip"] < 0x100200


def test_set_register():
    built = guest("inc eax\ncli\nhlt\nother: add eax, ecx\njc $\ncli\nhlt\n")
    built.set_register("eax", 1 << 40 | 0xFFFFFFF0)
    built.set_register("ecx", 5)
    built.set_register("eip", 0x100003)
    built.set_register("eflags", 0x803)
    assert built.registers["eax"] == 0xFFFFFFF0
    assert built.registers["eflags"] == 0x803
    assert built.run(timeout=120).reason == "halted"
    assert built.registers["eax"] == 0xFFFFFFF5
    for name in ("cs", "cr0", "rax", ""):
        with pytest.raises(
            ValueError, match=f"register: no '{name}' .*there are eax, "
        ):
            built.set_register(name, 0)


def test_physical_memory():
    built = Machine(memory=MEMORY)
    built.write_physical(0x1FFE, b"abcd")
    assert built.read_physical(0x1FFD, 6) == b"\0abcd\0"
    built.write_physical(MEMORY - 2, b"yz")
    assert built.read_physical(MEMORY - 2, 4) == b"yz\xff\xff"
    assert built.read_physical(MEMORY + 10, 2) == b"\xff\xff"
    assert built.read_physical(0, 0) == b""
    built.write_physical(0x9FFFE, b"ab")
    built.write_physical(0x5000, b"")
    for address in (0xA0000, 0xF0000000):
        assert built.read_physical(address, 4) == b"\xff" * 4


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0xA0000, 2),
        (0x9FFFF, 2),
        (0xB7FFF, 1),
        (0x9F000, 0x22000),
        (MEMORY - 1, 2),
        (MEMORY, 1),
        (-1, 1),
        (-4, 8),
        (1 << 32, 1),
    ],
)
def test_writes_outside_of_ram(address, size):
    """ValueError, and not a byte is written."""
    built = Machine(memory=MEMORY)
    before = built.read_physical(0, MEMORY)
    with pytest.raises(ValueError, match="not all in RAM|gpa: .* is (not )?below"):
        built.write_physical(address, b"z" * size)
    assert built.read_physical(0, MEMORY) == before


@pytest.mark.parametrize("address", [-1, -4, -MEMORY])
def test_reads_below_0(address):
    with pytest.raises(ValueError, match="gpa: -.* is below 0"):
        Machine(memory=MEMORY).read_physical(address, 8)


@pytest.mark.parametrize("virtual", [False, True])
def test_code_that_has_run_can_be_written(virtual):
    machine = Machine(memory=2 << 20)
    machine.load_flat(assemble(LOOP), 0x100000)
    assert machine.run(b"aaa", timeout=120).reason == "until"
    at = 0x100000 + assemble(LOOP).index(b"\xb0a") + 1
    (machine.write_virtual if virtual else machine.write_physical)(at, b"b")
    shown = bytearray()
    machine.on_console(shown.extend)
    assert machine.run(b"bbb", timeout=120).reason == "until"
    assert len(shown) <= 5


def test_virtual_memory():
    built = flat(
        """
        mov dword [PT + 0x300 * 4], 0x301000 + 0x67
        mov dword [PT + 0x301 * 4], 0x300000 + 0x67
        mov dword [PT + 0x302 * 4], 0
        mov eax, cr3
        mov cr3, eax
        mov eax, [0x300000]
        jmp fin
        """,
        "local",
    )
    built.write_physical(0x300000, b"low".ljust(4096, b"-"))
    built.write_physical(0x301000, b"high".ljust(4096, b"+"))
    assert built.run(timeout=120) == Stop(
        "debug exit", int.from_bytes(b"high", "little")
    )
    assert built.read_virtual(0x300FFE, 5) == b"++low"
    built.write_virtual(0x300FFF, b"12")
    assert built.read_physical(0x301FFF, 1) + built.read_physical(0x300000, 1) == b"12"
    for touch in (built.read_virtual, lambda at, _: built.write_virtual(at, b"ab")):
        for address in (0x301FFF, 0x302000, 0x80000000):
            with pytest.raises(ValueError, match="nothing is mapped"):
                touch(address, 2)


def test_virtual_memory_that_is_no_ram():
    machine = paged()
    machine.write_virtual(0x400FFE, b"abcd")
    assert machine.read_physical(0x200FFE, 2) == b"ab"
    assert machine.read_physical(0x300000, 2) == b"cd"
    assert machine.read_virtual(0x400FFE, 4) == b"abcd"
    assert machine.read_virtual(0x401FFE, 4)[2:] == b"\xff\xff"
    assert machine.read_virtual(0x200FFE, 2) == b"ab"
    for address, size in ((0x403000, 1), (0x402FFF, 2), (0xFFFFFFFF, 1)):
        with pytest.raises(ValueError, match="mapped"):
            machine.read_virtual(address, size)
        with pytest.raises(ValueError, match="mapped|RAM"):
            machine.write_virtual(address, b"x" * size)


def test_looking_leaves_no_trace():
    """Accessed and dirty bits are the guest's: a debugger's reads set none."""
    machine = paged()
    before = machine.read_physical(0x80000, 0x3000)
    machine.read_virtual(0x401000, 4096)
    assert machine.registers == machine.registers
    assert machine.read_physical(0x80000, 0x3000) == before


def test_a_machine_without_a_guest_can_be_looked_at():
    machine = Machine(memory=1 << 20)
    assert machine.read_physical(0x1000, 16) == bytes(16)
    assert machine.registers["cr0"] & 1 == 1
    assert machine.now == 0
    for look in (machine.run, machine.report):
        with pytest.raises(ConfigError, match="was loaded"):
            look()
