"""The places in the guest's code where exits happen (sites), decoded once.

A decoded instruction is kept by guest page for as long as that page is code. CLI and
STI at pages that stay mapped (global ones) are given to the compiled hook besides.
"""

import ctypes
from typing import Final

from emu86.cpu.engine import Engine
from emu86.cpu.state import BASE, ERROR_CODE, RIP
from emu86.mmu.memory import GuestMemory
from emu86.mmu.ram import CODE
from emu86.mmu.shadow import ShadowMmu
from emu86.native import abi
from emu86.native.state import site_index
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn, decode
from emu86.rings.insn.table import find
from emu86.spec import x86

_CS_BASE: Final = BASE[x86.CS]
_MASK64: Final = (1 << 64) - 1
# Of sites that are not of one byte.
_LENGTHS: Final = {
    abi.SITE_INVLPG: 3, abi.SITE_WRITE_CR: 3, abi.SITE_READ_CR: 3, abi.SITE_CLTS: 2,
}  # fmt: skip
_OF_ANY_LENGTH: Final = (
    abi.SITE_SPLIT, abi.SITE_ACCESS, abi.SITE_VERW, abi.SITE_SETCC,
)  # fmt: skip
_OF_USERS: Final = (abi.SITE_ACCESS, abi.SITE_SETCC)
_NO_GUARDS: Final = memoryview(bytes(8 * abi.GUARDED_WORDS)).cast("q")


