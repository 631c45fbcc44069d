"""Ours and the peers of every operator, each as a function to be called again and again.

A contender is made from a case and its inputs before any clock runs, and so are masks in the form it wants.
Its call returns what the case asks for, (out,) or (out, gradients of query, key, value).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attention_ext as ax

from .registry import Band, Case

__all__ = ["CONTENDERS", "Contender", "Inputs", "make_call", "make_inputs"]

Call = Callable[[], tuple[Tensor, ...]]
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """title: for people. build: the forward of a case. quick: False if it takes long to get ready."""

    title: str
    build: Callable[[Case], Forward]
    quick: bool = True


@dataclass(frozen=True)
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor | None


def make_inputs(case: Case) -> Inputs:
    """The same numbers for every contender, and in every process."""
    s = case.shape
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=dtype)

    query, key = randn(s.B, s.H, s.Lq, s.D), randn(s.B, s.Hkv, s.Lk, s.D)
    value = randn(s.B, s.Hkv, s.Lk, s.Dv)
    grad_out = randn(s.B, s.H, s.Lq, s.Dv) if case.backward else None
    return Inputs(query, key, value, grad_out)


def make_call(case: Case, contender: Contender, inputs: Inputs) -> Call:
    """The contender's work on the inputs. Grad mode is the caller's: on if case.backward, else off."""
    forward = contender.build(case)
    tensors = (inputs.query, inputs.key, inputs.value)
    if not case.backward:
        return lambda: (forward(*tensors),)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)

    def both() -> tuple[Tensor, ...]:
        out = forward(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, inputs.grad_out)

    return both


# attention


def mask_of(band: Band | None) -> ax.masks.Mask | None:
    """The band as a user of attention_ext would write it."""
    if band is None:
        return None
    if band == Band(None, 0):
        return ax.masks.Causal()
    return ax.masks.SlidingWindow(band.left, band.right)


def dense_mask(band: Band, Lq: int, Lk: int) -> Tensor:
    """bool (Lq, Lk), True = attend."""
    distance = torch.arange(Lk) - torch.arange(Lq)[:, None]
    keep = torch.ones(Lq, Lk, dtype=torch.bool)
    if band.left is not None:
        keep &= distance >= -band.left
    if band.right is not None:
        keep &= distance <= band.right
    return keep


def ours(case: Case) -> Forward:
    mask = mask_of(case.mask)
    return lambda q, k, v: ax.attention(q, k, v, mask=mask)


def sdpa(case: Case) -> Forward:
    if case.mask not in (None, Band(None, 0)) or (case.mask and case.shape.Lq != case.shape.Lk):
        raise ValueError(f"{case.name}: is_causal of SDPA does not describe {case.mask}")
    causal, grouped = case.mask is not None, case.shape.Hkv != case.shape.H
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


def sdpa_bool_mask(case: Case) -> Forward:
    keep = dense_mask(case.mask, case.shape.Lq, case.shape.Lk)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def sdpa_blocks(case: Case) -> Forward:
    """A causal window of w keys in plain torch: blocks of w queries, each on a view of 2w keys."""
    s, w = case.shape, case.mask.left + 1
    if case.mask.right != 0 or s.B != 1 or s.Hkv != s.H or s.Lq != s.Lk or s.Lq % w:
        raise ValueError(f"{case.name}: not a case for blocks of {w} queries")
    blocks = s.Lq // w
    row, column = torch.arange(w)[:, None], torch.arange(2 * w)
    keep = ((column > row) & (column <= row + w)).repeat(blocks, 1, 1)
    keep[0, :, :w] = False  # the padding in front
    bias = torch.zeros(1, blocks, w, 2 * w, dtype=getattr(torch, case.dtype)).masked_fill_(~keep, -torch.inf)

    def pairs_of_blocks(x: Tensor) -> Tensor:
        return F.pad(x[0], (0, 0, w, 0)).unfold(1, 2 * w, w).transpose(-1, -2)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.view(s.H, blocks, w, s.D)
        out = F.scaled_dot_product_attention(q, pairs_of_blocks(k), pairs_of_blocks(v), attn_mask=bias)
        return out.view(1, s.H, s.Lq, s.Dv)

    return forward


def flex(case: Case) -> Forward:
    """Compiled FlexAttention; on the CPU it has no backward."""
    left, right = case.mask.left, case.mask.right

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j >= i - left) & (j <= i + right)

    block_mask = create_block_mask(allowed, None, None, case.shape.Lq, case.shape.Lk, device="cpu")
    compiled = torch.compile(flex_attention, fullgraph=True)
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask)


def matmul(case: Case) -> Forward:
    """The plain formula, all query heads that share a key head in one product."""
    s = case.shape
    if case.mask is not None:
        raise ValueError(f"{case.name}: matmul takes no mask")

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.reshape(s.B, s.Hkv, -1, s.D)
        weights = torch.softmax(q @ k.transpose(-1, -2) * s.D**-0.5, dim=-1)
        return (weights @ v).view(s.B, s.H, s.Lq, s.Dv)

    return forward


CONTENDERS: dict[str, dict[str, Contender]] = {
    "attention": {
        "ours": Contender("attention_ext", ours),
        "sdpa": Contender("SDPA", sdpa),
        "sdpa_bool_mask": Contender("SDPA + bool mask", sdpa_bool_mask),
        "sdpa_blocks": Contender("SDPA on blocks of 2w keys", sdpa_blocks),
        "flex": Contender("FlexAttention, compiled", flex, quick=False),
        "matmul": Contender("matmul + softmax", matmul),
    },
}
