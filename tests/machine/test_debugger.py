"""Breakpoints and steps of the library: they stop the guest, which cannot tell."""

import hashlib

import pytest

from emu86 import ConfigError, Machine, images
from support.flat import flat, guest, guest64

TECHNIQUES = ("patch", "trap", "iopl")


def ends(machine):
    """Run to the end; how that was, and all that the guest has left."""
    hits = []
    while (stop := machine.run(timeout=120)).reason == "breakpoint":
        assert stop.address == machine.registers["cs_base"] + eip(machine)
        hits.append(stop.address)
    exits = {name: one.count for name, one in machine.stats.exits.items()}
    left = hashlib.sha256(machine._ram.bytes).hexdigest()
    return hits, (stop.reason, stop.code, machine.now, exits, left)


def eip(machine):
    registers = machine.registers
    return registers.get("eip", registers.get("rip"))


def teach():
    machine = Machine(memory=16 << 20)
    machine.load_kernel(str(images.path("teach")), append="script")
    return machine


@pytest.mark.not_quick
def test_breakpoints_change_nothing_that_the_guest_can_see():
    _, plain = ends(teach())
    unhit = teach()
    for at in range(0x40000001, 0x40000100):
        unhit.debugger.break_at(at, physical=True)
    unhit.debugger.break_at(0xDEADBEEF)
    assert ends(unhit) == ([], plain)
    hit = teach()
    for at in (0x100530, 0x1005C5, 0x100540):  # a system call, the IRET, a loop
        hit.debugger.break_at(at)
    hits, seen = ends(hit)
    assert len(hits) > 50
    assert (seen[:2], seen[4]) == (plain[:2], plain[4])


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("insn", ["inc eax", "cli", "popf", "smsw eax", "int3", "hlt"])
def test_every_kind_of_instruction_can_be_stopped_at(insn, technique):
    body = f"""
        gate 3, back
        mov ecx, 3
    again:
        push 2
        push 2
        {"cli" if insn == "hlt" else "nop"}
        jmp here
        align 16
    here:
        {insn}
        lea esp, [esp + 4]
        loop again
        mov eax, 7
        jmp fin
    back:
        iret
    """
    machine = flat(body, technique=technique)
    data = machine.read_physical(0x100000, 0x1000)
    here = 0x100000 + data.index(bytes.fromhex("8d642404"))
    here -= {"smsw eax": 3}.get(insn, 1)
    machine.debugger.break_at(here)
    machine.debugger.break_at(here, physical=True)
    hits, (reason, number, *_) = ends(machine)
    if insn == "hlt":
        assert (hits, reason) == ([here], "halted")
    else:
        assert (hits, reason, number) == ([here] * 3, "debug exit", 7)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_an_instruction_behind_sti_can_be_stopped_at(technique):
    body = "mov ecx, 3\nagain: sti\nnop\ncli\nloop again\nmov eax, 7\njmp fin"
    machine = flat(body, technique=technique)
    at = 0x100000 + machine.read_physical(0x100000, 0x1000).index(b"\xfb\x90\xfa")
    machine.debugger.break_at(at + 1)
    hits, (_, number, *_) = ends(machine)
    assert (hits, number) == ([at + 1] * 3, 7)


def test_code_that_comes_later_is_stopped_in():
    """A breakpoint outlives what stands there: it is in no byte of the guest's."""
    body = """
        mov edi, 0x300000
        mov dword [edi], 0xc340
        call edi
        mov dword [edi], 0xc390c342
        call edi
        jmp fin
    """
    machine = flat(body)
    machine.debugger.break_at(0x300000)
    assert ends(machine)[0] == [0x300000] * 2


def test_linear_ones_are_in_every_address_space_physical_ones_at_every_address():
    body = """
        mov dword [0x300000], 0xc3c340
        mov dword [PT + 4 * 0x301], 0x300067
        mov dword [PT2 + 4 * 0x301], 0x302067
        mov dword [0x302000], 0xc3c340
        mov ebx, 0x301000
        call ebx
        mov eax, PD2
        mov cr3, eax
        call ebx
        jmp fin
    """
    for physical, at, wanted in (
        (False, 0x301000, [0x301000] * 2),
        (True, 0x300000, [0x301000]),
        (False, 0x300000, []),
    ):
        machine = flat(body, paging="local")
        machine.debugger.break_at(at, physical=physical)
        assert ends(machine)[0] == wanted


def test_a_breakpoint_in_the_middle_of_an_instruction_does_nothing():
    machine = flat("mov eax, 7\njmp fin")
    at = 0x100000 + machine.read_physical(0x100000, 0x1000).index(b"\xb8\7\0\0\0")
    for inside in range(1, 5):
        machine.debugger.break_at(at + inside)
    hits, (_, number, *_) = ends(machine)
    assert (hits, number) == ([], 7)


def test_one_that_is_set_or_removed_while_the_guest_is_stopped():
    machine = guest("mov ecx, 6\nagain: nop\nnop\nloop again\ncli\nhlt")
    debugger = machine.debugger
    debugger.break_at(0x100005)
    assert machine.run().address == 0x100005
    debugger.break_at(0x100006)
    assert machine.run().address == 0x100006
    debugger.remove(0x100005)
    assert machine.run().address == 0x100006
    debugger.clear()
    assert machine.run().reason == "halted"
    assert machine.registers["ecx"] == 0


