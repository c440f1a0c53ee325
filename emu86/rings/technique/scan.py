"""Find the sensitive instructions of a block before it first runs, and patch them.

The engine tells of every block that it has just translated. If the block holds an
instruction that must not run natively, its first byte becomes INT3 in RAM for exactly
as long as it takes to translate the block once more; then the byte is put back. So the
patch lives in the translation alone: a guest that reads or rewrites its code sees its
own bytes. The INT3's exit decodes what stands in RAM.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Final

from emu86.cpu.engine import Engine
from emu86.cpu.state import HFLAGS
from emu86.mmu.shadow import ShadowMmu
from emu86.rings.cpu import Cpu
from emu86.rings.decode import decode
from emu86.rings.insn import flag_states
from emu86.rings.insn.record import Record
from emu86.rings.insn.table import GROUP7, GROUP9, RECORDS, find, of_later_cpus
from emu86.spec import x86

INT3: Final = 0xCC
# LES and LDS with a register operand are VEX prefixes to the engine.
_VEX: Final = (0xC4, 0xC5)
_PREFIXES: Final = rb"[\x26\x2e\x36\x3e\x64-\x67\xf2\xf3]*"
_TWO_BYTES: Final = 0x0F00
# In virtual-8086 mode the engine's PUSHFD shows VM.
_PUSHF: Final = 0x9C
_PUSHFD: Final = rb"\x66" + _PREFIXES + rb"\x9c"
# What may follow the bytes of a pattern to the end of the block.
_END_BLOCKS: Final = {
    "POPF": b"", "IRET": b"", "INT1": b"", "POP SS": b"", "MOV to SS": b".{0,5}",
    "LOOPE/LOOPNE": b".",
    "LSS": b".{1,6}", "JMP far": b".{4,6}", "CALL far": b".{4,6}",
    "JMP far, indirect": b".{0,5}", "CALL far, indirect": b".{0,5}",
    "RET far": b"(?:..)?",
}  # fmt: skip
# With IOPL raised POPF and the kernel's IRET run natively.
_NATIVE_WITH_IOPL: Final = ("POPF", "IRET")


def _class(values: Iterable[int]) -> bytes:
    """Return a regular expression for one byte out of `values`."""
    return b"[" + b"".join(re.escape(bytes([value])) for value in values) + b"]"


def _modrm(record: Record) -> bytes:
    """Return an expression for the ModRM bytes of a record, if they tell it."""
    if record.reg < 0 and not record.memory:
        return b""
    regs = range(8) if record.reg < 0 else (record.reg,)
    return _class(
        mod << 6 | reg << 3 | rm
        for mod in range(3 if record.memory else 4)
        for reg in regs
        for rm in range(8)
    )


def _code(opcode: int) -> bytes:
    return opcode.to_bytes(2 if opcode >= _TWO_BYTES else 1, "big")


@cache
def _prefilter(ring: int, skip: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return a pattern that every block with a site to patch at `ring` matches.

    The engine ends a block after an instruction that may change CS, SS or EFLAGS, so
    those are looked for at the end of a block only: their opcodes are common bytes.
    """
    registers = _class(range(0xC0, 0x100))
    parts = {_code(GROUP7) + registers, _class(_VEX) + registers}
    parts.add(_code(GROUP9) + _class(range(0xF0, 0x100)))
    if ring == x86.CPL_USER:
        parts.add(_PUSHFD)
    for record in RECORDS:
        codes = [re.escape(_code(opcode)) for opcode in record.opcodes]
        more = _modrm(record)
        if not record.lock:
            # With a LOCK prefix it is #UD, and the engine runs many all the same.
            parts |= {rb"\xf0" + _PREFIXES + code + more for code in codes}
        if ring not in record.patched or record.mnemonic in skip:
            continue
        tail = _END_BLOCKS.get(record.mnemonic)
        end = b"" if tail is None else tail + b"\\Z"
        parts |= {code + more + end for code in codes}
    return re.compile(b"|".join(sorted(parts)), re.DOTALL)


