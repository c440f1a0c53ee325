"""A profile of Debian's kernel, which names its functions by its own tables."""

import pytest

from emu86 import Machine
from support.shell import APPEND, INITRD, KERNEL, PATIENCE, PROMPT


def boot(*, profiled):
    machine = Machine()
    machine.load_kernel(KERNEL, append=APPEND, initrd=INITRD)
    profile = machine.profile() if profiled else None
    assert machine.run(until=PROMPT, timeout=PATIENCE).reason == "until"
    exits = {reason: stat.count for reason, stat in machine.stats.exits.items()}
    return profile, (machine.now, {k: n for k, n in exits.items() if n})


@pytest.mark.slow
@pytest.mark.guest
def test_a_boot_by_its_functions():
    _, expected = boot(profiled=False)
    profile, found = boot(profiled=True)
    assert found == expected
    spent = profile.spent()
    total = {}
    for row in spent:
        if row.reason:
            total[row.reason] = total.get(row.reason, 0) + row.count
    assert total == expected[1]
    exits = {(row.place, row.reason): row.count for row in spent if row.reason}
    assert exits["delay_tsc", "RDTSC"] > 600_000
    assert exits["io_serial_out", "OUT"] > 1000
    dearest = [row.place for row in spent if not row.reason][:3]
    assert {"mpihelp_submul_1", "mpihelp_addmul_1"} <= set(dearest)
    stacks = profile.folded()
    chain = "ring 0;ret_from_fork;kthread;cryptomgr_test;alg_test;alg_test_kpp;"
    assert f"\n{chain}dh_compute_value;mpi_powm;mpihelp_divrem;" in stacks
    assert "\nring 3;page " in stacks
