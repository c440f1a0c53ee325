"""All of a stage's RAM: its tables, handlers and boot code, and the program on it."""

from typing import Final

from emu86.testing import stage32, stage64
from emu86.testing.stage import MEMORY, OWN, State, meet

_FILLER: Final = b"\xcc"  # what RAM holds elsewhere: INT3, so that a lost program ends


def ram_image(program: bytes, state: State) -> bytes:
    """Return all of RAM: the stage, set up for `state`, with the program on it.

    Raises ValueError if the program reaches beyond what is free from `state.at` on.
    """
    __tracebackhide__ = True
    place = range(state.at, state.at + len(program))
    gdt = range(state.gdt, state.gdt + state.gdt_size)
    idt = range(state.idt, state.idt + state.idt_size)
    if place.stop > MEMORY or any(meet(place, other) for other in (OWN, gdt, idt)):
        where = f"{len(program)} bytes at {state.at:#x}"
        message = f"program: {where} are not on the stage, or not free there"
        raise ValueError(message)
    ram = bytearray(_FILLER * MEMORY)
    parts = stage64.parts(state) if state.is_long else stage32.parts(state)
    for at, data in (*parts, (state.at, program), *state.patches):
        ram[at : at + len(data)] = data
    return bytes(ram[:MEMORY])
