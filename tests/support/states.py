"""Random states of a `World`: of the machine at an exit that a handler may do.

`AIMS` has the kinds of exits: for a new handler, a line there, and a function of what
it reads. Nearly all that a handler asks for is so, but for one time in thirty each. So
nine of ten handlers' questions are answered both ways, and what follows is reached.
"""

import ctypes
import random

from emu86.native import abi
from emu86.native.transfers import gate_slot, return_slot
from emu86.spec import x86
from support.world import RAM_PAGES

STACK = 3  # the page of RAM that the stack is in; behind the end of page 2
TSS = 5
PAGE_TABLE = 7
KERNEL, USER = 0x60, 0x73


class Pick(random.Random):
    """Choices of a seed."""

    def few(self, *values):
        return self.choice(values)

    def odd(self, usual, *others, once=30):
        """What is usual, but for one time in thirty, or less."""
        return usual if self.randrange(once) else self.choice(others)

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


# Of each kind of exit: a vector, and the kind of the site there.
AIMS = {
    "any": at_any,
    "CLI": at_general_protection(lambda _pick: abi.SITE_CLI),
    "STI": at_general_protection(lambda _pick: abi.SITE_STI),
    "INVLPG": at_general_protection(lambda pick: abi.SITE_INVLPG + pick.randrange(8)),
    "split": at_int3(lambda _pick: abi.SITE_SPLIT),
    "access": at_int3(access),
    "IRET": at_int3(lambda _pick: abi.SITE_IRET),
    "POPF": at_int3(lambda _pick: abi.SITE_POPF),
    "VERW": at_int3(lambda pick: abi.SITE_VERW | pick.randrange(abi.VERWS) << 4),
    "INT": at_interrupt,
    "#PF": lambda _pick: (x86.VEC_PF, 0),
}


def randomize(world, seed, aim="any"):
    """Fill the world: a state in which a handler has something to do, or nearly."""
    pick = Pick(seed)
    control, cpu = world.control, world.cpu
    ctypes.memset(world.base, 0, world.used)
    world.vector, kind = AIMS[aim](pick)
    world.point_at(cpu=cpu)
    world.absent = {name for name in ("compute_flags",) if not pick.odd(1, 0)}
    control.uc = pick.getrandbits(64)
    control.engine_cpu = pick.getrandbits(64)
    control.now, control.stop_at = pick.some(), pick.some()
    control.pending = pick.few(0, 1) if aim == "any" else pick.odd(0, 1)
    control.tsc_offset = pick.few(0, pick.some(), -pick.some())
    control.since = pick.few(0, control.now)
    control.ns, control.rate = pick.some(), pick.few(1 << 30, 3 << 30, 12345)
    control.tsc_cost, control.exit_cost = pick.few(0, 2000, 4000), pick.few(0, 4000)
    control.told, control.by_ring = pick.odd(0, 1), pick.odd(0, 1)
    control.stale, control.patched = pick.odd(0, 1), pick.odd(0, 1)
    control.change_count = pick.randrange(8)
    for name, _ctype in abi.Control._fields_:
        if name.startswith("count_") and name != "count_int":
            setattr(control, name, pick.some())
    is_break = world.vector == x86.VEC_BP
    is_int = is_break or world.vector not in (x86.VEC_GP, x86.VEC_PF)
    cpu.rip = pick.few(0, 1, x86.MASK32, pick.word(), 1 << 32)
    cpu.rflags = pick.getrandbits(22) & ~(x86.TF | x86.VM | x86.NT | x86.AC)
    cpu.rflags |= pick.odd(0, x86.TF, x86.VM, x86.NT, x86.AC)
    cpu.hflags = pick.getrandbits(23) & ~3 | pick.odd(1, 0, 3)
    cpu.error_code, cpu.is_int = pick.odd(0, 8, 1), pick.odd(is_int, not is_int, 2)
    cpu.old_exception = pick.word()
    for i in range(8):
        cpu.gpr[i] = pick.few(pick.word(), pick.getrandbits(64), 0xFFFFFFFF)
    cpu.cc_op = pick.few(1, 1, 0, 20)
    cpu.cc_src, cpu.df = pick.getrandbits(64), pick.few(1, x86.MASK32)
    segments(world, pick)
    shadow(world, pick)
    transfers(world, pick)
    page_tables(world, pick)
    looks(world, pick)
    if world.vector == x86.VEC_BP and kind & 15 == abi.SITE_ACCESS:
        limit(world, kind, pick)
    linear = cpu.rip - is_break + cpu.segments[x86.CS].base & x86.MASK32
    site = control.sites[(linear ^ linear >> 12) & abi.SITE_MASK]
    site.linear = pick.odd(linear, linear ^ 1 << 31, linear | 1 << 32)
    site.kind = kind
    for register in cpu.gpr:
        page = (register & x86.MASK32) >> 12
        if pick.odd(0, 1):
            control.guarded[page >> 6 & 63] |= 1 << (page & 63)


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


def limit(world, kind, pick):
    """The segment of an access ends near it."""
    segment = world.cpu.segments[kind >> 4 & 7]
    index = world.cpu.gpr[kind >> 12 & 15] << (kind >> 16 & 3)
    offset = world.cpu.gpr[kind >> 8 & 15] + index + (kind >> 32) & x86.MASK32
    last = offset + (kind >> 20 & 15)
    segment.limit = pick.few(last, last - 1, last + 1, segment.limit) & x86.MASK32


