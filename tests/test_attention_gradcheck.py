"""Gradients of the fused attention against its own finite differences, in float64: no formula is trusted."""

from itertools import product

import pytest
import torch
from helpers import Shape, make_qkv, random_keep

import attention_ext as ax
from attention_ext import masks

SMALL = Shape(2, 2, 2, 4, 5, 3, 3)
SHAPES = {
    "same_heads": SMALL,
    "grouped": SMALL._replace(Hq=4),
    "wider_value": SMALL._replace(Dv=5),
    "grouped_narrower_value": SMALL._replace(Hq=6, Dv=1),
}

MASKS = {
    "none": lambda s: None,
    "causal": lambda s: masks.Causal(),
    "window_lengths": lambda s: masks.SlidingWindow(1, 1) & masks.KeyLengths([s.Lk, 2]),
    "dense": lambda s: masks.Dense(random_keep(s.Hq, s.Lq, s.Lk)),
}

# Each combination of what may be differentiated besides query, key and value.
BIASES = {
    "no_bias": None,
    "bias_full": lambda s: (s.B, s.Hq, s.Lq, s.Lk),
    "bias_per_head": lambda s: (s.Hq, 1, 1),
    "bias_shared": lambda s: (s.Lq, s.Lk),
}
EXTRAS = [
    dict(zip(("softcap", "sinks", "alibi"), on, strict=True)) for on in product((False, True), repeat=3)
]


def inputs_and_function(s, mask, *, bias=None, softcap=False, sinks=False, alibi=False, dropout_p=0.0):
    """Leaves, and (out, lse) as a function of them. An lse of -inf, which has no differences, is 0."""
    leaves = dict(zip(("query", "key", "value"), make_qkv(s, torch.float64), strict=True))
    if bias is not None:
        leaves["bias"] = torch.randn(bias, dtype=torch.float64)
    if sinks:
        leaves["sinks"] = torch.randn(s.Hq, dtype=torch.float64)
    if alibi:
        leaves["alibi_slopes"] = torch.rand(s.B, s.Hq, dtype=torch.float64)
    options = {"softcap": 0.8 if softcap else None, "dropout_p": dropout_p, "dropout_seed": 11}

    def function(*tensors):
        arguments = dict(zip(leaves, tensors, strict=True))
        out, lse = ax.attention(**arguments, mask=mask, return_lse=True, **options)
        return out, torch.where(lse.isinf(), 0.0, lse)

    return [t.requires_grad_() for t in leaves.values()], function


@pytest.mark.parametrize("extras", EXTRAS, ids=lambda on: "_".join(k for k, v in on.items() if v) or "plain")
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_every_combination(mask, bias, extras):
    for s in SHAPES.values():
        sizes = None if BIASES[bias] is None else BIASES[bias](s)
        leaves, function = inputs_and_function(s, MASKS[mask](s), bias=sizes, **extras)
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("mask", MASKS)
def test_every_element(mask):
    # The fast mode sees one random projection of the Jacobian, this its elements.
    s = Shape(2, 2, 1, 3, 4, 2, 3)
    bias = (s.Hq, 1, s.Lk)
    leaves, function = inputs_and_function(s, MASKS[mask](s), bias=bias, softcap=True, sinks=True, alibi=True)
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dropout_p", [0.3, 1.0])
@pytest.mark.parametrize(
    "extras", [{}, {"softcap": True, "sinks": True, "alibi": True}], ids=["plain", "terms"]
)
def test_dropout(extras, dropout_p):
    s = SHAPES["grouped"]
    leaves, function = inputs_and_function(s, masks.Causal(), bias=(4, 5), dropout_p=dropout_p, **extras)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("mask", ["none", "causal", "dense"])
@pytest.mark.parametrize(
    "s", [Shape(1, 2, 1, 70, 131, 7, 5), Shape(1, 1, 1, 9, 1100, 8, 8)], ids=["tiles", "chunks"]
)
def test_over_several_tiles(s, mask):
    leaves, function = inputs_and_function(
        s, MASKS[mask](s), bias=(s.Hq, 1, s.Lk), softcap=True, sinks=True, alibi=True
    )
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_merge_of_parts(mask):
    s = SHAPES["grouped"]
    leaves, _ = inputs_and_function(s, None)
    keep = torch.ones(s.Lq, s.Lk, dtype=torch.bool) if mask == "none" else masks.Causal().dense(s.Lq, s.Lk)

    def function(query, key, value):
        parts = [
            ax.attention(
                query, key[:, :, part], value[:, :, part], mask=masks.Dense(keep[..., part]), return_lse=True
            )
            for part in (slice(0, 3), slice(3, 5))
        ]
        return ax.merge_attention_states(*zip(*parts, strict=True))

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
