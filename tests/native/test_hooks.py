"""The compiled hooks do what their Python twins do: the same guest ends the same."""

import hashlib

import pytest

from emu86 import Machine, images
from emu86.cpu.library import Abilities
from emu86.native import abi
from emu86.native.flags import sti
from emu86.native.handlers import set_limit
from emu86.spec import x86
from support.assembler import assemble
from support.cases import MEMORY

# Global pages, the timer at about 1 kHz and CLI, STI, RDTSC, CPUID in a loop. An
# interrupt's time is in the sum, so a difference of one instruction shows.
TIMER = """
    org 0x100000
    bits 32
    start:
    mov esp, 0x90000
    mov edi, 0x80000
    mov eax, 0x103
    mov ecx, 1024
    .map: stosd
    add eax, 4096
    loop .map
    mov dword [0x81000], 0x80003
    mov eax, 0x81000
    mov cr3, eax
    mov eax, 0x80
    mov cr4, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    lidt [idtr]
    mov eax, handler
    mov [idt + 0x20 * 8], ax
    mov ax, cs
    mov [idt + 0x20 * 8 + 2], ax
    mov word [idt + 0x20 * 8 + 4], 0x8E00
    shr eax, 16
    mov [idt + 0x20 * 8 + 6], ax
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xFE
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, 0xA9
    out 0x40, al
    mov al, 4
    out 0x40, al
    sti
    mov ecx, 30000
    .loop:
    cli
    inc dword [0x82000]
    sti
    nop
    test cl, 0x1F
    jnz .next
    rdtsc
    add [0x82004], eax
    pushfd
    cli
    popfd
    .next:
    loop .loop
    cli
    mov al, 0
    out 0xf4, al
    hlt
    handler:
    push eax
    add [0x8200C], ecx
    rol dword [0x8200C], 1
    inc dword [0x82008]
    mov al, 0x20
    out 0x20, al
    pop eax
    iretd
    align 8
    idtr: dw 0x7FF
    dd idt
    idt: times 2048 db 0
"""


class Watch:
    """An observer, for whom CLI and STI go to Python."""

    def __init__(self):
        self.exits = 0

    def vm_exit(self, *_):
        self.exits += 1

    def inject(self, vector, error): ...
    def shadow_fill(self, gva): ...
    def pio(self, port, width, value, write): ...


class Log:
    """An observer that writes down everything, with its time."""

    def __init__(self, log, machine):
        self.log, self.machine = log, machine

    def vm_exit(self, reason, cs, eip):
        self.log.append((self.machine.now, reason, cs, eip))

    def inject(self, vector, error):
        self.log.append((self.machine.now, vector, error))

    def shadow_fill(self, gva):
        self.log.append((self.machine.now, gva))

    def pio(self, port, width, value, write):
        self.log.append((self.machine.now, port, width, value, write))


def end(machine):
    """Run to the end; everything the guest could know by then."""
    assert machine.run(timeout=300).reason == "debug exit"
    ram = hashlib.sha256(machine.read_physical(0, 4 << 20)).hexdigest()
    return machine.registers, ram, machine.now


def timer_guest(**options):
    machine = Machine(memory=4 << 20, debug_exit=True, **options)
    machine.load_flat(assemble(TIMER), 0x100000)
    return machine


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_compiled_hooks_and_python_agree(technique):
    plain, watched = timer_guest(technique=technique), timer_guest(technique=technique)
    watch = Watch()
    watched.subscribe(watch)
    assert end(plain) == end(watched)
    ours, theirs = plain.stats.exits, watched.stats.exits
    assert {name: stat.count for name, stat in ours.items()} == {
        name: stat.count for name, stat in theirs.items()
    }
    assert watch.exits > 10
    assert int.from_bytes(plain.read_physical(0x82000, 4), "little") == 30000
    ticks = int.from_bytes(plain.read_physical(0x82008, 4), "little")
    assert ticks > 10 or technique == "iopl"


def test_subscribing_later_changes_nothing():
    whole, halved = timer_guest(), timer_guest()
    seen = []
    halved.on_console(seen.append)
    halved.measure()
    assert end(whole) == end(halved)


def test_public_api_alone_gives_the_same():
    assert end(timer_guest()) == end(timer_guest(abilities=Abilities.none()))


