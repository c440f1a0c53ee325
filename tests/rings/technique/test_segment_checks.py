"""What segments and alignment forbid: limits, rights, #AC; SDM Vol. 3A 5.3 to 5.5."""

import pytest

from emu86.cpu.prologue import Prologues
from emu86.native import abi
from support.flat import flat

TECHNIQUES = ("patch", "iopl", "bare")
VECTORS = {"#SS": 12, "#GP": 13, "#PF": 14, "#AC": 17}
LIMIT = 0x90FFF
# 20h, 28h: data with a limit, read-only data; 30h: expand-down above 90FFFh; 38h: data
# of 64 KiB less a byte, expand-down; 40h: code from 100000h; 48h: code that cannot be
# read; 50h, 58h: a user's flat code and data; 68h: data of 4 KiB; 70h, 78h: code of 16
# and 32 bits from 100000h, without a limit.
TABLE = """
    jmp over
    align 8
g:  dq 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
    dq 0x00c0930000000090, 0x00cf91000000ffff
    dq 0x00c0970000000090, 0x000097000000fffe
    dq 0x00409b100000ffff, 0x00cf99000000ffff
    dq 0x00cffb000000ffff, 0x00cff3000000ffff, 0x0000890800000067
    dq 0x0040930000000fff, 0x008f9b100000ffff, 0x00cf9b100000ffff
gp: dw 0x7f
    dd g
over:
    lgdt [gp]
    jmp 0x10:here
here:
    gate 12, ss_
    gate 13, gp_
    gate 14, pf_
    gate 17, ac_
    mov dword [0x80004], 0x88000
    mov dword [0x80008], 0x18
    mov ax, 0x60
    ltr ax
    mov ebx, 0x91000
    mov edx, 0x90000
"""
# The vector, how far EIP is from `site` (bits 8 to 15), and the error code.
HANDLERS = """
    xor eax, eax
    jmp fin
ss_:
    mov eax, 12
    jmp told
gp_:
    mov eax, 13
    jmp told
pf_:
    mov eax, 14
    jmp told
ac_:
    mov eax, 17
told:
    mov cx, 0x18
    mov ss, cx
    pop edx
    shl edx, 16
    or eax, edx
    pop edx
    sub edx, site - BASE
    shl edx, 8
    or eax, edx
    jmp fin
"""
RING3 = """
    push 0x5b
    push 0x8f000
    push {flags}
    push 0x53
    push user
    iretd
user:
    mov ecx, 0x5b  ; a return to an outer ring has made DS and ES null
    mov ds, ecx
    mov es, ecx
"""


def ending(body, technique="patch", base=0):
    """What this body ends with: the name of a fault at `site`, or "" for none."""
    code = f"BASE equ {base}\n" + TABLE + body + HANDLERS
    stop = flat(code, technique=technique).run(timeout=60)
    assert stop.reason == "debug exit", stop
    names = {vector: name for name, vector in VECTORS.items()}
    return names.get(stop.code, hex(stop.code)) if stop.code else ""


def load(register, selector):
    return f"mov ax, {selector}\nmov {register}, ax\n"


