"""Multi-head attention with a fixed sparse pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import masks
from ..masks import Mask
from .multihead_attention import MultiheadAttention

Made = TypeVar("Made")


def kept(make: Callable[..., Made]) -> Callable[..., Made]:
    """For a function that makes masks: the last ones are kept, and with them the tables built for them.

    A graph that is traced makes its own.
    """
    keep = lru_cache(maxsize=32)(make)

    @wraps(make)
    def made(*args: Any) -> Made:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return make(*args)
        with torch.inference_mode(False):  # what is made in inference mode cannot serve in training later
            return keep(*args)

    return made


class SparseAttention(MultiheadAttention):
    """The base of the layers here: :class:`attention_ext.MultiheadAttention` where a pattern allows it.

    The arguments of ``nn.MultiheadAttention`` come first and mean the same, but for ``add_bias_kv`` and
    ``add_zero_attn``, whose keys have no place in a pattern; the pattern's own are keywords. Parameters and
    ``state_dict`` are those of ``nn.MultiheadAttention``. ``forward`` takes the same arguments; its masks
    restrict the pattern further. With ``need_weights=False`` time and memory follow the 64 x 64 tiles that
    the pattern touches.

    Raises ValueError for ``add_bias_kv`` or ``add_zero_attn``, and what the pattern's mask raises.
    """

    def __init__(self, *args: Any, pattern: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._configure(**pattern)

    def _configure(self, **pattern: Any) -> None:
        """Sets the pattern; also for a module that was made as another class."""
        if self._extra_keys:
            name = "add_zero_attn" if self.add_zero_attn else "add_bias_kv"
            raise ValueError(f"{name}: expected False with {type(self).__name__}, got True")
        self._set_pattern(**pattern)

    def _set_pattern(self, **pattern: Any) -> None:
        raise NotImplementedError

    def pattern(self, Lq: int, Lk: int) -> Mask:
        """What may be attended, for these lengths."""
        raise NotImplementedError

    def _masks(
        self, q: Tensor, k: Tensor, key_padding_mask: Any, attn_mask: Any
    ) -> tuple[Mask, Tensor | None]:
        mask, bias = super()._masks(q, k, key_padding_mask, attn_mask)
        pattern = self._pattern_of(q, k, key_padding_mask)
        return pattern if mask is None else pattern & mask, bias

    def _pattern_of(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Mask:
        return self.pattern(q.shape[2], k.shape[2]).to(q.device)


class SlidingWindowAttention(SparseAttention):
    """Attention to the keys near a query, as in Longformer (https://arxiv.org/abs/2004.05150) and Mistral.

    Args:
        window: an int w, for the query's own position and the w - 1 before it if causal, else w on either
            side; or (left, right), each an int or None (unbounded), as in ``masks.SlidingWindow``.
        causal: whether keys after the query are hidden.
    """

    def __init__(
        self, *args: Any, window: int | tuple[int | None, int | None], causal: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, pattern={"window": window, "causal": causal}, **kwargs)

    def _set_pattern(self, window: int | tuple[int | None, int | None], causal: bool = False) -> None:
        self.window, self.causal = window, causal
        self._mask = window_mask(window, causal, 1)

    def pattern(self, Lq: int, Lk: int) -> Mask:
        return self._mask

    def extra_repr(self) -> str:
        return f"window={self.window}, causal={self.causal}"


class DilatedAttention(SparseAttention):
    """Sliding-window attention to every dilation-th key (Longformer, https://arxiv.org/abs/2004.05150).

    Args:
        window: as in :class:`SlidingWindowAttention`, counted in keys that are seen.
        dilation: a positive int.
        causal: whether keys after the query are hidden.
    """

    def __init__(
        self,
        *args: Any,
        window: int | tuple[int | None, int | None],
        dilation: int,
        causal: bool = False,
        **kwargs: Any,
    ) -> None:
        pattern = {"window": window, "dilation": dilation, "causal": causal}
        super().__init__(*args, pattern=pattern, **kwargs)

    def _set_pattern(
        self, window: int | tuple[int | None, int | None], dilation: int, causal: bool = False
    ) -> None:
        self.window, self.dilation, self.causal = window, dilation, causal
        self._mask = window_mask(window, causal, dilation)

    def pattern(self, Lq: int, Lk: int) -> Mask:
        return self._mask

    def extra_repr(self) -> str:
        return f"window={self.window}, dilation={self.dilation}, causal={self.causal}"


class StridedAttention(SparseAttention):
    """The causal patterns of the Sparse Transformer (https://arxiv.org/abs/1904.10509), both steps in one.

    "strided": the query's own position, the stride keys before it, and every stride-th key before those.
    "fixed": the keys of the query's own block of `stride`, and the last `expressivity` of every block before.

    Args:
        stride: a positive int.
        mode: "strided" or "fixed".
        expressivity: c of the paper, at most stride; for "fixed".
    """

    def __init__(
        self, *args: Any, stride: int, mode: str = "strided", expressivity: int = 1, **kwargs: Any
    ) -> None:
        pattern = {"stride": stride, "mode": mode, "expressivity": expressivity}
        super().__init__(*args, pattern=pattern, **kwargs)

    def _set_pattern(self, stride: int, mode: str = "strided", expressivity: int = 1) -> None:
        if mode not in ("strided", "fixed"):
            raise ValueError(f'mode: expected "strided" or "fixed", got {mode!r}')
        masks.Strided(stride)  # checks it
        if not 1 <= expressivity <= stride:
            raise ValueError(f"expressivity: expected 1 to the stride {stride}, got {expressivity}")
        self.stride, self.mode, self.expressivity = stride, mode, expressivity

    def pattern(self, Lq: int, Lk: int) -> Mask:
        if self.mode == "strided":
            near = masks.SlidingWindow(self.stride, 0)
            return near | (masks.Strided(self.stride) & masks.Causal())
        return _fixed_blocks(self.stride, self.expressivity, Lk, self.out_proj.weight.device)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, mode={self.mode!r}, expressivity={self.expressivity}"


@kept
def _fixed_blocks(stride: int, expressivity: int, Lk: int, device: torch.device) -> Mask:
    positions = torch.arange(Lk, device=device)
    summaries = masks.Dense(positions % stride >= stride - expressivity)
    return (masks.Documents(positions // stride) | summaries) & masks.Causal()


class BlockSparseAttention(SparseAttention):
    """Attention to chosen blocks of keys.

    Args:
        block_map: bool (..., nq, nk), as in ``masks.Blocks``; its sizes fix the lengths the layer takes. It
            moves with the module, and is no part of ``state_dict``.
        block_size: an int, or two, of queries and keys.
    """

    def __init__(self, *args: Any, block_map: Tensor, block_size: int | Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, pattern={"block_map": block_map, "block_size": block_size}, **kwargs)

    def _set_pattern(self, block_map: Tensor, block_size: int | Sequence[int]) -> None:
        self.block_size = masks.Blocks(block_map, block_size).block_size
        self.register_buffer("block_map", block_map.to(self.out_proj.weight.device), persistent=False)

    def pattern(self, Lq: int, Lk: int) -> Mask:
        return _blocks(self.block_map, self.block_size)

    def extra_repr(self) -> str:
        return f"block_map={tuple(self.block_map.shape)}, block_size={self.block_size}"


@kept
def _blocks(block_map: Tensor, block_size: tuple[int, int]) -> Mask:
    return masks.Blocks(block_map, block_size)


class NeighborhoodAttention(SparseAttention):
    """Attention to the neighbours in a grid of one to three dimensions, flattened in row-major order
    (https://arxiv.org/abs/2204.07143; dilated: https://arxiv.org/abs/2209.15001).

    Args:
        shape, window, dilation, causal: as in ``masks.Neighborhood``. The lengths are the product of shape.
    """

    def __init__(
        self,
        *args: Any,
        shape: int | Sequence[int],
        window: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        **kwargs: Any,
    ) -> None:
        pattern = {"shape": shape, "window": window, "dilation": dilation, "causal": causal}
        super().__init__(*args, pattern=pattern, **kwargs)

    def _set_pattern(
        self,
        shape: int | Sequence[int],
        window: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
    ) -> None:
        self._mask = masks.Neighborhood(shape, window, dilation, causal)

    def pattern(self, Lq: int, Lk: int) -> Mask:
        return self._mask

    def extra_repr(self) -> str:
        return repr(self._mask)


def window_mask(window: int | tuple[int | None, int | None], causal: bool, dilation: int) -> Mask:
    if isinstance(window, (tuple, list)):
        if len(window) != 2:
            raise ValueError(f"window: expected an int or (left, right), got {tuple(window)}")
        left, right = window
        right = 0 if causal else right
    else:
        if not isinstance(window, int) or isinstance(window, bool):
            raise TypeError(f"window: expected an int or (left, right), got {type(window).__name__}")
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        left, right = (window - 1, 0) if causal else (window, window)
    if dilation == 1:
        return masks.SlidingWindow(left, right)
    return masks.Dilated(left, right, dilation)
