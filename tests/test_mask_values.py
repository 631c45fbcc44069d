"""Masks of every class as values: they travel, move, and refuse what makes none."""

import copy
import pickle

import pytest
import torch

import attention_ext as ax
from attention_ext import masks
from attention_ext.masks import (
    Blocks,
    Causal,
    Compressed,
    Dense,
    Dilated,
    Documents,
    Global,
    KeyLengths,
    Neighborhood,
    Packed,
    Selected,
    Strided,
    from_function,
)

pytestmark = pytest.mark.cpu_only("masks are lowered on the CPU")

CPU = torch.device("cpu")
# For 6 queries and keys.
MAKERS = {
    "strided": lambda: Strided(2, "top_left"),
    "dilated": lambda: Dilated(1, None, 2),
    "first": lambda: Global(2),
    "global": lambda: Global([4, 1]),
    "documents": lambda: Documents(torch.tensor([0, 0, 1, 1, 1, -1])),
    "two_documents": lambda: Documents.from_cu_seqlens([0, 2, 6], [0, 5, 6]),
    "neighborhood": lambda: Neighborhood((2, 3), (1, 2), causal=(False, True)),
    "blocks": lambda: Blocks(torch.rand(2, 3) > 0.5, (3, 2)),
    "selected": lambda: Selected(torch.tensor([[0, 1], [-1, 2], [1, 1]], dtype=torch.int32), 2, 2),
    "compressed": lambda: Compressed(3, 2, 13),
    "function": lambda: from_function(lambda b, h, q, k: q >= k, None, None, 6, 6),
    "packed": lambda: Packed(Causal() & KeyLengths([1, 3]), [0, 2, 6]),
    "packed_all": lambda: Packed(None, [0, 2, 6], [0, 5, 6]),
    "union": lambda: Causal() | Documents(torch.tensor([0, 0, 1, 1, 1, -1])),
    "complement": lambda: ~(Strided(2) & Dense(torch.rand(6, 6) > 0.5)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_masks_travel(make, tmp_path):
    mask = make()
    mask.lower(1, 1, 6, 6, CPU)
    torch.save(mask, tmp_path / "mask.pt")
    leaves, spec = torch.utils._pytree.tree_flatten(mask)
    for copied in (
        pickle.loads(pickle.dumps(mask)),
        copy.deepcopy(mask),
        torch.load(tmp_path / "mask.pt", weights_only=True),
        torch.utils._pytree.tree_unflatten(leaves, spec),
    ):
        assert repr(copied) == repr(mask)
        assert torch.equal(copied.dense(6, 6), mask.dense(6, 6))
        if not mask._tensors():
            assert copied == mask
            assert hash(copied) == hash(mask)
    assert copy.copy(mask) == mask
    assert type(mask).__module__ == "attention_ext.masks"


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_to_moves_the_tensors(make):
    mask = make()
    assert mask.to("cpu") is mask
    moved = mask.to("meta")
    assert {t.device.type for t in moved._tensors()} <= {"meta"}
    if mask._tensors():
        with pytest.raises(ValueError, match="expected tensors on the query's device cpu, got meta"):
            moved.lower(1, 1, 6, 6, CPU)


def test_what_each_class_allows():
    pairs = {
        Strided(2): lambda i, j: (i + 1 - j) % 2 == 0,
        Dilated(1, 1, 2): lambda i, j: j - i - 1 in (-2, 0, 2),
        Global(1): lambda i, j: j == 0,
        Global([2, 5], "top_left"): lambda i, j: i == 2 or j in (2, 5),
        Documents(torch.tensor([0, 0, 7, 7, -1, 7])): lambda i, j: (
            i + 1 != 4 and j != 4 and (i + 1 < 2) == (j < 2)
        ),
        Blocks(torch.tensor([[True, False], [False, True]]), (3, 4)): lambda i, j: i // 3 == j // 4,
        Packed(Causal("top_left"), [0, 2, 5], [0, 3, 6]): lambda i, j: (
            (i < 2) == (j < 3) and (j <= i if i < 2 else j - 3 <= i - 2)
        ),
    }
    for mask, rule in pairs.items():
        expected = torch.tensor([[bool(rule(i, j)) for j in range(6)] for i in range(5)])
        assert torch.equal(mask.dense(5, 6)[0, 0], expected), mask


def test_documents_from_starts():
    assert Documents.from_cu_seqlens([0, 2, 2, 5]).ids.tolist() == [0, 0, 2, 2, 2]
    both = Documents.from_cu_seqlens(torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4], dtype=torch.int32))
    assert both.query_ids.tolist() == [0, 1, 1]
    assert both.ids.tolist() == [0, 0, 1, 1]


