"""32-bit, PAE and 4-level paging by the SDM; hardware that walks the shadow tables.

The model is written from Vol. 3A chapter 4 alone. The hardware knows 4-level paging
(section 4.5) and has a TLB that forgets nothing until it is told to: what it grants by
a translation that should have been flushed shows.
"""

import ctypes
from dataclasses import dataclass

from emu86.cpu.state import CR
from emu86.mmu.memory import GuestMemory
from emu86.mmu.ram import Ram
from emu86.mmu.shadow import Miss, ShadowMmu
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.native.fills import fill
from emu86.native.roots import write_cr3
from emu86.native.tree import fill_64, invlpg_64, write_cr3_64

P, RW, US, A, D, PS, G = 1, 2, 4, 32, 64, 128, 256
NX = 1 << 63
PG, WP = 1 << 31, 1 << 16
PSE, PAE, PGE = 1 << 4, 1 << 5, 1 << 7
NXE, LMA = 1 << 11, 1 << 10
READ, WRITE, FETCH = "read", "write", "fetch"


@dataclass(frozen=True)
class Translation:
    """What one walk gives: a page number, and the rights of both entries together."""

    page: int
    writable: bool
    user: bool
    is_global: bool
    large: int  # log2 of its size, or 0
    executable: bool = True


def walk(read, cr3, cr4, gva):
    """Section 4.3: the translation of `gva`, or the P and RSVD bits of its error code.

    Also the addresses and values of the entries used.
    """
    at = (cr3 & 0xFFFFF000) + 4 * (gva >> 22)
    pde = read(at)
    if not pde & P:
        return 0, [(at, pde)]
    if pde & PS and cr4 & PSE:
        if pde & 0x003FF000:
            return 1 | 8, [(at, pde)]
        page = (pde >> 22 << 10) | (gva >> 12 & 1023)
        rights = bool(pde & RW), bool(pde & US), bool(pde & G)
        found = Translation(page, *rights, large=22)
        return found, [(at, pde)]
    entry_at = (pde & 0xFFFFF000) + 4 * (gva >> 12 & 1023)
    pte = read(entry_at)
    if not pte & P:
        return 0, [(at, pde), (entry_at, pte)]
    both = pde & pte
    found = Translation(pte >> 12, bool(both & RW), bool(both & US), bool(pte & G), 0)
    return found, [(at, pde), (entry_at, pte)]


def walk_pae(read, pdptes, efer, gva):
    """Section 4.4, by the PDPTE registers: MAXPHYADDR is 36, and there is no PAT."""

    def entry(at):
        return read(at) | read(at + 4) << 32

    def reserved(value, bits):
        high = 0x7FFFFFF0_00000000 | (0 if efer & NXE else NX)
        return value & (high | bits)

    pdpte = pdptes[gva >> 30]
    if not pdpte & P:
        return 0, []
    at = (pdpte & 0xFFFFFF000) + 8 * (gva >> 21 & 511)
    pde = entry(at)
    used = [(at, pde)]
    if not pde & P:
        return 0, used
    if reserved(pde, 0x1FF000 if pde & PS else 0):
        return 1 | 8, used
    if pde & PS:
        page = (pde & 0xFFFE00000) >> 12 | gva >> 12 & 511
        rights = bool(pde & RW), bool(pde & US), bool(pde & G)
        return Translation(page, *rights, 21, not pde & NX), used
    entry_at = (pde & 0xFFFFFF000) + 8 * (gva >> 12 & 511)
    pte = entry(entry_at)
    used.append((entry_at, pte))
    if not pte & P:
        return 0, used
    if reserved(pte, 1 << 7):
        return 1 | 8, used
    both, either = pde & pte, pde | pte
    rights = bool(both & RW), bool(both & US), bool(pte & G)
    page = (pte & 0xFFFFFF000) >> 12
    return Translation(page, *rights, 0, not either & NX), used


def walk_4_level(read, cr3, efer, gva, cached=()):
    """Section 4.5: MAXPHYADDR is 36, and there are PAT and pages of 1 GiB.

    cached: the first entries, as a paging-structure cache has them.
    """
    at = (cr3 & 0xFFFFFF000) + 8 * (gva >> 39 & 511)
    used, shift = [], 39
    while True:
        entry = read(at) | read(at + 4) << 32
        if len(used) < len(cached):
            entry = cached[len(used)]
        used.append((at, entry))
        if not entry & P:
            return 0, used
        last = shift == 12 or (shift < 39 and entry & PS)
        must_be_clear = 0x000FFFF0_00000000 | (0 if efer & NXE else NX)
        if shift == 39:
            must_be_clear |= PS
        elif last and shift > 12:  # bit 12 is PAT
            must_be_clear |= (1 << shift) - (1 << 13)
        if entry & must_be_clear:
            return 1 | 8, used
        if last:
            break
        at, shift = (entry & 0xFFFFFF000) + 8 * (gva >> shift - 9 & 511), shift - 9
    entries = [value for _at, value in used]
    rights = (all(value & bit for value in entries) for bit in (RW, US))
    page = ((entry & 0xFFFFFF000) >> shift << shift | gva & (1 << shift) - 1) >> 12
    executable = not any(value & NX for value in entries)
    large = shift if shift > 12 else 0
    return Translation(page, *rights, bool(entry & G), large, executable), used


