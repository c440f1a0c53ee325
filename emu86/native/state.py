"""What several handlers do: flags, memory by the shadow tables, the end of an exit."""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, Segment, ShadowPdes
from emu86.native.records import i64, u32, u64
from emu86.spec import x86

_LAZY = x86.ARITHMETIC_FLAGS | x86.DF
_CC_OP_EFLAGS = 1
_DERIVED = (
    offsets.HF_CPL | offsets.HF_CS32 | offsets.HF_SS32 | offsets.HF_ADDSEG
    | offsets.HF_CS64 | offsets.HF_INHIBIT_IRQ
)  # fmt: skip
_MODE = offsets.HF_PE | offsets.HF_LMA
_LEVELS = 5  # of tables: `mmu.shadow_tree`
NOWHERE = 0


def knows_flags(control: Control, cpu: Cpu) -> bool:
    """Tell whether `flags_of` can be asked: it may need a function of the engine's."""
    return cpu.cc_op == _CC_OP_EFLAGS or bool(control.compute_flags)


def flags_of(control: Control, cpu: Cpu) -> u32:
    """Return the hardware's EFLAGS; the arithmetic flags may be in another form."""
    arithmetic = (
        cpu.cc_src
        if cpu.cc_op == _CC_OP_EFLAGS
        else control.compute_flags(cpu.cc_dst, cpu.cc_src, cpu.cc_src2, cpu.cc_op)
    )
    lazy = arithmetic & x86.ARITHMETIC_FLAGS | (0 if cpu.df == 1 else x86.DF)
    return cpu.rflags & x86.FLAGS_DEFINED & ~_LAZY | lazy


def set_flags(cpu: Cpu, value: u32) -> None:
    """Write EFLAGS."""
    cpu.rflags = value & ~_LAZY | x86.FLAGS_FIXED
    cpu.cc_op = _CC_OP_EFLAGS
    cpu.cc_src = value & x86.ARITHMETIC_FLAGS
    cpu.df = x86.MASK32 if value & x86.DF else 1


def load_segment(to: Segment, made: Segment) -> None:
    """Load a segment register with what a plan has."""
    to.selector = made.selector
    to.base = made.base
    to.limit = made.limit
    to.attributes = made.attributes


def sync_mode(cpu: Cpu, cpl: u32) -> None:
    """Set the hardware's CPL and what the engine derives from CS, SS, DS and ES.

    An interrupt is held off no longer.
    """
    segments = cpu.segments
    mode = cpu.hflags & ~_DERIVED | cpl | _MODE
    wide = segments[x86.CS].attributes & x86.DESC_B
    based = segments[x86.DS].base | segments[x86.ES].base | segments[x86.SS].base
    code = offsets.HF_CS32 if wide else offsets.HF_ADDSEG
    data = offsets.HF_ADDSEG if based else 0
    stack = offsets.HF_SS32 if segments[x86.SS].attributes & x86.DESC_B else 0
    cpu.hflags = mode | code | data | stack


def virtual_time(control: Control, work: u64) -> u64:
    """Return the virtual nanoseconds when so much work is done."""
    passed = work - control.since & x86.MASK64
    rate = control.rate & x86.MASK64
    low = rate & x86.MASK32
    # (passed * rate) >> RATE_SHIFT, by halves.
    whole = passed * (rate >> 32) & x86.MASK64
    part = (passed >> 32) * low + ((passed & x86.MASK32) * low >> 32) & x86.MASK64
    return control.ns + whole + part & x86.MASK64


