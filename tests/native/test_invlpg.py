"""INVLPG by the compiled hook and by Python: the same run."""

import hashlib
from dataclasses import replace

import pytest

from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.native import abi
from emu86.rings.technique.registry import POLICIES
from support.flat import MEMORY, flat

# One INVLPG, at `drop`, for everything: 64 pages that change their frames, now and then
# not present; runs of it without an exit between, the code's own page in them; a 4 MiB
# page that comes, moves and goes.
_BODY = """
    gate 14, fault
    mov edi, 0x340000
.fill:
    mov [edi], edi
    add edi, 4096
    cmp edi, 0x380000
    jne .fill
    mov esi, 1
    mov ebp, 1500
.again:
    imul esi, esi, 1103515245
    add esi, 12345
    mov eax, esi
    shr eax, 8
    mov ebx, eax
    and ebx, 0x3f
    add ebx, 0x300
    shr eax, 6
    mov edx, eax
    and eax, 0x3f
    add eax, 0x340
    shl eax, 12
    or eax, 0x67 + G
    test edx, 0x3c0
    jnz .present
    dec eax
.present:
    mov [PT + ebx * 4], eax
    shl ebx, 12
    call drop
    add edi, [ebx]
    rol edi, 3
    mov [ebx], edi
    test ebp, 0x3f
    jnz .next
    mov ebx, 0xc0000
.run:
    call drop
    add ebx, 4096
    cmp ebx, 0x140000
    jne .run
    mov eax, ebp
    and eax, 0x40
    shl eax, 16
    add eax, 0x400000 + 0xe7 + G
    mov [PD + 4], eax
    mov ebx, 0x412000
    call drop
    add [0x413000], edi
    add edi, [0x456000]
    test ebp, 0x80
    jz .next
    mov dword [PD + 4], PT + 7
    call drop
    add edi, [0x741000]
.next:
    dec ebp
    jnz .again
    mov eax, [count]
    jmp fin
fault:
    mov eax, cr2
    rol edi, 1
    xor edi, eax
    shr eax, 12
    or dword [PT + eax * 4], 1
    inc dword [count]
    add esp, 4
    iretd
align 4096
    nop
drop:
    invlpg [ebx]
    ret
align 4096
count: dd 0
"""


class Watcher:
    """An observer with no interest: that it is there keeps INVLPG in Python."""

    def vm_exit(self, reason, cs, eip):
        pass

    def inject(self, vector, error):
        pass

    def shadow_fill(self, gva):
        pass

    def pio(self, port, width, value, write):
        pass


def outcome(built):
    """All that two runs must have in common."""
    stop = built.run(timeout=120)
    assert stop.reason == "debug exit", stop
    memory = hashlib.sha256(built.read_physical(0, MEMORY)).hexdigest()
    count = built.stats.exits["INVLPG"].count
    return stop.code, built.registers, memory, count, built.now


@pytest.mark.parametrize("paging", ["local", "global"])
def test_the_same_run(paging):
    compiled = flat(_BODY, paging)
    watched = flat(_BODY, paging)
    watched.subscribe(Watcher())
    plain = flat(_BODY, paging, abilities=Abilities.none())
    ours, theirs, third = (outcome(built) for built in (compiled, watched, plain))
    assert ours == theirs == third
    assert ours[0] > 20
    if paging == "global":
        assert compiled.vmm.engine.control[abi.COUNT_INVLPG] > 1000
    assert watched.vmm.engine.control[abi.COUNT_INVLPG] == 0


def test_a_pde_of_another_address_that_has_changed():
    """Vol. 3A 4.10.4.1: INVLPG drops all that is cached of paging structures."""
    body = """
        mov dword [PT2 + 4 * 0x151], 0x152067 + G
        mov dword [0x151000], 1
        mov dword [0x152000], 2
        mov dword [PD + 4 * 0x3f0], PT + 7
        mov eax, [0xfc150000]          ; the PDE is cached
        mov ebx, 0x160000
        mov ecx, 3
    .again:
        call drop                      ; in compiled code from the second time on
        loop .again
        mov dword [PD + 4 * 0x3f0], PT2 + 7
        call drop
        mov eax, [0xfc151000]
        jmp fin
    align 4096
        nop
    drop:
        invlpg [ebx]
        ret
    """
    built = flat(body, "global")
    assert built.run(timeout=120).code == 2
    assert built.vmm.engine.control[abi.COUNT_INVLPG] == 2
    assert flat(body, "global", abilities=Abilities.none()).run(timeout=120).code == 2


def invlpg_of_both(again):
    """A page table at two PDEs: another page, and INVLPG of both addresses."""
    return f"""
        mov dword [PD + 4], PT + 7
        mov dword [PT + 4 * 0x350], 0x350067 + G
        mov dword [0x351000], 1
        mov dword [0x352000], 2
        mov ecx, {again}
    .again:
        mov dword [PT + 4 * 0x350], 0x351067 + G
        mov ebx, 0x350000
        call drop
        mov ebx, 0x750000
        call drop
        mov eax, [0x350000]
        mov eax, [0x750000]
        mov dword [PT + 4 * 0x350], 0x352067 + G
        mov ebx, 0x350000
        call drop
        mov ebx, 0x750000
        call drop
        mov eax, [0x750000]
        loop .again
        jmp fin
    align 4096
        nop
    drop:
        invlpg [ebx]
        ret
    """


@pytest.mark.parametrize("paging", ["local", "global"])
@pytest.mark.parametrize("again", [1, 3])
def test_both_addresses_of_one_entry(again, paging):
    body = invlpg_of_both(again)
    built = flat(body, paging)
    assert built.run(timeout=120).code == 2
    assert built.vmm.engine.control[abi.COUNT_INVLPG]
    assert flat(body, paging, abilities=Abilities.none()).run(timeout=120).code == 2


def test_an_operand_that_is_looked_at_before_a_step(monkeypatch):
    """By the page that its address is now: the other's MXCSR is none."""
    body = """
        mov eax, cr4
        or eax, 0x200
        mov cr4, eax
        mov dword [0x351000], 0x1f80
        mov esi, 3
        mov ebx, 0x360000
    .again:
        mov dword [0x350000], 0x1f80
        mov dword [PT + 4 * 0x360], 0x350067 + G
        call drop
        ldmxcsr [ebx]
        mov dword [0x350000], 0xffff1f80
        mov dword [PT + 4 * 0x360], 0x351067 + G
        call drop
        ldmxcsr [ebx]
        dec esi
        jnz .again
        mov eax, 5
        jmp fin
    align 4096
        nop
    drop:
        invlpg [ebx]
        ret
    """
    policy = replace(POLICIES["patch"], stepped=True)
    monkeypatch.setitem(POLICIES, "patch", policy)
    vmm = flat(body, "global", cpu="pentium3").vmm
    for _ in range(20000):
        if vmm.end:
            break
        vmm.step()
    assert vmm.end == ("debug exit", "5")
    assert not abilities().native or vmm.engine.control[abi.COUNT_INVLPG]
