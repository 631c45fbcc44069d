"""How attention runs: the same bits for any number of threads, and no memory that grows with Lq·Lk."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attention_cases import BROADCASTS, broadcast_name, broadcast_shape
from helpers import DTYPES, Shape, make_qkv, random_keep

import attention_ext as ax
from attention_ext import masks

CASES = {
    "batch_and_heads": (Shape(2, 4, 4, 130, 130, 16, 16), lambda s: None),
    "grouped": (Shape(2, 8, 2, 70, 131, 16, 24), lambda s: masks.Causal()),
    "one_head": (Shape(1, 1, 1, 600, 600, 16, 16), lambda s: masks.Causal()),
    "chunks": (Shape(1, 1, 1, 200, 2100, 16, 16), lambda s: None),
    "chunks_of_a_window": (Shape(1, 1, 1, 2100, 2100, 8, 8), lambda s: masks.SlidingWindow(70, 3)),
    "chunks_in_buffers": (Shape(1, 2, 1, 100, 1500, 7, 5), lambda s: masks.KeyLengths([1300])),
    "dense": (Shape(2, 3, 3, 150, 200, 16, 16), lambda s: masks.Dense(random_keep(3, 150, 200))),
}


def results(qkv, **options):
    inputs = [*qkv, *(t for t in options.values() if isinstance(t, torch.Tensor) and t.is_floating_point())]
    for t in inputs:
        t.grad = None
        t.requires_grad_()
    out, lse = ax.attention(*qkv, **options, return_lse=True)
    # Neither drawn nor constant.
    scalar = (out * out.detach().cos()).sum() + (lse * lse.detach().sin()).nan_to_num().sum()
    return [out, lse, *torch.autograd.grad(scalar, inputs)]


def assert_same_bits_for_any_threads(num_threads, qkv, **options):
    num_threads(1)
    expected = results(qkv, **options)
    for threads in (1, 2, 3, 2):
        num_threads(threads)
        for n, (found, once) in enumerate(zip(results(qkv, **options), expected, strict=True)):
            assert torch.equal(found, once), f"result {n} on {threads} threads"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.cpu_only("threads of the CPU")
def test_bits_do_not_depend_on_threads(case, dtype, num_threads):
    shape, mask = CASES[case]
    options = {
        "mask": mask(shape),
        "sinks": torch.randn(shape.Hq),
        "alibi_slopes": torch.rand(shape.B, shape.Hq) / 8,
    }
    qkv = make_qkv(shape, dtype)
    assert_same_bits_for_any_threads(num_threads, qkv, mask=mask(shape))
    assert_same_bits_for_any_threads(num_threads, qkv, dropout_p=0.2, dropout_seed=1, **options)


@pytest.mark.parametrize("varies", BROADCASTS, ids=broadcast_name)
@pytest.mark.cpu_only("threads of the CPU")
def test_bits_of_bias_gradients_do_not_depend_on_threads(varies, num_threads):
    for shape in (Shape(3, 4, 2, 70, 131, 8, 8), Shape(1, 2, 2, 40, 1300, 8, 8)):
        bias = torch.randn(broadcast_shape(shape, varies))
        assert_same_bits_for_any_threads(num_threads, make_qkv(shape), bias=bias)


def test_calls_from_several_threads_at_once(num_threads):
    num_threads(2)
    jobs = []
    for n, (shape, mask) in enumerate(CASES.values()):
        dtype = DTYPES[n % len(DTYPES)]
        jobs += [(make_qkv(shape, dtype), mask(shape)), (make_qkv(shape), mask(shape))]
    expected = [results(qkv, mask=mask) for qkv, mask in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, once in zip(
                pool.map(lambda job: results(job[0], mask=job[1]), jobs), expected, strict=True
            ):
                assert all(torch.equal(a, b) for a, b in zip(found, once, strict=True))


_MEASURE = """
import resource, sys, torch, attention_ext as ax
from attention_ext import masks
torch.set_num_threads(2)
N, options = int(sys.argv[1]), sys.argv[2]
def step(n):
    qkv = [torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(3)]
    make = {
        "window": lambda: {"mask": masks.SlidingWindow(63, 0)},
        "window_lengths": lambda: {"mask": masks.SlidingWindow(63, 63) & masks.KeyLengths([n // 2])},
        "nothing": lambda: {},
        "bias_of_keys": lambda: {"bias": torch.randn(n, requires_grad=True)},
        "bias_of_queries": lambda: {"bias": torch.randn(n, 1, requires_grad=True), "mask": masks.Causal()},
        "terms": lambda: {
            "softcap": 5.0, "sinks": torch.randn(1, requires_grad=True), "dropout_p": 0.1,
            "alibi_slopes": torch.rand(1, requires_grad=True), "mask": masks.SlidingWindow(63, 0),
        },
    }[options]
    ax.attention(*qkv, **make()).sum().backward()
step(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(N)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "length"),
    [
        ("window", 20_000),
        ("window_lengths", 20_000),
        ("terms", 20_000),
        ("nothing", 6000),
        ("bias_of_keys", 6000),
        ("bias_of_queries", 6000),
    ],
)
@pytest.mark.cpu_only("memory of the process")
def test_memory_is_linear_in_length(options, length):
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(length), options], capture_output=True, text=True, check=True
    )
    peak = int(run.stdout) * 1024
    # query, key, value, out, their gradients: 8 tensors. Scratch and allocator take a few MB more.
    tensors = 8 * length * 16 * 4
    assert peak < 2 * tensors + 12e6, f"{peak / 1e6:.1f} MB"
    # A bit for each pair would already be 50 MB for 20,000, a float 144 MB for 6000.
    assert 2 * tensors + 12e6 < length**2 * (4 if length < 20_000 else 1 / 8)
