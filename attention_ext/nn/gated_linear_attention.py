"""Gated linear attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..linear import linear_attention, linear_attention_step
from .recurrent_attention import RecurrentAttention, norm_heads, split_heads


class GatedLinearAttention(RecurrentAttention):
    """Gated linear attention (Yang et al. 2023, https://arxiv.org/abs/2312.06635).

    Each channel of a key decays by ``sigmoid(W2 W1 x + b) ** (1 / temperature)`` from token to token; each
    head has a root-mean-square norm, and the output a swish gate. Causal self-attention: see
    :class:`RecurrentAttention` for ``forward`` and ``step``. The state is S (N, H, D, Dv), float32 (float64
    for float64).

    Args:
        embed_dim, num_heads, bias, batch_first, device, dtype: as in ``nn.MultiheadAttention``, but that
            there are no biases unless asked for.
        key_dim: width of all heads of keys; None is ``embed_dim // 2``.
        value_dim: width of all heads of values; None is ``embed_dim``.
        gate_rank: rows of W1.
        temperature: positive; the larger, the longer the memory.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = False,
        key_dim: int | None = None,
        value_dim: int | None = None,
        gate_rank: int = 16,
        temperature: float = 16.0,
        norm_eps: float = 1e-5,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            key_dim=embed_dim // 2 if key_dim is None else key_dim,
            value_dim=embed_dim if value_dim is None else value_dim,
            gate=True,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        if gate_rank < 1:
            raise ValueError(f"gate_rank: expected at least 1, got {gate_rank}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.temperature = temperature
        options = {"device": device, "dtype": dtype}
        self.decay_proj = torch.nn.Sequential(
            torch.nn.Linear(embed_dim, gate_rank, bias=False, **options),
            torch.nn.Linear(gate_rank, self.key_dim, **options),
        )
        self.norm = torch.nn.RMSNorm(self.value_dim // num_heads, norm_eps, **options)

    def _attend(self, x: Tensor, lengths: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, decay = self._project(x)
        return linear_attention(
            q,
            k,
            v,
            feature_map="identity",
            causal=True,
            decay=decay,
            normalize=False,
            scale=q.shape[-1] ** -0.5,
            key_lengths=lengths,
            initial_state=state,
            return_state=True,
        )

    def _attend_step(self, x: Tensor, state: Tensor) -> Tensor:
        q, k, v, decay = (t[:, :, 0] for t in self._project(x))
        return linear_attention_step(
            q,
            k,
            v,
            state,
            feature_map="identity",
            decay=decay,
            normalize=False,
            scale=q.shape[-1] ** -0.5,
        )

    def _finish(self, heads: Tensor) -> Tensor:
        return norm_heads(heads, self.norm)

    def _project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys, values and log-decays, (N, H, L, D)."""
        q, k, v = (p(x) for p in (self.q_proj, self.k_proj, self.v_proj))
        gate = self.decay_proj(x)
        gate = gate if gate.dtype == torch.float64 else gate.float()
        decay = torch.nn.functional.logsigmoid(gate) / self.temperature
        return [split_heads(t, self.num_heads) for t in (q, k, v, decay)]
