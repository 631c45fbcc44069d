"""What attention attends to, without a buffer of queries times keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from ._map_arguments import AttentionMap, chosen_rows, number_of_bins
from ._ops import attention_map as _op  # noqa: F401  registers it
from ._ops import library
from .functional import _autocast, checked_scores
from .masks import NO_MASK, Mask


def attention_map(
    query: Tensor,
    key: Tensor,
    mask: Mask | None = None,
    *,
    rows: Tensor | Sequence[int] | str | None = None,
    bins: int | tuple[int, int] | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> AttentionMap:
    """What the weights of `attention` look like, in memory linear in the sequence lengths.

    One operator makes lse as the forward pass does, then the weights w_ij = exp(s_ij - lse_i) a tile at a
    time, and of each tile all that is asked for; the weights themselves are kept for the chosen rows only.

    Args:
        query: (B, Hq, Lq, D), (Hq, Lq, D) or (Lq, D), in one of the dtypes of `attention`.
        key: (B, Hkv, Lk, D), or without B, or without both.
        mask, bias, scale, softcap, sinks, alibi_slopes: as in :func:`attention`.
        rows: which queries' weights to keep: integers from -Lq to Lq - 1, or "all". None keeps none.
        bins: how many tiles the map is averaged over, along queries and keys: (n, m), or n for both; at most
            one for each query and key. Bin i of n begins at position floor(i * L / n). None makes no tiles.

    Returns:
        :class:`AttentionMap`, whose results lack B or B and H where query does. A masked pair has weight 0,
        and so has all of a query that sees no key; its lse is -inf, or the sink. A tile's mean is over all
        its pairs, masked ones included: times the number of its keys it is the share of attention that goes
        there. Entropy is the sum of -w * log(w) over the keys: 0 where one key gets all, log(n) where n keys
        get the same. What a sink takes is missing in the weights' sum, and no term of the entropy.

    Has no derivative: where an input requires one, it raises outside of torch.no_grad(). Results don't depend
    on the number of threads. Under autocast query and key are cast, and bias where it has query's dtype.

    Raises:
        RuntimeError: a derivative is asked for.
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.
    """
    _checks.check_tensors(query, key, key)
    device = query.device
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        query, key, _, bias = _autocast(query, key, key, bias)
    (B, Hq, Lq, Lk), bias, scale = checked_scores(
        query, key, key, mask, bias, scale, softcap, sinks, alibi_slopes
    )
    chosen = None if rows is None else chosen_rows(rows, Lq, device)
    tiles = [] if bins is None else number_of_bins(bins, Lq, Lk)
    lowered = NO_MASK if mask is None else mask.lower(B, Hq, Lq, Lk, device)

    leading = (None,) * (4 - query.dim())
    found = library.attention_map(
        query[leading],
        key[leading],
        *lowered,
        bias,
        sinks,
        alibi_slopes,
        scale,
        softcap or 0.0,
        chosen,
        tiles,
    )
    weights, binned, *others = (t[(0,) * len(leading)] for t in found)
    return AttentionMap(None if chosen is None else weights, binned if tiles else None, *others)
