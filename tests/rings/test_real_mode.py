"""Real mode from the reset vector: ROMs under each technique, beside QEMU."""

import pytest

from emu86 import ConfigError, Machine
from emu86.cpu.library import Abilities
from support.assembler import assemble
from support.real_mode import on_emu86, on_qemu, rom
from support.snippets import PIC, TIMER

# IRQ 0, unmasked alone, at vector 8: every 1000h clocks of the timer, or every 200h.
TICKS = PIC.format(base=8, mask="0xFE") + TIMER
FAST_TICKS = TICKS.replace("mov al, 0x10", "mov al, 2")

# Flags without IOPL: real mode shows 3 there (docs/techniques.md).
FLAGS = """
    pushf
    pop ax
    and ax, 0xcfff
    show ax
"""
CASES = {
    "segments and memory": """
        mov ax, 0x1234
        mov ds, ax
        mov word [0x10], 0xbeef
        mov word [0x12], 0x2000
        mov word [0x14], 0x3000
        les bx, [0x12]
        lds si, [0x10]
        show es
        show bx
        show ds
        show si
        push cs
        pop fs
        mov gs, ax
        show fs
        show gs
        mov byte [gs:0x20], 0x5a
        mov al, [gs:0x20]
        show ax
    """,
    "far transfers": """
        call 0xf000:.far
        show ax
        mov word [0x500], .far
        mov word [0x502], 0xf000
        call far [0x500]
        show sp
        push cs
        push .on
        retf
    .far:
        inc ax
        show sp
        retf
    .on:
        jmp 0xf001:.there - 0x10
    .there:
        show cs
        jmp 0xf000:.back
    .back:
    """,
    "INT and IRET": f"""
        vector 0x60, .handler
        sti
        int 0x60
        {FLAGS}
        cli
        int 0x60
        {FLAGS}
        jmp .over
    .handler:
        {FLAGS}
        mov bp, sp
        show [bp]
        show [bp + 2]
        iret
    .over:
    """,
    "POPF behind an IRET with IOPL 0": f"""
        push word 2
        push cs
        push .one
        iret
    .one:
        push word 0x202
        popf
        {FLAGS}
        push word 0x202
        push cs
        push .two
        iret
    .two:
        push word 2
        popf
        {FLAGS}
        push word 2
        push cs
        push .three
        iret
    .three:
        sti
        nop
        {FLAGS}
        cli
        {FLAGS}
    """,
    "exceptions": """
        vector 0, .divide
        vector 5, .bound
        vector 6, .invalid
        vector 4, .overflow
        vector 3, .break
        div cx
        mov ax, 7
        mov dword [0x500], 0x00030001
        bound ax, [0x500]
        ud2
        mov al, 0x7f
        add al, 1
        into
        int3
        int 3
        jmp .over
    .divide:
        mov bp, sp
        show [bp]
        add word [bp], 2
        iret
    .bound:
        mov bp, sp
        show [bp]
        add word [bp], 4
        iret
    .invalid:
        mov bp, sp
        show [bp]
        add word [bp], 2
        iret
    .overflow:
        say 'o'
        iret
    .break:
        mov bp, sp
        show [bp]
        say 'b'
        iret
    .over:
    """,
    "single steps, also over MOV SS": """
        vector 1, .step
        mov byte [0x500], 0
        pushf
        pop ax
        or ah, 1
        push ax
        popf
        nop
        mov bx, ss
        mov ss, bx
        nop
        nop
        pushf
        pop ax
        and ah, 0xfe
        push ax
        popf
        mov al, [0x500]
        mov ah, 0
        show ax
        jmp .over
    .step:
        inc byte [0x500]
        iret
    .over:
    """,
    "the stack wraps at 0": """
        vector 0x60, .handler
        mov ax, 0x4000
        mov ss, ax
        mov sp, 2
        int 0x60
        show sp
        jmp .over
    .handler:
        mov bx, sp
        mov cx, [ss:0xfffe]
        mov dx, [ss:0xfffc]
        iret
    .over:
        show bx
        show cx
        show dx
    """,
    "strings": """
        mov di, 0x800
        mov cx, 300
        mov ax, 0x4142
        rep stosw
        show di
        mov ax, 0x100
        mov es, ax
        mov si, 0x800
        xor di, di
        mov cx, 600
        rep movsb
        show si
        show di
        std
        mov si, 0x900
        mov cx, 4
        rep lodsb
        show si
        show ax
        cld
        mov dx, 0x3f8
        mov si, 0x800
        mov cx, 6
        rep outsb
        mov dx, 0x61
        mov di, 0xa00
        mov cx, 3
        rep insb
        show di
        mov di, 0xffff
        mov al, 0x77
        stosb
        show di
        mov cx, 8
        mov di, 0xfffc
        rep stosb
        show di
    """,
    "the timer wakes HLT": """
        vector 8, .tick
    """
    + TICKS
    + """
        sti
        hlt
        hlt
        cli
        mov al, 0xff
        out 0x21, al
        show bx
        jmp .over
    .tick:
        inc bx
        mov al, 0x20
        out 0x20, al
        iret
    .over:
    """,
    "code, data and stack in one page": """
        mov si, .code
        mov di, 0x7c00
        push cs
        pop ds
        mov cx, .end - .code
        rep movsb
        xor ax, ax
        mov ds, ax
        mov sp, 0x7c00
        call 0:0x7c00
        show ax
        show bx
        jmp .over
    .code:
        mov cx, 100
    .loop:
        push cx
        inc word [0x7c00 + .data - .code]
        pop cx
        add byte [0x7c00 + .patched + 2 - .code], 1
    .patched:
        add bx, 1
        loop .loop
        mov ax, [0x7c00 + .data - .code]
        retf
    .data:
        dw 0
    .end:
    .over:
    """.replace("add bx, 1", "db 0x81, 0xc3, 1, 0"),
    "what real mode does not have": """
        vector 6, .invalid
        sldt ax
        str ax
        verr ax
        lar ax, cx
        lsl ax, cx
        arpl ax, cx
        lldt ax
        ltr ax
        db 0x0f, 0x05
        db 0x0f, 0x07
        db 0x8e, 0xc8      ; MOV CS
        jmp .over
    .invalid:
        say 'u'
        mov bp, sp
        mov di, [bp]
        add word [bp], 2
        cmp byte [cs:di], 0x0f
        jne .short
        cmp byte [cs:di + 1], 5
        jae .short
        inc word [bp]
    .short:
        iret
    .over:
    """,
    "a vector table elsewhere": """
        mov ax, 0x200
        mov es, ax
        mov word [es:4 * 0x21], .handler
        mov word [es:4 * 0x21 + 2], cs
        mov word [0x500], 0x3ff
        mov dword [0x502], 0x2000
        lidt [0x500]
        int 0x21
        mov dword [0x510], 0
        mov dword [0x514], 0
        sidt [0x510]
        show [0x510]
        show [0x512]
        mov word [0x500], 0x3ff
        mov dword [0x502], 0
        lidt [0x500]
        vector 0x21, .other
        int 0x21
        jmp .over
    .handler:
        say 'h'
        iret
    .other:
        say 'o'
        iret
    .over:
    """,
    "an INT beyond the table's limit": """
        vector 13, .handler
        mov word [0x500], 4 * 14 - 1
        mov dword [0x502], 0
        lidt [0x500]
        int 0x21
        jmp .over
    .handler:
        mov bp, sp
        show [bp]
        add word [bp], 2
        iret
    .over:
        mov word [0x500], 0x3ff
        lidt [0x500]
    """,
    "control registers": """
        vector 13, .refused
        mov eax, cr0
        show ax
        mov eax, cr4
        show ax
        mov ax, 8
        lmsw ax
        mov eax, cr0
        show ax
        clts
        mov eax, cr0
        show ax
        xor ecx, ecx
        mov ecx, 0x10
        rdmsr
        say 'm'
        jmp .over
    .refused:
        say 'g'
        mov bp, sp
        add word [bp], 3
        iret
    .over:
    """,
}  # fmt: skip
# Long, for techniques that call Python at each round.
REPEATED = {
    "an interrupt comes between two rounds of REP": """
        vector 8, .tick
        mov word [0x500], 0
    """
    + FAST_TICKS
    + """
        mov ax, 0x2000
        mov es, ax
        sti
    .again:
        xor di, di
        mov cx, 60000
    .rep:
        rep stosb
        cmp byte [0x500], 3
        jb .again
        cli
        mov al, 0xff
        out 0x21, al
        say 'r'
        jmp .over
    .tick:
        push ax
        mov bp, sp
        cmp word [bp + 2], .rep
        jne .eoi
        jcxz .eoi
        inc byte [0x500]
    .eoi:
        mov al, 0x20
        out 0x20, al
        pop ax
        iret
    .over:
    """,
}
# What does not trap, and tells of the VMM: wrong under `trap`.
SENSITIVE = {
    "SMSW": """
        smsw ax
        show ax
        smsw eax
        shr eax, 16
        show ax
        smsw [0x500]
        show [0x500]
    """,
    "SGDT": """
        mov word [0x500], 0x77
        mov dword [0x502], 0x123456
        lgdt [0x500]
        mov dword [0x510], 0
        sgdt [0x50e]
        show [0x50e]
        show [0x510]
    """,
}
TABLES = """
        mov si, .gdt
        push cs
        pop ds
        xor ax, ax
        mov es, ax
        mov di, 0x600
        mov cx, 6 * 4
        rep movsw
        mov ds, ax
        mov word [0x500], 6 * 8 - 1
        mov dword [0x502], 0x600
        lgdt [0x500]
        jmp .tables
    .gdt:
        dq 0
        dq 0x00cf9a000000ffff    ; 8: code, 32 bits, flat
        dq 0x00cf92000000ffff    ; 10h: data, flat
        dq 0x00009a0f0000ffff    ; 18h: code, 16 bits, at F0000h
        dq 0x000092000000ffff    ; 20h: data, 64 KiB
        dq 0x000092123450ffff    ; 28h: data, at 123450h
    .tables:
"""
SWITCHES = {
    "to 32 bits and back": TABLES + """
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 8:0xf0000 + .wide
    bits 32
    .wide:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov esp, 0x7000
        mov dword [0x200000], 0x12345678
        mov ebx, [0x200000]
        push ebx
        pop ecx
        mov eax, 0x20
        mov ds, eax
        mov es, eax
        mov ss, eax
        jmp 0x18:.narrow
    bits 16
    .narrow:
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp 0xf000:.real
    .real:
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7000
        show bx
        show cx
        show cs
        vector 0x60, .handler
        int 0x60
        jmp .over
    .handler:
        say 'i'
        iret
    .over:
    """,
    "unreal mode": TABLES + """
        push ds
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, 0x10
        mov fs, bx
        and al, 0xfe
        mov cr0, eax
        pop ds
        xor ax, ax
        mov fs, ax
        mov esi, 0x345678
        mov dword [fs:esi], 0xcafebabe
        mov eax, [fs:esi]
        show ax
        show cs
        push cs
        pop ax
        show ax
        vector 0x60, .handler
        int 0x60
        jmp .over
    .handler:
        mov eax, [fs:esi + 2]
        show ax
        iret
    .over:
    """,
    "16 bits of protected mode": TABLES + """
        smsw ax
        or al, 1
        lmsw ax
        jmp 0x18:.narrow
    .narrow:
        mov ax, 0x28
        mov ds, ax
        mov word [0], 0x4321
        mov ax, 0x20
        mov ss, ax
        push word 0x55
        pop bx
        mov es, ax
        mov ax, 0x10
        mov gs, ax
        mov edi, 0x123450
        mov cx, [gs:edi]
        mov ax, 0x20
        mov ds, ax
        mov gs, ax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp 0xf000:.real
    .real:
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        show bx
        show cx
    """,
    "CS whose selector has an RPL": TABLES + """
        jmp 0xf003:.shifted - 0x30
    .shifted:
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov ax, 0x10
        mov es, ax
        mov ss, ax
        mov ax, cs
        mov bx, ax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        xor ax, ax
        mov ss, ax
        mov es, ax
        show bx
        show cs
        jmp 0xf000:.back
    .back:
    """,
    "an interrupt of protected mode": TABLES + """
        mov dword [0x900 + 8 * 0x41], 0x00180000 + .gate
        mov dword [0x900 + 8 * 0x41 + 4], 0x00008600
        mov word [0x500], 0x3ff
        mov dword [0x502], 0x900
        lidt [0x500]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp 0x18:.narrow
    .gate:
        inc bx
        iret
    .narrow:
        mov ax, 0x20
        mov ss, ax
        int 0x41
        int 0x41
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp 0xf000:.real
    .real:
        xor ax, ax
        mov ss, ax
        mov ds, ax
        mov word [0x500], 0x3ff
        mov dword [0x502], 0
        lidt [0x500]
        show bx
        vector 0x41, .handler
        int 0x41
        jmp .over
    .handler:
        say 'r'
        iret
    .over:
    """,
    "again and again, code and tables in one page": """
        mov si, .code
        push cs
        pop ds
        mov di, 0x7c00
        mov cx, .end - .code
        rep movsb
        xor ax, ax
        mov ds, ax
        jmp 0:0x7c00
    .code:
        mov cx, 40
    .loop:
        lgdt [0x7c00 + .pointer - .code]
        mov eax, cr0
        inc ax
        mov cr0, eax
        mov ax, 8
        mov ds, ax
        mov eax, [0x7c00 + .count - .code]
        inc eax
        mov [0x7c00 + .count - .code], eax
        mov eax, cr0
        dec ax
        mov cr0, eax
        xor ax, ax
        mov ds, ax
        loop .loop
        mov bx, [0x7c00 + .count - .code]
        jmp 0xf000:.over
    .pointer:
        dw 15
        dd 0x7c00 + .gdt - .code
    .gdt:
        dq 0
        dq 0x00cf92000000ffff
    .count:
        dd 0
    .end:
    .over:
        show bx
    """,
    "gate A20": """
        mov ax, 0xffff
        mov es, ax
        mov word [0x500], 0x1111
        in al, 0x92
        and al, 0xfc
        or al, 2
        out 0x92, al
        mov word [es:0x510], 0x2222
        show [0x500]
        and al, 0xfd
        out 0x92, al
        show [es:0x510]
        mov word [es:0x510], 0x3333
        show [0x500]
        or al, 2
        out 0x92, al
        show [es:0x510]
        show [0x500]
    """,
}  # fmt: skip
TECHNIQUES = {
    "patch": {},
    "patch by CPython": {"native": False},
    "public API only": {"abilities": Abilities.none()},
    "trap": {"technique": "trap"},
    "iopl": {"technique": "iopl"},
    "bare": {"technique": "bare"},
}


