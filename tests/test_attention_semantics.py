"""What attention means at its edges: rows without keys, masked values, extreme scores, empty tensors."""

import math

import pytest
import torch
from attention_cases import TERMS, some_masked_bias
from helpers import DTYPES, EMPTY_SHAPES, FLOOR, MASKS, SHAPES, Shape, assert_attention_matches, make_qkv

import attention_ext as ax
from attention_ext import masks, reference


def run(query, key, value, *, grad_out=None, grad_lse=None, **options):
    """{"out", "lse", and the gradient of each floating argument by name}; cotangents None are random."""
    inputs = {"query": query, "key": key, "value": value}
    inputs |= {
        name: t for name, t in options.items() if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    fixed = {name: x for name, x in options.items() if name not in inputs}
    inputs = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out, lse = ax.attention(**inputs, **fixed, return_lse=True)
    grads = torch.autograd.grad(
        (out, lse),
        list(inputs.values()),
        (
            torch.randn_like(out) if grad_out is None else grad_out,
            torch.randn_like(lse) if grad_lse is None else grad_lse,
        ),
    )
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(inputs, grads, strict=True))}


# rows without keys


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_rows_without_keys_give_zero(terms, dtype):
    shape = Shape(2, 4, 2, 70, 131, 8, 9)
    keep = torch.rand(1, 1, 70, 131) > 0.5
    keep[:, :, [0, 7, 48, 69]] = False
    keep = keep.expand(2, 4, 70, 131).clone()
    keep[1, 2] = False
    empty = ~keep.any(-1)
    options = terms(shape, dtype)
    found = run(*make_qkv(shape, dtype), mask=masks.Dense(keep), **options)
    assert empty.any()
    assert not found["out"][empty].any()
    sinks = options.get("sinks")
    expected = torch.full((4,), -torch.inf) if sinks is None else sinks
    expected = expected.double()[None, :, None].expand(2, 4, 70)[empty]
    rtol = 1e-14 if dtype == torch.float64 else 2e-7  # a sink goes through the kernel's units
    torch.testing.assert_close(found["lse"].double()[empty], expected, rtol=rtol, atol=0)
    assert not found["query"][empty].any()
    assert all(t.isfinite().all() for name, t in found.items() if name != "lse")
    if "bias" in options and options["bias"].shape == keep.shape:
        assert not found["bias"][~keep].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "mask",
    [
        masks.KeyLengths([0, 0]),
        masks.KeyPadding(torch.zeros(2, 70, dtype=torch.bool)),
        masks.Dense(torch.zeros(1, dtype=torch.bool)),
        masks.SlidingWindow(5, 0, "top_left") & masks.KeyPadding((torch.arange(70) >= 19).expand(2, 70)),
    ],
    ids=["lengths", "padding", "dense", "band_and_padding"],
)
def test_nothing_seen_at_all(mask, dtype):
    shape = SHAPES["grouped"]
    found = run(*make_qkv(shape, dtype), mask=mask, bias=torch.randn(19, 70), alibi_slopes=torch.rand(6))
    assert bool((found.pop("lse") == -torch.inf).all())
    assert all(not t.any() for t in found.values())


def test_a_sink_alone_takes_the_gradient_of_lse():
    shape = SHAPES["grouped"]
    sinks, grad_lse = torch.randn(6), torch.randn(2, 6, 19)
    found = run(*make_qkv(shape), mask=masks.KeyLengths([0, 0]), sinks=sinks, grad_lse=grad_lse)
    torch.testing.assert_close(found["lse"], sinks[:, None].expand(2, 6, 19))
    torch.testing.assert_close(found["sinks"], grad_lse.sum((0, 2)))


@pytest.mark.parametrize("sink", [-math.inf, -1e30, 80.0, 1e4])
def test_extreme_sinks(sink):
    shape = SHAPES["grouped"]
    sinks = torch.tensor([sink, 0.0, sink, 1.0, -1.0, sink])
    qkv = make_qkv(shape)
    if sink == -math.inf:
        found = run(*qkv, mask=masks.KeyLengths([0, 60]), sinks=sinks)
        assert not found["out"][0].any()
        assert all(t.isfinite().all() for name, t in found.items() if name != "lse")
        assert bool((found["lse"][0, [0, 2, 5]] == -torch.inf).all())
        assert not found["sinks"][[0, 2, 5]].any()
    else:
        assert_attention_matches(*qkv, mask=masks.KeyLengths([0, 60]), sinks=sinks)


