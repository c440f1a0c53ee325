"""What is done with the mouse, as the library's user says it."""

from collections.abc import Collection
from typing import Final

from emu86.devices.ps2_mouse import BUTTONS, Motion
from emu86.errors import as_int, expect, unknown

_END: Final = 1_000_000  # counts


def motion(dx: int, dy: int, wheel: int, buttons: Collection[str]) -> Motion:
    """Return a movement of these counts, and the buttons that are down after it.

    Raises TypeError; ValueError for what is too far, or a name that is no button's.
    """
    expect("buttons", buttons, list, tuple, set, frozenset)
    down = 0
    for button in buttons:
        if button not in BUTTONS:
            message = f"buttons: {unknown(button, BUTTONS)}"
            raise ValueError(message)
        down |= BUTTONS[button]
    return Motion(
        as_int("dx", dx, -_END, _END),
        as_int("dy", dy, -_END, _END),
        as_int("wheel", wheel, -_END, _END),
        down,
    )
