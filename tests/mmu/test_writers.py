"""Who writes shadow entries: `mmu/shadow.py`, and nobody else."""

import ast
from pathlib import Path

import pytest

import emu86
from emu86.mmu.page_use import PageUse
from support.paging import PG, RW, US, WP, WRITE, A, Bench, D, P

SOURCES = Path(emu86.__file__).parent
WRITER = "mmu/shadow.py"
# It makes the fixed tables that map the VMM's own descriptor tables, once.
OWNER = "mmu/vmm_memory.py"


def mentions(path):
    """Lines of a file that name the writable views of the shadow entries."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        name = getattr(node, "attr", "") or getattr(node, "id", "")
        if name in {"sptes", "sptes_np", "_sptes_np"}:
            yield node.lineno


def test_nobody_else_has_them():
    """The reverse map is given them to read; see below."""
    named = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(mentions(path))
    }
    assert named == {WRITER, OWNER, "mmu/rmap.py"}


def test_the_reverse_map_cannot_write_them():
    with pytest.raises(TypeError, match="read-only"):
        Bench().mmu._rmap._sptes[0] = 0


def test_the_descriptors_are_no_shadow_entries():
    """What is given away to write to ends before the pool begins."""
    own = Bench().mmu.vmm_memory
    for page in (own.GDT, own.LDT):
        table = own.descriptors(page)
        table[0] = table[len(table) - 1] = 1
    assert not own.sptes_np[own.LDT * 512 + len(table) :][: 512 * 8].any()
    assert own.LDT * 512 + len(table) <= own.POOL * 512


class Recorder:
    """Mappings that note what the use of pages asks of them."""

    def __init__(self):
        self.asked = []

    def write_protect(self, page):
        self.asked.append(("write_protect", page))

    def forbid_execution(self, page):
        self.asked.append(("forbid_execution", page))

    def drop_mappings(self, page, keep=-1):
        self.asked.append(("drop_mappings", page, keep))

    def is_mapped_elsewhere(self, page, index):
        return (page, index) == (5, 7)


def test_the_use_of_pages_asks_for_what_it_needs():
    bench = Bench()
    asked = Recorder()
    use = PageUse(bench.engine, bench.ram, asked, bench.mmu.listeners)
    use.execute(3)
    use.write(3)
    use.watch(4)
    use.take_over(5, 7)
    use.take_over(6, 7)
    assert asked.asked == [
        ("write_protect", 3),
        ("forbid_execution", 3),
        ("write_protect", 4),
        ("drop_mappings", 5, 7),
    ]
    assert use.taken_over == 5


def test_listeners_are_told_in_order():
    bench = Bench()
    bench.write32(0x10000, 0x11000 | P | RW | US | A)
    bench.write32(0x11000, 0x20000 | P | RW | US | A | D)
    bench.mmu.configure(PG | WP, 0x10000, 0)
    told = []
    listeners = bench.mmu.listeners
    for name, heard in vars(listeners).items():
        for who in "ab":
            heard.append(
                lambda *what, name=name, who=who: told.append((who, name, *what))
            )
    assert bench.access(0, WRITE) == ("ok", 0x20)
    assert told == []
    bench.mmu.use.watch(0x20)
    bench.mmu.use.before_write(0x20)
    bench.mmu.use.execute(0x20)
    bench.mmu.use.write(0x20)
    bench.mmu.invalidate(0x1234)
    bench.mmu.switch(0x10000)
    bench.mmu.reset()
    assert told == [
        (who, *what)
        for what in (
            ("rights_lost",),
            ("table_written", 0x20),
            ("rights_lost",),
            ("code_changed", 0x20),
            ("rights_lost",),
            ("flushed_page", 0x1234),
            ("flushed_nonglobal",),
            ("flushed_all",),
        )
        for who in "ab"
    ]
