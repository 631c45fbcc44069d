"""What nvcc made of each CUDA kernel, without a GPU, and the budget that it is held to.

python tests/cuda_code.py [FILE...]            prints what the built library has, or these cubins
python tests/cuda_code.py --write [FILE...]    makes it the budget, with what `make test-cuda-emulation` has
                                               launched, and writes the tables of csrc/cuda/README.md

The budget is the more of what the code of sm_80 and that of sm_90 need: --write wants a build with both.

The budget of a kernel: threads and shared memory of a block, as the launches have them; registers, in steps
of 8 as they are handed out; bytes of stack; blocks of a multiprocessor that fit, of sm_80 and of sm_90; all
instructions, and those that matter, of a round of the main loop (cuda_sass.py); and where the main loop
touches the stack, which it should not, how often.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cuda_sass

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "attention_ext" / "libattention_ext.so"
EMULATED = ROOT / "build" / "cuda_emulation" / "plain" / "liboperators.so"
BUDGET = Path(__file__).with_name("cuda_code_budget.json")
README = ROOT / "csrc" / "cuda" / "README.md"
BEGIN, END = "<!-- written by tests/cuda_code.py -->\n", "<!-- to here -->\n"
ARCHITECTURES = (80, 90)
EXACT = ("HMMA", "LDSM", "LDGSTS")
COUNTED = (*EXACT, "FFMA", "DFMA", "LDS", "MUFU")
SLACK = 1.1  # of all others, for another nvcc


class Code(NamedTuple):
    """One kernel as compiled for one architecture."""

    registers: int
    stack: int
    spills: int  # accesses to the stack in the main loop
    round: dict[str, int]  # "all" and COUNTED; empty without a main loop


def cuobjdump() -> str | None:
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


@cache
def enumerators() -> dict[str, list[str]]:
    found = {}
    for path in [*(ROOT / "csrc" / "core").glob("*.h"), *(ROOT / "csrc" / "cuda").glob("*.*h")]:
        for name, body in re.findall(r"enum class (\w+)[^{;]*\{([^}]*)\}", path.read_text()):
            found[name] = [
                entry.split()[0] for entry in re.sub(r"//.*", "", body).split(",") if entry.strip()
            ]
    return found


def kernel_name(demangled: str) -> str | None:
    """The name in the budget, attention_forward<float, 4>, of a kernel of this library."""
    spaces = r"(?:(?:\w+|\(anonymous namespace\))::)*"
    found = re.match(rf"(?:void )?attn::cuda::{spaces}(\w+)_kernel(<.*>)?\(", demangled)
    if found is None:
        return None
    arguments = re.sub(rf"\({spaces}(\w+)\)(\d+)", lambda m: enumerators()[m[1]][int(m[2])], found[2] or "")
    return found[1] + arguments.replace("attn::cuda::", "").replace("> >", ">>")


def demangled(names: Iterable[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    return text.stdout.splitlines()


@cache
def compiled(architecture: int, path: Path = LIBRARY) -> dict[str, Code]:
    """By kernel; empty where the file has no code for the architecture."""

    def dump(option: str) -> str:
        command = [cuobjdump(), "-arch", f"sm_{architecture}", option, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    code = dump("-sass")
    if f"code for sm_{architecture}\n" not in code:  # -arch chooses nothing in a cubin
        return {}
    used = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", dump("-res-usage"))
    names = dict(zip([symbol for symbol, *_ in used], demangled(symbol for symbol, *_ in used), strict=True))
    resources = {symbol: (int(registers), int(stack)) for symbol, registers, stack in used}
    codes: dict[str, Code] = {}
    for part in code.split("Function : ")[1:]:
        symbol = part.split(maxsplit=1)[0]
        name = kernel_name(names[symbol])
        if name is None:
            raise ValueError(f"not a kernel: {names[symbol]}")
        # Several files may have the same one.
        codes[name] = Code(*resources[symbol], *main_loop(part))
    return codes


def main_loop(text: str) -> tuple[int, dict[str, int]]:
    """(accesses to the stack, instructions of a round) of a kernel's main loop."""
    blocks = cuda_sass.blocks_of(cuda_sass.instructions(text))
    edges = cuda_sass.edges_of(blocks)
    loop = cuda_sass.main_loop(blocks, cuda_sass.loops_of(edges))
    if loop is None:
        return 0, {}
    inside = cuda_sass.counts(blocks, loop.blocks)
    count = cuda_sass.shortest_round(blocks, edges, loop)
    counted = {name: count[name] for name in COUNTED if count[name]}
    return inside["LDL"] + inside["STL"], {"all": count.total(), **counted}


