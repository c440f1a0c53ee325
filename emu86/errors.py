"""The errors of emu86's users, not of its guests."""

import math
import operator
from collections.abc import Collection
from typing import Any


class ConfigError(ValueError):
    """The machine cannot be built or loaded as asked.

    Its text is one clear line that names what is at fault ("kernel: ...",
    "memory: ..."). What a *guest* does wrong never raises: it becomes the guest's
    own fault.
    """


def expect(what: str, value: object, *kinds: Any, hint: str = "") -> None:  # noqa: ANN401 - a class
    """Raise TypeError, which tells `what` it is about, for a value of another kind."""
    __tracebackhide__ = True  # by pytest: the caller's mistake is not here
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(
            f"{what}: {value!r:.60} is of type {type(value).__name__}, not {wanted}"
            + hint
        )


def as_int(
    what: str, value: object, least: float = -math.inf, end: float = math.inf
) -> int:
    """Return an integer of any type, NumPy's too, as an int.

    Raises TypeError for what is none, ValueError for one that is not from `least` up to
    `end`, which it is not itself.
    """
    __tracebackhide__ = True
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        expect(what, value, int)
        raise
    if not least <= found < end:
        ends = f"below {least}" if found < least else f"not below {end:#x}"
        raise ValueError(f"{what}: {found} is {ends}")
    return int(found)


def as_bytes(what: str, value: object) -> bytes:
    """Return bytes of any type as bytes; raises TypeError for what is none, as text."""
    __tracebackhide__ = True
    hint = f" (for text: b{value!r:.40})" if isinstance(value, str) else ""
    expect(what, value, bytes, bytearray, memoryview, hint=hint)
    return bytes(value)  # type: ignore[call-overload, no-any-return]


def unknown(name: object, names: Collection[str]) -> str:
    """Return the words on a name that there is not: what was meant, what there is."""
    from difflib import get_close_matches  # noqa: PLC0415 (for mistakes alone)

    close = get_close_matches(str(name).lower(), [one.lower() for one in names], 1)
    meant = [one for one in names if one.lower() in close]
    ask = f"did you mean {meant[0]!r}? " if meant else ""
    between = "; " if any("," in one for one in names) else ", "
    return f"no {name!r:.60} ({ask}there are {between.join(names)})"
