"""The state of a machine: `Machine.save` returns it, `Machine.restore` takes it.

All that a machine holds is of one of two kinds.

*Architectural* is what the guest could tell: RAM, the CPU's registers with their hidden
parts, what the VMM holds in the guest's stead (control registers, MSRs, counters, debug
registers, IOPL), virtual time, the chips, what was typed and has not arrived. All of it
is in a `MachineState`, with the counts of exits, and the end of the run if it has come.

*Derived* is what can be had again from it: translated code and its patches, shadow page
tables and descriptor tables, which pages are code, decoded instructions, sites known to
the compiled hooks, checked transfers, cached translations. A state has none of it. But
to have it again takes exits and so virtual time. Two machines agree to the bit only if
both begin without it, so saving drops it in the machine that is saved, too.

The files of disks stay where they are. A state knows by their time of change whether
they are as they were, and has itself what was written and is discarded at the end.

What belongs to the host is of neither kind: consoles, observers, timing, a wish to
stop. It stays with its machine.

A `MachineState` is plain data: named tuples and frozen dataclasses of numbers, bytes
and names, with tuples and dictionaries of these. It holds nothing that points into the
process, nor into the machine, and may be restored any number of times.
"""

from dataclasses import dataclass, field
from typing import Final

from emu86.errors import ConfigError
from emu86.machine.board import BoardState
from emu86.machine.chardev import CharDeviceState
from emu86.machine.media import ImageState
from emu86.rings.technique.base import TechniqueState

VERSION: Final = 16  # of the format: a change of any state's fields is another one


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a machine was built with: see `Machine`."""

    memory: int
    cpu: str
    technique: str
    debug_exit: bool
    realtime: bool
    hypervisor: bool
    rtc: float
    disks: tuple[str, ...]
    cdrom: str | None
    floppies: tuple[str, ...]
    writes: str
    bios: bytes | None = field(repr=False)
    boot: str
    vga_bios: bytes = field(repr=False)
    serial: bool
    parallel: bool
    debug_console: bool


@dataclass(frozen=True, slots=True)
class MachineState:
    """A machine between two instructions.

    version: of this format; loaded: whether a guest is; ram: see `Ram.save`; technique:
    CPU and VMM; media: what their files do not have, and how to know them again;
    console: what was typed and has not come to the serial line.
    """

    version: int
    configuration: Configuration
    loaded: bool
    ram: tuple[tuple[int, bytes], ...] = field(repr=False)
    technique: TechniqueState = field(repr=False)
    board: BoardState = field(repr=False)
    media: dict[str, ImageState] = field(repr=False)
    console: CharDeviceState


def check(state: object) -> MachineState:
    """Return the state if it is one of this version; raises ConfigError."""
    if not isinstance(state, MachineState):
        message = f"state: a {type(state).__name__} is not what Machine.save returns"
        raise ConfigError(message)
    if state.version != VERSION:
        message = f"state: its version is {state.version}, not {VERSION}"
        raise ConfigError(message)
    return state
