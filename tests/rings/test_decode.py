"""The decoder beside Capstone and beside the engine's own translator."""

import itertools

import capstone
import pytest
import unicorn
from capstone import x86 as cs_x86

from emu86.rings.decode import decode
from emu86.rings.insn.table import RECORDS, find, needs
from emu86.spec import x86
from emu86.spec.features import LATER
from emu86.spec.opcodes import GROUPS

PREFIXES = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}
MODRM = [
    mod << 6 | reg << 3 | rm for mod in range(4) for reg in range(8) for rm in range(8)
]
TAILS = [bytes(11), bytes([0x65, *range(0xE1, 0xEB)])]  # SIB 00h and 65h
MODES = {
    64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16,
}  # fmt: skip
ENGINE = {
    64: unicorn.UC_MODE_64, 32: unicorn.UC_MODE_32, 16: unicorn.UC_MODE_16,
}  # fmt: skip
WIDTHS = pytest.mark.parametrize("bits", [64, 32, 16], ids="{}-bit".format)
VECTOR = (b"\xc4", b"\xc5", b"\x62")


def disassembler(bits):
    made = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    made.detail = True
    return made


def opcodes(bits):
    prefixes = {*PREFIXES, *range(0x40, 0x50)} if bits == 64 else PREFIXES
    yield from (bytes([op]) for op in range(256) if op not in {0x0F, *prefixes})
    yield from (bytes([0x0F, op]) for op in range(256))


@pytest.mark.parametrize(
    ("bits", "prefix"),
    [
        (32, ""), (32, "66672e"), (16, ""), (16, "66672e"), (64, "45"), (64, "674f"),
        (64, "4866"),
    ],
)  # fmt: skip
def test_lengths_are_capstones(bits, prefix):
    prefix = bytes.fromhex(prefix)
    other = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    wrong = {}
    for opcode in opcodes(bits):
        if opcode in (*VECTOR, b"\x8f"):
            continue  # VEX, EVEX and XOP to Capstone
        if opcode in (b"\x0f\xb9", b"\x0f\xff", b"\x0f\x78"):
            continue  # UD1 and UD0 have no ModRM in the older manuals; VMREAD or EXTRQ
        if opcode in (b"\x0f\x80", b"\x0f\x81") and prefix[-1:] == b"\x66":
            continue  # of all near branches these two are AMD's to Capstone
        for modrm in MODRM[::3]:
            code = (prefix + opcode + bytes([modrm]) + TAILS[modrm & 1])[:15]
            known = next(other.disasm_lite(code, 0, 1), None)
            if known is None:
                continue
            insn = decode(code, bits)
            if insn is None or insn.length != known[1]:
                got = insn and insn.length
                wrong.setdefault((opcode.hex(), known[2]), (code.hex(), got, known[1]))
    assert not wrong


@pytest.mark.not_quick
@WIDTHS
@pytest.mark.parametrize("prefix", [b"", b"\x66\xf2"])
def test_lengths_are_the_engines(bits, prefix):
    """What the engine runs, the scan must step over, known to Capstone or not."""
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, ENGINE[bits])
    engine.mem_map(0, 0x20000)
    seen = []

    def stop(_engine, _address, size, _data):
        seen.append(size)
        engine.emu_stop()

    engine.hook_add(unicorn.UC_HOOK_CODE, stop)
    wrong = []
    at = 0x1000
    for opcode in opcodes(bits):
        if opcode in (b"\xc4", b"\xc5"):
            continue  # told apart below
        for modrm in MODRM[::13]:
            code = (prefix + opcode + bytes([modrm]) + TAILS[modrm & 1])[:15]
            at = at + 16 if at < 0xF000 else 0x1000
            if at == 0x1000:
                engine.ctl_remove_cache(0, 0x10000)
            engine.mem_write(at, code + b"\x90")
            seen.clear()
            try:
                engine.emu_start(at, 0xFFFFFFFF)
            except unicorn.UcError:
                continue
            insn = decode(code, bits)
            # An illegal one ends its block wherever the engine gave up.
            if seen and seen[0] <= 15 and insn and seen[0] > insn.length:
                wrong.append((code.hex(), insn.length, seen[0]))
    assert not wrong


LETTERS = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
NUMBERS = {"rip": x86.RIP, "eip": x86.RIP}
for number, letters in enumerate(LETTERS):
    NUMBERS |= dict.fromkeys((letters, "e" + letters, "r" + letters), number)
for number in range(8, 16):
    NUMBERS |= dict.fromkeys((f"r{number}", f"r{number}d", f"r{number}w"), number)
