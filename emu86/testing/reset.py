"""Put a machine's RAM back, so that it can run another program.

It goes back page by page, those alone that differ, and the VMM learns of each. The rest
of a machine is `Technique.restore`'s.
"""

import numpy as np

from emu86.rings.technique.base import Technique
from emu86.spec import x86


def put(vmm: Technique, image: bytes | bytearray) -> None:
    """Make RAM an image again: the VMM learns which pages change."""
    now = np.frombuffer(vmm.ram.bytes, np.uint64).reshape(-1, x86.PAGE_SIZE // 8)
    then = np.frombuffer(image, np.uint64).reshape(-1, x86.PAGE_SIZE // 8)
    for page in np.flatnonzero((now != then).any(axis=1)):
        vmm.before_write(int(page))
        start = int(page) << x86.PAGE_SHIFT
        end = start + x86.PAGE_SIZE
        vmm.ram.bytes[start:end] = image[start:end]