CMPXCHG8B = "lock cmpxchg8b [cs:ebx]"
DATA = [
    ("ds", 0x20, "mov eax, [ebx - 4]", ""),
    ("ds", 0x20, "mov eax, [ebx - 3]", "#GP"),
    ("ds", 0x20, "mov al, [ebx - 1]", ""),
    ("ds", 0x20, "mov al, [ebx]", "#GP"),
    ("ds", 0x20, "mov [ebx], al", "#GP"),
    ("ds", 0x20, "add [0x91000], eax", "#GP"),
    ("ds", 0x20, "mov al, [0x91000]", "#GP"),
    ("ds", 0x20, "mov al, [ss:ebx]", ""),
    ("ds", 0x20, "fld qword [ebx - 7]", "#GP"),
    ("ds", 0x20, "fld qword [ebx - 8]", ""),
    ("ds", 0x20, "bt [ebx - 4], ebp", "#GP"),
    ("ds", 0x20, "lea eax, [ebx]", ""),
    ("ds", 0x20, "push dword [ebx]", "#GP"),
    ("ds", 0x20, "sete [ebx]", "#GP"),
    ("ds", 0x20, "sgdt [ebx - 5]", "#GP"),
    ("ds", 0x20, "cmpxchg8b [ebx - 8]", ""),
    ("ds", 0x20, "cmpxchg8b [ebx - 7]", "#GP"),
    ("ds", 0x28, "mov eax, [ebx]", ""),
    ("ds", 0x28, "mov [ebx], eax", "#GP"),
    ("ds", 0x28, "xchg [ebx], eax", "#GP"),
    ("es", 0x28, "stosb", "#GP"),
    ("es", 0x20, "stosd", "#GP"),
    ("gs", 0x20, "mov eax, [gs:ebx]", "#GP"),
    ("ds", 0x30, "mov eax, [ebx]", ""),
    ("ds", 0x30, "mov eax, [ebx - 1]", "#GP"),
    ("ds", 0x38, "mov al, [0xffff]", ""),
    ("ds", 0x38, "mov ax, [0xffff]", "#GP"),
    ("ds", 0x38, "mov al, [0x10000]", "#GP"),
    ("ss", 0x20, "mov eax, [ss:ebx]", "#SS"),
    ("ss", 0x20, "mov eax, [ebp]", "#SS"),
    ("ss", 0x20, "mov eax, [ebp - 4]", ""),
    ("ss", 0x20, "push eax", ""),
]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("register", "selector", "site", "end"), DATA)
def test_data_segments(register, selector, site, end, technique):
    body = f"mov edi, 0x91000\nmov ebp, 0x91000\n{load(register, selector)}"
    assert ending(f"{body}site: {site}", technique) == end


CODE = [
    # 40h: code from 100000h, 64 KiB: what follows runs at its offset.
    ("jmp near beyond", "#GP"),
    ("jmp near within", ""),
    ("xor eax, eax\njnz near beyond\nsite:\njz near beyond", "#GP"),
    ("xor ecx, ecx\nsite:\njecxz far_off", ""),
    ("mov eax, 0x10000\nsite:\njmp eax", "#GP"),
    ("mov eax, 0xffff\nmov byte [0x10ffff], 0xf4\nsite:\ncall 0x110000", "#GP"),
    ("push dword 0x10000\nsite:\nret", "#GP"),
    ("push dword 0x10000\nsite:\nret 4", "#GP"),
    ("push dword 0x12345\nsite:\ncall [esp]", "#GP"),
    ("mov al, [cs:0xffff]", ""),
    ("mov ax, [cs:0xffff]", "#GP"),
    ("mov [cs:0], al", "#GP"),
]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("code", "end"), CODE)
def test_code_segments(code, end, technique):
    """The limit counts for branches before they are taken, and for reads by CS."""
    site = "" if "site:" in code else "site:"
    body = f"""
    jmp 0x40:start - 0x100000
    start:
    {site}
    {code}
far_off:
within:
    mov ecx, 1
    jmp 0x10:out_
beyond equ 0x110000
out_:
    """
    assert ending(body, technique, base=0x100000 if end else 0) == end


ALIGNED = [
    ("mov eax, [edx + 1]", "#AC"),
    ("mov eax, [edx + 4]", ""),
    ("mov [edx + 2], eax", "#AC"),
    ("mov ax, [edx + 2]", ""),
    ("mov al, [edx + 1]", ""),
    ("fld qword [edx + 4]", "#AC"),
    ("fld tword [edx + 8]", ""),
    ("fnstenv [edx + 4]", ""),
    ("sub esp, 2\nsite:\npush eax", "#AC"),
    ("sub esp, 2\nsite:\nret", "#AC"),
    ("mov esi, edx\nlea edi, [edx + 2]\nsite:\nmovsd", "#AC"),
    ("mov eax, [0x400001]", "#AC"),
    ("mov eax, [0x400000]", ""),
]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("code", "end"), ALIGNED)
def test_alignment(code, end, technique):
    """In ring 3, with CR0.AM and EFLAGS.AC; `test_host` has the same on a CPU."""
    site = "" if "site:" in code else "site:"
    body = f"""
    mov eax, cr0
    or eax, 0x40000
    mov cr0, eax
    {RING3.format(flags="0x40002")}
    {site}
    {code}
    xor eax, eax
    jmp fin
    """
    body = body.replace("    jmp fin", "    hlt") if not end else body
    found = ending(body, technique)
    # In ring 3 HLT is #GP(0), behind `site`.
    assert found == end or (not end and int(found, 16) & 0xFF == VECTORS["#GP"])