SEGMENTS = {name: number for number, name in enumerate(x86.SEGMENT_NAMES)}


@pytest.mark.not_quick
@pytest.mark.parametrize(
    ("bits", "prefix"),
    [
        (32, ""), (32, "672e66"), (16, ""), (16, "672e66"), (64, ""), (64, "672e4f"),
        (64, "6466"), (64, "42"),
    ],
)  # fmt: skip
def test_memory_operands_are_capstones(bits, prefix):
    """Every record that has a ModRM, with every ModRM and some SIB bytes."""
    prefix = bytes.fromhex(prefix)
    other = disassembler(bits)
    checked = 0
    for record in RECORDS:
        for opcode in record.opcodes if record.only is None else ():
            raw = opcode.to_bytes(2, "big") if opcode > 0xFF else bytes([opcode])
            for modrm in MODRM[:192]:
                if record.reg >= 0 and modrm >> 3 & 7 != record.reg:
                    continue
                for sib in (0x24, 0x25, 0x65, 0xEC):
                    code = prefix + raw + bytes([modrm, sib, 0x80, 0x7F, 0x81, 0x12])
                    code = code.ljust(15, b"\x90")
                    insn = decode(code, bits)
                    assert insn is not None
                    if insn.modrm < 0 or not insn.memory:
                        continue
                    assert find(insn) is not None
                    known = next(other.disasm(code, 0, 1), None)
                    if known is None or (
                        known.mnemonic in ("les", "lds") and modrm > 0xBF
                    ):
                        continue
                    (memory,) = (
                        op.mem for op in known.operands if op.type == cs_x86.X86_OP_MEM
                    )
                    name = known.reg_name
                    base = NUMBERS.get(name(memory.base), -1) if memory.base else -1
                    index = NUMBERS.get(name(memory.index), -1) if memory.index else -1
                    text = (code.hex(), str(known))
                    assert insn.length == known.size, text
                    assert (insn.base, insn.index) == (base, index), text
                    if index >= 0:
                        assert 1 << insn.scale == memory.scale, text
                    mask = (1 << 8 * insn.address_size) - 1
                    there = memory.disp + known.size * (base == x86.RIP)
                    assert (insn.displacement ^ there) & mask == 0, text
                    if memory.segment and (
                        bits != 64 or SEGMENTS[name(memory.segment)] >= x86.FS
                    ):
                        assert insn.segment == SEGMENTS[name(memory.segment)], text
                    else:
                        stack = base in (x86.ESP, x86.EBP)
                        assert insn.segment == (x86.SS if stack else x86.DS), text
                    checked += 1
    assert checked > 2000


def test_immediates_and_far_pointers():
    cases = {
        "9a7856341221 43": (True, 7, 0x12345678, 0x4321),
        "669a7856 2143": (True, 6, 0x5678, 0x4321),
        "ea7856 2143": (False, 5, 0x5678, 0x4321),
        "66ea78563412 2143": (False, 8, 0x12345678, 0x4321),
        "ca3412": (True, 3, 0x1234, 0),
        "e580": (True, 2, 0x80, 0),
        "cd80": (False, 2, 0x80, 0),
    }
    for text, wanted in cases.items():
        insn = decode(bytes.fromhex(text), 32 if wanted[0] else 16)
        assert (insn.length, insn.immediate, insn.selector) == wanted[1:]


# Code; operand size, reg, rm, immediate, rex.
OF_64_BITS = {
    "48b8 8877665544332211": (8, 0, 0, 0x1122334455667788, 0x48),
    "41b8 44332211": (4, 0, 0, 0x11223344, 0x41),
    "48c7c0 44332211": (8, 0, 0, 0x11223344, 0x48),
    "a1 8877665544332211": (4, 0, 0, 0x1122334455667788, 0),
    "67a1 44332211": (4, 0, 0, 0x11223344, 0),
    "68 44332211": (8, 0, 0, 0x11223344, 0),
    "6668 4433": (2, 0, 0, 0x3344, 0),
    "e8 44332211": (8, 0, 0, 0x11223344, 0),
    "66e8 44332211": (8, 0, 0, 0x11223344, 0),  # 66h counts for nothing: Intel's
    "660f84 44332211": (8, 0, 0, 0x11223344, 0),
    "ffd0": (8, 2, 0, 0, 0),
    "ff28": (4, 5, 0, 0, 0),
    "48ff28": (8, 5, 0, 0, 0x48),
    "cf": (4, 0, 0, 0, 0),
    "48cf": (8, 0, 0, 0, 0x48),
    "9d": (8, 0, 0, 0, 0),
    "669d": (2, 0, 0, 0, 0),
    "8f00": (8, 0, 0, 0, 0),
    "440f20c1": (8, 8, 1, 0, 0x44),
    "410f22d8": (8, 3, 8, 0, 0x41),
    "4c8ed1": (8, 2, 1, 0, 0x4C),  # SS: REX.R does not count
    "4566 8ec1": (2, 0, 1, 0, 0),  # not the last prefix
    "4940 01c8": (4, 1, 0, 0, 0x40),
    "4d01c8": (8, 9, 8, 0, 0x4D),
    "48ed": (4, 0, 0, 0, 0x48),
    "48f6c0 12": (8, 0, 0, 0x12, 0x48),
    "4863c8": (8, 1, 0, 0, 0x48),
}  # fmt: skip


