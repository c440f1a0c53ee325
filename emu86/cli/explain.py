"""`emu86 explain`: what becomes of one instruction."""

import itertools
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import click

from emu86.cli.arguments import completion, words_of
from emu86.cli.terminal import put
from emu86.errors import ConfigError, unknown

if TYPE_CHECKING:
    from emu86.rings.insn.record import Record


def _names() -> tuple[str, ...]:
    from emu86.rings.insn.table import RECORDS  # noqa: PLC0415 - slow to import

    return tuple(record.mnemonic for record in RECORDS)


@click.command("explain", short_help="Tell what becomes of one instruction.")
@click.option(
    "--bits",
    type=click.Choice(["32", "64"]),
    default="32",
    help="Of the code (32); a 64-bit register in the text tells as much.",
)
@click.argument(
    "code",
    metavar="INSTRUCTION...",
    nargs=-1,
    required=True,
    shell_complete=completion(_names),
)
def command(code: tuple[str, ...], bits: str) -> None:
    """Explain one instruction, by its bytes or by its name.

    \b
    emu86 explain 0f 22 d8
    emu86 explain mov cr3, eax
    emu86 explain popf
    emu86 explain mov cr8, rax
    emu86 explain --bits 64 0f 05

    `emu86 exits` has all names.
    """  # noqa: D301 (click wants the character itself)
    words = " ".join(code).split()
    text = " ".join(word.removeprefix("0x") for word in words)
    is_hex = re.fullmatch(r"([0-9a-f]{2}|\s)*", text, re.IGNORECASE) is not None
    is_hex = is_hex and not (text.isalpha() and text.lower() in _mnemonics())
    if is_hex:
        lines = explain(bytes.fromhex(text), int(bits))
    else:
        lines = explain_text(" ".join(code), int(bits))
    for line in lines:
        put(line)


_NATIVELY: Final = (
    "Runs natively: neither privileged nor sensitive, the VMM never sees it."
)
_BY_A_HOOK: Final = (
    "Neither privileged nor sensitive. The engine has a hook for it at any CPL: the VMM"
    " answers for the CPU model."
)
_OWN_SELECTORS: Final = (
    "Runs natively, though it is sensitive: a selector tells of the CPL. The engine"
    " holds the guest's own selectors, so the VMM need not see it."
)
_UNDEFINED: Final = (
    "Raises #UD at any CPL: {}. The VMM takes the event and delivers it through the"
    " guest's own IDT."
)
_NO_CR: Final = {
    32: re.compile(r"\bcr(?![0234]\b)\d+", re.IGNORECASE),
    64: re.compile(r"\bcr(?![02348]\b)\d+", re.IGNORECASE),
}
_OF_64: Final = re.compile(
    r"\b(r([abcd]x|[sb]p|[sd]i|ip|\d+[bwd]?)|[sb]pl|[sd]il)\b", re.IGNORECASE
)
_INTO_CS: Final = re.compile(r"(mov|pop)\s+cs\s*(,|;|$)", re.IGNORECASE)
# Vol. 2A, LOCK: those that it may stand before, and one of their operands is in memory.
_LOCKABLE: Final = frozenset(
    ("adc", "add", "and", "btc", "btr", "bts", "cmpxchg", "cmpxchg8b", "cmpxchg16b",
     "dec", "inc", "neg", "not", "or", "sbb", "sub", "xadd", "xchg", "xor")
)  # fmt: skip
# Vol. 2, those that are invalid in 64-bit mode.
_NOT_IN_64: Final = re.compile(
    r"(aa[adms]|da[as]|into|bound|arpl|l[de]s|salc|(push|pop)a[dlw]*)(?!\S)"
    r"|(push|pop)\s+[cdes]s\b|l?(jmp|call)\s+(far\s+)?\w+:\s*\w+$",
    re.IGNORECASE,
)
_FROM_SEGMENT: Final = re.compile(r"\b[c-gs]s\s*(;|$)", re.IGNORECASE)
_EVENTS: Final = {"int", "int3", "into", "bound", "ud2"}
_AN_EVENT: Final = (
    "Raises an event, and no CPL is needed for that. The VMM takes the event and"
    " delivers it through the guest's own IDT, by the gate's rules."
)


@cache
def _disassembler(bits: int) -> Any:  # noqa: ANN401 - Capstone has no types
    import capstone  # noqa: PLC0415 - takes long to import

    mode = capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32
    return capstone.Cs(capstone.CS_ARCH_X86, mode)


