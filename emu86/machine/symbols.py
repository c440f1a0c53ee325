"""Symbols: which function of the guest an address is in.

Sources: the System V ABI, "Symbol Table", and the Tool Interface Standard ELF
Specification 1.2; nm(1) for the letters of System.map and /proc/kallsyms; Linux's
scripts/kallsyms.c and kernel/kallsyms.c for what a kernel has in its memory.
"""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import le
from os import PathLike
from typing import Final, NamedTuple

from emu86.errors import ConfigError
from emu86.machine import boot
from emu86.machine.boot import elf
from emu86.spec import x86

_LINE: Final = re.compile(rb"^([0-9a-fA-F]{8,16}) ([A-Za-z]) (\S+)", re.MULTILINE)
_CODE: Final = "tTwW"
_ABSOLUTE: Final = "aA"
# By whether the file is one of 64 bits.
_SECTIONS_AT: Final = ("<I", 32), ("<Q", 40)
_SECTION_COUNT_AT: Final = 46, 58
_SECTION: Final = struct.Struct("<10I"), struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IIIBBH"), struct.Struct("<IBBHQQ")
_CLASS_64: Final = 2
_SYMTAB: Final = 2  # sh_type
_EXECINSTR: Final = 4  # sh_flags
_NOTYPE, _OBJECT, _FUNC = 0, 1, 2  # the type of a symbol, in st_info
_GLOBAL: Final = 0x10  # and from here on: others know its name


class Symbol(NamedTuple):
    """A symbol: its address, its bytes (0: up to the next one), is it code, its name.

    What is no code ends the code before it.
    """

    address: int
    size: int
    is_code: bool
    name: str


class Symbols:
    """The symbols of one file or one kernel."""

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        # Of several at one address the first is taken, and code before all else.
        known: dict[int, Symbol] = {}
        for symbol in symbols:
            before = known.get(symbol.address)
            if before is None or (symbol.is_code and not before.is_code):
                known[symbol.address] = symbol
        self._symbols = [known[address] for address in sorted(known)]
        self._addresses = [symbol.address for symbol in self._symbols]
        self.has_code = any(symbol.is_code for symbol in self._symbols)

    def name(self, address: int) -> str:
        """Return the name of the function at a linear address; "" if none is known."""
        found = self.function(address)
        return "" if found is None else found.name

    def function(self, address: int) -> Symbol | None:
        """Return the function at a linear address; None if none is known."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        symbol = self._symbols[index]
        if symbol.size:
            end = symbol.address + symbol.size
        elif index + 1 < len(self._symbols):
            end = self._addresses[index + 1]
        else:
            end = (symbol.address | x86.PAGE_SIZE - 1) + 1  # for want of a better one
        return symbol if symbol.is_code and address < end else None


class Names:
    """What names the functions of a guest: files, and what a Linux has in its memory.

    ram: the guest's. Of several that know an address the first is taken.
    """

    def __init__(self, ram: memoryview, known: Iterable[Symbols] = ()) -> None:
        self._ram = ram
        self._known = list(known)
        self._linux: Symbols | None = None
        self._misses, self._look_at = 0, 1  # of addresses of kernels

    @property
    def known(self) -> list[Symbols]:
        """All that is known, with what the memory has if it is a Linux's by now."""
        if self._linux is None:
            self._linux = of_linux(self._ram)
        return [*self._known, *([] if self._linux is None else [self._linux])]

    def place(self, address: int, *, kernel: bool = True) -> str:
        """Return `name+1fh` for a linear address, "" if nothing names it.

        kernel: it is code of ring 0. A Linux is looked for when one runs where it does,
        in the upper half, and seldom again if there is none.
        """
        known = [*self._known, *([] if self._linux is None else [self._linux])]
        for symbols in known:
            found = symbols.function(address)
            if found is not None:
                text = "".join(c if c.isprintable() else "?" for c in found.name)
                away = address - found.address
                return f"{text}+{away:X}h" if away else text
        if kernel and address >> 31 and self._linux is None:
            self._misses += 1
            if self._misses >= self._look_at:
                self._look_at = 4 * self._misses
                self._linux = of_linux(self._ram)
                if self._linux is not None:
                    return self.place(address)
        return ""


