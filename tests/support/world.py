"""A control block with all that it points to, in one piece of memory, for handlers."""

import ctypes
import mmap
from typing import get_type_hints

from emu86.native import abi
from emu86.native.records import ctype, is_kind

PAGE = 4096
SIZE = 340 * PAGE
TABLES = 5
VMM_MEMORY = abi.LEAF_PAGES * PAGE
RAM_PAGES = 16
# Pages of RAM: of the stack, behind the end of the one before; of a TSS; of code.
STACK, TSS, CODE = 3, 5, 12
KERNEL, USER = 0x60, 0x73
# What handlers call, and what that returns if not 0.
KINDS = {
    name: ctype(hint)
    for name, hint in get_type_hints(abi.Control, include_extras=True).items()
    if is_kind(ctype(hint), "function")
}
CALLS = tuple(KINDS)
RESULTS = {
    "compute_flags": 0xFFFFFFFFFFFFF8D5, "read32": 0x1FFFF, "on_in": 0x12345678,
    "on_cpuid": 1,
}  # fmt: skip


class World:
    """The memory of a guest's CPU and of the VMM, and a log of what was called."""

    def __init__(self):
        tried = []
        while True:  # until all is in one stretch that page numbers of leaves count
            self.memory = mmap.mmap(-1, SIZE)
            self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
            if self.base % VMM_MEMORY + SIZE <= VMM_MEMORY:
                break
            tried.append(self.memory)
        self.used = 0
        self.control = self.place(abi.Control)
        self.cpu = self.place(abi.Cpu)
        self.cpu_at = ctypes.addressof(self.cpu)
        self.shadow_pdes = self.place(ctypes.c_uint64 * 2048)
        # Of one directory, or with PAE paging of four.
        self.guest_pdes = self.place(ctypes.c_uint32 * 4096)
        self.known_pdes = self.place(ctypes.c_uint32 * 4096)
        self.tables = [self.place(abi.ShadowTable) for _ in range(TABLES)]
        self.place(abi.ShadowTable)  # the other half of the last one
        self.copies = self.place(abi.GuestTable)
        self.other_pdes = self.place(abi.ShadowPdes)
        self.other_known = self.place(abi.GuestTable)
        self.other_copies = self.place(abi.GuestTable)
        self.shadow_gdt = self.place(abi.Descriptors)
        self.tlb = self.place(abi.Tlb)
        self.tlb_entries = self.place(abi.TlbEntry * 16)
        self.jumps = self.place(abi.Jumps)
        self.jumped = self.place(ctypes.c_uint64 * 8)  # blocks, by their addresses
        self.ram = self.place(ctypes.c_uint32 * (RAM_PAGES << 10))
        self.looks = self.place(ctypes.c_uint64 * 16)
        self.opcodes64 = self.place(abi.Opcodes)
        self.transfer = self.place(abi.Transfer)
        self.block = self.place(abi.Block)
        self.block_at = ctypes.addressof(self.block)
        self.translated = self.place(ctypes.c_uint8 * PAGE)
        self.page_state = self.place(ctypes.c_uint8 * PAGE)
        # What is looked at: all, but of the many leaves those of the tables alone.
        self.parts = [(0, self.used)]
        leaf = ctypes.sizeof(abi.Leaf)
        for table in self.tables:
            page = ctypes.addressof(table) >> 12 & abi.LEAF_PAGES - 1
            self.parts.append((self.used + page * leaf, leaf))
        self.leaves = self.place(abi.Leaf * abi.LEAF_PAGES)
        self.port, self.width, self.value = 0, 1, 0  # of an IN or OUT
        self.absent = set()  # functions that the engine does not have
        self.results = RESULTS
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
            return self.results.get(name, 0)

        return called

    def point(self, addresses):
        """Set the addresses that the control block holds, by name."""
        for name, address in addresses.items():
            field = getattr(abi.Control, name)
            ctypes.c_uint64.from_buffer(self.control, field.offset).value = address

    def point_at(self, **places):
        """Set them to those of structures."""
        self.point({name: ctypes.addressof(place) for name, place in places.items()})

    def connect(self, calls=None):
        """Have handlers call these addresses, or Python; but for what is absent."""
        calls = calls or {
            name: ctypes.cast(call, ctypes.c_void_p).value
            for name, call in self.pythons.items()
        }
        self.point({name: calls[name] for name in CALLS if name not in self.absent})

    def state(self):
        """All memory, by its parts."""
        return [self.memory[at : at + size] for at, size in self.parts]

    def be(self, state):
        """Set memory to what it was."""
        for (at, size), part in zip(self.parts, state, strict=True):
            self.memory[at : at + size] = part

    def clear(self):
        """Set it to 0."""
        for at, size in self.parts:
            ctypes.memset(self.base + at, 0, size)

    def outcome(self):
        """All memory, less the addresses of what is called, and the calls."""
        self.point(dict.fromkeys(CALLS, 0))
        log, self.log = self.log, []
        return self.state(), log
