"""Multi-scale retention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..linear import linear_attention, linear_attention_step
from .recurrent_attention import RecurrentAttention, check_state_type, split_heads


class RetentionState(NamedTuple):
    """What :class:`Retention` keeps of the past.

    Attributes:
        S: (N, H, D, Dv), float32 (float64 for float64).
        position: (N,), int64: how many tokens came before.
    """

    S: Tensor
    position: Tensor


class Retention(RecurrentAttention):
    """Multi-scale retention of RetNet (Sun et al. 2023, https://arxiv.org/abs/2307.08621).

    Queries and keys are rotated by their positions; head h forgets at the rate ``gamma = 1 - 2**(-5 - h)``;
    each head has a group norm of its own, and the output a swish gate. Causal self-attention: see
    :class:`RecurrentAttention` for ``forward`` and ``step``.

    Args:
        embed_dim, num_heads, bias, batch_first, device, dtype: as in ``nn.MultiheadAttention``, but that
            there are no biases unless asked for.
        key_dim: width of all heads of keys; None is ``embed_dim``. A head's is even.
        value_dim: width of all heads of values; None is ``embed_dim``. (The authors' models have twice that.)
        base: of the rotation's wavelengths.
        norm_eps: of the group norm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = False,
        key_dim: int | None = None,
        value_dim: int | None = None,
        base: float = 10_000.0,
        norm_eps: float = 1e-5,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            key_dim=embed_dim if key_dim is None else key_dim,
            value_dim=embed_dim if value_dim is None else value_dim,
            gate=True,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self.head_dim = self.key_dim // num_heads
        if self.head_dim % 2 != 0:
            raise ValueError(f"key_dim: expected an even number for each head, got {self.head_dim}")
        self.base = base
        self.norm = torch.nn.GroupNorm(num_heads, self.value_dim, norm_eps, device=device, dtype=dtype)

    def _attend(
        self, x: Tensor, lengths: Tensor | None, state: RetentionState | None
    ) -> tuple[Tensor, RetentionState]:
        if state is None:
            position = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        else:
            check_state_type(state, RetentionState)
            position = state.position
        out, S = linear_attention(
            *self._project(x, position),
            feature_map="identity",
            causal=True,
            decay=self._log_decay(x.device),
            normalize=False,
            scale=self.head_dim**-0.5,
            key_lengths=lengths,
            initial_state=None if state is None else state.S,
            return_state=True,
        )
        return out, RetentionState(S, position + (x.shape[1] if lengths is None else lengths))

    def _attend_step(self, x: Tensor, state: RetentionState) -> Tensor:
        check_state_type(state, RetentionState)
        out = linear_attention_step(
            *(t[:, :, 0] for t in self._project(x, state.position)),
            state.S,
            feature_map="identity",
            decay=self._log_decay(x.device),
            normalize=False,
            scale=self.head_dim**-0.5,
        )
        state.position.add_(1)
        return out

    def _finish(self, heads: Tensor) -> Tensor:
        return self.norm(heads.flatten(2).flatten(0, 1)).unflatten(0, heads.shape[:2])

    def _project(self, x: Tensor, position: Tensor) -> list[Tensor]:
        """Rotated queries and keys, and values, (N, H, L, D), of tokens from `position` (N,) on."""
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        # In float64: an angle in float32 would be off by 1/250 at position 65,536.
        exponents = torch.linspace(0, 1, self.head_dim // 2, dtype=torch.float64, device=x.device)
        places = position[:, None] + torch.arange(x.shape[1], device=x.device)
        angles = places[:, None, :, None] * self.base**-exponents
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        return [_rotate(q, cos, sin), _rotate(k, cos, sin), v]

    def _log_decay(self, device: torch.device) -> Tensor:
        heads = torch.arange(self.num_heads, dtype=torch.float64, device=device)
        return torch.log1p(-torch.exp2(-5 - heads))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of neighbouring features turned by its angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
