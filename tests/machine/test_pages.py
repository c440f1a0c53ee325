"""Page tables and descriptor tables, the guest's and the shadow's."""

import pytest

from emu86 import ConfigError, Machine, images
from emu86.machine import pages as reasons
from support.flat import flat, guest64

# Pages of 400000h on are mapped by hand: one never used, one read, one written, one
# run, one gone behind the back of the TLB, and one at a device.
BODY = """
    mov dword [PD + 4], PT3 + 7
    mov edi, PT3
    mov dword [edi], 0x300007
    mov dword [edi + 4], 0x301007
    mov dword [edi + 8], 0x302007
    mov dword [edi + 12], 0x303003
    mov dword [edi + 16], 0x304007
    mov dword [edi + 20], 0xb0007
    mov byte [0x303000], 0xc3
    mov eax, [0x401000]
    mov [0x402000], eax
    call 0x403000
    mov eax, [0x404000]
    mov dword [edi + 16], 0
    mov eax, 1
    jmp fin
PT3 equ 0x204000
"""


def looked_at():
    machine = flat(BODY, "local")
    before = machine.vmm.all_exits(), machine.now
    assert machine.run(timeout=60).code == 1
    return machine, before


def at(pages, address):
    (found,) = [run for run in pages.runs if run.start <= address < run.end]
    return found


def test_entries_differ_for_a_reason():
    machine, _ = looked_at()
    pages = machine.pages()
    expected = {
        0x400000: ("urwx", "", reasons.UNUSED, -1),
        0x401000: ("urwx", "ur--", reasons.DIRTY, 0x301000),
        0x402000: ("urwx", "urw-", reasons.DATA_PAGE, 0x302000),
        0x403000: ("-rwx", "-r-x", reasons.CODE_PAGE, 0x303000),
        0x404000: ("", "ur--", reasons.STALE, 0x304000),
        0x405000: ("urwx", "", reasons.DEVICE, 0xB0000),
    }
    for address, (guest, shadow, why, physical) in expected.items():
        run = at(pages, address)
        assert (run.guest, run.shadow, run.why) == (guest, shadow, why), hex(address)
        assert run.physical == physical
    assert pages.paging == "32-bit paging, CR4.PSE"
    assert pages.cr3 == machine.registers["cr3"]
    starts = [run.start for run in pages.runs]
    assert starts == sorted(starts)
    assert sum(pages.why.values()) == sum(run.pages for run in pages.runs)


def test_looking_changes_nothing():
    machine, _ = looked_at()
    other, _ = looked_at()
    str(machine.pages()), str(machine.tables()), machine.pages().svg()
    assert machine.vmm.counts() == other.vmm.counts()
    assert machine.save() == other.save()


def test_alike_pages_are_one_run():
    pages = flat("jmp fin", "local").pages()
    assert pages.paging == "no paging"
    machine = flat("mov eax, 1\njmp fin", "local")
    machine.run(timeout=60)
    run = at(machine.pages(), 0x3F0000)
    assert (run.why, run.size) == (reasons.UNUSED, 4096)
    assert run.pages > 100
    assert run.physical == run.start


def test_four_levels_and_large_pages():
    machine = guest64("mov rax, [0x300000]\nmov [0x400000], rax\ncli\nhlt")
    machine.run(timeout=60)
    pages = machine.pages()
    assert pages.paging.startswith("4-level paging")
    assert at(pages, 0x300000).why == reasons.DIRTY
    assert at(pages, 0x400000).why == reasons.DATA_PAGE
    assert at(pages, 0x400000).size == 2 << 20
    assert at(pages, 0x100000).why == reasons.CODE_PAGE
    text = str(pages)
    assert "2M" in text
    assert reasons.CODE_PAGE in text


def test_upper_half():
    machine = guest64("""
        mov rdi, cr3
        mov rax, [rdi]
        mov [rdi + 8 * 511], rax
        mov rbx, 0xffffff8000300000
        mov rax, [rbx]
        cli
        hlt
    """)
    machine.run(timeout=60)
    run = at(machine.pages(), 0xFFFFFF8000300000)
    assert (run.shadow, run.why) == ("-r--", reasons.DIRTY)


def test_shown():
    machine, _ = looked_at()
    pages = machine.pages()
    text = str(pages)
    assert (
        f"00401000-00401fff         1  urwx 4K    ur--    00301000  {reasons.DIRTY}"
        in (text)
    )
    assert pages.svg().startswith("<svg ")
    assert pages.svg().count("<rect") == sum(
        bool(run.guest) + bool(run.shadow) for run in pages.runs
    )
    assert pages.svg() in pages.html()
    assert "http" not in pages.html().replace("http://www.w3.org/2000/svg", "")


def test_descriptor_tables():
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("teach"), append="script")
    machine.run(timeout=300)
    tables = machine.tables()
    found = {(one.table, one.index): one for one in tables.entries}
    assert found["GDT", 8].guest == "code, DPL 0, base 00000000, limit FFFFFFFFh"
    assert found["GDT", 0x28].guest.startswith("a busy TSS, DPL 0")
    assert found["IDT", 0x80].guest.startswith("an interrupt gate, DPL 3, to 0008:")
    assert "SS0:ESP0 0010:" in tables.places[3]
    assert "GDT 10h      data, DPL 0" in str(tables)
    assert "GDT 10h" in tables._repr_html_()


def test_what_the_shadow_of_a_descriptor_is():
    machine = flat("""
        lgdt [where]
        mov ax, 0x10
        mov ds, ax
        mov es, ax
        mov fs, ax
        xor ecx, ecx
    spin:
        inc cl
        mov es, ax
        jnz spin
        cli
        hlt
    align 8
    table: dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cff2000000ffff
        dq 0x0000890000000067, 0x00cf13000000ffff
    where: dw 47
        dd table
    """)
    machine.run(timeout=60)
    entries = machine.tables().entries
    found = {one.index: one.shadow for one in entries if one.table == "GDT"}
    assert found[8].startswith("left out: a load would leave the engine's RPL 1")
    assert found[0x10] == "DPL 1: the guest's kernel runs in the engine's ring 1"
    assert found[0x18].startswith("left out: the first load sets its accessed bit")
    assert found[0x20].startswith("left out: the VMM loads it")
    assert found[0x28].startswith("left out: a load is the guest's fault")


def test_tables_of_real_mode_and_of_no_guest():
    machine = Machine(memory=16 << 20, bios=images.bios())
    assert machine.tables().places[0].startswith("real mode")
    assert machine.pages().paging == "no paging"
    with pytest.raises(ConfigError, match="^pages: no guest was loaded"):
        Machine().pages()
    bare = Machine(technique="bare", memory=1 << 20)
    bare.load_flat(b"\xf4", 0x10000)
    with pytest.raises(ConfigError, match="^tables: technique bare has no shadow"):
        bare.tables()
