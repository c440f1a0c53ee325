"""Saving and restoring of chips whose State mirrors their attributes by name."""

from typing import NamedTuple, TypeVar

S = TypeVar("S", bound=NamedTuple)


def capture(state_class: type[S], chip: object) -> S:
    """Make a ``state_class`` out of the chip's attributes of the same names."""
    return state_class._make(getattr(chip, name) for name in state_class._fields)


def reinstate(chip: object, state: NamedTuple) -> None:
    """Set the chip's attributes to the fields of ``state`` of the same names."""
    for name, value in zip(state._fields, state, strict=True):
        setattr(chip, name, value)
