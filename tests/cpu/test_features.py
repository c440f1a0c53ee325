"""What CPUID denies is #UD: representative forms of each feature, on every CPU model.

Which feature brings which instruction is what the SDM's page of each says ("CPUID
Feature Flag"), by hand. (QEMU's TCG asks no flag for MMX and SSE.)
"""

import pytest

from emu86.cpu.models import MODELS
from support.cases import Case, on_emu86
from support.flat import guest

FLAGS = {
    "pentium": set(),
    "pentium2": {"P6", "CMOV", "MMX", "FXSR"},
    "pentium3": {"P6", "CMOV", "MMX", "FXSR", "SSE"},
    "pentium3-pae": {"P6", "CMOV", "MMX", "FXSR", "SSE"},
    "pentium4": {"P6", "CMOV", "MMX", "FXSR", "SSE", "SSE2"},
    "atom": {"P6", "SEP", "CMOV", "MMX", "FXSR", "SSE", "SSE2"},
    "skylake": {"P6", "SEP", "CMOV", "MMX", "FXSR", "SSE", "SSE2", "RDTSCP"},
}
# One feature a line: what it brings, and by which opcode maps and prefixes.
FORMS = {
    "CMOV": "cmovz eax, ecx; cmovg ecx, [M]; cmovz ax, cx; fcmovb st0, st1;"
    " fcmovnu st0, st2; fcomi st0, st1; fucomi st0, st1; fcomip st0, st1;"
    " fucomip st0, st1",
    "P6": "db 0x0f, 0x1f, 0xc0; nop dword [M]; db 0x66, 0x0f, 0x1f, 0x44, 0, 0;"
    " db 0xf3, 0x0f, 0x1e, 0xfa; prefetcht0 [M]; prefetchnta [M]",
    "MMX": "emms; movd mm0, eax; movd [M], mm1; movq mm0, [M]; movq [M], mm0;"
    " pxor mm0, mm0; paddb mm1, [M]; psllw mm0, 3; psrlq mm2, mm1; punpcklbw mm0, mm1;"
    " packuswb mm0, mm1; pcmpeqd mm0, mm1; pmaddwd mm0, mm1; psubusw mm0, [M];"
    " pand mm0, mm1; pmulhw mm0, mm1",
    "FXSR": "fxsave [M]; fxrstor [M]",
    "SSE": "movaps xmm0, [M]; movups [M], xmm0; movss xmm0, [M]; movss [M], xmm0;"
    " movlps xmm0, [M]; movhlps xmm0, xmm1; addps xmm0, xmm1; addss xmm0, [M];"
    " sqrtss xmm0, xmm1; rsqrtps xmm0, xmm1; rcpss xmm0, xmm1; andps xmm0, xmm1;"
    " cmpltps xmm0, xmm1; cmpltss xmm0, xmm1; shufps xmm0, xmm1, 4; ucomiss xmm0, [M];"
    " comiss xmm0, xmm1; cvtsi2ss xmm0, eax; cvtpi2ps xmm0, mm0; cvttss2si eax, xmm0;"
    " cvtps2pi mm0, xmm0; movmskps eax, xmm0; unpcklps xmm0, xmm1; maxss xmm0, xmm1;"
    " ldmxcsr [M + 512]; stmxcsr [M]; sfence; movntps [M], xmm0; movntq [M], mm0;"
    " pshufw mm0, mm1, 4; pinsrw mm0, eax, 1; pextrw eax, mm0, 1; pmovmskb eax, mm0;"
    " pavgb mm0, mm1; pminub mm0, [M]; pmaxsw mm0, mm1; pmulhuw mm0, mm1;"
    " psadbw mm0, mm1",
    "SSE2": "movapd xmm0, [M]; movupd [M], xmm0; movsd xmm0, [M]; movsd [M], xmm0;"
    " movlpd xmm0, [M]; addpd xmm0, xmm1; addsd xmm0, [M]; sqrtpd xmm0, xmm1;"
    " andpd xmm0, xmm1; cmpltpd xmm0, xmm1; cmpltsd xmm0, xmm1; shufpd xmm0, xmm1, 1;"
    " ucomisd xmm0, [M]; comisd xmm0, xmm1; cvtsi2sd xmm0, eax; cvtpi2pd xmm0, mm0;"
    " cvttsd2si eax, xmm0; cvtpd2ps xmm0, xmm1; cvtps2pd xmm0, xmm1;"
    " cvtss2sd xmm0, xmm1; cvtsd2ss xmm0, xmm1; cvtdq2ps xmm0, xmm1;"
    " cvtps2dq xmm0, xmm1; cvttps2dq xmm0, xmm1; cvtdq2pd xmm0, xmm1;"
    " cvtpd2dq xmm0, xmm1; cvttpd2dq xmm0, xmm1; movmskpd eax, xmm0;"
    " movdqa xmm0, [M]; movdqu [M], xmm0; movd xmm0, eax; movd [M], xmm0;"
    " movq xmm0, [M]; movq [M], xmm0; movq2dq xmm0, mm0; movdq2q mm0, xmm0;"
    " pxor xmm0, xmm0; paddb xmm0, [M]; psllw xmm0, 3; psrldq xmm0, 2;"
    " punpcklqdq xmm0, xmm1; pshufd xmm0, xmm1, 4; pshuflw xmm0, xmm1, 4;"
    " pshufhw xmm0, xmm1, 4; pinsrw xmm0, eax, 1; pextrw eax, xmm0, 1;"
    " pmovmskb eax, xmm0; pavgb xmm0, xmm1; psadbw xmm0, xmm1; movntdq [M], xmm0;"
    " movntpd [M], xmm0; movnti [M], eax; lfence; mfence; paddq mm0, mm1;"
    " psubq mm0, mm1; pmuludq mm0, mm1; pmuludq xmm0, xmm1",
    "CLFSH": "clflush [M]",
    "SEP": "sysenter; sysexit",
    "RDTSCP": "rdtscp",
    "none": "fisttp word [M]; fisttp dword [M]; fisttp qword [M]; haddps xmm0, xmm1;"
    " addsubpd xmm0, xmm1; movddup xmm0, xmm1; movshdup xmm0, xmm1;"
    " movsldup xmm0, xmm1; lddqu xmm0, [M]; monitor; mwait; pshufb mm0, mm1;"
    " pshufb xmm0, xmm1; palignr xmm0, xmm1, 2; pabsb xmm0, xmm1; ptest xmm0, xmm1;"
    " pcmpistri xmm0, xmm1, 0; crc32 eax, cl; popcnt eax, ecx; movbe eax, [M];"
    " aesenc xmm0, xmm1; rdrand eax; rdseed eax; xgetbv; xsave [M];"
    " xrstor [M]; clflushopt [M]; syscall; db 0x0f, 1, 0xf8;"
    " extrq xmm0, xmm1; movntss [M], xmm0; pfadd mm0, mm1; femms;"
    " prefetchw [M]; prefetch [M]; vaddps xmm0, xmm1, xmm2; andn eax, ecx, edx",
    # In every model, and no forms of what is above.
    "all": "bswap eax; xadd [M], eax; cmpxchg [M], ecx; cmpxchg8b [M]; rdtsc; cpuid;"
    " pause; fcom st1; fucom st1; fucomp st1; fild dword [M]; fist dword [M];"
    " fnstcw [M]; db 0x66, 0x90; movsx eax, cl; bsf eax, ecx; setc al;"
    " shld eax, ecx, 3; db 0x66, 0x0f, 0xb6, 0xc1; invlpg [M]",
}  # fmt: skip
CASES = [
    (feature, form.strip())
    for feature, forms in FORMS.items()
    for form in forms.split(";")
]
UD = 6
MXCSR = "mov dword [0x500200], 0x1f80\n"


