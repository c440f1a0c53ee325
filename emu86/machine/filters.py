"""Filters of traces: `ring=3 or reason=CR3`, as a condition on an exit.

    reason=NAME   the reason's name, a word of it, or CR3, which is MOV to and from CR3
    ring=3        the guest's ring; engine=1: that of the engine
    ip=A          the linear address; ip=A..B from A up to B; ip=NAME: in that function
    cr3=A         the guest's CR3, by which its processes are told apart
    time=A..B     virtual time: 20ms, 1.5s, 300us, 40ns
    by=compiled   or Python: who handled it

`=`, `!=`, `<`, `<=`, `>`, `>=`; `and`, `or`, `not` and parentheses. Addresses are
hexadecimal.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from emu86.errors import ConfigError, unknown
from emu86.machine.tracefile import Code

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<sign>[()]|[!<>]=|[=<>])"
    r"|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<word>[^\s()=!<>'\"]+))"
)
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s)")
_UNITS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_KEYS: Final = ("reason", "ring", "engine", "ip", "cr3", "time", "by")
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}
_CR: Final = re.compile(r"cr\d")


class Seen(Protocol):
    """What a filter looks at: an `Exit`, or what a recorder has of one so far."""

    @property
    def time(self) -> int:
        """See `Exit`, as of all of these."""
        ...

    @property
    def ring(self) -> int: ...  # noqa: D102
    @property
    def engine(self) -> int: ...  # noqa: D102
    @property
    def cr3(self) -> int: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def native(self) -> bool: ...  # noqa: D102
    @property
    def code(self) -> Code: ...  # noqa: D102


class _Test(NamedTuple):
    """A condition, and what it says by the reason alone: None, that is not enough."""

    matches: Callable[[Seen], bool]
    by_reason: Callable[[str], bool | None]


class Filter:
    """A filter, read from its text. Raises ConfigError, one clear line."""

    def __init__(self, text: str) -> None:
        self.text = text
        parser = _Parser(text)
        test = parser.alternatives()
        parser.end()
        self.matches = test.matches
        self._by_reason = test.by_reason

    def may_match(self, reason: str) -> bool:
        """Tell whether an exit for this reason can match."""
        return self._by_reason(reason) is not False


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, bool]] = []  # and whether it is a sign
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._mistake(f"a mistake at {text[at:].strip()!r:.20}")
            sign = found["sign"]
            quoted = found["single"] if found["double"] is None else found["double"]
            word = found["word"] if quoted is None else quoted
            self._tokens.append((sign or word or "", sign is not None))
            at = found.end()
        if not self._tokens:
            raise self._mistake("it is empty")

    def _mistake(self, what: str) -> ConfigError:
        return ConfigError(f"filter {self._text!r:.80}: {what}")

    def _next(self) -> tuple[str, bool]:
        if not self._tokens:
            raise self._mistake("it ends too soon")
        return self._tokens.pop(0)

    def _takes(self, word: str, *, sign: bool = False) -> bool:
        if self._tokens and self._tokens[0] == (word, sign):
            self._tokens.pop(0)
            return True
        return False

    def end(self) -> None:
        if self._tokens:
            raise self._mistake(f"no `and` or `or` before {self._tokens[0][0]!r:.20}")

    def alternatives(self) -> _Test:
        test = self._all()
        while self._takes("or"):
            test = _either(test, self._all())
        return test

    def _all(self) -> _Test:
        test = self._one()
        while self._takes("and"):
            test = _both(test, self._one())
        return test

    def _one(self) -> _Test:
        if self._takes("not"):
            return _negated(self._one())
        if self._takes("(", sign=True):
            test = self.alternatives()
            if not self._takes(")", sign=True):
                raise self._mistake("a ) is missing")
            return test
        key, sign = self._next()
        if sign or key not in _KEYS:
            raise self._mistake(unknown(key, _KEYS))
        operator, sign = self._next()
        if not sign or operator in "()":
            raise self._mistake(f"= or the like must follow {key!r}")
        value, sign = self._next()
        if sign:
            raise self._mistake(f"{value!r} is no value of {key!r}")
        return self._condition(key, operator, value)

    def _condition(self, key: str, operator: str, value: str) -> _Test:
        if operator == "!=":
            return _negated(self._condition(key, "=", value))
        if key in ("reason", "by"):
            if operator != "=":
                raise self._mistake(f"{key} has no order: = or !=")
            return _of_reason(value) if key == "reason" else self._by(value)
        get = _GETTERS[key]
        if operator != "=":
            limit, compare = self._number(key, value), _COMPARE[operator]
            return _unknown(lambda seen: compare(get(seen), limit))
        first, dots, last = value.partition("..")
        if not dots and key == "ip" and self._is_name(value):
            return _unknown(lambda seen: value in (seen.code.function, seen.code.name))
        low = self._number(key, first)
        high = self._number(key, last) if dots else low + 1
        return _unknown(lambda seen: low <= get(seen) < high)

    @staticmethod
    def _is_name(value: str) -> bool:
        try:
            int(value.removesuffix("h"), 16)
        except ValueError:
            return True
        return False

    def _by(self, value: str) -> _Test:
        if value.lower() not in ("compiled", "python"):
            raise self._mistake(unknown(value, ("compiled", "Python")))
        native = value.lower() == "compiled"
        return _unknown(lambda seen: seen.native == native)

    def _number(self, key: str, value: str) -> int:
        try:
            if key == "time":
                found = _TIME.fullmatch(value)
                if found is None:
                    raise self._mistake(f"{value!r} is no time: 20ms, 1.5s")
                return round(float(found[1]) * _UNITS[found[2]])
            if key in ("ring", "engine"):
                return int(value)
            return int(value.removesuffix("h"), 16)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise self._mistake(f"{value!r} is no value of {key!r}") from None


_GETTERS: Final[dict[str, Callable[[Seen], int]]] = {
    "ring": lambda seen: seen.ring,
    "engine": lambda seen: seen.engine,
    "ip": lambda seen: seen.code.linear,
    "cr3": lambda seen: seen.cr3,
    "time": lambda seen: seen.time,
}


def _unknown(matches: Callable[[Seen], bool]) -> _Test:
    return _Test(matches, lambda _reason: None)


def _of_reason(value: str) -> _Test:
    wanted = value.lower()
    if _CR.fullmatch(wanted):
        # Its name tells which register only together with the instruction.
        def by_reason(reason: str) -> bool | None:
            return None if reason in ("MOV to CR", "MOV from CR") else False

        return _Test(
            lambda seen: by_reason(seen.reason) is None and wanted in seen.code.text,
            by_reason,
        )

    def named(reason: str) -> bool:
        reason = reason.lower()
        return wanted == reason or wanted in reason.split()

    return _Test(lambda seen: named(seen.reason), named)


def _negated(test: _Test) -> _Test:
    def by_reason(reason: str) -> bool | None:
        known = test.by_reason(reason)
        return None if known is None else not known

    return _Test(lambda seen: not test.matches(seen), by_reason)


def _combined(one: _Test, other: _Test, *, decides: bool) -> _Test:
    """Return the test that is `decides` if one of two is, and else what both are."""

    def by_reason(reason: str) -> bool | None:
        known = one.by_reason(reason), other.by_reason(reason)
        if decides in known:
            return decides
        return None if None in known else not decides

    def matches(seen: Seen) -> bool:
        return decides if one.matches(seen) is decides else other.matches(seen)

    return _Test(matches, by_reason)


_both: Final = partial(_combined, decides=False)
_either: Final = partial(_combined, decides=True)