@pytest.mark.parametrize(("am", "flags"), [(0, "0x40002"), (0x40000, "2")])
def test_alignment_is_checked_where_both_bits_are_set(am, flags):
    body = f"""
    mov eax, cr0
    or eax, {am}
    mov cr0, eax
    mov eax, [edx + 1]  ; at ring 0 it is not
    {RING3.format(flags=flags)}
    mov eax, [edx + 1]
site:
    hlt
    """
    assert ending(body) == "#GP"


def test_am_counts_for_code_that_has_run():
    """The same code runs with AC, before CR0.AM is set and afterwards."""
    body = f"""
    gate 0x80, again
    or byte [IDT + 8 * 0x80 + 5], 0x60
    {RING3.format(flags="0x40002")}
site:
    mov eax, [edx + 1]
    int 0x80
again:
    mov eax, cr0
    or eax, 0x40000
    mov cr0, eax
    mov dword [esp], site
    iretd
    """
    assert ending(body) == "#AC"


def test_code_that_has_run_with_flat_segments():
    """It is looked at as soon as the segment is another."""
    body = f"""
    mov ebp, 0
again:
site:
    mov eax, [ebx]
    inc ebp
    cmp ebp, 100
    jb again
    ja bad
    {load("ds", 0x20)}
    jmp again
    """
    assert ending(body) == "#GP"


def test_a_segment_that_is_flat_again_costs_no_exits():
    body = f"""
    {load("ds", 0x20)}
    mov eax, [edx]
    {load("ds", 0x18)}
    mov ecx, 100000
again:
    mov eax, [ebx]
    loop again
site:
    xor eax, eax
    jmp fin
    """
    machine = flat("BASE equ 0\n" + TABLE + body + HANDLERS)
    assert machine.run(timeout=60).code == 0
    assert 1 < machine.stats.exits["segment access"].count < 1000


def test_code_whose_segment_is_flat_again_costs_no_exits():
    """Though compiled code has looked at it while there was a limit."""
    body = f"""
    {load("ds", 0x20)}
    call use
    {load("ds", 0x18)}
    mov ecx, 20000
again:
    call use
    loop again
site:
    xor eax, eax
    jmp fin
use:
    mov eax, [edx]
    ret
    """
    machine = flat("BASE equ 0\n" + TABLE + body + HANDLERS)
    assert machine.run(timeout=60).code == 0
    assert 1 < machine.stats.exits["segment access"].count < 1000


def test_a_stack_beyond_its_limit_is_a_fault_of_the_delivery():
    """From ring 3 to a ring 0 stack with a limit: each event faults in its turn."""
    body = f"""
    gate 8, df
    mov dword [0x80004], 0x91004
    mov dword [0x80008], 0x20
    {RING3.format(flags="2")}
site:
    hlt
df: mov eax, 12
    jmp fin
    """
    # Its own delivery needs the stack, too: the guest is shut down.
    code = "BASE equ 0\n" + TABLE + body + HANDLERS
    stop = flat(code).run(timeout=60)
    assert stop.reason == "triple fault"


NULL = [
    ("mov ax, 0\nmov ds, ax\nsite:\nmov eax, [ebx]", "#GP"),
    ("mov ax, 3\nmov ds, ax\nsite:\nmov [ebx], eax", "#GP"),
    ("mov ax, 0\nmov ds, ax\nsite:\nmov eax, [ss:ebx]", ""),
    ("push 0\npop ds\njmp elsewhere\nelsewhere:\nsite:\ninc dword [ebx]", "#GP"),
    ("mov ax, 0\nmov es, ax\nsite:\nstosb", "#GP"),
    ("mov ax, 0\nmov es, ax\nxor ecx, ecx\nsite:\nrep stosb", ""),
    ("mov ax, 0\nmov fs, ax\nsite:\nmov eax, [fs:ebx]", "#GP"),
    ("mov ax, 0\nmov gs, ax\njmp on\non:\nsite:\npush dword [gs:0]", "#GP"),
    ("mov ax, 0\nmov gs, ax\nmov eax, 0x18\nmov gs, eax\nsite:\nmov eax, [gs:0]", ""),
    ("mov ax, 0\nmov fs, ax\nsite:\nlea eax, [fs:ebx]", ""),
    ("mov ax, 0\nmov fs, ax\nsite:\nsete [fs:ebx]", "#GP"),
    ("mov ax, 0\nmov fs, ax\nsite:\nlock cmpxchg8b [fs:ebx]", "#GP"),
    ("mov ax, 0\nmov fs, ax\nsti\nsite:\nmov eax, [fs:ebx]", "#GP"),
    ("mov ax, 0\nmov fs, ax\nsti\nxor ecx, ecx\nsite:\nfs rep movsb", ""),
    ("mov ax, 0\nmov fs, ax\nxor ecx, ecx\nsti\nsite:\nfs rep movsb", ""),
    ("mov ax, 0\nmov gs, ax\npush ss\npop ss\nsite:\npush dword [gs:0]", "#GP"),
    ("push 0\npush 0\nles eax, [esp]\nsite:\nscasd", "#GP"),
    ("mov ax, 0\nmov ds, ax\nmov ax, 0x18\nmov ds, ax\nsite:\nmov eax, [ebx]", ""),
    ("mov ax, 0\nmov ds, ax\nmov es, ax\nmov fs, ax\nmov gs, ax\nsite:\nxlatb", "#GP"),
]  # fmt: skip


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("code", "end"), NULL)
def test_null_selectors(code, end, technique):
    assert ending(f"mov edi, edx\n{code}", technique) == end


