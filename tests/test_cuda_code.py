"""What nvcc made of the kernels on tensor cores for sm_80, without a GPU: registers, spills and instructions.

cuda_code_budget.json says of each kernel how many registers and spilled bytes it may use, and how many
instructions of mma.sync its loop has, which is unrolled once.
"""

import json
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import attention_ext as ax

pytestmark = pytest.mark.cpu_only("about the build")

BUDGET = json.loads(Path(__file__).with_name("cuda_code_budget.json").read_text())
LIBRARY = Path(ax.__file__).with_name("libattention_ext.so")
SUMS = ("dq", "dk dv", "dk", "dv")
DTYPES = {"2": "bfloat16", "3": "float16"}  # of core/scalar.h


class Code(NamedTuple):
    registers: int
    stack: int
    instructions: Counter[str]


def cuobjdump() -> str | None:
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


def name_of(symbol: str) -> tuple[str, str] | None:
    """(Name in the budget, dtype) of a mangled kernel on tensor cores."""
    kernel = re.search(
        r"(attention_tensor_\w+?)_kernelILNS_5DtypeE(\d)ELi(\d+)E(?:LNS0_4SumsE(\d)E)?", symbol
    )
    if kernel is None:
        return None
    pass_, dtype, columns, sums = kernel.groups()
    return " ".join([pass_, columns, *([SUMS[int(sums)]] if sums else [])]), DTYPES[dtype]


@cache
def built() -> dict[tuple[str, str], Code]:
    def dump(*options: str) -> str:
        command = [cuobjdump(), "-arch", "sm_80", *options, str(LIBRARY)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    used = {}
    for function, registers, stack in re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", dump("-res-usage")
    ):
        used[function] = int(registers), int(stack)
    codes = {}
    for part in dump("-sass").split("Function : ")[1:]:
        symbol = part.split(maxsplit=1)[0]
        if name := name_of(symbol):
            operations = re.findall(
                r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)", part, re.MULTILINE
            )
            codes[name] = Code(*used[symbol], Counter(operations))
    return codes


@pytest.fixture
def code(request):
    built_for = ax.build_info()["cuda"]
    if not (built_for.startswith("built for") and "8.0" in built_for):
        pytest.skip(f"no code for sm_80: {built_for}")
    if cuobjdump() is None:
        pytest.skip("no cuobjdump")
    return built()[request.param]


@pytest.mark.parametrize(
    ("kernel", "code"),
    [(kernel, (kernel, dtype)) for kernel in BUDGET for dtype in DTYPES.values()],
    indirect=["code"],
    ids=lambda x: x[1] if isinstance(x, tuple) else x,
)
def test_the_code_keeps_to_its_budget(kernel, code):
    budget = BUDGET[kernel]
    spilled = budget.get("spilled", 0)
    assert code.registers <= budget["registers"]
    assert code.stack <= spilled
    assert spilled or not code.instructions["LDL"] + code.instructions["STL"]
    assert code.instructions["HMMA"] == budget["products"]
    assert code.instructions["LDSM"] > 0
    assert code.instructions["LDGSTS"] > 0
