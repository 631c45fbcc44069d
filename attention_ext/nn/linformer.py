"""Multi-head attention to projected keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional import attention
from .low_rank import LowRankAttention


class LinformerAttention(LowRankAttention):
    """Attention to as many learned combinations of keys, and of values (Wang et al. 2020,
    https://arxiv.org/abs/2006.04768).

    Time and memory are linear in the lengths: the S keys become ``proj_k``^T keys, `num_projections` rows,
    and the values likewise; all heads share the projections. A key sequence shorter than `max_length` uses
    their first rows; padded keys count as 0.

    Args:
        embed_dim, num_heads, dropout, bias, kdim, vdim, batch_first, device, dtype: as in
            ``nn.MultiheadAttention``. add_bias_kv, add_zero_attn: expected to be False.
        max_length: most keys that a call may have.
        num_projections: number of combinations, K.
        share_projections: values are combined as keys are.

    ``state_dict`` has, besides the parameters of ``nn.MultiheadAttention``, ``proj_k`` (max_length, K) and,
    unless shared, ``proj_v``.

    Raises ValueError for max_length or num_projections below 1, add_bias_kv or add_zero_attn.
    """

    def __init__(
        self,
        *args: Any,
        max_length: int,
        num_projections: int = 256,
        share_projections: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, number in (("max_length", max_length), ("num_projections", num_projections)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        self.max_length, self.num_projections = max_length, num_projections
        empty = self.out_proj.weight.new_empty(max_length, num_projections)
        self.proj_k = torch.nn.Parameter(empty)
        if share_projections:
            self.register_parameter("proj_v", None)
        else:
            self.proj_v = torch.nn.Parameter(torch.empty_like(empty))
        for projection in (self.proj_k, self.proj_v):
            if projection is not None:
                torch.nn.init.uniform_(projection, -(num_projections**-0.5), num_projections**-0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, one_sequence: bool) -> Tensor:
        if k.shape[2] > self.max_length:
            raise ValueError(f"key: expected at most max_length = {self.max_length} tokens, got {k.shape[2]}")
        combined = _combine(k, self.proj_k), _combine(v, self.proj_k if self.proj_v is None else self.proj_v)
        return attention(q, *combined, dropout_p=float(self.dropout) if self.training else 0.0)

    def extra_repr(self) -> str:
        shared = "" if self.proj_v is not None else ", share_projections=True"
        return f"max_length={self.max_length}, num_projections={self.num_projections}{shared}"


def _combine(x: Tensor, projection: Tensor) -> Tensor:
    """(N, H, K, D) of (N, H, S, D): one product for all heads."""
    heads = x.shape[1]
    rows = x.transpose(1, 2).flatten(2)
    return (projection[: rows.shape[1]].mT @ rows).unflatten(2, (heads, -1)).transpose(1, 2)
