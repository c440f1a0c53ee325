"""Instructions that the engine has wrong in 64-bit code: by the SDM, and all alike."""

import pytest

from emu86.spec import x86
from emu86.testing import State, asm, assert_equivalent, run, stage

ALL = 0xFFFF_FFFF_FFFF_FFFF
FLAGS = x86.ARITHMETIC_FLAGS


def outcome(program, ring=3, **registers):
    state = State(mode="long", ring=ring, limit=1, registers=registers)
    assert_equivalent(program, state)
    return run(program, state, "patch").events[0]


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("rex", range(0x40, 0x50))
def test_lahf_and_sahf_with_rex(rex, ring):
    """AH whatever REX says: it is in no ModRM."""
    before = 0x1122_3344_5566_FF88
    found = outcome(bytes([rex, 0x9E, rex, 0x9F, 0x0F, 0x0B]), ring, rax=before)
    assert found.registers["rax"] == 0x1122_3344_5566_D788
    assert found.registers["rflags"] & FLAGS == 0xD5


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 4, 15, 31, 33, 63, 64, 255])
@pytest.mark.parametrize("left", [True, False])
def test_shld_and_shrd_relative_to_rip(size, count, left):
    bits, value, source = 8 * size, 0x8123_4567_89AB_CDE1, 0xF0E1_D2C3_B4A5_9687
    mask = (1 << bits) - 1
    prefix = {2: b"\x66", 4: b"", 8: b"\x48"}[size]
    code = prefix + bytes([0x0F, 0xA4 if left else 0xAC, 0x1D])
    # It has four bytes of displacement and one of immediate behind it.
    distance = stage.DATA - stage.CODE - len(code) - 5
    code += distance.to_bytes(4, "little") + bytes([count])
    after = asm(f"mov rax, [{stage.DATA}]\nud2", bits=64)
    state = State(
        mode="long", ring=3, limit=1, registers={"rbx": source},
        patches=((stage.DATA, value.to_bytes(8, "little")),),
    )  # fmt: skip
    assert_equivalent(code + after, state)
    found = run(code + after, state, "patch").events[0].registers
    shift = count & (63 if size == 8 else 31)
    if shift <= bits:
        one, two = value & mask, source & mask
        if left:
            wanted = (one << bits | two) << shift >> bits & mask
        else:
            wanted = (two << bits | one) >> shift & mask
        assert found["rax"] == value & ~mask | wanted
        if shift:
            assert bool(found["rflags"] & x86.ZF) == (wanted == 0)
            assert bool(found["rflags"] & x86.SF) == bool(wanted >> bits - 1)
            last = one >> bits - shift if left else one >> shift - 1
            assert bool(found["rflags"] & x86.CF) == bool(last & 1)


@pytest.mark.parametrize("equal", [True, False])
def test_cmpxchg_of_registers_leaves_what_it_does_not_write(equal):
    rax = 0xAAAA_AAAA_0000_0005
    rdx = 0xBBBB_BBBB_0000_0005 if equal else 0xBBBB_BBBB_8000_0000
    found = outcome(b"\x0f\xb1\xca\x0f\x0b", rax=rax, rdx=rdx, rcx=0x1_2345_6789)
    registers = found.registers
    assert registers["rdx"] == (0x2345_6789 if equal else rdx)
    assert registers["rax"] == (rax if equal else 0x8000_0000)
    flags = x86.ZF | x86.PF if equal else x86.CF | x86.SF | x86.OF | x86.PF
    assert registers["rflags"] & FLAGS == flags


def test_movsxd_of_16_bits_reads_16():
    """At the end of the last page that is there, too."""
    last = (stage.MEMORY + 0x4000) - 2
    program = asm(f"mov ebx, {last}\ndb 0x66, 0x63, 0x0b\nud2", bits=64)
    found = outcome(program, rcx=ALL)
    assert found.what == "#UD"
    found = outcome(b"\x66\x63\xca\x0f\x0b", rcx=ALL, rdx=0x1234_5678)
    assert found.registers["rcx"] == ALL - 0xFFFF + 0x5678


BRANCHES = {  # behind 66h, with 16 bytes to skip: is it taken?
    "e910000000": True, "eb10": True, "0f8410000000": False, "0f8510000000": True,
    "7410": False, "7510": True, "e210": True, "e110": False, "e010": True,
    "e310": False, "67e310": False, "e810000000": True, "ffe3": True, "ffd3": True,
    "c3": True, "c20800": True,
}  # fmt: skip


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("code", BRANCHES)
def test_near_branches_ignore_66h(code, ring):
    code_at = stage.CODE + 5
    body = b"\x66" + bytes.fromhex(code)
    target = code_at + len(body) + 16
    program = asm(f"push qword {target}", bits=64) + body
    program += b"\x0f\x0b".ljust(16, b"\x90") + b"\x0f\x0b"
    registers = {"rbx": target, "rcx": 0x1_0000_0002}
    found = outcome(program, ring, **registers)
    assert found.what == "#UD"
    after = code_at + len(body)
    assert found.registers["rip"] == (target if BRANCHES[code] else after)
    stack = {"e8": 16, "ff": 16 if code == "ffd3" else 8, "c3": 0, "c2": -8}
    top = stage.STACK3 if ring else stage.STACK0
    assert found.registers["rsp"] == top - stack.get(code[:2], 8)


def test_a_branch_with_66h_to_what_is_not_canonical_faults_where_it_is():
    found = outcome(b"\x66\xff\xe3", rbx=1 << 47)
    assert (found.what, found.registers["rip"]) == ("#GP", stage.CODE)


@pytest.mark.parametrize("at", [1 << 47, 1 << 57, 1 << 63])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("mov eax, [rsp + rdx]", "#SS"), ("mov eax, [rbp + rdx]", "#SS"),
        ("mov eax, [rdx]", "#GP"), ("mov eax, [r12 + rdx]", "#GP"),
        ("fs mov eax, [rsp + rdx]", "#GP"), ("lea rsp, [rdx + 8]\npush rax", "#SS"),
        ("mov rsp, rdx\npop rax", "#SS"), ("mov rsp, rdx\nret", "#SS"),
        ("lea rsp, [rdx + 8]\npushfq", "#SS"), ("push qword [rdx]", "#GP"),
        ("mov rsp, rdx\nsub rsp, 4\npop rax", "#SS"), ("mov rbp, rdx\nleave", "#SS"),
    ],
)  # fmt: skip
def test_what_is_not_canonical(text, what, at):
    """To the engine, of a deprivileged guest, only from 57 bits on."""
    found = outcome(asm(f"{text}\nud2", bits=64), rdx=at)
    assert (found.what, found.value) == (what, 0)
