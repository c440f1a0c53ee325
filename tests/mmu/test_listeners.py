"""Who listens is told, in order, and of nothing else."""

from support.paging import PG, RW, US, WP, WRITE, A, Bench, D, P


def test_listeners_are_told_in_order():
    bench = Bench()
    bench.write32(0x10000, 0x11000 | P | RW | US | A)
    bench.write32(0x11000, 0x20000 | P | RW | US | A | D)
    bench.mmu.configure(PG | WP, 0x10000, 0)
    told = []
    listeners = bench.mmu.listeners
    for name, heard in vars(listeners).items():
        for who in "ab":
            heard.append(
                lambda *what, name=name, who=who: told.append((who, name, *what))
            )
    assert bench.access(0, WRITE) == ("ok", 0x20)
    assert told == []
    bench.mmu.use.watch(0x20)
    bench.mmu.use.before_write(0x20)
    bench.mmu.use.execute(0x20)
    bench.mmu.use.write(0x20)
    bench.mmu.invalidate(0x1234)
    bench.mmu.switch(0x10000)
    bench.mmu.reset()
    assert told == [
        (who, *what)
        for what in (
            ("rights_lost",),
            ("table_written", 0x20),
            ("rights_lost",),
            ("code_changed", 0x20),
            ("rights_lost",),
            ("flushed_page", 0x1234),
            ("flushed_nonglobal",),
            ("flushed_all",),
        )
        for who in "ab"
    ]
