"""The CUDA kernels that select blocks: the choices of the formula, and what a choice may depend on."""

import emulation
import pytest
import torch
from test_select_blocks import COMPRESSED, indices_of, random_call, random_compressed_call

import attention_ext as ax
from attention_ext import masks, reference

CHECKED = emulation.MODE == "checked"
DTYPES = (torch.float32,) if CHECKED else (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def assert_chosen_as_in_the_formula(query, key, dtype, *args, **options):
    """Scores are sums that don't round, or far enough apart."""
    found = ax.select_blocks(query.to(dtype), key.to(dtype), *args, **options)
    expected = reference.select_blocks(query.double(), key.double(), *args, **options)
    assert torch.equal(indices_of(found), indices_of(expected))


@pytest.mark.parametrize("seed", range(10 if CHECKED else 24))
def test_exact_scores(seed, kernels):
    kernels.set_schedule(seed)
    query, key, block, top_k, options = random_call(seed)
    assert_chosen_as_in_the_formula(query, key, DTYPES[seed % len(DTYPES)], block, top_k, **options)


@pytest.mark.parametrize("seed", range(5 if CHECKED else 12))
def test_probabilities_of_compressed_keys(seed, kernels):
    kernels.set_schedule(seed)
    query, key, block, options = random_compressed_call(seed)
    assert_chosen_as_in_the_formula(query, key, torch.float64, block, 4, **options)


def test_probabilities_of_compressed_keys_that_count():
    query, key = torch.randn(1, 4, 70, 8).double(), torch.randn(1, 2, 34, 8).double()
    options = {"compressed": (4, 2, 70), "key_keep": torch.rand(1, 34) > 0.4}
    assert_chosen_as_in_the_formula(query, key, torch.float64, 8, 3, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_scores_that_are_far_apart(dtype):
    # Block n of 16 keys scores about n * 7 % 11.
    means = (torch.arange(11) * 7 % 11).float()
    key = (means.repeat_interleave(16)[:, None] + 0.1 * torch.randn(176, 40)).view(1, 1, 176, 40)
    query = 1 + 0.1 * torch.rand(1, 2, 176, 40)
    assert_chosen_as_in_the_formula(query.to(dtype), key.to(dtype), dtype, 16, 4)
    assert_chosen_as_in_the_formula(query.to(dtype), key.to(dtype), dtype, 16, 4, share_heads=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("compressed", [False, True])
def test_decoding_chooses_what_the_whole_sequence_does(compressed, dtype):
    """Bit for bit: whatever queries come with one, and whatever keys come after it."""
    L = 140
    query, key = torch.randn(1, 4, L, 24).to(dtype), torch.randn(1, 2, L, 24).to(dtype)

    def select(queries, end):
        if not compressed:
            return indices_of(ax.select_blocks(queries, key[:, :, :end], 8, 4))
        keys = key[:, :, : masks.Compressed(8, 4, end).keys]
        return indices_of(ax.select_blocks(queries, keys, 16, 4, compressed=(8, 4, end), **COMPRESSED))

    whole = select(query, L)
    for begin, end in [(0, 1), (40, 41), (3, 100), (139, 140)]:
        assert torch.equal(select(query[:, :, begin:end], end), whole[:, :, begin:end])


def test_nan_comes_last_and_only_where_it_is_seen():
    query, key = torch.randn(1, 2, 70, 8), torch.randn(1, 2, 70, 8)
    clean = indices_of(ax.select_blocks(query, key, 8, 3))
    late = key.clone()
    late[:, :, 40:] = torch.tensor([torch.nan, torch.inf, 1.0]).repeat(10)[:, None]
    assert torch.equal(indices_of(ax.select_blocks(query, late, 8, 3))[:, :, :40], clean[:, :, :40])
    key[:, :, 10] = torch.nan  # in block 1
    chosen = indices_of(ax.select_blocks(query, key, 8, 3))
    assert not (chosen[:, :, 32:] == 1).any()  # three others are there
    assert (chosen[:, :, 16:24] == 1).any(-1).all()  # nothing else is


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_first_blocks(dtype):
    query, key = torch.ones(1, 1, 500, 4, dtype=dtype), torch.zeros(1, 1, 500, 4, dtype=dtype)
    indices = indices_of(ax.select_blocks(query, key, 5, 40))[0, 0]
    assert indices[495].tolist() == [*range(39), 99]
    assert indices[12].tolist() == [0, 1, 2] + [-1] * 37
    key[:, :, 250:] = 1  # better, and more than one warp's worth of them
    indices = indices_of(ax.select_blocks(query, key, 5, 60, initial_blocks=1, local_blocks=2))[0, 0]
    assert indices[495].tolist() == [*range(10), *range(50, 100)]


def test_keys_that_do_not_count():
    query, key = torch.ones(1, 1, 40, 4), torch.rand(1, 1, 40, 4)
    keep = torch.ones(1, 40, dtype=torch.bool)
    keep[:, 10:20] = keep[:, 3] = False
    key[:, :, 10:20] = torch.nan
    key[:, :, 3] = 1e6
    key[:, :, 20:30] += 10
    indices = indices_of(ax.select_blocks(query, key, 10, 2, key_keep=keep))[0, 0]
    assert [indices[i].tolist() for i in (35, 25, 15)] == [[2, 3], [0, 2], [0, 1]]


def test_means_are_of_the_keys_that_count():
    query, key = torch.ones(1, 1, 40, 4), torch.ones(1, 1, 40, 4)
    keep = torch.ones(1, 40, dtype=torch.bool)
    key[:, :, 10:20] = 2  # block 1, of which two keys are left
    keep[:, 12:20] = False
    assert indices_of(ax.select_blocks(query, key, 10, 2, key_keep=keep))[0, 0, 35].tolist() == [1, 3]


def test_views():
    query, key = torch.randn(2, 40, 4, 8).transpose(1, 2), torch.randn(2, 40, 2, 16).transpose(1, 2)[..., ::2]
    found = indices_of(ax.select_blocks(query, key, 8, 3))
    assert torch.equal(found, indices_of(ax.select_blocks(query.contiguous(), key.contiguous(), 8, 3)))


@pytest.mark.parametrize("sizes", [(0, 2, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0), (1, 1, 10, 4)], ids=str)
def test_nothing_to_choose_from(sizes, kernels):
    B, H, Lq, Lk = sizes
    indices = indices_of(ax.select_blocks(torch.randn(B, H, Lq, 4), torch.randn(B, H, Lk, 4), 2, 3))
    assert indices.shape == (B, H, Lq, 3)
    assert (indices[:, :, : Lq - Lk] == -1).all()


@pytest.mark.skipif(CHECKED, reason="too many scores for the checks; the plain build does it")
def test_rows_beyond_the_workspace():
    query, key = torch.randn(1, 1, 70, 2), torch.randn(1, 1, 80000, 2)
    assert_chosen_as_in_the_formula(query, key, torch.float64, 1, 2)


@pytest.mark.parametrize("compressed", [False, True])
def test_results_do_not_depend_on_the_schedule(compressed, kernels):
    query, key = torch.randn(1, 4, 70, 8), torch.randn(1, 2, 34 if compressed else 70, 8)
    options = {"compressed": (4, 2, 70), "share_heads": True} if compressed else {}
    found = []
    for seed in range(4):
        kernels.set_schedule(seed)
        found.append(indices_of(ax.select_blocks(query, key, 4, 5, **options)))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"key_keep": torch.ones(1, 3).bool()}, "key_keep: expected contiguous bool"), ({"top_k": 0}, "top_k")],
    ids=["key_keep", "top_k"],
)
def test_the_operator_checks_again(changes, message, kernels):
    call = {"query": torch.randn(1, 2, 4, 8), "key": torch.randn(1, 2, 4, 8), "key_keep": None}
    call |= {"block": 4, "query_block": 1, "top_k": 2, "initial": 0, "local": 1, "causal": True}
    call |= {"share": False, "compressed": [], "scale": 1.0}
    with pytest.raises(RuntimeError, match=message):
        kernels.operator("select_blocks")(*(call | changes).values())
