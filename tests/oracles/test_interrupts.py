"""Interrupts from outside, and the time that a guest reads, are the bare machine's."""

import pytest

from emu86.testing import State, assert_equivalent, run, stage
from support.assembler import assemble

pytestmark = pytest.mark.not_quick


def program(code):
    return assemble(f"bits 32\norg {stage.CODE:#x}\n{code}")


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_time_is_the_number_of_instructions(technique):
    code = program("mov ecx, 3\nl: loop l\nrdtsc\nsgdt [0x50000]\nrdtsc\nint 0x80")
    event = run(code, State(limit=1, interrupts=()), technique).events[0]
    assert event.registers["eax"] == 600


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_where_interrupts_come(technique):
    code = program("nop\nsti\nnop\nnop\nl: jmp l")
    due = ((1, 0x21), (1, 0x30), (20, 0x22))
    state = State(skip=0, limit=3, interrupts=due)
    events = run(code, state, technique).events
    assert [str(event) for event in events] == [
        "INT 21h at 8h:00040003", "INT 30h at 8h:00040003", "INT 22h at 8h:00040004",
    ]  # fmt: skip


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_an_interrupt_ends_a_halt(technique):
    code = program("sti\nhlt\nrdtsc\ncli\nhlt")
    outcome = run(code, State(skip=0, interrupts=((1000, 0x21),)), technique)
    assert [str(event) for event in outcome.events] == ["INT 21h at 8h:00040002"]
    # The handler has five instructions.
    assert outcome.registers["eax"] == 100 * (1000 + 5 + 1)


def test_a_halt_that_nothing_ends():
    code = program("sti\nhlt")
    for technique in ("bare", "patch"):
        assert run(code, State(interrupts=()), technique).end == "halted"


CASES = {
    "the shadow of STI": "sti\nnop\nnop",
    "STI when IF is set": "sti\nnop\nsti\nnop\nnop",
    "the shadow of MOV SS": "sti\nmov ecx, ss\nmov ss, ecx\nnop\nnop",
    "two loads of SS": "sti\nmov ecx, ss\nmov ss, ecx\nmov ss, ecx\nnop\nnop",
    "a fault in the shadow": "mov ecx, ss\nsti\nmov ss, ecx\nud2\nnop",
    "POPF": "push 0x202\npopf\nnop\nnop",
    "IRET": "push 0x202\npush 8\npush .on\niret\n.on: nop\nnop",
    "a loop": "sti\nmov ecx, 9\n.l: loop .l\nnop",
    "a repeated instruction": "sti\nmov ecx, 9\nmov edi, 0x50000\nrep stosb\nnop\nnop",
    "single steps": "push 0x302\npopf\nnop\nnop\nnop",
    "device memory": "sti\nmov eax, [0x200000]\nnop\nmov [0x200000], eax\nnop",
    "rewritten code": "sti\nmov byte [.x], 0x90\nnop\n.x: nop\nnop\nnop",
    "HLT": "sti\nhlt\nnop\nhlt\nnop",
    "time": "rdtsc\nmov ecx, 0x10\nwrmsr\nsti\nrdtsc\nnop\nrdmsr",
}


@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_before_each_instruction(name, paging):
    built = program(CASES[name])
    # With iopl the engine's own STI casts its shadow even if IF was set.
    techniques = ("patch",) if "IF is set" in name else ("patch", "iopl")
    for due in range(12):
        state = State(paging=paging, interrupts=((due, 0x21), (due + 2, 0x30)))
        assert_equivalent(built, state, techniques)


@pytest.mark.parametrize("paging", [False, True])
def test_an_interrupt_through_a_task_gate(paging):
    state = State(paging=paging, interrupts=((0, 0x81),))
    assert_equivalent(program("sti\nnop"), state)