def explain(code: bytes, bits: int = 32) -> Iterator[str]:
    """Tell, line by line, what becomes of the first instruction in `code`.

    bits: of the code, 32 or 64. Raises ConfigError when there is none.
    """
    from emu86.rings.decode import decode  # noqa: PLC0415
    from emu86.rings.insn.table import find, needs  # noqa: PLC0415
    from emu86.spec.features import LATER  # noqa: PLC0415

    disassembler = _disassembler(bits)
    found = next(disassembler.disasm_lite(code, 0, 1), None)
    insn = decode(code, bits)
    if found is None or insn is None:
        shown = code.hex(" ") or "nothing"
        longer = next(disassembler.disasm_lite(code + bytes(15), 0, 1), None)
        if code and longer is not None and longer[1] > len(code):
            raise ConfigError(f"explain: {shown} is incomplete: more bytes must follow")
        of = " of 64-bit code" if bits == 64 else ""
        raise ConfigError(f"explain: {shown} is no instruction{of}")
    _, length, mnemonic, operands = found
    yield f"{code[:length].hex(' ')}  {mnemonic} {operands}".rstrip()
    if len(code) > length:
        yield f"(then {code[length:].hex(' ')}, not looked at)"
    if undefined := _undefined(f"{mnemonic} {operands}", bits):
        yield from undefined
        return
    if line := _lacking(needs(insn)):
        yield line
        if needs(insn) & LATER:
            return
        yield "Elsewhere:"
    record = find(insn)
    yield from _other(mnemonic, operands) if record is None else _of(record)


def explain_text(text: str, bits: int = 32) -> Iterator[str]:
    """Tell what becomes of an instruction that is given as text.

    A name of the exit table, assembly in Intel's syntax, or a mnemonic, which may be
    several of the table's. bits: of the code; 64 where the text can be no other. Raises
    ConfigError for what is none of them.
    """
    if _OF_64.search(text):
        bits = 64
    from emu86.rings.insn.table import RECORDS  # noqa: PLC0415 - slow to import
    from emu86.spec.features import LATER  # noqa: PLC0415

    named = {words_of(record.mnemonic): record for record in RECORDS}
    record = named.get(words_of(text))
    if record and (bits == 32 or record in _forms(64).values()):
        yield from _of(record)
        return
    if undefined := _undefined(text, bits):
        yield text
        yield from undefined
        return
    forms = _forms(bits)
    mnemonic, operands = _parse(text, bits)
    if bits == 32 and _is_of(64, mnemonic) and not _is_of(32, mnemonic):
        yield from explain_text(text, 64)  # IRETQ and the like
        return
    if record := forms.get((mnemonic, operands)):
        yield from _of(record)
        return
    if mnemonic not in _mnemonics():
        raise ConfigError(f"explain: {_unknown(text, mnemonic)}")
    records = dict.fromkeys(
        record
        for (one, _), record in forms.items()
        if not operands and one in (mnemonic, "l" + mnemonic)
    )
    for record in records:
        yield from _of(record)
        yield ""
    yield f"{mnemonic} in other forms:" if records else text
    if needed := _needed(mnemonic, text, bits):
        for example, bits in needed.items():
            form = f"{example}: " if len(needed) > 1 else ""
            yield from textwrap.wrap(f"{form}{_lacking(bits)}", 79)
        if all(bits & LATER for bits in needed.values()):
            return
        yield "Elsewhere:"
    yield from _other(mnemonic, text)


def _unknown(text: str, mnemonic: str) -> str:
    names = (*_names(), *(one.upper() for one in _mnemonics()))
    meant = unknown(mnemonic, names).partition("(did you mean ")[2].partition("?")[0]
    hint = f" (did you mean {meant}?)" if meant else ""
    return f"{text!r} is neither hexadecimal nor an instruction{hint}"


def _undefined(text: str, bits: int) -> list[str]:
    """Return the lines on an instruction that is #UD, in assembly, or none."""
    words = text.lower().split()
    if found := _NO_CR[bits].search(text):
        why = f"there is no {found[0].upper()}"
    elif _INTO_CS.match(text):
        why = "CS is loaded by far transfers only"
    elif bits == 64 and _NOT_IN_64.match(text):
        why = "64-bit code has no such instruction"
    elif words[:1] == ["lock"] and len(words) > 1:
        mnemonic, operands = _parse(text, bits)
        if mnemonic not in _mnemonics():
            return []
        if mnemonic not in _LOCKABLE:
            why = f"LOCK may not stand before {words[1]}"
        elif operands and "memory" not in operands:
            why = "LOCK needs a destination in memory"
        else:
            return []
    else:
        return []
    return textwrap.wrap(_UNDEFINED.format(why), 79)


