"""The CUDA attention kernels against the formula in float64: out, lse and every gradient.

The tables are those of the tests on the CPU. Sizes stand around the kernels' tiles: 64 queries, 64 keys,
64 or 128 columns.
"""

import emulation
import pytest
import torch
from attention_cases import BROADCASTS, LAYOUTS, TERMS, assert_attention_near, broadcast_name, broadcast_shape
from helpers import EMPTY_SHAPES, MASKS, SHAPES, Shape, make_qkv, random_keep

import attention_ext as ax
from attention_ext import masks, reference

CHECKED = emulation.MODE == "checked"
# Schedule 0 lets threads take turns, others are random orders. The checks take one, each test its own.
FLOATS = ((torch.float32, 3),) if CHECKED else ((torch.float32, 0), (torch.float64, 7))
STORED = (*FLOATS, (torch.bfloat16, 3 if CHECKED else 7))
ALL = STORED if CHECKED else (*STORED, (torch.float16, 0))


@pytest.fixture
def schedule(request, kernels):
    kernels.set_schedule(request.param)


def variants(cases):
    """Parametrizes a test by dtype and schedule."""
    ids = [f"{str(dtype).removeprefix('torch.')}-schedule{seed}" for dtype, seed in cases]
    return pytest.mark.parametrize(("dtype", "schedule"), cases, ids=ids, indirect=["schedule"])


def assert_near(*qkv, return_lse=True, **options):
    """Against random gradients of out and lse."""
    with torch.no_grad():
        out, lse = ax.attention(*qkv, return_lse=True, **options)
    cotangents = [torch.randn_like(out), torch.randn_like(lse).masked_fill(lse.isinf(), 0.0)]
    assert_attention_near(*qkv, cotangents=cotangents[: 1 + return_lse], return_lse=return_lse, **options)


@variants(ALL)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, dtype, schedule):
    assert_near(*make_qkv(shape, dtype))


