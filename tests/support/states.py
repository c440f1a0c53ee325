"""Random states of a `World`: of the machine at an exit that a handler may do.

`AIMS` has the kinds of exits: for a new handler, a line there, and a function of what
it reads. Nearly all that a handler asks for is so, but for one time in thirty each. So
nine of ten handlers' questions are answered both ways, and what follows is reached.
"""

import ctypes
import random
import struct

from emu86 import config
from emu86.cpu import offsets
from emu86.cpu.models import MODELS
from emu86.native import abi, pit
from emu86.native.state import site_index
from emu86.native.transfers import gate_slot, return_slot
from emu86.rings.technique.prefilter import opcode_table
from emu86.spec import x86
from emu86.spec.features import RDTSCP
from support import states64
from support.world import (
    CODE,
    KERNEL,
    RAM_PAGES,
    RESULTS,
    STACK,
    TSS,
    USER,
    VMM_MEMORY,
)

PAGE_TABLE = 7
DIRECTORY = 9  # that CR3 is to be, with a page table
OTHER_TABLE = 10
GDT = 11
PML4 = 8
PDPT = 13
HELD_TABLE = 14


class Pick(random.Random):
    """Choices of a seed."""

    def few(self, *values):
        return values[int(self.random() * len(values))]

    def odd(self, usual, *others, once=30):
        """What is usual, but for one time in thirty, or less."""
        return usual if self.random() * once >= 1 else self.few(*others)

    def some(self):
        """Any of the usual sizes of a count."""
        return self.few(0, 1, self.getrandbits(31), self.getrandbits(62))

    def word(self):
        return self.getrandbits(32)


def at_general_protection(kind):
    return lambda pick: (x86.VEC_GP, kind(pick))


def at_int3(kind):
    return lambda pick: (x86.VEC_BP, kind(pick))


def at_interrupt(pick):
    return pick.few(0x80, 0x80, 0x2E, x86.VEC_OF), 0


def at_any(pick):
    """What is at no site, or at one of another exit."""
    name = pick.choice([name for name in AIMS if name != "any"])
    vector, _kind = AIMS[name](pick)
    other = pick.choice([name for name in AIMS if name != "any"])
    return pick.odd(vector, 0, x86.VEC_OF, 255), AIMS[other](pick)[1]


def access(pick):
    return abi.access_kind(
        pick.randrange(6),
        pick.few(1, 2, 4, 16),
        pick.randrange(-1, 8),
        pick.randrange(-1, 8),
        pick.randrange(4),
        pick.few(0, 4, -8, 0x1000, 0x7FFFFFFF, -(1 << 31)),
        write=bool(pick.randrange(2)),
    )


def setcc(pick):
    """A SETcc, often of the stack."""
    segment, base, index, scale, displacement = x86.SS, x86.ESP, -1, 0, pick.few(0, 1)
    if pick.randrange(2):
        segment, base = pick.few(x86.DS, x86.SS, x86.ES), pick.randrange(-1, 8)
        index, scale = pick.randrange(-1, 8), pick.randrange(4)
        displacement = pick.few(0, 4, -8, 0x12345678, -(1 << 31))
    return abi.setcc_kind(
        pick.randrange(16), segment, base, index, scale, displacement,
        pick.randrange(3, 9),
    )  # fmt: skip


REGISTER64 = {"38": x86.EAX, "3f": x86.EDI, "d8": x86.EAX, "df": x86.EDI}
CODES64 = {
    "CLI": ("fa",), "STI": ("fb",), "SWAPGS": ("0f01f8",), "SYSRET": ("480f07",),
    "MOV from CR": (
        "0f20d3", "410f20d1", "0f20c3", "0f20df", "410f20e1", "0f20cb", "410f20c9",
    ),
    "SYSCALL": ("0f05",), "HLT": ("f4",), "others": ("0f09",),
    "INVLPG": ("0f0138", "0f013f", "410f0138", "410f013f", "0f013c", "410f013d"),
    "MOV to CR3": ("0f22d8", "0f22df", "410f22d8", "410f22df"), "#PF": ("90",),
    "MOV to CR": ("0f22d7",), "WRMSR": ("0f30",), "RDMSR": ("0f32",),
    "#PF of the guest's": (
        "8b00", "0100", "48f7d8", "41f700", "66480fba28", "0fba20", "f0430fb10b",
        "644fffc8", "6648664883c0", "6648664883f8", "488b40",
    ), "#PF of the GDT": ("90",),
}  # fmt: skip
PATCHED64 = {
    "IRETQ": ("48cf",), "POPFQ": ("9d",),
    "CMPXCHG16B": ("f0480fc70f", "0fc70a", "65480fc74e20", "f065480fc70f"),
    "INT3": ("cc", "48909090", "0fc7f0"),
    "RDTSCP": ("0f01f9", "0f01f8"), "STAC": ("0f01cb", "0f01ca", "0f01cc"),
}  # fmt: skip
TREES = "INVLPG", "MOV to CR3", "#PF", "#PF of the guest's", "#PF of the GDT"
INT64 = {"INT": ("cd80",)}
# Of each kind of exit: a vector, and the kind of the site there.
AIMS = {
    "any": at_any,
    "data port": at_any,
    "CLI": at_general_protection(lambda _pick: abi.SITE_CLI),
    "STI": at_general_protection(lambda _pick: abi.SITE_STI),
    "INVLPG": at_general_protection(
        lambda pick: abi.SITE_INVLPG | pick.randrange(8) << 4
    ),
    "MOV to CR3": at_general_protection(
        lambda pick: abi.SITE_WRITE_CR | pick.randrange(8) << 4 | 3 << 8
    ),
    "MOV to CR": at_general_protection(
        lambda pick: abi.SITE_WRITE_CR | pick.randrange(8) << 4 | pick.few(0, 2, 4) << 8
    ),
    "MOV from CR": at_general_protection(
        lambda pick: (
            abi.SITE_READ_CR | pick.randrange(8) << 4 | pick.few(0, 2, 3, 4) << 8
        )
    ),
    "CLTS": at_general_protection(lambda _pick: abi.SITE_CLTS),
    "HLT": at_general_protection(lambda _pick: abi.SITE_HLT),
    "MOV to Sreg": at_general_protection(lambda _pick: 0),
    "POP Sreg": at_general_protection(lambda _pick: 0),
    "SETcc": at_int3(setcc),
    "split": at_int3(lambda _pick: abi.SITE_SPLIT),
    "access": at_int3(access),
    "IRET": at_int3(lambda _pick: abi.SITE_IRET),
    "IRET by its selector": at_general_protection(lambda _pick: abi.SITE_IRET),
    "POPF": at_int3(lambda _pick: abi.SITE_POPF),
    "VERW": at_int3(lambda pick: abi.SITE_VERW | pick.randrange(abi.VERWS) << 4),
    "INT": at_interrupt,
    "exception": lambda pick: (
        pick.few(x86.VEC_DE, x86.VEC_NM, x86.VEC_NM, pick.few(x86.VEC_BR, x86.VEC_MF)),
        0,
    ),
    "#PF": lambda _pick: (x86.VEC_PF, 0),
    "#PF of the GDT": lambda _pick: (x86.VEC_PF, 0),
    "#PF of the guest's": lambda _pick: (x86.VEC_PF, 0),
    **{f"64-bit {name}": at_general_protection(lambda _pick: 0) for name in CODES64},
    "64-bit #PF": lambda _pick: (x86.VEC_PF, 0),
    "64-bit #PF of the guest's": lambda _pick: (x86.VEC_PF, 0),
    "64-bit #PF of the GDT": lambda _pick: (x86.VEC_PF, 0),
    **{f"64-bit {name}": at_int3(lambda _pick: 0) for name in PATCHED64},
    "64-bit INT": at_interrupt,
}


