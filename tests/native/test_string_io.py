"""REP INS and REP OUTS of a drive's data port: nobody can tell how many go at once."""

from contextlib import closing

import pytest

from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.native import ports, string_io
from support.flat import flat, guest64

CANS = None, abilities().reference(), Abilities.none()
# A sector's registers, and the wait for each block; `move` is what is tried.
COMMANDS = """
%macro command 1
    mov edx, 0x1F2
    mov al, 3
    out dx, al
    inc edx
    mov al, FIRST
    out dx, al
    xor eax, eax
    inc edx
    out dx, al
    inc edx
    out dx, al
    inc edx
    mov al, 0xE0
    out dx, al
    inc edx
    mov al, %1
    out dx, al
%endmacro
%macro blocks 1
    mov ebp, 3
%%next:
    mov edx, 0x3F6
%%busy:
    in al, dx
    test al, 0x80
    jnz %%busy
    mov edx, 0x1F7
    in al, dx
    mov edx, 0x1F0
    %1
    mov edx, 0x61
    in al, dx
    rol ebx, 3
    add ebx, eax
    dec ebp
    jnz %%next
%endmacro
"""
TIMER = """
    mov al, 0x34
    out 0x43, al
    mov al, 0x59
    out 0x40, al
    mov al, 0
    out 0x40, al
"""
# Each but for the last goes over the end of a page.
READS = (
    "mov ecx, 256\nrep insw",
    "mov ecx, 128\nrep insd",
    "mov ecx, 300\nrep insw",  # more than there are
    "mov ecx, 128\na16 rep insw\nadd edi, 0x2000\nmov ecx, 64\nrep insd",
    "mov ecx, 256\nstd\nrep insw\ncld\nadd edi, 0x2000",
    "mov ecx, 256\n.one: insw\nloop .one",
)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(i * 7 + i // 256 & 0xFF for i in range(64 << 10)))
    return path


def state(machine):
    """Run to the end; all that can be known of it."""
    stop = machine.run(timeout=100)
    exits = machine.stats.exits
    counts = [exits[name].count for name in ("IN", "OUT")]
    ram = bytes(machine._ram.bytes[0x300000:0x310000])
    return stop, machine.now, machine.registers, counts, ram, machine.board.save()


def ends(code, disk, make=flat, **options):
    """Run it in each way; all that can be known of it must be the same."""
    found = []
    for can in CANS:
        with closing(make(code, abilities=can, disks=[disk], **options)) as machine:
            found.append(state(machine))
        found[-1] += (disk.read_bytes(),)
    assert found[0] == found[1] == found[2]
    return found[0]


def moves(body):
    return f"{COMMANDS}%macro move 0\n{body}\n%endmacro\n%define FIRST 5\n"


@pytest.mark.parametrize("read", READS)
def test_whoever_reads_a_block_the_guest_ends_alike(disk, read):
    """A timer stops the engine in the midst, and time goes on alike."""
    code = moves(read.replace(".one", "%%one")) + TIMER
    code += "command 0x20\nmov edi, 0x300FF1\nblocks move\nmov eax, ebx\njmp fin"
    assert any(ends(code, disk, paging="local")[4])


@pytest.mark.parametrize("write", ["mov ecx, 256\nrep outsw", "mov ecx, 90\nrep outsd"])
def test_whoever_writes_a_block_the_disk_ends_alike(disk, write):
    before = disk.read_bytes()
    code = moves(write) + "mov edi, 0x300000\n.fill: mov [edi], edi\nadd edi, 3\n"
    code += "cmp edi, 0x301000\njb .fill\n"
    code += "command 0x30\nmov esi, 0x300021\nblocks move\nmov eax, ebx\njmp fin"
    assert ends(code, disk)[-1] != before


def test_64_bit_code_ends_alike(disk):
    code = moves("mov ecx, 128\nrep insd")
    code += "command 0x20\nmov edi, 0x300FF1\nblocks move\nhlt"
    assert any(ends(code, disk, make=guest64)[4])


def test_one_call_does_all_of_a_page_but_for_a_blocks_last(disk, monkeypatch):
    done = []

    def go_on(*arguments):
        done.append(string_io.go_on(*arguments))
        return done[-1]

    monkeypatch.setattr(ports, "go_on", go_on)
    code = moves("mov ecx, 256\nrep insw")
    code += "command 0x20\nmov edi, 0x300100\nblocks move\njmp fin"
    with closing(flat(code, abilities=CANS[1], disks=[disk])) as machine:
        machine.run(timeout=100)
    assert done == [254] * 3
