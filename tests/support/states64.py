"""Random stacks, frames and plans of IA-32e mode, for `states`."""

import ctypes

from emu86.native import abi
from emu86.native.transfers import gate_slot, return_slot
from emu86.spec import x86
from support.world import KERNEL, STACK, TSS, USER

_HIGH = 0xFFFFFFFF81000000
_NOT_CANONICAL = 1 << 47
_MSRS = x86.MSR_FS_BASE, x86.MSR_GS_BASE, x86.MSR_KERNEL_GS_BASE


def registers(world, pick):
    """An MSR and its value, with rubbish above; bases to exchange."""
    cpu = world.cpu
    cpu.gpr[x86.EDX] = pick.odd(0x7F00, 0x8000) | pick.few(0, 1 << 40)
    cpu.gpr[x86.ECX] = pick.odd(pick.few(*_MSRS), x86.MSR_EFER) | pick.few(0, 1 << 40)
    for segment in cpu.segments:
        segment.base = pick.getrandbits(64)


def stack(world, pick, vector, map_page):
    """A frame on the stack, plans for it and for an event, a TSS."""
    control, cpu = world.control, world.cpu
    cpl = cpu.segments[x86.CS].selector & 3
    top = pick.few(_HIGH, 0xC0000000) + (1 << 20) + pick.few(0x800, 0x808, 0xFD8, 0xFF8)
    cpu.gpr[x86.ESP] = pick.odd(top, top | _NOT_CANONICAL)
    rights = pick.odd(0x63 | x86.PTE_NX, 0x61, 0x63, 0x67 | x86.PTE_NX)
    control.no_user_data = pick.few(0, x86.PTE_US)
    map_page(world, pick, top, STACK, rights)
    cs = pick.few(KERNEL, USER)
    ss = pick.few(0, 0x7B)
    control.iopl = pick.few(0, 0, 1, 2)
    control.kernel_iopl = pick.few(0, 0, 1 << 12)
    iopl = pick.odd(control.iopl, control.iopl ^ 3, once=6) << 12
    image = pick.getrandbits(22) & ~(x86.IOPL | x86.TF) | iopl | pick.odd(0, x86.TF)
    rip = pick.odd(_HIGH + 5, _NOT_CANONICAL, once=8)
    words = rip, cs | pick.few(0, 1 << 16), image, top - 64, ss | pick.few(0, 1 << 20)
    if pick.randrange(2):  # a POPFQ's
        words = image, *words[1:]
    ram = ctypes.addressof(world.ram)
    for i, word in enumerate(words):
        at = (STACK << 12) + (top & 0xFFF) + 8 * i
        if (top & 0xFFF) + 8 * i < 0x1000:
            ctypes.c_uint64.from_address(ram + at).value = word
    key = abi.PLANNED | cs | ss << 16
    back = control.returns[return_slot(key)]
    plan(back, pick.odd(key, key ^ 8), pick)
    back.cs.limit = pick.few(x86.MASK32, x86.MASK32, 0xFFFF)
    gate = control.gates[gate_slot(vector & 255, cpl)]
    key = abi.PLANNED | (vector & 255) << 2 | cpl
    plan(gate, pick.odd(key, key ^ 4), pick)
    gate.stack = ram + (TSS << 12) + 4
    ctypes.c_uint64.from_address(gate.stack).value = top
    for index in (x86.ES, x86.DS, x86.FS, x86.GS):
        segment = cpu.segments[index]
        usual = pick.few(0, x86.DESC_P | x86.DESC_DPL)
        segment.attributes = pick.odd(usual, x86.DESC_P, once=10)


def plan(found, key, pick):
    found.key = key
    for segment in (found.cs, found.ss):
        segment.selector = pick.getrandbits(16)
        segment.base, segment.limit = 0, x86.MASK32
        segment.attributes = pick.getrandbits(24) & ~0xFF
    found.offset, found.dpl = _HIGH | pick.word(), pick.few(0, 3, 3)
    found.masks_if = pick.randrange(2)
