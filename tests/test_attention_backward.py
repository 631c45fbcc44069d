"""The backward pass of attention against the formula in float64: the gradients of all inputs."""

from itertools import pairwise, product

import pytest
import torch
from attention_cases import BROADCASTS, LAYOUTS, TERMS, assert_attention_near, broadcast_name, broadcast_shape
from helpers import (
    DTYPES,
    MASKS,
    SHAPES,
    Shape,
    assert_attention_matches,
    assert_matches,
    make_qkv,
    random_choice,
    random_keep,
)

import attention_ext as ax
from attention_ext import masks, reference

FLOATS = (torch.float32, torch.float64)

# shapes

# Key tiles are 8 to 32 keys wide, blocks 64; rows are masked in eights and come in chunks of 192.
QUERIES = (1, 7, 8, 9, 64, 65, 191, 193, 257)
KEYS = (1, 2, 7, 16, 33, 63, 64, 65, 130)


def assert_near(*qkv, return_lse=True, **options):
    """Against random gradients of out and lse."""
    with torch.no_grad():
        out, lse = ax.attention(*qkv, return_lse=True, **options)
    cotangents = [torch.randn_like(out), torch.randn_like(lse).masked_fill(lse.isinf(), 0.0)]
    assert_attention_near(*qkv, cotangents=cotangents[: 1 + return_lse], return_lse=return_lse, **options)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("Lq", QUERIES)
def test_lengths(Lq, dtype):
    for Lk in KEYS:
        assert_near(*make_qkv(Shape(1, 2, 2, Lq, Lk, 5, 6), dtype))
        assert_near(*make_qkv(Shape(1, 1, 1, Lq, Lk, 3, 9), dtype), mask=masks.Causal())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [*range(1, 25), 31, 64, 72, 128, 256])
def test_head_dims(D, dtype):
    for Dv in (D, 1, 8, 25):
        assert_near(*make_qkv(Shape(1, 2, 1, 9, 11, D, Dv), dtype), mask=masks.Causal())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_groups(group, dtype):
    for Lq, Hkv in product((1, 9, 33), (1, 3)):
        shape = Shape(2, group * Hkv, Hkv, Lq, 70, 8, 8)
        assert_near(*make_qkv(shape, dtype), mask=masks.Causal(), alibi_slopes=torch.rand(shape.Hq))


# From 1024 keys on they are cut into chunks whose gradients are added up afterwards.
CHUNKED_MASKS = {
    "none": lambda s: None,
    "causal": lambda s: masks.Causal(),
    "window": lambda s: masks.SlidingWindow(60, 10),
    "window_beside_the_keys": lambda s: masks.SlidingWindow(5, 0, "top_left"),
    "lengths": lambda s: masks.KeyLengths([600] * (s.B - 1) + [0]) if s.B > 1 else masks.KeyLengths([520]),
    "window_dense": lambda s: masks.SlidingWindow(200, 3) & masks.Dense(random_keep(s.Lq, s.Lk)),
}


