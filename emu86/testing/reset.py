"""Machines that play again: what they were at first, put back.

RAM goes back page by page, those alone that differ, and the VMM learns of each.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from emu86.cpu.state import RFLAGS
from emu86.cpu.vcpu import VCpu
from emu86.native import abi
from emu86.rings.technique.bare import Bare
from emu86.rings.technique.base import Technique
from emu86.spec import x86

_FIELDS: Final = VCpu.__slots__


def put(vmm: Technique, image: bytes | bytearray) -> None:
    """Make RAM an image again: the VMM learns which pages change."""
    now = np.frombuffer(vmm.ram.bytes, np.uint64).reshape(-1, x86.PAGE_SIZE // 8)
    then = np.frombuffer(image, np.uint64).reshape(-1, x86.PAGE_SIZE // 8)
    for page in np.flatnonzero((now != then).any(axis=1)):
        vmm.before_write(int(page))
        start = int(page) << x86.PAGE_SHIFT
        end = start + x86.PAGE_SIZE
        vmm.ram.bytes[start:end] = image[start:end]


def set_vcpu(vcpu: VCpu, values: dict[str, Any]) -> None:
    """Give a virtual CPU these fields."""
    for name, value in values.items():
        # Others hold these three.
        if name in ("ldtr", "tr"):
            for field in type(value).__slots__:
                setattr(getattr(vcpu, name), field, getattr(value, field))
        elif name == "pmu":
            vars(vcpu.pmu).update(vars(value))
        else:
            setattr(vcpu, name, value)


@dataclass(frozen=True)
class Snapshot:
    """All that a bare machine is, but for its RAM, its board and its time."""

    cpu: bytes
    vcpu: dict[str, Any]

    @classmethod
    def of(cls, bare: Bare) -> "Snapshot":
        """Keep what it is now."""
        vcpu = {name: deepcopy(getattr(bare.vcpu, name)) for name in _FIELDS}
        return cls(bytes(bare.engine.q.cast("B")), vcpu)

    def restore(self, bare: Bare) -> None:
        """Make it that again, at time 0 and watched by nobody."""
        bare.engine.q.cast("B")[:] = self.cpu
        set_vcpu(bare.vcpu, deepcopy(self.vcpu))
        bare.cpu.iopl = bare.q[RFLAGS] >> 12 & 3
        bare.cpu.update_mode()
        bare.breakpoints = type(bare.breakpoints)(bare.cpu)
        bare.end = bare.insn = bare.distance = None
        bare.observers.clear()
        bare.exits.clear()
        control = bare.engine.control
        control[abi.NOW] = control[abi.TSC_OFFSET] = control[abi.PENDING] = 0
        control[abi.EXIT_COST] = abi.EXIT_TIME
        bare.engine.flush_tlb()
