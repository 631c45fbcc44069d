"""Attention to chosen blocks: ours, and what else computes it in torch."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

import attention_ext as ax

from . import attention_peers
from .attention_peers import Forward, on_tensors
from .cases import CAUSAL, Case
from .contender import Contender
from .learned_patterns import Chosen, Native

__all__ = ["CONTENDERS"]

Branch = tuple[Tensor, Tensor, ax.masks.Mask]  # key, value, and what of them is seen


def branches(case: Case, q: Tensor, k: Tensor, v: Tensor) -> list[Branch]:
    """The attentions whose outputs are added. Compressed keys are means, and all branches share theirs."""
    match case.mask:
        case Chosen(block, top_k):
            return [(k, v, ax.select_blocks(q, k, block, top_k))]
        case Native(Chosen(block, top_k), length, stride, window):
            means, mean_values = (x.unfold(2, length, stride).mean(-1) for x in (k, v))
            compressed = (length, stride, k.shape[2])
            fixed = {"initial_blocks": 1, "local_blocks": 2}
            chosen = ax.select_blocks(
                q, means, block, top_k, share_heads=True, compressed=compressed, **fixed
            )
            return [
                (means, mean_values, ax.masks.Compressed(*compressed)),
                (k, v, chosen),
                (k, v, ax.masks.SlidingWindow(window - 1, 0)),
            ]
    raise ValueError(f"{case.name}: nothing is chosen with {case.mask}")


def ours(case: Case) -> Forward:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sum(ax.attention(q, *keys, mask=mask) for *keys, mask in branches(case, q, k, v))

    return forward


def sdpa_bool_mask(case: Case) -> Forward:
    """Of the same choice: rounding would make another one for a few queries, and no figures then."""
    if case.mask == CAUSAL:
        return attention_peers.sdpa_bool_mask(case)
    s = case.shape
    grouped = s.Hkv != s.H

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: ax.masks.Mask) -> Tensor:
        keep = mask.dense(s.Lq, k.shape[2])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=grouped)
        # torch has NaN where a query sees nothing.
        return out if keep.any(-1).all() else out.masked_fill(~keep.any(-1, keepdim=True), 0.0)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sum(attend(q, *branch) for branch in branches(case, q, k, v))

    return forward


def dense(case: Case) -> Case:
    return replace(case, mask=CAUSAL)


CONTENDERS = {
    "ours": Contender("attention_ext", on_tensors(ours)),
    "sdpa": Contender("SDPA, dense causal", on_tensors(attention_peers.sdpa), instead=dense),
    "sdpa_bool_mask": Contender("SDPA + bool mask of ours' choice", on_tensors(sdpa_bool_mask)),
}
