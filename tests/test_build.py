"""What the build leaves behind: its information, its symbols, its switches, its source distribution."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch

import attention_ext as ax
from attention_ext import _C

pytestmark = pytest.mark.cpu_only("about the build")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ax.__file__).parent
LIBRARY = PACKAGE / "libattention_ext.so"
MODULE = Path(_C.__file__)
VARIABLE = "ATTENTION_EXT_CPU_CAPABILITY"


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != VARIABLE} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd="/")


# Without the package around it, which would import torch: _C stands on its own.
LOAD_MODULE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("attention_ext._C", {str(MODULE)!r})
_C = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_C)
"""


# build_info and the capability


def test_build_info():
    info = ax.build_info()
    assert info["version"] == importlib.metadata.version("attention_ext")
    assert info["torch_running"] == torch.__version__
    assert re.match(r"2\.\d+", info["torch_built"])
    assert re.match(r"(g\+\+|clang) \d+", info["compiler"])
    assert info["cuda"].startswith(("built for", "not built: "))
    assert info["cpu_capabilities"][0] == "generic"
    assert info["cpu_capability"] == os.environ.get(VARIABLE, info["cpu_capabilities"][-1])
    assert set(info["cache_sizes"]) == {"l1d", "l2", "l3"}
    assert all(size >= 0 for size in info["cache_sizes"].values())
    assert info["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("capability", _C.cpu_capabilities())
def test_a_capability_can_be_forced(capability):
    result = python(LOAD_MODULE + "print(_C.cpu_capability())", **{VARIABLE: capability})
    assert result.stdout.strip() == capability, result.stderr


def test_an_empty_variable_chooses_the_best():
    result = python(LOAD_MODULE + "print(_C.cpu_capability())", **{VARIABLE: ""})
    assert result.stdout.strip() == _C.cpu_capabilities()[-1], result.stderr


UNKNOWN = f"{VARIABLE}: unknown CPU capability 'avx3', expected one of: generic, avx2, avx512, avx512_bf16"


def test_an_unknown_capability_is_an_error():
    result = python(LOAD_MODULE + "_C.cpu_capability()", **{VARIABLE: "avx3"})
    assert result.returncode == 1
    assert f"ValueError: {UNKNOWN}" in result.stderr


def test_an_unknown_capability_is_an_error_of_the_operators():
    code = "import torch, attention_ext as ax; x = torch.ones(1, 1, 2, 4); ax.attention(x, x, x)"
    result = python(code, **{VARIABLE: "avx3"})
    assert result.returncode == 1
    assert UNKNOWN in result.stderr


# the probes


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_probes(dtype):
    for capability in _C.cpu_capabilities():
        assert _C.fma_peak(capability, dtype, 0.02) > 0.1
        assert _C.fma_work(capability, dtype, 0.01) >= 0.01
    assert _C.read_bandwidth(1 << 20, 0.02) > 0.1
    assert _C.update_bandwidth(1 << 20, 0.02) > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _C.fma_peak("avx3"), "unknown CPU capability 'avx3'"),
        (lambda: _C.fma_peak("generic", "float16"), "'float64' or 'bfloat16', got 'float16'"),
        (lambda: _C.fma_peak("generic", "float32", float("nan")), "seconds must be in"),
        (lambda: _C.fma_work("generic", "float32", 0.0), "gflop must be in"),
        (lambda: _C.read_bandwidth(0), "bytes must be at least 4096, got 0"),
    ],
)
def test_probes_name_a_bad_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "probe", [lambda: _C.fma_peak("generic", "float32", 1.0), lambda: _C.read_bandwidth(1 << 16, 1.0)]
)
def test_probes_release_the_gil(probe):
    thread = threading.Thread(target=probe)
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.01)
        turns += 1
    assert turns > 5


def test_the_stub_file_tells_what_the_module_has():
    functions = {
        node.name: node for node in ast.parse((PACKAGE / "_C.pyi").read_text()).body if hasattr(node, "name")
    }
    assert set(functions) == {name for name in dir(_C) if not name.startswith("_")}
    for name, node in functions.items():
        first_line = getattr(_C, name).__doc__.splitlines()[0]
        assert re.findall(r"[(,] ?(\w+):", first_line) == [argument.arg for argument in node.args.args]


# symbols

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")


def undefined_symbols(path: Path) -> list[str]:
    command = ["nm", "-D", "--undefined-only", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[-1] for line in lines]


@needs_nm
def test_the_operators_need_neither_python_nor_unstable_torch():
    symbols = undefined_symbols(LIBRARY)
    assert [name for name in symbols if name.startswith(("Py", "_Py"))] == []
    # Mangled names of torch's namespaces are what breaks between its versions; the stable ABI is all C names.
    assert [name for name in symbols if re.match(r"_ZNK?\d*(2at|3c10|5torch)", name)] == []
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)


@needs_nm
def test_the_module_needs_no_torch():
    symbols = undefined_symbols(MODULE)
    assert [name for name in symbols if re.match(r"_ZNK?\d*(2at|3c10|5torch)|aoti_torch|torch_", name)] == []


@pytest.mark.parametrize("path", [LIBRARY, MODULE], ids=lambda p: p.name.split(".")[0])
def test_nothing_carries_the_path_of_the_build(path):
    content = path.read_bytes()
    assert str(ROOT).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


# setup.py


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("source") / "attention_ext"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def setup_py(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, env=os.environ | environment, cwd=folder, capture_output=True, text=True)


def test_cuda_can_be_switched_off(source_copy):
    result = setup_py(source_copy, "--version", ATTENTION_EXT_CUDA="0")
    assert result.returncode == 0
    assert "attention_ext: CUDA not built: ATTENTION_EXT_CUDA=0" in result.stderr


def test_cuda_is_left_out_without_nvcc(source_copy):
    result = setup_py(source_copy, "--version", ATTENTION_EXT_CUDA="auto", CUDA_HOME="/nonexistent")
    assert result.returncode == 0
    assert re.search(
        r"attention_ext: CUDA not built: (nvcc was not found|torch \S+ was built without)", result.stderr
    )


def test_cuda_that_is_demanded_and_missing_fails(source_copy):
    result = setup_py(source_copy, "--version", ATTENTION_EXT_CUDA="1", CUDA_HOME="/nonexistent")
    assert result.returncode == 1
    assert "ATTENTION_EXT_CUDA=1, but " in result.stderr


def test_an_unknown_cuda_mode_fails(source_copy):
    result = setup_py(source_copy, "--version", ATTENTION_EXT_CUDA="yes")
    assert result.returncode == 1
    assert "ATTENTION_EXT_CUDA must be auto, 0 or 1, got 'yes'" in result.stderr


def test_the_source_distribution_has_what_a_build_needs(source_copy):
    result = setup_py(source_copy, "sdist", ATTENTION_EXT_CUDA="0")
    assert result.returncode == 0, result.stderr
    (archive,) = (source_copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    top = {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile"}
    folders = [source_copy / "csrc", source_copy / "attention_ext"]
    sources = {
        str(p.relative_to(source_copy)) for folder in folders for p in folder.rglob("*") if p.is_file()
    }
    assert (top | sources) - names == set()
    assert [name for name in names if name.endswith((".so", ".o", ".pyc"))] == []


def test_version_is_the_changelogs():
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.group(1) in (_C.build()["version"], "Unreleased")