def pdptes(read, cr3):
    """Section 4.4.1: what MOV to CR3 loads."""
    first = cr3 & 0xFFFFFFE0
    return tuple(read(first + 8 * i) | read(first + 8 * i + 4) << 32 for i in range(4))


def grants(found, access, user, cr0):
    """Section 4.6: whether a translation allows an access."""
    if user and not found.user:
        return False
    if access == FETCH:
        return found.executable
    if access == READ or found.writable:
        return True
    return not user and not cr0 & WP


def error_code(found, access, user, *, nx=False):
    """Section 4.7: the error code of an access that `found` does not allow.

    nx: CR4.PAE and EFER.NXE are set.
    """
    code = found if isinstance(found, int) else 1
    code |= 16 if access == FETCH and nx else 0
    return code | (2 if access == WRITE else 0) | (4 if user else 0)


class FakeEngine:
    """The engine as the shadow MMU uses it: control registers, flushes, a TLB."""

    def __init__(self):
        self.q = [0] * 1024
        words = (ctypes.c_int64 * abi.WORDS)()
        self.control = memoryview(words).cast("B").cast("q")
        self.shared = abi.Control.from_buffer(words)
        self.control[abi.STOP_AT] = abi.NEVER
        self.cpu = abi.Cpu()
        self.wraps = False
        self.la57 = False
        self.tlb = {}  # by page and whether for users, as the engine's
        self.parts = abi.Tlb()
        self.entries = (abi.TlbEntry * 64)()
        self.jumps = abi.Jumps()
        self.shared.tlb = ctypes.addressof(self.parts)
        self.shared.jumps = ctypes.addressof(self.jumps)
        self.parts.tables[0].mask = ctypes.sizeof(self.entries) - 64
        self.parts.tables[0].first = ctypes.addressof(self.entries)
        self.parts.dirty = 1
        self.shared.flush_tlb = type(self.shared.flush_tlb)(lambda _: self.flush_tlb())
        self.shared.flush_page = type(self.shared.flush_page)(
            lambda _, gva: self.flush_page(gva)
        )
        self.memory = None
        self.dropped = []

    def map(self, _address, memory):
        self.memory = memory.cast("B").cast("Q")

    def flush_tlb(self):
        self.tlb.clear()

    def flush_page(self, gva):
        for user in (False, True):
            self.tlb.pop((gva >> 12, user), None)

    def switch(self, cr3):
        """MOV to CR3 as compiled code does it, if it can; it drops parts of the TLB."""
        ctypes.memset(self.entries, 255, ctypes.sizeof(self.entries))
        for entry, (page, _user) in zip(self.entries, self.tlb, strict=False):
            entry[0] = page << 12
        self.cpu.gpr[0], self.cpu.cr3 = cr3, self.q[CR + 3]
        if self.la57:
            done = write_cr3_64(self.shared, self.cpu, 0, 3)
        else:
            done = write_cr3(self.shared, self.cpu, 0)
        if not done:
            return False
        self.q[CR + 3] = self.cpu.cr3
        for entry, key in zip(self.entries, [*self.tlb], strict=False):
            if entry[0] == (1 << 64) - 1:
                del self.tlb[key]
        return True

    def drop_code(self, address, size):
        self.dropped.append((address, size))

    def read(self, hpa):
        """The 64-bit word at a host-physical address of the VMM's own memory."""
        return self.memory[(hpa - VmmMemory.BASE) >> 3]

    def entry(self, gva):
        """Walk the shadow tables: the leaf entry for `gva` with the rights of all."""
        table = self.q[CR + 3]
        rights = RW | US
        for shift in (48, 39, 30, 21, 12) if self.la57 else (39, 30, 21, 12):
            entry = self.read((table & 0xFFFFFFFFFF000) + 8 * (gva >> shift & 511))
            if not entry & P:
                return 0
            rights &= entry
            table = entry
        return entry & ~(RW | US) | rights

    def access(self, gva, access, user):
        """One access: the entry that grants it, or None for a page fault."""
        key = gva >> 12, user
        for entry in (self.tlb.get(key, 0), self.entry(gva)):
            if not entry & P or (user and not entry & US):
                continue
            if access == WRITE and not entry & RW:
                continue
            if access == FETCH and entry & NX:
                continue
            self.tlb[key] = entry
            return entry
        self.tlb.pop(key, None)
        return None


