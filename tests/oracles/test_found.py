"""Defects of emu86 that the oracle found, shrunk; each failed before it was mended."""

import struct

import pytest

from emu86.spec import x86
from emu86.testing import State, assert_equivalent, run, stage
from support.assembler import assemble

pytestmark = pytest.mark.not_quick

CODE16 = 0x68  # 64 KiB
BEYOND = 0x20000


def program(code):
    return assemble(f"bits 32\norg {stage.CODE:#x}\nDATA equ {stage.DATA:#x}\n{code}")


def first(code, **state):
    """The first event of a program that is as the bare machine has it."""
    built = program(code)
    assert_equivalent(built, State(**state))
    event = run(built, State(**state)).events[0]
    return event.what, event.value


@pytest.mark.parametrize(
    "transfer",
    [
        f"jmp {CODE16}:{BEYOND}",
        f"call {CODE16}:{BEYOND}",
        f"push {CODE16}\npush {BEYOND}\nretf",
        f"push 2\npush {CODE16}\npush {BEYOND}\niret",
    ],
)
def test_a_far_transfer_beyond_the_limit(transfer):
    """It went there. SDM Vol. 2A JMP: #GP(0) if EIP is outside the code segment."""
    assert first(transfer) == ("#GP", 0)


def test_the_new_stack_is_looked_at_before_the_limit():
    """A call gate to ring 1, beyond the limit, with no stack there: #TS(0), not #GP."""
    patches = (
        (stage.GDT + CODE16, stage.descriptor(stage.CODE, 0xFFFF, 0xBA, 4)),
        (stage.GDT + 0xA0, stage.gate(CODE16 | 1, BEYOND, 0xC, 3)),
        (stage.TSS + 0x10, bytes(4)),
    )
    assert first("call 0xa3:0", ring=3, patches=patches) == ("#TS", 0)


@pytest.mark.parametrize(
    ("transfer", "error"),
    [("retf", 5), (f"call {stage.CODE3}:{stage.CODE}", 7)],
)
def test_a_user_whose_stack_is_the_kernels(transfer, error):
    """The engine's far RET and CALL use the stack with the kernel's rights."""
    page = stage.COUNTER - 0x1000
    code = f"""
    call {stage.CODE3}:.once  ; that the descriptor is where the engine finds it
    .once: call {stage.CODE3}:.again
    .again: mov esp, {page + 0x100}
    {transfer}
    """
    patches = (
        (stage.PT + 4 * (page >> 12), struct.pack("<I", page | 0x63)),
        (page + 0x100, struct.pack("<II", stage.CODE, stage.CODE3)),
    )
    assert first(code, ring=3, paging=True, patches=patches) == ("#PF", error)


@pytest.mark.parametrize("code", ["out 0x80, al", "in al, 0x21", "outsb", "insd"])
@pytest.mark.parametrize("ring", [0, 3])
def test_lock_before_a_port_access(code, ring):
    """The port was used all the same. SDM Vol. 2A LOCK: #UD."""
    locked = b"\xf0" + program(code)
    state = State(ring=ring, flags=0x3002)
    assert_equivalent(locked, state)
    assert run(locked, state).events[0].what == "#UD"


def test_a_store_over_two_pages_that_are_not_there():
    """CR2 told of the second one."""
    code = program("sidt [0x7fffffff]")
    state = State(ring=3, paging=True)
    assert_equivalent(code, state)
    assert run(code, state).events[0].registers["cr2"] == 0x7FFFFFFF


@pytest.mark.parametrize("edi", [stage.IDT - 1, stage.IDT - 2])
def test_ins_over_two_pages(edi):
    """CR2 was that of its last byte; a CPU tells of the first on the page."""
    code = program(f"mov dx, 80h\nmov edi, {edi}\ninsd")
    state = State(ring=3, paging=True)
    assert_equivalent(code, state)
    assert run(code, state).events[0].registers["cr2"] == stage.IDT


@pytest.mark.parametrize("code", ["rep outsb", "rep insb"])
def test_each_round_is_trapped_after(code):
    """A user's repeated INS and OUTS ran to the end before the trap of TF."""
    setup = "mov edx, 0x80\nmov ecx, 3\nmov esi, DATA\nmov edi, DATA\n"
    built, state = program(setup + code), State(ring=3, flags=0x3102, skip=0)
    assert_equivalent(built, state)
    told = [event.what for event in run(built, state).events]
    port = "OUT8 80h" if "out" in code else "IN8 80h"
    assert told[4:10] == [port, "#DB"] * 3


