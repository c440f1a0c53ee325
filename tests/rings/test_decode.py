"""The decoder beside Capstone and beside the engine's own translator."""

import capstone
import pytest
import unicorn
from capstone import x86 as cs_x86

from emu86.rings.decode import decode
from emu86.rings.insn.table import RECORDS, find
from emu86.spec import x86

PREFIXES = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}
MODRM = [
    mod << 6 | reg << 3 | rm for mod in range(4) for reg in range(8) for rm in range(8)
]
TAILS = [bytes(11), bytes([0x65, *range(0xE1, 0xEB)])]  # SIB 00h and 65h
MODES = {32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}


def disassembler(bits):
    made = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    made.detail = True
    return made


def opcodes():
    yield from (bytes([op]) for op in range(256) if op not in {0x0F, *PREFIXES})
    yield from (bytes([0x0F, op]) for op in range(256))


@pytest.mark.parametrize("bits", [32, 16], ids=["32-bit", "16-bit"])
@pytest.mark.parametrize("prefix", [b"", b"\x66\x67\x2e"])
def test_lengths_are_capstones(bits, prefix):
    other = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    wrong = {}
    for opcode in opcodes():
        if opcode in (b"\xc4", b"\xc5", b"\x62", b"\x8f"):
            continue  # VEX, EVEX and XOP to Capstone
        if opcode in (b"\x0f\xb9", b"\x0f\xff", b"\x0f\x78"):
            continue  # UD1 and UD0 have no ModRM in the older manuals; VMREAD or EXTRQ
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
@pytest.mark.parametrize("bits", [32, 16], ids=["32-bit", "16-bit"])
@pytest.mark.parametrize("prefix", [b"", b"\x66\xf2"])
def test_lengths_are_the_engines(bits, prefix):
    """What the engine runs, the scan must step over, known to Capstone or not."""
    mode = unicorn.UC_MODE_32 if bits == 32 else unicorn.UC_MODE_16
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
    engine.mem_map(0, 0x20000)
    seen = []

    def stop(_engine, _address, size, _data):
        seen.append(size)
        engine.emu_stop()

    engine.hook_add(unicorn.UC_HOOK_CODE, stop)
    wrong = []
    at = 0x1000
    for opcode in opcodes():
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


NUMBERS = {
    name: number
    for number, names in enumerate(
        zip(
            x86.GPR_NAMES, ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di"), strict=True
        )
    )
    for name in names
}
SEGMENTS = {name: number for number, name in enumerate(x86.SEGMENT_NAMES)}


@pytest.mark.not_quick
@pytest.mark.parametrize("bits", [32, 16], ids=["32-bit", "16-bit"])
@pytest.mark.parametrize("prefix", [b"", b"\x67\x2e\x66"])
def test_memory_operands_are_capstones(bits, prefix):
    """Every record that has a ModRM, with every ModRM and some SIB bytes."""
    other = disassembler(bits)
    checked = 0
    for record in RECORDS:
        for opcode in record.opcodes:
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
                    assert (insn.displacement ^ memory.disp) & mask == 0, text
                    if memory.segment:
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
