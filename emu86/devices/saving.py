"""Saving and restoring of chips whose State mirrors their attributes by name."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)
else:
    S = TypeVar("S")


def capture(state_class: type[S], chip: object) -> S:
    """Make a ``state_class`` out of the chip's attributes of the same names."""
    return state_class(**{f.name: getattr(chip, f.name) for f in fields(state_class)})


def reinstate(chip: object, state: DataclassInstance) -> None:
    """Set the chip's attributes to the fields of ``state`` of the same names."""
    for f in fields(state):
        setattr(chip, f.name, getattr(state, f.name))
