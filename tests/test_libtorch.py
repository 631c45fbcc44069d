"""The operator library in a C++ program that has LibTorch and no Python."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import attention_ext as ax

pytestmark = pytest.mark.cpu_only("a C++ program on the CPU")

SOURCE = Path(__file__).parent / "libtorch" / "main.cpp"
LIBRARY = Path(ax.__file__).parent / "libattention_ext.so"
TORCH_LIB = Path(torch.__file__).parent / "lib"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    binary = tmp_path_factory.mktemp("libtorch") / "main"
    # --disable-new-dtags: an rpath that also finds what libtorch_cpu needs in turn.
    libraries = [
        f"-L{TORCH_LIB}",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
        "-Wl,--disable-new-dtags",
        f"-Wl,-rpath,{TORCH_LIB}",
    ]
    folders = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", "-O0", abi, *folders, str(SOURCE), "-o", str(binary), *libraries]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return binary


def test_operators_work_without_python(program):
    result = subprocess.run([str(program), str(LIBRARY)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall(r"^ok: ", result.stdout, re.MULTILINE)) == 6
    assert "FAILED" not in result.stdout


def test_the_program_has_no_python_in_it(program):
    libraries = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in libraries
    assert "libpython" not in libraries
    assert "libtorch_python" not in libraries
