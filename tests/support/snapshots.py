"""A machine and one that is restored from its state, side by side."""

from dataclasses import fields, is_dataclass

from emu86 import Machine

PATIENCE = 120  # wall seconds for one run, on a machine that is busy otherwise


class _Alarm:
    """A chip whose only deadline ends the run."""

    def __init__(self, machine, due):
        self.machine = machine
        self.due = due

    def deadline(self):
        return self.due

    def advance(self, now):
        if self.due is not None and now >= self.due:
            self.due = None
            self.machine.stop()


def run_for(machine, ns):
    """Run for `ns` virtual nanoseconds, or to the end."""
    alarm = _Alarm(machine, machine.now + ns)
    board = machine.board
    board.timed += (alarm,)
    board.schedule()
    try:
        stop = machine.run(timeout=PATIENCE)
    finally:
        board.timed = tuple(chip for chip in board.timed if chip is not alarm)
    assert stop.reason != "timeout", "hung"
    return stop


def difference(one, other, where="state"):
    """Tell where two states differ, for a person; None: nowhere."""
    if type(one) is not type(other):
        return f"{where}: {one!r:.200} is not {other!r:.200}"
    if one == other:
        return None
    if is_dataclass(one):
        pairs = [
            (f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        ]
    elif hasattr(one, "_fields"):
        pairs = list(zip(one._fields, one, other, strict=True))
    elif isinstance(one, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, bytes) and len(one) == len(other):
        places = [i for i in range(len(one)) if one[i] != other[i]]
        return f"{where}: at {places[:20]}"
    elif isinstance(one, tuple) and len(one) == len(other):
        pairs = [(i, *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        return f"{where}: {one!r:.200} is not {other!r:.200}"
    found = (difference(a, b, f"{where}.{name}") for name, a, b in pairs)
    return next(filter(None, found), None)


def twin(machine, **options):
    """Save the machine; return one that is restored, and the same."""
    state = machine.save()
    other = Machine.restore(state, **options)
    assert difference(state, other.save()) is None
    return other


def run_both(machine, other, run):
    """Have both do the same; they must stay the same to the bit. Returns the stop."""
    shown = bytearray(), bytearray()
    machine.on_console(shown[0].extend)
    other.on_console(shown[1].extend)
    stop = run(machine)
    assert run(other) == stop
    assert shown[0] == shown[1]
    assert difference(machine.save(), other.save()) is None
    return stop
