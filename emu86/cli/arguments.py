"""Kinds of argument that commands take, and how shells complete them."""

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from emu86.errors import ConfigError, unknown


class OneOf(click.Choice[str]):
    """One of some names; whoever mistypes one is told what there is."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Return the name, or tell what is wrong with it."""
        if value not in self.choices:
            self.fail(unknown(value, self.choices), param, ctx)
        return str(value)


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


class Date(click.ParamType[float]):
    """What the real-time clock shows: seconds since 1970-01-01, as if it were UTC."""

    name = "date"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the host's UTC or local time, or the date in ISO 8601."""
        if value == "utc":
            return time.time()
        if value == "localtime":
            now = time.time()
            return now + time.localtime(now).tm_gmtoff
        try:
            date = datetime.fromisoformat(value)
        except ValueError:
            example = "utc, localtime, nor a date like 2026-01-31 or 2026-01-31T12:00"
            self.fail(f"{value!r} is neither {example}", param, ctx)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        if date.timestamp() < 0:
            self.fail(f"{value!r} is before 1970", param, ctx)
        return date.timestamp()


class Keys(click.ParamType[tuple[str, list[tuple[bool, str]]]]):
    r"""Keys to type: text, in which \n, \t, \b, \e and \\ are keys, and \<f1>.

    Before them there may be a text to wait for, and "=>". The value is that text, and
    parts: whether it is the name of keys held together, and the text or name.
    """

    name = "keys"
    _ESCAPES: Final = {"n": "\n", "t": "\t", "b": "\b", "e": "\x1b", "\\": "\\"}

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, list[tuple[bool, str]]]:
        """Return the text that is waited for, or "", and the parts to type."""
        from emu86.machine import keys  # noqa: PLC0415 - slow to import

        before, arrow, after = value.partition("=>")
        waits, text = (before, after) if arrow else ("", value)
        parts: list[tuple[bool, str]] = []
        for plain, name, escaped in _PARTS.findall(text):
            if plain:
                parts.append((False, plain))
            elif name:
                parts.append((True, name))
            elif escaped in self._ESCAPES:
                parts.append((False, self._ESCAPES[escaped]))
            else:
                self.fail(rf"\{escaped} is no key: \n, \t, \b, \e, \\ and \<f1> are")
        try:
            for named, part in parts:
                keys.held(part) if named else list(keys.typed(part))
        except ValueError as error:
            self.fail(str(error).removeprefix("keys: "), param, ctx)
        if not parts:
            self.fail(f"{value!r} has no keys to type", param, ctx)
        return waits, parts


# A run of text; or the name of keys; or what else is behind a backslash.
_PARTS: Final = re.compile(r"([^\\]+)|\\<([^>]*)>|\\(.?)", re.DOTALL)

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def files(
    _ctx: click.Context, _param: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Have the shell complete the name of a file."""
    return [CompletionItem(typed, type="file")]


def completion(names: Callable[[], tuple[str, ...]]) -> Completion:
    """Return what completes names of instructions, as one word each."""

    def complete(
        _ctx: click.Context, _param: click.Parameter, typed: str
    ) -> list[CompletionItem]:
        words = (words_of(name).replace(" ", "-") for name in names())
        return [CompletionItem(one) for one in words if one.startswith(typed.lower())]

    return complete


def words_of(name: str) -> str:
    """Write an instruction's name as it is compared: in small letters, with spaces."""
    return name.lower().replace(",", " ").replace("-", " ").replace("  ", " ").strip()


def matching(
    command: str, wanted: tuple[str, ...], names: dict[str, tuple[str, ...]], bits: str
) -> tuple[str, ...]:
    """Return the names that are wanted, or have the words that are, in any case.

    names: by the width of the code, "32" or "64", of which `bits` is looked for. Raises
    ConfigError.
    """
    known = {words_of(name): name for name in names[bits]}
    found: dict[str, None] = {}
    for one in wanted:
        words = words_of(one)
        having = [name for name in known if _has(name, words)]
        if not words or not having:
            for other, theirs in names.items():
                if words and any(_has(words_of(name), words) for name in theirs):
                    raise ConfigError(f"{command}: {one!r} needs --bits {other}")
            raise ConfigError(f"{command}: {unknown(one, names[bits])}")
        chosen = [words] if words in known else having
        found |= {known[name]: None for name in chosen}
    return tuple(found)


def _has(name: str, words: str) -> bool:
    return f" {words} " in f" {name} "
