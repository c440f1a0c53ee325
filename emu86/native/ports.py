"""IN and OUT of ports that only count or answer, and CPUID.

Such a port moves no interrupt line, and no deadline but the timer's. `Control.ports`
says what is at each. All others are Python's, as is an access of more than a byte, but
for a drive's data port.
"""

from typing import Final

from emu86.native import abi
from emu86.native.abi import Control, Transfer
from emu86.native.ide import is_inside, pull, push
from emu86.native.pic import read_register, write_quietly
from emu86.native.pit import (
    is_quiet,
    latch,
    next_edge,
    read,
    sync,
    tick_time,
    ticks,
    write_high,
    write_low,
)
from emu86.native.records import i32, i64, u32, u64
from emu86.native.state import stop_by, virtual_time
from emu86.native.string_io import go_on
from emu86.native.uart import LSR, THR, line_status, send
from emu86.spec import x86

_REGISTER: Final = 0x3F  # of an entry of `ports`: what it is, and which register
_PYTHONS: Final = 256  # instead of a byte
_PIT_CONTROL: Final = 3
_STATUS: Final = 7  # the register of a drive
_GATE_2: Final = 0x01
_REFRESH: Final = 0x10
_OUT_2: Final = 0x20
REFRESH_TICKS: Final = 18
"""Clock pulses of the timer between two memory refreshes: 15 us."""
_STRUCTURED: Final = 7  # the leaf of CPUID that has others, by ECX
# Of a control word of the 8254: its number of the counter, and how that is accessed.
_READ_BACK: Final = 3
_ACCESS: Final = 0x30


def what_is_at(control: Control, port: u32, width: i32) -> u32:
    """Return the entry of `ports`.

    PORT_PYTHON while somebody watches exits, or TF is set: `rings.events.breakpoints`
    looks at ports then.
    """
    trapped = control.cpu.contents.rflags & x86.TF
    if width != 1 or port & 0xFFFF >= abi.PORTS or control.told or trapped:
        return abi.PORT_PYTHON
    found: u32 = control.ports[port & abi.PORTS - 1]
    return found


def answer(control: Control, at: u32) -> u32:
    """Return what a port reads as, an entry of `ports`; or that it is Python's."""
    kind = at & 7
    register = at >> 3
    if kind == abi.PORT_NOTHING:
        return 0xFF
    if kind == abi.PORT_POST_CODE:
        return control.post_code.value & 0xFF
    if kind == abi.PORT_UART and register == LSR and not control.uart.errors:
        return line_status(control.uart)
    if kind == abi.PORT_SPEAKER:
        return system_control(control)
    if kind == abi.PORT_DATA and register & 7 == _STATUS:
        return drive_status(control, at)
    if kind == abi.PORT_PIC and not control.pics[register >> 1 & 1].poll:
        return read_register(control.pics[register >> 1 & 1], register)
    if kind == abi.PORT_PIT and register < _PIT_CONTROL:
        t = pulse(control)
        if brought_to(control, register, t):
            return read(control.pit[min(register, 2)], t)
    return _PYTHONS


def system_control(control: Control) -> u32:
    """Return what port 61h reads as: see `devices.speaker`."""
    t = pulse(control)
    counter = control.pit[2]
    sync(counter, t)
    value: u32 = control.speaker.value | (_GATE_2 if counter.gate else 0)
    refresh = _REFRESH if (t & x86.MASK64) // REFRESH_TICKS & 1 else 0
    return value | refresh | (_OUT_2 if counter.out else 0)


def drive_status(control: Control, at: u32) -> u32:
    """Return a drive's status, unless there is none or an interrupt ends by this."""
    address: u64 = control.transfers[at >> 6 & 1]
    if not address:
        return _PYTHONS
    drive = Transfer.from_address(address)
    if drive.asks and not at & abi.ALTERNATE:
        return _PYTHONS
    return drive.status & 0xFF


def pulse(control: Control) -> i64:
    """Return the 8254's pulse at which a port is accessed."""
    return ticks(virtual_time(control, control.now + abi.IO_TIME & x86.MASK64))


def brought_to(control: Control, number: u32, t: i64) -> bool:
    """Bring a counter of the 8254 to pulse `t`, but for 0 if its line moves on the way.

    Python tells the 8259A of that.
    """
    counter = control.pit[min(number, 2)]
    if not number and not is_quiet(counter, t):
        return False
    sync(counter, t)
    return True