SMALL = """
bits 16
org 0
    xor ax, ax
    mov ss, ax
    mov sp, 0x7000
    mov ds, ax
{code}
bits 16
times 0xff0 - ($ - $$) db 0xcc
    jmp 0xf000:0xf000
times 0x1000 - ($ - $$) db 0xff
"""


def small(code):
    """A ROM of one page that ends as its code says."""
    return assemble(SMALL.format(code=code).replace("org 0", "org 0xf000"))


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("cases", [CASES, SWITCHES], ids=["cases", "switches"])
def test_as_on_qemu(cases, technique):
    image = rom(cases)
    said, why = on_emu86(image, **TECHNIQUES[technique])
    assert (said, why) == (on_qemu(image), "debug exit")


def test_an_interrupt_between_two_rounds():
    image = rom(REPEATED)
    assert on_emu86(image) == (on_qemu(image), "debug exit")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_what_does_not_trap(technique):
    image = rom(SENSITIVE)
    said, why = on_emu86(image, **TECHNIQUES[technique])
    assert why == "debug exit"
    assert (said == on_qemu(image)) == (technique != "trap")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_paging_without_protection_is_refused(technique):
    code = """
        vector 13, .refused
        mov eax, 0x80000010
        mov cr0, eax
        mov ebx, cr0
        show bx
        jmp .over
    .refused:
        mov bp, sp
        show [bp + 2]
        add word [bp], 3
        iret
    .over:
    """
    said = on_emu86(rom({"": code}), **TECHNIQUES[technique])
    assert said == (b"\x00\xf0\x10\x00=$", "debug exit")


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("event", ["int3", "int 0x21", "div cl", "ud2", "hlt"])
def test_shutdown_without_a_vector_table(technique, event):
    code = f"""
        mov word [0x500], 0
        lidt [0x500]
        xor cx, cx
        sti
        mov al, 0
        out 0x21, al
    last:
        {event}
    """
    stop = booted(code, technique).run(timeout=20)
    assert stop.reason == ("halted" if event == "hlt" else "triple fault")