def cases(ring=0):
    """A case for each form, with its operand in memory at 500000h."""
    return tuple(
        Case(form, MXCSR + form.replace("[M", "[0x500000"), ring) for _, form in CASES
    )


def undefined(records):
    """The forms that were #UD."""
    return {
        case for case, told in zip(CASES, records, strict=True) if told["vector"] == UD
    }


def denied(name):
    """The forms that a model does not have, by the SDM."""
    has = FLAGS[name] | {"all"}
    return {case for case in CASES if case[0] not in has}


def osfxsr(name):
    return 0x200 if "FXSR" in FLAGS[name] else 0


def test_flags_are_those_of_cpuid():
    bits = {
        "SEP": 11,
        "CMOV": 15,
        "CLFSH": 19,
        "MMX": 23,
        "FXSR": 24,
        "SSE": 25,
        "SSE2": 26,
    }
    assert MODELS.keys() == FLAGS.keys()
    for name, model in MODELS.items():
        told = {flag for flag, bit in bits.items() if model.features >> bit & 1}
        assert told == FLAGS[name] - {"P6", "RDTSCP"}


@pytest.mark.parametrize("name", MODELS)
def test_what_cpuid_denies_is_undefined(name):
    told = on_emu86(cases(0) + cases(3), cr4=osfxsr(name), options={"cpu": name})
    half = len(CASES)
    assert undefined(told[:half]) == undefined(told[half:]) == denied(name)


