"""Attention of few queries over many keys, which the kernels cut into splits and merge: out and lse against
the formula in float64. Splits have 128 keys and more; a block has 64 rows of queries and heads, a warp 16.
"""

import emulation
import pytest
import torch
from attention_cases import LAYOUTS, TERMS
from helpers import MASKS, Shape, assert_close_to, make_qkv

import attention_ext as ax
from attention_ext import masks, reference

CHECKED = emulation.MODE == "checked"
# The checks take a random schedule, each test its own; values are compared in turn, and in a random order.
PLAIN = ((torch.float32, 3),) if CHECKED else ((torch.float32, 0), (torch.float64, 7))
TENSOR = ((torch.float16, 3),) if CHECKED else ((torch.float16, 0), (torch.bfloat16, 5))

# Rows of a block: 1, 3, 12, 32, 40, 64 twice, and 64, 64 and 12 with more than one query tile of a table.
SHAPES = {
    "one_query": Shape(2, 2, 2, 1, 300, 24, 24),
    "three_queries": Shape(1, 2, 2, 3, 257, 8, 8),
    "group_of_4": Shape(2, 8, 2, 3, 300, 24, 40),
    "two_warps_of_rows": Shape(1, 2, 1, 16, 390, 8, 16),
    "group_of_8": Shape(1, 8, 1, 5, 411, 17, 3),
    "group_of_128": Shape(1, 128, 1, 1, 260, 8, 8),
    "chunk_of_prefill": Shape(1, 2, 1, 70, 300, 16, 16),
}


@pytest.fixture
def dtype(request, kernels):
    kernels.set_schedule(request.param[1])
    return request.param[0]


def variants(cases):
    ids = [f"{str(dtype).removeprefix('torch.')}-schedule{seed}" for dtype, seed in cases]
    return pytest.mark.parametrize("dtype", cases, ids=ids, indirect=True)


def assert_near(*qkv, **options):
    def run(function, dtype):
        given = {
            name: x.to(dtype or x.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for name, x in options.items()
        }
        return function(*(t.to(dtype or t.dtype) for t in qkv), **given, return_lse=True)

    with torch.no_grad():
        found, plain = run(ax.attention, None), run(reference.attention, None)
        exact = run(reference.attention, torch.float64)
    for name, *results in zip(("out", "lse"), found, exact, plain, strict=True):
        assert_close_to(*results, name)


@variants((*PLAIN, *TENSOR))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, dtype):
    assert_near(*make_qkv(shape, dtype), mask=masks.Causal())


