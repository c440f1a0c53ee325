"""The guest's page tables and the shadow's, side by side: what differs, and why.

Nothing is changed by looking: no accessed bit, no entry of the shadow. Source: SDM Vol.
3A chapter 4; `mmu.shadow` and `mmu.page_use` for what the shadow's entries lack.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from emu86.cpu.state import CR
from emu86.machine.looking import shadow_leaves
from emu86.mmu.paging import Format, format_of, rights_text, top_of
from emu86.mmu.ram import CODE, MIXED, TABLE
from emu86.notebook import svg
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.technique.deprivileged import Deprivileged

_ALL: Final = x86.PTE_RW | x86.PTE_US
_COLOURS: Final = {"": "#eee", "x": "#4a90d9", "w": "#7fb069", "wx": "#e0a030"}

SAME: Final = ""
UNUSED: Final = "not used yet"
DIRTY: Final = "dirty bit watched: the first write sets it"
CODE_PAGE: Final = "code page: a write makes it data (W^X)"
DATA_PAGE: Final = "data page: the first fetch makes it code (W^X)"
TABLE_PAGE: Final = "holds descriptors that the VMM has copied: writes are watched"
DEVICE: Final = "no RAM: each access goes to a device"
NOTHING: Final = "no RAM: it reads as ones"
WP_CLEAR: Final = "CR0.WP is 0: the kernel's, until a user asks"
MIXED_PAGE: Final = "code and data at once: in one mapping only"
WIDENED: Final = "was code or descriptors: the next write widens it"
STALE: Final = "stale: the guest has changed its entry, and may not have told (INVLPG)"


class Leaf(NamedTuple):
    """An entry of the guest that maps a page, large or small.

    first: the number of its first linear page; pages: of 4 KiB; frame: the first
    guest page; rights: RW, US and NX of all entries of the walk; entry: the last one.
    """

    first: int
    pages: int
    frame: int
    rights: int
    entry: int


@dataclass(frozen=True, slots=True)
class Run:
    """Pages that follow each other and are alike.

    start, end: linear addresses, end is behind them; pages: of 4 KiB; guest, shadow:
    "urwx" with "-" for what is not allowed, "" where there is no entry; size: of the
    guest's pages, in bytes, 0 where there are none; physical: where the first one is,
    -1 where they do not follow each other; why: they differ, "" if they do not.
    """

    start: int
    end: int
    guest: str
    shadow: str
    size: int
    physical: int
    why: str

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB there are."""
        return self.end - self.start >> x86.PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Pages:
    """Both trees of page tables: see `Machine.pages`.

    paging: the format's name; cr3: the guest's; root: where the engine's is, in the
    VMM's memory; runs: upwards.
    """

    paging: str
    cr3: int
    root: int
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, vmm: "Deprivileged") -> "Pages":
        """Look at the page tables of a guest as it is now."""
        vmm.catch_up()
        vcpu = vmm.vcpu
        paging = format_of(vcpu.cr0, vcpu.cr4, vcpu.efer)
        shadow = dict(shadow_leaves(vmm))
        runs: list[Run] = []
        for run in _runs(vmm, paging, shadow):
            if runs and _alike(runs[-1], run):
                last = runs[-1]
                follows = last.physical + (last.end - last.start) == run.physical
                physical = last.physical if follows else -1
                runs[-1] = replace(last, end=run.end, physical=physical)
            else:
                runs.append(run)
        root = vmm.q[CR + 3]
        return cls(paging.name, vcpu.cr3, root, tuple(runs))

    @property
    def why(self) -> dict[str, int]:
        """How many pages differ, by the reason."""
        found: Counter[str] = Counter()
        for run in self.runs:
            found[run.why or "the same in both"] += run.pages
        return dict(found.most_common())

    def __str__(self) -> str:
        wide = any(run.end > 1 << 32 for run in self.runs)
        digits = 16 if wide else 8
        lines = [self._title, ""]
        lines.append(
            f"{'linear addresses':{2 * digits + 1}} {'pages':>9}  "
            f"{'guest':9}  {'shadow':6}  {'at':8}  why they differ"
        )
        for run in self.runs:
            size = _SIZES.get(run.size, "")
            at = f"{run.physical:08x}" if run.physical >= 0 else "various"
            lines.append(
                f"{run.start:0{digits}x}-{run.end - 1:0{digits}x} {run.pages:9,}  "
                f"{run.guest or 'none':4} {size:4}  {run.shadow or 'none':6}  {at:8}  "
                f"{run.why}".rstrip()
            )
        lines.append("")
        lines += (f"{count:11,}  {why}" for why, count in self.why.items())
        return "\n".join(lines)

    @property
    def _title(self) -> str:
        return (
            f"{self.paging}, CR3 {self.cr3:08x}; the engine walks the shadow, whose "
            f"root is at {self.root:x} of the VMM's memory"
        )

    def svg(self) -> str:
        """Draw the address space: a row for each run, the guest's and the shadow's.

        Blue is code, green data that may be written, orange both, grey read-only; a
        frame is a user's.
        """
        height, top = 18, 40
        rows = []
        for i, run in enumerate(self.runs):
            y = top + height * i
            width = 30 + 9 * run.pages.bit_length()
            cells = ((run.guest, 300), (run.shadow, 520))
            rows += [
                _text(10, y + 13, f"{run.start:x} - {run.end - 1:x}"),
                *(
                    f'<rect x="{x}" y="{y + 2}" width="{width}" height="{height - 4}" '
                    f'fill="{_colour(rights)}" stroke="'
                    f'{"#222" if rights[:1] == "u" else "none"}"/>'
                    + _text(x + 4, y + 13, rights)
                    for rights, x in cells
                    if rights
                ),
                _text(740, y + 13, run.why),
            ]
        heads = (
            (10, "linear addresses"),
            (300, "guest"),
            (520, "shadow"),
            (740, "why"),
        )
        head = "".join(_text(x, 28, name) for x, name in heads)
        return svg(1240, top + height * len(self.runs) + 10, [head, *rows])

    def html(self) -> str:
        """Return a page with the picture and the sums."""
        return (
            '<!doctype html>\n<meta charset="utf-8">\n<title>Page tables</title>\n'
            + self._repr_html_()
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align: right'>{count:,}</td><td>{escape(why)}</td>"
            "</tr>"
            for why, count in self.why.items()
        )
        return f"<p>{escape(self._title)}</p>\n{self.svg()}<table>{rows}</table>\n"


