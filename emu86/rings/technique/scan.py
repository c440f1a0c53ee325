"""Find the sensitive instructions of a block before it first runs, and patch them.

The engine tells of every block that it has just translated. If the block holds an
instruction that must not run natively, its first byte becomes INT3 in RAM for exactly
as long as it takes to translate the block once more; then the byte is put back. So the
patch lives in the translation alone: a guest that reads or rewrites its code sees its
own bytes. The INT3's exit decodes what stands in RAM.
"""

import ctypes
import re
from collections import Counter
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.engine import Engine, Looks
from emu86.cpu.state import BASE, HFLAGS, RFLAGS
from emu86.mmu.shadow import ShadowMmu
from emu86.native import abi
from emu86.native.scan import PYTHON, load_slot
from emu86.rings.debug import Debug
from emu86.rings.decode import Insn, decode
from emu86.rings.events.protection import checks_alignment, segments, stores_to_code
from emu86.rings.insn import flag_states, sse_operands
from emu86.rings.insn.code64 import is_narrowed
from emu86.rings.insn.segment_loads import is_wide_pointer, loaded_by, loads_ss
from emu86.rings.insn.table import find, needs
from emu86.rings.technique.null_selectors import NullSelectors, may_matter
from emu86.rings.technique.prefilter import (
    LOADS_SS,
    LOOKED_AT,
    NATIVE_IN_REAL_MODE,
    REAL,
    opcode_table,
    prefilter,
)
from emu86.rings.technique.shadow_segments import ShadowCpu
from emu86.spec import x86

INT3: Final = 0xCC
# In virtual-8086 mode the engine's PUSHFD shows VM.
_MOV_CR: Final = range(0x0F20, 0x0F24)  # and DR
_PUSHF: Final = 0x9C
_STI: Final = 0xFB
_CS_PREFIX: Final = 0x2E
# With IOPL raised POPF and the kernel's IRET run natively.
_NATIVE_WITH_IOPL: Final = ("POPF", "IRET")
_MANY: Final = 1024  # blocks of a page whose operands are looked at


