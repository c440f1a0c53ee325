"""Page faults that compiled code delivers: their error codes are a CPU's."""

import pytest

from emu86.spec import x86
from support.cases import TECHNIQUES
from support.flat import code, flat, guest64

# The end of a handler of #PF, which maps the page to itself.
MAPS = """
    mov eax, cr2
    or eax, 0x67
    mov edx, eax
    shr edx, 12
    mov [PT + 4 * edx], eax
    add esp, 4
    iretd
"""


@pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)
@pytest.mark.parametrize("paging", ["local", "global"])
def test_what_will_be_written_is_asked_for_so_behind_any_prefix(options, paging):
    """SDM Vol. 3A 4.7: the engine reads first. The last two only read."""
    body = (
        """
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
    """
        + MAPS
    )
    assert code(body, paging, **options) == 0x22222200


def test_those_of_a_kernel_whose_iopl_is_raised():
    """All but the first are compiled, and EFLAGS on the stack has the guest's IOPL."""
    body = (
        """
        gate 14, fault
        xor ebp, ebp
        mov ecx, 8
    .next:
        lea ebx, [ecx + 7]
        mov dword [PT + 4 * ebx], 0
        shl ebx, 12
        invlpg [ebx]
        mov [ebx], ecx
        loop .next
        mov eax, ebp
        jmp fin
    fault:
        or ebp, [esp + 12]
    """
        + MAPS
    )
    machine = flat(body, "local", technique="iopl")
    stop = machine.run(timeout=60)
    assert stop.reason == "debug exit"
    assert not stop.code & x86.IOPL
    assert machine.vmm.exits["#PF guest"][0] == 1
    assert machine.vmm.all_exits()["#PF guest"][0] == 8


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl"])
@pytest.mark.parametrize("native", [True, False])
def test_those_of_64_bit_code(native, technique):
    machine = guest64(
        """
        lgdt [gdtr]
        lidt [idtr]
        mov dword [0x170000 + 16 * 14], 0x00080000 | (fault - $$) & 0xFFFF
        mov dword [0x170004 + 16 * 14], 0x00108E00
        mov rax, cr3
        mov qword [rax + 0x2010], 0x180003  ; from 4 MiB on
        mov cr3, rax
        mov rsp, 0x130000
        mov ebx, 0x400000
        xor r8d, r8d
        xor r9d, r9d
        xor r11d, r11d
        mov [rbx], ecx          ; it has a plan from now on
        lock inc qword [rbx + 0x1000]
        add [r9d + 0x402000], r10d
        cmp qword [rbx + 0x3000], 7
        lock cmpxchg16b [rbx + 0x4000]
        movsxd rax, dword [rbx + 0x5000]
        not byte [rbx + 0x6000]
        test byte [rbx + 0x7000], 1
        cli
        hlt
    align 8
    gdt: dq 0, 0x00AF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
    gdtr: dw 31
        dq gdt
    idtr: dw 0xFFF
        dq 0x170000
    fault:
        shl r8, 4
        or r8, [rsp]
        or r11, [rsp + 24]
        mov rdx, cr2
        shr edx, 12
        mov qword [0x180000 - 0x2000 + 8 * rdx], 0x190003
        add rsp, 8
        iretq
        """,
        native=native,
        technique=technique,
    )
    assert machine.run(timeout=60).reason == "halted"
    assert machine.vmm.q[x86.R8] == 0x22202020
    assert not machine.vmm.q[x86.R11] & x86.IOPL
    assert machine.vmm.exits["#PF guest"][0] == 1
    assert machine.vmm.all_exits()["#PF guest"][0] == 8
    last = list(machine.vmm.history.events)[-1]
    assert (last.address, last.eip >> 12) == (0x407000, 0x100)


def test_interrupts_and_returns_of_a_user_whose_kernel_has_its_iopl_raised():
    """The user's IOPL is 0, and the kernel is back at 1: CLI and STI are no exits."""
    machine = guest64(
        """
        lgdt [gdtr]
        lidt [idtr]
        mov ax, 0x28
        ltr ax
        mov dword [0x170000 + 16 * 0x80], 0x00080000 | (call - $$) & 0xFFFF
        mov dword [0x170004 + 16 * 0x80], 0x0010EE00
        mov rsp, 0x130000
        xor ebx, ebx
        xor ebp, ebp
        mov rax, cr3
        or byte [rax], 4
        or byte [rax + 0x1000], 4
        or byte [rax + 0x2000], 4  ; a user's, all of the first 2 MiB
        mov cr3, rax
        push 0x23
        push 0x140000
        push 0x3002
        push 0x1B
        push user
        iretq
    user:
        int 0x80
        int 0x80
        int 0x80
        int 0x80
        int 0x80
        ud2
    call:
        or ebp, [rsp + 16]
        sti
        cli
        inc ebx
        cmp ebx, 5
        je .done
        iretq
    .done:
        cli
        hlt
    align 8
    gdt: dq 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00AFFB000000FFFF
        dq 0x00CFF3000000FFFF
        dq 0x0000890000000067 | (tss - $$) << 16 | 0x10 << 32, 0
    gdtr: dw 55
        dq gdt
    idtr: dw 0xFFF
        dq 0x170000
    align 8
    tss: dd 0
        dq 0x138000
        times 0x5C db 0
        """,
        technique="iopl",
    )
    assert machine.run(timeout=60).reason == "halted"
    exits, by_python = machine.vmm.all_exits(), machine.vmm.exits
    assert machine.vmm.q[x86.EBX] == 5
    assert not machine.vmm.q[x86.EBP] & x86.IOPL
    assert (exits["IRET"][0], by_python["IRET"][0]) == (5, 1)
    assert (exits["INT 80h"][0], by_python["INT 80h"][0]) == (5, 1)
    assert "STI" not in exits
