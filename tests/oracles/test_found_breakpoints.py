"""Defects with the debug registers; each failed before it was mended.

SDM Vol. 3B chapter 17 says what is right; `patch` and `iopl` must do as the bare
machine has it, too.
"""

from importlib import import_module

import pytest

from emu86.mmu.shadow import ShadowMmu
from emu86.spec import x86
from emu86.testing import State, assert_equivalent, run, stage
from support.assembler import assemble

CLOCKED = ()  # State.interrupts: none, but by the clock and instruction by instruction
EXECUTED, WRITTEN4 = 0, 0xD
NEAR = 3  # events that are looked at
TO_USER = f"""
    push {stage.DATA3}
    push {stage.STACK3}
    push 2
    push {stage.CODE3}
    push .user
    iretd
    .user:
    push {stage.DATA3}
    pop ds
"""
RETURN_WITH_RF = """
    push {flags:#x}
    push cs
    push .here
    iretd
"""


def armed(where, kind, enable=2):
    """Set breakpoint 0."""
    return f"""
    mov eax, {where}
    mov dr0, eax
    mov eax, {kind << 16 | enable:#x}
    mov dr7, eax
    """


def resumed(flags=0x10002):
    return RETURN_WITH_RF.format(flags=flags)


def events(code, **state):
    """The first events of a program, as all have them: name and the guest's DR6."""
    built = assemble(
        f"bits 32\norg {stage.CODE:#x}\nDATA equ {stage.DATA:#x}\n{code}\ncli\nhlt\n"
    )
    start = State(**{"skip": 0, "limit": NEAR} | state)
    for technique in ("patch", "iopl"):
        assert_equivalent(built, start, technique)
    return [
        (event.what, event.registers["eip"] - stage.CODE, event.registers["dr6"] & 15)
        for event in run(built, start).events
        if event.registers
    ], built


@pytest.mark.parametrize(
    "load", ["mov eax, ss\nmov ss, eax", "push ss\npop ss"], ids=["MOV", "POP"]
)
def test_what_follows_a_users_load_of_ss(load):
    """It ran without being looked at, and could see the VMM's TF."""
    store = armed("DATA", WRITTEN4) + TO_USER + load + "\nmov [DATA], eax\nnop\nnop"
    found, _ = events(store)
    assert found[0][0] == "#DB"
    assert found[0][2] == 1
    pushes = armed("DATA", WRITTEN4) + TO_USER + load + "\npushfd\npop ebx\nint 60h"
    found, built = events(pushes)
    ebx = run(built, State(skip=0, limit=NEAR)).events[0].registers["ebx"]
    assert not ebx & x86.TF


def test_a_load_of_ss_holds_its_own_trap():
    """It came at once under bare. Vol. 3A 6.8.3: after the next instruction."""
    load = "mov ss, [DATA]\n"
    code = armed("DATA", 3) + f"mov word [DATA], {stage.DATA0}\n" + load + "nop\n"
    code = f"mov word [DATA], {stage.DATA0}\n" + armed("DATA", 7) + load + "nop\nnop"
    (first, *_), built = events(code)
    assert first[0] == "#DB"
    assert built[first[1] - 1 : first[1] + 1] == b"\x90\x90"


def test_a_breakpoint_after_a_load_of_ss_is_suppressed():
    """Vol. 3B 17.3.1.1: as if RF were 1."""
    code = armed(".here", EXECUTED) + "mov eax, ss\nmov ss, eax\n.here: nop\nint 60h"
    (first, *_), _ = events(code)
    assert first[0] == "INT 60h"


def test_a_task_switch_that_disarms_keeps_the_new_tasks_tf():
    """It was taken for the VMM's own."""
    code = f"""
    mov dword [{stage.TSS_B + 0x24:#x}], 102h
    mov dword [{stage.TSS_B + 0x20:#x}], .task
    {armed("DATA", WRITTEN4, enable=1)}
    jmp {stage.TSS_B_SELECTOR}:0
    .task: nop
    nop
    """
    found, _ = events(code)
    assert found[0][0] == "#DB"


def test_rf_of_a_tss():
    """The bare machine dropped it: Vol. 3B 17.3.1.1, task switches transfer it."""
    code = f"""
    mov dword [{stage.TSS_B + 0x24:#x}], 10002h
    mov dword [{stage.TSS_B + 0x20:#x}], .here
    {armed(".here", EXECUTED)}
    int 81h
    .here: int 60h
    """
    found, _ = events(code)
    assert [what for what, *_ in found[:2]] == ["INT 81h", "INT 60h"]


@pytest.mark.parametrize("event", ["int 60h", "int1", "int3"])
def test_software_interrupts_push_rf_as_0(event):
    """Vol. 3B 17.3.1.1: the flag is cleared at the start of the instruction."""
    code = armed(".here", EXECUTED) + resumed() + f".here: {event}\nnop"
    _, built = events(code)
    memory = run(built, State(skip=0, limit=1)).memory
    flags = int.from_bytes(memory[stage.STACK0 - 4 : stage.STACK0], "little")
    assert not flags & x86.RF