def blocks_that_fit(architecture: int, registers: int, shared: int, threads: int) -> int:
    """Blocks of a multiprocessor, from the CUDA programming guide's table of compute capabilities."""
    shared_memory = {80: 164, 90: 228}[architecture] << 10
    warps = -(-threads // 32)
    # Registers come in units of 256 to a warp, warps four at a time; a block takes 1 KB for the system.
    by_registers = 65536 // 4 // (-(-registers * 32 // 256) * 256) * 4 // (-(-warps // 4) * 4)
    by_shared_memory = shared_memory // (-(-shared // 128) * 128 + 1024)
    return min(32, 64 // warps, by_registers, by_shared_memory)


def entry(code: Iterable[Code], threads: int, shared: int) -> dict:
    """The budget of a kernel of these codes, one for each architecture."""
    code = list(code)
    registers = min(255, max(-(-c.registers // 8) * 8 for c in code))
    fitting = [blocks_that_fit(a, registers, shared, threads) for a in ARCHITECTURES]
    rounds = [c.round for c in code]
    names = {name: None for counts in rounds for name in counts}
    most = {name: max(counts.get(name, 0) for counts in rounds) for name in names}
    return {
        "threads": threads,
        "shared": shared,
        "registers": registers,
        "stack": max(c.stack for c in code),
        "blocks": fitting,
        "round": most,
    }


def read_budget() -> dict[str, dict]:
    return json.loads(BUDGET.read_text())


def broken(code: Code, budget: dict, architecture: int) -> list[str]:
    """What of its budget a kernel does not keep to."""
    blocks = blocks_that_fit(architecture, code.registers, budget["shared"], budget["threads"])
    found = [
        (code.registers > budget["registers"], f"{code.registers} registers"),
        (code.stack > budget["stack"], f"{code.stack} bytes of stack"),
        (code.spills > 0, f"{code.spills} accesses to the stack in the main loop"),
        (blocks < budget["blocks"][ARCHITECTURES.index(architecture)], f"{blocks} blocks fit"),
    ]
    for name, allowed in {**dict.fromkeys(code.round, 0), **budget["round"]}.items():
        own = code.round.get(name, 0)
        wrong = own != allowed if name in EXACT else own > allowed * SLACK + 2
        found.append((wrong, f"{own} instructions of {name} in a round, not {allowed}"))
    return [text for wrong, text in found if wrong]


def launched() -> dict[str, list[int]]:
    """(threads, bytes of shared memory) of each kernel that tests of the emulated library launched, the most
    of all runs since it was built.
    """
    found: dict[str, list[int]] = {}
    for path in (EMULATED.parent / "launches").glob("*.json"):
        if path.stat().st_mtime < EMULATED.stat().st_mtime:
            path.unlink()
            continue
        for name, launch in json.loads(path.read_text()).items():
            found[name] = [max(pair) for pair in zip(launch, found.get(name, launch), strict=True)]
    return found


def write(built: dict[int, dict[str, Code]]) -> None:
    if missing := [f"sm_{a}" for a in ARCHITECTURES if a not in built]:
        sys.exit(f"no code for {', '.join(missing)}: build with TORCH_CUDA_ARCH_LIST='8.0 9.0'")
    launches = launched()
    names = sorted({name for codes in built.values() for name in codes})
    if missing := [name for name in names if name not in launches]:
        sys.exit(f"no test of `make test-cuda-emulation` has launched {', '.join(missing)}")
    lines = []
    for name in names:
        codes = [codes[name] for codes in built.values() if name in codes]
        lines.append(f" {json.dumps(name)}: {json.dumps(entry(codes, *launches[name]))}")
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    before, _, after = readme_parts()
    README.write_text(before + tables(read_budget()) + after)


def share(budget: dict) -> str:
    """Products among the instructions of a round, such as "128 of 926 (14 %)"."""
    count = budget["round"]
    products = count.get("HMMA") or max(count.get("FFMA", 0), count.get("DFMA", 0))
    return f"{products} of {count['all']} ({products / count['all']:.0%})".replace("%)", " %)")


def clocks(budget: dict) -> dict[str, int]:
    """Lower bounds of one block's round on sm_80."""
    count, warps = budget["round"], budget["threads"] // 32
    return {
        "tensor cores": 2 * count["HMMA"] * warps,
        "special functions": 2 * count.get("MUFU", 0) * warps,
        "shared memory": 4 * (count.get("LDSM", 0) + count.get("LDGSTS", 0)) * warps,
        "issue": count["all"] * warps // 4,
    }


def roofline(budget: dict) -> str:
    """The clocks, and how near the highest of them lets the kernel come to the peak of the tensor cores."""
    bounds = clocks(budget)
    highest = max(bounds, key=bounds.__getitem__)
    reached = bounds["tensor cores"] / bounds[highest]
    return f"{', '.join(map(str, bounds.values()))} | {highest}: {reached:.0%}".replace("%", " %")


def tables(budgets: dict[str, dict]) -> str:
    """Of README.md: kernels with tensor cores, then the others; bfloat16 and double stand for themselves."""
    with_tensor_cores, others = [], []
    for name, budget in budgets.items():
        if "kBFloat16" in name or "double" in name:
            continue
        blocks, warps = budget["blocks"], budget["threads"] // 32
        fitting = ", ".join(f"{n} ({n * warps})" for n in blocks)
        size = f"{budget['shared'] / 1024:.0f} KB" if budget["shared"] else "none"
        short = name.replace("kFloat16, ", "").replace("<kFloat16>", "")
        row = f"| `{short}` | {budget['threads']} | {budget['registers']} | {size} | {fitting} |"
        if budget["round"].get("HMMA"):
            with_tensor_cores.append(f"{row} {share(budget)} | {roofline(budget)} |")
        else:
            others.append(f"{row} {share(budget) if budget['round'] else 'no products'} |")
    head = "| kernel | threads | registers | shared memory | blocks (warps) that fit, sm_80, sm_90 |"
    lines = [
        f"{head} mma.sync of a round | tensor, special, shared, issue clocks | bound by: share of peak |",
        "|" + " --- |" * 8,
        *with_tensor_cores,
        "",
        f"{head} products of a round |",
        "|" + " --- |" * 6,
        *others,
    ]
    return "\n".join(lines) + "\n"


def readme_parts() -> tuple[str, str, str]:
    """csrc/cuda/README.md before the tables, the tables, and after them."""
    before, begin, rest = README.read_text().partition(BEGIN)
    old, end, after = rest.partition(END)
    return before + begin, old, end + after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="make it the budget")
    parser.add_argument("files", nargs="*", type=Path, help="a library, or cubins; the built library if none")
    options = parser.parse_args()
    built: dict[int, dict[str, Code]] = {}
    for architecture in ARCHITECTURES:
        for path in options.files or [LIBRARY]:
            if codes := compiled(architecture, path):
                built.setdefault(architecture, {}).update(codes)
    for architecture, codes in built.items():
        for name, code in sorted(codes.items()):
            print(f"sm_{architecture} {name}: {code}")
    if options.write:
        write(built)


if __name__ == "__main__":
    main()