@pytest.mark.parametrize("mask", CHUNKED_MASKS.values(), ids=CHUNKED_MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_many_keys(dtype, mask):
    # dq goes straight into its tensor where D is a multiple of the vector, and through a buffer where not.
    for shape in (
        Shape(1, 1, 1, 70, 1100, 16, 8),
        Shape(2, 2, 1, 9, 1600, 5, 3),
        Shape(1, 1, 1, 1100, 1100, 8, 8),
    ):
        if shape.Lq < 1000 or dtype == torch.float32:
            bias = torch.randn(1, 1, shape.Lq, 1)
            assert_near(
                *make_qkv(shape, dtype), mask=mask(shape), bias=bias, alibi_slopes=torch.rand(shape.Hq)
            )


@pytest.mark.parametrize("mask", [None, masks.SlidingWindow(21, 80)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_queries(dtype, mask):
    # Where 8 MiB hold the rows of all heads of a group they are copied once, else chunk by chunk.
    for group in (1, 8):
        shape = Shape(1, group, 1, 1101, 70, 256, 250)
        assert_near(*make_qkv(shape, dtype, heads_last=True), mask=mask)


# masks and terms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [64, 128, 40])
def test_rows_that_are_gathered(block, dtype):
    """Each query sees one block, so that tiles have few rows; in all more than are gathered at a time."""
    for shape in (Shape(1, 2, 1, 300, 1100, 16, 24), Shape(2, 4, 2, 130, 200, 5, 3)):
        q, k, v = make_qkv(shape, dtype, heads_last=shape.B == 2)
        mask = random_choice(shape, block, 2 if block == 128 else 1)
        assert_near(q, k, v, mask=mask & masks.Causal(), scale=-0.3 if block == 40 else None)
        assert_near(q, k, v, mask=mask, sinks=torch.randn(shape.Hq))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(mask, shape, dtype):
    assert_near(*make_qkv(shape, dtype), mask=mask(shape))


@pytest.mark.parametrize("sizes", [(70, 131), (131, 70), (65, 65), (3, 200), (200, 3)], ids=str)
@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
def test_windows(alignment, sizes):
    qkv = make_qkv(Shape(1, 1, 1, *sizes, 4, 4))
    for left, right in product((None, 0, 1, 63, 64, 300), repeat=2):
        assert_near(*qkv, mask=masks.SlidingWindow(left, right, alignment))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal", "everything"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_terms(terms, mask, dtype):
    for name in ("grouped", "odd", "decode"):
        shape = SHAPES[name]
        assert_near(*make_qkv(shape, dtype), mask=MASKS[mask](shape), **terms(shape, dtype))


@pytest.mark.parametrize("terms", ["plain", "sinks", "softcap", "alibi_per_row", "bias_shared"])
def test_without_a_gradient_of_lse(terms):
    for shape in (SHAPES["grouped"], SHAPES["odd"]):
        options = TERMS[terms](shape, torch.float32)
        assert_attention_matches(*make_qkv(shape), return_lse=False, mask=masks.Causal(), **options)


def test_gradient_of_lse_alone():
    query, key, value = make_qkv(SHAPES["grouped"], requires_grad=True)
    lse = ax.attention(query, key, value, mask=masks.Causal(), return_lse=True)[1]
    expected = reference.attention(query, key, value, mask=masks.Causal(), return_lse=True)[1]
    grad_lse = torch.randn_like(lse)
    found = torch.autograd.grad(lse, (query, key, value), grad_lse, materialize_grads=True, allow_unused=True)
    exact = torch.autograd.grad(expected, (query, key), grad_lse)
    for ours, theirs in zip(found[:2], exact, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not found[2].any()


# bias


@pytest.mark.parametrize("varies", BROADCASTS, ids=broadcast_name)
def test_gradients_of_broadcast_biases(varies):
    # With more pairs than query elements it is kept once for all batch rows and heads that share it.
    shapes = Shape(2, 4, 2, 37, 131, 8, 8), Shape(3, 3, 3, 70, 20, 40, 8)
    for shape, dtype in product(shapes, DTYPES):
        bias = torch.randn(broadcast_shape(shape, varies))
        assert_near(*make_qkv(shape, dtype), bias=bias)
        assert_near(*make_qkv(shape, dtype), bias=bias.to(dtype), mask=masks.SlidingWindow(50, 3))


@pytest.mark.parametrize("varies", BROADCASTS, ids=broadcast_name)
def test_gradients_of_broadcast_biases_over_many_keys(varies):
    shape = Shape(2, 2, 1, 21, 1100, 4, 4)
    assert_near(*make_qkv(shape), bias=torch.randn(broadcast_shape(shape, varies)))


@pytest.mark.parametrize("layout", ["length_last", "sliced", "every_second", "one_batch_row", "one_number"])
def test_biases_of_any_layout(layout):
    shape = Shape(2, 4, 2, 37, 131, 8, 8)
    bias = LAYOUTS[layout](torch.randn(2, 4, 37, 131))
    assert_near(*make_qkv(shape), bias=bias, mask=masks.Causal())


# layouts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    lay = LAYOUTS[layout]
    for shape in (Shape(2, 4, 2, 37, 70, 16, 24), Shape(2, 3, 3, 19, 65, 7, 5)):
        qkv = make_qkv(shape, dtype)
        grad_out = torch.randn(shape.B, shape.Hq, shape.Lq, shape.Dv).to(dtype)
        for which in product((False, True), repeat=4):
            if sum(which) in (1, 4):
                laid = [lay(t) if chosen else t for t, chosen in zip((*qkv, grad_out), which, strict=True)]
                assert_attention_near(*laid[:3], cotangents=laid[3:], return_lse=False, mask=masks.Causal())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_stride_0_gradients(reduction):
    qkv = make_qkv(SHAPES["odd"])
    bias = torch.randn(70, 131)

    def op(query, key, value, bias):
        return getattr(ax.attention(query, key, value, bias=bias, mask=masks.Causal()), reduction)()

    def formula(query, key, value, bias):
        return getattr(reference.attention(query, key, value, bias=bias, mask=masks.Causal()), reduction)()

    assert_matches(op, *qkv, bias, against=formula)


@pytest.mark.parametrize("heads_last", [False, True])
def test_gradients_are_laid_out_as_their_inputs(heads_last):
    qkv = make_qkv(Shape(2, 4, 2, 37, 70, 16, 24), heads_last=heads_last, requires_grad=True)
    out = ax.attention(*qkv)
    for grad in torch.autograd.grad(out, qkv, torch.randn_like(out)):
        assert (grad.transpose(1, 2) if heads_last else grad).is_contiguous()


# which gradients are asked for


@pytest.mark.parametrize("terms", ["plain", "everything"])
def test_each_gradient_alone_is_the_same(terms):
    shape = Shape(2, 4, 2, 37, 70, 16, 24)
    options = TERMS[terms](shape, torch.float32)
    inputs = dict(zip(("query", "key", "value"), make_qkv(shape), strict=True))
    inputs |= {
        name: t for name, t in options.items() if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    fixed = {name: x for name, x in options.items() if name not in inputs}
    grad_out = torch.randn(2, 4, 37, 24)

    def gradients(names):
        leaves = {name: t.detach().requires_grad_(name in names) for name, t in inputs.items()}
        out = ax.attention(**leaves, **fixed, mask=masks.Causal())
        return torch.autograd.grad(out, [leaves[name] for name in names], grad_out)

    together = gradients(list(inputs))
    for name, expected in zip(inputs, together, strict=True):
        (alone,) = gradients([name])
        assert torch.equal(alone, expected), name


# parts of the keys


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(0, 64, 131), (0, 1, 50, 130, 131), (0, 0, 131)], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "everything"])
def test_merged_parts_are_the_whole(mask, cuts, dtype):
    shape = SHAPES["odd"]
    mask = MASKS[mask](shape)
    keep = torch.ones(1, 1, 1, shape.Lk, dtype=torch.bool) if mask is None else mask.dense(shape.Lq, shape.Lk)

    def in_parts(query, key, value, sinks):
        parts = []
        for n, (first, end) in enumerate(pairwise(cuts)):
            part = ax.attention(
                query,
                key[:, :, first:end],
                value[:, :, first:end],
                mask=masks.Dense(keep[..., first:end]),
                sinks=sinks if n == 0 else None,
                return_lse=True,
            )
            parts.append(part)
        return ax.merge_attention_states(*zip(*parts, strict=True))

    def whole(query, key, value, sinks):
        return reference.attention(query, key, value, mask=mask, sinks=sinks, return_lse=True)

    assert_matches(in_parts, *make_qkv(shape, dtype), torch.randn(shape.Hq, dtype=dtype), against=whole)


# chunks of key blocks: neighbouring ones where queries see few of them, else dealt out

LONG = Shape(1, 4, 2, 1122, 1122, 4, 4)
TABLES = {
    "documents": masks.Documents(torch.arange(1122) // 100),
    "window_and_tokens": masks.SlidingWindow(30, 30) | masks.Dense(torch.arange(1122) == 3),
    "global": masks.SlidingWindow(30, 30) | masks.Global([3, 700]),
    "grid": masks.Neighborhood((33, 34), 5),
    "random": masks.Blocks(torch.rand(4, 18, 18) > 0.8, 64),
    "triangle": masks.Causal() & masks.Dense(torch.arange(1122) % 3 > 0),
    "few": masks.Documents(torch.where(torch.arange(1122) < 900, -1, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", TABLES)
def test_chunks_with_tables(name, dtype):
    assert_near(*make_qkv(LONG, dtype), mask=TABLES[name], return_lse=False)


def test_chunks_with_a_table_and_fewer_queries():
    s = LONG._replace(Lq=300)
    mask = masks.SlidingWindow(30, 30) | masks.Dense(torch.arange(1122) == 700)
    assert_near(*make_qkv(s, torch.float32), mask=mask & masks.KeyLengths([1000]), return_lse=False)