@pytest.mark.parametrize(("code", "end"), NULL)
def test_null_selectors_where_no_block_can_be_guarded(code, end, monkeypatch):
    """What Unicorn has translated in an unknown way is patched."""
    shorten = Prologues.shorten
    monkeypatch.setattr(
        Prologues,
        "shorten",
        lambda self, pc, size, guard=0: not guard and shorten(self, pc, size),
    )
    assert ending(f"mov edi, edx\n{code}") == end


@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs"])
def test_a_null_selector_in_code_that_has_run(register):
    """It is seen however the code was translated, and again and again."""
    body = f"""
    mov dword [0x92000], 0
    gate 13, once_more
    mov edi, 300
again:
    mov ax, 0x18
    mov {register}, ax
    call use
    mov ax, 0
    mov {register}, ax
    call use
    jmp bad
once_more:
    add dword [ss:0x92000], 1
    mov ax, 0x18
    mov ds, ax
    mov es, ax
    mov esp, 0x90000
    dec edi
    jnz again
    mov eax, [0x92000]
    sub eax, 300
    jmp fin
use:
    mov eax, [{register}:ebx]
    ret
site:
    """
    assert ending(body) == ""


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("site", ["mov [cs:ebx], eax", "sete [cs:ebx]", CMPXCHG8B])
def test_a_store_with_cs_is_refused_again_and_again(site, technique):
    body = f"""
    gate 13, once_more
    mov edi, 5
again:
    add eax, ebx
    {site}
    jmp bad
once_more:
    mov esp, 0x90000
    dec edi
    jnz again
    xor eax, eax
    jmp fin
site:
    """
    assert ending(body, technique) == ""


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_cmpxchg8b_by_fs_behind_a_load_of_ds(technique):
    """A block has one guard, which is for DS here, so FS is looked at by a patch."""
    body = """
    mov edi, 5
again:
    mov ecx, 0x18
    mov ds, ecx
    lock cmpxchg8b [fs:ebx]
    dec edi
    jnz again
    xor eax, eax
    jmp fin
site:
    """
    assert ending(body, technique) == ""


def test_null_selectors_that_nobody_uses_cost_nothing():
    body = """
    mov ecx, 10000
again:
    mov ax, 0
    mov fs, ax
    mov gs, ax
    mov eax, [ebx]
    mov ax, 0x18
    mov fs, ax
    jmp elsewhere
elsewhere:
    mov eax, [fs:ebx]
    loop again
site:
    xor eax, eax
    jmp fin
    """
    machine = flat("BASE equ 0\n" + TABLE + body + HANDLERS)
    assert machine.run(timeout=60).code == 0
    assert "segment access" not in machine.stats.exits


@pytest.mark.parametrize(
    ("site", "register"),
    [
        ("mov eax, [edx + 4 * esi - 4]", "ds"),
        ("mov [edx + esi], al", "ds"),
        ("mov al, [gs:esi + 0x8ffff]", "gs"),
        ("mov ax, [ss:0x90ffe + esi]", "ss"),
    ],
)
def test_compiled_code_looks_as_python_does(site, register):
    """Access after access goes on in compiled code, up to the one beyond the limit."""
    fault = "#SS" if register == "ss" else "#GP"
    body = f"""
    {load(register, 0x20)}
    mov esi, 1
again:
site:
    {site}
    inc esi
    jmp again
    """
    code = "BASE equ 0\n" + TABLE + body + HANDLERS
    found = []
    for compiles in (True, False):
        machine = flat(code)
        machine.vmm.instructions.compiles = compiles
        assert machine.run(timeout=60).code == VECTORS[fault]
        counts = machine.stats.exits["segment access"].count
        found.append((machine.registers["esi"], counts, machine.now))
    assert found[0] == found[1]