class InstructionCache:
    """The decoded sites of one VMM; `compiles`: some may be compiled code's."""

    def __init__(
        self, engine: Engine, cpu: Cpu, memory: GuestMemory, mmu: ShadowMmu
    ) -> None:
        self._cpu = cpu
        self._q, self._d = cpu.q, cpu.d
        self._control, self._shared = engine.control, engine.shared
        self._flushes_page = engine.can.flush_page
        self._memory = memory
        self._mmu = mmu
        self._pages = memory.read_pages  # linear page -> GPA of the page
        self.compiles = True
        # Guest page -> offset in it, in code of 16 or 64 bits with those above -> insn.
        self._sites: dict[int, dict[int, Insn]] = {}
        # Linear pages known to the compiled hook, and what guest page is there.
        self._compiled: dict[int, int] = {}
        self._guarded: set[int] = set()
        listeners = mmu.listeners
        listeners.code_changed.append(self.forget)
        listeners.flushed_all.append(self.drop_compiled)
        listeners.flushed_nonglobal.append(self._switch)
        listeners.flushed_page.append(self.invalidate)
        listeners.descriptors_read.append(self.guard)
        listeners.ring_changed.append(self.drop_compiled)
        listeners.checks_changed.append(self.drop_compiled)

    def seen(self, vector: int, software: int) -> Insn | None:
        """Return the instruction of an exit if its site has been decoded before.

        That is a #GP(0) at a privileged instruction or the INT3 of a patched one
        (`software` is 1 then); EIP is at the instruction afterwards.
        """
        q, d = self._q, self._d
        if software:
            if vector != x86.VEC_BP:
                return None
            eip = (q[RIP] - 1) & self._cpu.address_mask
        elif vector == x86.VEC_GP and not d[ERROR_CODE]:
            eip = q[RIP]
        else:
            return None
        linear = (eip + q[_CS_BASE]) & self._cpu.address_mask
        start = self._pages.get(linear >> x86.PAGE_SHIFT)
        if start is None:
            return None
        sites = self._sites.get(start >> x86.PAGE_SHIFT)
        if sites is None:
            return None
        offset = linear & 0xFFF
        if self._cpu.code_bits != 32:
            offset |= self._cpu.code_bits << x86.PAGE_SHIFT
        insn = sites.get(offset)
        if insn is None or insn.record is None:
            return None
        q[RIP] = eip
        return insn

    def at_eip(self) -> Insn:
        """Return the instruction at CS:EIP, decoding and keeping it if it is new."""
        linear = self._cpu.linear_eip
        bits = self._cpu.code_bits
        if bits == 64:
            self._cpu.check_canonical(linear)
        gpa = self._memory.gpa(linear)
        page, offset = gpa >> x86.PAGE_SHIFT, gpa & 0xFFF
        if bits != 32:
            offset |= bits << x86.PAGE_SHIFT
        sites = self._sites.get(page)
        if sites is not None:
            insn = sites.get(offset)
            if insn is not None:
                return insn
        decoded = decode(self.code(linear, bits), bits)
        insn = decoded or Insn()
        if decoded is not None:
            insn.record = find(insn)
        # A mixed page is rewritten without the VMM's knowledge.
        self._mmu.use.unmix(page)
        if (
            self._memory.ram.backed(page)
            and self._memory.ram.state[page] == CODE
            and (gpa & 0xFFF) + insn.length <= x86.PAGE_SIZE
        ):
            self._sites.setdefault(page, {})[offset] = insn
        return insn

    def code_at_eip(self) -> bytes:
        """Return the code at CS:EIP."""
        return self.code(self._cpu.linear_eip, self._cpu.code_bits)

    def code(self, linear: int, bits: int) -> bytes:
        """Return 15 bytes of code, or those to the end of the page if they are enough.

        The next page is not looked at without need: its accessed bit would tell.
        """
        here = min(x86.LONGEST_INSN, x86.PAGE_SIZE - (linear & 0xFFF))
        code = self._memory.read_bytes(linear, here)
        if here < x86.LONGEST_INSN and decode(code, bits) is None:
            code = self._memory.read_bytes(linear, x86.LONGEST_INSN)
        return code

    def forget(self, page: int) -> None:
        """Drop what is kept of a guest page: its code has changed."""
        if page in self._sites:
            for at in [at for at, guest in self._compiled.items() if guest == page]:
                self._drop(at)
            del self._sites[page]

    def _drop(self, page: int) -> None:
        """Take the sites of a linear page back from the compiled hook."""
        for offset in self._sites.get(self._compiled.pop(page), ()):
            linear = page << x86.PAGE_SHIFT | offset & 0xFFF
            for place in self._places(linear):
                if place.place & x86.MASK32 == linear:
                    place.place = place.kind = 0

    def compile(self, insn: Insn, kind: int) -> None:
        """Let the compiled hook handle the instruction at CS:EIP from now on.

        Not while exits are timed or watched, which only Python does.
        """
        tag = kind & 15
        fits = tag in _OF_ANY_LENGTH or insn.length == _LENGTHS.get(tag, 1)
        if not fits or not self.compiles or not self._flushes_page:
            return
        if self._cpu.state.ia32e:
            return  # no compiled handler knows that mode
        linear = self._cpu.linear_eip
        gpa = self._memory.gpa(linear)
        kept = self._sites.get(gpa >> x86.PAGE_SHIFT, {})
        # What is not kept is in a mixed page or on two: `forget` would not hear of it.
        if kept.get(linear & 0xFFF) is not insn or (
            self._cpu.cpl and tag not in _OF_USERS
        ):
            return
        page, guest = linear >> x86.PAGE_SHIFT, gpa >> x86.PAGE_SHIFT
        place = self._place(linear, guest)
        first, second = self._places(linear)
        if first.kind and first.place != place:
            second.place, second.kind = first.place, first.kind
        first.place, first.kind = place, kind
        self._compiled[page] = guest
        self._guard(page)

    def _place(self, linear: int, guest: int) -> int:
        """Return what a site's `place` is, in a guest page."""
        page = guest if self._control[abi.SHADOW_PDES] else 0
        return linear | page << abi.SITE_PAGE

    def _places(self, linear: int) -> tuple[abi.Site, abi.Site]:
        """Return the two places where compiled code looks for a site, in that order."""
        index = site_index(linear)
        return self._shared.sites[index], self._shared.sites[index ^ 1]

    def guard(self, page: int) -> None:
        """Leave INVLPG of this linear page to Python: something hangs on it."""
        self._guarded.add(page)
        self._guard(page)

    def _guard(self, page: int) -> None:
        low = page & (64 * abi.GUARDED_WORDS - 1)
        at = abi.GUARDED + (low >> 6)
        bits = (self._control[at] | 1 << (low & 63)) & _MASK64
        # The control block's words are signed.
        self._control[at] = bits - (bits >> 63 << 64)

    def invalidate(self, gva: int) -> None:
        """INVLPG: a page with compiled sites may be another one now."""
        if gva >> x86.PAGE_SHIFT in self._compiled:
            self.drop_compiled()

    def _switch(self) -> None:
        """MOV to CR3: where sites do not tell their page, it may be another one now."""
        if not self._control[abi.SHADOW_PDES]:
            self.drop_compiled()

    def drop_derived(self) -> None:
        """Forget every site, and which pages something hangs on."""
        self._sites.clear()
        self._guarded.clear()
        self._take_back()

    def drop_compiled(self) -> None:
        """Take every site back from the compiled hook."""
        if self._compiled:
            self._take_back()

    def _take_back(self) -> None:
        self._compiled.clear()
        end = abi.GUARDED + abi.GUARDED_WORDS
        self._control[abi.GUARDED : end] = _NO_GUARDS
        for page in self._guarded:
            self._guard(page)
        sites = self._shared.sites
        ctypes.memset(sites, 0, ctypes.sizeof(sites))