def test_what_cpuid_denies_is_undefined_with_iopl_raised():
    options = {"cpu": "pentium", "technique": "iopl"}
    assert undefined(on_emu86(cases(), options=options)) == denied("pentium")


@pytest.mark.parametrize(
    ("code", "cpu", "reason"),
    [
        ("cmovz eax, ecx", "pentium", "triple fault"),
        ("cmovz eax, ecx", "pentium2", "halted"),
        ("pxor mm0, mm0", "pentium", "triple fault"),
        ("pxor xmm0, xmm0", "pentium3", "triple fault"),
        ("pxor xmm0, xmm0", "pentium4", "halted"),
        ("popcnt eax, ecx", "pentium4", "triple fault"),
    ],
)
def test_the_bare_machine_denies_the_same(code, cpu, reason):
    on = "" if cpu == "pentium" else "mov eax, 0x200\nmov cr4, eax\n"
    machine = guest(f"{on}{code}\ncli\nhlt", cpu=cpu, technique="bare")
    assert machine.run().reason == reason


MP, EM, TS = 2, 4, 8
NM, DONE = 7, 0x40


def by_control(form, osfxsr, cr0):
    """What a form comes to on a Pentium 4: SDM Vol. 3A tables 2-3, 12-1 and 13-1."""
    if form in ("lfence", "movnti [M], eax", "prefetchnta [M]"):
        return DONE
    if form in ("fld1", "fxsave [M]"):
        return NM if cr0 & (EM | TS) else DONE
    if form == "wait":
        return NM if cr0 & MP and cr0 & TS else DONE
    if cr0 & EM or not (osfxsr or "mm" in form.replace("xmm", "")):
        return UD
    return NM if cr0 & TS else DONE


def test_control_registers_switch_simd_off():
    """CR0.TS gives #NM only where nothing gives #UD; the engine looks at it first."""
    forms = (
        *("fld1", "wait", "fxsave [M]", "lfence", "movnti [M], eax", "prefetchnta [M]"),
        *("emms ; mm", "pxor mm0, mm0", "pshufw mm0, mm1, 0", "paddq mm0, mm1"),
        *("addps xmm0, xmm1", "cmpss xmm0, xmm1, 0", "shufps xmm0, xmm1, 0"),
        *("pxor xmm0, xmm0", "cvtsi2ss xmm0, eax", "stmxcsr [M]"),
    )
    wanted, made = [], []
    for form in forms:
        for osfxsr in (0, 0x200):
            for cr0 in range(0, 16, 2):
                switch = f"mov eax, {0x31 | cr0}\nmov cr0, eax\nmov eax, {osfxsr}\n"
                code = f"{switch}mov cr4, eax\n{form.replace('[M', '[0x500000')}"
                made.append(Case(f"{form}: CR0 {cr0}, CR4 {osfxsr}", code))
                wanted.append((made[-1].name, by_control(form, osfxsr, cr0)))
    told = on_emu86(tuple(made), options={"cpu": "pentium4"})
    names = [case.name for case in made]
    assert list(zip(names, [t["vector"] for t in told], strict=True)) == wanted
