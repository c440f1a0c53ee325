"""Boots that are watched, by a profile or a trace, and what the guest made of them."""

from emu86 import Machine, images


def counted(machine):
    """How many exits there were, by reason."""
    found = {reason: stat.count for reason, stat in machine.stats.exits.items()}
    return {reason: count for reason, count in found.items() if count}


def boot(image, append, watch=None, **options):
    """Return who watches, by `watch` of the machine, the machine, and how it ran."""
    machine = Machine(memory=16 << 20, **options)
    machine.load_kernel(images.path(image), append=append)
    shown = bytearray()
    machine.on_console(shown.extend)
    watcher = watch(machine) if watch else None
    stop = machine.run(timeout=300)
    ran = (
        stop, machine.now, counted(machine), machine.stats.shadow, machine.stats.blocks,
        machine.stats.patched, machine.registers, bytes(shown),
    )  # fmt: skip
    return watcher, machine, ran
