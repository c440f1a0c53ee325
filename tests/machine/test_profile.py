"""Where a guest's time goes: counts add up, functions are named, no guest sees it."""

from collections import Counter
from dataclasses import replace

import pytest

from emu86 import ConfigError, Machine, images
from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.machine.profile import _EVERY
from support.elf import elf
from support.flat import flat, guest64
from support.watched import boot, counted

# f calls g, both with frame pointers. g runs 3 times as much code as h; each of its
# 1,000 rounds has a CLI and an RDTSC.
NESTED = """
    call f
    call h
    mov eax, 9
    jmp fin
align 4096, nop
f:  push ebp
    mov ebp, esp
    mov ecx, 1000
.again:
    call g
    loop .again
    pop ebp
    ret
align 64, nop
g:  push ebp
    mov ebp, esp
    cli
    rdtsc
    mov edx, 300
.spin:
    dec edx
    jnz .spin
    pop ebp
    ret
align 64, nop
h:  mov edx, 100000
.spin:
    dec edx
    jnz .spin
    ret
align 64, nop
end_of_h:
"""
SYMBOLS = b"""\
00100000 T start
00101000 T f
00101040 t g
00101080 T h
001010c0 D end_of_h
"""


def by_reason(spent):
    found = Counter()
    for row in spent:
        if row.reason:
            found[row.reason] += row.count
    return dict(found)


def told(profile):
    """All that must be the same in each run."""
    return [replace(row, host_ns=0) for row in profile.spent()], profile.folded()


@pytest.mark.parametrize(
    ("image", "append", "technique"),
    [
        ("teach", "script", "patch"),
        ("teach", "script", "iopl"),
        ("exits", "200", "patch"),
        ("exits", "200", "trap"),
        ("spin", "2", "patch"),
    ],
)
@pytest.mark.not_quick
def test_the_guest_runs_as_without_a_profile(image, append, technique):
    _, _, expected = boot(image, append, technique=technique)
    profile, machine, found = boot(image, append, Machine.profile, technique=technique)
    assert found == expected
    assert by_reason(profile.spent()) == counted(machine)
    again, _, _ = boot(image, append, Machine.profile, technique=technique)
    assert told(again) == told(profile)


def test_functions_and_their_exits():
    machine = flat(NESTED, "local")
    profile = machine.profile(SYMBOLS)
    assert machine.run(timeout=120).code == 9
    spent = profile.spent()
    native = abilities().native
    exits = {(row.place, row.reason, row.native): row for row in spent if row.reason}
    assert exits["g", "RDTSC", native].count == 1000
    assert {key[0] for key in exits if key[1] == "CLI"} == {"g"}
    assert sum(exits[key].count for key in exits if key[1] == "CLI") == 1000
    assert exits["g", "CLI", native].count >= 990  # the first ones are always Python's
    own = {row.place: row.count for row in spent if not row.reason}
    assert own["g"] == pytest.approx(3 * own["h"], abs=3)
    lines = dict(line.rsplit(" ", 1) for line in profile.folded().splitlines())
    assert int(lines["ring 0;start;f;g"]) >= 0.9 * own["g"] > 5
    assert int(lines["ring 0;h"]) == own["h"]  # without a frame pointer, no callers
    how = "compiled" if native else "Python"
    assert int(lines[f"ring 0;start;f;g;CLI, {how}"]) > 1


FEW = NESTED.replace("1000", "50").replace("300", "20")


@pytest.mark.parametrize(
    "can", [None, abilities().reference(), Abilities.none()], ids=["all", "ref", "none"]
)
def test_whoever_handles_an_exit(can):
    plain = flat(FEW, "local", abilities=can)
    assert plain.run(timeout=120).code == 9
    machine = flat(FEW, "local", abilities=can)
    profile = machine.profile(SYMBOLS)
    assert machine.run(timeout=120).code == 9
    assert (machine.now, counted(machine)) == (plain.now, counted(plain))
    assert by_reason(profile.spent()) == counted(machine)
    for row in profile.spent():
        timed = bool(row.reason) and not row.native
        assert bool(row.host_ns) == timed, row
    assert not can or not any(row.native for row in profile.spent())


def test_time_adds_up():
    """Exits to the nanosecond; the code between them to some samples."""
    machine = flat(NESTED, "local")
    profile = machine.profile(SYMBOLS)
    machine.run(timeout=120)
    total = sum(row.virtual_ns for row in profile.spent())
    assert total == pytest.approx(machine.now, abs=3 * _EVERY // 4)
    exits = sum(row.virtual_ns for row in profile.spent() if row.reason)
    assert exits == 1000 * 500 + sum(
        1000 * count for reason, count in counted(machine).items() if reason != "RDTSC"
    )


def test_time_that_is_skipped_is_nobodys():
    """The guest is halted until its timer's interrupt, and has done nothing."""
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("teach"), append="script")
    profile = machine.profile()
    machine.run(timeout=300)
    ran = sum(row.virtual_ns for row in profile.spent())
    assert ran < machine.now / 2
    samples = sum(int(line.rsplit(" ", 1)[1]) for line in profile.folded().splitlines())
    assert samples == pytest.approx(ran * 4 / _EVERY, abs=3 + samples / 50)


