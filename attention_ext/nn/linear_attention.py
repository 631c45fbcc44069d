"""Multi-head linear attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops.linear_attention import FEATURE_MAPS
from ..features import FeatureMap
from ..linear import State, linear_attention, linear_attention_step
from .arguments import check_token, refuse_weights
from .multihead_attention import MultiheadAttention
from .padding import packing


class LinearAttention(MultiheadAttention):
    """Multi-head linear attention (Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236).

    The arguments of ``nn.MultiheadAttention`` come first and mean the same; parameters, initial weights and
    ``state_dict`` are its own, so that weights can be loaded from one. Time and memory are linear in the
    lengths. Weights of attention are never computed: what needs them raises.

    Where causal, the sums over the past are a state that :meth:`forward` returns on demand and takes up
    again, and that :meth:`step` carries from token to token, in constant time and memory. A state is what
    :func:`attention_ext.linear_attention` returns, and has the batch size 1 for unbatched input.

    A derived layer overrides :meth:`features`, :meth:`log_decay` or :meth:`finish`; training and steps
    follow.

    Args:
        embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in ``nn.MultiheadAttention``.
        dropout, add_bias_kv, add_zero_attn: expected to be off.
        feature_map: "identity", "elu" (elu + 1), "relu", "softmax", or a module from (..., D) to
            (..., features).
        causal: query t sees keys up to t.
        normalize: divide by the sum of the weights.
        eps: at least 0, added to that sum.

    Raises:
        TypeError: a feature map that is neither a name nor a module.
        ValueError: dropout, add_bias_kv or add_zero_attn, or an unknown feature map.
    """

    def __init__(
        self,
        *args: Any,
        feature_map: str | torch.nn.Module = "elu",
        causal: bool = False,
        normalize: bool = True,
        eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, off in (("dropout", 0.0), ("add_zero_attn", False)):
            if getattr(self, name) != off:
                raise ValueError(f"{name}: expected {off} without weights, got {getattr(self, name)}")
        if self.bias_k is not None:
            raise ValueError("add_bias_kv: expected False without weights, got True")
        if not isinstance(feature_map, (str, torch.nn.Module)):
            raise TypeError(f"feature_map: expected a name or a module, got {type(feature_map).__name__}")
        if isinstance(feature_map, str) and feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map: expected one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}")
        self.feature_map, self.causal, self.normalize, self.eps = feature_map, causal, normalize, eps

    def features(self, q: Tensor, k: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor, str | FeatureMap]:
        """Projected queries and keys (N, H, L, D) as the operator gets them, and the map it applies itself.

        decay: what :meth:`log_decay` returned.
        """
        if isinstance(self.feature_map, (str, FeatureMap)):
            return q, k, self.feature_map
        return self.feature_map(q), self.feature_map(k), "identity"

    def log_decay(self, key: Tensor) -> Tensor | None:
        """The decay of :func:`attention_ext.linear_attention`, for a key (N, L, kdim) as it came; or None."""
        return None

    def finish(self, attended: Tensor, query: Tensor) -> Tensor:
        """What ``out_proj`` gets of the heads (N, H, L, D), for a query (N, L, E) as it came."""
        return attended

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        initial_state: State | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E) unbatched.
            key: (S, N, kdim), (N, S, kdim) or (S, kdim). S = L where causal.
            value: (S, N, vdim), (N, S, vdim) or (S, vdim).
            key_padding_mask: (N, S), or (S) unbatched; bool, True = masked out, or 0 and -inf. Where causal,
                the state stays as it is at a padded token, whose own attention is 0.
            need_weights: expected to be False, the default here.
            attn_mask: expected to be None, but with ``is_causal``.
            average_attn_weights: without effect.
            is_causal: that ``attn_mask``, if there is one, is causal, as the layer is: it is not looked at.
            initial_state: causal only, the state before the first token; None is 0.
            return_state: causal only, also return the last state.

        Returns:
            The output, shaped as ``query``, and the state, or None.

        Raises:
            TypeError: a wrong dtype.
            ValueError: a wrong shape, or an argument that linear attention can't honour.
        """
        refuse_weights(self, self.causal, need_weights, attn_mask, is_causal)
        batched = self._check_arguments(query, key, value, key_padding_mask, None, False)
        if not self.causal and (return_state or initial_state is not None):
            name = "return_state" if return_state else "initial_state"
            raise ValueError(f"{name}: expected with causal=True only")
        if not batched:
            unique = {id(x): x.unsqueeze(0) for x in (query, key, value)}
            query, key, value = (unique[id(x)] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch_first = self.batch_first or not batched

        q, k, v = self._project(query, key, value, batch_first)
        if not batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        attended, state = self._attend(q, k, v, key, packing(key_padding_mask), initial_state, return_state)
        output = self._output(attended, query)
        if not batch_first:
            output = output.transpose(0, 1)
        return (output if batched else output.squeeze(0)), state

    def new_state(self, batch_size: int = 1) -> State:
        """The state before the first token."""
        self._check_causal("new_state")
        with torch.no_grad():
            shape = (batch_size, 0) if self.batch_first else (0, batch_size)
            none = self.out_proj.weight.new_zeros(*shape, self.embed_dim)
            return self.forward(none, none, none, return_state=True)[1]

    def step(self, x: Tensor, state: State) -> Tensor:
        """One more token of self-attention: its output, the state brought up to date in place.

        Args:
            x: (N, E). As there are no derivatives, inside ``torch.no_grad()``.
            state: from :meth:`new_state` or :meth:`forward`. Written to.

        Returns the output (N, E).

        Raises:
            RuntimeError: an input or a weight that requires a derivative.
            ValueError: a layer that isn't causal, or a wrong shape.
        """
        self._check_causal("step")
        check_token(self, x)
        x = x[:, None]
        q, k, v = self._project(x, x, x, batch_first=True)
        decay = self.log_decay(x)
        q, k, name = self.features(q, k, decay)
        if decay is not None and decay.dim() > 1:
            decay = decay[:, :, 0]
        attended = linear_attention_step(
            *(t[:, :, 0] for t in (q, k, v)),
            state,
            feature_map=name,
            decay=decay,
            normalize=self.normalize,
            eps=self.eps,
        )
        return self._output(attended[:, :, None], x)[:, 0]

    def extra_repr(self) -> str:
        name = f"feature_map={self.feature_map!r}, " if isinstance(self.feature_map, str) else ""
        return f"{name}causal={self.causal}, normalize={self.normalize}"

    def _attend(self, q, k, v, key, packed, initial_state, return_state) -> tuple[Tensor, State | None]:
        """The operator on projections (N, H, L, D) and the key (N, L, kdim) as it came."""
        decay = self.log_decay(key)
        q, k, name = self.features(q, k, decay)
        if packed is not None:
            q = packed.pack(q, 2) if self.causal else q
            k, v = packed.pack(k, 2), packed.pack(v, 2)
            decay = decay if decay is None or decay.dim() == 1 else packed.pack(decay, 2)
        result = linear_attention(
            q,
            k,
            v,
            feature_map=name,
            causal=self.causal,
            decay=decay,
            normalize=self.normalize,
            eps=self.eps,
            key_lengths=None if packed is None else packed.lengths,
            initial_state=initial_state,
            return_state=return_state,
        )
        out, state = result if return_state else (result, None)
        return out if packed is None or not self.causal else packed.unpack(out, 2), state

    def _output(self, attended: Tensor, query: Tensor) -> Tensor:
        """(N, L, E) from the heads (N, H, L, D)."""
        heads = self.finish(attended, query).transpose(1, 2).flatten(2)
        return F.linear(heads, self.out_proj.weight, self.out_proj.bias)

    def _check_causal(self, name: str) -> None:
        if not self.causal:
            raise ValueError(f"{name}: expected causal=True, got False")

    def _reset_parameters(self) -> None:
        # False keeps torch's encoder layers from their fast path, which would compute softmax attention.
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False
