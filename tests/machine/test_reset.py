"""`Machine.reset`: the same guest anew, in a machine that goes on."""

import pytest

from emu86 import ConfigError, Machine, images
from support.flat import MEMORY, flat, guest, send
from support.recorder import Recorder

_RESET = "mov al, 0xfe\nout 0x64, al\njmp $\n"
# It counts in its own code and in RAM outside of it, and turns a fault into its end.
_COUNT = """
    inc byte [count + 1]
    inc byte [0x300000]
    mov bl, [0x300000]
count:
    mov al, 0
    shl eax, 8
    mov al, bl
    jmp fin
"""


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
@pytest.mark.parametrize("paging", [None, "local"])
def test_the_guest_starts_anew(technique, paging):
    machine = flat(_COUNT, paging, technique=technique)
    before = machine.registers
    first = machine.run(timeout=120)
    assert (first.reason, first.code & 0xFFFF) == ("debug exit", 0x101)
    machine.reset()
    assert machine.registers == before
    assert machine.run(timeout=120) == first


@pytest.mark.parametrize("how", [_RESET, "lidt [x]\nint3\nx: dw 0, 0, 0"])
def test_ram_is_what_it_was(how):
    machine = guest(f"inc dword [0x200000]\n{how}")
    ram = machine.read_physical(0, MEMORY)
    machine.run(timeout=120)
    assert machine.read_physical(0, MEMORY) != ram
    machine.reset()
    assert machine.read_physical(0, MEMORY) == ram


def test_time_and_counts_go_on_and_the_tsc_does_not():
    machine = guest(f"cli\nrdtsc\nmov ebx, eax\n{_RESET}")
    machine.run(timeout=120)
    now, tsc = machine.now, machine.registers["ebx"]
    machine.reset()
    assert machine.now == now
    machine.run(timeout=120)
    assert machine.now > now
    assert abs(machine.registers["ebx"] - tsc) <= 1, "parts of a nanosecond"
    assert machine.stats.exits["CLI"].count == 2
    assert machine.stats.exits["RDTSC"].count == 2


def test_the_date_goes_on():
    machine = guest("mov al, 0\nout 0x70, al\nin al, 0x71\ncli\nhlt")
    machine.vmm.clock.advance_to(3_000_000_000)
    for _ in range(2):
        machine.run(timeout=120)
        assert machine.registers["eax"] & 0xFF == 3, "the second"
        machine.reset()


def test_chips_are_as_at_first():
    machine = guest(f"mov al, 0x34\nout 0x21, al\nout 0xa1, al\n{_RESET}")
    chips = machine.board.save().chips
    machine.run(timeout=120)
    assert machine.board.save().chips["8259A pair"] != chips["8259A pair"]
    machine.reset()
    again = machine.board.save().chips
    timer = again.pop("8254")
    assert timer != chips.pop("8254"), "its phase is that of the new start"
    assert again == chips


def test_who_watches_goes_on_watching():
    machine = guest(send(b"x") + _RESET)
    seen, shown = Recorder(), bytearray()
    machine.subscribe(seen)
    machine.on_console(shown.extend)
    machine.run(timeout=120)
    ports = list(seen.ports)
    machine.reset()
    machine.run(timeout=120)
    assert shown == b"xx"
    assert seen.ports == ports * 2


def test_what_was_typed_and_has_not_arrived_stays():
    machine = guest(_RESET)
    machine.console_input(b"abc")
    machine.run(timeout=120)
    machine.reset()
    assert machine.console_waiting == 3


def test_a_file_that_has_changed_is_refused_and_the_guest_goes_on(tmp_path):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(images.path("teach").read_bytes())
    machine = Machine(memory=MEMORY)
    machine.load_kernel(kernel)
    machine.run(until=b"teach")
    machine.reset()
    machine.run(until=b"teach")
    ram, at = machine.read_physical(0, MEMORY), machine.registers
    kernel.write_bytes(b"another")
    with pytest.raises(ConfigError, match=f"^kernel: {kernel}: has changed since"):
        machine.reset()
    assert (machine.read_physical(0, MEMORY), machine.registers) == (ram, at)


def test_what_cannot_be_reset():
    with pytest.raises(ConfigError, match="reset: no kernel was loaded"):
        Machine(memory=MEMORY).reset()
    machine = guest(send(b"x"))
    raised = []

    def reset(_):
        try:
            machine.reset()
        except ConfigError as error:
            raised.append(str(error))
        machine.stop()

    machine.on_console(reset)
    machine.run(timeout=120)
    assert raised == ["reset: a machine that runs cannot be reset; stop it first"]
