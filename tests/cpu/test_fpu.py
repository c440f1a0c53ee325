"""Registers of x87 and SSE, read all at once, beside the binding's reads of each."""

from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const

from emu86.cpu.engine import Engine

WIDTHS = {f"fp{i}": 80 for i in range(8)} | {f"xmm{i}": 128 for i in range(8)}
ENGINE = Engine(stepped=True)


def number(name):
    return getattr(x86_const, f"UC_X86_REG_{name.upper()}")


def one_by_one():
    wide = (*WIDTHS, "fpcw", "fpsw", "fptag", "mxcsr")
    values = {name: ENGINE._uc.reg_read(number(name)) for name in wide}
    return {
        name: v[0] | v[1] << 64 if isinstance(v, tuple) else v
        for name, v in values.items()
    }


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.dictionaries(st.sampled_from(sorted(WIDTHS)), st.integers(0, (1 << 128) - 1)),
    st.sampled_from((0x37F, 0x27F)),
    st.sampled_from((0x1F80, 0x1FA0)),
)
def test_all_are_what_each_is(values, fpcw, mxcsr):
    for name, value in values.items():
        x87 = value & (1 << 64) - 1, value >> 64 & 0xFFFF
        ENGINE._uc.reg_write(number(name), value if name.startswith("xmm") else x87)
    ENGINE._uc.reg_write(number("fpcw"), fpcw)
    ENGINE._uc.reg_write(number("mxcsr"), mxcsr)
    assert ENGINE.fpu() == one_by_one()
    for name, value in values.items():
        assert ENGINE.fpu()[name] == value & (1 << WIDTHS[name]) - 1
