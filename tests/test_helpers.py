"""The tests' own tools find what they are for."""

import helpers
import pytest
import torch

import attention_ext as ax
from attention_ext import reference

pytestmark = pytest.mark.cpu_only("about memory of the CPU")

QKV = helpers.make_qkv(helpers.SHAPES["grouped"])


@pytest.mark.parametrize("dtype", helpers.DTYPES)
@pytest.mark.parametrize("count", [1000, 10_000, 1_000_000])
def test_uninitialized_memory_is_nan(dtype, count):
    torch.ones(count, dtype=dtype)
    assert torch.empty(count, dtype=dtype).isnan().all()


@pytest.mark.parametrize("dtype", helpers.DTYPES)
def test_the_formula_matches_itself(dtype):
    qkv = [t.to(dtype) for t in QKV]
    sinks = torch.randn(qkv[0].shape[1], dtype=dtype)
    mask = ax.masks.KeyLengths([0, 50])
    options = {"mask": mask, "sinks": sinks, "return_lse": True}
    helpers.assert_matches(reference.attention, *qkv, against=reference.attention, **options)


def _wrong_value(*args, **options):
    out, lse = reference.attention(*args, **options)
    return out * (1 + 1e-4), lse


def _wrong_gradient(query, *args, **options):
    return reference.attention(query + 1e-3 * (query - query.detach()), *args, **options)


def _missing_gradient(*args, alibi_slopes, **options):
    return reference.attention(*args, alibi_slopes=alibi_slopes.detach(), **options)


def _nan(*args, **options):
    out, lse = reference.attention(*args, **options)
    return out.where(torch.arange(out.shape[2])[:, None] != 3, float("nan")), lse


def _not_empty(*args, **options):
    out, lse = reference.attention(*args, **options)
    return out, lse.where(lse > -float("inf"), -1e30)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (_wrong_value, "output 0: error"),
        (_wrong_gradient, "gradient of query: error"),
        (_missing_gradient, "gradient of alibi_slopes: error"),
        (_nan, "output 0: NaN"),
        (_not_empty, "output 1: NaN or infinity differs"),
    ],
)
def test_assert_matches_finds(op, message):
    options = {"mask": ax.masks.KeyLengths([0, 50]), "alibi_slopes": torch.rand(6), "return_lse": True}
    with pytest.raises(AssertionError, match=message):
        helpers.assert_matches(op, *QKV, against=reference.attention, **options)


@pytest.mark.parametrize("name", [name for name in helpers.MASKS if name != "none"])
def test_masks_of_the_table_mask_some_pairs_and_leave_some(name):
    for shape in (helpers.SHAPES["odd"], helpers.SHAPES["grouped"]):
        assert 0 < helpers.MASKS[name](shape).density(shape.Lq, shape.Lk) < 1
