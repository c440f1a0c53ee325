"""Segments: the guest's descriptor tables, and those the hardware loads from.

A shadow table holds the guest's code and data descriptors with DPL 0 raised to 1, so
that most segment loads run natively. What it leaves out makes the load trap, and then
it is done here by the guest's own tables and rules: system descriptors, descriptors
whose accessed bit is still clear, DPL 1 and 2, and everything after the guest has
written to a table's page, until the table is read again. Source: SDM Vol. 3A chapters 3
and 5.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from emu86.cpu import offsets
from emu86.cpu.state import ATTRIBUTES, BASE, HFLAGS, LIMIT, SELECTOR
from emu86.mmu.memory import PageFault
from emu86.mmu.vmm_memory import VmmMemory
from emu86.rings.descriptors import Descriptor, SegmentRegisters
from emu86.rings.fault import GuestFault
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.technique.deprivileged import Deprivileged

_CS_SELECTOR: Final = SELECTOR[x86.CS]
_CS_BASE: Final = BASE[x86.CS]
_CS_LIMIT: Final = LIMIT[x86.CS]
_CS_ATTRIBUTES: Final = ATTRIBUTES[x86.CS]
_SS_SELECTOR: Final = SELECTOR[x86.SS]
_SS_BASE: Final = BASE[x86.SS]
_SS_LIMIT: Final = LIMIT[x86.SS]
_SS_ATTRIBUTES: Final = ATTRIBUTES[x86.SS]
_NATIVE: Final = x86.DESC_P | x86.DESC_S | x86.DESC_A
_EMPTY: Final = memoryview(bytes(0x10000)).cast("Q")
_MANY: Final = 0x10000  # encoded descriptors kept, whatever the guest writes


class ShadowTable:
    """The hardware's copy of the guest's GDT or LDT, at a fixed linear address."""

    def __init__(self, segments: "ShadowSegments", page: int, register: int) -> None:
        self.segments = segments
        self.vmm = vmm = segments.vmm
        self.entries = vmm.vmm_memory.descriptors(page)
        self.linear = VmmMemory.linear(page)
        self.register = register
        self.base = self.limit = 0
        self.filled = 0
        self.stale = False
        self.pages: set[int] = set()
        # Descriptors read while the table's pages are watched, by selector & FFF8h.
        self.known: dict[int, Descriptor] = {}
        self._encoded: dict[int, int] = {}

    def load(self, base: int, limit: int) -> None:
        """Follow LGDT or LLDT: `limit` in bytes, -1 for no table at all."""
        self.base, self.limit = base, limit
        self._encoded.clear()
        self._clear()
        self.vmm.engine.set_table(self.register, self.linear, max(limit, 0))
        self.stale = limit >= 0

    def written(self, page: int) -> None:
        """Empty the table: the guest is writing to a page of its own."""
        if page in self.pages:
            self.renew()

    def renew(self) -> None:
        """Empty the table, to be read again when it is needed."""
        self._clear()
        self.stale = self.limit >= 0

    def _clear(self) -> None:
        self.entries[: self.filled] = _EMPTY[: self.filled]
        self.filled = 0
        self.pages.clear()
        self.known.clear()
        self.segments.forget_plans()

    def refresh(self) -> None:
        """Read the guest's table again and watch its pages."""
        self._clear()
        self.stale = False
        vmm = self.vmm
        size = (min(self.limit, 0xFFFF) + 1) & ~7
        mem = vmm.memory
        at, end = self.base, self.base + size
        raw = b""
        try:
            while at < end:
                gpa = mem.code(at & x86.MASK32)
                part = min(end - at, x86.PAGE_SIZE - (at & 0xFFF))
                page = gpa >> 12
                if not mem.ram.backed(page):
                    break
                vmm.mmu.use.watch(page)
                self.segments.hold_page(at & x86.MASK32, gpa)
                self.pages.add(page)
                raw += mem.bytes[gpa : gpa + part]
                at += part
        except PageFault:
            pass  # what cannot be read stays out, and traps
        words = memoryview(raw[: len(raw) & ~7]).cast("Q")
        encoded, entries = self._encoded, self.entries
        if len(encoded) > _MANY:
            encoded.clear()
        for i, word in enumerate(words):
            entry = encoded.get(word)
            if entry is None:
                entry = encoded[word] = self._encode(word)
            if entry:
                entries[i] = entry
        self.filled = len(words)

    def _encode(self, word: int) -> int:
        """Return the shadow of a descriptor, or 0 if it must trap."""
        high = word >> 32
        if high & _NATIVE != _NATIVE:
            return 0
        dpl = high & x86.DESC_DPL
        if high & x86.DESC_CODE and not dpl:
            return 0  # with it in CS, the engine would put its own CPL in CS's RPL
        if dpl == 0 and not self.segments.inner:
            high |= 1 << x86.DESC_DPL_SHIFT
        elif dpl != x86.DESC_DPL:
            return 0
        return word & x86.MASK32 | (high & ~x86.DESC_L) << 32


