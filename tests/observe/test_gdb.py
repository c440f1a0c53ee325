"""gdb's remote protocol, spoken by a client of our own."""

import socket
import threading

import pytest

from emu86 import ConfigError
from emu86.observe.gdb import GdbServer
from emu86.observe.packets import LONGEST, Reader, Rubbish, framed, unescaped
from support.flat import flat, guest, guest64
from support.gdb_client import PATIENCE, Client, served

LOOP = """
    mov esp, 0x90000
    mov ecx, 5
again:
    inc dword [0x300000]
    call work
    loop again
    cli
    hlt
work:
    nop
    ret
"""
AGAIN, WORK = 0x10000A, 0x100019
EIP, CS = 8, 10


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


@pytest.fixture
def connect(path):
    """What has another gdb come."""
    clients = []

    def come():
        clients.append(Client(path))
        return clients[-1]

    yield come
    for client in clients:
        client.close()


def eip(gdb, number=EIP):
    return int.from_bytes(bytes.fromhex(gdb(f"p{number:x}")), "little")


def test_a_guest_is_stopped_looked_at_and_let_go(path, connect):
    machine = guest(LOOP)
    with served(machine, path) as server:
        gdb = connect()
        assert "qXfer:features:read+" in gdb("qSupported:swbreak+")
        assert gdb("?") == "S05"
        assert eip(gdb) == 0x100000
        assert gdb(f"m{WORK:x},2") == "90c3"
        assert gdb(f"Z0,{WORK:x},1") == "OK"
        assert gdb(f"m{WORK:x},2") == "90c3"
        for _ in range(5):
            assert gdb("c") == "T05thread:1;swbreak:;"
            assert eip(gdb) == WORK
        assert gdb("m300000,4") == "05000000"
        assert gdb("vCont;s:1") == "T05thread:1;"
        assert eip(gdb) == WORK + 1
        assert gdb("vCont;c") == "W00"
        server.thread.join(PATIENCE)
        assert server.stops[0].reason == "halted"


def test_registers_and_memory_are_written(path, connect):
    with served(guest(LOOP), path):
        gdb = connect()
        assert gdb("P1=78563412") == "OK"
        assert gdb("p1") == "78563412"
        assert gdb(f"P{CS:x}=18000000") == "E01"  # a segment has more than a selector
        every = gdb("g")
        assert gdb("G" + every) == "OK"
        assert gdb("G" + every[:-2]) == "E01"
        assert gdb("M300000,2:abcd") == "OK"
        assert gdb("X300002,2:#}") == "OK"
        assert gdb("m300000,4") == "abcd237d"
        assert gdb("m2000000,4") in ("E0e", "ffffffff")
        assert gdb("M40000000,1:00") == "E01"


def test_a_step_neither_shows_tf_nor_takes_the_timers_interrupt(path, connect):
    body = """
        gate 32, tick
        mov al, 0x11
        out 0x20, al
        mov al, 32
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 20
        out 0x40, al
        mov al, 0
        out 0x40, al
    here:
        sti
        %rep 60
        nop
        %endrep
        pushf
        pop eax
        hlt
        mov ebx, 1
        jmp fin
    tick:
        mov ebp, 77
        mov al, 0x20
        out 0x20, al
        iret
    """
    machine = flat(body)
    with served(machine, path):
        gdb = connect()
        before = 0x100000 + machine.read_physical(0x100000, 0x400).index(b"\xfb\x90")
        gdb(f"Z0,{before:x},1")
        gdb("c")
        for count in range(61):
            assert eip(gdb) == before + count
            gdb("s")
        gdb("s"), gdb("s")
        assert not int.from_bytes(bytes.fromhex(gdb("p0")), "little") & 0x100
        gdb("s")  # HLT
        handler = before + 61 + 3
        assert eip(gdb) == handler
        gdb("s")  # it is over when the interrupt comes
        assert eip(gdb) > handler
        assert gdb("s") == "T05thread:1;"
        assert gdb("p5") == "4d000000"