def test_real_mode():
    rom = bytearray(0x10000)
    rom[0xFFF0:0xFFF5] = bytes.fromhex("ea 00 80 00 f0")
    rom[0x8000:0x8004] = bytes.fromhex("40 43 eb fc")  # inc ax; inc bx; jmp 8000h
    machine = Machine(memory=4 << 20, bios=bytes(rom))
    machine.debugger.break_at(0xF8001)
    for count in range(3):
        assert machine.run(timeout=60).address == 0xF8001
        assert machine.registers["eax"] & 0xFFFF == count + 1
        assert machine.registers["ebx"] & 0xFFFF == count
    assert machine.step().reason == "step"
    assert machine.registers["eip"] == 0x8002


def test_64_bits():
    machine = guest64("mov ecx, 3\nagain: inc rax\nloop again\ncli\nhlt")
    machine.debugger.break_at(0x100005)
    hits, (reason, *_) = ends(machine)
    assert (hits, reason) == ([0x100005] * 3, "halted")


def test_steps():
    machine = guest("mov eax, 1\nmov ecx, 2\nrep stosb\njmp $")
    machine.set_register("edi", 0x300000)
    assert machine.step(2).reason == "step"
    assert machine.registers["ecx"] == 2
    machine.step()
    assert machine.registers["ecx"] == 1
    machine.step(2)
    at = machine.registers["eip"]
    machine.step(5)
    assert machine.registers["eip"] == at  # JMP to itself


def test_a_step_of_what_faults_ends_in_its_handler():
    machine = flat("gate 14, there\nmov eax, [0x800000]\nthere: jmp fin", "local")
    data = machine.read_physical(0x100000, 0x1000)
    at = 0x100000 + data.index(bytes.fromhex("a1 00 00 80 00"))
    machine.debugger.break_at(at)
    assert machine.run().address == at
    assert machine.step().reason == "step"
    assert machine.registers["eip"] == at + 5
    assert machine.registers["cr2"] == 0x800000


def test_what_is_watched_stays_so_when_the_state_is_saved():
    machine = guest("again: inc dword [0x300000]\njmp again")
    machine.debugger.watch(0x300000)
    for count in range(1, 4):
        assert machine.run(timeout=60).reason == "watchpoint"
        assert machine.read_physical(0x300000, 1) == bytes([count])
        machine.save()


def test_a_state_has_no_breakpoints():
    machine = guest("again: nop\njmp again")
    machine.debugger.break_at(0x100000)
    assert machine.run().reason == "breakpoint"
    other = Machine.restore(machine.save())
    assert other.run(timeout=0.01).reason == "timeout"
    assert machine.run(timeout=60).reason == "breakpoint"


def test_mistakes():
    machine = guest("hlt")
    with pytest.raises(ValueError, match="none at linear address 0x5"):
        machine.debugger.remove(5)
    with pytest.raises(ValueError, match="address"):
        machine.debugger.break_at(-1)
    with pytest.raises(ValueError, match="no RAM at 0x40000000"):
        machine.debugger.watch(0x40000000)
    with pytest.raises(ValueError, match="none of 4 bytes"):
        machine.debugger.unwatch(0x300000)
    with pytest.raises(ValueError, match="count"):
        machine.step(0)
    with pytest.raises(ConfigError, match="bare"):
        _ = guest("hlt", technique="bare").debugger


@pytest.mark.parametrize("technique", ["patch", "iopl"])
@pytest.mark.parametrize(
    "write",
    [
        "mov [ebx], ebp", "xchg [ebx], ebp", "lock cmpxchg8b [ebx]", "sgdt [ebx]",
        "lea esp, [ebx + 4]\npushf", "lea esp, [ebx + 4]\nint 3", "smsw [ebx]",
        "lea esp, [ebx + 4]\npush ebp",
        "mov edi, ebx\nmov ecx, 9\nmov al, 5\nrep stosb",
        "lea esp, [ebx + 4]\ncall there\nthere:",
    ],
)  # fmt: skip
def test_what_changes_bytes_is_stopped_behind(technique, write):
    body = f"""
        gate 3, after
        mov ebx, 0x300000
        mov ebp, 0x12345
        mov eax, 0
        mov edx, 0
        mov ecx, 1
        mov [ebx + 100], ebp
        jmp here
    here:
        {write}
    after:
        mov esp, 0x90000
        mov [ebx + 200], ebp
        mov eax, [ebx]
        mov eax, 7
        jmp fin
    """
    machine = flat(body, technique=technique, paging="local")
    debugger = machine.debugger
    debugger.watch(0x300000)
    seen = []
    while (stop := machine.run(timeout=60)).reason == "watchpoint":
        assert stop.address == 0x300000
        seen.append(machine.read_physical(0x300000, 4))
    assert (stop.reason, stop.code) == ("debug exit", 7)
    assert len(seen) == len(set(seen))
    assert 1 <= len(seen) <= 4
    if (technique, "pushf" in write) == ("iopl", True):
        return  # that PUSHF shows IOPL 1 when it runs by itself
    other = flat(body, technique=technique, paging="local")
    assert other.run(timeout=60).code == 7
    left = other.read_physical(0x300000, 256)
    assert left == machine.read_physical(0x300000, 256)


def test_a_page_table_entry_that_is_watched():
    body = """
        mov dword [PT + 4 * 0x320], 0x300067
        mov eax, [0x320000]
        mov dword [PT + 4 * 0x321], 0
        mov dword [PT + 4 * 0x320], 0x302067
        jmp fin
    """
    machine = flat(body, paging="local")
    machine.debugger.watch(0x201000 + 4 * 0x320, physical=True)
    values = []
    while machine.run(timeout=60).reason == "watchpoint":
        values.append(machine.read_physical(0x201000 + 4 * 0x320, 4).hex())
    assert values[-2:] == ["67003000", "67203000"]
