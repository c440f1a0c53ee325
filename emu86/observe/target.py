"""The target description that gdb is given: its registers, in their order.

Source: GDB manual, appendix G "Target Descriptions" (Standard Target Features, i386).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from emu86.cpu.state import BASE, RIP, SELECTOR
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.machine.machine import Machine

# Of the general registers in gdb's order: their numbers in ours.
_ORDER64: Final = (0, 3, 1, 2, 6, 7, 5, 4, *range(8, 16))
_SEGMENTS: Final = (x86.CS, x86.SS, x86.DS, x86.ES, x86.FS, x86.GS)
_FPU: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_NAMES_OF_FPU: Final = {"fctrl": "fpcw", "fstat": "fpsw"}
_CONTROL: Final = ("cr0", "cr2", "cr3", "cr4")
_FLAGS: Final = (
    ("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9),
    ("DF", 10), ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18),
    ("VIF", 19), ("VIP", 20), ("ID", 21),
)  # fmt: skip
_TYPES: Final = (
    '<flags id="i386_eflags" size="4">'
    + "".join(f'<field name="{name}" start="{i}" end="{i}"/>' for name, i in _FLAGS)
    + "</flags>"
)
_VECTORS: Final = (
    '<vector id="v4f" type="ieee_single" count="4"/>'
    '<vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/>'
    '<vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/>'
    '<vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/>'
    '<field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/>'
    '<field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/>'
    "</union>"
)


class Register(NamedTuple):
    """A register: its name and bits, gdb's type; read gives its value.

    setter: its name for `Machine.set_register`; "" if it cannot be written.
    """

    name: str
    bits: int
    kind: str
    read: Callable[[], int]
    setter: str = ""


class Target:
    """The registers of one machine, as gdb sees them.

    Those of 64 bits if the CPU model has them, whatever mode it is in.
    """

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        vmm = machine.vmm
        self._q = vmm.q
        self._vmm = vmm
        self.wide = vmm.vcpu.model.is_64_bit
        self._fpu: dict[str, int] = {}
        general, floats, vectors, system = self._features()
        self.registers = (*general, *floats, *vectors, *system)
        architecture = "i386:x86-64" if self.wide else "i386"
        core = _feature("org.gnu.gdb.i386.core", _TYPES, (*general, *floats))
        sse = _feature("org.gnu.gdb.i386.sse", _VECTORS, vectors)
        own = _feature("org.emu86.system", "", system)
        self.xml = (
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
            f"<target><architecture>{architecture}</architecture>{core}{sse}{own}"
            "</target>"
        ).encode()

    def _features(self) -> tuple[list[Register], ...]:
        q, bits = self._q, 64 if self.wide else 32
        code, data = ("code_ptr", "data_ptr")
        names: tuple[str, ...] = x86.GPR_NAMES
        prefix = "e"
        order: tuple[int, ...] = tuple(range(8))
        if self.wide:
            names, prefix, order = x86.GPR64_NAMES, "r", _ORDER64
        general = []
        for i in order:
            kind = data if names[i][1:] in ("sp", "bp") else f"int{bits}"
            read = _word(q, i)
            general.append(Register(names[i], bits, kind, read, names[i]))
        ip, flags = f"{prefix}ip", f"{prefix}flags"
        general.append(Register(ip, bits, code, _word(q, RIP), ip))
        general.append(
            Register("eflags", 32, "i386_eflags", self._vmm.guest_flags, flags)
        )
        general += [
            Register(x86.SEGMENT_NAMES[i], 32, "int32", self._selector(i))
            for i in _SEGMENTS
        ]
        floats = [Register(f"st{i}", 80, "i387_ext", self._st(i)) for i in range(8)]
        floats += [Register(name, 32, "int", self._of_fpu(name)) for name in _FPU]
        vectors = [
            Register(f"xmm{i}", 128, "vec128", self._of_fpu(f"xmm{i}"))
            for i in range(8)
        ]
        vectors.append(Register("mxcsr", 32, "int", self._of_fpu("mxcsr")))
        return general, floats, vectors, self._system(bits)

    def _system(self, bits: int) -> list[Register]:
        """Return control registers, and bases and limits of segments and tables."""
        vcpu, q = self._vmm.vcpu, self._q
        kind = f"int{bits}"
        made = [
            Register(name, bits, kind, partial(getattr, vcpu, name))
            for name in _CONTROL
        ]
        if self.wide:
            made.append(Register("cr8", bits, kind, lambda: vcpu.cr8))
            made.append(Register("efer", bits, kind, lambda: vcpu.efer))
        made += [
            Register(
                f"{x86.SEGMENT_NAMES[i]}_base", bits, "data_ptr", _word(q, BASE[i])
            )
            for i in _SEGMENTS
        ]
        ldtr, tr = vcpu.ldtr, vcpu.tr
        parts: tuple[tuple[str, int, Callable[[], int]], ...] = (
            ("gdt_base", bits, lambda: vcpu.gdt_base),
            ("gdt_limit", 32, lambda: vcpu.gdt_limit),
            ("idt_base", bits, lambda: vcpu.idt_base),
            ("idt_limit", 32, lambda: vcpu.idt_limit),
            ("ldtr", 32, lambda: ldtr.selector),
            ("ldt_base", bits, lambda: ldtr.base),
            ("ldt_limit", 32, lambda: ldtr.limit),
            ("tr", 32, lambda: tr.selector),
            ("tss_base", bits, lambda: tr.base),
            ("tss_limit", 32, lambda: tr.limit),
        )
        made += [Register(name, wide, f"int{wide}", read) for name, wide, read in parts]
        return made

    def _selector(self, index: int) -> Callable[[], int]:
        words, at = self._vmm.d, SELECTOR[index]
        return lambda: words[at] & 0xFFFF

    def _of_fpu(self, name: str) -> Callable[[], int]:
        name = _NAMES_OF_FPU.get(name, name)
        if name == "ftag":
            return lambda: self._fpu["fptag"]
        return lambda: self._fpu.get(name, 0)  # the engine has no FIP and its like

    def _st(self, number: int) -> Callable[[], int]:
        """ST(i), which is at the top of the stack and down from there."""
        return lambda: self._fpu[f"fp{(self._fpu['fpsw'] >> 11) + number & 7}"]

    def read(self, number: int) -> bytes:
        """Return a register's bytes; IndexError if there is none."""
        self._fpu = self._vmm.engine.fpu()
        return self._bytes(self.registers[number])

    def read_all(self) -> bytes:
        """Return all of them, end to end."""
        self._fpu = self._vmm.engine.fpu()
        return b"".join(map(self._bytes, self.registers))

    @staticmethod
    def _bytes(one: Register) -> bytes:
        value = one.read() & (1 << one.bits) - 1
        return value.to_bytes(one.bits // 8, "little")

    def write(self, number: int, data: bytes) -> bool:
        """Write a register; tell whether it is one that can be, or has that value."""
        one = self.registers[number]
        if self.read(number) == data:
            return True
        setter = one.setter
        long = self._vmm.vcpu.efer & x86.EFER_LMA
        if self.wide and not long and setter:  # the names are others then
            setter = {"rip": "eip", "rflags": "eflags"}.get(setter, f"e{setter[1:]}")
        if not setter or len(data) * 8 != one.bits:
            return False
        try:
            self._machine.set_register(setter, int.from_bytes(data, "little"))
        except ValueError:
            return False  # R8 to R15 outside of IA-32e mode
        return True

    def write_all(self, data: bytes) -> bool:
        """Write all registers; tell whether all could be."""
        done = True
        for number, one in enumerate(self.registers):
            part, data = data[: one.bits // 8], data[one.bits // 8 :]
            done = len(part) * 8 == one.bits and self.write(number, part) and done
        return done and not data


def _word(words: memoryview, index: int) -> Callable[[], int]:
    return lambda: words[index]


def _feature(
    name: str, types: str, registers: "list[Register] | tuple[Register, ...]"
) -> str:
    lines = "".join(
        f'<reg name="{one.name}" bitsize="{one.bits}" type="{one.kind}"/>'
        for one in registers
    )
    return f'<feature name="{name}">{types}{lines}</feature>'
