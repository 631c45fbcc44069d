"""ax.scaled_dot_product_attention beside torch's."""

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, FLOOR, assert_matches
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import sample_inputs_scaled_dot_product_attention

import attention_ext as ax


def by_formula(*args, **kwargs):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


def assert_same_as_torchs(query, key, value, attn_mask=None, **kwargs):
    if attn_mask is not None:
        kwargs["attn_mask"] = attn_mask
    assert_matches(ax.scaled_dot_product_attention, query, key, value, against=by_formula, **kwargs)


@pytest.mark.parametrize("n", range(25))
@pytest.mark.parametrize("dtype", DTYPES)
def test_opinfo_samples(n, dtype):
    samples = list(
        sample_inputs_scaled_dot_product_attention(
            None, torch.get_default_device(), dtype, requires_grad=True
        )
    )
    assert len(samples) == 25
    qkv, kwargs = (samples[n].input, *samples[n].args), samples[n].kwargs
    if kwargs["dropout_p"] > 0:
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(ax.scaled_dot_product_attention(*qkv, **kwargs))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        return
    # Values up to 9 make scores up to 229, and often one weight of 1: then gradients are nearly 0, while what
    # they inherit of the rounding of out is as large as ever. So they are compared at smaller scores.
    compare = partial(assert_matches, ax.scaled_dot_product_attention, against=by_formula, **kwargs)
    compare(*qkv, grads=False)
    # A backward pass that keeps only out and log-sum-exp, as torch's kernels do, loses a few roundings.
    query, *rest = (t.detach() for t in qkv)
    compare(query / 16, *rest, floor=max(FLOOR[dtype], 4 * torch.finfo(dtype).eps))


def test_dropout_is_right_on_average():
    query, key, value = (
        torch.randn(2, 5, 8).expand(300, -1, -1, -1),
        torch.randn(2, 7, 8),
        torch.randn(2, 7, 6),
    )
    draws = ax.scaled_dot_product_attention(query, key, value, dropout_p=0.4)
    expected = by_formula(query[0], key, value)
    assert ((draws.mean(0) - expected).abs() <= 6 * draws.std(0) / 300**0.5).all()


def test_signature_is_torchs():
    # torch's is a builtin without one; so its documentation writes it.
    parameters = inspect.signature(ax.scaled_dot_product_attention).parameters.values()
    shown = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
    assert str(shown) == (
        "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False)"
    )
    query = torch.randn(1, 1, 4, 8)
    torch.testing.assert_close(
        ax.scaled_dot_product_attention(query, query, query, None, 0.0, True),
        F.scaled_dot_product_attention(query, query, query, None, 0.0, True),
    )


# Leading dimensions of query, key and value, and the shape of the mask for L 5 and S 7.
BROADCAST = [
    ((), (), (), (5, 7)),
    ((3,), (3,), (3,), (7,)),
    ((3,), (3,), (3,), (3, 5, 7)),
    ((), (4, 1), (4, 1), (1, 7)),
    ((), (1,), (), (1, 5, 7)),
    ((2, 3), (2, 1), (2, 1), (3, 1, 7)),
    ((2, 3), (1, 3), (2, 1), (1, 1, 5, 7)),
    ((1, 3), (2, 3), (2, 3), (2, 3, 5, 7)),
    ((4,), (2, 1), (2, 1), (4, 1, 7)),
    ((2, 3, 4), (2, 3, 4), (2, 3, 4), (2, 1, 1, 5, 7)),
    ((2, 3, 4), (3, 1), (), (1, 7)),
    ((2, 3, 4), (1, 3, 4), (2, 1, 4), (3, 4, 5, 7)),
    ((2, 2, 3, 4), (3, 4), (1, 2, 1, 4), (2, 1, 1, 4, 5, 7)),
]


@pytest.mark.parametrize(("query", "key", "value", "mask"), BROADCAST)
@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal"])
def test_leading_dimensions_broadcast(query, key, value, mask, kind):
    query, key, value = torch.randn(*query, 5, 8), torch.randn(*key, 7, 8), torch.randn(*value, 7, 6)
    made = {"none": None, "causal": None, "bool": torch.rand(mask) > 0.4, "float": torch.randn(mask)}[kind]
    assert_same_as_torchs(query, key, value, made, is_causal=kind == "causal")


