"""Causal convolutions over a few tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ShortConvolution(torch.nn.Module):
    """Each channel convolved with its own past: ``out_t = sum_i weight[:, 0, i] * x_{t - size + 1 + i}``.

    Args:
        channels: number C of them.
        size: tokens that an output sees, its own included.
        device, dtype: of the weight (C, 1, size), which is that of a ``nn.Conv1d`` with C groups.

    Raises ValueError for a size below 1.
    """

    def __init__(self, channels: int, size: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"conv_size: expected at least 1, got {size}")
        self.size = size
        self.weight = torch.nn.Parameter(torch.empty(channels, 1, size, device=device, dtype=dtype))
        torch.nn.init.uniform_(self.weight, -(size**-0.5), size**-0.5)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The convolution of x (N, L, C), and the past of what comes next, (N, size - 1, C).

        lengths: (N,), how many tokens count; None is all. past: of x; None is zeros.
        """
        n, length, channels = x.shape
        kept = self.size - 1
        if past is None:
            past = x.new_zeros(n, kept, channels)
        elif past.shape != (n, kept, channels):
            raise ValueError(
                f"initial_state: expected conv of shape {(n, kept, channels)}, got {tuple(past.shape)}"
            )
        whole = torch.cat([past.to(x.dtype), x], 1)
        taps = self.weight[:, 0].to(x.dtype).unbind(-1)  # twice as fast on a CPU as conv1d, and L may be 0
        out = sum(whole[:, i : i + length] * tap for i, tap in enumerate(taps))
        if lengths is None:
            return out, whole[:, length:].clone()
        places = lengths[:, None] + torch.arange(kept, device=x.device)
        return out, whole.gather(1, places[..., None].expand(n, kept, channels))

    def step(self, x: Tensor, past: Tensor) -> Tensor:
        """The convolution at one more token x (N, 1, C), the past brought up to date in place."""
        whole = torch.cat([past.to(x.dtype), x], 1)
        past.copy_(whole[:, 1:])
        return torch.einsum("nlc,cl->nc", whole, self.weight[:, 0].to(x.dtype))[:, None]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.size}"
