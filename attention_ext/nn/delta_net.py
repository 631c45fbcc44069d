"""DeltaNet and Gated DeltaNet."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..delta import delta_rule, delta_rule_step
from .recurrent_attention import RecurrentAttention, check_state_type, norm_heads, split_heads
from .short_convolution import ShortConvolution


class DeltaNetState(NamedTuple):
    """What :class:`DeltaNet` keeps of the past.

    Attributes:
        S: (N, H, D, Dv), float32 (float64 for float64).
        conv: (N, conv_size - 1, 2 key_dim + value_dim), the last inputs of the convolution, or None.
    """

    S: Tensor
    conv: Tensor | None


class DeltaNet(RecurrentAttention):
    """DeltaNet (Yang et al. 2024, https://arxiv.org/abs/2406.06484): a state that corrects what it holds.

    Queries, keys and values pass a short causal convolution and a silu; queries and keys have length 1; a
    sigmoid, ``beta_proj``, says how much of an old value goes; each head has a root-mean-square norm. Causal
    self-attention: see :class:`RecurrentAttention` for ``forward`` and ``step``.

    Args:
        embed_dim, num_heads, bias, batch_first, device, dtype: as in ``nn.MultiheadAttention``, but that
            there are no biases unless asked for.
        num_value_heads: number of heads of values and states, a multiple of ``num_heads``; None is
            ``num_heads``.
        key_dim, value_dim: width of all heads of keys, and of values; None is ``embed_dim``.
        conv_size: tokens that the convolution sees; None is no convolution.
        gate: whether the output has a swish gate.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = False,
        num_value_heads: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        conv_size: int | None = 4,
        gate: bool = False,
        norm_eps: float = 1e-5,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            num_value_heads=num_value_heads,
            key_dim=embed_dim if key_dim is None else key_dim,
            value_dim=embed_dim if value_dim is None else value_dim,
            gate=gate,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        options = {"device": device, "dtype": dtype}
        self.beta_proj = torch.nn.Linear(embed_dim, self.num_value_heads, bias=False, **options)
        channels = 2 * self.key_dim + self.value_dim
        self.conv = None if conv_size is None else ShortConvolution(channels, conv_size, **options)
        self.norm = torch.nn.RMSNorm(self.value_dim // self.num_value_heads, norm_eps, **options)

    def _log_decay(self, x: Tensor) -> Tensor | None:
        """(N, H, L) for x (N, L, E), or None."""
        return None

    def _attend(
        self, x: Tensor, lengths: Tensor | None, state: DeltaNetState | None
    ) -> tuple[Tensor, DeltaNetState]:
        if state is not None:
            check_state_type(state, DeltaNetState)
        mixed, conv = self._mixed(x), None
        if self.conv is not None:
            mixed, conv = self.conv(mixed, lengths, None if state is None else state.conv)
        out, S = delta_rule(
            *self._heads(mixed),
            self._beta(x),
            decay=self._log_decay(x),
            key_lengths=lengths,
            initial_state=None if state is None else state.S,
            return_state=True,
        )
        return out, DeltaNetState(S, conv)

    def _attend_step(self, x: Tensor, state: DeltaNetState) -> Tensor:
        check_state_type(state, DeltaNetState)
        mixed = self._mixed(x)
        if self.conv is not None:
            mixed = self.conv.step(mixed, state.conv)
        decay = self._log_decay(x)
        return delta_rule_step(
            *(t[:, :, 0] for t in self._heads(mixed)),
            self._beta(x)[:, :, 0],
            state.S,
            decay=None if decay is None else decay[:, :, 0],
        )

    def _finish(self, heads: Tensor) -> Tensor:
        return norm_heads(heads, self.norm)

    def _mixed(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, (N, L, 2 key_dim + value_dim)."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = F.silu(mixed).split([self.key_dim, self.key_dim, self.value_dim], -1)
        q, k = (_unit(split_heads(t, self.num_heads)) for t in (q, k))
        return q, k, split_heads(v, self.num_value_heads)

    def _beta(self, x: Tensor) -> Tensor:
        return self.beta_proj(x).sigmoid().mT


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet (Yang et al. 2024, https://arxiv.org/abs/2412.06464), as in Qwen3-Next.

    A :class:`DeltaNet` whose state also decays, by ``exp(-exp(A_log) * softplus(decay_proj(x) + dt_bias))``
    from token to token, and whose output has a swish gate unless ``gate=False``. The arguments are those of
    :class:`DeltaNet`.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, gate: bool = True, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, gate=gate, **options)
        heads, weight = self.num_value_heads, self.beta_proj.weight
        self.decay_proj = torch.nn.Linear(
            embed_dim, heads, bias=False, device=weight.device, dtype=weight.dtype
        )
        self.A_log = torch.nn.Parameter(weight.new_empty(heads).uniform_(1, 16).log_())
        # As in Mamba-2: softplus(dt_bias) is log-uniform between 1/1000 and 1/10.
        dt = weight.new_empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp_()
        self.dt_bias = torch.nn.Parameter(dt + torch.log(-torch.expm1(-dt)))

    def _log_decay(self, x: Tensor) -> Tensor:
        rate = self.decay_proj(x)
        dtype = torch.float64 if rate.dtype == torch.float64 else torch.float32
        rate = F.softplus(rate.to(dtype) + self.dt_bias.to(dtype))
        return (-self.A_log.to(dtype).exp() * rate).mT


def _unit(x: Tensor) -> Tensor:
    """Each row divided by its length, and short of that where it is near 0."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
