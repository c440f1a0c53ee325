import pytest

from emu86.devices.pic import PicPair

CMD, DATA = 0, 1


@pytest.fixture
def pair():
    """Initialised as every PC operating system does: vectors 20h and 28h."""
    p = PicPair()
    init(p.master, 0x20, 0x04)
    init(p.slave, 0x28, 0x02)
    return p


def init(chip, base, icw3, icw4=0x01, icw1=0x11):
    chip.write(CMD, 1, icw1, 0)
    chip.write(DATA, 1, base, 0)
    if not icw1 & 2:
        chip.write(DATA, 1, icw3, 0)
    if icw1 & 1:
        chip.write(DATA, 1, icw4, 0)


def ocw3(chip, value):
    chip.write(CMD, 1, 0x08 | value, 0)


def irr(chip):
    ocw3(chip, 2)
    return chip.read(CMD, 1, 0)


def isr(chip):
    ocw3(chip, 3)
    return chip.read(CMD, 1, 0)


def eoi(chip, command=0x20):
    chip.write(CMD, 1, command, 0)


def pulse(pair, n):
    pair.set_line(n, True)
    pair.set_line(n, False)


def test_before_initialisation_nothing_is_requested():
    pair = PicPair()
    for n in (0, 1, *range(3, 16)):
        pair.set_line(n, True)
    assert not pair.intr


def test_a_request_is_acknowledged_once_per_edge(pair):
    pair.set_line(4, True)
    assert pair.intr
    assert irr(pair.master) == 0x10
    assert pair.acknowledge() == 0x24
    assert not pair.intr
    assert (irr(pair.master), isr(pair.master)) == (0, 0x10)
    eoi(pair.master)
    assert not pair.intr  # still high, but no new edge
    pair.set_line(4, False)
    pair.set_line(4, True)
    assert pair.intr


def test_a_request_that_falls_before_it_is_acknowledged_is_gone(pair):
    pulse(pair, 4)
    assert not pair.intr
    assert pair.acknowledge() == 0x27  # spurious
    assert isr(pair.master) == 0


def test_a_level_triggered_line_asks_until_it_falls(pair):
    pair.elcr.write(0, 1, 0x20, 0)
    pair.set_line(5, True)
    assert pair.acknowledge() == 0x25
    assert irr(pair.master) == 0x20
    assert not pair.intr
    eoi(pair.master)
    assert pair.intr
    pair.set_line(5, False)
    assert not pair.intr


def test_a_line_made_level_triggered_while_it_is_high_asks(pair):
    pair.set_line(5, True)
    pair.acknowledge()
    eoi(pair.master)
    pair.elcr.write(0, 1, 0x20, 0)
    assert pair.intr


def test_elcr_keeps_the_lines_of_the_board_edge_triggered():
    pair = PicPair()
    pair.elcr.write(0, 1, 0xFF, 0)
    pair.elcr.write(1, 1, 0xFF, 0)
    assert (pair.elcr.read(0, 1, 0), pair.elcr.read(1, 1, 0)) == (0xF8, 0xDE)


def test_masking(pair):
    pair.master.write(DATA, 1, 0x10, 0)
    assert pair.master.read(DATA, 1, 0) == 0x10
    pair.set_line(4, True)
    assert not pair.intr
    assert irr(pair.master) == 0x10
    pair.master.write(DATA, 1, 0, 0)
    assert pair.intr


def test_fully_nested_priorities(pair):
    pair.set_line(5, True)
    assert pair.acknowledge() == 0x25
    pair.set_line(6, True)
    assert not pair.intr
    pair.set_line(3, True)
    assert pair.acknowledge() == 0x23
    assert isr(pair.master) == 0x28
    eoi(pair.master)  # the highest in service: 3
    assert isr(pair.master) == 0x20
    eoi(pair.master)
    assert pair.acknowledge() == 0x26


def test_specific_eoi(pair):
    pair.set_line(5, True)
    pair.acknowledge()
    pair.set_line(3, True)
    pair.acknowledge()
    eoi(pair.master, 0x65)
    assert isr(pair.master) == 0x08
    eoi(pair.master, 0x60 | 1)  # not in service
    assert isr(pair.master) == 0x08


