"""Transformers' mask functions, read as a band and a row of keys where that says it all.

Imports Transformers, once and outside its functions: torch.compile need not see the import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from ._compact_mask import CompactMask, expressible


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask function of Transformers' `AttentionMaskInterface`.

    Args: those of Transformers' `sdpa_mask`; config is the model's.

    Returns:
        None where a causal or bidirectional layer needs no mask. A `CompactMask` for causal and bidirectional
        masks and windows, with padding, at most of the offsets that a cache has. Else what `sdpa_mask`
        builds, bool (B, 1, q_length, kv_length).
    """
    if mask_function is None:
        mask_function = masking_utils.causal_mask_function
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if isinstance(q_offset, torch.Tensor) and not tracing:
        q_offset = int(q_offset)  # a static cache counts in a tensor
    band = _band_of(mask_function)
    known = (
        band is not None
        and isinstance(q_offset, (int, torch.SymInt))
        and (attention_mask is None or attention_mask.dim() == 2)
        and not torch.jit.is_tracing()
    )
    if known:
        shift = q_offset - kv_offset
        lower = None if band[0] == -math.inf or band[0] + shift <= 1 - q_length else band[0] + shift
        upper = None if band[1] == math.inf or band[1] + shift >= kv_length - 1 else band[1] + shift
        known = expressible(lower, upper, q_length, kv_length)
    if not known:
        return masking_utils.sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            device=device,
            **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False},
        )

    keep = _kept(attention_mask, kv_length, kv_offset)
    if keep is None and lower is None:
        window = getattr(config, "sliding_window", None)
        harmless = (
            window is None or max(q_length, kv_length) <= window
        )  # layers may hand it over, meant or not
        at_the_end = upper == kv_length - q_length or (upper is None and q_length == 1)
        causal = allow_is_causal_skip and band[1] != math.inf and at_the_end
        bidirectional = allow_is_bidirectional_skip and band[1] == math.inf
        if harmless and (causal or bidirectional):
            return None  # the layer knows which of the two it is
    padding = None if keep is None else "anywhere"
    if keep is None:
        keep = torch.ones(1, 1, dtype=torch.bool, device=device)
    elif not tracing and not bool((keep[:, 1:] & ~keep[:, :-1]).any()):
        padding = "end"
    return CompactMask(keep, (batch_size, 1, q_length, kv_length), lower, upper, padding)


def _band_of(function: Callable[..., Any]) -> tuple[float, float] | None:
    """(lowest, highest) j - i that a mask function of Transformers allows; None if it is not understood."""
    for known, band in _FUNCTIONS:
        if function is known:
            return band
    code = getattr(function, "__code__", None)  # one object for all the closures that one definition made
    cells = getattr(function, "__closure__", None)
    if code is None or cells is None or len(cells) != 1:
        return None
    content = cells[0].cell_contents
    for intersection in _INTERSECTIONS:
        if code is intersection:
            bands = [_band_of(part) for part in content]
            if any(band is None for band in bands):
                return None
            return max(band[0] for band in bands), min(band[1] for band in bands)
    for overlay, band_of_window in _OVERLAYS:
        if code is overlay and isinstance(content, int):
            return band_of_window(content)
    return None


_FUNCTIONS: list[tuple[Callable[..., Any], tuple[float, float]]] = []
_INTERSECTIONS: list[CodeType] = []
_OVERLAYS: list[tuple[CodeType, Callable[[int], tuple[float, float]]]] = []


def learn(library: ModuleType) -> None:
    """Learn the building blocks of masks in this version of Transformers: those that do what we think."""
    for known in (_FUNCTIONS, _INTERSECTIONS, _OVERLAYS):
        known.clear()
    j = torch.arange(12, device="cpu")
    i = j[:, None]

    def does(function: Callable[..., Any], lowest: float, highest: float) -> bool:
        return torch.equal(function(0, 0, i, j).expand(12, 12), (j - i >= lowest) & (j - i <= highest))

    causal, bidirectional = library.causal_mask_function, library.bidirectional_mask_function
    for function, band in ((causal, (-math.inf, 0)), (bidirectional, (-math.inf, math.inf))):
        if does(function, *band):
            _FUNCTIONS.append((function, band))
    for make, band_of_window in (
        (library.sliding_window_overlay, lambda window: (1 - window, math.inf)),  # j > i - window
        (library.sliding_window_bidirectional_overlay, lambda window: (-window, window)),  # |i - j| <= window
    ):
        if does(make(3), *band_of_window(3)):
            _OVERLAYS.append((make(3).__code__, band_of_window))
    both = library.and_masks(causal, library.sliding_window_overlay(3))
    if does(both, -2, 0):
        _INTERSECTIONS.append(both.__code__)


def _kept(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """The columns of a padding mask that the keys stand for, bool (B, K); None where nothing is masked."""
    if attention_mask is None:
        return None
    keep = attention_mask.to(torch.bool)
    missing = kv_offset + kv_length - keep.shape[1]
    if missing > 0:  # keys of a static cache that nobody wrote yet
        keep = torch.nn.functional.pad(keep, (0, missing))
    keep = keep[:, kv_offset : kv_offset + kv_length]
    if not torch.compiler.is_compiling() and bool(keep.all()):
        return None
    return keep
