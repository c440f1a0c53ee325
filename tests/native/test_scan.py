"""The compiled scan lets no block pass in which the scanner would find something."""

import ctypes
import itertools
import random

import pytest

from emu86 import Machine, config
from emu86.cpu.state import HFLAGS
from emu86.native import abi, scan
from emu86.rings.decode import decode
from emu86.spec.opcodes import OPCODES, OPCODES64, PREFIXES, TWO_BYTES

NOP = b"\x90"
FEW = [mod << 6 | reg << 3 for mod in (0, 3) for reg in range(8)]  # ModRM bytes
TAIL = bytes.fromhex("24 20 20 20 20 20 20 20 20 20")
BEFORE = [
    bytes(each) for n in (0, 1, 2) for each in itertools.product(PREFIXES, repeat=n)
]


class Judges:
    """What compiled code says of a block in 32-bit code, and what the scanner does."""

    def __init__(self, cpu, technique):
        machine = Machine(cpu=cpu, technique=technique)
        machine.load_flat(b"\xf4", 0x1000)
        self.scanner = machine.vmm.scanner
        self.shared = self.scanner._engine.shared
        assert self.shared.scans

    def compiled(self, code, ring):
        buffer = ctypes.create_string_buffer(code, len(code))
        at = ctypes.addressof(buffer)
        return scan.walk(self.shared, at, len(code), ring == 3)

    bits = 32

    def scanned(self, code, ring):
        scanner = self.scanner
        scanner._guard = 0
        site = scanner._first_site(code, ring, 0x1000, breaks=False)
        looks = self.bits == 32 and scanner._to_look_at(0x1000, code)
        return scan.PYTHON if site is not None or looks else scanner._guard

    def agree(self, code, ring):
        """Whether compiled code has judged it; as the scanner, if so."""
        found = self.compiled(code, ring)
        if found != scan.PYTHON:
            assert found == self.scanned(code, ring), (code.hex(" "), ring)
        return found != scan.PYTHON


@pytest.fixture(scope="module", params=config.CPUS)
def judges(request):
    return Judges(request.param, "patch")


def encodings(opcode, prefix):
    first = opcode.to_bytes(2 if opcode >= TWO_BYTES else 1, "big")
    every = range(256) if not prefix else FEW
    for modrm in every if OPCODES[opcode][0].rm else (0x20,):
        insn = decode(prefix + first + bytes([modrm]) + TAIL, 32)
        if insn is not None:
            yield insn.code


@pytest.mark.not_quick
def test_every_encoding(judges):
    """With no prefix and with each, alone."""
    judged = 0
    for opcode in OPCODES:
        if opcode >> 8 in (0x38, 0x3A) or opcode >= 1 << 16:
            continue
        for prefix in BEFORE:
            if len(prefix) < 2:
                for code in encodings(opcode, prefix):
                    judged += judges.agree(code, 1) + judges.agree(code, 3)
    assert judged > 1000


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_several(judges, seed):
    """Plain ones and any; what is cut off at the end, too."""
    pick = random.Random(seed)
    plain = ["8b 03", "01 d8", "83 c4 0c", "64 a1 04 00 00 00", "65 8b 0d 00 00 00 00"]
    plain += [
        "64 8b 15 10 00 00 00",
        "0f b6 c0",
        "f7 c1 01 00 00 00",
        "f7 d9",
        "c8 08 00 00",
    ]
    plain += [
        "8b 84 24 10 00 00 00",
        "8d 74 26 00",
        "2e 0f 1f 84 00 00 00 00 00",
        "f3 a5",
    ]
    some = [bytes.fromhex(each) for each in plain]
    judged = 0
    for _ in range(200):
        parts = [pick.choice(some) for _ in range(pick.randrange(1, 8))]
        if pick.randrange(4) == 0:
            opcode = pick.choice([*OPCODES])
            prefix = pick.choice(BEFORE)
            parts.insert(
                pick.randrange(len(parts) + 1),
                pick.choice([NOP, *encodings(opcode, prefix)]),
            )
        code = b"".join(parts)
        if pick.randrange(8) == 0:
            code = code[: -pick.randrange(1, 4)]
        judged += judges.agree(code, 1) if code else 0
        judged += judges.agree(code, 3) if code else 0
    assert judged > 100


class Judges64(Judges):
    """The same of 64-bit code."""

    bits = 64

    def __init__(self):
        super().__init__("atom", "patch")
        self.scanner._cpu.code_bits = 64

    def compiled(self, code, ring):
        self.scanner._cpu.d[HFLAGS] = self.scanner._cpu.d[HFLAGS] & ~3 | ring
        buffer = ctypes.create_string_buffer(code, len(code))
        at = ctypes.addressof(buffer)
        plain = scan.is_plain(self.shared, at, len(code), ring == 3)
        return 0 if plain else scan.PYTHON


BEFORE64 = [
    bytes(each)
    for n in (0, 1, 2)
    for each in itertools.product((0x40, 0x4F, 0x65, 0x66, 0x67, 0xF0, 0xF3), repeat=n)
]


def encodings64(opcode, prefix):
    first = opcode.to_bytes(2 if opcode >= TWO_BYTES else 1, "big")
    for modrm in FEW if OPCODES64[opcode][0].rm else (0x20,):
        for sib in (b"\x24", b"\x25", b""):
            insn = decode((prefix + first + bytes([modrm]) + sib + TAIL)[:15], 64)
            if insn is not None:
                yield insn.code


@pytest.fixture(scope="module")
def judges64():
    return Judges64()


@pytest.mark.not_quick
def test_every_encoding_of_64_bit_code(judges64):
    """With NOPs behind it: compiled code and decoder end it at the same place."""
    judged = 0
    for opcode in OPCODES64:
        if opcode < 1 << 16:
            for prefix in (
                BEFORE64 if opcode in (0xB8, 0xC7, 0xA1, 0xF7) else BEFORE64[:8]
            ):
                for code in encodings64(opcode, prefix):
                    judged += judges64.agree(code, 1) + judges64.agree(code, 3)
                    # One byte less is not whole to either.
                    assert not judges64.agree(code[:-1], 1) or code[:-1] in BEFORE64
    assert judged > 1000


def test_64_bit_code_that_needs_python(judges64):
    for text in (
        "8ed0", "480fb200", "9d", "48cf", "0f0100", "c5f877", "62f1fd486fc0", "06",
        "66e80000", "0f9400", "d110", "f0488b03", "480fc70b", "0f3800c0", "66c3",
    ):  # fmt: skip
        code = NOP + bytes.fromhex(text)
        assert judges64.compiled(code, 1) == scan.PYTHON, text
    for text in (
        "8ed8", "488b0510000000", "48b80000000000000000", "48a10000000000000000",
        "65488b042500000000", "4863c8", "f0480fb10b", "660f6f05efbeadde", "480f94c0",
        "f3480f1efa",
    ):  # fmt: skip
        code = NOP + bytes.fromhex(text)
        assert judges64.compiled(code, 1) == 0, text


def test_no_code_is_looked_for_beyond_ram():
    """What stands behind the uses of the pages says nothing of such an address."""
    machine = Machine(memory=1 << 20)
    shared = machine.vmm.scanner._engine.shared
    pages = shared.ram_size >> 12
    uses = (ctypes.c_ubyte * (2 * pages))()  # all data
    machine.vmm.engine.control[abi.PAGE_STATE] = ctypes.addressof(uses)
    shared.direct = 1
    assert scan.fetched_by(shared, shared.ram_size - 1)
    assert not scan.fetched_by(shared, shared.ram_size)
