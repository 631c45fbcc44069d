"""The mask that models of Transformers carry from our mask function to our attention function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import masks
from .._ops import transforms


class CompactMask(torch.Tensor):
    """A boolean mask (B, 1, Q, K), True = attend, stored as a band and one row of keys per sequence.

    Query i sees key j iff ``lower <= j - i <= upper`` (None = unbounded) and ``keep[b, j]``. To the model it
    is the mask that Transformers' ``sdpa_mask`` would have built: whatever computes with it gets that mask,
    built then and used from then on, so that a model which slices or combines its masks stays right. Our
    attention function reads the band and the row instead, and nothing of size Q x K is ever made.

    Args:
        keep: bool (B, K), or (1, 1) where no key is padding.
        shape: (B, 1, Q, K).
        lower: the band, in plain indices of the last two dimensions.
        upper: likewise.
        padding: where keep masks keys: None (nowhere), "end" or "anywhere".
    """

    @staticmethod
    def __new__(
        cls, keep: Tensor, shape: Iterable[int], lower: int | None, upper: int | None, padding: str | None
    ) -> CompactMask:
        return transforms.wrapper_subclass(cls, shape, torch.bool, keep.device)

    def __init__(
        self, keep: Tensor, shape: Iterable[int], lower: int | None, upper: int | None, padding: str | None
    ) -> None:
        self.keep, self.lower, self.upper, self.padding = keep, lower, upper, padding
        self._dense: Tensor | None = None

    def __repr__(self) -> str:
        band = f"lower={self.lower}, upper={self.upper}"
        return f"CompactMask({tuple(self.shape)}, {band}, padding={self.padding!r})"

    # by these two torch.compile takes the object apart into tensors and constants, and puts it together again
    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        return ["keep"], (self.lower, self.upper, self.padding)

    @staticmethod
    def __tensor_unflatten__(
        tensors: dict[str, Tensor], constants: Any, size: Any, stride: Any
    ) -> CompactMask:
        return CompactMask(tensors["keep"], size, *constants)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return torch.Tensor.__torch_function__(func, (), args, kwargs or {})  # results are plain tensors

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*_plain(args), **{name: _plain(value) for name, value in (kwargs or {}).items()})

    def dense(self) -> Tensor:
        """The same mask as a plain bool tensor (B, 1, Q, K)."""
        if self._dense is None:
            query = torch.arange(self.shape[2], device=self.keep.device)[:, None]
            key = torch.arange(self.shape[3], device=self.keep.device)
            allowed = self.keep[:, None, None, :]
            if self.lower is not None:
                allowed = allowed & (key >= query + self.lower)
            if self.upper is not None:
                allowed = allowed & (key <= query + self.upper)
            self._dense = allowed.expand(self.shape)
        return self._dense


def as_mask(mask: CompactMask) -> masks.Mask | None:
    """A CompactMask as an `attention_ext.masks` object; None where it masks nothing.

    A function and not a method: torch.compile would put a method of a tensor into its graph.
    """
    if mask._dense is not None:  # somebody computed with it, maybe wrote into it
        return masks.Dense(mask._dense)
    band = _band(mask.lower, mask.upper, mask.shape[3] - mask.shape[2])
    if mask.padding is None:
        return band
    # lengths let the kernels leave out the end altogether
    keep = masks.KeyLengths(mask.keep.sum(-1)) if mask.padding == "end" else masks.KeyPadding(mask.keep)
    return keep if band is None else band & keep


def _plain(argument: Any) -> Any:
    if isinstance(argument, CompactMask):
        return argument.dense()
    if isinstance(argument, (list, tuple)):
        return type(argument)(_plain(item) for item in argument)
    return argument


def expressible(lower: int | None, upper: int | None, q_length: int, kv_length: int) -> bool:
    """Whether `_band` can say lower <= j - i <= upper: a window holds the key that its query stands at."""
    return any(
        (lower is None or lower <= origin) and (upper is None or upper >= origin)
        for origin in (kv_length - q_length, 0)
    )


def _band(lower: int | None, upper: int | None, shift: int) -> masks.Mask | None:
    if lower is None and upper is None:
        return None
    if lower is None and upper == shift:
        return masks.Causal()
    if (lower is None or lower <= shift) and (upper is None or upper >= shift):
        origin, alignment = shift, "bottom_right"
    else:
        origin, alignment = 0, "top_left"
    left = None if lower is None else origin - lower
    right = None if upper is None else upper - origin
    return masks.SlidingWindow(left, right, alignment=alignment)