def read(source: bytes | bytearray | str | PathLike[str]) -> Symbols:
    """Read an ELF file, a System.map, or what /proc/kallsyms says, in a log or alone.

    source: a path, or the file's bytes. Raises ConfigError, one clear line, for a file
    that cannot be read or names no code.
    """
    data = boot.read("symbols", source)
    try:
        symbols = _of_elf(data) if elf.is_elf(data) else _of_text(data)
    except ConfigError as error:
        raise boot.name(error, symbols=source) from None
    return symbols


def _of_text(data: bytes) -> Symbols:
    lines = [
        (int(address, 16), letter.decode(), name.decode("utf-8", "replace"))
        for address, letter, name in _LINE.findall(data)
    ]
    if not lines:
        raise ConfigError("symbols: neither an ELF file nor lines as System.map has")
    if not any(address for address, _, _ in lines):
        message = "symbols: all its addresses are 0: have root read /proc/kallsyms"
        raise ConfigError(message)
    found = Symbols(
        Symbol(address, 0, letter in _CODE, name)
        for address, letter, name in lines
        if letter not in _ABSOLUTE
    )
    if not found.has_code:
        first = data.partition(b"\n")[0].decode("utf-8", "replace").strip()
        raise ConfigError(f"symbols: no code is named in it: {first!r:.120}")
    return found


def _of_elf(data: bytes) -> Symbols:
    if data[4:6] not in (b"\1\1", b"\2\1"):
        raise ConfigError("symbols: this ELF file is not of an x86")
    try:
        found = Symbols(_elf_symbols(data))
    except (struct.error, IndexError, OverflowError, ValueError):
        raise ConfigError("symbols: truncated or damaged: an ELF file") from None
    if not found.has_code:
        raise ConfigError("symbols: this ELF file is stripped: it names no code")
    return found


def _elf_symbols(data: bytes) -> Iterator[Symbol]:
    """Read the symbol tables of an ELF file; ValueError and others: it is damaged."""
    wide = data[4] == _CLASS_64
    start, size, count = (
        *struct.unpack_from(_SECTIONS_AT[wide][0], data, _SECTIONS_AT[wide][1]),
        *struct.unpack_from("<HH", data, _SECTION_COUNT_AT[wide]),
    )
    header = _SECTION[wide]
    sections = [header.unpack_from(data, start + i * size) for i in range(count)]
    for section in sections:
        if section[1] != _SYMTAB:
            continue
        at, length, link = section[4:7]
        names = sections[link][4]
        rows = _SYMBOL[wide].iter_unpack(data[at : at + length])
        # At one address a name that others know is taken before a local label.
        for row in sorted(rows, key=lambda row: row[1 if wide else 3] < _GLOBAL):
            if wide:
                name, info, _, home, address, length = row
            else:
                name, address, length, info, _, home = row
            kind = info & 0xF
            if not name or home == 0 or kind not in (_NOTYPE, _OBJECT, _FUNC):
                continue
            if home < count:  # not absolute
                runs = bool(sections[home][2] & _EXECINSTR)
                text = data[names + name : data.index(b"\0", names + name)]
                is_code = runs and kind != _OBJECT
                yield Symbol(address, length, is_code, text.decode("utf-8", "replace"))


def ours(data: bytes) -> Symbols | None:
    """Return the symbols that a kernel's own file has, if it is ELF and has some."""
    try:
        return _of_elf(data) if elf.is_elf(data) else None
    except ConfigError:
        return None


# -- in the memory of a Linux ----------------------------------------------------------

_TOKENS: Final = 256
_ZERO: Final = ord("0")
# The one-character tokens "0" to "9" are in every kernel, at the place of their code.
_DIGITS: Final = b"".join(bytes((code, 0)) for code in b"0123456789")
_FEWEST: Final = 1000  # symbols of a kernel
_SHORT, _LONG = 4, 64  # bytes that names and markers have for each, on average
_PER_MARKER: Final = 256
_OF_32_BITS: Final = 4  # bytes of a word
_PIECE: Final = 1 << 22
_REACH: Final = 1 << 23  # from the token table to the ends of the others
_LOW_MEMORY: Final = 1 << 30  # where a Linux is, but for one that KASLR has moved up


