"""Observers and statistics: what they are told, and that they agree."""

import json

import pytest

from support.flat import flat, guest
from support.recorder import Recorder


def test_observers():
    built = flat(
        """
        gate 3, taken
        gate 14, taken2
        mov eax, [0x345678]
        cli
        int3
    taken:
        mov al, 0x55
        out 0x80, al
        in al, 0x80
        mov eax, [0x400000]
    taken2:
        mov ebx, 0x300000
        invlpg [ebx]
        mov eax, 9
        jmp fin
        """,
        "local",
    )
    seen, second = Recorder(), Recorder()
    built.subscribe(seen)
    built.subscribe(second)
    assert built.run(timeout=120).code == 9
    assert vars(seen) == vars(second)
    assert seen.events == [(3, None), (14, 0)]
    assert seen.ports == [
        (0x80, 1, 0x55, True),
        (0x80, 1, 0x55, False),
        (0xF4, 4, 9, True),
    ]
    assert 0x345 in [gva >> 12 for gva in seen.fills]
    reasons = [reason for reason, _, _ in seen.exits]
    assert {"CLI", "INVLPG", "OUT", "IN"} <= set(reasons)
    counted = {name: stat.count for name, stat in built.stats.exits.items()}
    assert counted == {reason: reasons.count(reason) for reason in set(reasons)}
    assert len(seen.fills) == counted["#PF fill"]


def test_stats():
    built = guest("mov ecx, 1000\nl: cli\nsti\nloop l\nmov eax, cr0\ncli\nhlt\n")
    built.measure()
    built.run(timeout=120)
    stats = built.stats
    assert stats.exits["CLI"].count == 1001
    assert stats.exits["STI"].count == 1000
    assert stats.exits["CLI"].ns > 0
    assert stats.blocks > 0
    assert stats.wall_s > 0
    assert stats.virtual_s == pytest.approx(built.now / 1e9)
    assert 0 <= stats.guest_share <= 1
    plain = json.loads(json.dumps(stats.to_dict()))
    assert plain["exits"]["CLI"]["count"] == 1001
    told = {"exits", "blocks", "patched", "shadow", "wall_s", "guest_share"}
    assert told <= plain.keys()


def test_stats_count_what_is_not_measured():
    built = guest("mov ecx, 1000\nl: cli\nsti\nloop l\nmov eax, cr0\ncli\nhlt\n")
    built.run(timeout=120)
    assert built.stats.exits["CLI"].count == 1001
    assert built.stats.exits["STI"].count == 1000
    assert built.stats.guest_share is None
