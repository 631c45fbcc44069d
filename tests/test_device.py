"""The tests on other devices, as far as a machine without a GPU can run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("runs the others itself")]

needs_pretend = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends in Python",
)
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import pretend_device, torch
from helpers import make_qkv, Shape
import attention_ext as ax
pretend_device.install()

q, k, v = made = make_qkv(Shape(1, 2, 2, 5, 6, 4, 4), requires_grad=True)
assert {t.device.type for t in made} == {"pretend"}
assert q.cpu().device.type == torch.ones(2, device="cpu").device.type == "cpu"
out = ax.attention(*made, mask=ax.masks.KeyLengths([4]))
out.sum().backward()
assert out.device == q.grad.device == q.device
here = [t.detach().cpu() for t in made]
torch.testing.assert_close(out.cpu(), ax.attention(*here, mask=ax.masks.KeyLengths([4]).to("cpu")))


def refused(expected, function):
    try:
        function()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        assert expected in str(error), error
    else:
        raise AssertionError(f"was not refused: {expected}")


refused("expected all tensors on pretend", lambda: q + torch.ones(6, 4, device="cpu"))
refused("'pretend' device type for generator", lambda: torch.rand(2, generator=torch.Generator()))
refused("has no kernel for pretend", lambda: torch.ops.attention_ext._build_block_table([q], 1, 1))
mask = ax.masks.KeyLengths([4]).to("cpu")
refused("query's device pretend:0, got cpu", lambda: ax.attention(*made, mask=mask))
"""
TRAVEL = """
import emulation, pretend_device, torch
import attention_ext as ax
from attention_ext._ops import library
from helpers import make_qkv, Shape
pretend_device.install()
kernels = emulation.Device("pretend")

with torch.device("cpu"):
    q, k, v = make_qkv(Shape(1, 2, 2, 1, 1, 4, 4))
    states = [torch.ones(1, 2, 4, 4) for _ in range(2)]
    options = None, 0, None, 1.0, False, 0.0
    library.linear_step(q, k, v, states[0], *options)
    kernels.run("_linear_attention_step", q, k, v, states[1], *options)
    assert not torch.equal(states[0], torch.ones(1, 2, 4, 4))
    assert torch.equal(*states)
    q, k, v = make_qkv(Shape(1, 2, 2, 70, 80, 4, 4))
    lowered = (ax.masks.SlidingWindow(9, 4) | ax.masks.Global(3)).lower(1, 2, 70, 80, q.device)
    arguments = (q, k, v, *lowered, None, None, None, 0.5, 0.0, 0.0, None)
    torch.testing.assert_close(kernels.run("_attention_forward", *arguments), library.forward(*arguments))
"""
# What pretends to be a device is no match for torch.compile, forward mode and autocast.
CHOICE = {
    "test_attention_backward": "masks and square and dtype0",
    "test_linear_attention": "square",
    "test_delta_rule": "square",
    "test_longformer": "not compile and not autocast",
}


def run(*command, **environment):
    path = f"{ROOT}:{ROOT / 'tests'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def pytest_of(*arguments, **environment):
    return run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments, **environment)


@needs_pretend
def test_the_pretended_device_is_another_one():
    found = run("-c", PROGRAM)
    assert found.returncode == 0, found.stderr


@needs_pretend
def test_tensors_travel_to_a_device_and_back():
    found = run("-c", TRAVEL, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/cuda_emulation'}")
    assert found.returncode == 0, found.stderr


@needs_pretend
@pytest.mark.parametrize("name", CHOICE)
def test_nothing_leaves_its_device(name):
    found = pytest_of(f"tests/{name}.py", "-k", CHOICE[name], ATTENTION_EXT_TEST_DEVICE="pretend")
    assert found.returncode == 0, found.stdout
    assert " passed" in found.stdout


@needs_pretend
def test_what_is_about_the_cpu_is_left_out():
    found = pytest_of("tests/test_structure.py", ATTENTION_EXT_TEST_DEVICE="pretend")
    assert found.returncode == 0, found.stdout
    assert "on the CPU only: about the source" in found.stdout
    assert " passed" not in found.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_runs():
    found = pytest_of("tests/test_merge.py", ATTENTION_EXT_TEST_DEVICE="cuda")
    assert found.returncode == 0, found.stdout
    assert "no tests on cuda: torch finds no CUDA device" in found.stdout + found.stderr
