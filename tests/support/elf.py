"""ELF files of nothing but symbols."""

import struct


def elf(table, *, stripped=False):
    """A 32-bit ELF file: rows of name, address, size, type and section (1: code)."""
    names, rows = b"\0", bytes(16)
    for name, address, size, kind, home in table:
        rows += struct.pack("<IIIBBH", len(names), address, size, kind, 0, home)
        names += name.encode() + b"\0"
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 4 | 2, 0, 0, 0, 0),  # code
        (1, 2, 0, 0, 0, 0),  # data
        (11 if stripped else 2, 0, 0, 52, len(rows), 4),
        (3, 0, 0, 52 + len(rows), len(names), 0),
    ]
    end = 52 + len(rows) + len(names)
    head = b"\x7fELF\1\1\1" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, end, 0, 52, 0, 0, 40, 5, 0)
    body = b"".join(
        struct.pack("<10I", 0, kind, flags, address, at, size, link, 0, 0, 16)
        for kind, flags, address, at, size, link in sections
    )
    return head + rows + names + body