def booted(code, technique, **options):
    """A machine with a ROM of one page."""
    return Machine(memory=1 << 20, bios=small(code), **TECHNIQUES[technique], **options)


COUNTER = (
    """
        mov word [0x4 * 8], tick
        mov word [0x4 * 8 + 2], cs
    """
    + FAST_TICKS
    + """
        mov dx, 0x3f8
        sti
    again:
        inc bx
        int 0x60
        cmp bx, 8000
        jne again
        cli
        mov ax, 0x1234
        mov al, cl
        out dx, al
        hlt
    tick:
        inc cx
        push ax
        mov al, 0x20
        out 0x20, al
        pop ax
        iret
    service:
        inc word [0x600]
        iret
""".replace(
        "        sti\n    again",
        """        mov word [4 * 0x60], service
        mov word [4 * 0x60 + 2], cs
        mov al, 'a'
        out dx, al
        sti
    again""",
    )
)


def end(machine):
    """How a machine ends: registers, time, exits."""
    assert machine.run(timeout=60).reason == "halted"
    return (
        machine.registers,
        machine.now,
        {why: one.count for why, one in machine.stats.exits.items()},
        machine.read_physical(0x600, 2),
    )


def test_compiled_code_does_what_cpython_does():
    found = end(booted(COUNTER, "patch"))
    assert found == end(booted(COUNTER, "patch by CPython"))
    assert found[2]["INT 60h"] == 8000
    assert found[2]["interrupt"] > 1


