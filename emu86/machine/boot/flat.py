"""Flat images: bytes put at an address and jumped to."""

from emu86.errors import ConfigError
from emu86.machine.boot.placement import Entry, Placement


def load(
    ram: memoryview, image: bytes, *, address: int, entry: int | None = None
) -> Entry:
    """Place `image` at guest-physical `address`, to be entered at `entry`.

    `ram` is all of guest-physical memory; without `entry` the first byte is entered.
    Raises ConfigError when the image does not fit, or the entry is outside of it.
    """
    if not image:
        raise ConfigError("image: is empty")
    if address < 0:
        raise ConfigError(f"image: its address {address:#x} is negative")
    places = Placement(ram)
    places.put("image", address, image)
    eip = address if entry is None else entry
    if not address <= eip < address + len(image):
        raise ConfigError(f"image: its entry {eip:#x} is outside of it")
    return places.entry(eip, {})
