"""Floppies: as a user gives and changes them, and booted from."""

import shutil
import struct
import subprocess
import sys

import pytest

from emu86 import ConfigError, Machine, config, images
from emu86.devices.floppy_drive import FORMATS
from support.assembler import assemble
from support.places import TESTS

QEMU = shutil.which("qemu-system-i386")
SECONDS = 120  # a guest that hangs ends then
HD = 1440 << 10


def kernel_floppy():
    """A floppy with the teaching kernel."""
    image = images.path("teach")
    header = struct.unpack_from("<I", image.read_bytes(), 28)[0]
    address, size = struct.unpack_from("<I8xI", image.read_bytes(), header + 8)
    names = f'%define IMAGE "{image}"\n%define END {address + size}\n'
    return assemble(names + (TESTS / "support" / "floppy_kernel.asm").read_text())


def sector(code, size=HD):
    """A floppy with a boot sector."""
    text = f"bits 16\norg 0x7c00\n{code}\ntimes 510 - ($ - $$) db 0\ndw 0xaa55\n"
    return assemble(text).ljust(size, b"\0")


# Sends AL, or the digit of AL, and powers off.
SAYS = """
    mov dx, 0x3f8
    out dx, al
    mov ax, 0x2000
    mov dx, 0x604
    out dx, ax
"""
SAYS_DIGIT = f"""
    add al, '0'
    {SAYS}
"""
SAYS_DRIVE = f"""
    mov al, dl
    {SAYS_DIGIT}
"""


@pytest.fixture
def floppy(tmp_path):
    path = tmp_path / "floppy.img"
    path.write_bytes(sector(SAYS_DRIVE))
    return path


def machine(*floppies, **options):
    return Machine("2M", floppies=floppies, **options)


def console(guest):
    said = bytearray()
    guest.on_console(said.extend)
    guest.run(timeout=SECONDS)
    return said.decode()


# -- booted from -----------------------------------------------------------------------


def test_the_teaching_kernel_from_a_floppy(tmp_path):
    path = tmp_path / "teach.img"
    path.write_bytes(kernel_floppy())
    guest = Machine("8M", bios=images.bios(), floppies=[path])
    said = console(guest)
    assert "teach: all 93 checks passed" in said
    guest.close()
    assert path.read_bytes() == kernel_floppy()