@pytest.mark.parametrize("code", ["rcr byte [0x200000], 1", "rcl dword [0x200000], 1"])
@pytest.mark.parametrize("carry", ["stc", "clc"])
def test_a_rotate_through_carry_of_what_is_no_ram(code, carry):
    """The carry was lost between the step's load and its store."""
    assert_equivalent(program(f"{carry}\n{code}\npushf\npop eax\ncli\nhlt"))


# Operands whose address comes for {}; each reads flags, or keeps them.
LOSSY = (
    "rcl byte [{}], 1", "rcr word [{}], cl", "rcl dword [{}], 7", "rcr dword [{}], 32",
    "setc [{}]", "setnp [{}]", "cmpxchg8b [{}]", "lock cmpxchg8b [{}]",
)  # fmt: skip
PAGE = 0x5C000
# What stands in a PTE of PAGE: P, R/W, U/S, A, D.
RIGHTS = (0, 0x7, 0x67, 0x27, 0x3, 0x63, 0x5, 0x25, 0x1)


def losing_flags(code, at, before=""):
    """A program: flags of ADD, `code` in the same block, and its flags."""
    return program(f"""
        {before}
        mov cl, 3
        mov edi, 0x80000001
        add edi, 0x80000001  ; OF, CF
        {code.format(at)}
        int3
    """)


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("before", ["", "mov ebx, [{}]", "mov byte [{}], 0x33"])
@pytest.mark.parametrize("code", LOSSY)
def test_flags_with_a_page_not_filled_yet(code, before, paging, ring):
    """RCL, RCR, SETcc and CMPXCHG8B lost flags where their load or store missed."""
    for at in (PAGE, PAGE + 0xFFF):
        state = State(ring=ring, paging=paging, limit=1, registers={"eax": 0x33})
        assert_equivalent(losing_flags(code, at, before.format(at)), state)


@pytest.mark.parametrize("wp", [0, x86.CR0_WP])
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("rights", RIGHTS)
@pytest.mark.parametrize("code", LOSSY)
def test_flags_where_the_page_is_not_for_all(code, rights, ring, wp):
    """Such a fault is of a write, with the flags of before; A and D are right."""
    entry = struct.pack("<I", PAGE | rights)
    patches = ((stage.PT + 4 * (PAGE >> 12), entry),)
    # In the page; over its end; over its beginning, so that the page before is touched.
    for at in (PAGE + 8, PAGE + 0xFFF, PAGE - 1):
        state = State(ring=ring, paging=True, cr0=wp, limit=1, patches=patches)
        built = losing_flags(code, at)
        assert_equivalent(built, state, ("patch", "iopl"))
        for event in run(built, state).events:
            if event.what == "#PF":
                assert event.value & x86.PF_W
                assert event.registers["eflags"] & x86.ARITHMETIC_FLAGS == 0x801


@pytest.mark.parametrize("code", LOSSY)
@pytest.mark.parametrize("ring", [0, 3])
def test_flags_with_what_is_no_ram(code, ring):
    for at in (0x200000, 0x1FFFFF):
        assert_equivalent(losing_flags(code, at), State(ring=ring, limit=1))


@pytest.mark.parametrize("code", ["rcl dword [DATA], 1", "seto [DATA]"])
@pytest.mark.parametrize("ring", [0, 3])
def test_lock_before_what_takes_none(code, ring):
    """It ran. SDM Vol. 2A LOCK: #UD."""
    locked = b"\xf0" + program(code)
    assert_equivalent(locked, State(ring=ring))
    assert run(locked, State(ring=ring)).events[0].what == "#UD"


def test_setcc_of_code_that_comes_next():
    """It is written by the VMM, and what the engine has translated of it must go."""
    code = "mov ecx, 3\n.again: stc\nsetc [.next + 1]\n.next: mov al, 0x55\n"
    code += "add ebx, eax\nmov byte [.next + 1], 7\nloop .again\nint3"
    assert_equivalent(program(code), State(limit=1, registers={"eax": 0, "ebx": 0}))