def test_what_is_no_frame_pointer_is_not_followed():
    machine = flat("mov ebp, 0xfffffffd\nmov ecx, 200000\nl: loop l\njmp fin", "local")
    profile = machine.profile()
    machine.run(timeout=120)
    (line,) = profile.folded().splitlines()
    assert line.startswith("ring 0;page 00100000h ")


def test_a_stack_that_is_mapped_otherwise_since_a_switch():
    """Which compiled code has done, and Python has not heard of."""
    body = """
        mov ebx, 0x8f000
        mov dword [PT + 4 * 0x8f], 0x8f067
        invlpg [ebx]
        mov dword [PT2 + 4 * 0x8f], 0x30f067
        mov edi, PD
        mov esi, PD2
        mov ebp, 7
    .switch:
        xchg edi, esi
        mov cr3, edi
        sub esp, 40  ; the other page has frames of before
        call f
        dec ebp
        jnz .switch
    """
    machine = flat((body + NESTED).replace("cli", "nop"), "global")
    profile = machine.profile(SYMBOLS)
    assert machine.run(timeout=120).code == 9
    assert not abilities().native or machine.vmm.engine.shared.count_switched
    own = sum(
        row.count for row in profile.spent() if (row.place, row.reason) == ("g", "")
    )
    lines = dict(line.rsplit(" ", 1) for line in profile.folded().splitlines())
    assert int(lines["ring 0;start;f;g"]) >= 0.9 * own > 5


def test_64_bit_code_in_the_upper_half():
    """Its addresses, and its frames, have 64 bits."""
    high = 511 << 39
    machine = guest64(f"""
        mov qword [0x1ff8], 0x2003  ; PML4E 511 is PML4E 0
        mov rsp, {high - (1 << 48) + 0x90000}
        mov rax, {high - (1 << 48)} + start
        jmp rax
        align 4096, nop
    start:
        mov edi, 20
    .again:
        call f
        dec edi
        jnz .again
        cli
        hlt
        align 4096, nop
    f:  push rbp
        mov rbp, rsp
        mov rax, {high - (1 << 48)} + g
        call rax
        pop rbp
        ret
        align 4096, nop
    g:  push rbp
        mov rbp, rsp
        mov rax, cr4
        mov ecx, 20000
    .spin:
        loop .spin
        pop rbp
        ret
        """)
    profile = machine.profile()
    assert machine.run(timeout=60).reason == "halted"
    start, f, g = (f"page FFFFFF80{at:08X}h" for at in (0x101000, 0x102000, 0x103000))
    rows = {(row.place, row.reason): row.count for row in profile.spent()}
    assert rows[g, "MOV from CR"] == 20
    assert rows[g, ""] > 5
    lines = dict(line.rsplit(" ", 1) for line in profile.folded().splitlines())
    assert int(lines[f"ring 0;{start};{f};{g}"]) == rows[g, ""]


def test_a_user_program_by_its_pages():
    profile, _, _ = boot("teach", "script", Machine.profile)
    users = [row for row in profile.spent() if row.ring == 3]
    assert {"page 40000000h"} <= {row.place for row in users}
    assert not profile.known


def test_a_stop_from_another_side_is_not_lost():
    """Stops that are asked for between two samples end the run as ever."""
    machine = flat("l: cli\nrdtsc\njmp l", "local")
    profile = machine.profile()
    assert machine.run(timeout=0.2).reason == "timeout"
    machine.stop()
    assert machine.run(timeout=60).reason == "interrupted"
    assert by_reason(profile.spent()) == counted(machine)


def test_a_name_is_a_part_of_a_line():
    strange = "a;b c\n\x1b[2J"
    machine = flat("mov ecx, 200000\nl: loop l\njmp fin", "local")
    profile = machine.profile(elf([(strange, 0x100000, 0x1000, 2, 1)]))
    machine.run(timeout=120)
    (line,) = profile.folded().splitlines()
    assert line.startswith("ring 0;a?b?c??[2J ")
    assert line.rpartition(" ")[2].isdecimal()


def test_through_resets():
    machine = flat(NESTED, "local")
    profile = machine.profile(SYMBOLS)
    machine.run(timeout=120)
    once = by_reason(profile.spent())
    machine.reset()
    machine.run(timeout=120)
    assert by_reason(profile.spent()) == counted(machine)
    assert by_reason(profile.spent())["RDTSC"] == 2 * once["RDTSC"]


def test_what_cannot_be_profiled():
    with pytest.raises(ConfigError, match="bare runs one instruction at a time"):
        Machine(technique="bare").profile()
    machine = Machine()
    with pytest.raises(ConfigError, match=r"symbols: /nonexistent/x: "):
        machine.profile("/nonexistent/x")
    machine.profile()
    with pytest.raises(ConfigError, match="has a profile already"):
        machine.profile()
    with pytest.raises(TypeError, match="symbols"):
        Machine().profile(7)
