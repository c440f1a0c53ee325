"""What Python and the compiled handlers share: the CPU's state and the control block.

Each is described once. Of the control block Python sees int64 words, by their number,
which is quick: `control[NOW]`. The handlers see its fields: `control.now`; so does
Python where there is no hurry (`Engine.shared`).
"""

import ctypes
from collections.abc import Iterator
from typing import Annotated, Any, Final, TypeAlias

from emu86.cpu import offsets
from emu86.native.records import (
    CFunction,
    Pointer,
    at,
    function,
    i32,
    i64,
    record,
    u16,
    u32,
    u64,
)

QUARTERS: Final = 4  # quarter nanoseconds in a nanosecond
RATE_SHIFT: Final = 32
RATE_MOST: Final = (1 << 44) - 1
NEVER: Final = 1 << 62
# An exit takes the guest time too, or one that does nothing but fault would stand still
# and never come to the next look at the host.
EXIT_TIME: Final = 1000 * QUARTERS
IO_TIME: Final = 1000 * QUARTERS  # an ISA bus cycle takes about a microsecond

GUARDED_WORDS: Final = 64
DROPPED_MOST: Final = 256
SITE_MASK: Final = 4095
RETURNS: Final = 16  # plans of returns, and of gates
GATES: Final = 128
VERWS: Final = 16
ADDED_MOST: Final = 2048
ADDED_FULL: Final = ADDED_MOST - 32  # compiled code fills no more until Python looks
LEAF_PAGES: Final = 16384  # pages of the VMM's memory
VMM_BASE: Final = 1 << 39  # its host-physical address; the first page is of ones
ROOTS: Final = 256
DIRECTORIES: Final = 4  # of PDEs that a root has at most
PAGES_MOST: Final = 1 << 24  # of guest-physical memory: MAXPHYADDR is 36
HELD_MOST: Final = 32
UPPERS_MOST: Final = 256  # shadow tables of a root above its leaf tables, less one
GDT_MOST: Final = 64  # descriptors of a GDT that compiled handlers may read again
PORTS: Final = 1024  # from 0 on, of which compiled code may do some
SENT_MOST: Final = 256  # bytes sent on a serial line that Python has not heard of
CPUID_LEAVES: Final = 16
TRANSFER_WORDS: Final = 1 << 12  # that fit into one block of an ATA drive
TO_HOST: Final = 1
TO_DRIVE: Final = 2
CHANNELS: Final = 2
CPUID_80000001: Final = 5  # where that leaf is among those of `Control.cpuid`

# An entry of `opcodes`: bits, and masks by ModRM.reg (or bit 0 of one: no ModRM).
OPCODE_MODRM: Final = 1 << 0
OPCODE_REGISTERS: Final = 1 << 1  # whatever ModRM.mod says
OPCODE_IMMEDIATE: Final = 2  # 3 bits: bytes, or one of those below
OPCODE_TEST: Final = 1 << 5  # an immediate with ModRM.reg 0 and 1 alone
OPCODE_PYTHON: Final = 1 << 6
OPCODE_USER_66: Final = 1 << 7  # Python's behind 66h, of users; in 64-bit code of all
OPCODE_KERNEL: Final = 8  # 8 bits for operands in memory, 8 for registers: Python's
OPCODE_USER: Final = 24
OPCODE_NO_LOCK: Final = 40
OPCODE_MEMORY: Final = 48  # accesses memory by a segment that a prefix names
IMMEDIATE_NONE: Final = 0
IMMEDIATE_Z: Final = 5  # a word or doubleword
IMMEDIATE_V: Final = 6  # of 64-bit code: or a quadword
IMMEDIATE_OFFSET: Final = 7  # of 64-bit code, by the address size

# The code that replaces a block's first calls: its bytes, and where in it is what.
PROLOGUE: Final = 52
GUARDED_PROLOGUE: Final = 8  # the words of the other one begin here
SIZE_AT: Final = 13
PC_AT: Final = 27
LATE_CALL_AT: Final = 33
GUARD_AT: Final = 21
GUARDED_PC_AT: Final = 38

# Bits of `behind`: what Python has still to hear of.
DROPPED: Final = 1
SWITCHED: Final = 2
WRITTEN: Final = 4
REREAD: Final = 8
SENT: Final = 16
HALTED: Final = 32
TIMER: Final = 64

IDLE: Final = 1  # see `delivering`
DELIVERED: Final = 0x1000

# What answers at a port, in 3 bits; from bit 3 on the number of the chip's register.
PORT_PYTHON: Final = 0
PORT_NOTHING: Final = 1
PORT_POST_CODE: Final = 2
PORT_UART: Final = 3
PORT_PIT: Final = 4
PORT_PIC: Final = 5  # registers 2 and 3 are the slave's
PORT_DATA: Final = 6  # of `transfers`, by words; register 7 is the status
PORT_SPEAKER: Final = 7
ALTERNATE: Final = 0x80  # of a status whose read does not end the interrupt
NONE: Final = -1  # of a `Counter`: there is no such time or value

