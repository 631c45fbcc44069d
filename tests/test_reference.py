"""The reference formulas against the definitions, written out in Python's floats."""

import math

import pytest
import torch
from helpers import EMPTY_SHAPES, MASKS, SHAPES, Shape, make_qkv
from torch.nn.functional import scaled_dot_product_attention

from attention_ext import reference
from attention_ext._philox import philox4x32
from attention_ext.masks import Causal, Dense, KeyLengths, KeyPadding

SMALL = Shape(2, 4, 2, 5, 7, 3, 2)
NAN = math.nan


def by_definition(
    query, key, value, allowed, *, bias=None, scale=None, softcap=None, sinks=None, alibi_slopes=None,
    keep=None, dropout_p=0.0,
):  # fmt: skip
    """(out, lse) of float64 tensors, one query at a time."""
    B, Hq, Lq, D = query.shape
    Hkv, Lk = key.shape[1:3]
    allowed = allowed.expand(B, Hq, Lq, Lk)
    out, lse = (
        torch.zeros(B, Hq, Lq, value.shape[3], dtype=torch.float64),
        torch.zeros(B, Hq, Lq, dtype=torch.float64),
    )
    for b in range(B):
        for h in range(Hq):
            for i in range(Lq):
                weights = {}
                for j in range(Lk):
                    s = sum(
                        a * c
                        for a, c in zip(
                            query[b, h, i].tolist(), key[b, h * Hkv // Hq, j].tolist(), strict=True
                        )
                    )
                    s *= D**-0.5 if scale is None else scale
                    if softcap:
                        s = softcap * math.tanh(s / softcap)
                    if bias is not None:
                        s += float(bias.expand(B, Hq, Lq, Lk)[b, h, i, j])
                    if alibi_slopes is not None:
                        s -= float(alibi_slopes.expand(B, Hq)[b, h]) * abs(i + Lk - Lq - j)
                    if allowed[b, h, i, j] and s > -math.inf:
                        weights[j] = math.exp(s)
                total = sum(weights.values()) + (0.0 if sinks is None else math.exp(float(sinks[h])))
                lse[b, h, i] = math.log(total) if total else -math.inf
                for j, weight in weights.items():
                    if keep is None or keep[b, h, i, j]:
                        out[b, h, i] += weight / total / (1 - dropout_p) * value[b, h * Hkv // Hq, j]
    return out, lse


def some_bias(*sizes):
    bias = torch.randn(sizes, dtype=torch.float64)
    return bias.masked_fill(torch.rand(sizes) < 0.2, -math.inf)


OPTIONS = {
    "plain": lambda s: {},
    "scale": lambda s: {"scale": -0.7},
    "softcap": lambda s: {"softcap": 1.5},
    "bias": lambda s: {"bias": some_bias(s.B, s.Hq, s.Lq, s.Lk)},
    "shared_bias": lambda s: {"bias": some_bias(s.Hq, 1, s.Lk)},
    "sinks": lambda s: {"sinks": torch.randn(s.Hq, dtype=torch.float64)},
    "alibi": lambda s: {"alibi_slopes": torch.rand(s.Hq, dtype=torch.float64)},
    "alibi_rows": lambda s: {"alibi_slopes": torch.rand(s.B, s.Hq, dtype=torch.float64)},
    "all": lambda s: {
        "scale": 0.4,
        "softcap": 2.0,
        "bias": some_bias(s.B, 1, s.Lq, 1),
        "sinks": torch.randn(s.Hq, dtype=torch.float64),
        "alibi_slopes": torch.rand(s.Hq, dtype=torch.float64),
    },
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("mask_name", ["none", "causal", "window", "lengths", "everything"])
def test_attention_is_its_definition(option, mask_name):
    qkv, mask, options = make_qkv(SMALL, torch.float64), MASKS[mask_name](SMALL), OPTIONS[option](SMALL)
    allowed = torch.ones(1, 1, 1, 1, dtype=torch.bool) if mask is None else mask.dense(SMALL.Lq, SMALL.Lk)
    expected = by_definition(*qkv, allowed, **options)
    found = reference.attention(*qkv, mask=mask, return_lse=True, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(reference.attention(*qkv, mask=mask, **options), found[0])
    given = reference.attention(*qkv, mask=None if mask is None else allowed, return_lse=True, **options)
    assert torch.equal(given[0], found[0])
    weights = reference.attention_weights(*qkv[:2], mask=mask, **options)
    assert weights.shape == (SMALL.B, SMALL.Hq, SMALL.Lq, SMALL.Lk)
    torch.testing.assert_close(weights @ qkv[2].repeat_interleave(2, 1), expected[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_drops_what_dropout_keep_says(p):
    qkv, sinks = make_qkv(SMALL, torch.float64), torch.randn(SMALL.Hq, dtype=torch.float64)
    keep = reference.dropout_keep(5, p, SMALL.B, SMALL.Hq, SMALL.Lq, SMALL.Lk)
    allowed = Causal().dense(SMALL.Lq, SMALL.Lk)
    found = reference.attention(
        *qkv, mask=Causal(), sinks=sinks, dropout_p=p, dropout_seed=torch.tensor(5), return_lse=True
    )
    expected = by_definition(*qkv, allowed, sinks=sinks, keep=keep, dropout_p=p if p < 1 else 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    weights = reference.attention_weights(*qkv[:2], mask=Causal(), dropout_p=p, dropout_seed=5)
    assert torch.equal(weights != 0, keep & allowed)


def test_dropout_without_a_seed_follows_torch():
    qkv = make_qkv(SMALL)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(reference.attention(*qkv, dropout_p=0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# Philox and the dropout draw


# Known answers of the authors' library, Random123: counter and key of zeros, of ones, of the digits of pi.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_numbers(counter, key, words):
    seed = key[0] | key[1] << 32
    signed = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    for given in (seed, signed, int(signed)):
        found = philox4x32(given, tuple(torch.tensor(c) for c in counter))
        assert tuple(int(w) for w in found) == words


def test_dropout_keep_counts_by_b_h_q_k():
    seed, p, sizes = 123456789012345, 0.37, (2, 3, 5, 11)
    keep = reference.dropout_keep(seed, p, *sizes)
    assert keep.shape == sizes
    for b, h, q, k in [(0, 0, 0, 0), (1, 2, 4, 10), (0, 1, 3, 6), (1, 0, 2, 7)]:
        counter = tuple(torch.tensor(c) for c in (k // 4, q, h, b))
        assert keep[b, h, q, k] == (philox4x32(seed, counter)[k % 4] >= round(p * 2**32))
    # A larger attention draws the same for the pairs that both have.
    assert torch.equal(reference.dropout_keep(seed, p, 3, 4, 9, 30)[:2, :3, :5, :11], keep)
    assert torch.equal(reference.dropout_keep(torch.tensor(seed), p, *sizes), keep)
    assert not torch.equal(reference.dropout_keep(seed + 1, p, *sizes), keep)
    assert not torch.equal(reference.dropout_keep(seed + 2**32, p, *sizes), keep)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_drops_the_share_asked_for(p):
    keep = reference.dropout_keep(7, p, 1, 4, 100, 250)
    n = keep.numel()
    assert abs(float(keep.double().mean()) - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / n)


# dtypes, ranks, sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_results_have_the_dtypes_of_the_operator(dtype):
    qkv = make_qkv(SMALL, dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    exact = reference.attention(*(t.double() for t in qkv), mask=Causal(), return_lse=True)
    for bias_dtype in {dtype, torch.float32}:
        options = {"bias": torch.zeros(SMALL.Lk, dtype=bias_dtype), "sinks": torch.full((SMALL.Hq,), -1e4)}
        out, lse = reference.attention(*qkv, mask=Causal(), return_lse=True, **options)
        assert out.dtype == dtype
        assert lse.dtype == accumulator
        torch.testing.assert_close(out.double(), exact[0], rtol=0, atol=20 * torch.finfo(dtype).eps)
        torch.testing.assert_close(lse.double(), exact[1], rtol=0, atol=20 * torch.finfo(dtype).eps)
        assert reference.attention_weights(*qkv[:2], **options).dtype == dtype


def test_plain_attention_is_torchs():
    for causal in (False, True):
        qkv = make_qkv(SMALL, torch.float64)
        expected = scaled_dot_product_attention(*qkv, is_causal=causal, enable_gqa=True)
        found = reference.attention(*qkv, mask=Causal("top_left") if causal else None)
        torch.testing.assert_close(found, expected)


def test_fewer_dimensions():
    query, key, value = make_qkv(Shape(1, 4, 2, 5, 7, 3, 2))
    options = {"mask": Causal(), "bias": torch.randn(4, 1, 7), "sinks": torch.randn(4), "return_lse": True}
    whole = reference.attention(query, key, value, **options)
    for full, found in zip(whole, reference.attention(query[0], key[0], value[0], **options), strict=True):
        assert torch.equal(found, full[0])
    one = reference.attention(query[0, 0], key[0, 0], value[0, 0], mask=Causal(), return_lse=True)
    four = reference.attention(query[:, :1], key[:, :1], value[:, :1], mask=Causal(), return_lse=True)
    for found, full in zip(one, four, strict=True):
        assert torch.equal(found, full[0, 0])
    assert reference.attention_weights(query[0], key[0]).shape == (4, 5, 7)


@pytest.mark.parametrize("name", EMPTY_SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_empty_sizes(name, masked):
    shape = EMPTY_SHAPES[name]
    query, key, value = make_qkv(shape, requires_grad=True)
    sinks = torch.randn(shape.Hq, requires_grad=True)
    mask = Causal() & KeyLengths([0] * shape.B) if masked else None
    for options in ({}, {"sinks": sinks}, {"bias": torch.randn(shape.Hq, shape.Lq, shape.Lk)}):
        out, lse = reference.attention(query, key, value, mask=mask, return_lse=True, **options)
        assert out.shape == (shape.B, shape.Hq, shape.Lq, shape.Dv)
        assert lse.shape == (shape.B, shape.Hq, shape.Lq)
        assert (out == 0).all()
        expected = (
            sinks[None, :, None].expand_as(lse) if "sinks" in options else torch.full_like(lse, -math.inf)
        )
        assert torch.equal(lse, expected)
        grads = torch.autograd.grad(out.sum(), (query, key, value))
        assert all(not grad.any() for grad in grads)


# rows without keys, values that are not finite


def test_rows_without_keys_are_zero_and_take_no_gradient():
    query, key, value = make_qkv(SMALL, torch.float64, requires_grad=True)
    sinks = torch.randn(SMALL.Hq, dtype=torch.float64, requires_grad=True)
    mask = KeyLengths([0, 4])
    for options in ({}, {"sinks": sinks}):
        out, lse = reference.attention(query, key, value, mask=mask, return_lse=True, **options)
        assert (out[0] == 0).all()
        empty = sinks[:, None].expand(-1, SMALL.Lq) if options else torch.full_like(lse[0], -math.inf)
        assert torch.equal(lse[0], empty)
        cotangent = torch.randn_like(out)
        cotangent[0] = NAN  # what comes in at an empty row goes nowhere
        grads = torch.autograd.grad((out, lse), (query, key, value), (cotangent, torch.ones_like(lse)))
        assert all(grad.isfinite().all() for grad in grads)
        assert all((grad[0] == 0).all() for grad in grads)
        assert all((grad[1, :, 4:] == 0).all() for grad in grads[1:])


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("by", ["mask", "bias"])
def test_masked_values_that_are_not_finite_stay_out(bad, by):
    """Key 2 is seen by nobody, key 5 from query 3 on."""
    allowed = torch.arange(7) <= torch.arange(5)[:, None] + 2
    allowed[:, 2] = False
    bias = torch.zeros(5, 7, dtype=torch.float64).masked_fill(~allowed, -math.inf)
    options = {"mask": Dense(allowed)} if by == "mask" else {"bias": bias}
    options |= {"softcap": 3.0, "return_lse": True}
    clean = make_qkv(SMALL, torch.float64, requires_grad=True)
    for where in (1, 2):
        spoilt = [t.detach().clone() for t in clean]
        spoilt[where][:, :, 2] = bad
        spoilt[where][1, :, 5, 0] = bad
        spoilt = [t.requires_grad_() for t in spoilt]
        out, lse = reference.attention(*spoilt, **options)
        expected, expected_lse = reference.attention(*clean, **options)
        blind = torch.ones(2, 1, 5, dtype=torch.bool)
        blind[1, :, 3:] = False
        blind = blind.expand(2, 4, 5)
        torch.testing.assert_close(out[blind], expected[blind])
        torch.testing.assert_close(lse[blind], expected_lse[blind])
        if math.isnan(bad):
            assert out[~blind].isnan().any(-1).all()
        grads = torch.autograd.grad(out[blind].sum() + lse[blind].sum(), spoilt, retain_graph=True)
        wanted = torch.autograd.grad(expected[blind].sum() + expected_lse[blind].sum(), clean)
        torch.testing.assert_close(grads[0][blind], wanted[0][blind])
        for found, want in zip(grads[1:], wanted[1:], strict=True):
            torch.testing.assert_close(found[0], want[0])
            assert (found[:, :, 2] == 0).all()


def test_infinite_keys_and_values_that_are_seen_count():
    query = torch.tensor([[1.0], [-1.0]])
    key = torch.tensor([[0.0], [math.inf], [7.0]])
    value = torch.tensor([[1.0], [2.0], [NAN]])
    out = reference.attention(query, key, value, mask=KeyPadding(torch.tensor([[True, True, False]])))
    assert out[1].item() == 1.0
    assert out[0].isnan()


# derivatives


def differentiable_case():
    """Every option at once; rows without keys and a bias of -inf among them."""
    shape = Shape(2, 2, 1, 3, 4, 2, 3)
    query, key, value = make_qkv(shape, torch.float64, requires_grad=True)
    bias = torch.randn(2, 3, 1, dtype=torch.float64)
    bias[1, 2] = -math.inf
    sinks = torch.randn(2, dtype=torch.float64)
    slopes = torch.rand(2, 2, dtype=torch.float64)
    inputs = (query, key, value, bias.requires_grad_(), sinks.requires_grad_(), slopes.requires_grad_())

    def function(query, key, value, bias, sinks, slopes):
        options = {"softcap": 2.0, "dropout_p": 0.3, "dropout_seed": 3, "return_lse": True}
        mask = Causal("top_left") & KeyLengths([0, 3])
        with_sinks = reference.attention(
            query, key, value, mask=mask, bias=bias, sinks=sinks, alibi_slopes=slopes, **options
        )
        out, lse = reference.attention(query, key, value, mask=mask, **options)
        return *with_sinks, out, torch.where(lse > -math.inf, lse, 0.0)

    return function, inputs


def test_first_derivatives():
    function, inputs = differentiable_case()
    assert torch.autograd.gradcheck(
        function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True,
        fast_mode=True,
    )  # fmt: skip


def test_second_derivatives():
    function, inputs = differentiable_case()
    assert torch.autograd.gradgradcheck(
        function,
        inputs,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        fast_mode=True,
    )


def test_transforms():
    query, key, value = make_qkv(Shape(1, 2, 1, 3, 4, 2, 2), torch.float64)

    def function(query):
        return reference.attention(query, key, value, mask=Causal(), softcap=2.0).square().sum()

    hessian = torch.func.hessian(function)(query)
    for other in (
        torch.func.jacrev(torch.func.jacrev(function)),
        torch.func.jacfwd(torch.func.jacfwd(function)),
    ):
        torch.testing.assert_close(other(query), hessian)
    assert hessian.abs().max() > 1e-3
    queries = torch.randn(3, *query.shape, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(function)(queries), torch.stack([function(q) for q in queries]))
    compiled = torch.compile(torch.func.grad(function), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query), torch.func.grad(function)(query))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(5, 6, dtype=torch.bool),
            r"mask: expected bool, broadcastable to \(2, 4, 5, 7\), got torch.bool of",
        ),
        (torch.ones(5, 7), r"mask: expected bool, .* got torch.float32 of shape \(1, 1, 5, 7\)"),
        (KeyLengths([1, 2, 3]), r"mask: expected bool, .* got torch.bool of shape \(3, 1, 1, 7\)"),
    ],
)
def test_masks_that_do_not_fit(mask, message):
    with pytest.raises(ValueError, match=message):
        reference.attention(*make_qkv(SMALL), mask=mask)


@pytest.mark.parametrize("shape", [SHAPES["grouped"], SHAPES["one_kv_head"]], ids=["grouped", "one_kv_head"])
def test_query_head_h_reads_key_head_h_over_group(shape):
    query, key, value = make_qkv(shape)
    out = reference.attention(query, key, value)
    for h in range(shape.Hq):
        own = slice(h * shape.Hkv // shape.Hq, h * shape.Hkv // shape.Hq + 1)
        single = reference.attention(query[:, h : h + 1], key[:, own], value[:, own])
        torch.testing.assert_close(out[:, h : h + 1], single)
