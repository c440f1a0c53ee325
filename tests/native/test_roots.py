"""MOV to CR3 by compiled code, which keeps what two roots share in the engine's TLB."""

from dataclasses import replace

import pytest

from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from support.flat import flat

# At 400FFFh each directory has an instruction of its own, half of it in the next page:
# a constant, which is added to EBX.
_BODY = """
    mov dword [PD + 4], 0x204067
    mov dword [PD2 + 4], 0x205067
    mov dword [0x204000], 0x300067
    mov dword [0x204004], 0x302067
    mov dword [0x205000], 0x301067
    mov dword [0x205004], 0x303067
    mov esi, 0x300000
    mov eax, 1
.page:
    mov byte [esi + 0xfff], 0xb8        ; mov eax, imm32
    mov [esi + 0x2000], eax
    mov dword [esi + 0x2004], 0xc3c301  ; add ebx, eax; ret
    shl eax, 8
    add esi, 0x1000
    cmp esi, 0x302000
    jne .page
    xor ebx, ebx
    mov ecx, 200
.again:
    mov eax, PD
    mov cr3, eax
    call run
    mov eax, PD2
    mov cr3, eax
    call run
    loop .again
    mov eax, ebx
    jmp fin
run:
    mov edi, 0x400fff
    call edi
    mov eax, [0x401000]
    add ebx, eax
    ret
"""


@pytest.mark.parametrize("paging", ["local", "global"])
def test_code_and_data_are_those_of_the_root(paging):
    """400 switches: each root's code adds its constant, and then its data is added."""
    without = replace(abilities(), tlb=False)
    for can in (abilities(), without, Abilities.none()):
        built = flat(_BODY, paging, abilities=can)
        stop = built.run(timeout=120)
        assert (stop.reason, stop.code) == ("debug exit", 400 + (400 << 8))
    assert built.stats.exits["MOV to CR"].count > 400


def test_compiled_code_does_nearly_all():
    if not abilities().tlb:
        pytest.skip("the engine is not known")
    built = flat(_BODY, "local")
    built.run(timeout=120)
    assert built.vmm.engine.shared.count_switched > 350