class Scanner:
    """Scans and patches the blocks of one engine.

    scans: for all that is sensitive. If not, 64-bit code is scanned for loads of SS and
    for nothing else: null is no fault there, but at CPL 3, and the engine's CPL is 0
    then.
    """

    def __init__(
        self,
        engine: Engine,
        cpu: ShadowCpu,
        mmu: ShadowMmu,
        debug: Debug,
        *,
        scans: bool,
        iopl_raised: bool,
    ) -> None:
        self._engine = engine
        self._cpu = cpu
        self._mmu = mmu
        self._ram = mmu.ram
        self._debug = debug
        self.passed: list[int] = []  # GPAs of blocks whose breakpoints a step ignores
        self.blocks = 0
        self.decoded = 0
        self.patched: Counter[str] = Counter()
        self.sites: dict[int, set[int]] = {}  # guest page -> GPAs of patched sites
        # Guest page -> what the translations of its blocks refer to, by what it says.
        self._looks: dict[int, dict[tuple[tuple[int, int], ...], Looks]] = {}
        # A patched block waits to be translated and nothing may come between: the
        # site's GPA, the byte that stood there.
        self.pending: tuple[int, int] | None = None
        self._watches_null = engine.can.inline or engine.stepped
        self.null = NullSelectors(patches=engine.stepped)
        self._guard = 0  # of the block under way
        self.saw_ac = False  # some block of a user's has been scanned with AC
        mmu.listeners.code_changed.append(self.forget)
        mmu.listeners.ring_changed.append(self.scan_again)
        mmu.listeners.checks_changed.append(self.scan_again)
        kernel_skip = _NATIVE_WITH_IOPL if iopl_raised else ()
        self._skip = {REAL: NATIVE_IN_REAL_MODE, 1: kernel_skip, 3: ()}
        # The engine's IRETQ looks at no RIP.
        self._skip64 = {1: kernel_skip[:1], 3: ()}
        shared = engine.shared
        self._scans = scans
        shared.scans = self._has_table = scans and engine.can.inline
        self._opcodes64 = abi.Opcodes()
        shared.opcodes64 = ctypes.addressof(self._opcodes64)
        self._filters: dict[int, re.Pattern[bytes]] = {}  # made for rings that run code
        self.look_up(cpu.vcpu.model.lacks)

    def look_up(self, lacks: int) -> None:
        """Learn what to look for where the CPU model `lacks` these features."""
        self._lacks = lacks
        self._filters.clear()
        if self._has_table:
            self._engine.shared.opcodes[:] = opcode_table(32, self._skip, lacks)
            self._opcodes64[:] = opcode_table(64, self._skip64, lacks)  # type: ignore[assignment]

    def on_block(self, linear: int, size: int) -> int:
        """Take a block that the engine has translated and not yet run.

        Returns what it must look at as it begins: `Prologues.shorten`'s `guard`.
        """
        if self.pending is not None:
            self.unpatch()
            return self._guard
        self._guard = 0
        cpu = self._cpu
        code64 = bool(cpu.d[HFLAGS] & offsets.HF_CS64)
        breaks = self._debug.breaks and self._may_break(linear, size)
        if not (self._scans or code64 or breaks):
            return 0
        self.blocks += 1
        if self._has_table and self._engine.shared.judged != PYTHON:
            self._guard = self._engine.shared.judged
            return self._guard
        address = linear
        if not code64:
            linear &= x86.MASK32
        # Where the guest's CPL is the engine's own, its rings 1 and 2 are as its users.
        ring = 3 if cpu.d[HFLAGS] & 3 == 3 or cpu.inner else 1
        code = self._mmu.fetch(linear, size)
        if self._engine.stepped:
            cpu.update_mode()
            code = self._first(code)  # no more of the block will run
        if breaks:
            has_site = True
            has_operand = not code64 and self._engine.can.looks
        elif code64:
            has_site = self._scans or bool(LOADS_SS.search(code))
            has_operand = False
        else:
            # What compiled code has not judged by itself has to be decoded.
            has_site = bool(
                self._has_table
                or (self._filters.get(ring) or self._filter(ring)).search(code)
                or (self._watches_null and self._may_use_null(code, linear))
                or self._is_armed(ring)
                or self._is_aligned()
            )
            has_operand = self._engine.can.looks and bool(LOOKED_AT.search(code))
        if not has_site and not has_operand:
            return 0
        cpu.update_mode()
        found = None
        if has_site:
            self.decoded += 1
            found = self._first_site(code, ring, linear, breaks=breaks)
        looks = self._to_look_at(address, code[:found]) if has_operand else ()
        if looks:
            self._look_at(looks, linear)
            gpa = self._mmu.fetch_gpa(looks[0][0] & x86.MASK32)
            self.pending = gpa, self._ram.bytes[gpa]  # as it is
        if found is not None:
            self._patch(linear + found & cpu.address_mask)
        self._translate_again(linear)
        return self._guard

    def on_real_block(self, linear: int, size: int) -> None:
        """Take a block of real mode, which has no segments to be looked at."""
        if self.pending is not None:
            self.unpatch()
            return
        if not (self._scans or self._debug.breaks):
            return
        self.blocks += 1
        linear &= x86.MASK32
        code = self._mmu.fetch(linear, size)
        breaks = self._debug.breaks and self._may_break(linear, size)
        if not (breaks or (self._filters.get(REAL) or self._filter(REAL)).search(code)):
            return
        self._cpu.update_mode()
        self.decoded += 1
        found = self._first_site(code, REAL, linear, breaks=breaks)
        if found is not None:
            self._patch(linear + found & x86.MASK32)
            self._translate_again(linear)

    def _translate_again(self, linear: int) -> None:
        """Drop a block that has been patched, and stop before it runs."""
        if self.pending is not None:
            # By its first byte: others that lead to the same site stay as they are.
            self._engine.drop_code(self._mmu.fetch_gpa(linear), 1)
            self._engine.stop()

    def _filter(self, ring: int) -> re.Pattern[bytes]:
        made = prefilter(ring, self._skip[ring], self._lacks)
        self._filters[ring] = made
        return made

    def _may_use_null(self, code: bytes, linear: int) -> bool:
        if not self._cpu.d[HFLAGS] & offsets.HF_CS32:
            return True
        return may_matter(code) or self.null.is_behind_load(linear)

    def _first(self, code: bytes) -> bytes:
        """Return the first instruction of a block."""
        insn = decode(code, self._cpu.code_bits)
        return code if insn is None else code[: insn.length]

    def _is_armed(self, ring: int) -> bool:
        """Tell whether any access may have to be looked at."""
        return bool(self._cpu.checks.armed[ring] or self.null.unguarded)

    def _is_aligned(self) -> bool:
        """Tell whether alignment is checked; the engine tells such blocks apart."""
        if not self._cpu.q[RFLAGS] & x86.AC:
            return False
        self._cpu.update_mode()
        if self._cpu.cpl == x86.CPL_USER:
            self.saw_ac = True
        return checks_alignment(self._cpu)

    def _looks_at(self, insn: Insn, linear: int, ring: int, *, aligned: bool) -> bool:
        """Tell whether an instruction must be looked at before it runs."""
        cpu = self._cpu
        if aligned and any(True for _ in segments(insn)):
            return True
        if cpu.is_virtual_8086:
            return False  # no segment is looked at, and MOV SS must run natively
        shadows = loads_ss(insn) or insn.opcode == _STI  # would hide the next one
        if cpu.code_bits == 64:
            return aligned and shadows
        if shadows and (aligned or self._is_armed(ring)):
            return True
        eip = linear - cpu.q[BASE[x86.CS]] & x86.MASK32
        return stores_to_code(insn) or cpu.checks.wants(insn, eip, ring)

    def _may_break(self, linear: int, size: int) -> bool:
        """Tell whether a debugger may have a breakpoint in a block; a step has none."""
        found = self._debug.may_break(linear, size)
        if found and self._debug.stepping:
            self.passed.append(self._mmu.fetch_gpa(linear))
            return False
        return found

    def end_step(self) -> None:
        """Drop blocks without the breakpoints that there are."""
        for gpa in self.passed:
            self._engine.drop_code(gpa, 1)
        self.passed.clear()

    def _first_site(
        self, code: bytes, ring: int, linear: int, *, breaks: bool
    ) -> int | None:
        """Return the offset of the first instruction to patch at ring 1, 3 or REAL.

        breaks: or of one that a debugger has a breakpoint at.
        """
        bits = self._cpu.code_bits
        virtual_8086 = self._cpu.is_virtual_8086
        skips = self._skip64 if bits == 64 else self._skip
        skip, lacks = skips[ring], self._lacks
        state = flag_states.CAME
        checks = aligned = self._is_aligned()
        offset = 0
        end = len(code)
        null = None
        opens = bits == 64 and self._cpu.d[HFLAGS] & offsets.HF_CPL != x86.CPL_USER
        if bits != 64 and ring != REAL:  # they have no segments to be looked at
            checks = aligned or self._is_armed(ring) or _CS_PREFIX in code
            null = self.null if self._watches_null and not virtual_8086 else None
        if null:
            null.begin(linear, self._cpu.checks.armed[ring])
            self._guard = null.guard
        while offset < end:
            at = linear + offset & self._cpu.address_mask
            if breaks and self._debug.is_break(at, self._mmu.fetch_gpa(at)):
                return offset
            insn = decode(code[offset : offset + x86.LONGEST_INSN], bits)
            if (
                insn is None and bits == 64
            ):  # to the engine a branch with 66h is shorter
                insn = decode(code[offset:] + bytes(4), bits)
                insn = insn if insn is not None and is_narrowed(insn) else None
            if insn is None:
                break
            record = find(insn)
            if record is not None and opens and loaded_by(insn) == x86.SS:
                self.patched[record.mnemonic] += 1
                return offset
            if not self._scans:
                offset += insn.length
                continue
            if record is not None and insn.lock and not insn.spec.lock:
                self.patched["#UD"] += 1
                return offset
            if record is not None:
                wanted = (ring or 1) in record.patched
                if virtual_8086 and insn.opcode == _PUSHF:
                    wanted = insn.size == 4
                wanted |= is_wide_pointer(insn)
                if wanted and record.memory:
                    wanted = not flag_states.are_kept(insn, state)
                if wanted and record.mnemonic not in skip:
                    self.patched[record.mnemonic] += 1
                    return offset
            # MOV of CR9 and its kind traps by itself.
            traps = insn.opcode in _MOV_CR and insn.reg > x86.EDI
            if needs(insn) & lacks and not traps:
                self.patched["#UD"] += 1
                return offset
            seen = offset == 0 and self._cpu.d[HFLAGS] & offsets.HF_INHIBIT_IRQ
            if (
                checks
                and not seen
                and self._looks_at(insn, linear + offset, ring, aligned=aligned)
            ):
                self.patched["segment access"] += 1
                return offset
            if null:
                last = offset + insn.length >= end
                # In a shadow it is guarded alone: `Deprivileged._null_used`.
                if null.is_site(insn, first=not offset, last=last) and not seen:
                    self.patched["segment access"] += 1
                    return offset
                self._guard = null.guard
                after = linear + end & x86.MASK32
                if last and null.loads(insn, after):
                    slot = load_slot(after)
                    self._engine.shared.behind_load[slot >> 6] |= 1 << (slot & 63)
                    self._scan_at(after)
            state = flag_states.after(insn, state)
            offset += insn.length
        return None

    def _patch(self, site: int) -> None:
        mmu, ram = self._mmu, self._ram
        gpa = mmu.fetch_gpa(site)
        if not ram.backed(gpa >> x86.PAGE_SHIFT):
            # All ones, then RAM: no INT3 can be put there.
            self._cpu.services.unsupported("a far jump out of what is no RAM")
            return
        self.sites.setdefault(gpa >> x86.PAGE_SHIFT, set()).add(gpa)
        self.pending = gpa, ram.bytes[gpa]
        self._engine.control[abi.PATCHED] = 1
        ram.bytes[gpa] = INT3

    def _to_look_at(self, address: int, code: bytes) -> tuple[tuple[int, int], ...]:
        """Return the instructions of a block to look at: addresses and words."""
        cpu = self._cpu
        if cpu.is_virtual_8086:
            return ()  # where the engine's hook loses VM
        found = []
        offset = 0
        while offset < len(code):
            insn = decode(code[offset : offset + x86.LONGEST_INSN], cpu.code_bits)
            if insn is None:
                break
            if sse_operands.is_looked_at(insn):
                found.append((address + offset, sse_operands.word(insn)))
            offset += insn.length
        return tuple(found)

    def _look_at(self, looks: tuple[tuple[int, int], ...], linear: int) -> None:
        """Have compiled code look at operands in the next translation of a block."""
        page = self._mmu.fetch_gpa(linear) >> x86.PAGE_SHIFT
        known = self._looks.setdefault(page, {})
        if len(known) >= _MANY:
            self._engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
            known.clear()
        known[looks] = self._engine.look_at(looks, known.get(looks))

    def unpatch(self) -> None:
        """Put the guest's byte back, once the patched block has been translated."""
        if self.pending is not None:
            gpa, byte = self.pending
            self.pending = None
            self._engine.control[abi.PATCHED] = 0
            self._ram.bytes[gpa] = byte
            self._engine.look_away()

    def on_unguarded(self, linear: int) -> None:
        """Patch what a block, just translated, cannot look at as it begins."""
        if self.pending is not None:
            return  # it is translated once more
        linear &= x86.MASK32
        if not self.null.unguarded:  # what shadows the next instruction is patched now
            for tell in self._mmu.listeners.checks_changed:
                tell()
        self._scan_at(linear)
        self.null.unguarded.add(linear)
        self._engine.shared.unguarded = 1
        d = self._cpu.d
        if d[HFLAGS] & offsets.HF_INHIBIT_IRQ and not d[self._guard // 4] & x86.DESC_P:
            self._engine.control[abi.NULL_USED] = 1  # there no site is patched
        self._engine.stop()

    def _scan_at(self, linear: int) -> None:
        """Scan a block anew, if there is one at an address."""
        if self.null.is_full:
            self._forget_null()
            self.scan_again()
        gpa = self._mmu.lookup(linear)
        if gpa is not None and self._ram.backed(gpa >> x86.PAGE_SHIFT):
            self._engine.drop_code(gpa, 1)

    def scan_at_offset(self, offset: int) -> None:
        """Scan anew the blocks that hold this byte of whatever page."""
        for page in self._mmu.use.code_pages():
            self._engine.drop_code(page << x86.PAGE_SHIFT | offset, 1)

    def scan_again(self) -> None:
        """Scan all code anew.

        The guest enters or leaves its rings 1 and 2: its rings 0 and 1 are one to the
        engine, which shares their translations. Or other accesses must be looked at.
        """
        for page in self._mmu.use.code_pages():
            self._engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)

    def is_patched(self, gpa: int) -> bool:
        """Tell whether an INT3 at `gpa` is the VMM's."""
        sites = self.sites.get(gpa >> x86.PAGE_SHIFT)
        return sites is not None and gpa in sites and self._ram.bytes[gpa] != INT3

    def drop_derived(self) -> None:
        """Forget all patches: no block is translated, nor does one wait to be."""
        self.sites.clear()
        self._looks.clear()
        self._forget_null()
        self.saw_ac = False

    def _forget_null(self) -> None:
        self.null.drop_derived()
        shared = self._engine.shared
        shared.unguarded = 0
        shared.behind_load[:] = [0] * len(shared.behind_load)

    def forget(self, page: int) -> None:
        """Drop what was known of a guest page: its code is gone."""
        self.sites.pop(page, None)
        self._looks.pop(page, None)