def teach(until, **options):
    """The teaching kernel's script as far as `until`."""
    machine = Machine(memory=16 << 20, **options)
    machine.load_kernel(images.path("teach"), append="script")
    shown = bytearray()
    machine.on_console(shown.extend)
    assert machine.run(until, timeout=300).reason == "until"
    ram = hashlib.sha256(machine.read_physical(0, 16 << 20)).hexdigest()
    exits = {name: stat.count for name, stat in machine.stats.exits.items()}
    return ram, bytes(shown), exits


def test_the_teaching_kernel_without_private_state():
    """All but where exactly the run stops, which is at a block's end only if live."""
    live = teach(b"A writes line 1")
    assert live == teach(b"A writes line 1", abilities=Abilities.none())
    assert b"FAIL" not in live[1]


def test_observers_are_told_the_same_without_private_state():
    told = []
    for abilities in (None, Abilities.none()):
        machine = Machine(memory=16 << 20, abilities=abilities)
        machine.load_kernel(images.path("exits"), append="3")
        log = []
        machine.subscribe(Log(log, machine))
        assert machine.run(timeout=300).reason == "poweroff"
        told.append(log)
    assert told[0] == told[1]
    assert len(told[0]) > 100


def test_every_exit_without_private_state():
    ends = []
    for abilities in (None, Abilities.none()):
        machine = Machine(memory=16 << 20, abilities=abilities)
        machine.load_kernel(images.path("exits"), append="20")
        assert machine.run(timeout=300).reason == "poweroff"
        ram = hashlib.sha256(machine.read_physical(0, 16 << 20)).hexdigest()
        exits = {name: stat.count for name, stat in machine.stats.exits.items()}
        ends.append((machine.registers, ram, machine.now, exits))
    assert ends[0] == ends[1]


def test_cmpxchg8b_in_a_block_of_its_own():
    """Its site's INT3 is the compiled hook's: plain, watched and bare end alike."""
    code = """
    mov esp, 0x9000
    mov dword [0x30100], 50
    .again:
    sub ecx, edx
    lock cmpxchg8b [0x30000]
    pushf
    pop edi
    add ebp, edi
    adc esi, 5
    cmpxchg8b [0x30008]
    pushf
    pop edi
    add ebx, edi
    dec dword [0x30100]
    jnz .again
    cli
    hlt
    """
    ends = []
    for technique, watched in (("patch", False), ("patch", True), ("bare", False)):
        machine = Machine(memory=1 << 20, technique=technique)
        machine.load_flat(assemble(f"bits 32\norg 0x10000\n{code}"), 0x10000)
        machine.write_physical(0x30000, bytes(range(1, 17)))
        if watched:
            machine.measure()
        assert machine.run(timeout=300).reason == "halted"
        split = machine.vmm.engine.control[abi.COUNT_SPLIT]
        assert (split > 50) == (technique == "patch" and not watched)
        registers = machine.registers
        names = (*x86.GPR_NAMES, "eip", "eflags")
        ends.append(([registers[n] for n in names], machine.read_physical(0x30000, 16)))
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize(
    ("flags", "sets_if", "looks"),
    [
        (0, 0, False),
        (x86.IF, 0, True),
        (1 << 12, 0, True),  # the guest's IOPL, by which STI runs natively
        (0, 1, True),
    ],
)
def test_an_interrupt_that_waits_behind_cli_costs_nothing(flags, sets_if, looks):
    """Blocks look whether to stop only where IF may be set without an exit."""
    control, cpu = abi.Control(), abi.Cpu()
    control.cpu.contents = cpu
    control.pending, control.stop_at = 1, 1000
    cpu.rflags, control.sets_if = flags | x86.FLAGS_FIXED, sets_if
    set_limit(control)
    assert control.limit == (0 if looks else 1000)
    if not flags & x86.IF:
        control.limit = 1000
        assert sti(control, cpu)
        assert control.limit == 0


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
def test_who_sets_if_without_an_exit_is_known(technique):
    machine = Machine(memory=MEMORY, technique=technique)
    machine.load_flat(b"\xf4", 0x100000)
    known = machine.vmm.engine.shared.sets_if
    assert bool(known) == (technique in ("iopl", "bare"))
