"""Segments of a deprivileged guest: its tables, and those that the hardware loads from.

A shadow table holds the guest's code and data descriptors with DPL 0 raised to 1, so
that most segment loads run natively. What it leaves out makes the load trap, and then
it is done here by the guest's own tables and rules: system descriptors, descriptors
whose accessed bit is still clear, DPL 1 and 2, what is not flat, and everything after
the guest has written to a table's page, until the table is read again. Source: SDM Vol.
3A chapters 3 and 5.
"""

import ctypes
from array import array
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.state import ATTRIBUTES, LIMIT, RFLAGS, SELECTOR
from emu86.cpu.vcpu import VCpu
from emu86.mmu.memory import GuestMemory, PageFault
from emu86.mmu.ram import MIXED
from emu86.mmu.shadow import ShadowMmu
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.rings.cpu import Cpu
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import GuestFault
from emu86.rings.plans import Plans
from emu86.rings.technique.base import Policy
from emu86.rings.technique.segment_checks import SegmentChecks
from emu86.spec import x86

_NATIVE: Final = x86.DESC_P | x86.DESC_S | x86.DESC_A
_EMPTY: Final = memoryview(bytes(0x10000)).cast("Q")
_MANY: Final = 0x10000  # encoded descriptors kept, whatever the guest writes


