"""Random guests of the TLB: write tables, invalidate, switch, access.

The rules are SDM Vol. 3A section 4.10: what may still be used after the tables have
changed, and what may not. The shadow must never grant what neither the tables as they
are nor a translation that a TLB may still hold allows.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emu86.mmu.memory import PageFault
from emu86.mmu.ram import CODE, DATA, MIXED, TABLE, UNBACKED
from emu86.mmu.vmm_memory import VmmMemory
from support import paging
from support.paging import (
    FETCH,
    LMA,
    NX,
    NXE,
    PAE,
    PG,
    PGE,
    PS,
    PSE,
    READ,
    RW,
    US,
    WP,
    WRITE,
    A,
    Bench,
    D,
    G,
    P,
)

DIRECTORIES = (0x10000, 0x11000)
DIRECTORIES_2 = (0x15000, 0x16000)  # of PAE's second PDPTE
# Of 4-level paging; those of the second row are the upper half's.
PML4S = (0x18000, 0x19000)
PDPTS, PDPTS_2 = (0x1A000, 0x1B000), (0x1C000, 0x1D000)
UPPER = 0xFFFFFF8000000000
TABLES = (0x12000, 0x13000, 0x14000)
FRAMES = (0x20, 0x21, 0x22, 0x23, 0x12, 0x90)  # pages; one is a table, one has no RAM
MARKED = (0x20, 0x21, 0x22, 0x23, 0x12, 0, 0x2F)  # with those of the 4 MiB page at 0
SLOTS = (0, 1, 2)
PAGES = (0, 0x20, 0x21, 0x2F)  # of a slot; two are in the 4 MiB page at 0, too
GVAS = st.builds(
    lambda slot, page: slot << 22 | page << 12, *map(st.sampled_from, (SLOTS, PAGES))
)
# NX and a reserved bit are lost where entries have 32 bits.
BITS = st.sets(st.sampled_from([RW, US, A, D, G, NX])).map(sum)
FLIPS = (P, RW, US, A, D, G, NX, 1 << 40)
PRESENT = st.sampled_from([P, P, P, P, 0])
ENTRY = st.builds(
    lambda frame, bits, p: frame << 12 | bits | p,
    st.sampled_from(FRAMES),
    BITS,
    PRESENT,
)
PDE = st.one_of(
    st.builds(
        lambda table, bits, p: table | bits | p, st.sampled_from(TABLES), BITS, PRESENT
    ),
    st.builds(
        lambda frame, bits, p: frame | PS | bits | p,
        st.sampled_from([0, 0x400000]),
        BITS,
        PRESENT,
    ),
)
ACCESS = st.tuples(st.sampled_from([READ, WRITE, FETCH]), st.booleans(), st.booleans())


class Guest(RuleBasedStateMachine):
    """One guest on two page directories and three page tables, which they share.

    With PAE paging slot 2, of the addresses from 8 MiB on, is that from 1 GiB on; it is
    in a directory of its own, which the second PDPTE has; and CR3 is a PDPT's address.
    With 4-level paging slot 2 is in the upper half, by a PDPT of its own. Addresses are
    what they are with 32-bit paging until they are used.
    """

    def __init__(self):
        super().__init__()
        self.bench = Bench(pages=0x90)
        self.cr0, self.cr3, self.cr4 = PG | WP, DIRECTORIES[0], PSE | PGE
        self.efer, self.pdptes = 0, ()
        # Page -> translations a TLB may hold of it since it was last invalidated.
        self.held = {}
        # Slot -> PDEs that a paging-structure cache may hold: what their page tables
        # say now is then used as well (4.10.3). With 4-level paging those from the
        # root on, of which some may be held, too.
        self.cached = {}

    @initialize(pae=st.booleans())
    def start(self, pae):
        if pae:
            self.cr4, self.efer = PAE | PGE, NXE | self.efer
        for i in range(2):
            for at, entry in (
                (PML4S[i], PDPTS[i]), (PML4S[i] + 8 * 511, PDPTS_2[i]),
                (PDPTS[i], DIRECTORIES[i]), (PDPTS_2[i], DIRECTORIES_2[i]),
            ):  # fmt: skip
                self.bench.write64(at, entry | P | RW | US)
        for i, directory in enumerate(DIRECTORIES):
            self.bench.write64(0x17000 + 32 * i, directory | P)
            self.bench.write64(0x17008 + 32 * i, DIRECTORIES_2[i] | P)
            for slot in SLOTS:
                entry = TABLES[slot] | P | RW | US | A
                self.write(self.place(directory, slot), entry)
        for i, table in enumerate(TABLES):
            for j, page in enumerate(PAGES):
                frame = FRAMES[(i + j) % 4]
                self.write(table + self.size * page, frame << 12 | P | RW | US | A)
        self.configure()

    @property
    def size(self):
        return 8 if self.cr4 & PAE else 4

    def write(self, at, entry):
        if self.cr4 & PAE:
            self.bench.write64(at, entry)
        else:
            self.bench.write32(at, entry & 0xFFFFFFFF)

    def read(self, at):
        low = self.bench.ram.read32(at)
        return low | self.bench.ram.read32(at + 4) << 32 if self.cr4 & PAE else low

    def place(self, directory, slot):
        """Where the PDE of a slot is."""
        if self.cr4 & PAE and slot == 2:
            return DIRECTORIES_2[DIRECTORIES.index(directory)]
        return directory + self.size * slot

    def real(self, cr3):
        """What CR3 holds."""
        if self.efer & LMA:
            return PML4S[DIRECTORIES.index(cr3)]
        return 0x17000 + 32 * DIRECTORIES.index(cr3) if self.cr4 & PAE else cr3

    def linear(self, gva):
        """What linear address stands for `gva`."""
        if not self.cr4 & PAE:
            return gva
        upper = UPPER if self.efer & LMA else 1 << 30
        return (0, 1 << 21, upper)[gva >> 22] | gva & (1 << 21) - 1

    def configure(self):
        self.bench.configure(self.cr0, self.real(self.cr3), self.cr4, self.efer)
        self.pdptes = paging.pdptes(self.bench.ram.read32, self.real(self.cr3))
        self.held.clear()
        self.cached.clear()

    def walk(self, read, gva, cached=()):
        if self.efer & LMA:
            gva, cr3 = self.linear(gva), self.real(self.cr3)
            return paging.walk_4_level(read, cr3, self.efer, gva, cached)
        if self.cr4 & PAE:
            return paging.walk_pae(read, self.pdptes, self.efer, self.linear(gva))
        return paging.walk(read, self.cr3, self.cr4, gva)

    def now(self, gva):
        return self.walk(self.bench.ram.read32, gva)

    def pde(self, slot):
        """Where the PDE of a slot is by the registers; None without a PDPTE."""
        if not self.cr4 & PAE:
            return self.cr3 + 4 * slot
        pdpte = self.pdptes[slot >> 1]
        return (pdpte & ~0xFFF) + 8 * (slot & 1) if pdpte & P else None

    def large(self, pde):
        return pde & PS and self.cr4 & (PSE | PAE)

    def remember(self):
        """Before tables or CR3 change: a TLB may hold any translation of now."""
        for slot in SLOTS:
            self.remember_slot(slot)
            for page in PAGES:
                gva = slot << 22 | page << 12
                found, used = self.now(gva)
                # Speculation fills too, but not without an accessed bit (4.10.2.3).
                if not isinstance(found, int) and used[-1][1] & A:
                    dirty = bool(used[-1][1] & D)
                    self.held.setdefault(gva >> 12, set()).add((found, dirty))

    def remember_slot(self, slot):
        """What a paging-structure cache may hold of a slot."""
        cached = self.cached.setdefault(slot, set())
        if self.efer & LMA:
            _found, used = self.now(slot << 22)
            path = ()
            for _at, entry in used[:3]:
                if not entry & P or not entry & A or (path and entry & PS):
                    return
                path += (entry,)
                cached.add(path)
            return
        at = self.pde(slot)
        pde = self.read(at) if at is not None else 0
        if pde & P and pde & A and not self.large(pde):
            cached.add(pde)

    def by_cached(self, gva):
        """The translations that cached PDEs give."""
        slot, read32 = gva >> 22, self.bench.ram.read32
        if self.efer & LMA:
            for path in self.cached.get(slot, ()):
                found, _used = self.walk(read32, gva, path)
                if not isinstance(found, int):
                    yield found
            return
        place = self.pde(slot)
        for pde in self.cached.get(slot, ()):
            halves = {place: pde & 0xFFFFFFFF}
            if self.cr4 & PAE:
                halves[place + 4] = pde >> 32
            found, _used = self.walk(
                lambda at, halves=halves: halves[at] if at in halves else read32(at),
                gva,
            )
            if not isinstance(found, int):
                yield found

    # -- what the guest does -----------------------------------------------------------

    @rule(table=st.sampled_from(TABLES), page=st.sampled_from(PAGES), entry=ENTRY)
    def write_pte(self, table, page, entry):
        self.remember()
        self.write(table + self.size * page, entry)

    @rule(
        directory=st.sampled_from(DIRECTORIES), slot=st.sampled_from(SLOTS), entry=PDE
    )
    def write_pde(self, directory, slot, entry):
        self.remember()
        self.write(self.place(directory, slot), entry)

    @rule(
        directory=st.sampled_from(DIRECTORIES),
        index=st.integers(0, 1),
        pdpte=st.sampled_from([*DIRECTORIES, *DIRECTORIES_2, 0]),
    )
    def write_pdpte(self, directory, index, pdpte):
        """It says nothing until MOV to CR3."""
        at = 0x17000 + 32 * DIRECTORIES.index(directory) + 8 * index
        self.bench.write64(at, pdpte | P if pdpte else 0)

    @rule(
        table=st.sampled_from(TABLES),
        page=st.sampled_from(PAGES),
        bit=st.sampled_from(FLIPS),
    )
    def flip_a_bit(self, table, page, bit):
        self.remember()
        at = table + self.size * page
        self.write(at, self.read(at) ^ bit)

    @rule(gva=GVAS)
    def invlpg(self, gva):
        self.bench.invalidate(self.linear(gva))
        self.remember_not(gva)

    def remember_not(self, gva):
        """INVLPG drops the page's translations; a large one's with all of its pages.

        And all cached PDEs, whatever their address (4.10.4.1).
        """
        self.cached.clear()
        large = [t for t in self.held.get(gva >> 12, ()) if t[0].large]
        self.held.pop(gva >> 12, None)
        for found in large:
            for page, held in self.held.items():
                if page >> 10 == gva >> 22:
                    held.discard(found)

    @rule(cr3=st.sampled_from(DIRECTORIES))
    def mov_to_cr3(self, cr3):
        self.remember()
        self.cr3, real = cr3, self.real(cr3)
        self.pdptes = paging.pdptes(self.bench.ram.read32, real)
        self.bench.switch(real)
        for held in self.held.values():
            local = {t for t in held if not (t[0].is_global and self.cr4 & PGE)}
            held.difference_update(local)
        self.cached.clear()

    @rule(bit=st.sampled_from([PGE, PSE]))
    def toggle_cr4(self, bit):
        self.cr4 ^= bit
        self.configure()

    @rule()
    def toggle_nxe(self):
        self.efer ^= NXE
        self.configure()

    @rule()
    def toggle_wp(self):
        self.cr0 ^= WP
        self.configure()

    # -- accesses ----------------------------------------------------------------------

    def judge(self, gva, access, user, got):
        found, used = self.before
        kind, value = got
        if kind == "fault":
            assert isinstance(found, int) or not paging.grants(
                found, access, user, self.cr0
            )
            nx = self.cr4 & PAE and self.efer & NXE
            assert value == paging.error_code(found, access, user, nx=nx)
            return
        fresh = not isinstance(found, int) and paging.grants(
            found, access, user, self.cr0
        )
        held = [
            t for t, dirty in self.held.get(gva >> 12, ())
            if paging.grants(t, access, user, self.cr0) and (dirty or access != WRITE)
        ]  # fmt: skip
        stale = [
            t for t in self.by_cached(gva) if paging.grants(t, access, user, self.cr0)
        ]
        held += stale
        pages = {t.page for t in held} | ({found.page} if fresh else set())
        if kind == "bus":
            assert any(page >= 0x90 for page in pages)
            value = None
        elif value >> 20:  # the VMM's page of ones
            assert any(page >= 0x90 for page in pages)
        else:
            assert value in pages, (hex(value), pages)
        if fresh and not held:
            for at, before in used:
                after = self.read(at)
                assert after & A
                assert (after | A | D) == (before | A | D)
            if access == WRITE:
                assert self.bench.ram.read32(used[-1][0]) & D
        # Whatever it was used for, a TLB may have it now.
        for used_ in [found] * fresh + stale:
            self.held.setdefault(gva >> 12, set()).add((used_, access == WRITE))

    @rule(gva=GVAS, access=st.sampled_from([READ, WRITE, FETCH]), user=st.booleans())
    def access(self, gva, access, user):
        self.before = self.now(gva)
        got = self.bench.access(self.linear(gva), access, user=user)
        self.judge(gva, access, user, got)

    @rule(gva=GVAS, write=st.booleans(), user=st.booleans())
    def access_by_the_vmm(self, gva, write, user):
        """What an emulated instruction reads and writes follows the same rules."""
        access = WRITE if write else READ
        self.before = self.now(gva)
        memory = self.bench.memory
        words = self.bench.ram.words
        saved = {page: words[page << 10] for page in MARKED}
        # A mark is no entry: of the usual table, nor of a page that has become one.
        entries = {at for at, _entry in self.before[1]}
        tables = {0x12} | {at >> 12 for at in entries}
        for page in MARKED:
            if page not in tables:
                words[page << 10] = 0xABC00000 | page
        marks = {words[page << 10]: page for page in MARKED}
        for page in tables & {*MARKED}:  # the walk itself may touch what is read
            marks |= {words[page << 10] | used: page for used in (A, A | D)}
        try:
            if write:
                memory.write(self.linear(gva), 0xDEF00000, 4, user=user)
                hit = [page for page in MARKED if words[page << 10] == 0xDEF00000]
                got = ("ok", hit[0]) if hit else ("bus", None)
            else:
                value = memory.read(self.linear(gva), 4, user=user)
                got = ("ok", marks[value]) if value in marks else ("ok", 1 << 20)
        except PageFault as fault:
            got = "fault", fault.error
        for page in MARKED:
            if page not in tables:
                words[page << 10] = saved[page]
            elif write and got == ("ok", page):
                used = A | D if page << 12 in entries else 0
                words[page << 10] = saved[page] | used
        self.judge(gva, access, user, got)

    @rule(
        gva=GVAS,
        first=ACCESS,
        entry=st.one_of(ENTRY, st.sampled_from(FLIPS)),
        large=st.none() | PDE,
        then=st.sampled_from(["", "invlpg", "invlpg", "cr3", "cr3 twice"]),
        second=ACCESS,
    )
    def access_change_access(self, gva, first, entry, large, then, second):
        """The use of a page, a change of what maps it, perhaps a word, another use."""
        self.use(gva, *first)
        _found, used = self.now(gva)
        self.remember()
        at, old = used[-1] if used else (0x15000, 0)
        if large is not None and used:
            self.write(used[0][0], large)
        elif at < 0x15000:
            self.write(at, old ^ entry if entry in FLIPS else entry)
        if then == "invlpg":
            self.invlpg(gva)
        elif then == "cr3":
            self.mov_to_cr3(self.cr3)
        elif then:
            self.mov_to_cr3(DIRECTORIES[0] ^ DIRECTORIES[1] ^ self.cr3)
            self.mov_to_cr3(DIRECTORIES[0] ^ DIRECTORIES[1] ^ self.cr3)
        self.use(gva, *second)

    @rule(gva=GVAS, other=GVAS)
    def rewrite_and_run(self, gva, other):
        """Code that keeps being rewritten becomes mixed; then by another address."""
        for _ in range(9):
            self.access(gva, WRITE, False)
            self.access(gva, FETCH, False)
        self.access(other, WRITE, False)
        self.access(other, FETCH, False)

    def use(self, gva, access, user, by_vmm):
        if by_vmm and access != FETCH:
            self.access_by_the_vmm(gva, access == WRITE, user)
        else:
            self.access(gva, access, user)

    @rule(page=st.sampled_from([0x20, 0x21, 0x22]))
    def a_table_of_descriptors(self, page):
        self.bench.mmu.use.watch(page)

    @rule(page=st.sampled_from([0x20, 0x21, 0x22]))
    def the_vmm_writes(self, page):
        self.bench.mmu.use.before_write(page)

    # -- what always holds -------------------------------------------------------------

    @invariant()
    def no_page_is_written_and_executed(self):
        state = self.bench.ram.state
        both = {}
        for root, gva, entry in self.bench.leaves():
            hpa = entry & 0xFFFFFFFFFF000
            if hpa >= VmmMemory.BASE:
                assert not entry & RW
                continue
            page = hpa >> 12
            assert page < 0x90
            assert state[page] != UNBACKED
            if state[page] == DATA:
                assert entry & NX
            elif state[page] == CODE:
                assert not entry & RW
            elif state[page] == TABLE:
                assert entry & NX
                assert not entry & RW
            elif entry & RW or not entry & NX:
                assert state[page] == MIXED
                # Aliases by one shared table are one mapping.
                place = self.bench.place(root, gva)
                assert both.setdefault(page, place) == place

    @invariant()
    def the_tlb_has_no_more_than_the_shadow(self):
        """What the shadow has narrowed must have been flushed."""
        engine, state = self.bench.engine, self.bench.ram.state
        for entry in engine.tlb.values():
            hpa = entry & 0xFFFFFFFFFF000
            if hpa >= VmmMemory.BASE or not entry & P:
                continue
            if state[hpa >> 12] == DATA:
                assert entry & NX
            elif state[hpa >> 12] in (CODE, TABLE):
                assert not entry & RW


Guest.TestCase.settings = settings(
    max_examples=180,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
)
TestTlbRules = Guest.TestCase


class LongGuest(Guest):
    """One with 4-level paging."""

    @initialize()
    def start(self):
        self.efer = LMA
        super().start(pae=True)

    @rule(
        place=st.sampled_from(
            [*PDPTS, *PDPTS_2, *PML4S, *(at + 8 * 511 for at in PML4S)]
        ),
        table=st.sampled_from([*PDPTS, *PDPTS_2, *DIRECTORIES, *DIRECTORIES_2, 0]),
        bits=BITS,
        large=st.sampled_from([0, 0, PS]),
    )
    def write_above(self, place, table, bits, large):
        """Any table may be one of any level; one at 0 is not present."""
        self.remember()
        where = 0 if large else table
        self.bench.write64(place, where | bits | large | P if table else 0)


LongGuest.TestCase.settings = Guest.TestCase.settings
TestTlbRulesOfFourLevels = LongGuest.TestCase


def test_invlpg_drops_a_large_page_whole():
    """Section 4.10.4.1: whatever address in it is given, for the emulation as well."""
    bench = Bench(pages=0x90)
    bench.write32(0x10000, PS | P | RW)
    bench.write32(0x12000 + 4 * 0x20, 0x21000 | P | RW)
    bench.write32(0x20000, 0x1111)
    bench.write32(0x21000, 0x2222)
    bench.mmu.configure(PG, 0x10000, PSE)
    assert bench.memory.read(0x20000, 4) == 0x1111
    assert bench.access(0x20000) == ("ok", 0x20)
    bench.memory.write(0x20004, 1, 4)
    bench.write32(0x10000, 0x12000 | P | RW)
    bench.mmu.invalidate(0x21000)
    assert bench.access(0x20000) == ("ok", 0x21)
    assert bench.memory.read(0x20000, 4) == 0x2222
    bench.memory.write(0x20004, 0x55, 4)
    assert bench.ram.read32(0x21004) == 0x55


def test_invlpg_drops_every_pde_that_has_changed():
    """Section 4.10.4.1: "all entries in all paging-structure caches"."""
    bench = Bench(pages=0x90)
    bench.write32(0x10000, 0x12000 | P | RW)
    bench.write32(0x10004, 0x13000 | P | RW)
    bench.write32(0x13000 + 4 * 0x20, 0x20000 | P | RW)
    bench.write32(0x13000 + 4 * 0x21, 0x21000 | P | RW)
    bench.write32(0x14000 + 4 * 0x21, 0x22000 | P | RW)
    bench.mmu.configure(PG, 0x10000, 0)
    assert bench.access(0x420000) == ("ok", 0x20)  # its PDE is cached from now on
    bench.write32(0x10004, 0x14000 | P | RW)
    bench.mmu.invalidate(0x5000)  # of another 4 MiB, and nothing is there
    assert bench.access(0x421000) == ("ok", 0x22)
    assert bench.memory.translate(0x421000) == 0x22000


def test_a_page_table_in_a_page_that_the_machine_marks():
    """Found by a soak: the mark of page 21h was its own PTE; a read one had A."""
    read, by_vmm = (READ, False, False), (READ, False, True)
    guest = Guest()
    guest.start(pae=False)
    guest.access_change_access(0, read, 0x12000 | P, None, "", by_vmm)
    guest = Guest()
    guest.start(pae=False)
    guest.access_change_access(0x400000, read, 0x20000 | P, PS | P, "", read)
    guest.access_change_access(0x400000, read, 0x21000 | P, None, "", by_vmm)


def test_a_cached_pde_and_a_page_table_that_two_slots_share():
    """Found by a soak: a write by one made the page dirty for the other's stale PDE."""
    guest = Guest()
    guest.start(pae=False)
    guest.write_pde(DIRECTORIES[0], 2, TABLES[1] | P | RW | US | A)
    guest.invlpg(0x800000)
    guest.access(0x821000, READ, False)
    guest.write_pde(DIRECTORIES[0], 2, TABLES[0] | P)
    guest.access(0x421000, WRITE, False)
    guest.access(0x821000, WRITE, False)
    guest.invlpg(0x800000)
    assert guest.bench.access(0x821000, WRITE, user=False)[0] == "fault"
