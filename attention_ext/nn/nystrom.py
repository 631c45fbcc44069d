"""Multi-head attention by Nyström's method."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import attention
from ..masks import KeyPadding
from .low_rank import LowRankAttention


class NystromAttention(LowRankAttention):
    """Softmax attention by way of landmarks (Xiong et al. 2021, https://arxiv.org/abs/2102.03902).

    Queries and keys are cut into `num_landmarks` stretches of equal length (in front there may be a shorter
    one, and none at all), of which the means are landmarks q~ and k~::

        out = softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v

    with scores divided by sqrt(D). The outer factors are fused; the one in the middle is num_landmarks
    squared, and its pseudoinverse comes from iterations of third order. Padded keys are in no mean; nor are
    padded queries, where query and key are one tensor.

    Args:
        embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in ``nn.MultiheadAttention``.
        dropout, add_bias_kv, add_zero_attn: expected to be off.
        num_landmarks: m.
        pinv_iterations: of the pseudoinverse.
        conv_kernel_size: odd, to add a depthwise convolution of the values along the sequence, with weights
            ``conv.weight`` for each head; S = L then. None is none.

    Raises ValueError for num_landmarks or pinv_iterations below 1, an even conv_kernel_size, dropout,
    add_bias_kv or add_zero_attn.
    """

    def __init__(
        self,
        *args: Any,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.dropout:
            raise ValueError(f"dropout: expected 0.0 without weights, got {self.dropout}")
        for name, number in (("num_landmarks", num_landmarks), ("pinv_iterations", pinv_iterations)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        self.num_landmarks, self.pinv_iterations = num_landmarks, pinv_iterations
        self.conv = None
        if conv_kernel_size is not None:
            if conv_kernel_size < 1 or conv_kernel_size % 2 == 0:
                raise ValueError(f"conv_kernel_size: expected an odd number, got {conv_kernel_size}")
            weight = self.out_proj.weight
            self.conv = torch.nn.Conv2d(
                self.num_heads,
                self.num_heads,
                (conv_kernel_size, 1),
                padding=(conv_kernel_size // 2, 0),
                groups=self.num_heads,
                bias=False,
                device=weight.device,
                dtype=weight.dtype,
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, one_sequence: bool) -> Tensor:
        if self.conv is not None and q.shape[2] != k.shape[2]:
            raise ValueError(f"key: expected the length of query, {q.shape[2]}, got {k.shape[2]}")
        q_marks, q_used = _landmarks(q, keep if one_sequence else None, self.num_landmarks)
        k_marks, k_used = _landmarks(k, keep, self.num_landmarks)
        inner = _kernel(q_marks, k_marks, q_used, k_used)
        values = attention(q_marks, k, v, mask=None if keep is None else KeyPadding(keep))
        values = pseudoinverse(inner, self.pinv_iterations) @ values.to(inner.dtype)
        out = attention(q, k_marks, values.to(q.dtype), mask=None if k_used is None else KeyPadding(k_used))
        return out if self.conv is None or not v.numel() else out + self.conv(v)

    def extra_repr(self) -> str:
        return f"num_landmarks={self.num_landmarks}, pinv_iterations={self.pinv_iterations}"


def pseudoinverse(a: Tensor, iterations: int) -> Tensor:
    """That of each square matrix of a (..., m, m), by the iterations of the paper's equation 11."""
    row_sums, column_sums = a.abs().sum(-1, keepdim=True), a.abs().sum(-2, keepdim=True)
    size = row_sums.amax((-2, -1), keepdim=True) * column_sums.amax((-2, -1), keepdim=True)
    z = a.mT / size.clamp(min=torch.finfo(a.dtype).tiny)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z


def _landmarks(x: Tensor, keep: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """Means (N, H, count, D) of stretches of x (N, H, L, D), and which have any row (N, count); None: all."""
    N, _, L, _ = x.shape
    missing = -L % count if L else count
    if keep is None and missing == 0:
        return x.unflatten(2, (count, -1)).mean(3), None
    keep = x.new_ones(N, L, dtype=torch.bool) if keep is None else keep
    x = torch.where(keep[:, None, :, None], x, 0.0)
    number = F.pad(keep, (missing, 0)).unflatten(1, (count, -1)).sum(2)
    sums = F.pad(x, (0, 0, missing, 0)).unflatten(2, (count, -1)).sum(3)
    return sums / number.clamp(min=1)[:, None, :, None], number > 0


def _kernel(q: Tensor, k: Tensor, q_used: Tensor | None, k_used: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) of landmarks, 0 in rows and columns of those not used."""
    q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if k_used is not None:
        hidden = ~k_used[:, None, None, :]
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if k_used is not None:
        weights = weights.masked_fill(hidden, 0.0)
    return weights if q_used is None else weights.masked_fill(~q_used[:, None, :, None], 0.0)