@pytest.mark.parametrize("mask", [(), (1,), (5, 1), (3, 1, 1)])
def test_masks_that_are_the_same_for_all_keys(mask):
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
    assert_same_as_torchs(query, key, value, torch.rand(mask) > 0.4)
    bias = torch.randn(mask)  # cancels; its gradient is 0, with rounding
    torch.testing.assert_close(
        ax.scaled_dot_product_attention(query, key, value, bias), by_formula(query, key, value)
    )


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [((2, 4), (2, 2), (2, 2)), ((2, 4), (2, 1), (2, 4)), ((2, 6), (2, 2), (2, 3)), ((4,), (3, 2), (2,)),
     ((3, 2, 4), (3, 2, 2), (2, 4)), ((2, 4), (2, 4), (2, 4))],
)  # fmt: skip
def test_grouped_queries(query, key, value):
    query, key, value = torch.randn(*query, 5, 8), torch.randn(*key, 7, 8), torch.randn(*value, 7, 6)
    assert_same_as_torchs(query, key, value, enable_gqa=True)
    assert_same_as_torchs(query, key, value, torch.randn(5, 7), enable_gqa=True, scale=-0.3)


@pytest.mark.parametrize("scale", [None, 0.0, 0.25, -1.5])
def test_scale(scale):
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    assert_same_as_torchs(query, key, value, scale=scale)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0, 3), (2, 0), (0,), (2, 0, 3), (0, 2, 3)])
@pytest.mark.parametrize(("L", "S"), [(5, 7), (0, 7), (5, 0)])
def test_empty(leading, L, S):
    if 0 not in (*leading, L, S):
        return
    shapes = (*leading, L, 8), (*leading, S, 8), (*leading, S, 6)
    for kwargs in ({}, {"is_causal": True}, {"attn_mask": torch.ones(*leading, L, S, dtype=torch.bool)}):
        query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
        found = ax.scaled_dot_product_attention(query, key, value, **kwargs)
        assert found.shape == (*leading, L, 6)
        assert not found.any()
        found.sum().backward()
        assert all(t.grad.shape == t.shape and not t.grad.any() for t in (query, key, value))


def test_rows_without_keys_are_zero():
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    keep = torch.rand(5, 7) > 0.4
    keep[2] = False
    assert_same_as_torchs(query, key, value, keep)
    assert (ax.scaled_dot_product_attention(query, key, value, keep)[:, :, 2] == 0).all()
    bias = torch.randn(5, 7).masked_fill(~keep, -math.inf).requires_grad_()
    found = ax.scaled_dot_product_attention(query, key, value, bias)
    torch.testing.assert_close(found, by_formula(query, key, value, bias))
    found.sum().backward()
    assert (bias.grad[~keep] == 0).all()
    assert bias.grad[keep].abs().max() > 1e-3


def test_masked_values_that_are_not_finite_stay_out():
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    keep = torch.ones(7, dtype=torch.bool)
    keep[3] = False
    expected = ax.scaled_dot_product_attention(query, key, value, keep)
    key[:, :, 3], value[:, :, 3] = math.nan, math.inf
    assert torch.equal(ax.scaled_dot_product_attention(query, key, value, keep), expected)


def test_the_mask_may_be_float32_for_a_half_query():
    query, key, value = (torch.randn(2, 3, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.randn(3, 5, 5, requires_grad=True)
    out = ax.scaled_dot_product_attention(query, key, value, mask)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert mask.grad.dtype == torch.float32
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask)
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)


