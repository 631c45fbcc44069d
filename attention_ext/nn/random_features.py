"""Multi-head linear attention on random features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import Performer, RandomFourier
from .linear_attention import LinearAttention


class _RandomFeatureLayer(LinearAttention):
    """What the layers here share: a feature map with draws, renewed on demand."""

    feature_map: Performer | RandomFourier

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws the features anew, in place, from `generator` or else torch's own. States are void then."""
        self.feature_map.redraw(generator)


class PerformerAttention(_RandomFeatureLayer):
    """Softmax attention estimated with FAVOR+ (Choromanski et al. 2020, https://arxiv.org/abs/2009.14794).

    A :class:`LinearAttention`: the same arguments, states and steps. ``state_dict`` has the draws besides the
    parameters of ``nn.MultiheadAttention``, as ``feature_map.projection``; :meth:`redraw` renews them.

    Args:
        embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in ``nn.MultiheadAttention``.
        dropout, add_bias_kv, add_zero_attn: expected to be off.
        num_features, kind: as in :class:`attention_ext.features.Performer`.
        causal, eps: as in :class:`LinearAttention`.

    Raises:
        TypeError, ValueError: as :class:`LinearAttention` and :class:`attention_ext.features.Performer`.
    """

    def __init__(
        self,
        *args: Any,
        num_features: int | None = None,
        kind: str = "softmax",
        causal: bool = False,
        eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, causal=causal, eps=eps, **kwargs)
        weight = self.out_proj.weight
        self.feature_map = Performer(
            self.head_dim, num_features, kind, device=weight.device, dtype=weight.dtype
        )


class RandomFeatureAttention(_RandomFeatureLayer):
    """Random feature attention, RFA (Peng et al. 2021, https://arxiv.org/abs/2103.02143).

    Projected queries and keys are brought to length 1 and multiplied by ``sigma``, a learned weight for each
    head and column that acts as the inverse bandwidth of the Gaussian kernel. With a gate
    ``g_t = sigmoid(gate(x_t))`` for each head, what is past fades::

        S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T,        z_t = g_t z_{t-1} + (1 - g_t) phi(k_t)

    Otherwise a :class:`LinearAttention`: the same arguments, states and steps. Besides the parameters of
    ``nn.MultiheadAttention``, ``state_dict`` has ``sigma``, those of ``gate`` and ``feature_map.projection``.

    Args:
        embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in ``nn.MultiheadAttention``.
        dropout, add_bias_kv, add_zero_attn: expected to be off.
        num_features: as in :class:`attention_ext.features.RandomFourier`.
        causal, eps: as in :class:`LinearAttention`.
        gated: whether there is a gate; causal only.

    Raises:
        TypeError: as :class:`attention_ext.features.RandomFourier`.
        ValueError: as that and :class:`LinearAttention`, and for ``gated`` without ``causal``.
    """

    def __init__(
        self,
        *args: Any,
        num_features: int | None = None,
        causal: bool = False,
        gated: bool = False,
        eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, causal=causal, eps=eps, **kwargs)
        if gated and not causal:
            raise ValueError("gated: expected False where not causal, got True")
        options = {"device": self.out_proj.weight.device, "dtype": self.out_proj.weight.dtype}
        self.feature_map = RandomFourier(self.head_dim, num_features, **options)
        # The map divides by this power, so that scores begin as cosines.
        sigma = torch.full((self.num_heads, 1, self.head_dim), self.head_dim**0.25, **options)
        self.sigma = torch.nn.Parameter(sigma)
        self.gate = torch.nn.Linear(self.kdim, self.num_heads, **options) if gated else None

    def features(self, q: Tensor, k: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor, str]:
        phi_q = self.feature_map.queries(F.normalize(q, dim=-1) * self.sigma)
        phi_k = self.feature_map(F.normalize(k, dim=-1) * self.sigma)
        if decay is not None:
            phi_k = phi_k * -torch.expm1(decay)[..., None]
        return phi_q.to(q.dtype), phi_k.to(k.dtype), "identity"

    def log_decay(self, key: Tensor) -> Tensor | None:
        return None if self.gate is None else F.logsigmoid(self.gate(key)).transpose(1, 2)
