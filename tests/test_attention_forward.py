"""The forward pass of attention against the formula in float64: out and lse."""

from itertools import product

import pytest
import torch
from attention_cases import BROADCASTS, LAYOUTS, TERMS, broadcast_name, broadcast_shape
from helpers import DTYPES, MASKS, SHAPES, Shape, assert_attention_matches, make_qkv, random_keep

import attention_ext as ax
from attention_ext import masks, reference

FLOATS = (torch.float32, torch.float64)


def assert_forward_matches(*qkv, **options):
    with torch.no_grad():
        assert_attention_matches(*qkv, grads=False, **options)


# shapes

# Query tiles are 12 to 48 rows wide, key blocks 64; items of four tiles, so 48 to 192 rows.
LENGTHS = (1, 2, 7, 16, 47, 49, 63, 64, 65, 97, 130, 193, 257)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("Lq", LENGTHS)
def test_lengths(Lq, dtype):
    for Lk in LENGTHS:
        assert_forward_matches(*make_qkv(Shape(1, 2, 2, Lq, Lk, 5, 6), dtype))
        assert_forward_matches(*make_qkv(Shape(1, 1, 1, Lq, Lk, 3, 9), dtype), mask=masks.Causal())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [*range(1, 25), 31, 64, 72, 128, 256])
def test_head_dims(D, dtype):
    for Dv in (D, 1, 8, 25):
        assert_forward_matches(*make_qkv(Shape(1, 2, 1, 9, 11, D, Dv), dtype), mask=masks.Causal())