def order(pair):
    """Vectors in the order of priority, of the master's lines 0, 1, 3..7."""
    lines = (0, 1, 3, 4, 5, 6, 7)
    for n in lines:
        pair.set_line(n, False)
        pair.set_line(n, True)
    got = []
    while pair.intr:
        got.append(pair.acknowledge() & 7)
        eoi(pair.master, 0x60 | got[-1])
    return got


def test_set_priority(pair):
    assert order(pair) == [0, 1, 3, 4, 5, 6, 7]
    eoi(pair.master, 0xC0 | 5)  # 5 becomes the lowest
    assert order(pair) == [6, 7, 0, 1, 3, 4, 5]


def test_rotate_on_non_specific_eoi(pair):
    pair.set_line(3, True)
    pair.acknowledge()
    eoi(pair.master, 0xA0)
    assert isr(pair.master) == 0
    assert order(pair) == [4, 5, 6, 7, 0, 1, 3]


def test_rotate_on_specific_eoi(pair):
    pair.set_line(3, True)
    pair.acknowledge()
    eoi(pair.master, 0xE0 | 3)
    assert isr(pair.master) == 0
    assert order(pair) == [4, 5, 6, 7, 0, 1, 3]


def test_auto_eoi_and_rotation():
    pair = PicPair()
    init(pair.master, 0x20, 0x04, icw4=0x03)
    init(pair.slave, 0x28, 0x02)
    pair.set_line(4, True)
    assert pair.acknowledge() == 0x24
    assert isr(pair.master) == 0
    eoi(pair.master, 0x80)  # rotate in automatic EOI: set
    pulse(pair, 4)
    pair.set_line(4, True)
    pair.acknowledge()
    eoi(pair.master, 0x00)  # and clear
    assert order(pair) == [5, 6, 7, 0, 1, 3, 4]


def test_no_operation_changes_nothing(pair):
    pair.set_line(3, True)
    pair.acknowledge()
    before = pair.save()
    eoi(pair.master, 0x40)
    assert pair.save() == before


def test_special_mask_mode_lets_lower_priorities_in(pair):
    pair.set_line(3, True)
    pair.acknowledge()
    pair.set_line(6, True)
    assert not pair.intr
    ocw3(pair.master, 0x60)
    assert not pair.intr  # it works by the mask
    pair.master.write(DATA, 1, 0x08, 0)
    assert pair.acknowledge() == 0x26
    eoi(pair.master)  # does not see the masked in-service bit
    assert isr(pair.master) == 0x08
    eoi(pair.master)
    assert isr(pair.master) == 0x08
    ocw3(pair.master, 0x40)
    eoi(pair.master)
    assert isr(pair.master) == 0


def test_ocw3_without_its_enable_leaves_special_mask_mode(pair):
    ocw3(pair.master, 0x60)
    ocw3(pair.master, 0x20)
    assert pair.master.special_mask
    ocw3(pair.master, 0x40)
    assert not pair.master.special_mask


def test_poll(pair):
    pair.set_line(5, True)
    ocw3(pair.master, 0x04)
    assert pair.master.read(CMD, 1, 0) == 0x85
    assert isr(pair.master) == 0x20
    assert not pair.intr
    ocw3(pair.master, 0x04)
    assert pair.master.read(DATA, 1, 0) & 0x80 == 0
    assert pair.master.read(DATA, 1, 0) == 0  # one read only: the mask again


def test_the_slave_is_cascaded(pair):
    pair.set_line(10, True)
    assert irr(pair.master) == 0x04
    assert pair.acknowledge() == 0x2A
    assert (isr(pair.master), isr(pair.slave)) == (0x04, 0x04)
    pair.set_line(12, True)
    pair.set_line(3, True)
    assert not pair.intr
    eoi(pair.slave)
    eoi(pair.master)
    assert pair.acknowledge() == 0x2C