class Bench:
    """A shadow MMU on a fake engine, and accesses through both."""

    def __init__(self, pages=64, *, fills=True):
        self.fills = fills  # by the handler in `native`, where it can
        self.engine = FakeEngine()
        self.ram = Ram(pages << 12)
        self.mmu = ShadowMmu(self.engine, self.ram, VmmMemory(self.engine))
        self.memory = GuestMemory(self.mmu)

    def configure(self, cr0, cr3, cr4, efer=0):
        """Have the registers hold this, and the PDPTE registers what memory does."""
        loaded = pdptes(self.ram.read32, cr3) if cr4 & PAE else (0,) * 4
        self.mmu.configure(cr0, cr3, cr4, efer, loaded)
        self.engine.la57 = bool(self.mmu.host_cr4)

    def write64(self, gpa, value):
        """Write guest RAM behind everybody's back, as the guest's own stores do."""
        self.write32(gpa, value & 0xFFFFFFFF)
        self.write32(gpa + 4, value >> 32)

    def write32(self, gpa, value):
        """Write guest RAM behind everybody's back, as the guest's own stores do."""
        self.ram.words[gpa >> 2] = value

    def access(self, gva, access=READ, *, user=False):
        """An access of the guest: ("ok", page), ("fault", code) or ("bus", page)."""
        for _ in range(6):
            entry = self.engine.access(gva, access, user)
            if entry is not None:
                return "ok", entry >> 12 & 0xFFFFFFFFFF
            code = (2 if access == WRITE else 0) | (4 if user else 0)
            code |= 16 if access == FETCH else 0
            if self.fills and self.filled(gva, code):
                continue
            outcome = self.mmu.miss(gva, code)
            if outcome == Miss.GUEST_FAULT:
                return "fault", self.mmu.fault
            if outcome == Miss.NO_BACKING:
                return "bus", None
        raise AssertionError("the access is tried for ever")

    def switch(self, cr3):
        """MOV to CR3; by the handler in `native`, where it can."""
        loaded = pdptes(self.ram.read32, cr3) if self.engine.shared.wide else (0,) * 4
        if self.fills and self.engine.switch(cr3):
            self.engine.shared.behind = 0
            self.mmu.catch_up(abi.SWITCHED, cr3, loaded)
        else:
            self.mmu.switch(cr3, loaded)

    def invalidate(self, gva):
        """INVLPG; by the handler in `native`, where it can and walks 4 levels."""
        self.engine.cpu.gpr[0] = gva
        shared = self.engine.shared
        if self.fills and self.engine.la57 and invlpg_64(shared, self.engine.cpu, 0, 3):
            shared.behind = 0
            self.mmu.catch_up(abi.DROPPED, 0, ())
        else:
            self.mmu.invalidate(gva)

    def filled(self, gva, code):
        """What the native handler makes of a miss, in CPython."""
        cpu = self.engine.cpu
        cpu.cr2, cpu.error_code = gva, code
        if self.engine.la57:
            return fill_64(self.engine.shared, cpu)
        return fill(self.engine.shared, cpu)

    def leaves(self):
        """Every leaf entry that any shadow root reaches: (root, gva, entry)."""
        for root in self.mmu.roots.values():
            saved = self.engine.q[CR + 3]
            self.engine.q[CR + 3] = root.hpa
            for start in self.spans(root):
                for i in range(min(self.ram.pages, self.mmu.span_last + 1)):
                    gva = start | i << 12
                    entry = self.engine.entry(gva)
                    if entry & P:
                        yield root, gva, entry
            self.engine.q[CR + 3] = saved

    def spans(self, root):
        """Where leaf tables are linked in a root."""
        if not self.engine.la57:
            return [slot << self.mmu.span_shift for slot in root.tables]
        found = [(0, root._top)]
        for _ in range(3):
            found = [
                (table.start(start, i), child)
                for start, table in found
                for i, child in table.children.items()
            ]
        for start, table in found:
            assert start in table.starts
        return [start for start, _table in found]

    def place(self, root, gva):
        """The pool index of the leaf entry for `gva`."""
        table = root.table_at(gva)
        return table.base + (gva >> 12 & self.mmu.span_last)
