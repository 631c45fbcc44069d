"""Native sparse attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import attention
from ..masks import Causal, Compressed, KeyPadding, Mask, SlidingWindow
from ..masks._band import check_positive
from ..selection import select_blocks
from .moba_attention import kept_keys
from .multihead_attention import MultiheadAttention, only_hides


class NativeSparseAttention(MultiheadAttention):
    """Causal attention in three branches: NSA (Yuan et al. 2025, arXiv:2502.11089).

    - compressed: to one key and value for every `compress_stride` positions, made by an MLP of the
      `compress_length` keys (values) there, with an embedding of their places added;
    - selected: to whole blocks of keys, the first `initial_blocks`, the last `local_blocks` and those with
      the largest compressed attention, `top_k` in all, the same ones for the query heads of a key head;
    - sliding: to the last `window` keys.

    Each branch has keys and values of its own. Their outputs are added with weights from 0 to 1 per query and
    head, sigmoids of a linear map of the query's input. Gradients are exact for the blocks chosen; there is
    none of the choice. Time and memory follow what the branches see.

    The arguments of ``nn.MultiheadAttention`` come first and mean the same, but for ``add_bias_kv`` and
    ``add_zero_attn``, which must be False. The projections of queries, of the selected branch and of the
    output have the names of ``nn.MultiheadAttention``, whose ``state_dict`` loads with ``strict=False`` where
    `num_kv_heads` is `num_heads`.

    Args:
        num_kv_heads: heads of keys and values; divides `num_heads`, which is the default.
        compress_length, compress_stride: the stride divides the length and `block_size`.
        compress_hidden: width of the MLPs; default twice the width of a head.
        block_size, top_k, initial_blocks, local_blocks: as in :func:`attention_ext.select_blocks`.
        window: a positive integer.

    Raises ValueError or TypeError for arguments that don't fit.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *args: Any,
        num_kv_heads: int | None = None,
        compress_length: int = 32,
        compress_stride: int = 16,
        compress_hidden: int | None = None,
        block_size: int = 64,
        top_k: int = 16,
        initial_blocks: int = 1,
        local_blocks: int = 2,
        window: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, *args, **kwargs)
        if self._extra_keys:
            name = "add_zero_attn" if self.add_zero_attn else "add_bias_kv"
            raise ValueError(f"{name}: expected False with NativeSparseAttention, got True")
        self.num_kv_heads = (
            num_heads if num_kv_heads is None else check_positive("num_kv_heads", num_kv_heads)
        )
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads {num_heads}, got {num_kv_heads}")
        self.compress_length = check_positive("compress_length", compress_length)
        self.compress_stride = check_positive("compress_stride", compress_stride)
        self.block_size, self.top_k = check_positive("block_size", block_size), check_positive("top_k", top_k)
        self.initial_blocks, self.local_blocks = initial_blocks, local_blocks
        self.window = check_positive("window", window)
        self._check_blocks()
        self._make_branches(self.head_dim * 2 if compress_hidden is None else compress_hidden)

    def _check_blocks(self) -> None:
        stride = self.compress_stride
        for name, size in (("compress_length", self.compress_length), ("block_size", self.block_size)):
            if size % stride:
                raise ValueError(f"{name}: expected a multiple of compress_stride {stride}, got {size}")
        if (
            self.initial_blocks < 0
            or self.local_blocks < 1
            or self.top_k < self.initial_blocks + self.local_blocks
        ):
            raise ValueError(
                "top_k: expected at least initial_blocks (0 or more) + local_blocks (1 or more), got "
                f"{self.top_k} for {self.initial_blocks} + {self.local_blocks}"
            )

    def _make_branches(self, hidden: int) -> None:
        weight = self.out_proj.weight
        made = {"device": weight.device, "dtype": weight.dtype}
        width, bias = self.num_kv_heads * self.head_dim, self.in_proj_bias is not None
        if self.num_kv_heads != self.num_heads:
            self._narrow_projections(width, made)
        self.compressed_key = torch.nn.Linear(self.kdim, width, bias, **made)
        self.compressed_value = torch.nn.Linear(self.vdim, width, bias, **made)
        self.sliding_key = torch.nn.Linear(self.kdim, width, bias, **made)
        self.sliding_value = torch.nn.Linear(self.vdim, width, bias, **made)
        size = (self.compress_length, self.compress_stride, self.head_dim, hidden)
        self.compress_keys = Compression(*size, **made)
        self.compress_values = Compression(*size, **made)
        self.gates = torch.nn.Linear(self.embed_dim, 3 * self.num_heads, **made)

    def _narrow_projections(self, width: int, made: dict[str, Any]) -> None:
        """Parameters for keys and values of fewer heads, in the place of torch's."""
        e = self.embed_dim
        if self.in_proj_weight is not None:
            self.in_proj_weight = torch.nn.Parameter(torch.empty(e + 2 * width, e, **made))
        else:
            self.k_proj_weight = torch.nn.Parameter(torch.empty(width, self.kdim, **made))
            self.v_proj_weight = torch.nn.Parameter(torch.empty(width, self.vdim, **made))
        if self.in_proj_bias is not None:
            self.in_proj_bias = torch.nn.Parameter(torch.empty(e + 2 * width, **made))
        self._reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | Mask | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend from ``query`` to ``key`` and ``value``, each query to what is not after it.

        The last query stands at the last key. Shapes are those of :class:`attention_ext.MultiheadAttention`.

        Args:
            key_padding_mask: (N, S), or (S) unbatched; bool, True = hidden, or float, of 0 and -inf. Hidden
                keys and values count as 0 where they are compressed with others.
            need_weights: must be False: the branches have no weights of the keys in common.
            attn_mask: None or ``masks.Causal()``, or anything with ``is_causal=True``, which says that it is
                causal.

        Returns:
            The output, shaped as ``query``, and None.

        Raises:
            TypeError: a wrong dtype, or a nested tensor.
            ValueError: a wrong shape, or a mask or weights that it doesn't do.
        """
        if need_weights:
            raise ValueError("need_weights: expected False with NativeSparseAttention, got True")
        if not (attn_mask is None or is_causal or (isinstance(attn_mask, Mask) and attn_mask == Causal())):
            raise ValueError("attn_mask: expected None, masks.Causal(), or a causal one and is_causal=True")
        batched = self._check_arguments(query, key, value, key_padding_mask, None, False)
        if not batched:
            unique = {id(x): x.unsqueeze(0) for x in (query, key, value)}
            query, key, value = (unique[id(x)] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch_first = self.batch_first or not batched
        keep = _only_kept(key_padding_mask)
        q, k, v = self._project(query, key, value, batch_first)
        compressed, mask = self._compressed(q, key, value, keep, batch_first)
        padding = None if keep is None else KeyPadding(keep)
        selected = self._attend(q, k, v, _both(mask, padding))
        near = SlidingWindow(self.window - 1, 0)
        sliding_key = self._heads(self.sliding_key(key), batch_first)
        sliding_value = self._heads(self.sliding_value(value), batch_first)
        sliding = self._attend(q, sliding_key, sliding_value, _both(near, padding))
        gates = torch.sigmoid(self._heads(self.gates(query), batch_first, self.num_heads))
        attended = sum(gates[..., n : n + 1] * x for n, x in enumerate((compressed, selected, sliding)))
        output = self._join_heads(attended.to(q.dtype), batch_first)
        return (output if batched else output.squeeze(0)), None

    def _compressed(
        self, q: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, batch_first: bool
    ) -> tuple[Tensor, Mask]:
        """The compressed branch, and the blocks that its keys choose."""
        k = self._heads(self.compressed_key(key), batch_first)
        v = self._heads(self.compressed_value(value), batch_first)
        if keep is not None:
            hidden = ~keep[:, None, :, None]
            k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        k, v = self.compress_keys(k), self.compress_values(v)
        stretches = (self.compress_length, self.compress_stride, key.shape[1 if batch_first else 0])
        mask: Mask = Compressed(*stretches)
        if keep is not None:
            keep = _any_of_each(keep, self.compress_length, self.compress_stride)
            mask = mask & KeyPadding(keep)
        chosen = select_blocks(
            q,
            k,
            self.block_size,
            self.top_k,
            share_heads=True,
            initial_blocks=self.initial_blocks,
            local_blocks=self.local_blocks,
            key_keep=keep,
            compressed=stretches,
        )
        return self._attend(q, k, v, mask), chosen

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return attention(q, k, v, mask=mask, dropout_p=float(self.dropout) if self.training else 0.0)

    def _heads(self, x: Tensor, batch_first: bool, heads: int | None = None) -> Tensor:
        """(N, L, heads * D) or (L, N, heads * D) as (N, heads, L, D); heads None = num_kv_heads."""
        split = x.unflatten(-1, (self.num_kv_heads if heads is None else heads, -1))
        return split.permute((0, 2, 1, 3) if batch_first else (1, 2, 0, 3))

    def _project(self, query: Tensor, key: Tensor, value: Tensor, batch_first: bool) -> tuple[Tensor, ...]:
        if self.num_kv_heads == self.num_heads:
            return super()._project(query, key, value, batch_first)
        sizes = [self.embed_dim] + [self.num_kv_heads * self.head_dim] * 2
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(sizes)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q, k, v = (F.linear(*args) for args in zip((query, key, value), weights, biases, strict=True))
        return (
            self._heads(q, batch_first, self.num_heads),
            self._heads(k, batch_first),
            self._heads(v, batch_first),
        )

    def extra_repr(self) -> str:
        return (
            f"num_kv_heads={self.num_kv_heads}, compress_length={self.compress_length}, "
            f"compress_stride={self.compress_stride}, block_size={self.block_size}, top_k={self.top_k}, "
            f"initial_blocks={self.initial_blocks}, local_blocks={self.local_blocks}, window={self.window}"
        )


class Compression(torch.nn.Module):
    """One key (or value) for each stretch of `length` positions, `stride` apart.

    It is an MLP of the keys there, each plus an embedding of its place in the stretch.
    """

    def __init__(
        self,
        length: int,
        stride: int,
        dim: int,
        hidden: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.length, self.stride = length, stride
        self.position = torch.nn.Parameter(torch.empty(length, dim, **made))
        torch.nn.init.normal_(self.position, std=0.02)
        self.inner = torch.nn.Linear(length * dim, hidden, **made)
        self.outer = torch.nn.Linear(hidden, dim, **made)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, L, D) to (N, H, (L - length) // stride + 1, D); no key where L is below the length."""
        if x.shape[2] < self.length:
            return x[:, :, :0]
        stretches = x.unfold(2, self.length, self.stride).transpose(-1, -2)
        return self.outer(F.silu(self.inner((stretches + self.position).flatten(-2))))


def _both(mask: Mask, padding: Mask | None) -> Mask:
    return mask if padding is None else mask & padding


def _any_of_each(keep: Tensor, length: int, stride: int) -> Tensor:
    """Whether a stretch has a key that is kept."""
    if keep.shape[1] < length:
        return keep[:, :0]
    return keep.unfold(1, length, stride).any(-1)


def _only_kept(key_padding_mask: Tensor | None) -> Tensor | None:
    keep = kept_keys(key_padding_mask)
    if keep is None or not key_padding_mask.is_floating_point() or torch.compiler.is_compiling():
        return keep
    if not only_hides(key_padding_mask, keep, wait=True):
        raise ValueError("key_padding_mask: expected bool, or float of 0 and -inf without a gradient")
    return keep
