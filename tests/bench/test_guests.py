"""The guests that are measured, on emu86 and on QEMU, with tiny counts."""

import shutil
import time

import pytest

from bench import compute, exits, linux, start, tools
from bench.tools import BenchError, Contender, Guest

QEMU = pytest.param(
    Contender("QEMU"),
    id="QEMU",
    marks=pytest.mark.skipif(not shutil.which(tools.QEMU), reason="no QEMU"),
)
PATCH = Contender("patch", "patch")
BARE = Contender("bare", "bare")


@pytest.mark.not_quick
@pytest.mark.parametrize("contender", [QEMU, pytest.param(PATCH, id="patch")])
def test_nanobenchmarks(contender, monkeypatch):
    monkeypatch.setattr(exits, "how_often", lambda *_: 20)
    rows = exits.nano(contender, 1)
    assert [name.partition(":")[0] for name in rows] == [
        "syscall", "in", "cr3wr", "callret", "pgfault", "divzero", "ptemod"
    ]  # fmt: skip
    assert min(rows.values()) >= 0


@pytest.mark.not_quick
def test_the_bare_engine_runs_them_too():
    assert exits.run(BARE, "pgfault", 3) > 0


def test_every_series_is_in_the_image():
    source = (tools.ROOT / "firmware" / "exits.asm").read_text()
    for name in [*exits.NANO, *exits.MORE]:
        assert f'SERIES  "{name}"' in source


def test_how_often_is_found_out(monkeypatch):
    counts = []

    def run(_contender, _series, count):
        counts.append(count)
        return 0.002 + count * 1e-6  # translating the loop, and a microsecond each

    monkeypatch.setattr(exits, "run", run)
    count = exits.how_often(Contender("one"), "in", 1.0)
    assert 0.9e6 < count <= 1.1e6
    assert len(counts) < 4
    monkeypatch.setattr(exits, "run", lambda *_: 0.0)
    with pytest.raises(BenchError, match="takes no time"):
        exits.how_often(Contender("two"), "in", 1.0)


@pytest.mark.not_quick
def test_all_compute_the_same():
    spun = compute.spin(PATCH, 1)[1]
    assert compute.plain(compute.loop(), 1_000_000)[1] == spun
    assert compute.bare(compute.loop(), 1_000_000)[1] == spun


def test_another_checksum_is_an_error(monkeypatch):
    monkeypatch.setattr(compute, "_checksums", {2: 7})
    monkeypatch.setattr(compute, "spin", lambda *_: (0.5, 8))
    with pytest.raises(BenchError, match="the checksum is 8, not 7"):
        compute.measure(PATCH, 0.01)


@pytest.fixture
def star(tmp_path):
    path = tmp_path / "star.elf"
    path.write_bytes(start.kernel())
    return path


@pytest.mark.parametrize("contender", [QEMU, pytest.param(PATCH, id="patch")])
def test_memory_of_a_guest(contender, star):
    with Guest(contender, star, memory=48) as guest:
        assert guest.until(b"*") > 0
        peak, touched = guest.memory()
    # It has touched a page or two; the firmware of QEMU a few more.
    assert 0 < touched < 10
    assert touched < peak < 400


def test_the_clock_is_that_of_the_process(star):
    with Guest(PATCH, star) as guest:
        first = guest.until(b"*")
        own = time.process_time()
        assert 0 < first <= guest.clock()
        assert time.process_time() - own < first


def test_a_mark_that_is_never_shown(star):
    with (
        Guest(PATCH, star) as guest,
        pytest.raises(BenchError, match="ended without '!': emu86: the guest halted"),
    ):
        guest.until(b"!")


def test_a_guest_that_is_not_there():
    with pytest.raises(BenchError, match="there is no build/none: make guests"):
        Guest(PATCH, tools.ROOT / "build" / "none")


def test_the_workload_has_every_part():
    script = (tools.ROOT / "tools" / "initramfs" / "workload").read_text()
    for name in linux.PARTS:
        assert f"    {name})" in script


@pytest.mark.guest
@pytest.mark.slow
def test_parts_of_the_workload():
    rows = linux.measure(PATCH, 0.001)
    assert len(rows) == 3 + len(linux.PARTS) + 1
    boot = list(rows.values())[:3]
    assert boot == sorted(boot)
    assert min(rows.values()) > 0