# What a guest page holds, as far as the shadow tables care.
DATA: Final = 0  # writable, never executed
CODE: Final = 1  # executed, so not writable
MIXED: Final = 2  # both, in one mapping only, at the engine's slow path
TABLE: Final = 3  # holds descriptors that the shadow tables copy: not writable
UNBACKED: Final = 4  # no RAM there: reads as ones

SITE_PAGE: Final = 32
# Kinds of sites, in their low 4 bits.
SITE_CLI: Final = 1
SITE_STI: Final = 2
SITE_SPLIT: Final = 3
SITE_ACCESS: Final = 4  # see `access_kind`
SITE_IRET: Final = 5
SITE_POPF: Final = 6
SITE_VERW: Final = 7  # the index of its `Verw` from bit 4 on
# The number of a register from bit 4 on: an address; what goes to a control register,
# whose number is in bits 8 to 10, or comes from it.
SITE_INVLPG: Final = 8
SITE_WRITE_CR: Final = 9
SITE_READ_CR: Final = 10
SITE_SETCC: Final = 11  # see `setcc_kind`
SITE_CLTS: Final = 12
SITE_HLT: Final = 13
NO_REGISTER: Final = 8  # R8, which is 0 for 32-bit guests

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

Word: TypeAlias = ctypes.c_uint64
Array: TypeAlias = ctypes.Array[Any]
EmuStop: TypeAlias = Annotated[CFunction, function(ctypes.c_int32, Word)]
FlushTlb: TypeAlias = Annotated[CFunction, function(None, Word)]
FlushPage: TypeAlias = Annotated[CFunction, function(None, Word, Word)]
CheckExit: TypeAlias = Annotated[CFunction, function(None, Word, ctypes.c_uint32)]
OnEdge: TypeAlias = Annotated[CFunction, function(None, Word, Word, Word, Word)]
OnIn: TypeAlias = Annotated[
    CFunction,
    function(ctypes.c_uint32, Word, ctypes.c_uint32, ctypes.c_int32, Word),
]
OnOut: TypeAlias = Annotated[
    CFunction,
    function(None, Word, ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint32, Word),
]
OnInstruction: TypeAlias = Annotated[CFunction, function(ctypes.c_int32, Word, Word)]
OnException: TypeAlias = Annotated[
    CFunction, function(None, Word, ctypes.c_uint32, Word)
]
ComputeFlags: TypeAlias = Annotated[
    CFunction, function(Word, Word, Word, Word, ctypes.c_uint32)
]
RaiseException: TypeAlias = Annotated[
    CFunction, function(None, Word, ctypes.c_uint32, ctypes.c_uint32)
]
ProbeAccess: TypeAlias = Annotated[
    CFunction,
    function(Word, Word, Word, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, Word),
]
Wait: TypeAlias = Annotated[
    CFunction, function(ctypes.c_int32, Word, ctypes.c_int32, Word)
]
GetTime: TypeAlias = Annotated[
    CFunction, function(ctypes.c_int32, ctypes.c_int32, Word)
]
Read32: TypeAlias = Annotated[CFunction, function(ctypes.c_uint32, Word, Word, Word)]
GuestTable = ctypes.c_uint32 * 1024
WideTable = ctypes.c_uint64 * 512  # of PAE paging; or any page, two words at a time
Descriptors = ctypes.c_uint64 * GDT_MOST
ShadowPdes = ctypes.c_uint64 * 2048
Opcodes = ctypes.c_uint64 * 512
ShadowTable = ctypes.c_uint64 * 512
LeafTable = ctypes.c_uint64 * 1024  # two shadow tables: what one guest table spans
LeafEntries: TypeAlias = Annotated[Array, LeafTable]
Uppers = ctypes.c_uint32 * UPPERS_MOST
ReturnFrame = ctypes.c_uint32 * 5  # EIP, CS, EFLAGS, ESP, SS
EventFrame = ctypes.c_uint32 * 6  # an error code before them
ReturnFrame64 = ctypes.c_uint64 * 5
EventFrame64 = ctypes.c_uint64 * 6
Table: TypeAlias = Annotated[Pointer[Array], ctypes.POINTER(GuestTable)]


@record
class Segment(ctypes.Structure):
    """A segment register with its hidden part.

    attributes: bits 8 to 23 of the descriptor's high word, in place.
    """

    selector: u32
    base: u64
    limit: u32
    attributes: u32


