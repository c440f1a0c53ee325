"""Where a data segment register may be used while it is null, which is #GP(0).

Null selectors are loaded without a trap, and FS and GS are null for most programs and
kernels. So a block that uses FS or GS is *guarded*: it looks at the register as it
begins (`cpu.prologue`). So is what runs behind a load of DS or ES, which ends its
block. What cannot be guarded so is patched: a register that is loaded in the block that
uses it; all such uses on an engine that is stepped, and in a block that the engine has
translated in an unknown way.
"""

import itertools
import re
from collections.abc import Iterable
from typing import Final

from emu86.cpu.state import ATTRIBUTES
from emu86.rings.decode import Insn
from emu86.rings.events.accesses import XLAT
from emu86.rings.events.protection import segments
from emu86.rings.insn.segment_loads import loaded_by
from emu86.spec import x86
from emu86.spec.opcodes import ESCAPE, OPCODES, PREFIXES, TWO_BYTES

_FS_GS: Final = (x86.FS, x86.GS)
_DS_ES: Final = (x86.DS, x86.ES)
# Where in the CPU's state a byte has a segment register's P bit as its bit 7.
_PRESENT: Final = tuple(4 * index + 1 for index in ATTRIBUTES)
_MOV: Final = range(0xB8, 0xC0)  # of an immediate
_MOV_SREG: Final = 0x8E
_MOST: Final = 1 << 16  # places that are kept


def byte_class(values: Iterable[int]) -> bytes:
    """Return a regular expression for one byte out of `values`.

    By ranges: what takes time is to compile an expression, and that goes by its length.
    """
    chosen = set(values)
    starts = sorted(value for value in chosen if value - 1 not in chosen)
    ends = sorted(value for value in chosen if value + 1 not in chosen)
    ranges = (
        b"\\x%02x-\\x%02x" % edges if edges[0] < edges[1] else b"\\x%02x" % edges[0]
        for edges in zip(starts, ends, strict=True)
    )
    return b"[" + b"".join(ranges) + b"]"


def _filter() -> re.Pattern[bytes]:
    """Return a pattern of all blocks that use FS or GS."""
    one: set[int] = set()
    two: set[int] = set()
    alone: set[int] = set()
    for opcode, group in OPCODES.items():
        if group[0].rm and any(member.memory for member in group):
            (two if opcode >= TWO_BYTES else one).add(opcode & 0xFF)
        elif group[0].source or group[0].immediate == "o" or opcode == XLAT:
            alone.add(opcode)
    memory = byte_class(set(range(0xC0)))  # ModRM
    uses = (
        byte_class(one) + memory,
        bytes([ESCAPE]) + byte_class(two) + memory,
        byte_class(alone),
    )
    prefixes = b"[\x64\x65]" + byte_class(PREFIXES) + b"*"
    return re.compile(prefixes + b"(?:" + b"|".join(uses) + b")", re.DOTALL)


_may_use: Final = _filter().search


def _loads() -> re.Pattern[bytes]:
    """Return a pattern of all blocks that end in a load of DS or ES.

    ModRM says how many bytes follow it, with 32-bit addresses and with 16-bit ones: an
    ADD ESP before a RET holds the opcode of LES.
    """
    memory: dict[bytes, set[int]] = {}  # ModRM bytes by what follows them
    for mod, rm in itertools.product(range(3), range(8)):
        bare = 4 if (mod, rm) == (0, 5) else (0, 1, 4)[mod]
        tails = {bare + 1, 5 if mod == 0 else bare + 1} if rm == 4 else {bare}
        tails.add(2 if (mod, rm) == (0, 6) else mod)
        expression = b"|".join(b".{%d}" % tail for tail in sorted(tails))
        memory.setdefault(expression, set()).add(mod << 6 | rm)

    def operands(regs: Iterable[int]) -> bytes:
        return b"|".join(
            byte_class(form | reg << 3 for form in forms for reg in regs)
            + b"(?:" + tail + b")"
            for tail, forms in memory.items()
        )  # fmt: skip

    registers = byte_class(0xC0 | reg << 3 | rm for reg in _DS_ES for rm in range(8))
    loads = (
        b"\x8e(?:" + registers + b"|" + operands(_DS_ES) + b")",
        b"[\x07\x1f]",
        b"[\xc4\xc5](?:" + operands(range(8)) + b")",
    )
    return re.compile(b"(?:" + b"|".join(loads) + b")\\Z", re.DOTALL)