def test_compiled_code_sees_another_limit_and_right():
    """What is kept of a site says nothing of the segment, which is looked at anew."""
    body = f"""
    gate 0x80, other
    {load("ds", 0x20)}
    xor ebp, ebp
again:
site:
    mov [edx], al
    mov al, [ss:edx]
    inc ebp
    cmp ebp, 10
    jb again
    cmp ebp, 11
    ja bad
    {load("ds", 0x28)}
    jmp again
other:
    """
    assert ending(body) == "#GP"


@pytest.mark.parametrize("selector", [0, 0x20])
def test_trap_looks_at_nothing(selector):
    """And so compiled code goes on to do CLI and STI."""
    body = f"""
    gate 6, back
    {load("ds", selector)}
    ud2  ; the delivery of an exception looks whether DS is null
    mov ecx, 100
again:
    cli
    sti
    mov eax, [0x91000]
    loop again
site:
    xor eax, eax
    jmp fin
back:
    add dword [ss:esp], 2
    iretd
    """
    machine = flat("BASE equ 0\n" + TABLE + body + HANDLERS, technique="trap")
    assert machine.run(timeout=60).code == 0
    assert "segment access" not in machine.stats.exits
    assert machine.vmm.engine.control[abi.COUNT_CLI] == 99
    assert machine.vmm.engine.control[abi.COUNT_STI] == 99


@pytest.mark.parametrize("native", [True, False])
def test_trap_looks_at_no_block_with_paging_either(native):
    body = """
    xor eax, eax
    mov fs, eax
    mov ecx, 9
.again:
    mov eax, [fs:0x91000]
    loop .again
    mov eax, ecx
    jmp fin
    """
    machine = flat(body, "global", technique="trap", native=native)
    assert machine.run(timeout=20).code == 0
    assert not machine.stats.blocks


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_compiled_code_knows_16_bit_code(technique):
    """The bytes are mov eax, [edi + 10h] and mov ax, [bx + 10h]."""
    body = f"""
    gate 0x80, once_more
    {load("ds", 0x68)}
    xor edi, edi
    mov ebx, 0xf000
    mov ecx, 5
    xor esi, esi
    jmp 0x78:site - 0x100000
site:
    db 0x8b, 0x47, 0x10
    db 0x49, 0x75, site - $ - 3  ; dec ecx, jnz
    int 0x80
once_more:
    inc esi
    cmp esi, 1
    ja bad
    inc ecx
    jmp 0x70:site - 0x100000
    """
    assert ending(body, technique, base=0x100000) == "#GP"


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_no_access_is_compiled_where_code_has_a_limit(technique):
    """It would be looked at, and the target that it reads not."""
    body = f"""
    mov byte [0x110000], 0xf4
    {load("ds", 0x20)}
    jmp 0x40:start - 0x100000
start:
    mov ecx, 5
    mov dword [edx], back - 0x100000
site:
    jmp [edx]
back:
    loop site
    mov dword [edx], 0x10000
    jmp site
    """
    assert ending(body, technique, base=0x100000) == "#GP"


def test_cli_and_invlpg_are_compiled_while_data_is_looked_at():
    """And STI is not: what is in its shadow has to be looked at, too."""
    body = f"""
    mov dword [0x200000], 0x83  ; 4 MiB, and a directory entry for 400000h
    mov dword [0x200004], 0x201003
    mov eax, 0x10
    mov cr4, eax
    mov eax, 0x200000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, 0x400000
    {load("fs", 0x20)}
    mov ecx, 100
    mov eax, 0x400000
again:
    cli
    sti
    nop
    invlpg [eax]
    mov esi, [fs:edx]
    loop again
site:
    xor eax, eax
    jmp fin
    """
    machine = flat("BASE equ 0\n" + TABLE + body + HANDLERS)
    assert machine.run(timeout=60).code == 0
    control = machine.vmm.engine.control
    counts = control[abi.COUNT_CLI], control[abi.COUNT_STI], control[abi.COUNT_INVLPG]
    assert counts == (99, 0, 99)
