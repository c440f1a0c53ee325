"""How memory is described that Python and the machine code share: ctypes, once.

A `record` is a ctypes structure written as a class with annotations. A type checker
sees the `int` of `u32`, everyone else the width: 32 bits.
"""

import ctypes
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, get_type_hints

_T = TypeVar("_T")
_S = TypeVar("_S", bound=ctypes.Structure)

u8: TypeAlias = Annotated[int, ctypes.c_uint8]
u16: TypeAlias = Annotated[int, ctypes.c_uint16]
u32: TypeAlias = Annotated[int, ctypes.c_uint32]
u64: TypeAlias = Annotated[int, ctypes.c_uint64]
i32: TypeAlias = Annotated[int, ctypes.c_int32]
i64: TypeAlias = Annotated[int, ctypes.c_int64]

_BASES: dict[str, Any] = {
    "structure": ctypes.Structure,
    "array": ctypes.Array,
    "pointer": ctypes._Pointer,  # noqa: SLF001 (ctypes has no other name for it)
    "function": ctypes._CFuncPtr,  # type: ignore[attr-defined] # noqa: SLF001
}


class Pointer(Generic[_T]):
    """How a type checker reads POINTER(T)."""

    contents: _T

    def __bool__(self) -> bool:
        """Tell whether it points anywhere."""
        raise NotImplementedError


class CFunction:
    """How a type checker reads a C function's address."""

    def __call__(self, *arguments: int) -> int:
        """Call the function."""
        raise NotImplementedError

    def __bool__(self) -> bool:
        """Tell whether there is one."""
        raise NotImplementedError


def ctype(hint: Any) -> Any:
    """Return the ctype that an annotation stands for; other annotations as they are."""
    return hint.__metadata__[0] if hasattr(hint, "__metadata__") else hint


def is_kind(kind: Any, *names: str) -> bool:
    """Tell whether a ctype is a "structure", "array", "pointer" or "function"."""
    bases = tuple(_BASES[name] for name in names)
    return isinstance(kind, type) and issubclass(kind, bases)


def is_integer(kind: Any) -> bool:
    """Tell whether a ctype holds an integer."""
    return (
        isinstance(kind, type)
        and issubclass(kind, ctypes._SimpleCData)  # noqa: SLF001 (ctypes' only name)
        and isinstance(kind().value, int)
    )


def bounds(kind: Any) -> tuple[int, int]:
    """Return the least and the greatest integer that a ctype holds."""
    bits = 8 * ctypes.sizeof(kind)
    if kind(-1).value < 0:
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1


def at(offset: int) -> Any:
    """Say where in its record a field is, in bytes; the next ones follow."""
    return offset


def record(cls: type[_S]) -> type[_S]:
    """Give a structure the fields of its annotations: `x: u32`, or `x: u32 = at(8)`."""
    fields: list[tuple[str, Any]] = []
    end = 0
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if name.startswith("_"):
            continue
        kind = ctype(hint)
        align = ctypes.alignment(kind)
        start = cls.__dict__.get(name, -(-end // align) * align)
        if name in cls.__dict__:
            delattr(cls, name)
        if start > end:
            fields.append((f"_{end}", ctypes.c_uint8 * (start - end)))
        fields.append((name, kind))
        end = start + ctypes.sizeof(kind)
    cls._fields_ = fields
    return cls


def function(result: Any, *arguments: Any) -> Any:
    """Return the ctype of a C function's address, called without releasing the GIL."""
    return ctypes.PYFUNCTYPE(result, *arguments)
