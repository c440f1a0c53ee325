"""The exits that happen most, in the typed subset of Python: one text, run twice.

CPython runs it as the reference. The product runs it compiled (`tools/native`), and
tests hold the two against each other. Everything that is not handled here goes on to
Python. What the subset has is told in `docs/maintainers/native.md`.
"""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import (
    Block,
    Control,
    Cpu,
    ShadowPdes,
    ShadowTable,
    WideTable,
)
from emu86.native.faults import exception, page_fault
from emu86.native.fills import fill
from emu86.native.flags import cli, pop_flags, sti
from emu86.native.gdt import load_sreg, open_gdt, settle
from emu86.native.ia32e import handled64
from emu86.native.prologue import shorten
from emu86.native.real_mode import deliver, has_low_iopl, repair
from emu86.native.records import i32, i64, u32, u64
from emu86.native.roots import write_cr3
from emu86.native.scan import guard_of
from emu86.native.setcc import setcc
from emu86.native.state import (
    NOWHERE,
    flags_of,
    host,
    knows_flags,
    leave,
    operand_offset,
    run_alone,
    set_flags,
    site_index,
    split,
    spte_of,
    stack_top,
    virtual_time,
    waits,
)
from emu86.native.tables import (
    directory_of,
    entry_at,
    first_shadow_pde,
    pde_index,
)
from emu86.native.timer import hlt
from emu86.native.transfers import interrupt, iret
from emu86.spec import x86

_FPU = x86.CR0_MP | x86.CR0_EM | x86.CR0_TS

# -- the clock -------------------------------------------------------------------------


def must_stop(control: Control, linear: u64) -> bool:
    """Tell whether to stop before the block at `linear`.

    The budget is spent, or the block is the first that could take the interrupt that
    waits. With TF set an exit follows anyway.
    """
    if control.now >= control.stop_at:
        control.late_at = linear
        return True
    if not control.pending:
        return False
    cpu = control.cpu.contents
    takes = cpu.rflags & (x86.IF | x86.TF) == x86.IF
    return takes and not cpu.hflags & offsets.HF_INHIBIT_IRQ


def on_block(uc: u64, address: u64, size: u32, control: Control) -> None:
    """Count the bytes of a block, and stop the engine before it if that is due."""
    cpu = control.cpu.contents
    if has_low_iopl(cpu):
        repair(uc, control, cpu)
        return
    control.now += size
    if must_stop(control, address):
        control.emu_stop(uc)


def set_limit(control: Control) -> None:
    """Have the next block look whether to stop if it may have to.

    Where an interrupt waits and IF is 0, an exit must come before IF can be 1, unless
    the guest's code sets it natively. Who sets it in an exit looks, or sets `limit`.
    """
    flags = control.cpu.contents.rflags
    may_open = flags & (x86.IF | x86.IOPL) != 0 or control.sets_if != 0
    control.limit = 0 if control.pending and may_open else control.stop_at


def on_late(control: Control, linear: u64) -> None:
    """Stop if it is due, then look as the engine would, as if the block had called.

    Blocks that count themselves (`cpu.prologue`) call this when there may be reason to.
    """
    if must_stop(control, linear):
        control.emu_stop(control.uc)
    set_limit(control)
    control.check_exit(control.uc, 0)


def on_guard(control: Control, linear: u32, now: u64) -> None:
    """Do what `on_late` does; or stop, as the block may use a register that is null.

    now: 0 if the register is.
    """
    if not now:
        control.null_used = 1
        control.emu_stop(control.uc)
    elif must_stop(control, linear):
        control.emu_stop(control.uc)
    set_limit(control)
    control.check_exit(control.uc, 0)


def on_rdtsc(_uc: u64, control: Control) -> i32:
    """Put the virtual nanoseconds, plus the TSC's offset, into EDX:EAX.

    1: the engine skips its own RDTSC.
    """
    cpu = control.cpu.contents
    control.now += control.tsc_cost
    control.count_rdtsc += 1
    now = virtual_time(control, control.now & x86.MASK64)
    tsc = now + control.tsc_offset & x86.MASK64
    cpu.gpr[x86.EAX] = tsc & x86.MASK32
    cpu.gpr[x86.EDX] = tsc >> 32
    return 1


# -- exceptions ------------------------------------------------------------------------


