"""Memory-mapped I/O: what a device sees of each instruction, and what is not there."""

# ruff: noqa: E501 (lines of assembly)

import itertools

import pytest

from emu86 import Machine
from support.cases import LOG, RECORD, Case, image, machine, records
from support.flat import guest

DEVICE = 0xD0000
AWAY = 0xF0000000


class Device:
    """A device that writes down its accesses. A byte reads as the low byte of its address + 1."""

    widths = frozenset({1, 2, 4})

    def __init__(self):
        self.log = []

    def read(self, offset, width, _now):
        self.log.append(("r", offset, width))
        return sum((offset + 1 + i & 0xFF) << 8 * i for i in range(width))

    def write(self, offset, width, value, _now):
        self.log.append(("w", offset, width, value))


# Code with EDI at the device -> what the device sees.
ACCESSES = {
    "mov al, [edi]": [("r", 0, 1)],
    "mov ax, [edi + 2]": [("r", 2, 2)],
    "mov eax, [edi + 4]": [("r", 4, 4)],
    "mov al, 7\nmov [edi], al": [("w", 0, 1, 7)],
    "mov word [edi + 2], 0x1234": [("w", 2, 2, 0x1234)],
    "mov dword [edi + 5], 0x12345678": [("w", 5, 4, 0x12345678)],
    "movzx eax, byte [edi + 9]": [("r", 9, 1)],
    "movsx eax, word [edi + 8]": [("r", 8, 2)],
    "cmp dword [edi], 5": [("r", 0, 4)],
    "test byte [edi], 5": [("r", 0, 1)],
    "bt dword [edi], 5": [("r", 0, 4)],
    "add dword [edi + 4], 2": [("r", 4, 4), ("w", 4, 4, 0x08070607)],
    "inc byte [edi + 1]": [("r", 1, 1), ("w", 1, 1, 3)],
    "not word [edi]": [("r", 0, 2), ("w", 0, 2, 0xFDFE)],
    "or byte [edi + 3], 0x80": [("r", 3, 1), ("w", 3, 1, 0x84)],
    "lock add byte [edi], 1": [("r", 0, 1), ("w", 0, 1, 2)],
    "lock inc dword [edi]": [("r", 0, 4), ("w", 0, 4, 0x04030202)],
    "mov eax, 99\nxchg eax, [edi]": [("r", 0, 4), ("w", 0, 4, 99)],
    "mov eax, 0x04030201\nmov ecx, 7\ncmpxchg [edi], ecx": [("r", 0, 4), ("w", 0, 4, 7)],
    "mov eax, 1\nxadd [edi], eax": [("r", 0, 4), ("w", 0, 4, 0x04030202)],
    "bts dword [edi], 0x1F": [("r", 0, 4), ("w", 0, 4, 0x84030201)],
    "shl byte [edi], 1": [("r", 0, 1), ("w", 0, 1, 2)],
    "push dword [edi]\npop eax": [("r", 0, 4)],
    "push dword 0x55\npop dword [edi]": [("w", 0, 4, 0x55)],
    "sete [edi]": [("w", 0, 1, 0)],
    "mov word [edi], ds": [("w", 0, 2, 0x43)],
    "mov esi, edi\nmov edi, SCRATCH\nmov ecx, 3\nrep movsb": [
        ("r", 0, 1), ("r", 1, 1), ("r", 2, 1),
    ],
    "mov dword [SCRATCH], 0x44332211\nmov esi, SCRATCH\nmov ecx, 2\nrep movsw": [
        ("w", 0, 2, 0x2211), ("w", 2, 2, 0x4433),
    ],
    "mov eax, 0xA5\nmov ecx, 3\nrep stosb": [
        ("w", 0, 1, 0xA5), ("w", 1, 1, 0xA5), ("w", 2, 1, 0xA5),
    ],
    "mov eax, 9\nmov ecx, 2\nstd\nrep stosd\ncld": [("w", 0, 4, 9), ("w", -4, 4, 9)],
    "mov esi, edi\nadd edi, 16\nmovsd": [("r", 0, 4), ("w", 16, 4, 0x04030201)],
    "mov esi, edi\nlodsw\nlodsb": [("r", 0, 2), ("r", 2, 1)],
    "mov al, 3\nmov ecx, 9\nrepne scasb": [("r", 0, 1), ("r", 1, 1), ("r", 2, 1)],
    "xor ecx, ecx\nrep stosb": [],
    "fninit\nfild word [edi]": [("r", 0, 2)],
    "fninit\nfld1\nfistp dword [edi]": [("w", 0, 4, 1)],
    "fninit\nfld1\nfstp dword [edi]": [("w", 0, 4, 0x3F800000)],
    "mov ebx, esp\nlea esp, [edi + 16]\npush dword 0x77\nmov esp, ebx": [
        ("w", 12, 4, 0x77),
    ],
    "mov ebx, esp\nlea esp, [edi + 16]\npush word 0x77\nmov esp, ebx": [
        ("w", 14, 2, 0x77),
    ],
    "mov ebx, esp\nlea esp, [edi + 16]\npop eax\nmov esp, ebx": [("r", 16, 4)],
    "mov ebx, esp\nlea esp, [edi + 16]\npop ax\nmov esp, ebx": [("r", 16, 2)],
    "mov eax, [edi + 0xFFC]": [("r", 0xFFC, 4)],
    "mov ax, [edi + 0xFFF]": [("r", 0xFFF, 1), ("r", 0x1000, 1)],
    "mov eax, [edi + 0xFFD]": [("r", 0xFFD, 3), ("r", 0x1000, 1)],
    "mov word [edi + 0xFFF], 0x2211": [("w", 0xFFF, 1, 0x11), ("w", 0x1000, 1, 0x22)],
}  # fmt: skip
NAMES = list(ACCESSES)