@record
class Cpu(ctypes.Structure):
    """What the handlers use of the engine's CPU state (`cpu.offsets`)."""

    gpr: Annotated[Array, ctypes.c_uint64 * 16] = at(offsets.GPR)
    rip: u64 = at(offsets.RIP)
    rflags: u64 = at(offsets.RFLAGS)
    cc_dst: u64 = at(offsets.CC_DST)
    cc_src: u64 = at(offsets.CC_SRC)
    cc_src2: u64 = at(offsets.CC_SRC2)
    cc_op: u32 = at(offsets.CC_OP)
    df: u32 = at(offsets.DF)
    hflags: u32 = at(offsets.HFLAGS)
    segments: Annotated[Array, Segment * 6] = at(offsets.SEGMENTS)
    cr0: u64 = at(offsets.CR)
    cr2: u64 = at(offsets.CR + 16)
    cr3: u64 = at(offsets.CR + 24)
    error_code: u32 = at(offsets.ERROR_CODE)
    is_int: u32 = at(offsets.EXCEPTION_IS_INT)
    old_exception: u32 = at(offsets.OLD_EXCEPTION)


@record
class Block(ctypes.Structure):
    """A translated block, as UC_HOOK_EDGE_GENERATED tells of it."""

    pc: u64
    icount: u16
    size: u16


@record
class Site(ctypes.Structure):
    """A decoded instruction: where it is, and its kind.

    place: its linear address, and from bit `SITE_PAGE` on the guest page that it is in;
    0 there while `shadow_pdes` is.
    """

    place: i64
    kind: i64


@record
class Stack0(ctypes.Structure):
    """ESP and SS for ring 0, where a 32-bit TSS has them."""

    esp: u32
    ss: u16


@record
class Plan(ctypes.Structure):
    """A far transfer that has been checked once.

    key: what it is found by, `PLANNED` set; cs, ss: what it loads; offset, dpl: of a
    gate; masks_if: an interrupt gate; stack: address in this process of the TSS's
    `Stack0`, or RSP0.
    """

    key: u64
    cs: Annotated[Segment, Segment]
    ss: Annotated[Segment, Segment]
    stack: u64
    offset: u64
    dpl: u16
    masks_if: u16


TlbEntry = ctypes.c_uint64 * 8  # addresses to read, write and fetch at; and more
Jumps = ctypes.c_uint64 * 4096  # translated blocks, by a hash of their address


@record
class TlbMode(ctypes.Structure):
    """What the engine keeps of the TLB of one kind of accesses, besides the table.

    used: how many entries the table has, by which the engine chooses its size.
    """

    used: u64 = at(offsets.TLB_USED)
    victims: Annotated[Array, TlbEntry * 8] = at(offsets.TLB_VICTIMS)
    end: u64 = at(offsets.TLB_MODE - 8)


@record
class TlbTable(ctypes.Structure):
    """A direct-mapped table of TLB entries: its size less one entry, in bytes."""

    mask: u64
    first: u64


@record
class Tlb(ctypes.Structure):
    """The engine's TLB. dirty: a bit for each kind of accesses that has entries."""

    dirty: u16 = at(0)
    modes: Annotated[Array, TlbMode * 3] = at(offsets.TLB_MODES)
    tables: Annotated[Array, TlbTable * 3] = at(offsets.TLB_TABLES)


@record
class Root(ctypes.Structure):
    """A shadow root that can be switched to.

    at: where CR3 says that the guest's tables begin, plus 1; directories: the page of
    each page directory, plus 1, or 0; hpa: what the engine's CR3 is then; known_pdes:
    where the VMM's copies of them are, one behind the other; the others: see `Control`.

    With 4-level paging shadow_pdes and linked_pdes are `uppers` and `upper_count`, and
    known_pdes is `top_page`.
    """

    at: u64
    hpa: u64
    shadow_pdes: u64
    linked_pdes: u64
    known_pdes: u64
    directories: Annotated[Array, ctypes.c_uint32 * DIRECTORIES]


@record
class Leaf(ctypes.Structure):
    """What the VMM knows of the shadow tables of one guest page table; or of one above.

    copy: the guest's table when last compared; page_table: its GPA; rights: RW, US and
    NX of its PDE; has_global, has_nonglobal: what kinds of entries they hold;
    is_shared: they are linked at several linear addresses. Of a shadow table above leaf
    tables: level: 4, 3 or 2; runs: a bit for each 8 entries of which some were linked.
    """

    copy: Table
    page_table: i64
    rights: u64
    has_global: u32
    has_nonglobal: u32
    is_shared: u32
    level: u32
    runs: u64


@record
class Held(ctypes.Structure):
    """A linear page that is not global, with something on it that Python has kept.

    frame: the guest page that it was then.
    """

    page: u32
    frame: u32


@record
class Added(ctypes.Structure):
    """A shadow entry that was made: the guest page that it maps, and its index."""

    page: u32
    index: u32