def test_a_breakpoint_at_the_handler_of_what_had_rf():
    """The bare machine kept RF until some instruction was done."""
    code = armed(stage.HANDLERS, EXECUTED) + resumed() + ".here: ud2"
    found, _ = events(code, skip=2)
    assert [what for what, *_ in found[:2]] == ["#UD", "#DB"]


def test_rf_before_what_disarms():
    """RF stayed set for all that came after, under bare."""
    code = f"""
    {armed(".here", EXECUTED)}
    xor eax, eax
    {resumed()}
    .here: mov dr7, eax
    int 60h
    """
    _, built = events(code)
    flags = run(built, State(skip=0, limit=1)).events[0].registers["eflags"]
    assert not flags & x86.RF


@pytest.mark.parametrize("store", ["rcl dword [DATA], 1", "seto [DATA]"])
def test_a_patched_store_by_the_clock(store):
    """The step after an exit translated it before it was looked at."""
    code = armed("DATA", WRITTEN4) + store + "\nnop\nnop"
    (first, *_), _ = events(code, interrupts=CLOCKED)
    assert (first[0], first[2]) == ("#DB", 1)


def test_nothing_shows_the_vmms_tf():
    """The stage's runs went on past the end of a time slice without a look."""
    code = armed("DATA", WRITTEN4) + "pushfd\npopfd\n" * 8 + "pushfd\npop ecx\nint 60h"
    (first, *_), built = events(code)
    assert first[0] == "INT 60h"
    registers = run(built, State(skip=0, limit=1)).events[0].registers
    assert not registers["ecx"] & x86.TF


@pytest.mark.parametrize("code", ["mov eax, dr0", "smsw eax", "rdmsr"])
def test_the_shadow_of_sti_ends_with_what_the_oracle_does_itself(code):
    built = assemble(f"bits 32\nmov ecx, 10h\nsti\n{code}\nnop\nnop\ncli\nhlt")
    for at in range(6):
        state = State(skip=0, limit=1, interrupts=((at, 0x40),))
        assert_equivalent(built, state)


def test_a_far_jump_to_the_same_offset_of_another_segment():
    """A step took it for one that had done nothing, and ran two more."""
    patches = ((stage.GDT + 0xB8, stage.descriptor(0x10, 0xFFFFF, 0x9A)),)
    code = f"jmp 0xb8:{stage.CODE:#x}\ntimes 16 - 7 nop\nint1"
    (first, *_), _ = events(code, patches=patches)
    assert first[0] == "#DB"


def test_a_stepped_far_jump_to_itself_in_another_segment():
    """The bare machine took it for not done, and left the accessed bit of CS clear."""
    built = assemble(f"bits 32\njmp 0x78:{stage.CODE:#x}")
    assert_equivalent(built, State(flags=x86.TF, skip=1))


@pytest.mark.parametrize(
    "code",
    [
        "times 15 db 66h\nnop",  # too long
        "db 0fh, 0ffh",  # none
    ],
)
def test_a_breakpoint_comes_before_decoding(code):
    """Vol. 3A table 6-2: code breakpoints before faults of fetch and decoding."""
    (first, *_), _ = events(armed(".here", EXECUTED) + f".here: {code}")
    assert first[0] == "#DB"


def test_a_breakpoint_comes_before_the_fetch():
    (first, *_), _ = events(armed(0x300000, EXECUTED) + "jmp 300000h", paging=True)
    assert first[0] == "#DB"


def test_a_data_breakpoint_comes_before_the_next_fetch():
    """The bare machine lost it."""
    code = armed(stage.STACK0 - 4, WRITTEN4) + "call 300000h"
    found, _ = events(code, paging=True)
    assert [what for what, *_ in found[:2]] == ["#DB", "#PF"]


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_movq_from_memory_writes_nothing(technique):
    code = f"""
    bits 32
    org {stage.CODE:#x}
    DATA equ {stage.DATA:#x}
    mov eax, {x86.CR4_OSFXSR}
    mov cr4, eax
    {armed("DATA", WRITTEN4)}
    movq xmm0, [DATA]
    int 60h
    cli
    hlt
    """
    start = State(skip=0, limit=NEAR)
    outcome = run(assemble(code), start, technique, cpu="pentium4")
    assert outcome.events[0].what == "INT 60h"


def test_an_interrupt_before_what_breaks(monkeypatch):
    """Its handler was taken for what breaks, if a shadow fill had come between."""
    code = armed("DATA", WRITTEN4) + "sti\nnop\nmov [DATA], eax\nnop\ncli\nhlt"
    built = assemble(f"bits 32\norg {stage.CODE:#x}\nDATA equ {stage.DATA:#x}\n{code}")
    line = Line()
    filled = ShadowMmu.miss

    def miss(mmu, gva, error):
        line.intr |= gva == stage.DATA and not line.taken
        return filled(mmu, gva, error)

    monkeypatch.setattr(ShadowMmu, "miss", miss)
    monkeypatch.setattr(import_module("emu86.testing.run"), "Line", lambda _: line)
    outcome = run(built, State(paging=True, skip=0, limit=4))
    found = [(event.what, event.registers["dr6"] & 15) for event in outcome.events]
    assert found == [("INT 21h", 0), ("#DB", 1)]


class Line:
    """An interrupt line that is asked once."""

    intr = taken = due = False

    def acknowledge(self):
        self.intr, self.taken = False, True
        return 0x21