def of_linux(ram: memoryview) -> Symbols | None:
    """Return the symbols that a Linux has in its memory, for /proc/kallsyms.

    It is of 32 or 64 bits. They are those of the kernel, without modules, at the
    addresses that it runs at; CONFIG_KALLSYMS_BASE_RELATIVE, as since Linux 4.6. None:
    there are none.
    """
    for piece in range(0, min(len(ram), _LOW_MEMORY), _PIECE):
        text = bytes(ram[piece : piece + _PIECE + len(_DIGITS)])
        at = text.find(_DIGITS)
        while at >= 0:
            first = max(piece + at - _REACH, 0) & ~7
            data = bytes(ram[first : piece + at + _REACH])
            for width in (4, 8):
                try:
                    found = _kallsyms(data, piece + at - first, width)
                except (IndexError, struct.error):  # cut short: they are none
                    continue
                if found is not None:
                    return found
            at = text.find(_DIGITS, at + 1)
    return None


def _kallsyms(data: bytes, digits: int, width: int) -> Symbols | None:
    """Read the tables around the token table that may have "0" to "9" at `digits`.

    width: bytes of the kernel's words, to which all is aligned.
    """
    end = digits
    for _ in range(_ZERO, _TOKENS):
        end = data.find(b"\0", end) + 1
    index = _align(end, width)
    places = struct.unpack_from(f"<{_TOKENS}H", data, index)
    start = digits - places[_ZERO]
    tokens = data[max(start, 0) : end].split(b"\0")[:-1]
    told = [0, *accumulate(len(token) + 1 for token in tokens)]
    if start % width or start < 0 or told != [*places, end - start]:
        return None
    letters = {code for code, token in enumerate(tokens) if token[:1].isalpha()}
    words = memoryview(data[:start]).cast("I")
    for at in range(len(words) - 1, -1, -1):
        count = words[at]
        room = start - 4 * at
        if count >= _FEWEST and _SHORT * count < room < _LONG * count:
            names = _names(data, 4 * at + width, count, letters, width)
            ends = 4 * at, index + 2 * _TOKENS
            addresses = _addresses(data, *ends, count, width) if names else None
            if names and addresses:
                texts = (
                    b"".join([tokens[code] for code in name]).decode("utf-8", "replace")
                    for name in names
                )
                return Symbols(
                    Symbol(address, 0, text[0] in _CODE, text[1:])
                    for address, text in zip(addresses, texts, strict=True)
                    if text[0] not in _ABSOLUTE
                )
    return None


def _names(
    data: bytes, start: int, count: int, letters: set[int], width: int
) -> list[bytes] | None:
    """Return the names of `count` symbols, in tokens; None: they are none.

    Each begins with one of `letters`. Behind them is a table of where each 256th
    begins, which must fit.
    """
    at, markers, names = start, [], []
    for number in range(count):
        if not number % _PER_MARKER:
            markers.append(at - start)
        length, at = data[at], at + 1
        if length > 0x7F:
            length, at = length & 0x7F | data[at] << 7, at + 1
        if not length or data[at] not in letters:
            return None
        names.append(data[at : at + length])
        at += length
    at = _align(at, width)
    if data[at : at + 4 * len(markers)] != struct.pack(f"<{len(markers)}I", *markers):
        return None
    return names


def _addresses(
    data: bytes, before: int, after: int, count: int, width: int
) -> list[int] | None:
    """Return the addresses of `count` symbols, upwards; None: they are not there.

    Offsets and what they are relative to end at `before`, or begin at `after` as since
    Linux 6.4. Where some offsets are negative (CONFIG_KALLSYMS_ABSOLUTE_PERCPU) the
    others are addresses themselves.
    """
    size = _align(4 * count, width)
    word = "I" if width == _OF_32_BITS else "Q"
    mask = (1 << 8 * width) - 1
    for at in (before - width - size, after):
        if at < 0 or at + size + width > len(data):
            continue
        offsets = struct.unpack_from(f"<{count}i", data, at)
        (base,) = struct.unpack_from(f"<{word}", data, at + size)
        if width > _OF_32_BITS and min(offsets) < 0:
            found = [base - 1 - o & mask if o < 0 else o for o in offsets]
        else:
            found = [base + (o & x86.MASK32) & mask for o in offsets]
        if base and found[0] < found[-1] and all(map(le, found, found[1:])):
            return found
    return None


def _align(at: int, width: int) -> int:
    return at + -at % width
