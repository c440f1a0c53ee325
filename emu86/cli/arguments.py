"""Kinds of argument that commands take."""

import math
import re
from typing import Any

import click

from emu86 import config
from emu86.errors import ConfigError


class Memory(click.ParamType[int]):
    """A size of guest memory, in bytes: 128M, 1G, 64K multiples."""

    name = "size"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return `value` in bytes, or tell what is wrong with it."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(
            r"([0-9]{1,12})([KMG]?)(?:i?B)?", str(value), re.IGNORECASE
        )
        if not match:
            self.fail(f"{value!r} is no size like 128M or 1G", param, ctx)
        size = int(match[1]) * config.UNITS[match[2].upper()]
        if size % config.PAGE:
            unit = f"the page size, {config.PAGE}"
            self.fail(f"{value} is not a multiple of {unit}", param, ctx)
        if not config.SMALLEST <= size <= config.LARGEST:
            ends = f"{config.size(config.SMALLEST)} and {config.size(config.LARGEST)}"
            self.fail(f"{value} is not between {ends}", param, ctx)
        return size


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
