"""Masks that lower to tables of tiles: what the kernels skip, and that nothing outside a table is read."""

import emulation
import pytest
import torch
from helpers import Shape, assert_attention_matches, make_qkv, random_keep
from test_attention_kernels import assert_near

import attention_ext as ax
from attention_ext import masks
from attention_ext.masks._lowering import stored_table

# Tiles without a pair, full ones and partial ones; heads and batch rows of their own.
TABLES = {
    "blocks": lambda s: masks.Blocks(random_keep(s.B, s.Hq, -(-s.Lq // 64), -(-s.Lk // 64)), 64),
    "few": lambda s: masks.Strided(70),
    "global": lambda s: masks.SlidingWindow(20, 0) | masks.Global(2),
    "documents": lambda s: masks.Documents(torch.arange(s.Lk) // 90) & masks.Causal(),
    "nothing": lambda s: masks.Blocks(torch.zeros(5, 5, dtype=torch.bool), 64) | masks.Blocks(torch.zeros(5, 5, dtype=torch.bool), 64),
}
SHAPE = Shape(2, 4, 2, 200, 270, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables(table, dtype, kernels):
    kernels.set_schedule(2)
    shape = SHAPE._replace(B=1, Hq=2, Hkv=1) if emulation.MODE == "checked" else SHAPE
    qkv = make_qkv(shape, dtype)
    mask = table(shape)
    assert mask.lower(shape.B, shape.Hq, shape.Lq, shape.Lk, torch.device("cpu")).block_table
    if dtype == torch.float32:
        assert_near(*qkv, mask=mask)
    else:
        assert_attention_matches(*qkv, mask=mask, grads=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_table_with_other_conditions(dtype):
    shape = Shape(2, 4, 2, 70, 200, 8, 8)
    lengths = masks.KeyLengths(torch.tensor([190, 65]))
    mask = (masks.Strided(3) | masks.Global(1)) & masks.SlidingWindow(100, None) & lengths
    assert_attention_matches(*make_qkv(shape, dtype), mask=mask, grads=False)


# Values on a device are not looked at before a kernel runs.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("junk", [-(2**40), -1, 7, 2**40], ids=str)
@pytest.mark.parametrize("part", range(5))
def test_no_table_leads_outside(part, junk, dtype, kernels):
    shape = Shape(1, 2, 1, 70, 131, 8, 8)
    program = [torch.tensor([4, -9, 9, 1, 0, 0])]
    parts = [t.clone() for t in torch.ops.attention_ext._build_block_table.default(program, shape.Lq, shape.Lk)]
    parts[part].fill_(max(-(2**31), min(junk, 2**31 - 1)) if parts[part].dtype == torch.int32 else junk)
    table = stored_table(parts, shape.Lq, shape.Lk)
    qkv = make_qkv(shape, dtype)
    none, plain = None, (1.0, 0.0, 0.0, None)
    mask = ([], none, none, none, none, table)
    out, lse = kernels.run("_attention_forward", *qkv, *mask, none, none, none, *plain)
    kernels.run("_attention_backward", out, none, *qkv, out, lse, *mask, none, none, none, *plain, [True] * 3 + [False] * 3)
    ax.attention(*qkv)


@pytest.mark.parametrize("part", range(1, 6))
def test_arrays_of_another_kind_are_refused(part, kernels):
    shape = Shape(1, 2, 1, 70, 131, 8, 8)
    program = [torch.tensor([4, -9, 9, 1, 0, 0])]
    table = stored_table(torch.ops.attention_ext._build_block_table.default(program, shape.Lq, shape.Lk), shape.Lq, shape.Lk)
    table[part] = table[part].double()
    none = None
    qkv = make_qkv(shape)
    ax.attention(*qkv)
    with pytest.raises(RuntimeError, match="block_table: expected the arrays of a table"):
        kernels.run("_attention_forward", *qkv, [], none, none, none, none, table, none, none, none, 1.0, 0.0, 0.0, none)


def test_a_program_is_refused(kernels):
    qkv = make_qkv(Shape(1, 2, 1, 70, 131, 8, 8))
    none = None
    ax.attention(*qkv)
    with pytest.raises(RuntimeError, match="block_table: expected a table built for 70 queries"):
        program = [torch.tensor([4, -9, 9, 1, 0, 0])]
        kernels.run("_attention_forward", *qkv, [], none, none, none, none, program, none, none, none, 1.0, 0.0, 0.0, none)
