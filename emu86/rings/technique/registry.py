"""The techniques by name, and the one place where a machine's CPU is put together."""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emu86.cpu.engine import Engine
from emu86.cpu.library import Abilities
from emu86.cpu.models import CpuModel
from emu86.cpu.pmu import Pmu
from emu86.cpu.vcpu import VCpu
from emu86.mmu.ram import Ram
from emu86.rings.technique.base import Policy, Technique

if TYPE_CHECKING:
    from emu86.rings.technique.bare import Bare
    from emu86.rings.technique.deprivileged import Deprivileged

POLICIES: Final = {
    "patch": Policy(kernel_ring=1, scans=True),
    "trap": Policy(kernel_ring=1),
    "iopl": Policy(kernel_ring=1, scans=True, raises_iopl=True),
    "bare": Policy(kernel_ring=0, stepped=True),
}


def build(
    technique: str,
    memory: int,
    model: CpuModel,
    *,
    hypervisor: str = "",
    abilities: Abilities | None = None,
    stepped: bool = False,
    kind: "type[Deprivileged | Bare] | None" = None,
    rom: int = 0,
) -> Technique:
    """Put an engine, RAM and a virtual CPU together under a technique.

    technique: a name in `POLICIES`; memory: bytes of RAM; stepped: run it instruction
    by instruction, as `bare` always is; kind: a class in place of the technique's own;
    rom: bytes of a BIOS, see `Ram`.
    It stands on no board yet: `Technique.connect`.
    """
    policy = POLICIES[technique]
    if stepped:
        policy = replace(policy, stepped=True)
    engine = Engine(abilities, stepped=policy.stepped)
    ram = Ram(memory, rom)
    for part in ram.parts:
        engine.map(part.start, ram.bytes[part.start : part.stop])
    kind = kind or _class_of(policy)
    vcpu = VCpu(model, hypervisor=hypervisor, pmu=Pmu(engine.control))
    return kind(technique, policy, engine, ram, vcpu)


def _class_of(policy: Policy) -> "type[Deprivileged | Bare]":
    """Import what a technique needs, and nothing that others do."""
    if policy.kernel_ring:
        from emu86.rings.technique.deprivileged import Deprivileged  # noqa: PLC0415

        return Deprivileged
    from emu86.rings.technique.bare import Bare  # noqa: PLC0415

    return Bare
