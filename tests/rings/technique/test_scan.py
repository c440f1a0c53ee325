"""The pattern that says which blocks to decode: none with a site to patch slips by."""

import pytest

from emu86.cpu.models import MODELS
from emu86.rings.decode import decode
from emu86.rings.insn.table import RECORDS, find, needs
from emu86.rings.technique.scan import _prefilter
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
    pattern = _prefilter(ring, (), 0)
    for opcode in record.opcodes:
        for insn, code in encodings(opcode):
            if find(insn) is not record:
                continue
            if ring in record.patched or (insn.lock and not insn.spec.lock):
                for block in blocks(insn, code):
                    assert pattern.search(block), block.hex(" ")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_a_model_lacks_is_found(model):
    pattern = _prefilter(1, (), model.lacks)
    found = 0
    for opcode in FORMS:
        for insn, code in encodings(opcode, (b"", b"\xf2", b"\xf3", b"\x66\x3e")):
            if needs(insn) & model.lacks:
                found += 1
                assert pattern.search(code + NOP * 40), code.hex(" ")
    assert found > 10_000


def test_common_bytes_are_not_looked_at_in_the_middle():
    for text in ("9d 90", "cf 90", "17 90 90", "ea 20 20", "ff 20 90 90 90 90 90 90"):
        assert not _prefilter(1, (), ~0).search(bytes.fromhex(text))
