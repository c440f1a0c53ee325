"""What a file is that is no kernel for this machine, and what to do instead.

Each kind is known by its magic number, from its own format's description; most are in
the table of file(1), too.
"""

import re
from typing import Final

from emu86.errors import ConfigError
from emu86.machine.boot import elf

_UNPACK: Final = "unpack it first ({})"
_CD: Final = "give it with --cdrom"
_DISK: Final = "give it with --disk"
_RAW: Final = "--disk takes a raw image, which qemu-img convert -O raw makes of it"
_BUILD: Final = "build it for i386 (gcc -m32, ld -m elf_i386)"
_LD: Final = "ld -m {} -Ttext 0x100000"
_LINK: Final = f"link it ({_LD.format('elf_i386')})"
_BIOS: Final = "start the PC with it: --bios"
_BOOTED: Final = "a BIOS has to load it; take the file of a kernel"
_PROGRAM: Final = "boot Linux, with the program in an initrd"
_INITRD: Final = "give it with --initrd, and a kernel with --kernel"
_KERNEL: Final = "take the file of a kernel"

# Disks in other formats than the raw one: (offset, magic number, name).
DISK_FORMATS: Final = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"conectix", "VHD"),
    (0, b"vhdxfile", "VHDX"),
)
# (offset, magic number) of an image of a CD, and of a boot sector.
ISO: Final = 0x8001, b"CD001"
BOOT_SECTOR: Final = 510, b"\x55\xaa"

# (offset, magic number, what it is, what to do). The first that fits counts, so what
# has two of them stands before what has one.
_KINDS: Final = (
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK.format("gunzip")),
    (0, b"\x1f\x9d", "compressed with compress", _UNPACK.format("gunzip")),
    (0, b"\xfd7zXZ\0", "compressed with xz", _UNPACK.format("unxz")),
    (0, b"\x5d\0\0", "compressed with lzma", _UNPACK.format("unlzma")),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK.format("unzstd")),
    (0, b"BZh", "compressed with bzip2", _UNPACK.format("bunzip2")),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK.format("unlz4")),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", _UNPACK.format("unlz4")),
    (0, b"\x89LZO", "compressed with lzop", _UNPACK.format("lzop -d")),
    (0, b"PK\3\4", "a zip archive", _UNPACK.format("unzip")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format("7z x")),
    (257, b"ustar", "a tar archive", _UNPACK.format("tar xf")),
    (0, b"!<arch>\ndebian", "a Debian package", _UNPACK.format("dpkg-deb -x")),
    (0, b"!<arch>\n", "a library of object files", _LINK),
    (0, b"\xed\xab\xee\xdb", "an RPM package", _UNPACK.format("rpm2cpio")),
    (0, b"07070", "a cpio archive (an initrd?)", _INITRD),
    (*ISO, "an ISO 9660 image", _CD),
    *((at, magic, f"a disk image ({name})", _RAW) for at, magic, name in DISK_FORMATS),
    (-512, b"conectix", "a disk image (VHD)", _RAW),
    (512, b"EFI PART", "a disk image (with a GPT)", _DISK),
    (0x438, b"\x53\xef", "a file system (ext2, ext3 or ext4)", _DISK),
    (0, b"hsqs", "a file system (squashfs)", _DISK),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", "take the kernel that is in it"),
    (0, b"ANDROID!", "an Android boot image", "take the kernel that is in it"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree", "a PC has none; " + _KERNEL),
    (56, b"ARM\x64", "a kernel for AArch64", _BUILD),
    (36, b"\x18\x28\x6f\x01", "a kernel for ARM", _BUILD),
    (56, b"RSC\x05", "a kernel for RISC-V", _BUILD),
    (0, b"\xce\xfa\xed\xfe", "a Mach-O file (macOS)", _BUILD),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O file (macOS)", _BUILD),
    (0, b"\xfe\xed\xfa", "a Mach-O file (macOS)", _BUILD),
    (0, b"\xca\xfe\xba\xbe", "a Mach-O file (macOS) or a Java class", _BUILD),
    (0, b"\0asm", "a WebAssembly module", _KERNEL),
    (0, b"BC\xc0\xde", "LLVM bitcode", "compile it for i386 (llc), and " + _LINK),
    (0, b"\x4c\x01", "an object file (COFF)", _LINK),
    (0, b"#!", "a script", _KERNEL),
    (0, b"%PDF-", "a PDF document", _KERNEL),
    (0, b"\x89PNG\r\n", "a picture (PNG)", _KERNEL),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _KERNEL),
    (0, b"GIF8", "a picture (GIF)", _KERNEL),
    (0, b"\x55\xaa", "an expansion ROM", _BOOTED),
    (*BOOT_SECTOR, "a boot sector or a disk image", _DISK),
)