def test_ctrl_c_stops_a_guest_that_runs(path, connect):
    with served(guest("mov eax, 1\nagain: inc ecx\njmp again"), path):
        gdb = connect()
        gdb.send("c")
        gdb.socket.sendall(b"\x03")
        assert gdb.receive() == "T02thread:1;"
        assert 0x100000 <= eip(gdb) <= 0x100008


def test_without_gdb_the_guest_runs(path, connect):
    machine = guest("mov dx, 0x3f8\nagain: out dx, al\njmp again")
    runs = threading.Event()
    machine.on_console(lambda _data: runs.set())
    with served(machine, path, waits=False):
        assert runs.wait(PATIENCE)
        gdb = connect()
        assert gdb("?") == "S05"
        runs.clear()
        assert gdb("D") == "OK"
        assert runs.wait(PATIENCE)
        gdb.close()
        gdb = connect()
        assert gdb("?") == "S05"


def test_a_gdb_that_vanishes_takes_its_breakpoints_along(path, connect):
    machine = guest(LOOP)
    with served(machine, path) as server:
        gdb = connect()
        gdb(f"Z0,{WORK:x},1")
        assert gdb("c").startswith("T05")
        gdb.close()
        server.thread.join(PATIENCE)
        assert server.stops[0].reason == "halted"
    assert machine.debugger.breakpoints == ((), ())


@pytest.mark.parametrize(
    "rubbish",
    [
        b"$" + b"m" * LONGEST * 2,
        b"\0\xff" * 5000,
        b"$g#00" * 100,
        b"$" * 1000 + b"#",
        b"-" * 100,
        b"\x03" * 5000,
    ],
)
def test_rubbish_harms_nothing(path, rubbish):
    with served(guest(LOOP), path) as server:
        wild = socket.socket(socket.AF_UNIX)
        wild.connect(str(path))
        wild.settimeout(PATIENCE)
        wild.sendall(rubbish)
        wild.close()
        server.thread.join(PATIENCE)
        assert server.stops[0].reason == "halted"


NO_SENSE = (
    "m", "mzz,1", "m1", "m1,", "p999", "pzz", "P0", "P0=", "P0=zz", "G", "M0",
    "M300000,2:ab", "X300000,2:a", "Z0", "Z0,", "Z0,zz,1", "z0,5,1", "Z9,0,1",
    "qXfer:features:read:target.xml:", "qXfer:features:read:x:0,1", "qRcmd,z",
    "vCont", "vCont;x", "vMustReplyEmpty", "", "!", "cxyz", "qCRC:0,1", "M-1,1:0",
)  # fmt: skip


def test_a_packet_that_makes_no_sense_is_refused(path, connect):
    with served(guest(LOOP), path):
        gdb = connect()
        for packet in NO_SENSE:
            assert gdb(packet) in ("", "E00", "E01"), packet
            assert eip(gdb) == 0x100000


def test_registers_of_64_bits(path, connect):
    with served(guest64("mov r9, 0x1122334455667788\nnop\njmp $"), path):
        gdb = connect()
        assert "i386:x86-64" in gdb("qXfer:features:read:target.xml:0,fff")
        gdb("s")
        assert gdb("p9") == "8877665544332211"
        assert gdb("P9=0100000000000080") == "OK"
        assert gdb("p9") == "0100000000000080"
        assert eip(gdb, 16) == 0x10000A


def test_what_gdb_asks_at_the_start(path, connect):
    with served(guest(LOOP), path):
        gdb = connect()
        whole = ""
        while not whole.startswith("l"):
            part = gdb(f"qXfer:features:read:target.xml:{len(whole):x},400")
            whole = ("l" if part[0] == "l" else "") + whole + part[1:]
        assert whole.count("<reg ") * 2 < len(gdb("g"))
        assert 'type="ram"' in gdb("qXfer:memory-map:read::0,fff")
        assert (gdb("qfThreadInfo"), gdb("qsThreadInfo")) == ("m1", "l")
        assert gdb("QStartNoAckMode") == "OK"


