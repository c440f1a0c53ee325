"""A hardware interrupt is no exception, whatever vector the guest gives it.

SDM Vol. 3A 6.15, #DF: external interrupts are benign; Vol. 3B 17.3.1.1: only faults
set RF in the flags that they push.
"""

import pytest

from support.cases import TECHNIQUES
from support.flat import code
from support.snippets import PIC, TIMER

_SERIAL = """
    mov dx, 0x3fc
    mov al, 8
    out dx, al
    mov dx, 0x3f9
    mov al, 2
    out dx, al
"""
SOURCES = {
    0: PIC.format(base=0, mask=0xFE) + TIMER,  # as #DE
    8: PIC.format(base=8, mask=0xFE) + TIMER,  # as #DF
    12: PIC.format(base=8, mask=0xEF) + _SERIAL,  # as #SS
}

pytestmark = [
    pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES),
    pytest.mark.parametrize("vector", SOURCES),
]


def test_absent_gate_is_np(options, vector):
    """#NP(vector * 8 + IDT + EXT), not a double fault."""
    body = f"""
        gate 11, absent
        mov word [IDT + {vector} * 8 + 4], 0x0e00
        {SOURCES[vector]}
        sti
        hlt
        jmp bad
    absent:
        pop eax
        jmp fin
    """
    assert code(body, **options) == vector * 8 + 3


def test_no_error_code_and_no_rf(options, vector):
    """The frame is EIP, CS and EFLAGS, and RF is clear there."""
    body = f"""
        gate {vector}, taken
        {SOURCES[vector]}
        sti
    .wait:
        hlt
        jmp .wait
    taken:
        cmp esp, 0x90000 - 12
        jne bad
        mov eax, [esp + 8]
        jmp fin
    """
    flags = code(body, **options)
    assert flags & 0x10000 == 0
    assert flags & 0x200