@pytest.mark.parametrize("technique", ["patch", "trap", "bare"])
def test_a_state_is_saved_in_real_mode(technique):
    machine = booted(COUNTER.replace("8000", "300"), technique)
    assert machine.run(until=b"a").reason == "until"
    other = Machine.restore(machine.save())
    assert other.registers == machine.registers
    assert end(other) == end(machine)


def test_a_reset_begins_at_the_rom_again():
    # The RAM stays, but for the ROM's shadow, which the guest has changed.
    machine = booted("""
        mov al, [cs:letter]
        mov byte [cs:letter], 'x'
        mov dx, 0x3f8
        out dx, al
        inc word [0x600]
        mov al, 0xfe
        out 0x64, al
        jmp $
    letter: db 'l'
    """, "patch")  # fmt: skip
    said = bytearray()
    machine.on_console(said.extend)
    for _ in range(3):
        assert machine.run(timeout=20).reason == "reset"
        machine.reset()
    assert said == b"lll"
    assert machine.read_physical(0x600, 2) == b"\3\0"
    assert (machine.registers["cs"], machine.registers["eip"]) == (0xF000, 0xFFF0)
    assert machine.registers["cs_base"] == 0xFFFF0000


def test_pages_that_mix_code_and_data_do_not_thrash():
    code = """
        mov word [0x4 * 0x60], service
        mov word [0x4 * 0x60 + 2], cs
        push cs
        pop ds
    again:
        inc word [count]
        int 0x60
        cmp word [count], 20000
        jne again
        cli
        hlt
    service:
        add word [count + 2], 2
        iret
    count: dw 0, 0
    """
    machine = booted(code, "patch")
    assert machine.run(timeout=60).reason == "halted"
    assert machine.stats.exits["#PF fill"].count < 20


