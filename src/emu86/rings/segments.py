"""Segments: the guest's descriptor tables, and those the hardware loads from.

A shadow table holds the guest's code and data descriptors with DPL 0 raised to 1, so
that most segment loads run natively. What it leaves out makes the load trap, and then
it is done here by the guest's own tables and rules: system descriptors, descriptors
whose accessed bit is still clear, DPL 1 and 2, and everything after the guest has
written to a table's page, until the table is read again. Source: SDM Vol. 3A chapters 3
and 5.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from emu86.cpu import layout as at
from emu86.cpu.engine import ATTRIBUTES, BASE, LIMIT, SELECTOR
from emu86.mmu.memory import PageFault
from emu86.mmu.ram import Hidden
from emu86.rings.fault import GuestFault, gp
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.vmm import Vmm

_HFLAGS: Final = at.HFLAGS // 4
_CS_SELECTOR: Final = SELECTOR[x86.CS]
_CS_BASE: Final = BASE[x86.CS]
_CS_LIMIT: Final = LIMIT[x86.CS]
_CS_ATTRIBUTES: Final = ATTRIBUTES[x86.CS]
_SS_SELECTOR: Final = SELECTOR[x86.SS]
_SS_BASE: Final = BASE[x86.SS]
_SS_LIMIT: Final = LIMIT[x86.SS]
_SS_ATTRIBUTES: Final = ATTRIBUTES[x86.SS]
_NATIVE: Final = x86.DESC_P | x86.DESC_S | x86.DESC_A
_MANY: Final = 0x10000  # encoded descriptors kept, whatever the guest writes


class Descriptor:
    """One 8-byte descriptor: base 32 bits, limit in bytes, attributes in place."""

    __slots__ = ("attributes", "base", "high", "limit", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000
        limit = low & 0xFFFF | high & 0xF0000
        self.limit = limit << 12 | 0xFFF if high & x86.DESC_G else limit
        self.attributes = high & x86.DESC_ATTRIBUTES & ~x86.DESC_L

    @property
    def dpl(self) -> int:
        """Descriptor privilege level, 0 to 3."""
        return self.high >> x86.DESC_DPL_SHIFT & 3

    @property
    def present(self) -> bool:
        """The P bit."""
        return bool(self.high & x86.DESC_P)

    @property
    def system(self) -> int:
        """The system type (0 to 15), or -1 for a code or data segment."""
        return -1 if self.high & x86.DESC_S else self.high >> 8 & 15

    @property
    def code(self) -> bool:
        """Whether it is a code segment."""
        both = x86.DESC_S | x86.DESC_CODE
        return self.high & both == both

    @property
    def conforming(self) -> bool:
        """Whether it is a conforming code segment."""
        return self.code and bool(self.high & x86.DESC_CE)

    @property
    def readable(self) -> bool:
        """Whether data can be read through it."""
        return self.system < 0 and (not self.code or bool(self.high & x86.DESC_RW))

    @property
    def writable(self) -> bool:
        """Whether it is a data segment that can be written."""
        return self.system < 0 and not self.code and bool(self.high & x86.DESC_RW)


class ShadowTable:
    """The hardware's copy of the guest's GDT or LDT, at a fixed linear address."""

    def __init__(self, segments: "Segments", page: int, register: int) -> None:
        self.segments = segments
        self.vmm = vmm = segments.vmm
        self.first = page * 512
        self.entries = vmm.hidden.q
        self.linear = Hidden.linear(page)
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
        self.vmm.hidden.np[self.first : self.first + self.filled] = 0
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
        encoded, entries, first = self._encoded, self.entries, self.first
        if len(encoded) > _MANY:
            encoded.clear()
        for i, word in enumerate(words):
            entry = encoded.get(word)
            if entry is None:
                entry = encoded[word] = self._encode(word)
            if entry:
                entries[first + i] = entry
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


class Segments:
    """Segment registers and descriptor tables of one virtual CPU."""

    def __init__(self, vmm: "Vmm") -> None:
        self.vmm = vmm
        self.engine = vmm.engine
        self.d = vmm.engine.d
        self.q = vmm.engine.q
        self.memory = vmm.memory
        self.vcpu = vmm.vcpu
        self.pmu = vmm.vcpu.pmu
        self.inner = False  # the guest runs in its ring 1 or 2: DPL 0 is out of reach
        self.returns: dict[int, Plan] = {}  # by CS, SS: IRET to ring 0 or 3
        self.gates: dict[int, Plan] = {}  # by vector and SS: events in ring 0 or 3
        self.idt_pages: set[int] = set()
        # Linear pages of the tables read, by where they were then; local: some of them
        # are not global, so that MOV to CR3 can put another page there.
        self.held: dict[int, int] = {}
        self.local = False
        self.gdt = ShadowTable(self, Hidden.GDT, at.GDTR)
        self.ldt = ShadowTable(self, Hidden.LDT, at.LDTR)
        vmm.mmu.use.table_written = self._written

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
        ldtr = self.vcpu.ldtr
        if selector & 0xFFFC == 0:
            ldtr.selector, ldtr.base, ldtr.limit, ldtr.kind = selector, 0, -1, 0
        else:
            if selector & 4:
                raise gp(selector)
            found = self.descriptor(selector)
            if found.system != x86.SYS_LDT:
                raise gp(selector)
            if not found.present:
                raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
            ldtr.selector, ldtr.base, ldtr.limit = selector, found.base, found.limit
            ldtr.kind = x86.SYS_LDT
        self.ldt.load(ldtr.base, ldtr.limit)

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

    def set_high(self, selector: int, descriptor: Descriptor, bits: int) -> None:
        """Set bits (accessed, busy) in a descriptor's high doubleword in memory."""
        if descriptor.high & bits != bits:
            where = self.table(selector).base + (selector & 0xFFF8) + 4
            self.memory.write32(where & x86.MASK32, descriptor.high | bits)
            descriptor.high |= bits
            descriptor.attributes |= bits & x86.DESC_ATTRIBUTES

    def mark(self, selector: int, descriptor: Descriptor) -> None:
        """Set a descriptor's accessed bit, which may fault, before it is loaded."""
        self.set_high(selector, descriptor, x86.DESC_A)

    # -- what the guest sees -----------------------------------------------------------

    @property
    def cpl(self) -> int:
        """The guest's CPL."""
        return self.d[_CS_SELECTOR] & 3

    def hold(self, index: int, selector: int, found: Descriptor) -> None:
        """Put a checked descriptor in a segment register; then `enter` or `settle`."""
        attributes = found.attributes | x86.DESC_A
        if not attributes & x86.DESC_DPL:
            attributes |= 1 << x86.DESC_DPL_SHIFT
        self.engine.set_segment(index, selector, found.base, found.limit, attributes)

    def clear(self, index: int, selector: int = 0) -> None:
        """Load a null selector."""
        self.engine.set_segment(index, selector, 0, 0, 0)

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
        d[_HFLAGS] &= ~at.HF_INHIBIT_IRQ
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

    # -- loads -------------------------------------------------------------------------

    def load(self, index: int, selector: int) -> None:
        """MOV, POP and LxS of a data segment register or SS: SDM Vol. 2B MOV.

        Raises #GP, #NP and #SS as the guest's CPU would.
        """
        if index == x86.SS:
            found = self.check_stack(selector, self.cpl, x86.VEC_GP)
        elif selector & 0xFFFC == 0:
            self.clear(index, selector)
            self.settle()
            return
        else:
            found = self.descriptor(selector)
            if not found.readable:
                raise gp(selector)
            level = max(selector & 3, self.cpl)
            if not found.conforming and found.dpl < level:
                raise gp(selector)
            if not found.present:
                raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
        self.mark(selector, found)
        self.hold(index, selector, found)
        self.settle()

    def settle(self) -> None:
        """Bring the engine's derived mode bits in line after a load."""
        self.engine.sync_mode(self.d[_HFLAGS] & at.HF_CPL)

    def check_stack(self, selector: int, cpl: int, vector: int) -> Descriptor:
        """Read a descriptor for SS at `cpl`; `vector`: #GP, or #TS for a new stack."""
        if selector & 0xFFFC == 0:
            raise GuestFault(vector, 0)
        found = self.descriptor(selector, vector)
        if selector & 3 != cpl or not found.writable or found.dpl != cpl:
            raise GuestFault(vector, selector & 0xFFFC)
        if not found.present:
            raise GuestFault(x86.VEC_SS, selector & 0xFFFC)
        return found

    def check_code(self, selector: int, cpl: int) -> Descriptor:
        """Read a descriptor for CS, for a jump or call that stays at `cpl`."""
        found = self.descriptor(selector)
        if not found.code:
            raise gp(selector)
        if found.conforming:
            if found.dpl > cpl:
                raise gp(selector)
        elif selector & 3 > cpl or found.dpl != cpl:
            raise gp(selector)
        if not found.present:
            raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
        return found

    def load_code(self, selector: int, found: Descriptor, cpl: int) -> None:
        """Load CS for `cpl`, and follow it."""
        self.mark(selector, found)
        self.hold(x86.CS, selector & 0xFFFC | cpl, found)

    def load_stack(self, selector: int, found: Descriptor) -> None:
        """Load SS from a descriptor of `check_stack`."""
        self.mark(selector, found)
        self.hold(x86.SS, selector, found)

    def drop_outer(self, cpl: int) -> None:
        """Null the data segments that a return to `cpl` may not use (Vol. 3A 5.8.6)."""
        d = self.d
        conforming = x86.DESC_CODE | x86.DESC_CE
        for index in (x86.ES, x86.DS, x86.FS, x86.GS):
            attributes = d[ATTRIBUTES[index]]
            # DPL 0 stands as 1 here, and both are too privileged for any outer ring.
            if attributes & conforming == conforming:
                continue
            dpl = attributes >> x86.DESC_DPL_SHIFT & 3
            if dpl < cpl or (dpl == 1 and cpl == 1 and self._was_zero(index)):
                self.clear(index)

    def _was_zero(self, index: int) -> bool:
        """Tell DPL 0 from DPL 1 by the guest's table: the register does not keep it."""
        selector = self.d[SELECTOR[index]]
        try:
            return selector & 0xFFFC != 0 and self.descriptor(selector).dpl == 0
        except (GuestFault, PageFault):
            return True  # gone from the table since