def has_new_pdes(control: Control) -> bool:
    """Tell whether a PDE that is linked in the shadow has changed since."""
    for run in range(64):
        if not control.linked_pdes >> run & 1:
            continue
        directory = run >> 4 & 3 if control.wide else 0
        if control.guest_pdes[directory] == NOWHERE:
            continue
        guest = WideTable.from_address(control.guest_pdes[directory])
        known = WideTable.from_address(control.known_pdes[directory])
        words = 32 if control.wide else 16
        start = words * run
        differ: u64 = 0
        for i in range(32):
            if i < words:
                differ |= guest[start + i & 511] ^ known[start + i & 511]
        if differ:
            return True
    return False


def invlpg(control: Control, cpu: Cpu, register: u32) -> bool:
    """Drop the shadow entry of the page that a register points into.

    Python's is what is unusual: no paging, DS not at 0, a PDE that has changed, one of
    4 MiB, a page with compiled sites, or more pages dropped than Python has heard of.
    """
    gva = cpu.gpr[register & 7] & x86.MASK32
    page = gva >> 12
    guarded = control.guarded[page >> 6 & abi.GUARDED_WORDS - 1] >> (page & 63) & 1
    if guarded or cpu.segments[x86.DS].base or not control.tables_known:
        return False
    count = control.dropped_count
    if count >= abi.DROPPED_MOST:
        return False
    pdes = control.guest_pdes[directory_of(control, gva) & 3]
    if pdes == NOWHERE:
        return False
    pde = entry_at(control, pdes, pde_index(control, gva))
    if pde & x86.PDE_PS or has_new_pdes(control):
        return False
    shadow_pdes = ShadowPdes.from_address(control.shadow_pdes)
    shadow_pde = shadow_pdes[gva >> 21]
    table = shadow_pde & ~0xFFF
    if table:
        at = table + control.vmm_memory_bias & x86.MASK64
        entries = ShadowTable.from_address(at)
        if entries[page & 511]:
            entries[page & 511] = 0
            control.count_dropped += 1
            first = shadow_pdes[first_shadow_pde(control, gva) & 2047]
            if control.leaves.contents[first >> 12 & abi.LEAF_PAGES - 1].is_shared:
                control.flush_tlb(control.engine_cpu)  # INVLPG of another finds 0
            else:
                control.flush_page(control.engine_cpu, gva & x86.PAGE_MASK)
    control.dropped[max(min(count, abi.DROPPED_MOST - 1), 0)] = page
    control.dropped_count = count + 1
    control.behind |= abi.DROPPED
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_invlpg += 1
    leave(control, cpu, 3)
    return True


def read_cr(control: Control, cpu: Cpu, register: u32, number: u32) -> bool:
    """Do a MOV from a control register."""
    low = control.cr0 if number == 0 else control.cr2
    high = control.cr3 if number == 3 else control.cr4
    cpu.gpr[register & 7] = (low if number < 3 else high) & x86.MASK32
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_read_cr += 1
    leave(control, cpu, 3)
    return True


def load_cr0(control: Control, cpu: Cpu, value: u32) -> bool:
    """Put a value into CR0; False: more than its MP, EM and TS would change."""
    cr0 = value & x86.CR0_DEFINED | x86.CR0_ET
    if (cr0 ^ control.cr0) & x86.MASK32 & ~_FPU:
        return False
    control.cr0 = cr0
    cpu.cr0 = cpu.cr0 & ~_FPU | cr0 & _FPU
    shift = offsets.HF_MP_EM_TS_SHIFT
    cpu.hflags = cpu.hflags & ~(_FPU << shift) | (cr0 & _FPU) << shift
    return True


def write_cr(control: Control, cpu: Cpu, register: u32, number: u32) -> bool:
    """Do a MOV to a control register."""
    if number == 3:
        return write_cr3(control, cpu, register)
    value = cpu.gpr[register & 7] & x86.MASK32
    if number == 0 and not load_cr0(control, cpu, value):
        return False
    if number == 4 and value != control.cr4:
        return False
    if number == 2:
        control.cr2 = value
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_write_cr += 1
    leave(control, cpu, 3)
    return True


def clts(control: Control, cpu: Cpu) -> bool:
    """Clear CR0.TS."""
    if not load_cr0(control, cpu, control.cr0 & ~x86.CR0_TS & x86.MASK32):
        return False
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_clts += 1
    leave(control, cpu, 2)
    return True


def popf(control: Control, cpu: Cpu) -> bool:
    """Take EFLAGS from the stack, all but IOPL, VM and RF; EIP is behind the POPFD."""
    at = stack_top(control, cpu, 4)
    if at == NOWHERE:
        return False
    image = ctypes.c_uint32.from_address(at).value
    return pop_flags(control, cpu, image, cpu.gpr[x86.ESP] + 4 & x86.MASK32)