def randomize(world, seed, aim="any"):
    """Fill the world: a state in which a handler has something to do, or nearly."""
    pick = Pick(seed)
    control, cpu = world.control, world.cpu
    world.clear()
    world.vector, kind = AIMS[aim](pick)
    world.point_at(cpu=cpu)
    world.results = RESULTS
    world.absent = {name for name in ("compute_flags",) if not pick.odd(1, 0)}
    control.uc = pick.getrandbits(64)
    control.engine_cpu = pick.getrandbits(64)
    control.now, control.stop_at = pick.some(), pick.some()
    often = aim in ("any", "POPF", "64-bit POPFQ")
    control.pending = pick.few(0, 1) if often else pick.odd(0, 1, once=12)
    control.tsc_offset = pick.few(0, pick.some(), -pick.some())
    control.since = pick.few(0, control.now)
    control.ns, control.rate = pick.some(), pick.few(1 << 30, 3 << 30, 12345)
    control.tsc_cost, control.exit_cost = pick.few(0, 2000, 4000), pick.few(0, 4000)
    control.told, control.by_ring = pick.odd(0, 1), pick.odd(0, 1)
    control.stale, control.patched = pick.odd(0, 1), pick.odd(0, 1)
    control.change_count = pick.randrange(8)
    counts = Pick(seed)  # of their own, so that one more leaves the rest as it is
    for name, _ctype in abi.Control._fields_:
        if name.startswith("count_") and not name.endswith(("_int", "_exceptions")):
            setattr(control, name, counts.some())
    control.efer = counts.odd(0, x86.EFER_LMA, once=60)
    control.sets_if = counts.few(0, 0, 1)
    is_break = world.vector == x86.VEC_BP
    is_int = is_break or aim in ("INT", "any")
    is_int = is_int and world.vector not in (x86.VEC_GP, x86.VEC_PF)
    cpu.rip = pick.few(0, 1, x86.MASK32, pick.word(), 1 << 32)
    cpu.rflags = pick.getrandbits(22) & ~(x86.TF | x86.VM | x86.NT | x86.AC)
    # TF: a single step, the guest's or that of a breakpoint which is armed.
    cpu.rflags |= pick.odd(0, x86.TF, x86.VM, x86.NT, x86.AC)
    cpu.hflags = pick.getrandbits(23) & ~3 | pick.odd(1, 0, 3)
    mode = Pick(seed)  # its own, too: real mode, and memory without paging
    cpu.hflags = (cpu.hflags & ~offsets.HF_PE) | offsets.HF_PE * mode.odd(1, 0, once=20)
    control.delivering = mode.odd(abi.IDLE, abi.DELIVERED)
    control.direct = mode.odd(0, 1, once=6)
    cpu.error_code, cpu.is_int = pick.odd(0, 8, 1), pick.odd(is_int, not is_int, 2)
    cpu.old_exception = pick.word()
    for i in range(8):
        cpu.gpr[i] = pick.few(pick.word(), pick.getrandbits(64), 0xFFFFFFFF)
    cpu.cc_op = pick.few(1, 1, 0, 20)
    cpu.cc_src, cpu.df = pick.getrandbits(64), pick.few(1, x86.MASK32)
    segments(world, pick)
    paging(world, pick)
    shadow(world, pick)
    transfers(world, pick)
    page_tables(world, pick, seed)
    looks(world, pick)
    roots(world, pick)
    gdt(world, pick)
    if aim == "any":
        blocks(world, pick)
        ports(world, Pick(seed))
    if aim == "data port":
        data_port(world, Pick(seed))
    if aim == "MOV to CR":
        changed = pick.few(x86.CR0_MP, x86.CR0_EM, x86.CR0_TS, 0, x86.CR0_WP)
        control.cr0 = control.cr0 & x86.CR0_DEFINED | x86.CR0_ET
        same = control.cr0 ^ changed if kind >> 8 == 0 else pick.odd(control.cr4, 0)
        cpu.gpr[kind >> 4 & 7] = same | pick.few(0, 1 << 32)
    elif aim == "CLTS":
        control.cr0 = control.cr0 & pick.odd(x86.CR0_DEFINED, x86.MASK32) | x86.CR0_ET
    elif aim == "MOV to CR3":
        tlb(world, Pick(seed))
        cpu.gpr[kind >> 4 & 7] = pick.odd(root_at(control), 0) | pick.few(0, 0x18)
    elif aim == "MOV to Sreg":
        load_sreg(world, pick, pick.odd(0x8E, 0x8C) | pick.few(*LOADS) << 8)
    elif aim == "POP Sreg":
        load_sreg(world, pick, pick.odd(pick.few(*POPS), 0xB10F))
    elif aim == "#PF of the GDT":
        write_to_gdt(world, pick)
    elif aim == "#PF of the guest's":
        page_fault(world, pick)
    elif aim.startswith("64-bit"):
        code64(world, Pick(seed), aim.partition(" ")[2])
    elif aim == "SETcc":
        store_flag(world, kind, pick)
    elif aim == "HLT":
        timer(world, Pick(seed))
    if world.vector == x86.VEC_BP and kind & 15 == abi.SITE_ACCESS:
        limit(world, kind, pick)
    if not aim.startswith("64-bit") and cpu.hflags & offsets.HF_CS64:
        control.efer = 0  # no code is mapped at RIP
    if not aim.startswith("64-bit") and control.efer & x86.EFER_LMA:
        control.told = 1  # nor are there tables
    linear = cpu.rip - is_break + cpu.segments[x86.CS].base & x86.MASK32
    site = control.sites[site_index(linear) ^ pick.randrange(2)]
    page = 0
    if control.shadow_pdes:
        found = world.shadow_pdes[linear >> 21]
        hpa = (found & x86.LONG_FRAME) + control.vmm_memory_bias & (1 << 64) - 1
        entry = 0
        if found & x86.PTE_P:
            entry = abi.ShadowTable.from_address(hpa)[linear >> 12 & 511]
        page = (entry & x86.LONG_FRAME if entry & x86.PTE_P else 0) >> 12
    place = linear | (page & abi.PAGES_MOST - 1) << 32
    site.place = pick.odd(place, place ^ 1 << 31, place ^ 1 << 32)
    site.kind = kind
    for register in cpu.gpr:
        page = (register & x86.MASK32) >> 12
        if pick.odd(0, 1):
            control.guarded[page >> 6 & 63] |= 1 << (page & 63)
    control.limit = pick.some()


def code64(world, pick, name):
    """An instruction of 64-bit code, in IA-32e mode, and what it goes by."""
    control, cpu = world.control, world.cpu
    ring = 3 if name == "SYSCALL" else 1
    if name not in TREES:  # nothing but code and stack is there
        for table in world.tables:
            ctypes.memset(table, 0, ctypes.sizeof(table))
    elif name.startswith("#PF"):  # nor but what the walk of a fault may find
        for table in world.tables[:4]:
            ctypes.memset(table, 0, ctypes.sizeof(table))
    both = x86.EFER_LMA | x86.EFER_SCE
    control.efer = pick.odd(both, x86.EFER_LMA, x86.EFER_SCE)
    control.patched = pick.odd(0, 1)
    cpu.error_code, cpu.is_int = pick.odd(0, 8), pick.odd(0, 1)
    kept = pick.getrandbits(22) & ~(x86.TF | x86.VM | x86.IOPL)
    control.kernel_iopl = pick.few(0, 1 << 12)
    iopl = control.kernel_iopl if ring == 1 else 0
    cpu.rflags = kept | pick.odd(iopl, iopl ^ 1 << 12) | pick.odd(0, x86.TF)
    cpu.hflags &= ~(offsets.HF_CS64 | offsets.HF_CPL)
    cpu.hflags |= offsets.HF_CS64 * pick.odd(1, 0) | pick.odd(ring, ring ^ 2)
    cpu.segments[x86.CS].selector = (0x33 if ring == 3 else 0x10) | pick.odd(0, 1)
    for index in (x86.CS, x86.SS):
        cpu.segments[index].limit = pick.odd(x86.MASK32, 0xFFFF)
    offset = pick.odd(0x200, 0xFFF, 0xFFD)
    cpu.rip = pick.few(0xFFFFFFFF81000000, 0x7F0000400000) + offset
    hexes = pick.odd(pick.few(*(CODES64 | PATCHED64 | INT64)[name]), "9090")
    if name in TREES:
        cpu.is_int *= 2  # no INT n, which would use the stack
        tree(world, pick, name, hexes)
    map_page_64(world, pick, cpu.rip, pick.odd(CODE, RAM_PAGES))
    code = bytes.fromhex(hexes)[: 4096 - offset]
    ctypes.memmove(ctypes.addressof(world.ram) + (CODE << 12) + offset, code, len(code))
    canonical = pick.few(0x7FFFFFFFFFFF, 0xFFFF800000000000, 0)
    cpu.gpr[x86.ECX] = pick.odd(canonical, 1 << 47, 1 << 63)
    cpu.gpr[x86.R11] = pick.getrandbits(64) & ~(x86.TF | x86.IOPL)
    cpu.gpr[x86.R11] |= pick.odd(0, x86.TF, x86.IOPL)
    for field in ("star", "lstar", "fmask", "kernel_gs_base"):
        setattr(control, field, pick.getrandbits(64))
    if name == "STAC":
        control.no_user_data = pick.odd(x86.PTE_US, 0)
    control.tsc_aux, control.cr4 = pick.word(), pick.odd(0, x86.CR4_TSD)
    control.cpuid[abi.CPUID_80000001].edx = pick.odd(RDTSCP, 0)
    if name.endswith("MSR"):
        states64.registers(world, pick)
    if name == "HLT":
        states64.stack(world, pick, world.vector, map_page_64)
        timer(world, pick)
    if name == "#PF of the guest's":
        own_fault_64(world, pick)
    if name == "#PF of the GDT":
        write_to_gdt_64(world, pick)
    if name in PATCHED64 or name in INT64:
        user = name == "INT" and pick.randrange(2)
        cpu.is_int = pick.odd(1, 2)
        cpu.rip += name in PATCHED64
        control.stale = pick.odd(0, 1)
        cpu.segments[x86.CS].selector = pick.odd(USER if user else KERNEL, KERNEL | 1)
        states64.stack(world, pick, world.vector, map_page_64)