def bytewise(log):
    """Accesses of odd widths as the bus splits them."""
    for kind, offset, width, *value in log:
        if width in {1, 2, 4}:
            yield kind, offset, width, *value
        else:
            for i in range(width):
                yield kind, offset + i, 1, *(v >> 8 * i & 0xFF for v in value)


def run(cases, place, *, paging, technique="patch"):
    built = machine(image(tuple(cases), paging=paging), technique=technique)
    device = Device()
    built.board.memory.attach(range(place - 0x1000, place + 0x3000), device, "test")
    built.vmm.mmu.mmio_pages = frozenset(range((place >> 12) - 1, (place >> 12) + 3))
    starts = []
    # Each case begins with an OUT to port 80h, which tells where the log stands.

    class Watch:
        def vm_exit(self, *_): ...
        def inject(self, *_): ...
        def shadow_fill(self, *_): ...

        def pio(self, port, _width, _value, _write):
            if port == 0x80:
                starts.append(len(device.log))

    built.subscribe(Watch())
    assert built.run(timeout=300).reason == "debug exit"
    starts.append(len(device.log))
    logs = [device.log[a:b] for a, b in itertools.pairwise(starts)]
    shifted = [[(kind, at - 0x1000, *more) for kind, at, *more in log] for log in logs]
    return shifted, records(built.read_physical(LOG, len(logs) * RECORD), len(logs))


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize(
    ("place", "paging"), [(DEVICE, False), (DEVICE, True), (AWAY, False)],
    ids=["in the hole", "paged", "above RAM"],
)  # fmt: skip
def test_what_a_device_sees(ring, place, paging):
    cases = [
        Case(
            code,
            f"mov edx, DATA3\nmov ds, dx\nout 0x80, al\nmov edi, {place}\n{code}",
            ring,
            0x3002,
        )
        for code in NAMES
    ]
    logs, ends = run(cases, place, paging=paging)
    wrong = {}
    for name, log, end in zip(NAMES, logs, ends, strict=True):
        if log != list(bytewise(ACCESSES[name])) or end["vector"] != 0x40:
            wrong[name] = (log, ACCESSES[name], end["vector"])
    assert not wrong


def test_values_read_reach_registers_and_memory():
    codes = {
        "mov eax, [edi + 4]": 0x08070605,
        "movsx eax, byte [edi + 0x9F]": 0xFFFFFFA0,
        "add eax, eax\nmov eax, 1\nadd eax, [edi]": 0x04030202,
        "mov esi, edi\nmov edi, SCRATCH\nmovsd\nmov eax, [SCRATCH]": 0x04030201,
        "mov esi, edi\nlodsw\nand eax, 0xFFFF": 0x0201,
        "mov eax, [edi + 0xFFE]": 0x0201_00FF,
        "mov eax, 5\nxchg eax, [edi]": 0x04030201,
    }
    cases = [Case(code, f"out 0x80, al\nmov edi, {DEVICE}\n{code}") for code in codes]
    _logs, ends = run(cases, DEVICE, paging=True)
    assert [end["eax"] for end in ends] == list(codes.values())


