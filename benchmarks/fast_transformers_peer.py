"""pytorch-fast-transformers' causal product on the CPU, compiled for this machine from its own source.

The package itself doesn't install beside newer CUDA compilers, and compiles for no vector extensions. Here
pip fetches its source once, and its one file for the CPU is compiled unchanged with -march=native, into a
folder of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_peers import on_tensors
from .cases import Case
from .contender import Contender, NotHere
from .linear_peers import EPS, Forward, check_causal

__all__ = ["LINEAR_ATTENTION"]

PACKAGE = "pytorch-fast-transformers==0.4.0"
SOURCE = "causal_product_cpu.cpp"
FOLDER = Path("build/benchmarks/fast_transformers")
FLAGS = ["-O3", "-ffast-math", "-fopenmp", "-march=native"]  # its own, and the last


def fetch_source() -> Path:
    """Raises NotHere where pip can't get it."""
    source = FOLDER / SOURCE
    if source.exists():
        return source
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", ":all:", "--dest", str(FOLDER), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(FOLDER.glob("*.tar.gz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotHere(f"pip download {PACKAGE}: {reason}")
    with tarfile.open(archives[0]) as archive:
        member = next(m for m in archive if m.isfile() and Path(m.name).name == SOURCE)
        source.write_bytes(archive.extractfile(member).read())
    return source


@cache
def kernel() -> Any:
    from torch.utils.cpp_extension import load

    try:
        return load(
            "fast_transformers_causal_product",
            [str(fetch_source())],
            extra_cflags=FLAGS,
            extra_ldflags=["-fopenmp"],
            build_directory=str(FOLDER),
        )
    except (RuntimeError, OSError) as error:
        raise NotHere(f"{PACKAGE} can't be compiled: {error}") from error


class CausalProduct(torch.autograd.Function):
    """out_t = sum over s <= t of (q_t . k_s) v_s; its kernels add to what they are given."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        out = torch.zeros_like(v)
        kernel().causal_dot_product(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        grads = tuple(torch.zeros_like(t) for t in inputs)
        kernel().causal_dot_backward(*inputs, grad.contiguous(), *grads)
        return grads


def linear_attention(case: Case) -> Forward:
    """As its layer CausalLinearAttention has it, the normaliser in torch; plain, the kernel alone."""
    check_causal(case, "", "plain")
    kernel()
    if case.variant:
        return lambda q, k, v: CausalProduct.apply(q * case.shape.D**-0.5, k, v)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums = torch.einsum("bhld,bhld->bhl", q, k.cumsum(2))
        return CausalProduct.apply(q, k, v) / (sums + EPS)[..., None]

    return forward


LINEAR_ATTENTION = {
    "fast_transformers": Contender(
        "fast-transformers, -march=native", on_tensors(linear_attention), quick=False
    )
}