def write_to_gdt_64(world, pick):
    """A write to the GDT's page, by a small page or a large one."""
    control, cpu = world.control, world.cpu
    control.gdt_spte = pick.odd(0, control.gdt_spte)
    control.stale = 0
    cpu.error_code = pick.odd(3, 2, 7)
    world.page_state[GDT] = pick.odd(abi.TABLE, abi.DATA)
    world.page_state[PAGE_TABLE] = pick.odd(abi.DATA, abi.UNBACKED, once=6)
    at = cpu.cr2 >> 12 & 511
    spte = pick.odd(GDT, CODE) << 12 | pick.odd(0x61 | x86.PTE_NX, 0)
    world.tables[4][at] = spte
    put(world, world.ram, PAGE_TABLE, at, pick.odd(0x67, 0x27, 0x65, once=6))
    if pick.randrange(2):
        pde = pick.odd(0xE7, 0xA7, once=6)
        place = cpu.cr2 >> 21 & 511
        put(world, world.ram, DIRECTORY, place, pde)
        put(world, world.known_pdes, 0, place, pick.odd(pde, 0x67))
    elif not pick.randrange(4):  # its page table is not there any more
        pde, place = RAM_PAGES << 12 | 0x27, cpu.cr2 >> 21 & 511
        put(world, world.ram, DIRECTORY, place, pde)
        put(world, world.known_pdes, 0, place, pde)


def own_fault_64(world, pick):
    """An access that the guest's tables of four levels forbid, and its event."""
    control, cpu = world.control, world.cpu
    cpu.is_int = pick.odd(0, 1)
    control.stale = pick.odd(0, 1)
    control.fetch_bit = pick.few(0, x86.PF_I)
    cpu.error_code = pick.few(0, 2, 4, 6, 3, 7, 5, 1, 20, 16, 21)
    user = pick.randrange(2)
    cpu.segments[x86.CS].selector = USER if user else KERNEL
    at = cpu.cr2 >> 12 & 511
    pte = pick.few(0, 0, 1, 5, 3, 7) | pick.odd(0, x86.PTE_NX, 1 << 40)
    put(world, world.ram, PAGE_TABLE, at, pte)
    if pick.randrange(3) == 0:  # or there is no page table
        level = pick.randrange(3)
        i = cpu.cr2 >> 39 - 9 * level & 511
        put(world, world.ram, (PML4, PDPT, DIRECTORY)[level], i, pick.few(0, 0xE7))
    if cpu.error_code & x86.PF_I and pick.randrange(3):
        cpu.rip = cpu.cr2 & ~0xFFF | cpu.rip & 0xFFF
    states64.stack(world, pick, x86.VEC_PF, map_page_64)


def tree(world, pick, name, code):
    """Tables of 4-level paging, and an address in the 2 MiB that RIP is in."""
    control, cpu = world.control, world.cpu
    control.efer = pick.odd(control.efer, 0) | x86.EFER_LMA
    control.wide = 1
    control.frame = 0xFFFFFF000
    control.reserved_page = 0x7FFFFFF0 << 32
    control.shadow_pdes = 0
    start = world.base & -VMM_MEMORY
    control.vmm_memory_bias = start - abi.VMM_BASE & x86.MASK64
    numbers = [ctypes.addressof(table) - start >> 12 for table in world.tables]
    linear = (cpu.rip & ~0xFFF) + (pick.odd(1, 2, 3, 64) << 12)
    guests = (PML4, PDPT, DIRECTORY, PAGE_TABLE)
    copies = [
        abi.GuestTable.from_buffer(part)
        for part in (world.other_known, world.other_copies, world.known_pdes)
    ] + [world.copies]
    has_self = not pick.odd(1, 0)
    for level in range(3):
        i = linear >> 39 - 9 * level & 511
        entry = guests[level + 1] << 12 | pick.odd(0x27, 7, 0x26, 0xA7, 0)
        if level == 2 and has_self:
            entry = DIRECTORY << 12 | 0x27
        put(world, world.ram, guests[level], i, entry)
        put(world, copies[level], 0, i, pick.odd(entry, entry ^ 2))
        j = i ^ pick.few(1, 3)  # changed, and linked or not
        put(world, world.ram, guests[level], j, pick.few(0, pick.getrandbits(40)))
        known = world.leaves[numbers[level + 1]]
        place = i + (512 if i > 255 and not level else 0)
        shadow = abi.LeafTable.from_address(ctypes.addressof(world.tables[level + 1]))
        hpa = abi.VMM_BASE + (numbers[min(level + 2, 4)] << 12)
        shadow[place] = pick.odd(hpa | 0x27, 0)
        shadow[place ^ 1] = pick.odd(0, hpa | 0x27)
        known.page_table = pick.odd(guests[level] << 12, -1, RAM_PAGES << 12)
        known.level = 4 - level
        known.runs = pick.odd(1 << (i >> 3), 0, x86.MASK64)
        known.copy.contents = copies[level]
    leaf = world.leaves[numbers[4]]
    leaf.page_table = pick.odd(PAGE_TABLE << 12, -1, RAM_PAGES << 12, once=12)
    if has_self:
        leaf.page_table = DIRECTORY << 12
    leaf.rights = pick.odd(6, 2, 4, 6 | x86.PTE_NX)
    leaf.has_nonglobal = pick.odd(1, 0)
    leaf.is_shared = pick.few(0, 1)
    leaf.copy.contents = world.copies
    world.page_state[PAGE_TABLE] = pick.odd(abi.DATA, abi.UNBACKED)
    at = linear >> 12 & 511
    for i in range(at & ~15, (at & ~15) + 16):
        bits = pick.few(0x27, 0x67, 0x127, 0x25, 0) | pick.odd(0, 0x80)
        page = pick.randrange(RAM_PAGES + 1)
        pte = page << 12 | bits | pick.odd(0, x86.PTE_NX, 1 << 40)
        put(world, world.ram, PAGE_TABLE, i, pte)
        known = pick.few(pte, pte, pick.getrandbits(40))
        put(world, world.copies, 0, i, known & ~pick.odd(0x100, 0))
        narrow = page << 12 | x86.PTE_P | x86.PTE_NX
        world.tables[4][i] = pick.few(0, narrow, narrow | 2)
    listed = (ctypes.c_uint32 * 4).from_buffer(world.looks)
    listed[:3] = numbers[1:4]
    control.uppers = ctypes.addressof(world.looks)
    control.upper_count = pick.odd(3, 0)
    control.top_page = numbers[1]
    control.held_count = pick.odd(0, 1)
    control.dropped_count = pick.odd(0, abi.DROPPED_MOST)
    cpu.cr2 = pick.odd(linear | 8, 1 << 47, 1 << 63)
    register = REGISTER64.get(code[-2:], 0) | (8 if code.startswith("41") else 0)
    cpu.gpr[register] = cpu.cr2
    if name.startswith("#PF"):
        cpu.error_code = pick.few(0, 2, 4, 6, 16, 20)
    elif name == "MOV to CR3":
        if pick.randrange(2):  # page tables that are as they were
            ctypes.memmove(
                world.copies, ctypes.addressof(world.ram) + (PAGE_TABLE << 12), 4096
            )
        tlb(world, pick)
        root = control.roots[abi.root_slot(PML4 << 12)]
        root.at = (PML4 << 12) + pick.odd(1, 0)
        root.shadow_pdes, root.linked_pdes = control.uppers, 3
        root.known_pdes = numbers[1]
        root.hpa = pick.odd(0x5000, ctypes.addressof(world.tables[0]) & 0xFFF)
        control.top_page = pick.few(numbers[1], numbers[3])
        cpu.gpr[register] = PML4 << 12 | pick.odd(0x18, 1 << 36)


def segments(world, pick):
    cpu = world.cpu
    for i, segment in enumerate(cpu.segments):
        segment.selector = pick.few(0, 0x7B, 3)
        segment.attributes = pick.odd(x86.DESC_DPL | x86.DESC_B, 0, x86.DESC_B)
        segment.attributes |= pick.odd(x86.DESC_P | x86.DESC_RW, 0, x86.DESC_CE)
        segment.limit = pick.few(x86.MASK32, pick.word(), 0xFFFF)
        if i in (x86.ES, x86.SS):
            segment.base = pick.odd(0, pick.word())
    kernel = pick.odd(KERNEL, KERNEL | 1)
    cpu.segments[x86.CS].selector = pick.few(kernel, kernel, USER)
    cpu.segments[x86.CS].base = pick.odd(0, pick.word(), 0xFFFFFFFF)
    cpu.segments[x86.SS].limit = pick.odd(x86.MASK32, 0xFFFF)
    cpu.segments[x86.DS].base = pick.odd(0, 1, 1 << 40)