POSITIVE = "expected a positive integer"
STARTS = r"expected integers of shape (sequences + 1,)"
IDS = torch.zeros(6, dtype=torch.int64)
MAP = torch.ones(2, 2, dtype=torch.bool)
WRONG = [
    (lambda: Strided(0), ValueError, f"stride: {POSITIVE} below 2**31, got 0"),
    (lambda: Strided(2.0), TypeError, f"stride: {POSITIVE}, got float"),
    (lambda: Dilated(1, 1, -2), ValueError, f"dilation: {POSITIVE} below 2**31, got -2"),
    (lambda: Dilated(-1, 1, 2), ValueError, "left: expected a non-negative integer or None (unbounded), got -1"),  # noqa: E501
    (lambda: Global(-1), ValueError, "tokens: expected a number or positions of at least 0, got -1"),
    (lambda: Global([3, -4]), ValueError, "tokens: expected a number or positions of at least 0, got -4"),
    (lambda: Global(1.5), TypeError, "tokens: expected an int or a sequence of ints, got float"),
    (lambda: Global([1.5]), TypeError, "tokens: expected an int or a sequence of ints, got list"),
    (lambda: Documents(IDS.float()), TypeError, "ids: expected an integer tensor, got torch.float32"),
    (lambda: Documents(IDS[0]), ValueError, "ids: expected shape (L,) or (B, L), got ()"),
    (lambda: Documents(IDS, IDS[None, None]), ValueError, "query_ids: expected shape (L,) or (B, L), got (1, 1, 6)"),  # noqa: E501
    (lambda: Documents.from_cu_seqlens([0, 4, 3]), ValueError, f"cu_seqlens: {STARTS} that don't decrease, got 4, 3"),  # noqa: E501
    (lambda: Documents.from_cu_seqlens([2, 4]), ValueError, f"cu_seqlens: {STARTS} that start at 0, got 2"),
    (lambda: Documents.from_cu_seqlens([0, 4], [0, 2, 3]), ValueError, "cu_seqlens_k: expected the size of cu_seqlens, 2, got 3"),  # noqa: E501
    (lambda: Neighborhood((4, 4), 5), ValueError, "window: expected window * dilation of at most the grid's size (4, 4), got window (5, 5) and dilation (1, 1)"),  # noqa: E501
    (lambda: Neighborhood(9, 5, 2), ValueError, "window: expected window * dilation of at most the grid's size (9,), got window (5,) and dilation (2,)"),  # noqa: E501
    (lambda: Neighborhood((4, 4), (2, 2, 2)), ValueError, "window: expected one value or 2, one per dimension, got (2, 2, 2)"),  # noqa: E501
    (lambda: Neighborhood((2, 2, 2, 2), 1), ValueError, "shape: expected 1 to 3 dimensions, got (2, 2, 2, 2)"),  # noqa: E501
    (lambda: Neighborhood(4, 2, causal=1), TypeError, "causal: expected a bool or one per dimension, got (1,)"),  # noqa: E501
    (lambda: Blocks(MAP.long(), 4), TypeError, "block_map: expected a bool tensor (True = attend), got torch.int64"),  # noqa: E501
    (lambda: Blocks(MAP[0], 4), ValueError, "block_map: expected shape (..., nq, nk), got (2,)"),
    (lambda: Blocks(MAP, 0), ValueError, f"block_size: {POSITIVE} below 2**31, got 0"),
    (lambda: Blocks(MAP, (1, 2, 3)), ValueError, "block_size: expected one size or two, of queries and keys, got (1, 2, 3)"),  # noqa: E501
    (lambda: Blocks.from_flex(MAP), TypeError, "block_mask: expected a BlockMask, got Tensor"),
    (lambda: Selected(MAP, 4), TypeError, "indices: expected an int32 tensor, got torch.bool"),
    (lambda: Selected(IDS.int(), 4), ValueError, "indices: expected shape (..., nq, n), got (6,)"),
    (lambda: Selected(IDS.int()[None], 0), ValueError, f"block_size: {POSITIVE} below 2**31, got 0"),
    (lambda: Selected(IDS.int()[None], 1, 1, 1.5), TypeError, f"group: {POSITIVE}, got float"),
    (lambda: Compressed(4, 0, 9), ValueError, f"stride: {POSITIVE} below 2**31, got 0"),
    (lambda: Compressed(4, 2, -1), ValueError, f"positions: {POSITIVE} below 2**31, got -1"),
    (lambda: from_function(lambda b, h, q, k: q - k, 1, 1, 4, 4), TypeError, "fn: expected a function that gives a bool, got torch.int64"),  # noqa: E501
    (lambda: from_function(lambda b, h, q, k: q > k, 1, 1, -4, 4), ValueError, "Lq: expected a size of at least 0, got -4"),  # noqa: E501
    (lambda: Packed(MAP, [0, 1]), TypeError, "mask: expected one of attention_ext.masks or None, got Tensor"),
]  # fmt: skip