_LOADS: Final = _loads().search
_LONGEST: Final = 7  # bytes of a load from its opcode on


def may_matter(code: bytes) -> bool:
    """Tell of all blocks that use FS or GS, or end in a load of DS or ES.

    And of some others.
    """
    return bool(_may_use(code) or _LOADS(code[-_LONGEST:]))


class NullSelectors:
    """What a scanner knows of them; patches: it cannot guard. Derived."""

    def __init__(self, *, patches: bool) -> None:
        self._patches = patches
        # Linear addresses behind loads of DS and ES, and which register it was.
        self._behind: dict[int, int] = {}
        # Linear addresses of blocks that the engine cannot guard.
        self.unguarded: set[int] = set()
        self._patching = patches  # the block under way
        self._guarded = -1  # of the block under way
        self._armed = 0
        self._loaded = self._known = 0  # registers loaded in it, as bits; and not null
        self._constant = -1, 0  # a register that has just been given a number

    def begin(self, linear: int, armed: int) -> None:
        """Begin a block; armed: registers that are looked at anyhow, as bits."""
        self._patching = self._patches or linear in self.unguarded
        self._guarded = self._behind.get(linear, -1)
        if armed >> max(self._guarded, 0) & 1:
            self._guarded = -1
        self._armed = armed
        self._loaded = self._known = 0
        self._constant = -1, 0

    def is_behind_load(self, linear: int) -> bool:
        """Tell whether DS or ES has been loaded just before this address."""
        return linear in self._behind

    def is_site(self, insn: Insn, *, first: bool, last: bool) -> bool:
        """Take the next instruction of the block; tell whether it must be patched."""
        if first and self._patching and self._guarded >= 0:
            return True
        index = insn.segment  # only a prefix makes it FS or GS
        bit = 1 << index
        if index in _FS_GS and index in segments(insn):
            if self._loaded & bit:
                return True
            if not (self._armed | self._known) & bit:
                if self._patching or self._guarded not in (-1, index):
                    return True
                self._guarded = index
        index = loaded_by(insn)
        if index in _DS_ES and not last:
            return True  # the block does not end behind it: 16-bit code
        if index in _FS_GS:
            name, value = self._constant
            known = insn.opcode == _MOV_SREG and not insn.memory and insn.rm == name
            if known and value & 0xFFFC:
                self._known |= 1 << index
                self._loaded &= ~(1 << index)
            else:
                self._loaded |= 1 << index
                self._known &= ~(1 << index)
        elif insn.opcode in _MOV:
            self._constant = insn.opcode & 7, insn.immediate
        elif index < 0:
            self._constant = -1, 0
        return False

    def loads(self, insn: Insn, after: int) -> bool:
        """Take the last instruction of a block, before `after`; tell of news.

        The block there must be scanned anew.
        """
        index = loaded_by(insn)
        if index not in _DS_ES or self._behind.get(after) == index:
            return False
        self._behind[after] = index
        return True

    @property
    def is_full(self) -> bool:
        """Whether too many places are kept: `drop_derived`, and scan all code anew."""
        return len(self._behind) + len(self.unguarded) > _MOST

    @property
    def guard(self) -> int:
        """What the block is to look at as it begins: see `Prologues.shorten`."""
        if self._guarded < 0 or self._patching:
            return 0
        return _PRESENT[self._guarded]

    def drop_derived(self) -> None:
        """Forget all places behind loads: no code is translated."""
        self._behind.clear()
        self.unguarded.clear()
