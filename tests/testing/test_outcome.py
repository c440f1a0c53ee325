"""Outcomes: what is seen of a run, and that a difference is told."""

from dataclasses import replace
from functools import partial

import pytest

from emu86.spec import x86
from emu86.testing import State, assert_equivalent, differences, run, stage
from emu86.testing import strategies as guests
from support.assembler import assemble


def program(code):
    return assemble(f"bits 32\norg {stage.CODE:#x}\n{code}")


# Under `trap` a kernel reads the VMM's own GDTR.
SGDT = program(f"nop\nsgdt [{stage.DATA}]\nnop\nhlt")


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl", "trap"])
def test_what_a_run_shows(technique):
    outcome = run(
        program("mov eax, 7\nout 0x80, al\nint 0x80\ncli\nhlt"), State(), technique
    )
    assert outcome.end == "halted"
    assert [str(event) for event in outcome.events] == [
        "OUT8 80h 7h", "INT 80h at 8h:00040009",
    ]  # fmt: skip
    assert outcome.registers["eax"] == 7
    assert outcome.memory[stage.CODE] == 0xB8


@pytest.mark.parametrize("technique", ["bare", "patch"])
def test_a_program_that_runs_on(technique):
    outcome = run(program("jmp $"), State(), technique)
    assert (outcome.end, outcome.events) == ("budget", ())


@pytest.mark.parametrize("technique", ["bare", "patch"])
def test_a_program_without_an_idt(technique):
    code = f"mov word [{stage.DATA}], 0\nlidt [{stage.DATA}]\nud2"
    assert run(program(code), State(), technique).end == "triple fault"


def test_the_same_program_gives_the_same_outcome():
    code = program("mov ecx, 100\nl: push eax\npop ebx\nloop l\nint 0x80\nhlt")
    assert run(code) == run(code)


@pytest.mark.parametrize(
    "field",
    [{"ring": 4}, {"skip": 300}, {"limit": -1}, {"flags": -1}, {"at": 1 << 31},
     {"registers": {"esp": 1}}, {"patches": ((0x200000, b"1"),)}, {"cr0": -1},
     {"cr4": 1 << 40}, {"registers": {"eax": -1}}, {"gdt": -5}, {"idt": 1 << 33},
     {"tr": -8}, {"ldtr": 1 << 20}, {"interrupts": ((1, 256),)},
     {"interrupts": ((1,),)}, {"interrupts": 5}, {"interrupts": ((-1, 3),)},
     {"registers": None}, {"patches": ((0, "abc"),)}, {"patches": (0, b"abc")},
     # No int in a range is looked for one by one.
     {"limit": "2"}, {"cr4": 2.5}, {"registers": {"eax": "2"}}, {"paging": "no"},
     {"large": 1}],
)  # fmt: skip
def test_a_state_that_no_stage_can_have(field):
    (name,) = field
    with pytest.raises(
        ValueError,
        match=rf"^{name}: .* is not \w",
    ):
        State(**field)


@pytest.mark.parametrize(
    "field",
    [{"at": stage.BOOT}, {"at": stage.STACK0 - 4}, {"gdt": stage.BOOT},
     {"idt": stage.IDT - 8}],
)  # fmt: skip
def test_a_place_that_the_stage_has_itself(field):
    with pytest.raises(ValueError, match="is not a free place on the stage"):
        State(**field)


def test_segments_of_virtual_8086_mode_begin_at_multiples_of_16():
    flags = x86.VM | x86.FLAGS_FIXED
    assert run(b"\x66\x0f\x0b", State(flags=flags, at=stage.CODE + 16, limit=1)).events
    with pytest.raises(ValueError, match="at: 0x40001 is no multiple of 16"):
        State(flags=flags, at=stage.CODE + 1)


@pytest.mark.parametrize(
    ("size", "state"),
    [
        (0x100000, State()),
        (0x11, State(at=stage.IDT - 0x10)),
        (0x11, State(gdt=stage.CODE + 0x10)),
    ],
)
def test_a_program_that_does_not_fit(size, state):
    with pytest.raises(ValueError, match="are not on the stage, or not free there"):
        run(b"\x90" * size, state)


def test_a_cpu_model_that_has_not_the_mode():
    told = "cpu: pentium3 has no 64-bit mode, and the state's is 'long'"
    with pytest.raises(ValueError, match=told):
        run(b"\xf4", State(mode="long"), cpu="pentium3")