def offset_of(world, kind):
    """Where in its segment the operand of an access or a SETcc is."""
    index = world.cpu.gpr[kind >> 12 & 15] << (kind >> 16 & 3)
    return world.cpu.gpr[kind >> 8 & 15] + index + (kind >> 32) & x86.MASK32


def data_port(world, pick):
    """The data port of a drive, with a block on its way."""
    channel = pick.randrange(2)
    kind = abi.PORT_DATA | channel << 6 | pick.odd(0, 1 << 3, once=12)
    world.control.ports[world.port % abi.PORTS] = kind
    world.width = pick.few(1, 2, 2, 4)
    places = {"transfers": ctypes.addressof(world.transfer)}
    world.point(places)
    world.control.transfers[1] = world.control.transfers[0]
    world.control.transfers[channel] *= pick.odd(1, 0, once=5)
    transfer = world.transfer
    transfer.way = pick.few(abi.TO_HOST, abi.TO_DRIVE, abi.TO_HOST, abi.TO_DRIVE, 0)
    transfer.end = pick.few(8, 512, 2 * abi.TRANSFER_WORDS)
    transfer.at = transfer.end - min(pick.few(2, 4, 6, 8, 3, 24), transfer.end)
    first = (transfer.end >> 1) - 4
    for i in range(4):
        transfer.words[first + i] = pick.getrandbits(16)
    transfer.status, transfer.asks = pick.getrandbits(8), pick.few(0, 1)
    if pick.few(0, 1, 1):
        string_io(world, pick)
    else:
        control = world.control
        control.ports[world.port % abi.PORTS] |= 7 << 3 | pick.few(0, abi.ALTERNATE)
        world.width = 1


def string_io(world, pick):
    """REP INS or OUTS of the data port at RIP, and its operand."""
    control, cpu = world.control, world.cpu
    is_64_bit = pick.odd(0, offsets.HF_CS64, once=3)
    cpu.hflags &= ~(offsets.HF_CS64 | offsets.HF_CS32)
    cpu.hflags |= is_64_bit | pick.few(0, offsets.HF_CS32)
    way = world.transfer.way
    opcode = pick.odd(0x6F if way == abi.TO_DRIVE else 0x6D, 0x6C)
    code = pick.odd(
        bytes([0xF3, opcode]), bytes([0x66, 0xF3, opcode]), bytes([0xF3, 0x67, opcode]),
        bytes([opcode]), bytes([0x2E, 0xF3, opcode]), b"\x66\x66\x66\x66", once=2,
    )  # fmt: skip
    ram = ctypes.addressof(world.ram)
    at = pick.odd(0x20, 0xFFD, once=12)
    ctypes.memmove(ram + (CODE << 12) + at, code, min(len(code), 0x1000 - at))
    offset = pick.odd(0x40, 0xFFC, 0xFF8, 0xFFF, once=3)
    cpu.rip, index = at | CODE << 12, offset | STACK << 12
    if is_64_bit:
        map_page_64(world, pick, cpu.rip, CODE)
        map_page_64(world, pick, index, STACK, 0x63 | x86.PTE_NX)
        control.uppers = pick.odd(ctypes.addressof(world.looks), 0)
    else:
        control.direct = 1
        control.no_user_data = 0
        world.page_state[CODE] = abi.CODE
        world.page_state[STACK] = pick.odd(abi.DATA, abi.CODE)
    for register in (x86.ESI, x86.EDI):
        cpu.gpr[register] = index
    for segment in cpu.segments:
        segment.base = 0
        segment.limit = pick.odd(x86.MASK32, 0xFFFF, 0x100, once=3)
    cpu.gpr[x86.ECX] = pick.few(1, 2, 5, 5, 256, pick.getrandbits(64))
    cpu.df = pick.odd(1, x86.MASK32)
    control.stop_at = control.now + pick.few(abi.NEVER >> 2, 1 << 20, 8100, 3)
    control.told, control.pending = 0, pick.odd(0, 1)
    cpu.rflags &= ~x86.TF


