"""The opcode table beside Capstone and beside the engine's own translator.

ModRM and immediates are tested by the decoder's lengths (`tests/rings/test_decode.py`).
"""

from collections import Counter

import capstone
import pytest
import unicorn
from capstone import x86 as cs_x86
from unicorn import x86_const

from emu86.rings.decode import decode
from emu86.spec import opcodes
from emu86.spec.opcodes import OPCODES, TWO_BYTES

CAPSTONE = {
    16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64,
}  # fmt: skip
ENGINE = {
    16: unicorn.UC_MODE_16, 32: unicorn.UC_MODE_32, 64: unicorn.UC_MODE_64,
}  # fmt: skip
# ModRM but for reg: memory by address; in 64-bit code with the SIB byte 25h behind it.
REGISTER, MEMORY16, MEMORY32, MEMORY64 = 0xC0, 0x06, 0x05, 0x04
ABSOLUTE = {16: (MEMORY16, b""), 32: (MEMORY32, b""), 64: (MEMORY64, b"\x25")}
CODE = 0x1000
REGION = 0x10000
DATA, SOURCE, TARGET, STACK, FRAME, SIZE = range(REGION, 7 * REGION, REGION)
REGISTERS = {
    "EAX": 1, "ECX": 0, "EDX": 0, "EBX": 0, "ESI": SOURCE, "EDI": TARGET,
    "ESP": STACK + 0x8000, "EBP": FRAME + 0x8000,
}  # fmt: skip
# VEX, EVEX and XOP are Capstone's alone; 0F38h and 0F3Ah have many instructions each.
VEX = (0x62, 0x8F, 0xC4, 0xC5)


def encoded(opcode, reg, modrm, behind=bytes(10)):
    first = opcode.to_bytes(2 if opcode >= TWO_BYTES else 1, "big")
    return first + bytes([modrm | reg << 3]) + behind


def entries():
    """Every opcode with every ModRM.reg that it has, and what the table says of it."""
    for opcode, group in OPCODES.items():
        if opcode not in opcodes.ESCAPES3:
            for reg in range(8 if group[0].rm else 1):
                yield opcode, reg, group[reg]