def work_at(control: Control, ns: u64) -> i64:
    """Return how much work is done at virtual time `ns`, which is to come."""
    rate = max(control.rate & abi.RATE_MOST, 1)
    ahead = ns - control.ns & x86.MASK64
    # (ahead << RATE_SHIFT) / rate, 16 bits at a time, and up.
    rest = ahead % rate << 16
    last = ((rest % rate << 16) + rate - 1) // rate
    work = (ahead // rate << 32) + (rest // rate << 16) & x86.MASK64
    return control.since + work + last & x86.MASK64 >> 1


def stop_by(control: Control, ns: u64) -> None:
    """Have the engine stop at that virtual time (ns), if it does not sooner."""
    at = work_at(control, ns)
    control.stop_for = min(control.stop_for, at)
    control.stop_at = min(control.stop_at, at)
    control.limit = min(control.limit, control.stop_at)


def operand_offset(cpu: Cpu, kind: i64) -> u32:
    """Return where in its segment a site's operand is: see `abi.access_kind`."""
    index = cpu.gpr[kind >> 12 & 15] << (kind >> 16 & 3) & x86.MASK64
    offset: u32 = cpu.gpr[kind >> 8 & 15] + index + (kind >> 32) & x86.MASK32
    return offset


def is_canonical(linear: u64) -> bool:
    """Tell whether bits 63 to 47 are all alike."""
    return linear >> 47 in (0, 0x1FFFF)


def spte_address(control: Control, linear: u32) -> u64:
    """Return where in this process the shadow entry of a page is, or NOWHERE."""
    if not control.shadow_pdes:
        return NOWHERE
    shadow_pde = ShadowPdes.from_address(control.shadow_pdes)[linear >> 21]
    if not shadow_pde & x86.PTE_P:
        return NOWHERE
    table = (shadow_pde & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
    return table + 8 * (linear >> 12 & 511) & x86.MASK64


def spte_of(control: Control, linear: u32) -> u64:
    """Return the shadow entry that maps a linear address, or 0."""
    at = spte_address(control, linear)
    if at == NOWHERE:
        return 0
    entry = ctypes.c_uint64.from_address(at).value
    return entry if entry & x86.PTE_P else 0


def spte_address_64(control: Control, linear: u64) -> u64:
    """Return where in this process the shadow entry of a page is, or NOWHERE."""
    entry: u64 = control.cpu.contents.cr3 | x86.PTE_P
    at: u64 = NOWHERE
    for level in range(_LEVELS):
        if not entry & x86.PTE_P:
            return NOWHERE
        index = linear >> 48 - 9 * level & 511
        table = (entry & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
        at = table + 8 * index & x86.MASK64
        entry = ctypes.c_uint64.from_address(at).value
    return at


def spte_of_64(control: Control, linear: u64) -> u64:
    """Return the shadow entry that maps an address of 64 bits, or 0."""
    at = spte_address_64(control, linear)
    if at == NOWHERE:
        return 0
    entry = ctypes.c_uint64.from_address(at).value
    return entry if entry & x86.PTE_P else 0


def host(control: Control, linear: u32, write: bool) -> u64:
    """Return where in this process a linear address is, or NOWHERE.

    By the shadow tables, for ring 0: what the engine could access itself, but a user's
    page while there is SMAP. Code is written at the engine's slow path alone.
    """
    entry = entry_for(control, linear)
    if entry & control.no_user_data:
        return NOWHERE
    return host_of(control, entry, linear, write)


def entry_for(control: Control, linear: u32) -> u64:
    """Return the shadow entry that maps a linear address, with paging or without."""
    if control.direct:
        return entry_of_itself(control, linear)
    return spte_of(control, linear)


def entry_of_itself(control: Control, linear: u32) -> u64:
    """Return the shadow entry that would do for an address without paging; or 0."""
    if linear >= control.ram_size:
        return 0
    state = control.page_state.contents[linear >> 12]
    if state == abi.UNBACKED:
        return 0
    entry = linear & x86.PAGE_MASK | x86.PTE_P
    return entry | x86.PTE_RW | x86.PTE_NX if state == abi.DATA else entry


def host_of(control: Control, entry: u64, linear: u32, write: bool) -> u64:
    """Return where in this process a linear address is that a shadow entry maps."""
    if not entry or (write and not (entry & x86.PTE_RW and entry & x86.PTE_NX)):
        return NOWHERE
    frame = entry & x86.LONG_FRAME
    if frame >= control.ram_size:
        return NOWHERE
    return control.ram + frame + (linear & 0xFFF) & x86.MASK64


def stack_top(control: Control, cpu: Cpu, size: u32) -> u64:
    """Return where in this process `size` bytes at SS:ESP are, or NOWHERE.

    Of a stack of 32 bits without limit, all in one page; size: at most 20.
    """
    stack = cpu.segments[x86.SS]
    linear = stack.base + cpu.gpr[x86.ESP] & x86.MASK32
    if not stack.attributes & x86.DESC_B or stack.limit != x86.MASK32:
        return NOWHERE
    if linear & 0xFFF > x86.PAGE_SIZE - size:
        return NOWHERE
    return host(control, linear, False)


def site_index(linear: u32) -> u32:
    """Return where the site at a linear address is, or else it is at this index ^ 1."""
    return (linear ^ linear >> 12) & abi.SITE_MASK


def run_alone(control: Control, cpu: Cpu) -> None:
    """End an exit at an INT3: the instruction under it runs next, in its own block.

    In the shadow of an interrupt a block is one instruction, and no patch is in it.
    """
    is_64_bit = cpu.hflags & offsets.HF_CS64
    cpu.rip = cpu.rip - 1 & (x86.MASK64 if is_64_bit else x86.MASK32)
    cpu.hflags |= offsets.HF_INHIBIT_IRQ
    leave(control, cpu, 0)


def split(control: Control, cpu: Cpu) -> bool:
    """Let the instruction under an INT3 run natively, in a block of its own."""
    if waits(control, cpu):
        return False
    control.count_split += 1
    run_alone(control, cpu)
    return True


def waits(control: Control, cpu: Cpu) -> bool:
    """Tell whether an interrupt waits that may come in: it is Python's."""
    return control.pending != 0 and bool(cpu.rflags & x86.IF)


def leave(control: Control, cpu: Cpu, length: u32) -> None:
    """End an exit: go on `length` bytes further, and stop if the time is spent."""
    is_64_bit = cpu.hflags & offsets.HF_CS64
    cpu.rip = cpu.rip + length & (x86.MASK64 if is_64_bit else x86.MASK32)
    cpu.old_exception = x86.MASK32
    control.now += control.exit_cost
    if control.now >= control.stop_at:
        control.emu_stop(control.uc)
