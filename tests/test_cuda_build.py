"""Which CUDA architectures a build takes, and that what was built is registered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import CUDA_HOME

import attention_ext as ax

pytestmark = pytest.mark.cpu_only("about the build")

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = ("attention", "_attention_forward", "_attention_backward", "_pack_mask_bits", "_dropout_keep")
OPERATORS += ("delta_rule", "_delta_rule_forward", "_delta_rule_step", "_delta_rule_backward")

needs_nvcc = pytest.mark.skipif(
    CUDA_HOME is None or torch.version.cuda is None, reason="no nvcc, or a torch without CUDA"
)


def cuda_line(*arguments: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "TORCH_CUDA_ARCH_LIST"} | environment
    command = [sys.executable, "setup.py", *arguments]
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(line for line in result.stderr.splitlines() if line.startswith("attention_ext: CUDA"))


@needs_nvcc
def test_a_release_takes_every_architecture():
    assert cuda_line("--version").endswith(" and 7.5;8.0;9.0+PTX;10.0;12.0+PTX")


@needs_nvcc
def test_a_development_build_takes_one():
    line = cuda_line("build_ext", "--inplace", "--help")
    assert line.endswith(" and the GPU" if torch.cuda.is_available() else " and 8.0+PTX")


@needs_nvcc
def test_a_given_list_is_taken():
    assert cuda_line("build_ext", "--inplace", "--help", TORCH_CUDA_ARCH_LIST="9.0").endswith(" and 9.0")
    assert cuda_line("--version", TORCH_CUDA_ARCH_LIST="8.6").endswith(" and 8.6")


@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("12.4", "not built: nvcc is of CUDA 12.4, and 12.8 is the oldest"),
        ("99.1", f"not built: nvcc is of CUDA 99.1, but torch of {torch.version.cuda}: put one of the same"),
        (None, "does not tell its version"),
    ],
)
def test_an_nvcc_that_does_not_fit(release, expected, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    told = f"echo Cuda compilation tools, release {release}, V0" if release else "true"
    nvcc.write_text(f"#!/bin/sh\n{told}\n")
    nvcc.chmod(0o755)
    assert expected in cuda_line("--version", CUDA_HOME=str(tmp_path), ATTENTION_EXT_CUDA="auto")


@pytest.mark.parametrize("name", OPERATORS)
def test_cuda_kernels_are_registered_as_built(name):
    built = ax.build_info()["cuda"].startswith("built for")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attention_ext::{name}", "CUDA") == built
