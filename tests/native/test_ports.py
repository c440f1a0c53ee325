"""IN, OUT and CPUID in compiled code: nobody can tell, and Python is not asked."""

import pytest

from emu86 import Machine
from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.native import abi
from support.flat import flat

native = pytest.mark.skipif(not abilities().native, reason="no compiled code here")
CANS = None, abilities().reference(), Abilities.none()

# Everything that is read is summed up, so that a wrong byte shows in the registers.
READS = """
    mov al, MODE  ; of counter 2
    out 0x43, al
    in al, 0x61
    or al, 1
    out 0x61, al
    mov al, 0x34
    out 0x42, al
    mov al, 0x12
    out 0x42, al
    mov ebp, 700
again:
    mov edx, 0x3FD
    in al, dx
    add ebx, eax
    mov edx, 0x279
    in al, dx
    out dx, al
    rol ebx, 3
    in al, 0x42
    add ebx, eax
    rol ebx, 3
    in al, 0x80
    add ebx, eax
    inc eax
    out 0x80, al
    mov eax, ebp
    and eax, 3
    push ebx
    cpuid
    pop ebx
    add ebx, edx
    xor eax, eax
    dec ebp
    jnz again
    mov al, 7
    jmp fin
"""
# The time by counter 0, latched and not, as Linux reads it while its timer ticks. Its
# interrupt is masked; that it was asked for is read from the 8259A.
TIMES = """
    mov al, 0x20
    out 0x21, al
    mov al, MODE
    out 0x43, al
    mov al, 0x59
    out 0x40, al
    mov al, 0x02
    out 0x40, al
    mov ebp, 700
again:
    mov eax, ebp
    and al, 0xC0  ; whatever counter, and a read-back
    out 0x43, al
    in al, 0x40
    add ebx, eax
    rol ebx, 3
    in al, 0x40
    add ebx, eax
    rol ebx, 3
    in al, 0x20
    add ebx, eax
    rol ebx, 3
    dec ebp
    jnz again
    mov al, 7
    jmp fin
"""
# A line, a byte at a time, as Linux's early console does.
SENDS = """
    mov esi, text
next:
    mov edx, 0x3FD
    in al, dx
    lodsb
    test al, al
    jz over
    mov edx, 0x3F8
    out dx, al
    jmp next
over:
    mov eax, 5
    jmp fin
text: db "abcabd, one two three", 13, 10, "abd", 0
"""


def ends(machine):
    """Run to the end; all that can be known of it."""
    stop = machine.run(timeout=100)
    counts = {name: stat.count for name, stat in machine.stats.exits.items()}
    counts = {name: counts.get(name, 0) for name in ("IN", "OUT", "CPUID")}
    return stop, machine.now, machine.registers, counts, machine.board.save()


@pytest.mark.parametrize("mode", [0, 2, 3])
def test_whoever_answers_the_guest_ends_alike(mode):
    code = READS.replace("MODE", hex(0xB0 + mode * 2))
    found = [ends(flat(code, "local", abilities=can)) for can in CANS]
    assert found[0] == found[1] == found[2]
    assert found[0][3] == {"IN": 2801, "OUT": 1405, "CPUID": 700}


@pytest.mark.parametrize("mode", range(6))
def test_whoever_tells_the_time_by_counter_0_ends_alike(mode):
    code = TIMES.replace("MODE", hex(0x30 + mode * 2))
    found = [ends(flat(code, "local", abilities=can)) for can in CANS]
    assert found[0] == found[1] == found[2]


@native
def test_python_is_asked_for_the_time_only_when_the_line_moves():
    machine = flat(TIMES.replace("MODE", "0x34"), "local")
    ends(machine)
    shared = machine.vmm.engine.shared
    edges = machine.now * 1.193182e6 / 1e9 // 0x259
    exits = sum(machine.stats.exits[name].count for name in ("IN", "OUT"))
    python = exits - shared.count_in - shared.count_out
    read_backs = sum(n & 0xC0 == 0xC0 for n in range(1, 701))
    assert edges > 0
    # More are three of the start, and the end.
    assert 0 <= python - read_backs - 4 <= 2 * edges


@native
def test_python_is_not_asked():
    machine = flat(READS.replace("MODE", "0xB4"), "local")
    ends(machine)
    shared = machine.vmm.engine.shared
    # Python's: ports 61h, 43h, 42h of the start are written, and the end; leaf 3.
    assert (shared.count_in, shared.count_cpuid) == (2801, 525)
    assert shared.count_out == 1400


def sends(can, *, urgent=None, **options):
    """A machine that will send, and what of it is told when."""
    machine = flat(SENDS, "local", abilities=can, **options)
    told = []
    if urgent is not None:
        machine.console.subscribe(
            lambda data: told.append((machine.now, data)), urgent=urgent
        )
    return machine, told


