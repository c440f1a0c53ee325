"""Why a fault was raised, told from the state that the guest is left in.

A fault leaves the registers as they were, so its reason need not be kept where it is
raised, where it would cost something each time. What cannot be told for certain is not
told. Source: SDM Vol. 3A sections 5.1 to 5.12, 6.13 and 6.15.
"""

from typing import TYPE_CHECKING, Final

from emu86.cpu.state import ATTRIBUTES, BASE, LIMIT, RFLAGS, RIP, SELECTOR
from emu86.machine.looking import Instruction, Looker, Operand
from emu86.mmu.paging import is_canonical
from emu86.rings.descriptor import Descriptor
from emu86.rings.history import Failure
from emu86.spec import x86
from emu86.spec.x86 import hexadecimal

if TYPE_CHECKING:
    from emu86.rings.technique.base import Technique

IDT, LDT = 2, 4  # bits of an error code: Vol. 3A section 6.13
_NAMES: Final = {
    x86.SYS_TSS16: "a 16-bit TSS",
    x86.SYS_LDT: "an LDT",
    x86.SYS_TSS16_BUSY: "a busy 16-bit TSS",
    x86.SYS_CALL16: "a 16-bit call gate",
    x86.SYS_TASK_GATE: "a task gate",
    x86.SYS_INT16: "a 16-bit interrupt gate",
    x86.SYS_TRAP16: "a 16-bit trap gate",
    x86.SYS_TSS32: "a TSS",
    x86.SYS_TSS32_BUSY: "a busy TSS",
    x86.SYS_CALL32: "a call gate",
    x86.SYS_INT32: "an interrupt gate",
    x86.SYS_TRAP32: "a trap gate",
}
GATES: Final = (
    x86.SYS_TASK_GATE, x86.SYS_INT16, x86.SYS_TRAP16, x86.SYS_INT32, x86.SYS_TRAP32,
)  # fmt: skip
_PRIVILEGED: Final = frozenset(
    ("hlt", "lgdt", "lidt", "lldt", "ltr", "clts", "lmsw", "invd", "wbinvd", "invlpg",
     "rdmsr", "wrmsr")
)  # fmt: skip
_BY_IOPL: Final = frozenset(("cli", "sti"))
_SSE: Final = 25  # CPUID.1:EDX
_MSR: Final = ("rdmsr", "wrmsr")
_ALIGNED: Final = frozenset(
    ("movaps", "movapd", "movdqa", "movntps", "movntpd", "movntdq", "fxsave", "fxrstor")
)
_STACK: Final = 64  # bytes beside ESP that the delivery of an event may write


def _vector(value: int) -> str:
    """Write a vector: exceptions in decimal, as the SDM numbers them."""
    return str(value) if value < 32 else hexadecimal(value)


