"""Who writes shadow entries: `mmu/shadow*.py`, and nobody else."""

import ast
from pathlib import Path

import pytest

import emu86
from support.paging import Bench

SOURCES = Path(emu86.__file__).parent
WRITERS = {f"mmu/shadow{part}.py" for part in ("", "_leaves", "_roots", "_tree")}
# It makes the fixed tables that map the VMM's own descriptor tables, once.
OWNER = "mmu/vmm_memory.py"
# It gives them to read, for the page tables that `Machine.pages` shows.
READER = "rings/technique/deprivileged.py"


def mentions(path):
    """Lines of a file that name the writable views of the shadow entries."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        name = getattr(node, "attr", "") or getattr(node, "id", "")
        if name in {"sptes", "_sptes"}:
            yield node.lineno


@pytest.mark.not_quick
def test_nobody_else_has_them():
    """The reverse map is given them to read; see below."""
    named = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(mentions(path))
    }
    assert named == {*WRITERS, OWNER, "mmu/rmap.py", READER}


def test_the_reverse_map_cannot_write_them():
    with pytest.raises(TypeError, match="read-only"):
        Bench().mmu.rmap._sptes[0] = 0


def test_the_descriptors_are_no_shadow_entries():
    """What is given away to write to ends before the pool begins."""
    own = Bench().mmu.vmm_memory
    for page in (own.GDT, own.LDT):
        table = own.descriptors(page)
        table[0] = table[len(table) - 1] = 1
    assert not any(own.sptes[own.LDT * 512 + len(table) :][: 512 * 8])
    assert own.LDT * 512 + len(table) <= own.POOL * 512