@pytest.mark.parametrize("until", [b"abd", b"b", b"one two", b"three\r\nabd", b"\n"])
@pytest.mark.parametrize("urgent", [None, b"", bytes(range(256))])
def test_a_run_stops_at_the_byte_that_completes_a_text(until, urgent):
    found = []
    for can in CANS:
        machine, told = sends(can, urgent=urgent)
        stop = machine.run(until, timeout=100)
        found.append(
            (stop, machine.now, machine.registers["esi"], b"".join(d for _, d in told))
        )
        assert stop.reason == "until"
        assert machine.run(timeout=100).code == 5
    assert found[0] == found[1]
    # A step later than between two blocks, which the public API cannot tell.
    assert found[0][3] == found[2][3]
    if urgent is not None:
        assert found[0][3].endswith(until)


def test_who_watches_the_line_is_told_of_each_byte_as_it_comes():
    told = []
    for can in CANS:
        machine = flat(SENDS, "local", abilities=can)
        seen = []
        machine.on_console(lambda data, to=seen, of=machine: to.append((of.now, data)))
        assert machine.run(timeout=100).code == 5
        told.append(seen)
    assert told[0] == told[1] == told[2]
    assert {len(data) for _, data in told[0]} == {1}


@native
def test_who_can_wait_is_told_of_many_at_once():
    machine, told = sends(None, urgent=b"")
    assert machine.run(timeout=100).code == 5
    # The machine itself reads lines, so their ends come at once.
    assert [data for _, data in told] == [
        b"abcabd, one two three", b"\r", b"\n", b"abd"
    ]  # fmt: skip


@native
def test_more_than_the_buffer_holds():
    text = b"".join(bytes([ord("a") + i % 26]) for i in range(3 * abi.SENT_MOST + 1))
    code = SENDS[: SENDS.index("text:")] + f'text: db "{text.decode()}", 0'
    machine = flat(code, "local")
    shown = bytearray()
    machine.console.subscribe(shown.extend, urgent=b"")
    assert machine.run(timeout=100).code == 5
    assert shown == text


class Pio:
    """An observer of ports."""

    def __init__(self):
        self.seen = []

    def pio(self, port, width, value, write):
        self.seen.append((port, width, value, write))


def test_an_observer_of_ports_sees_all():
    machine, _ = sends(None)
    watch = Pio()
    machine.subscribe(watch)
    found = ends(machine)
    assert len(watch.seen) == found[3]["IN"] + found[3]["OUT"]
    assert found == ends(sends(None)[0])


BREAKS = """
    gate 1, broken
    mov eax, cr4
    or eax, 8
    mov cr4, eax
    mov eax, 0x3FD
    mov dr0, eax
    mov eax, 0x20003  ; a port, a byte
    mov dr7, eax
    mov edx, 0x3FD
    in al, dx
    mov eax, 9
    jmp fin
broken:
    mov eax, dr6
    and eax, 15
    jmp fin
"""


def test_a_breakpoint_on_a_port_breaks():
    assert flat(BREAKS, "local").run(timeout=100).code == 1


@native
def test_a_hypervisor_that_cpuid_tells_of():
    machine = Machine(memory=1 << 20, hypervisor=True)
    known = machine.vmm.engine.shared.cpuid
    found = {leaf.leaf: (leaf.ebx, leaf.ecx) for leaf in known if leaf.ebx}
    assert found[0x40000000][0] == int.from_bytes(b"emu8", "little")


# A timer's ticks as Linux has them: masked, ended, set anew, unmasked.
TICKS = """
    gate 0x20, tick
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, FIRST  ; the mask
    out 0x21, al
    mov al, 0x38  ; mode 4
    out 0x43, al
    xor ebp, ebp
    call set
    mov ecx, 200  ; microseconds
later:
    in al, 0x80
    loop later
    mov al, 0xFE
    out 0x21, al
    sti
more:
    cpuid  ; a microsecond, too
    cmp ebp, 20
    jb more
    cli
    mov eax, esi
    jmp fin
tick:
    in al, 0x21
    add esi, eax
    or al, 1
    out 0x21, al
    mov al, 0x60
    out 0x20, al
    call set
    in al, 0x21
    and al, 0xFE
    out 0x21, al
    mov al, 0x0B
    out 0x20, al
    in al, 0x20
    add esi, eax
    inc ebp
    iretd
set:
    mov al, 0x80
    out 0x40, al
    mov al, 0
    out 0x40, al
    ret
"""


@pytest.mark.parametrize("first", [0xFE, 0xFF])
def test_a_timers_ticks(first):
    """The second mask lets a request in: INT moves, compiled code undoes its write."""
    code = TICKS.replace("FIRST", str(first))
    found = [ends(flat(code, "local", abilities=can)) for can in CANS]
    assert found[0] == found[1] == found[2]
    assert found[0][0].reason == "debug exit"


@native
@pytest.mark.parametrize("first", [0xFE, 0xFF])
def test_python_is_asked_for_what_moves_something(first):
    machine = flat(TICKS.replace("FIRST", str(first)), "local")
    ends(machine)
    shared = machine.vmm.engine.shared
    assert shared.count_in == 200 + 3 * 20
    # Of a tick both masks, the EOI and the count; not OCW3. At the start one mask, and
    # another one if it moves nothing.
    assert shared.count_out == 5 * 20 + 1 + (first == 0xFE)