def known(modrm):
    """Those that Capstone knows, with what it says of them as 16-bit code."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
    disassembler.detail = True
    for opcode, reg, entry in entries():
        if modrm == MEMORY16 or opcode not in VEX:
            for found in disassembler.disasm(encoded(opcode, reg, modrm), 0, 1):
                yield f"{opcode:02X} /{reg} {found.mnemonic}", entry, found


def test_every_opcode_is_there_once():
    one_byte = set(range(0x100)) - opcodes.PREFIXES - {opcodes.ESCAPE}
    assert set(OPCODES) == one_byte | set(range(0x0F00, 0x1000))
    told = [opcode for row, _ in opcodes.ROWS for opcode in row]
    assert len(told) == len(set(told))
    for group in OPCODES.values():
        assert len(group) == 8
        assert len({bool(member.rm) for member in group}) == 1


@pytest.mark.parametrize("modrm", [MEMORY16, REGISTER])
def test_flags_are_capstones(modrm):
    checked = 0
    for text, entry, found in known(modrm):
        name = found.mnemonic
        assert (entry.flags == "compared") == (name in ("cmp", "sub")), text
        if entry.flags == "kept":
            assert not found.eflags, text
        elif entry.flags == "computed" and name != "test":  # Capstone has none for it
            assert found.eflags & cs_x86.X86_EFLAGS_MODIFY_ZF, text
        checked += entry.flags != "other"
    assert checked > 300


@pytest.mark.parametrize("modrm", [MEMORY16, REGISTER])
def test_transfers_are_capstones(modrm):
    groups = {
        capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET,
        capstone.CS_GRP_IRET, capstone.CS_GRP_BRANCH_RELATIVE,
    }  # fmt: skip
    others = ("syscall", "sysenter", "rsm")
    for text, entry, found in known(modrm):
        transfers = bool(groups & set(found.groups)) or found.mnemonic in others
        assert entry.transfers == (transfers and found.mnemonic != "xbegin"), text


def test_lock_is_for_what_the_sdm_lists():
    """Vol. 2A LOCK; of their forms, those that write memory."""
    names = {
        "add", "adc", "and", "btc", "btr", "bts", "cmpxchg", "cmpxchg8b", "dec", "inc",
        "neg", "not", "or", "sbb", "sub", "xor", "xadd", "xchg",
    }  # fmt: skip
    for text, entry, found in known(MEMORY16):
        lock = found.mnemonic in names and entry.rm != "" and entry.memory == "rw"
        assert entry.lock == lock, text


def test_modes_are_capstones():
    narrow, wide = (
        capstone.Cs(capstone.CS_ARCH_X86, CAPSTONE[bits]) for bits in (32, 64)
    )
    missing = set()
    for opcode, reg, entry in entries():
        code = encoded(opcode, reg, MEMORY32)
        here = next(narrow.disasm_lite(code, 0, 1), None)
        there = next(wide.disasm_lite(code, 0, 1), None)
        another = range(0x40, 0x50), (0x63,)  # REX, MOVSXD
        if here is not None and not any(opcode in one for one in another):
            assert (there is not None) == (64 in entry.modes), (here, there)
        if 64 not in entry.modes:
            missing.add(opcode)
    assert missing == {
        0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F,
        *range(0x40, 0x50), 0x60, 0x61, 0x62, 0x63, 0x82, 0x9A, 0xC4, 0xC5, 0xCE, 0xD4,
        0xD5, 0xD6, 0xEA,
    }  # fmt: skip


class Engine:
    """The engine at ring 0, with one instruction at CODE; each finds it the same."""

    def __init__(self, bits):
        self.bits = bits
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, ENGINE[bits])
        self.uc.mem_map(0, SIZE)
        self.uc.reg_write(x86_const.UC_X86_REG_CR4, 0x600)  # OSFXSR, OSXMMEXCPT
        for name, value in REGISTERS.items():
            self.uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)
        self.start = self.uc.context_save()

    def run(self, code, count=0):
        """Run it; return the error, or None."""
        self.uc.context_restore(self.start)
        self.uc.ctl_remove_cache(CODE, CODE + 0x100)
        self.uc.mem_write(CODE, code + b"\x90" * 16 + b"\xf4")
        try:
            self.uc.emu_start(CODE, SIZE, count=count)
        except unicorn.UcError as error:
            return error.errno
        return None

    def block(self, code):
        """Return the size of the block that begins with it."""
        sizes = []

        def begin(uc, _address, size, _data):
            sizes.append(size)
            uc.emu_stop()

        hook = self.uc.hook_add(unicorn.UC_HOOK_BLOCK, begin)
        self.run(code)
        self.uc.hook_del(hook)
        return sizes[0]


@pytest.mark.not_quick
def test_blocks_end_where_the_engines_do():
    ended = 0
    engines = [Engine(bits) for bits in ENGINE]
    for opcode, reg, entry in entries():
        for memory in (True, False):
            ends = []
            for engine in engines:
                if engine.bits not in entry.modes:
                    continue
                absolute, sib = ABSOLUTE[engine.bits] if memory else (REGISTER, b"")
                code = encoded(opcode, reg, absolute, sib + bytes(9))
                if engine.run(code, 1) == unicorn.UC_ERR_INSN_INVALID:
                    break  # no instruction here: its block ends anyhow
                ends.append(engine.block(code) == decode(code, engine.bits).length)
            else:
                text = f"{opcode:02X} /{reg}"
                assert all(ends) == entry.ends_block, (text, memory)
                ended += all(ends)
    assert ended > 80


# Here the engine's far transfers have no descriptors to go to, and these no operand in
# memory: MOVMSKPS, shifts of MMX registers. ARPL is told to write; the engine's reads
# before. POPA skips ESP, and LEAVE pops at EBP.
OTHERWISE = (
    0x9A, 0xCA, 0xCB, 0xCF, 0x0F50, 0x0F71, 0x0F72, 0x0F73, 0x63, 0x61, 0xC9,
)  # fmt: skip


def touched(engine, opcode, reg):
    """Bytes read and written, by region, with the operand at DATA; None: a fault."""
    found = Counter()

    def access(_uc, kind, address, size, _value, _data):
        found[address & -REGION, "w" if kind == unicorn.UC_MEM_WRITE else "r"] += size

    behind = (DATA + 0x8000).to_bytes(4, "little") + bytes(6)
    modrm, sib = ABSOLUTE[engine.bits]
    code = encoded(opcode, reg, modrm, sib + behind)
    if OPCODES[opcode][0].immediate == "o":
        code = bytes([opcode]) + behind
    kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
    hook = engine.uc.hook_add(kinds, access)
    error = engine.run(code, 1)
    engine.uc.hook_del(hook)
    return None if error == unicorn.UC_ERR_INSN_INVALID else found


@pytest.mark.parametrize("bits", [32, 64])
def test_accesses_are_the_engines(bits):
    engine = Engine(bits)
    checked = 0
    for opcode, reg, entry in entries():
        if bits not in entry.modes:
            continue
        found = touched(engine, opcode, reg)
        if found is None or opcode in OTHERWISE or (opcode, reg) == (0xFF, 3):
            continue

        def did(*regions, found=found):
            return "".join(
                kind
                for kind in "rw"
                if any((where, kind) in found for where in regions)
            )

        text = f"{opcode:02X} /{reg} {found}"
        if entry.rm in ("rm", "m") or entry.immediate == "o":
            # A register's value may be the number of a bit far behind DATA.
            regions = range(DATA, SIZE, REGION) if entry.bit_string else (DATA,)
            assert did(*regions) == entry.memory, text
        if not entry.bit_string:
            assert did(SOURCE) == "r" * entry.source, text
            assert did(TARGET) == entry.target, text
            wide = bits == 64 and entry.operands64 in ("d64", "f64")
            assert found[STACK, "w"] == (8 if wide else 4) * entry.pushes, text
            assert found[STACK, "r"] == (8 if wide else 4) * entry.pops, text
        checked += 1
    assert checked > 600
