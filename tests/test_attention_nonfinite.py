"""NaN and infinity reach what depends on them by the mask, and no other result or gradient."""

import math

import pytest
import torch
from helpers import Shape, make_qkv, random_choice, random_keep
from torch import Tensor

import attention_ext as ax
from attention_ext import masks

SHAPE = Shape(2, 4, 2, 70, 131, 8, 8)
WINDOW = masks.SlidingWindow(9, 4)

MASKS = {
    "lengths": masks.KeyLengths([60, 129]),
    "no_keys_in_a_row": masks.KeyLengths([0, 131]),
    "padding": masks.KeyPadding(torch.arange(262).reshape(2, 131) % 5 != 0),
    "causal": masks.Causal(),
    "causal_top_left": masks.Causal("top_left"),
    "window": WINDOW,
    "blocks": masks.Dense(torch.arange(70)[:, None] // 10 == torch.arange(131) // 20),
    "window_lengths": WINDOW & masks.KeyLengths([90, 131]),
    "chosen": random_choice(SHAPE, 64) & masks.KeyLengths([60, 129]),
    "chosen_small": random_choice(SHAPE, 24) & masks.KeyLengths([90, 131]),
}


def random_mask():
    """Per head, with rows that see nothing and keys that nobody sees."""
    keep = random_keep(2, 4, 70, 131)
    keep[:, :, 5] = False
    keep[..., [0, 64, 130]] = False
    return masks.Dense(keep)


def gradients(inputs: dict[str, Tensor], grad_out: Tensor, **options) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out, lse = ax.attention(**leaves, **options, return_lse=True)
    # The gradient of lse reaches its row even where out is NaN.
    grads = torch.autograd.grad((out, lse), list(leaves.values()), (grad_out, torch.ones_like(lse)))
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(leaves, grads, strict=True))}


