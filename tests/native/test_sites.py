"""What compiled code keeps: sites, plans and entries do not drive each other out."""

import pytest

from emu86.native import abi
from emu86.native.state import site_index
from emu86.native.transfers import gate_slot
from support.flat import OWN_GDT, flat


def handled(built, reason):
    """How many exits of a reason there were, and how many of them Python did."""
    stop = built.run(timeout=120)
    assert stop.reason == "debug exit", stop
    total = built.vmm.all_exits()[reason][0]
    return total, built.vmm.exits[reason][0]


# The first instruction is at 102010h, the second at 103011h; or at two pages.
TWO_SITES = """
    mov ecx, 100
.again:
    call first
    call second
    loop .again
    xor eax, eax
    jmp fin
times 0x2010 - ($ - $$) nop
first:
    cli
    ret
times {second} - ($ - $$) nop
second:
    cli
    ret
times 0x5000 - ($ - $$) nop
"""


def test_two_sites_have_one_place():
    assert site_index(0x102010) == site_index(0x103011)
    built = flat(TWO_SITES.format(second=0x3011), "global")
    assert handled(built, "CLI") == (200, 2)


def test_a_site_that_comes_third_takes_the_place_of_one():
    body = TWO_SITES.format(second=0x3011).replace(
        "times 0x5000 - ($ - $$) nop",
        "times 0x4016 - ($ - $$) nop\nthird:\ncli\nret\ntimes 0x5000 - ($ - $$) nop",
    )
    assert site_index(0x104016) == site_index(0x102010)
    two = body.replace(".again:", "call third\n.again:")
    assert handled(flat(two, "global"), "CLI") == (201, 3)
    three = body.replace("call second", "call second\ncall third")
    total, by_python = handled(flat(three, "global"), "CLI")
    assert total == 300
    assert by_python > 3


def test_a_page_of_code_that_is_written_takes_its_own_sites_along():
    body = TWO_SITES.format(second=0x3800).replace(
        "call second",
        "call second\nmov eax, [second]\nmov [second], eax\n",
    )
    total, by_python = handled(flat(body, "global"), "CLI")
    assert total == 200
    assert by_python == 101  # the first once, the second each time


def test_a_site_that_has_become_another_instruction_is_gone():
    """CLI becomes STI, and with it what INT 30h finds in EFLAGS."""
    body = """
        gate 0x30, event
        call second
        cli
        mov byte [second], 0xfb
        call second
        nop
        mov byte [second], 0xfa
        call second
        int 0x30
    event:
        mov eax, [esp + 8]
        and eax, 0x200
        jmp fin
    times 0x3010 - ($ - $$) nop
    second:
        cli
        ret
    """
    stop = flat(body, "global").run(timeout=120)
    assert (stop.reason, stop.code) == ("debug exit", 0)


def test_events_of_linux_have_a_place_each():
    """Exceptions, an 8259's interrupts from 20h or 30h on, INT 80h; in both rings."""
    for first in (0x20, 0x30):
        vectors = [*range(20), *range(first, first + 16)]
        events = [(vector, cpl) for vector in vectors for cpl in (0, 3)]
        slots = {gate_slot(vector, cpl) for vector, cpl in events}
        assert len(slots) == len(events)
        assert max(slots) < abi.GATES
    slots.discard(gate_slot(0x80, 3))
    assert len(slots) == len(events)


# Its GDT is written to at each turn.
POP = """
    mov eax, 0x10
    mov fs, eax
    mov gs, eax
    xor ebp, ebp
    mov ecx, 20
.again:
    int 0x40                ; its plan reads the table again
    mov eax, 0x{base:02x}cff300
    mov [GDT + 28], eax
    push dword 0x5555001b
    pop {register}
    mov eax, {register}
    add ebp, eax
    jmp short $ + 2         ; a block that loads FS and uses it is Python's
    add ebp, [{register}:value - 0x{base:02x}000000]
    loop .again
    lea eax, [ebp + esp - 0x90000]
    jmp fin
value: dd 0x100
"""


@pytest.mark.parametrize("base", [0, 1], ids=["flat", "with a base"])
@pytest.mark.parametrize("register", ["es", "ds", "fs", "gs"])
def test_pop_behind_a_write_to_the_gdt(register, base):
    if register == "ds" and base:
        pytest.skip("the writes to the table go by it")
    body = OWN_GDT + POP.format(register=register, base=base)
    for options in {}, {"native": False}:
        built = flat(body, "global", **options)
        total, by_python = handled(built, "POP Sreg")
        assert built.vmm.end == ("debug exit", str(20 * (0x1B + 0x100)))
        assert total == 20
        assert by_python < 5


def test_compiled_fills_go_on_once_python_has_heard_of_many():
    """2,048 of them have room, and nothing else asks for where a page is mapped."""
    body = """
        mov ecx, 40
    .again:
        mov edi, PT + 0x300 * 4
        mov ebx, 0x100
    .page:
        xor dword [edi], 0x200  ; to the CPU it says nothing, but it is another entry
        add edi, 4
        dec ebx
        jnz .page
        mov eax, cr3
        mov cr3, eax
        mov esi, 0x300000
    .use:
        mov eax, [esi]
        add esi, 0x1000
        cmp esi, 0x400000
        jne .use
        loop .again
        xor eax, eax
        jmp fin
    """
    built = flat(body, "local")
    total, by_python = handled(built, "#PF fill")
    assert total > 600
    assert by_python < 100


@pytest.mark.parametrize("technique", ["iopl", "trap"])
def test_iret_is_compiled_where_it_is_not_patched(technique):
    """Its selector, of ring 0, is refused then: #GP with an error code."""
    body = """
        gate 0x30, fault
        mov ecx, 200
    .again:
        int 0x30
        loop .again
        jmp fin
    fault:
        inc eax
        iretd
    """
    total, by_python = handled(flat(body, "global", technique=technique), "IRET")
    assert total == 200
    assert by_python < 10
