"""select_blocks: values against the formula, what a query may depend on, ties, NaN, bad input."""

import random

import pytest
import torch
from helpers import DTYPES

import attention_ext as ax
from attention_ext import masks, reference


def indices_of(mask):
    selected = mask.parts[0] if isinstance(mask, masks.Intersection) else mask
    return selected.indices


def small_integers(*sizes, dtype=torch.float32):
    """Numbers whose products and sums are exact, with many ties."""
    return torch.randint(-3, 4, sizes).to(dtype)


def random_call(seed):
    """query, key, and options that fit them; sums over 2**n keys, so that means are exact."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    B, Hkv, group, D = (
        rng.choice([1, 2]),
        rng.choice([1, 2, 3]),
        rng.choice([1, 2, 4]),
        rng.choice([1, 7, 32]),
    )
    block = rng.choice([1, 4, 16, 64])
    Lk = block * rng.randint(1, 300 // block)
    Lq = rng.choice([1, Lk, Lk // 2 + 1, Lk + 3])
    options = {
        "causal": rng.random() < 0.6,
        "share_heads": rng.random() < 0.5,
        "initial_blocks": rng.choice([0, 0, 1]),
        "local_blocks": rng.choice([1, 1, 2]),
    }
    if not options["causal"]:
        options["query_block_size"] = rng.choice([1, 4, 9])
    if rng.random() < 0.4:
        # Whole blocks: the mean of a part of one would round.
        options["key_keep"] = (torch.rand(B, Lk // block) > 0.4).repeat_interleave(block, dim=1)
    query, key = small_integers(B, Hkv * group, Lq, D), small_integers(B, Hkv, Lk, D)
    return query, key, block, rng.choice([3, 5, 16]), options


@pytest.mark.parametrize("seed", range(40))
def test_exact_scores_are_ranked_as_in_the_formula(seed):
    query, key, block, top_k, options = random_call(seed)
    dtype = DTYPES[seed % 4]
    mask = ax.select_blocks(query.to(dtype), key.to(dtype), block, top_k, **options)
    expected = reference.select_blocks(query, key, block, top_k, **options)
    assert torch.equal(indices_of(mask), indices_of(expected))
    Lq, Lk = query.shape[2], key.shape[2]
    assert torch.equal(mask.dense(Lq, Lk), expected.dense(Lq, Lk))


def random_compressed_call(seed):
    """query, key, the block size, and options that fit them."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    stride = rng.choice([2, 4, 8])
    length, block = stride * rng.choice([1, 2, 4]), stride * rng.choice([1, 2, 4])
    Lk = rng.choice([1, 5, 64, 100, 300])
    keys, group = masks.Compressed(length, stride, Lk).keys, rng.choice([1, 2, 4])
    query = torch.randn(2, 2 * group, rng.choice([1, Lk, Lk + 3]), 16, dtype=torch.float64)
    key = torch.randn(2, 2, keys, 16, dtype=torch.float64)
    options = {
        "causal": rng.random() < 0.7,
        "share_heads": rng.random() < 0.7,
        "initial_blocks": rng.choice([0, 1]),
        "key_keep": torch.rand(2, keys) > 0.3 if rng.random() < 0.5 else None,
        "compressed": (length, stride, Lk),
        "scale": rng.choice([None, 0.5]),
    }
    return query, key, block, options


