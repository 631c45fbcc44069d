"""The kernels on tensor cores, which take all 16-bit calls of heads up to 256 columns, beside what
test_attention_kernels.py asks of every dtype. Sizes stand around their tiles: 16 to 128 queries, 32 or 64
keys.
"""

import emulation
import pytest
import torch
from attention_cases import LAYOUTS
from helpers import EMPTY_SHAPES, MASKS, SHAPES, Shape, make_qkv, random_keep
from test_attention_kernels import assert_near

import attention_ext as ax
from attention_ext import masks, reference

CHECKED = emulation.MODE == "checked"
# The checks take a random schedule, each test its own; values are compared in turn, and in a random order.
CASES = ((torch.float16, 3),) if CHECKED else ((torch.float16, 0), (torch.bfloat16, 5))


@pytest.fixture
def dtype(request, kernels):
    kernels.set_schedule(request.param[1])
    return request.param[0]


halves = pytest.mark.parametrize(
    "dtype", CASES, ids=lambda c: f"{str(c[0]).removeprefix('torch.')}-schedule{c[1]}", indirect=True
)


@halves
@pytest.mark.parametrize("shape", ["square", "odd", "more_queries"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, shape, dtype):
    assert_near(*make_qkv(SHAPES[shape], dtype), mask=MASKS[mask](SHAPES[shape]))


@halves
@pytest.mark.parametrize(
    "dims", [(1, 2), (64, 64), (65, 3), (3, 66), (128, 120), (136, 24), (256, 250)], ids=str
)
def test_head_dims(dims, dtype):
    # Three tiles of keys, and two blocks of queries.
    assert_near(*make_qkv(Shape(1, 2, 1, 130, 139, *dims), dtype), mask=masks.Causal())


@halves
@pytest.mark.parametrize("lengths", [(63, 64), (64, 65), (128, 31), (129, 1), (16, 192)], ids=str)
def test_lengths(lengths, dtype):
    for mask in (None, masks.Causal(), masks.SlidingWindow(64, 1)):
        assert_near(*make_qkv(Shape(1, 2, 1, *lengths, 24, 136), dtype), mask=mask)


@halves
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout, dtype):
    # Rows of 8 columns can be copied in chunks, if the layout leaves them whole.
    query, key, value = (layout(t) for t in make_qkv(Shape(2, 2, 2, 9, 70, 8, 8), dtype))
    bias = layout(torch.randn(2, 2, 9, 70, dtype=dtype))
    assert_near(query, key, value, mask=masks.Causal(), bias=bias)


@halves
def test_a_part_of_a_chunk_is_copied(dtype):
    # Aligned rows whose last chunk is 4 columns of ours, and 4 of NaN.
    wide = make_qkv(Shape(1, 2, 2, 9, 70, 16, 16), dtype)
    for t in wide:
        t[..., 12:] = torch.nan
    assert_near(*(t[..., :12] for t in wide))


@halves
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("D", [8, 72])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_masked_nonfinite_values_stay_out(bad, D, dropout, dtype):
    query, key, value = make_qkv(Shape(1, 2, 1, 70, 131, D, D), dtype)
    bias = torch.zeros(1, 2, 70, 131, dtype=dtype)
    bias[:, :, :, 64] = -torch.inf
    mask = masks.Dense(torch.arange(131) != 100) & masks.SlidingWindow(60, 3)
    options = {"mask": mask, "bias": bias, "dropout_p": dropout, "dropout_seed": 11, "return_lse": True}
    out, lse = ax.attention(query, key, value, **options)
    key[0, 0, [64, 100]] = value[0, 0, [64, 100]] = bad
    bad_out, bad_lse = ax.attention(query, key, value, **options)
    assert torch.equal(lse, bad_lse)
    # Tiles with such values are summed up pair by pair.
    torch.testing.assert_close(out, bad_out)