@record
class Verw(ctypes.Structure):
    """A VERW of an absolute address (linear, in segments at 0) that has been done once.

    known: the selector that it found there, `PLANNED` set; zf: what came out, in place;
    length: the instruction's, in bytes.
    """

    known: u64
    operand: u32
    zf: u32
    length: u32


@record
class Change(ctypes.Structure):
    """A change of the guest's ring: at what time, by what, from where to where.

    how: the vector of an INT n, `BY_IRET`, `BY_SYSCALL`, `BY_SYSRET`, or `BY_EVENT` and
    the vector of an exception, or `BY_INTERRUPT` and that of an interrupt.
    """

    at: i64
    how: u32
    before: u32
    eip: u64
    to_eip: u64
    cs: u32
    after: u32
    to_cs: u32


@record
class Event(ctypes.Structure):
    """An exception that was delivered: when, what, from where, and CR2 then.

    error: its error code, or -1.
    """

    at: i64
    vector: u32
    error: i32
    cs: u32
    eip: u64
    address: u64


@record
class Counter(ctypes.Structure):
    """One counter of the 8254; times are in its clock pulses.

    access: bytes of a count, 1 low only, 2 high only, 3 low then high; gate, out: the
    levels of its pins; reload: the count register, decoded, 1 to 65536, 0 before the
    first count; null_count: that is not in the counting element yet; period: the count
    last loaded, 0 for none since the control word; origin: when that was, in mode 3 the
    start of the half cycle; held: pulses of it that had passed when the gate stopped
    it, or NONE; expired: the count of a mode that counts once (0, 1, 4, 5) has run out;
    load_at: when the count register goes to the counting element, or NONE; idle: what
    the counting element shows while nothing is loaded; low_byte: of a count half
    written, if write_high; read_high: the high byte is read next; latched, status: what
    was latched to be read, or NONE.
    """

    origin: i64
    held: i64
    load_at: i64
    mode: u32
    access: u32
    bcd: u32
    gate: u32
    out: u32
    reload: u32
    null_count: u32
    period: u32
    expired: u32
    idle: u32
    low_byte: u32
    write_high: u32
    read_high: u32
    latched: i32
    status: i32


@record
class Uart(ctypes.Structure):
    """The registers of a 16550A, and what its guest has sent.

    errors: the error bits of the LSR; empty_pending: THR Empty is to be told of; last:
    what the receiver buffer shows when it is empty; count: how many bytes of `fifo` are
    in the receive FIFO, or in the receiver buffer, the oldest first; urgent: a set of
    the bytes of which those who watch the line are told at once; sent, sent_count:
    those of which they have not been told yet.
    """

    ier: u32
    fcr: u32
    lcr: u32
    mcr: u32
    msr: u32
    scr: u32
    divisor: u32
    errors: u32
    empty_pending: u32
    last: u32
    count: u32
    fifo: Annotated[Array, ctypes.c_uint8 * 16]
    urgent: Annotated[Array, ctypes.c_uint64 * 4]
    sent_count: u32
    sent: Annotated[Array, ctypes.c_uint8 * SENT_MOST]


@record
class Pic(ctypes.Structure):
    """The registers of an 8259A, by the names of the data sheet.

    lines: the levels of its inputs; lowest: the input of the lowest priority; expected:
    the number of the ICW that the next write to the data port is, 0 for OCW1; read_isr,
    poll: what is read next; intr: the level of the INT pin.
    """

    irr: u32
    imr: u32
    isr: u32
    lines: u32
    elcr: u32
    lowest: u32
    icw1: u32
    icw2: u32
    icw3: u32
    icw4: u32
    expected: u32
    special_mask: u32
    rotate_on_auto_eoi: u32
    read_isr: u32
    poll: u32
    intr: u32


@record
class Transfer(ctypes.Structure):
    """A block of data on its way through the data port of an ATA drive.

    way: TO_HOST, TO_DRIVE, or 0 while there is none; at: bytes of it that have passed;
    end: all of its bytes. status: the drive's register; asks: it asks for an interrupt.
    """

    way: u32
    at: u32
    end: u32
    status: u32
    asks: u32
    words: Annotated[Array, ctypes.c_uint16 * TRANSFER_WORDS]


@record
class Latch(ctypes.Structure):
    """A port of one register that keeps what was written."""

    value: u32


@record
class CpuidLeaf(ctypes.Structure):
    """What CPUID answers to a leaf."""

    leaf: u32
    eax: u32
    ebx: u32
    ecx: u32
    edx: u32


@record
class Timespec(ctypes.Structure):
    """A time of the host: `struct timespec`."""

    seconds: i64
    nanoseconds: i64