@variants(FLOATS)
@pytest.mark.parametrize("shape", ["square", "odd", "more_queries"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, shape, dtype, schedule):
    assert_near(*make_qkv(SHAPES[shape], dtype), mask=MASKS[mask](SHAPES[shape]))


@variants(ALL)
@pytest.mark.parametrize("mask", ["none", "everything"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_terms(terms, mask, dtype, schedule):
    shape = Shape(2, 4, 2, 19, 70, 24, 24)
    assert_near(*make_qkv(shape, dtype), mask=MASKS[mask](shape), **terms(shape, dtype))


@pytest.mark.parametrize("lengths", [(63, 64), (64, 65), (65, 128), (129, 1), (1, 192)], ids=str)
def test_lengths(lengths):
    for mask in (None, masks.Causal(), masks.SlidingWindow(64, 1)):
        assert_near(*make_qkv(Shape(1, 2, 1, *lengths, 5, 6)), mask=mask)


@variants(FLOATS)
@pytest.mark.parametrize(
    "dims", [(1, 2), (15, 17), (64, 64), (65, 3), (3, 65), (128, 128), (260, 130)], ids=str
)
def test_head_dims(dims, dtype, schedule):
    assert_near(*make_qkv(Shape(1, 2, 1, 9, 70, *dims), dtype), mask=masks.Causal())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout):
    query, key, value = (layout(t) for t in make_qkv(Shape(2, 2, 2, 9, 70, 7, 7)))
    bias = layout(torch.randn(2, 2, 9, 70))
    assert_near(query, key, value, mask=masks.Causal(), bias=bias)


# The gradient of a bias is cut along what it varies over, and summed over the rest.
@pytest.mark.parametrize("varies", BROADCASTS, ids=broadcast_name)
def test_biases_broadcast(varies):
    shape = Shape(2, 4, 2, 70, 131, 8, 8)
    bias = torch.randn(broadcast_shape(shape, varies))
    assert_near(*make_qkv(shape), mask=masks.SlidingWindow(90, 20), bias=bias)


def test_a_dense_mask_and_a_bias_that_masks():
    shape = Shape(1, 2, 1, 70, 131, 8, 8)
    bias = torch.randn(1, 2, 70, 131).masked_fill(~random_keep(1, 2, 70, 131), -torch.inf)
    assert_near(*make_qkv(shape), mask=masks.Dense(random_keep(70, 131)), bias=bias)


@pytest.mark.parametrize("sinks", [None, torch.tensor([-1e9, 3.0])], ids=["no_sinks", "sinks"])
def test_scores_as_large_as_a_mask_of_minus_1e9(sinks):
    # exp(s - lse) would lose its digits if lse were one number.
    shape = Shape(1, 2, 2, 70, 70, 8, 8)
    bias = torch.zeros(1, 2, 70, 70)
    bias[:, :, 3] = bias[:, 1, 65] = -1e9
    options = {} if sinks is None else {"sinks": sinks}
    assert_near(*make_qkv(shape), bias=bias, return_lse=False, **options)


@pytest.mark.parametrize("name", ["key", "value"])
def test_masked_nan_reaches_nothing(name):
    tensors = dict(zip(("query", "key", "value"), make_qkv(Shape(1, 2, 1, 70, 131, 8, 8)), strict=True))
    bias = torch.zeros(1, 2, 70, 131)
    bias[..., 64] = -torch.inf
    results = []
    for bad in (0.0, torch.nan):
        tensors[name][0, 0, [64, 100]] = bad
        leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        mask = masks.Dense(torch.arange(131) != 100) & masks.SlidingWindow(60, 3)
        out = ax.attention(**leaves, mask=mask, bias=bias)
        results.append([out, *torch.autograd.grad(out.sum(), list(leaves.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", EMPTY_SHAPES.values(), ids=EMPTY_SHAPES)
def test_empty_shapes(shape):
    terms = {"bias": torch.randn(1, 2, 1, shape.Lk), "sinks": torch.randn(2), "alibi_slopes": torch.rand(2)}
    assert_near(*make_qkv(shape), **terms)


def test_value_of_no_columns():
    query, key, value = make_qkv(Shape(1, 2, 1, 5, 6, 8, 0))
    out, lse = ax.attention(query, key, value, return_lse=True)
    assert out.shape == (1, 2, 5, 0)
    torch.testing.assert_close(lse, reference.attention(query, key, value, return_lse=True)[1])


@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "sinks", "alibi_slopes"])
def test_one_gradient_alone(name):
    shape = SHAPES["odd"]
    tensors = dict(zip(("query", "key", "value"), make_qkv(shape), strict=True))
    tensors |= {"bias": torch.randn(1, 3, 1, 131), "sinks": torch.randn(3), "alibi_slopes": torch.rand(1, 3)}
    gradients = []
    for wanted in ([name], list(tensors)):
        leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in tensors.items()}
        out = ax.attention(**leaves, mask=masks.Causal())
        gradients.append(torch.autograd.grad(out.sum(), leaves[name])[0])
    assert torch.equal(*gradients)


def test_results_do_not_depend_on_the_schedule(kernels):
    shape = SHAPES["odd"]
    inputs = make_qkv(shape, requires_grad=True)
    terms = TERMS["everything"](shape, torch.float32)
    for t in terms.values():
        if isinstance(t, torch.Tensor) and t.is_floating_point():
            t.requires_grad_()
            inputs = (*inputs, t)
    results = []
    for seed in (0, 1, 2, 3):
        kernels.set_schedule(seed)
        out, lse = ax.attention(*inputs[:3], mask=masks.Causal(), **terms, return_lse=True)
        results.append([out, lse, *torch.autograd.grad(out.sum() + lse.sum(), inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck():
    query, key, value = make_qkv(Shape(1, 2, 1, 2, 3, 2, 2), torch.float64, requires_grad=True)
    bias, sinks = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((2, 1, 3), (2,)))

    def function(query, key, value, bias, sinks):
        options = {"mask": masks.Causal(), "bias": bias, "sinks": sinks, "softcap": 2.0}
        return ax.attention(query, key, value, **options, return_lse=True)

    assert torch.autograd.gradcheck(function, (query, key, value, bias, sinks))


def test_the_bias_gradient_in_several_slots():
    # 1 x 1 elements to sum 2 * 4 * 2 * 3 tiles into: more than one block does it.
    assert_near(*make_qkv(Shape(2, 4, 2, 70, 131, 8, 8)), bias=torch.randn(1, 1, 1, 1))


def test_a_block_sums_several_tiles_of_a_bias():
    # 260 tiles for at most 256 blocks.
    query, key, value = make_qkv(Shape(130, 2, 1, 1, 3, 2, 2))
    bias = torch.randn(1, 1, 1, 3)
    found, expected = (
        torch.autograd.grad(function(query, key, value, bias=x).square().sum(), x)[0]
        for function, x in (
            (ax.attention, bias.clone().requires_grad_()),
            (reference.attention, bias.requires_grad_()),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