def test_a_step_over_a_device_is_not_seen():
    """TF is the VMM's while it steps: PUSHF, #DB and flags must not tell."""
    cases = [
        Case("flags", f"out 0x80, al\nstc\nmov eax, [{DEVICE}]\npushfd\npop ebx"),
        Case("guest's own TF", f"out 0x80, al\npush dword 0x102\npopfd\nmov eax, [{DEVICE}]\n"
             "nop\npush dword 2\npopfd"),
        Case("a fault in between", f"out 0x80, al\nmov esi, {DEVICE}\nmov edi, 0xC0000000\n"
             "movsd"),
        Case("after the fault", "out 0x80, al\nnop\nnop\npushfd\npop eax"),
        Case("INT with the stack there", f"out 0x80, al\nmov eax, [{DEVICE}]\nint 0x41"),
    ]  # fmt: skip
    _logs, ends = run(cases, DEVICE, paging=True)
    assert ends[0]["ebx"] & 0x101 == 1
    assert ends[0].trace == ()
    # OUT, PUSH, POPFD; MOV; NOP; PUSH; POPFD
    assert len(ends[1].trace) == 4
    assert (ends[2]["vector"], ends[2]["cr2"]) == (14, 0xC0000000)
    assert ends[3].trace == ()
    assert not ends[3]["eax"] & 0x100
    assert ends[4]["vector"] == 0x41


NOTHING = (
    Case("reads as ones", "mov eax, [0xF0000000]\nmov bx, [0xA0000]\nmov cl, [0xFFFFF]"),
    Case("writes are lost", "mov dword [0xF0000000], 5\nmov eax, [0xF0000000]"),
    Case("read-modify-write", "mov eax, 1\nadd eax, [0xF0000000]\nadd dword [0xF0000000], 3\n"
         "pushfd\npop ebx"),
    Case("strings", "mov edi, 0xF0000000\nmov ecx, 5\nrep stosd\nmov esi, 0xF0000FFE\n"
         "mov edi, SCRATCH\nmov ecx, 4\nrep movsb"),
    Case("code", "mov eax, 0xF0000000\ncall eax"),
    Case("above 4 GiB", "mov eax, [0xFFFFFFFE]\nmov dword [0xFFFFFFFE], 5"),
    Case("by an emulated instruction", "mov edi, 0xF0000000\nsgdt [edi]\nmov eax, [edi]\n"
         "mov fs, [0xF0000000]"),
)  # fmt: skip


def test_what_is_not_there():
    built = machine(image(NOTHING))
    assert built.run(timeout=300).reason == "debug exit"
    ends = records(built.read_physical(LOG, len(NOTHING) * RECORD), len(NOTHING))
    assert (ends[0]["eax"], ends[0]["ebx"] & 0xFFFF, ends[0]["ecx"] & 0xFF) == (
        0xFFFFFFFF,
        0xFFFF,
        0xFF,
    )
    assert ends[1]["eax"] == 0xFFFFFFFF
    assert (ends[2]["eax"], ends[2]["ebx"] & 1) == (0, 1)
    assert ends[3].scratch[0] == 0xFFFFFFFF
    assert (ends[3]["ecx"], ends[3]["esi"]) == (0, 0xF0001002)
    assert ends[4]["vector"] == 6
    assert ends[5]["vector"] == 0x40
    assert ends[6]["eax"] == 0xFFFFFFFF
    assert (ends[6]["vector"], ends[6]["error"]) == (13, 0xFFFC)


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl"])
def test_display_memory_that_is_not_plain(technique):
    """There is none at A0000h in a text mode; a write to all planes is the chip's."""
    built = guest(
        """
        mov esi, [0xa0000]
        mov byte [0xa0000], 1
        mov edi, [0xa0000]
        mov edx, 0x3c4
        mov eax, 0x0f02         ; all planes are written
        out dx, ax
        mov ax, 0x0604          ; one after another
        out dx, ax
        mov edx, 0x3ce
        mov ax, 0x0506          ; the window is at A0000h
        out dx, ax
        mov ax, 0x0005
        out dx, ax
        mov dword [0xa0000], 0x81184224
        rcl word [0xa0000], 1   ; emulated
        mov ebx, [0xa0000]
        mov ecx, [0xb8000]
        mov ax, 0x0304          ; plane 3 is read
        out dx, ax
        mov ebp, [0xa0000]
        cli
        hlt
        """,
        technique=technique,
    )
    assert built.run(timeout=60).reason == "halted"
    registers = built.registers
    assert (registers["esi"], registers["edi"]) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert registers["ebx"] == registers["ebp"] == 0x81188448
    assert registers["ecx"] == 0xFFFFFFFF
    restored = Machine.restore(built.save())
    assert restored.board.vga.frame() == built.board.vga.frame()