BY_IRET: Final = 256
BY_EVENT: Final = 512  # plus its vector
BY_INTERRUPT: Final = 1024
BY_SYSCALL: Final = 2048
BY_SYSRET: Final = 4096
CHANGES_KEPT: Final = 4
PLANNED: Final = 1 << 63


@record
class Control(ctypes.Structure):
    """The control block.

    now: work done; virtual time in quarter nanoseconds at the usual rate; stop_at: the
    engine stops before the first block once `now` has reached it; stop_for: what
    `stop_at` would be if nobody took samples; limit: blocks that
    count themselves look whether to stop once `now` has reached it (who lowers
    `stop_at` or sets `pending` sets it to 0); on_guard: address of
    `handlers.on_guard`; uc: the engine's handle; cpu: its live CPU state; on_exception:
    the Python hook; pending: not 0 while an interrupt waits for IF; tsc_offset: the TSC
    at virtual time 0, in nanoseconds; tsc_cost, exit_cost: work that an RDTSC takes,
    and any other exit, whoever handles it. Virtual time is ns + ((now - since) * rate
    >> RATE_SHIFT) nanoseconds. flush_page: the engine's flush of one page of the TLB,
    or 0, with `engine_cpu` as its first argument.

    direct: not 0 if linear addresses are guest-physical ones.
    shadow_pdes: address of the current shadow root's 2048 PDEs (0: no paging);
    tables_known: not 0 if handlers may read and compare the guest's tables; wide: not
    0 if their entries have 64 bits, as with PAE paging; frame, reserved, reserved_page,
    fetch_bit: of their `Format`, the last PF_I or 0; no_user_code, no_user_data: US if
    there is SMEP, or SMAP, else 0; guest_pdes, known_pdes: addresses
    of the guest's page directories, one or four (0: there is none), and of the VMM's
    copies of those; vmm_memory_bias: what to add to a host-physical address to get one
    of this process; linked_pdes: a bit for each 32 PDEs of which some are linked;
    uppers: address of the numbers of the pages, in the VMM's memory, of the shadow
    tables above leaf tables that can be reached by 4-level paging, as `Uppers`;
    upper_count: how many there are, 0 if compiled code may not use them; top_page: that
    of the PML4; roots: those to switch to, by `root_slot`; flush_tlb: the engine's
    flush of its whole TLB; tlb, jumps: addresses of its TLB and of its cache of jumps,
    or 0; cr0, cr2, cr3, cr4, pdptes, efer: the guest's, and so star, lstar, cstar,
    fmask and kernel_gs_base, its MSRs of SYSCALL and SWAPGS; iopl: its IOPL, 0 to 3;
    kernel_iopl: the IOPL that its ring 0 has in the engine at least, in place; sets_if:
    not 0 where the guest's code may set IF without an exit, whatever IOPL is now;
    write_protect: its CR0.WP is set; mmio_first, mmio_end: below RAM's end, pages
    without RAM from the one to before the other may be devices'.

    behind: bits for what Python has not heard of. DROPPED: `dropped`, linear pages that
    INVLPG has dropped; SWITCHED: CR3 was written; WRITTEN: the GDT was; REREAD: and
    read again, into `gdt_words`; SENT: the serial line was, `uart.sent`; HALTED: the
    CPU is; TIMER: the timer has interrupted, or is set. guarded: a set of linear pages
    whose INVLPG is Python's, by the low 12 bits of their number; held: pages of
    descriptors that must be the same behind a MOV to CR3, or it is Python's.

    gdt_page: the guest page of the GDT if it is all there, else -1; gdt_at: its address
    in this process; gdt_entries: address of the shadow GDT; gdt_filled: its
    descriptors, at most GDT_MOST; gdt_words, gdt_shadow: the guest's as they were read
    last, and what became of them; gdt_used: bits for those that plans use; gdt_spte:
    address of the shadow entry by which its page is writable, or 0, and gdt_opened: the
    linear address then; gdt_was_stale: `stale` before.

    For transfers and #PF: told: exits are Python's, because someone watches or times
    them; by_ring: the performance counters must hear of each change of ring; stale: a
    descriptor table was written since plans were made; patched: a patch stands in the
    guest's code, and nothing may read it; compute_flags: the engine's function of its
    lazy flags; returns, gates: plans; ram, ram_size, page_state: where guest RAM is in
    this process, its bytes, and a byte for each page; leaves: by page of the VMM's
    memory; global_bit: G if CR4.PGE is set; added: shadow entries that the reverse map
    does not know of yet.

    raise_exception, probe_access, read32: the engine's functions that raise an
    exception, see that a page can be used, and read; null_used: a guarded block has
    found a segment register null; late_at: the linear address of the block that came
    once `now` had reached `stop_at`; changes: the last changes of ring that the
    handlers have made.

    For blocks that have been translated: on_edge: the Python hook; scans: not 0 if they
    are scanned; judged: what `scan.guard_of` says of the block that Python is told of;
    armed: segment registers that are checked, by ring, as bits; unguarded: not 0 if
    there are `NullSelectors.unguarded`; inner: not 0 in the guest's rings 1 and 2;
    breaks: the 64 bytes of a page, as bits, in which a debugger has breakpoints;
    behind_load: a set of linear addresses behind loads of DS and ES; opcodes: of one
    byte, then behind 0Fh; opcodes64: the address of those of 64-bit code; prologues:
    see `PROLOGUE`; code_next, code_end: addresses in this process behind the last
    block, and behind the engine's buffer.

    In real mode: do_interrupt: the engine's delivery of an event, with `engine_cpu` as
    its argument; delivering: what it is at, DELIVERED plus 100h for an INT and the
    vector, else IDLE; 0: it must not be called.

    For IN, OUT and CPUID: on_in, on_out, on_cpuid: the Python hooks; ports: what is at
    each port; post_code: port 80h; speaker: bits 1 to 3 of port 61h; pit: the counters
    of the 8254; pics: the 8259As, the master first; uart: COM1; cpuid_count: how many
    leaves `cpuid` has;
    transfers: addresses of the `Transfer` of the drive that is selected on each IDE
    channel, or 0.

    For HLT while virtual time is kept to the host's: sem_clockwait, clock_gettime: of
    libc, or 0; kick: a `sem_t`, posted to end a sleep; host_time: what they are given;
    zero: the host's monotonic clock at virtual time 0; rests: until when compiled code
    may sleep and deliver the timer's interrupts, 0 if it may not; others: when the
    first of the chips that are not the timer is due, or NEVER; these are nanoseconds,
    and so is rested: how long it has slept in all. look_at: the work at which Python is
    to look at the host's clock again, whatever is due; look_for: how far ahead that is
    where the clocks have just been seen to agree.

    check_exit: the engine's look whether to stop; sites: decoded instructions, each at
    its `state.site_index` or beside it (a cache of two ways).
    """

    now: i64
    stop_at: i64
    limit: i64
    on_guard: u64
    uc: u64
    emu_stop: EmuStop
    cpu: Annotated[Pointer[Cpu], ctypes.POINTER(Cpu)]
    on_exception: OnException
    pending: i64
    tsc_offset: i64
    tsc_cost: i64
    exit_cost: i64
    count_cli: i64
    count_clts: i64
    count_hlt: i64
    count_sti: i64
    count_rdtsc: i64
    count_invlpg: i64
    engine_cpu: u64
    flush_page: FlushPage
    flush_tlb: FlushTlb
    since: i64
    ns: i64
    rate: i64
    raise_exception: RaiseException
    probe_access: ProbeAccess
    read32: Read32
    null_used: i64
    late_at: i64
    count_access: i64
    shadow_pdes: u64
    tables_known: i64
    wide: i64
    frame: u64
    reserved: u64
    reserved_page: u64
    fetch_bit: i64
    no_user_code: u64
    no_user_data: u64
    guest_pdes: Annotated[Array, Word * DIRECTORIES]
    known_pdes: Annotated[Array, Word * DIRECTORIES]
    vmm_memory_bias: u64
    linked_pdes: u64
    uppers: u64
    upper_count: i64
    top_page: i64
    count_dropped: i64
    check_exit: CheckExit
    count_split: i64
    count_iret: i64
    count_filled: i64
    count_popf: i64
    count_verw: i64
    count_write_cr: i64
    count_switched: i64
    count_read_cr: i64
    count_setcc: i64
    count_load_sreg: i64
    count_pop_sreg: i64
    count_page_fault: i64
    count_exceptions: Annotated[Array, ctypes.c_int64 * 32]
    count_resynced: i64
    tlb: u64
    jumps: u64
    cr0: i64
    cr2: i64
    cr3: i64
    cr4: i64
    pdptes: Annotated[Array, ctypes.c_int64 * 4]
    efer: u64
    star: u64
    lstar: u64
    cstar: u64
    fmask: u64
    kernel_gs_base: u64
    tsc_aux: u64
    iopl: u64
    kernel_iopl: u32
    sets_if: u32
    behind: i64
    write_protect: i64
    mmio_first: i64
    mmio_end: i64
    held_count: i64
    held: Annotated[Array, Held * HELD_MOST]
    told: i64
    by_ring: i64
    patched: i64
    stale: i64
    compute_flags: ComputeFlags
    ram: u64
    ram_size: u64
    page_state: Annotated[Pointer[Array], ctypes.POINTER(ctypes.c_uint8 * PAGES_MOST)]
    leaves: Annotated[Pointer[Array], ctypes.POINTER(Leaf * LEAF_PAGES)]
    global_bit: i64
    added_count: i64
    dropped_count: i64
    dropped: Annotated[Array, ctypes.c_int64 * DROPPED_MOST]
    guarded: Annotated[Array, ctypes.c_uint64 * GUARDED_WORDS]
    sites: Annotated[Array, Site * (SITE_MASK + 1)]
    returns: Annotated[Array, Plan * RETURNS]
    gates: Annotated[Array, Plan * GATES]
    count_int: Annotated[Array, ctypes.c_int64 * 256]
    change_count: i64
    changes: Annotated[Array, Change * CHANGES_KEPT]
    event_count: i64
    events: Annotated[Array, Event * CHANGES_KEPT]
    verws: Annotated[Array, Verw * VERWS]
    gdt_page: i64
    gdt_at: u64
    gdt_entries: u64
    gdt_filled: i64
    gdt_used: u64
    gdt_spte: u64
    gdt_opened: u64
    gdt_was_stale: i64
    gdt_words: Annotated[Array, Descriptors]
    gdt_shadow: Annotated[Array, Descriptors]
    on_edge: OnEdge
    count_blocks: i64
    count_shortened: i64
    scans: i64
    judged: i64
    unguarded: i64
    inner: i64
    breaks: u64
    code_next: u64
    code_end: u64
    opcodes64: u64
    armed: Annotated[Array, ctypes.c_int64 * 4]
    behind_load: Annotated[Array, Word * 64]
    prologues: Annotated[Array, Word * 16]
    opcodes: Annotated[Array, Word * 512]
    added: Annotated[Array, Added * ADDED_MOST]
    roots: Annotated[Array, Root * ROOTS]
    on_in: OnIn
    on_out: OnOut
    on_cpuid: OnInstruction
    on_syscall: OnInstruction
    count_in: i64
    count_out: i64
    count_cpuid: i64
    count_syscall: i64
    count_sysret: i64
    count_swapgs: i64
    count_rdmsr: i64
    count_wrmsr: i64
    count_clac: i64
    count_stac: i64
    count_rdtscp: i64
    post_code: Annotated[Latch, Latch]
    speaker: Annotated[Latch, Latch]
    pit: Annotated[Array, Counter * 3]
    pics: Annotated[Array, Pic * 2]
    uart: Annotated[Uart, Uart]
    cpuid_count: i64
    cpuid: Annotated[Array, CpuidLeaf * CPUID_LEAVES]
    ports: Annotated[Array, ctypes.c_uint8 * PORTS]
    transfers: Annotated[Array, Word * CHANNELS]
    do_interrupt: FlushTlb
    delivering: i64
    direct: i64
    sem_clockwait: Wait
    clock_gettime: GetTime
    kick: Annotated[Array, Word * 4]
    host_time: Annotated[Timespec, Timespec]
    zero: u64
    rests: u64
    others: u64
    rested: i64
    look_at: i64
    look_for: i64
    stop_for: i64
    count_interrupt: i64