def reached(name: str, bad: Tensor, seen: Tensor, group: int) -> dict[str, Tensor]:
    """Which elements of results and gradients depend on the bad rows (B, H, L) of the tensor `name`.

    seen: bool (B, Hq, Lq, Lk).
    """
    if name in ("key", "value"):
        rows = (seen & bad.repeat_interleave(group, 1)[:, :, None]).any(-1)
    else:
        rows = bad & seen.any(-1)
    B, Hq, _, Lk = seen.shape
    keys = (seen & rows[..., None]).any(-2).reshape(B, Hq // group, group, Lk).any(2)
    nothing = torch.zeros_like(rows)
    return {
        "out": nothing if name == "grad_out" else rows,
        "lse": rows if name in ("query", "key") else nothing,
        "query": rows,
        "key": keys,
        "value": torch.zeros_like(keys) if name == "value" else keys,
        "bias": seen & rows[..., None],
        "sinks": rows.any(-1).any(0),
        "alibi_slopes": rows.any(-1),
    }


def assert_reaches(name, bad_value, bad, mask, *, dtype=torch.float32, D=8, **options):
    """The tensor `name` with bad rows of this value gives, but for what they reach, what it gives without."""
    query, key, value = make_qkv(SHAPE._replace(D=D), dtype)
    tensors = {"query": query, "key": key, "value": value, "grad_out": torch.randn(2, 4, 70, 8).to(dtype)}
    inputs = {n: t for n, t in options.items() if isinstance(t, Tensor) and t.is_floating_point()}
    fixed = {n: x for n, x in options.items() if n not in inputs}
    seen = torch.ones(1, 1, 1, 131, dtype=torch.bool) if mask is None else mask.dense(70, 131)
    seen = seen.expand(2, 4, 70, 131)
    if "bias" in options:
        seen = seen & (options["bias"] != -math.inf)

    def of(tensors):
        grad_out = tensors.pop("grad_out")
        return gradients({**tensors, **inputs}, grad_out, mask=mask, **fixed)

    expected = of(dict(tensors))
    # Only the last columns are bad: kernels that look at the first one alone are found out.
    poisoned = tensors[name].clone()
    poisoned[..., -3:] = poisoned[..., -3:].masked_fill(bad[..., None], bad_value)
    found = of(tensors | {name: poisoned})
    effects = reached(name, bad, seen, 2)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for result, t in found.items():
        where = effects[result]
        columns = t.dim() - where.dim()
        clean = ~where[(..., *[None] * columns)].expand(t.shape)
        message = f"{bad_value} in {name}: {result} differs where it does not depend on it"
        torch.testing.assert_close(
            t[clean],
            expected[result][clean],
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, s=message: f"{s}\n{m}",
        )
        if math.isnan(bad_value) and "dropout_p" not in options:
            # A NaN among values stays in its columns of out; elsewhere it fills the row.
            last = t[..., -3:] if columns else t
            assert last[where].isnan().all(), f"NaN in {name} is lost in {result}"


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad_value", BAD)
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("mask", [*MASKS, "random"])
def test_masked_keys(mask, name, bad_value):
    mask = random_mask() if mask == "random" else MASKS[mask]
    bad = torch.zeros(2, 2, 131, dtype=torch.bool)
    bad[:, :, [0, 64, 130]] = True
    bad[0, 1, 61:75] = True
    assert_reaches(name, bad_value, bad, mask)


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("mask", [*sorted(MASKS.keys() - {"causal", "blocks"}), "random"])
def test_keys_that_nobody_sees_reach_nothing(mask, name):
    mask = random_mask() if mask == "random" else MASKS[mask]
    seen = mask.dense(70, 131).expand(2, 4, 70, 131)
    unseen = ~seen.any(-2).reshape(2, 2, 2, 131).any(2)
    assert unseen.any()
    query, key, value = make_qkv(SHAPE)
    tensors = {"query": query, "key": key, "value": value}
    tensors[name][unseen] = math.nan
    found = gradients(tensors, torch.randn(2, 4, 70, 8), mask=mask)
    assert not found["out"].isnan().any()
    assert not found["lse"].isnan().any()
    assert found["query"].isfinite().all()
    for grad in (found["key"], found["value"]):
        assert grad.isfinite().all()
        assert not grad[unseen].any()


@pytest.mark.parametrize("name", ["query", "grad_out"])
@pytest.mark.parametrize("mask", [*MASKS, "random"])
def test_bad_queries_reach_what_they_see(mask, name):
    mask = random_mask() if mask == "random" else MASKS[mask]
    bad = torch.zeros(2, 4, 70, dtype=torch.bool)
    bad[:, :, [0, 5, 47, 69]] = True
    bad[1, 2, 20:31] = True
    for bad_value in BAD:
        assert_reaches(name, bad_value, bad, mask)


TERMS = {
    "sinks": lambda: {"sinks": torch.randn(4)},
    "bias": lambda: {"bias": torch.randn(2, 4, 70, 131)},
    "bias_masks": lambda: {
        "bias": torch.randn(2, 4, 70, 131).masked_fill(~random_keep(2, 4, 70, 131), -math.inf)
    },
    "softcap": lambda: {"softcap": 2.0},
    "alibi": lambda: {"alibi_slopes": torch.rand(2, 4)},
    "dropout": lambda: {"dropout_p": 0.3, "dropout_seed": 7},
}


@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("mask", ["none", "window", "random"])
def test_with_terms(mask, terms, name):
    mask = {"none": None, "window": WINDOW, "random": random_mask()}[mask]
    bad = torch.zeros(2, 4 if name in ("query", "grad_out") else 2, tensors_length(name), dtype=torch.bool)
    bad[:, 1, [0, 3, 40, 64]] = True
    assert_reaches(name, math.nan, bad, mask, **TERMS[terms]())


def tensors_length(name):
    return 70 if name in ("query", "grad_out") else 131


@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("D", [7, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_widths(dtype, D, name):
    bad = torch.zeros(2, 4 if name in ("query", "grad_out") else 2, tensors_length(name), dtype=torch.bool)
    bad[:, 1, [0, 3, 40, 64]] = True
    for mask in (WINDOW, random_mask(), MASKS["blocks"]):
        assert_reaches(name, math.nan, bad, mask, dtype=dtype, D=D)


def test_over_many_keys():
    # Chunks of keys of the backward pass, each with a dq of its own.
    query, key, value = make_qkv(Shape(1, 1, 1, 200, 1100, 8, 8))
    grad_out = torch.randn(1, 1, 200, 8)
    for mask in (masks.Causal(), masks.SlidingWindow(20, 0)):
        clean = gradients({"query": query, "key": key, "value": value}, grad_out, mask=mask)
        bad = {"query": query, "key": key.clone(), "value": value.clone()}
        bad["key"][:, :, 1099] = bad["value"][:, :, 1099] = math.nan  # seen by the last query alone
        found = gradients(bad, grad_out, mask=mask)
        seen = mask.dense(200, 1100)[0, 0, -1]
        for name in ("out", "lse", "query"):
            torch.testing.assert_close(found[name][:, :, :-1], clean[name][:, :, :-1], rtol=1e-5, atol=1e-5)
            assert found[name][:, :, -1].isnan().all()
        for name in ("key", "value"):
            torch.testing.assert_close(
                found[name][:, :, ~seen], clean[name][:, :, ~seen], rtol=1e-5, atol=1e-5
            )
