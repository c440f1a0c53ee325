"""ELF files of nothing but symbols."""

import struct


def elf(table, *, stripped=False, wide=False):
    """An ELF file: rows of name, address, size, type and section (1: code).

    wide: of 64 bits, not of 32.
    """
    names, rows = b"\0", bytes(24 if wide else 16)
    for name, address, size, kind, home in table:
        if wide:
            rows += struct.pack("<IBBHQQ", len(names), kind, 0, home, address, size)
        else:
            rows += struct.pack("<IIIBBH", len(names), address, size, kind, 0, home)
        names += name.encode() + b"\0"
    start = 64 if wide else 52
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 4 | 2, 0, 0, 0, 0),  # code
        (1, 2, 0, 0, 0, 0),  # data
        (11 if stripped else 2, 0, 0, start, len(rows), 4),
        (3, 0, 0, start + len(rows), len(names), 0),
    ]
    end = start + len(rows) + len(names)
    head = b"\x7fELF" + bytes([1 + wide, 1, 1]) + bytes(9)
    form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    machine, header = (62, 64) if wide else (3, 40)
    head += struct.pack(form, 2, machine, 1, 0, 0, end, 0, start, 0, 0, header, 5, 0)
    body = b"".join(
        struct.pack(
            "<IIQQQQIIQQ" if wide else "<10I",
            0,
            kind,
            flags,
            address,
            at,
            size,
            link,
            0,
            0,
            16,
        )
        for kind, flags, address, at, size, link in sections
    )
    return head + rows + names + body
