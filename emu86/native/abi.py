"""The control block: int64 words that Python and the compiled hooks share.

Kept apart from `hooks` so that the fallback without compiled hooks needs no compiler.
"""

from typing import Final

NOW: Final = 0  # work done; virtual time in quarter nanoseconds at the usual rate
STOP_AT: Final = 1  # the block hook stops the engine once NOW has reached it
UC: Final = 2  # the engine's handle
UC_EMU_STOP: Final = 3  # address of uc_emu_stop
STATE: Final = 4  # address of the live CPU state
ON_EXCEPTION: Final = 5  # address of the Python exception hook
PENDING: Final = 6  # not 0: an interrupt waits for IF
TSC_OFFSET: Final = 7  # TSC at virtual time 0, nanoseconds
TSC_COST: Final = 8  # work that one RDTSC takes
EXIT_COST: Final = 9  # work that any other exit takes, whoever handles it
COUNT_CLI: Final = 10
COUNT_STI: Final = 11
COUNT_RDTSC: Final = 12
COUNT_INVLPG: Final = 13
ON_GUARD: Final = 14  # address of `hooks.on_guard`
CPU: Final = 15  # what it wants as first argument
# For INVLPG: addresses in this process of the current shadow root's 2048 PDEs (0: no
# paging), of the guest's page directory and of the VMM's copy of that; what to add to a
# host-physical address to get one of this process; and a bit for each 32 PDEs of which
# some are linked.
SHADOW_PDES: Final = 16
GUEST_PDES: Final = 17
KNOWN_PDES: Final = 18
VMM_MEMORY_BIAS: Final = 19
LINKED_PDES: Final = 20
COUNT_DROPPED: Final = 21  # shadow entries dropped by the compiled INVLPG
CHECK_EXIT: Final = 22  # address of the engine's look whether to stop
COUNT_SPLIT: Final = 23  # CMPXCHG8Bs made the first of a block
# Linear pages that the compiled INVLPG has dropped and Python's caches do not know of.
DROPPED_COUNT: Final = 24
DROPPED: Final = 25
DROPPED_MOST: Final = 32
# Virtual time is NS + ((NOW - SINCE) * RATE >> RATE_SHIFT) nanoseconds.
SINCE: Final = 57
NS: Final = 58
RATE: Final = 59
RATE_SHIFT: Final = 32
# What compiled code that looks at operands calls: the engine's functions that raise an
# exception, see that a page can be used, and read 32 bits.
RAISE: Final = 60
PROBE: Final = 61
READ32: Final = 62
FLUSH_PAGE: Final = 63  # address of the engine's one-page TLB flush, or 0
# A set of linear pages whose INVLPG is Python's, by their number's low 12 bits.
GUARDED: Final = 64
GUARDED_WORDS: Final = 64
# A direct-mapped cache of decoded sites: pairs (linear address, kind).
SITES: Final = 128
SITE_MASK: Final = 4095
_END: Final = SITES + 2 * (SITE_MASK + 1)
NULL_USED: Final = _END  # not 0: a guarded block has found a register null
COUNT_ACCESS: Final = _END + 1  # accesses that have been looked at, and let go
WORDS: Final = _END + 2

SITE_CLI: Final = 1
SITE_STI: Final = 2
SITE_SPLIT: Final = 3
SITE_ACCESS: Final = 4  # see `access_kind`
NO_REGISTER: Final = 8  # R8, which is 0 for 32-bit guests
SITE_INVLPG: Final = 8  # plus the number of the register that holds the address
INVLPG_LENGTH: Final = 3

# An operand to look at, in a word: its displacement in the low 32 bits, the numbers of
# base and index, a shift, the segment register, and bits: 16-bit addresses; at a
# multiple of 16; written; of 512 bytes, without need of CR4.OSFXSR. At last from what
# byte of it on MXCSR is loaded, plus 1, or 0.
LOOK_BASE: Final = 32
LOOK_INDEX: Final = 36
LOOK_SCALE: Final = 40
LOOK_SEGMENT: Final = 42
LOOK_16: Final = 45
LOOK_ALIGNED: Final = 46
LOOK_WRITTEN: Final = 47
LOOK_FXSAVE: Final = 48
LOOK_MXCSR: Final = 49

QUARTERS: Final = 4  # quarter nanoseconds in a nanosecond
NEVER: Final = 1 << 62
# An exit takes the guest time too, or one that does nothing but fault would stand still
# and never come to the next look at the host.
EXIT_TIME: Final = 1000 * QUARTERS


def access_kind(
    segment: int, size: int, base: int, index: int, scale: int, displacement: int,
    *, write: bool,
) -> int:  # fmt: skip
    """Return the kind of a site that accesses memory by a segment with a limit.

    size: 1 to 16 bytes; base, index: registers, or -1; displacement: 32 bits.
    """
    kind = SITE_ACCESS | segment << 4 | write << 7 | scale << 16 | (size - 1) << 20
    kind |= (base if base >= 0 else NO_REGISTER) << 8
    kind |= (index if index >= 0 else NO_REGISTER) << 12
    signed = (displacement + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    return kind | signed << 32


def site_slot(linear: int) -> int:
    """Return the word index of the cache slot for the code at `linear`."""
    return SITES + 2 * ((linear ^ (linear >> 12)) & SITE_MASK)