def test_popf_without_paging_is_compiled():
    # Boot loaders decompress themselves so: flags saved and restored at each bit.
    code = (
        TABLES
        + """
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 8:0xff000 + wide - 0xf000
    bits 32
    wide:
        mov eax, 0x10
        mov ss, eax
        mov ds, eax
        mov esp, 0x7000
        mov ecx, 5000
    again:
        pushfd
        popfd
        loop again
        cli
        hlt
    """
    )
    machine = booted(code.replace(".", ""), "patch")
    assert machine.run(timeout=60).reason == "halted"
    assert machine.stats.exits["POPF"].count == 5000
    assert machine.vmm.exits["POPF"][0] < 50  # the others are compiled code's


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "bios: is empty"),
        (bytes(100), "bios: its 100 bytes are not a multiple of 4 KiB"),
        (bytes(256 << 10), "bios: its 262144 bytes are more than the 128K"),
        ("nowhere.bin", "bios: nowhere.bin: "),
    ],
)
def test_a_rom_that_is_none(image, message):
    with pytest.raises(ConfigError) as error:
        Machine(bios=image)
    assert str(error.value).startswith(message)


def test_a_kernel_beside_a_rom():
    machine = booted("hlt", "patch")
    with pytest.raises(ConfigError, match="this machine starts its BIOS"):
        machine.load_flat(b"\xf4", 0x10000)
