"""What nvcc made of the CUDA kernels keeps to cuda_code_budget.json; no GPU is needed. Of the launches the
emulated tests see to it. `python tests/cuda_code.py --write` enters new kernels.
"""

import cuda_code
import cuda_sass
import pytest
from cuda_code import ARCHITECTURES, Code, blocks_that_fit

import attention_ext as ax

pytestmark = pytest.mark.cpu_only("about the build")

BUDGETS = cuda_code.read_budget()

# A loop of one product inside a loop of two, of which each round goes one of two ways and may copy.
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                     /* 0x00000a0000017a02 */
        /*0010*/                   BSSY B0, 0x70 ;
        /*0020*/              @!P0 BRA 0x60 ;
        /*0030*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0040*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0050*/                   BSYNC B0 ;
        /*0060*/                   BRA 0x120 ;
        /*0070*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;
        /*0080*/               @P1 BRA 0xb0 ;
        /*0090*/                   LDL R0, [R1] ;
        /*00a0*/                   IADD3 R0, R0, 0x1, RZ ;
        /*00b0*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*00c0*/               @P2 BRA 0xb0 ;
        /*00d0*/              @!P3 BRA P1, 0x10 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0100*/                   RET.REL.NODEC R14 0x0 ;
        /*0110*/                   BRA 0x110;
        /*0120*/                   STL [R1], R0 ;
        /*0130*/                   BRA 0x80 ;
"""


# A call that keeps no address to return to is a jump.
@pytest.mark.parametrize("jump", ["BRA", "CALL.REL.NOINC"])
def test_loops_are_found(jump):
    blocks = cuda_sass.blocks_of(cuda_sass.instructions(SASS.replace("BRA 0x120", f"{jump} 0x120")))
    edges = cuda_sass.edges_of(blocks)
    loops = {loop.head: loop.blocks for loop in cuda_sass.loops_of(edges)}
    assert loops == {
        0x10: {0x10, 0x30, 0x60, 0x70, 0x80, 0x90, 0xB0, 0xD0, 0x120},
        0xB0: {0xB0},
    }


def test_the_main_loop_has_the_fullest_block():
    spills, count = cuda_code.main_loop(SASS)
    assert spills == 2
    assert count == {"all": 10, "HMMA": 3, "LDGSTS": 1}
    inner = SASS.replace(
        "HMMA.16816.F32 R4, R8, R12, R4 ;\n        /*0040*/", "MOV R4, R5 ;\n        /*0040*/"
    )
    inner = inner.replace("/*0040*/                   HMMA.16816.F32", "/*0040*/                   FFMA")
    assert cuda_code.main_loop(inner) == (0, {"all": 2, "HMMA": 1})
    assert cuda_code.main_loop(SASS.replace("HMMA", "IADD3")) == (0, {})


def test_names_of_kernels():
    names = {
        "attn::cuda::(anonymous namespace)::pack_kernel(attn::cuda::PackCall)": "pack",
        "void attn::cuda::a_kernel<(attn::Dtype)3, 64, true>(attn::cuda::Call)": "a<kFloat16, 64, true>",
        "void attn::cuda::sum_kernel<attn::cuda::Plain<double> >(attn::cuda::Call)": "sum<Plain<double>>",
        "attn::cuda::helper(int)": None,
    }
    assert {demangled: cuda_code.kernel_name(demangled) for demangled in names} == names


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "expected"),
    [
        (255, 48 << 10, 128, [2, 2]),  # registers
        (128, 0, 256, [2, 2]),
        (129, 0, 256, [1, 1]),
        (64, 64 << 10, 128, [2, 3]),  # shared memory
        (32, 0, 1024, [2, 2]),  # warps
        (16, 0, 32, [32, 32]),  # blocks
    ],
)
def test_blocks_that_fit(registers, shared, threads, expected):
    assert [blocks_that_fit(a, registers, shared, threads) for a in ARCHITECTURES] == expected


def test_what_leaves_its_budget_is_noticed():
    count = {"all": 100, "HMMA": 16, "LDSM": 4, "MUFU": 8}
    code = Code(registers=128, stack=0, spills=0, round=count)
    budget = cuda_code.entry([code], threads=128, shared=32 << 10)
    assert cuda_code.broken(code, budget, 80) == []
    worse = [
        {"registers": 129},
        {"stack": 8},
        {"spills": 1},
        {"round": count | {"all": 130}},
        {"round": count | {"HMMA": 15}},
        {"round": count | {"LDSM": 5}},
        {"round": count | {"LDGSTS": 1}},
        {"round": {}},
    ]
    for change in worse:
        assert cuda_code.broken(code._replace(**change), budget, 80) != [], change


def test_the_readme_has_the_tables():
    assert cuda_code.readme_parts()[1] == cuda_code.tables(BUDGETS)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
def test_every_kernel_keeps_to_its_budget(architecture):
    built_for = ax.build_info()["cuda"]
    if not built_for.startswith("built for"):
        pytest.skip(built_for)
    if cuda_code.cuobjdump() is None:
        pytest.skip("no cuobjdump, which triton brings along")
    codes = cuda_code.compiled(architecture)
    if not codes and f"{architecture // 10}.{architecture % 10}" not in built_for:
        pytest.skip(f"no code for sm_{architecture}: {built_for}")
    assert set(codes) == set(BUDGETS), "python tests/cuda_code.py --write"
    found = {name: cuda_code.broken(code, BUDGETS[name], architecture) for name, code in codes.items()}
    assert {name: what for name, what in found.items() if what} == {}
