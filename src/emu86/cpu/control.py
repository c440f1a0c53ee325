"""The control block: int64 words that Python and the compiled hooks share.

Kept apart from `native` so that the fallback without compiled hooks needs no numba.
"""

from typing import Final

NOW: Final = 0  # virtual time, quarter nanoseconds
STOP_AT: Final = 1  # the block hook stops the engine once NOW has reached it
UC: Final = 2  # the engine's handle
UC_EMU_STOP: Final = 3  # address of uc_emu_stop
STATE: Final = 4  # address of the live CPU state
ON_EXCEPTION: Final = 5  # address of the Python exception hook
PENDING: Final = 6  # not 0: an interrupt waits for IF
TSC_OFFSET: Final = 7  # TSC at virtual time 0, nanoseconds
TSC_COST: Final = 8  # quarter nanoseconds that one RDTSC takes
COUNT_CLI: Final = 10
COUNT_STI: Final = 11
COUNT_RDTSC: Final = 12
# A direct-mapped cache of decoded sites: pairs (linear address, kind).
SITES: Final = 64
SITE_MASK: Final = 4095
WORDS: Final = SITES + 2 * (SITE_MASK + 1)

SITE_CLI: Final = 1
SITE_STI: Final = 2

QUARTERS: Final = 4  # quarter nanoseconds in a nanosecond
NEVER: Final = 1 << 62
# An exit takes the guest time too, or one that does nothing but fault would stand still
# and never come to the next look at the host. Whoever handles it, it is the same.
EXIT_COST: Final = 1000 * QUARTERS


def site_slot(linear: int) -> int:
    """Return the word index of the cache slot for the code at `linear`."""
    return SITES + 2 * ((linear ^ (linear >> 12)) & SITE_MASK)
