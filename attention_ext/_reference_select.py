"""The selection of blocks as plain torch formulas; `attention_ext.reference` shows it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from .masks import Causal, Mask, Selected


def select_blocks(
    query: Tensor,
    key: Tensor,
    block_size: int,
    top_k: int,
    *,
    causal: bool = True,
    share_heads: bool = False,
    initial_blocks: int = 0,
    local_blocks: int = 1,
    query_block_size: int = 1,
    key_keep: Tensor | None = None,
    compressed: tuple[int, int, int] | None = None,
    scale: float | None = None,
) -> Mask:
    """`attention_ext.select_blocks` as a formula: the same arguments and results."""
    _, Hq, Lq, keys = _checks.check_qkv(query, key, key)
    missing = (None,) * (4 - query.dim())
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = query[missing].detach().to(dtype), key[missing].detach().to(dtype)
    keep = key.new_ones(key.shape[0], keys, dtype=torch.bool) if key_keep is None else key_keep
    Lk = keys if compressed is None else compressed[2]
    blocks, rows = -(-Lk // block_size), -(-Lq // query_block_size)
    position = torch.arange(rows, device=key.device) * query_block_size + Lk - Lq
    group = Hq // max(1, key.shape[1])
    if compressed is None:
        query = _sums(query, query_block_size)
        scores, counts = _scores_of_means(query, key, keep, block_size, group, share_heads)
    else:
        scores = _scores_by_probability(query, key, keep, position, block_size, compressed, causal, scale)
        scores = scores.unflatten(1, (-1, group)).sum(2) if share_heads else scores
        counts = key.new_ones(key.shape[0], blocks, dtype=torch.bool)

    n, own = torch.arange(blocks, device=key.device), (position // block_size)[:, None]
    visible = (n <= own) if causal else (own == own).expand(rows, blocks)
    fixed = visible & ((n < initial_blocks) | ((n <= own) & (n > own - local_blocks)))
    possible = visible & counts[:, None, None]
    scores = torch.where(scores.isnan(), -math.inf, scores)
    # The best first; then, among the fixed ones, the possible ones and the rest, in this order.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    place = (fixed * 2).maximum(possible * 1).expand(scores.shape)
    kinds = place.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    chosen = order.gather(-1, kinds)[..., :top_k]
    chosen = torch.where(place.gather(-1, chosen) > 0, chosen, blocks).sort(dim=-1).values
    chosen = F.pad(chosen, (0, top_k - chosen.shape[-1]), value=blocks)
    indices = torch.where(chosen == blocks, -1, chosen).to(torch.int32)
    selected = Selected(indices, block_size, query_block_size, group if share_heads else 1)
    return selected & Causal() if causal else selected


def _sums(t: Tensor, size: int) -> Tensor:
    """Sums of `size` neighbours in dimension 2; of fewer at the end."""
    padded = F.pad(t, (0, 0, 0, -t.shape[2] % size))
    return padded.unflatten(2, (-1, size)).sum(3)


def _scores_of_means(
    query: Tensor, key: Tensor, keep: Tensor, block_size: int, group: int, share_heads: bool
) -> tuple[Tensor, Tensor]:
    """Products of queries and the means of blocks, and which blocks have keys that count, (B, blocks)."""
    counted = keep[:, None, :, None]
    counts = _sums(counted.to(key.dtype), block_size)
    means = _sums(torch.where(counted, key, 0.0), block_size) / counts.clamp(min=1)
    if share_heads:
        query = query.unflatten(1, (-1, group)).sum(2)
    else:
        means = means.repeat_interleave(group, dim=1)
    return query @ means.transpose(-1, -2), counts[:, 0, :, 0] > 0


def _scores_by_probability(
    query: Tensor,
    key: Tensor,
    keep: Tensor,
    position: Tensor,
    block_size: int,
    compressed: tuple[int, int, int],
    causal: bool,
    scale: float | None,
) -> Tensor:
    """For each head the attention probabilities of compressed keys, added up over the blocks they cover."""
    length, stride, Lk = compressed
    key = key.repeat_interleave(query.shape[1] // max(1, key.shape[1]), dim=1)
    c, n = (torch.arange(size, device=key.device) for size in (key.shape[2], -(-Lk // block_size)))
    seen = keep[:, None, None]
    if causal:
        seen = seen & (c * stride + length - 1 <= position[:, None])
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.where(seen, scores, -math.inf)
    probability = torch.where(seen.any(-1, keepdim=True), torch.softmax(scores, -1), 0.0)
    covered, strides = length // stride, block_size // stride
    first, end = c[:, None].maximum(n * strides), (c[:, None] + covered).minimum((n + 1) * strides)
    shared = (end - first).clamp(min=0).to(query.dtype)
    broken = probability.isnan().to(query.dtype) @ shared > 0  # 0 * NaN would reach every block
    return torch.where(broken, math.nan, probability.nan_to_num(0.0) @ shared)
