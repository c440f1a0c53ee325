"""Faults of the guest: exceptions in Python until they are injected."""

from emu86.spec import x86


class GuestFault(Exception):  # noqa: N818 (the SDM's word)
    """An exception that the guest must take: vector, and error code if it pushes one.

    The error code's EXT bit and the double-fault rules are the injector's business.
    """

    def __init__(self, vector: int, error: int | None = None) -> None:
        name = x86.VECTOR_NAMES.get(vector, str(vector))
        super().__init__(name if error is None else f"{name}({error:#x})")
        self.vector = vector
        self.error = error


class TripleFault(Exception):  # noqa: N818 (the SDM's word)
    """A fault while delivering a double fault: the CPU shuts down, a PC resets."""


def gp(error: int = 0) -> GuestFault:
    """Return #GP with a selector or 0 as error code."""
    return GuestFault(x86.VEC_GP, error & 0xFFFC)


def undefined() -> GuestFault:
    """Return #UD."""
    return GuestFault(x86.VEC_UD)