@pytest.mark.parametrize("text", OF_64_BITS)
def test_operands_of_64_bit_code(text):
    code = bytes.fromhex(text)
    insn = decode(code, 64)
    found = insn.size, insn.reg, insn.rm, insn.immediate, insn.rex
    assert found == OF_64_BITS[text]
    assert insn.length == len(code)
    assert decode(code[:-1], 64) is None
    assert not insn.invalid


def test_registers_are_capstones():
    """ModRM.reg and r/m of registers, behind every REX."""
    other = disassembler(64)
    checked = 0
    for opcode, rex in itertools.product(opcodes(64), range(0x40, 0x50)):
        code = bytes([rex]) + opcode + bytes([0xCA]) + TAILS[0]
        known = next(other.disasm(code[:15], 0, 1), None)
        insn = decode(code, 64)
        if known is None or opcode in VECTOR or insn.modrm < 0:
            continue
        if known.mnemonic in ("nop", "prefetch", "ud1"):
            continue  # it tells of r/m alone, or of nothing
        names = {
            NUMBERS.get(known.reg_name(op.reg))
            for op in known.operands
            if op.type == cs_x86.X86_OP_REG
        }
        if None in names or not names:  # others than the general registers
            continue
        own = {insn.rm} if int.from_bytes(opcode) in GROUPS else {insn.rm, insn.reg}
        if names - own <= {x86.EAX, x86.ECX, x86.EDX}:  # implied ones
            checked += 1
            assert own <= names, str(known)
        else:
            assert not names, (str(known), own)
    assert checked > 1000


def test_what_is_not_in_64_bit_code():
    """What Capstone does not know there either, and the engine raises #UD at."""
    other = capstone.Cs(capstone.CS_ARCH_X86, MODES[64])
    for opcode in opcodes(64):
        if len(opcode) == 1 and opcode not in VECTOR:
            insn = decode(opcode + bytes(14), 64)
            known = [*other.disasm_lite(opcode + bytes(14), 0, 1)]
            assert bool(known) != insn.invalid, opcode.hex()


# VEX of two and of three bytes, maps 1 to 3, and EVEX.
OF_AVX = {
    "c5f877": 3, "c5f96f0511223344": 8, "c5f970c01b": 5, "c5e9c2c300": 5,
    "c5f8ae5c2404": 6, "c4c17a6f0424": 6, "c4e27d180511223344": 9,
    "c4e37d19c001": 6, "c4e37d190511223344 01": 10, "c4e2fbf7c1": 5,
    "62f17d486fc0": 6, "62f17d486f0511223344": 10, "62f37d483ac001": 7,
    "62f1fd4872c001": 7, "62f27d485844247f": 8, "65c5fa6f00": 5,
}  # fmt: skip


@pytest.mark.parametrize("text", OF_AVX)
def test_avx_has_its_length(text):
    code = bytes.fromhex(text)
    assert len(code) == OF_AVX[text]
    insn = decode(code, 64)
    assert insn.length == len(code)
    (known,) = capstone.Cs(capstone.CS_ARCH_X86, MODES[64]).disasm_lite(code, 0)
    assert known[1] == len(code)
    assert insn.invalid
    assert needs(insn) == LATER
    assert find(insn) is None
    assert decode(code[:-1], 64) is None


@pytest.mark.parametrize("count", range(1, 18))
def test_fifteen_bytes_at_most(count):
    code = b"\x66" * count + b"\xfa" + bytes(4)
    insn = decode(code, 32)
    assert (insn is not None) == (count <= 14)


def test_short_code_is_no_instruction():
    for text in ("9a785634122143", "0f01153412aa55", "69c012345678", "c8123456"):
        code = bytes.fromhex(text)
        assert decode(code, 32).length == len(code)
        for end in range(len(code)):
            assert decode(code[:end], 32) is None
