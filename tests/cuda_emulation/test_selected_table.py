"""The table of chosen blocks of keys, made on the device: the tiles of the one that the CPU builds."""

from itertools import pairwise
from typing import NamedTuple

import emulation
import pytest
import torch
from helpers import Shape, make_qkv

from attention_ext._ops import library
from attention_ext.masks._lowering import BAND, SELECTED, stored_table

CHECKED = emulation.MODE == "checked"


class Choice(NamedTuple):
    Lq: int
    Lk: int
    key_block: int
    query_block: int = 1
    per_row: int = 2
    B: int = 1
    H: int = 2
    repeat: int = 1

    def indices(self):
        """Some are no block: below 0, or behind the last."""
        blocks = -(-self.Lk // self.key_block)
        torch.manual_seed(self.Lq * self.key_block)
        size = (self.B, self.H, -(-self.Lq // self.query_block), self.per_row)
        return torch.randint(-1, blocks, size, dtype=torch.int32)

    def program(self, indices=None):
        code = torch.tensor([SELECTED, 0, self.repeat, self.query_block, self.key_block])
        return [code, self.indices() if indices is None else indices]


CHOICES = {
    "a tile a block": Choice(130, 200, 64),
    "blocks of two tiles": Choice(130, 420, 128, per_row=1, B=2, repeat=3),
    "blocks within tiles": Choice(70, 300, 16, per_row=5, H=1, repeat=2),
    "blocks across tiles": Choice(200, 331, 100, 16, B=2),
    "queries together": Choice(200, 640, 64, 64, H=1),
    "more than a block of queries": Choice(300, 130, 64, 100),
    "the same for all": Choice(65, 64, 64, H=1),
    "many tiles": Choice(64 * 34, 64 * 35, 64, 64, 9, H=1),
    "many tiles, cut": Choice(64 * 33 - 5, 64 * 34 - 9, 24, 64, 9, H=1),
    "one block": Choice(70, 40, 64, per_row=1, B=2),
    "a long last block": Choice(70, 100, 512, per_row=1),
}


def decoded(parts, Lk):
    """Per row and per column of tiles: those that are listed, with 64 row maps each, up to the last key."""
    row_start, row_entries, column_start, column_entries, maps = (t.tolist() for t in parts)
    words = [word for row in maps for word in row]

    def row_maps(at, key_tile):
        keys = 2 ** max(0, min(64, Lk - 64 * key_tile)) - 1
        if at < 0:
            return [keys * (at == -1 or words[-2 - at] >> r & 1) for r in range(64)]
        return [x & keys for x in maps[at]]

    def lists(starts, entries, key_tile):
        for of_head in (of_head for of_row in starts for of_head in of_row):
            for n, (begin, end) in enumerate(pairwise(of_head)):
                yield [(tile, row_maps(at, key_tile(n, tile))) for tile, at in entries[begin:end]]

    return [
        *lists(row_start, row_entries, lambda n, tile: tile),
        *lists(column_start, column_entries, lambda n, tile: n),
    ]


def both_tables(kernels, program, Lq, Lk):
    expected = torch.ops.attention_ext._build_block_table.default(program, Lq, Lk)
    return kernels.operator(emulation.TABLE_OPERATOR)(program, Lq, Lk), expected


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_the_tiles_of_the_cpu(choice, kernels):
    kernels.set_schedule(1)
    found, expected = both_tables(kernels, choice.program(), choice.Lq, choice.Lk)
    assert [t.shape for t in (found[0], found[2])] == [t.shape for t in (expected[0], expected[2])]
    assert decoded(found, choice.Lk) == decoded(expected, choice.Lk)


@pytest.mark.parametrize("key_block", [64, 24])
@pytest.mark.parametrize("junk", [-(2**31), -2, 1000, 2**31 - 1])
def test_an_index_of_no_block_is_none(junk, key_block, kernels):
    choice = Choice(130, 300, key_block)
    run, indices = kernels.operator(emulation.TABLE_OPERATOR), choice.indices()
    expected = run(choice.program(), choice.Lq, choice.Lk)
    found = run(choice.program(torch.where(indices < 0, junk, indices)), choice.Lq, choice.Lk)
    assert decoded(found, choice.Lk) == decoded(expected, choice.Lk)


@pytest.mark.parametrize(
    "choice",
    [Choice(0, 70, 64), Choice(70, 0, 64), Choice(70, 70, 64, per_row=0), Choice(70, 70, 64, B=0)],
    ids=["no queries", "no keys", "no blocks", "no batch"],
)
def test_nothing_is_chosen(choice, kernels):
    size = (choice.B, choice.H, choice.Lq, choice.per_row)
    program = choice.program(torch.full(size, -1, dtype=torch.int32))
    found, expected = both_tables(kernels, program, choice.Lq, choice.Lk)
    assert [t.shape for t in (found[0], found[2])] == [t.shape for t in (expected[0], expected[2])]
    assert not any(decoded(found, choice.Lk))


# In a call of attention.

SHAPE = Shape(1, 4, 2, 130, 200, 8, 8)


def attend(block_table):
    torch.manual_seed(0)
    qkv = make_qkv(SHAPE, torch.float32)
    options = ([], None, None, None, None, block_table, None, None, None, 1.0, 0.0, 0.0, None)
    out, lse = library.forward(*qkv, *options)
    grads = library.backward(out, None, *qkv, out, lse, *options, [True] * 3 + [False] * 3)
    return [out, lse, *grads[:3]]


@pytest.mark.parametrize("key_block", [64, 24])
@pytest.mark.parametrize("repeat", [1, 2])
def test_attention_with_chosen_blocks(key_block, repeat):
    program = Choice(SHAPE.Lq, SHAPE.Lk, key_block, H=4 // repeat, repeat=repeat).program()
    parts = torch.ops.attention_ext._build_block_table.default(program, SHAPE.Lq, SHAPE.Lk)
    expected = attend(stored_table(parts, SHAPE.Lq, SHAPE.Lk))
    for found in (attend(program), attend(program)):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_cuda_graph_captures_new_choices(kernels):
    kernels.set_capturing(True)
    try:
        for seed in range(3):
            torch.manual_seed(seed)
            blocks = torch.randint(-1, 4, (1, 4, SHAPE.Lq, 1), dtype=torch.int32)
            attend(Choice(SHAPE.Lq, SHAPE.Lk, 64, H=4).program(blocks))
    finally:
        kernels.set_capturing(False)


def test_results_do_not_depend_on_the_schedule(kernels):
    choice = CHOICES["blocks across tiles"]
    found = []
    for seed in range(4):
        kernels.set_schedule(seed)
        table = kernels.operator(emulation.TABLE_OPERATOR)(choice.program(), choice.Lq, choice.Lk)
        found.append(decoded(table, choice.Lk))
    assert all(other == found[0] for other in found[1:])


# What the CPU does instead.


@pytest.mark.skipif(CHECKED, reason="no kernel runs: the table is the CPU's")
def test_a_worst_case_of_4_gb_is_left_to_the_cpu(kernels):
    choice = Choice(64, 130 * 64, 32, 64, 1, H=70000)
    found, expected = both_tables(kernels, choice.program(), choice.Lq, choice.Lk)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_other_programs_are_left_to_the_cpu(kernels):
    chosen = Choice(70, 130, 64).program()
    negated = [torch.tensor([*chosen[0].tolist(), 2]), chosen[1]]
    for program in (negated, [torch.tensor([BAND, -9, 9, 1, 0, 0])]):
        found, expected = both_tables(kernels, program, 70, 130)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("choice", "changes", "message"),
    [
        (Choice(70, 130, 64), {"Lq": 71}, "expected selected blocks for 71 rows of queries, got 70"),
        (Choice(70, 130, 0), {}, "expected blocks of at least one query and key"),
        (Choice(70, 130, 64, repeat=0), {}, "for at least one head"),
        (Choice(70, 130, 64), {"Lk": -1}, "Lq, Lk: expected lengths of at least 0"),
    ],
    ids=["rows", "key block", "repeat", "length"],
)
def test_what_does_not_fit_is_refused(choice, changes, message, kernels):
    indices = torch.zeros(1, 2, 70, 1, dtype=torch.int32)
    sizes = {"Lq": choice.Lq, "Lk": choice.Lk} | changes
    with pytest.raises(RuntimeError, match=message):
        kernels.operator(emulation.TABLE_OPERATOR)(choice.program(indices), *sizes.values())
