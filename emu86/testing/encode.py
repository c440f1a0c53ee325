"""The few instructions that stages, strategies and labs are put together from."""

import struct

from emu86.spec import x86


def check_bits(bits: object) -> None:
    """Raise ValueError for what is no width of programs: 32 or 64."""
    __tracebackhide__ = True
    if bits not in (32, 64):
        message = f"bits: {bits!r:.60} is not 32 or 64"
        raise ValueError(message)


def i32(value: int) -> bytes:
    """Return a doubleword, little endian."""
    return struct.pack("<I", value & x86.MASK32)


def mov(register: int, value: int) -> bytes:
    """MOV r32, imm32."""
    return bytes([0xB8 + register]) + i32(value)


def push(value: int) -> bytes:
    """PUSH imm32."""
    return b"\x68" + i32(value)


def mov64(register: int, value: int) -> bytes:
    """MOV r64, imm64."""
    return bytes([0x48 | register >> 3, 0xB8 + (register & 7)]) + struct.pack(
        "<Q", value & x86.MASK64
    )


def absolute(reg: int, at: int, bits: int = 32) -> bytes:
    """Return ModRM and what follows for `[at]`; 64-bit code extends the sign."""
    if bits == 64:
        return bytes([reg << 3 | 4, 0x25]) + i32(at)
    return bytes([reg << 3 | 5]) + i32(at)
