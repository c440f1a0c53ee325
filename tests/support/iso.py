"""The smallest CD that a kernel mounts: ECMA-119 (ISO 9660), one folder of files."""

import struct

SECTOR = 2048


def both(value, size):
    """A number in both byte orders."""
    return value.to_bytes(size, "little") + value.to_bytes(size, "big")


def entry(name, sector, size, *, folder=False):
    """A directory record: section 9.1."""
    pad = bytes(1 - len(name) % 2)
    data = both(sector, 4) + both(size, 4) + bytes((126, 1, 1, 0, 0, 0, 0))
    data += bytes((2 if folder else 0, 0, 0)) + both(1, 2) + bytes((len(name),))
    data = b"\0" + data + name + pad
    return bytes((len(data) + 1,)) + data


def iso(files):
    """An image with the files of a dictionary, by their names in capitals."""
    table, folder, first = 18, 19, 20
    root = entry(b"\0", folder, SECTOR, folder=True)
    records = root + entry(b"\1", folder, SECTOR, folder=True)
    content = b""
    for name, data in sorted(files.items()):
        at = first + len(content) // SECTOR
        records += entry(f"{name};1".encode(), at, len(data))
        content += data + bytes(-len(data) % SECTOR)
    end = first + len(content) // SECTOR
    volume = bytearray(SECTOR)
    volume[:8] = b"\1CD001\1\0"
    volume[8:72] = b"EMU86".ljust(64)
    volume[80:88] = both(end, 4)
    volume[120:132] = both(1, 2) * 2 + both(SECTOR, 2)
    paths = b"\1\0" + struct.pack("<IH", folder, 1) + bytes(2)
    volume[132:140] = both(len(paths), 4)
    volume[140:144] = table.to_bytes(4, "little")
    volume[148:152] = table.to_bytes(4, "big")
    volume[156:190] = root
    volume[190:813] = b" " * 623
    volume[881] = 1
    last = b"\xffCD001\1".ljust(SECTOR, b"\0")
    sectors = bytes(16 * SECTOR) + volume + last
    return sectors + paths.ljust(SECTOR, b"\0") + records.ljust(SECTOR, b"\0") + content
