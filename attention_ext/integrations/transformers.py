"""attention_ext as an attention implementation of Hugging Face Transformers 5.

    import attention_ext as ax
    ax.integrations.transformers.register()
    model = AutoModel.from_pretrained(..., attn_implementation="attention_ext")

Grouped-query heads, sliding windows, softcap, sinks, additive position biases, padding on either side, packed
sequences and caches run on the fused kernels; a query that may see nothing (left padding) gets 0. A mask that
is not understood is built densely by Transformers' own `sdpa_mask`, and what no mask can say raises.
"""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import functional, masks
from ._compact_mask import CompactMask, as_mask

_MINIMUM = "5.4"  # the first whose mask functions are told lengths and offsets
_UNSUPPORTED = {  # arguments that change the result: to pass over one would be a silent error
    "cache": "continuous batching with a paged cache",
    "sinks": "one attention sink per token",
    "block_indices": "blocks of keys chosen per query",
}


def register(name: str = "attention_ext") -> None:
    """Make ``attn_implementation=name`` work in Transformers. Calling it again changes nothing.

    Args:
        name: names with a meaning in Transformers are refused: "eager", those of implementations it already
            has, and all with "flash", "sdpa", "flex_attention", "/" or "|" in them.

    Raises:
        ImportError: Transformers is not installed, or too old.
        TypeError, ValueError: the name is not a string, or not free.
    """
    interface, mask_interface, masking_utils = _interfaces()
    from . import _transformers_mask

    if not isinstance(name, str):
        raise TypeError(f"name: expected str, got {type(name).__name__}")
    meaningful = [part for part in ("flash", "sdpa", "flex_attention", "/", "|") if part in name]
    if not name or name == "eager" or meaningful:
        raise ValueError(f"name: {name!r} has a meaning of its own in Transformers")
    for registry, function in ((interface, attention), (mask_interface, _transformers_mask.mask)):
        if registry().get(name, function) is not function:
            raise ValueError(f"name: Transformers already has an implementation called {name!r}")
    _transformers_mask.learn(masking_utils)
    interface.register(name, attention)
    mask_interface.register(name, _transformers_mask.mask)


