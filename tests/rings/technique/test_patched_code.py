"""Code that is read, rewritten, jumped into or run through an alias while patched."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.cases import Case, check, on_emu86

CODE = (
    Case("reads its own patched bytes",
         "mov ecx, 3\n.loop: sgdt [SCRATCH]\nstr eax\npopfd\npush dword 2\nloop .loop\n"
         "mov esi, .loop\nmov edi, SCRATCH + 8\nmov ecx, 16\nmov eax, 0\nrep movsb\n"
         "xor eax, eax"),
    Case("checksums itself",
         ".a: sgdt [SCRATCH]\nsldt ebx\nmov esi, .a\nmov ecx, .end - .a\nxor eax, eax\nxor edx, edx\n"
         ".b: lodsb\nadd edx, eax\nror edx, 3\nloop .b\n.end: mov [SCRATCH], edx\n"
         "cmp dword [SCRATCH + 0x40], 0\njne .done\ninc dword [SCRATCH + 0x40]\njmp .a\n.done:"),
    Case("rewrites a patched site",
         "mov ecx, 2\n.loop: db 0x0F, 0x00, 0xC8\ncmp ecx, 1\nje .done\n"  # str eax
         "mov byte [.loop + 2], 0xC0\nloop .loop\n.done:"),  # sldt eax
    Case("rewrites a patched site with something harmless",
         "mov ecx, 2\n.loop: str eax\ncmp ecx, 1\nje .done\n"
         "mov word [.loop], 0x9040\nmov byte [.loop + 2], 0x90\nloop .loop\n.done:"),
    Case("makes a harmless place sensitive",
         "mov ecx, 2\n.loop: nop\nnop\nnop\ncmp ecx, 1\nje .done\n"
         "mov word [.loop], 0x000F\nmov byte [.loop + 2], 0xC8\nloop .loop\n.done:"),
    Case("rewrites the next instruction",
         "mov byte [.a + 1], 0x77\njmp .a\n.a: mov al, 0x11"),
    Case("rewrites many times",
         "mov ecx, 40\nxor eax, eax\n.loop: mov [.a + 1], ecx\njmp .a\n.a: mov edx, 0\n"
         "add eax, edx\nloop .loop"),
    Case("rewrites a sensitive one many times",
         "mov ecx, 40\nxor ebx, ebx\n.loop: mov byte [.a + 2], 0xC8\ntest cl, 1\njz .b\n"
         "mov byte [.a + 2], 0xC0\n.b: jmp .a\n.a: str eax\nadd ebx, eax\nloop .loop"),
    Case("jumps into the middle of a patched instruction",
         "mov ecx, 2\n.loop: jmp .a\n.a: db 0x3E, 0x0F, 0x01, 0x05\ndd SCRATCH\n"
         "cmp ecx, 1\nje .done\nmov ebx, [SCRATCH]\nmov dword [SCRATCH], 0\ndec ecx\njmp .a + 1\n.done:"),
    Case("the same byte is the end of one and the start of another",
         "mov ecx, 3\n.a: mov eax, 0x9D0F0001\nloop .b\njmp .done\n.b: push dword 0x8D7\n"
         "jmp .a + 4\n.done: pushfd\npop eax"),  # 9D: POPF within an immediate
    Case("a patched instruction across pages",
         "jmp .here\ntimes 4094 - ($ - mb) % 4096 nop\n.a: sgdt [SCRATCH]\nret\n.here: call .a\ncall .a\n"
         "mov ebx, [.a]"),
    Case("code across pages",
         "jmp .here\ntimes 4093 - ($ - mb) % 4096 nop\n.a: mov eax, 0x12345678\nret\n.here: call .a\n"
         "mov dword [.a + 1], 0x9ABCDEF0\ncall .a"),
    Case("copied code",
         "mov esi, .a\nmov edi, 0x270000\nmov ecx, .end - .a\nrep movsb\nmov eax, 0x270000\n"
         "call eax\ncall eax\nmov byte [0x270002], 0xC0\ncall eax\njmp .end\n"
         ".a: str ebx\nmov [SCRATCH], ebx\nret\n.end:"),
    Case("code on its own data page",
         "mov edi, 0x271000\nmov dword [edi], 0xC3C8000F\nxor ecx, ecx\n.l: mov [edi + 64], ecx\n"
         "call edi\ninc ecx\ncmp ecx, 30\njne .l\nmov ebx, [edi + 64]"),
    Case("a string over code",
         "mov edi, .a\nmov al, 0x90\nmov ecx, .b - .a\nrep stosb\n.a: ud2\nud2\n.b:"),
    Case("code at the stack",
         "push dword 0xC3C8000F\ncall esp\npop ecx\npush dword 0x90C3C000 | 0x0F\ncall esp\nmov ebx, eax"),
)  # fmt: skip
# The page at 0x272000 is also mapped at 0x700000 (and at 0x400000 + ...).
ALIAS = "mov dword [PT + 4 * 0x700], 0x272007\ninvlpg [0x700000]\n"
ALIASES = (
    Case("code rewritten through an alias",
         ALIAS + "mov dword [0x272000], 0xC3C8000F\nmov eax, 0x272000\ncall eax\nmov ebx, eax\n"
         "mov byte [0x700002], 0xC0\nmov eax, 0x272000\ncall eax"),
    Case("code run at both addresses",
         ALIAS + "mov dword [0x272000], 0xC3C8000F\nmov ecx, 0x272000\nmov edx, 0x700000\n"
         "call ecx\ncall edx\nmov byte [0x700002], 0xC0\ncall ecx\nmov ebx, eax\ncall edx\n"
         "mov byte [0x272002], 0xC8\ncall edx\nmov esi, eax\ncall ecx"),
    Case("code rewritten through an alias, many times",
         ALIAS + "mov dword [0x272000], 0xC3C8000F\nxor esi, esi\nmov ecx, 40\n"
         ".l: mov byte [0x700002], 0xC0\ntest cl, 1\njz .b\nmov byte [0x700002], 0xC8\n"
         ".b: mov eax, 0x272000\ncall eax\nadd esi, eax\nrol esi, 1\nloop .l"),
    Case("plain code rewritten through an alias, many times",
         ALIAS + "mov word [0x272004], 0xC3\nmov byte [0x272000], 0xB8\nxor esi, esi\nmov ecx, 40\n"
         "mov ebx, 0x272000\nmov byte [0x272005], 0xC3\n"
         ".l: mov [0x700001], ecx\ncall ebx\nadd esi, eax\nrol esi, 1\nloop .l"),
    Case("both aliases write and run in turn",
         ALIAS + "mov byte [0x272000], 0xB8\nmov byte [0x272005], 0xC3\nxor esi, esi\nmov ecx, 40\n"
         "mov ebx, 0x272000\nmov edx, 0x700000\n"
         ".l: mov [0x700001], ecx\ncall ebx\nadd esi, eax\nmov [0x272001], esi\ncall edx\n"
         "xor esi, eax\nrol esi, 1\nloop .l"),
    Case("an alias made after the code has run",
         "mov dword [0x272000], 0xC3C8000F\nmov eax, 0x272000\ncall eax\nmov ebx, eax\n" + ALIAS
         + "mov byte [0x700002], 0xC0\nmov eax, 0x272000\ncall eax"),
    Case("another page at the same address",
         "mov dword [0x272000], 0xC3C8000F\nmov dword [0x273000], 0xC3C0000F\n" + ALIAS
         + "mov edx, 0x700000\ncall edx\nmov ebx, eax\nmov dword [PT + 4 * 0x700], 0x273007\n"
         "invlpg [0x700000]\ncall edx\nmov ecx, eax\nmov dword [PT + 4 * 0x700], 0x272007\n"
         "mov eax, cr3\nmov cr3, eax\ncall edx"),
    Case("a self-made far return through an alias",
         ALIAS + "mov dword [0x272000], 0x9090CB\npush cs\npush .back\nmov eax, 0x700000\njmp eax\n"
         ".back: mov byte [0x272000], 0xC3\npush .again\nmov eax, 0x700000\njmp eax\n.again:"),
    Case("page tables are code, too",
         "mov dword [PT + 4 * 0x710], 0xC3C8000F\nmov eax, PT + 4 * 0x710\ncall eax\nmov ebx, eax\n"
         "mov dword [PT + 4 * 0x710], 0x272007\nmov dword [0x272000], 0x1234\nmov ecx, [0x710000]"),
    Case("the descriptor table is code, too",
         "mov dword [GDT + 0xF00], 0xC3C8000F\nmov eax, GDT + 0xF00\ncall eax\nmov ebx, eax\n"
         "mov ecx, DATA3\nmov fs, ecx\nmov eax, GDT + 0xF00\ncall eax\n"
         "mov byte [GDT + 0xF02], 0xC0\nmov eax, GDT + 0xF00\ncall eax\n"
         "mov byte [GDT + DATA3 - 3 + 5], 0x73\nmov ecx, DATA3\nmov gs, ecx"),
)  # fmt: skip


@pytest.mark.parametrize("technique", ["patch", "iopl", "public API only"])
@pytest.mark.parametrize("paging", [False, True], ids=["flat", "paged"])
def test_code(technique, paging):
    check(CODE, technique, paging=paging)


@pytest.mark.parametrize("technique", ["patch", "public API only"])
def test_aliases(technique):
    check(ALIASES, technique, paging=True)


def test_trap_alone_shows_where_x86_fails_popek_and_goldberg():
    """What `patch` hides shows under `trap`: POPF loses IF, SGDT tells the VMM's GDT."""
    cases = (
        Case("POPF", "push dword 0x202\npopfd\npushfd\npop eax"),
        Case("SGDT", "sgdt [SCRATCH]"),
        Case("STR", "str eax"),
        Case("SMSW", "smsw eax"),
        Case("LAR", "mov ecx, DATA0\nlar eax, ecx"),
    )
    trap = on_emu86(cases, options={"technique": "trap"})
    patch = on_emu86(cases)
    assert (patch[0]["eax"], trap[0]["eax"]) == (0x202, 2)
    base = [
        record.scratch[0] >> 16 | record.scratch[1] << 16
        for record in (patch[1], trap[1])
    ]
    assert base[0] & 0xFFFFFFFF == 0x200000
    assert base[1] & 0xFFFFFFFF != 0x200000
    assert (patch[2]["eax"], trap[2]["eax"]) == (0x48, 0)
    assert patch[3]["eax"] >> 31 == 0
    assert trap[3]["eax"] >> 31 == 1
    assert (patch[4]["eax"], trap[4]["eax"]) == (0x00C09300, 0x00C0B300)


