"""Masks that lower to tables of tiles: what the kernels skip, and that nothing outside a table is read."""

import emulation
import pytest
import torch
from helpers import Shape, make_qkv, random_keep
from test_attention_kernels import assert_near

from attention_ext import masks
from attention_ext._ops import library
from attention_ext.masks._lowering import BAND, stored_table

# Tiles without a pair, full ones and partial ones; heads and batch rows of their own.
TABLES = {
    "blocks": lambda s: masks.Blocks(random_keep(s.B, s.Hq, -(-s.Lq // 64), -(-s.Lk // 64)), 64),
    "few": lambda s: masks.Global((3, 190)),
    "global": lambda s: masks.SlidingWindow(20, 0) | masks.Global(2),
    "documents": lambda s: masks.Documents(torch.arange(s.Lk) // 90) & masks.Causal(),
    "nothing": lambda s: masks.Blocks(torch.zeros(-(-s.Lq // 64), -(-s.Lk // 64), dtype=torch.bool), 64),
}
SMALL = Shape(1, 2, 1, 130, 200, 8, 8)
SHAPE = SMALL if emulation.MODE == "checked" else SMALL._replace(B=2, Hq=4, Hkv=2)

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


@both
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables(table, dtype, kernels):
    kernels.set_schedule(2)
    mask = table(SHAPE)
    assert mask.lower(SHAPE.B, SHAPE.Hq, SHAPE.Lq, SHAPE.Lk, torch.device("cpu")).block_table
    assert_near(*make_qkv(SHAPE, dtype), mask=mask)


@both
def test_a_table_with_other_conditions(dtype):
    lengths = masks.KeyLengths(torch.tensor([190, 65]))
    mask = (masks.SlidingWindow(3, 0) | masks.Global(1)) & masks.Strided(3) & lengths
    assert_near(*make_qkv(Shape(2, 4, 2, 70, 200, 8, 8), dtype), mask=mask)


# What a call of the operators themselves may be given.

RAW = Shape(1, 2, 1, 70, 131, 8, 8)
WINDOW = [torch.tensor([BAND, -9, 9, 1, 0, 0])]  # a program, yet to be built


def window_table():
    parts = torch.ops.attention_ext._build_block_table.default(WINDOW, RAW.Lq, RAW.Lk)
    return stored_table(parts, RAW.Lq, RAW.Lk)


def run(block_table, dtype=torch.float32, backward=False):
    qkv = make_qkv(RAW, dtype)
    options = ([], None, None, None, None, block_table, None, None, None, 1.0, 0.0, 0.0, None)
    out, lse = library.forward(*qkv, *options)
    if backward:
        library.backward(out, None, *qkv, out, lse, *options, [True] * 3 + [False] * 3)


# Values on a device are not looked at before a kernel runs.
@both
@pytest.mark.parametrize("junk", [-(2**40), -1, 7, 2**40], ids=str)
@pytest.mark.parametrize("part", range(1, 6))
def test_no_table_leads_outside(part, junk, dtype):
    table = window_table()
    table[part].fill_(max(-(2**31), min(junk, 2**31 - 1)) if table[part].dtype == torch.int32 else junk)
    run(table, dtype, backward=True)


@pytest.mark.parametrize("part", range(1, 6))
def test_arrays_of_another_kind_are_refused(part):
    table = window_table()
    run(table)
    table[part] = table[part].double()
    with pytest.raises(RuntimeError, match="block_table: expected the arrays of a table"):
        run(table)


def test_a_program_is_refused():
    with pytest.raises(RuntimeError, match="block_table: expected a table built for 70 queries"):
        run(WINDOW)
