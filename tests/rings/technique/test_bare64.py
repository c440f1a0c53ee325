"""Technique `bare` in IA-32e mode: the engine enters it, runs it, and leaves it."""

import pytest

from emu86.spec import x86
from emu86.testing import State, asm, run, stage

LONG = x86.EFER_LME | x86.EFER_LMA | x86.EFER_SCE | x86.EFER_NXE
NOT_CANONICAL = 1 << 47


def bare(text, bits=64, **fields):
    """Run a program in IA-32e mode; its first exception ends it."""
    mode = "long" if bits == 64 else "compatibility"
    return run(asm(text, bits=bits), State(mode=mode, limit=1, **fields), "bare")


def test_registers_are_64_bits_wide():
    outcome = bare("mov r9, 0x123456789abcdef0; push r9; pop rbx; cli; hlt")
    found = outcome.registers
    assert outcome.end == "halted"
    assert found["rbx"] == found["r9"] == 0x123456789ABCDEF0
    assert (found["efer"], found["cs"], found["rsp"]) == (LONG, 8, stage.STACK0)


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("bits", [32, 64])
def test_an_event_from_either_ring(ring, bits):
    outcome = bare("nop; int 0x80", bits, ring=ring)
    assert [event.what for event in outcome.events] == ["INT 80h"]
    state = State(mode="long" if bits == 64 else "compatibility", ring=ring)
    words = memoryview(outcome.memory).cast("Q")[stage.STACK0 - 40 >> 3 :]
    rip, cs, _flags, rsp, ss = words[:5]
    assert (rip, cs, ss) == (stage.CODE + 3, state.code, state.data)
    assert rsp == (stage.STACK3 if ring else stage.STACK0)


def test_an_event_with_a_stack_of_its_own():
    outcome = bare("int 0x86")
    assert outcome.registers["rsp"] == stage.STACK0 - 0x1000 - 0x210 - 40


@pytest.mark.parametrize(
    ("text", "event", "cr2"),
    [
        ("mov rax, 0x7fff00000000\nmov [rax], al", "#PF 2h", 0x7FFF00000000),
        ("mov rax, 0xffffffff80050000\nmov [rax], al\nud2", "#UD", 0),
        (f"mov rax, {NOT_CANONICAL}\nmov [rax], al", "#GP 0h", 0),
        # The stage's seventh 2 MiB are the first again, with NX.
        ("mov eax, 0xe40000\njmp rax", "#PF 11h", 0xE40000),
        ("mov eax, 0x50000\nmov byte [rax], 0xcc\njmp rax", "#BP", 0),
    ],
)  # fmt: skip
def test_addresses(text, event, cr2):
    found = bare(text).events[0]
    assert str(found).startswith(f"{event} at")
    assert found.registers["cr2"] == cr2


@pytest.mark.parametrize(
    "text",
    [
        "mov rax, cr0\nbtr eax, 31\nmov cr0, rax",  # PG off in 64-bit code
        "mov eax, 0x10\nmov cr4, rax",  # PAE off
        "mov rax, 1 << 40\nmov cr3, rax",
        "mov rax, 1 << 32 | 0x80000011\nmov cr0, rax",
        "mov ecx, 0xc0000080\nmov eax, 0x801\nxor edx, edx\nwrmsr",  # LME off
        "mov ecx, 0xc0000082\nmov eax, 0\nmov edx, 0x8000\nwrmsr",  # not canonical
        "mov ax, 0x28\nltr ax",  # it is busy
        "push 0\npush 0x50000\nretfq",
    ],
)
def test_what_a_cpu_refuses(text):
    found = bare(text).events[0]
    assert found.what == "#GP"
    assert found.value == (0x28 if "ltr" in text else 0)


def test_out_of_ia_32e_mode_and_back():
    """By compatibility mode: PG off, and on again."""
    outcome = bare(
        """mov eax, cr0
        btr eax, 31
        mov cr0, eax
        bts eax, 31
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        cli
        hlt""",
        bits=32,
    )
    assert (outcome.end, outcome.events) == ("halted", ())
    assert outcome.registers["rax"] == outcome.registers["efer"] == LONG