def test_an_interrupt_of_the_slave_while_it_is_served_waits_for_both_eois(pair):
    pair.set_line(12, True)
    pair.acknowledge()
    pair.set_line(10, True)  # higher, but the master sees IR2 in service
    assert not pair.intr
    eoi(pair.slave)
    assert not pair.intr
    eoi(pair.master)
    assert pair.acknowledge() == 0x2A


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself():
    pair = PicPair()
    init(pair.master, 0x20, 0x04, icw4=0x11)
    init(pair.slave, 0x28, 0x02)
    pair.set_line(12, True)
    pair.acknowledge()
    pair.set_line(13, True)
    assert not pair.intr
    pair.set_line(10, True)
    assert pair.acknowledge() == 0x2A
    assert isr(pair.slave) == 0x14
    pair.set_line(3, True)
    assert not pair.intr


def test_spurious_irq15_is_in_service_in_the_master_only(pair):
    pair.slave.write(DATA, 1, 0, 0)
    pair.set_line(10, True)
    # The slave's request falls between the two INTA pulses.
    pair.slave._output = lambda _: None
    pair.set_line(10, False)
    assert pair.acknowledge() == 0x2F
    assert (isr(pair.master), isr(pair.slave)) == (0x04, 0)


def test_a_slave_of_another_identity_does_not_answer():
    pair = PicPair()
    init(pair.master, 0x20, 0x04)
    init(pair.slave, 0x28, 0x05)
    pair.set_line(10, True)
    assert pair.acknowledge() == 0xFF


def test_single_mode_has_no_icw3_and_no_slave():
    pair = PicPair()
    init(pair.master, 0x40, None, icw1=0x13)
    pair.master.write(DATA, 1, 0x81, 0)
    assert pair.master.read(DATA, 1, 0) == 0x81  # OCW1 already
    pair.master.write(DATA, 1, 0, 0)
    init(pair.slave, 0x28, 0x02)
    pair.set_line(10, True)
    assert pair.acknowledge() == 0x42
    pair.set_line(1, True)
    assert pair.acknowledge() == 0x41


@pytest.mark.parametrize(("icw1", "vector"), [(0xF4, 0xEC), (0xF0, 0xD8)])
def test_without_icw4_the_vector_is_that_of_an_8080(icw1, vector):
    pair = PicPair()
    init(pair.master, 0x20, 0x04, icw1=icw1)
    pair.master.write(DATA, 1, 0x00, 0)
    pair.set_line(3, True)
    assert pair.acknowledge() == vector


def test_icw1_resets(pair):
    pair.elcr.write(0, 1, 0x20, 0)
    pair.set_line(4, True)
    pair.set_line(5, True)
    pair.set_line(3, True)
    pair.acknowledge()
    eoi(pair.master, 0xC3)
    ocw3(pair.master, 0x63)
    pair.master.write(DATA, 1, 0xFF, 0)
    pair.master.write(CMD, 1, 0x11, 0)
    assert pair.master.read(DATA, 1, 0) == 0
    assert pair.master.read(CMD, 1, 0) == 0x20  # IRR: the level, not the edges
    assert isr(pair.master) == 0
    assert (pair.master.lowest, pair.master.special_mask) == (7, False)


def test_two_interrupts_pending_come_one_after_the_other_in_auto_eoi():
    pair = PicPair()
    init(pair.master, 0x20, 0x04, icw4=3)
    init(pair.slave, 0x28, 0x02, icw4=3)
    pair.set_line(11, True)
    pair.set_line(9, True)
    assert [pair.acknowledge(), pair.acknowledge()] == [0x29, 0x2B]
    assert not pair.intr


def test_line_numbers():
    pair = PicPair()
    for n in (-1, 2, 16):
        with pytest.raises(ValueError, match="IRQ"):
            pair.line(n)
    line = pair.line(12)
    line(True)
    assert pair.slave.lines == 0x10


def test_restore_brings_the_request_back(pair):
    pair.set_line(9, True)
    other = PicPair()
    other.restore(pair.save())
    assert other.intr
    assert other.acknowledge() == 0x29
    assert other.save() != pair.save()