class ShadowTable:
    """The hardware's copy of the guest's GDT or LDT, at a fixed linear address."""

    def __init__(self, cpu: "ShadowCpu", page: int, register: int) -> None:
        self._cpu = cpu
        self.entries = cpu.mmu.vmm_memory.descriptors(page)
        self._page = page
        self.register = register
        self._indicator = 4 if register == offsets.LDTR else 0
        self.base = self.limit = 0
        self.filled = 0
        self.stale = False
        self.pages: set[int] = set()
        # Descriptors read since they last changed, by selector & FFF8h.
        self.known: dict[int, Descriptor] = {}
        self._encoded: dict[int, int] = {}
        self._words: list[int] = []  # the guest's, when last read
        self._shadow: list[int] = []  # what became of them

    def load(self, base: int, limit: int) -> None:
        """Follow LGDT or LLDT: `limit` in bytes, -1 for no table at all."""
        self.base, self.limit = base, limit
        self._encoded.clear()
        self._words, self._shadow = [], []
        self.known.clear()
        self._cpu.plans.forget()
        self.renew()
        linear = VmmMemory.linear(self._page, ia32e=self._cpu.state.ia32e)
        self._cpu.state.set_table(self.register, linear, max(limit, 0))

    def written(self, page: int) -> None:
        """Empty the table: the guest is writing to a page of its own."""
        if page in self.pages:
            self.renew()

    def renew(self) -> None:
        """Empty the table, to be read again when it is needed."""
        if not self._indicator:
            self._cpu.keep_gdt(-1)
        self.entries[: self.filled] = _EMPTY[: self.filled]
        self.filled = 0
        self.pages.clear()
        self.stale = self.limit >= 0
        self._cpu.plans.suspend()

    def refresh(self) -> None:
        """Read the guest's table again and watch its pages.

        What hangs on descriptors that are as they were stays.
        """
        self.stale = False
        words = self._read()
        old, shadow = self._words, self._shadow
        if words != old:
            shadow = self._shadow = self._update(words, old, shadow)
            self._words = words
        self.filled = len(words)
        self.entries[: self.filled] = memoryview(array("Q", shadow))
        if not self._indicator and len(self.pages) == 1:
            self._share(*self.pages)

    def _share(self, page: int) -> None:
        """Let compiled handlers know the GDT, which is all in one page."""
        fits = 0 < self.filled <= abi.GDT_MOST
        if not fits or page in self._cpu.ldt.pages or page in self._cpu.idt_pages:
            return
        control = self._cpu.shared
        control.gdt_words[: self.filled] = self._words
        control.gdt_shadow[: self.filled] = self._shadow
        where = (page << x86.PAGE_SHIFT) + (self.base & 0xFFF)
        control.gdt_at = self._cpu.memory.ram.address + where
        control.gdt_filled = self.filled
        self._cpu.keep_gdt(page)

    def reread(self) -> None:
        """Learn what compiled handlers have read."""
        control = self._cpu.shared
        self._words = list(control.gdt_words[: self.filled])
        self._shadow = list(control.gdt_shadow[: self.filled])
        self.known.clear()

    def _update(self, words: list[int], old: list[int], shadow: list[int]) -> list[int]:
        """Return the shadow of `words`; forget what hangs on what has changed."""
        if len(words) != len(old):
            self.known.clear()
            self._cpu.plans.forget()
        encoded = self._encoded
        if len(encoded) > _MANY:
            encoded.clear()
        made = []
        for i, word in enumerate(words):
            if i < len(old) and old[i] == word:
                made.append(shadow[i])
                continue
            self.known.pop(8 * i, None)
            self.known.pop(8 * i - 8, None)  # in IA-32e mode it may have 16 bytes
            self._cpu.plans.changed(8 * i | self._indicator)
            entry = encoded.get(word)
            if entry is None:
                entry = encoded[word] = self._encode(word)
            made.append(entry)
        return made

    def _read(self) -> list[int]:
        """Return the guest's descriptors, as far as they can be read."""
        cpu = self._cpu
        size = (min(self.limit, 0xFFFF) + 1) & ~7
        mem = cpu.memory
        at, end = self.base, self.base + size
        mask = x86.MASK64 if cpu.state.ia32e else x86.MASK32
        raw = b""
        try:
            while at < end:
                gpa = mem.gpa(at & mask)
                part = min(end - at, x86.PAGE_SIZE - (at & 0xFFF))
                page = gpa >> 12
                if not mem.ram.backed(page):
                    break
                if cpu.vcpu.real_mode_seen and mem.ram.state[page] == MIXED:
                    break  # it stays so, and is written without a word
                if page == cpu.shared.gdt_page:
                    cpu.keep_gdt(-1)
                cpu.mmu.use.watch(page)
                cpu.watch_table_page(at & mask, gpa)
                self.pages.add(page)
                raw += mem.bytes[gpa : gpa + part]
                at += part
        except PageFault:
            pass  # what cannot be read stays out, and traps
        return memoryview(raw[: len(raw) & ~7]).cast("Q").tolist()

    def _encode(self, word: int) -> int:
        """Return the shadow of a descriptor, or 0 if it must trap."""
        high = word >> 32
        if high & _NATIVE != _NATIVE:
            return 0
        found = Descriptor(word & x86.MASK32, high)
        # Unpatched LAR, LSL and VERW read the shadow tables, so nothing is left out for
        # checks that are not made.
        checks = self._cpu.checks
        if checks.enabled and not checks.is_free(found.limit, found.attributes):
            return 0  # `SegmentChecks` has to know
        dpl = high & x86.DESC_DPL
        if high & x86.DESC_CODE and not dpl:
            return 0  # with it in CS, the engine would put its own CPL in CS's RPL
        if not self._cpu.state.ia32e:
            high &= ~x86.DESC_L
        elif found.code64 and (found.base or high & x86.DESC_B):
            return 0  # the engine would take both as they are
        if dpl == 0 and not self._cpu.inner:
            high |= self._cpu.kernel_ring << x86.DESC_DPL_SHIFT
        elif dpl != x86.DESC_DPL:
            return 0
        return word & x86.MASK32 | high << 32


