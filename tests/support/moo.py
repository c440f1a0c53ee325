"""Writes MOO files: test vectors of a processor, in the layout of the specification."""

import struct

REGS = (
    "eax", "ebx", "ecx", "edx", "cs", "ss", "ds", "es", "esp", "ebp", "esi", "edi",
    "eip", "eflags",
)  # fmt: skip
RG32 = (
    "cr0", "cr3", "eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "cs", "ds",
    "es", "fs", "gs", "ss", "eip", "eflags", "dr6", "dr7",
)  # fmt: skip


def chunk(name, data):
    return name.encode() + struct.pack("<I", len(data)) + data


def registers(values, *, wide=False, kinds=("REGS", "RG32")):
    order, code = (RG32, "I") if wide else (REGS, "H")
    present = sum(1 << order.index(name) for name in values)
    words = [values[name] for name in order if name in values]
    return chunk(kinds[wide], struct.pack(f"<{len(words) + 1}{code}", present, *words))


def masks(values, *, wide=False):
    return registers(values, wide=wide, kinds=("RMSK", "RM32"))


def ram(values):
    entries = [struct.pack("<IB", at, byte) for at, byte in values.items()]
    return chunk("RAM ", struct.pack("<I", len(entries)) + b"".join(entries))


def vector(index, name, state, then, *, wide=False, mask=None, exception=None):
    """state, then: (registers, RAM by address), of `then` what changes."""
    before = registers(state[0], wide=wide) + ram(state[1])
    after = registers(then[0], wide=wide) + ram(then[1])
    if mask:
        after += masks(mask, wide=wide)
    parts = struct.pack("<I", index)
    parts += chunk("NAME", struct.pack("<I", len(name)) + name.encode())
    parts += chunk("INIT", before) + chunk("FINA", after)
    if exception:
        parts += chunk("EXCP", struct.pack("<BI", *exception))
    return chunk("TEST", parts)


def file(*vectors, extra=b""):
    head = struct.pack("<BBHI4s", 1, 1, 0, len(vectors), b"386E")
    return chunk("MOO ", head) + extra + b"".join(vectors)
