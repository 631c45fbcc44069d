"""The layer: ours and torch's, both with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

import attention_ext as ax

from .cases import Case
from .contender import Contender, Inputs, Work
from .sparse_layer_peers import sparse_layer, transformers_layer

__all__ = ["CONTENDERS"]


def layer_of(
    cls: type[torch.nn.MultiheadAttention], fast_path: bool = True
) -> Callable[[Case, Inputs], Work]:
    """For Contender.build: self-attention, in eval where no gradients are made."""

    def build(case: Case, inputs: Inputs) -> Work:
        s, ours = case.shape, cls is ax.MultiheadAttention
        if (case.mask is not None and not ours) or s.Lq != s.Lk or s.Hkv != s.H:
            raise ValueError(f"{case.name}: plain self-attention only")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if case.mask is not None:
                layer = sparse_layer(case)
            else:
                layer = cls(s.H * s.D, s.H, batch_first=True, dtype=getattr(torch, case.dtype))
        layer.train(case.grad or not fast_path)
        leaves = inputs.leaves()
        x = leaves["x"]
        return Work(lambda: layer(x, x, x, need_weights=False)[0], leaves | dict(layer.named_parameters()))

    return build


CONTENDERS = {
    "ours": Contender("ax.MultiheadAttention", layer_of(ax.MultiheadAttention)),
    "torch": Contender("nn.MultiheadAttention", layer_of(torch.nn.MultiheadAttention)),
    "transformers": Contender("Transformers", transformers_layer),
    # Eval takes a path that writes out the weights; without dropout, the one of training computes the same.
    "torch_slow_path": Contender(
        "nn.MultiheadAttention off its fast path", layer_of(torch.nn.MultiheadAttention, fast_path=False)
    ),
}