# What is at the address of the file header that DOS programs name (PE format, "MS-DOS
# Stub"): a signature, and for Windows' own format a subsystem ("Optional Header").
_MZ_STUB: Final = {
    b"PE\0\0": "a program for Windows",
    b"NE": "a program for 16-bit Windows",
    b"LE": "a program for OS/2 or DOS",
    b"LX": "a program for OS/2",
}
_EFI_SUBSYSTEMS: Final = range(10, 14)

# The first instructions at reset: what may precede a jump is NOP, CLI, CLD, INVD and
# WBINVD.
_RESET_VECTOR: Final = re.compile(rb"(?:[\x90\xfa\xfc]|\x0f[\x08\x09])*[\xe9\xea\xeb]")
_ROM_UNIT: Final = 1 << 16
RESET_BYTES: Final = 16

_MACHINES: Final = {
    2: "SPARC", 3: "i386", 4: "68000", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64",
    22: "S/390", 40: "ARM", 42: "SuperH", 43: "SPARC 64", 50: "Itanium",
    62: "x86-64", 183: "AArch64", 243: "RISC-V", 247: "BPF", 258: "LoongArch",
}  # fmt: skip
_BITS: Final = {elf.I386: 32, elf.X86_64: 64}
_GNU_LINUX: Final = 3  # EI_OSABI
# A note of the name "GNU", 4 bytes with its NUL, of 16 bytes and type 1: the oldest
# kernel that a program runs on; operating system 0 is Linux (LSB, "Note Sections").
_ABI_TAG: Final = b"\4\0\0\0\x10\0\0\0\1\0\0\0GNU\0\0\0\0\0"
# How far it is looked for: a file may claim any number of notes, of any size.
_NOTES: Final = 8
_NOTES_SIZE: Final = 512
# Where ld puts programs: i386 and x86-64.
_LINKED_LOW: Final = {3: range(0x08040000, 0x09000000), 62: range(0x400000, 0x500000)}


_NO_KERNEL: Final = (
    "no bzImage, ELF or Multiboot kernel",
    "code without a format needs a Multiboot header in its first 8192 bytes",
)


def refuse(image: bytes, otherwise: tuple[str, str] = _NO_KERNEL) -> ConfigError:
    """Say what `image` is, which is no kernel that can be loaded, and what to do.

    otherwise: the same for one of no kind that is known.
    """
    what, advice = _kind(image) or otherwise
    return ConfigError(f"kernel: is {what}: {advice}")


def is_rom(image: bytes) -> bool:
    """Whether `image` is a ROM: its last 16 bytes are where a CPU starts at reset."""
    return is_rom_of(len(image), image[-RESET_BYTES:])


def is_rom_of(size: int, end: bytes) -> bool:
    """Whether a file of `size` bytes with this end, `RESET_BYTES` of it, is a ROM."""
    whole = size > 0 and size % _ROM_UNIT == 0
    return whole and _RESET_VECTOR.match(end) is not None


