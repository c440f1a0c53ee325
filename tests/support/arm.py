"""Unicorn's ARM64 engine with the aarch64 blob, over the memory of a `World`."""

from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_MODE_ARM, UC_PROT_ALL, Uc
from unicorn.arm64_const import (
    UC_ARM64_REG_LR,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_W0,
    UC_ARM64_REG_X0,
)

from support.world import CALLS, KINDS, PAGE, SIZE


class Arm:
    """An engine with a blob's code, and where in it the handlers begin."""

    def __init__(self, world, code, entries):
        self.world, self.entries = world, entries
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.code, self.stack, self.stubs = 0x10000, 0x80000, 0x90000
        self.uc.mem_map(self.code, 0x10000)
        self.uc.mem_write(self.code, code)
        self.uc.mem_map(self.stack, 0x10000)
        self.uc.mem_map(self.stubs, PAGE)
        ret = 0xD65F03C0
        self.uc.mem_write(self.stubs, ret.to_bytes(4, "little") * 32)
        self.calls = {name: self.stubs + 4 * i for i, name in enumerate(CALLS)}
        self.uc.mem_map_ptr(world.base, SIZE, UC_PROT_ALL, world.base)
        self.uc.hook_add(UC_HOOK_CODE, self.stub, None, self.stubs, self.stubs + 127)

    def stub(self, uc, address, _size, _data):
        index = (address - self.stubs) // 4
        if index >= len(CALLS):
            return
        name = CALLS[index]
        values = []
        for i, kind in enumerate(KINDS[name]._argtypes_):
            value = uc.reg_read(UC_ARM64_REG_X0 + i)
            values.append(kind(value).value)
        self.world.log.append((name, *values))
        uc.reg_write(
            UC_ARM64_REG_X0, self.world.results.get(name, 0) & 0xFFFFFFFFFFFFFFFF
        )

    def call(self, name, *arguments):
        """Call an exported function; its 32-bit result."""
        end = self.stubs + 124
        for i, value in enumerate(arguments):
            self.uc.reg_write(UC_ARM64_REG_X0 + i, value)
        self.uc.reg_write(UC_ARM64_REG_LR, end)
        self.uc.reg_write(UC_ARM64_REG_SP, self.stack + 0x8000)
        self.uc.emu_start(self.code + self.entries[name], end)
        return self.uc.reg_read(UC_ARM64_REG_W0)