@pytest.mark.parametrize("at", [0x1000, stage.IDT - 2, stage.STACK3, stage.MEMORY - 2])
def test_places_for_a_program(at):
    assert run(b"\xfa\xf4", State(at=at)).end == "halted"


@pytest.mark.parametrize(
    "strategy", [guests.operands, guests.operands16, partial(guests.encoded, b"\x89")]
)
def test_a_reg_field_that_there_is_not(strategy):
    with pytest.raises(ValueError, match="reg: 9 is no field of 3 bits"):
        strategy(9)


def test_an_unknown_technique():
    with pytest.raises(ValueError, match="no 'magic'"):
        run(b"\xf4", State(), "magic")


def test_differences_are_told():
    one = run(program("mov eax, 1\nint 0x80\ncli\nhlt"), State(), "bare")
    assert list(differences(one, one)) == []
    event = one.events[0]
    other = replace(
        one, events=(replace(event, registers=event.registers | {"eax": 3}),)
    )
    assert "eax: 00000001, but 00000003 (bits 00000002)" in "\n".join(
        differences(one, other)
    )
    assert list(differences(one, replace(one, events=()))) == [
        "bare alone has INT 80h at 8h:00040007"
    ]
    assert list(differences(one, replace(one, end="triple fault"))) == [
        "bare ended: halted; bare: triple fault"
    ]
    memory = b"\1" + one.memory[1:]
    assert list(differences(one, replace(one, memory=memory))) == [
        "  [00000000]: CCCCCCCC, but CCCCCC01"
    ]
    flags = replace(
        one, registers=one.registers | {"eflags": one.registers["eflags"] ^ 0x1000}
    )
    assert list(differences(one, flags))
    assert not list(differences(one, flags, hidden=0x3000))


def test_a_broken_technique_is_told_from_its_first_instruction():
    with pytest.raises(AssertionError) as told:
        assert_equivalent(
            program(
                "mov ecx, 5\nsmsw eax\nsti\npush 2\npopf\npushf\npop eax\ncli\nhlt"
            ),
            techniques=("patch", "trap"),
        )
    text = str(told.value)
    assert text.startswith("trap is not bare:")
    assert "they part after the instruction at 8h:0004000B" in text
    assert "popfd" in text
    assert text.count("^") == 1


def test_a_technique_alone_may_stand_for_several():
    assert_equivalent(b"\xfa\xf4", techniques="patch")
    with pytest.raises(AssertionError, match="trap is not bare"):
        assert_equivalent(SGDT, techniques="trap")


@pytest.mark.parametrize("techniques", [(), "", ("bare",), "magic", ("patch", "bare")])
def test_techniques_that_say_nothing(techniques):
    with pytest.raises(
        ValueError, match="techniques: one or more of trap, patch, iopl"
    ):
        assert_equivalent(b"\xf4", techniques=techniques)


def test_a_state_that_is_none():
    with pytest.raises(TypeError, match="state: 'trap' is of type str, not State"):
        assert_equivalent(b"\xf4", "trap")


@pytest.mark.parametrize("paging", [False, True])
def test_ram_that_parts_is_told_from_its_first_instruction(paging):
    # A load of DS accesses the GDT's page: its accessed bit may be set before, or not.
    code = program(f"mov ds, [{stage.DATA - 4}]\nsgdt [{stage.DATA}]\nnop\nhlt")
    state = State(paging=paging, patches=((stage.DATA - 4, b"\x10\0"),))
    with pytest.raises(AssertionError) as told:
        assert_equivalent(code, state, "trap")
    text = str(told.value)
    where = "8h:00040006"
    assert f"they part after the instruction at {where}:\n  RAM is not the same" in text
    assert f"[{stage.DATA:08X}]: " in text


def test_the_instruction_is_looked_for_when_it_is_printed(monkeypatch):
    looked = []
    monkeypatch.setattr(
        "emu86.testing.equivalence.parting", lambda *_: looked.append(1) or ["here"]
    )
    with pytest.raises(AssertionError) as told:
        assert_equivalent(SGDT, techniques="trap")
    assert not looked
    assert "here" in str(told.value)
    assert str(told.value) == str(told.value)
    assert len(looked) == 1