@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed")
def test_that_floppy_boots_on_qemu(tmp_path):
    path = tmp_path / "teach.img"
    path.write_bytes(kernel_floppy())
    command = [QEMU, "-M", "isapc", "-cpu", "pentium3,-apic", "-m", "16", "-no-reboot"]
    command += ["-display", "none", "-monitor", "none", "-serial", "stdio"]
    command += ["-drive", f"if=floppy,format=raw,file={path}", "-boot", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        lines = iter(process.stdout.readline, b"")
        assert any(b"teach: all 93 checks passed" in line for line in lines)
        process.kill()


@pytest.mark.parametrize("size", [size for size in FORMATS if size >> 10 != 1680])
def test_each_size_boots(tmp_path, size):
    """The last sector is read as the drive's parameters say, then this is told."""
    its = FORMATS[size]
    path = tmp_path / "floppy.img"
    code = f"""
        mov ax, 0x0201
        mov bx, 0x8000
        mov cx, {(its.tracks - 1) << 8 | its.sectors}
        mov dh, {its.heads - 1}
        int 0x13
        mov al, [0x8000]
        jnc .read
        mov al, 'X'
    .read:
        {SAYS}
    """
    image = bytearray(sector(code, size))
    image[-512] = ord("L")
    path.write_bytes(image)
    assert console(machine(path, bios=images.bios())) == "L"


def test_the_bios_formats_a_track(tmp_path):
    names = ", ".join(f"79, 0, {number}, 2" for number in range(1, 19))
    path = tmp_path / "floppy.img"
    code = f"""
        push cs
        pop es
        mov ax, 0x0512
        mov bx, names
        mov cx, 0x4f01
        mov dx, 0
        int 0x13
        mov al, ah
        {SAYS_DIGIT}
    names: db {names}
    """
    path.write_bytes(sector(code))
    guest = machine(path, bios=images.bios())
    assert console(guest) == "0"
    guest.close()
    data = path.read_bytes()
    begins = 79 * 2 * 18 * 512
    assert data[begins : begins + 18 * 512] == b"\xf6" * 18 * 512
    assert not any(data[512:begins])


def test_a_protected_floppy_is_told_of(tmp_path):
    path = tmp_path / "floppy.img"
    code = f"""
        mov ax, 0x0301
        mov bx, 0x7c00
        mov cx, 2
        mov dx, 0
        int 0x13
        mov al, ah
        {SAYS_DIGIT}
    """
    path.write_bytes(sector(code))
    for writes, said in (("refuse", "3"), ("discard", "0")):
        assert console(machine(path, bios=images.bios(), writes=writes)) == said
    assert path.read_bytes() == sector(code)


def test_code_that_dma_writes_is_what_runs(tmp_path):
    """Each of 8 sectors, read to the same place and called, tells its number."""
    path = tmp_path / "floppy.img"
    code = """
        mov si, 8
    next:
        mov ax, 0x0201
        mov bx, 0x8000
        mov cx, 10
        sub cx, si
        mov dx, 0
        int 0x13
        call 0x8000
        dec si
        jnz next
        mov ax, 0x2000
        mov dx, 0x604
        out dx, ax
    """
    parts = [
        assemble(f"bits 16\nmov dx, 0x3f8\nmov al, '{number}'\nout dx, al\nret\n")
        for number in range(8)
    ]
    behind = b"".join(part.ljust(512, b"\0") for part in parts)
    path.write_bytes((sector(code, 512) + behind).ljust(HD, b"\0"))
    for technique in config.DEPRIVILEGED:
        guest = machine(path, bios=images.bios(), technique=technique, writes="refuse")
        assert console(guest) == "01234567"


def test_a_changed_floppy_is_told_of_once(tmp_path, floppy):
    """Status 6 tells it; the next call reads what is in then."""
    path = tmp_path / "asks.img"
    code = """
    next:
        mov ax, 0x0201
        mov bx, 0x8000
        mov cx, 1
        mov dx, 0
        int 0x13
        mov al, ah
        add al, '0'
        mov dx, 0x3f8
        out dx, al
        mov al, [0x8000]
        out dx, al
        mov al, 10
        out dx, al
        mov cx, 20
    wait_:
        hlt
        loop wait_
        jmp next
    """
    path.write_bytes(sector(code))
    guest = machine(path, bios=images.bios())
    said = bytearray()
    guest.on_console(said.extend)
    first = b"0" + path.read_bytes()[:1] + b"\n"
    assert guest.run(until=first * 2, timeout=SECONDS).reason == "until"
    guest.insert("floppy0", floppy)
    then = b"6" + path.read_bytes()[:1] + b"\n0" + floppy.read_bytes()[:1] + b"\n"
    assert guest.run(until=then, timeout=SECONDS).reason == "until"
    guest.insert("floppy0", None)
    assert guest.run(until=b"\nx", timeout=0.01).reason == "timeout"
    guest.close()


def test_a_machine_is_saved_between_its_sectors(tmp_path):
    path = tmp_path / "teach.img"
    path.write_bytes(kernel_floppy())
    guest = Machine("8M", bios=images.bios(), floppies=[path, ""], writes="refuse")
    guest.run(until=b"Booting from floppy A", timeout=SECONDS)
    other = Machine.restore(guest.save())
    assert other.drives == guest.drives == {"floppy0": str(path), "floppy1": ""}
    for one in (guest, other):
        assert "teach: all 93 checks passed" in console(one)
    assert other.now == guest.now
    assert other.save().board == guest.save().board


# -- the order of drives ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "said"), [("", "0"), ("a", "0"), ("c", "\xb0"), ("ca", "\xb0")]
)
def test_what_is_booted_first(tmp_path, floppy, order, said):
    disk = tmp_path / "disk.img"
    disk.write_bytes(floppy.read_bytes())
    guest = machine(floppy, disks=[disk], bios=images.bios(), boot=order)
    heard = bytearray()
    guest.on_console(heard.extend)
    guest.run(timeout=SECONDS)
    assert heard.decode("latin-1") == said


def test_an_order_without_what_can_be_booted_ends_with_a_message(tmp_path, floppy):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    guest = machine(floppy, disks=[disk], bios=images.bios(), boot="c")
    stop = guest.run(until=b"There is nothing to boot", timeout=SECONDS)
    assert stop.reason == "until"


@pytest.mark.parametrize("order", ["x", "aa", "A", "ac "])
def test_letters_that_are_no_order(floppy, order):
    line = "is no order of drives, each of them once .a: floppy drive, c: disk, d: CD"
    with pytest.raises(ConfigError, match=f"boot: '{order}' {line}"):
        machine(floppy, disks=[floppy], writes="refuse", boot=order)


@pytest.mark.parametrize(
    ("letter", "what"), [("a", "floppy drive"), ("c", "disk"), ("d", "CD-ROM drive")]
)
def test_letters_without_a_drive(letter, what):
    with pytest.raises(ConfigError, match=f"boot: '{letter}': there is no {what}"):
        machine(boot=letter)


# -- what is refused, and what is changed ----------------------------------------------


def test_a_machine_without_floppies_has_no_controller():
    ports = machine().board.ports
    assert {ports.name(port) for port in (0, 0x81, 0xC0, 0x3F2, 0x3F7)} == {None}