def latch_counter(control: Control, value: u32) -> bool:
    """Take a control word that latches a count; other words are Python's."""
    number = value >> 6 & 3
    if number == _READ_BACK or value & _ACCESS:
        return False
    t = pulse(control)
    if not brought_to(control, number, t):
        return False
    latch(control.pit[min(number, 2)], t)
    return True


def set_timer(control: Control, value: u32) -> bool:
    """Write the high byte of counter 0's count, and have the engine stop in time."""
    if not write_high(control.pit[0], value, pulse(control)):
        return False
    control.behind |= abi.TIMER
    stop_by(control, tick_time(next_edge(control.pit[0])))
    return True


def take(control: Control, at: u32, value: u32) -> bool:
    """Write a byte to a port, an entry of `ports`; False: it is Python's."""
    kind = at & 7
    if kind == abi.PORT_POST_CODE:
        control.post_code.value = value
        return True
    if kind == abi.PORT_UART and at >> 3 == THR:
        return send(control, value)
    if kind == abi.PORT_PIC:
        return write_quietly(control.pics[at >> 4 & 1], at >> 3, value)
    if kind == abi.PORT_PIT and at >> 3 == _PIT_CONTROL:
        return latch_counter(control, value)
    if kind == abi.PORT_PIT and at >> 3 == 0:
        return write_low(control.pit[0], value) or set_timer(control, value)
    return kind == abi.PORT_NOTHING


def block_at(control: Control, port: u32) -> u64:
    """Return the address of the `Transfer` whose data port this is, or 0.

    0 as well where `what_is_at` says that all ports are Python's.
    """
    found = control.ports[port & abi.PORTS - 1]
    trapped = control.cpu.contents.rflags & x86.TF
    if port & 0xFFFF >= abi.PORTS or control.told or trapped:
        return 0
    if found & _REGISTER != abi.PORT_DATA:
        return 0
    address: u64 = control.transfers[found >> 6 & 1]
    return address


def on_in(uc: u64, port: u32, width: i32, control: Control) -> u32:
    """Read a port here, or have Python do it."""
    if width > 1:
        block = block_at(control, port)
        if not block or not is_inside(Transfer.from_address(block), width, abi.TO_HOST):
            return control.on_in(uc, port, width, 0)
        control.now += abi.IO_TIME
        word = pull(Transfer.from_address(block), width)
        more = go_on(control, Transfer.from_address(block), width, abi.TO_HOST)
        control.count_in += 1 + more
        return word
    value = answer(control, what_is_at(control, port, width))
    if value == _PYTHONS:
        return control.on_in(uc, port, width, 0)
    control.now += abi.IO_TIME
    control.count_in += 1
    return value


def on_out(uc: u64, port: u32, width: i32, value: u32, control: Control) -> None:
    """Write a port here, or have Python do it."""
    if width > 1:
        block = block_at(control, port)
        if not block or not is_inside(
            Transfer.from_address(block), width, abi.TO_DRIVE
        ):
            control.on_out(uc, port, width, value, 0)
            return
        control.now += abi.IO_TIME
        push(Transfer.from_address(block), width, value)
        more = go_on(control, Transfer.from_address(block), width, abi.TO_DRIVE)
        control.count_out += 1 + more
        return
    if take(control, what_is_at(control, port, width), value & 0xFF):
        control.now += abi.IO_TIME
        control.count_out += 1
    else:
        control.on_out(uc, port, width, value, 0)


def on_cpuid(uc: u64, control: Control) -> i32:
    """Answer a leaf that the CPU model has, or have Python do it.

    1: the engine skips its own CPUID.
    """
    cpu = control.cpu.contents
    leaf = cpu.gpr[x86.EAX] & x86.MASK32
    if not control.told:
        for i in range(abi.CPUID_LEAVES):
            known = control.cpuid[i]
            found = known.leaf == leaf and i < control.cpuid_count
            if found and (leaf != _STRUCTURED or not cpu.gpr[x86.ECX] & x86.MASK32):
                cpu.gpr[x86.EAX] = known.eax
                cpu.gpr[x86.EBX] = known.ebx
                cpu.gpr[x86.ECX] = known.ecx
                cpu.gpr[x86.EDX] = known.edx
                control.now += control.exit_cost
                control.count_cpuid += 1
                return 1
    return control.on_cpuid(uc, 0)
