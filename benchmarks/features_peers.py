"""Linear attention on positive random features: ours and performer-pytorch, both with the same draws."""

from __future__ import annotations

import torch
from torch import Tensor

import attention_ext as ax

from .attention_peers import Forward, on_tensors
from .cases import CAUSAL, FEATURES, Case
from .contender import Contender

__all__ = ["PERFORMER"]


def draws(case: Case) -> ax.features.Performer:
    s = case.shape
    if case.mask != CAUSAL or s.Lq != s.Lk or s.Hkv != s.H:
        raise ValueError(f"{case.name}: causal and without grouped heads only")
    return ax.features.Performer(case.shape.D, FEATURES, generator=torch.Generator().manual_seed(0))


def performer(case: Case) -> Forward:
    feature_map = draws(case)
    return lambda q, k, v: ax.linear_attention(q, k, v, feature_map=feature_map, causal=True)


def performer_pytorch(case: Case) -> Forward:
    """Its causal path without CUDA, less what it adds to features and sums: that alone tells us apart."""
    from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda, softmax_kernel

    projection = draws(case).projection

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = softmax_kernel(q, projection_matrix=projection, is_query=True, eps=0.0)
        k = softmax_kernel(k, projection_matrix=projection, is_query=False, eps=0.0)
        return causal_linear_attention_noncuda(q, k, v, eps=0.0)

    return forward


PERFORMER = {
    "ours": Contender("attention_ext", on_tensors(performer)),
    "performer_pytorch": Contender("performer-pytorch", on_tensors(performer_pytorch), quick=False),
}
