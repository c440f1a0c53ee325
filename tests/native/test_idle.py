"""A guest that waits for its timer: HLT and a tick are compiled code's."""

import threading
import time

import pytest

from emu86 import Stop
from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.machine import realtime
from emu86.native import abi
from support.flat import flat, guest64
from support.snippets import PIC, TIMER_100HZ
from support.ticks import TICKS

native = pytest.mark.skipif(not abilities().native, reason="no compiled code here")
HALTS = TICKS.format(between="hlt")
NOBODY_CALLS = "inc edi\nsti\nhlt\ncli"  # an interrupt comes in the shadow's end


def ends(machine):
    """Run to the end; what can be known of it."""
    assert machine.run(timeout=100) == Stop("debug exit", 300)
    exits = machine.vmm.all_exits()
    return machine.now, machine.registers, exits["HLT"][0], exits["interrupt"][0]


@pytest.mark.parametrize("between", ["hlt", NOBODY_CALLS])
def test_whoever_halts_the_guest_ends_alike(between):
    code = TICKS.format(between=between)
    cans = None, abilities().reference(), Abilities.none()
    found = [ends(flat(code, "local", abilities=can)) for can in cans]
    assert found[0] == found[1] == found[2]
    assert found[0][3] == 300


# A chip beside the timer is due at the same time, or the 8259A is set up otherwise.
OTHERWISE = {
    "automatic end": ("mov al, 1\n    out 0x21, al", "mov al, 3\n    out 0x21, al"),
    "square wave": ("mov al, 0x34", "mov al, 0x36"),
    "special mask": ("sti\n", "mov al, 0x68\nout 0x20, al\nsti\n"),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_what_is_not_the_usual_is_done_one_by_one(monkeypatch, how):
    before, after = OTHERWISE[how]
    assert HALTS.count(before) == 1
    machine = flat(HALTS.replace(before, after), "local", realtime=True)
    late = [0]
    now = realtime.monotonic_ns
    monkeypatch.setattr(realtime, "monotonic_ns", lambda: now() + late[0])

    def wait(seconds):
        late[0] += int(seconds * 1e9)

    monkeypatch.setattr(machine._loop._kicked, "wait", wait)
    # No time is slept, by compiled code neither.
    machine.vmm.engine.control[abi.Control.sem_clockwait.offset // 8] = 0
    assert ends(machine)[2:] == (300, 300)
    assert machine.vmm.exits["interrupt"][0] == 300


LISTENS = """
    mov al, 0x34
    out 0x43, al
    mov al, 255
    out 0x40, al
    out 0x40, al
    gate 12, typed
    gate 8, ticked
    {pic}
    mov dx, 0x3F9
    mov al, 1
    out dx, al
    mov dx, 0x3FC
    mov al, 0x0B
    out dx, al
    xor esi, esi
    sti
.wait:
    hlt
    jmp .wait
typed:
    mov dx, 0x3F8
    in al, dx
    jmp fin
ticked:
    inc esi
    push eax
    mov al, 0x20
    out 0x20, al
    pop eax
    iret
"""


@native
def test_what_is_typed_ends_a_sleep_of_compiled_code():
    """While it sleeps: the guest hears of it at once."""
    machine = flat(LISTENS.format(pic=PIC.format(base=8, mask=0xEE)), realtime=True)
    control = machine.vmm.engine.shared
    typed = threading.Event()

    def type_():
        while not control.rested:
            time.sleep(0.001)
        machine.console_input(b"*")
        typed.set()

    threading.Thread(target=type_, daemon=True).start()
    assert machine.run(timeout=60) == Stop("debug exit", ord("*"))
    assert typed.is_set()


@native
def test_python_halts_once():
    machine = flat(HALTS, "local")
    _now, _registers, halts, _interrupts = ends(machine)
    assert halts == 300
    assert machine.vmm.exits["HLT"][0] == 1


HALTS64 = f"""
    lidt [idtr]
    mov dword [0x170000 + 16 * 8], 0x00080000 | (ticked - $$) & 0xFFFF
    mov dword [0x170004 + 16 * 8], 0x00108E00
    lgdt [gdtr]
    mov rsp, 0x130000
    {PIC.format(base=8, mask=0xFE)}
    {TIMER_100HZ}
    xor esi, esi
    sti
wait_:
    hlt
    cmp esi, 20
    jne wait_
    cli
    hlt
ticked:
    inc esi
    push rax
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq
align 8
gdt: dq 0, 0x00AF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdtr: dw 31
    dq gdt
idtr: dw 0xFFF
    dq 0x170000
"""


@native
@pytest.mark.parametrize("realtime_", [False, True])
def test_64_bit_code_halts_in_compiled_code(realtime_):
    machine = guest64(HALTS64, realtime=realtime_)
    assert machine.run(timeout=60).reason == "halted"
    assert machine.vmm.all_exits()["HLT"][0] == 21
    assert machine.vmm.exits["HLT"][0] == 1  # the last: no interrupt can come
    assert machine.vmm.all_exits()["interrupt"][0] == 20
    assert (machine.vmm.exits["interrupt"][0] < 20) == realtime_


def test_a_profile_stops_where_the_guest_halts():
    plain, watched = (flat(HALTS, "local") for _ in range(2))
    profile = watched.profile()
    assert ends(plain) == ends(watched)
    assert watched.vmm.exits["HLT"][0] <= 1
    del profile