def check_machine(found: elf.Headers, image: bytes) -> None:
    """Raise ConfigError unless these are the headers of an executable for x86."""
    here = "this machine is a PC"
    bits = _BITS.get(found.machine)
    if bits is None:
        message = f"is an ELF file for {_machine(found)}, {here}: {_BUILD}"
        raise ConfigError(f"kernel: {message}")
    if found.bits != bits or found.order != "<":
        kind = f"{found.bits}-bit" if found.bits != bits else "big-endian"
        message = f"is a {kind} ELF file for {_machine(found)}, {here}: {_BUILD}"
        raise ConfigError(f"kernel: {message}")
    if found.kind == elf.RELOCATABLE:
        if b"\0.gnu.linkonce.this_module\0" in image:
            message = "a module of Linux's kernel: load it in the guest (insmod)"
        else:
            message = f"an object file: link it ({_ld(found)})"
        raise ConfigError(f"kernel: is {message}")
    if found.kind == elf.CORE:
        raise ConfigError(f"kernel: is a core dump: {_KERNEL}")
    if found.kind not in (elf.EXECUTABLE, elf.SHARED):
        raise ConfigError("kernel: is an ELF file, but no executable")


def check_kernel(found: elf.Headers, image: bytes) -> None:
    """Raise ConfigError for an ELF file that may be a program, not a kernel."""
    linked_as_one = found.entry in _LINKED_LOW.get(found.machine, ())
    marked = _is_marked(found, image)
    if found.kind in (elf.EXECUTABLE, elf.SHARED) and (marked or linked_as_one):
        where = "" if found.machine == elf.I386 else f" on {_machine(found)}"
        message = f"is a program for Linux{where}, not a kernel: {_PROGRAM}"
        if not marked:
            message += f" (if it is a kernel after all, link it with {_ld(found)})"
        raise ConfigError(f"kernel: {message}")
    check_machine(found, image)
    if found.kind == elf.SHARED:
        raise ConfigError(f"kernel: is a shared library, not a kernel: {_KERNEL}")


def _ld(found: elf.Headers) -> str:
    return _LD.format("elf_i386" if found.machine == elf.I386 else "elf_x86_64")


def _machine(found: elf.Headers) -> str:
    return _MACHINES.get(found.machine, f"machine {found.machine}")


def _kind(image: bytes) -> tuple[str, str] | None:
    """Return what the file is, and what to do, if its kind is known."""
    for offset, magic, what, advice in _KINDS:
        if image.startswith(magic, offset):
            return what, advice
    if image.startswith(b"MZ"):
        return _mz(image), _KERNEL
    if is_rom(image):
        return "a ROM", _BIOS
    if _is_text(image[:512]):
        return "a text file", "assemble or compile it, and " + _LINK
    return None


def _mz(image: bytes) -> str:
    at = int.from_bytes(image[0x3C:0x40], "little")
    for signature, what in _MZ_STUB.items():
        if image.startswith(signature, at):
            subsystem = int.from_bytes(image[at + 0x5C : at + 0x5E], "little")
            efi = signature == b"PE\0\0" and subsystem in _EFI_SUBSYSTEMS
            return "an EFI program" if efi else what
    return "a program for DOS"


def _is_text(start: bytes) -> bool:
    printable = bytes(range(0x20, 0x7F)) + b"\t\n\r\f"
    return bool(start) and not start.translate(None, printable)


def _is_marked(found: elf.Headers, image: bytes) -> bool:
    """Whether something in the file says that it is for Linux, or for a C library."""
    kinds = {segment.kind for segment in found.segments}
    if kinds & {elf.INTERPRETER, elf.THREAD_LOCAL} or found.abi == _GNU_LINUX:
        return True
    notes = [segment.offset for segment in found.segments if segment.kind == elf.NOTE]
    return any(_ABI_TAG in image[at : at + _NOTES_SIZE] for at in notes[:_NOTES])