class Scanner:
    """Scans and patches the blocks of one engine."""

    def __init__(
        self, engine: Engine, cpu: Cpu, mmu: ShadowMmu, *, iopl_raised: bool
    ) -> None:
        self._engine = engine
        self._cpu = cpu
        self._mmu = mmu
        self._ram = mmu.ram
        self.blocks = 0
        self.decoded = 0
        self.patched: Counter[str] = Counter()
        self.sites: dict[int, set[int]] = {}  # guest page -> GPAs of patched sites
        # A patched block waits to be translated and nothing may come between: the
        # site's GPA, the byte that stood there.
        self.pending: tuple[int, int] | None = None
        mmu.listeners.code_changed.append(self.forget)
        kernel_skip = _NATIVE_WITH_IOPL if iopl_raised else ()
        self._skip = {1: kernel_skip, 3: ()}
        self._filter = {1: _prefilter(1, kernel_skip), 3: _prefilter(3, ())}

    def on_block(self, linear: int, size: int) -> None:
        """Take a block that the engine has translated and not yet run."""
        if self.pending is not None:
            self.unpatch()
            return
        self.blocks += 1
        linear &= x86.MASK32
        cpu = self._cpu
        cpu.update_mode()
        # Where the guest's CPL is the engine's own, its rings 1 and 2 are as its users.
        ring = 3 if cpu.d[HFLAGS] & 3 == 3 or cpu.inner else 1
        code = self._mmu.fetch(linear, size)
        if self._engine.stepped:
            code = self._first(code)  # no more of the block will run
        if not self._filter[ring].search(code):
            return
        self.decoded += 1
        found = self._first_site(code, ring)
        if found is not None:
            self._patch(linear + found & x86.MASK32, linear, size)

    def _first(self, code: bytes) -> bytes:
        """Return the first instruction of a block."""
        insn = decode(code, self._cpu.code_bits)
        return code if insn is None else code[: insn.length]

    def _first_site(self, code: bytes, ring: int) -> int | None:
        """Return the offset of the first instruction to patch."""
        bits = self._cpu.code_bits
        virtual_8086 = self._cpu.is_virtual_8086
        skip = self._skip[ring]
        state = flag_states.CAME
        offset = 0
        end = len(code)
        while offset < end:
            insn = decode(code[offset : offset + x86.LONGEST_INSN], bits)
            if insn is None:
                break
            record = find(insn)
            if record is not None and insn.lock and not record.lock:
                self.patched["#UD"] += 1
                return offset
            if record is not None:
                wanted = ring in record.patched
                if virtual_8086 and insn.opcode == _PUSHF:
                    wanted = insn.size == 4
                if wanted and record.memory:
                    wanted = not flag_states.are_kept(insn, state)
                if wanted and record.mnemonic not in skip:
                    self.patched[record.mnemonic] += 1
                    return offset
            if of_later_cpus(insn) or (insn.opcode in _VEX and not insn.memory):
                self.patched["#UD"] += 1
                return offset
            state = flag_states.after(insn, state)
            offset += insn.length
        return None

    def _patch(self, site: int, linear: int, size: int) -> None:
        mmu, ram = self._mmu, self._ram
        gpa = mmu.fetch_gpa(site)
        if not ram.backed(gpa >> x86.PAGE_SHIFT):
            # All ones, then RAM: no INT3 can be put there.
            self._cpu.services.unsupported("a far jump out of what is no RAM")
            return
        self.sites.setdefault(gpa >> x86.PAGE_SHIFT, set()).add(gpa)
        start = mmu.fetch_gpa(linear)
        self.pending = gpa, ram.bytes[gpa]
        ram.bytes[gpa] = INT3
        self._engine.drop_code(start, min(size, x86.PAGE_SIZE - (start & 0xFFF)))
        self._engine.stop()

    def unpatch(self) -> None:
        """Put the guest's byte back, once the patched block has been translated."""
        if self.pending is not None:
            gpa, byte = self.pending
            self.pending = None
            self._ram.bytes[gpa] = byte

    def scan_again(self) -> None:
        """Scan all code anew: the guest enters or leaves its rings 1 and 2.

        Its rings 0 and 1 are one to the engine, which shares their translations.
        """
        for page in self._mmu.use.code_pages():
            self._engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)

    def is_patched(self, gpa: int) -> bool:
        """Tell whether an INT3 at `gpa` is the VMM's."""
        sites = self.sites.get(gpa >> x86.PAGE_SHIFT)
        return sites is not None and gpa in sites and self._ram.bytes[gpa] != INT3

    def forget(self, page: int) -> None:
        """Drop what was known of a guest page: its code is gone."""
        self.sites.pop(page, None)