_SIZES: Final = {1 << 12: "4K", 1 << 21: "2M", 1 << 22: "4M", 1 << 30: "1G"}


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(text)}</text>'


def _colour(rights: str) -> str:
    return _COLOURS[rights[2:].replace("-", "")]


def _alike(one: Run, other: Run) -> bool:
    return one.end == other.start and (
        (one.guest, one.shadow, one.size, one.why)
        == (other.guest, other.shadow, other.size, other.why)
    )


def _runs(vmm: "Deprivileged", paging: Format, shadow: dict[int, int]) -> Iterator[Run]:
    """Yield the pages of both trees, upwards; those alike may come one by one."""
    seen: set[int] = set()
    found: list[Run] = []
    for leaf in _leaves(vmm, paging, shadow):
        start = leaf.first
        pages = range(leaf.first, leaf.first + leaf.pages)
        seen.update(page for page in pages if page in shadow)
        if not any(page in shadow for page in pages):
            found.append(_run(vmm, leaf, start, leaf.pages, 0))
            continue
        found.extend(_run(vmm, leaf, page, 1, shadow.get(page, 0)) for page in pages)
    for page in shadow.keys() - seen:
        at, entry = page << x86.PAGE_SHIFT, shadow[page]
        found.append(
            Run(at, at + x86.PAGE_SIZE, "", rights_text(entry), 0,
                entry & x86.LONG_FRAME, STALE)
        )  # fmt: skip
    yield from sorted(found, key=lambda run: run.start)


