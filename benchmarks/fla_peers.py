"""The plain torch references of flash-linear-attention (the package fla-core), in chunks."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .attention_peers import on_tensors
from .cases import Case
from .contender import Contender, NotHere
from .linear_peers import check_causal

__all__ = ["DELTA_RULE", "LINEAR_ATTENTION"]

Forward = Callable[..., Tensor]


def reference(module: str, name: str) -> Callable[..., Any]:
    """A function of fla; its package wants Triton to be there, also for these, which don't use it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(f"fla.ops.{module}.naive"), name)
    except ImportError as error:
        raise NotHere(f"fla-core can't be imported: {error}") from error


def tokens_first(*tensors: Tensor) -> list[Tensor]:
    """(B, L, H, ...), as fla has them; its references turn them back."""
    return [t.transpose(1, 2) for t in tensors]


def simple_gla(case: Case) -> Forward:
    check_causal(case, "decay")
    chunked = reference("simple_gla", "naive_chunk_simple_gla")
    return lambda *qkvg: chunked(*tokens_first(*qkvg))[0].transpose(1, 2)


def delta_rule(case: Case) -> Forward:
    check_causal(case, "", "decay")
    if not case.variant:
        chunked = reference("delta_rule", "delta_rule_chunkwise")
        return lambda q, k, v, beta: chunked(q, F.normalize(k, dim=-1), v, beta)[0]
    gated = reference("gated_delta_rule", "naive_chunk_gated_delta_rule")

    def forward(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
        return gated(*tokens_first(q, F.normalize(k, dim=-1), v, g, beta))[0].transpose(1, 2)

    return forward


LINEAR_ATTENTION = {"fla": Contender("fla's chunked torch", on_tensors(simple_gla))}
DELTA_RULE = {"fla": Contender("fla's chunkwise torch", on_tensors(delta_rule))}
