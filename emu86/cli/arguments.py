"""Kinds of argument that commands take."""

import math
from typing import Any

import click

from emu86.errors import ConfigError


class Seconds(click.ParamType[float]):
    """A positive, finite number of seconds."""

    name = "seconds"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return `value` as a float, or tell what is wrong with it."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            self.fail(f"{value!r} is no positive number of seconds", param, ctx)
        return seconds


def matching(
    command: str, wanted: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the names that are wanted, or have the words that are, in any case.

    Raises ConfigError.
    """
    known = {name.lower().replace(",", ""): name for name in names}
    found: dict[str, None] = {}
    for one in wanted:
        words = one.lower().replace(",", "")
        having = [name for name in known if f" {words} " in f" {name} "]
        if not having:
            raise ConfigError(f"{command}: no {one!r} (there are {'; '.join(names)})")
        chosen = [words] if words in known else having
        found |= {known[name]: None for name in chosen}
    return tuple(found)