class Plan(NamedTuple):
    """What a transfer to a code segment (and a stack segment) loads, checked before.

    Valid until a descriptor table is written or loaded. ss: the stack's selector;
    offset, kind: of an interrupt's gate.
    """

    cs: int
    cs_hidden: tuple[int, int, int]  # base, limit, attributes
    ss: int = 0
    ss_hidden: tuple[int, int, int] = (0, 0, 0)
    offset: int = 0
    kind: int = 0


class ShadowSegments(SegmentRegisters):
    """Segment registers and descriptor tables of one virtual CPU."""

    def __init__(self, vmm: "Deprivileged") -> None:
        super().__init__(vmm.engine, vmm.vcpu)
        self.vmm = vmm
        self.memory = vmm.memory
        self.pmu = vmm.vcpu.pmu
        self.inner = False  # the guest runs in its ring 1 or 2: DPL 0 is out of reach
        self.returns: dict[int, Plan] = {}  # by CS, SS: IRET to ring 0 or 3
        self.gates: dict[int, Plan] = {}  # by vector and SS: events in ring 0 or 3
        self.idt_pages: set[int] = set()
        # Linear pages of the tables read, by where they were then; local: some of them
        # are not global, so that MOV to CR3 can put another page there.
        self.held: dict[int, int] = {}
        self.local = False
        self.gdt = ShadowTable(self, VmmMemory.GDT, offsets.GDTR)
        self.ldt = ShadowTable(self, VmmMemory.LDT, offsets.LDTR)
        listeners = vmm.mmu.listeners
        listeners.table_written.append(self._written)
        listeners.flushed_all.append(self.check_mapping)
        listeners.flushed_nonglobal.append(self._switch)
        listeners.flushed_page.append(self._invalidate)

    def _written(self, page: int) -> None:
        self.gdt.written(page)
        self.ldt.written(page)
        if page in self.idt_pages:
            self.idt_pages.clear()
            self.gates.clear()

    def hold_page(self, linear: int, gpa: int) -> None:
        """Note that descriptors at `linear` were read from `gpa`'s page."""
        page = linear >> x86.PAGE_SHIFT
        self.held[page] = gpa & x86.PAGE_MASK
        self.vmm.sites.guard(page)
        if not self.vmm.mmu.is_global(linear):
            self.local = True

    def _switch(self) -> None:
        """MOV to CR3: a page of a table that is not global may be another one now."""
        if self.local:
            self.check_mapping()

    def _invalidate(self, gva: int) -> None:
        """INVLPG: a page of a table may be another one now."""
        if gva >> x86.PAGE_SHIFT in self.held:
            self.check_mapping()

    def check_mapping(self) -> None:
        """Have the tables read again if one of their pages is another page now."""
        lookup = self.vmm.mmu.lookup
        for page, start in self.held.items():
            if lookup(page << x86.PAGE_SHIFT) != start:
                self._renew()
                return

    def _renew(self) -> None:
        """Have every table read again."""
        self.held.clear()
        self.local = False
        self.gdt.renew()
        self.ldt.renew()
        self.idt_pages.clear()
        self.gates.clear()

    def forget_plans(self) -> None:
        """A descriptor table has changed."""
        self.returns.clear()
        self.gates.clear()

    def load_idt(self, base: int, limit: int) -> None:
        """LIDT."""
        self.vcpu.idt_base, self.vcpu.idt_limit = base, limit
        self._renew()

    def watch_idt(self, linear: int) -> bool:
        """Watch the page of a gate, so that its plan can be kept; tell if possible."""
        gpa = self.memory.code(linear)
        page = gpa >> x86.PAGE_SHIFT
        if not self.memory.ram.backed(page) or gpa & 0xFFF > x86.PAGE_SIZE - 8:
            return False
        if page not in self.idt_pages:
            self.vmm.mmu.use.watch(page)
            self.hold_page(linear, gpa)
            self.idt_pages.add(page)
        return True

    def load_gdt(self, base: int, limit: int) -> None:
        """LGDT."""
        self.vcpu.gdt_base, self.vcpu.gdt_limit = base, limit
        self.gdt.load(base, limit)
        self._renew()

    def load_ldt(self, selector: int) -> None:
        """LLDT: raises #GP(selector) or #NP(selector)."""
        super().load_ldt(selector)
        self.ldt.load(self.vcpu.ldtr.base, self.vcpu.ldtr.limit)

    def table(self, selector: int) -> ShadowTable:
        """Return the table that a selector's TI bit means."""
        return self.ldt if selector & 4 else self.gdt

    def refresh(self, selector: int) -> None:
        """Read the table of `selector` again if it was written to."""
        table = self.table(selector)
        if table.stale:
            table.refresh()

    def descriptor(self, selector: int, vector: int = x86.VEC_GP) -> Descriptor:
        """Read a descriptor; `vector`(selector) if it lies beyond its table."""
        offset = selector & 0xFFF8
        table = self.table(selector)
        found = table.known.get(offset)
        if found is not None:
            return found
        if offset + 7 > table.limit:
            raise GuestFault(vector, selector & 0xFFFC)
        self.refresh(selector)
        read32 = self.memory.read32
        low = read32(table.base + offset & x86.MASK32)
        found = Descriptor(low, read32(table.base + offset + 4 & x86.MASK32))
        if offset < 8 * table.filled:
            table.known[offset] = found
        return found

    def write_high(self, selector: int, high: int) -> None:
        """Write the high doubleword of a descriptor in the guest's table."""
        where = self.table(selector).base + (selector & 0xFFF8) + 4
        self.memory.write32(where & x86.MASK32, high)

    # -- what the registers hold -------------------------------------------------------

    def hold(self, index: int, selector: int, found: Descriptor) -> None:
        """Put a checked descriptor in a segment register; then `enter` or `settle`."""
        attributes = found.attributes | x86.DESC_A
        if not attributes & x86.DESC_DPL:
            attributes |= 1 << x86.DESC_DPL_SHIFT
        self.engine.set_segment(index, selector, found.base, found.limit, attributes)

    def plan(self, ss: int = 0, offset: int = 0, kind: int = 0) -> Plan:
        """Keep what CS and SS hold now."""
        d, q = self.d, self.q
        code, stack = (
            (q[BASE[i]], d[LIMIT[i]], d[ATTRIBUTES[i]]) for i in (x86.CS, x86.SS)
        )
        return Plan(d[_CS_SELECTOR], code, ss, stack, offset, kind)

    def watched(self, *selectors: int) -> bool:
        """Tell whether a write to any of these descriptors would be told."""
        return all(
            (selector & 0xFFF8) < 8 * self.table(selector).filled
            for selector in selectors
        )

    def follow(self, plan: Plan, cpl: int, *, stack: bool) -> None:
        """Load CS (and SS) of a plan for the guest's ring `cpl`, 0 or 3."""
        d, q = self.d, self.q
        d[_CS_SELECTOR] = plan.cs
        q[_CS_BASE], d[_CS_LIMIT], d[_CS_ATTRIBUTES] = plan.cs_hidden
        if stack:
            d[_SS_SELECTOR] = plan.ss
            q[_SS_BASE], d[_SS_LIMIT], d[_SS_ATTRIBUTES] = plan.ss_hidden
        d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
        self.engine.sync_mode(cpl or 1)
        if self.pmu.by_ring:
            self.pmu.turn(self.vmm.now, cpl)

    def enter(self) -> None:
        """Make the engine's CPL follow the guest's, which CS's selector tells."""
        cpl = self.cpl
        self.engine.sync_mode(cpl or 1)
        inner = cpl in (1, 2)
        if inner != self.inner:
            self.inner = inner
            for table in (self.gdt, self.ldt):
                table.load(table.base, table.limit)
            self.vmm.scanner.change_ring()
        self.vmm.sync_iopl(cpl)
        if self.pmu.by_ring:
            self.pmu.turn(self.vmm.now, cpl)

    def held_dpl(self, index: int) -> int:
        """Tell DPL 0 from DPL 1 by the guest's table: the register does not keep it."""
        dpl = super().held_dpl(index)
        if dpl != 1:
            return dpl
        selector = self.d[SELECTOR[index]]
        try:
            was_zero = self.descriptor(selector).dpl == 0
        except (GuestFault, PageFault):
            was_zero = True  # gone from the table since
        return 0 if was_zero else 1
