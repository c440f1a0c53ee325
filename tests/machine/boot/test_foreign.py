"""Files that are no kernels are named, with what to do instead."""

import struct

import pytest

from emu86.errors import ConfigError
from emu86.machine import boot
from emu86.machine.boot import foreign

MIB = 1 << 20


def at(offset, magic, size=2048):
    """Zeros, with these bytes at `offset` of them."""
    return bytes(offset) + magic + bytes(max(size - offset - len(magic), 0))


def mz(signature, subsystem=0):
    """A DOS header that names another one at 80h (PE format, "MS-DOS Stub")."""
    start = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    header = signature.ljust(0x5C, b"\0") + struct.pack("<H", subsystem)
    return start.ljust(0x80, b"\0") + header


# Each from the description of its format.
FILES = [
    (b"\x1f\x8b\x08\0", "compressed with gzip: unpack it first (gunzip)"),
    (b"\x1f\x9d\x90", "compressed with compress: unpack it first (gunzip)"),
    (b"\xfd7zXZ\0\0\4", "compressed with xz: unpack it first (unxz)"),
    (b"\x5d\0\0\x80\0", "compressed with lzma: unpack it first (unlzma)"),
    (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd: unpack it first (unzstd)"),
    (b"BZh91AY", "compressed with bzip2: unpack it first (bunzip2)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: unpack it first (unlz4)"),
    (b"\x02\x21\x4c\x18", "compressed with lz4: unpack it first (unlz4)"),
    (b"\x89LZO\0\r\n\x1a\n", "compressed with lzop: unpack it first (lzop -d)"),
    (b"PK\3\4\x14\0", "a zip archive: unpack it first (unzip)"),
    (b"7z\xbc\xaf\x27\x1c\0", "a 7z archive: unpack it first (7z x)"),
    (at(257, b"ustar  \0"), "a tar archive: unpack it first (tar xf)"),
    (b"!<arch>\ndebian-binary   ", "a Debian package: unpack it first (dpkg-deb -x)"),
    (b"!<arch>\n/       ", "a library of object files: link it"),
    (b"\xed\xab\xee\xdb\3\0", "an RPM package: unpack it first (rpm2cpio)"),
    (b"070701000002", "a cpio archive (an initrd?): give it with --initrd"),
    (at(0x8001, b"CD001\1"), "an ISO 9660 image: give it with --cdrom"),
    # A hybrid one, which is a boot sector, too.
    (
        at(510, b"\x55\xaa", 0x8001) + b"CD001",
        "an ISO 9660 image: give it with --cdrom",
    ),
    (b"%PDF-1.7\n%\xe2", "a PDF document: take the file of a kernel"),
    (b"\x89PNG\r\n\x1a\n", "a picture (PNG): take the file of a kernel"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "a picture (JPEG): take the file of a kernel"),
    (b"GIF89a\1\0", "a picture (GIF): take the file of a kernel"),
    (b"QFI\xfb\0\0\0\3", "a disk image (qcow2): --disk takes a raw image"),
    (b"KDMV\1\0\0\0", "a disk image (VMDK): --disk takes a raw image"),
    (b"# Disk DescriptorFile\nversion=1\n", "a disk image (VMDK): --disk takes a raw"),
    (at(0x40, b"\x7f\x10\xda\xbe"), "a disk image (VDI): --disk takes a raw image"),
    (at(0, b"conectix"), "a disk image (VHD): --disk takes a raw image"),
    (bytes(1024) + b"conectix".ljust(512, b"\0"), "a disk image (VHD): --disk takes"),
    (b"vhdxfile\0\0", "a disk image (VHDX): --disk takes a raw image"),
    (at(510, b"\x55\xaaEFI PART"), "a disk image (with a GPT): give it with --disk"),
    (at(0x438, b"\x53\xef"), "a file system (ext2, ext3 or ext4): give it with --disk"),
    (b"hsqs\0", "a file system (squashfs): give it with --disk"),
    (b"\x27\x05\x19\x56\0", "a U-Boot image: take the kernel that is in it"),
    (b"ANDROID!\0", "an Android boot image: take the kernel that is in it"),
    (b"\xd0\x0d\xfe\xed\0", "a device tree: a PC has none; take the file of a kernel"),
    (b"MZ".ljust(56, b"\0") + b"ARM\x64", "a kernel for AArch64: build it for i386"),
    (at(36, b"\x18\x28\x6f\x01"), "a kernel for ARM: build it for i386"),
    (b"MZ".ljust(56, b"\0") + b"RSC\x05", "a kernel for RISC-V: build it for i386"),
    (b"\xce\xfa\xed\xfe\7\0\0\0", "a Mach-O file (macOS): build it for i386"),
    (b"\xcf\xfa\xed\xfe\7\0\0\1", "a Mach-O file (macOS): build it for i386"),
    (b"\xfe\xed\xfa\xce\0", "a Mach-O file (macOS): build it for i386"),
    (b"\xca\xfe\xba\xbe\0\0\0\2", "a Mach-O file (macOS) or a Java class: build it"),
    (b"\0asm\1\0\0\0", "a WebAssembly module: take the file of a kernel"),
    (b"BC\xc0\xde\x35", "LLVM bitcode: compile it for i386 (llc), and link it"),
    (b"\x4c\x01\3\0", "an object file (COFF): link it (ld -m elf_i386"),
    (b"#!/bin/sh\n", "a script: take the file of a kernel"),
    (b"\x55\xaa\x4d\xe9", "an expansion ROM: a BIOS has to load it"),
    (
        at(510, b"\x55\xaa", 512),
        "a boot sector or a disk image: give it with --disk",
    ),
    (mz(b"PE\0\0", 3), "a program for Windows: take the file of a kernel"),
    (mz(b"PE\0\0", 10), "an EFI program: take the file of a kernel"),
    (mz(b"NE"), "a program for 16-bit Windows: take the file of a kernel"),
    (mz(b"LE"), "a program for OS/2 or DOS: take the file of a kernel"),
    (mz(b"LX"), "a program for OS/2: take the file of a kernel"),
    (b"MZ\x90\0", "a program for DOS: take the file of a kernel"),
    (at(0x1FFF0, b"\xea\x5b\xe0\0\xf0", 0x20000), "a ROM: start the PC with it"),
    (at(0xFFF0, b"\xfa\xfc\xe9\x0b\xf8", 0x10000), "a ROM: start the PC with it"),
    (b"; kernel.asm\n\tbits 32\n", "a text file: assemble or compile it, and link it"),
    (b"\xfa\xf4\xff", "no bzImage, ELF or Multiboot kernel: code without a format"),
]


@pytest.mark.parametrize(
    ("image", "text"),
    FILES,
    ids=[f"{n} {text.split(':')[0]}" for n, (_, text) in enumerate(FILES)],
)
def test_it_is_named(image, text):
    with pytest.raises(ConfigError) as refused:
        boot.sniff(image)
    assert str(refused.value).startswith(f"kernel: is {text}")
    assert "\n" not in str(refused.value)


def test_every_kind_is_tried():
    tried = {text.split(": ")[0] for _, text in FILES}
    assert {what for _, _, what, _ in foreign._KINDS} <= tried


def test_a_rom_that_is_a_multiboot_kernel_too():
    """U-Boot's: its addresses are those of a ROM, below 4 GiB."""
    fields = (0x1BADB002, 0x10000, -0x1BADB002 - 0x10000 & 0xFFFFFFFF, 0xFFF00000)
    image = struct.pack("<4I", *fields).ljust(0xFFF0, b"\0") + b"\xe9".ljust(16, b"\0")
    with pytest.raises(ConfigError, match="^kernel: is a ROM"):
        boot.sniff(image)


def test_a_disk_that_has_a_multiboot_header_too():
    """GRUB's: that of its own image, after the boot sector."""
    header = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    image = at(510, b"\x55\xaa" + header)
    with pytest.raises(ConfigError, match="^kernel: is a boot sector or a disk image"):
        boot.load(memoryview(bytearray(MIB)), image)


def test_an_empty_file():
    with pytest.raises(ConfigError, match="^kernel: the file is empty"):
        boot.sniff(b"")


def elf(bits=32, order="<", machine=3, kind=2, entry=MIB, parts=((1, b"\xf4"),), abi=0):
    """An ELF file of either class and byte order; parts: (p_type, bytes) each."""
    ehdr, phdr = ("HHIIIIIHHH", "8I") if bits == 32 else ("HHIQQQIHHH", "2I6Q")
    start = 16 + struct.calcsize(order + ehdr) + 6
    size = struct.calcsize(order + phdr)
    at = start + size * len(parts)
    ident = bytes((0x7F, 69, 76, 70, bits // 32, 2 if order == ">" else 1, 1, abi))
    fields = (kind, machine, 1, entry, start, 0, 0, start, size, len(parts))
    headers = contents = b""
    for p_type, data in parts:
        row = (at + len(contents), entry, entry, len(data), len(data))
        row = (p_type, *row, 5, 0) if bits == 32 else (p_type, 5, *row, 0)
        headers += struct.pack(order + phdr, *row)
        contents += data
    ehdr = ident.ljust(16, b"\0") + struct.pack(order + ehdr, *fields) + bytes(6)
    return ehdr + headers + contents


# The note by which a linker marks a program for Linux 3.2 and later (LSB, "Note
# Sections").
ABI_TAG = struct.pack("<3I4s4I", 4, 16, 1, b"GNU", 0, 3, 2, 0)
PROGRAM = "a program for Linux, not a kernel: boot Linux, with the program in an initrd"
FOR = "is an ELF file for {}, this machine is a PC: build it for i386 (gcc -m32"


@pytest.mark.parametrize(
    ("image", "text"),
    [
        # gcc -m32 (position-independent, and not), -static-pie, -static; ld alone
        (elf(kind=3, entry=0x1060, parts=((3, b"/lib/ld-linux.so.2\0"),)), PROGRAM),
        (elf(entry=0x8049060, parts=((3, b"/lib/ld-linux.so.2\0"),)), PROGRAM),
        (elf(kind=3, entry=0x1060, parts=((7, b""), (4, ABI_TAG))), PROGRAM),
        (elf(parts=((1, b"\xf4"), (4, b"\0\0\0\0" + ABI_TAG))), PROGRAM),
        (elf(abi=3), PROGRAM),
        (elf(entry=0x8049000), PROGRAM + " (if it is a kernel after all, link it with"),
        (elf(64, machine=62, kind=3, entry=0x1060, parts=((3, b"/lib64/ld\0"),)),
         "a program for Linux on x86-64, not a kernel: boot Linux"),
        (elf(64, machine=183, entry=0x400000, parts=((7, b""),)),
         "a program for Linux on AArch64, not a kernel: boot Linux"),
        (elf(64, machine=0x4242, parts=((7, b""),)),
         "a program for Linux on machine 16962, not a kernel: boot Linux"),
        (elf(kind=3, entry=0x1060), "a shared library, not a kernel: take the file"),
        (elf(kind=1, parts=()), "an object file: link it (ld -m elf_i386"),
        (elf(64, machine=62, kind=1, parts=()),
         "an object file: link it (ld -m elf_x86_64 -Ttext 0x100000)"),
        (elf(kind=1, parts=()) + b"\0.gnu.linkonce.this_module\0",
         "a module of Linux's kernel: load it in the guest (insmod)"),
        (elf(kind=4, parts=()), "a core dump: take the file of a kernel"),
        (elf(kind=9), "an ELF file, but no executable"),
        (elf(machine=40), FOR.format("ARM")[3:]),
        (elf(order=">", machine=8), FOR.format("MIPS")[3:]),
        (elf(64, machine=183), FOR.format("AArch64")[3:]),
        (elf(machine=0x4242), FOR.format("machine 16962")[3:]),
        (elf(64), "a 64-bit ELF file for i386, this machine is a PC"),
        (elf(machine=62), "a 32-bit ELF file for x86-64, this machine is a PC"),
        (elf(order=">"), "a big-endian ELF file for i386, this machine is a PC"),
        (elf(64, order=">", machine=62), "a big-endian ELF file for x86-64, this"),
    ],
)  # fmt: skip
def test_elf_files_are_named(image, text):
    with pytest.raises(ConfigError) as refused:
        boot.sniff(image)
    assert str(refused.value).startswith(f"kernel: is {text}")
    assert ("after all" in str(refused.value)) == ("after all" in text)
    assert "\n" not in str(refused.value)


def test_kernels_are_not_taken_for_programs():
    assert boot.sniff(elf()) == boot.sniff(elf(64, machine=62)) == "elf"
    # Notes of a vmlinux: other names, and other types of the name GNU.
    build_id = struct.pack("<3I4s5I", 4, 20, 3, b"GNU", 1, 2, 3, 4, 5)
    linux = struct.pack("<3I8sI", 6, 4, 1, b"Linux", 0)
    assert boot.sniff(elf(parts=((1, b"\xf4"), (4, linux + build_id)))) == "elf"


def test_a_multiboot_kernel_is_a_kernel_wherever_it_is_linked():
    header = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    assert boot.sniff(elf(entry=0x8049000, parts=((1, header),))) == "multiboot"
    ram = memoryview(bytearray(MIB))
    with pytest.raises(ConfigError, match="for AArch64, this machine is a PC"):
        boot.load(ram, elf(64, machine=183, parts=((1, header),)))
