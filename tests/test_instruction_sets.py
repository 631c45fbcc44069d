"""One binary for every machine: no instruction beyond the baseline outside its capability's namespace."""

import platform
import re
import shutil
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import attention_ext

PACKAGE = Path(attention_ext.__file__).parent
LIBRARIES = ["libattention_ext.so", "_C.*.so"]

pytestmark = [
    pytest.mark.cpu_only("about instruction sets"),
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="only x86-64 has more than one instruction set here"
    ),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed"),
]

SYMBOL = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\s+(?:\{\w+\} )?(\S+)\s*(.*)$")
# 512-bit registers, mask registers, and the upper half of the register file
AVX512_OPERAND = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])")
# beyond the baseline, though it doesn't show in the operands: bit manipulation, SSE3 to SSE4.2. Not tzcnt:
# compilers write it for a bsf, which older machines take it for.
BEYOND_BASELINE = re.compile(
    r"(andn|bextr|bls[ir]|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|popcnt)[lq]?"
    r"|pshufb|palignr|pblend\w+|blendv?p[sd]|haddp[sd]|addsubp[sd]|movddup|movs[hl]dup|round[sp][sd]|pmulld|dpp[sd]"
    r"|insertps|p?extr(actps|[bdq])|pinsr[bdq]|pmov[sz]x\w+|pm(in|ax)(sb|sd|uw|ud)|pcmpeqq|pcmpgtq|ptest|crc32\w+"
)

BF16 = re.compile(r"vdpbf16ps|vcvtne2?ps2?bf16")


def needed_capability(mnemonic: str, operands: str) -> str | None:
    """The lowest capability that has the instruction; None for the baseline."""
    if BF16.match(mnemonic):
        return "avx512_bf16"
    if AVX512_OPERAND.search(operands):
        return "avx512"
    if mnemonic.startswith("v") and mnemonic not in ("verr", "verw"):
        return "avx2"
    return "avx2" if BEYOND_BASELINE.fullmatch(mnemonic) else None


def declared_capability(symbol: str) -> str | None:
    """The capability whose namespace the symbol, or a type in its name, is in: both are its alone."""
    match = re.search(r"attn::(avx2|avx512(?:_bf16)?)::", symbol)
    return match.group(1) if match else None


@cache
def instructions(pattern: str) -> dict[str, dict[str | None, list[str]]]:
    """symbol -> needed capability -> instructions, of one library."""
    (library,) = PACKAGE.glob(pattern)
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    symbol = ""
    for line in text.splitlines():
        if match := SYMBOL.match(line):
            symbol = match.group(1)
        elif match := INSTRUCTION.match(line):
            found[symbol][needed_capability(*match.groups())].append(line.strip())
    return found


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("vdpbf16ps %zmm1,%zmm2,%zmm3", "avx512_bf16"),
        ("vcvtneps2bf16 %zmm1,%ymm2", "avx512_bf16"),
        ("vaddps %zmm1,%zmm2,%zmm3", "avx512"),
        ("kmovw  %k1,%eax", "avx512"),
        ("vmovaps %ymm17,%ymm1", "avx512"),
        ("vaddps %ymm1,%ymm2,%ymm3", "avx2"),
        ("vaddss %xmm1,%xmm2,%xmm3", "avx2"),
        ("shlx   %rax,%rdx,%rcx", "avx2"),
        ("pshufb %xmm1,%xmm2", "avx2"),
        ("addps  %xmm1,%xmm2", None),
        ("bsf    %rax,%rdx", None),
        ("pextrw $0x0,%xmm0,%eax", None),
    ],
)
def test_instructions_are_told_apart(line, needed):
    assert needed_capability(*re.match(r"(\S+)\s+(.*)", line).groups()) == needed


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_instruction_outside_its_namespace(library):
    levels = ["avx2", "avx512", "avx512_bf16"]
    allowed = {None: set()} | {level: set(levels[: n + 1]) for n, level in enumerate(levels)}
    strays = {
        (symbol, needed): lines[:3]
        for symbol, by_need in instructions(library).items()
        for needed, lines in by_need.items()
        if needed is not None and needed not in allowed[declared_capability(symbol)]
    }
    assert strays == {}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("capability", "register"), [("avx2", "%ymm"), ("avx512", "%zmm")])
def test_each_namespace_uses_its_registers(library, capability, register):
    fused = [
        line
        for symbol, by_need in instructions(library).items()
        if declared_capability(symbol) == capability
        for line in by_need[capability]
        if "vfmadd" in line and register in line
    ]
    assert len(fused) > 100


@pytest.mark.parametrize(
    ("capability", "dtype", "multiply", "chains"),
    [
        *(
            (capability, dtype, "vfmadd", 12)
            for capability in ("avx2", "avx512")
            for dtype in ("float", "double")
        ),
        *(("generic", dtype, "mulp", 12) for dtype in ("float", "double")),
        ("avx512_bf16", "float", "vdpbf16ps", 20),
    ],
)
def test_the_peak_is_measured_in_registers(capability, dtype, multiply, chains):
    # Chains unrolled 8 times: one that the compiler folds or spills makes the peak a wrong one.
    name = f"attn::{capability}::(anonymous namespace)::run_chains<{dtype}>("
    (by_need,) = [v for symbol, v in instructions("_C.*.so").items() if name in symbol]
    operations = [line for lines in by_need.values() for line in lines if multiply in line]
    assert len(operations) == 8 * chains
    assert not [line for line in operations if "(" in line]