def test_it_is_our_operator_and_makes_no_copies(monkeypatch):
    calls = []

    def recorded(query, key, value, **options):
        calls.append((query, key, value, options))
        return attention(query, key, value, **options)

    attention = ax.functional.attention
    monkeypatch.setattr(ax.functional, "attention", recorded)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(1, 1, 7, 8), torch.randn(2, 1, 7, 8)
    keep = torch.rand(4, 1, 7) > 0.2
    ax.scaled_dot_product_attention(query, key, value, keep)
    ((q, k, v, options),) = calls
    for given, original in ((q, query), (k, key), (v, value), (options["mask"].tensor, keep)):
        assert given.data_ptr() == original.data_ptr()
        assert given.untyped_storage().nbytes() == original.untyped_storage().nbytes()
    assert k.shape == v.shape == (2, 1, 7, 8), "heads that broadcast are a group"


Q, K, V = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 6)
LEADING = "key, value: expected leading dimensions that broadcast with those of query, got shapes "
MASK_SHAPE = "attn_mask: expected a shape that broadcasts to (2, 4, 5, 7), got "
MASK_DTYPE = "attn_mask: expected dtype bool, float32 or the dtype of query, torch.float32, got "
CAUSAL, GQA = {"is_causal": True}, {"enable_gqa": True}
ERRORS = [
    ((Q[0, 0, 0], K, V), {}, ValueError, "query: expected shape (..., L, E), got (8,)"),
    ((Q, K, V[0, 0, 0]), {}, ValueError, "value: expected shape (..., L, E), got (6,)"),
    ((Q, K[0, 0], V), GQA, ValueError, "key: expected shape (..., H, L, E) with enable_gqa, got (7, 8)"),
    ((Q, K[:, :3], V), {}, ValueError, f"{LEADING}(2, 4, 5, 8), (2, 3, 7, 8), (2, 4, 7, 6)"),
    ((Q, K[:, :2], V[:, :2]), {}, ValueError, f"{LEADING}(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)"),
    (
        (Q, K[:, :3], V[:, :2]),
        GQA,
        ValueError,
        "key: expected a number of heads that divides query's 4, got 3",
    ),
    (
        (Q, K[..., :5], V),
        {},
        ValueError,
        "key: expected the head dimension of query, 8, got shape (2, 4, 7, 5)",
    ),
    ((Q, K, V[:, :, :5]), {}, ValueError, "value: expected the length of key, 7, got shape (2, 4, 5, 6)"),
    ((Q, K.double(), V), {}, TypeError, "key: expected the dtype of query, torch.float32, got torch.float64"),
    ((Q, K, None), {}, TypeError, "value: expected a torch.Tensor, got NoneType"),
    ((Q, K, V, None, 1.5), {}, ValueError, "dropout_p: expected a number from 0 to 1, got 1.5"),
    ((Q, K, V, K), CAUSAL, ValueError, "is_causal: expected False where attn_mask is given, got True"),
    ((Q, K, V, torch.ones(5, 7).long()), {}, TypeError, f"{MASK_DTYPE}torch.int64"),
    ((Q, K, V, torch.ones(5, 7).half()), {}, TypeError, f"{MASK_DTYPE}torch.float16"),
    ((Q, K, V, torch.ones(5, 6)), {}, ValueError, f"{MASK_SHAPE}(5, 6)"),
    ((Q, K, V, torch.ones(1, 2, 4, 5, 7)), {}, ValueError, f"{MASK_SHAPE}(1, 2, 4, 5, 7)"),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "message"), ERRORS, ids=[e[3] for e in ERRORS])
def test_errors_where_torch_raises(args, kwargs, error, message):
    with pytest.raises(error) as raised:
        ax.scaled_dot_product_attention(*args, **kwargs)
    assert str(raised.value) == message
    with pytest.raises((RuntimeError, TypeError, IndexError)):
        F.scaled_dot_product_attention(*args, **kwargs)


def test_compiled_with_open_sizes():
    def function(query, key, value, mask):
        return ax.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for L, S in [(5, 7), (6, 9)]:
        query, key, value = torch.randn(2, 3, 4, L, 8), torch.randn(3, 2, S, 8), torch.randn(2, 3, 2, S, 6)
        for mask in (torch.rand(L, S) > 0.3, torch.randn(4, 1, S)):
            torch.testing.assert_close(compiled(query, key, value, mask), function(query, key, value, mask))