def test_physical_addresses(path, connect):
    machine = flat("mov dword [PT + 4 * 0x310], 0x300067\njmp fin", paging="local")
    with served(machine, path):
        gdb = connect()
        machine.write_physical(0x300000, b"\xaa\xbb")
        gdb("Qqemu.PhyMemMode:1")
        assert gdb("qqemu.PhyMemMode") == "1"
        assert gdb("m300000,2") == "aabb"
        assert gdb("M300000,1:cc") == "OK"
        assert gdb("Z0,100000,1") == "OK"
    assert machine.debugger.breakpoints == ((), (0x100000,))


def test_what_is_written_is_watched(path, connect):
    with served(guest(LOOP), path):
        gdb = connect()
        assert gdb("Z2,300000,4") == "OK"
        for count in range(1, 4):
            assert gdb("c") == "T05thread:1;watch:300000;"
            assert gdb("m300000,4") == f"0{count}000000"
            assert eip(gdb) == AGAIN + 6
        assert gdb("Z3,300000,4") == ""
        assert gdb("Z2,70000000,4") == "E01"
        assert gdb("z2,300000,4") == "OK"
        assert gdb("c") == "W00"


def test_monitor(path, connect):
    with served(guest(LOOP), path):
        gdb = connect()
        assert "exits" in gdb.monitor("help")
        assert "all" in gdb.monitor("exits")
        assert gdb.monitor("walk 0x100000") == "00100000: no paging\n"
        assert gdb.monitor("walk").startswith("walk: it needs")
        assert "no number" in gdb.monitor("walk me")
        assert "guest: ring 0; engine: ring 1" in gdb.monitor("rings")
        assert "there are" in gdb.monitor("quit")


def test_kill_ends_the_run(path, connect):
    with served(guest(LOOP), path) as server:
        gdb = connect()
        gdb.send("k")
        server.thread.join(PATIENCE)
        assert server.stops[0].detail == "killed by gdb"


def test_a_triple_fault_is_seen_before_the_reset(path, connect):
    with served(guest("nop\nlidt [none]\nud2\nnone: dw 0\ndd 0"), path) as server:
        gdb = connect()
        assert gdb("c") == "T0bthread:1;"
        assert "triple fault at" in gdb.said
        assert gdb(f"m{eip(gdb):x},2") == "0f0b"
        gdb.send("c")
        server.thread.join(PATIENCE)
        assert server.stops[0].reason == "triple fault"


def test_a_port_in_use_is_one_clear_line(path):
    with (
        served(guest(LOOP), path),
        pytest.raises(ConfigError, match="in use"),
    ):
        GdbServer(guest(LOOP), str(path), waits=True)
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"gdb: :{port}: Address already in use"):
            GdbServer(guest(LOOP), f":{port}", waits=True)
    for wrong in ("", "x", "1:x", "70000", ":-1"):
        with pytest.raises(ConfigError, match="HOST"):
            GdbServer(guest(LOOP), wrong, waits=True)
    with pytest.raises(ConfigError, match="bare"):
        GdbServer(guest(LOOP, technique="bare"), ":0", waits=True)


def test_without_a_host_this_computer_alone_is_listened_to():
    server = GdbServer(guest(LOOP), "0", waits=True)
    try:
        assert server.link._server.getsockname()[0] in ("127.0.0.1", "::1")
        assert server.link.port
    finally:
        server.close()


def test_packets_come_in_pieces():
    reader = Reader()
    whole = framed(b"one") + b"+" + framed(b"t}o#") + b"\x03" + framed(b"three")
    taken = [one for byte in whole for one in reader.take(bytes([byte]))]
    assert list(map(unescaped, taken)) == [b"one", b"t}o#", b"\x03", b"three"]
    assert list(reader.take(b"$bad#00$g#67")) == [None, b"g"]
    with pytest.raises(Rubbish):
        list(reader.take(b"$" + bytes(LONGEST + 5)))