@pytest.mark.parametrize("seed", range(20))
def test_probabilities_of_compressed_keys(seed):
    query, key, block, options = random_compressed_call(seed)
    found = ax.select_blocks(query, key, block, 4, **options)
    expected = reference.select_blocks(query, key, block, 4, **options)
    assert torch.equal(indices_of(found), indices_of(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_block_left_out_is_better(dtype):
    """With numbers that round, too: by the scores in float64, up to what rounding explains."""
    query, key = (torch.randn(1, 2, 200, 64).to(dtype) for _ in range(2))
    indices = indices_of(ax.select_blocks(query, key, 16, 4))[0].long()
    means = key.double().unflatten(2, (-1, 8))[:, :, :24].flatten(2, 3).unflatten(2, (-1, 16)).mean(3)
    scores = (query.double() @ means.transpose(-1, -2))[0]
    own = torch.arange(200) // 16
    assert torch.equal(indices.max(-1).values, own.expand(2, -1))
    for i in range(200):
        for h in range(2):
            chosen = set(indices[h, i].tolist()) - {-1, int(own[i])}
            others = set(range(int(own[i]))) - chosen
            assert len(chosen) == min(3, int(own[i]))
            if chosen and others:
                worst = min(scores[h, i, n].item() for n in chosen)
                assert worst >= max(scores[h, i, n].item() for n in others) - 1e-5


COMPRESSED = {"share_heads": True, "initial_blocks": 1, "local_blocks": 2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressed", [False, True])
def test_decoding_chooses_what_the_whole_sequence_does(compressed, dtype):
    """Bit for bit: whatever queries come with one, and whatever keys come after it."""
    L = 200
    query, key = torch.randn(2, 4, L, 24).to(dtype), torch.randn(2, 2, L, 24).to(dtype)

    def select(queries, end):
        if not compressed:
            return indices_of(ax.select_blocks(queries, key[:, :, :end], 16, 4))
        keys = key[:, :, : masks.Compressed(8, 4, end).keys]
        return indices_of(ax.select_blocks(queries, keys, 16, 4, compressed=(8, 4, end), **COMPRESSED))

    whole = select(query, L)
    for begin, end in [(0, 1), (5, 6), (40, 41), (100, 164), (3, 130), (199, 200)]:
        assert torch.equal(select(query[:, :, begin:end], end), whole[:, :, begin:end])


def test_later_keys_never_count_and_nan_comes_last():
    query, key = torch.randn(1, 2, 64, 8), torch.randn(1, 2, 64, 8)
    clean = indices_of(ax.select_blocks(query, key, 8, 3))
    late = key.clone()
    late[:, :, 40:] = torch.tensor([torch.nan, torch.inf]).repeat(4)
    assert torch.equal(indices_of(ax.select_blocks(query, late, 8, 3))[:, :, :40], clean[:, :, :40])
    broken = key.clone()
    broken[:, :, 10] = torch.nan  # in block 1
    chosen = indices_of(ax.select_blocks(query, broken, 8, 3))
    assert not (chosen[:, :, 32:] == 1).any()  # three others are there
    assert (chosen[:, :, 16:24] == 1).any(-1).all()  # nothing else is
    query[:, 0, 50] = torch.nan
    assert indices_of(ax.select_blocks(query, key, 8, 3))[0, 0, 50].tolist() == [0, 1, 6]


def test_ties_go_to_the_first_blocks():
    query, key = torch.ones(1, 1, 50, 4), torch.zeros(1, 1, 50, 4)
    indices = indices_of(ax.select_blocks(query, key, 10, 3))[0, 0]
    assert indices[45].tolist() == [0, 1, 4]
    assert indices[15].tolist() == [0, 1, -1]
    assert indices[5].tolist() == [0, -1, -1]
    fixed = indices_of(ax.select_blocks(query, key, 10, 3, initial_blocks=1, local_blocks=2))[0, 0]
    assert fixed[45].tolist() == [0, 3, 4]
    assert fixed[15].tolist() == [0, 1, -1]
    negative_zero = ax.select_blocks(query, torch.where(torch.arange(50)[:, None] < 10, -key, key), 10, 3)
    assert torch.equal(indices_of(negative_zero)[0, 0], indices)


def test_queries_before_the_first_key_choose_nothing():
    mask = ax.select_blocks(torch.randn(1, 1, 10, 4), torch.randn(1, 1, 4, 4), 2, 2)
    assert (indices_of(mask)[0, 0, :6] == -1).all()
    assert mask.dense(10, 4).sum(-1)[0, 0].tolist() == [0] * 6 + [1, 2, 3, 4]


def test_keys_that_do_not_count():
    query, key = torch.ones(1, 1, 40, 4), torch.rand(1, 1, 40, 4)
    keep = torch.ones(1, 40, dtype=torch.bool)
    keep[:, 10:20] = False
    key[:, :, 10:20] = torch.nan
    keep[:, 3] = False
    key[:, :, 3] = 1e6
    key[:, :, 20:30] += 10
    indices = indices_of(ax.select_blocks(query, key, 10, 2, key_keep=keep))[0, 0]
    assert indices[35].tolist() == [2, 3]
    assert indices[25].tolist() == [0, 2]
    assert indices[15].tolist() == [0, 1]  # its own


def test_inputs_of_fewer_dimensions_and_views():
    query, key = torch.randn(2, 40, 4, 8).transpose(1, 2), torch.randn(2, 40, 2, 16).transpose(1, 2)[..., ::2]
    whole = indices_of(ax.select_blocks(query, key, 8, 3))
    assert torch.equal(whole, indices_of(ax.select_blocks(query.contiguous(), key.contiguous(), 8, 3)))
    assert torch.equal(whole[1:], indices_of(ax.select_blocks(query[1], key[1], 8, 3)))
    assert torch.equal(whole[1:, :1], indices_of(ax.select_blocks(query[1, 0], key[1, 0], 8, 3)))


@pytest.mark.parametrize("sizes", [(0, 2, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0)])
def test_empty_tensors(sizes):
    B, H, Lq, Lk = sizes
    query, key = torch.randn(B, H, Lq, 4), torch.randn(B, H, Lk, 4)
    mask = ax.select_blocks(query, key, 2, 3)
    assert indices_of(mask).shape == (B, H, Lq, 3)
    assert Lk or (indices_of(mask) == -1).all()
    assert ax.attention(query, key, key, mask=mask).shape == query.shape


@pytest.mark.once
def test_the_number_of_threads_does_not_matter():
    query, key = torch.randn(2, 4, 300, 32), torch.randn(2, 2, 300, 32)
    found = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(indices_of(ax.select_blocks(query, key, 8, 5)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.once
def test_a_choice_for_each_query_takes_a_word_a_tile():
    """Random choices touch all tiles, and heads of a group share what they chose."""
    L = 2048
    query, key = torch.randn(1, 8, L, 16), torch.randn(1, 2, L, 16)
    mask = ax.select_blocks(query, key, 64, 8, share_heads=True)
    _, _, entries, _, _, maps = mask.lower(1, 8, L, L, query.device).block_table
    assert len(entries) == 2 * 32 * 33 // 2
    assert maps.numel() <= len(entries) + 64
    assert mask.density(L, L) == pytest.approx(float(mask.dense(L, L).double().mean()))


Q, K = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 12, 8)
KEEP = torch.ones(2, 12, dtype=torch.bool)
POSITIVE = "expected a positive integer"
WRONG = [
    ({"query": Q.int()}, TypeError, "query: expected dtype float32, float64"),
    ({"key": K.double()}, TypeError, "key: expected the dtype of query"),
    ({"query": [1]}, TypeError, "query: expected a torch.Tensor, got list"),
    ({"key": K[:, :, :, :4]}, ValueError, "key: expected the head dimension of query"),
    ({"query": Q[:, :3]}, ValueError, "key: expected a number of heads that divides"),
    ({"block_size": 0}, ValueError, f"block_size: {POSITIVE} below 2\\*\\*31, got 0"),
    ({"block_size": 4.0}, TypeError, f"block_size: {POSITIVE}, got float"),
    ({"top_k": -1}, ValueError, f"top_k: {POSITIVE} below 2\\*\\*31, got -1"),
    ({"local_blocks": 0}, ValueError, "local_blocks: expected 1 to 2, got 0"),
    ({"initial_blocks": 3}, ValueError, "initial_blocks: expected 0 to 2"),
    ({"initial_blocks": True}, TypeError, "initial_blocks: expected an int"),
    ({"initial_blocks": 2}, ValueError, "local_blocks: expected 1 to 0, got 1"),
    ({"query_block_size": 2}, ValueError, "query_block_size: expected 1 with causal"),
    ({"key_keep": KEEP.int()}, TypeError, "key_keep: expected torch.bool"),
    ({"key_keep": KEEP[:, 1:]}, ValueError, r"key_keep: expected shape \(B, Lk\) = \(2, 12\)"),
    ({"compressed": (4, 2)}, TypeError, r"compressed: expected \(length, stride, Lk\)"),
    ({"compressed": (4, 3, 40)}, ValueError, "compressed: expected a stride that divides"),
    ({"compressed": (4, 2, 40)}, ValueError, "key: expected 19 compressed keys for 40"),
    ({"scale": torch.inf}, ValueError, "scale: expected a finite number"),
]


@pytest.mark.once
@pytest.mark.parametrize(("changes", "error", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        ax.select_blocks(**{"query": Q, "key": K, "block_size": 4, "top_k": 2} | changes)


RAW = {"key_keep": None, "block": 4, "query_block": 1, "top_k": 2, "initial": 0, "local": 1}
RAW |= {"causal": True, "share": False, "compressed": [], "scale": 1.0}
WRONG_RAW = [
    ({"query": Q.int()}, "query: expected float32, float64"),
    ({"query": Q[0]}, "query: expected float32, float64, bfloat16 or float16 of four dimensions"),
    ({"key": K.double()}, "key: expected the dtype of query"),
    ({"key": K[:1]}, "key: expected the batch size and head dimension of query"),
    ({"query": Q[:, :3]}, "key: expected a number of heads that divides query's 3"),
    ({"key_keep": KEEP[:, :5]}, "key_keep: expected contiguous bool of shape"),
    ({"block": 0}, "block_size: expected a positive number"),
    ({"top_k": 2**40}, "top_k: expected a positive number"),
    ({"initial": -1}, "initial_blocks: expected 0 to"),
    ({"local": 3}, "local_blocks: expected 1 to"),
    ({"query_block": 2}, "query_block_size: expected 1 with causal"),
    ({"compressed": [1, 2]}, "compressed: expected 0 or 3 integers"),
    ({"compressed": [4, 0, 9]}, "compressed: expected a stride that divides"),
    ({"compressed": [4, 2, 9]}, "compressed: expected 3 keys for 9 positions, got 12"),
]


@pytest.mark.once
@pytest.mark.parametrize(("changes", "message"), WRONG_RAW, ids=[w[1] for w in WRONG_RAW])
def test_the_op_checks_again(changes, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.attention_ext.select_blocks(*({"query": Q, "key": K} | RAW | changes).values())
