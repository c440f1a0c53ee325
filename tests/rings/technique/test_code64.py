"""64-bit code of a deprivileged kernel and of its users: what is patched there."""

import pytest

from emu86.spec import x86
from emu86.testing import State, asm, assert_equivalent, run, stage

SSE = x86.CR4_OSFXSR
# Offset (8 bytes) and selector, then a selector of RPL 1, in memory.
POINTERS = (stage.DATA, bytes(8) + b"\0\0" + bytes(8) + b"\1\0")

NULL_STACKS = {
    "mov": "xor ecx, ecx\nmov ss, ecx",
    "mov from memory": f"mov ss, [{stage.DATA}]",
    "lss": f"lss edx, [{stage.DATA}]",
    "lss of 64 bits": f"db 0x48\nlss edx, [{stage.DATA}]",
    "behind a prefix": f"db 0x66, 0x48\nmov ss, [{stage.DATA}]",
}


def long(**fields):
    return State(mode="long", limit=1, patches=(POINTERS,), **fields)


@pytest.mark.parametrize("how", NULL_STACKS)
def test_a_null_stack_segment_gives_no_privilege(how):
    """Natively the engine's CPL becomes 0: then CR3 is the VMM's own."""
    program = asm(f"{NULL_STACKS[how]}\nmov rax, cr3\nhlt", bits=64)
    assert run(program, long(), "patch").registers["rax"] == stage.PML4
    assert_equivalent(program, long(), ("trap", "patch", "iopl"))


@pytest.mark.parametrize("ring", [0, 1, 3])
@pytest.mark.parametrize("rpl", range(4))
def test_a_null_selector_of_any_rpl(ring, rpl):
    program = asm(f"mov ecx, {rpl}\nmov ss, ecx\nmov eax, ss\nud2", bits=64)
    assert_equivalent(program, long(ring=ring), ("trap", "patch"))


SENSITIVE = {
    "sgdt, sidt": "sgdt [rsp - 32]\nsidt [rsp - 16]\nmov r9, [rsp - 30]\nmov r10,"
    " [rsp - 14]\nmov ebx, [rsp - 32]",
    "sldt, str": "mov r8, -1\nsldt r8d\nstr r9\nstr [rsp - 8]\nsldt r15w",
    "smsw": "mov r8, -1\nsmsw r8\nmov r9, -1\nsmsw r9w\nsmsw [rsp - 8]",
    "lar, lsl": "mov eax, 0x10\nlar r8, eax\nlsl r9d, eax\nmov eax, 0x28\nlar rbx, eax"
    "\nlsl rcx, eax\nmov eax, 0x7000\nlar rdx, eax\npushfq\npop rsi",
    "verr, verw": "mov eax, 8\nverr ax\npushfq\npop rbx\nverw ax\npushfq\npop rcx",
    "setcc": "mov r9, rsp\ncmp ebx, ecx\nsetp [r9 - 8]\nseto [rsp - 7]\nmov rax,"
    " [rsp - 8]",
    "rcl": "stc\nrcl qword [rsp - 8], 33\nrcr dword [rsp - 16], 1\nlea r14, [rsp - 24]"
    "\nrcl byte [r14], cl",
    "loope": "mov rcx, 0x100000003\nagain: cmp eax, eax\ndb 0x67\nloope again\nmov"
    " rdx, rcx",
    "cmpxchg16b": "lea rbx, [rsp - 64]\nand rbx, -16\nadd rsi, rbx\nlock cmpxchg16b"
    " [rbx]\npushfq\npop rdi",
}  # fmt: skip


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("what", SENSITIVE)
def test_what_does_not_trap(what, ring):
    program = asm(f"{SENSITIVE[what]}\nud2", bits=64)
    assert_equivalent(program, long(ring=ring, cr4=SSE))


@pytest.mark.parametrize("code", ["9d", "669d", "489d"])
def test_popf_in_the_kernel(code):
    text = f"push 0x202\npush 0x246\ndb 0x{code[:2]}" + "".join(
        f", 0x{code[i : i + 2]}" for i in range(2, len(code), 2)
    )
    program = asm(f"{text}\npushfq\npop rax\ncli\nhlt", bits=64)
    assert run(program, long(), "patch").registers["rax"] & x86.IF
    assert_equivalent(program, long(), "patch")


# VPXOR and VZEROUPPER, LES and LDS, EVEX, and what else is not in 64-bit code.
@pytest.mark.parametrize(
    "code",
    ["c5f1efc2", "c5f877", "c4e171efc2", "c403", "62f1fd486fc0", "06", "27", "82c001",
     "9a00000000000000", "d400", "41c5f1efc2", "f0c5f877"],
)  # fmt: skip
def test_there_is_no_avx(code):
    program = bytes.fromhex(code).ljust(16, b"\x90")
    for technique in ("bare", "patch"):
        outcome = run(program, long(cr4=SSE), technique)
        assert str(outcome.events[0]).startswith(f"#UD at 8h:{stage.CODE:016X}")


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("base", [0xFFFFFFFF_80000000, 0xFFFFFF80_00000000])
def test_patches_in_the_upper_half(base, ring):
    """What is patched runs at addresses of 64 bits, over the end of a page too."""
    start = stage.CODE + 0xFF9
    program = asm(
        f"mov rax, {base + start}\njmp rax\ntimes {0xFF9 - 12} nop\n"
        "str r8\nsldt r9d\nsgdt [rsp - 16]\nlea rbx, [rel $]\nstr eax\nud2",
        bits=64,
    )
    outcome = run(program, long(ring=ring), "patch")
    assert outcome.registers["r8"] == stage.TSS_SELECTOR
    assert outcome.registers["rbx"] >> 32 == base >> 32
    assert_equivalent(program, long(ring=ring), ("patch", "iopl"))


def test_patches_at_the_end_of_the_address_space():
    """The last page of the stage's upper half is its page directory."""
    last = asm("str r8\nsldt r9\nret", bits=64)
    at = 0xFE0
    program = asm(f"mov rax, {at - 0x1000}\ncall rax\nud2", bits=64)
    state = State(mode="long", limit=3, patches=((stage.PD + at, last),))
    outcome = run(program, state, "patch")
    assert outcome.registers["r8"] == stage.TSS_SELECTOR
    assert outcome.events[0].what == "#UD"
    assert_equivalent(program, state, ("patch", "iopl"))


def test_trap_patches_loads_of_the_stack_segment_alone():
    program = asm("xor ecx, ecx\nmov ss, ecx\nstr eax\nsmsw ebx\nhlt", bits=64)
    outcome = run(program, long(), "trap")
    assert outcome.registers["rax"] != stage.TSS_SELECTOR, "it is the engine's"
    assert outcome.registers["ss"] == 0