def verw(control: Control, cpu: Cpu, index: u32) -> bool:
    """Do a VERW again whose selector and descriptor are what they were."""
    known = control.verws[index & 15]
    if cpu.segments[x86.CS].base or cpu.segments[x86.DS].base:
        return False
    if control.stale and not settle(control):
        return False
    if not knows_flags(control, cpu):
        return False
    at = host(control, known.operand, False)
    if at == NOWHERE:
        return False
    if ctypes.c_uint16.from_address(at).value | abi.PLANNED != known.known:
        return False
    set_flags(cpu, flags_of(control, cpu) & ~x86.ZF | known.zf)
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_verw += 1
    leave(control, cpu, known.length - 1 & 15)
    return True


def access(control: Control, cpu: Cpu, kind: i64) -> bool:
    """Look at an access by a data segment, as `rings.events.protection` does.

    kind: see `abi.access_kind`. An access that is allowed runs next, alone. In 16-bit
    code the same bytes are another access, which is Python's.
    """
    if waits(control, cpu) or cpu.rflags & x86.AC or not cpu.hflags & offsets.HF_CS32:
        return False
    segment = cpu.segments[min(kind >> 4 & 7, 5)]
    offset = operand_offset(cpu, kind)
    # Of a data segment that does not expand down P alone is set.
    writable = x86.DESC_RW if kind >> 7 & 1 else 0
    asked = x86.DESC_P | x86.DESC_CODE | x86.DESC_CE | writable
    if segment.attributes & asked != x86.DESC_P | writable:
        return False
    # Where the segment has no limit any more Python counts: `SegmentChecks.passed`.
    if offset + (kind >> 20 & 15) > segment.limit or segment.limit == x86.MASK32:
        return False
    control.count_access += 1
    run_alone(control, cpu)
    return True


