"""Looking at a guest in IA-32e mode: its registers, its memory, and its report."""

import re

import pytest

from emu86 import Machine
from support.flat import guest64

NO_IDT = "jmp start\nnone: dq 0, 0\nstart: mov rsp, 0x90000\nlidt [rel none]\n"
WHOLE = """\
#GP(0) at 0010:0010003a mov rbx, qword [rax]: 0000800000000000 is not canonical
  → #DF: IDT limit 0 → shutdown
RAX 0000800000000000  RBX 0000000000000000  RCX 0000000000000000
RDX 0000000000000000  RSI 0000000000000000  RDI 0000000000000000
RBP 0000000000000000  RSP 0000000000090000  R8  0000000000000000
R9  123456789abcdef0  R10 0000000000000000  R11 0000000000000000
R12 0000000000000000  R13 0000000000000000  R14 0000000000000000
R15 0000000000000000  RIP 000000000010003a  RFL 000002  ring 0
GDT 00007000 1Fh  IDT 00000000 0
ES 0018 CS 0010 SS 0018 DS 0018 FS 0018 GS 0018 LDTR 0000 TR 0000
FS base 0000000000000000  GS base 0000000000000000
CR0 80000011  CR2 00000000  CR3 00001000  CR4 00000020  EFER 500
"""


def ended(code, technique="patch"):
    """A machine whose guest has met a fault that it has no gate for."""
    machine = guest64(NO_IDT + code, technique=technique)
    assert machine.run(timeout=60).reason == "triple fault"
    return machine


def test_the_whole_of_a_report():
    machine = ended("mov r9, 0x123456789abcdef0\nmov rax, 1 << 47\nmov rbx, [rax]\nhlt")
    told = str(machine.report())
    lines = told.split("\n")
    assert told.startswith(WHOLE)
    assert "> 0010003a  488b18                mov rbx, qword [rax]" in lines
    assert "  00100030  48b80000000000800000  movabs rax, 0x800000000000" in lines
    assert "PML4E 2023, PDPTE 3023, PDE a3: supervisor" in told
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("technique", ["patch", "bare"])
@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "mov rax, 1 << 47\njmp rax",
            r"#GP\(0\) at 0010:800000000000: RIP is not canonical",
        ),
        ("mov rax, 1 << 47\nmov [rax + r9], al", "0000800000000000 is not canonical"),
        (
            "mov rdi, -8\nmov eax, [rdi]",
            r"#PF\(0\) at .*: fffffffffffffff8 is not mapped",
        ),
        ("mov rbx, 1 << 33\nmov [rbx], bl", "200000000 is not mapped"),
        ("mov cr8, rsp", r"mov cr8, rsp: CR8 cannot be 90000h"),
        ("mov ecx, 0xC0000085\nrdmsr", "MSR C0000085h is not there"),
    ],
)
def test_reasons(code, why, technique):

    assert re.search(why, " ".join(str(ended(code, technique).report()).split()))


# CR3 is to be 0, and there is no table there.
ALL_ONES = "mov rax, -1\nxor edi, edi\nmov ecx, 512\nrep stosq\nxor edi, edi\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("mov rax, 1 << 46\njmp rax", "a jump into nothing: RIP is not mapped"),
        (ALL_ONES + "mov cr3, rdi", "PDPTE ffffffffffffffff: reserved bits"),
    ],
)
def test_a_report_says_rip_and_what_is_reserved(code, told):
    assert told in str(ended(code).report())


def test_zeros_in_64_bit_code():
    machine = guest64("mov eax, 0x180000\njmp rax")
    assert machine.run(timeout=0.1).reason == "timeout"
    nothing = machine.report().nothing
    assert nothing == "a jump into nothing: zeros at RIP, which run as add [rax], al"


def test_registers():
    machine = guest64("mov r15, -2\nmov rax, 0x123456789abcdef0\nhlt")
    machine.run(timeout=60)
    told = machine.registers
    assert (told["rax"], told["r15"]) == (0x123456789ABCDEF0, 0xFFFFFFFFFFFFFFFE)
    assert (told["rip"], told["efer"], told["cr8"]) == (0x100015, 0x500, 0)
    assert "eax" not in told
    assert "eip" not in told
    machine.set_register("r8", -1)
    machine.set_register("rip", 1 << 40)
    assert (machine.registers["r8"], machine.registers["rip"]) == (2**64 - 1, 1 << 40)
    with pytest.raises(ValueError, match="register: no 'eax' .did you mean 'rax'"):
        machine.set_register("eax", 0)
    assert "at 0010:10000000000," in repr(machine)
    assert "<th>rax</th>" in machine._repr_html_()
    assert "eax" in Machine(cpu="atom").registers


def test_virtual_memory():
    """The page tables are made to map the first 2 MiB in the upper half, too."""
    machine = guest64(
        "mov rax, cr3\nmov rcx, [rax]\nmov [rax + 8 * 511], rcx\n"
        "mov rcx, [rax + 0x1000]\nmov [rax + 0x1000 + 8 * 510], rcx\nhlt"
    )
    machine.run(timeout=60)
    high = 0xFFFFFFFF80000000
    assert machine.read_virtual(high + 0x100000, 4) == machine.read_physical(1 << 20, 4)
    machine.write_virtual(high + 0x1FFFFE, b"abcd")
    assert machine.read_physical(0x1FFFFE, 4) == b"abcd"
    for gva in (1 << 47, high - 1, 2**64 - 1):
        with pytest.raises(ValueError, match=f"nothing is mapped at {gva:#x}"):
            machine.read_virtual(gva, 1)
    with pytest.raises(ValueError, match="gva"):
        machine.read_virtual(1 << 64, 1)
