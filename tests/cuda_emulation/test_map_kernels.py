"""The CUDA kernels of attention_map against the formula in float64, over the tables of its tests."""

import emulation
import pytest
import torch
from attention_cases import LAYOUTS, TERMS
from helpers import EMPTY_SHAPES, MASKS, SHAPES, Shape, random_keep
from test_attention_map import (
    assert_map_matches,
    make_qk,
    test_large_scores_keep_their_weights,  # noqa: F401  runs here, too
)

import attention_ext as ax
from attention_ext import masks

CHECKED = emulation.MODE == "checked"
FLOATS = (torch.float32,) if CHECKED else (torch.float32, torch.float64)
DTYPES = FLOATS if CHECKED else (*FLOATS, torch.bfloat16, torch.float16)
of_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
of_floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture(autouse=True)
def schedule(kernels):
    kernels.set_schedule(3)


@of_dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, dtype, kernels):
    kernels.set_schedule(0)
    assert_map_matches(*make_qk(shape, dtype))


@of_floats
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, dtype):
    for name in ("odd", "more_queries"):
        assert_map_matches(*make_qk(SHAPES[name], dtype), MASKS[mask](SHAPES[name]))


@of_floats
@pytest.mark.parametrize("lengths", [(63, 64), (64, 65), (65, 128), (129, 1), (1, 192)], ids=str)
def test_lengths(lengths, dtype):
    assert_map_matches(*make_qk(Shape(1, 2, 1, *lengths, 5, 1), dtype), masks.Causal())


@of_dtypes
@pytest.mark.parametrize("terms", [name for name in TERMS if name != "dropout"])
def test_terms(terms, dtype):
    shape = Shape(2, 4, 2, 19, 70, 24, 24)
    given = {n: t for n, t in TERMS[terms](shape, dtype).items() if not n.startswith("dropout")}
    for mask in (None, masks.Causal()):
        assert_map_matches(*make_qk(shape, dtype), mask, **given)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout):
    query, key = make_qk(Shape(2, 4, 2, 9, 70, 7, 1))
    assert_map_matches(layout(query), layout(key), masks.Causal())


@pytest.mark.parametrize("shape", EMPTY_SHAPES.values(), ids=EMPTY_SHAPES)
def test_empty_tensors(shape):
    assert_map_matches(*make_qk(shape), bins=4)


def test_no_columns(kernels):
    # All scores are the same; no barrier stands in a product of no columns.
    query = torch.empty(1, 1, 200, 0)
    call = (query, query, [], None, None, None, None, [], None, None, None, None, 0.0, None, [2, 2])
    _, binned, column_sums, entropy, lse = kernels.operator("attention_map")(*call)
    torch.testing.assert_close(binned, torch.full_like(binned, 1 / 200))
    torch.testing.assert_close(column_sums, torch.ones_like(column_sums))
    for result in (entropy, lse):
        torch.testing.assert_close(result, torch.full_like(result, 200).log())


@of_floats
@pytest.mark.parametrize("bins", [1, 2, 63, 65, (1, 9), (130, 3), 1000], ids=str)
def test_bins(bins, dtype):
    for mask in (None, masks.SlidingWindow(9, 4) | masks.Global(2)):
        assert_map_matches(*make_qk(Shape(1, 2, 1, 130, 260, 8, 1), dtype), mask, bins=bins)


def test_chunks_of_several_tiles():
    # 512 lists: a block owns all key tiles of one.
    assert_map_matches(*make_qk(Shape(64, 8, 8, 2, 70, 2, 1)), rows=[1], bins=(1, 3))


def test_rows_in_any_order():
    query, key = make_qk(Shape(1, 2, 1, 150, 130, 8, 1))
    every = ax.attention_map(query, key, masks.Causal(), rows="all").weights
    many = [*range(140, 20, -1), 64, 64, -1, -150]
    for rows in (many, torch.tensor([3, 100, 3]), torch.tensor([5, 0, 70, 0])[::2], []):
        found = ax.attention_map(query, key, masks.Causal(), rows=rows).weights
        assert torch.equal(found, every[:, :, torch.as_tensor([*rows], dtype=torch.long)])


def test_rows_on_a_device_are_not_looked_at(kernels):
    query, key = make_qk(Shape(1, 1, 1, 70, 70, 8, 1))
    rows = torch.tensor([-1, 2**40, 70, -(2**63), 69])
    call = (query, key, [], None, None, None, None, [], None, None, None, None, 0.0, rows, [])
    weights = kernels.operator("attention_map")(*call)[0][0, 0]
    assert not weights[:4].any()
    torch.testing.assert_close(weights[4].sum(), torch.tensor(1.0))


def test_masked_values_stay_out():
    query, key = make_qk(Shape(1, 2, 1, 70, 131, 8, 1))
    keep = random_keep(1, 2, 70, 131)
    keep[..., 64] = False
    keep[:, :, 5] = False
    expected = ax.attention_map(query, key, masks.Dense(keep), rows="all", bins=7)
    key[:, :, 64], query[:, :, 5] = torch.nan, torch.inf
    found = ax.attention_map(query, key, masks.Dense(keep), rows="all", bins=7)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found.weights[:, :, 5].any()
    assert not found.entropy[:, :, 5].any()


def test_a_nan_that_is_seen_shows():
    query, key = make_qk(Shape(1, 1, 1, 70, 70, 8, 1))
    key[0, 0, 40] = torch.nan
    found = ax.attention_map(query, key, masks.Causal(), rows=[39, 40])
    assert found.weights[0, 0, 0].isfinite().all()
    assert found.weights[0, 0, 1, :41].isnan().all()
    assert found.entropy[0, 0].isnan().tolist() == [i >= 40 for i in range(70)]


def test_results_do_not_depend_on_the_schedule(kernels):
    shape = SHAPES["odd"]
    qk, mask = make_qk(shape), MASKS["table"](shape)
    found = []
    for seed in range(4):
        kernels.set_schedule(seed)
        found.append(ax.attention_map(*qk, mask, rows=[0, 64], bins=17, sinks=torch.ones(3)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_operator_checks_again(kernels):
    query, key = make_qk(Shape(1, 1, 1, 4, 6, 8, 1))
    for rows, bins, message in (
        (torch.zeros(1), [], "rows: expected int64"),
        (None, [5, 1], "bins: expected 1 to Lq = 4"),
    ):
        call = (query, key, [], None, None, None, None, [], None, None, None, None, 0.0, rows, bins)
        with pytest.raises(RuntimeError, match=message):
            kernels.operator("attention_map")(*call)
