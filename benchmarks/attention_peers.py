"""Attention: ours, and what else computes it in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attention_ext as ax

from .cases import CAUSAL, Case
from .contender import Contender, Inputs, Work
from .mask_forms import dense_mask, flex_function, mask_of
from .patterns import BigBird

__all__ = ["CONTENDERS", "on_tensors"]

Forward = Callable[..., Tensor]  # of query, key, value and, where the case has one, the bias


def on_tensors(make: Callable[[Case], Forward]) -> Callable[[Case, Inputs], Work]:
    """For Contender.build, of a function that makes the forward of a case."""

    def build(case: Case, inputs: Inputs) -> Work:
        forward, leaves = make(case), inputs.leaves()
        tensors = tuple(leaves.values())
        return Work(lambda: forward(*tensors), leaves)

    return build


def ours(case: Case) -> Forward:
    mask = mask_of(case)
    if case.pair_bias:
        return lambda q, k, v, bias: ax.attention(q, k, v, mask=mask, bias=bias)
    return lambda q, k, v: ax.attention(q, k, v, mask=mask)


def without_mask(case: Case) -> Case:
    return replace(case, mask=None)


def contiguous(case: Case) -> Case:
    return replace(case, layout="BHLD")


def sdpa(case: Case) -> Forward:
    if case.mask not in (None, CAUSAL) or (case.mask and case.shape.Lq != case.shape.Lk):
        raise ValueError(f"{case.name}: is_causal of SDPA does not describe {case.mask}")
    causal, grouped = case.mask is not None, case.shape.Hkv != case.shape.H

    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, enable_gqa=grouped)

    return forward


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
    allowed, (Lq, Lk) = flex_function(case.mask, case.shape.Lk), (case.shape.Lq, case.shape.Lk)
    block = case.mask.block if isinstance(case.mask, BigBird) else 128
    block_mask = create_block_mask(allowed, None, None, Lq, Lk, device="cpu", BLOCK_SIZE=block)
    torch._dynamo.reset()  # a second shape would be compiled for all shapes, and run many times slower
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
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


CONTENDERS = {
    "ours": Contender("attention_ext", on_tensors(ours)),
    "unmasked": Contender("ours without the mask", on_tensors(ours), instead=without_mask),
    "contiguous": Contender("ours on contiguous tensors", on_tensors(ours), instead=contiguous),
    "sdpa": Contender("SDPA", on_tensors(sdpa)),
    "sdpa_bool_mask": Contender("SDPA + bool mask", on_tensors(sdpa_bool_mask)),
    "sdpa_blocks": Contender("SDPA on blocks of 2w keys", on_tensors(sdpa_blocks)),
    "flex": Contender("FlexAttention, compiled", on_tensors(flex), quick=False),
    "matmul": Contender("matmul + softmax", on_tensors(matmul)),
}
