"""Weights in the form that bertviz takes (https://github.com/jessevig/bertviz)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def for_bertviz(weights: Sequence[Tensor], tokens: Sequence[str]) -> dict[str, Any]:
    """The arguments of bertviz's `head_view` and `model_view`, for self-attention of one text::

        bertviz.head_view(**ax.visualize.for_bertviz(recording.weights(), tokens))

    Args:
        weights: of the layers in order, each (H, L, L), such as `Recording.weights()`; H and L are the same
            in all of them, which bertviz stacks.
        tokens: the L tokens.

    Returns:
        {"attention": a tuple with a tensor (1, H, L, L) for each layer, "tokens": a list}.

    Raises:
        ValueError: no layers, or shapes that don't fit.
    """
    if not len(weights):
        raise ValueError("weights: expected those of one layer at least, got none")
    expected = (weights[0].shape[0], len(tokens), len(tokens))
    for n, layer in enumerate(weights):
        if layer.shape != expected:
            raise ValueError(
                f"weights: expected (H, L, L) = {expected} for layer {n}, got {tuple(layer.shape)}"
            )
    return {"attention": tuple(layer.detach()[None] for layer in weights), "tokens": list(tokens)}