def _lacking(needed: int) -> str:
    """Say which CPU models lack what an instruction needs, or "" if none does."""
    from emu86.cpu.models import MODELS  # noqa: PLC0415 - slow to import
    from emu86.spec.features import NAMES  # noqa: PLC0415

    lacking = [name for name, model in MODELS.items() if model.lacks & needed]
    if not lacking:
        return ""
    features = " and ".join(NAMES[bit] for bit in NAMES if needed & bit)
    return f"Needs {features}: #UD on {', '.join(lacking)}, where it is patched."


def _needed(mnemonic: str, text: str, width: int) -> dict[str, int]:
    """Return what an instruction needs that a CPU model lacks, by an example of a form.

    text: the instruction, whose operands tell forms apart if there are any.
    """
    kinds = [kind for kind in ("xmm", "mm") if re.search(rf"\b{kind}\d", text.lower())]
    bare = len(text.split()) == 1
    if bare and mnemonic in ("movsd", "cmpsd", "nop"):
        return {}  # those of strings, and 90
    found: dict[str, int] = {}
    for example, bits in _featured(width).get(mnemonic, {}).items():
        of_xmm = re.search(r"\bxmm\d", example) is not None
        of_mm = re.search(r"\bmm\d", example) is not None
        fits = of_xmm if "xmm" in kinds else of_mm if kinds else not (of_xmm or of_mm)
        if (bare or fits) and bits not in found.values() and _lacking(bits):
            found[example] = bits
    return found


@cache
def _featured(bits: int) -> dict[str, dict[str, int]]:
    """Return by mnemonic the forms that need a feature: each as written, and its bits.

    Of those alike in their registers there is one.
    """
    from emu86.rings.decode import decode  # noqa: PLC0415 - these take long to import
    from emu86.rings.insn.table import needs  # noqa: PLC0415
    from emu86.spec.features import FORMS  # noqa: PLC0415

    disassembler = _disassembler(bits)
    forms: dict[str, dict[str, int]] = {}
    for opcode in FORMS:
        plain = opcode.to_bytes(2, "big").lstrip(b"\0")
        for prefix in (b"", b"\x66", b"\xf2", b"\xf3"):
            for modrm in (mod | reg << 3 for mod in (0, 0xC0) for reg in range(8)):
                code = prefix + plain + bytes([modrm]) + bytes(8)
                insn = decode(code, bits)
                if insn is None or not needs(insn):
                    continue
                for _, _, name, operands in disassembler.disasm_lite(code, 0, 1):
                    forms.setdefault(name, {})[f"{name} {operands}"] = needs(insn)
    return forms


def _other(mnemonic: str, text: str) -> Iterator[str]:
    """Tell of an instruction that the exit table does not have.

    text: what ends with its operands.
    """
    if mnemonic in _EVENTS:
        told = _AN_EVENT
    elif mnemonic == "cpuid":
        told = _BY_A_HOOK
    elif mnemonic in ("mov", "push") and _FROM_SEGMENT.search(text):
        told = _OWN_SELECTORS
    else:
        told = _NATIVELY
    yield from textwrap.wrap(told, 79)


def _of(record: "Record") -> Iterator[str]:
    yield f"{record.mnemonic} ({record.encoding}): {record.kind}"
    yield f"Reaches the VMM by: {record.traps}"
    if record.patched:
        whose = {1: "the guest's kernel", 3: "its users"}
        where = " and ".join(whose[ring] for ring in record.patched)
        yield f"Patched before it first runs, in {where}"
    yield f"See: SDM {record.sdm}"
    yield from textwrap.wrap(record.doc, 79)


# -- text ------------------------------------------------------------------------------
#
# No assembler is needed: what the disassembler writes for each encoding of the table is
# what a user may write, but for sizes, numbers and addresses, which do not matter.

