"""Longformer's attention: windows, and global tokens with projections of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from .. import masks
from ..masks import Mask
from .multihead_attention import MultiheadAttention
from .sparse_attention import SparseAttention, kept, window_mask

_WEIGHTS = ("global_q_proj_weight", "global_k_proj_weight", "global_v_proj_weight")
_BIAS = "global_in_proj_bias"


class LongformerAttention(SparseAttention):
    """Attention to the keys near a query and to global tokens, which see all (Longformer, Beltagy et al.
    2020, https://arxiv.org/abs/2004.05150).

    A global token attends to all keys by query, key and value projections of its own: `global_q_proj_weight`
    (E, E), `global_k_proj_weight` (E, kdim), `global_v_proj_weight` (E, vdim), `global_in_proj_bias` (3E,).
    They start as copies of the others, as in the paper, also where a ``state_dict`` without them is loaded,
    such as one of ``nn.MultiheadAttention``. The position of query i is i + S - L. Time and memory are linear
    in the lengths; global tokens add theirs times the number of keys.

    Args:
        window: an int w, for w keys on either side (Transformers' ``attention_window`` counts both: 2w); or
            (left, right), each an int or None (unbounded).
        global_tokens: the number of the first positions that are global, or a sequence of positions.
    """

    def __init__(
        self,
        *args: Any,
        window: int | tuple[int | None, int | None],
        global_tokens: int | Sequence[int] = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, pattern={"window": window, "global_tokens": global_tokens}, **kwargs)

    def _set_pattern(
        self, window: int | tuple[int | None, int | None], global_tokens: int | Sequence[int] = 0
    ) -> None:
        near = window_mask(window, False, 1)
        self.window, self.global_tokens = window, masks.Global(global_tokens).tokens
        self._near = near
        for name, value in zip(_WEIGHTS, self._own_weights(), strict=True):
            self.register_parameter(name, Parameter(value.detach().clone()))
        bias = self.in_proj_bias
        self.register_parameter(_BIAS, None if bias is None else Parameter(bias.detach().clone()))

    def _own_weights(self) -> tuple[Tensor, ...]:
        """The projections of tokens that are not global."""
        if self.in_proj_weight is not None:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = [state_dict.get(prefix + name) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
        if prefix + "in_proj_weight" in state_dict:
            own = state_dict[prefix + "in_proj_weight"].chunk(3)
        own = {**dict(zip(_WEIGHTS, own, strict=True)), _BIAS: state_dict.get(prefix + "in_proj_bias")}
        if not any(prefix + name in state_dict for name in own):
            state_dict.update({prefix + name: value for name, value in own.items() if value is not None})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def pattern(self, Lq: int, Lk: int) -> Mask:
        return self._near | masks.Global(self.global_tokens)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | Mask | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        global_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`attention_ext.MultiheadAttention.forward`, with one argument more.

        Args:
            global_mask: bool (N, S), or (S) unbatched: the global tokens of each row of the batch, in place
                of those given to the constructor. Their number is read, which breaks a graph of
                ``torch.compile``.

        Raises:
            TypeError, ValueError: as there, and for a ``global_mask`` of another dtype or shape.
        """
        if global_mask is not None:
            global_mask = self._check_global_mask(global_mask, key)
        return self._forward(
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
            global_mask=global_mask,
        )

    def _check_global_mask(self, global_mask: Tensor, key: Tensor) -> Tensor:
        if not isinstance(global_mask, Tensor) or global_mask.dtype != torch.bool:
            got = global_mask.dtype if isinstance(global_mask, Tensor) else type(global_mask).__name__
            raise TypeError(f"global_mask: expected a bool tensor, got {got}")
        expected = tuple(key.shape[:-1] if self.batch_first or key.dim() == 2 else key.shape[1::-1])
        if tuple(global_mask.shape) != expected:
            raise ValueError(f"global_mask: expected shape {expected}, got {tuple(global_mask.shape)}")
        return torch.atleast_2d(global_mask)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | Mask | None,
        need_weights: bool,
        batch_first: bool,
        global_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self._project(query, key, value, batch_first)
        Lq, Lk = q.shape[2], k.shape[2]
        if global_mask is None:
            seen, positions = _fixed_tokens(self._near, self.global_tokens, Lk, q.device)
        else:
            seen = self._near | masks.Dense(global_mask[:, None, None, :])
            positions = _positions(global_mask)
        mask, bias = MultiheadAttention._masks(self, q, k, key_padding_mask, attn_mask)
        attended, weights = self._attend(q, k, v, seen if mask is None else seen & mask, bias, need_weights)

        rows = positions - (Lk - Lq)
        valid = (positions >= 0) & (rows >= 0)
        rows = rows.clamp(min=0)
        if not rows.numel() or not Lq:
            return attended, weights
        x = query if batch_first else query.transpose(0, 1)
        if attn_mask is not None:
            attn_mask = _rows_of(attn_mask, rows, (*q.shape[:2], Lq, Lk))
        make = self._few_global if rows.shape[1] < self.head_dim else self._many_global
        seen_by_global, their_weights = make(
            _take(x, rows), key, value, key_padding_mask, attn_mask, need_weights, batch_first
        )
        attended = _put(attended, rows, valid, seen_by_global)
        return attended, weights if weights is None else _put(weights, rows, valid, their_weights)

    def _many_global(
        self,
        tokens: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | Mask | None,
        need_weights: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What the global tokens (N, G, E) see: (N, H, G, D), and the weights if wanted."""
        b_q, b_k, b_v = self._global_biases()
        q = self._heads(F.linear(tokens, self.global_q_proj_weight, b_q), True)
        k = self._heads(F.linear(key, self.global_k_proj_weight, b_k), batch_first)
        v = self._heads(F.linear(value, self.global_v_proj_weight, b_v), batch_first)
        mask, bias = MultiheadAttention._masks(self, q, k, key_padding_mask, attn_mask)
        return self._attend(q, k, v, mask, bias, need_weights)

    def _few_global(
        self,
        tokens: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | Mask | None,
        need_weights: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The same without a projection of every key and value, which costs more than few tokens do.

        (W k + b) . q is k . (W^T q), up to what a softmax ignores, and sum_j p_j (W v_j + b) is
        W (sum_j p_j v_j) + b sum_j p_j.
        """
        b_q, _, b_v = self._global_biases()
        heads = (self.num_heads, self.head_dim)
        q = self._heads(F.linear(tokens, self.global_q_proj_weight, b_q), True)
        q = q @ self.global_k_proj_weight.unflatten(0, heads)  # (N, H, G, kdim)
        q = q * (self.kdim / self.head_dim) ** 0.5  # the scores are scaled by kdim**-0.5
        k, v = (x if batch_first else x.transpose(0, 1) for x in (key, value))
        if b_v is not None:
            v = F.pad(v, (0, 1), value=1.0)  # the last column of the result is sum_j p_j
        k, v = k.unsqueeze(1), v.unsqueeze(1)
        mask, bias = MultiheadAttention._masks(self, q, k, key_padding_mask, attn_mask)
        sums, weights = self._attend(q, k, v, mask, bias, need_weights)
        attended = sums[..., : self.vdim] @ self.global_v_proj_weight.unflatten(0, heads).mT
        if b_v is not None:
            attended = attended + sums[..., self.vdim :] * b_v.unflatten(0, heads)[:, None]
        return attended, weights

    def _global_biases(self) -> tuple[Tensor | None, ...]:
        bias = self.global_in_proj_bias
        return (None, None, None) if bias is None else bias.chunk(3)

    def extra_repr(self) -> str:
        return f"window={self.window}, global_tokens={self.global_tokens}"


@kept
def _fixed_tokens(
    near: Mask, tokens: int | tuple[int, ...], Lk: int, device: torch.device
) -> tuple[Mask, Tensor]:
    """Pairs that are near or whose key is one of the tokens, and the tokens' positions (1, G)."""
    if isinstance(tokens, int):
        positions = torch.arange(min(tokens, Lk), device=device)
    else:
        positions = torch.tensor([n for n in tokens if n < Lk], dtype=torch.int64, device=device)
    seen = torch.zeros(Lk, dtype=torch.bool, device=device).index_fill(0, positions, True)
    return near | masks.Dense(seen), positions[None]


def _positions(global_mask: Tensor) -> Tensor:
    """The positions of the global tokens, (N, G), those of rows that have fewer filled up with -1."""
    most = int(global_mask.sum(1).max()) if global_mask.shape[0] else 0
    order = global_mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(global_mask.gather(1, order), order, -1)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (N or 1, G) of x (N, L, E)."""
    if rows.shape[0] == 1:
        return x.index_select(1, rows[0])
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))


def _put(x: Tensor, rows: Tensor, valid: Tensor, values: Tensor) -> Tensor:
    """x (N, H, L, D) with `values` (N, H, G, D) in the rows (N or 1, G) that are valid; those differ."""
    n, heads, length, width = x.shape
    hit = torch.zeros(rows.shape[0], length, dtype=torch.int64, device=x.device)
    hit = hit.scatter_add(1, rows, valid.long())[:, None, :, None] > 0
    values = values.masked_fill(~valid[:, None, :, None], 0.0).to(x.dtype)
    index = rows[:, None, :, None].expand(n, heads, -1, width)
    return x.masked_fill(hit, 0.0).scatter_add(2, index, values)


def _rows_of(attn_mask: Tensor | Mask, rows: Tensor, sizes: tuple[int, int, int, int]) -> Tensor | Mask:
    """What attn_mask says of the queries `rows` (N or 1, G); sizes: N, H, L, S."""
    n, heads, Lq, Lk = sizes
    if isinstance(attn_mask, Mask):
        keys = torch.arange(Lk, device=rows.device)[None, :]
        parts = [attn_mask._allowed(own[:, None], keys, Lq, Lk) for own in rows]
        if len(parts) > 1:
            parts = [part[min(b, part.shape[0] - 1)][None] for b, part in enumerate(parts)]
        return masks.Dense(torch.cat(parts))
    if attn_mask.dim() == 2 and rows.shape[0] == 1:
        return attn_mask.index_select(0, rows[0])
    by_head = (
        attn_mask.unflatten(0, (n, heads)) if attn_mask.dim() == 3 else attn_mask.expand(n, heads, Lq, Lk)
    )
    index = rows[:, None, :, None].expand(n, heads, -1, Lk)
    return by_head.gather(2, index).flatten(0, 1)