@variants((PLAIN[0], TENSOR[0]))
@pytest.mark.parametrize("shape", ["group_of_4", "chunk_of_prefill"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, shape, dtype):
    assert_near(*make_qkv(SHAPES[shape], dtype), mask=MASKS[mask](SHAPES[shape]))


@variants((PLAIN[-1], TENSOR[-1]))
@pytest.mark.parametrize("mask", ["none", "everything"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_terms(terms, mask, dtype):
    shape = SHAPES["group_of_4"]
    assert_near(*make_qkv(shape, dtype), mask=MASKS[mask](shape), **terms(shape, dtype))


@variants(TENSOR)
@pytest.mark.parametrize("dims", [(1, 2), (64, 64), (65, 3), (120, 128), (136, 250), (257, 8)], ids=str)
def test_head_dims(dims, dtype):
    assert_near(*make_qkv(Shape(1, 4, 1, 3, 260, *dims), dtype), mask=masks.Causal())


@variants(PLAIN)
@pytest.mark.parametrize("dims", [(1, 2), (65, 3), (3, 130)], ids=str)
def test_head_dims_of_plain_kernels(dims, dtype):
    assert_near(*make_qkv(Shape(1, 4, 1, 3, 260, *dims), dtype), mask=masks.Causal())


@variants((PLAIN[0], TENSOR[0]))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout, dtype):
    query, key, value = (layout(t) for t in make_qkv(Shape(2, 4, 4, 2, 260, 8, 8), dtype))
    bias = layout(torch.randn(2, 4, 2, 260, dtype=dtype))
    assert_near(query, key[:, ::2], value[:, ::2], mask=masks.Causal(), bias=bias)


@variants(TENSOR[:1])
def test_heads_that_are_not_aligned(dtype):
    query, key, value = make_qkv(Shape(1, 4, 1, 2, 260, 8, 8), dtype)
    apart = torch.zeros(1, 4, 20, dtype=dtype)  # rows are, heads are not multiples of 16 bytes apart
    query = apart.as_strided(query.shape, (0, 20, 8, 1)).copy_(query)
    assert_near(query, key, value)


@variants((PLAIN[0], TENSOR[0]))
def test_splits_whose_keys_nobody_sees(dtype):
    shape = Shape(3, 4, 2, 3, 390, 8, 8)
    query, key, value = make_qkv(shape, dtype)
    # Of the second batch row a split has one key, of the first none has any.
    lengths = masks.KeyLengths(torch.tensor([0, 129, 390]))
    for sinks in (None, torch.randn(4)):
        assert_near(query, key, value, mask=lengths, sinks=sinks)
        out, lse = ax.attention(query, key, value, mask=lengths, sinks=sinks, return_lse=True)
        assert not out[0].any()
        empty = torch.full((4,), -torch.inf) if sinks is None else sinks
        assert torch.equal(lse[0], empty[:, None].expand(4, 3).to(lse.dtype))
    assert_near(query, key, value, mask=masks.SlidingWindow(2, 1) & lengths)


@variants((PLAIN[0], *TENSOR))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_masked_nonfinite_keys_stay_out(bad, dtype):
    query, key, value = make_qkv(Shape(1, 4, 2, 3, 300, 8, 8), dtype)
    bias = torch.zeros(1, 4, 1, 300, dtype=dtype)
    bias[..., 64] = -torch.inf
    options = {"mask": masks.Dense(torch.arange(300) != 200), "bias": bias, "return_lse": True}
    out, lse = ax.attention(query, key, value, **options)
    key[0, 0, [64, 200]] = value[0, 0, [64, 200]] = bad
    bad_out, bad_lse = ax.attention(query, key, value, **options)
    assert torch.equal(lse, bad_lse)
    torch.testing.assert_close(out, bad_out)


@variants((PLAIN[0], *TENSOR))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_seen_nonfinite_values_come_through(bad, dtype):
    query, key, value = make_qkv(Shape(1, 4, 2, 3, 300, 8, 8), dtype)
    value[0, 0, 100, 3] = bad
    options = {"mask": masks.SlidingWindow(198, 0)}  # of the last two queries' keys, 100 is not one
    out, expected = (f(query, key, value, **options) for f in (ax.attention, reference.attention))
    finite = expected.isfinite()
    assert not finite[0, 0, 0, 3]
    assert finite[0, :, 2].all()
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=0.02, atol=0.02)


@variants((PLAIN[0], *TENSOR))
def test_an_infinite_score(dtype):
    query, key, value = make_qkv(Shape(1, 2, 2, 1, 300, 8, 8), dtype)
    bias = torch.zeros(1, 2, 1, 300)
    bias[0, 0, 0, 150] = torch.inf
    out, lse = ax.attention(query, key, value, bias=bias, return_lse=True)
    assert out[0, 0].isnan().all()
    assert lse[0, 0] == torch.inf
    expected = reference.attention(query, key, value, bias=bias)
    torch.testing.assert_close(out[0, 1], expected[0, 1], rtol=0.02, atol=0.02)


@variants((PLAIN[0], TENSOR[0]))
def test_sinks_that_outweigh_all_keys(dtype):
    shape = Shape(1, 2, 1, 2, 300, 8, 8)
    assert_near(*make_qkv(shape, dtype), sinks=torch.tensor([100.0, -100.0]))


@variants((PLAIN[0], TENSOR[0]))
def test_gradients_follow_from_the_merged_lse(dtype):
    shape = SHAPES["three_queries"]
    qkv = make_qkv(shape, dtype, requires_grad=True)
    sinks = torch.randn(shape.Hq, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in (*qkv, sinks)]
    mask = MASKS["causal_lengths"](shape)
    out = ax.attention(*qkv, mask=mask, sinks=sinks)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (*qkv, sinks), cotangent)
    out = reference.attention(*exact[:3], mask=mask, sinks=exact[3])
    expected = torch.autograd.grad(out, exact, cotangent.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.02, atol=2e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_schedule(dtype, kernels):
    qkv = make_qkv(Shape(1, 4, 2, 5, 300, 24, 24), dtype)
    options = {"mask": masks.SlidingWindow(250, 0), "dropout_p": 0.2, "dropout_seed": 5, "softcap": 3.0}
    results = []
    for seed in (0, 1, 2, 3):
        kernels.set_schedule(seed)
        results.append(ax.attention(*qkv, **options, return_lse=True))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(emulation.MODE == "device", reason="a device has one architecture")
def test_a_device_without_tensor_cores(kernels):
    shape = SHAPES["group_of_4"]
    kernels.set_architecture(75)
    try:
        assert_near(*make_qkv(shape, torch.float16), mask=MASKS["everything"](shape))
    finally:
        kernels.set_architecture(80)
