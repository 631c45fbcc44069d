"""Every mask, and random expressions: dense, table and bands agree, and attention with them is right."""

import random

import pytest
import torch
from helpers import Shape, assert_attention_matches, make_qkv, random_keep

import attention_ext as ax
from attention_ext import masks
from attention_ext.masks import (
    NO_MASK,
    Blocks,
    Causal,
    Complement,
    Compressed,
    Dense,
    Dilated,
    Documents,
    Global,
    Intersection,
    KeyLengths,
    KeyPadding,
    Neighborhood,
    Packed,
    Selected,
    SlidingWindow,
    Strided,
    Union,
    from_function,
)
from attention_ext.masks._kept import KeptTables

CPU = torch.device("cpu")


def random_blocks(s, rng):
    sizes = rng.choice([(16, 16), (64, 64), (40, 100), (128, 32)])
    lead = rng.choice([(), (s.Hq,), (s.B, 1), (s.B, s.Hq)])
    return Blocks(torch.rand(*lead, -(-s.Lq // sizes[0]), -(-s.Lk // sizes[1])) > 0.5, sizes)


def random_documents(s, rng):
    ids = torch.randint(-1, 3, rng.choice([(s.Lk,), (s.B, s.Lk)])).sort(-1)[0]
    queries = torch.randint(-1, 3, rng.choice([(s.Lq,), (s.B, s.Lq)]))
    return rng.choice([Documents(ids), Documents(ids, queries), Documents(ids, alignment="top_left")])


def random_selected(s, rng):
    heads, group = rng.choice([(s.Hq, 1), (s.Hq // 2, 2), (1, 1)])
    queries, keys = rng.choice([(1, 64), (1, 48), (30, 16)])
    indices = torch.randint(-1, -(-s.Lk // keys), (rng.choice([1, s.B]), heads, -(-s.Lq // queries), 3))
    return Selected(indices.to(torch.int32), keys, queries, group)


def random_compressed(s, rng):
    length, stride = rng.choice([(1, 1), (8, 4), (5, 3)])
    return Compressed(length, stride, (s.Lk - 1) * stride + length + rng.randrange(stride))


ALIGNMENTS = ["top_left", "bottom_right"]
LEAVES = {
    "causal": lambda s, rng: Causal(rng.choice(ALIGNMENTS)),
    "window": lambda s, rng: SlidingWindow(rng.choice([None, 0, 9, 70]), rng.choice([None, 0, 30])),
    "strided": lambda s, rng: Strided(rng.choice([1, 2, 7, 64, 90]), rng.choice(ALIGNMENTS)),
    "dilated": lambda s, rng: Dilated(*rng.choice([(None, 0), (3, 5), (20, None)]), rng.choice([1, 4])),
    "first": lambda s, rng: Global(rng.choice([0, 1, 66])),
    "global": lambda s, rng: Global([rng.randrange(s.Lk), s.Lk - 1, s.Lk + 3]),
    "documents": random_documents,
    "lengths": lambda s, rng: KeyLengths(torch.randint(0, s.Lk + 2, (s.B,))),
    "padding": lambda s, rng: KeyPadding(random_keep(s.B, s.Lk)),
    "blocks": random_blocks,
    "selected": random_selected,
    "compressed": random_compressed,
    "dense": lambda s, rng: Dense(random_keep(*rng.choice([(s.Lq, s.Lk), (s.Hq, 1, s.Lk), (s.Lq, 1)]))),
    "function": lambda s, rng: from_function(
        lambda b, h, q, k: (q + h * k) % (b + 2) == 0, s.B, s.Hq, s.Lq, s.Lk
    ),
}  # fmt: skip
ALGEBRA_SHAPES = {
    "wide": Shape(2, 4, 2, 70, 200, 8, 8),
    "tall": Shape(2, 2, 2, 200, 70, 8, 5),
    "grouped": Shape(1, 6, 1, 130, 130, 16, 16),
}


def random_expression(s, rng):
    """Two to four leaves, joined by &, | and ~ in any nesting."""
    parts = [LEAVES[rng.choice(list(LEAVES))](s, rng) for _ in range(rng.randint(2, 4))]
    while len(parts) > 1:
        a, b = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
        joined = rng.choice([lambda a, b: a & b, lambda a, b: a | b])(a, b)
        parts.append(~joined if rng.random() < 0.3 else joined)
    return parts[0]


def assert_sees_what_it_says(mask, s):
    """Lowered as the operators get it, and as one table, the mask allows what dense() says."""
    sizes = s.B, s.Hq, s.Lq, s.Lk
    dense = mask.dense(s.Lq, s.Lk)
    assert mask.density(s.Lq, s.Lk) == pytest.approx(float(dense.double().mean()))
    table = mask._table(s.Lq, s.Lk)
    assert len(table) == 6
    assert torch.equal(torch.ops.attention_ext._dense_block_table(table, *sizes), dense.expand(sizes))
    program = masks._lowering.Program()
    mask._emit(program)
    q, k, v = make_qkv(s, torch.float64)
    as_table = torch.ops.attention_ext.attention(
        q, k, v, [], None, None, None, None, program.block_table(), None, None, None, None, 0.0, 0.0, None
    )
    torch.testing.assert_close(as_table, ax.attention(q, k, v, mask=Dense(dense), return_lse=True))
    torch.testing.assert_close(as_table, ax.attention(q, k, v, mask=mask, return_lse=True))


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.cpu_only("tables are built on the CPU")
def test_every_mask_sees_what_it_says(leaf):
    rng = random.Random(leaf)
    for s in ALGEBRA_SHAPES.values():
        for _ in range(4):
            assert_sees_what_it_says(LEAVES[leaf](s, rng), s)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.cpu_only("tables are built on the CPU")
def test_random_expressions_see_what_they_say(seed):
    rng = random.Random(seed)
    for s in ALGEBRA_SHAPES.values():
        for _ in range(3):
            assert_sees_what_it_says(random_expression(s, rng), s)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", ALGEBRA_SHAPES.values(), ids=ALGEBRA_SHAPES)
def test_attention_with_random_expressions(shape, seed):
    dtype = [torch.float32, torch.float64, torch.bfloat16][seed % 3]
    mask = random_expression(shape, random.Random(seed + 100))
    assert_attention_matches(*make_qkv(shape, dtype), mask=mask)


def test_attention_with_every_term_and_a_table():
    s = ALGEBRA_SHAPES["grouped"]
    mask = SlidingWindow(20, 20) | Global([0, 99]) | Blocks(torch.rand(s.Hq, 3, 3) > 0.6, 64)
    assert_attention_matches(
        *make_qkv(s, torch.float64),
        mask=mask,
        bias=torch.randn(1, s.Hq, s.Lq, s.Lk, dtype=torch.float64),
        softcap=4.0,
        sinks=torch.randn(s.Hq, dtype=torch.float64),
        alibi_slopes=torch.rand(s.Hq, dtype=torch.float64),
        dropout_p=0.2,
        dropout_seed=5,
    )


@pytest.mark.once
def test_gradcheck_with_a_table():
    s = Shape(1, 2, 1, 66, 70, 2, 2)
    mask = (Strided(3) & Causal()) | Global(2)
    qkv = make_qkv(s, torch.float64, requires_grad=True)

    def function(q, k, v):
        return ax.attention(q, k, v, mask=mask, return_lse=True)

    assert torch.autograd.gradcheck(function, qkv, fast_mode=True, check_batched_grad=False)


def test_masked_values_stay_out_of_tables():
    s = Shape(1, 2, 2, 130, 130, 8, 8)
    mask = (SlidingWindow(10, 10) | Global([70])) & ~Dense(torch.arange(130) == 3)
    q, k, v = make_qkv(s)
    expected = ax.attention(q, k, v, mask=mask)
    for t in (k, v):
        t[:, :, 3] = float("nan")
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out = ax.attention(q, k, v, mask=mask)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in (q, k, v))


@pytest.mark.cpu_only("threads of the CPU")
def test_threads_change_nothing_with_tables():
    s = Shape(1, 4, 2, 300, 300, 16, 16)
    mask = SlidingWindow(40, 0) | Global(3) | Blocks(torch.rand(s.Hq, 5, 5) > 0.7, 64)
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            q, k, v = make_qkv(s, requires_grad=True)
            ax.attention(q, k, v, mask=mask).square().sum().backward()
            results.append((q.grad, k.grad, v.grad))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# bands stay bands


@pytest.mark.parametrize(
    ("mask", "same"),
    [
        (~Causal(), SlidingWindow(None, 10**6) & ~Causal()),
        (Causal() | SlidingWindow(2, 5), SlidingWindow(None, 5)),
        (SlidingWindow(9, 2) | SlidingWindow(1, 4), SlidingWindow(9, 4)),
        (~(~Causal() | ~SlidingWindow(8, None)), SlidingWindow(8, 0)),
        (Strided(3) & Causal() & Strided(3), Dilated(None, 0, 3)),
        (Dilated(4, None, 3) & SlidingWindow(6, 7), Dilated(2, 2, 3)),
        (Causal() & (SlidingWindow(3, 3) | SlidingWindow(1, 4)), SlidingWindow(3, 0)),
    ],
    ids=repr,
)
@pytest.mark.cpu_only("tables are built on the CPU")
def test_expressions_that_are_bands_store_nothing(mask, same):
    for Lq, Lk in [(9, 14), (14, 9)]:
        lowered = mask.lower(2, 2, Lq, Lk, CPU)
        assert lowered[1:] == NO_MASK[1:]
        assert torch.equal(mask.dense(Lq, Lk), same.dense(Lq, Lk))


@pytest.mark.cpu_only("tables are built on the CPU")
def test_only_what_needs_a_table_goes_into_it():
    lengths, keep = KeyLengths([5, 9]), KeyPadding(random_keep(2, 80))
    mask = Causal() & Global(2) & lengths & Strided(2) & keep & Strided(3)
    lowered = mask.lower(2, 1, 70, 80, CPU)
    assert lowered.band == [-(2**62), 10, 2, 0, 0, 0]
    assert lowered.key_lengths is not None
    assert lowered.mask_bits is not None
    table = (Global(2) & Strided(3))._table(70, 80)
    for part, expected in zip(lowered.block_table, table, strict=True):
        assert torch.equal(part, expected)


@pytest.mark.cpu_only("tables are built on the CPU")
def test_two_dilations_both_count():
    mask = Strided(90) & Strided(2, "top_left")
    assert_sees_what_it_says(mask, Shape(1, 2, 1, 70, 200, 4, 4))


@pytest.mark.cpu_only("tables are built on the CPU")
def test_tables_are_kept():
    mask = Causal() | Global(3)
    table = mask.lower(1, 1, 70, 70, CPU).block_table
    equal = (Causal() | Global(3)).lower(2, 4, 70, 70, CPU).block_table
    assert all(a is b for a, b in zip(table, equal, strict=True))
    documents = Documents(torch.arange(70) // 20)
    table = documents.lower(1, 1, 70, 70, CPU).block_table
    assert documents.lower(1, 1, 70, 70, CPU).block_table is table
    documents.ids.zero_()
    assert documents.density(70, 70) == 1
    assert documents.lower(1, 1, 70, 70, CPU).block_table is not table


@pytest.mark.cpu_only("tables are built on the CPU")
def test_equal_expressions_share_a_table():
    def table(ids, *sizes):
        return (Documents(ids) | Global(1)).lower(*sizes, 70, 70, CPU).block_table

    ids = torch.arange(70) // 20
    first = table(ids, 1, 1)
    assert table(ids, 2, 4) is first
    assert table(ids.clone(), 1, 1) is not first
    with pytest.raises(ValueError, match="expected batch size 2 or 1"):
        table(ids.repeat(3, 1), 2, 1)
    ids[:] = 0
    assert table(ids, 1, 1) is not first
    assert (Documents(ids) | Global(1)).density(70, 70) == 1


def test_tables_go_with_their_tensors():
    tables = KeptTables(most=2)
    one, other = torch.zeros(1), torch.zeros(1)
    tables.keep("a", [one, other], ["table of a"])
    tables.keep("b", [one], ["table of b"])
    assert tables.get("a") == ["table of a"]
    del other
    assert tables.get("a") is None
    for name in "cd":
        tables.keep(name, [one], [name])
    assert [tables.get(name) for name in "bcd"] == [None, ["c"], ["d"]]


@pytest.mark.cpu_only("tables are built on the CPU")
def test_long_masks_cost_what_they_hold():
    L, nb = 100_000, -(-100_000 // 64)
    blocks = torch.zeros(nb, nb, dtype=torch.bool).scatter_(1, torch.randint(0, nb, (nb, 3)), True)
    mask = SlidingWindow(255, 255) | Global(64) | Blocks(blocks, 64)
    table = mask.lower(1, 8, L, L, CPU).block_table
    tiles = table[2].shape[0]
    assert tiles < nb * (9 + 1 + 3 + 1) + nb
    assert sum(t.numel() * t.element_size() for t in table) < 40 * tiles
    assert 0 < mask.density(L, L) < 0.02


# grids


def natten_window(x, size, window, dilation, causal):
    """The neighbours of coordinate x, by NATTEN's rule read as text: the group of x is x % dilation."""
    group = [y for y in range(size) if y % dilation == x % dilation]
    at = group.index(x)
    if causal:
        return set(group[max(0, at - window + 1) : at + 1])
    right = window // 2 + window % 2 - 1
    center = min(max(at, window // 2), len(group) - 1 - right)
    return set(group[center - window // 2 : center + right + 1])


@pytest.mark.parametrize(
    ("shape", "window", "dilation", "causal"),
    [
        (9, 3, 1, False),
        (10, 4, 2, False),
        (11, 3, 3, True),
        ((7, 12), (3, 4), (2, 3), (False, True)),
        ((5, 6, 9), (5, 2, 3), (1, 3, 2), (True, False, False)),
        ((3, 70), (2, 9), 1, False),
    ],
)
@pytest.mark.cpu_only("tables are built on the CPU")
def test_neighborhoods_follow_nattens_rule(shape, window, dilation, causal):
    mask = Neighborhood(shape, window, dilation, causal)
    length = torch.Size(mask.shape).numel()
    grid = torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).reshape(length, -1).tolist()
    allowed = torch.zeros(length, length, dtype=torch.bool)
    rules = list(zip(mask.shape, mask.window, mask.dilation, mask.causal, strict=True))
    for i, query in enumerate(grid):
        windows = [natten_window(x, *rule) for x, rule in zip(query, rules, strict=True)]
        for j, key in enumerate(grid):
            allowed[i, j] = all(y in w for y, w in zip(key, windows, strict=True))
    assert torch.equal(mask.dense(length, length)[0, 0], allowed)
    assert_sees_what_it_says(mask, Shape(1, 2, 1, length, length, 4, 4))


# functions


@pytest.mark.cpu_only("tables are built on the CPU")
def test_flex_masks_round_trip():
    from torch.nn.attention.flex_attention import create_block_mask

    ids = torch.arange(300) // 90

    def mod(b, h, q, k):
        return (ids[q] == ids[k]) & (q >= k - h) | (k < b)

    expected = from_function(mod, 2, 3, 300, 300)
    i, j = torch.arange(300)[:, None], torch.arange(300)
    pairs = torch.stack([torch.stack([mod(b, h, i, j) for h in range(3)]) for b in range(2)])
    assert torch.equal(expected.dense(300, 300), pairs)
    for block_size in (128, 64, 48, (96, 40)):
        flex = create_block_mask(mod, 2, 3, 300, 300, device="cpu", BLOCK_SIZE=block_size)
        mask = Blocks.from_flex(flex)
        assert torch.equal(mask.dense(300, 300), pairs)
    assert_sees_what_it_says(mask & Causal(), Shape(2, 3, 1, 300, 300, 4, 4))


# values


def test_expressions_are_values():
    a = (Causal() | Global([4, 1])) & ~Documents(torch.zeros(5, dtype=torch.int64))
    ids = a.parts[1].mask.ids
    b = (Causal() | Global((1, 4))) & ~Documents(ids)
    assert a == b
    assert hash(a) == hash(b)
    assert a != (Causal() | Global([4, 2])) & ~Documents(ids)
    assert Causal() | Global(1) != Causal() & Global(1)
    assert Neighborhood((4, 4), 2) == Neighborhood([4, 4], (2, 2), 1)
    assert Packed(Causal(), ids) != Packed(Strided(2), ids)
    assert ~~a is a
    assert (Causal() | Global(1) | Strided(2)).parts == (Causal(), Global(1), Strided(2))


def test_expressions_are_readable():
    window = SlidingWindow(3, 0)
    assert repr((Causal() | Global([2, 1])) & ~window) == (
        "(Causal() | Global([1, 2])) & ~SlidingWindow(left=3, right=0)"
    )
    assert repr(~(Causal() & window) | Strided(2)) == (
        "~(Causal() & SlidingWindow(left=3, right=0)) | Strided(stride=2)"
    )
    assert repr(Neighborhood((4, 8), 3, causal=(True, False))) == (
        "Neighborhood((4, 8), (3, 3), causal=(True, False))"
    )
    assert isinstance(~Causal(), Complement)
    assert isinstance(Causal() | window, Union)
    assert isinstance((Causal() | window) & window, Intersection)


def test_plot(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    axes = (SlidingWindow(64, 64) | Global(1)).plot(640)
    kinds = axes.images[0].get_array()
    assert kinds.shape == (10, 10)
    assert set(kinds.flatten().tolist()) == {0, 1, 2}
    axes.figure.savefig(tmp_path / "mask.png")
    assert Neighborhood((8, 16), 3).plot().images[0].get_array().shape == (2, 2)
    pyplot.close("all")
    per_head = Blocks(torch.rand(3, 2, 2) > 0.5, 64)
    assert per_head.plot(b=5, h=2).images
    with pytest.raises(ValueError, match="h: expected 0 to 2, got 3"):
        per_head.plot(h=3)
    pyplot.close("all")
