"""The base of layers whose attention weights are of low rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import refuse_weights
from .multihead_attention import MultiheadAttention
from .padding import hidden_tokens


class LowRankAttention(MultiheadAttention):
    """Multi-head attention over a summary of the keys, whose scores don't belong to pairs of tokens.

    The arguments of ``nn.MultiheadAttention`` come first and mean the same; its parameters are the first ones
    of ``state_dict``. Nothing here is causal, and there are no masks but of padding.

    A derived layer defines :meth:`attend`.

    Raises ValueError for ``add_bias_kv`` or ``add_zero_attn``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._extra_keys:
            name = "add_zero_attn" if self.add_zero_attn else "add_bias_kv"
            raise ValueError(f"{name}: expected False with {type(self).__name__}, got True")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, one_sequence: bool) -> Tensor:
        """The attention (N, H, L, D) of projections (N, H, L, D) to (N, H, S, D).

        keep: bool (N, S), False where padded; or None. one_sequence: whether query and key are one tensor.
        """
        raise NotImplementedError

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
    ) -> tuple[Tensor, None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E) unbatched.
            key: (S, N, kdim), (N, S, kdim) or (S, kdim).
            value: (S, N, vdim), (N, S, vdim) or (S, vdim).
            key_padding_mask: (N, S), or (S) unbatched; True, or -inf, = masked out.
            need_weights, attn_mask, is_causal: expected to be False, None and False.
            average_attn_weights: without effect.

        Returns:
            The output, shaped as ``query``, and None.

        Raises:
            TypeError: a wrong dtype.
            ValueError: a wrong shape, or an argument that can't be honoured.
        """
        refuse_weights(self, False, need_weights, attn_mask, is_causal)
        batched = self._check_arguments(query, key, value, key_padding_mask, None, False)
        one_sequence = query is key
        if not batched:
            unique = {id(x): x.unsqueeze(0) for x in (query, key, value)}
            query, key, value = (unique[id(x)] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch_first = self.batch_first or not batched
        keep = None if key_padding_mask is None else ~hidden_tokens(key_padding_mask)
        q, k, v = self._project(query, key, value, batch_first)
        if keep is not None:
            k, v = (torch.where(keep[:, None, :, None], x, 0.0) for x in (k, v))
        heads = self.attend(q, k, v, keep, one_sequence).transpose(1, 2).flatten(2)
        output = F.linear(heads, self.out_proj.weight, self.out_proj.bias)
        if not batch_first:
            output = output.transpose(0, 1)
        return (output if batched else output.squeeze(0)), None

    def _reset_parameters(self) -> None:
        # False keeps torch's encoder layers from their fast path, which would compute softmax attention.
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False
