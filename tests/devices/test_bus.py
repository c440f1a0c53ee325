import pytest

from emu86.devices.bus import Bus


class Ram:
    """Remembers what was asked of it; reads give the offset, or its width's."""

    def __init__(self, *widths):
        if widths:
            self.widths = frozenset(widths)
        self.log = []

    def read(self, offset, width, now):
        self.log.append(("r", offset, width, now))
        return offset + 0x10 if width == 1 else 0x1234_5678 & ((1 << 8 * width) - 1)

    def write(self, offset, width, value, now):
        self.log.append(("w", offset, width, value, now))


@pytest.mark.parametrize(("width", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_nothing_there_reads_ones_and_loses_writes(width, ones):
    bus = Bus()
    assert bus.read(0x60, width, 0) == ones
    bus.write(0x60, width, 0, 0)


def test_offsets_count_from_the_first_address():
    bus, ram = Bus(), Ram()
    bus.attach(range(0x3F8, 0x400), ram, "com1")
    assert bus.read(0x3FA, 1, 7) == 0x12
    bus.write(0x3FF, 1, 0xAB, 9)
    assert ram.log == [("r", 2, 1, 7), ("w", 7, 1, 0xAB, 9)]


def test_a_wide_access_is_split_in_order_each_byte_to_its_own_device():
    bus, low, high = Bus(), Ram(), Ram()
    bus.attach(range(0x10, 0x12), low, "low")
    bus.attach(range(0x12, 0x13), high, "high")
    assert bus.read(0x11, 4, 0) == 0xFFFF_1011
    bus.write(0x0F, 4, 0x4433_2211, 5)
    assert low.log[1:] == [("w", 0, 1, 0x22, 5), ("w", 1, 1, 0x33, 5)]
    assert high.log[1:] == [("w", 0, 1, 0x44, 5)]


def test_declared_widths_arrive_whole_unless_they_leave_the_device():
    bus, ram = Bus(), Ram(1, 2)
    bus.attach(range(0x20, 0x23), ram, "wide")
    assert bus.read(0x20, 2, 0) == 0x5678
    bus.write(0x22, 2, 0xBBAA, 0)
    bus.write(0x20, 4, 0x0403_0201, 0)
    assert ram.log == [
        ("r", 0, 2, 0),
        ("w", 2, 1, 0xAA, 0),
        ("w", 0, 1, 1, 0),
        ("w", 1, 1, 2, 0),
        ("w", 2, 1, 3, 0),
    ]


def test_a_stepped_range_leaves_the_addresses_between_to_others():
    bus, outer, inner = Bus(), Ram(), Ram()
    bus.attach(range(0x60, 0x65, 4), outer, "i8042")
    bus.attach(range(0x61, 0x62), inner, "speaker")
    assert bus.read(0x64, 1, 0) == 0x14
    assert bus.read(0x61, 1, 0) == 0x10
    assert bus.read(0x62, 1, 0) == 0xFF
    assert bus.attached == [
        (range(0x60, 0x65, 4), "i8042"),
        (range(0x61, 0x62), "speaker"),
    ]


def test_overlap_and_empty_ranges_are_refused_and_change_nothing():
    bus = Bus()
    bus.attach(range(0x20, 0x22), Ram(), "pic")
    with pytest.raises(ValueError, match="0x20 is taken by pic"):
        bus.attach(range(0x1E, 0x30), Ram(), "other")
    with pytest.raises(ValueError, match="no range"):
        bus.attach(range(5, 5), Ram(), "other")
    with pytest.raises(ValueError, match="no range"):
        bus.attach(range(-1, 5), Ram(), "other")
    assert bus.name(0x1E) is None
    assert bus.name(0x21) == "pic"


def test_an_access_past_the_last_port_is_safe():
    bus, ram = Bus(), Ram()
    bus.attach(range(0xFFFF, 0x10000), ram, "last")
    assert bus.read(0xFFFF, 4, 0) == 0xFFFFFF10
    bus.write(0xFFFF, 4, 0, 0)
