"""Calls on which the instruction sets agree. Run with the name of a file, it saves their results there."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any, NamedTuple

import torch
from attention_cases import TERMS
from helpers import DTYPES, MASKS, SHAPES, Shape, make_qkv
from torch import Tensor

from attention_ext import _C, attention


class Call(NamedTuple):
    qkv: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]
    cotangents: tuple[Tensor, Tensor]  # of out and lse


# (shape, mask, term) by the names of the tables.
CASES = {
    "plain, square": ("square", "none", "plain"),
    "plain, wide": ("wide", "none", "plain"),
    "causal, long": ("long", "causal", "plain"),
    "causal, grouped": ("grouped", "causal", "sinks"),
    "window, odd": ("odd", "window", "softcap"),
    "dense, more queries": ("more_queries", "dense", "sinks"),
    "padding, one key head": ("one_kv_head", "window_padding", "sinks"),
    "decode": ("decode", "lengths", "sinks"),
    "bias, grouped": ("grouped", "none", "bias"),
    "shared bias, long": ("long", "causal", "bias_shared"),
    "alibi, odd": ("odd", "causal", "alibi"),
    "dropout, square": ("square", "none", "dropout"),
    "everything, one key head": ("one_kv_head", "everything", "everything"),
}
CALLS = [*product(CASES, DTYPES)]


def make_call(case: str, dtype: torch.dtype) -> Call:
    """The same values in every process."""
    torch.manual_seed(0)
    shape_name, mask, term = CASES[case]
    s: Shape = SHAPES[shape_name]
    qkv = make_qkv(s, dtype)
    options = {"mask": MASKS[mask](s), **TERMS[term](s, dtype)}
    return Call(qkv, options, (torch.randn(s.B, s.Hq, s.Lq, s.Dv), torch.randn(s.B, s.Hq, s.Lq)))


def results(function: Any, call: Call, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """out, lse and the gradient of every floating input; dtype: that of the computation, if not theirs."""
    inputs = dict(zip(("query", "key", "value"), call.qkv, strict=True))
    inputs |= {n: t for n, t in call.options.items() if isinstance(t, Tensor) and t.is_floating_point()}
    leaves = {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in inputs.items()}
    options = call.options | {n: t for n, t in leaves.items() if n in call.options}
    out, lse = function(leaves["query"], leaves["key"], leaves["value"], **options, return_lse=True)
    given = [c.to(t.dtype) for c, t in zip(call.cotangents, (out, lse), strict=True)]
    gradients = torch.autograd.grad((out, lse), [*leaves.values()], given)
    found = {"out": out.detach(), "lse": lse.detach()}
    return found | {f"gradient of {name}": g.detach() for name, g in zip(leaves, gradients, strict=True)}


if __name__ == "__main__":
    torch.save((_C.cpu_capability(), [results(attention, make_call(*call)) for call in CALLS]), sys.argv[1])
