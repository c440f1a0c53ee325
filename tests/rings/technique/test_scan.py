"""The pattern that says which blocks to decode: none with a site to patch slips by."""

import itertools
import random

import pytest

from emu86.cpu.models import MODELS
from emu86.rings.decode import decode
from emu86.rings.insn.segment_loads import loaded_by
from emu86.rings.insn.table import RECORDS, find, needs
from emu86.rings.technique.null_selectors import may_matter
from emu86.rings.technique.prefilter import prefilter
from emu86.spec import x86
from emu86.spec.features import FORMS
from emu86.spec.opcodes import OPCODES, TWO_BYTES

pytestmark = pytest.mark.not_quick

NOP = b"\x90"
# What may be SIB, displacement and immediate, in no pattern themselves.
TAILS = (b"\x20" * 10, b"\x65" + b"\x20" * 9)


def encodings(opcode, prefixes=(b"", b"\x66", b"\x67", b"\xf0", b"\xf0\x66")):
    """Instructions with this opcode, cut where they end."""
    first = opcode.to_bytes(2 if opcode >= TWO_BYTES else 1, "big")
    for bits in (32, 16):
        for prefix in prefixes:
            for modrm in range(256) if OPCODES[opcode][0].rm else (0x20,):
                for tail in TAILS:
                    code = prefix + first + bytes([modrm]) + tail
                    insn = decode(code, bits)
                    yield insn, code[: insn.length]


def blocks(insn, code):
    """The blocks in which the engine may show it."""
    ends = insn.spec.ends_block
    return [NOP + code] if ends else [NOP + code, code + NOP * 40]


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.mnemonic)
def test_sites_are_found(record, ring):
    pattern = prefilter(ring, (), 0)
    for opcode in record.opcodes:
        for insn, code in encodings(opcode):
            if find(insn) is not record:
                continue
            if ring in record.patched or (insn.lock and not insn.spec.lock):
                for block in blocks(insn, code):
                    assert pattern.search(block), block.hex(" ")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_a_model_lacks_is_found(model):
    pattern = prefilter(1, (), model.lacks)
    found = 0
    for opcode in FORMS:
        for insn, code in encodings(opcode, (b"", b"\xf2", b"\xf3", b"\x66\x3e")):
            if needs(insn) & model.lacks:
                found += 1
                assert pattern.search(code + NOP * 40), code.hex(" ")
    assert found > 10_000


def test_common_bytes_are_not_looked_at_in_the_middle():
    for text in ("9d 90", "cf 90", "17 90 90", "ea 20 20", "ff 20 90 90 90 90 90 90"):
        assert not prefilter(1, (), ~0).search(bytes.fromhex(text))


def test_every_load_of_ds_and_es_at_the_end_of_a_block_is_seen():
    """By 32-bit and by 16-bit addresses; the tail of ADD ESP, 10h; RET is none."""
    pick = random.Random(1)
    seen = 0
    for prefix in (b"", b"\x66", b"\x67", b"\x2e", b"\x67\x66"):
        for opcode, modrm in itertools.product((7, 0x1F, 0x8E, 0xC4, 0xC5), range(256)):
            code = prefix + bytes([opcode, modrm]) + pick.randbytes(12)
            insn = decode(code, 32)
            if insn is not None and loaded_by(insn) in (x86.DS, x86.ES):
                assert may_matter(b"\x90\x90" + code[: insn.length]), code.hex()
                seen += 1
    assert seen > 4000
    assert not may_matter(bytes.fromhex("83 c4 10 c3"))