class ShadowCpu(Cpu):
    """A CPU whose guest's ring 0 runs in the engine's ring 1."""

    memory: GuestMemory
    plans: Plans

    def __init__(
        self,
        engine: Engine,
        vcpu: VCpu,
        memory: GuestMemory,
        mmu: ShadowMmu,
        policy: Policy,
    ) -> None:
        self._control = engine.control
        super().__init__(engine, vcpu, memory, engine.clock)
        self.mmu = mmu
        self.checks = SegmentChecks(engine, mmu.listeners, enabled=policy.scans)
        self._policy = policy
        self.follow_pe()
        self.inner = False  # the guest runs in its ring 1 or 2
        self.plans = Plans(
            engine,
            self._is_watched,
            self._watch_gate,
            self._stack_at,
            self._refresh_used,
        )
        self.idt_pages: set[int] = set()
        # Linear pages of the tables read, by where they were then. If some of them are
        # not global, MOV to CR3 can put another page there.
        self.held: dict[int, int] = {}
        self._any_nonglobal = False
        self.shared = engine.shared
        self.gdt = ShadowTable(self, VmmMemory.GDT, offsets.GDTR)
        self.ldt = ShadowTable(self, VmmMemory.LDT, offsets.LDTR)
        entries = (ctypes.c_char * x86.PAGE_SIZE).from_buffer(self.gdt.entries)
        self.shared.gdt_entries = ctypes.addressof(entries)
        listeners = mmu.listeners
        listeners.table_written.append(self._written)
        listeners.flushed_all.append(self.check_mapping)
        listeners.flushed_nonglobal.append(self._switch)
        listeners.flushed_page.append(self._invalidate)

    @property
    def iopl(self) -> int:
        """The guest's IOPL, which compiled handlers read."""
        return self._control[abi.IOPL]

    @iopl.setter
    def iopl(self, value: int) -> None:
        self._control[abi.IOPL] = value

    def keep_gdt(self, page: int) -> None:
        """Have compiled handlers take writes to the GDT, all in `page`; -1: Python."""
        self.shared.gdt_page = page

    def catch_up(self, behind: int) -> None:
        """Hear of what compiled handlers have done with the GDT: bits of `abi`."""
        if behind & abi.REREAD:
            self.gdt.reread()
        if self.shared.gdt_spte:
            self.shared.gdt_spte = 0
            self.mmu.use.unwatch(self.shared.gdt_page)

    def _written(self, page: int) -> None:
        self.gdt.written(page)
        self.ldt.written(page)
        if page in self.idt_pages:
            self.idt_pages.clear()
            self.plans.forget_gates()

    def watch_table_page(self, linear: int, gpa: int) -> None:
        """Note that descriptors at `linear` were read from `gpa`'s page."""
        page = linear >> x86.PAGE_SHIFT
        self.held[page] = gpa & -x86.PAGE_SIZE
        for tell in self.mmu.listeners.descriptors_read:
            tell(page)
        self._hold(page)

    def _hold(self, page: int) -> None:
        """Have a MOV to CR3 find out whether a page of descriptors is another then."""
        if not self.mmu.is_global(page << x86.PAGE_SHIFT):
            self._any_nonglobal = True
            self.mmu.hold(page, self.held[page] >> x86.PAGE_SHIFT)

    def _switch(self) -> None:
        """MOV to CR3: a page of a table that is not global may be another one now."""
        if self._any_nonglobal:
            self.check_mapping()

    def _invalidate(self, gva: int) -> None:
        """INVLPG: a page of a table may be another one now."""
        if gva >> x86.PAGE_SHIFT in self.held:
            self.check_mapping()

    def check_mapping(self) -> None:
        """Have the tables read again if one of their pages is another page now."""
        lookup = self.mmu.lookup
        for page, start in self.held.items():
            if lookup(page << x86.PAGE_SHIFT) != start:
                self._renew()
                return
        for page in self.held:
            self._hold(page)

    def _renew(self) -> None:
        """Have every table read again."""
        self.held.clear()
        self._any_nonglobal = False
        self.gdt.renew()
        self.ldt.renew()
        self.idt_pages.clear()
        self.plans.forget_gates()

    def drop_derived(self) -> None:
        """Have the tables read again, by where the registers say that they are."""
        vcpu = self.vcpu
        self.follow_pe()
        self.inner = self.cpl in (1, 2)
        self._control[abi.INNER] = self.inner
        self.checks.drop_derived()
        self.gdt.load(vcpu.gdt_base, vcpu.gdt_limit)
        self.ldt.load(vcpu.ldtr.base, vcpu.ldtr.limit)
        self._renew()

    def load_idt(self, base: int, limit: int) -> None:
        """LIDT."""
        self.vcpu.idt_base, self.vcpu.idt_limit = base, limit
        if self.is_real:
            self.state.set_table(offsets.IDTR, base, limit)
            return
        self._renew()

    def _watch_gate(self, linear: int) -> bool:
        gpa = self.memory.gpa(linear)
        page = gpa >> x86.PAGE_SHIFT
        size = 16 if self.state.ia32e else 8
        if not self.memory.ram.backed(page) or gpa & 0xFFF > x86.PAGE_SIZE - size:
            return False
        if page not in self.idt_pages:
            if page == self.shared.gdt_page:
                self.keep_gdt(-1)
            self.mmu.use.watch(page)
            self.watch_table_page(linear, gpa)
            self.idt_pages.add(page)
        return True

    def _stack_at(self) -> int:
        """Return where in this process the TSS's stack for ring 0 is, or 0."""
        tr, wide = self.vcpu.tr, self.state.ia32e
        linear = tr.base + 4 & (x86.MASK64 if wide else x86.MASK32)
        if tr.limit < (11 if wide else 9) or tr.kind != x86.SYS_TSS32_BUSY:
            return 0
        if linear & 0xFFF > x86.PAGE_SIZE - ctypes.sizeof(abi.Stack0):
            return 0
        gpa = self.memory.gpa(linear)
        if not self.memory.ram.backed(gpa >> x86.PAGE_SHIFT):
            return 0
        self.watch_table_page(linear, gpa)
        return self.memory.ram.address + gpa

    def load_gdt(self, base: int, limit: int) -> None:
        """LGDT."""
        self.vcpu.gdt_base, self.vcpu.gdt_limit = base, limit
        if self.is_real:
            return  # nothing is loaded from it
        self.gdt.load(base, limit)
        self._renew()

    def load_ldt(self, selector: int) -> None:
        """LLDT: raises #GP(selector) or #NP(selector)."""
        super().load_ldt(selector)
        self.ldt.load(self.vcpu.ldtr.base, self.vcpu.ldtr.limit)

    def table(self, selector: int) -> ShadowTable:
        """Return the table that a selector's TI bit means."""
        return self.ldt if selector & 4 else self.gdt

    def _refresh_used(self, selectors: set[int]) -> None:
        """Read the tables of these selectors again if they were written to."""
        for selector in tuple(selectors):
            self.refresh(selector)

    def refresh(self, selector: int) -> None:
        """Read the table of `selector` again if it was written to."""
        table = self.table(selector)
        if table.stale:
            table.refresh()

    def descriptor(self, selector: int, vector: int = x86.VEC_GP) -> Descriptor:
        """Read a descriptor; `vector`(selector) if it lies beyond its table."""
        offset = selector & 0xFFF8
        table = self.table(selector)
        if table.stale:
            table.refresh()
        found = table.known.get(offset)
        if found is not None:
            return found
        found = self._read_descriptor(selector, table.base, table.limit, vector)
        if offset < 8 * table.filled:
            table.known[offset] = found
        return found

    def write_descriptor_high(self, selector: int, high: int) -> None:
        """Write the high doubleword of a descriptor in the guest's table."""
        where = self.table(selector).base + (selector & 0xFFF8) + 4
        mask = x86.MASK64 if self.state.ia32e else x86.MASK32
        self.memory.write32(where & mask, high)

    # -- real mode ---------------------------------------------------------------------

    def follow_pe(self) -> None:
        """Choose what hangs on CR0.PE.

        Real mode runs in ring 3 of the engine with an IOPL of 3: its segment loads, far
        transfers, INT and CLI need no help there.
        """
        protected = bool(self.vcpu.cr0 & x86.CR0_PE)
        policy = self._policy
        self.kernel_ring = policy.kernel_ring if protected else x86.CPL_USER
        self.raises_iopl = policy.raises_iopl or not protected
        self.checks.spares_64k = self.vcpu.real_mode_seen
        self.state.protect(on=protected)

    def switch_real_mode(self) -> None:
        """Follow a change of CR0.PE; segments stay what they are: Vol. 3A 9.9."""
        d, vcpu = self.d, self.vcpu
        vcpu.real_mode_seen = True
        self.follow_pe()
        for index in range(6):
            if not d[ATTRIBUTES[index]] & x86.DESC_P:
                d[LIMIT[index]] = x86.V86_LIMIT
                d[ATTRIBUTES[index]] = x86.V86_ATTRIBUTES
            others = d[ATTRIBUTES[index]] & ~x86.DESC_DPL
            d[ATTRIBUTES[index]] = others | self.kernel_ring << x86.DESC_DPL_SHIFT
        if vcpu.cr0 & x86.CR0_PE:
            vcpu.cs_rpl = self.iopl = 0
            self.gdt.load(vcpu.gdt_base, vcpu.gdt_limit)
        else:
            self.iopl = 3
            self.state.set_table(offsets.IDTR, vcpu.idt_base, vcpu.idt_limit)
        self._renew()
        self.enter_ring()

    # -- what the registers hold -------------------------------------------------------

    def set_segment(self, index: int, selector: int, found: Descriptor) -> None:
        """Put a checked descriptor in a segment register."""
        attributes = found.attributes | x86.DESC_A
        if not attributes & x86.DESC_DPL:
            attributes |= self.kernel_ring << x86.DESC_DPL_SHIFT
        if index != x86.CS or not self.is_code64(found):
            self.checks.loaded(index, selector, found.limit, attributes)
        self.state.set_segment(index, selector, found.base, found.limit, attributes)

    def clear_segment(self, index: int, selector: int = 0) -> None:
        """Load a null selector."""
        super().clear_segment(index, selector)
        if index in (x86.ES, x86.DS):
            self.checks.loaded(index, selector, 0, 0)

    def _is_watched(self, *selectors: int) -> bool:
        d = self.d
        if d[LIMIT[x86.CS]] & d[LIMIT[x86.SS]] != x86.MASK32:
            return False  # each load of what is not flat is told to `checks`
        return all(
            (selector & 0xFFF8) < 8 * self.table(selector).filled
            for selector in selectors
        )

    def enter_ring(self) -> None:
        """Make the engine's CPL follow the guest's, which CS's selector tells."""
        self.update_mode()
        cpl = self.cpl
        self.state.sync_mode(cpl or self.kernel_ring)
        inner = cpl in (1, 2)
        if inner != self.inner:
            self.inner = inner
            self._control[abi.INNER] = inner
            for table in (self.gdt, self.ldt):
                table.load(table.base, table.limit)
            for tell in self.mmu.listeners.ring_changed:
                tell()
        self.sync_iopl()
        self.count_ring()

    def switch_ia32e(self) -> None:
        """Follow EFER.LMA, by which descriptors have other formats and CS.L a meaning.

        CS.L is 0 before and after.
        """
        self.state.ia32e = bool(self.vcpu.efer & x86.EFER_LMA)
        self.plans.switch(ia32e=self.state.ia32e)
        for table in (self.gdt, self.ldt):
            table.load(table.base, table.limit)
        self._renew()
        self.update_mode()
        for tell in self.mmu.listeners.ring_changed:
            tell()

    def sync_iopl(self) -> None:
        """Set the hardware's IOPL for code at the guest's CPL."""
        raised = self.raises_iopl and self.cpl == 0
        level = max(self.iopl, self.kernel_ring) if raised else self.iopl
        self.q[RFLAGS] = self.q[RFLAGS] & ~x86.IOPL | level << 12

    def loaded_dpl(self, index: int) -> int:
        """Tell DPL 0 from DPL 1 by the guest's table: the register does not keep it."""
        dpl = super().loaded_dpl(index)
        if dpl != 1:
            return dpl
        selector = self.d[SELECTOR[index]]
        try:
            was_zero = self.descriptor(selector).dpl == 0
        except (GuestFault, PageFault):
            was_zero = True  # gone from the table since
        return 0 if was_zero else 1