@halves
@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
def test_nonfinite_rows_reach_only_the_gradients_of_what_they_see(name, dtype):
    tensors = dict(
        zip(("query", "key", "value"), make_qkv(Shape(1, 2, 1, 70, 131, 72, 72), dtype), strict=True)
    )
    tensors["grad_out"] = torch.randn(1, 2, 70, 72).to(dtype)
    mask = masks.SlidingWindow(40, 3)
    results = []
    for bad in (0.0, torch.nan):
        tensors[name][0, 0, 30] = bad
        leaves = {n: t.clone().requires_grad_() for n, t in tensors.items() if n != "grad_out"}
        out = ax.attention(**leaves, mask=mask)
        results.append(torch.autograd.grad(out, list(leaves.values()), tensors["grad_out"]))
    seen = mask.dense(70, 131)[0, 0]
    keys_of, rows_of = seen[30], seen[:, 30]
    touched_rows = torch.arange(70) == 30 if name in ("query", "grad_out") else rows_of
    touched_keys = keys_of if name in ("query", "grad_out") else seen[rows_of].any(0)
    (dq, dk, dv), (bad_dq, bad_dk, bad_dv) = results
    for good, found in ((dk, bad_dk), (dv, bad_dv)):
        torch.testing.assert_close(
            found[:, :, ~touched_keys], good[:, :, ~touched_keys], rtol=0.02, atol=0.02
        )
    assert bad_dv[:, :, touched_keys].isnan().any() or name == "value"
    assert bad_dk[:, :, touched_keys].isnan().any()
    torch.testing.assert_close(bad_dq[:, :, ~touched_rows], dq[:, :, ~touched_rows], rtol=0.02, atol=0.02)


@halves
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_seen_nonfinite_values_come_through(bad, dtype):
    query, key, value = make_qkv(Shape(1, 2, 1, 70, 131, 8, 8), dtype)
    value[0, 0, 100, 3] = bad
    options = {"mask": masks.SlidingWindow(60, 3)}
    out, expected = (f(query, key, value, **options) for f in (ax.attention, reference.attention))
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isposinf(), expected.isposinf())
    finite = expected.isfinite()
    assert not finite[..., 3].all()
    torch.testing.assert_close(out[finite], expected[finite], rtol=0.02, atol=0.02)


@halves
@pytest.mark.parametrize("shape", EMPTY_SHAPES.values(), ids=EMPTY_SHAPES)
def test_empty_shapes(shape, dtype):
    terms = {"bias": torch.randn(1, 2, 1, shape.Lk), "sinks": torch.randn(2), "alibi_slopes": torch.rand(2)}
    assert_near(*make_qkv(shape, dtype), **terms)


@halves
def test_value_of_no_columns(dtype):
    query, key, value = make_qkv(Shape(1, 2, 1, 5, 6, 8, 0), dtype)
    out, lse = ax.attention(query, key, value, return_lse=True)
    assert out.shape == (1, 2, 5, 0)
    exact = reference.attention(query.double(), key.double(), value.double(), return_lse=True)[1]
    torch.testing.assert_close(lse.double(), exact, rtol=1e-5, atol=1e-5)


def test_results_do_not_depend_on_the_schedule(kernels):
    shape = Shape(1, 2, 1, 130, 131, 72, 72)
    qkv = make_qkv(shape, torch.bfloat16, requires_grad=True)
    options = {"mask": masks.SlidingWindow(70, 0), "dropout_p": 0.2, "dropout_seed": 5, "softcap": 3.0}
    results = []
    for seed in (0, 1, 2, 3):
        kernels.set_schedule(seed)
        out, lse = ax.attention(*qkv, **options, return_lse=True)
        results.append([out, lse, *torch.autograd.grad(out.sum() + lse.sum(), qkv)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(emulation.MODE == "device", reason="a device has one architecture")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_device_without_them_computes_the_same_otherwise(dtype, kernels):
    shape = SHAPES["odd"]
    qkv = make_qkv(shape, dtype)
    mask = MASKS["everything"](shape)
    on_tensor_cores = ax.attention(*qkv, mask=mask)
    kernels.set_architecture(75)
    try:
        assert_near(*qkv, mask=mask)
        plain = ax.attention(*qkv, mask=mask)
    finally:
        kernels.set_architecture(80)
    # The weights are rounded on tensor cores alone.
    assert not torch.equal(plain, on_tensor_cores)


def test_heads_of_more_columns_take_the_other_kernels():
    for D, Dv in ((257, 8), (8, 257)):
        shape = Shape(1, 1, 1, 5, 70, D, Dv)
        mask = masks.Dense(random_keep(5, 70))
        assert_near(*make_qkv(shape, torch.bfloat16), mask=mask)