# For B 2, Hq 4, Lq 5, Lk 7.
MISFITS = [
    (Documents(IDS), "mask: expected document ids of 7 keys, got 6"),
    (Documents(IDS.new_zeros(7), IDS), "mask: expected document ids of 5 queries, got 6"),
    (Documents(IDS.new_zeros(3, 7)), "mask: expected batch size 2 or 1 and 4 heads or 1, got 3 and 1"),
    (Blocks(MAP, 2), "mask: expected a block map of 3 x 4 blocks, got 2 x 2"),
    (Blocks(MAP.expand(3, 2, 2), (3, 4)), "mask: expected batch size 2 or 1 and 4 heads or 1, got 1 and 3"),
    (Selected(IDS.int()[:, None], 4), "mask: expected selected blocks for 5 rows of queries, got 6"),
    (Selected(IDS.int()[:5, None] + 2, 4), "mask: expected selected blocks below 2, got 2"),
    (Compressed(4, 2, 9), "mask: expected 3 compressed keys, got 7"),
    (Neighborhood(5, 2), "mask: expected 5 queries and keys for this neighborhood, got 5 and 7"),
    (Causal() | Dense(MAP), "mask: expected a map of 5 or 1 queries and 7 or 1 keys, got 2 and 2"),
    (~KeyLengths([1, 2, 3]), "mask: expected batch size 2 or 1 and 4 heads or 1, got 3 and 1"),
    (KeyLengths([1, 2]) | ~KeyLengths([1, 2, 3]), "mask: expected parts of one batch size, got 2 and 3"),
    (Packed(None, [0, 6], [0, 7]), "cu_seqlens_q: expected a last number of 5, the length, got 6"),
]


def test_equal_masks_share_what_is_moved_to_a_device():
    """meta stands for a GPU: the CPU builds the table, once, and it is copied once."""
    meta = torch.device("meta")
    first, second = ((Causal() | Global(1)).lower(2, 4, 70, 70, meta).block_table for _ in range(2))
    assert first[0].device == CPU
    assert all(t.device == meta for t in first[1:])
    assert all(a is b for a, b in zip(first, second, strict=True))
    with torch.inference_mode():
        (mask := Strided(3) | Global(2)).lower(2, 4, 70, 70, meta)
    assert not any(t.is_inference() for t in mask.lower(2, 4, 70, 70, meta).block_table)


def test_tables_are_built_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        for tokens in (2, (1, 3)):
            table = (Causal() | Global(tokens)).lower(1, 1, 70, 70, CPU).block_table
            assert all(t.device == CPU for t in table)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_tiles_say_the_same(make):
    mask = make()
    Lk = mask.keys if isinstance(mask, Compressed) else 6
    tiles = mask.tiles(6, Lk)
    assert isinstance(tiles, masks.Tiles)
    allowed = mask.dense(6, Lk)
    assert torch.equal(tiles.dense(6, Lk).expand_as(allowed), allowed)
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, Lk, 8)
    found = ax.attention(query, key, key, mask=tiles)
    torch.testing.assert_close(found, ax.attention(query, key, key, mask=mask))
    assert len(tiles.lower(2, 4, 6, Lk, CPU).block_table) == 6


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_wrong_arguments(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == message


@pytest.mark.parametrize(("mask", "message"), MISFITS, ids=[m[1] for m in MISFITS])
def test_masks_that_do_not_fit(mask, message):
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8)
    for each in (mask, mask & Causal()):
        with pytest.raises(ValueError, match="expected") as raised:
            ax.attention(query, key, key, mask=each)
        assert str(raised.value) == message


def test_stored_tables_are_checked():
    """Nothing in a table that someone made up is read out of bounds."""
    mask = from_function(lambda b, h, q, k: q != k, None, None, 70, 70)
    q = torch.randn(1, 1, 70, 4)
    good = mask.lower(1, 1, 70, 70, CPU).block_table

    def attend(table):
        return torch.ops.attention_ext.attention(
            q, q, q, [], None, None, None, None, table, None, None, None, None, 0.0, 0.0, None
        )

    attend(good)
    for part, index, value, message in [
        (1, (0, 0, 0), -1, "starts within the entries"),
        (1, (0, 0, 1), 99, "starts in ascending order"),
        (1, (0, 0, 1), -1, "starts in ascending order"),
        (2, (0, 0), 9, "tiles in ascending order"),
        (2, (1, 0), 0, "tiles in ascending order"),
        (2, (0, 1), 50, "maps that are there"),
        (2, (0, 1), -2 - 64 * 4, "maps that are there"),
        (4, (0, 0), -1, "tiles in ascending order"),
    ]:
        bad = [t.clone() for t in good]
        bad[part][index] = value
        with pytest.raises(RuntimeError, match=f"block_table: expected {message}"):
            attend(bad)
    with pytest.raises(RuntimeError, match="block_table: expected maps in int64"):
        attend([*good[:5], good[5][:, :3].contiguous()])
