"""emu86: run unmodified x86 guests without VT-x, and see every trap."""

from typing import TYPE_CHECKING

from emu86.errors import ConfigError

if TYPE_CHECKING:
    from emu86.machine.loop import Stop
    from emu86.machine.machine import Machine
    from emu86.machine.profile import Profile
    from emu86.machine.report import Report
    from emu86.machine.snapshot import MachineState
    from emu86.machine.stats import ExitStat, Stats
    from emu86.machine.trace import Trace
    from emu86.rings.observers import Observer

__all__ = [
    "ConfigError",
    "ExitStat",
    "Machine",
    "MachineState",
    "Observer",
    "Profile",
    "Report",
    "Stats",
    "Stop",
    "Trace",
]

_HOMES = {
    "Machine": "emu86.machine.machine",
    "Profile": "emu86.machine.profile",
    "Report": "emu86.machine.report",
    "MachineState": "emu86.machine.snapshot",
    "Stop": "emu86.machine.loop",
    "Trace": "emu86.machine.trace",
    "ExitStat": "emu86.machine.stats",
    "Stats": "emu86.machine.stats",
    "Observer": "emu86.rings.observers",
}


def __getattr__(name: str) -> object:
    """Import the engine only when it is asked for: `emu86 --help` answers at once."""
    if name not in _HOMES:
        message = f"module 'emu86' has no attribute {name!r}"
        raise AttributeError(message)
    import gc  # noqa: PLC0415
    from importlib import import_module  # noqa: PLC0415

    # To look for cycles in what stays is a tenth of importing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        home: object = getattr(import_module(_HOMES[name]), name)
    finally:
        if collecting:
            gc.enable()
    return home