def _run(vmm: "Deprivileged", leaf: Leaf, page: int, count: int, entry: int) -> Run:
    frame = leaf.frame + page - leaf.first
    start = page << x86.PAGE_SHIFT
    return Run(
        start,
        start + (count << x86.PAGE_SHIFT),
        rights_text(leaf.rights),
        rights_text(entry) if entry & x86.PTE_P else "",
        leaf.pages << x86.PAGE_SHIFT,
        frame << x86.PAGE_SHIFT,
        _why(vmm, leaf, frame, entry),
    )


def _why(vmm: "Deprivileged", leaf: Leaf, frame: int, entry: int) -> str:
    """Say why the shadow's entry is not as the guest's."""
    ram = vmm.ram
    if not ram.backed(frame):
        return NOTHING if entry & x86.PTE_P else DEVICE
    if not entry & x86.PTE_P:
        return MIXED_PAGE if ram.state[frame] == MIXED else UNUSED
    if (entry & x86.LONG_FRAME) >> x86.PAGE_SHIFT != frame:
        return STALE
    lacks_write = leaf.rights & ~entry & x86.PTE_RW
    lacks_user = leaf.rights & ~entry & x86.PTE_US
    more = entry & ~leaf.rights & _ALL | leaf.rights & ~entry & x86.PTE_NX
    if more or lacks_user:
        return WP_CLEAR if not vmm.vcpu.cr0 & x86.CR0_WP else STALE
    if lacks_write:
        if ram.state[frame] == CODE:
            return CODE_PAGE
        if ram.state[frame] == TABLE:
            return TABLE_PAGE
        return WIDENED if leaf.entry & x86.PTE_D else DIRTY
    if entry & ~leaf.rights & x86.PTE_NX:
        return DATA_PAGE
    return SAME


def _leaves(
    vmm: "Deprivileged", paging: Format, shadow: dict[int, int]
) -> Iterator[Leaf]:
    """Yield the entries by which the guest's tables map pages, upwards."""
    if paging.direct:
        # Every address is its own: only those that the shadow has are told.
        walk = paging.walk
        for page in sorted(shadow):
            found = walk(vmm.ram, (0,), page << x86.PAGE_SHIFT)
            yield Leaf(page, 1, found.page, _ALL, x86.PTE_D)
        return
    top = top_of(paging, vmm.vcpu)
    if paging.in_registers:
        for i, entry in enumerate(top):
            if entry & x86.PTE_P:
                first = i << paging.shifts[0]
                yield from _below(vmm, paging, 1, entry, first, _ALL)
        return
    yield from _below(vmm, paging, 0, top[0], 0, _ALL)


def _below(
    vmm: "Deprivileged", paging: Format, level: int, above: int, first: int, rights: int
) -> Iterator[Leaf]:
    """Yield the leaves of one table, which an entry (or CR3) refers to."""
    ram, size, shift = vmm.ram, paging.entry_size, paging.shifts[level]
    read = ram.read32 if size == 4 else ram.read64
    table = above & paging.frame
    for i in range(x86.PAGE_SIZE // size):
        entry = read(table + i * size)
        if not entry & x86.PTE_P:
            continue
        linear = first + (i << shift)
        if paging.linear == x86.MASK64 and linear >> 47 & 1:
            linear |= -1 << 48 & x86.MASK64
        combined = rights & entry & _ALL | (rights | entry) & x86.PTE_NX
        if size == 4:
            combined &= _ALL
        small = shift == x86.PAGE_SHIFT
        large = shift in paging.large_shifts and entry & x86.PDE_PS
        if not (small or large):
            yield from _below(vmm, paging, level + 1, entry, linear, combined)
            continue
        reserved = paging.reserved_page if small else paging.reserved_large
        if entry & reserved:
            continue  # no walk gets through
        count = 1 << shift - x86.PAGE_SHIFT
        frame = (entry & paging.frame) >> x86.PAGE_SHIFT & -count
        yield Leaf(linear >> x86.PAGE_SHIFT, count, frame, combined, entry)
