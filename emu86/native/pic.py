"""What compiled code does of an 8259A: see `devices.pic`."""

from emu86.native.abi import Pic
from emu86.native.records import i32, u32

_NOBODY = -1


def first(chip: Pic, bits: u32) -> i32:
    """Return the number of the highest priority bit of 8 bits, -1 if none."""
    if not bits & 0xFF:
        return _NOBODY
    n: u32 = chip.lowest + 1 & 7
    while not bits >> (n & 7) & 1:
        n = n + 1 & 7
    return n & 7


def in_service(chip: Pic) -> u32:
    """Return the in-service bits that count: in special mask mode not those masked."""
    return chip.isr & ~chip.imr & 0xFF if chip.special_mask else chip.isr


def requested(chip: Pic) -> i32:
    """Return the input to be acknowledged next, -1 if there is none."""
    n = first(chip, chip.irr & ~chip.imr & 0xFF)
    if n < 0:
        return _NOBODY
    serving = first(chip, in_service(chip))
    if serving < 0:
        return n
    if n == serving:
        # Special fully nested mode: a slave in service may ask again, for a higher one
        # of its own inputs.
        nested = bool(chip.icw4 & 0x10) and not chip.icw1 & 0x02
        return n if nested and chip.icw3 >> (n & 7) & 1 else _NOBODY
    base = chip.lowest + 1 & 7
    return n if (n + 8 - base) & 7 < (serving + 8 - base) & 7 else _NOBODY


def write_ocw2(chip: Pic, value: u32) -> None:
    """End of interrupt and rotation: R, SL, EOI and a level (OCW2)."""
    command = value >> 5 & 7
    level = value & 7
    if command in (0, 4):
        chip.rotate_on_auto_eoi = command == 4
    elif command in (1, 5):
        n = first(chip, in_service(chip))
        if n >= 0:
            chip.isr &= ~(1 << (n & 7))
            if command == 5:
                chip.lowest = n & 7
    else:
        if command in (3, 7):
            chip.isr &= ~(1 << level)
        if command in (6, 7):
            chip.lowest = level


def read_register(chip: Pic, register: u32) -> u32:
    """Read IRR or ISR (0), or IMR (1); not when polled."""
    if register & 1:
        return chip.imr & 0xFF
    return (chip.isr if chip.read_isr else chip.irr) & 0xFF


def write_quietly(chip: Pic, register: u32, value: u32) -> bool:
    """Write OCW1 (1) or OCW2 (0) if the INT pin stays as it is; tell if it does."""
    is_other = chip.expected if register & 1 else value & 0x18
    if is_other:
        return False
    imr = chip.imr
    isr = chip.isr
    lowest = chip.lowest
    rotates = chip.rotate_on_auto_eoi
    if register & 1:
        chip.imr = value
    else:
        write_ocw2(chip, value)
    if (requested(chip) >= 0) == (chip.intr != 0):
        return True
    chip.imr = imr
    chip.isr = isr
    chip.lowest = lowest
    chip.rotate_on_auto_eoi = rotates
    return False