@pytest.mark.parametrize("loop", ["loope", "loopne"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", ["", "a16 "])
def test_flags_after_loopne(loop, count, size):
    """A defect of the engine's: it left the flags of an instruction before."""
    code = f"""
    add byte [DATA], 0x90
    add byte [0x5f000], al  ; not filled yet: the block is entered again here
    add eax, 4
    dec eax
    {size}{loop} .end
    .end: int3
    """
    state = State(limit=1, registers={"eax": 0x220D0, "ecx": count})
    assert_equivalent(program(code), state)


def test_flags_after_a_compare_that_faults():
    """All but ZF should be as SUB and DEC left them; the page is not filled yet."""
    code = "sub eax, eax\ndec eax\ncmpxchg8b [DATA]\nint3"
    assert_equivalent(program(code), State(limit=1))


def test_flags_pushed_to_what_is_no_ram():
    """The step that does it pushed its own TF; here some bytes come round to 0."""
    assert_equivalent(program("mov esp, 3\npushf\nmov esp, DATA"), State(ring=3))


def test_a_patch_in_a_page_that_is_the_stack_too():
    """The VMM forgot a patch that was still in a translation: its INT3 was #BP."""
    code = bytes.fromhex(
        "bc008001 00610fb5 d9c51d00 000500b8 93000000 0f00d868 94000000 68230000"
        "00680700 040065ca 0800"
    )
    state = State(flags=0x3202, cr4=0x10, large=True, at=stage.CODE + 0xFF0)
    assert_equivalent(code, state)


@pytest.mark.parametrize("code", ["sgdt [DATA]", "iret", "mov fs, eax"])
def test_a_patch_near_the_end_of_a_page(code):
    """The VMM read 15 bytes of code, with effects; the guest never goes there."""
    built = program(f"{code}\ncli\nhlt")
    start = stage.CODE + x86.PAGE_SIZE - 1 - len(built)
    state = State(paging=True, at=start, limit=0)
    assert_equivalent(built, state)
    entry = stage.PT + 4 * ((stage.CODE >> 12) + 1)
    assert not run(built, state).memory[entry] & x86.PTE_A


@pytest.mark.parametrize("pde", [0x1083, 0x2083, 0x1FE083])
def test_reserved_bits_of_a_large_page(pde):
    """#PF with RSVD; the bare engine has PAT and PSE-36, and one run was an error."""
    patches = ((stage.PD + 12, struct.pack("<I", pde)),)
    state = State(paging=True, cr4=x86.CR4_PSE, patches=patches)
    code = program("mov eax, [0xc00000]\ncli\nhlt")
    assert_equivalent(code, state)
    assert str(run(code, state).events[0]) == f"#PF 9h at 8h:{stage.CODE:08X}"


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize(
    "code",
    ["inc dword [{}]", "lock add [{}], eax", "xchg [{}], eax", "shl dword [{}], 3",
     "not byte [{}]", "bts [{}], eax", "cmpxchg [{}], ecx", "shld [{}], eax, 1"],
)  # fmt: skip
def test_the_fault_of_what_reads_to_write(code, ring):
    """It had error code 0 or 4, as of a read. SDM Vol. 3A 4.7: W is set."""
    built = program(code.format("0x1000000"))
    state = State(ring=ring, paging=True, limit=1)
    assert_equivalent(built, state)
    assert run(built, state).events[0].value == (6 if ring else 2)


# -- found by a review of what the properties did not try ------------------------------


def test_a_store_over_the_instruction_itself():
    """The oracle began it again for ever, and there was nothing to compare."""
    code = "mov byte [0x40000], 0xc6\npush 2\npopf\npushf\npop eax\nhlt"
    for text in (code, f"mov edi, {stage.CODE}\nmov ecx, 20\nmov al, 0xf4\nrep stosb"):
        built = program(text)
        assert run(built, technique="bare").end == "halted"
        assert_equivalent(built)
        assert_equivalent(built, State(interrupts=()))


def test_a_loop_that_rewrites_itself_ends():
    """It took 140 s of CPU time: each round is translated anew."""
    built = program("mov byte [0x40000], 0xc6\njmp $$")
    for technique in ("trap", "patch", "iopl"):
        assert run(built, technique=technique).end == "budget"


def test_memory_is_compared_at_each_event():
    """What is written and gone by the end tells the technique, too."""
    code = "sgdt [DATA]\nint 0x80\nnop\nnop\n"
    code += "mov dword [DATA], 0\nmov dword [DATA + 4], 0\nhlt"
    with pytest.raises(AssertionError, match="event 0, INT 80h"):
        assert_equivalent(program(code), techniques=("trap",))


def test_memory_is_compared_after_a_triple_fault():
    code = "sgdt [DATA]\nlidt [.none]\nud2\n.none: dw 0, 0, 0"
    assert run(program(code)).end == "triple fault"
    with pytest.raises(AssertionError, match="00050000"):
        assert_equivalent(program(code), techniques=("trap",))


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("code", ["0fc7f0", "0fc7ff", "660fc7f1"])
def test_rdrand_is_of_no_model(code, ring):
    """It gave the host's random numbers: no two runs were the same."""
    built = bytes.fromhex(code) + b"\xf4"
    assert_equivalent(built, State(ring=ring))
    assert run(built, State(ring=ring)).events[0].what == "#UD"


def test_loope_of_16_bits_that_is_not_taken():
    """EIP was cut to 16 bits all the same."""
    assert_equivalent(program("mov ecx, 1\no16 loope $\nhlt"))
    assert run(program("mov ecx, 1\no16 loope $\nhlt")).end == "halted"


STACK_ENDS = ((stage.PT + 4 * (stage.STACK0 >> 12), bytes(4)),)


def test_pop_ss_reads_all_of_its_operand():
    """It read 2 bytes of 4, the last two of which are on a page that is not there."""
    code = "o16 push ss\npop ss\nhlt"
    assert first(code, paging=True, limit=4, patches=STACK_ENDS) == ("#PF", 0)


def test_iret_looks_at_eip_before_the_rest_of_the_frame():
    """Vol. 2A IRET: #GP(0) for virtual-8086 mode, not the #PF of what comes after."""
    code = "push 0x20002\npush 8\npush 0x40020\niret"
    assert first(code, paging=True, limit=4, patches=STACK_ENDS) == ("#GP", 0)


def test_both_pushes_of_a_users_far_call():
    """The oracle looked at the first one only, the second was made as the kernel."""
    code = f"mov esp, {stage.COUNTER - 0x1FFC}\ncall {stage.CODE3}:{stage.CODE}"
    assert first(code, ring=3, paging=True, limit=3) == ("#PF", 7)


def test_int1_after_a_return_from_a_fault():
    """Its frame had the RF that IRET had taken from the fault's."""
    assert first("ud2\nint1", ring=3, skip=2, limit=2)[0] == "#UD"


def test_the_fpu_is_compared():
    one, other = (run(program(f"{code}\nhlt")) for code in ("fld1", "fldz"))
    assert one.registers["fp7"] == 0x3FFF << 64 | 1 << 63
    assert other.registers["fp7"] == 0
    assert_equivalent(program("fld1\nfldpi\nmovups xmm1, [DATA]\nint 0x80\nhlt"))


def test_what_does_not_end_is_compared():
    code = "push 2\npopf\npushf\npop eax\njmp $"
    assert run(program(code)).end == "budget"
    with pytest.raises(AssertionError, match="00000202"):
        assert_equivalent(program("sti\n" + code), techniques=("trap",))
    assert_equivalent(program("sti\n" + code), techniques=("patch",))


def test_the_instruction_where_two_runs_part_is_told():
    """The patch that waited to be translated in the kernel's boot was told instead."""
    built = program("mov eax, 0x11\nmov ds, eax\nhlt")  # ring compression's price
    with pytest.raises(AssertionError, match="after the instruction at 8h:00040005"):
        assert_equivalent(built)


def test_a_new_tasks_own_fault():
    """Its EIP was the old one's on the bare machine. SDM Vol. 3A 7.3: the new one's."""
    ss = stage.TSS_B + 0x50
    state = State(limit=1, patches=((ss, (stage.CODE0).to_bytes(4, "little")),))
    built = program(f"jmp {stage.TSS_B_SELECTOR}:0")
    assert_equivalent(built, state)
    event = run(built, state, "bare").events[0]
    assert (event.what, event.value) == ("#TS", stage.CODE0)
    assert event.registers["eip"] != stage.CODE


def test_events_without_end_do_not_fill_the_hosts_memory():
    """Each kept all of RAM: 16,000 faults of a technique took 10 GB."""
    built = program("ud2\njmp $$")
    for technique in ("bare", "patch"):
        outcome = run(built, State(limit=1 << 20, skip=0), technique)
        assert outcome.end == "budget"
        assert len(outcome.events) <= 201
        assert max(len(event.pages) for event in outcome.events) < 20


def test_an_interrupt_before_a_handlers_first_instruction():
    """What the exit before had fetched ahead had its accessed bit set."""
    state = State(ring=3, paging=True, flags=x86.IF | 2, interrupts=((1, 0x82),))
    assert_equivalent(program("sldt [eax]"), state)


def test_a_jump_to_its_own_place_in_a_block_to_be_patched():
    """It was not counted: INT3 stood there, and the block was to be tried again."""
    code = "jmp 0xA8:$$\ndb 0xB8, 0, 0, 0, 0, 0x8E, 0xC0, 0x66, 0x68, 2, 0"
    built = program(code) + bytes.fromhex("6668c300 66680000 66cb")
    assert run(built).end == "budget"
    assert_equivalent(built)
