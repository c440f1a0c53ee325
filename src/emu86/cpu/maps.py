"""This process's own memory, as the kernel tells of it."""


def ranges(rights: str) -> list[tuple[int, int]]:
    """Return the address ranges whose rights begin with `rights` ("rw"), in order."""
    found = []
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            span, has, *_ = line.split()
            if has.startswith(rights):
                low, _, high = span.partition("-")
                found.append((int(low, 16), int(high, 16)))
    return found