class Reasons:
    """Tells reasons by the state that a guest is in now."""

    def __init__(self, vmm: "Technique", looker: Looker) -> None:
        self._vmm = vmm
        self._vcpu = vmm.vcpu
        self._looker = looker
        self._gate_size = 16 if vmm.vcpu.efer & x86.EFER_LMA else 8

    def of_fault(
        self, vector: int, error: int | None, address: int, insn: Instruction | None
    ) -> str:
        """Say why the instruction at CS:EIP faulted, or "".

        error: the error code; address: CR2.
        """
        if vector == x86.VEC_PF:
            return self._page(f"{address:08x}", error or 0, address)
        if vector in (x86.VEC_TS, x86.VEC_NP, x86.VEC_SS, x86.VEC_GP) and error:
            return self._selector(vector, error)
        if vector == x86.VEC_GP and (text := self._beyond()):
            return text
        if insn is None:
            return "no instruction" if vector == x86.VEC_UD else ""
        if vector == x86.VEC_GP:
            return self._protection(insn)
        if vector in (x86.VEC_SS, x86.VEC_AC):
            operand = self._looker.operand(insn)
            if operand is None:
                return ""
            if vector == x86.VEC_SS:
                return self._memory(insn, operand)
            return f"{operand.linear:08x} is not a multiple of its {operand.size} bytes"
        if vector == x86.VEC_UD:
            return self._undefined(insn)
        if vector == x86.VEC_NM:
            bits = ((x86.CR0_EM, "CR0.EM is 1"), (x86.CR0_TS, "CR0.TS is 1"))
            return next((text for bit, text in bits if self._vcpu.cr0 & bit), "")
        if vector == x86.VEC_DE and insn.mnemonic in ("div", "idiv"):
            return self._division(insn)
        return ""

    def _beyond(self) -> str:
        """Say how no instruction can be at EIP, or ""."""
        rip = self._vmm.q[RIP]
        if self._looker.bits == 64:
            return "" if is_canonical(rip) else "RIP is not canonical"
        limit = self._vmm.d[LIMIT[x86.CS]] & x86.MASK32
        beyond = rip & x86.MASK32 > limit
        return f"EIP is beyond CS's limit {hexadecimal(limit)}" if beyond else ""

    def of_delivery(self, failure: Failure) -> str:
        """Say why an event did not come through the IDT."""
        delivering, vector = failure.delivering, failure.vector
        error, address = failure.error or 0, failure.address or 0
        if vector == x86.VEC_PF:
            where = f"{self._structure(address, delivering)} at {address:08x}"
            return self._page(where, error, address)
        if error & IDT:
            return self._selector(vector, error)
        gate = f"gate {_vector(delivering)}"
        if error & 0xFFFC:
            if vector == x86.VEC_TS and error & 0xFFFC == self._vcpu.tr.selector:
                return f"the TSS's limit is {hexadecimal(self._vcpu.tr.limit)}"
            whose = "the TSS's SS0" if vector in (x86.VEC_TS, x86.VEC_SS) else gate
            selector = hexadecimal(error & 0xFFFC)
            return f"{whose} has selector {selector}, {self._selector(vector, error)}"
        if vector == x86.VEC_TS:
            return "the TSS's SS0 is null"
        entry = self._looker.descriptor(
            self._vcpu.idt_base + self._gate_size * delivering
        )
        if entry is not None and not entry.low >> 16 & 0xFFFC:
            return f"{gate} has a null selector"
        return f"{gate} leads beyond its segment's limit"

    # -- selectors and tables ----------------------------------------------------------

    def _selector(self, vector: int, error: int) -> str:
        """Say what is wrong with what an error code names."""
        vcpu = self._vcpu
        index = error & 0xFFF8
        if error & IDT:
            return self._gate(error >> 3, vector)
        if error & LDT:
            name, base, limit = "LDT", vcpu.ldtr.base, vcpu.ldtr.limit
            if not vcpu.ldtr.selector & 0xFFFC:
                return "there is no LDT"
        else:
            name, base, limit = "GDT", vcpu.gdt_base, vcpu.gdt_limit
        if index + 7 > limit:
            return f"beyond the {name}'s limit {hexadecimal(limit)}"
        found = self._looker.descriptor(base + index)
        if found is None:
            return f"the {name} is not mapped there"
        if not found.low | found.high:
            return f"the {name}'s descriptor {hexadecimal(index)} is empty"
        if vector == x86.VEC_NP or (vector == x86.VEC_SS and not found.present):
            return f"{kind(found)} that is not present"
        return f"{kind(found)} of DPL {found.dpl}, in ring {self._vmm.cpu.cpl}"

    def _gate(self, index: int, vector: int) -> str:
        limit, size = self._vcpu.idt_limit, self._gate_size
        if size * (index + 1) > limit + 1:
            return f"IDT limit {hexadecimal(limit)}"
        gate = self._looker.descriptor(self._vcpu.idt_base + size * index)
        name = f"gate {_vector(index)}"
        if gate is None:
            return f"{name} is not mapped"
        if gate.system not in GATES:
            what = "no gate" if gate.low | gate.high else "empty"
            return f"IDT entry {_vector(index)} is {what}"
        if vector == x86.VEC_NP:
            return f"{name} is not present"
        return f"{name} has DPL {gate.dpl}, in ring {self._vmm.cpu.cpl}"

    # -- pages -------------------------------------------------------------------------

    def _page(self, what: str, error: int, address: int) -> str:
        """Say why `what`, at a linear address, met #PF(error)."""
        if error & x86.PF_RSVD:
            return f"{what} has reserved bits in its tables"
        if not error & x86.PF_P:
            return f"{what} is not mapped"
        if error & x86.PF_U and not self._looker.rights(address) & x86.PTE_US:
            return f"{what} is the kernel's"
        return f"{what} is read-only" if error & x86.PF_W else f"{what} was forbidden"

    def _structure(self, address: int, delivering: int) -> str:
        """Name what a delivery looks for at a linear address."""
        vcpu, q = self._vcpu, self._vmm.q
        gate = vcpu.idt_base + self._gate_size * delivering
        esp = (q[BASE[x86.SS]] + q[x86.ESP]) & self._looker.mask
        if 0 <= address - gate < self._gate_size:
            return f"gate {_vector(delivering)}"
        if 0 <= esp - address <= _STACK:
            return "the stack"
        if 0 <= address - vcpu.gdt_base <= vcpu.gdt_limit:
            return "the GDT"
        if 0 <= address - vcpu.tr.base <= vcpu.tr.limit:
            return "the TSS"
        return "the stack"

    # -- instructions ------------------------------------------------------------------

    def _protection(self, insn: Instruction) -> str:
        """#GP(0)."""
        name, operands = insn.mnemonic, insn.operands
        cpl = self._vmm.cpu.cpl
        control = name == "mov" and any(
            word[:2] in ("cr", "dr") for word in operands.replace(",", "").split()
        )
        if cpl and (name in _PRIVILEGED or control):
            return f"privileged, in ring {cpl}"
        iopl = self._vmm.cpu.iopl
        if name in _BY_IOPL and cpl > iopl:
            return f"IOPL is {iopl}, in ring {cpl}"
        if name in ("in", "out") or name.startswith(("ins", "outs")):
            return f"IOPL is {iopl}, in ring {cpl}, and the TSS does not allow the port"
        if name in _MSR:
            msr = hexadecimal(self._looker.register("ecx"))
            return f"MSR {msr} is not there, or not so"
        if control and operands.startswith("cr"):
            register, _, source = operands.partition(", ")
            value = hexadecimal(self._looker.register(source))
            return f"{register.upper()} cannot be {value}"
        loads_ss = name == "mov" and operands.startswith("ss, ")
        if loads_ss and not self._looker.register(operands[4:]) & 0xFFFC:
            return "a null selector"
        operand = self._looker.operand(insn)
        return "" if operand is None else self._memory(insn, operand)

    def _memory(self, insn: Instruction, operand: Operand) -> str:
        """Say what is wrong with a memory operand of #GP(0)."""
        d, segment = self._vmm.d, operand.segment
        name = x86.SEGMENT_NAMES[segment].upper()
        if self._looker.bits == 64:
            if not is_canonical(operand.linear):
                return f"{operand.linear:016x} is not canonical"
            return self._of_content(insn, operand)
        if not d[SELECTOR[segment]] & 0xFFFC and not self._vmm.q[RFLAGS] & x86.VM:
            return f"{name} is null"
        limit = d[LIMIT[segment]] & x86.MASK32
        attributes = d[ATTRIBUTES[segment]]
        if attributes & (x86.DESC_CODE | x86.DESC_CE) == x86.DESC_CE:  # expand-down
            inside, how = operand.offset > limit, "is not beyond"
        else:
            inside, how = operand.offset + operand.size - 1 <= limit, "is beyond"
        if not inside:
            offset = hexadecimal(operand.offset)
            return f"{offset} {how} {name}'s limit {hexadecimal(limit)}"
        if text := self._of_content(insn, operand):
            return text
        if attributes & x86.DESC_CODE:
            readable = attributes & x86.DESC_RW
            return f"{name} is " + (
                "code, which is not written" if readable else "execute-only code"
            )
        return "" if attributes & x86.DESC_RW else f"{name} is read-only"

    def _of_content(self, insn: Instruction, operand: Operand) -> str:
        """Say what an SSE instruction does not take of its memory operand, or ""."""
        if insn.mnemonic in _ALIGNED and operand.linear % 16:
            return f"{operand.linear:08x} is not a multiple of 16"
        if insn.mnemonic == "ldmxcsr":
            data = self._looker.read(operand.linear, 4)
            return f"MXCSR cannot be {hexadecimal(int.from_bytes(data, 'little'))}"
        return ""

    def _undefined(self, insn: Instruction) -> str:
        if insn.mnemonic.startswith("ud2"):
            return "made to fault"
        if insn.mnemonic.startswith("lock "):
            return "LOCK is not allowed here"
        bit = self._looker.needs(insn)
        if bit >= 0:
            vcpu = self._vcpu
            if not vcpu.model.cpuid(1, "")[3] >> bit & 1:
                return f"the CPU model {vcpu.model.name} does not have it"
            if vcpu.cr0 & x86.CR0_EM:
                return "CR0.EM is 1"
            if bit >= _SSE and not vcpu.cr4 & x86.CR4_OSFXSR:
                return "CR4.OSFXSR is 0"
        return ""

    def _division(self, insn: Instruction) -> str:
        operand = self._looker.operand(insn)
        if operand is None:
            divisor = self._looker.register(insn.operands)
        else:
            data = self._looker.read(operand.linear, operand.size)
            divisor = int.from_bytes(data, "little")
        return "the quotient does not fit" if divisor else "by 0"


def kind(found: Descriptor) -> str:
    """Name what a descriptor describes."""
    if found.system >= 0:
        return _NAMES.get(found.system, "a reserved descriptor")
    if found.code:
        return "conforming code" if found.conforming else "code"
    return "data" if found.writable else "read-only data"
