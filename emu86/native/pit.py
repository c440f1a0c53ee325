"""Counters of the 8254 as time passes and as they are read: see `devices.pit`.

Times are in the chip's clock pulses. Before a counter is looked at it is brought to
the time by `sync`.
"""

from typing import Final

from emu86.native import abi
from emu86.native.abi import Counter
from emu86.native.records import i64, u32, u64
from emu86.spec import x86

FREQUENCY: Final = 1_193_182
"""Clock of the chip in Hz: a third of the 3.579545 MHz of the NTSC colour carrier."""

SECOND: Final = 1_000_000_000


def ticks(now: u64) -> i64:
    """Return the number of clock pulses up to time `now` (ns)."""
    return now // SECOND * FREQUENCY + now % SECOND * FREQUENCY // SECOND


def tick_time(t: u64) -> u64:
    """Return the first time (ns) at which `ticks` gives `t`."""
    rest = t % FREQUENCY * SECOND + FREQUENCY - 1
    return t // FREQUENCY * SECOND + rest // FREQUENCY & x86.MASK64


def elapsed(counter: Counter, t: i64) -> u64:
    """Return the pulses that the count last loaded has counted."""
    if counter.held != abi.NONE:
        return counter.held & x86.MASK64
    return 0 if t < counter.origin else t - counter.origin & x86.MASK64


def effective_reload(counter: Counter) -> u32:
    """Return the count that would be loaded: 1, which is illegal in 2 and 3, is 2."""
    return max(counter.reload, 2 if counter.mode in (2, 3) else 0)


def take_reload(counter: Counter) -> None:
    """Have the count register in the counting element."""
    counter.period = effective_reload(counter)
    counter.null_count = 0


def load(counter: Counter) -> bool:
    """Load the count at `load_at`; tell whether OUT rose, which ends a strobe."""
    was_high = counter.out
    counter.origin = counter.load_at
    counter.load_at = abi.NONE
    counts = counter.gate != 0 or counter.mode in (1, 5)
    counter.held = abi.NONE if counts else 0
    counter.expired = 0
    counter.out = counter.mode > 1
    take_reload(counter)
    return counter.out > was_high


def sync_rate(counter: Counter, t: i64) -> bool:
    """Mode 2: low for the last pulse of each cycle."""
    rose = elapsed(counter, t) >= counter.period
    if rose:
        counter.origin += counter.period
        take_reload(counter)
        period = max(counter.period, 1)
        counter.origin += elapsed(counter, t) // period * period
    counter.out = elapsed(counter, t) != max(counter.period, 1) - 1
    return rose


def sync_square(counter: Counter, t: i64) -> bool:
    """Mode 3: high for half of the cycle, and for the odd pulse."""
    rose = False
    while True:
        half = (counter.period + counter.out) // 2
        if elapsed(counter, t) < half:
            return rose
        counter.origin += half
        counter.out ^= 1
        take_reload(counter)
        period = max(counter.period, 1)
        cycles = elapsed(counter, t) // period
        counter.origin += cycles * period
        rose = rose or counter.out == 1 or cycles > 0


def sync(counter: Counter, t: i64) -> bool:
    """Bring a counter to pulse `t`; tell whether OUT rose on the way."""
    rose = False
    if counter.load_at != abi.NONE and counter.load_at <= t:
        rose = load(counter)
    if not counter.period or counter.held != abi.NONE:
        return rose
    if counter.mode == 2:
        return sync_rate(counter, t) or rose
    if counter.mode == 3:
        return sync_square(counter, t) or rose
    if counter.expired:  # since it was loaded
        return False
    passed = elapsed(counter, t)
    # In modes 4 and 5 OUT is low for the pulse at which the count is 0.
    if passed >= counter.period + (1 if counter.mode >= 4 else 0):
        counter.expired = 1
        counter.out = 1
        return True
    counter.out = counter.mode >= 4 and passed != counter.period
    return rose


