"""A control block with all that it points to, in one piece of memory, for handlers."""

import ctypes
import mmap
import random
from typing import get_type_hints

from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_MODE_ARM, UC_PROT_ALL, Uc
from unicorn.arm64_const import (
    UC_ARM64_REG_LR,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_W0,
    UC_ARM64_REG_X0,
)

from emu86.native import abi
from emu86.native.records import ctype
from emu86.native.transfers import gate_slot, return_slot
from emu86.spec import x86

PAGE = 4096
CALLS = (
    "emu_stop", "on_exception", "flush_page", "check_exit", "compute_flags",
    "raise_exception", "probe_access", "read32",
)  # fmt: skip
RESULTS = {"compute_flags": 0xFFFFFFFFFFFFF8D5, "read32": 0x1FFFF}
KINDS = {
    name: ctype(hint)
    for name, hint in get_type_hints(abi.Control, include_extras=True).items()
    if name in CALLS
}
SIZE = 320 * PAGE
TABLES = 4
RAM_PAGES = 16


class World:
    """The memory of a guest's CPU and of the VMM, and a log of what was called."""

    def __init__(self):
        self.memory = mmap.mmap(-1, SIZE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.used = 0
        self.control = self.place(abi.Control)
        self.cpu = self.place(abi.Cpu)
        self.cpu_at = ctypes.addressof(self.cpu)
        self.shadow_pdes = self.place(ctypes.c_uint64 * 2048)
        self.guest_pdes = self.place(ctypes.c_uint32 * 1024)
        self.known_pdes = self.place(ctypes.c_uint32 * 1024)
        self.tables = [self.place(abi.ShadowTable) for _ in range(TABLES)]
        self.place(abi.ShadowTable)  # the other half of the last one
        self.copies = self.place(abi.GuestTable)
        self.leaves = self.place(abi.Leaf * abi.LEAF_PAGES)
        self.ram = self.place(ctypes.c_uint32 * (RAM_PAGES << 10))
        self.looks = self.place(ctypes.c_uint64 * 16)
        self.page_state = self.place(ctypes.c_uint8 * PAGE)
        self.log = []
        self.pythons = {name: KINDS[name](self.logger(name)) for name in CALLS}

    def place(self, kind):
        """A structure of its own pages."""
        found = kind.from_buffer(self.memory, self.used)
        self.used += -(-ctypes.sizeof(kind) // PAGE) * PAGE
        return found

    def logger(self, name):
        def called(*arguments):
            self.log.append((name, *arguments))
            return RESULTS.get(name, 0)

        return called

    def point(self, calls):
        """Set the addresses of what handlers call."""
        for name, address in calls.items():
            field = getattr(abi.Control, name)
            ctypes.c_uint64.from_buffer(self.control, field.offset).value = address

    def python_calls(self):
        return {
            name: ctypes.cast(call, ctypes.c_void_p).value
            for name, call in self.pythons.items()
        }

    def outcome(self):
        """All memory, less the addresses of what is called, and the calls."""
        self.point(dict.fromkeys(CALLS, 0))
        log, self.log = self.log, []
        return bytes(self.memory[: self.used]), log

    def randomize(self, seed):
        """Fill it with a state in which a handler has something to do, or nearly."""
        pick = random.Random(seed)
        control, cpu = self.control, self.cpu
        ctypes.memset(self.base, 0, self.used)
        few = lambda *values: pick.choice(values)  # noqa: E731
        # What is usual, but for one time in thirty.
        odd = lambda usual, *others: usual if pick.randrange(30) else few(*others)  # noqa: E731
        some = lambda: few(0, 1, pick.getrandbits(31), pick.getrandbits(62))  # noqa: E731
        control.cpu.contents = cpu
        control.uc = pick.getrandbits(64)
        control.engine_cpu = pick.getrandbits(64)
        control.now, control.stop_at = some(), some()
        control.pending = few(0, 0, 0, 1)
        control.tsc_offset = few(0, some(), -some())
        control.since = few(0, control.now)
        control.ns, control.rate = some(), few(1 << 30, 3 << 30, 12345)
        control.tsc_cost, control.exit_cost = few(0, 2000, 4000), few(0, 4000)
        control.count_cli = control.count_sti = control.count_rdtsc = some()
        usual = few(x86.VEC_GP, x86.VEC_BP, x86.VEC_BP, x86.VEC_PF, 0x80)
        self.vector = odd(usual, 0, x86.VEC_OF, 255)
        is_bp = self.vector == x86.VEC_BP
        is_int = is_bp or self.vector == 0x80
        cpu.rip = few(0, 1, x86.MASK32, pick.getrandbits(32), 1 << 32)
        cpu.rflags = pick.getrandbits(22) & ~odd(x86.TF | x86.VM | x86.NT, 0, x86.VM)
        cpu.hflags = pick.getrandbits(23) & ~3 | odd(1, 0, 3)
        cpu.error_code, cpu.is_int = odd(0, 8, 1), odd(int(is_int), int(not is_int), 2)
        cpu.old_exception = pick.getrandbits(32)
        for i in range(8):
            cpu.gpr[i] = few(pick.getrandbits(32), pick.getrandbits(64), 0xFFFFFFFF)
        cpu.segments[x86.CS].base = few(0, 0, pick.getrandbits(32), 0xFFFFFFFF)
        cpu.segments[x86.DS].base = odd(0, 1, 1 << 40)
        self.randomize_invlpg(pick, odd)
        self.randomize_transfers(pick, odd)
        self.randomize_fill(pick, odd)
        self.sites, self.at = self.look(pick)
        linear = cpu.rip - is_bp + cpu.segments[x86.CS].base & x86.MASK32
        site = control.sites[(linear ^ linear >> 12) & abi.SITE_MASK]
        site.linear = odd(linear, linear ^ 1 << 31, linear | 1 << 32)
        kinds = [abi.SITE_CLI, abi.SITE_STI, abi.SITE_INVLPG + pick.randrange(8)]
        verw = abi.SITE_VERW | pick.randrange(abi.VERWS) << 4
        breaks = [abi.SITE_SPLIT, abi.SITE_IRET, abi.SITE_IRET, abi.SITE_POPF, verw]
        breaks.append(self.access(pick))
        site.kind = odd(few(*(breaks if is_bp else kinds)), *kinds, *breaks)

    def randomize_invlpg(self, pick, odd):
        control, cpu = self.control, self.cpu
        bias = pick.choice((0, 1 << 39, (1 << 64) - (1 << 39)))
        control.vmm_memory_bias = bias
        if odd(1, 0):
            control.shadow_pdes.contents = self.shadow_pdes
        control.guest_pdes.contents = self.guest_pdes
        control.known_pdes.contents = self.known_pdes
        most = abi.DROPPED_MOST
        control.dropped_count = pick.choice((0, 1, most - 1, odd(2, most, most + 1)))
        for register in cpu.gpr:
            page = (register & x86.MASK32) >> 12
            table = pick.choice(self.tables)
            hpa = ctypes.addressof(table) - bias & (1 << 64) - 1
            self.shadow_pdes[page >> 9] = pick.choice((0, hpa | 0x63, hpa | 0x63))
            table[page & 511] = pick.choice((0, pick.getrandbits(64), 1))
            pde = pick.getrandbits(32) & ~x86.PDE_PS
            self.guest_pdes[page >> 10] = pde | odd(0, x86.PDE_PS)
            self.known_pdes[page >> 10] = self.guest_pdes[page >> 10] ^ odd(
                0, 1, 1 << 31
            )
            if odd(0, 1):
                control.guarded[page >> 6 & 63] |= 1 << (page & 63)
        control.linked_pdes = pick.choice((0, pick.getrandbits(32), x86.MASK32))

    def map(self, linear, page, rights):
        """Have the shadow map a linear address to a page of RAM, by the first table."""
        hpa = ctypes.addressof(self.tables[0]) - self.control.vmm_memory_bias
        self.shadow_pdes[(linear & x86.MASK32) >> 21] = hpa & (1 << 64) - 1 | 0x63
        self.tables[0][linear >> 12 & 511] = page << 12 | rights

    def randomize_transfers(self, pick, odd):
        """A frame on the stack, plans for it and for the vector, a TSS."""
        control, cpu = self.control, self.cpu
        control.ram = ctypes.addressof(self.ram)
        control.ram_size = odd(RAM_PAGES << 12, 4 << 12, 0)
        control.told, control.by_ring = odd(0, 1), odd(0, 1)
        control.stale, control.patched = odd(0, 1), odd(0, 1)
        cpu.cc_op = pick.choice((1, 1, 0, 20))
        cpu.cc_src, cpu.df = pick.getrandbits(64), pick.choice((1, x86.MASK32))
        rpl = pick.choice((0, 3))
        kernel, user = 0x60 | odd(0, 1), 0x73
        for i, segment in enumerate(cpu.segments):
            segment.selector = odd(0, 0x7B, 3)
            segment.attributes = odd(x86.DESC_DPL | x86.DESC_B, 0, x86.DESC_B)
            segment.limit = odd(x86.MASK32, pick.getrandbits(32), 0xFFFF)
            segment.attributes |= odd(x86.DESC_P | x86.DESC_RW, 0, x86.DESC_CE)
            if i in (x86.ES, x86.SS):
                segment.base = odd(0, pick.getrandbits(32))
        cpu.segments[x86.CS].selector = pick.choice((kernel, kernel, user))
        # At the end of a page, too.
        offset = pick.choice((0, 512, *range(4096 - 48, 4096, 4)))
        esp = odd(0xC0100000, pick.getrandbits(32) & ~0xFFF) + offset
        cpu.gpr[x86.ESP] = esp
        where = esp + cpu.segments[x86.SS].base & x86.MASK32
        data = 0x63 | x86.PTE_NX
        self.map(where, 3, odd(data, 0x61, 0x63, 0))
        self.map(where - 32, 3 if offset >= 32 else 2, odd(data, 0x61, 0x63))
        flags = pick.getrandbits(22) & ~x86.VM & ~odd(x86.TF, 0)
        iopl = odd(cpu.rflags, ~cpu.rflags) & x86.IOPL
        image = flags & ~x86.IOPL | iopl
        frame = (
            pick.getrandbits(32),
            kernel if not rpl else user,
            image,
            0xBFFF0000,
            0x7B,
        )
        if pick.randrange(2):
            frame = image, *frame[1:]  # what a POPF finds
        for i, word in enumerate(frame):
            at = 3 * 1024 + (where & 0xFFF) // 4 + i
            self.ram[at] = word
        cs = frame[1]
        key = abi.PLANNED | cs | (0x7B << 16 if rpl else 0)
        self.plan(control.returns[return_slot(key)], odd(key, key ^ 8), pick)
        cpl = cpu.segments[x86.CS].selector & 3
        plan = control.gates[gate_slot(self.vector, cpl)]
        key = abi.PLANNED | self.vector << 2 | cpl
        self.plan(plan, odd(key, key ^ 4), pick)
        plan.stack = ctypes.addressof(self.ram) + (5 << 12) + 4
        plan.ss.base = odd(0, 4)
        self.ram[5 * 1024 + 1] = 0xC0100000 + offset
        self.map(0xC0100000 + offset - 24, 3 if offset >= 24 else 2, odd(data, 0x61))
        self.ram[5 * 1024 + 2] = odd(plan.ss.selector, 0)
        for known in control.verws:
            known.operand = odd(where & ~3, pick.getrandbits(32))
            known.known = odd(abi.PLANNED | frame[0] & 0xFFFF, 0)
            known.zf, known.length = pick.choice((0, x86.ZF)), pick.randrange(1, 16)

    def access(self, pick):
        """A site of an access by a segment, and a segment that it may be in."""
        index = pick.randrange(6)
        segment = self.cpu.segments[index]
        if index not in (x86.CS, x86.SS):
            segment.limit = pick.choice((0, 0xFFF, 0xFFFF, x86.MASK32))
        return abi.access_kind(
            index,
            pick.choice((1, 2, 4, 16)),
            pick.randrange(-1, 8),
            pick.randrange(-1, 8),
            pick.randrange(4),
            pick.choice((0, 4, -8, 0x1000, 0x7FFFFFFF, -(1 << 31))),
            write=bool(pick.randrange(2)),
        )

    def look(self, pick):
        """A table of operands to look at; its address, and that of an instruction."""
        words = self.looks
        words[0] = self.base
        count = pick.randrange(1, 4)
        for i in range(count):
            words[1 + 2 * i], words[2 + 2 * i] = 0x1000 * i, pick.getrandbits(55)
        words[1 + 2 * count] = (1 << 64) - 1
        return ctypes.addressof(words), 0x1000 * pick.randrange(count + 1)

    def plan(self, plan, key, pick):
        plan.key = key
        for segment in (plan.cs, plan.ss):
            segment.selector = pick.getrandbits(16)
            segment.base = pick.choice((0, pick.getrandbits(32)))
            segment.limit = pick.choice((x86.MASK32, x86.MASK32, pick.getrandbits(32)))
            segment.attributes = pick.getrandbits(24) & ~0xFF
        plan.offset, plan.dpl = pick.getrandbits(32), pick.choice((0, 3, 3))
        plan.masks_if, plan.iopl = pick.randrange(2), pick.choice((0, 0x1000))

    def randomize_fill(self, pick, odd):
        """A page table with entries of all kinds, linked, and a miss in it."""
        control, cpu = self.control, self.cpu
        for page in range(RAM_PAGES):
            kinds = abi.DATA, abi.DATA, abi.CODE, abi.TABLE, abi.MIXED, abi.UNBACKED
            self.page_state[page] = pick.choice(kinds)
        control.page_state = ctypes.cast(self.page_state, type(control.page_state))
        control.leaves.contents = self.leaves
        control.global_bit = pick.choice((0, x86.PTE_G))
        control.added_count = odd(
            pick.randrange(64), abi.ADDED_MOST - 32, abi.ADDED_MOST
        )
        cpu.cr2 = odd(pick.getrandbits(32), 1 << 32, x86.MASK32)
        if self.vector != x86.VEC_PF:
            return
        cpu.error_code = pick.choice((0, 1, 2, 3, 4, 5, 6, 7, 16, 20))
        table = 7
        self.page_state[table] = odd(abi.DATA, abi.UNBACKED)
        slot = cpu.cr2 >> 22 & 1023
        pde = table << 12 | odd(0x27, 0x25, 0x07, 0xA7, 0x23, 0)
        self.guest_pdes[slot] = pde
        self.known_pdes[slot] = odd(pde, pde ^ 2)
        hpa = ctypes.addressof(self.tables[1]) - control.vmm_memory_bias & (1 << 64) - 1
        self.shadow_pdes[2 * slot] = odd(hpa | 0x63, 0)
        leaf = self.leaves[hpa >> 12 & abi.LEAF_PAGES - 1]
        leaf.page_table = odd(table << 12, 0)
        leaf.rights = pde & 6
        leaf.copy.contents = self.copies
        first = cpu.cr2 >> 12 & 1023 & ~15
        for i in range(first, first + 16):
            bits = pick.getrandbits(9) | pick.choice((0x27, 0x67, 0))
            self.ram[table * 1024 + i] = pick.randrange(RAM_PAGES + 2) << 12 | bits
            if pick.randrange(3):
                self.tables[1 + i // 512][i % 512] = 0


class Arm:
    """Unicorn's ARM64 engine with the aarch64 blob, over a world's memory."""

    def __init__(self, world, code, entries):
        self.world, self.entries = world, entries
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.code, self.stack, self.stubs = 0x10000, 0x80000, 0x90000
        self.uc.mem_map(self.code, 0x10000)
        self.uc.mem_write(self.code, code)
        self.uc.mem_map(self.stack, 0x10000)
        self.uc.mem_map(self.stubs, PAGE)
        ret = 0xD65F03C0
        self.uc.mem_write(self.stubs, ret.to_bytes(4, "little") * 16)
        self.calls = {name: self.stubs + 4 * i for i, name in enumerate(CALLS)}
        self.uc.mem_map_ptr(world.base, SIZE, UC_PROT_ALL, world.base)
        self.uc.hook_add(UC_HOOK_CODE, self.stub, None, self.stubs, self.stubs + 63)

    def stub(self, uc, address, _size, _data):
        index = (address - self.stubs) // 4
        if index >= len(CALLS):
            return
        name = CALLS[index]
        values = []
        for i, kind in enumerate(KINDS[name]._argtypes_):
            value = uc.reg_read(UC_ARM64_REG_X0 + i)
            values.append(kind(value).value)
        self.world.log.append((name, *values))
        uc.reg_write(UC_ARM64_REG_X0, RESULTS.get(name, 0))

    def call(self, name, *arguments):
        """Call an exported function; its 32-bit result."""
        end = self.stubs + 60
        for i, value in enumerate(arguments):
            self.uc.reg_write(UC_ARM64_REG_X0 + i, value)
        self.uc.reg_write(UC_ARM64_REG_LR, end)
        self.uc.reg_write(UC_ARM64_REG_SP, self.stack + 0x8000)
        self.uc.emu_start(self.code + self.entries[name], end)
        return self.uc.reg_read(UC_ARM64_REG_W0)