def test_value_of_no_columns():
    query, key, value = make_qkv(Shape(1, 2, 1, 5, 6, 8, 0), requires_grad=True)
    out, lse = ax.attention(query, key, value, return_lse=True)
    assert out.shape == (1, 2, 5, 0)
    torch.testing.assert_close(lse, reference.attention(query, key, value, return_lse=True)[1])
    assert all(not g.any() for g in torch.autograd.grad(out, (query, key, value), torch.ones_like(out)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group", [1, 2, 3, 5, 8, 11])
def test_groups(group, dtype):
    # Rows of a tile are (query, head of the group) pairs: their number, too, stands around the tile's edges.
    for Lq, Hkv in product((1, 2, 9, 16, 33), (1, 3)):
        shape = Shape(2, group * Hkv, Hkv, Lq, 70, 8, 8)
        assert_forward_matches(
            *make_qkv(shape, dtype), mask=masks.Causal(), alibi_slopes=torch.rand(shape.Hq)
        )


# masks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(mask, shape, dtype):
    assert_forward_matches(*make_qkv(shape, dtype), mask=mask(shape))


@pytest.mark.parametrize("sizes", [(70, 131), (131, 70), (65, 65), (3, 200), (200, 3)], ids=str)
@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
def test_windows(alignment, sizes):
    qkv = make_qkv(Shape(1, 1, 1, *sizes, 4, 4))
    for left, right in product((None, 0, 1, 30, 63, 64, 65, 300), repeat=2):
        assert_forward_matches(*qkv, mask=masks.SlidingWindow(left, right, alignment))


@pytest.mark.parametrize("Lk", [1, 63, 64, 65, 128, 130])
def test_key_lengths(Lk):
    lengths = [
        n for n in (0, 1, 2, 62, 63, 64, 65, 127, 128, 129, 130, 131, 1000) if n <= Lk + 1 or n == 1000
    ]
    qkv = make_qkv(Shape(len(lengths), 2, 1, 5, Lk, 4, 4))
    assert_forward_matches(*qkv, mask=masks.KeyLengths(lengths))
    assert_forward_matches(*qkv, mask=masks.KeyLengths(lengths) & masks.Causal())


@pytest.mark.parametrize("form", ["int32", "every_second", "expanded"])
def test_key_lengths_of_any_form(form):
    lengths = {
        "int32": torch.tensor([3, 70, 0], dtype=torch.int32),
        "every_second": torch.tensor([3, 1, 70, 1, 0, 1])[::2],
        "expanded": torch.tensor([65]).expand(3),
    }[form]
    assert_forward_matches(*make_qkv(Shape(3, 2, 1, 5, 70, 4, 4)), mask=masks.KeyLengths(lengths))


@pytest.mark.parametrize("varies", BROADCASTS, ids=broadcast_name)
def test_dense_masks_broadcast(varies):
    shape = Shape(2, 4, 2, 37, 131, 8, 8)
    qkv = make_qkv(shape)
    keep = random_keep(*broadcast_shape(shape, varies))
    every_second = torch.stack([keep, ~keep], -1)[..., 0]
    for mask in (
        masks.Dense(keep),
        masks.Dense(every_second) & masks.SlidingWindow(40, 3),
        masks.Dense(keep.transpose(-1, -2).contiguous().transpose(-1, -2)) & masks.KeyLengths([70, 131]),
        masks.Dense(keep) & masks.Dense(random_keep(4, 1, 131)) & masks.KeyPadding(random_keep(2, 131)),
    ):
        assert_forward_matches(*qkv, mask=mask)


# Of single pairs, blocks and rows: what a kernel asks about at once.
PATTERNS = {
    "nothing": lambda i, j: torch.zeros_like(i + j, dtype=torch.bool),
    "everything": lambda i, j: torch.ones_like(i + j, dtype=torch.bool),
    "one_key": lambda i, j: (j == 64).expand(len(i), -1),
    "one_pair": lambda i, j: (i == 49) & (j == 127),
    "one_row": lambda i, j: (i == 7).expand(-1, j.shape[1]),
    "all_but_one_key": lambda i, j: (j != 64).expand(len(i), -1),
    "all_but_one_pair": lambda i, j: (i != 48) | (j != 63),
    "block_diagonal": lambda i, j: i // 64 == j // 64,
    "blocks_beside_the_diagonal": lambda i, j: i // 64 != j // 64,
    "checkerboard": lambda i, j: (i + j) % 2 == 0,
    "diagonal": lambda i, j: i == j,
    "strips": lambda i, j: (j // 32 % 2 == 1).expand(len(i), -1),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_patterns(pattern):
    shape = Shape(1, 2, 1, 100, 200, 8, 8)
    keep = pattern(torch.arange(shape.Lq)[:, None], torch.arange(shape.Lk)[None])
    assert_forward_matches(*make_qkv(shape), mask=masks.Dense(keep))


@pytest.mark.parametrize(("Lq", "Lk"), [(70, 131), (131, 70), (65, 64)])
def test_a_band_is_what_its_dense_form_is(Lq, Lk):
    qkv = make_qkv(Shape(2, 2, 1, Lq, Lk, 16, 16), torch.float64)
    for mask in (
        masks.Causal(),
        masks.Causal("top_left"),
        masks.SlidingWindow(20, 0),
        masks.SlidingWindow(None, 5, "top_left"),
        masks.SlidingWindow(33, 7) & masks.KeyLengths([50, 64]),
    ):
        dense = masks.Dense(mask.dense(Lq, Lk))
        for band, bits in zip(
            ax.attention(*qkv, mask=mask, return_lse=True),
            ax.attention(*qkv, mask=dense, return_lse=True),
            strict=True,
        ):
            torch.testing.assert_close(band, bits, rtol=1e-13, atol=1e-13)


# terms of the score


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal", "everything"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_terms(terms, mask, dtype):
    for name in ("grouped", "odd", "decode"):
        shape = SHAPES[name]
        assert_forward_matches(*make_qkv(shape, dtype), mask=MASKS[mask](shape), **terms(shape, dtype))


@pytest.mark.parametrize("varies", BROADCASTS, ids=broadcast_name)
def test_biases_broadcast(varies):
    shape = Shape(2, 4, 2, 37, 131, 8, 8)
    for dtype, layout in product(DTYPES, ("contiguous", "length_last", "every_second")):
        bias = LAYOUTS[layout](torch.randn(broadcast_shape(shape, varies)))
        assert_forward_matches(*make_qkv(shape, dtype), bias=bias)
        assert_forward_matches(*make_qkv(shape, dtype), bias=bias.to(dtype), mask=masks.SlidingWindow(50, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_draws_what_the_formula_draws(dtype):
    # The draws count keys in fours from the first one: windows start blocks anywhere.
    shape = Shape(2, 4, 2, 19, 131, 8, 8)
    qkv = make_qkv(shape, dtype)
    draws = [(0, 0.5), (-1, 1e-3), (2**63 - 1, 0.999), (torch.tensor(5), 0.1), (7, 1.0)]
    for seed, p in draws:
        for mask in (None, masks.SlidingWindow(10, 2)):
            assert_forward_matches(*qkv, mask=mask, dropout_p=p, dropout_seed=seed)


def test_dropout_follows_torchs_generator():
    qkv = make_qkv(SHAPES["grouped"])
    torch.manual_seed(3)
    first, second = (ax.attention(*qkv, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(ax.attention(*qkv, dropout_p=0.5), first)
    assert not torch.equal(first, second)


# layouts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    for shape in (Shape(2, 4, 2, 37, 70, 16, 24), Shape(2, 3, 3, 19, 65, 7, 5)):
        query, key, value = make_qkv(shape, dtype)
        lay = LAYOUTS[layout]
        for which in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
            qkv = [lay(t) if chosen else t for t, chosen in zip((query, key, value), which, strict=True)]
            assert_forward_matches(*qkv, mask=masks.Causal())


@pytest.mark.parametrize("heads_last", [False, True])
def test_out_is_laid_out_as_query(heads_last):
    qkv = make_qkv(Shape(2, 4, 2, 37, 70, 16, 24), heads_last=heads_last)
    out, lse = ax.attention(*qkv, return_lse=True)
    assert (out.transpose(1, 2) if heads_last else out).is_contiguous()
    assert lse.is_contiguous()