def _word(field: str) -> int:
    """Return the number of the word at which a field of the control block begins."""
    return int(getattr(Control, field).offset) // ctypes.sizeof(ctypes.c_int64)


WORDS: Final = ctypes.sizeof(Control) // 8
NOW: Final = _word("now")
STOP_AT: Final = _word("stop_at")
LIMIT: Final = _word("limit")
UC: Final = _word("uc")
EMU_STOP: Final = _word("emu_stop")
CPU: Final = _word("cpu")
ON_EXCEPTION: Final = _word("on_exception")
PENDING: Final = _word("pending")
TSC_OFFSET: Final = _word("tsc_offset")
TSC_COST: Final = _word("tsc_cost")
EXIT_COST: Final = _word("exit_cost")
COUNT_CLI: Final = _word("count_cli")
COUNT_CLTS: Final = _word("count_clts")
COUNT_HLT: Final = _word("count_hlt")
COUNT_STI: Final = _word("count_sti")
COUNT_RDTSC: Final = _word("count_rdtsc")
COUNT_INVLPG: Final = _word("count_invlpg")
FLUSH_PAGE: Final = _word("flush_page")
FLUSH_TLB: Final = _word("flush_tlb")
ON_GUARD: Final = _word("on_guard")
SINCE: Final = _word("since")
NS: Final = _word("ns")
RATE: Final = _word("rate")
RAISE_EXCEPTION: Final = _word("raise_exception")
PROBE_ACCESS: Final = _word("probe_access")
READ32: Final = _word("read32")
NULL_USED: Final = _word("null_used")
LATE_AT: Final = _word("late_at")
COUNT_ACCESS: Final = _word("count_access")
CHANGES: Final = _word("changes")
ENGINE_CPU: Final = _word("engine_cpu")
SHADOW_PDES: Final = _word("shadow_pdes")
TABLES_KNOWN: Final = _word("tables_known")
UPPER_COUNT: Final = _word("upper_count")
VMM_MEMORY_BIAS: Final = _word("vmm_memory_bias")
COUNT_DROPPED: Final = _word("count_dropped")
CHECK_EXIT: Final = _word("check_exit")
COUNT_SPLIT: Final = _word("count_split")
DROPPED_COUNT: Final = _word("dropped_count")
DROPPED_PAGES: Final = _word("dropped")
GUARDED: Final = _word("guarded")
COUNT_IRET: Final = _word("count_iret")
COUNT_FILLED: Final = _word("count_filled")
COUNT_POPF: Final = _word("count_popf")
COUNT_VERW: Final = _word("count_verw")
COUNT_WRITE_CR: Final = _word("count_write_cr")
COUNT_SWITCHED: Final = _word("count_switched")
COUNT_READ_CR: Final = _word("count_read_cr")
COUNT_LOAD_SREG: Final = _word("count_load_sreg")
COUNT_POP_SREG: Final = _word("count_pop_sreg")
COUNT_SETCC: Final = _word("count_setcc")
COUNT_PAGE_FAULT: Final = _word("count_page_fault")
COUNT_EXCEPTIONS: Final = _word("count_exceptions")
COUNT_RESYNCED: Final = _word("count_resynced")
TLB: Final = _word("tlb")
JUMPS: Final = _word("jumps")
CR0: Final = _word("cr0")
CR4: Final = _word("cr4")
IOPL: Final = _word("iopl")
BEHIND: Final = _word("behind")
WRITE_PROTECT: Final = _word("write_protect")
MMIO_FIRST: Final = _word("mmio_first")
MMIO_END: Final = _word("mmio_end")
COUNT_INT: Final = _word("count_int")
TOLD: Final = _word("told")
BY_RING: Final = _word("by_ring")
RAM: Final = _word("ram")
RAM_SIZE: Final = _word("ram_size")
PAGE_STATE: Final = _word("page_state")
LEAVES: Final = _word("leaves")
PATCHED: Final = _word("patched")
COMPUTE_FLAGS: Final = _word("compute_flags")
GLOBAL_BIT: Final = _word("global_bit")
ON_EDGE: Final = _word("on_edge")
COUNT_BLOCKS: Final = _word("count_blocks")
INNER: Final = _word("inner")
ARMED: Final = _word("armed")
ON_IN: Final = _word("on_in")
ON_OUT: Final = _word("on_out")
ON_CPUID: Final = _word("on_cpuid")
COUNT_IN: Final = _word("count_in")
COUNT_OUT: Final = _word("count_out")
COUNT_CPUID: Final = _word("count_cpuid")
DO_INTERRUPT: Final = _word("do_interrupt")
DELIVERING: Final = _word("delivering")
DIRECT: Final = _word("direct")
ON_SYSCALL: Final = _word("on_syscall")
COUNT_SYSCALL: Final = _word("count_syscall")
COUNT_SYSRET: Final = _word("count_sysret")
COUNT_SWAPGS: Final = _word("count_swapgs")
COUNT_RDMSR: Final = _word("count_rdmsr")
COUNT_WRMSR: Final = _word("count_wrmsr")
COUNT_CLAC: Final = _word("count_clac")
COUNT_STAC: Final = _word("count_stac")
COUNT_RDTSCP: Final = _word("count_rdtscp")
COUNT_INTERRUPT: Final = _word("count_interrupt")
LOOK_AT: Final = _word("look_at")
LOOK_FOR: Final = _word("look_for")
STOP_FOR: Final = _word("stop_for")
RESTED: Final = _word("rested")
RESTS: Final = _word("rests")
ZERO: Final = _word("zero")


def _counts() -> Iterator[int]:
    """Return the numbers of the words that handlers count in."""
    for name, kind, *_bits in Control._fields_:
        if name.startswith("count_"):
            first = _word(name)
            yield from range(first, first + ctypes.sizeof(kind) // 8)


COUNTS: Final = tuple(_counts())


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


def root_slot(root: int) -> int:
    """Return which of `roots` is for a root at an address, a multiple of 32."""
    return (root >> 12 ^ root >> 5) & ROOTS - 1


def setcc_kind(
    condition: int, segment: int, base: int, index: int, scale: int, displacement: int,
    length: int,
) -> int:  # fmt: skip
    """Return the kind of a site of a SETcc of memory.

    condition: its 4 bits; base, index: registers, or -1; displacement: 32 bits; length:
    the instruction's, in bytes.
    """
    kind = access_kind(segment, 1, base, index, scale, displacement, write=True)
    return kind & ~15 | SITE_SETCC | condition << 24 | length << 28
