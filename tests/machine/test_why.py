"""`Machine.why_fault`: the walk, what refused, the rule, what it would need."""

import pytest

from emu86 import ConfigError, Machine
from support.flat import flat, guest, guest64


def ran(body):
    machine = flat(body, "local")
    machine.run(timeout=60)
    return machine


def test_what_is_not_mapped():
    why = ran("mov [0x800000], eax").why_fault()
    (walk,) = why.walks
    assert walk.asked == (
        "a write of 00800000 by the kernel, by 32-bit paging, CR4.PSE"
    )
    assert [(one.name, one.refused) for one in walk.steps] == [
        ("CR3", False), ("PDE 2", True),
    ]  # fmt: skip
    assert walk.steps[1].at == 0x200008
    assert "P clear" in walk.rule
    assert walk.wanted == "P (bit 0) set in the PDE 2 at 00200008"
    assert why.faults[0].startswith("#PF(2) at 0010:")


@pytest.mark.parametrize(
    ("entry", "error", "name", "wanted"),
    [
        (0x80005, 2, "PTE 128", "RW (bit 1) set"),
        (0x80003, 4, "PTE 128", "US (bit 2) set"),
        (0x80002, 0, "PTE 128", "P (bit 0) set"),
        (0x80007, 6, "", ""),
    ],
)
def test_which_entry_refuses(entry, error, name, wanted):
    machine = ran(f"mov dword [PT + 4 * 0x80], {entry}\nmov eax, 1\njmp fin")
    (walk,) = machine.why_fault(0x80000, error).walks
    refused = [one.name for one in walk.steps if one.refused]
    assert refused == ([name] if name else [])
    assert walk.wanted.startswith(wanted)
    assert bool(walk.rule) == bool(name)


def test_reserved_bits_and_large_pages():
    machine = ran("mov dword [PD + 8], 0x801083\nmov eax, 1\njmp fin")
    (walk,) = machine.why_fault(0x800000).walks
    assert walk.wanted == "bits 1000 clear in the PDE 2 at 00200008"
    assert "reserved" in walk.rule


def test_four_levels():
    machine = guest64(
        "lidt [rel nothing]\nmov rbx, 0x4000000000\nmov rax, [rbx]\nnothing: dw 0\ndq 0"
    )
    assert machine.run(timeout=60).reason == "triple fault"
    walk = machine.why_fault().walks[0]
    assert [one.name for one in walk.steps] == ["CR3", "PML4E 0", "PDPTE 256"]
    assert walk.steps[-1].refused


def test_a_chain():
    machine = guest(
        "mov esp, 0x90000\nlidt [0x180000]\nmov eax, 0x100\nmov ds, eax\njmp $"
    )
    assert machine.run(timeout=60).reason == "triple fault"
    why = machine.why_fault()
    assert [walk.wanted for walk in why.walks] == [
        "a limit of 107h at least in GDTR",
        "a limit of 6Fh at least in IDTR",
        "a limit of 47h at least in IDTR",
    ]
    assert str(why).startswith("#GP(100h) at 0010:00100011 mov ds, ax: ")
    assert str(why).splitlines()[0].endswith(" → shutdown")


def test_a_descriptor():
    body = "mov dword [0x1000 + 0x20], 0xffff\nmov dword [0x1000 + 0x24], 0xcf1200\n"
    setup = "lidt [0x180000]\nlgdt [where]\n"
    end = "mov eax, 0x20\nmov ds, eax\nwhere: dw 0x27\ndd 0x1000"
    machine = guest(setup + body + end)
    assert machine.run(timeout=60).reason == "triple fault"
    walk = machine.why_fault().walks[0]
    assert walk.steps[-1].words == "data, DPL 0, P clear"
    assert walk.wanted == "P (bit 47) set"


def test_pictures():
    why = ran("mov [0x800000], eax").why_fault()
    page = why._repr_html_()
    assert page.count("<rect") == 2
    assert page.count("#d00") == 1
    assert "It would need P (bit 0)" in page


def test_looking_changes_nothing():
    machines = [ran("mov [0x800000], eax") for _ in range(2)]
    str(machines[0].why_fault())
    assert machines[0].save() == machines[1].save()


def test_without_a_fault():
    machine = guest("cli\nhlt")
    machine.run(timeout=60)
    assert str(machine.why_fault()) == "the guest has had no fault"
    assert "no fault" in machine.why_fault()._repr_html_()
    assert "tables allow" in str(machine.why_fault(0x100000))
    with pytest.raises(ValueError, match="address"):
        machine.why_fault(1 << 32)
    with pytest.raises(ConfigError, match="no guest"):
        Machine().why_fault()