def at_site(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Handle an exit at an instruction that Python has given.

    A #GP(0) (that is no INT 0Dh) is that of a privileged one; an INT3 is that of a
    patched one. An IRET that is not patched traps by its selector. All but accesses and
    SETcc are the guest's ring 0's.
    """
    is_break = vector == x86.VEC_BP and cpu.is_int == 1
    if not is_break and (vector != x86.VEC_GP or cpu.is_int):
        return False
    start = cpu.rip - (1 if is_break else 0) & x86.MASK32
    linear = start + cpu.segments[x86.CS].base & x86.MASK32
    # By the shadow tables, which the engine has fetched it through: another CR3 may
    # have something else there.
    frame = spte_of(control, linear) & x86.LONG_FRAME
    page = frame >> x86.PAGE_SHIFT & abi.PAGES_MOST - 1
    place = linear | page << abi.SITE_PAGE
    index = site_index(linear)
    found = control.sites[index & abi.SITE_MASK].place == place
    site = control.sites[(index if found else index ^ 1) & abi.SITE_MASK]
    if site.place != place:
        return False
    kind = site.kind
    if is_break and kind & 15 == abi.SITE_ACCESS:
        return access(control, cpu, kind)
    if is_break and kind & 15 == abi.SITE_SETCC:
        return setcc(control, cpu, kind)
    if cpu.hflags & offsets.HF_CPL != 1:
        return False
    if kind == abi.SITE_IRET:
        return iret(control, cpu, start)
    if is_break:
        if kind == abi.SITE_POPF:
            return popf(control, cpu)
        if kind & 15 == abi.SITE_VERW:
            return verw(control, cpu, kind >> 4 & 15)
        return kind == abi.SITE_SPLIT and split(control, cpu)
    if cpu.error_code:
        return False
    if kind == abi.SITE_CLI:
        return cli(control, cpu)
    if kind == abi.SITE_STI:
        return sti(control, cpu)
    if kind & 15 == abi.SITE_INVLPG:
        return invlpg(control, cpu, kind >> 4 & 7)
    if kind & 15 == abi.SITE_WRITE_CR:
        return write_cr(control, cpu, kind >> 4 & 7, kind >> 8 & 7)
    if kind & 15 == abi.SITE_READ_CR:
        return read_cr(control, cpu, kind >> 4 & 7, kind >> 8 & 7)
    if kind == abi.SITE_HLT:
        return hlt(control, cpu)
    return kind == abi.SITE_CLTS and clts(control, cpu)


def handled(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Handle an exception or an INT n here, if that can be; False: nothing is done.

    With TF set, in virtual-8086 mode, and while a patch stands, all are Python's.
    """
    if not cpu.hflags & offsets.HF_PE:
        return deliver(control, cpu, vector)
    if cpu.rflags & (x86.TF | x86.VM) or control.patched:
        return False
    if control.efer & x86.EFER_LMA:
        return handled64(control, cpu, vector)
    if vector == x86.VEC_PF and not cpu.is_int:
        if fill(control, cpu) or open_gdt(control, cpu):
            return True
        return page_fault(control, cpu)
    if at_site(control, cpu, vector):
        return True
    if not cpu.is_int:
        return load_sreg(control, cpu, vector) or exception(control, cpu, vector)
    if cpu.is_int != 1 or vector in (x86.VEC_BP, x86.VEC_OF):
        return False
    return interrupt(control, cpu, vector)


def on_exception(uc: u64, vector: u32, control: Control) -> None:
    """Handle an exception here, or have Python do it."""
    if not handled(control, control.cpu.contents, vector):
        control.on_exception(uc, vector, 0)


# -- blocks ----------------------------------------------------------------------------


def on_edge(uc: u64, block: u64, previous: u64, control: Control) -> None:
    """Take a block that has been translated; Python's is what is not the usual."""
    made = Block.from_address(block)
    pc = made.pc
    guard = guard_of(control, pc, made.size)
    if guard >= 0 and shorten(control, pc, made.size, guard):
        control.count_blocks += 1
    else:
        control.judged = guard
        control.on_edge(uc, block, previous, 0)


# -- operands --------------------------------------------------------------------------


def on_look(_uc: u64, address: u64, _size: u32, sites: u64) -> None:
    """Look at the operand of an SSE instruction of `sites` before it runs.

    What `rings.insn.sse_operands.check` does. sites: address of the control block's
    address, pairs of an instruction's address and its word, and -1. A fault leaves the
    engine here, with EIP at the instruction and no flag computed; behind this it would
    lose flags, so the pages are tried, too.
    """
    control = Control.from_address(ctypes.c_uint64.from_address(sites).value)
    cpu = control.cpu.contents
    cpu.rflags &= ~(x86.ARITHMETIC_FLAGS | x86.DF)
    at: u64 = sites + 8 & x86.MASK64
    while True:
        place = ctypes.c_uint64.from_address(at).value
        if place == address:
            word = ctypes.c_uint64.from_address(at + 8 & x86.MASK64).value
            look(control, cpu, word)
            return
        if place == x86.MASK64:
            return
        at = at + 16 & x86.MASK64


def look(control: Control, cpu: Cpu, word: u64) -> None:
    """Look at the operand that `abi`'s word tells of."""
    off = (x86.CR0_EM | x86.CR0_TS) << offsets.HF_MP_EM_TS_SHIFT
    has_sse = bool(cpu.hflags & offsets.HF_OSFXSR)
    is_fxsave = bool(word >> abi.LOOK_FXSAVE & 1)
    if cpu.hflags & off or not (has_sse or is_fxsave):
        return
    shift = word >> abi.LOOK_SCALE & 3
    index = cpu.gpr[word >> abi.LOOK_INDEX & 15] << shift & x86.MASK64
    offset = cpu.gpr[word >> abi.LOOK_BASE & 15] + index + word & x86.MASK32
    mask = 0xFFFF if word >> abi.LOOK_16 & 1 else x86.MASK32
    segment = cpu.segments[min(word >> abi.LOOK_SEGMENT & 7, 5)]
    linear = segment.base + (offset & mask) & x86.MASK32
    state = ctypes.addressof(cpu)
    if word >> abi.LOOK_ALIGNED & 1 and linear & 15:
        control.raise_exception(state, x86.VEC_GP, 0)
        return
    writes = word >> abi.LOOK_WRITTEN & 1
    mmu = 1 if cpu.hflags & offsets.HF_CPL == 3 else 2
    control.probe_access(state, linear, 1, writes, mmu, 0)
    end = linear + (511 if is_fxsave else 0) & x86.MASK32
    control.probe_access(state, end, 1, writes, mmu, 0)
    mxcsr = word >> abi.LOOK_MXCSR & 63
    if mxcsr and has_sse:
        at = linear + mxcsr - 1 & x86.MASK32
        if control.read32(state, at, 0) >> 16:
            control.raise_exception(state, x86.VEC_GP, 0)
