"""Guest memory as the VMM's emulation sees it: by linear address, through the tables.

Translations are cached as a TLB would, those of global pages across MOV to CR3, and go
when the shadow's do. Faults are raised as `PageFault` with the guest's own error code.
"""

from typing import Final

from emu86.mmu.paging import denied, is_canonical, touch
from emu86.mmu.ram import DATA
from emu86.mmu.shadow import ShadowMmu
from emu86.spec import x86

_GIB: Final = 30


class PageFault(Exception):  # noqa: N818 (the SDM's word)
    """The guest's tables forbid an access of the emulation's."""

    def __init__(self, gva: int, error: int) -> None:
        super().__init__(f"#PF at {gva:#x}, error {error:#x}")
        self.gva = gva
        self.error = error


class GuestMemory:
    """Reads and writes 1 to 8 bytes at linear addresses, little endian.

    An address wraps where the paging format's do; of 4-level paging it is canonical.
    user: whether the access is an instruction's at CPL 3; None: it is an implicit one
    of a supervisor, to a descriptor table, say, which EFLAGS.AC does not let through
    SMAP.
    """

    def __init__(self, mmu: ShadowMmu) -> None:
        self.mmu = mmu
        self.ram = mmu.ram
        self.bytes = mmu.ram.bytes
        # Linear page number -> GPA of the page, for supervisor accesses.
        self.read_pages: dict[int, int] = {}
        self._write_pages: dict[int, int] = {}
        self._global_pages: dict[int, int] = {}
        # Where a large page was used: gva >> its log2; one of 1 GiB negative.
        self._large: set[int] = set()
        self._mask = mmu.format.linear
        listeners = mmu.listeners
        listeners.rights_lost.append(self._write_pages.clear)
        listeners.flushed_all.append(self.flush)
        listeners.flushed_nonglobal.append(self.switch)
        listeners.flushed_page.append(self.forget)
        listeners.dropped_page.append(self.forget)

    def flush(self) -> None:
        """Forget the cached translations."""
        self.read_pages.clear()
        self._write_pages.clear()
        self._global_pages.clear()
        self._large.clear()
        self._mask = self.mmu.format.linear

    def switch(self) -> None:
        """MOV to CR3: forget the cached translations but those of global pages."""
        self.read_pages.clear()
        self.read_pages.update(self._global_pages)
        self._write_pages.clear()

    def forget(self, gva: int) -> None:
        """Forget the cached translation of one page, which may be a large one."""
        large = self._large
        if gva >> self.mmu.span_shift in large or ~(gva >> _GIB) in large:
            self.flush()
            return
        self.read_pages.pop(gva >> 12, None)
        self._global_pages.pop(gva >> 12, None)
        self._write_pages.pop(gva >> 12, None)

    def translate(
        self,
        gva: int,
        *,
        write: bool = False,
        user: bool | None = None,
        fetch: bool = False,
    ) -> int:
        """Return the GPA of `gva`, setting accessed and dirty bits as accesses do.

        fetch: it is code that has been fetched, whoever may do so.
        """
        mmu = self.mmu
        found = mmu.walk(self.ram, mmu.top, gva)
        kept = mmu.smap and not fetch and mmu.keeps_out(explicit=user is not None)
        code = denied(found, write=write, user=bool(user), wp=mmu.wp, kept=kept)
        if code is not None:
            raise PageFault(gva, code)
        touch(self.ram, found, write=write)
        if found.large:
            huge = found.large == _GIB
            self._large.add(~(gva >> _GIB) if huge else gva >> mmu.span_shift)
        return found.page << 12 | gva & 0xFFF

    def lookup(self, gva: int) -> int | None:
        """Return the GPA that the guest's tables give, without effects; or None."""
        return self.mmu.lookup(gva) if is_canonical(gva) else None

    def page(self, gva: int, *, user: bool | None = None, fetch: bool = False) -> int:
        """Return the GPA of the page of a supervisor read, or -1 if none is there."""
        start = self.read_pages.get(gva >> 12, -1)
        if start >= 0:
            return start
        mmu = self.mmu
        start = self.translate(gva, user=user, fetch=fetch) & -x86.PAGE_SIZE
        if not self.ram.backed(start >> 12):
            return -1
        if mmu.smap and (fetch or not mmu.keeps_out(explicit=user is not None)):
            return start  # it may be a user's
        self.read_pages[gva >> 12] = start
        if mmu.is_global(gva):
            self._global_pages[gva >> 12] = start
        return start

    def page_to_write(self, gva: int, *, user: bool | None = None) -> int:
        """Return the GPA of the page for a supervisor write, or -1."""
        start = self._write_pages.get(gva >> 12, -1)
        if start >= 0:
            return start
        gpa = self.translate(gva, write=True, user=user)
        page = gpa >> 12
        if not self.ram.backed(page):
            return -1
        start = gpa & -x86.PAGE_SIZE
        self.mmu.use.before_write(page)
        lifted = self.mmu.smap and not self.mmu.keeps_out(explicit=user is not None)
        if self.ram.state[page] == DATA and not lifted:
            self._write_pages[gva >> 12] = start
        return start

    def read(self, gva: int, size: int, *, user: bool | None = None) -> int:
        """Read `size` bytes."""
        gva &= self._mask
        offset = gva & 0xFFF
        if offset + size > x86.PAGE_SIZE:
            first = x86.PAGE_SIZE - offset
            low = self.read(gva, first, user=user)
            return low | self.read(gva + first, size - first, user=user) << 8 * first
        if user:
            gpa = self.translate(gva, user=True)
            start = gpa & -x86.PAGE_SIZE if self.ram.backed(gpa >> 12) else -1
        else:
            start = self.page(gva, user=user)
        if start < 0:
            return (1 << 8 * size) - 1
        start += offset
        return int.from_bytes(self.bytes[start : start + size], "little")

    def gpa(self, gva: int) -> int:
        """Return the GPA of code at `gva`, or of what has been read, from the cache."""
        start = self.page(gva, fetch=True)
        if start < 0:
            return self.translate(gva, fetch=True)
        return start | gva & 0xFFF

    def read32(self, gva: int) -> int:
        """Read a doubleword with supervisor rights."""
        if gva & 3 == 0:
            start = self.page(gva & self._mask)
            return (
                self.ram.words[start + (gva & 0xFFF) >> 2] if start >= 0 else x86.MASK32
            )
        return self.read(gva, 4)

    def read_bytes(self, gva: int, size: int) -> bytes:
        """Read up to `size` bytes of code, fewer if a later page is not mapped."""
        out = b""
        while size:
            part = min(size, x86.PAGE_SIZE - (gva & 0xFFF))
            try:
                start = self.page(gva, fetch=True)
            except PageFault:
                if out:
                    break
                raise
            if start >= 0:
                start |= gva & 0xFFF
                out += self.ram.map[start : start + part]
            else:
                out += b"\xff" * part
            gva = (gva + part) & self._mask
            size -= part
        return out

    def write(
        self, gva: int, value: int, size: int, *, user: bool | None = None
    ) -> None:
        """Write `size` bytes."""
        gva &= self._mask
        offset = gva & 0xFFF
        if offset + size > x86.PAGE_SIZE:
            first = x86.PAGE_SIZE - offset
            self.translate(gva, write=True, user=user)
            self.translate(gva + first & self._mask, write=True, user=user)
            self.write(gva, value & (1 << 8 * first) - 1, first, user=user)
            self.write(gva + first, value >> 8 * first, size - first, user=user)
            return
        if user:
            gpa = self.translate(gva, write=True, user=True)
            if not self.ram.backed(gpa >> 12):
                return
            self.mmu.use.before_write(gpa >> 12)
            start = gpa & -x86.PAGE_SIZE
        else:
            start = self.page_to_write(gva, user=user)
            if start < 0:
                return
        start += offset
        self.bytes[start : start + size] = value.to_bytes(size, "little")

    def write32(self, gva: int, value: int) -> None:
        """Write a doubleword with supervisor rights."""
        self.write(gva, value, 4)
