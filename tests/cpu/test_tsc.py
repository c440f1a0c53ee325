"""The time-stamp counter is virtual time."""

from itertools import pairwise

import pytest

from emu86 import Machine
from emu86.cpu.library import Abilities
from emu86.native import abi
from emu86.testing import run
from emu86.testing.stage import State
from support.assembler import assemble
from support.cases import TECHNIQUES, Case, image, machine, on_emu86

GET = "rdtsc\nmov [SCRATCH + {}], eax\nmov [SCRATCH + {}], edx\n"


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("ring", [0, 3])
def test_it_goes_on(technique, ring):
    code = "".join(GET.format(8 * i, 8 * i + 4) + "nop\n" * 50 for i in range(8))
    (record,) = on_emu86((Case("RDTSC", code, ring),), options=TECHNIQUES[technique])
    times = [record.scratch[2 * i] | record.scratch[2 * i + 1] << 32 for i in range(8)]
    assert all(a < b for a, b in pairwise(times))
    assert times[-1] < 1_000_000_000


def test_it_is_the_machines_time():
    built = Machine(memory=2 << 20, debug_exit=True)
    built.load_flat(
        assemble(
            "bits 32\nmov ecx, 90000\nloop $\nrdtsc\nmov ebx, eax\nout 0xf4, al\njmp $"
        ),
        0x100000,
    )
    built.run(timeout=120)
    told = built.registers["ebx"]
    assert 40_000 < told <= built.now
    assert built.now - told < 20_000


@pytest.mark.parametrize("abilities", [None, Abilities.none()])
def test_it_goes_at_the_rate_of_virtual_time(abilities):
    """Compiled, and in Python."""
    built = Machine(memory=2 << 20, abilities=abilities)
    built.load_flat(assemble("bits 32\nrdtsc\nmov ebx, eax\nrdtsc\nl: jmp l"), 0x100000)
    clock = built.vmm.clock
    clock.advance_to(1_000_000)
    clock.rate = 7.5
    clock.set_tsc(5_000)
    clock.run_on(20_000)
    built.vmm.run()
    first, second = built.registers["ebx"], built.registers["eax"]
    assert second - first == 500 * abi.QUARTERS * 7.5
    assert 5_000 + 500 * abi.QUARTERS * 7.5 <= first < 5_000 + 20_000 * 7.5
    assert clock.now >= 1_000_000 + 20_000 * 7.5


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_tsd(technique):
    """CR4.TSD: #GP(0) outside of ring 0, and the same counter in it."""
    user = (
        "push dword DATA3\npush dword STACK3\npush dword 2\npush dword CODE{0}\n"
        "push .user\niretd\n.user: rdtsc"
    )
    tsd = "mov eax, 4\nmov cr4, eax\n"
    cases = (
        Case("ring 0", tsd + GET.format(0, 4) + GET.format(8, 12)),
        Case("ring 3", tsd + user.format(3)),
        Case("ring 3 without", user.format(3)),
    )
    records = on_emu86(cases, options=TECHNIQUES[technique])
    assert [(r["vector"], r["error"]) for r in records] == [
        (0x40, 0xDEADBEEF), (13, 0), (0x40, 0xDEADBEEF),
    ]  # fmt: skip
    first = records[0].scratch
    assert 0 < first[0] < first[2]
    assert first[1] == first[3] == 0


def test_wrmsr_sets_it():
    """The low half: SDM Vol. 3B section 17.17.3."""
    code = (
        "mov ecx, 0x10\nmov eax, 0x11110000\nmov edx, 0x22\nwrmsr\n"
        + GET.format(0, 4)
        + "mov ecx, 0x10\nrdmsr\nmov [SCRATCH + 8], eax\nmov [SCRATCH + 12], edx"
    )
    (record,) = on_emu86((Case("WRMSR", code),))
    assert 0x11110000 <= record.scratch[0] <= record.scratch[2] < 0x11120000
    assert record.scratch[1] == record.scratch[3] == 0


def test_two_runs_tell_the_same():
    cases = tuple(
        Case(f"{i}", GET.format(0, 4) + "cpuid\n" + GET.format(8, 12)) for i in range(9)
    )
    kernel = image(cases)
    ends = []
    for _ in range(2):
        built = machine(kernel)
        built.run(timeout=120)
        ends.append((built.now, built.read_physical(0x300000, 256 * len(cases))))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("technique", ["trap", "patch", "iopl", "bare"])
def test_rdtscp_is_by_the_guests_clock_and_id(technique):
    state = State(mode="long", ring=0)
    code = """bits 64
        mov ecx, 0xC0000103
        mov eax, 0x77
        xor edx, edx
        wrmsr
        rdtsc
        mov ebx, eax
        rdtscp
        shl rdx, 32
        or rax, rdx
        sub rax, rbx
        hlt
    """
    end = run(assemble(code), state, technique, cpu="skylake")
    assert end.registers["rcx"] == 0x77
    assert end.registers["rax"] < 1_000_000