def shadow(world, pick):
    """Shadow tables for what the registers point to."""
    control = world.control
    bias = pick.few(0, 1 << 39, (1 << 64) - (1 << 39))
    control.vmm_memory_bias = bias
    if pick.odd(1, 0):
        world.point_at(shadow_pdes=world.shadow_pdes)
    world.point_at(guest_pdes=world.guest_pdes, known_pdes=world.known_pdes)
    most = abi.DROPPED_MOST
    control.dropped_count = pick.few(0, 1, most - 1, pick.odd(2, most, most + 1))
    for register in world.cpu.gpr:
        page = (register & x86.MASK32) >> 12
        table = pick.choice(world.tables)
        hpa = ctypes.addressof(table) - bias & (1 << 64) - 1
        world.shadow_pdes[page >> 9] = pick.few(0, hpa | 0x63, hpa | 0x63)
        table[page & 511] = pick.few(0, pick.getrandbits(64), 1)
        pde = pick.word() & ~x86.PDE_PS
        world.guest_pdes[page >> 10] = pde | pick.odd(0, x86.PDE_PS)
        changed = pick.odd(0, 1, 1 << 31)
        world.known_pdes[page >> 10] = world.guest_pdes[page >> 10] ^ changed
    control.linked_pdes = pick.few(0, pick.word(), x86.MASK32)


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
    near_end = pick.randrange(4048, 4096, 4), pick.randrange(4048, 4096)
    offset = pick.few(0, 512, 512, 512, *near_end, pick.randrange(4, 32, 4))
    esp = pick.odd(0xC0100000, pick.word() & ~0xFFF) + offset
    cpu.gpr[x86.ESP] = esp
    where = esp + cpu.segments[x86.SS].base & x86.MASK32
    data = 0x63 | x86.PTE_NX
    rights = pick.odd(data, 0x61, 0x63, 0, 0)
    for stack in (where, 0xC0100000 + offset):
        if offset < 32:
            map_page(world, stack - 32, STACK - 1, pick.odd(data, 0x61, 0x63, 0))
        map_page(world, stack, STACK, rights)
    rpl = pick.few(0, 3)
    flags = pick.getrandbits(22) & ~(x86.VM | x86.TF) | pick.odd(0, x86.TF, x86.VM)
    iopl = pick.odd(cpu.rflags, ~cpu.rflags) & x86.IOPL
    image = flags & ~x86.IOPL | iopl
    cs = USER if rpl else KERNEL | pick.odd(0, 1)
    rubbish = pick.few(0, pick.getrandbits(16) << 16)  # in what is a selector
    # What an IRET finds, or a POPF.
    first = pick.few(pick.word(), image)
    for i, word in enumerate((first, cs | rubbish, image, 0xBFFF0000, 0x7B | rubbish)):
        world.ram[STACK * 1024 + (where & 0xFFF) // 4 + i] = word
    key = abi.PLANNED | cs | (0x7B << 16 if rpl else 0)
    plan(control.returns[return_slot(key)], pick.odd(key, key ^ 8), pick)
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
    found.masks_if, found.iopl = pick.randrange(2), pick.few(0, 0x1000)


def looks(world, pick):
    """A table of operands to look at, and the address of an instruction."""
    words = world.looks
    words[0] = world.base
    count = pick.randrange(1, 4)
    for i in range(count):
        words[1 + 2 * i], words[2 + 2 * i] = 0x1000 * i, pick.getrandbits(55)
    words[1 + 2 * count] = (1 << 64) - 1
    world.sites, world.at = ctypes.addressof(words), 0x1000 * pick.randrange(count + 1)


def page_tables(world, pick):
    """A page table with entries of all kinds, linked, and a miss in it."""
    control, cpu = world.control, world.cpu
    for page in range(RAM_PAGES):
        kinds = abi.DATA, abi.DATA, abi.CODE, abi.TABLE, abi.MIXED, abi.UNBACKED
        world.page_state[page] = pick.choice(kinds)
    world.point_at(page_state=world.page_state, leaves=world.leaves)
    control.global_bit = pick.few(0, x86.PTE_G)
    most = abi.ADDED_MOST
    control.added_count = pick.odd(pick.randrange(64), most - 32, most)
    cpu.cr2 = pick.odd(pick.word(), 1 << 32, x86.MASK32)
    if world.vector != x86.VEC_PF:
        return
    cpu.error_code = pick.few(0, 1, 2, 3, 4, 5, 6, 7, 16, 20)
    slot = cpu.cr2 >> 22 & 1023
    pde = PAGE_TABLE << 12 | pick.odd(0x27, 0x25, 0x07, 0xA7, 0x23, 0)
    world.page_state[PAGE_TABLE] = pick.odd(abi.DATA, abi.UNBACKED)
    world.guest_pdes[slot] = pde
    world.known_pdes[slot] = pick.odd(pde, pde ^ 2)
    hpa = ctypes.addressof(world.tables[1]) - control.vmm_memory_bias & (1 << 64) - 1
    world.shadow_pdes[2 * slot] = pick.odd(hpa | 0x63, 0)
    leaf = world.leaves[hpa >> 12 & abi.LEAF_PAGES - 1]
    leaf.page_table = pick.odd(PAGE_TABLE << 12, 0, once=8)
    leaf.rights = pde & 6
    leaf.copy.contents = world.copies
    first = cpu.cr2 >> 12 & 1023 & ~15
    for i in range(first, first + 16):
        bits = pick.getrandbits(9) | pick.few(0x27, 0x67, 0)
        page = pick.randrange(RAM_PAGES + 2)
        world.ram[PAGE_TABLE * 1024 + i] = page << 12 | bits
        if pick.randrange(3):
            world.tables[1 + i // 512][i % 512] = 0
    if not pick.odd(1, 0):  # a directory that maps itself
        world.point({"guest_pdes": control.ram + (PAGE_TABLE << 12)})
        world.ram[PAGE_TABLE * 1024 + slot] = pde
