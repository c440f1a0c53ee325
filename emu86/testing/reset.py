"""Put a machine's RAM back, so that it can run another program.

It goes back page by page, those alone that differ, and the VMM learns of each. The rest
of a machine is `Technique.restore`'s.
"""

import mmap
from collections.abc import Iterator
from typing import Final

from emu86.rings.technique.base import Technique
from emu86.spec import x86

_PART: Final = 16 * x86.PAGE_SIZE  # what is compared at once


def changed_pages(
    now: bytes | mmap.mmap, then: bytes | bytearray
) -> Iterator[tuple[int, bytes]]:
    """Give the pages that differ, by number, and what they hold now."""
    for part in range(0, len(then), _PART):
        if now[part : part + _PART] == then[part : part + _PART]:
            continue
        for start in range(part, min(part + _PART, len(then)), x86.PAGE_SIZE):
            page = now[start : start + x86.PAGE_SIZE]
            if page != then[start : start + x86.PAGE_SIZE]:
                yield start >> x86.PAGE_SHIFT, page


def put(vmm: Technique, image: bytes | bytearray) -> None:
    """Make RAM an image again: the VMM learns which pages change."""
    for page, _data in changed_pages(vmm.ram.map, image):
        vmm.before_write(page)
        start = page << x86.PAGE_SHIFT
        end = start + x86.PAGE_SIZE
        vmm.ram.bytes[start:end] = image[start:end]
