"""attention_map against the formula in float64: weights of rows, binned map, column sums, entropy, lse."""

import math

import pytest
import torch
from attention_cases import LAYOUTS, TERMS
from helpers import DTYPES, EMPTY_SHAPES, MASKS, SHAPES, Shape, assert_close_to, make_qkv, random_keep
from torch import Tensor

import attention_ext as ax
from attention_ext import masks, reference

FLOATS = (torch.float32, torch.float64)


def make_qk(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return make_qkv(shape, dtype)[:2]


def assert_map_matches(query: Tensor, key: Tensor, mask=None, *, rows="all", bins=(3, 5), **terms) -> None:
    """The yardstick computes in the results' dtype: 16-bit inputs don't loosen it."""

    def formula(dtype: torch.dtype) -> ax.AttentionMap:
        given = {
            n: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in terms.items()
        }
        return reference.attention_map(query.to(dtype), key.to(dtype), mask, rows=rows, bins=bins, **given)

    found = ax.attention_map(query, key, mask, rows=rows, bins=bins, **terms)
    accumulator = torch.float64 if query.dtype == torch.float64 else torch.float32
    exact, plain = formula(torch.float64), formula(accumulator)
    for name in found._fields:
        result = getattr(found, name)
        assert result.dtype == accumulator, name
        assert_close_to(result, getattr(exact, name), getattr(plain, name), name)


# shapes and masks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, dtype):
    for shape in SHAPES.values():
        assert_map_matches(*make_qk(shape, dtype), MASKS[mask](shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("Lq", [1, 7, 8, 63, 64, 65, 130])
def test_lengths(Lq, dtype):
    # Runs of 64 rows, blocks of 64 keys, and tiles of one vector to half a block within them.
    for Lk in (1, 15, 33, 64, 65, 127, 200):
        assert_map_matches(*make_qk(Shape(1, 2, 1, Lq, Lk, 5, 1), dtype), masks.Causal())


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dims(dtype):
    for D in (1, 2, 3, 8, 31, 32, 64, 72, 129):
        assert_map_matches(*make_qk(Shape(1, 2, 1, 9, 70, D, 1), dtype))


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty_tensors(shape):
    s = EMPTY_SHAPES[shape]
    query, key = make_qk(s)
    found = ax.attention_map(query, key, rows="all", bins=4)
    expected = reference.attention_map(query, key, rows="all", bins=4)
    for name in found._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.binned.shape == (s.B, s.Hq, min(4, s.Lq), min(4, s.Lk))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    for D in (16, 7):
        query, key = make_qk(Shape(2, 4, 2, 37, 70, D, 1), dtype)
        assert_map_matches(LAYOUTS[layout](query), LAYOUTS[layout](key), masks.Causal())


def test_without_batch_or_heads():
    query, key = make_qk(Shape(1, 3, 3, 9, 11, 8, 1))
    whole = ax.attention_map(query, key, rows=[2], bins=3)
    for found, expected in (
        (ax.attention_map(query[0], key[0], rows=[2], bins=3), [t[0] for t in whole]),
        (ax.attention_map(query[0, 1], key[0, 1], rows=[2], bins=3), [t[0, 1] for t in whole]),
    ):
        torch.testing.assert_close([*found], expected, rtol=0, atol=0)


# rows and bins


def test_rows_in_any_order():
    shape = Shape(2, 4, 2, 150, 200, 8, 1)
    query, key = make_qk(shape)
    every = ax.attention_map(query, key, masks.Causal(), rows="all").weights
    for rows in ([149, 0, 64, 64, -1, -150], torch.tensor([3, 100, 3], dtype=torch.int32), range(7, 90, 5)):
        found = ax.attention_map(query, key, masks.Causal(), rows=rows).weights
        assert torch.equal(found, every[:, :, torch.as_tensor([*rows])])
    every_second = torch.tensor([5, 0, 70, 0])[::2]
    assert torch.equal(
        ax.attention_map(query, key, masks.Causal(), rows=every_second).weights, every[:, :, [5, 70]]
    )
    assert ax.attention_map(query, key, rows=[]).weights.shape == (2, 4, 0, 200)


@pytest.mark.parametrize("bins", [1, 2, 63, 64, 65, (1, 9), (200, 3), 1000], ids=str)
def test_bins(bins):
    for mask in (None, masks.SlidingWindow(9, 4) | masks.Global(2)):
        for dtype in (torch.float32, torch.float64):
            # as many keys as make several chunks
            assert_map_matches(*make_qk(Shape(1, 2, 1, 150, 1100, 8, 1), dtype), mask, bins=bins)


def test_results_that_are_not_asked_for():
    found = ax.attention_map(*make_qk(SHAPES["square"]))
    assert found.weights is None
    assert found.binned is None


def test_what_the_results_mean():
    query, key = make_qk(Shape(1, 1, 1, 4, 8, 8, 1), torch.float64)
    found = ax.attention_map(torch.zeros_like(query), key, masks.KeyLengths([6]), rows=[1], bins=(2, 4))
    sixth = torch.tensor([1 / 6] * 6 + [0.0] * 2, dtype=torch.float64)
    torch.testing.assert_close(found.weights[0, 0, 0], sixth)
    torch.testing.assert_close(found.column_sums[0, 0], 4 * sixth)
    torch.testing.assert_close(found.binned[0, 0], sixth.reshape(4, 2).mean(1).expand(2, 4))
    for result in (found.entropy, found.lse):
        torch.testing.assert_close(result, torch.full_like(result, math.log(6)))


# terms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [name for name in TERMS if name != "dropout"])
def test_terms(terms, dtype):
    for name in ("grouped", "odd", "decode"):
        shape = SHAPES[name]
        given = {n: t for n, t in TERMS[terms](shape, dtype).items() if not n.startswith("dropout")}
        for mask in (None, masks.Causal()):
            assert_map_matches(*make_qk(shape, dtype), mask, **given)


@pytest.mark.parametrize("large", [-1e9, 1e6])
def test_large_scores_keep_their_weights(large):
    query, key = make_qk(Shape(1, 2, 1, 5, 70, 8, 1))
    bias = torch.zeros(5, 1)
    bias[2] = large
    for sinks in (None, torch.tensor([large, 0.0])):
        assert_map_matches(query, key, bias=bias, sinks=sinks)


def test_the_band_may_stand_elsewhere_in_each_batch_row():
    query, key = make_qk(Shape(3, 2, 1, 70, 130, 8, 1))
    offset = torch.tensor([0, 40, -30])
    band = [-20, 3, 1, 0, 0, 0]
    found = torch.ops.attention_ext.attention_map(
        query, key, band, offset, None, None, None, [], None, None, None, None, 0.0, torch.arange(70), [3, 4]
    )
    distance = torch.arange(130) - torch.arange(70)[:, None] - offset[:, None, None]
    keep = ((distance >= -20) & (distance <= 3))[:, None]
    expected = reference.attention_map(query, key, keep, rows="all", bins=(3, 4))
    torch.testing.assert_close([*found], [*expected])


# what must not show


def test_masked_values_stay_out():
    query, key = make_qk(Shape(2, 4, 2, 70, 131, 8, 1))
    keep = random_keep(2, 4, 70, 131)
    keep[..., 64] = False
    keep[:, :, 5] = False
    mask = masks.Dense(keep)
    expected = ax.attention_map(query, key, mask, rows="all", bins=7)
    key[:, :, 64], query[:, :, 5] = math.nan, math.inf
    found = ax.attention_map(query, key, mask, rows="all", bins=7)
    torch.testing.assert_close([*found], [*expected], rtol=0, atol=0)
    assert not found.weights[:, :, 5].any()
    assert not found.entropy[:, :, 5].any()


def test_a_nan_that_is_seen_shows():
    query, key = make_qk(Shape(1, 1, 1, 70, 70, 8, 1))
    key[0, 0, 40] = math.nan
    found = ax.attention_map(query, key, masks.Causal(), rows=[39, 40])
    assert found.weights[0, 0, 0].isfinite().all()
    assert found.weights[0, 0, 1, :41].isnan().all()
    assert found.entropy[0, 0].isnan().tolist() == [i >= 40 for i in range(70)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.cpu_only("threads of the CPU")
def test_bits_do_not_depend_on_threads(dtype, num_threads):
    for shape in (Shape(2, 4, 2, 130, 150, 16, 1), Shape(1, 1, 1, 300, 2100, 7, 1)):
        for mask in (None, masks.Causal(), MASKS["table"](shape)):
            qk = make_qk(shape, dtype)
            num_threads(1)
            expected = ax.attention_map(*qk, mask, rows=[0, 64, 100], bins=17)
            for threads in (2, 3):
                num_threads(threads)
                found = ax.attention_map(*qk, mask, rows=[0, 64, 100], bins=17)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
