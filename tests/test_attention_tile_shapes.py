"""Every tile shape and tail of the CPU kernels: lane vectors, rows, keys, head sizes, groups of heads.

The forward pass puts queries in lanes (one to three vectors of up to 16) and keys in rows, the backward pass
keys in lanes and queries in rows; both walk blocks of 64 keys. Sizes go through all counts of each, one at a
time, on small calls; dtypes other than float32 take a sample.
"""

import pytest
import torch
from attention_cases import TERMS, assert_attention_near
from helpers import MASKS, Shape, make_qkv

pytestmark = pytest.mark.cpu_only("tiles of the CPU kernels")

HALF = (torch.bfloat16, torch.float16)
TERM_NAMES = ("plain", "everything")
MASK_NAMES = ("none", "causal")


def check(shape, dtype=torch.float32, *, mask="none", term="plain"):
    """Output, lse and gradients of one call against the reference; causal leaves no row without a key."""
    if mask == "causal":
        mask = "causal_top_left" if shape.Lq > shape.Lk else "causal"
    assert_attention_near(
        *make_qkv(shape, dtype),
        cotangents=(
            torch.randn(shape.B, shape.Hq, shape.Lq, shape.Dv, dtype=torch.float64),
            torch.randn(shape.B, shape.Hq, shape.Lq, dtype=torch.float64),
        ),
        return_lse=True,
        mask=MASKS[mask](shape),
        **TERMS[term](shape, dtype),
    )


def one_head(Lq, Lk, D, Dv):
    return Shape(1, 1, 1, Lq, Lk, D, Dv)


# Three vectors of 16 float32 lanes are 48 queries; an item of work has four such tiles.
@pytest.mark.parametrize("term", TERM_NAMES)
@pytest.mark.parametrize("Lq", [*range(1, 50), 63, 64, 65, 95, 96, 97, 143, 144, 145, 191, 192, 193])
def test_every_count_of_queries(Lq, term):
    check(one_head(Lq, 5, 8, 8), term=term)


# Two blocks of keys: a full one and a tail of every length, and the tails alone.
@pytest.mark.parametrize("mask", MASK_NAMES)
@pytest.mark.parametrize("Lk", range(1, 130))
def test_every_count_of_keys(Lk, mask):
    check(one_head(9, Lk, 8, 8), mask=mask, term=TERM_NAMES[Lk % 2])


# The tail of the keys meets every filling of the lanes.
@pytest.mark.parametrize("Lk", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 49, 63, 65])
@pytest.mark.parametrize("Lq", [1, 4, 7, 8, 15, 17, 24, 31, 33, 41, 48])
def test_counts_of_queries_with_counts_of_keys(Lq, Lk):
    check(one_head(Lq, Lk, 8, 8), mask="causal")


@pytest.mark.parametrize("D", range(1, 257))
def test_every_head_size(D):
    check(one_head(3, 19, D, 257 - D), mask=MASK_NAMES[D % 2])


@pytest.mark.parametrize("D", range(8, 257, 8))
def test_every_multiple_of_eight_for_both_head_sizes(D):
    check(one_head(17, 19, D, D), mask=MASK_NAMES[D // 8 % 2], term="everything")


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("Lq", range(1, 9))
def test_few_queries_of_every_group(Lq, group):
    check(Shape(1, 2 * group, 2, Lq, 21, 8, 12), mask=MASK_NAMES[group % 2], term=TERM_NAMES[Lq % 2])


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("Lq", [1, 2, 3, 5, 8, 9, 12, 15, 16, 17, 23, 24, 25, 32, 33, 47, 48, 49])
def test_counts_of_queries_in_other_dtypes(Lq, dtype):
    check(one_head(Lq, 5, 8, 8), dtype, term=TERM_NAMES[Lq % 2])


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
@pytest.mark.parametrize(
    "Lk", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 62, 63, 64, 65, 66, 127, 129]
)
def test_counts_of_keys_in_other_dtypes(Lk, dtype):
    check(one_head(9, Lk, 8, 8), dtype, mask=MASK_NAMES[Lk % 2])


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("D", [*range(1, 34), 47, 63, 64, 65, 80, 96, 127, 128, 129, 191, 192, 193, 255, 256])
def test_head_sizes_in_other_dtypes(D, dtype):
    check(one_head(3, 19, D, 257 - D), dtype, mask=MASK_NAMES[D % 2])


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
@pytest.mark.parametrize(("Lq", "group"), [(1, 8), (2, 3), (3, 5), (5, 2), (7, 7), (8, 4)])
def test_few_queries_of_groups_in_other_dtypes(Lq, group, dtype):
    check(Shape(1, 2 * group, 2, Lq, 21, 8, 12), dtype, mask="causal", term="everything")
