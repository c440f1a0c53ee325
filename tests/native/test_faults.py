"""Page faults that compiled code delivers: their error codes are a CPU's."""

import pytest

from support.cases import TECHNIQUES
from support.flat import code


@pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)
@pytest.mark.parametrize("paging", ["local", "global"])
def test_what_will_be_written_is_asked_for_so_behind_any_prefix(options, paging):
    """SDM Vol. 3A 4.7: the engine reads first. The last two only read."""
    body = """
        gate 14, fault
        mov ecx, 8
    .absent:
        lea ebx, [ecx + 7]
        mov dword [PT + 4 * ebx], 0
        shl ebx, 12
        invlpg [ebx]
        loop .absent
        xor ebp, ebp
        mov [0x8000], ecx       ; it has a plan from now on
        lock inc dword [0x9000]
        lock cmpxchg [0xa000], edx
        mov ebx, 0xb000
        add [bx], ecx
        mov ebx, 0xc000
        lock add [bx], ecx
        es add [0xd000], ecx
        mov ebx, 0xe000
        cmp [bx], ecx
        es mov eax, [0xf000]
        mov eax, ebp
        jmp fin
    fault:
        shl ebp, 4
        or ebp, [esp]
        mov eax, cr2
        or eax, 0x67
        mov edx, eax
        shr edx, 12
        mov [PT + 4 * edx], eax
        add esp, 4
        iretd
    """
    assert code(body, paging, **options) == 0x22222200