def next_edge(counter: Counter) -> u64:
    """Return the pulse of the next edge of OUT; NEVER: it stays.

    The falling edges of the low pulses of modes 2, 4 and 5 are left out.
    """
    length: u32 = counter.period
    high: u32 = counter.out
    start: i64 = counter.origin
    if counter.load_at != abi.NONE:
        if not counter.gate and counter.mode not in (1, 5):
            return abi.NEVER
        if counter.mode >= 4 and not counter.out:
            return counter.load_at & x86.MASK64  # it ends the strobe before
        length = effective_reload(counter)
        high = 1
        start = counter.load_at
    elif not counter.period or counter.held != abi.NONE or counter.expired:
        return abi.NEVER
    if counter.mode == 3:
        return start + (length + high) // 2 & x86.MASK64
    return start + length + (1 if counter.mode >= 4 else 0) & x86.MASK64


def is_quiet(counter: Counter, t: i64) -> bool:
    """Tell whether OUT stays as it is up to pulse `t`: the chip's line need not hear.

    Not of one that is about to be loaded, nor of all others that it could tell of.
    """
    if counter.load_at != abi.NONE or counter.held != abi.NONE:
        return False
    if counter.mode == 2:
        return counter.out != 0 and elapsed(counter, t) < max(counter.period, 1) - 1
    if counter.mode == 3:
        return elapsed(counter, t) < (counter.period + counter.out) // 2
    return counter.expired != 0


def latch(counter: Counter, t: i64) -> None:
    """Keep the count to be read; a latched one is kept (Counter Latch)."""
    if counter.latched == abi.NONE:
        counter.latched = count(counter, t)


def count(counter: Counter, t: i64) -> u32:
    """Return the counting element as it is read: 16 bits, binary or BCD."""
    if not counter.period:
        return counter.idle
    passed = elapsed(counter, t)
    if counter.mode == 3:  # by twos, from the even number below
        half = counter.period // 2
        return digits(counter, half - passed << 1 & 0xFFFF if passed < half else 0)
    if counter.bcd:
        return digits(counter, (counter.period + 10_000 - passed % 10_000) & x86.MASK32)
    return counter.period - passed & 0xFFFF


def digits(counter: Counter, value: u32) -> u32:
    """Return a count as the counting element shows it."""
    if not counter.bcd:
        return value & 0xFFFF
    high = value // 1000 % 10 << 12 | value // 100 % 10 << 8
    return high | value // 10 % 10 << 4 | value % 10


def read(counter: Counter, t: i64) -> u32:
    """Read a byte: of the latched status, the latched count or the count."""
    if counter.status != abi.NONE:
        status = counter.status & 0xFF
        counter.status = abi.NONE
        return status
    latched = counter.latched
    value = count(counter, t) if latched == abi.NONE else latched & 0xFFFF
    if counter.access == 3 and not counter.read_high:
        counter.read_high = 1
        return value & 0xFF
    counter.read_high = 0
    counter.latched = abi.NONE
    return (value if counter.access == 1 else value >> 8) & 0xFF


def write_low(counter: Counter, value: u32) -> bool:
    """Write the low byte of a new count to a counter that is done; False: it is not.

    Until the high byte comes that changes nothing that can be seen.
    """
    is_done = counter.expired != 0 and counter.load_at == abi.NONE
    if not is_done or not counter.mode or counter.access != 3 or counter.write_high:
        return False
    counter.low_byte = value
    counter.write_high = 1
    return True


def write_high(counter: Counter, value: u32, t: i64) -> bool:
    """Write the high byte of the count of a single strobe that is done (mode 4).

    Its line stays high until then. False: nothing is done.
    """
    is_done = counter.expired != 0 and counter.load_at == abi.NONE
    if not is_done or counter.mode != 4 or counter.access != 3 or counter.bcd:
        return False
    if not counter.write_high or not counter.gate:
        return False
    counter.write_high = 0
    new = (value & 0xFF) << 8 | counter.low_byte & 0xFF
    counter.reload = 0x10000 if new == 0 else new
    counter.null_count = 1
    counter.load_at = t + 1
    return True