def ports(world, pick):
    """A port of each kind, a line to send on, counters, and leaves of CPUID."""
    control, cpu = world.control, world.cpu
    world.width = pick.odd(1, 2, 4)
    kind, register = pick.few(
        (abi.PORT_PYTHON, 0), (abi.PORT_NOTHING, 0), (abi.PORT_POST_CODE, 0),
        (abi.PORT_UART, 0), (abi.PORT_UART, 5), (abi.PORT_UART, 1),
        (abi.PORT_SPEAKER, 0), (abi.PORT_UART, 5),
        *[(abi.PORT_PIT, 1), (abi.PORT_PIT, 2)] * 4,
        *[(abi.PORT_PIT, 3)] * 2,
        *[(abi.PORT_PIT, 0)] * 4,
        *[(abi.PORT_PIC, pick.randrange(4))] * 4,
    )  # fmt: skip
    world.port = pick.odd(pick.randrange(abi.PORTS), pick.getrandbits(16))
    control.ports[world.port % abi.PORTS] = kind | register << 3
    command = pick.randrange(8) << 5 | pick.randrange(8)  # an OCW2
    world.value = pick.odd(command, pick.getrandbits(32), once=2)
    control.post_code.value = pick.getrandbits(8)
    control.speaker.value = pick.getrandbits(4) & 0xE
    control.cpuid_count = pick.randrange(1, abi.CPUID_LEAVES + 1)
    if not pick.randrange(4):
        cpu.gpr[x86.EAX], cpu.gpr[x86.ECX] = 7, pick.few(0, 1)
    for i, leaf in enumerate(control.cpuid):
        leaf.leaf, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx = (
            pick.word() for _ in "12345"
        )
        if i == 1:
            leaf.leaf = cpu.gpr[x86.EAX] & x86.MASK32
    uart = control.uart
    uart.errors = pick.odd(0, 2)
    uart.lcr, uart.mcr = pick.odd(3, 0x83), pick.odd(0x0B, 0x1B)
    uart.ier, uart.count = pick.odd(5, 7), pick.few(0, 1, 16)
    uart.sent_count = pick.odd(pick.randrange(4), abi.SENT_MOST - 1, abi.SENT_MOST)
    for i in range(4):
        uart.urgent[i] = pick.getrandbits(64) & pick.getrandbits(64)
    for chip in control.pics:
        chip.irr, chip.imr = pick.getrandbits(8), pick.few(0, 0xFF, pick.getrandbits(8))
        chip.isr = pick.few(0, 1 << pick.randrange(8), pick.getrandbits(8))
        chip.lowest = pick.few(7, pick.randrange(8))
        chip.icw1, chip.icw3 = pick.few(0, 2), pick.few(4, 0xFF)
        chip.icw4 = pick.few(1, 0x11)
        chip.expected, chip.poll = pick.odd(0, 2), pick.odd(0, 1)
        chip.special_mask, chip.read_isr = pick.randrange(2), pick.randrange(2)
        chip.intr = pick.randrange(2)
    work = control.now + abi.IO_TIME - control.since
    passed = work * control.rate >> abi.RATE_SHIFT
    for i, counter in enumerate(control.pit):
        t = pick.randrange(1 << 40)
        counter.mode, counter.access = pick.randrange(6), pick.few(1, 2, 3, 3)
        counter.bcd, counter.gate = pick.randrange(2), pick.randrange(2)
        counter.out, counter.null_count = pick.randrange(2), pick.randrange(2)
        most = 10_000 if counter.bcd else 0x10000
        counter.reload, counter.period = (
            pick.few(0, 1, 2, pick.randrange(3, 60), most) for _ in "12"
        )
        long_ago = pick.few(0, counter.period, counter.period + 1, pick.randrange(200))
        counter.origin = t - long_ago
        counter.held = pick.odd(abi.NONE, pick.randrange(60), once=4)
        counter.load_at = pick.odd(abi.NONE, t, t + 1, t - 3, once=3)
        counter.expired, counter.idle = pick.odd(0, 1, once=3), pick.getrandbits(16)
        counter.read_high, counter.write_high = pick.randrange(2), pick.odd(0, 1)
        counter.latched = pick.odd(abi.NONE, pick.getrandbits(16), once=4)
        counter.status = pick.odd(abi.NONE, pick.getrandbits(8), once=4)
        if not i and pick.few(0, 1):  # a timer that counts
            counter.mode, counter.period, counter.out = pick.few(2, 2, 3), most, 1
            counter.held = counter.load_at = abi.NONE
            counter.origin = t - pick.few(0, most // 2, most - 2, most - 1, most)
        elif not i and pick.few(0, 1):  # one that has ended
            counter.mode, counter.access = pick.odd(4, 5), pick.odd(3, 1)
            counter.expired, counter.load_at = pick.odd(1, 0), abi.NONE
            counter.bcd, counter.gate = pick.odd(0, 1), pick.odd(1, 0, once=2)
            counter.write_high = pick.randrange(2)
        # It is accessed at pulse t, or at any time.
        if i == register % 3 and pick.odd(1, 0, once=4):
            control.ns = -(-t * pit.SECOND // pit.FREQUENCY) - passed & x86.MASK64


def timer(world, pick):
    """Counter 0 is about to rise, or has, and the 8259A is as in a PC, or nearly."""
    ports(world, pick)
    control, cpu, master = world.control, world.cpu, world.control.pics[0]
    vector, cpl = 8 * pick.randrange(32), cpu.segments[x86.CS].selector & 3
    gate, old = (control.gates[gate_slot(v, cpl)] for v in (vector, world.vector))
    if gate is not old:
        ctypes.memmove(
            ctypes.addressof(gate), ctypes.addressof(old), ctypes.sizeof(old)
        )
    gate.key ^= (vector ^ world.vector) << 2
    cpu.rflags |= pick.odd(x86.IF, 0)
    cpu.hflags &= ~pick.odd(offsets.HF_INHIBIT_IRQ, 0)
    control.told = control.by_ring = 0
    counter = control.pit[0]
    counter.mode, counter.out = pick.odd(pick.few(2, 4), 3), pick.randrange(2)
    counter.period = pick.odd(pick.randrange(2, 1 << 16), 0)
    counter.held = pick.odd(abi.NONE, 5)
    counter.load_at = pick.odd(abi.NONE, counter.origin, once=6)
    counter.expired, counter.gate = pick.odd(0, 1), pick.odd(1, 0, once=8)
    due = pit.tick_time(pit.next_edge(counter))
    control.now, control.zero = pick.getrandbits(31), pick.getrandbits(40)
    control.stop_at = control.now + pick.odd(1000, 0)
    control.look_at = control.now + pick.few(1000, 1 << 40)
    control.look_for = pick.few(1000, 1 << 40)
    control.ns = due - pick.few(1, 1000, 4_000_000, -1) & x86.MASK64 >> 1
    control.behind = pick.odd(0, abi.SENT)
    control.rests, control.others = (pick.odd(due + 1, due, 1 << 62) for _ in "12")
    world.absent |= {name for name in ("sem_clockwait",) if not pick.odd(1, 0, once=8)}
    world.results = RESULTS | {"sem_clockwait": pick.odd(-1, 0)}
    master.intr, master.special_mask = pick.odd(0, 1), pick.odd(0, 1)
    master.elcr, master.icw4 = pick.odd(0, 1), pick.odd(1, 3)
    master.icw2 = vector | pick.randrange(8)
    master.imr &= ~pick.odd(1, 0)
    master.isr, master.lowest = pick.odd(0, 1, 2), pick.odd(7, 3)
    master.irr = pick.odd(0, 1, pick.getrandbits(8))


def store_flag(world, kind, pick):
    """The byte of a SETcc is there, or not for everyone, in a flat segment."""
    cpu = world.cpu
    cpu.hflags &= ~(offsets.HF_CS32 | offsets.HF_CPL)
    cpu.hflags |= offsets.HF_CS32 * pick.odd(1, 0) | pick.few(1, 3)
    segment = cpu.segments[kind >> 4 & 7]
    segment.limit = pick.odd(x86.MASK32, 0xFFFF)
    segment.attributes = x86.DESC_P | x86.DESC_B | x86.DESC_RW * pick.odd(1, 0)
    linear = segment.base + offset_of(world, kind) & x86.MASK32
    map_page(world, linear, STACK, pick.odd(0x67, 0x63, 0x65, 0, once=4) | x86.PTE_NX)


def limit(world, kind, pick):
    """The segment of an access ends near it."""
    segment = world.cpu.segments[kind >> 4 & 7]
    offset = offset_of(world, kind)
    last = offset + (kind >> 20 & 15)
    segment.limit = pick.few(last, last - 1, last + 1, segment.limit) & x86.MASK32
    segment.attributes ^= pick.odd(0, x86.DESC_P, x86.DESC_CODE, once=8)


def paging(world, pick):
    """What the guest's tables are like; and where its directories are."""
    control = world.control
    control.wide, nx = pick.randrange(2), pick.odd(1, 0, once=6)
    control.frame = 0xFFFFFF000 if control.wide else 0xFFFFF000
    if control.wide:
        control.reserved = 0x7FFFFFF0 << 32 | (0 if nx else x86.PTE_NX)
        control.reserved_page = control.reserved | 0x80
        control.fetch_bit = x86.PF_I if nx else 0
    for i in range(4 if control.wide else 1):
        there = pick.odd(1, 0, once=10)
        control.guest_pdes[i] = there * ctypes.addressof(world.guest_pdes) + (
            i << 12 if there else 0
        )
        control.known_pdes[i] = ctypes.addressof(world.known_pdes) + (i << 12)


def get(world, words, table, index):
    """An entry of a table, the number of a page of words of 32 bits."""
    if not world.control.wide:
        return words[(table << 10) + index]
    at = (table << 10) + 2 * index
    return words[at] | words[at + 1] << 32


def put(world, words, table, index, entry):
    """Write one."""
    if world.control.wide:
        at = (table << 10) + 2 * index
        words[at], words[at + 1] = entry & x86.MASK32, entry >> 32
    else:
        words[(table << 10) + index] = entry & x86.MASK32


def pde_place(world, linear):
    """The number of its directory, and of its PDE there."""
    linear &= x86.MASK32
    if world.control.wide:
        return linear >> 30, linear >> 21 & 511
    return 0, linear >> 22


def first_shadow_pde(world, linear):
    """The number of the first shadow PDE that its PDE has."""
    linear &= x86.MASK32
    return linear >> 21 if world.control.wide else linear >> 22 << 1


def pte_index(world, linear):
    return linear >> 12 & (511 if world.control.wide else 1023)


def high_bits(world, pick):
    """What an entry may have above 32 bits."""
    if not world.control.wide:
        return 0
    return pick.few(0, 0, x86.PTE_NX, pick.odd(0, 1 << 35, 1 << 36, 1 << 62, once=4))


def shadow(world, pick):
    """Shadow tables for what the registers point to."""
    control = world.control
    bias = pick.few(0, 1 << 39, (1 << 64) - (1 << 39))
    control.vmm_memory_bias = bias
    if pick.odd(1, 0):
        world.point_at(shadow_pdes=world.shadow_pdes)
        control.tables_known = pick.odd(1, 0)
    most = abi.DROPPED_MOST
    control.dropped_count = pick.few(
        0, 1, most - 1, pick.odd(2, most, most + 1, once=4)
    )
    for register in world.cpu.gpr:
        page = (register & x86.MASK32) >> 12
        table = pick.choice(world.tables)
        hpa = ctypes.addressof(table) - bias & (1 << 64) - 1
        world.shadow_pdes[page >> 9] = pick.few(0, hpa | 0x63, hpa | 0x63)
        table[page & 511] = pick.few(0, pick.getrandbits(64), 1)
        pde = pick.word() & ~x86.PDE_PS | pick.odd(0, x86.PDE_PS)
        place = pde_place(world, register)
        put(world, world.guest_pdes, *place, pde)
        put(world, world.known_pdes, *place, pde ^ pick.odd(0, 1, 1 << 31))
        first = world.shadow_pdes[first_shadow_pde(world, register)]
        world.leaves[first >> 12 & abi.LEAF_PAGES - 1].is_shared = page >> 2 & 1
    runs = pick.few(0, pick.word(), x86.MASK32)
    control.linked_pdes = pick.few(runs, runs << 32) if control.wide else runs


def root_at(control):
    """Where CR3 is to be."""
    return PDPT << 12 | 0x40 if control.wide else DIRECTORY << 12


def roots(world, pick):
    """A root to switch to, whose tables the guest has changed, or has not."""
    control, cpu = world.control, world.cpu
    control.cr0, control.cr2 = pick.word(), pick.word()
    control.cr3, control.cr4 = pick.word(), pick.word()
    cpu.cr0 = pick.getrandbits(64)
    control.write_protect = pick.randrange(2)
    hold(world, pick)
    at = root_at(control)
    root = control.roots[abi.root_slot(at)]
    root.at = at + pick.odd(1, 0)
    root.hpa = pick.odd(0x5000, cpu.cr3)
    root.shadow_pdes = ctypes.addressof(world.other_pdes)
    root.directories[0] = DIRECTORY + 1
    root.known_pdes = ctypes.addressof(world.other_known)
    if control.wide:
        root.directories[2] = pick.odd(0, 2, once=10)
        put(world, world.ram, PDPT, 8, DIRECTORY << 12 | pick.odd(1, 0, 3, 0x1001))
        put(world, world.ram, PDPT, 9, pick.odd(0, DIRECTORY << 12 | 1))
        put(world, world.ram, PDPT, 10, pick.few(0, pick.getrandbits(64) & ~1))
    slot = pick.randrange(512 if control.wide else 1024)
    root.linked_pdes = pick.odd(1 << (slot >> 5), 0, x86.MASK32)
    hpa = ctypes.addressof(world.tables[2]) - control.vmm_memory_bias & (1 << 64) - 1
    world.other_pdes[slot if control.wide else 2 * slot] = hpa | 0x63
    leaf = world.leaves[hpa >> 12 & abi.LEAF_PAGES - 1]
    leaf.page_table = pick.odd(OTHER_TABLE << 12, -1, RAM_PAGES << 12)
    leaf.has_nonglobal = pick.odd(1, 0)
    leaf.copy.contents = world.other_copies
    for _ in range(pick.few(0, 0, 3)):
        i = pick.randrange(512 if control.wide else 1024)
        put(world, world.ram, OTHER_TABLE, i, pick.getrandbits(64))
        known = pick.getrandbits(64) & ~pick.odd(x86.PTE_G, 0, once=4)
        put(world, world.other_copies, 0, i, known)
        world.tables[2 + i // 512][i % 512] = pick.getrandbits(48)
    if pick.randrange(2):
        i = pick.odd(slot ^ 1, slot, once=4)
        put(world, world.ram, DIRECTORY, i, pick.getrandbits(64))


def hold(world, pick):
    """Pages that must be the same by the other directory."""
    control = world.control
    most = abi.HELD_MOST
    control.held_count = pick.odd(pick.few(0, 0, 1, 2), most, most + 1)
    for i in range(2):
        held = control.held[i]
        held.page, held.frame = pick.getrandbits(20), pick.getrandbits(20)
        if control.wide:  # in the first directory, but for one time in eight
            held.page &= pick.odd((1 << 18) - 1, (1 << 20) - 1, once=8)
        _directory, slot = pde_place(world, held.page << 12)
        at = pte_index(world, held.page << 12)
        last = 511 if control.wide else 1023
        pde = HELD_TABLE << 12 | pick.odd(0x27, 0x26, once=8)
        pte = held.frame << 12 | pick.odd(0x27, 0x26, once=8)
        if pick.randrange(3) == 0:
            odd = pick.odd(0, 1 << 12, 1 << 20, once=8)
            pde = (held.frame & ~last) << 12 | odd | 0xA7
            held.frame = pick.odd(held.frame & ~last | at, held.frame, once=8)
        elif not pick.odd(1, 0, once=8):
            pde |= RAM_PAGES << 12
        elif not pick.odd(1, 0, once=8):
            pte ^= 1 << 12
        if control.wide:
            pte |= pick.odd(0, 1 << 40, once=8)
            pde |= pick.odd(0, 1 << 40, once=8)
        put(world, world.ram, HELD_TABLE, at, pte)
        put(world, world.ram, DIRECTORY, slot, pde)
        put(world, world.other_known, 0, slot, pde)


def tlb(world, pick):
    """What the engine has of pages that two roots share, and of others."""
    if not pick.odd(1, 0, once=6):
        return
    world.point_at(tlb=world.tlb, jumps=world.jumps)
    slot = pick.randrange(2048)
    world.other_pdes[slot] ^= 1
    pages = [slot << 21, (slot << 21) - 4096, 0x1000, 0xFFFF800000010000, (1 << 64) - 1]
    for i, block in enumerate(pages):
        world.jumped[i] = block & (1 << 64) - 1
        place = ctypes.addressof(world.jumped) + 8 * i
        world.jumps[pick.randrange(4096)] = pick.odd(place, 0)
    world.tlb.dirty = pick.randrange(8)
    for i, table in enumerate(world.tlb.tables):
        table.mask = 3 << 6
        table.first = ctypes.addressof(world.tlb_entries) + (4 * i << 6)
        world.tlb.modes[i].used = pick.few(4, 0)
        victims = world.tlb.modes[i].victims
        for entry in (*world.tlb_entries[4 * i : 4 * i + 4], *victims):
            page = pick.choice(pages) & (1 << 64) - 1
            for j in range(3):
                entry[j] = pick.few(page, page | 1 << 11, (1 << 64) - 1)


def gdt(world, pick):
    """A GDT that is written to, or has been."""
    control = world.control
    filled = pick.few(8, 32, abi.GDT_MOST)
    control.gdt_page, control.gdt_filled = pick.odd(GDT, -1), pick.odd(filled, 0)
    control.gdt_at = control.ram + (GDT << 12)
    control.gdt_entries = ctypes.addressof(world.shadow_gdt)
    control.gdt_used = pick.few(0, 0, 1 << pick.randrange(8))
    flat = 0x00CFF3000000FFFF | pick.getrandbits(24) << 16
    kinds = (
        0,
        flat,
        flat,
        flat | 0x40 << 56,
        *(flat ^ 1 << bit for bit in (0, 41, 45, 48)),
    )
    words = [pick.few(*kinds) for _ in range(8)] * (abi.GDT_MOST // 8)
    guest = struct.pack(f"<{abi.GDT_MOST}Q", *words)
    for table in control.gdt_words, control.ram + (GDT << 12):
        ctypes.memmove(table, guest, len(guest))
    for table in control.gdt_shadow, world.shadow_gdt:
        ctypes.memmove(table, pick.randbytes(8 * abi.GDT_MOST), 8 * abi.GDT_MOST)
    for _ in range(pick.few(0, 1, 4, 16)):  # written since, or never read
        i = pick.randrange(abi.GDT_MOST)
        if pick.odd(1, 0, once=4):
            control.gdt_words[i] = pick.getrandbits(64)
        else:
            control.gdt_words[i] ^= pick.few(1 << 41, 1 << 48, 1, 1 << 45)
    if pick.randrange(2):
        control.gdt_spte = ctypes.addressof(world.tables[3]) + 8 * pick.randrange(8)
        control.gdt_opened = pick.word()
        control.gdt_was_stale = pick.odd(0, 1)
        control.stale = pick.odd(1, 0)


# ModRM of EAX to each segment register, and of memory; POP ES, DS, FS and GS.
LOADS = 0xC0, 0xC8, 0xD0, 0xD8, 0xE0, 0xE0, 0xE8, 0xE8, 0xF0, 0xF8, 0x20
POPS = 0x9007, 0x901F, 0xA10F, 0xA90F


def load_sreg(world, pick, opcode):
    """A load of a segment register, from a GDT that has been written to."""
    control, cpu = world.control, world.cpu
    control.gdt_spte = ctypes.addressof(world.tables[3])
    control.stale, control.gdt_was_stale = 1, pick.odd(0, 1)
    index = pick.randrange(8)
    cpu.hflags &= ~(offsets.HF_CS32 | offsets.HF_CPL)
    cpu.hflags |= offsets.HF_CS32 * pick.odd(1, 0, once=8) | pick.odd(1, 0, 3, once=8)
    if not pick.odd(1, 0, once=12):
        world.absent.add("flush_page")
    selector = index << 3 | pick.odd(3, 0, 7)
    cpu.gpr[x86.EAX] = selector
    top = cpu.gpr[x86.ESP] + cpu.segments[x86.SS].base & 0xFFC
    world.ram[STACK * 1024 + top // 4] = selector | pick.getrandbits(16) << 16
    cpu.error_code, cpu.is_int = pick.odd(index << 3, 4, selector), pick.odd(0, 1)
    if pick.randrange(4):
        guest = abi.Descriptors.from_address(control.ram + (GDT << 12))
        guest[index] = 0x00CFF3000000FFFF | pick.getrandbits(24) << 16
    cpu.rip = pick.odd(pick.word() & ~0xFFF | 0x123, 0xFFF)
    linear = cpu.rip + cpu.segments[x86.CS].base & x86.MASK32
    map_page(world, linear, CODE, pick.odd(0x25, 0))
    where = (CODE << 12) + min(linear & 0xFFF, 4094)
    ctypes.c_uint16.from_address(control.ram + where).value = opcode


def blocks(world, pick):
    """A block that has been translated, often of what no one has to decode."""
    control, cpu = world.control, world.cpu
    control.scans = pick.odd(1, 0)
    control.unguarded, control.inner = pick.odd(0, 1), pick.odd(0, 1)
    control.breaks = pick.odd(0, pick.word())
    for ring in (1, 3):
        control.armed[ring] = pick.odd(0, 1)
    control.opcodes[:], world.opcodes64[:] = OPCODES
    world.point_at(opcodes64=world.opcodes64)
    cpu.rflags = cpu.rflags & ~x86.AC | pick.odd(0, x86.AC)
    is_64 = pick.randrange(5) < 2
    if not is_64:
        control.efer = pick.odd(0, x86.EFER_LMA, once=5)  # compatibility mode
    cpu.hflags &= ~(3 | offsets.HF_CS64)
    cpu.hflags |= pick.few(1, 3)
    cpu.hflags |= offsets.HF_CS64 if is_64 else offsets.HF_CS32 * pick.odd(1, 0)
    insns = INSNS64 if is_64 else INSNS
    parts = [pick.choice(insns) for _ in range(pick.randrange(1, 5))]
    code = b"".join(parts)
    code = code[: len(code) - pick.odd(0, 1, 2, 4, once=8)]
    linear = pick.word() & ~0xFFF | pick.odd(0x100, 0xFF0)
    control.shadow_pdes *= pick.odd(1, 0, once=10)  # no paging
    if not control.shadow_pdes:
        control.tables_known = 0
        linear = linear & 0xFFF | pick.odd(CODE, RAM_PAGES, once=2) << 12
    slot = (linear ^ linear >> 12) & 0xFFF
    control.behind_load[slot >> 6] = pick.odd(0, 1) << (slot & 63)
    where = (CODE << 12) + min(linear & 0xFFF, 0xF00)
    ctypes.memmove(control.ram + where, code, len(code))
    block = world.block
    block.pc = linear + pick.odd(0, 1 << 32, once=10)
    if is_64:
        block.pc = linear | pick.few(0, -1 << 32, 0x7F8100000000) & x86.MASK64
    if is_64 or control.efer & x86.EFER_LMA:
        map_page_64(world, pick, block.pc, CODE)
    else:
        map_page(world, linear, CODE, pick.odd(0x25, 0))
    block.size = pick.odd(len(code), 0)
    calls = [pick.odd(pick.few(b"\xff\x15", b"\xe8"), b"\x90") for _ in range(2)]
    calls = [call + b"\x11" * 4 for call in calls]
    rubbish = pick.few(*(bytes([i]) for i in range(256)))
    uc = b"\x48\xbf" + control.uc.to_bytes(8, "little")
    start = ctypes.addressof(world.translated) + pick.few(0, 3)
    key = uc + load_rsi(pick, block.pc, start + 10)
    key += b"\xba" + block.size.to_bytes(4, "little")
    key += b"\x48\xb9" + world.base.to_bytes(8, "little")
    if pick.randrange(2) == 0:
        at = pick.few(0, 2, 10, 11, *(len(key) - at for at in (15, 14, 10, 8)))
        key = key[:at] + rubbish + key[at + 1 :]
    load = uc + b"\x33\xf6"
    if pick.randrange(4) == 0:
        at = pick.few(0, 2, 10)
        load = load[:at] + rubbish + load[at + 1 :]
    made = key + calls[0] + load + calls[1]
    ctypes.memmove(start, made, len(made))
    start = ctypes.addressof(world.translated)
    control.code_next, control.code_end = pick.odd(start, 0), start + 70
    for i in range(16):
        control.prologues[i] = pick.getrandbits(64)
    if linear >> 12 < RAM_PAGES:
        world.page_state[linear >> 12] = pick.few(abi.CODE, abi.UNBACKED)


def load_rsi(pick, pc, at):
    """What loads RSI with a block's address, at `at`, in one of the engine's forms."""
    signed = b"\x48\xc7\xc6" + struct.pack("<I", pc & x86.MASK32)
    near = b"\x48\x8d\x35" + struct.pack("<I", pc - at - 7 & x86.MASK32)
    whole = b"\x48\xbe" + struct.pack("<Q", pc)
    if pc >> 32 == 0:
        return pick.odd(b"\xbe" + struct.pack("<I", pc), whole, near)
    return pick.odd(signed if pc >> 63 else whole, near, signed, whole, b"\x90", once=3)


OPCODES = [
    opcode_table(bits, {1: (), 3: ()}, MODELS[config.CPU].lacks) for bits in (32, 64)
]


INSNS = [
    bytes.fromhex(code)
    for code in (
        "90", "8b 03", "01 d8", "83 c4 0c", "64 a1 04 00 00 00", "0f b6 c0", "c2 04 00",
        "64 8b 0d 10 00 00 00", "64 8b 15 10 00 00 00", "65 8b 15 00 00 00 00", "f3 a5",
        "f7 c1 01 00 00 00", "f7 d9", "66 f7 c1 01 00", "c8 08 00 00", "8d 74 26 00",
        "f6 d1", "f7 d1",
        "8b 84 24 10 00 00 00", "2e 0f 1f 84 00 00 00 00 00", "2e 89 03", "26 8b 03",
        "f0 0f b1 0b", "f0 8b 03", "67 8b 03", "0f 38 00 c0", "9d", "66 9c", "0f 22 d8",
        "9a 00 00 00 00 00 00", "66 9a 00 00 00 00", "e8 00 00 00 00", "8e d8", "0f",
        "64", "8b", "8b 04", "8b 44 24 08", "8b 83 00 00 00 00", "d6", "64 26 8b 03",
        "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 66",
    )
]  # fmt: skip


# VEX, REX that are not last, near branches with 66h, what has 64 bits of immediate.
INSNS64 = [
    bytes.fromhex(code)
    for code in (
        "90", "48 8b 05 10 00 00 00", "48 b8 01 00 00 00 00 00 00 00", "48 01 d8",
        "b8 00 00 00 00", "66 b8 00 00", "66 48 b8 00 00 00 00 00 00 00 00", "f6 c0 01",
        "48 a1 00 00 00 00 00 00 00 00", "67 a1 00 00 00 00", "48 f7 c1 01 00 00 00",
        "48 f7 d9", "65 48 8b 04 25 00 00 00 00", "48 66 90", "66 e9 00 00",
        "66 48 e8 00 00 00 00", "e8 00 00 00 00", "c5 f8 77", "06", "8e d0", "8e d8",
        "0f 20 d8", "f0 48 0f b1 0b", "f0 48 8b 03", "0f 38 00 c0", "9d", "0f 05",
        "48 8b 44 24 08", "48 8b 84 24 10 00 00 00", "48 c7 c0 00 00 00 00", "0f", "48",
        "48 8b", "48 8b 04", "41 0f ae 00", "0f 94 00", "66 68 00 00", "68 00 00 00 00",
        "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 66",
    )
]  # fmt: skip


def map_page_64(world, pick, linear, page, rights=0x25):
    """Have the five levels of tables map a linear address to a page of RAM."""
    bias = world.control.vmm_memory_bias
    at = [ctypes.addressof(table) - bias & x86.MASK64 for table in world.tables]
    at = [place & x86.LONG_FRAME for place in at]
    world.cpu.cr3 = at[0]
    for level, entry in enumerate((*at[1:], page << 12)):
        index = linear >> 48 - 9 * level & 511
        world.tables[level][index] = entry | pick.odd(rights if level == 4 else 0x25, 0)


def write_to_gdt(world, pick):
    control, cpu = world.control, world.cpu
    control.gdt_spte = pick.odd(0, control.gdt_spte)
    control.stale = 0
    where = cpu.cr2 & x86.MASK32
    world.page_state[GDT] = pick.odd(abi.TABLE, abi.DATA)
    map_page(world, where, pick.odd(GDT, CODE), pick.odd(0x61 | x86.PTE_NX, 0))
    cpu.error_code = pick.odd(3, 2, 7)
    pde = pick.few(0xE7, PAGE_TABLE << 12 | 0x27, 0x1000000 | 0x27)
    pde &= ~pick.odd(0, 2, 1, once=3)
    place = pde_place(world, where)
    put(world, world.guest_pdes, *place, pde)
    put(world, world.known_pdes, *place, pick.odd(pde, 0))
    pte = pick.odd(0x67, 0x27, 0x65, once=6)
    put(world, world.ram, PAGE_TABLE, pte_index(world, where), pte)
    found = world.shadow_pdes[where >> 21]
    world.shadow_pdes[first_shadow_pde(world, where)] = found
    leaf = world.leaves[found >> 12 & abi.LEAF_PAGES - 1]
    leaf.page_table = pick.odd(-1 if pde & x86.PDE_PS else PAGE_TABLE << 12, -1)
    leaf.is_shared, leaf.copy.contents = pick.odd(0, 1), world.copies


def page_fault(world, pick):
    """An access that the guest's tables forbid, and the code that makes it."""
    cpu = world.cpu
    control = world.control
    control.stale = 0
    pde = pick.few(PAGE_TABLE << 12 | 7, PAGE_TABLE << 12 | 7, 0, 0x87, 0x1000007)
    pde |= high_bits(world, pick)
    put(world, world.guest_pdes, *pde_place(world, cpu.cr2), pde)
    pte = pick.few(0, 0, 1, 5, 3, 7) | high_bits(world, pick) | pick.odd(0, 0x80)
    put(world, world.ram, PAGE_TABLE, pte_index(world, cpu.cr2), pte)
    cpu.error_code = pick.few(0, 2, 4, 6, 3, 7, 5, 1, 20, 16, 21)
    if cpu.error_code & x86.PF_I:
        cpu.rip = pick.odd(cpu.cr2, cpu.rip) & x86.MASK32
    cpu.rip = pick.odd(cpu.rip, 0xFF7, 0xFF8, 0xFF9, 0xFFF, once=8)
    linear = cpu.rip + cpu.segments[x86.CS].base & x86.MASK32
    map_page(world, linear, CODE, pick.odd(0x25, 0))
    second = pick.few(0xA4, 0xAB, 0xB1, 0xBA, 0xB6, 0xC1, 0xB6, 0xAF)
    first = pick.few(0x8B, 0x01, 0x80, 0x81, 0x83, 0x83, pick.getrandbits(8))
    opcode = pick.few(bytes((first,)), bytes((0x0F, second)))
    modrm = bytes((pick.few(0, 0x38, pick.getrandbits(8)),))
    code = pick.few(b"", b"", b"\x66", b"\x64\x66", b"\x66\x66\x66") + opcode + modrm
    where = (CODE << 12) + min(linear & 0xFFF, 4090)
    ctypes.memmove(control.ram + where, code, len(code))


def map_page(world, linear, page, rights):
    """Have the shadow map a linear address to a page of RAM, by the first table."""
    hpa = ctypes.addressof(world.tables[0]) - world.control.vmm_memory_bias
    world.shadow_pdes[(linear & x86.MASK32) >> 21] = hpa & (1 << 64) - 1 | 0x63
    world.tables[0][linear >> 12 & 511] = page << 12 | rights


def transfers(world, pick):
    """A frame on the stack, plans for it and for the vector, a TSS."""
    control, cpu = world.control, world.cpu
    control.ram = ctypes.addressof(world.ram)
    control.ram_size = pick.odd(RAM_PAGES << 12, STACK + 1 << 12, STACK << 12, 0)
    # At the end of a page, too.
    near_end = pick.randrange(4048, 4096, 4), pick.randrange(4048, 4096), 4093, 4080
    offset = pick.few(0, 512, 512, 512, *near_end, pick.randrange(4, 32, 4))
    esp = pick.odd(0xC0100000, pick.word() & ~0xFFF) + offset
    cpu.gpr[x86.ESP] = esp
    where = esp + cpu.segments[x86.SS].base & x86.MASK32
    data = 0x63 | x86.PTE_NX
    rights = pick.odd(data, 0x61, 0x63, 0, 0, 0x67 | x86.PTE_NX)
    world.control.no_user_data = pick.few(0, x86.PTE_US)
    for stack in (where, 0xC0100000 + offset):
        if offset < 32:
            map_page(world, stack - 32, STACK - 1, pick.odd(data, 0x61, 0x63, 0))
        map_page(world, stack, STACK, rights)
    rpl = pick.few(0, 3)
    flags = pick.getrandbits(22) & ~(x86.VM | x86.TF) | pick.odd(0, x86.TF, x86.VM)
    control.iopl = pick.few(0, 0, 1, 2)
    control.kernel_iopl = pick.few(0, 0, 1 << 12)
    image = flags & ~x86.IOPL | pick.odd(control.iopl, control.iopl ^ 3) << 12
    cs = USER if rpl else KERNEL | pick.odd(0, 1)
    rubbish = pick.few(0, pick.getrandbits(16) << 16)  # in what is a selector
    # What an IRET finds, or a POPF.
    first = pick.few(pick.word(), image)
    for i, word in enumerate((first, cs | rubbish, image, 0xBFFF0000, 0x7B | rubbish)):
        world.ram[STACK * 1024 + (where & 0xFFF) // 4 + i] = word
    key = abi.PLANNED | cs | (0x7B << 16 if rpl else 0)
    back = control.returns[return_slot(key)]
    plan(back, pick.odd(key, key ^ 8), pick)
    back.cs.limit = pick.few(x86.MASK32, first, first - 1 & x86.MASK32)
    cpl = cpu.segments[x86.CS].selector & 3
    gate = control.gates[gate_slot(world.vector, cpl)]
    key = abi.PLANNED | world.vector << 2 | cpl
    plan(gate, pick.odd(key, key ^ 4), pick)
    gate.stack = ctypes.addressof(world.ram) + (TSS << 12) + 4
    gate.ss.base = pick.odd(0, 4)
    world.ram[TSS * 1024 + 1] = 0xC0100000 + offset
    world.ram[TSS * 1024 + 2] = pick.odd(gate.ss.selector, 0)
    for known in control.verws:
        known.operand = pick.odd(where & ~3, pick.word())
        known.known = pick.odd(abi.PLANNED | first & 0xFFFF, 0)
        known.zf, known.length = pick.few(0, x86.ZF), pick.randrange(1, 16)


def plan(found, key, pick):
    found.key = key
    for segment in (found.cs, found.ss):
        segment.selector = pick.getrandbits(16)
        segment.base = pick.few(0, pick.word())
        segment.limit = pick.few(x86.MASK32, x86.MASK32, pick.word())
        segment.attributes = pick.getrandbits(24) & ~0xFF
    found.offset, found.dpl = pick.word(), pick.few(0, 3, 3)
    found.masks_if = pick.randrange(2)


def looks(world, pick):
    """A table of operands to look at, and the address of an instruction."""
    words = world.looks
    words[0] = world.base
    count = pick.randrange(1, 4)
    for i in range(count):
        words[1 + 2 * i], words[2 + 2 * i] = 0x1000 * i, pick.getrandbits(55)
    words[1 + 2 * count] = (1 << 64) - 1
    world.sites, world.at = ctypes.addressof(words), 0x1000 * pick.randrange(count + 1)


def page_tables(world, pick, seed):
    """A page table with entries of all kinds, linked, and a miss in it."""
    control, cpu = world.control, world.cpu
    for page in range(RAM_PAGES):
        kinds = abi.DATA, abi.DATA, abi.CODE, abi.TABLE, abi.MIXED, abi.UNBACKED
        world.page_state[page] = pick.choice(kinds)
    world.point_at(page_state=world.page_state, leaves=world.leaves)
    control.global_bit = pick.few(0, x86.PTE_G)
    control.no_user_code = pick.odd(0, x86.PTE_US, once=8)
    control.no_user_data = pick.odd(0, x86.PTE_US, once=3)
    control.mmio_first = seed % RAM_PAGES
    control.mmio_end = RAM_PAGES * (seed >> 2 & 1)
    most = abi.ADDED_MOST
    control.added_count = pick.odd(pick.randrange(64), most - 32, most)
    cpu.cr2 = pick.odd(pick.word(), 1 << 32, x86.MASK32)
    if world.vector != x86.VEC_PF:
        return
    cpu.error_code = pick.few(0, 1, 2, 3, 4, 5, 6, 7, 16, 20)
    directory, slot = pde_place(world, cpu.cr2)
    pde = PAGE_TABLE << 12 | pick.odd(0x27, 0x25, 0x07, 0xA7, 0x23, 0)
    reserved = control.wide and (high_bits(world, pick) or 1 << 62)
    pde |= pick.odd(0, reserved, once=4)
    world.page_state[PAGE_TABLE] = pick.odd(abi.DATA, abi.UNBACKED)
    put(world, world.guest_pdes, directory, slot, pde)
    put(world, world.known_pdes, directory, slot, pick.odd(pde, pde ^ 2))
    hpa = ctypes.addressof(world.tables[1]) - control.vmm_memory_bias & (1 << 64) - 1
    place = first_shadow_pde(world, cpu.cr2)
    world.shadow_pdes[place] = pick.odd(hpa | 0x63, 0)
    leaf = world.leaves[hpa >> 12 & abi.LEAF_PAGES - 1]
    leaf.page_table = pick.odd(PAGE_TABLE << 12, 0, once=8)
    leaf.rights = pde & (6 | x86.PTE_NX)
    leaf.copy.contents = world.copies
    first = pte_index(world, cpu.cr2) & ~15
    for i in range(first, first + 16):
        bits = pick.getrandbits(9) | pick.few(0x27, 0x67, 0)
        if control.wide:
            bits = bits & ~0x80 | pick.odd(0, 0x80) | high_bits(world, pick)
        page = pick.randrange(RAM_PAGES + 2)
        put(world, world.ram, PAGE_TABLE, i, page << 12 | bits)
        if pick.randrange(3):
            narrow = page << 12 | x86.PTE_P | x86.PTE_NX  # allows nothing but to read
            world.tables[1 + i // 512][i % 512] = narrow if i & 3 == seed & 3 else 0
    if not pick.odd(1, 0):  # a directory that maps itself
        control.guest_pdes[directory] = control.ram + (PAGE_TABLE << 12)
        put(world, world.ram, PAGE_TABLE, slot, pde)