def _interfaces() -> tuple[type, type, ModuleType]:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"attention_ext.integrations.transformers needs transformers >= {_MINIMUM}, which is not"
            " installed: pip install 'attention_ext[transformers]'"
        ) from error
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

        if not {"q_length", "q_offset"} <= set(inspect.signature(masking_utils.sdpa_mask).parameters):
            raise ImportError("sdpa_mask takes no q_length")
    except ImportError as error:
        raise ImportError(
            f"attention_ext.integrations.transformers needs transformers >= {_MINIMUM}, found"
            f" {transformers.__version__}: pip install -U 'attention_ext[transformers]'"
        ) from error
    return AttentionInterface, AttentionMaskInterface, masking_utils


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of a layer, as Transformers calls it.

    Args:
        module: the layer. Says whether it is training, and whether it is causal where is_causal is None.
        query: (B, H, Lq, D).
        key: (B, Hkv, Lk, D); its heads are not repeated.
        value: (B, Hkv, Lk, Dv).
        attention_mask: (B, 1 or H, Lq, Lk), bool (True = attend) or additive: decides alone. With None, or
            with padding (B, at least Lk), nonzero = attend, is_causal and sliding_window apply.
        dropout: acts in training only.
        scaling: None is D**-0.5.
        is_causal: query i stands at key i + Lk - Lq.
        sliding_window: how many keys a query sees, its own counted: i - j < window, and j - i < window where
            not causal.
        softcap: None or 0 is off.
        s_aux: (H,), the attention sinks.
        position_bias: broadcastable to (B, H, Lq, Lk), added to the scores. Has a gradient.
        **kwargs: indices (B, Lq, n) are the keys that each query may see; cu_seq_lens_q and cu_seq_lens_k the
            bounds of packed sequences, with batch 1; cache, sinks and block_indices are refused. The rest is
            ignored: nothing else that models hand over changes the attention.

    Returns:
        ((B, Lq, H, Dv), contiguous; None for the weights).

    Raises:
        NotImplementedError: what is refused was given.
        TypeError, ValueError: a mask of another kind, and all that `attention_ext.attention` raises.
    """
    for argument, meaning in _UNSUPPORTED.items():
        if kwargs.get(argument) is not None:
            raise NotImplementedError(
                f"{argument}: attention_ext does not support {meaning}; use another implementation"
            )
    if kwargs.get("output_attentions"):
        _warn_no_weights()
    if query.shape[0] == 1:  # queries learned for all sequences
        query = query.expand(key.shape[0], -1, -1, -1)

    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    mask, bias = _read_mask(attention_mask, query, key, is_causal, sliding_window)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    if bias is not None and bias.dtype not in (query.dtype, torch.float32):
        bias = bias.to(query.dtype)
    if kwargs.get("indices") is not None:
        mask = _both(mask, _chosen(kwargs["indices"], query, key))
    if kwargs.get("cu_seq_lens_q") is not None:
        bounds = kwargs["cu_seq_lens_q"], kwargs.get("cu_seq_lens_k")
        mask = _both(mask, _packed(*bounds, query, key))

    out = functional.attention(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        scale=scaling,
        softcap=softcap,
        sinks=s_aux,
        dropout_p=dropout if module.training else 0.0,
    )
    return out.transpose(1, 2).contiguous(), None


def _read_mask(
    attention_mask: Tensor | None, query: Tensor, key: Tensor, is_causal: bool, sliding_window: int | None
) -> tuple[masks.Mask | None, Tensor | None]:
    """The mask and the additive bias that say what ``attention_mask`` and the flags say."""
    if isinstance(attention_mask, CompactMask):
        if attention_mask.shape[2:] == (query.shape[2], key.shape[2]):
            return as_mask(attention_mask), None
        attention_mask = attention_mask.dense()  # its size is an error, found where dense masks are checked
    if attention_mask is not None and not isinstance(attention_mask, torch.Tensor):
        raise TypeError(f"attention_mask: expected Tensor or None, got {type(attention_mask).__name__}")
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.dtype == torch.bool:
            return masks.Dense(attention_mask), None
        if attention_mask.is_floating_point():
            # Models mask with (about) the lowest number; -inf is what also masks a whole row.
            lowest = torch.finfo(attention_mask.dtype).min
            return None, attention_mask.masked_fill(attention_mask <= lowest / 2, -math.inf)
        raise TypeError(f"attention_mask: a 4-D mask is bool or floating point, got {attention_mask.dtype}")

    band: masks.Mask | None = None
    if sliding_window is not None:
        band = masks.SlidingWindow(sliding_window - 1, 0 if is_causal else sliding_window - 1)
    elif is_causal:
        band = masks.Causal()
    if attention_mask is None:
        return band, None
    length = key.shape[2]
    padding = attention_mask.dim() == 2 and not attention_mask.is_floating_point()
    if not padding or attention_mask.shape[1] < length:
        raise ValueError(
            f"attention_mask: expected (B, 1 or H, Lq, Lk), or bool or integer (B, Lk), Lk = {length}, got"
            f" {attention_mask.dtype} {tuple(attention_mask.shape)}"
        )
    return _both(band, masks.KeyPadding(attention_mask[:, attention_mask.shape[1] - length :] != 0)), None


def _both(first: masks.Mask | None, second: masks.Mask) -> masks.Mask:
    return second if first is None else first & second


def _chosen(indices: Tensor, query: Tensor, key: Tensor) -> masks.Mask:
    """The keys that a sparse layer's indexer chose, (B, Lq, n), as a mask."""
    chosen = torch.zeros(query.shape[0], query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return masks.Dense(chosen.scatter(-1, indices.long(), True)[:, None])


def _packed(bounds_q: Tensor, bounds_k: Tensor | None, query: Tensor, key: Tensor) -> masks.Mask:
    """Sequences packed into one, told by their bounds (0, ..., L), as a mask."""
    bounds_k = bounds_q if bounds_k is None else bounds_k
    sequences = []
    for name, bounds, length in (
        ("cu_seq_lens_q", bounds_q, query.shape[2]),
        ("cu_seq_lens_k", bounds_k, key.shape[2]),
    ):
        if query.shape[0] != 1 or int(bounds[-1]) != length:
            raise ValueError(
                f"{name}: expected the bounds of sequences packed into batch 1, ending in {length}; got batch"
                f" {query.shape[0]}, ending in {int(bounds[-1])}"
            )
        positions = torch.arange(length, device=bounds.device)
        sequences.append(torch.bucketize(positions, bounds[1:].contiguous(), right=True))
    return masks.Dense((sequences[0][:, None] == sequences[1])[None, None])


def _warn_no_weights() -> None:
    from transformers.utils import logging

    logging.get_logger("transformers.attention_ext").warning_once(
        "`attention_ext` attention does not support `output_attentions=True`."
        " Please set your attention to `eager` if you want any of these features."
    )