# a bias of -inf is a mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_of_minus_infinity_is_a_mask(dtype):
    shape = Shape(2, 4, 2, 37, 131, 8, 8)
    bias = some_masked_bias(shape, dtype)
    keep = bias > -torch.inf
    qkv, cotangents = make_qkv(shape, dtype), {}
    cotangents["grad_out"] = torch.randn(2, 4, 37, 8).to(dtype)
    cotangents["grad_lse"] = torch.randn(2, 4, 37, dtype=torch.float64 if dtype == torch.float64 else None)
    as_bias = run(*qkv, bias=bias, **cotangents)
    as_mask = run(*qkv, bias=bias.masked_fill(~keep, 0.0), mask=masks.Dense(keep), **cotangents)
    assert not as_bias["bias"][~keep].any()
    assert not as_bias["out"][~keep.any(-1)].any()
    for name, found in as_bias.items():
        assert torch.equal(found, as_mask[name]), name


# extreme scores


def rounding(dtype, score):
    """What rounding does to the weights of scores of this size."""
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return max(FLOOR[dtype], abs(score) * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("low", [-1e4, -1e9])
def test_additive_masks_of_finite_numbers(low, dtype):
    if dtype == torch.float16:
        low = max(low, torch.finfo(dtype).min)
    shape = SHAPES["grouped"]
    bias = torch.zeros(shape.B, 1, shape.Lq, shape.Lk, dtype=dtype)
    bias[0, :, :, 50:] = low
    bias[1, :, 3:7] = low
    # From 1e9 on float32 has no digits left for the scores: the formula's own error is the yardstick.
    floor = None if dtype != torch.float64 and low < -1e4 else rounding(dtype, low)
    assert_attention_matches(*make_qkv(shape, dtype), bias=bias, return_lse=False, floor=floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_of_the_lowest_number_is_uniform(dtype):
    """As in torch. log(Lk) is lost in its lse, but must not be in its gradients."""
    shape = SHAPES["grouped"]
    bias = torch.zeros(shape.B, 1, shape.Lq, shape.Lk, dtype=dtype)
    bias[1, :, 3:7] = torch.finfo(dtype).min
    query, key, value = make_qkv(shape, dtype)
    found = run(query, key, value, bias=bias, grad_lse=torch.zeros(2, 6, 19, dtype=bias.float().dtype))
    mean = value[1].double().mean(-2).repeat_interleave(3, 0)[:, None].expand(-1, 4, -1)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found["out"][1, :, 3:7].double(), mean, rtol=tolerance, atol=tolerance)
    assert_attention_matches(query, key, value, bias=bias, return_lse=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [30.0, 1e2, 1e4])
@pytest.mark.parametrize("terms", ["plain", "sinks", "alibi", "everything"])
def test_large_scores(terms, size, dtype):
    shape = SHAPES["grouped"]
    qkv = make_qkv(shape, dtype)
    scale = size / max(1e-3, float((qkv[0] @ qkv[1].repeat_interleave(3, 1).mT).abs().max()))
    options = TERMS[terms](shape, dtype) | {"scale": scale}
    assert_attention_matches(*qkv, mask=masks.Causal(), floor=rounding(dtype, size), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [-1e4, -200.0, 200.0, 1e4])
def test_a_common_offset_of_the_scores_changes_nothing(offset, dtype):
    shape = SHAPES["odd"]
    qkv = make_qkv(shape, dtype)
    bias = torch.full((shape.Lq, 1), offset, dtype=dtype)
    shifted, plain = (
        ax.attention(*qkv, bias=b, mask=masks.Causal(), return_lse=True) for b in (bias, 0 * bias)
    )
    tolerance = 4 * abs(offset) * torch.finfo(dtype).eps
    torch.testing.assert_close(shifted[0], plain[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(shifted[1], plain[1] + offset, rtol=tolerance, atol=0)


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_scores_that_are_not_finite_are_torchs(bad, scale):
    query, key, value = make_qkv(Shape(1, 2, 1, 19, 70, 8, 8))
    query, key = query.abs() + 0.1, key.abs() + 0.1
    query[0, 1, 3] = bad
    key[0, 0, 66] = bad
    for mask in (None, masks.Causal(), masks.SlidingWindow(30, 30)):
        found = ax.attention(query, key, value, mask=mask, scale=scale, return_lse=True)
        dense = None if mask is None else mask.dense(19, 70)
        expected = reference.attention(query, key, value, mask=mask, scale=scale, return_lse=True)
        # A row of scores that all are -inf is empty here, and NaN in torch.
        scores = query @ key.transpose(-2, -1) * scale
        if dense is not None:
            scores = scores.masked_fill(~dense, -torch.inf)
        some = (scores != -torch.inf).any(-1)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[some], theirs[some], equal_nan=True)


# empty tensors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EMPTY_SHAPES.values(), ids=EMPTY_SHAPES)
@pytest.mark.parametrize("mask", MASKS)
def test_empty_tensors(mask, shape, dtype):
    mask = MASKS[mask](shape) if shape.B and shape.Lk else masks.KeyLengths([0] * shape.B)
    for name, terms in TERMS.items():
        options = terms(shape, dtype) if name != "bias_masks" else {}
        found = run(*make_qkv(shape, dtype), mask=mask, **options)
        assert found["out"].shape == (shape.B, shape.Hq, shape.Lq, shape.Dv)
        assert not found["out"].any()
        if shape.Lq and shape.Lk == 0:
            sinks = options.get("sinks")
            expected = torch.full((shape.Hq,), -torch.inf) if sinks is None else sinks
            torch.testing.assert_close(found["lse"].float(), expected.float()[:, None].expand(2, 2, shape.Lq))
        for name in ("query", "key", "value", "bias", "alibi_slopes"):
            assert name not in found or not found[name].any(), name


# relations


def test_permuting_batch_and_heads_permutes_the_result():
    shape = Shape(3, 6, 3, 37, 70, 8, 8)
    qkv, slopes = make_qkv(shape), torch.rand(3, 6)
    rows, heads = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    of_query = (2 * heads[:, None] + torch.arange(2)).flatten()
    lengths = torch.tensor([0, 33, 70])
    expected = ax.attention(*qkv, mask=masks.KeyLengths(lengths), alibi_slopes=slopes)[rows][:, of_query]
    found = ax.attention(
        *(t[rows][:, h] for t, h in zip(qkv, (of_query, heads, heads), strict=True)),
        mask=masks.KeyLengths(lengths[rows]),
        alibi_slopes=slopes[rows][:, of_query],
    )
    torch.testing.assert_close(found, expected)


def test_permuting_queries_and_keys():
    query, key, value = make_qkv(Shape(1, 2, 1, 100, 200, 8, 8), torch.float64)
    keep = torch.rand(100, 200) > 0.7
    i, j = torch.randperm(100), torch.randperm(200)
    expected = ax.attention(query, key, value, mask=masks.Dense(keep))[:, :, i]
    found = ax.attention(query[:, :, i], key[:, :, j], value[:, :, j], mask=masks.Dense(keep[i][:, j]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_repeated_heads_are_what_a_group_reads():
    query, key, value = make_qkv(Shape(2, 6, 2, 19, 70, 8, 8), torch.float64)
    repeated = ax.attention(query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1))
    expanded = ax.attention(
        query, *(t[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for t in (key, value))
    )
    torch.testing.assert_close(ax.attention(query, key, value), repeated, rtol=1e-13, atol=1e-13)
    assert torch.equal(repeated, expanded)


def test_dropout_drops_the_share_asked_for_and_keeps_the_mean():
    query, key, _ = make_qkv(Shape(1, 4, 4, 200, 300, 8, 8))
    ones = torch.ones(1, 4, 300, 1)
    for p in (0.1, 0.5, 0.9):
        sums = ax.attention(query * 0, key, ones, dropout_p=p, dropout_seed=1)
        # 800 means of 300 draws, each kept with 1 - p and scaled by its inverse.
        deviation = math.sqrt(p / (1 - p) / (800 * 300))
        assert abs(float(sums.double().mean()) - 1) < 5 * deviation
    assert not ax.attention(query, key, ones, dropout_p=1.0).any()


def test_inputs_are_not_written():
    shape = SHAPES["grouped"]
    inputs = [*make_qkv(shape), torch.randn(6, 19, 70), torch.randn(6), torch.rand(6)]
    before = [t.clone() for t in inputs]
    query, key, value, bias, sinks, slopes = inputs
    run(query, key, value, bias=bias, sinks=sinks, alibi_slopes=slopes, mask=masks.Causal())
    assert all(torch.equal(a, b) and a._version == 0 for a, b in zip(inputs, before, strict=True))
