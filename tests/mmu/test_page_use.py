"""What a change of a page's use asks of the shadow entries that map it."""

from emu86.mmu.page_use import PageUse
from support.paging import Bench


class Recorder:
    """Mappings that note what the use of pages asks of them."""

    def __init__(self):
        self.asked = []

    def write_protect(self, page):
        self.asked.append(("write_protect", page))

    def forbid_execution(self, page):
        self.asked.append(("forbid_execution", page))

    def drop_mappings(self, page, keep=-1):
        self.asked.append(("drop_mappings", page, keep))

    def is_mapped_elsewhere(self, page, index):
        return (page, index) == (5, 7)


def test_the_use_of_pages_asks_for_what_it_needs():
    bench = Bench()
    asked = Recorder()
    use = PageUse(bench.engine, bench.ram, asked, bench.mmu.listeners)
    use.execute(3)
    use.write(3)
    use.watch(4)
    use.take_over(5, 7)
    use.take_over(6, 7)
    assert asked.asked == [
        ("write_protect", 3),
        ("forbid_execution", 3),
        ("write_protect", 4),
        ("drop_mappings", 5, 7),
    ]
    assert use.taken_over == 5