def test_the_cmos_ram_says_which_drives_there_are(tmp_path):
    sizes = {
        "": 0x04, 360 << 10: 1, 1200 << 10: 2, 720 << 10: 4, HD: 4, 2880 << 10: 5,
    }  # fmt: skip
    for size, kind in sizes.items():
        path = tmp_path / f"{size}.img"
        if size:
            path.write_bytes(bytes(size))
        ram = machine("", path if size else "", writes="refuse").board.rtc.ram
        assert ram[0x10] == 0x40 | kind
        assert ram[0x14] & 0xC1 == 0x41
        assert sum(ram[0x10:0x2E]) == ram[0x2E] << 8 | ram[0x2F]
    ram = machine(tmp_path / f"{HD}.img", writes="refuse").board.rtc.ram
    assert (ram[0x10], ram[0x14] & 0xC1) == (0x40, 1)


def test_files_that_are_no_floppies(tmp_path, floppy):
    with pytest.raises(ConfigError, match="floppies: 3 are too many; there can be 2"):
        machine("", "", "")
    with pytest.raises(TypeError, match="is one file, not a sequence"):
        Machine("2M", floppies=str(floppy))
    with pytest.raises(TypeError, match="floppies: 5"):
        machine(5)
    short = tmp_path / "short.img"
    short.write_bytes(bytes(512))
    with pytest.raises(ConfigError) as wrong:
        machine(floppy, short)
    assert str(wrong.value) == (
        f"floppy1: {short}: its 512 bytes are no floppy's; truncate -s 1440K makes a"
        " smaller one a floppy of 1.44M"
    )
    with pytest.raises(ConfigError, match="floppy1: .* is in use by another emu86"):
        machine(floppy, floppy)
    machine(floppy).close()


def test_floppies_are_changed(tmp_path, floppy):
    other, small = tmp_path / "other.img", tmp_path / "small.img"
    other.write_bytes(bytes(HD))
    small.write_bytes(bytes(360 << 10))
    guest = machine("", floppy)
    assert guest.drives == {"floppy0": "", "floppy1": str(floppy)}
    for wrong, why in (
        (
            small,
            "floppy1: .*small.img: needs a drive of 360K, and this one is of 1.44M",
        ),
        (tmp_path / "none", "floppy1: .*none: No such file or directory"),
        (tmp_path, "floppy1: .*: is no file with an image"),
    ):
        with pytest.raises(ConfigError, match=why):
            guest.insert("floppy1", wrong)
        assert guest.drives["floppy1"] == str(floppy)
    guest.insert("floppy0", other)
    with pytest.raises(ConfigError, match="is in use by another emu86"):
        guest.insert("floppy1", other)
    guest.insert("floppy1", None)
    machine(floppy).close()  # nobody has it
    assert guest.drives == {"floppy0": str(other), "floppy1": ""}
    restored_from = guest.save()
    guest.close()
    assert Machine.restore(restored_from).drives == guest.drives


def test_the_same_floppy_is_put_in_again(floppy):
    """As after a new build of it, which was written in place."""
    guest = machine(floppy)
    drive = guest.board.rtc, guest.drives
    guest.insert("floppy0", floppy)
    assert guest.drives == drive[1]
    floppy.write_bytes(bytes(100))
    with pytest.raises(ConfigError, match="is truncated: its 100 bytes"):
        guest.insert("floppy0", floppy)


def test_a_drive_keeps_its_type_in_a_state(tmp_path, floppy):
    large = tmp_path / "large.img"
    large.write_bytes(bytes(2880 << 10))
    guest = machine(large, writes="discard")
    guest.insert("floppy0", floppy)
    again = Machine.restore(guest.save())
    guest.close()
    again.insert("floppy0", large)
    assert again.drives == {"floppy0": str(large)}


def test_nothing_is_put_into_a_closed_machine(floppy):
    guest = machine("", cdrom="")
    guest.close()
    for drive in guest.drives:
        with pytest.raises(ConfigError, match="insert: this machine is closed"):
            guest.insert(drive, floppy)
    machine(floppy).close()


# -- the command -----------------------------------------------------------------------


def emu86(*options):
    command = [sys.executable, "-m", "emu86", "run", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def test_the_command_boots_a_floppy(floppy):
    done = emu86(str(floppy))
    assert (done.returncode, done.stdout) == (0, "0")
    assert f"{floppy}: taken as by --floppy" in done.stderr


def test_the_command_boots_from_an_empty_cd_drive():
    done = emu86("--cdrom", "", "--until", "nothing to boot", "--screenshot", "-")
    assert done.returncode == 0, done.stderr
    assert "There is nothing to boot" in done.stdout


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--boot", "a"], "Invalid value for --boot: it is the BIOS's"),
        (["--floppy", "", "--boot", "x"], "boot: 'x' is no order of drives"),
        (["--floppy", "absent"], "floppy0: absent: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(options, line):
    done = emu86(*options)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rom_that_is_none_is_named(tmp_path):
    rom = tmp_path / "rom.bin"
    rom.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"bios: .*rom.bin: is empty"):
        machine(bios=rom)
    rom.write_bytes(bytes(5))
    with pytest.raises(ConfigError, match=r"bios: .*rom.bin: its 5 bytes are not"):
        machine(bios=rom)