@pytest.mark.parametrize("transfer", ["call CODE0:.there", "jmp CODE0:.there"])
def test_trap_keeps_the_guests_ring_through_a_far_transfer(transfer):
    """The engine alone would put its own CPL, 1, in CS's RPL."""
    code = f"mov eax, cs\n{transfer}\n.there: mov ebx, cs\nmov ecx, cr0"
    (record,) = on_emu86((Case("far", code),), options={"technique": "trap"})
    assert record["vector"] == 0x40
    assert record["eax"] == record["ebx"] == record["cs"]


def site(opcode):
    """Code that runs `opcode` and then tells the GDT's base, in one block."""
    raw = ", ".join(f"{byte:#x}" for byte in opcode)
    return f"mov ebx, SCRATCH\nmov edi, SCRATCH\nmov eax, SCRATCH\nmov ecx, SCRATCH\nmov edx, SCRATCH\nmov esi, SCRATCH\ndb {raw}\nsgdt [SCRATCH + 0x20]"


# Odd encodings, some unknown to disassemblers; QEMU tells which of them are #UD.
ODD = [
    "d6", "f1", "8200f0", "82c8f0", "f6c8f0", "f7c8f0f0f0f0", "d0f0", "d1f0", "c0f001",
    "dcd0", "dcd8", "ddc8", "ded0", "dfc8", "dfd0", "dfd8", "d9d8", "0f0d08", "0f0d18",
    "0f1800", "0f1838", "0f1f00", "0f1f38", "0f1900", "0f1c00", "0f1ac0", "0f1e00", "660f1f00",
    "f30f1efb", "3e90", "6690", "f390", "662e0f1f840000000000", "0f0b", "0fb9c0", "0fff00",
    "d400", "d500", "27", "2f", "37", "3f", "62c0", "8fc8", "0faeE8", "0faef0", "0faef8",
    "0fa0", "0fc700", "0fc7c8", "0fa6c0", "660f7800", "f20f780000", "9bd9d0", "64670f1f00",
    "0f380000", "0f38c8c0", "0f3a0fc000", "660f3a0f0000", "0f71d001", "0f70c001", "0fc5c001",
    "0f24c0", "0f26c0", "0f36", "0f37", "0f0e", "0f0f00b4", "0f77",
]  # fmt: skip
ODD_CASES = tuple(Case(code, site(bytes.fromhex(code)), 3) for code in ODD)


def test_what_follows_an_odd_encoding_is_found():
    """Whatever stands before SGDT in its block, SGDT tells the guest's own GDT."""
    for case, record in zip(ODD_CASES, on_emu86(ODD_CASES), strict=True):
        if record["vector"] == 0x40 and record.scratch[8]:
            assert (
                record.scratch[8] >> 16 | (record.scratch[9] & 0xFFFF) << 16 == 0x200000
            ), case