_PREFIXES: Final = {"lock", "rep", "repe", "repz", "repne", "repnz"}
_SAME: Final = {
    "popf": "popfd", "popfw": "popfd", "pushf": "pushfd", "pushfw": "pushfd",
    "iret": "iretd", "iretw": "iretd", "lret": "retf", "icebp": "int1",
    "xlat": "xlatb", "fwait": "wait",
}  # fmt: skip
_SAME64: Final = _SAME | {"popf": "popfq", "pushf": "pushfq"}
# Other names of conditions, as Vol. 2A has them under Jcc.
_CONDITIONS: Final = {
    "z": "e", "nz": "ne", "c": "b", "nae": "b", "nc": "ae", "nb": "ae", "na": "be",
    "nbe": "a", "pe": "p", "po": "np", "nge": "l", "nl": "ge", "ng": "le", "nle": "g",
}  # fmt: skip
_CONDITIONAL: Final = re.compile("(j|set|cmov|loop)(" + "|".join(_CONDITIONS) + ")")
# Of an operand what matters, in this order; a number and a name are alike.
_KINDS: Final = (
    (r".*\[.*\]", "memory"),
    (r"cr\d", "CR"),
    (r"dr\d", "DR"),
    (r"ss", "SS"),
    (r"[c-g]s", "Sreg"),
    (
        r"[er]?(ax|cx|dx|bx|sp|bp|si|di)|[abcd][lh]|r\d+[bwd]?|[sb]pl|[sd]il",
        "register",
    ),
    (r"[-+]?\w+|[.$\w]+", "number"),
)
_SIZES: Final = r"\b(byte|word|dword|qword|ptr|short|near)\b"


def _parse(text: str, bits: int) -> tuple[str, tuple[str, ...]]:
    """Return the mnemonic and the kinds of its operands."""
    text = text.lower().partition(";")[0].replace("fword", "far")
    words = re.sub(_SIZES, " ", text).split()
    while words and words[0] in _PREFIXES:
        words.pop(0)
    if not words:
        return "", ()
    mnemonic, *rest = words
    operands = re.sub(r"\b[c-gs]s:", "", " ".join(rest))
    if mnemonic in ("jmp", "call") and re.search(r"^far\b|^\w+\s*:", operands):
        mnemonic = "l" + mnemonic
        operands = operands.removeprefix("far")
    mnemonic = (_SAME64 if bits == 64 else _SAME).get(mnemonic, mnemonic)
    if found := _CONDITIONAL.fullmatch(mnemonic):
        mnemonic = found[1] + _CONDITIONS[found[2]]
    kinds = tuple(map(_kind, re.split("[,:]", operands))) if operands else ()
    return mnemonic, kinds


def _kind(operand: str) -> str:
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, operand.strip()):
            return kind
    raise ConfigError(f"explain: {operand.strip()!r} is no operand")


@cache
def _forms(bits: int) -> "dict[tuple[str, tuple[str, ...]], Record]":
    """Return what there is to write for the table's instructions."""
    from emu86.rings.decode import decode  # noqa: PLC0415 - these take long to import
    from emu86.rings.insn.table import RECORDS, find  # noqa: PLC0415

    disassembler = _disassembler(bits)
    modrms = [mod | reg << 3 for mod in (0, 0xC0) for reg in range(8)]
    prefixes = (b"", b"\x48", b"\x44") if bits == 64 else (b"",)
    forms: dict[tuple[str, tuple[str, ...]], Record] = {}
    for record in RECORDS:
        for opcode, prefix in itertools.product(record.opcodes, prefixes):
            plain = prefix + opcode.to_bytes(2, "big").lstrip(b"\0")
            for modrm in modrms if record.modrm < 0 else (record.modrm,):
                code = plain + bytes([modrm]) + bytes(8)
                insn = decode(code, bits)
                if insn is None or find(insn) is not record:
                    continue
                for _, _, name, operands in disassembler.disasm_lite(code, 0, 1):
                    if "far" in record.mnemonic and name in ("jmp", "call"):
                        name = "l" + name  # noqa: PLW2901 - so is it written elsewhere
                    forms.setdefault(_parse(f"{name} {operands}", bits), record)
        if record.kind == "io" and record.mnemonic.endswith("S"):
            for size in "bwd":  # their operands go without saying
                forms[record.mnemonic.lower() + size, ()] = record
    return forms


def _is_of(bits: int, mnemonic: str) -> bool:
    """Tell whether one of the table's instructions is written so."""
    return any(mnemonic == one for one, _ in _forms(bits))


@cache
def _mnemonics() -> frozenset[str]:
    """Return the mnemonics of x86 less those of AVX, which no CPU model has."""
    names = map(_disassembler(32).insn_name, range(1, 3000))
    return frozenset(name for name in names if name and not name.startswith("v"))
