"""Make the BIOS's fonts from the characters of 8 by 16 pixels that the screen has.

    python3 tools/make_fonts.py 8x16.hex DIRECTORY

Writes 8x16.bin, 8x14.bin and 8x8.bin to the directory: 256 characters each, a byte a
line, the leftmost pixel in bit 7. 14 lines are the 16 less the outer ones. Of 8 lines
the first is what is above a capital letter, the last what is below the base line; the
ten between become six by joining, again and again, the two neighbours that differ
least.
"""

import sys
from itertools import pairwise
from pathlib import Path

ABOVE, BASE = 4, 14  # lines of a capital letter: from the one to before the other
SHADES = range(0xB0, 0xB3)
GRAPHICS = range(0xB3, 0xE0)  # lines and blocks, which must meet their neighbours


def shrink(lines: bytes, code: int) -> bytes:
    """Return the 8 lines of the character with these 16."""
    if code in SHADES:
        return lines[::2]
    if code in GRAPHICS:
        return bytes(a | b for a, b in zip(lines[::2], lines[1::2], strict=True))
    middle = list(lines[ABOVE:BASE])
    while len(middle) > 6:
        costs = [(a ^ b).bit_count() for a, b in pairwise(middle)]
        at = costs.index(min(costs))
        middle[at : at + 2] = [middle[at] | middle[at + 1]]
    above = below = 0
    for line in lines[:ABOVE]:
        above |= line
    for line in lines[BASE:]:
        below |= line
    return bytes([above, *middle, below])


def main(source: str, directory: str) -> None:
    """Read `source`: lines of a code and 32 hex digits. Write the three fonts."""
    characters = {}
    for line in Path(source).read_text().splitlines():
        code, _, digits = line.partition(":")
        if digits:
            characters[int(code, 16)] = bytes.fromhex(digits)
    fonts = {
        "8x16": b"".join(characters[code] for code in range(256)),
        "8x14": b"".join(characters[code][1:15] for code in range(256)),
        "8x8": b"".join(shrink(characters[code], code) for code in range(256)),
    }
    for name, font in fonts.items():
        Path(directory, f"{name}.bin").write_bytes(font)


main(*sys.argv[1:])
