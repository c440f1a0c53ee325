"""Hypothesis strategies for the host's CPU: what any user may compute, and states.

They shrink like those of `emu86.testing.strategies`.
"""

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32
from emu86.testing.stage import State
from emu86.testing.strategies import Code, flags, words


def imm8() -> Code:
    """Return an immediate byte."""
    return st.integers(0, 0xFF).map(lambda byte: bytes([byte]))


def computations() -> Code:
    """One instruction of any user that computes, its memory on the data page."""
    reg = st.integers(0, 7)
    place = st.integers(0, 0xFF0).map(lambda offset: i32(stage.DATA + offset))
    size = st.sampled_from((b"", b"\x66"))

    def rm(field: int) -> Code:
        register = reg.map(lambda r: bytes([0xC0 | field << 3 | r]))
        return st.one_of(register, place.map(lambda at: bytes([field << 3 | 5]) + at))

    def two(*opcodes: str) -> Code:
        return st.tuples(
            size, st.sampled_from([bytes.fromhex(code) for code in opcodes]),
            reg.flatmap(rm),
        ).map(b"".join)  # fmt: skip

    def group(opcode: str, fields: tuple[int, ...], immediate: Code) -> Code:
        code = st.just(bytes.fromhex(opcode))
        operand = st.sampled_from(fields).flatmap(rm)
        return st.tuples(size, code, operand, immediate).map(b"".join)

    none = st.just(b"")
    alu = ("01", "03", "09", "0b", "11", "13", "19", "1b", "21", "23", "29", "2b", "31",
           "33", "39", "3b", "85", "87", "89", "8b")  # fmt: skip
    bytewise = tuple(f"{int(code, 16) - 1:02x}" for code in alu)
    conditions = [f"0f{0x40 + c:02x}" for c in range(16)]
    short = ("27", "2f", "37", "3f", "98", "99", "9e", "9f", "f5", "f8", "f9", "fc",
             "d40a", "d50a", "60", "c9", "d7", "9c")  # fmt: skip
    return st.one_of(
        two(*alu), two(*bytewise), two("0fb6", "0fb7", "0fbe", "0fbf", "0faf"),
        two("0fbc", "0fbd", "0fc1", "0fb1"),
        reg.map(lambda r: bytes([0x0F, 0xA3, 0xC0 | r])),
        # With 16 bits a count above 16 leaves SHLD and SHRD undefined.
        st.sampled_from((b"\x0f\xa5", b"\x0f\xad")).flatmap(
            lambda opcode: reg.flatmap(rm).map(lambda operand: opcode + operand)
        ),
        two(*conditions),
        group("83", tuple(range(8)), imm8()),
        group("80", tuple(range(8)), imm8()),
        group("c1", (0, 1, 2, 3, 4, 5, 7), imm8()),
        group("d1", (0, 1, 2, 3, 4, 5, 7), none),
        group("d3", (0, 1, 2, 3, 4, 5, 7), none),
        group("d2", (0, 1, 2, 3, 4, 5, 7), none),
        group("f7", (2, 3, 4, 5, 6, 7), none), group("f6", (2, 3, 4, 5, 6, 7), none),
        group("ff", (0, 1), none), group("fe", (0, 1), none),
        group("0fba", (4, 5, 6, 7), imm8()),
        st.sampled_from([bytes.fromhex(code) for code in short]),
        st.builds(lambda r: bytes([0x0F, 0xC8 | r]), reg),
        st.sampled_from((0x90, 0x92, 0x94, 0x9A, 0x9C)).map(
            lambda code: bytes([0x0F, code, 0xC3])
        ),
    )  # fmt: skip


def computing_states() -> st.SearchStrategy[State]:
    """Registers, flags and a data page for one of `computations`."""
    names = [name for name in x86.GPR_NAMES if name not in ("esp", "ebx", "ebp")]
    values = st.one_of(words(), st.integers(0, 40))
    return st.builds(
        lambda registers, image, data: State(
            ring=3,
            flags=image & (x86.ARITHMETIC_FLAGS | x86.DF) | x86.FLAGS_FIXED,
            registers=registers | {"ebx": stage.DATA + 8, "ebp": stage.STACK3 - 0x100},
            patches=((stage.DATA, data * 64),),
        ),
        st.fixed_dictionaries(dict.fromkeys(names, values)),
        flags(),
        st.binary(min_size=64, max_size=64),
    )
